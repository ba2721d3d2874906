//! Following: nodes take part in what others published although the refs are what they were.
//!
//! A comparison that finds the refs equal does not look into the bucket, so it does not see that layers were merged, and a
//! node would go on with blobs that are deleted some day. Repositories that are open are therefore looked up now and then, at
//! one small request each; one that is closed is looked up when it is opened.
//! Elsewhere: changed refs (`sync`).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::text::chain;
use crate::work::Work;

/// How often, if comparisons do not come more seldom. Far below the time for which old blobs are kept.
const EVERY: Duration = Duration::from_secs(300);

/// Looks up all open repositories now and then, until `stop`.
pub async fn run(work: Arc<Work>, stop: CancellationToken) {
    let every = work.compare_every.clamp(EVERY, EVERY * 12);
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        for repo in work.mirror.repos() {
            if repo.snapshot().is_none() {
                continue;
            }
            match stop.run_until_cancelled(work.mirror.refresh(&repo)).await {
                None => return,
                Some(Ok(_)) => {}
                Some(Err(e)) => tracing::debug!(repo = %repo.path, error = chain(&e), "not looked up"),
            }
        }
    }
}
