//! Opening the repositories that the bucket holds, for clients that wait and behind those that do not.
//!
//! A repository is opened once however many ask, by a task of its own: a client that goes away or stops waiting does not
//! stop it, and the next client waits for the rest only. Relies on: `store` for what is published, `snapshot` for opening
//! it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::newest::NotFound;
use crate::mirror::repo::Repo;
use crate::store::StoreError;

/// How long "the bucket has no such repository" counts before the bucket is listed again.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// How long a request waits for the bucket to say whether it has a repository.
const BUCKET_PATIENCE: Duration = Duration::from_secs(5);
/// At most this many absent paths are remembered; past it all are forgotten.
const MAX_ABSENT: usize = 10_000;

/// How far an opening is.
#[derive(Clone)]
pub(super) enum Opening {
    /// The bucket has not said yet whether it has the repository.
    Looking,
    /// It has it; its layers are being opened.
    Found,
    /// It has ended.
    Done(Result<Option<Arc<Repo>>, Arc<NotFound>>),
}

/// Why a repository is not open.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotOpen {
    /// The bucket has it, and it takes longer than a client should wait.
    #[error("it is being opened")]
    Opening,
    /// The bucket could not be read.
    #[error(transparent)]
    Failed(Arc<NotFound>),
}

impl From<StoreError> for NotOpen {
    fn from(error: StoreError) -> Self {
        Self::Failed(Arc::new(error.into()))
    }
}

impl Mirror {
    /// What is known of a repository without a look into the bucket. The outer `None`: only the bucket can tell. The inner
    /// one: the bucket did not have it just now.
    ///
    /// A repository without a snapshot is one that was never published: it is being synced for the first time.
    pub fn at_hand(&self, path: &RepoPath) -> Option<Option<Arc<Repo>>> {
        let known = self.lock_repos().get(path).cloned();
        let is_open = known.as_ref().is_some_and(|repo| {
            repo.touch();
            repo.snapshot().is_some()
        });
        let told = is_open || self.was_absent(path);
        told.then_some(known)
    }

    /// The repository, if this node or the bucket has it. A first question about a path costs one listing.
    ///
    /// Waits until it is open, as long as a client would wait for a sync (`sync_wait`).
    pub async fn find(self: &Arc<Self>, path: &RepoPath) -> Result<Option<Arc<Repo>>, NotOpen> {
        if let Some(known) = self.at_hand(path) {
            return Ok(known);
        }
        let mut opening = self.open_once(path);
        let silent = |what: &str| StoreError::unavailable(format!("look for {path}"), what);
        // A client is waiting, and the primary would answer: a bucket that is silent is given little time, and then none
        // for a while.
        let answered = opening.wait_for(|state| !matches!(state, Opening::Looking));
        match tokio::time::timeout(BUCKET_PATIENCE, answered).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(silent("the task that looked ended early").into()),
            Err(_) => {
                self.remember_absent(path);
                return Err(silent("it did not answer in time").into());
            }
        }
        let done = opening.wait_for(|state| matches!(state, Opening::Done(_)));
        match tokio::time::timeout(self.sync_wait, done).await {
            Ok(Ok(state)) => match &*state {
                Opening::Done(result) => result.clone().map_err(NotOpen::Failed),
                Opening::Looking | Opening::Found => Err(NotOpen::Opening),
            },
            Ok(Err(_)) => Err(silent("the task that opened it ended early").into()),
            Err(_) => Err(NotOpen::Opening),
        }
    }

    /// Joins the task that opens a repository, or starts it.
    fn open_once(self: &Arc<Self>, path: &RepoPath) -> watch::Receiver<Opening> {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = opening.get(path) {
            return state.clone();
        }
        let (tell, state) = watch::channel(Opening::Looking);
        opening.insert(path.clone(), state.clone());
        let (mirror, path) = (Arc::clone(self), path.clone());
        self.tasks.spawn(async move {
            let work = mirror.stop.run_until_cancelled(mirror.look_into_bucket(&path, &tell)).await;
            mirror.opening.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
            tell.send_replace(Opening::Done(work.unwrap_or(Err(NotFound::Stopped)).map_err(Arc::new)));
        });
        state
    }

    async fn look_into_bucket(
        self: &Arc<Self>,
        path: &RepoPath,
        tell: &watch::Sender<Opening>,
    ) -> Result<Option<Arc<Repo>>, NotFound> {
        if let Some(known) = self.at_hand(path) {
            return Ok(known);
        }
        let known = self.lock_repos().get(path).cloned();
        let repo = known.clone().unwrap_or_else(|| Arc::new(self.known(path.clone())));
        let generation = match self.newest_record(&repo).await? {
            Some(removed) if removed.removed => {
                if let Some(known) = known.filter(|known| !known.is_wanted()) {
                    self.take_out(&known);
                }
                None
            }
            Some(gone) if gone.gone.is_some() => {
                repo.know(gone);
                None
            }
            newest => newest,
        };
        let Some(generation) = generation else {
            self.remember_absent(path);
            return Ok(self.lock_repos().get(path).cloned());
        };
        tell.send_replace(Opening::Found);
        // Entered before it is opened: it may have been entered meanwhile, and there must be only one.
        let repo = self.start(repo);
        match self.open_for_client(&repo, generation).await {
            Ok(_) => Ok(Some(repo)),
            Err(e) => {
                // Its worker repairs it or tries again.
                repo.ask();
                Err(e.into())
            }
        }
    }

    fn remember_absent(&self, path: &RepoPath) {
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        if absent.len() >= MAX_ABSENT {
            absent.clear();
        }
        absent.insert(path.clone(), Instant::now());
    }

    fn was_absent(&self, path: &RepoPath) -> bool {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.get(path).is_some_and(|t| t.elapsed() < ABSENT_FOR)
    }
}
