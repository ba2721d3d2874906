//! The worker of one repository: a loop around one comparison with the primary.
//!
//! It wakes when its interval is over or when somebody asked ([`Repo::ask`]), compares, syncs where it differs, and
//! settles every ticket taken before it began. Failures are followed by exponential backoff with full jitter, which also
//! bounds how often impatient clients can make it try. Workers share one limit on syncs at once and nothing else, so one
//! repository's trouble delays no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mirror::Mirror;
use crate::mirror::repo::{Phase, Repo};
use crate::mirror::sync::{SyncError, Synced, sync};
use crate::primary::PrimaryError;
use crate::telemetry::metrics as names;
use crate::text::chain;

/// How often a running sync is mentioned in the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Runs until `stop`; a sync under way is told to end at its next safe point.
pub async fn run(mirror: Arc<Mirror>, repo: Arc<Repo>, stop: CancellationToken) {
    let flag = Arc::new(AtomicBool::new(false));
    let mut due = Instant::now() + mirror.first_comparison();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = repo.woken() => {}
            () = tokio::time::sleep_until(due) => {}
        }
        let began = repo.begin();
        let held_off = repo.health().not_before.is_some_and(|t| Instant::now() < t);
        if !held_off {
            let Ok(_permit) = mirror.sync_permits.acquire().await else { return };
            let attempt = sync(&mirror, &repo, &flag);
            let started = Instant::now();
            let outcome = tokio::select! {
                outcome = attempt => outcome,
                // It never ends by itself.
                () = tell(&repo) => Err(SyncError::Stopped),
                () = stop.cancelled() => {
                    flag.store(true, Ordering::SeqCst);
                    Err(SyncError::Stopped)
                }
            };
            metrics::counter!(names::SYNC_BYTES).increment(repo.received().swap(0, Ordering::Relaxed));
            metrics::histogram!(names::SYNC_SECONDS).record(started.elapsed().as_secs_f64());
            record(&mirror, &repo, outcome);
        }
        due = repo.health().next.unwrap_or_else(|| Instant::now() + mirror.settings.compare_every);
        repo.finish(began);
    }
}

/// Says now and then how far a long sync is.
async fn tell(repo: &Repo) {
    let mut ticks = tokio::time::interval_at(Instant::now() + TELL_EVERY, TELL_EVERY);
    loop {
        ticks.tick().await;
        let stage = repo.health().stage.clone();
        let received = repo.received().load(Ordering::Relaxed);
        tracing::info!(repo = %repo.path, stage, received_bytes = received, "sync in progress");
    }
}

/// Takes the outcome into the repository's health, the log and the counters, and says when it is tried again.
fn record(mirror: &Mirror, repo: &Repo, outcome: Result<Synced, SyncError>) {
    let now = Instant::now();
    let result = match &outcome {
        Ok(Synced::Unchanged) => "unchanged",
        Ok(Synced::Published { .. }) => "published",
        Ok(Synced::Followed) => "followed",
        Err(_) => "failed",
    };
    metrics::counter!(names::SYNC_RUNS, "result" => result).increment(1);
    let mut health = repo.health();
    health.stage.clear();
    match outcome {
        Ok(_) => {
            health.phase = Phase::Current;
            if let Some((before, _)) = health.compared {
                metrics::histogram!(names::REPO_LAG).record((now - before).as_secs_f64());
            }
            health.compared = Some((now, SystemTime::now()));
            health.failures = 0;
            health.error = None;
            health.not_before = None;
            health.next = Some(now + mirror.settings.compare_every);
        }
        Err(SyncError::Stopped) => {}
        Err(e) => {
            health.failures += 1;
            health.phase = match &e {
                SyncError::Primary(PrimaryError::NotFound) => Phase::Gone,
                _ => Phase::Failing,
            };
            let wait = mirror.backoff.delay(health.failures, e.retry_after());
            health.not_before = Some(now + wait);
            health.next = Some(now + wait);
            let error = chain(&e);
            tracing::warn!(repo = %repo.path, failures = health.failures, next_try_in = ?wait, error, "sync failed");
            health.error = Some(error);
        }
    }
}
