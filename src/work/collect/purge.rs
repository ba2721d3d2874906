//! The collection of a purge: what one repository's old records alone name goes at once, and then the records.
//!
//! Blobs are deleted as in any collection: marked, looked at once more, by one request each. Two things that the grace stands
//! for there are made sure of otherwise: that no writer takes a blob for its own that it stored a moment ago, since the nodes
//! have said that they will look; and that no node goes on from a record that is deleted, since they have read the newest one. What
//! no record at all names goes too, whosever it was, if it is older than any writer's own: a failed sync may have left it.
//! Relies on: `round`. Elsewhere: what nodes are told before (`work::purge`).

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};

use super::CollectError;
use super::report::{Amount, Report};
use super::roots::{Known, Roots, read};
use super::round::{AT_ONCE, AtOnce, Round, Terms, Told, careful, list_blobs};
use crate::git::path::RepoPath;
use crate::store::{Bucket, Generation, Listed, Name};

/// What a purge of one repository would delete.
pub struct Survey {
    /// The number of its newest record.
    pub newest: u64,
    /// Its older records, the oldest first.
    pub records: Vec<Listed>,
    /// Those of them that can be read.
    pub read: Vec<Generation>,
    /// What they name and no kept record does, whether it is still there or not.
    pub blobs: HashSet<Name>,
    /// As much of that as is there.
    pub there: Amount,
    /// When the youngest of them was stored, by the store's clock.
    pub youngest: Option<SystemTime>,
    /// What they name and a kept record of another repository does too: it stays.
    pub shared: Amount,
    /// What no record names that is kept, nor one of this repository.
    pub unnamed: Amount,
    roots: Roots,
    known: Known,
    listed: BTreeMap<Name, Listed>,
    now: SystemTime,
    grace: Duration,
}

/// What a purge deleted.
pub struct Purged {
    /// Blobs and records that are gone.
    pub done: Report,
    /// Blobs that are to go and are still there.
    pub left: Amount,
}

impl Survey {
    /// Whether there is neither an old record nor a blob that only old ones name.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.blobs.is_empty()
    }
}

/// Looks what a purge of `repo` would delete. None: the bucket does not have it.
pub async fn survey(
    bucket: &Bucket,
    repo: &RepoPath,
    grace: Duration,
    told: Told<'_>,
) -> Result<Option<Survey>, CollectError> {
    told("reading records", 0, 0);
    let (key, now, mut known) = (repo.key(), bucket.clock().await?, Known::default());
    let before = bucket.last_round().await?.map(|(last, _)| last.newest).unwrap_or_default();
    let grace = careful(bucket, grace).await?;
    let roots = read(bucket, &mut known, &before, (now, grace), Some(&key)).await?;
    let Some(newest) = roots.newest.get(&key).copied() else { return Ok(None) };
    let of_repo = |(record, _): &&(Listed, _)| record.record().is_some_and(|(repo, _)| repo == key);
    let mut records: Vec<Listed> =
        roots.old.iter().filter(of_repo).map(|(record, _)| record.clone()).collect();
    records.sort_by_key(|record| record.record().map(|(_, number)| number));
    let read: Vec<Generation> = stream::iter(records.clone())
        .map(|record| {
            let key = &key;
            async move {
                let number = record.record().map_or(0, |(_, number)| number);
                match bucket.listed_record(key, number).await {
                    // What it named is named by nobody then.
                    Err(error) if !error.is_transient() => {
                        tracing::warn!(key = %record.key, error = error.chain(), "an old record cannot be read");
                        Ok(None)
                    }
                    read => read,
                }
            }
        })
        .buffered(AT_ONCE)
        .try_filter_map(async |record| Ok(record))
        .try_collect()
        .await?;
    told("listing blobs", 0, 0);
    let listed = list_blobs(bucket).await?;
    let of_newest: HashSet<Name> =
        known.get(&(key.clone(), newest)).into_iter().flat_map(|read| read.names.iter().copied()).collect();
    let named: HashSet<Name> = read.iter().flat_map(Generation::blobs).map(|blob| blob.name()).collect();
    let (mut there, mut shared, mut unnamed) = (Amount::default(), Amount::default(), Amount::default());
    let mut youngest = None;
    for (name, blob) in &listed {
        match (named.contains(name), roots.kept.contains(name)) {
            (true, false) => {
                there.add(blob.size);
                youngest = youngest.max(Some(blob.modified));
            }
            (true, true) if !of_newest.contains(name) => shared.add(blob.size),
            (false, false) => unnamed.add(blob.size),
            _ => {}
        }
    }
    let blobs = named.into_iter().filter(|name| !roots.kept.contains(name)).collect();
    Ok(Some(Survey {
        newest,
        records,
        read,
        blobs,
        there,
        youngest,
        shared,
        unnamed,
        roots,
        known,
        listed,
        now,
        grace,
    }))
}

/// Deletes what a survey found. `answered`: since when all nodes have looked anew what is published and look for `blobs` before they
/// name them; without it what is young stays, and so do the records, for another purge or collection.
pub async fn delete(
    bucket: &Bucket,
    repo: &RepoPath,
    survey: Survey,
    answered: Option<SystemTime>,
    told: Told<'_>,
) -> Result<Purged, CollectError> {
    let Survey { records, blobs, roots, mut known, listed, now, grace, .. } = survey;
    let (terms, key, nothing) =
        (Terms { grace, gone_after: Duration::ZERO, dry_run: false }, repo.key(), HashSet::new());
    let at_once = AtOnce {
        repo: &key,
        blobs: if answered.is_some() { &blobs } else { &nothing },
        before: answered.unwrap_or(now),
    };
    let round = Round { bucket, terms: &terms, now, grace, told, purge: Some(at_once) };
    let tombs = bucket.tombs().await?;
    let is_free = |name: &Name| {
        let dying = tombs.get(name).into_iter().flat_map(|tomb| &tomb.dying);
        dying.into_iter().all(|(_, since)| round.is_void(*since))
    };
    let doomed: BTreeMap<Name, &Listed> = listed
        .iter()
        .filter(|(name, _)| !roots.kept.contains(*name))
        .map(|(name, blob)| (*name, blob))
        .collect();
    let ripe = doomed.iter().filter(|(name, blob)| round.may_go(name, blob.modified) && is_free(name));
    let ripe: Vec<Name> = ripe.map(|(name, _)| *name).collect();
    let marks = stream::iter(ripe.clone()).map(|name| bucket.mark(name));
    marks.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let mut done = Report::default();
    let roots = round.bury(ripe, &listed, (roots, &mut known), &mut done).await?;
    let mut left = Amount::default();
    for (name, blob) in doomed.iter().filter(|(name, _)| blobs.contains(*name) && !roots.kept.contains(*name))
    {
        if bucket.stored_at(*name).await?.is_some() {
            left.add(blob.size);
        }
    }
    // After the blobs: a purge that ends early finds them again by the records.
    if answered.is_some() && left.objects == 0 {
        round.delete_records(records, &mut done).await?;
    }
    Ok(Purged { done, left })
}
