//! The newest generation of a repository: found in the bucket, and opened.
//!
//! Relies on: `store` for records, `snapshot` for opening them. Elsewhere: what is done about one that does not open
//! (`work::sync`).

use std::sync::Arc;
use std::time::Duration;

use gix_hash::ObjectId;

use crate::mirror::Mirror;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::{OpenError, Snapshot};
use crate::store::{Generation, StoreError};
use crate::text::chain;

/// How long blocks are carried into merged packs.
const CARRYING: Duration = Duration::from_secs(10);

/// Why the newest state that is published is not open.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The bucket could not be read.
    #[error("the bucket: {0}")]
    Store(#[from] StoreError),
    /// The published generation cannot be opened just now.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store's prefix belongs to the mirror of another host: paths alone do not tell their repositories apart.
    #[error(
        "this store holds the mirror of {found}: give each primary a prefix of its own (--store …/PREFIX)"
    )]
    OtherPrimary {
        /// The primary whose state is published there.
        found: String,
    },
    /// The node is shutting down.
    #[error("stopped")]
    Stopped,
}

impl Mirror {
    /// Opens the newest generation of the bucket, if it is newer than what is open.
    pub async fn refresh(&self, repo: &Repo) -> Result<Option<Arc<Snapshot>>, NotFound> {
        match self.newest(repo).await? {
            Some(generation) => match self.open(repo, generation).await {
                Ok(snapshot) => Ok(Some(snapshot)),
                Err(e) => {
                    if matches!(e, OpenError::Older { .. }) {
                        // A sync builds its graphs again.
                        repo.ask();
                    }
                    Err(e.into())
                }
            },
            None => Ok(None),
        }
    }

    /// The newest published record; the one that is known, if none is newer. None also if the repository was taken out, or is
    /// gone at the primary.
    pub async fn newest(&self, repo: &Repo) -> Result<Option<Generation>, NotFound> {
        let newest = self.newest_record(repo).await?.filter(|newest| !newest.removed);
        if let Some(gone) = newest.as_ref().filter(|newest| newest.gone.is_some()) {
            repo.know(gone.clone());
            return Ok(None);
        }
        Ok(newest)
    }

    /// The same with the record that takes it out: what the next generation builds on.
    pub async fn newest_record(&self, repo: &Repo) -> Result<Option<Generation>, NotFound> {
        let newest = match repo.known() {
            Some(known) => {
                let newer = self.bucket.after(&repo.path, known.number).await?;
                newer.or_else(|| Some(Generation::clone(&known)))
            }
            None => self.bucket.newest(&repo.path).await?,
        };
        match newest {
            Some(found) if !self.is_ours_to_read(&found) => {
                Err(NotFound::OtherPrimary { found: found.primary })
            }
            newest => Ok(newest),
        }
    }

    /// Says whether a record is one of this node's primary.
    pub(super) fn is_ours_to_read(&self, found: &Generation) -> bool {
        self.bucket.is_record_of(&found.primary, &self.primary.name())
    }

    /// Reads what is published of a repository and opens nothing. Says whether it was taken out of the mirror.
    pub async fn look_up(&self, repo: &Repo) -> Result<bool, NotFound> {
        let newest = self.newest_record(repo).await?;
        let is_removed = newest.as_ref().is_some_and(|newest| newest.removed);
        newest.into_iter().filter(|newest| !newest.removed).for_each(|newest| repo.know(newest));
        Ok(is_removed)
    }

    /// Learns what is published of a repository that is compared for the first time: the record, unless it is known, or the
    /// snapshot where few are open. What fails is left to whoever needs it.
    pub async fn learn(&self, repo: &Repo) {
        if self.has_few_open() {
            let _ = self.refresh(repo).await;
        } else if repo.known().is_none() {
            let _ = self.look_up(repo).await;
        }
    }

    /// Opens a generation, unless it or a newer one is open; what is wrong with its data is reported.
    pub async fn open(&self, repo: &Repo, generation: Generation) -> Result<Arc<Snapshot>, OpenError> {
        let open = repo.snapshot();
        self.open_upon(repo, generation, open).await
    }

    /// The same for a client that waits: what it is likely to read next is fetched meanwhile.
    pub(super) async fn open_for_client(
        &self,
        repo: &Repo,
        generation: Generation,
    ) -> Result<Arc<Snapshot>, OpenError> {
        if repo.snapshot().is_none() && repo.unless_purged(generation.number, || {}) {
            self.fetch_ahead(&generation);
        }
        let snapshot = self.open(repo, generation).await?;
        snapshot.keep_ahead();
        Ok(snapshot)
    }

    /// The same, upon an older snapshot that may not be open any more.
    pub(super) async fn open_upon(
        &self,
        repo: &Repo,
        generation: Generation,
        older: Option<Arc<Snapshot>>,
    ) -> Result<Arc<Snapshot>, OpenError> {
        if let Some(open) = older.clone().filter(|open| open.generation.number >= generation.number) {
            return Ok(open);
        }
        let number = generation.number;
        if !repo.unless_purged(number, || self.local.allow(generation.blobs())) {
            return Err(OpenError::Purged { number });
        }
        match Snapshot::open(&self.local, generation.clone(), older.clone()).await {
            Ok(snapshot) => {
                let snapshot = repo.install(carried(older, Arc::new(snapshot)).await);
                self.was_opened(&snapshot);
                Ok(snapshot)
            }
            Err(e) => {
                if matches!(e, OpenError::Older { .. }) {
                    repo.note_outdated(generation.number);
                }
                if repo.report_damage(&generation, &e) {
                    tracing::error!(repo = %repo.path, error = chain(&e), "stored data is missing or damaged");
                }
                Err(e)
            }
        }
    }

    /// Waits until the published state holds all of `oids`, within `limit`: first another node's work is looked for,
    /// then the primary is asked. `None`: it does not, and the primary has to answer.
    pub async fn catch_up(&self, repo: &Repo, oids: &[ObjectId], limit: Duration) -> Option<Arc<Snapshot>> {
        let holds = |snapshot: Option<Arc<Snapshot>>| {
            snapshot.filter(|s| oids.iter().all(|o| s.stack.lookup(o).is_some()))
        };
        let work = async {
            if let Ok(snapshot) = self.refresh(repo).await
                && let Some(snapshot) = holds(snapshot)
            {
                return Some(snapshot);
            }
            let ticket = repo.ask();
            repo.settled(ticket).await;
            holds(repo.snapshot())
        };
        tokio::time::timeout(limit, work).await.ok().flatten()
    }
}

/// Fills the cache with what `snapshot` has in merged packs and `older` in the packs before. Where both have the same refs
/// nobody waits for the newer one, and clients go on with the older one meanwhile; else it is done beside them.
async fn carried(older: Option<Arc<Snapshot>>, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
    let Some(older) = older else { return snapshot };
    let is_awaited = older.generation.manifest_digest != snapshot.generation.manifest_digest;
    let newer = Arc::clone(&snapshot);
    let end = std::time::Instant::now() + CARRYING;
    let carrying = crate::threads::spawn_blocking(move || {
        let blocks = newer.carry_from(&older, end);
        if blocks > 0 {
            tracing::debug!(repo = %newer.generation.repo, blocks, "carried into merged packs");
        }
    });
    if !is_awaited {
        // It only fills a cache.
        let _ = carrying.await;
    }
    snapshot
}
