//! Collection: what nobody names any more is deleted from the bucket, after a grace, and old records with it.
//!
//! One node of a farm does it at a time, to save work; two at once do no harm, and `packmirror gc` may run beside them.
//! Nothing is deleted by what this node remembers: roots are read from the bucket in each round, times are the store's, and
//! whatever cannot be read ends the round.
//!
//! - `roots`: what is kept. [`round`]: what is marked and deleted. [`purge`]: the same at once, of one repository. [`report`]: what was done, for people.
//!
//! Relies on: `store` for listings and marks; writers that look at the marks (`publish`). Elsewhere: why two looks and two marks
//! are enough (decision 15).

pub mod purge;
pub mod report;
mod roots;
pub mod round;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::retry::Dice;
use crate::store::{Bucket, StoreError};
use crate::telemetry::metrics as names;
use crate::text::chain;
use crate::work::Work;
use report::Report;
use roots::age;
use round::{Terms, round};

/// The longest time between two looks whether a collection is due.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// How often a node says that it is collecting.
const SAY_EVERY: Duration = Duration::from_secs(20);
/// A node that has not said so for this long is not.
const SILENT: Duration = Duration::from_secs(120);

/// Why a collection ended early. What it had not deleted by then stays.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The bucket did not answer as it should.
    #[error("the bucket: {0}")]
    Store(#[from] StoreError),
    /// A record that is kept cannot be read, so what it names is not known.
    #[error(
        "a record that is kept cannot be read, so nothing is deleted: {source}; if another hand put it there, remove it, and \
         look with `packmirror vet`"
    )]
    Unreadable {
        /// What is wrong with it.
        source: StoreError,
    },
    /// A listing does not show what an earlier one did.
    #[error(
        "a listing of the bucket does not show the newest record of repos/{repo}, which was there before, so nothing is \
         deleted: the store's listings cannot be trusted; if somebody removed it by hand, remove the object gc/round"
    )]
    CutShort {
        /// The key of the repository.
        repo: String,
    },
}

impl CollectError {
    /// Whether the same may go well later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

/// Collects when it is due, until `stop`.
pub async fn run(work: Arc<Work>, stop: CancellationToken) {
    if work.collect_every.is_zero() {
        return;
    }
    let pace = (work.collect_every / 4).min(LOOK_EVERY);
    loop {
        let pause = pace.mul_f64(0.5) + Dice::random().up_to(pace.mul_f64(0.5));
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        if !work.is_sound() {
            continue;
        }
        let Some(outcome) = stop.run_until_cancelled(collect_if_due(&work)).await else { return };
        match outcome {
            Ok(None) => {}
            Ok(Some(report)) => {
                metrics::counter!(names::COLLECTIONS, "result" => "done").increment(1);
                tracing::info!("collected: {}", report.line());
            }
            Err(error) if error.is_transient() => {
                metrics::counter!(names::COLLECTIONS, "result" => "failed").increment(1);
                tracing::warn!(error = chain(&error), "a collection failed; it is tried again later");
            }
            Err(error) => {
                metrics::counter!(names::COLLECTIONS, "result" => "stopped").increment(1);
                tracing::error!(error = chain(&error), "a collection stopped");
            }
        }
    }
}

/// Collects if the last collection of the farm was long enough ago and no other node is at it.
async fn collect_if_due(work: &Work) -> Result<Option<Report>, CollectError> {
    let bucket = &work.mirror.bucket;
    let now = bucket.clock().await?;
    let last = bucket.last_round().await?;
    if last.is_some_and(|(_, at)| age(now, at) < work.collect_every) {
        return Ok(None);
    }
    if bucket.is_collecting().await?.is_some_and(|at| age(now, at) < SILENT) {
        return Ok(None);
    }
    bucket.say_collecting().await?;
    let _saying = AbortOnDropHandle::new(tokio::spawn(say(bucket.clone())));
    let terms = Terms { grace: work.grace, gone_after: work.gone_after, dry_run: false };
    let report = round(bucket, &terms, &|_, _, _| {}).await;
    // If this fails, others wait until it is void.
    let _ = bucket.end_collecting().await;
    report.map(Some)
}

async fn say(bucket: Bucket) {
    loop {
        tokio::time::sleep(SAY_EVERY).await;
        // If this fails, another node may collect beside this one, which does no harm.
        let _ = bucket.say_collecting().await;
    }
}

#[cfg(test)]
mod tests;
