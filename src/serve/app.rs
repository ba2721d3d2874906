//! What every request handler shares.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::mirror::Mirror;
use crate::primary::Grants;
use crate::serve::error::Failure;
use crate::serve::plans::Plans;
use crate::telemetry::metrics::{self as names, Recorder};

/// How long a fetch waits for its turn before it is told to come back.
const LONGEST_QUEUE: Duration = Duration::from_secs(30);

/// A node, as its handlers see it. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The repositories.
    pub mirror: Arc<Mirror>,
    /// Who may read, as the primary says.
    pub grants: Grants,
    /// False before the store was probed and while draining.
    pub ready: Arc<AtomicBool>,
    /// The metrics.
    pub recorder: Arc<Recorder>,
    /// Plans of earlier fetches.
    pub plans: Arc<Plans>,
    thinking: Arc<Semaphore>,
    serving: Arc<Semaphore>,
}

impl App {
    /// A node that is not ready yet.
    pub fn new(mirror: Arc<Mirror>, grants: Grants, recorder: Arc<Recorder>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let serving = mirror.settings.max_serving.max(1);
        Self {
            mirror,
            grants,
            recorder,
            plans: Arc::default(),
            ready: Arc::default(),
            // Selection and planning are pure computation: more at once than cores only makes all of them slower.
            thinking: Arc::new(Semaphore::new(cores.max(2))),
            serving: Arc::new(Semaphore::new(serving)),
        }
    }

    /// Leave to compute; held while a plan is made.
    pub async fn may_think(&self) -> Result<OwnedSemaphorePermit, Failure> {
        turn(&self.thinking).await
    }

    /// Leave to stream one pack; held until its last byte.
    pub async fn may_serve(&self) -> Result<OwnedSemaphorePermit, Failure> {
        turn(&self.serving).await
    }
}

async fn turn(limit: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
    match tokio::time::timeout(LONGEST_QUEUE, Arc::clone(limit).acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => {
            metrics::counter!(names::SHED).increment(1);
            Err(Failure::Busy)
        }
    }
}
