//! The whole node under a seeded simulation: time stands still unless everybody waits, store and primary break as a seed says,
//! and what is left is judged by code that shares nothing with the writer.
//!
//! One schedule again: `PACKMIRROR_TEST_SEED=NUMBER cargo test --lib sim::schedules::whatever_fails`; more of them:
//! `PACKMIRROR_TEST_TIMES=50`.
//!
//! - [`store`]: the bucket, and each node's way to it. [`primary`]: the host. [`world`]: nodes and a farm. [`turns`]: the same seed is
//!   the same run.
//! - `cold`: nodes with an empty cache. `requests`: what everything asks of the store. `layered`: a repository with many layers. `many`: nodes with many repositories. `gone`: what the primary does not have any more. `nth`: each call of the store fails; `purge`: those of a purge.
//!   `upon`: a push and a merge at once. `soak`: a long time. `healing`: what was lost.
//! - [`client`]: what a client sees. [`walker`]: what lies in the bucket. [`checks`]: what must be true. [`mutants`], `borders`: that each check can fail.

mod borders;
mod checks;
mod client;
mod cold;
mod compaction;
mod gone;
mod healing;
mod layered;
mod many;
pub mod mutants;
mod nth;
mod primary;
mod purge;
mod requests;
mod schedules;
mod soak;
pub mod store;
pub mod turns;
mod upon;
mod walker;
mod world;
