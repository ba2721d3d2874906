//! Filters, and the walks over trees that some requests cannot do without.
//!
//! - [`rules`]: a filter in the form in which objects are asked. [`sparse`], `wildmatch`: patterns of paths.
//! - [`trees`], `paths`: the walk over trees, and the directories of it that patterns are asked about.
//!
//! Relies on: layers, for the bytes of trees. Elsewhere: a filter as the client writes it (`git::filter`), which roots
//! are walked (`plan::select`).
mod paths;
pub mod rules;
pub mod sparse;
pub mod trees;
mod wildmatch;
