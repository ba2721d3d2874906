//! Jobs: what computes or waits for the disk, on threads beside the async ones.
//!
//! All jobs begin here, and wait for async work here, so that a simulation can let one thread run at a time (`tests/sim/turns.rs`)
//! and the same seed gives the same run. Relies on: tokio's threads for blocking work. Elsewhere: how many jobs there may be
//! at once (`answer::turns`, `work::lanes`).

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Begins a job on a thread for blocking work. It goes on to its end also if the handle is dropped.
pub fn spawn_blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if crate::sim::turns::are_taken() {
        return crate::sim::turns::spawn(job);
    }
    tokio::task::spawn_blocking(job)
}

/// Waits inside a job for what runs on the async threads.
pub fn wait<T>(runtime: &Handle, work: impl Future<Output = T>) -> T {
    #[cfg(test)]
    if crate::sim::turns::is_job() {
        return crate::sim::turns::wait(work);
    }
    runtime.block_on(work)
}
