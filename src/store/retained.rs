//! Which generations count besides the newest: those that were the newest until a while ago.
//!
//! Ages are measured by the store's own clock, never by a node's: when the successor was stored, and when an object was
//! that was written a moment ago. Whatever cannot be read is an error, so that nobody takes less for all.
//! Elsewhere: what is left out or deleted because none of these needs it.

use std::time::{Duration, SystemTime};

use super::generation::folder;
use super::notes::Note;
use super::{Bucket, StoreError};
use crate::git::path::RepoPath;

/// The most objects beside each other in the folder of one repository's records.
const MOST_RECORDS: usize = 200_000;

impl Bucket {
    /// When a note was written last, by the store's clock; none if there is no note.
    pub async fn note_time(&self, repo: &RepoPath, note: Note) -> Result<Option<SystemTime>, StoreError> {
        self.modified(note.of(repo).path()).await
    }

    /// The numbers of the newest generation and of all whose successor was stored less than `grace` before `now`, highest
    /// first.
    pub async fn retained(
        &self,
        repo: &RepoPath,
        now: SystemTime,
        grace: Duration,
    ) -> Result<Vec<u64>, StoreError> {
        let listed = self.list_at_most(&folder(&repo.key()), MOST_RECORDS).await?;
        let records = listed.iter().filter_map(|object| Some((object.record()?.1, object.modified)));
        let mut found: Vec<(u64, SystemTime)> = records.collect();
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
