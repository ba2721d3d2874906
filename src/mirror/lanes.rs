//! Places for comparisons and for syncs, so that broken repositories do not hold up healthy ones.
//!
//! There are two lanes for each kind of work. A repository whose last attempt failed, or for whose primary had to be
//! waited long, goes by the unwell lane; all others by the well one. Who waits too long in the well lane steps aside into
//! the unwell one, or ends where that is full, and comes back by the unwell lane. So a place of the well lane is never
//! held for long by one that waits, however many repositories are broken.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Repositories that are compared or wait for the first byte of a pack at once: all of it is waiting for the primary.
const COMPARISONS: usize = 64;
/// The same for unwell repositories.
const UNWELL_COMPARISONS: usize = 64;
/// Syncs of unwell repositories, for each sync of a well one: they mostly wait, and what they hold is bounded otherwise.
const UNWELL_SYNCS: usize = 16;

/// All places of a node.
pub struct Lanes {
    comparing: Pair,
    syncing: Pair,
}

struct Pair {
    well: Arc<Semaphore>,
    unwell: Arc<Semaphore>,
}

/// A place that somebody has; dropping it frees it.
pub struct Place {
    permit: OwnedSemaphorePermit,
    unwell: Arc<Semaphore>,
    well: bool,
}

/// The unwell lane is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded;

impl Lanes {
    /// Lanes without places: nothing is compared or synced yet.
    pub fn closed() -> Self {
        let pair = || Pair { well: Arc::new(Semaphore::new(0)), unwell: Arc::new(Semaphore::new(0)) };
        Self { comparing: pair(), syncing: pair() }
    }

    /// Lets work begin, with `syncs` places for syncs of well repositories.
    pub fn open(&self, syncs: usize) {
        let syncs = syncs.clamp(1, Semaphore::MAX_PERMITS / UNWELL_SYNCS);
        self.comparing.well.add_permits(COMPARISONS);
        self.comparing.unwell.add_permits(UNWELL_COMPARISONS);
        self.syncing.well.add_permits(syncs);
        self.syncing.unwell.add_permits(syncs * UNWELL_SYNCS);
    }

    /// Waits for a place to compare, and to wait for the first byte of a pack.
    pub async fn compare(&self, well: bool) -> Option<Place> {
        self.comparing.enter(well).await
    }

    /// Waits for a place to take in a pack that has begun to come.
    pub async fn sync(&self, well: bool) -> Option<Place> {
        self.syncing.enter(well).await
    }
}

impl Pair {
    async fn enter(&self, well: bool) -> Option<Place> {
        let lane = if well { &self.well } else { &self.unwell };
        // An error says that the lanes are gone, and with them the node.
        let permit = Arc::clone(lane).acquire_owned().await.ok()?;
        Some(Place { permit, unwell: Arc::clone(&self.unwell), well })
    }
}

impl Place {
    /// Says whether it is a place of the well lane.
    pub fn is_well(&self) -> bool {
        self.well
    }

    /// Makes room for others: goes over to the unwell lane, if there is a place.
    pub fn step_aside(&mut self) -> Result<(), Crowded> {
        if self.well {
            self.permit = Arc::clone(&self.unwell).try_acquire_owned().map_err(|_| Crowded)?;
            self.well = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_steps_aside_and_the_well_go_on() {
        let lanes = Lanes::closed();
        lanes.open(1);
        let mut aside = Vec::new();
        for _ in 0..UNWELL_SYNCS {
            let mut place = lanes.sync(true).await.unwrap();
            place.step_aside().unwrap();
            aside.push(place);
        }
        let mut place = lanes.sync(true).await.unwrap();
        assert_eq!(place.step_aside(), Err(Crowded));
        drop(place);
        assert!(lanes.sync(true).await.unwrap().is_well());
        drop(aside);
        assert!(!lanes.sync(false).await.unwrap().is_well());
    }
}
