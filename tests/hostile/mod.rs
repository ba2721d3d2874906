//! What attackers send: clients, people who push to the primary, broken primaries, and who reaches disk or bucket.
//!
//! One file per way in. Each test runs a small version of an attack and, where memory is the target, a node that may
//! not have more than a stated amount. `PACKMIRROR_TEST_HOSTILE=full` runs the attacks at full size.
//! These are modules of the whole-system tests, with which they share one binary and one harness.

pub mod access;
mod bucket;
mod connections;
mod disk;
mod fake;
mod filters;
mod memory;
mod primaries;
mod repositories;
mod requests;
mod smuggling;
mod syncs;

/// Whether attacks run at full size.
pub fn full() -> bool {
    std::env::var("PACKMIRROR_TEST_HOSTILE").is_ok_and(|v| v == "full")
}
