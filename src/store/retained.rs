//! Which generations count besides the newest: those that were the newest until a while ago.
//!
//! Ages are measured by the store's own clock, never by a node's: when the successor was stored, and when an object was
//! that was written a moment ago. Whatever cannot be read is an error, so that nobody takes less for all.
//! Elsewhere: what is left out or deleted because none of these needs it.

use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;

use super::generation::{folder, number_of};
use super::notes::Note;
use super::{Bucket, StoreError};
use crate::git::path::RepoPath;

/// The most records of one repository that are listed.
const MOST_RECORDS: usize = 200_000;

impl Bucket {
    /// When a note was written last, by the store's clock; none if there is no note.
    pub async fn note_time(&self, repo: &RepoPath, note: Note) -> Result<Option<SystemTime>, StoreError> {
        let key = note.of(repo).path().clone();
        let head = || async {
            let meta = self.inner.store.head(&self.at(&key)).await;
            meta.map_err(|error| self.sort("head", &key, error))
        };
        match self.retrying(head).await {
            Ok(meta) => Ok(Some(meta.last_modified.into())),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The numbers of the newest generation and of all whose successor was stored less than `grace` before `now`, highest
    /// first.
    pub async fn retained(
        &self,
        repo: &RepoPath,
        now: SystemTime,
        grace: Duration,
    ) -> Result<Vec<u64>, StoreError> {
        let folder = folder(&repo.key());
        let list = || async {
            let mut found: Vec<(u64, SystemTime)> = Vec::new();
            let mut listing = self.inner.store.list(Some(&self.at(&folder)));
            while let Some(entry) =
                listing.try_next().await.map_err(|error| self.sort("list", &folder, error))?
            {
                let here = self
                    .below(&entry.location)
                    .filter(|at| at.prefix_matches(&folder) && at.parts_count() == 4);
                if let Some(number) = here.as_ref().and_then(number_of) {
                    found.push((number, entry.last_modified.into()));
                }
                if found.len() > MOST_RECORDS {
                    return Err(StoreError::damaged(&folder, "it holds more records than are looked at"));
                }
            }
            Ok(found)
        };
        let mut found = self.retrying(list).await?;
        found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        let mut retained: Vec<u64> = found.first().map(|(number, _)| *number).into_iter().collect();
        for pair in found.windows(2) {
            let [(_, successor), (number, _)] = pair else { continue };
            // A successor from the future was stored a moment ago.
            if now.duration_since(*successor).unwrap_or_default() < grace {
                retained.push(*number);
            }
        }
        Ok(retained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::generation::tests::sample;
    use crate::store::{Generation, Publish};
    use object_store::memory::InMemory;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_newest_and_those_that_were_it_lately_are_retained() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "some");
        let mut record = sample();
        let repo = record.repo.clone();
        assert_eq!(bucket.note_time(&repo, Note::Compaction).await.unwrap(), None);
        for number in 1..=3 {
            assert_eq!(bucket.publish(&record).await.unwrap(), Publish::Won);
            let parent = Some(record.id());
            record = Generation { number: number + 1, parent, ..record };
        }
        bucket.rewrite_note(&Note::Compaction.of(&repo), "now".into()).await.unwrap();
        let now = bucket.note_time(&repo, Note::Compaction).await.unwrap().unwrap();
        let hour = Duration::from_secs(3600);
        let retained = async |now, grace| bucket.retained(&repo, now, grace).await.unwrap();
        assert_eq!(retained(now, hour).await, [3, 2, 1]);
        assert_eq!(retained(now + hour * 2, hour).await, [3]);
        assert_eq!(retained(now - hour * 2, hour).await, [3, 2, 1], "a clock that was set back");
        assert_eq!(retained(now, Duration::ZERO).await, [3]);
    }
}
