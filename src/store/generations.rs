//! Publishing and finding generations: the only place where a repository's published state changes.
//!
//! A generation is created under the number after its parent's and never changed, so readers need no lock, exactly one
//! writer wins each number, and a crash leaves either the old state or the new one. The highest number is the state.
//! Relies on: blobs stored before the record that names them. Elsewhere: when to publish ([`crate::mirror`]).

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::bucket::Created;
use super::generation::{folder, key, number_of};
use super::{BlobRef, Bucket, Generation, StoreError};
use crate::git::path::RepoPath;

/// How long a node may go on from what it knows about a repository without listing. Far below the time for which old
/// generations are kept (a day), so that the number after a known one cannot have been used and collected meanwhile.
const KNOWLEDGE_LASTS: Duration = Duration::from_secs(3600);

/// Direct reads of following numbers before a listing is cheaper.
const STEPS: u64 = 8;

/// Repositories looked up at once by [`Bucket::repos`].
const LOOKUPS: usize = 16;

/// Who won a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// The record is published.
    Won,
    /// Another writer's record has this number, or a higher one; here it is. Ours is not published and never will be:
    /// start again from [`Bucket::newest`].
    Lost(Box<Generation>),
}

impl Bucket {
    /// Creates the record under its number. Its blobs must be stored already.
    ///
    /// An error that [is transient](StoreError::is_transient) leaves the outcome open: publishing the same record again,
    /// with the same `writer`, settles it.
    pub async fn publish(&self, generation: &Generation) -> Result<Publish, StoreError> {
        let repo = generation.repo.key();
        let at = key(&repo, generation.number);
        let bytes = Bytes::from(generation.encode());
        // A record that its own reader would turn down must not take a number.
        Generation::decode(&at, &bytes, &repo, generation.number)?;
        if let Created::Other(found) = self.create(&at, bytes).await? {
            return Ok(Publish::Lost(Box::new(Generation::decode(&at, &found, &repo, generation.number)?)));
        }
        if !self.knows_newest(&repo) {
            // A writer that slept long may have created a number that was used and collected while it slept. Readers
            // never see such a record, since they take the highest number; the writer must not believe in it either.
            if let Some(newest) = self.newest(&generation.repo).await?
                && newest.number > generation.number
            {
                return Ok(Publish::Lost(Box::new(newest)));
            }
        }
        self.know(&repo);
        Ok(Publish::Won)
    }

    /// The current generation of a repository, by a listing and one read; none if it was never published.
    pub async fn newest(&self, repo: &RepoPath) -> Result<Option<Generation>, StoreError> {
        let name = repo.key();
        self.retrying(|| async {
            let asked = Instant::now();
            let found = match self.newest_number(&name).await? {
                None => None,
                Some(number) => Some(self.get(repo, number).await?.ok_or_else(|| {
                    // Collected in between, so there is a newer one.
                    StoreError::unavailable(
                        format!("list {}", folder(&name)),
                        "it shows what is not there any more",
                    )
                })?),
            };
            self.know_since(&name, asked);
            Ok(found)
        })
        .await
    }

    /// The current generation if it is newer than number `known`: usually one read that finds nothing. 0 means that none
    /// is known.
    pub async fn after(&self, repo: &RepoPath, known: u64) -> Result<Option<Generation>, StoreError> {
        let name = repo.key();
        if known == 0 || !self.knows_newest(&name) {
            return Ok(self.newest(repo).await?.filter(|newest| newest.number > known));
        }
        let mut last = None;
        for number in known + 1..=known.saturating_add(STEPS) {
            let asked = Instant::now();
            match self.get(repo, number).await? {
                Some(found) => last = Some(found),
                None => {
                    self.know_since(&name, asked);
                    return Ok(last);
                }
            }
        }
        self.newest(repo).await
    }

    /// One generation by number, if it is there.
    pub async fn get(&self, repo: &RepoPath, number: u64) -> Result<Option<Generation>, StoreError> {
        let name = repo.key();
        let at = key(&name, number);
        let mut last = None;
        for _ in 0..2 {
            let bytes = match self.read(&at).await {
                Ok(bytes) => bytes,
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            match Generation::decode(&at, &bytes, &name, number) {
                Ok(found) => return Ok(Some(found)),
                // Once more: it may have been spoilt on the way.
                Err(error @ StoreError::Damaged { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| StoreError::damaged(at, "not a record")))
    }

    /// The paths of all repositories with at least one generation, sorted. Costs one listing and two requests for each.
    pub async fn repos(&self) -> Result<Vec<RepoPath>, StoreError> {
        let mut repos: Vec<_> = self.current().await?.into_iter().map(|generation| generation.repo).collect();
        repos.sort();
        Ok(repos)
    }

    /// The current generation of every repository, in no order. One whose records cannot be read is left out with a
    /// warning: its trouble is not the others'.
    pub async fn current(&self) -> Result<Vec<Generation>, StoreError> {
        let root = Path::from("repos");
        let list = || async {
            let listing = self.inner.store.list_with_delimiter(Some(&self.at(&root))).await;
            listing.map_err(|error| self.sort("list", &root, error))
        };
        let listing = self.retrying(list).await?;
        // Collected here: a borrowing iterator held over the waits below would tie the future to one thread.
        let names: Vec<String> = listing
            .common_prefixes
            .iter()
            .filter_map(|folder| folder.filename().map(str::to_owned))
            .collect();
        let found: Vec<Option<Generation>> = futures::stream::iter(names)
            .map(|name| async move {
                match self.newest_of(&name).await {
                    Err(error) if !error.is_transient() => {
                        tracing::warn!(
                            repo = name,
                            error = error.chain(),
                            "cannot read this repository's generations"
                        );
                        Ok(None)
                    }
                    other => other,
                }
            })
            .buffer_unordered(LOOKUPS)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The blobs of a generation that are not in the bucket with their recorded length; one small request for each.
    pub async fn missing(&self, generation: &Generation) -> Result<Vec<BlobRef>, StoreError> {
        let found: Vec<Option<BlobRef>> = futures::stream::iter(generation.blobs())
            .map(|blob| async move {
                match self.head(&blob).await {
                    Ok(()) => Ok(None),
                    Err(error) if error.is_loss() => Ok(Some(blob)),
                    Err(error) => Err(error),
                }
            })
            .buffered(LOOKUPS)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Like [`Bucket::newest`], for a repository whose path is not known, only its folder.
    async fn newest_of(&self, name: &str) -> Result<Option<Generation>, StoreError> {
        let Some(number) = self.retrying(|| self.newest_number(name)).await? else { return Ok(None) };
        let at = key(name, number);
        match self.read(&at).await {
            Ok(bytes) => Generation::decode(&at, &bytes, name, number).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The highest number in a repository's folder.
    async fn newest_number(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let folder = folder(name);
        let mut listing = self.inner.store.list(Some(&self.at(&folder)));
        let mut newest = None;
        while let Some(entry) = listing.try_next().await.map_err(|error| self.sort("list", &folder, error))? {
            newest = newest.max(number_of(&entry.location));
            if self.inner.ordered && newest.is_some() {
                break;
            }
        }
        Ok(newest)
    }

    fn knows_newest(&self, name: &str) -> bool {
        let known = self.inner.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.get(name).is_some_and(|since| since.elapsed() < KNOWLEDGE_LASTS)
    }

    fn know(&self, name: &str) {
        self.know_since(name, Instant::now());
    }

    fn know_since(&self, name: &str, since: Instant) {
        let mut known = self.inner.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.insert(name.to_owned(), since);
    }
}
