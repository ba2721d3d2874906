//! Publishing and finding generations: the only place where a repository's published state changes.
//!
//! A generation is created under the number after its parent's and never changed, so readers need no lock, exactly one
//! writer wins each number, and a crash leaves either the old state or the new one. The highest number is the state.
//! Relies on: blobs stored before the record that names them. Elsewhere: when to publish ([`crate::mirror`]).

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::bucket::Created;
use super::generation::{MOST_NUMBER, folder, key, number_of};
use super::{BlobId, Bucket, Generation, StoreError};
use crate::boot::Boot;
use crate::git::path::RepoPath;

/// How long a node may go on from what it knows about a repository without listing. Below the time for which every record is
/// kept, so that the number after a known one cannot have been used and collected meanwhile.
const KNOWLEDGE_LASTS: Duration = Duration::from_secs(3600);

/// How long a record is kept at least after the one that followed it was stored.
pub const RECORDS_KEPT: Duration = Duration::from_secs(7200);

/// Direct reads of following numbers before a listing is cheaper.
const STEPS: u64 = 8;

/// How long one listing of all repositories may take: somebody may have put millions of names there.
const LISTING: Duration = Duration::from_secs(120);

/// The most repositories of one bucket.
const MOST_REPOS: usize = 1_000_000;

/// The most entries of a repository's folder that are no generations and are passed over.
const MOST_STRAYS: usize = 10_000;

/// How many records in a row that cannot be read are passed over.
const MOST_SPOILT: usize = 64;

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
        if generation.number > MOST_NUMBER {
            return Err(StoreError::damaged(
                folder(&repo),
                "the newest generation has the last number there is, so another hand wrote it: remove the records of this \
                 folder that are not the mirror's",
            ));
        }
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

    /// Like [`Bucket::publish`], but under the next number if what has this one is no record: it was spoilt, or another hand
    /// put it there, and must not keep the repository from being published. The record then has that number.
    pub async fn publish_next(&self, generation: &mut Generation) -> Result<Publish, StoreError> {
        let repo = generation.repo.key();
        for _ in 0..MOST_SPOILT {
            let error = match self.publish(generation).await {
                Err(error @ StoreError::Damaged { .. }) if generation.number < MOST_NUMBER => error,
                published => return published,
            };
            tracing::warn!(repo = %generation.repo, error = error.chain(), "this number is taken by what is no record");
            if generation.parent.is_none() {
                // The chain goes on from what is there; what is too long to be read counts as nothing.
                let spoilt = self.read(&key(&repo, generation.number)).await;
                generation.parent = Some(BlobId::of(&spoilt.unwrap_or_default()));
            }
            generation.number += 1;
        }
        self.publish(generation).await
    }

    /// The current generation of a repository, by a listing and one read; none if it was never published.
    pub async fn newest(&self, repo: &RepoPath) -> Result<Option<Generation>, StoreError> {
        let name = repo.key();
        self.retrying(|| async {
            let asked = Boot::now();
            let (mut found, mut spoilt) = (None, None);
            let numbers = self.newest_numbers(&name).await?;
            for number in &numbers {
                match self.get(repo, *number).await {
                    Ok(Some(record)) => {
                        found = Some(record);
                        break;
                    }
                    // Collected in between, so there is a newer one.
                    Ok(None) => {
                        let what = format!("list {}", folder(&name));
                        return Err(StoreError::unavailable(what, "it shows what is not there any more"));
                    }
                    Err(error @ StoreError::Damaged { .. }) => spoilt = pass_over(spoilt, error),
                    Err(error) => return Err(error),
                }
            }
            // Where all that is there was looked at, it is as if nothing had been published.
            if let (None, Some(error), MOST_SPOILT..) = (&found, spoilt, numbers.len()) {
                return Err(error);
            }
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
        for number in known.saturating_add(1)..=known.saturating_add(STEPS) {
            let asked = Boot::now();
            match self.get(repo, number).await {
                Ok(Some(found)) => last = Some(found),
                Ok(None) => {
                    self.know_since(&name, asked);
                    return Ok(last);
                }
                Err(error @ StoreError::Damaged { .. }) => drop(pass_over(None, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(self.newest(repo).await?.filter(|newest| newest.number > known))
    }

    /// The keys of records above `number`, the newest that can be read, that cannot: they were spoilt, or are no records.
    pub async fn spoilt_above(&self, repo: &RepoPath, number: u64) -> Result<Vec<String>, StoreError> {
        let name = repo.key();
        let mut spoilt = Vec::new();
        for above in self.retrying(|| self.newest_numbers(&name)).await? {
            if above <= number {
                break;
            }
            match self.get(repo, above).await {
                Err(StoreError::Damaged { key, .. }) => spoilt.push(key),
                // Published meanwhile, or written by a newer program.
                Ok(_) | Err(StoreError::Newer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(spoilt)
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
        let mut repos: Vec<_> = self.current().await?.into_iter().map(|newest| newest.repo).collect();
        repos.sort();
        Ok(repos)
    }

    /// The current generation of every repository that was not taken out, in no order. One whose records cannot be read is left out with a
    /// warning: its trouble is not the others'.
    pub async fn current(&self) -> Result<Vec<Generation>, StoreError> {
        self.current_of(|_| true).await
    }

    /// The same but for those whose keys are `known`, which cost no request of their own.
    pub async fn current_beside(&self, known: &HashSet<String>) -> Result<Vec<Generation>, StoreError> {
        self.current_of(|key| !known.contains(key)).await
    }

    /// The same of the repositories whose keys are asked for.
    pub(super) async fn current_of(
        &self,
        asked: impl Fn(&str) -> bool,
    ) -> Result<Vec<Generation>, StoreError> {
        let root = Path::from("repos");
        let list = || async {
            let listing = self.inner.store.list_with_delimiter(Some(&self.at(&root))).await;
            listing.map_err(|error| self.sort("list", &root, error))
        };
        let listing = tokio::time::timeout(LISTING, self.retrying(list)).await;
        let listing =
            listing.map_err(|_| StoreError::unavailable("list repos", "it shows names without end"))??;
        // Collected here: a borrowing iterator held over the waits below would tie the future to one thread.
        let names: Vec<String> = listing
            .common_prefixes
            .iter()
            .filter_map(|folder| folder.filename().filter(|name| is_key(name)).map(str::to_owned))
            .collect();
        let strays = listing.common_prefixes.len() - names.len();
        let count = names.len();
        let names = names.into_iter().filter(|name| asked(name)).collect::<Vec<_>>();
        drop(listing);
        if strays > 0 {
            tracing::warn!(strays, "`repos` holds folders that are no repositories; they are passed over");
        }
        if count > MOST_REPOS {
            return Err(StoreError::damaged("repos", format!("{count} repositories")));
        }
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
        Ok(found.into_iter().flatten().filter(|newest| !newest.removed).collect())
    }

    /// Like [`Bucket::newest`], for a repository whose path is not known, only its folder.
    async fn newest_of(&self, name: &str) -> Result<Option<Generation>, StoreError> {
        let mut spoilt = None;
        for number in self.retrying(|| self.newest_numbers(name)).await? {
            let at = key(name, number);
            let read = match self.read(&at).await {
                Ok(bytes) => Generation::decode(&at, &bytes, name, number),
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => Err(error),
            };
            match read {
                Ok(record) => return Ok(Some(record)),
                Err(error @ StoreError::Damaged { .. }) => spoilt = pass_over(spoilt, error),
                Err(error) => return Err(error),
            }
        }
        spoilt.map_or(Ok(None), Err)
    }

    /// The highest numbers in a repository's folder, the highest first. Numbers that no generation may have are passed over:
    /// a record under one would keep everybody from publishing.
    async fn newest_numbers(&self, name: &str) -> Result<Vec<u64>, StoreError> {
        let folder = folder(name);
        let mut listing = self.inner.store.list(Some(&self.at(&folder)));
        let (mut newest, mut strays) = (BTreeSet::new(), 0);
        while let Some(entry) = listing.try_next().await.map_err(|error| self.sort("list", &folder, error))? {
            // Only what lies in the folder itself.
            let here =
                self.below(&entry.location).filter(|at| at.prefix_matches(&folder) && at.parts_count() == 4);
            match here.as_ref().and_then(number_of) {
                Some(number) => {
                    newest.insert(number);
                    if newest.len() > MOST_SPOILT {
                        newest.pop_first();
                    }
                }
                None => strays += 1,
            }
            if self.inner.ordered && newest.len() == MOST_SPOILT {
                break;
            }
            if strays > MOST_STRAYS {
                return Err(StoreError::damaged(folder, "it is full of what are no generations"));
            }
        }
        if strays > 0 {
            tracing::debug!(%folder, strays, "names that no generation has are passed over");
        }
        Ok(newest.into_iter().rev().collect())
    }

    fn knows_newest(&self, name: &str) -> bool {
        let known = self.inner.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.get(name).is_some_and(|since| since.elapsed() < KNOWLEDGE_LASTS)
    }

    fn know(&self, name: &str) {
        self.know_since(name, Boot::now());
    }

    fn know_since(&self, name: &str, since: Boot) {
        let mut known = self.inner.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.insert(name.to_owned(), since);
    }
}

/// Tells of the first record that cannot be read, and keeps its error in case that there is none that can.
fn pass_over(first: Option<StoreError>, error: StoreError) -> Option<StoreError> {
    if first.is_none() {
        tracing::warn!(error = error.chain(), "this is no generation; it is passed over");
    }
    first.or(Some(error))
}

/// Says whether a folder's name is what a repository's path hashes to.
fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::path::RepoPath;
    use crate::store::generation::tests::sample;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    async fn put(bucket: &Bucket, at: Path, bytes: &[u8]) {
        bucket.overwrite(&at, bytes.to_vec().into()).await.unwrap();
    }

    /// The directory of a store lists in no order, S3 newest first.
    async fn buckets() -> (tempfile::TempDir, Vec<Bucket>) {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::store::StoreOptions::default();
        let directory = Bucket::open(dir.path().to_str().unwrap(), &options).await.unwrap();
        let memory = Bucket::open("memory:///", &options).await.unwrap();
        let unordered = Bucket::over(Arc::new(InMemory::new()), "prefix");
        (dir, vec![directory, memory, unordered])
    }

    #[tokio::test]
    async fn what_is_no_record_keeps_nobody_from_reading_and_publishing() {
        let (_dir, buckets) = buckets().await;
        for bucket in buckets {
            let first = sample();
            let (repo, name) = (first.repo.clone(), first.repo.key());
            bucket.publish(&first).await.unwrap();
            let first = bucket.newest(&repo).await.unwrap().unwrap();
            // Another hand: garbage under the next numbers and at the ends of the range, strange names, foreign records.
            let forged = Generation { number: u64::MAX, parent: Some(first.id()), ..first.clone() };
            put(&bucket, key(&name, u64::MAX), &forged.encode()).await;
            put(&bucket, key(&name, 0), b"x").await;
            put(&bucket, key(&name, MOST_NUMBER + 1), b"x").await;
            put(&bucket, key(&name, 2), b"garbage").await;
            let other =
                Generation { repo: RepoPath::parse("other.git").unwrap(), number: 3, ..first.clone() };
            put(&bucket, key(&name, 3), &Generation { parent: Some(first.id()), ..other }.encode()).await;
            put(&bucket, folder(&name).join("x"), b"x").await;
            put(&bucket, folder(&name).join("sub").join(format!("{:020}", 5)), b"x").await;
            put(&bucket, Path::from("repos/not-a-hash/gen/1"), b"x").await;
            let with = |known| bucket.after(&repo, known);
            assert_eq!(bucket.newest(&repo).await.unwrap().unwrap().number, 1);
            assert_eq!(with(1).await.unwrap(), None);
            assert_eq!(bucket.repos().await.unwrap(), std::slice::from_ref(&repo));
            let mut second =
                Generation { number: 2, parent: Some(first.id()), writer: "b".into(), ..first.clone() };
            assert_eq!(bucket.publish_next(&mut second).await.unwrap(), Publish::Won);
            assert_eq!((second.number, second.parent), (4, Some(first.id())));
            assert_eq!(with(1).await.unwrap().unwrap().number, 4);
            assert_eq!(bucket.newest(&repo).await.unwrap().unwrap().number, 4);
            assert_eq!(with(u64::MAX).await.unwrap(), None, "no number is behind the last");
        }
    }

    #[tokio::test]
    async fn a_first_record_that_is_none_is_followed() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "");
        let mut first = sample();
        let (repo, name) = (first.repo.clone(), first.repo.key());
        put(&bucket, key(&name, 1), b"garbage").await;
        assert_eq!(bucket.newest(&repo).await.unwrap(), None);
        assert_eq!(bucket.repos().await.unwrap(), []);
        assert_eq!(bucket.publish_next(&mut first).await.unwrap(), Publish::Won);
        assert_eq!((first.number, first.parent), (2, Some(BlobId::of(b"garbage"))));
        assert_eq!(bucket.newest(&repo).await.unwrap().unwrap().number, 2);
    }

    #[tokio::test]
    async fn a_record_without_end_is_not_read() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "");
        let first = sample();
        bucket.publish(&first).await.unwrap();
        let long = vec![b' '; crate::store::bucket::MOST_RECORD as usize + 1];
        put(&bucket, key(&first.repo.key(), 2), &long).await;
        assert_eq!(bucket.newest(&first.repo).await.unwrap().unwrap().number, 1);
        assert_eq!(bucket.repos().await.unwrap().len(), 1);
    }
}
