//! What changes the bucket: comparing with the primary, syncing, mending.
//!
//! - [`worker`]: the loop that keeps one repository true. [`sync`]: one comparison and what follows.
//! - [`receive`]: a pack from the primary. [`ingest`]: it becomes a layer. `publish`: the generation that names it; `upon`: the same
//!   where layers were merged meanwhile; `follow`: what others published with the same refs. `gone`: what the primary does not have any more.
//! - [`compact`]: layers are merged. `lease`: which node does what one is enough for. `heal`: damage is mended, `lend`: also for others, `alone`: without the primary. `regraph`: graphs of an
//!   older version, built again.
//! - `answers`: what is asked for again and again is kept.
//! - [`collect`]: what nobody names any more is deleted. [`purge`]: what no ref reaches any more, at once.
//! - [`examine`]: whether what is stored is whole. [`vet`]: the same of one repository, and whether it equals the primary, for people.
//!   `rotation`: a look at everything now and then.
//! - [`trouble`]: repositories that cannot be taken in.
//! - [`error`]: why it failed. [`cost`]: what one sync may hold and do. [`lanes`]: places, so that the broken and the long do not hold up the others.
//!
//! Relies on: `mirror` for repositories and what is known of them, `primary`, `store` and `pack`. Elsewhere: clients (`serve`),
//! which ask for a comparison and wait for it (`Repo::ask`); a node without this room serves what others published.

mod alone;
mod answers;
pub mod collect;
pub mod compact;
pub mod cost;
pub mod error;
pub mod examine;
mod follow;
mod gone;
mod heal;
pub mod ingest;
pub mod lanes;
mod lease;
mod lend;
mod publish;
pub mod purge;
mod receive;
mod regraph;
mod rotation;
pub mod sync;
pub mod trouble;
mod upon;
pub mod vet;
pub mod worker;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::config::{Freshness, Limits, OnPrimaryDown, Settings, Vet};
use crate::git::caps::V2Caps;
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::retry::Policy;
use crate::store::{BlobRef, Name};
use crate::work::lanes::Lanes;
use crate::work::trouble::{LONGEST, Trouble};

/// The bound of the wait after a first failed sync; it doubles up to the interval of comparisons.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// Files that are remembered as the source of a blob.
const MOST_SOURCES: usize = 1024;

/// What works for the repositories of one node.
pub struct Work {
    /// The repositories.
    pub mirror: Arc<Mirror>,
    /// The pace of comparisons.
    compare_every: Duration,
    /// Refs may be shown out of the bucket, for which it must be known what the primary can do with each repository.
    advertises: bool,
    max_syncs: usize,
    limits: Limits,
    vet: Vet,
    /// The store has shown that it keeps its promises.
    sound: AtomicBool,
    backoff: Policy,
    /// The pace of fetches that would fail again.
    patience: Policy,
    lanes: Lanes,
    /// What all syncs may hold together.
    sync_memory: Budget,
    /// Repositories whose layers may have to be merged.
    compaction: compact::queue::Queue,
    /// What a merge of layers may hold.
    compaction_memory: Budget,
    /// How long data stays in the bucket after it was named last.
    grace: Duration,
    /// How long a repository stays in the bucket that the primary does not have any more.
    gone_after: Duration,
    /// How often this farm collects.
    collect_every: Duration,
    /// What answers may take of the bucket, in percent of the packs.
    answers_share: u64,
    /// The answer to a clone of depth 1 is made before it is asked for.
    makes_depth1: bool,
    /// Files that were stored as blobs lately, for storing them again.
    sources: Mutex<HashMap<Name, PathBuf>>,
    /// What this node alone cannot take in.
    here: Mutex<HashMap<RepoPath, Trouble>>,
    /// What the primary said last that it can do: mostly the same of all repositories.
    capabilities: Mutex<Arc<V2Caps>>,
    tasks: TaskTracker,
}

impl Work {
    /// Works at the pace and within the limits of `settings`. Nothing runs yet.
    pub fn new(mirror: Arc<Mirror>, settings: &Settings) -> Arc<Self> {
        let interval = settings.compare_every.max(FIRST_BACKOFF);
        Arc::new(Self {
            compare_every: settings.compare_every,
            advertises: settings.freshness == Freshness::Bounded
                || settings.on_primary_down == OnPrimaryDown::ServeVerified,
            max_syncs: settings.max_syncs,
            limits: settings.limits.clone(),
            vet: settings.vet.clone(),
            sound: AtomicBool::new(false),
            backoff: Policy::new(FIRST_BACKOFF, interval),
            patience: Policy::new(interval.saturating_mul(2), LONGEST),
            lanes: Lanes::closed(),
            sync_memory: Budget::new(settings.limits.sync_memory, "limits.sync_memory"),
            compaction: compact::queue::Queue::default(),
            compaction_memory: Budget::new(
                settings.limits.sync_memory.min(compact::MOST_MEMORY),
                "limits.sync_memory",
            ),
            grace: settings.gc.grace,
            gone_after: settings.gc.gone_after,
            collect_every: settings.gc.every,
            makes_depth1: settings.answers.depth1 && settings.answers.share > 0,
            answers_share: settings.answers.share as u64,
            sources: Mutex::default(),
            here: Mutex::default(),
            capabilities: Mutex::default(),
            tasks: TaskTracker::new(),
            mirror,
        })
    }

    /// Lets syncs begin: the store has shown that it keeps its promises. Before that nothing is written.
    pub fn store_is_sound(&self) {
        self.lanes.open(self.max_syncs);
        self.sound.store(true, Ordering::SeqCst);
    }

    /// Whether the store has shown that it keeps its promises.
    fn is_sound(&self) -> bool {
        self.sound.load(Ordering::SeqCst)
    }

    /// Starts a worker for each repository that the mirror enters, and merges layers beside them, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(mut entered) = self.mirror.entered() else { return };
        self.tasks.spawn(lend::run(Arc::clone(&self), stop.clone()));
        self.tasks.spawn(rotation::run(Arc::clone(&self), stop.clone()));
        self.tasks.spawn(compact::run(Arc::clone(&self), stop.clone()));
        if let Some(wishes) = self.mirror.wished() {
            self.tasks.spawn(answers::run(Arc::clone(&self), wishes, stop.clone()));
        }
        self.tasks.spawn(follow::run(Arc::clone(&self), stop.clone()));
        self.tasks.spawn(collect::run(Arc::clone(&self), stop.clone()));
        while let Some(Some(repo)) = stop.run_until_cancelled(entered.recv()).await {
            self.tasks.spawn(worker::run(Arc::clone(&self), repo, stop.clone()));
        }
        self.tasks.close();
    }

    /// Waits until all workers have ended and what they held is given up; [`Work::run`] must have been told to stop before.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The same capabilities once in memory, as long as the primary says the same of one repository after the other.
    fn shared(&self, capabilities: V2Caps) -> Arc<V2Caps> {
        let mut last = self.capabilities.lock().unwrap_or_else(PoisonError::into_inner);
        if **last != capabilities {
            *last = Arc::new(capabilities);
        }
        Arc::clone(&last)
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<Name, PathBuf>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers where the bytes of a blob are, for as long as there is room to remember it. The file may go at any time.
    fn remember_source(&self, blob: &BlobRef, file: &Path) {
        let mut sources = self.sources();
        if sources.len() >= MOST_SOURCES {
            sources.clear();
        }
        sources.insert(blob.name(), file.to_owned());
    }

    /// What this node alone cannot take in of a repository.
    fn here(&self) -> MutexGuard<'_, HashMap<RepoPath, Trouble>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
