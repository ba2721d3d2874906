//! Notes that nodes leave each other beside a repository's generations: small objects that are written over and removed.
//!
//! They pace work and save it. Nothing that is published or served depends on them: without them nodes do the same work
//! twice, and create-if-absent decides between them as always.

use std::collections::HashSet;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;

use super::bucket::Created;
use super::{Bucket, StoreError};
use crate::git::path::RepoPath;

/// What a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A node makes stored data anew.
    Repair,
    /// A state of the primary that cannot be taken in.
    Trouble,
    /// When what is stored was last looked at.
    Vetted,
    /// A node fetches from the primary.
    Fetch,
    /// A node merges layers.
    Compaction,
    /// A node makes an answer that is kept.
    Answer,
}

impl Note {
    /// Where it lies for one repository.
    pub fn of(self, repo: &RepoPath) -> NoteKey {
        let name = match self {
            Self::Repair => "repair",
            Self::Trouble => "trouble",
            Self::Fetch => "fetch",
            Self::Vetted => "vetted",
            Self::Compaction => "compaction",
            Self::Answer => "answer",
        };
        NoteKey(Path::from_iter(["repos", &repo.key(), name]))
    }
}

/// Where a note lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteKey(Path);

impl NoteKey {
    /// The key below the prefix.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl std::fmt::Display for NoteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The most marks of one kind that are looked at.
const MOST_MARKS: usize = 100_000;

fn mark(repo: &RepoPath) -> Path {
    Path::from_iter(["removed", &repo.key()])
}

fn damaged(repo: &RepoPath) -> Path {
    Path::from_iter(["damaged", &repo.key()])
}

impl Bucket {
    /// Marks a repository as taken out, for nodes that would not read its newest record by themselves.
    pub async fn mark_removed(&self, repo: &RepoPath) -> Result<(), StoreError> {
        self.overwrite(&mark(repo), Bytes::from_static(b"removed\n")).await
    }

    /// Removes the mark, if there is one.
    pub async fn unmark_removed(&self, repo: &RepoPath) -> Result<(), StoreError> {
        self.remove(&mark(repo)).await
    }

    /// Marks a repository whose blobs a node has lost, for nodes that may have them.
    pub async fn mark_damaged(&self, repo: &RepoPath, words: Bytes) -> Result<(), StoreError> {
        self.overwrite(&damaged(repo), words).await
    }

    /// The words of that mark, if there is one.
    pub async fn damaged_words(&self, repo: &RepoPath) -> Result<Option<Bytes>, StoreError> {
        match self.read(&damaged(repo)).await {
            Ok(words) => Ok(Some(words)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Removes that mark, if there is one.
    pub async fn unmark_damaged(&self, repo: &RepoPath) -> Result<(), StoreError> {
        self.remove(&damaged(repo)).await
    }

    /// The keys of the repositories that are marked as taken out: one listing.
    pub async fn removed(&self) -> Result<HashSet<String>, StoreError> {
        self.marked("removed").await
    }

    /// The keys of the repositories of which a node has lost blobs: one listing.
    pub async fn damaged(&self) -> Result<HashSet<String>, StoreError> {
        self.marked("damaged").await
    }

    async fn marked(&self, folder: &str) -> Result<HashSet<String>, StoreError> {
        let folder = Path::from(folder);
        let mut listing = self.inner.store.list(Some(&self.at(&folder)));
        let mut found = HashSet::new();
        while let Some(object) = listing.try_next().await.map_err(|e| self.sort("list", &folder, e))? {
            let at = self.below(&object.location).filter(|at| at.parts_count() == 2);
            found.extend(at.and_then(|at| at.filename().map(str::to_owned)));
            if found.len() >= MOST_MARKS {
                break;
            }
        }
        Ok(found)
    }

    /// Leaves a note if there is none; gives the words of the one that is there otherwise.
    pub async fn leave_note(&self, at: &NoteKey, words: Bytes) -> Result<Option<Bytes>, StoreError> {
        match self.create(&at.0, words).await? {
            Created::Ours => Ok(None),
            Created::Other(found) => Ok(Some(found)),
        }
    }

    /// Writes a note over what was there.
    pub async fn rewrite_note(&self, at: &NoteKey, words: Bytes) -> Result<(), StoreError> {
        self.overwrite(&at.0, words).await
    }

    /// The words of a note, if there is one.
    pub async fn note(&self, at: &NoteKey) -> Result<Option<Bytes>, StoreError> {
        match self.read(&at.0).await {
            Ok(words) => Ok(Some(words)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Removes a note.
    pub async fn remove_note(&self, at: &NoteKey) -> Result<(), StoreError> {
        self.remove(&at.0).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    #[tokio::test]
    async fn notes_are_left_once_rewritten_and_removed() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "some/prefix");
        let repo = RepoPath::parse("a").unwrap();
        let (repair, trouble) = (Note::Repair.of(&repo), Note::Trouble.of(&repo));
        assert_eq!(bucket.leave_note(&repair, "one".into()).await.unwrap(), None);
        let other = bucket.leave_note(&repair, "two".into()).await.unwrap();
        assert_eq!(other, Some(Bytes::from("one")));
        assert_eq!(bucket.note(&trouble).await.unwrap(), None);
        bucket.rewrite_note(&repair, "two".into()).await.unwrap();
        assert_eq!(bucket.note(&repair).await.unwrap(), Some(Bytes::from("two")));
        bucket.remove_note(&repair).await.unwrap();
        assert_eq!(bucket.note(&repair).await.unwrap(), None);
        assert!(bucket.repos().await.unwrap().is_empty(), "a note is no generation");
    }
}
