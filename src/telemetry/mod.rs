//! What an operator sees of a running process: the log and the metrics.
//!
//! [`log`] sets up the log once a process; [`metrics`] names every metric in one place and renders them.
//! Relies on: `tracing` and `metrics` facades, which every room uses directly. Knows no room.
//! Elsewhere: the HTTP path `/metrics` (`serve`), which settings there are (`config`).

pub mod log;
pub mod metrics;
