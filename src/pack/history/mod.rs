//! Questions about history, answered by the graph.
//!
//! - [`walk`]: which commits the wants reach and the haves do not. [`shallow`]: where a shallow client's history ends.
//! - [`negotiate`]: which haves count, and when there are enough. [`reach`]: whether a want is reachable from a ref.
//!
//! Relies on: layers, for commits and their parents; tree walks, for what only a tag or ref leads to.
//! Elsewhere: what is said to the client (`git::negotiate`, `git::response`), what is sent (`plan::select`).
pub mod negotiate;
pub mod reach;
pub mod shallow;
pub mod walk;
