//! The heart: the repositories of this node, each with its open snapshot and its worker.
//!
//! - [`snapshot`]: one published state, open for reading. `newest`: how it is found. [`blocks`]: the bytes of its packs.
//! - [`repo`]: a repository's newest snapshot and its health. [`worker`]: the loop that keeps it true.
//! - [`sync`]: one comparison and what follows. `receive`: a pack comes in. [`ingest`]: it becomes a layer. `publish`: its generation.
//! - [`damage`]: what is wrong with stored data. `claim`: which node makes it anew. `regraph`: graphs of an older version, built again.
//! - [`cost`]: what one sync may hold and do. [`lanes`]: places, so that the broken and the long do not hold up the others.
//! - [`trouble`]: repositories that cannot be taken in.
//! - [`opening`]: what the bucket holds is opened. [`newcomers`]: how many repositories are taken up. `names`: under which names.
//! - `memory`: what of it outlives a restart.
//! - [`export`]: a plain repository out of the bucket. [`health`]: what a node says of itself in the bucket.
//!
//! Relies on: `primary`, `local`, `store` and `pack`. Elsewhere: HTTP and clients (`serve`).

pub mod blocks;
mod claim;
pub mod cost;
pub mod damage;
pub mod export;
pub mod health;
pub mod ingest;
pub mod lanes;
mod memory;
mod names;
pub mod newcomers;
mod newest;
pub mod opening;
mod publish;
mod receive;
mod regraph;
pub mod repo;
pub mod snapshot;
pub mod sync;
pub mod trouble;
pub mod worker;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::config::{ConfigError, Selection, Settings};
use crate::git::path::RepoPath;
use crate::local::Local;
use crate::mirror::lanes::Lanes;
use crate::mirror::names::{Repos, folded};
use crate::mirror::newcomers::Newcomers;
use crate::mirror::opening::Opening;
use crate::mirror::repo::Repo;
use crate::mirror::sync::SyncError;
use crate::mirror::trouble::LONGEST;
use crate::primary::{Naming, Primary};
use crate::retry::Policy;
use crate::store::{Bucket, nonce};

/// A repository from which no client was served for so long is closed.
const IDLE: Duration = Duration::from_secs(1800);
/// The bound of the wait after a first failed sync; it doubles up to the interval of comparisons.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// At most this many repositories wait to be taken up; others come when they are asked for again.
const MOST_COMING: usize = 1000;
/// How long after a question in vain the primary is asked again what kind of host it is.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The same after [`ENOUGH_QUESTIONS`].
const ASK_AGAIN_LATE: Duration = Duration::from_secs(600);
/// After so many questions in vain the primary is taken to be a host that minds case.
const ENOUGH_QUESTIONS: u32 = 3;

/// Everything a node knows and uses. Shared; all methods take `&self`.
pub struct Mirror {
    /// The settings the node was started with.
    pub settings: Settings,
    /// The shared objects.
    pub bucket: Bucket,
    /// This node's cache.
    pub local: Local,
    /// The other end.
    pub primary: Primary,
    node: String,
    selection: Selection,
    backoff: Policy,
    /// The pace of fetches that would fail again.
    patience: Policy,
    lanes: Lanes,
    /// What all syncs may hold together.
    sync_memory: Budget,
    newcomers: Newcomers,
    /// How the host names repositories; held while it is asked.
    naming: tokio::sync::Mutex<Asked>,
    repos: Mutex<Repos>,
    absent: Mutex<HashMap<RepoPath, Instant>>,
    /// Repositories that are being opened.
    opening: Mutex<HashMap<RepoPath, watch::Receiver<Opening>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is known of the host's naming, and since when and how often it was asked in vain.
#[derive(Default)]
struct Asked {
    naming: Option<Naming>,
    failed: Option<Instant>,
    failures: u32,
}

impl Mirror {
    /// Puts the parts together. Nothing runs yet; workers start with the repositories they belong to.
    pub fn new(
        settings: Settings,
        bucket: Bucket,
        local: Local,
        primary: Primary,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, ConfigError> {
        let backoff = Policy::new(FIRST_BACKOFF, settings.compare_every.max(FIRST_BACKOFF));
        let patience = settings.compare_every.max(FIRST_BACKOFF).saturating_mul(2);
        let patience = Policy::new(patience, LONGEST);
        Ok(Arc::new(Self {
            node: nonce(),
            selection: settings.selection()?,
            backoff,
            patience,
            lanes: Lanes::closed(),
            sync_memory: Budget::new(settings.limits.sync_memory, "limits.sync_memory"),
            newcomers: Newcomers::new(settings.max_new_per_minute, settings.max_repositories),
            naming: tokio::sync::Mutex::default(),
            repos: Mutex::default(),
            absent: Mutex::default(),
            opening: Mutex::default(),
            tasks: TaskTracker::new(),
            settings,
            bucket,
            local,
            primary,
            stop,
        }))
    }

    /// Lets syncs begin: the store has shown that it keeps its promises. Before that nothing is written.
    pub fn store_is_sound(&self) {
        self.lanes.open(self.settings.max_syncs);
    }

    /// Says whether the settings select this repository for mirroring.
    pub fn selects(&self, path: &RepoPath) -> bool {
        self.selection.selects(path.as_str())
    }

    /// The repositories this node has open or is syncing.
    pub fn repos(&self) -> Vec<Arc<Repo>> {
        let mut repos: Vec<_> = self.lock_repos().by_path.values().cloned().collect();
        repos.sort_by(|a, b| a.path.cmp(&b.path));
        repos
    }

    fn lock_repos(&self) -> std::sync::MutexGuard<'_, Repos> {
        self.repos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spelling under which a repository is known here, where the host ignores case; the path itself otherwise.
    pub fn own_spelling(&self, path: &RepoPath) -> RepoPath {
        self.lock_repos().own(path).clone()
    }

    /// Takes note that the primary has shown a repository: it is opened, or its first sync starts, behind the request that
    /// named it and once however many ask. `None`: it is new here, and is taken up if there is room for it.
    pub fn adopt(self: &Arc<Self>, path: &RepoPath) -> Option<Arc<Repo>> {
        let known = self.lock_repos().get(path).cloned();
        match &known {
            Some(repo) if repo.snapshot().is_some() => return known,
            Some(repo) => _ = repo.ask(),
            None => {}
        }
        let is_first = {
            let mut repos = self.lock_repos();
            repos.coming.len() < MOST_COMING && repos.coming.insert(path.clone())
        };
        if is_first {
            let (mirror, path) = (Arc::clone(self), path.clone());
            self.tasks.spawn(async move {
                let taken = mirror.stop.run_until_cancelled(async {
                    match mirror.find(&path).await {
                        Ok(None) => mirror.take_up(&path).await,
                        _ => None,
                    }
                });
                if let Some(Some(repo)) = taken.await {
                    repo.ask();
                }
                mirror.lock_repos().coming.remove(&path);
            });
        }
        known
    }

    /// Takes up a repository that is not known here under this spelling. `None`: there are too many new ones, or it is
    /// not known yet how the host names repositories.
    async fn take_up(self: &Arc<Self>, path: &RepoPath) -> Option<Arc<Repo>> {
        // One at a time: a crowd that comes with many spellings is let in by what the first of them finds out.
        let mut asked = self.naming.lock().await;
        let naming = self.naming(&mut asked).await?;
        let (known, count) = {
            let repos = self.lock_repos();
            (repos.get(path).cloned(), repos.by_path.len())
        };
        if known.is_some() {
            return known;
        }
        if !self.newcomers.admit(path, count) {
            return None;
        }
        let Naming::AnyCase(interface) = naming else {
            return Some(self.start(Arc::new(self.known(path.clone()))));
        };
        // Another node may have published it under the spelling that it knows.
        let published = self.bucket.repos_beside(&self.keys()).await.inspect_err(|e| {
            tracing::warn!(repo = %path, error = %e, "not taken up: the bucket could not be listed");
        });
        let published = published.ok()?.into_iter().find(|known| folded(known) == folded(path));
        let own = match published {
            Some(known) => known,
            None => match self.primary.own_spelling(path, interface).await {
                Some(own) => own,
                // One that all nodes would choose.
                None => RepoPath::parse(&folded(path)).unwrap_or_else(|_| path.clone()),
            },
        };
        Some(self.start(Arc::new(self.known(own))))
    }

    /// How the host names repositories: asked once, and again after a while if it gave no answer. A host that never
    /// answers is taken to mind case.
    async fn naming(&self, asked: &mut Asked) -> Option<Naming> {
        let pause = if asked.failures < ENOUGH_QUESTIONS { ASK_AGAIN } else { ASK_AGAIN_LATE };
        if asked.naming.is_none() && asked.failed.is_none_or(|failed| failed.elapsed() >= pause) {
            match self.primary.naming().await {
                Ok(naming) => {
                    tracing::info!(?naming, "how the primary names repositories");
                    if matches!(naming, Naming::AnyCase(_)) {
                        self.lock_repos().fold();
                    }
                    asked.naming = Some(naming);
                }
                Err(e) => {
                    tracing::warn!(error = %e, "the primary did not say what kind of host it is: no repository is taken up yet");
                    asked.failed = Some(Instant::now());
                    asked.failures += 1;
                }
            }
        }
        asked.naming.or((asked.failures >= ENOUGH_QUESTIONS).then_some(Naming::Exact))
    }

    /// Lets go of a repository that its worker has given up.
    pub(in crate::mirror) fn forget(&self, repo: &Arc<Repo>) {
        let mut repos = self.lock_repos();
        if repos.by_path.get(&repo.path).is_some_and(|known| Arc::ptr_eq(known, repo)) {
            repos.remove(&repo.path);
        }
    }

    /// Enters the repository, unless somebody was faster, and starts its worker.
    fn start(self: &Arc<Self>, repo: Arc<Repo>) -> Arc<Repo> {
        let mut repos = self.lock_repos();
        if let Some(known) = repos.get(&repo.path) {
            return Arc::clone(known);
        }
        repos.insert(Arc::clone(&repo));
        self.tasks.spawn(worker::run(Arc::clone(self), Arc::clone(&repo), self.stop.clone()));
        repo
    }

    /// Opens what the bucket holds already, so that comparisons begin without waiting for clients.
    pub async fn take_up_all(self: &Arc<Self>) -> Result<usize, SyncError> {
        // What is known here costs no look: with thousands of repositories that is all but a few.
        let paths = self.bucket.repos_beside(&self.keys()).await?;
        let mut taken = 0;
        for path in paths.iter().filter(|path| self.selects(path)) {
            let known = self.lock_repos().by_path.contains_key(path);
            if !known {
                self.start(Arc::new(self.known(path.clone())));
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Closes repositories from which no client was served for a while: their records stay known, and the next client opens
    /// them again out of this node's cache.
    pub fn close_idle(&self) {
        let closed = self.repos().iter().filter(|repo| repo.close_idle(IDLE)).count();
        if closed > 0 {
            tracing::debug!(repositories = closed, "closed: no client was served from them for a while");
        }
    }

    /// The keys of the repositories that are known here.
    fn keys(&self) -> HashSet<String> {
        self.lock_repos().by_path.keys().map(RepoPath::key).collect()
    }

    /// When a worker that has just started compares for the first time: spread over one interval.
    fn first_comparison(&self) -> Duration {
        self.settings.compare_every.mul_f64(rand::random::<f64>())
    }

    /// Waits until all workers have ended; `stop` must be cancelled before.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mirror(of {})", self.primary.name())
    }
}
