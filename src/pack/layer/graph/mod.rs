//! The graph: what one layer knows about its objects, so that a fetch walks no tree.
//!
//! For each object its type, size and delta base; for each commit its parents, generation number,
//! date, root tree and *introductions*: the objects of its tree that are in none of its parents'
//! trees at the same path. A graph is one file ([`format`](mod@format)) that is mapped and used as it lies
//! ([`view`]), made from a pack and its `.idx` ([`build`](mod@build)).
//!
//! Relies on: layers below being complete, which [`build`](mod@build) proves for each new layer.
//! Elsewhere: several graphs together (`stack`), what is selected with them (`plan::select`).
pub mod build;
pub mod columns;
pub mod facts;
pub mod format;
#[cfg(test)]
mod tests;
pub mod view;

pub use build::{BuildError, BuildInput, build};
pub use facts::{BLOCK_SIZE, FactsHasher, PackFacts};
pub use format::{CommitColumns, Draft, Lists, compress, compress_to, decompress};
pub use view::{Damaged, Graph};

/// Says whether a version is older than the one that this program reads and writes.
pub fn graph_version_is_old(version: u32) -> bool {
    version < format::VERSION
}

/// Stands for "none" wherever a position or ref is stored.
pub const NONE: u32 = u32::MAX;
