//! One mirrored repository on this node: its newest open snapshot, and what is known of its health.
//!
//! Requests read the snapshot without waiting; the repository's worker (`work::worker`) replaces it. A request that needs
//! the primary's present state takes a [`Ticket`]: it is due once a comparison that began later has ended.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use gix_hash::ObjectId;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::git::path::RepoPath;
pub use crate::mirror::condition::{Health, Moment, Phase};
use crate::mirror::damage::{self, Damage};
use crate::mirror::evidence::Evidence;
use crate::mirror::looks::Looks;
use crate::mirror::progress::{Progress, Step};
use crate::mirror::snapshot::Snapshot;
use crate::mirror::uses::Uses;
use crate::store::Generation;

/// A promise of a comparison that begins after the ticket was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// Counts one client that waits for a ticket; dropped when the wait ends for any reason.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// The last tickets that comparisons answer to.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    /// Every ticket up to this one is settled.
    settled: u64,
    /// Every ticket up to this one is settled by a comparison that ended well.
    confirmed: u64,
}

/// One repository that this node mirrors.
#[derive(Debug)]
pub struct Repo {
    /// Its canonical path.
    pub path: RepoPath,
    current: RwLock<Option<Arc<Snapshot>>>,
    health: Mutex<Health>,
    asked: AtomicU64,
    done: watch::Sender<Done>,
    /// How many wait for a ticket.
    waiting: watch::Sender<usize>,
    wake: Notify,
    /// The ticket taken when a client was shown a tag that is not published yet.
    tag_news: AtomicU64,
    damage: Mutex<Damage>,
    evidence: Mutex<Evidence>,
    progress: Arc<Progress>,
    /// How far a merge of its layers is, which runs beside syncs.
    compaction: Arc<Progress>,
    /// The last attempt failed, or waited long for the primary.
    unwell: AtomicBool,
    /// The number of the generation that has graphs of an older version; 0: none is known to.
    outdated: AtomicU64,
    /// The newest record that is known, also while nothing is open.
    known: RwLock<Option<Arc<Generation>>>,
    /// When a client was last served from it.
    used: Mutex<Instant>,
    /// When its kept answers were last used.
    pub uses: Uses,
    /// It was compared before.
    looked: AtomicBool,
    /// A client asked for it when nobody mirrored it.
    wanted: AtomicBool,
    /// The primary has shown it to a client.
    shown: AtomicBool,
    /// It was taken out of the mirror.
    removed: AtomicBool,
    /// Snapshots that were installed here and that somebody may still read.
    opened: Mutex<Vec<Weak<Snapshot>>>,
    /// Generations below this one were purged.
    floor: AtomicU64,
    /// Of clients that wait for what they lack.
    pub(super) looks: Looks,
}

impl Repo {
    /// A repository of which nothing is known yet.
    pub fn new(path: RepoPath) -> Self {
        Self {
            path,
            current: RwLock::new(None),
            health: Mutex::default(),
            asked: AtomicU64::new(0),
            done: watch::Sender::new(Done::default()),
            waiting: watch::Sender::new(0),
            wake: Notify::new(),
            tag_news: AtomicU64::new(0),
            damage: Mutex::default(),
            evidence: Mutex::default(),
            progress: Arc::default(),
            compaction: Arc::default(),
            unwell: AtomicBool::new(false),
            outdated: AtomicU64::new(0),
            known: RwLock::new(None),
            used: Mutex::new(Instant::now()),
            uses: Uses::default(),
            looked: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            shown: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            opened: Mutex::default(),
            floor: AtomicU64::new(0),
            looks: Looks::default(),
        }
    }

    /// The newest snapshot this node has open.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest record that is known of it: what is published as far as this node knows, whether it is open or not.
    pub fn known(&self) -> Option<Arc<Generation>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note that a generation has graphs of an older version, which are to be built again.
    pub(super) fn note_outdated(&self, number: u64) {
        self.outdated.fetch_max(number, Ordering::Relaxed);
    }

    /// Whether the generation that is known has graphs of an older version, as far as anybody looked.
    pub fn is_outdated(&self) -> bool {
        let outdated = self.outdated.load(Ordering::Relaxed);
        outdated > 0 && self.known().is_none_or(|known| known.number <= outdated)
    }

    /// Takes note of a record, unless a newer one is known.
    pub(super) fn know(&self, generation: Generation) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| known.number >= generation.number) {
            return;
        }
        let is_gone = generation.gone.is_some();
        *known = Some(Arc::new(generation));
        drop(known);
        if is_gone {
            self.current.write().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Whether it is marked as one that the primary does not have any more: it is served to nobody.
    pub fn is_gone(&self) -> bool {
        self.known().is_some_and(|known| known.gone.is_some())
    }

    /// Takes note that the primary has shown it to a client: what says that it is gone is wrong.
    pub fn show(&self) {
        self.shown.store(true, Ordering::Relaxed);
        if self.is_gone() {
            self.health().not_before = None;
        }
    }

    /// Says whether the primary has shown it to a client since the last such question.
    pub fn was_shown(&self) -> bool {
        self.shown.swap(false, Ordering::Relaxed)
    }

    /// Says whether it is compared for the first time; asked again, it is not.
    pub fn is_first_look(&self) -> bool {
        !self.looked.swap(true, Ordering::Relaxed)
    }

    /// Takes note that a client asked for it when nobody mirrored it: it may be published also if it was taken out before.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Whether a client asked for it when nobody mirrored it.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Takes it out: its worker ends. Says whether it was out already.
    pub fn remove(&self) -> bool {
        let was = self.removed.swap(true, Ordering::SeqCst);
        self.wake.notify_one();
        was
    }

    /// Whether it was taken out of the mirror.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// Takes note that a client is served from it.
    pub fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When a client was last served from it.
    pub(super) fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes its snapshot if no client was served from it since `then`. A request that reads it goes on. Says whether it did.
    pub(super) fn close_unused_since(&self, then: Instant) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *used <= then && current.take().is_some()
    }

    /// Installs a snapshot, unless a newer one is there already (invariant I6): returns what is there afterwards. One of a
    /// repository that is gone is not installed; one that was purged while it was opened comes back without a byte to be read.
    pub fn install(&self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshot.generation.number < self.floor() {
            snapshot.revoke();
            return snapshot;
        }
        opened.retain(|open| open.strong_count() > 0);
        opened.push(Arc::downgrade(&snapshot));
        self.know(snapshot.generation.clone());
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            _ if self.is_gone() => snapshot,
            Some(now) if now.generation.number >= snapshot.generation.number => now.clone(),
            _ => current.insert(snapshot).clone(),
        }
    }

    /// The first generation that may be served: those below were purged.
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::SeqCst)
    }

    /// Does `work` unless generation `number` was purged; no purge begins meanwhile. Says whether it did.
    pub(super) fn unless_purged(&self, number: u64, work: impl FnOnce()) -> bool {
        let _opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let may = number >= self.floor();
        if may {
            work();
        }
        may
    }

    /// Closes all generations below `number` for good: none is opened any more, and who reads one reads no further. Gives the
    /// newest of them that was open, of which only what is carried over may be used.
    pub(super) fn purge(&self, number: u64) -> Option<Arc<Snapshot>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        self.floor.fetch_max(number, Ordering::SeqCst);
        let mut older: Vec<Arc<Snapshot>> = opened.iter().filter_map(Weak::upgrade).collect();
        older.retain(|open| open.generation.number < number);
        older.iter().for_each(|open| open.revoke());
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|open| open.generation.number < number);
        older.into_iter().max_by_key(|open| open.generation.number)
    }

    /// The worker's knowledge; hold it briefly.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the primary is believed not to have `oid`, though it shows it as a tip.
    pub fn is_absent(&self, oid: &ObjectId) -> bool {
        self.health().absent.as_ref().is_some_and(|(absent, _)| absent.contains(oid))
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
        (number > self.done.borrow().settled).then_some(Ticket(number))
    }

    /// Waits until `ticket` is settled, and says whether what is published is confirmed since: a comparison that asked the
    /// primary after the ticket was taken has ended well. During the backoff after a failure tickets are settled without
    /// a question.
    pub async fn settled(&self, ticket: Ticket) -> bool {
        let _waits = Waits::begin(&self.waiting);
        // An error says that the sender is gone, which `self` holds.
        let mut done = self.done.subscribe();
        done.wait_for(|done| done.settled >= ticket.0).await.is_ok_and(|done| done.confirmed >= ticket.0)
    }

    /// Waits until a client waits for a ticket of this repository.
    pub async fn waited_for(&self) {
        // An error says that the sender is gone, which `self` holds.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    /// Reports an error that was met while the data of `generation` was read. Says whether it shows that stored data is
    /// lost or of no use; the next sync then looks whether it still is, and makes everything anew if so.
    pub fn report_damage(&self, generation: &Generation, error: &(dyn Error + 'static)) -> bool {
        if generation.number < self.floor() {
            // What was purged is meant to be gone.
            return false;
        }
        let faults = damage::faults(generation, error);
        let is_damage = !faults.is_empty();
        if is_damage && self.damage().note(faults) {
            self.ask();
        }
        is_damage
    }

    /// What is known to be wrong with its stored data; hold it briefly.
    pub fn damage(&self) -> MutexGuard<'_, Damage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comparisons found to differ, and what became of it; hold it briefly.
    pub fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the running sync is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// How far a merge of its layers is: it runs beside syncs and is none.
    pub fn compaction(&self) -> &Arc<Progress> {
        &self.compaction
    }

    /// Begins a step of the running sync.
    pub fn step(&self, step: Step) {
        // Of what is published a comparison mostly finds that nothing is to be done: that is no news. So it is after a start.
        self.progress.step(step, step > Step::Asking || self.known().is_none() && self.is_wanted());
    }

    /// Whether its last attempt went well, so that it gets a place of the well.
    pub fn is_well(&self) -> bool {
        !self.unwell.load(Ordering::Relaxed)
    }

    /// Takes note whether its last attempt went well.
    pub fn set_well(&self, well: bool) {
        self.unwell.store(!well, Ordering::Relaxed);
    }

    /// Settles every ticket, also those that are taken from now on: the repository has no worker any more.
    pub fn close(&self) {
        self.done.send_modify(|done| done.settled = u64::MAX);
    }

    /// Waits until somebody asks ([`Repo::ask`]).
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The last ticket taken so far: what a comparison that begins now answers to.
    pub fn begin(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// Settles the tickets that were taken before [`Repo::begin`] gave `began`; `well` says that a comparison which asked
    /// the primary after that has ended well.
    pub fn finish(&self, began: u64, well: bool) {
        self.done.send_modify(|done| {
            done.settled = done.settled.max(began);
            if well {
                done.confirmed = done.confirmed.max(began);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_ticket_is_settled_only_by_a_comparison_that_began_later() {
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        let running = repo.begin();
        let ticket = repo.ask();
        repo.finish(running, true);
        let early = tokio::time::timeout(Duration::from_millis(20), repo.settled(ticket)).await;
        assert!(early.is_err(), "a comparison that began before the ticket says nothing");
        repo.finish(repo.begin(), true);
        assert!(repo.settled(ticket).await);
    }

    #[tokio::test]
    async fn only_a_comparison_that_ended_well_confirms_a_ticket() {
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        repo.finish(repo.begin(), true);
        let ticket = repo.ask();
        repo.finish(repo.begin(), false);
        assert!(!repo.settled(ticket).await, "it failed, or nobody was asked");
        repo.finish(repo.begin(), true);
        assert!(repo.settled(ticket).await);
        let late = repo.ask();
        repo.close();
        assert!(!repo.settled(late).await, "nobody works for it any more");
    }
}
