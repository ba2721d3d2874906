//! What a repository's worker knows of it: what it is doing, when the primary was asked, what failed.
//!
//! Kept in memory by the repository ([`super::repo`]), shown by `status` and told in heartbeats ([`super::health`]). Elsewhere: who
//! writes it (`work::worker`, `farm` for what other nodes found).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gix_hash::ObjectId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::boot::time_of_day;
use crate::git::caps::V2Caps;
use crate::mirror::gone::Missing;

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
    /// When the primary was asked by the comparison that last ended with the published generation equal to its answer.
    /// What is published is as old as this, however long the sync took that followed.
    pub asked: Option<Moment>,
    /// It was another node that asked.
    pub by_others: bool,
    /// When the primary was last asked by another node, also where it does not have the repository any more.
    pub attended: Option<Instant>,
    /// Failures in a row.
    pub failures: u32,
    /// No attempt before this, even if a client asks: the backoff after failures.
    pub not_before: Option<Instant>,
    /// When the next comparison is due.
    pub next: Option<Instant>,
    /// The last failure, in words.
    pub error: Option<String>,
    /// Why its layers could not be merged, the last time that was tried.
    pub unmerged: Option<String>,
    /// When the primary last answered with an error, or not at all.
    pub primary_failed: Option<Instant>,
    /// The comparisons in a row for which the primary did not have it.
    pub missing: Option<Missing>,
    /// What the primary said it can do, and when it was asked.
    pub capabilities: Option<(Arc<V2Caps>, Instant)>,
    /// Refs that the primary shows and that are not mirrored, in words.
    pub left_out: Option<String>,
    /// Tips that the primary refused to send, and when it did so first.
    pub refused: HashMap<ObjectId, Instant>,
    /// Objects that the primary shows as tips and does not have, and since when that is believed.
    pub absent: Option<(HashSet<ObjectId>, Instant)>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            phase: Phase::New,
            asked: None,
            by_others: false,
            attended: None,
            failures: 0,
            not_before: None,
            next: None,
            error: None,
            unmerged: None,
            primary_failed: None,
            missing: None,
            capabilities: None,
            left_out: None,
            refused: HashMap::new(),
            absent: None,
        }
    }
}

/// More refused tips than this are not remembered.
const MOST_REFUSED: usize = 64;
/// For how long a primary is taken to be able to do what it said: programs of servers are replaced seldom.
const CAPABILITIES_FOR: Duration = Duration::from_secs(60 * 60);

impl Health {
    /// What the primary need not be asked for at a comparison: what it can do. After a failure it is asked for all.
    pub fn offer(&self) -> Option<Arc<V2Caps>> {
        let known = self.capabilities.as_ref().filter(|_| self.failures == 0);
        known.filter(|(_, asked)| asked.elapsed() < CAPABILITIES_FOR).map(|(known, _)| Arc::clone(known))
    }

    /// Takes note that the primary refused to send a tip that it shows. Returns for how long it has done so.
    pub fn refuse(&mut self, oid: ObjectId) -> Duration {
        if self.refused.len() >= MOST_REFUSED && !self.refused.contains_key(&oid) {
            self.refused.clear();
        }
        self.refused.entry(oid).or_insert_with(Instant::now).elapsed()
    }
}

/// An instant by both clocks: the monotonic one for ages, the other one for people.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// By the monotonic clock.
    pub instant: Instant,
    /// By the clock of the system.
    pub time: SystemTime,
}

impl Moment {
    /// The present.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: time_of_day() }
    }
}
