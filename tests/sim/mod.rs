//! The whole node under a seeded simulation: time stands still unless everybody waits, store and primary break as a seed says,
//! and what is left is judged by code that shares nothing with the writer.
//!
//! One schedule again: `PACKMIRROR_TEST_SEED=NUMBER cargo test --lib sim::schedules::whatever_fails`; more of them:
//! `PACKMIRROR_TEST_TIMES=50`.
//!
//! - [`store`]: the bucket, and each node's way to it. [`primary`]: the host. [`world`]: nodes and a farm. [`turns`]: the same seed is
//!   the same run.
//! - [`client`]: what a client sees. [`walker`]: what lies in the bucket. [`checks`]: what must be true. [`mutants`]: that each
//!   check can fail. [`nth`]: each call in turn.

mod checks;
mod client;
mod compaction;
mod healing;
mod mutants;
mod nth;
mod primary;
mod schedules;
mod soak;
pub mod store;
pub mod turns;
mod walker;
mod world;
