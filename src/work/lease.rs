//! Leases: which node does what one is enough for: fetches from the primary, makes damaged data anew.
//!
//! A lease is a note in the bucket that its holder renews while it works; the others wait for the generation that comes of
//! it. A note that stays the same for a while is taken over: its node has died. Leases save work and guard nothing: two nodes
//! may still do the same at once, and then one of them publishes and the other one follows.
//! Relies on: `store` for notes. No node's clock is compared with another's: each one measures how long a note stays
//! the same.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::git::path::RepoPath;
use crate::retry::Dice;
use crate::store::{Bucket, Note, NoteKey, StoreError, nonce};
use crate::telemetry::metrics as names;
use crate::work::Work;

/// How often a note is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(8);
/// A note that stayed the same for so long is void.
const ABANDONED: Duration = Duration::from_secs(25);
/// Who takes a note over waits so much longer at most: then not all do it at once.
const SPREAD: Duration = Duration::from_secs(2);
/// Who took a note over looks so much later whether another did so too.
const SETTLED: Duration = Duration::from_millis(500);
/// How soon waiting nodes look again at first; each wait is half as long again.
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// How often they look later.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The right to do the work that a note is about. Dropping it gives it up, so that other nodes can take it.
pub(super) struct Lease {
    _held: DropGuard,
    #[cfg(test)]
    renewing: tokio::task::JoinHandle<()>,
}

/// How a lease was asked for.
pub(super) enum Asked {
    /// It is ours.
    Ours(Lease),
    /// Another node has it; the words of its note.
    Others(Bytes),
}

impl Work {
    /// Takes the lease on a repository's `note` if it is free.
    pub(super) async fn try_lease(&self, repo: &RepoPath, note: Note) -> Result<Asked, StoreError> {
        ask(&self.mirror.bucket, &self.tasks, &note.of(repo)).await
    }

    /// Waits for the lease on a repository's `note`, which is wanted because of what `number`, the newest generation that
    /// the caller knows, says or names (0: it knows none). `None`: a newer one was published meanwhile, so the caller has to
    /// look again what is to be done.
    pub(super) async fn lease(
        &self,
        repo: &RepoPath,
        note: Note,
        number: u64,
    ) -> Result<Option<Lease>, StoreError> {
        let bucket = &self.mirror.bucket;
        wait(bucket, &self.tasks, &note.of(repo), Some((repo, number))).await
    }
}

/// Leaves the note if there is none.
async fn ask(bucket: &Bucket, tasks: &TaskTracker, at: &NoteKey) -> Result<Asked, StoreError> {
    Ok(match bucket.leave_note(at, words()).await? {
        None => Asked::Ours(hold(bucket, tasks, at)),
        Some(words) => Asked::Others(words),
    })
}

/// Waits until the note is free or void, or a generation was published after the number in `after`.
async fn wait(
    bucket: &Bucket,
    tasks: &TaskTracker,
    at: &NoteKey,
    after: Option<(&RepoPath, u64)>,
) -> Result<Option<Lease>, StoreError> {
    let patience = ABANDONED + Dice::random().up_to(SPREAD);
    let (mut last, mut since) = (Bytes::new(), Instant::now());
    let mut pause = LOOK_FIRST;
    loop {
        let Some(found) = bucket.note(at).await? else {
            match ask(bucket, tasks, at).await? {
                Asked::Ours(lease) => return Ok(Some(lease)),
                Asked::Others(words) => (last, since) = (words, Instant::now()),
            }
            continue;
        };
        if found != last {
            if last.is_empty() {
                metrics::counter!(names::LEASE_WAITS).increment(1);
            }
            (last, since) = (found, Instant::now());
        } else if since.elapsed() >= patience {
            let ours = words();
            bucket.rewrite_note(at, ours.clone()).await?;
            tokio::time::sleep(SETTLED).await;
            if bucket.note(at).await?.is_some_and(|found| found == ours) {
                metrics::counter!(names::LEASES_TAKEN_OVER).increment(1);
                tracing::info!(lease = %at, "taken over from a node that does not renew it any more");
                return Ok(Some(hold(bucket, tasks, at)));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause + pause / 2).min(LOOK_EVERY);
        if let Some((repo, number)) = after
            && bucket.after(repo, number).await?.is_some()
        {
            return Ok(None);
        }
    }
}

/// Renews the note until the lease is dropped, and removes it then.
fn hold(bucket: &Bucket, tasks: &TaskTracker, at: &NoteKey) -> Lease {
    let (bucket, at, stop) = (bucket.clone(), at.clone(), CancellationToken::new());
    let held = stop.clone().drop_guard();
    let _renewing = tasks.spawn(async move {
        // A renewal that has begun is waited for: it must not arrive after the removal.
        while stop.run_until_cancelled(tokio::time::sleep(RENEW_EVERY)).await.is_some() {
            // If this fails, other nodes may do the same work.
            let _ = bucket.rewrite_note(&at, words()).await;
        }
        // If this fails, the others wait until the note is void.
        let _ = bucket.remove_note(&at).await;
    });
    Lease {
        _held: held,
        #[cfg(test)]
        renewing: _renewing,
    }
}

/// Makes a text that no note has had before.
fn words() -> Bytes {
    nonce().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::generation_for_tests as sample;
    use object_store::memory::InMemory;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Farm {
        bucket: Bucket,
        tasks: TaskTracker,
        at: NoteKey,
    }

    impl Farm {
        fn new() -> Self {
            let bucket = Bucket::over(Arc::new(InMemory::new()), "");
            let at = Note::Fetch.of(&RepoPath::parse("test").unwrap());
            Self { bucket, tasks: TaskTracker::new(), at }
        }

        async fn take(&self) -> Option<Lease> {
            wait(&self.bucket, &self.tasks, &self.at, None).await.unwrap()
        }

        /// Waits until all leases that were dropped are free.
        async fn freed(&self) {
            self.tasks.close();
            self.tasks.wait().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_works_at_a_time_and_the_dead_are_replaced() {
        let farm = Farm::new();
        let first = farm.take().await.unwrap();
        assert!(tokio::time::timeout(ABANDONED * 5, farm.take()).await.is_err(), "it is renewed");
        drop(first);
        let second = farm.take().await.unwrap();
        // Its node dies: nobody renews the note.
        second.renewing.abort();
        let begun = Instant::now();
        assert!(farm.take().await.is_some());
        let took = begun.elapsed();
        assert!(took >= ABANDONED && took <= Duration::from_secs(30), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_that_wait_for_the_dead_one_takes_over() {
        let farm = Farm::new();
        farm.take().await.unwrap().renewing.abort();
        let (holders, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = async || {
            let lease = farm.take().await.unwrap();
            most.fetch_max(holders.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(3)).await;
            holders.fetch_sub(1, Ordering::SeqCst);
            drop(lease);
        };
        futures::future::join_all((0..8).map(|_| work())).await;
        assert_eq!(most.load(Ordering::SeqCst), 1);
        farm.freed().await;
        assert_eq!(farm.bucket.note(&farm.at).await.unwrap(), None, "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_that_the_work_is_done() {
        let farm = Farm::new();
        let _lease = farm.take().await.unwrap();
        let published = sample();
        let after = Some((&published.repo, published.number - 1));
        let waiting = wait(&farm.bucket, &farm.tasks, &farm.at, after);
        let publishing = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            farm.bucket.publish(&published).await.unwrap();
        };
        let begun = Instant::now();
        let (lease, ()) = tokio::join!(waiting, publishing);
        assert!(lease.unwrap().is_none());
        assert!(begun.elapsed() <= Duration::from_secs(7), "{:?}", begun.elapsed());
    }
}
