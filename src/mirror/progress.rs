//! How far the sync of a repository is: its step, what is done of it and of how much, and since when.
//!
//! Written by the sync from any thread, read by `status`, the log, metrics and terminals. Steps are events: who follows the
//! node's syncs is woken at each one. What is done within a step is read when somebody looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use crate::boot::time_of_day;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// What a sync does, in the order in which it does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Asks the primary for its refs.
    Asking,
    /// Waits until another node has made damaged data anew.
    WaitingForRepair,
    /// Waits until another node has fetched and published it.
    WaitingForNode,
    /// What is damaged in the bucket is mended out of what is not.
    Mending,
    /// Asks for a pack and receives it; counts objects.
    Fetching,
    /// Computes the ids of the objects; counts them.
    Indexing,
    /// Builds the graph, which proves that nothing is missing; counts objects.
    Graph,
    /// Stores what was made; counts bytes.
    Uploading,
    /// Creates the generation and opens it.
    Publishing,
    /// Merges layers, beside what syncs do; counts objects, then bytes that are stored.
    Compacting,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Asking,
        Self::WaitingForRepair,
        Self::WaitingForNode,
        Self::Mending,
        Self::Fetching,
        Self::Indexing,
        Self::Graph,
        Self::Uploading,
        Self::Publishing,
        Self::Compacting,
    ];

    /// The label of metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::WaitingForRepair => "waiting-for-repair",
            Self::WaitingForNode => "waiting-for-node",
            Self::Mending => "mending",
            Self::Fetching => "fetching",
            Self::Indexing => "indexing",
            Self::Graph => "graph",
            Self::Uploading => "uploading",
            Self::Publishing => "publishing",
            Self::Compacting => "compacting",
        }
    }

    /// What people read.
    pub fn words(self) -> &'static str {
        match self {
            Self::Asking => "asking the primary",
            Self::WaitingForRepair => "waiting for another node's repair",
            Self::WaitingForNode => "waiting for another node's fetch",
            Self::Mending => "mending what is damaged",
            Self::Fetching => "fetching",
            Self::Indexing => "indexing",
            Self::Graph => "building the graph",
            Self::Uploading => "uploading",
            Self::Publishing => "publishing",
            Self::Compacting => "merging layers",
        }
    }
}

/// A comparison or sync that runs, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// What it does.
    pub phase: Step,
    /// Since when it does that.
    #[serde(with = "humantime_serde")]
    pub since: SystemTime,
    /// When it began.
    #[serde(with = "humantime_serde")]
    pub begun: SystemTime,
    /// How much of the phase is done: objects, steps or bytes.
    pub done: u64,
    /// Of how much; 0: not known.
    pub total: u64,
    /// Bytes of the pack that were received.
    pub received_bytes: u64,
    /// What the primary says while it makes the pack.
    #[serde(default)]
    pub words: String,
}

impl Sync {
    /// How much of the phase is done, in per cent, where it is known.
    pub fn percent(&self) -> Option<u64> {
        (self.total > 0).then(|| (u128::from(self.done) * 100 / u128::from(self.total)).min(100) as u64)
    }
}

/// The progress of one repository's sync. All methods take `&self`.
#[derive(Debug, Default)]
pub struct Progress {
    now: Mutex<Option<Now>>,
    done: AtomicU64,
    total: AtomicU64,
    received: AtomicU64,
    /// Woken at each step of a sync that has something to do.
    news: OnceLock<Arc<Notify>>,
}

#[derive(Debug, Clone)]
struct Now {
    step: Step,
    since: SystemTime,
    begun: SystemTime,
    words: String,
}

impl Progress {
    /// Tells `news` of each step from now on.
    pub fn tell(&self, news: Arc<Notify>) {
        // A repository is entered once.
        let _ = self.news.set(news);
    }

    /// Begins a step. `is_news` says that it is more than a comparison.
    pub fn step(&self, step: Step, is_news: bool) {
        let mut now = self.now();
        if now.as_ref().is_some_and(|now| now.step == step) {
            return;
        }
        let since = time_of_day();
        let begun = now.as_ref().map_or(since, |now| now.begun);
        if step == Step::Fetching {
            self.received.store(0, Ordering::Relaxed);
        }
        self.done.store(0, Ordering::Relaxed);
        self.total.store(0, Ordering::Relaxed);
        *now = Some(Now { step, since, begun, words: String::new() });
        drop(now);
        if is_news {
            self.wake();
        }
    }

    /// Says how much of the step is done, and of how much.
    pub fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Says that so much more is done.
    pub fn add(&self, done: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
    }

    /// Keeps what the primary says.
    pub fn say(&self, words: &str) {
        if let Some(now) = &mut *self.now() {
            words.clone_into(&mut now.words);
        }
    }

    /// Bytes of the pack that were received.
    pub fn received(&self) -> &AtomicU64 {
        &self.received
    }

    /// Ends the sync.
    pub fn end(&self) {
        let ended = self.now().take();
        if ended.is_some_and(|now| now.step > Step::Asking) {
            self.wake();
        }
    }

    /// What runs, if anything does.
    pub fn shown(&self) -> Option<Sync> {
        let now = self.now().clone()?;
        Some(Sync {
            phase: now.step,
            since: now.since,
            begun: now.begun,
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            received_bytes: self.received.load(Ordering::Relaxed),
            words: now.words,
        })
    }

    fn wake(&self) {
        if let Some(news) = self.news.get() {
            news.notify_one();
        }
    }

    fn now(&self) -> MutexGuard<'_, Option<Now>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn steps_are_news_and_comparisons_are_not() {
        let (progress, news) = (Progress::default(), Arc::new(Notify::new()));
        progress.tell(Arc::clone(&news));
        let is_news = || news.notified().now_or_never().is_some();
        progress.step(Step::Asking, false);
        progress.end();
        assert!(!is_news() && progress.shown().is_none());
        progress.step(Step::Asking, false);
        progress.step(Step::Fetching, true);
        assert!(is_news());
        progress.set(1, 3);
        let shown = progress.shown().unwrap();
        assert_eq!((shown.phase, shown.percent()), (Step::Fetching, Some(33)));
        progress.step(Step::Indexing, true);
        let shown = progress.shown().unwrap();
        assert_eq!((shown.done, shown.percent()), (0, None), "a step begins at nothing");
        assert!(shown.begun <= shown.since);
        progress.end();
        assert!(is_news(), "its end is news too");
    }
}
