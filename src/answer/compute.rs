//! Work that is not for the async threads.
//!
//! Elsewhere: whose turn it is (`turns`), when a job has to end (`meter`).

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::answer::meter::JobMeter;
use crate::answer::{Answers, Failed};
use crate::pack::meter::Meter;

/// From so many objects on, looking them up is not for an async thread.
const MANY: usize = 256;

impl Answers {
    /// Runs a job that computes, in its turn, until it is done or its client has left.
    pub async fn compute<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Meter) -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let turn = self.turns.turn(self.flow).await?;
        let stop = CancellationToken::new();
        // Dropped with this future, which is dropped when the client leaves.
        let _left = stop.clone().drop_guard();
        let meter = JobMeter::new(stop, self.work.clone()).taking_turns(Arc::clone(&self.turns), turn);
        blocking(move || job(&meter)).await
    }

    /// Runs a job that looks up `objects`: in its turn where they are many, at once where that costs less than a turn.
    pub async fn compute_many<T: Send + 'static>(
        &self,
        objects: usize,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failed> {
        if objects < MANY { Ok(job()) } else { self.compute(move |_| job()).await }
    }
}

/// Runs CPU-bound or waiting work off the async threads.
pub async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
    crate::threads::spawn_blocking(job).await.map_err(|e| {
        tracing::error!(error = %e, "a job ended by itself");
        Failed::Internal
    })
}
