//! Closing repositories, so that what is open at the same time is bounded however many a node mirrors.
//!
//! A repository that is closed costs a few kilobytes, and the next client opens it again out of this node's cache. Those that
//! no client was served from for a while are closed, and beyond a number of files those that were used longest ago. Readers go
//! on with what they have.
//! Relies on: `repo` for when each was used. Elsewhere: opening (`newest`), mappings that nobody uses (`local`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::mirror::Mirror;
use crate::mirror::snapshot::Snapshot;

/// A repository from which no client was served for so long is closed.
const IDLE: Duration = Duration::from_secs(1800);
/// Files that a layer of an open snapshot keeps mapped: its index and its graph.
const FILES: usize = 2;
/// While fewer files are open, a node opens what it compares for the first time, so that its first client need not wait.
const FEW: usize = 512;

impl Mirror {
    /// Closes repositories from which no client was served for a while: their records stay known, and the next client opens
    /// them again out of this node's cache.
    pub fn close_idle(&self) {
        let Some(then) = Instant::now().checked_sub(IDLE) else { return };
        let closed = self.repos().iter().filter(|repo| repo.close_unused_since(then)).count();
        if closed > 0 {
            self.count_open();
            tracing::debug!(repositories = closed, "closed: no client was served from them for a while");
        }
    }

    /// Says whether little is open.
    pub(super) fn has_few_open(&self) -> bool {
        self.opened.load(Ordering::Relaxed) < FEW.min(self.most_open() / 2)
    }

    /// Takes note that a snapshot was opened. If too many files are open, repositories are closed.
    pub(super) fn was_opened(&self, snapshot: &Snapshot) {
        let more = files(snapshot);
        if self.opened.fetch_add(more, Ordering::Relaxed) + more > self.most_open() {
            self.close_oldest();
        }
    }

    /// Three quarters of what may be mapped: the rest is for refs that are being read, and for blocks.
    fn most_open(&self) -> usize {
        self.local.mappings() / 4 * 3
    }

    /// Closes what was used longest ago, and more than has to be: so the next time is far off.
    fn close_oldest(&self) {
        let most = self.most_open();
        let mut open: Vec<_> = self
            .repos()
            .into_iter()
            .filter_map(|repo| Some((repo.used(), files(&*repo.snapshot()?), repo)))
            .collect();
        let mut left: usize = open.iter().map(|(_, files, _)| files).sum();
        if left > most {
            open.sort_by_key(|(used, ..)| *used);
            let before = open.len();
            open.retain(|(used, files, repo)| {
                let closed = left > most - most / 8 && repo.close_unused_since(*used);
                left -= if closed { *files } else { 0 };
                !closed
            });
            let closed = before - open.len();
            tracing::debug!(
                repositories = closed,
                files = left,
                "closed: many are open, and these were used longest ago"
            );
        }
        self.opened.store(left, Ordering::Relaxed);
    }

    fn count_open(&self) {
        let open = self.repos().iter().filter_map(|repo| Some(files(&*repo.snapshot()?))).sum();
        self.opened.store(open, Ordering::Relaxed);
    }
}

/// How many files a snapshot keeps mapped at the most.
fn files(snapshot: &Snapshot) -> usize {
    (snapshot.generation.layers.len() + snapshot.generation.answers.len()) * FILES
}
