//! Following: nodes take part in what others published although the refs are what they were.
//!
//! A comparison that finds the refs equal does not look into the bucket, so it does not see that layers were merged, and a
//! node would go on with blobs that are deleted some day. Repositories that are open are therefore looked up now and then: few
//! at one small request each, many by one listing of all records; one that is closed is looked up when it is opened.
//! Elsewhere: changed refs (`sync`).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::mirror::repo::Repo;
use crate::text::chain;
use crate::work::Work;

/// How often, if comparisons do not come more seldom. Far below the time for which old blobs are kept.
const EVERY: Duration = Duration::from_secs(300);

/// A listing is cheaper than a request each from so many open repositories on.
const FEW: usize = 32;

/// Looks up all open repositories now and then, until `stop`.
pub async fn run(work: Arc<Work>, stop: CancellationToken) {
    let every = work.compare_every.clamp(EVERY, EVERY * 12);
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        let Some(behind) = stop.run_until_cancelled(perhaps_behind(&work)).await else { return };
        for repo in behind {
            match stop.run_until_cancelled(work.mirror.refresh(&repo)).await {
                None => return,
                Some(Ok(_)) => {}
                Some(Err(e)) => tracing::debug!(repo = %repo.path, error = chain(&e), "not looked up"),
            }
        }
    }
}

/// The open repositories of which there may be a newer record.
async fn perhaps_behind(work: &Work) -> Vec<Arc<Repo>> {
    let mut open: Vec<_> = work.mirror.repos().into_iter().filter(|repo| repo.snapshot().is_some()).collect();
    if open.len() > FEW {
        match work.mirror.bucket.newest_numbers_of_all().await {
            Ok(newest) => open.retain(|repo| {
                let known = repo.known().map_or(0, |known| known.number);
                newest.get(&repo.path.key()).is_some_and(|newest| *newest > known)
            }),
            Err(e) => {
                tracing::debug!(error = chain(&e), "not looked up");
                open.clear();
            }
        }
    }
    open
}
