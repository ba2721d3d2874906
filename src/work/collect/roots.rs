//! The roots of a collection: which records are kept, and which blobs they name.
//!
//! Kept are the newest record of each repository, and every record whose successor was stored less than the grace ago. What
//! cannot be read or seen ends the collection: nothing is deleted by what is not known.
//! Relies on: records never change under their number, so one that was read is not read again in the same round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};

use crate::git::path::RepoPath;
use crate::store::{Bucket, Generation, Listed, Name, StoreError};
use crate::work::collect::CollectError;

/// Records read at once.
const READS: usize = 16;

/// The records that were read in this round, by repository and number.
pub(super) type Known = HashMap<(String, u64), Arc<Read>>;

/// What counts of a record.
pub(super) struct Read {
    /// The blobs that it names.
    pub(super) names: Vec<Name>,
    /// It says that the repository was taken out.
    removed: bool,
    /// The repository that it says is gone at the primary.
    gone: Option<RepoPath>,
}

impl Read {
    fn of(record: &Generation) -> Self {
        let names = record.blobs().map(|blob| blob.name()).collect();
        let gone = record.gone.filter(|_| !record.removed).map(|_| record.repo.clone());
        Self { names, removed: record.removed, gone }
    }
}

/// What is kept.
pub(super) struct Roots {
    /// The newest number of each repository, by its key.
    pub newest: BTreeMap<String, u64>,
    /// Repositories whose newest record says that they were taken out.
    pub removed: HashSet<String>,
    /// Repositories whose newest record says that the primary does not have them any more, and for how long it has.
    pub gone: Vec<(RepoPath, Duration)>,
    /// What the newest records name.
    pub now: HashSet<Name>,
    /// What all kept records name.
    pub kept: HashSet<Name>,
    /// Records that are not the newest, and for how long they have had a successor.
    pub old: Vec<(Listed, Duration)>,
    /// What lies beside the records of repositories.
    pub notes: Vec<Listed>,
}

/// How long ago something was, by the store's clock.
pub(super) fn age(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

/// Reads them. `before`: the newest numbers that an earlier listing showed; a listing that lacks one of them was cut short. Of
/// the repository that is `purged`, if any, the newest record alone is kept.
pub(super) async fn read(
    bucket: &Bucket,
    known: &mut Known,
    before: &BTreeMap<String, u64>,
    (now, grace): (SystemTime, Duration),
    purged: Option<&str>,
) -> Result<Roots, CollectError> {
    let mut repos = BTreeMap::<String, BTreeMap<u64, Listed>>::new();
    let mut notes = Vec::new();
    for object in bucket.list_all("repos").await? {
        match object.record() {
            Some((repo, number)) => drop(repos.entry(repo).or_default().insert(number, object)),
            None => notes.push(object),
        }
    }
    let newest: BTreeMap<String, u64> = repos
        .iter()
        .filter_map(|(repo, records)| Some((repo.clone(), *records.keys().next_back()?)))
        .collect();
    if let Some((repo, _)) = before.iter().find(|(repo, number)| newest.get(*repo) < Some(number)) {
        return Err(CollectError::CutShort { repo: repo.clone() });
    }
    let (mut old, mut wanted, mut since) = (Vec::new(), Vec::new(), HashMap::new());
    for (repo, records) in repos {
        let mut successor = None::<SystemTime>;
        if let Some((_, record)) = records.last_key_value() {
            since.insert(repo.clone(), age(now, record.modified));
        }
        for (number, record) in records.into_iter().rev() {
            let superseded = successor.replace(record.modified).map(|at| age(now, at));
            if superseded.is_none_or(|since| since <= grace && purged != Some(&*repo)) {
                wanted.push((repo.clone(), number));
            }
            if let Some(since) = superseded {
                old.push((record, since));
            }
        }
    }
    let unread: Vec<_> = wanted.iter().filter(|at| !known.contains_key(at)).cloned().collect();
    let read: Vec<_> = stream::iter(unread)
        .map(|(repo, number)| async move {
            match bucket.listed_record(&repo, number).await {
                Ok(Some(record)) => Ok(((repo, number), Arc::new(Read::of(&record)))),
                // Another collector removed it, so it has a newer one; or the listing is not true. The next round sees.
                Ok(None) => {
                    let why = "the listing shows what is not there any more";
                    Err(StoreError::unavailable(format!("get repos/{repo}/gen of number {number}"), why)
                        .into())
                }
                Err(error) if error.is_transient() => Err(CollectError::from(error)),
                Err(source) => Err(CollectError::Unreadable { source }),
            }
        })
        .buffer_unordered(READS)
        .try_collect()
        .await?;
    known.extend(read);
    let (mut of_now, mut kept, mut removed) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut gone = Vec::new();
    for at in &wanted {
        let Some(record) = known.get(at) else { continue };
        kept.extend(record.names.iter().copied());
        if newest.get(&at.0) == Some(&at.1) {
            of_now.extend(record.names.iter().copied());
            if record.removed {
                removed.insert(at.0.clone());
            }
            let for_long = since.get(&at.0).copied().unwrap_or_default();
            gone.extend(record.gone.clone().map(|repo| (repo, for_long)));
        }
    }
    Ok(Roots { newest, removed, gone, now: of_now, kept, old, notes })
}
