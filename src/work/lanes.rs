//! Places for comparisons and for syncs, so that broken repositories do not hold up healthy ones, and long first syncs
//! hold up neither comparisons nor increments.
//!
//! Each kind of work has a lane of its own: comparisons; first syncs that wait for the first byte of their pack; first syncs
//! that take it in; increments. A lane has places for repositories that are well, and others for those that are unwell: the
//! last attempt failed, or the primary kept it waiting for long. A repository that waits too long in a place of the well
//! moves to one of the unwell, or ends if these are full, and comes back among the unwell. So a place of the well is never
//! held for long by a repository that waits, however many are broken. A few places are kept for well repositories that a
//! client waits for.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::mirror::repo::Repo;

/// Repositories that are compared at once, or wait for the first byte of a pack: both only wait for the primary.
const COMPARISONS: usize = 64;
/// The same for unwell repositories.
const UNWELL_COMPARISONS: usize = 64;
/// Further comparisons for waiting clients.
const WAITED_COMPARISONS: usize = 16;
/// Syncs of unwell repositories, for each sync of a well one: they mostly wait, and what they hold is bounded otherwise.
const UNWELL_SYNCS: usize = 16;

/// All places of a node.
pub struct Lanes {
    comparing: Lane,
    starting: Lane,
    first: Lane,
    increments: Lane,
}

struct Lane {
    well: Arc<Semaphore>,
    unwell: Arc<Semaphore>,
    /// For repositories that are well and that a client waits for.
    waited: Arc<Semaphore>,
}

/// A place that is taken; dropping it frees it.
pub struct Place {
    permit: OwnedSemaphorePermit,
    unwell: Arc<Semaphore>,
    well: bool,
}

/// The places of the unwell are all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded;

impl Lanes {
    /// Lanes without places: nothing is compared or synced yet.
    pub fn closed() -> Self {
        Self {
            comparing: Lane::closed(),
            starting: Lane::closed(),
            first: Lane::closed(),
            increments: Lane::closed(),
        }
    }

    /// Lets work begin, with `syncs` places for first syncs of well repositories and as many for their increments.
    pub fn open(&self, syncs: usize) {
        let syncs = syncs.clamp(1, Semaphore::MAX_PERMITS / UNWELL_SYNCS);
        self.comparing.open(COMPARISONS, UNWELL_COMPARISONS, WAITED_COMPARISONS);
        self.starting.open(COMPARISONS, UNWELL_COMPARISONS, 0);
        self.first.open(syncs, syncs * UNWELL_SYNCS, 0);
        self.increments.open(syncs, syncs * UNWELL_SYNCS, syncs);
    }

    /// Waits for a place to compare, and to wait for the first byte of an increment.
    pub async fn compare(&self, repo: &Repo) -> Option<Place> {
        self.comparing.enter(repo).await
    }

    /// Waits for a place to wait for the first byte of a first sync.
    pub async fn start(&self, repo: &Repo) -> Option<Place> {
        self.starting.enter(repo).await
    }

    /// Waits for a place to take in a whole repository.
    pub async fn first(&self, repo: &Repo) -> Option<Place> {
        self.first.enter(repo).await
    }

    /// Waits for a place to take in an increment.
    pub async fn increment(&self, repo: &Repo) -> Option<Place> {
        self.increments.enter(repo).await
    }
}

impl Lane {
    fn closed() -> Self {
        let none = || Arc::new(Semaphore::new(0));
        Self { well: none(), unwell: none(), waited: none() }
    }

    fn open(&self, well: usize, unwell: usize, waited: usize) {
        self.well.add_permits(well);
        self.unwell.add_permits(unwell);
        self.waited.add_permits(waited);
    }

    async fn enter(&self, repo: &Repo) -> Option<Place> {
        let well = repo.is_well();
        let place = |lane: &Arc<Semaphore>| Arc::clone(lane).acquire_owned();
        // A client may come while the repository waits for a place already.
        let waited = async {
            repo.waited_for().await;
            place(&self.waited).await
        };
        let permit = tokio::select! {
            biased;
            permit = place(if well { &self.well } else { &self.unwell }) => permit,
            permit = waited, if well => permit,
        };
        // An error says that the lanes are gone, and with them the node.
        Some(Place { permit: permit.ok()?, unwell: Arc::clone(&self.unwell), well })
    }
}

impl Place {
    /// Says whether it is a place of the well.
    pub fn is_well(&self) -> bool {
        self.well
    }

    /// Makes room for others: takes a place of the unwell instead, if there is one.
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
    use crate::git::path::RepoPath;
    use crate::sim::mutants::found;
    use futures::FutureExt;

    fn repo(well: bool) -> Repo {
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        repo.set_well(well);
        repo
    }

    /// More repositories wait than there are places of the well; in a broken build they keep them.
    fn waits(is_broken: bool) {
        let lanes = Lanes::closed();
        lanes.open(1);
        let first = |well| lanes.first(&repo(well)).now_or_never().flatten();
        let well = || first(true).expect("those that wait hold up one that is well");
        let mut aside = Vec::new();
        for _ in 0..UNWELL_SYNCS {
            let mut place = well();
            if !is_broken {
                place.step_aside().unwrap();
            }
            aside.push(place);
        }
        let mut place = well();
        assert_eq!(place.step_aside(), Err(Crowded));
        drop(place);
        assert!(well().is_well());
        drop(aside);
        assert!(!first(false).unwrap().is_well());
    }

    #[test]
    fn who_waits_steps_aside_and_the_well_go_on() {
        waits(false);
    }

    #[test]
    fn who_waits_in_the_way_of_others_is_found() {
        found("those that wait hold up one that is well", || waits(true));
    }

    #[tokio::test]
    async fn first_syncs_hold_up_no_increment_and_no_comparison() {
        let lanes = Lanes::closed();
        lanes.open(1);
        let new = repo(true);
        let _first = lanes.first(&new).await.unwrap();
        let mut starting = Vec::new();
        for _ in 0..COMPARISONS {
            starting.push(lanes.start(&new).await.unwrap());
        }
        assert!(lanes.first(&new).now_or_never().is_none());
        assert!(lanes.increment(&new).now_or_never().is_some());
        assert!(lanes.compare(&new).now_or_never().is_some());
    }

    #[tokio::test]
    async fn whom_a_client_waits_for_goes_first() {
        let lanes = Lanes::closed();
        lanes.open(1);
        let (idle, waited) = (repo(true), repo(true));
        let _place = lanes.increment(&idle).await.unwrap();
        let mut in_line = std::pin::pin!(lanes.increment(&waited));
        assert!(in_line.as_mut().now_or_never().is_none());
        let ticket = waited.ask();
        let mut client = std::pin::pin!(waited.settled(ticket));
        assert!(client.as_mut().now_or_never().is_none());
        assert!(in_line.now_or_never().is_some(), "a client came while it stood in line");
        assert!(lanes.increment(&idle).now_or_never().is_none());
    }
}
