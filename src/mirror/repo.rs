//! One mirrored repository on this node: its newest open snapshot, and what is known of its health.
//!
//! Requests read the snapshot without waiting for anybody; the repository's worker (`worker`) replaces it. Whoever
//! needs the primary's present state takes a [`Ticket`]: it is due once a comparison that began later has ended.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::git::caps::V2Caps;
use crate::git::path::RepoPath;
use crate::mirror::snapshot::Snapshot;

/// What a repository's worker is doing, or how its last comparison with the primary ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing was published yet; clients are passed through.
    New,
    /// A comparison or a sync is running.
    Syncing,
    /// The last comparison found (or made) it equal to the primary.
    Current,
    /// The last comparison or sync failed; it is tried again.
    Failing,
    /// The primary says that there is no such repository. What was published is kept.
    Gone,
}

/// What the worker knows; read for `status`, for bounded freshness and for deciding whether to ask again.
#[derive(Debug, Clone)]
pub struct Health {
    /// See [`Phase`].
    pub phase: Phase,
    /// When the primary was last found equal to the published generation, by both clocks. The comparison began
    /// before this instant minus [`Health::took`].
    pub compared: Option<(Instant, SystemTime)>,
    /// How long that comparison took from its question to its end.
    pub took: Duration,
    /// Failures in a row.
    pub failures: u32,
    /// No attempt before this, whoever asks: the backoff after failures.
    pub not_before: Option<Instant>,
    /// When the next comparison is due.
    pub next: Option<Instant>,
    /// The last failure, in words.
    pub error: Option<String>,
    /// What the sync is at, for people.
    pub stage: String,
    /// What the primary said it can do, at the last comparison.
    pub capabilities: Option<Arc<V2Caps>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            phase: Phase::New,
            compared: None,
            took: Duration::ZERO,
            failures: 0,
            not_before: None,
            next: None,
            error: None,
            stage: String::new(),
            capabilities: None,
        }
    }
}

/// A promise of a comparison that begins after the ticket was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// One repository that this node mirrors.
#[derive(Debug)]
pub struct Repo {
    /// Its canonical path.
    pub path: RepoPath,
    current: RwLock<Option<Arc<Snapshot>>>,
    health: Mutex<Health>,
    asked: AtomicU64,
    done: watch::Sender<u64>,
    wake: Notify,
    /// The ticket taken when a client was shown a tag that is not published yet.
    tag_news: AtomicU64,
    repair: AtomicBool,
    received: AtomicU64,
    /// The last attempt failed, or waited long for the primary.
    unwell: AtomicBool,
}

impl Repo {
    /// A repository of which nothing is known yet.
    pub fn new(path: RepoPath) -> Self {
        Self {
            path,
            current: RwLock::new(None),
            health: Mutex::default(),
            asked: AtomicU64::new(0),
            done: watch::Sender::new(0),
            wake: Notify::new(),
            tag_news: AtomicU64::new(0),
            repair: AtomicBool::new(false),
            received: AtomicU64::new(0),
            unwell: AtomicBool::new(false),
        }
    }

    /// The newest snapshot this node has open.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Installs a snapshot, unless a newer one is there already (invariant I6): returns what is there afterwards.
    pub fn install(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(now) if now.generation.number >= snapshot.generation.number => now.clone(),
            _ => current.insert(Arc::new(snapshot)).clone(),
        }
    }

    /// The worker's knowledge; hold it briefly.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a comparison with the primary that begins after this call.
    pub fn ask(&self) -> Ticket {
        let ticket = Ticket(self.asked.fetch_add(1, Ordering::SeqCst) + 1);
        self.wake.notify_one();
        ticket
    }

    /// Asks as [`Repo::ask`] does, because a client was shown a tag that is not published yet.
    pub fn ask_for_tags(&self) {
        let Ticket(number) = self.ask();
        self.tag_news.fetch_max(number, Ordering::SeqCst);
    }

    /// The comparison that will bring tags which clients were shown, if it has not ended yet.
    pub fn tags_on_their_way(&self) -> Option<Ticket> {
        let number = self.tag_news.load(Ordering::SeqCst);
        (number > *self.done.borrow()).then_some(Ticket(number))
    }

    /// Waits until the comparison of `ticket` has ended, well or not.
    pub async fn settled(&self, ticket: Ticket) {
        // An error says that the sender is gone, which `self` holds.
        let _ = self.done.subscribe().wait_for(|done| *done >= ticket.0).await;
    }

    /// Says that stored data of this repository is missing or damaged: the next sync makes everything anew.
    pub fn report_damage(&self) {
        if !self.repair.swap(true, Ordering::SeqCst) {
            self.ask();
        }
    }

    /// Whether damage was reported since the last repair.
    pub fn damaged(&self) -> bool {
        self.repair.load(Ordering::SeqCst)
    }

    /// Takes note that everything was made anew.
    pub(super) fn repaired(&self) {
        self.repair.store(false, Ordering::SeqCst);
    }

    /// Bytes of the pack that the running sync has received.
    pub fn received(&self) -> &AtomicU64 {
        &self.received
    }

    /// Whether its last attempt went well, so that it may go by the lane of those.
    pub fn is_well(&self) -> bool {
        !self.unwell.load(Ordering::Relaxed)
    }

    pub(super) fn set_well(&self, well: bool) {
        self.unwell.store(!well, Ordering::Relaxed);
    }

    /// Settles every ticket, also those that are taken from now on: nobody works for this repository any more.
    pub(super) fn close(&self) {
        self.done.send_replace(u64::MAX);
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn begin(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    pub(super) fn finish(&self, began: u64) {
        self.done.send_modify(|done| *done = (*done).max(began));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ticket_is_settled_only_by_a_comparison_that_began_later() {
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        let running = repo.begin();
        let ticket = repo.ask();
        repo.finish(running);
        let early = tokio::time::timeout(Duration::from_millis(20), repo.settled(ticket)).await;
        assert!(early.is_err(), "a comparison that began before the ticket says nothing");
        repo.finish(repo.begin());
        repo.settled(ticket).await;
    }
}
