//! Which repositories are to be looked at next, and which not for a while.
//!
//! A repository stands in line once, however often it is asked for. One whose merge failed is left alone for minutes, then
//! for hours: nothing is wrong with it but its size.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::git::path::RepoPath;
use crate::retry::Policy;

/// The bound of the wait after a first failure, and of the longest.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(86_400));

/// The line of repositories whose layers may have to be merged.
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
    patience: Policy,
}

#[derive(Default)]
struct State {
    line: VecDeque<RepoPath>,
    /// Those in line, and whether a day has passed for them.
    asked: HashMap<RepoPath, bool>,
    /// Failures in a row, and until when it is left alone.
    failed: HashMap<RepoPath, (u32, Instant)>,
}

impl Queue {
    /// An empty line.
    pub fn new() -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), patience: Policy::new(PATIENCE.0, PATIENCE.1) }
    }

    /// Puts a repository in line: something was published.
    pub fn ask(&self, repo: &RepoPath) {
        self.put(repo, false);
    }

    /// Puts a repository in line because a day has passed.
    pub fn ask_due(&self, repo: &RepoPath) {
        self.put(repo, true);
    }

    fn put(&self, repo: &RepoPath, is_due: bool) {
        let mut state = self.lock();
        if state.failed.get(repo).is_some_and(|(_, until)| Instant::now() < *until) {
            return;
        }
        match state.asked.get_mut(repo) {
            Some(due) => *due |= is_due,
            None => {
                state.asked.insert(repo.clone(), is_due);
                state.line.push_back(repo.clone());
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Waits for the next repository, and says whether a day has passed for it.
    pub async fn next(&self) -> (RepoPath, bool) {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.wake.notified().await;
        }
    }

    fn take(&self) -> Option<(RepoPath, bool)> {
        let mut state = self.lock();
        let repo = state.line.pop_front()?;
        let is_due = state.asked.remove(&repo).unwrap_or(false);
        Some((repo, is_due))
    }

    /// Takes note that a repository was dealt with.
    pub fn went_well(&self, repo: &RepoPath) {
        self.lock().failed.remove(repo);
    }

    /// Takes note of a failure. Gives the time for which the repository is left alone.
    pub fn went_wrong(&self, repo: &RepoPath) -> Duration {
        let mut state = self.lock();
        let failures = state.failed.get(repo).map_or(1, |(failures, _)| failures.saturating_add(1));
        let wait = self.patience.at_least_half(failures);
        state.failed.insert(repo.clone(), (failures, Instant::now() + wait));
        wait
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn one_stands_in_line_once_and_is_left_alone_after_a_failure() {
        let (queue, a, b) = (Queue::new(), RepoPath::parse("a").unwrap(), RepoPath::parse("b").unwrap());
        queue.ask(&a);
        queue.ask(&b);
        queue.ask_due(&a);
        assert_eq!(queue.next().await, (a.clone(), true));
        assert_eq!(queue.next().await, (b, false));
        assert!(queue.next().now_or_never().is_none());

        let first = queue.went_wrong(&a);
        queue.ask(&a);
        assert!(queue.next().now_or_never().is_none(), "it failed a moment ago");
        tokio::time::advance(first).await;
        queue.ask(&a);
        assert_eq!(queue.next().await, (a.clone(), false));
        queue.went_wrong(&a);
        queue.went_well(&a);
        queue.ask(&a);
        assert!(queue.next().now_or_never().is_some());
    }
}
