//! Taking a repository out of the mirror: `packmirror rm`, and what nodes do when they learn of it.
//!
//! What takes it out is a generation like any other that says so and names no layers: numbers go on, so no node can
//! take an older state for a newer one, and who publishes it again builds on that record. Nodes learn of it by a mark in
//! `removed/`, which they list at the pace of their heartbeat, or where they read the record anyway.
//! Relies on: `store` for records and marks. Elsewhere: deleting what it took (`work::collect`).

use std::sync::Arc;

use crate::boot::{time_of_day, unix_seconds};
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::repo::Repo;
use crate::store::{BlobId, BlobKind, Bucket, Generation, Publish, StoreError, nonce};

/// Takes a repository out of the bucket's mirror. None: it is not in it.
pub async fn remove(bucket: &Bucket, repo: &RepoPath) -> Result<Option<Generation>, StoreError> {
    remove_if(bucket, repo, |_| true).await
}

/// The same, if its newest generation is one that `is_meant`.
pub async fn remove_if(
    bucket: &Bucket,
    repo: &RepoPath,
    is_meant: impl Fn(&Generation) -> bool,
) -> Result<Option<Generation>, StoreError> {
    loop {
        let newest = match bucket.newest(repo).await? {
            Some(newest) if !newest.removed && !is_meant(&newest) => return Ok(None),
            Some(newest) if !newest.removed => newest,
            Some(_) => {
                // An earlier removal may have ended before its mark was there.
                bucket.mark_removed(repo).await?;
                return Ok(None);
            }
            None => return Ok(None),
        };
        let nothing = zstd::bulk::compress(&[], 3).map_err(|e| StoreError::refused("rm", e.to_string()))?;
        let mut last = Generation {
            number: newest.number + 1,
            parent: Some(newest.id()),
            writer: nonce(),
            symrefs: Vec::new(),
            manifest_digest: BlobId::of(&[]).to_string(),
            refs: bucket.put_blob(BlobKind::Refs, nothing.into()).await?,
            ref_count: 0,
            layers: Vec::new(),
            answers: Vec::new(),
            created_at: unix_seconds(time_of_day()),
            removed: true,
            gone: None,
            stored: None,
            ..newest
        };
        let empty = [last.refs];
        if !bucket.settle(&empty).await?.is_empty() {
            // It was collected just now, and is stored again.
            continue;
        }
        // A node that published at this moment has the number: then its state is taken out.
        if bucket.publish_next(&mut last).await? == Publish::Won {
            if !bucket.settle(&empty).await?.is_empty() {
                let nothing =
                    zstd::bulk::compress(&[], 3).map_err(|e| StoreError::refused("rm", e.to_string()))?;
                bucket.put_blob(BlobKind::Refs, nothing.into()).await?;
            }
            // After the record, which nodes look at when they see the mark.
            bucket.mark_removed(repo).await?;
            return Ok(Some(last));
        }
    }
}

impl Mirror {
    /// Takes out of this node what was taken out of the mirror. Returns how many repositories those were.
    pub async fn take_out_removed(&self) -> Result<usize, StoreError> {
        let removed = self.bucket.removed().await?;
        if removed.is_empty() {
            return Ok(0);
        }
        let mut taken = 0;
        for repo in self.repos().iter().filter(|repo| removed.contains(&repo.path.key())) {
            // The mark of one that came back may have stayed.
            if self.bucket.newest(&repo.path).await?.is_some_and(|newest| newest.removed)
                && (repo.known().is_some() || !repo.is_wanted())
            {
                self.take_out(repo);
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Takes one repository out of this node: it is not served from the bucket any more, and its worker ends.
    pub fn take_out(&self, repo: &Arc<Repo>) {
        if !repo.remove() {
            tracing::info!(repo = %repo.path, "it was taken out of the mirror; requests for it are passed on");
        }
        self.forget(repo);
        self.unlearn(&repo.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::generation_for_tests as sample;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn numbers_go_on_over_a_removal() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "");
        let repo = RepoPath::parse("team/app.git").unwrap();
        assert!(remove(&bucket, &repo).await.unwrap().is_none(), "it was never there");
        assert!(bucket.removed().await.unwrap().is_empty());
        let first = sample();
        assert_eq!(bucket.publish(&first).await.unwrap(), Publish::Won);
        let last = remove(&bucket, &repo).await.unwrap().unwrap();
        assert_eq!((last.number, last.parent), (2, Some(first.id())));
        assert!(bucket.removed().await.unwrap().contains(&repo.key()));
        assert!(bucket.repos().await.unwrap().is_empty() && bucket.current().await.unwrap().is_empty());
        assert!(bucket.newest(&repo).await.unwrap().unwrap().removed, "who publishes again builds on it");
        assert!(remove(&bucket, &repo).await.unwrap().is_none(), "once is enough");
        bucket.unmark_removed(&repo).await.unwrap();
        assert!(bucket.removed().await.unwrap().is_empty());
    }
}
