//! The heart: the repositories of this node, and what is known of each.
//!
//! - [`repo`]: a repository's newest snapshot. [`condition`]: what its worker knows. [`snapshot`]: one published state, open for reading; `files`: what it is opened from.
//!   [`blocks`]: the bytes of its packs; [`carry`](mod@carry): the cache of them over a merge. [`damage`]: what is wrong with them. [`evidence`]: what differed from the primary.
//! - [`opening`]: what the bucket holds is opened; `ahead`: what is read after that. [`newest`]: the newest record; `looks`: clients share what it costs to find it. `memory`: what of it outlives a restart.
//! - [`newcomers`]: how many repositories are taken up. `names`: under which names.
//! - [`remove`](mod@remove): taking one out. [`gone`]: one that the primary does not have any more. [`orders`]: what is to be forgotten at once. [`export`]: a plain repository out of the bucket. [`health`]: what a node says of itself in the bucket. [`uses`]: when kept answers were last used.
//!   `farm`: the other nodes and what they found. `division`: which node compares which repository.
//!   `closing`: what is open is bounded.
//!   [`progress`]: how far a sync is. [`standing`]: how a repository stands. [`measure`](mod@measure): gauges.
//!
//! Relies on: `primary`, `local`, `store` and `pack`. Elsewhere: what
//! changes the bucket (`work`), HTTP and clients (`serve`).

mod ahead;
pub mod answers;
pub mod blocks;
pub mod carry;
mod closing;
pub mod condition;
pub mod damage;
pub mod division;
pub mod evidence;
pub mod export;
mod farm;
mod files;
pub mod gone;
pub mod health;
mod looks;
pub mod measure;
mod memory;
pub mod names;
pub mod newcomers;
pub mod newest;
pub mod opening;
pub mod orders;
pub mod progress;
pub mod remove;
pub mod repo;
pub mod snapshot;
pub mod standing;
pub mod uses;
pub mod wishes;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ConfigError, Selection, Settings};
use crate::git::path::RepoPath;
use crate::local::Local;
use crate::mirror::farm::Farm;
use crate::mirror::names::{Repos, folded, with_suffix};
use crate::mirror::newcomers::Newcomers;
use crate::mirror::newest::NotFound;
use crate::mirror::opening::Opening;
use crate::mirror::orders::Obeyed;
use crate::mirror::progress::{Step, Sync};
use crate::mirror::repo::Repo;
use crate::mirror::wishes::Wishes;
use crate::primary::{Grant, Naming, Primary};
use crate::store::{Bucket, StoreError, nonce};

/// How often a node tells the others what it knows.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often at the most, where comparisons are frequent: findings are heard of well within a round.
const BEAT_LEAST: Duration = Duration::from_secs(1);
/// At most this many repositories wait to be taken up; others come when they are asked for again.
const MOST_COMING: usize = 1000;
/// How long after a question without an answer the primary is asked again what kind of host it is.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The same after [`ENOUGH_QUESTIONS`].
const ASK_AGAIN_LATE: Duration = Duration::from_secs(600);
/// After so many questions without an answer the primary counts as a host that does not ignore case.
const ENOUGH_QUESTIONS: u32 = 3;

/// Everything a node knows and uses. Shared; all methods take `&self`.
pub struct Mirror {
    /// The shared objects.
    pub bucket: Bucket,
    /// This node's cache.
    pub local: Local,
    /// The other end.
    pub primary: Primary,
    /// How long a client waits for an opening.
    sync_wait: Duration,
    node: String,
    /// The pace of heartbeats and of comparisons.
    beat_every: Duration,
    compare_every: Duration,
    /// How long data stays in the bucket after it was named last.
    grace: Duration,
    farm: Mutex<Farm>,
    selection: Selection,
    /// The channel to `work` for repositories that are entered here, and its other end until it is taken.
    enter: mpsc::UnboundedSender<Arc<Repo>>,
    entered: Mutex<Option<mpsc::UnboundedReceiver<Arc<Repo>>>>,
    newcomers: Newcomers,
    wishes: Wishes,
    /// How the host names repositories; held while it is asked.
    naming: tokio::sync::Mutex<HostKnown>,
    repos: Mutex<Repos>,
    absent: Mutex<HashMap<RepoPath, Instant>>,
    /// Orders to forget that were obeyed.
    obeyed: Mutex<Obeyed>,
    /// Files of snapshots that were opened since those that are open were counted last, and those that were counted.
    opened: AtomicUsize,
    /// Repositories that are being opened.
    opening: Mutex<HashMap<RepoPath, watch::Receiver<Opening>>>,
    /// Woken at each step of a sync.
    news: Arc<Notify>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is known of the host's naming, and since when and how often it was asked in vain.
#[derive(Default)]
struct HostKnown {
    naming: Option<Naming>,
    failed: Option<Instant>,
    failures: u32,
}

impl Mirror {
    /// Puts the parts together, with what `settings` say of repositories. Nothing runs yet. Each repository that is entered
    /// later is sent to `work` ([`Mirror::entered`]).
    pub fn new(
        settings: &Settings,
        bucket: Bucket,
        local: Local,
        primary: Primary,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, ConfigError> {
        let (enter, entered) = mpsc::unbounded_channel();
        Ok(Arc::new(Self {
            sync_wait: settings.sync_wait,
            node: nonce(),
            beat_every: (settings.compare_every / 4).clamp(BEAT_LEAST, HEARTBEAT).min(settings.compare_every),
            compare_every: settings.compare_every,
            grace: settings.gc.grace,
            farm: Mutex::default(),
            selection: settings.selection()?,
            enter,
            entered: Mutex::new(Some(entered)),
            wishes: Wishes::default(),
            newcomers: Newcomers::new(settings.max_new_per_minute, settings.max_repositories),
            naming: tokio::sync::Mutex::default(),
            repos: Mutex::default(),
            absent: Mutex::default(),
            obeyed: Mutex::default(),
            opened: AtomicUsize::new(0),
            opening: Mutex::default(),
            news: Arc::default(),
            tasks: TaskTracker::new(),
            bucket,
            local,
            primary,
            stop,
        }))
    }

    /// The repositories as they are entered, for `work`; `None` if it was taken already.
    pub fn entered(&self) -> Option<mpsc::UnboundedReceiver<Arc<Repo>>> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How often a node tells the others what it knows, where nothing happens.
    pub fn beat_every(&self) -> Duration {
        self.beat_every
    }

    /// Waits until a sync has begun, goes on to its next step, or has ended.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Whether no sync runs that does more than compare, and no merge of layers.
    pub fn is_idle(&self) -> bool {
        self.syncs().is_empty() && self.repos().iter().all(|repo| repo.compaction().shown().is_none())
    }

    /// The syncs that run and do more than compare, by repository.
    pub fn syncs(&self) -> Vec<(String, Sync)> {
        let running = |repo: &Arc<Repo>| {
            let sync = repo.progress().shown()?;
            let is_more = sync.phase > Step::Asking || repo.known().is_none();
            is_more.then(|| (repo.path.to_string(), sync))
        };
        self.repos().iter().filter_map(running).collect()
    }

    /// Says whether the settings select this repository for mirroring.
    pub fn selects(&self, path: &RepoPath) -> bool {
        self.selection.selects(self.lock_repos().own(path).as_str())
    }

    /// The repositories that this node mirrors, by their paths.
    pub fn repos(&self) -> Vec<Arc<Repo>> {
        self.lock_repos().by_path.values().cloned().collect()
    }

    /// The repository that this node mirrors under a path.
    pub fn repo(&self, path: &RepoPath) -> Option<Arc<Repo>> {
        self.lock_repos().by_path.get(path).cloned()
    }

    fn lock_repos(&self) -> std::sync::MutexGuard<'_, Repos> {
        self.repos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A grant that the primary gave for one spelling of a repository, as one for the name that the repository has here.
    ///
    /// Each spelling has grants of its own, for only the primary knows what it says to which.
    pub fn under_own_name(&self, grant: Grant) -> Grant {
        let (own, known) = {
            let repos = self.lock_repos();
            (repos.own(grant.repo()).clone(), repos.get(grant.repo()).cloned())
        };
        known.iter().for_each(|repo| repo.show());
        grant.known_as(own)
    }

    /// Takes note that the primary has shown a repository: it is opened, or its first sync starts, behind the request that
    /// named it and once however many ask. `None`: it is new here, and is taken up if there is room for it.
    pub fn adopt(self: &Arc<Self>, path: &RepoPath) -> Option<Arc<Repo>> {
        let known = self.lock_repos().get(path).cloned();
        known.iter().for_each(|repo| repo.show());
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
        // One at a time: of many requests with different spellings, the first asks the host and the others use its answer.
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
        let own = self.own_name(path, naming).await.inspect_err(|e| {
            tracing::warn!(repo = %path, error = %e, "not taken up: the bucket could not be listed");
        });
        Some(self.start(self.wanted(own.ok()?)))
    }

    /// The name under which a repository is stored, or would be, for those that ask for one by name.
    pub async fn name_of(&self, path: &RepoPath) -> Result<RepoPath, StoreError> {
        let naming = self.naming(&mut *self.naming.lock().await).await;
        self.own_name(path, naming.unwrap_or(Naming::Exact)).await
    }

    /// The same, where it is known how the host names repositories.
    async fn own_name(&self, path: &RepoPath, naming: Naming) -> Result<RepoPath, StoreError> {
        let Naming::AnyCase(interface) = naming else { return Ok(path.clone()) };
        // Another node, or an older version, may have published it under the spelling that it knew.
        let stored = self.bucket.current_beside(&self.keys()).await?;
        let alike =
            stored.into_iter().map(|newest| newest.repo).filter(|known| folded(known) == folded(path));
        if let Some(known) = alike.min_by_key(|known| (known != path, known != &with_suffix(known))) {
            return Ok(known);
        }
        // A spelling that every node would choose.
        let shown = with_suffix(path);
        let own = self.primary.own_spelling(&shown, interface).await;
        Ok(own.unwrap_or_else(|| RepoPath::parse(&shown.as_str().to_ascii_lowercase()).unwrap_or(shown)))
    }

    /// A repository that a client asked for.
    fn wanted(&self, path: RepoPath) -> Arc<Repo> {
        let repo = self.known(path);
        repo.want();
        Arc::new(repo)
    }

    /// How the host names repositories: asked once, and again after a while if it gave no answer. A host that never
    /// answers counts as one that does not ignore case.
    async fn naming(&self, asked: &mut HostKnown) -> Option<Naming> {
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

    /// Forgets a repository that its worker has given up.
    pub fn forget(&self, repo: &Arc<Repo>) {
        let mut repos = self.lock_repos();
        if repos.by_path.get(&repo.path).is_some_and(|known| Arc::ptr_eq(known, repo)) {
            repos.remove(&repo.path);
        }
    }

    /// Enters the repository, unless it is known already, and sends it to `work`.
    fn start(self: &Arc<Self>, repo: Arc<Repo>) -> Arc<Repo> {
        let mut repos = self.lock_repos();
        if let Some(known) = repos.get(&repo.path) {
            return Arc::clone(known);
        }
        repos.insert(Arc::clone(&repo));
        repo.progress().tell(Arc::clone(&self.news));
        // A node that only serves has no receiver.
        let _ = self.enter.send(Arc::clone(&repo));
        repo
    }

    /// Opens what the bucket holds already, so that comparisons begin without waiting for clients.
    pub async fn take_up_all(self: &Arc<Self>) -> Result<usize, NotFound> {
        // Repositories that are known here are not looked up: with thousands of them that is all but a few.
        let found = self.bucket.current_beside(&self.keys()).await?;
        let mut taken = 0;
        for newest in found.into_iter().filter(|newest| self.selects(&newest.repo)) {
            let known = self.lock_repos().get(&newest.repo).is_some();
            if !known {
                let repo = self.start(Arc::new(self.known(newest.repo.clone())));
                if self.is_ours_to_read(&newest) {
                    repo.know(newest);
                }
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// The keys of the repositories that are known here.
    fn keys(&self) -> HashSet<String> {
        self.lock_repos().by_path.keys().map(RepoPath::key).collect()
    }

    /// Waits until what runs behind requests has ended; `stop` must be cancelled before.
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
