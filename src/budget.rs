//! Budgets of memory: how many bytes may be held for one purpose, by all who hold some, at the same time.
//!
//! A budget is a semaphore whose permits are KiB, so room is given in the order in which it was asked for and a permit
//! travels with what it pays for. Elsewhere: what pure code counts ([`crate::pack::meter`]).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pack::meter::Halt;

/// A permit is so many bytes.
const UNIT: u64 = 1024;

/// A bound on memory, shared by all who clone it.
#[derive(Clone, Debug)]
pub struct Budget {
    permits: Arc<Semaphore>,
    /// For those who begin: together they leave half of it free.
    entries: Arc<Semaphore>,
    most: u64,
    setting: &'static str,
}

impl Budget {
    /// Allows `most` bytes; `setting` is the key that says how many.
    pub fn new(most: u64, setting: &'static str) -> Self {
        let permits = usize::try_from(most / UNIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let entries = Arc::new(Semaphore::new((permits / 2).max(1)));
        Self { permits: Arc::new(Semaphore::new(permits.max(1))), entries, most, setting }
    }

    /// Bytes allowed in all.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Bytes that nobody holds.
    pub fn free(&self) -> u64 {
        self.permits.available_permits() as u64 * UNIT
    }

    /// Waits for room for `bytes`; an error only if there can never be so much.
    pub async fn take(&self, bytes: u64) -> Result<Room, Halt> {
        let units = self.units(bytes)?;
        let permit = Arc::clone(&self.permits).acquire_many_owned(units).await;
        permit.map(|permit| Room { permit, budget: self.clone() }).map_err(|_| Halt::Stopped)
    }

    /// Waits for room for `bytes` with which something begins. All that has begun leaves half of it free for what it needs
    /// beside that, so it goes on however many wait. The room is given back no later than the [`Entry`].
    pub async fn enter(&self, bytes: u64) -> Result<(Entry, Room), Halt> {
        let permits = u32::try_from(self.most / UNIT).unwrap_or(u32::MAX);
        let units = self.units(bytes)?.min(permits / 2).max(1);
        let entry = Arc::clone(&self.entries).acquire_many_owned(units).await.map_err(|_| Halt::Stopped)?;
        Ok((Entry { _permit: entry }, self.take(bytes).await?))
    }

    /// Room for `bytes` if it is there now.
    pub fn try_take(&self, bytes: u64) -> Result<Room, Halt> {
        let units = self.units(bytes)?;
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(units);
        permit.map(|permit| Room { permit, budget: self.clone() }).map_err(|_| Halt::Busy)
    }

    /// Says whether `bytes` can be held by one at all.
    pub fn fits(&self, bytes: u64) -> Result<(), Halt> {
        let fits = bytes <= self.most && bytes.div_ceil(UNIT) <= u64::from(u32::MAX);
        fits.then_some(()).ok_or(self.too_much(bytes, self.most))
    }

    /// Says that one may hold no more than `most` of it, by the name of the setting.
    pub fn too_much(&self, bytes: u64, most: u64) -> Halt {
        Halt::TooMuch { bytes, most, setting: self.setting }
    }

    fn units(&self, bytes: u64) -> Result<u32, Halt> {
        self.fits(bytes)?;
        Ok(u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX))
    }
}

/// Something that has begun, see [`Budget::enter`].
#[derive(Debug)]
pub struct Entry {
    _permit: OwnedSemaphorePermit,
}

/// Bytes of a budget that somebody holds; dropping it gives them back.
#[derive(Debug)]
pub struct Room {
    permit: OwnedSemaphorePermit,
    budget: Budget,
}

impl Room {
    /// Bytes held, rounded up to whole KiB.
    pub fn bytes(&self) -> u64 {
        self.permit.num_permits() as u64 * UNIT
    }

    /// Holds at least `bytes` from now on, if the room is there now.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Halt> {
        self.budget.fits(bytes)?;
        let more = bytes.saturating_sub(self.bytes());
        if more > 0 {
            self.permit.merge(self.budget.try_take(more)?.permit);
        }
        Ok(())
    }

    /// Gives back what is above `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        self.give_back(self.bytes().saturating_sub(bytes.next_multiple_of(UNIT)));
    }

    /// Gives back `bytes` of it, in whole KiB as they were taken.
    pub fn give_back(&mut self, bytes: u64) {
        let units = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        drop(self.permit.split(units.min(self.permit.num_permits())));
    }

    /// Adds other room of the same budget to this.
    pub fn join(&mut self, other: Self) {
        self.permit.merge(other.permit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_begun_goes_on_however_many_wait() {
        let budget = Budget::new(16 * UNIT, "limits.memory");
        let mut begun = Vec::new();
        for _ in 0..4 {
            begun.push(budget.enter(2 * UNIT).await.unwrap());
        }
        let waits = tokio::spawn({
            let budget = budget.clone();
            async move { budget.enter(2 * UNIT).await.map(|(_, room)| room.bytes()) }
        });
        tokio::task::yield_now().await;
        begun[0].1.grow_to(4 * UNIT).unwrap();
        begun[0].1.shrink_to(2 * UNIT);
        assert!(!waits.is_finished());
        begun.pop();
        assert_eq!(waits.await.unwrap(), Ok(2 * UNIT));
    }

    #[tokio::test]
    async fn room_is_bounded_given_back_and_waited_for() {
        let budget = Budget::new(10 * UNIT, "limits.memory");
        let mut room = budget.try_take(6 * UNIT + 1).unwrap();
        assert_eq!((room.bytes(), budget.free()), (7 * UNIT, 3 * UNIT));
        assert_eq!(budget.try_take(4 * UNIT).unwrap_err(), Halt::Busy);
        assert!(matches!(budget.try_take(11 * UNIT), Err(Halt::TooMuch { .. })), "never");
        assert!(matches!(budget.take(11 * UNIT).await, Err(Halt::TooMuch { .. })), "not waited for");
        room.grow_to(9 * UNIT).unwrap();
        assert_eq!(room.grow_to(11 * UNIT).map_err(|halt| matches!(halt, Halt::TooMuch { .. })), Err(true));
        room.shrink_to(2 * UNIT);
        assert_eq!(budget.free(), 8 * UNIT);
        let waiting = budget.clone();
        let waits = tokio::spawn(async move { waiting.take(10 * UNIT).await.map(|room| room.bytes()) });
        drop(room);
        assert_eq!(waits.await.unwrap(), Ok(10 * UNIT));
        assert_eq!(budget.free(), 10 * UNIT);
    }
}
