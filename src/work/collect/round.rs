//! One collection: read what is kept, mark what nobody names, delete what has been marked for the grace, and what is old.
//!
//! The last step for a blob: its `dying` mark is created; the marks are listed, and whoever sees another collector's steps back;
//! it is still the old one; all newest records are read again and none names it; not too much time has passed; it is deleted by
//! one request. Writers look at the marks after they have created a record (`work::publish`).

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};

use crate::boot::Boot;
use crate::mirror::health::nodes;
use crate::mirror::remove::remove_if;
use crate::store::{
    Bucket, FRESH_FOR, Listed, MARK_HOLDS, MARK_IS_VOID, Name, ORDERS, RECORDS_KEPT, StoreError, Tomb, nonce,
};
use crate::telemetry::metrics as names;
use crate::work::collect::CollectError;
use crate::work::collect::report::Report;
use crate::work::collect::roots::{Known, Roots, age, read};

/// Requests in flight.
pub(super) const AT_ONCE: usize = 16;
/// Blobs that are marked as dying together, and then deleted.
const BATCH: usize = 1024;
/// What nodes write over again and again is dead if it is older than this, and than the grace.
const DEAD: Duration = Duration::from_secs(3600);
/// For how long orders to forget are kept. A node that comes back after that empties its cache.
const ORDERS_KEPT: Duration = Duration::from_secs(90 * 86_400);
/// A node that says that it keeps data for longer than this, in seconds, is not believed: a year.
const MOST_GRACE: u64 = 366 * 86_400;
/// The exactness of a store's times.
pub(super) const EXACT: Duration = Duration::from_secs(1);

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long data stays after it was named last.
    pub grace: Duration,
    /// How long a repository stays that the primary does not have any more; zero: for ever.
    pub gone_after: Duration,
    /// Change nothing.
    pub dry_run: bool,
}

/// Who is told what is done, how much of it is done, and of how much.
pub type Told<'a> = &'a (dyn Fn(&str, u64, u64) + Send + Sync);

/// Collects once. With `dry_run` nothing changes but the object by which the store's clock is read.
pub async fn round(bucket: &Bucket, terms: &Terms, told: Told<'_>) -> Result<Report, CollectError> {
    let mut report = Report { dry_run: terms.dry_run, ..Report::default() };
    let grace = careful(bucket, terms.grace).await?;
    told("reading records", 0, 0);
    let now = bucket.clock().await?;
    let before = bucket.last_round().await?.map(|(last, _)| last.newest).unwrap_or_default();
    let mut known = Known::default();
    let roots = read(bucket, &mut known, &before, (now, grace), None).await?;
    report.repositories = roots.newest.len();
    told("listing blobs", 0, 0);
    // The blobs before the marks: a mark whose blob is not in this listing is not needed.
    let blobs = list_blobs(bucket).await?;
    let tombs = bucket.tombs().await?;
    let round = Round { bucket, terms, now, grace, told, purge: None };
    let ripe = round.mark(&roots, &blobs, &tombs, &mut report).await?;
    let roots = round.bury(ripe, &blobs, (roots, &mut known), &mut report).await?;
    round.records(&roots, &mut report).await?;
    round.leftovers(&roots, &mut report).await?;
    round.gone(&roots, &mut report).await?;
    if !terms.dry_run {
        bucket.round_is_over(roots.newest).await?;
    }
    Ok(report)
}

/// The grace that the most careful node has: it may have promised its clients more than this one.
pub(super) async fn careful(bucket: &Bucket, grace: Duration) -> Result<Duration, StoreError> {
    let nodes = nodes(bucket).await?;
    let longest = nodes.iter().map(|node| Duration::from_secs(node.grace_s.min(MOST_GRACE))).max();
    Ok(grace.max(longest.unwrap_or_default()) + EXACT)
}

/// All blobs by name.
pub(super) async fn list_blobs(bucket: &Bucket) -> Result<BTreeMap<Name, Listed>, StoreError> {
    let listed = bucket.list_all("blobs").await?.into_iter();
    Ok(listed.filter_map(|object| Some((object.blob()?.name(), object))).collect())
}

/// A collection under way.
pub(super) struct Round<'a> {
    pub bucket: &'a Bucket,
    pub terms: &'a Terms,
    /// The store's time when the round began: what happens later counts as young.
    pub now: SystemTime,
    pub grace: Duration,
    pub told: Told<'a>,
    /// What is deleted before its time.
    pub purge: Option<AtOnce<'a>>,
}

/// What a purge deletes without waiting for the grace.
pub(super) struct AtOnce<'a> {
    /// The key of the repository of which the newest record alone is kept.
    pub repo: &'a str,
    /// Blobs that every writer looks for before it names them, though they may have been stored a moment ago.
    pub blobs: &'a HashSet<Name>,
    /// If they were stored before this, by the store's clock.
    pub before: SystemTime,
}

impl Round<'_> {
    fn is_old(&self, then: SystemTime) -> bool {
        age(self.now, then) > self.grace
    }

    /// Says whether a blob that was stored then, and that nobody names, may be deleted: no writer takes it for one that it
    /// stored itself a moment ago.
    pub(super) fn may_go(&self, name: &Name, stored: SystemTime) -> bool {
        match &self.purge {
            None => self.is_old(stored),
            Some(purge) if purge.blobs.contains(name) && stored < purge.before => true,
            Some(_) => age(self.now, stored) > FRESH_FOR + EXACT,
        }
    }

    pub(super) fn is_void(&self, then: SystemTime) -> bool {
        age(self.now, then) > MARK_IS_VOID + EXACT
    }

    /// Marks what the newest records do not name, takes marks off what they name, and gives what has been marked for the grace.
    async fn mark(
        &self,
        roots: &Roots,
        blobs: &BTreeMap<Name, Listed>,
        tombs: &BTreeMap<Name, Tomb>,
        report: &mut Report,
    ) -> Result<Vec<Name>, CollectError> {
        let (mut ripe, mut mark, mut unmark) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = None::<Duration>;
        for (name, blob) in blobs {
            if roots.kept.contains(name) {
                report.named.add(blob.size);
            }
            let tomb = tombs.get(name);
            let marked = tomb.and_then(|tomb| tomb.marked);
            if roots.now.contains(name) {
                unmark.extend(marked.map(|_| *name));
                continue;
            }
            // What is young and was never named may be about to be.
            let is_due = roots.kept.contains(name) || self.is_old(blob.modified);
            match marked {
                None if is_due => {
                    report.marked.add(blob.size);
                    next = Some(next.unwrap_or(self.grace).min(self.grace));
                    mark.push(*name);
                }
                None => {}
                Some(since) => {
                    let is_free = tomb.is_none_or(|tomb| tomb.dying.iter().all(|(_, at)| self.is_void(*at)));
                    let is_ripe = self.is_old(since) && self.is_old(blob.modified);
                    if is_ripe && is_free && !roots.kept.contains(name) {
                        ripe.push(*name);
                    } else {
                        report.waiting.add(blob.size);
                        let left = self.grace.saturating_sub(age(self.now, since));
                        next = Some(next.unwrap_or(left).min(left));
                    }
                }
            }
        }
        report.next_in_seconds = next.map(|left| left.as_secs() + 1);
        unmark.extend(
            tombs
                .iter()
                .filter(|(name, tomb)| tomb.marked.is_some() && !blobs.contains_key(name))
                .map(|(name, _)| *name),
        );
        if self.terms.dry_run {
            return Ok(ripe);
        }
        let (total, mut done) = ((mark.len() + unmark.len()) as u64, 0);
        let marking =
            mark.into_iter().map(|name| (name, true)).chain(unmark.into_iter().map(|name| (name, false)));
        let mut marking = stream::iter(marking)
            .map(|(name, is_new)| async move {
                if is_new { self.bucket.mark(name).await } else { self.bucket.unmark(name).await }
            })
            .buffer_unordered(AT_ONCE);
        while marking.try_next().await?.is_some() {
            done += 1;
            (self.told)("marking", done, total);
        }
        // What dead collectors left.
        for (name, tomb) in tombs {
            for (nonce, _) in tomb.dying.iter().filter(|(_, at)| self.is_void(*at)) {
                self.bucket.unmark_dying(*name, nonce).await?;
            }
        }
        Ok(ripe)
    }

    /// Deletes what has been marked for the grace and is still named by nobody. Gives the roots as they were read last.
    pub(super) async fn bury(
        &self,
        ripe: Vec<Name>,
        blobs: &BTreeMap<Name, Listed>,
        (mut roots, known): (Roots, &mut Known),
        report: &mut Report,
    ) -> Result<Roots, CollectError> {
        let total = ripe.len() as u64;
        let size = |name: &Name| blobs.get(name).map_or(0, |blob| blob.size);
        if self.terms.dry_run {
            ripe.iter().for_each(|name| report.blobs.add(size(name)));
            return Ok(roots);
        }
        let mut done = 0;
        for batch in ripe.chunks(BATCH) {
            let nonce = nonce();
            let begun = Boot::now();
            // What holds this collector's mark and was not tried yet; the mark of the others goes, whatever happens.
            let mut spared: Vec<Name> = batch.to_vec();
            let outcome = async {
                let marks = stream::iter(batch.to_vec()).map(|name| self.bucket.mark_dying(name, &nonce));
                marks.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
                let tombs = self.bucket.tombs().await?;
                let is_ours_alone = |name: &Name| {
                    let tomb = tombs.get(name);
                    tomb.is_some_and(|tomb| {
                        tomb.marked.is_some()
                            && tomb.dying.iter().any(|(other, _)| *other == nonce)
                            && tomb.dying.iter().all(|(other, at)| *other == nonce || self.is_void(*at))
                    })
                };
                let alone: Vec<Name> = batch.iter().filter(|name| is_ours_alone(name)).copied().collect();
                let stored = stream::iter(alone).map(|name| async move {
                    let stored = self.bucket.stored_at(name).await?;
                    Ok::<_, StoreError>((name, stored.is_some_and(|at| self.may_go(&name, at))))
                });
                let stored: Vec<(Name, bool)> = stored.buffer_unordered(AT_ONCE).try_collect().await?;
                let purged = self.purge.as_ref().map(|purge| purge.repo);
                let again = read(self.bucket, known, &roots.newest, (self.now, self.grace), purged).await?;
                for (name, may_go) in stored {
                    if !may_go || again.kept.contains(&name) {
                        continue;
                    }
                    if begun.elapsed() >= MARK_HOLDS {
                        tracing::warn!(
                            "a collection was too slow; what it had marked for deletion stays for now"
                        );
                        break;
                    }
                    spared.retain(|other| *other != name);
                    // After an error it is not known whether it is there: the mark stays until it is void.
                    self.bucket.delete_blob_once(name).await?;
                    report.blobs.add(size(&name));
                    count("blob", size(&name));
                    self.bucket.unmark_dying(name, &nonce).await?;
                    self.bucket.unmark(name).await?;
                    done += 1;
                    (self.told)("deleting blobs", done, total);
                }
                Ok::<_, CollectError>(again)
            }
            .await;
            let marks = stream::iter(spared).map(|name| self.bucket.unmark_dying(name, &nonce));
            let unmarked = marks.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await;
            roots = outcome?;
            unmarked?;
        }
        Ok(roots)
    }

    /// Deletes records that have had a successor for long.
    async fn records(&self, roots: &Roots, report: &mut Report) -> Result<(), CollectError> {
        let kept = self.grace.max(RECORDS_KEPT);
        let old = roots.old.iter().filter(|(_, since)| *since > kept);
        let old: Vec<Listed> = old.map(|(record, _)| record.clone()).collect();
        self.delete_records(old, report).await
    }

    /// Deletes records.
    pub(super) async fn delete_records(
        &self,
        old: Vec<Listed>,
        report: &mut Report,
    ) -> Result<(), CollectError> {
        let total = old.len() as u64;
        for object in &old {
            report.records.add(object.size);
        }
        if self.terms.dry_run {
            return Ok(());
        }
        let mut done = 0;
        let mut deleting = stream::iter(old)
            .map(|object| async move {
                self.bucket.delete_listed(&object).await?;
                count("record", object.size);
                Ok::<_, StoreError>(())
            })
            .buffer_unordered(AT_ONCE);
        while deleting.try_next().await?.is_some() {
            done += 1;
            (self.told)("deleting records", done, total);
        }
        Ok(())
    }

    /// Takes out what the primary has not had for long. Its blobs are collected like those of every repository taken out.
    async fn gone(&self, roots: &Roots, report: &mut Report) -> Result<(), CollectError> {
        let after = self.terms.gone_after;
        let is_due = |since: &Duration| !after.is_zero() && *since > after + EXACT;
        for (repo, since) in roots.gone.iter().filter(|(_, since)| is_due(since)) {
            report.gone += 1;
            if self.terms.dry_run {
                continue;
            }
            // It may have come back at this moment.
            if remove_if(self.bucket, repo, |newest| newest.gone.is_some()).await?.is_some() {
                count("gone", 0);
                tracing::info!(%repo, ?since, "taken out: the primary has not had it for long");
            }
        }
        Ok(())
    }

    /// Deletes what the dead have left: heartbeats, notes of work, uploads in parts, what probes left, marks of repositories that
    /// came back.
    async fn leftovers(&self, roots: &Roots, report: &mut Report) -> Result<(), CollectError> {
        let is_dead = |object: &Listed| age(self.now, object.modified) > self.grace.max(DEAD);
        let last = |object: &Listed| object.key.filename().unwrap_or_default().to_owned();
        let mut dead: Vec<Listed> = self.bucket.list_all("nodes").await?;
        dead.extend(self.bucket.list_all(".probe").await?);
        let is_lease = |object: &Listed| {
            object.key.parts_count() == 3
                && ["fetch", "repair", "compaction"].contains(&last(object).as_str())
        };
        dead.extend(roots.notes.iter().filter(|note| is_lease(note)).cloned());
        let came_back = |mark: &Listed| {
            let repo = last(mark);
            roots.newest.contains_key(&repo) && !roots.removed.contains(&repo)
        };
        dead.extend(self.bucket.list_all("removed").await?.into_iter().filter(came_back));
        // The newest order stays, so that numbers go on, and nodes that come back see what they have missed.
        let mut orders = self.bucket.list_all(ORDERS).await?;
        orders.retain(|object| object.order().is_some());
        orders.sort_by_key(Listed::order);
        orders.pop();
        orders.retain(|object| age(self.now, object.modified) > ORDERS_KEPT);
        let mut uploads = self.bucket.list_all("uploads").await?;
        uploads.retain(is_dead);
        dead.retain(is_dead);
        dead.extend(orders);
        uploads.iter().chain(&dead).for_each(|object| report.other.add(object.size));
        if self.terms.dry_run {
            return Ok(());
        }
        for note in &uploads {
            self.bucket.abort_noted(note).await?;
            count("upload", note.size);
        }
        for object in &dead {
            self.bucket.delete_listed(object).await?;
            count("other", object.size);
        }
        Ok(())
    }
}

fn count(kind: &'static str, bytes: u64) {
    metrics::counter!(names::COLLECTED_OBJECTS, "kind" => kind).increment(1);
    metrics::counter!(names::COLLECTED_BYTES).increment(bytes);
}
