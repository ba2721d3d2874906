//! What one sync costs: its share of the memory that all syncs may hold, and the steps it may take.
//!
//! Everything that a sync holds because of what the primary sent is counted here, from the first ref on. What it holds is
//! given back when it ends, however it ends. Where others hold the memory, the sync fails with [`Halt::Busy`] and is tried
//! again; where it alone would need more than there is, it fails by name. One sync may hold three
//! quarters of it all, and an eighth is kept for those that need little, so that large syncs delay no comparison.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::{Budget, Entry, Room};
use crate::mirror::progress::Progress;
use crate::pack::meter::{Halt, Meter};

/// Room is taken and given back in pieces of so many bytes.
const PIECE: u64 = 1 << 20;
/// What a sync holds at least: buffers of the connection, of files, of zlib.
const LEAST: u64 = 2 << 20;
/// A sync that holds no more than this is small.
const SMALL: u64 = 8 << 20;
/// Steps that one sync may take: about twenty minutes of one core.
const MOST_STEPS: u64 = 50_000_000_000;

/// The meter of one sync.
pub struct Cost {
    state: Mutex<State>,
    steps: AtomicU64,
    stopped: AtomicBool,
    budget: Budget,
    /// Who is told how far it is.
    progress: Option<Arc<Progress>>,
}

struct State {
    /// None while it waits for a place.
    entry: Option<Entry>,
    room: Room,
    used: u64,
}

impl Cost {
    /// Waits until there is room for a sync to begin.
    pub async fn begin(budget: &Budget) -> Result<Self, Halt> {
        let (entry, room) = budget.enter(LEAST.min(budget.most())).await?;
        Ok(Self {
            state: Mutex::new(State { entry: Some(entry), room, used: LEAST }),
            steps: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            budget: budget.clone(),
            progress: None,
        })
    }

    /// Tells `progress` how far it is.
    pub fn of(self, progress: &Arc<Progress>) -> Self {
        Self { progress: Some(Arc::clone(progress)), ..self }
    }

    /// Waits for a place, and gives back meanwhile what it does not need for that: of many that wait, none keeps those that
    /// have a place from going on.
    pub async fn while_waiting<T>(&self, place: impl Future<Output = T>) -> Result<T, Halt> {
        {
            let mut state = self.state();
            state.used = state.used.saturating_sub(LEAST);
            let used = state.used;
            state.room.shrink_to(used);
            state.entry = None;
        }
        let place = place.await;
        let (entry, room) = self.budget.enter(LEAST.min(self.budget.most())).await?;
        let mut state = self.state();
        state.used += LEAST;
        state.room.join(room);
        state.entry = Some(entry);
        drop(state);
        Ok(place)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of the memory of all syncs one sync may take for a cache.
    pub fn share(&self) -> u64 {
        self.budget.most() / 8
    }

    /// Tells all threads that compute for this sync to end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The flag that [`Cost::stop`] sets.
    pub fn stopped(&self) -> &AtomicBool {
        &self.stopped
    }
}

impl Meter for Cost {
    fn step(&self, n: u64) -> Result<(), Halt> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Halt::Stopped);
        }
        let before = self.steps.fetch_add(n, Ordering::Relaxed);
        if before.saturating_add(n) > MOST_STEPS { Err(Halt::TooLong { most: MOST_STEPS }) } else { Ok(()) }
    }

    fn hold(&self, bytes: u64) -> Result<(), Halt> {
        let mut state = self.state();
        let used = state.used.saturating_add(bytes);
        if used > state.room.bytes() {
            let (most, kept, more) = (self.budget.most(), self.budget.most() / 8, used - state.room.bytes());
            let own = SMALL.max(most / 4 * 3);
            if used > own {
                return Err(self.budget.too_much(used, own));
            }
            if used > SMALL && self.budget.free() < more + kept {
                return Err(Halt::Busy);
            }
            // Takes a piece more than needed if there is much room; otherwise only what is needed.
            let ahead = used.checked_next_multiple_of(PIECE).filter(|_| self.budget.free() > kept + PIECE);
            let ahead = ahead.unwrap_or(used);
            state.room.grow_to(ahead).or_else(|_| state.room.grow_to(used))?;
        }
        state.used = used;
        Ok(())
    }

    fn tell(&self, done: u64, total: u64) {
        if let Some(progress) = &self.progress {
            progress.set(done, total);
        }
    }

    fn release(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
        if state.room.bytes() > state.used + 4 * PIECE {
            let keep = state.used + PIECE;
            state.room.shrink_to(keep);
        }
    }
}

/// Ends what still computes for work that is over.
pub(super) struct StopOnDrop(pub Arc<Cost>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::mutants::found;
    use futures::FutureExt;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[tokio::test]
    async fn what_a_sync_holds_is_shared_bounded_and_given_back() {
        let budget = Budget::new(32 << 20, "limits.sync_memory");
        let one = Cost::begin(&budget).await.unwrap();
        let two = Cost::begin(&budget).await.unwrap();
        one.hold(20 << 20).unwrap();
        assert_eq!(two.hold(20 << 20), Err(Halt::Busy), "the other has it");
        assert!(matches!(two.hold(40 << 20), Err(Halt::TooMuch { .. })), "never");
        one.release(20 << 20);
        two.hold(20 << 20).unwrap();
        drop(two);
        drop(one);
        assert_eq!(budget.free(), 32 << 20);
    }

    #[tokio::test]
    async fn who_waits_for_a_place_holds_up_nobody() {
        let budget = Budget::new(16 << 20, "limits.sync_memory");
        let mut begun = Vec::new();
        for _ in 0..4 {
            begun.push(Cost::begin(&budget).await.unwrap());
        }
        begun[0].hold(1000).unwrap();
        let mut next = std::pin::pin!(Cost::begin(&budget));
        assert!(next.as_mut().now_or_never().is_none(), "half is left to those that have begun");
        let (give, place) = tokio::sync::oneshot::channel();
        let one = begun.remove(0);
        let mut waits = std::pin::pin!(one.while_waiting(place));
        assert!(waits.as_mut().now_or_never().is_none());
        let next = next.await.unwrap();
        next.hold(1000).unwrap();
        give.send(()).unwrap();
        assert!(waits.as_mut().now_or_never().is_none(), "it has the place, and waits for memory");
        drop(next);
        waits.await.unwrap().unwrap();
        drop(begun);
        assert_eq!(budget.free(), (14 << 20) - 1024, "it holds its share again, and what it has read");
    }

    #[tokio::test]
    async fn steps_end_and_so_does_who_is_told_to() {
        let cost = Cost::begin(&Budget::new(32 << 20, "x")).await.unwrap();
        cost.step(MOST_STEPS).unwrap();
        assert!(matches!(cost.step(1), Err(Halt::TooLong { .. })));
        cost.stop();
        assert_eq!(cost.step(1), Err(Halt::Stopped));
    }

    /// Syncs take memory and give it back as it comes; a broken build goes on where it is told that there is none.
    fn take_and_give_back(is_broken: bool) {
        let budget = Budget::new(64 << 20, "limits.sync_memory");
        let mut chance = StdRng::seed_from_u64(crate::seed::seed());
        let begin = || Cost::begin(&budget).now_or_never().unwrap().unwrap();
        let mut syncs = [0; 6].map(|held: u64| (begin(), held));
        for _ in 0..20_000 {
            let (cost, held) = &mut syncs[chance.random_range(0..6)];
            let bytes = chance.random_range(1..6 << 20);
            if chance.random_range(0..5) < 3 {
                if cost.hold(bytes).is_ok() || is_broken {
                    *held += bytes;
                }
            } else {
                let bytes = bytes.min(*held);
                cost.release(bytes);
                *held -= bytes;
            }
            let all: u64 = syncs.iter().map(|(_, held)| LEAST + held).sum();
            assert!(all <= budget.most(), "syncs hold {all} bytes of {}", budget.most());
        }
        drop(syncs);
        assert_eq!(budget.free(), budget.most());
    }

    #[test]
    fn syncs_that_hold_more_than_there_is_are_found() {
        take_and_give_back(false);
        found("syncs hold", || take_and_give_back(true));
    }
}
