//! The worker of one repository: a loop around one comparison with the primary.
//!
//! It wakes when its interval is over or when somebody asked ([`Repo::ask`]), compares, syncs where it differs, and settles
//! every ticket taken before it began. When an interval is over it compares what is this node's to compare, and what no node
//! has confirmed for two of them. Failures are followed by exponential backoff with full jitter, which also
//! bounds how often impatient clients can make it try. Workers share the places of `lanes` and nothing else, so one
//! repository's trouble delays no other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mirror::repo::{Phase, Repo};
use crate::primary::PrimaryError;
use crate::retry::Dice;
use crate::telemetry::metrics as names;
use crate::text::chain;
use crate::work::Work;
use crate::work::error::SyncError;
use crate::work::gone::{answered, missed};
use crate::work::sync::{Synced, sync};

/// How often a running sync is mentioned in the log.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A repository that was never published and that the primary does not have so often in a row is forgotten.
const GONE_FOR_GOOD: u32 = 5;

/// Runs until `stop`, or until the repository is forgotten. A worker that panics is counted and started again.
pub async fn run(work: Arc<Work>, repo: Arc<Repo>, stop: CancellationToken) {
    supervise(
        &repo,
        &stop,
        |failures| work.backoff.delay(failures, None),
        || attend(Arc::clone(&work), Arc::clone(&repo), stop.clone()),
    )
    .await;
    work.mirror.forget(&repo);
    repo.close();
}

/// Runs `work` to its end, anew after each panic; clients that wait for the repository are told that the comparison failed.
async fn supervise<F: Future<Output = ()>>(
    repo: &Repo,
    stop: &CancellationToken,
    pause: impl Fn(u32) -> Duration,
    work: impl Fn() -> F,
) {
    let mut panics = 0;
    while AssertUnwindSafe(work()).catch_unwind().await.is_err() {
        panics += 1;
        metrics::counter!(names::WORKER_PANICS).increment(1);
        let wait = pause(panics);
        tracing::error!(repo = %repo.path, panics, next_try_in = ?wait, "the worker of this repository panicked");
        repo.progress().end();
        {
            let mut health = repo.health();
            health.phase = Phase::Failing;
            health.failures += 1;
            health.error = Some("its worker panicked: please report the log of this node".into());
            health.not_before = Some(Instant::now() + wait);
            health.next = health.not_before;
        }
        repo.set_well(false);
        repo.finish(repo.begin(), false);
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// Compares whenever it is due or somebody asked. `stop` drops a sync under way.
async fn attend(work: Arc<Work>, repo: Arc<Repo>, stop: CancellationToken) {
    // Spread over one interval.
    let started = Instant::now();
    let mut due = started + Dice::random().up_to(work.compare_every);
    loop {
        let is_asked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = repo.woken() => true,
            () = tokio::time::sleep_until(due) => false,
        };
        if repo.is_removed() {
            return;
        }
        if !is_asked && let Some(later) = left_to_others(&work, &repo, started) {
            due = later;
            continue;
        }
        let began = repo.begin();
        let held_off = repo.health().not_before.is_some_and(|t| Instant::now() < t);
        let mut well = false;
        if !held_off {
            let started = Instant::now();
            // Nearly all workers wait at any time: what a sync needs is there while it runs.
            let syncing = Box::pin(sync(&work, &repo, false));
            let outcome = tokio::select! {
                biased;
                outcome = syncing => outcome,
                // This future never ends: it only writes to the log.
                () = tell(&repo) => Err(SyncError::Stopped),
                () = stop.cancelled() => Err(SyncError::Stopped),
            };
            metrics::counter!(names::SYNC_BYTES)
                .increment(repo.progress().received().swap(0, Ordering::Relaxed));
            metrics::histogram!(names::SYNC_SECONDS).record(started.elapsed().as_secs_f64());
            well = outcome.is_ok();
            match &outcome {
                Err(SyncError::Primary(PrimaryError::NotFound)) => {
                    if stop.run_until_cancelled(Box::pin(missed(&work, &repo))).await.is_none() {
                        return;
                    }
                }
                outcome => answered(&repo, outcome),
            }
            record(&work, &repo, outcome);
            repo.progress().end();
            if repo.is_removed() {
                return;
            }
            work.mirror.remember(&repo);
        }
        let health = repo.health().clone();
        if health.phase == Phase::Gone && health.failures >= GONE_FOR_GOOD && repo.known().is_none() {
            tracing::info!(repo = %repo.path, "forgotten: never published, and the primary does not have it");
            work.mirror.unlearn(&repo.path);
            return;
        }
        due = health.next.unwrap_or_else(|| Instant::now() + work.compare_every);
        repo.finish(began, well);
    }
}

/// When to look again at a repository that another node compares; `None` if this node is to compare it now: it is its own, no
/// node has confirmed it for two rounds, or this node needs to know more of it than others say.
fn left_to_others(work: &Work, repo: &Repo, started: Instant) -> Option<Instant> {
    if work.mirror.is_ours(&repo.path) {
        return None;
    }
    let is_known = repo.known().is_some();
    let health = repo.health();
    if !is_known && health.attended.is_none() {
        return None;
    }
    if health.failures > 0 || (work.advertises && health.capabilities.is_none()) {
        return None;
    }
    let confirmed = health.asked.map(|asked| asked.instant).max(health.attended).unwrap_or(started);
    let (now, last) = (Instant::now(), confirmed + work.compare_every.saturating_mul(2));
    (now < last).then(|| last.min(now + work.compare_every))
}

/// Logs now and then how far a long sync is.
async fn tell(repo: &Repo) {
    let mut ticks = tokio::time::interval_at(Instant::now() + TELL_EVERY, TELL_EVERY);
    loop {
        ticks.tick().await;
        let Some(sync) = repo.progress().shown() else { continue };
        let (phase, percent, words) = (sync.phase.words(), sync.percent(), &sync.words);
        tracing::info!(repo = %repo.path, phase, percent, received_bytes = sync.received_bytes, words, "sync in progress");
    }
}

/// Takes the outcome into the repository's health, the log and the counters, and says when it is tried again.
fn record(work: &Work, repo: &Repo, outcome: Result<Synced, SyncError>) {
    let now = Instant::now();
    let result = match &outcome {
        Ok(Synced::Unchanged) => "unchanged",
        Ok(Synced::Published { .. }) => "published",
        Ok(Synced::Followed) => "followed",
        Err(SyncError::Stuck { known: true, .. }) => "stuck",
        Err(_) => "failed",
    };
    metrics::counter!(names::SYNC_RUNS, "result" => result).increment(1);
    match &outcome {
        Ok(_) => repo.set_well(true),
        Err(SyncError::Stuck { known, .. }) => repo.set_well(*known),
        Err(e @ (SyncError::Primary(_) | SyncError::Ingest(_))) if !e.is_busy() => repo.set_well(false),
        Err(_) => {}
    }
    let is_published = repo.known().is_some();
    let mut health = repo.health();
    match outcome {
        Ok(_) => {
            health.phase = Phase::Current;
            health.failures = 0;
            health.error = None;
            health.not_before = None;
            health.next = Some(now + work.compare_every);
        }
        Err(SyncError::Stopped | SyncError::Removed) => {}
        Err(e) => {
            health.failures += 1;
            let before = std::mem::replace(&mut health.phase, Phase::Failing);
            let is_gone = matches!(&e, SyncError::Primary(PrimaryError::NotFound));
            if is_gone {
                health.phase = Phase::Gone;
            }
            let wait = work.backoff.delay(health.failures, e.retry_after());
            health.not_before = Some(now + wait);
            health.next = Some(now + wait);
            let error = chain(&e);
            repo.evidence().done(format!("failed: {error}"));
            if is_gone {
                if is_published {
                    // Looked for ever less often; at once if a client is shown it again.
                    health.next = Some(now + work.patience.at_least_half(health.failures));
                }
                if before != Phase::Gone && is_published {
                    tracing::info!(repo = %repo.path, "gone: the primary does not have it; what is published is kept for now, and it is looked for now and then");
                }
            } else if let SyncError::Stuck { known, .. } = e {
                // A comparison costs little, and finds out whether the primary's refs have changed.
                health.next = Some(now + work.compare_every);
                if known {
                    tracing::debug!(repo = %repo.path, error, "not fetched: it could not be taken in before");
                } else {
                    tracing::warn!(repo = %repo.path, error, "sync failed; another try would end the same way");
                }
            } else if work.mirror.primary.is_down() && matches!(&e, SyncError::Primary(e) if e.is_transient())
            {
                // Told once for all repositories.
                tracing::debug!(repo = %repo.path, failures = health.failures, next_try_in = ?wait, error, "sync failed");
            } else {
                tracing::warn!(repo = %repo.path, failures = health.failures, next_try_in = ?wait, error, "sync failed");
            }
            health.error = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::path::RepoPath;
    use std::sync::atomic::AtomicU32;

    /// The size of what a call of `f` waits in.
    fn size<F: Future>(_: impl FnOnce(Arc<Work>, Arc<Repo>, CancellationToken) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_worker_that_waits_takes_little_memory() {
        // There is one for each repository, and nearly all of them wait.
        let (worker, repo) = (size(run), size_of::<Repo>());
        assert!(worker <= 1024 && repo <= 1024, "{worker} and {repo} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_panics_starts_again_and_nobody_waits_for_it() {
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        let runs = AtomicU32::new(0);
        let work = || async {
            assert!(runs.fetch_add(1, Ordering::SeqCst) >= 2, "it panics twice");
        };
        let ticket = repo.ask();
        let pause = |panics| Duration::from_secs(u64::from(panics));
        let begun = Instant::now();
        supervise(&repo, &CancellationToken::new(), pause, work).await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        assert_eq!(begun.elapsed(), Duration::from_secs(3), "longer after each");
        assert!(!repo.settled(ticket).await);
        assert!(repo.health().error.as_ref().is_some_and(|words| words.contains("panicked")));
    }
}
