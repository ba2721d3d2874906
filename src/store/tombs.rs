//! Marks on blobs that nobody names, between a collector that deletes and a writer that is about to name them again.
//!
//! `tombs/<sha256>.<kind>/marked` says since when a blob is unnamed, by the store's clock. `…/dying-<nonce>` is one collector's:
//! it is created before all newest records are read for the last time, and the blob is deleted only after that. A writer does
//! the same the other way round: it creates its record, and then looks for `dying` marks. So one of the two sees the other.
//! A mark has one creator and a name of its own, so nobody ever removes another's by mistake; one that is older than
//! [`MARK_IS_VOID`] is nobody's any more, since its collector deletes nothing that it marked longer than [`MARK_HOLDS`] ago.
//! A blob that this process stored itself a moment ago, where there was none, needs no look ([`Bucket::doubtful`]).
//! Elsewhere: the collector (`work::collect`); why this is enough (decision 15).

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;

use super::{BlobId, BlobKind, BlobRef, Bucket, Name, StoreError};
use crate::boot::Boot;

/// How long after marking a blob as dying a collector may delete it.
pub const MARK_HOLDS: Duration = Duration::from_secs(300);

/// A `dying` mark that has been there for so long is void: the time that it holds, and the quarter of an hour after which S3 turns
/// down a request that was signed before it.
pub const MARK_IS_VOID: Duration = Duration::from_secs(1800);

/// How often a writer looks whether a mark has gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A blob stored longer ago than this is looked at before it is named, whatever the grace is.
pub const FRESH_FOR: Duration = Duration::from_secs(900);

/// For how long it is remembered that a blob is about to be deleted, for uploads that have begun before.
const LONGEST_UPLOAD: Duration = Duration::from_secs(86_400);

/// Fresh blobs that are remembered; beyond it all are looked at.
const MOST_FRESH: usize = 100_000;

/// The most marks that are looked at by one listing.
const MOST_MARKS: usize = 4_000_000;

/// The marks of one blob.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tomb {
    /// Since when it is known to be unnamed, by the store's clock.
    pub marked: Option<SystemTime>,
    /// Collectors that are deleting it: their nonces, and since when.
    pub dying: Vec<(String, SystemTime)>,
}

const DYING: &str = "dying-";

fn folder(name: Name) -> Path {
    Path::from_iter(["tombs", &format!("{}.{}", name.0, name.1.ending())])
}

fn marked(name: Name) -> Path {
    folder(name).join("marked")
}

fn dying(name: Name, nonce: &str) -> Path {
    folder(name).join(format!("{DYING}{nonce}"))
}

/// The blob that a mark is about.
fn name_of(key: &Path) -> Option<Name> {
    let part = key.parts().nth(1)?;
    let (id, ending) = part.as_ref().split_once('.')?;
    Some((id.parse::<BlobId>().ok()?, BlobKind::from_ending(ending)?))
}

impl Bucket {
    /// All marks by blob: one listing.
    pub async fn tombs(&self) -> Result<BTreeMap<Name, Tomb>, StoreError> {
        self.retrying(|| self.tombs_below(Path::from("tombs"))).await
    }

    async fn tombs_below(&self, folder: Path) -> Result<BTreeMap<Name, Tomb>, StoreError> {
        let mut listing = self.inner.store.list(Some(&self.at(&folder)));
        let (mut found, mut seen) = (BTreeMap::<Name, Tomb>::new(), 0);
        while let Some(object) = listing.try_next().await.map_err(|e| self.sort("list", &folder, e))? {
            seen += 1;
            if seen > MOST_MARKS {
                return Err(StoreError::damaged(folder, "it shows names without end"));
            }
            let Some(at) = self.below(&object.location).filter(|at| at.parts_count() == 3) else { continue };
            let (Some(name), Some(last)) = (name_of(&at), at.filename()) else { continue };
            let since = SystemTime::from(object.last_modified);
            if let Some(nonce) = last.strip_prefix(DYING) {
                found.entry(name).or_default().dying.push((nonce.to_owned(), since));
            } else if last == "marked" {
                found.entry(name).or_default().marked = Some(since);
            }
        }
        Ok(found)
    }

    /// Marks a blob as unnamed, if it is not marked yet.
    pub async fn mark(&self, name: Name) -> Result<(), StoreError> {
        self.create(&marked(name), Bytes::from_static(b"unnamed\n")).await.map(drop)
    }

    /// Removes that mark.
    pub async fn unmark(&self, name: Name) -> Result<(), StoreError> {
        self.remove(&marked(name)).await
    }

    /// Marks a blob as being deleted by the collector that calls itself `nonce`.
    pub async fn mark_dying(&self, name: Name, nonce: &str) -> Result<(), StoreError> {
        self.create(&dying(name, nonce), Bytes::copy_from_slice(nonce.as_bytes())).await.map(drop)
    }

    /// Removes that collector's mark.
    pub async fn unmark_dying(&self, name: Name, nonce: &str) -> Result<(), StoreError> {
        self.remove(&dying(name, nonce)).await
    }

    /// When a blob was stored, by the store's clock, if it is there.
    pub async fn stored_at(&self, name: Name) -> Result<Option<SystemTime>, StoreError> {
        let key = BlobRef { id: name.0, kind: name.1, len: 0 }.key();
        self.modified(&key).await
    }

    /// Deletes a blob by one request, which is not repeated: after an error it may still be there, or not. A second request
    /// could hit what a writer has stored anew after the first one.
    pub async fn delete_blob_once(&self, name: Name) -> Result<(), StoreError> {
        use object_store::ObjectStoreExt;
        let key = BlobRef { id: name.0, kind: name.1, len: 0 }.key();
        match self.inner.store.delete(&self.at(&key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.sort("delete", &key, error)),
        }
    }

    /// Takes note that a blob was stored where there was none; the upload began at `begun`.
    pub(super) fn is_fresh(&self, blob: &BlobRef, begun: Boot) {
        let mut fresh = self.fresh();
        let doubted = self.doubted();
        if doubted.get(&blob.name()).is_some_and(|since| begun <= *since) {
            return;
        }
        drop(doubted);
        if fresh.len() >= MOST_FRESH {
            fresh.clear();
        }
        fresh.insert(blob.name(), begun);
    }

    /// Takes note that a blob was not stored where there was none.
    pub fn doubt(&self, blob: &BlobRef) {
        self.fresh().remove(&blob.name());
    }

    /// Takes note that blobs are about to be deleted, however lately they were stored, also by uploads that have begun: they
    /// are looked at before they are named.
    pub fn doubt_all<'a>(&self, names: impl IntoIterator<Item = &'a Name>) {
        let mut fresh = self.fresh();
        let mut doubted = self.doubted();
        let now = Boot::now();
        doubted.retain(|_, since| since.elapsed() < LONGEST_UPLOAD);
        for name in names {
            fresh.remove(name);
            doubted.insert(*name, now);
        }
    }

    fn doubted(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Boot>> {
        self.inner.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Boot>> {
        self.inner.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of `blobs` that a collector may be about to delete: all but those that this process stored itself, where there was
    /// none, less than half of `grace` ago.
    pub fn doubtful(&self, blobs: impl Iterator<Item = BlobRef>, grace: Duration) -> Vec<BlobRef> {
        let (fresh, lasts) = (self.fresh(), FRESH_FOR.min(grace / 2));
        let is_fresh = |blob: &BlobRef| fresh.get(&blob.name()).is_some_and(|begun| begun.elapsed() < lasts);
        blobs.filter(|blob| !is_fresh(blob)).collect()
    }

    /// Forgets when blobs were stored: they are named now.
    pub fn are_named(&self, blobs: impl Iterator<Item = BlobRef>) {
        let mut fresh = self.fresh();
        blobs.for_each(|blob| _ = fresh.remove(&blob.name()));
    }

    /// Waits until no collector is deleting any of `blobs`, and gives those that are not there. After a record that names them
    /// was created, no collector deletes what this has found.
    pub async fn settle(&self, blobs: &[BlobRef]) -> Result<Vec<BlobRef>, StoreError> {
        let mut gone = Vec::new();
        for blob in blobs {
            self.outlast(blob.name()).await?;
            if self.stored_at(blob.name()).await?.is_none() {
                gone.push(*blob);
            }
        }
        Ok(gone)
    }

    /// Makes sure that those of `blobs` that a collector may be about to delete stay: waits for it, and lets `restore` store again
    /// what has gone. To be called before and after the record that names them is created. Costs no request for what this
    /// process stored a moment ago.
    pub async fn hold<F: Future<Output = Result<(), StoreError>>>(
        &self,
        blobs: &[BlobRef],
        grace: Duration,
        restore: impl Fn(BlobRef) -> F,
    ) -> Result<(), StoreError> {
        for blob in self.doubtful(blobs.iter().copied(), grace) {
            if !self.settle(&[blob]).await?.is_empty() {
                tracing::info!(%blob, "it was collected before it was named; it is stored again");
                restore(blob).await?;
            }
        }
        Ok(())
    }

    /// Waits until the marks of all collectors that delete a blob have gone, or have been there for so long that they are void.
    async fn outlast(&self, name: Name) -> Result<(), StoreError> {
        let mut since = HashMap::<String, Boot>::new();
        loop {
            let tomb =
                self.retrying(|| self.tombs_below(folder(name))).await?.remove(&name).unwrap_or_default();
            let now = Boot::now();
            let live = tomb
                .dying
                .into_iter()
                .filter(|(nonce, _)| since.entry(nonce.clone()).or_insert(now).elapsed() < MARK_IS_VOID);
            if live.count() == 0 {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    fn bucket() -> Bucket {
        Bucket::over(Arc::new(InMemory::new()), "some/prefix")
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_is_fresh_for_a_while_where_there_was_none() {
        let (bucket, grace) = (bucket(), Duration::from_secs(600));
        let doubtful = |bucket: &Bucket, blob| bucket.doubtful(std::iter::once(blob), grace);
        let blob = bucket.put_blob(BlobKind::Refs, "x".into()).await.unwrap();
        assert_eq!(doubtful(&bucket, blob), []);
        tokio::time::advance(grace / 2).await;
        assert_eq!(doubtful(&bucket, blob), [blob], "it is old");
        let again = bucket.put_blob(BlobKind::Refs, "x".into()).await.unwrap();
        assert_eq!(doubtful(&bucket, again), [blob], "it was there");
        bucket.remove_blob(&blob).await.unwrap();
        bucket.put_blob(BlobKind::Refs, "x".into()).await.unwrap();
        assert_eq!(doubtful(&bucket, blob), []);
        bucket.restore_blob(BlobKind::Refs, "x".into()).await.unwrap();
        assert_eq!(doubtful(&bucket, blob), [blob], "it was written over");
        // It is about to be deleted: an upload that began before that is of no account, a later one is.
        let begun = Boot::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        bucket.doubt_all([&blob.name()]);
        bucket.is_fresh(&blob, begun);
        assert_eq!(doubtful(&bucket, blob), [blob]);
        tokio::time::advance(Duration::from_secs(1)).await;
        bucket.is_fresh(&blob, Boot::now());
        assert_eq!(doubtful(&bucket, blob), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_for_collectors_but_not_for_dead_ones() {
        let bucket = bucket();
        let blob = bucket.put_blob(BlobKind::Refs, "x".into()).await.unwrap();
        let lost = BlobRef::of(BlobKind::Refs, b"y");
        assert_eq!(bucket.settle(&[blob, lost]).await.unwrap(), [lost]);
        bucket.mark(blob.name()).await.unwrap();
        assert_eq!(bucket.settle(&[blob]).await.unwrap(), [], "a mere tomb holds nobody up");
        bucket.mark_dying(blob.name(), "one").await.unwrap();
        let begun = Boot::now();
        let waiting = tokio::spawn({
            let bucket = bucket.clone();
            async move { bucket.settle(&[blob]).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        bucket.delete_blob_once(blob.name()).await.unwrap();
        bucket.unmark_dying(blob.name(), "one").await.unwrap();
        assert_eq!(waiting.await.unwrap(), [blob]);
        assert!(begun.elapsed() < MARK_IS_VOID);
        // Another collector dies.
        bucket.mark_dying(blob.name(), "two").await.unwrap();
        let begun = Boot::now();
        assert_eq!(bucket.settle(&[blob]).await.unwrap(), [blob]);
        assert!(begun.elapsed() >= MARK_IS_VOID);
        assert_eq!(bucket.tombs().await.unwrap()[&blob.name()].dying.len(), 1, "it removes nobody's mark");
    }
}
