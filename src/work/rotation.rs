//! Looking in rotation whether what is stored is still whole: each blob is there with its length, and each byte still hashes to
//! its name.
//!
//! The nodes of a bucket share the work through a note beside each repository: when its blobs were last looked for, and when
//! each was last read. Who finds the note old does what is due and writes it; nothing else depends on it, so two nodes that do
//! the same at once lose time and no more. A node looks at each note first at a time of its own, so that the work is spread over
//! the whole interval. One blob is read at a time, at the pace that is set, and the note is written after each: an end in the
//! middle loses one blob's work.
//! Relies on: `examine` for looking. Elsewhere: what is found is reported (`mirror::damage`) and mended (`sync`, `heal`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::boot::{time_of_day, unix_seconds};
use crate::git::path::RepoPath;
use crate::mirror::newest::NotFound;
use crate::mirror::repo::Repo;
use crate::retry::Dice;
use crate::store::{Generation, Note, StoreError};
use crate::telemetry::metrics as names;
use crate::work::Work;
use crate::work::examine::{Flaw, Pace, blob, present};

/// How often it is looked for repositories that are new here.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A note is first read within this time.
const FIRST: Duration = Duration::from_secs(3600);
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(300);
/// How long a node that reads a blob keeps others from reading it too, beside the time that the pace gives it.
const OWN: Duration = Duration::from_secs(600);
/// The longest wait until the next look at a note.
const LONGEST: Duration = Duration::from_secs(7 * 86400);

/// When what is stored of a repository was last looked at, Unix seconds by the clocks of nodes.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Vetted {
    /// When it was last looked whether every blob is there.
    #[serde(default)]
    exists: u64,
    /// When each blob was last read and hashed, or was first seen.
    #[serde(default)]
    read: BTreeMap<String, u64>,
}

/// Works until `stop`.
pub(super) async fn run(work: Arc<Work>, stop: CancellationToken) {
    let vet = &work.vet;
    if vet.exists_every.is_zero() && vet.hash_every.is_zero() {
        return;
    }
    let mut due = HashMap::new();
    let mut pace = Pace::new(Some(vet.rate));
    while stop.run_until_cancelled(turn(&work, &mut due, &mut pace)).await.is_some() {}
}

/// Looks at the repository that is due first, or waits.
async fn turn(work: &Work, due: &mut HashMap<RepoPath, Instant>, pace: &mut Pace) {
    let every = [work.vet.exists_every, work.vet.hash_every];
    let shortest = every.into_iter().filter(|every| !every.is_zero()).min().unwrap_or(FIRST);
    let repos = if work.is_sound() { work.mirror.repos() } else { Vec::new() };
    let repos: Vec<Arc<Repo>> = repos.into_iter().filter(|repo| repo.known().is_some()).collect();
    if due.len() > repos.len() {
        let known: std::collections::HashSet<_> = repos.iter().map(|repo| &repo.path).collect();
        due.retain(|path, _| known.contains(path));
    }
    let now = Instant::now();
    let first = || now + Dice::random().up_to(FIRST.min(shortest));
    let when = |repo: &Arc<Repo>, due: &mut HashMap<RepoPath, Instant>| {
        *due.entry(repo.path.clone()).or_insert_with(first)
    };
    let next = repos.iter().map(|repo| (when(repo, due), repo)).min_by_key(|(at, _)| *at);
    let look = now + LOOK_EVERY.min(shortest);
    let Some((_, repo)) = next.filter(|(at, _)| *at <= now) else {
        tokio::time::sleep_until(next.map_or(look, |(at, _)| at.min(look))).await;
        return;
    };
    let wait = match vet(work, repo, pace).await {
        Ok(wait) => wait,
        Err(error) => {
            tracing::debug!(repo = %repo.path, %error, "it could not be looked whether what is stored is whole");
            AGAIN.min(shortest)
        }
    };
    due.insert(repo.path.clone(), Instant::now() + wait.clamp(Duration::from_secs(1), LONGEST));
}

/// Does what is due for a repository, and says when it should be looked at again.
async fn vet(work: &Work, repo: &Repo, pace: &mut Pace) -> Result<Duration, NotFound> {
    let bucket = &work.mirror.bucket;
    let [exists_every, hash_every] =
        [work.vet.exists_every, work.vet.hash_every].map(|every| every.as_secs());
    let Some(newest) = work.mirror.newest(repo).await? else { return Ok(LONGEST) };
    let before = match bucket.note(&Note::Vetted.of(&repo.path)).await? {
        Some(words) => serde_json::from_slice::<Vetted>(&words).unwrap_or_default(),
        None => Vetted::default(),
    };
    let mut note = before.clone();
    note.fit(&newest, now(), hash_every);
    if exists_every > 0 && now() - note.exists.min(now()) >= exists_every {
        record(work, repo, newest.number).await?;
        told(repo, present(bucket, &newest).await?);
        note.exists = now();
    }
    if note != before {
        write(work, repo, &note).await?;
    }
    let open = repo.snapshot().filter(|open| open.generation.layers == newest.layers);
    for named in newest.needed() {
        let key = named.to_string();
        let last = note.read.get(&key).copied().unwrap_or_default().min(now());
        if hash_every == 0 || now() - last < hash_every {
            continue;
        }
        // Other nodes leave it alone meanwhile; if this one dies, it is due again a little later.
        let own = OWN.as_secs() + named.len / work.vet.rate.max(1);
        note.read.insert(key.clone(), now().saturating_sub(hash_every.saturating_sub(own.min(hash_every))));
        write(work, repo, &note).await?;
        let at = newest.layers.iter().position(|layer| layer.pack == named);
        let layer =
            at.and_then(|n| Some((open.as_ref()?.stack.layers().get(n)?, newest.layers.get(n)?.graph)));
        let flaw = blob(bucket, &named, layer, pace, &|bytes| {
            metrics::counter!(names::VET_BYTES).increment(bytes);
        });
        told(repo, flaw.await?.into_iter().collect());
        note.read.insert(key, now());
        write(work, repo, &note).await?;
    }
    let left = |last: u64, every: u64| (every > 0).then(|| (last + every).saturating_sub(now()));
    let waits =
        note.read.values().filter_map(|last| left(*last, hash_every)).chain(left(note.exists, exists_every));
    Ok(Duration::from_secs(waits.min().unwrap_or(LONGEST.as_secs())))
}

impl Vetted {
    /// Names what `newest` names and nothing else. What was not known gets a time within the last interval, so that not all is
    /// due at once.
    fn fit(&mut self, newest: &Generation, now: u64, hash_every: u64) {
        let before = std::mem::take(&mut self.read);
        let dice = Dice::random();
        let first = || now.saturating_sub(dice.up_to(Duration::from_secs(hash_every)).as_secs());
        self.read = newest
            .needed()
            .map(|blob| blob.to_string())
            .map(|key| (before.get(&key).copied().unwrap_or_else(first), key))
            .map(|(at, key)| (key, at))
            .collect();
    }
}

/// Looks whether the record `number`, which this node takes for the newest, can still be read.
async fn record(work: &Work, repo: &Repo, number: u64) -> Result<(), StoreError> {
    let bucket = &work.mirror.bucket;
    let is_there = match bucket.get(&repo.path, number).await {
        Ok(found) => found.is_some(),
        Err(StoreError::Damaged { .. }) => false,
        Err(error) => return Err(error),
    };
    // Records below the newest are none of ours: they may have been collected.
    if !is_there && bucket.after(&repo.path, number).await?.is_none() {
        tracing::error!(repo = %repo.path, number, "the newest record is damaged or missing; it is published again");
        metrics::counter!(names::FLAWS, "kind" => "record").increment(1);
        repo.damage().record_is_spoilt(number);
        repo.ask();
    }
    Ok(())
}

/// Reports what was found.
fn told(repo: &Repo, flaws: Vec<Flaw>) {
    for flaw in &flaws {
        metrics::counter!(names::FLAWS, "kind" => flaw.blob.kind.ending()).increment(1);
        tracing::error!(repo = %repo.path, blob = %flaw.blob, what = flaw.words, "stored data is missing or damaged");
    }
    if repo.damage().note(flaws.into_iter().map(|flaw| (flaw.blob, flaw.fault)).collect()) {
        repo.ask();
    }
}

async fn write(work: &Work, repo: &Repo, note: &Vetted) -> Result<(), StoreError> {
    // Strings and numbers: serialising them cannot fail.
    let words = serde_json::to_vec(note).unwrap_or_default();
    work.mirror.bucket.rewrite_note(&Note::Vetted.of(&repo.path), words.into()).await
}

fn now() -> u64 {
    unix_seconds(time_of_day())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::generation_for_tests;

    #[test]
    fn what_is_new_is_spread_over_the_interval_and_what_is_gone_is_forgotten() {
        let newest = generation_for_tests();
        let named: Vec<String> = newest.needed().map(|blob| blob.to_string()).collect();
        let mut note = Vetted { exists: 7, read: [("gone".into(), 1), (named[0].clone(), 950)].into() };
        note.fit(&newest, 1000, 100);
        assert_eq!(note.read.keys().cloned().collect::<Vec<_>>(), {
            let mut named = named.clone();
            named.sort();
            named
        });
        assert_eq!((note.exists, note.read[&named[0]]), (7, 950));
        assert!(note.read.values().all(|at| (900..=1000).contains(at)), "{note:?}");
    }
}
