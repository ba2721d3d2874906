//! What lies in the store, listed with sizes and the store's own times: for collecting.
//!
//! Listings here are whole or an error; who deletes by them must see everything. "Now" is the time that the store gave an
//! object which was written a moment ago ([`Bucket::clock`]): no node's clock is compared with the store's.
//! Elsewhere: marks of blobs ([`super::tombs`]), what is done about it (`work::collect`).

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::generation::{key, number_of};
use super::{BlobRef, Bucket, Generation, StoreError};

/// The most objects of one listing.
const MOST_OBJECTS: usize = 20_000_000;

/// The version of what is written about a collection.
const ROUND: u32 = 1;

/// An object of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key below the bucket's prefix.
    pub key: Path,
    /// Its bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

impl Listed {
    /// The repository and the number of a generation record, if it is one.
    pub fn record(&self) -> Option<(String, u64)> {
        let parts: Vec<_> = self.key.parts().collect();
        let [repos, repo, generations, _] = parts.as_slice() else { return None };
        let is_record = repos.as_ref() == "repos" && generations.as_ref() == "gen";
        is_record.then(|| number_of(&self.key)).flatten().map(|number| (repo.as_ref().to_owned(), number))
    }

    /// The blob that it is, if it is one.
    pub fn blob(&self) -> Option<BlobRef> {
        BlobRef::at(&self.key, self.size)
    }
}

/// What the last whole collection found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRound {
    version: u32,
    /// The newest number of each repository, by its key: what a listing that is whole shows ever after.
    pub newest: BTreeMap<String, u64>,
}

fn of_collections(name: &str) -> Path {
    Path::from_iter(["gc", name])
}

impl Bucket {
    /// All objects below a folder.
    pub async fn list_all(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.list_at_most(&Path::from(folder), MOST_OBJECTS).await
    }

    /// The same, or an error if there are more than `most`.
    pub(super) async fn list_at_most(&self, folder: &Path, most: usize) -> Result<Vec<Listed>, StoreError> {
        self.retrying(|| async {
            let mut listing = self.inner.store.list(Some(&self.at(folder)));
            let mut found = Vec::new();
            while let Some(object) = listing.try_next().await.map_err(|e| self.sort("list", folder, e))? {
                if found.len() >= most {
                    return Err(StoreError::damaged(folder, "it shows names without end"));
                }
                let Some(key) = self.below(&object.location) else { continue };
                found.push(Listed { key, size: object.size, modified: object.last_modified.into() });
            }
            Ok(found)
        })
        .await
    }

    /// The number of the newest record of each repository, by its key, out of one listing.
    pub async fn newest_numbers_of_all(&self) -> Result<HashMap<String, u64>, StoreError> {
        let mut newest = HashMap::new();
        for (repo, number) in self.list_all("repos").await?.iter().filter_map(Listed::record) {
            let known = newest.entry(repo).or_insert(number);
            *known = number.max(*known);
        }
        Ok(newest)
    }

    /// The store's time of now, by an object that is written for it.
    pub async fn clock(&self) -> Result<SystemTime, StoreError> {
        let key = of_collections("clock");
        self.overwrite(&key, Bytes::from_static(b"now\n")).await?;
        let now = self.modified(&key).await?;
        now.ok_or_else(|| StoreError::unavailable(format!("head {key}"), "it was written and is not there"))
    }

    /// When an object was written, by the store's clock, if it is there.
    pub(super) async fn modified(&self, key: &Path) -> Result<Option<SystemTime>, StoreError> {
        self.retrying(|| async {
            match self.inner.store.head(&self.at(key)).await {
                Ok(meta) => Ok(Some(meta.last_modified.into())),
                Err(error) => match self.sort("head", key, error) {
                    StoreError::NotFound { .. } => Ok(None),
                    error => Err(error),
                },
            }
        })
        .await
    }

    /// Reads one record that a listing showed; none if it has gone.
    pub async fn listed_record(&self, repo: &str, number: u64) -> Result<Option<Generation>, StoreError> {
        let at = key(repo, number);
        match self.read(&at).await {
            Ok(bytes) => Generation::decode(&at, &bytes, repo, number).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes what a listing showed. Not for blobs: see [`Bucket::delete_blob_once`].
    pub async fn delete_listed(&self, object: &Listed) -> Result<(), StoreError> {
        self.remove(&object.key).await
    }

    /// What the last whole collection found, and when that was by the store's clock.
    pub async fn last_round(&self) -> Result<Option<(LastRound, SystemTime)>, StoreError> {
        let key = of_collections("round");
        let bytes = match self.read(&key).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let bad = |why: String| StoreError::damaged(&key, why);
        let round: LastRound = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if round.version > ROUND {
            return Err(StoreError::Newer { key: key.to_string(), found: round.version, known: ROUND });
        }
        Ok(self.modified(&key).await?.map(|at| (round, at)))
    }

    /// Writes down what a whole collection found.
    pub async fn round_is_over(&self, newest: BTreeMap<String, u64>) -> Result<(), StoreError> {
        let round = LastRound { version: ROUND, newest };
        let words =
            serde_json::to_vec(&round).map_err(|e| StoreError::refused("put gc/round", e.to_string()))?;
        self.overwrite(&of_collections("round"), words.into()).await
    }

    /// When a node last said that it is collecting, by the store's clock.
    pub async fn is_collecting(&self) -> Result<Option<SystemTime>, StoreError> {
        self.modified(&of_collections("running")).await
    }

    /// Says that this node is collecting.
    pub async fn say_collecting(&self) -> Result<(), StoreError> {
        self.overwrite(&of_collections("running"), Bytes::from_static(b"running\n")).await
    }

    /// Says that it is not any more.
    pub async fn end_collecting(&self) -> Result<(), StoreError> {
        self.remove(&of_collections("running")).await
    }
}
