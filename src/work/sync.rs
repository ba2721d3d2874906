//! Making the bucket equal to the primary: compare, fetch what is missing, prove it, upload it, publish it.
//!
//! Doing it twice equals doing it once (I11); at every point a crash leaves the old generation or the new one plus
//! garbage (I10). Of the nodes that see a difference one fetches and the others wait for what it publishes (`lease`), which
//! saves work and no more: two may still sync one repository at once. Blobs are named by content, and of two publishers of
//! the same number one wins and the other starts over from what the winner published (I3).
//! Relies on: `primary` for one coherent answer (I4), `receive` for the new layer and `ingest` for the proof of closure
//! (I2), `publish` for create-if-absent.

use std::sync::Arc;
use std::time::Duration;

use gix_hash::ObjectId;
use tokio::time::Instant;

use crate::boot::{time_of_day, unix_seconds};
use crate::git::ls_refs::LeftOut;
use crate::git::refs::Refs;
use crate::mirror::damage::stands;
use crate::mirror::progress::Step;
use crate::mirror::repo::{Moment, Repo};
use crate::mirror::snapshot::{OpenError, Snapshot, publishes};
use crate::primary::{Auth, PrimaryError, Seen};
use crate::store::{LayerRef, Note, StoreError};
use crate::telemetry::metrics as names;
use crate::work::Work;
use crate::work::alone::mend_alone;
use crate::work::cost::{Cost, StopOnDrop};
use crate::work::error::SyncError;
use crate::work::gone::came_back;
use crate::work::heal::{heal, repaired};
use crate::work::ingest::NewLayer;
use crate::work::lease::{Asked, Lease};
use crate::work::lend::{WORTH, ask_others};
use crate::work::publish::{Draft, Published, store_layer};
use crate::work::receive::{PATIENCE, beside_others, receive};
use crate::work::regraph::regraph;
use crate::work::trouble::Known;
use crate::work::upon::publish_upon;

/// How often a comparison starts over, after another writer won or the primary's refs moved, before the next interval.
const MAX_ROUNDS: usize = 5;
/// How many objects the primary may not have and show all the same; each is found by a fetch that is refused.
const MOST_ABSENT: usize = 50;
/// How often a sync waits for the fetches of other nodes before it fetches beside them.
const MOST_WAITS: usize = 8;
/// How long it is believed that it does not have them.
const ABSENT_FOR: Duration = Duration::from_secs(600);

/// How a sync ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// The published generation was the primary's state already.
    Unchanged,
    /// A generation was published, with or without new objects.
    Published {
        /// Its number.
        number: u64,
        /// Objects in the layer that came with it.
        new_objects: u32,
    },
    /// Another node published the state that the primary showed.
    Followed,
}

/// Compares one repository with the primary and makes the bucket equal to it. What could not be taken in before is fetched
/// again when it is due, or if somebody `insists`.
///
/// Dropping the future ends it: at its next `await`, and at the next step on the meter where a thread computes for it.
pub async fn sync(work: &Work, repo: &Arc<Repo>, insists: bool) -> Result<Synced, SyncError> {
    let (mut seen_elsewhere, mut repair) = (false, None::<Lease>);
    // Layers whose packs are lost; whether a damaged record was looked at once more; whether other nodes were asked for their caches.
    let (mut lost, mut tried, mut asked_others) = (0, false, false);
    let (mut fetching, mut waits) = (None::<Lease>, 0);
    let mut last = SyncError::Moving;
    let believed = repo.health().absent.clone().filter(|(_, since)| !insists && since.elapsed() < ABSENT_FOR);
    repo.health().absent.clone_from(&believed);
    let mut absent = believed.map(|(absent, _)| absent).unwrap_or_default();
    let mut rounds = 0;
    while rounds < MAX_ROUNDS {
        rounds += 1;
        // The place comes before the memory: of thousands that are due, those that wait hold nothing.
        let mut comparing = work.lanes.compare(repo).await.ok_or(SyncError::Stopped)?;
        // Each round counts its memory from zero: what the last one held is given back.
        let cost = Arc::new(Cost::begin(&work.sync_memory).await?.of(repo.progress()));
        let end = StopOnDrop(Arc::clone(&cost));
        let (asked, floor) = (Moment::now(), repo.floor());
        repo.step(Step::Asking);
        let offer = (!insists).then(|| repo.health().offer()).flatten();
        let looking = async {
            let known = offer.as_deref();
            Ok(work.mirror.primary.look(&repo.path, Auth::Service, &absent, known, &*cost).await?)
        };
        let looked =
            beside_others(repo, &mut comparing, looking, || asked.instant.elapsed() > PATIENCE).await;
        if matches!(&looked, Err(SyncError::Primary(_))) && repo.damage().is_known() {
            drop((comparing, end, cost));
            mend_alone(work, repo).await;
            return looked.and(Err(SyncError::Moving));
        }
        let seen = looked?;
        if seen.refs.refs.is_empty() && !absent.is_empty() {
            // What is missing is not a ref or two: that is no state to publish.
            repo.health().absent = None;
            return Err(last);
        }
        let Seen { refs: seen, left_out, capabilities } = seen;
        if offer.is_none() {
            repo.health().capabilities = Some((work.shared(capabilities), asked.instant));
        }
        let equal = |open: &Option<Arc<Snapshot>>| open.as_ref().is_some_and(|open| open.equals(&seen));
        // After a start nothing is open, and mostly nothing is to be done.
        if repo.is_first_look() && !repo.is_wanted() {
            work.mirror.learn(repo).await;
        }
        // Another node may have published already. The bucket is read only if the refs differ or damage is known.
        let known = repo.known();
        if !repo.damage().is_known()
            && !repo.is_outdated()
            && known.as_ref().is_some_and(|known| known.gone.is_none() && publishes(known, &seen))
        {
            confirmed(work, repo, asked, &left_out);
            return Ok(if seen_elsewhere { Synced::Followed } else { Synced::Unchanged });
        }
        // One node fetches what all need. Who waited often is not kept waiting by ever newer pushes.
        if fetching.is_none() && waits < MOST_WAITS && !repo.damage().is_known() {
            match work.try_lease(&repo.path, Note::Fetch).await? {
                // From here on the bucket is read: what the last holder published is seen.
                Asked::Ours(lease) => fetching = Some(lease),
                Asked::Others(_) => {
                    // The wait holds nothing that others need, and is no attempt.
                    drop((comparing, end, cost, seen));
                    (waits, rounds) = (waits + 1, rounds - 1);
                    repo.step(Step::WaitingForNode);
                    let number = known.map_or(0, |known| known.number);
                    fetching = work.lease(&repo.path, Note::Fetch, number).await?;
                    if fetching.is_none() {
                        seen_elsewhere = true;
                        // If it cannot be opened, the next round reports why.
                        let _ = work.mirror.refresh(repo).await;
                    }
                    continue;
                }
            }
        }
        let (base, known) = tokio::join!(work.mirror.newest_record(repo), Known::read(work, repo));
        let base = base?;
        let was_removed = base.as_ref().is_some_and(|base| base.removed);
        if was_removed && (repo.known().is_some() || !(insists || repo.is_wanted())) {
            work.mirror.take_out(repo);
            return Err(SyncError::Removed);
        }
        if base.as_ref().is_some_and(|base| base.gone.is_some()) {
            // The next round compares with what is served again.
            came_back(work, repo).await?;
            continue;
        }
        let repairing = stands(&work.mirror, repo, base.as_ref()).await?;
        if repairing && repair.is_none() {
            // Then the round starts over, since another node may have repaired it. The wait holds no place that others need.
            drop((comparing, end, cost, seen));
            repo.step(Step::WaitingForRepair);
            // Who repairs may wait for the lease on fetches: nobody waits for both.
            fetching = None;
            let number = base.as_ref().map_or(0, |base| base.number);
            repair = work.lease(&repo.path, Note::Repair, number).await?;
            continue;
        }
        let below = match &base {
            Some(record) if repairing => {
                drop(comparing);
                let place = cost.while_waiting(work.lanes.first(repo)).await?.ok_or(SyncError::Stopped)?;
                let mended = heal(work, repo, record, &seen, &cost).await?;
                drop(place);
                if mended.restored {
                    repaired(repo, None);
                    drop(repair.take());
                    continue;
                }
                if !mended.missing.is_empty() && !std::mem::replace(&mut asked_others, true) {
                    // What they have stored again is found whole in the next round.
                    if ask_others(work, repo, mended.missing, WORTH).await? {
                        continue;
                    }
                }
                lost = mended.lost;
                let place = cost.while_waiting(work.lanes.compare(repo)).await?;
                comparing = place.ok_or(SyncError::Stopped)?;
                mended.below
            }
            Some(record) if !was_removed => match work.mirror.open(repo, record.clone()).await {
                Ok(open) => Some(open),
                Err(OpenError::Older { .. }) => {
                    drop(comparing);
                    let place = cost.while_waiting(work.lanes.first(repo)).await?;
                    let _place = place.ok_or(SyncError::Stopped)?;
                    regraph(work, repo, record, &cost).await?;
                    continue;
                }
                // It has been reported, and is looked at in the next round.
                Err(OpenError::Store { source, .. }) if source.is_loss() => {
                    last = source.into();
                    continue;
                }
                Err(e @ OpenError::Damaged { .. }) if repo.damage().is_known() && !tried => {
                    (last, tried) = (e.into(), true);
                    continue;
                }
                Err(e) => return Err(e.into()),
            },
            _ => None,
        };
        let is_spoilt = base.as_ref().is_some_and(|base| repo.damage().is_record_spoilt(base.number));
        if !repairing && !is_spoilt && equal(&below) {
            confirmed(work, repo, asked, &left_out);
            return Ok(if seen_elsewhere { Synced::Followed } else { Synced::Unchanged });
        }
        if let Some(published) = below.as_ref().filter(|below| !repairing && !equal(&Some(Arc::clone(below))))
        {
            differs(repo, published, &seen, asked);
        }
        // The record that is open may have been published meanwhile.
        let opened = below.as_ref().filter(|_| !repairing).map(|open| open.generation.clone());
        let base = opened.or(base);
        let below = below.filter(|open| open.refs.hash == seen.hash);
        if repairing {
            tracing::warn!(repo = %repo.path, layers = lost, "what is lost is fetched again from the primary");
        }
        let digest = hex::encode(seen.digest());
        let made = match missing_tips(below.as_deref(), &seen) {
            wants if wants.is_empty() => None,
            _ if let Some(stuck) = known.forbids(work, &digest).filter(|_| !insists) => return Err(stuck),
            wants => match receive(work, repo, below.clone(), wants, &seen, &cost, comparing).await {
                Ok(made) => {
                    repo.health().refused.retain(|oid, _| absent.contains(oid));
                    Some(made)
                }
                // A tip vanished between the answer and the fetch, or another server of the primary answered, or the primary
                // shows what it does not have: ask again, and in the last case leave out the refs that name it.
                Err(SyncError::Primary(PrimaryError::Remote(words))) if words.contains("not our ref") => {
                    let oid = refused(&words).filter(|_| absent.len() < MOST_ABSENT);
                    let is_sure = |oid| insists || repo.health().refuse(oid) >= work.compare_every;
                    if oid.is_some_and(|oid| is_sure(oid) && absent.insert(oid)) {
                        rounds -= 1;
                        repo.health().absent = Some((absent.clone(), Instant::now()));
                    }
                    last = SyncError::Primary(PrimaryError::Remote(words));
                    continue;
                }
                // A layer below cannot be read: it is made anew.
                Err(e) if below.as_ref().is_some_and(|b| repo.report_damage(&b.generation, &e)) => {
                    last = e;
                    continue;
                }
                Err(e) => return Err(known.failed(work, repo, &digest, e).await),
            },
        };
        let (made, _place) = made.unzip();
        repo.step(Step::Uploading);
        let made = made.flatten();
        let new_objects = made.as_ref().map_or(0, |(new, _)| new.layer.graph.len());
        if new_objects > 0 {
            repo.evidence().done(format!("fetched {new_objects} objects"));
        }
        let new = made.as_ref().map(|(new, _)| new);
        let layers = layers(work, repo, below.as_deref(), new, &seen, repairing).await?;
        if repo.floor() != floor {
            // It was purged: what the primary showed before may be what for.
            last = SyncError::Moving;
            continue;
        }
        let draft = Draft {
            base: base.as_ref(),
            layers,
            refs: &seen,
            asked: unix_seconds(asked.time),
            repairing,
            answers: None,
        };
        repo.step(Step::Publishing);
        match publish_upon(work, repo, draft, new).await? {
            Published::Won(snapshot) => {
                repo.damage().published(&snapshot.generation);
                if is_spoilt {
                    repaired(repo, Some("its record, published again".into()));
                }
                work.published(repo);
                if repairing {
                    repo.damage().repaired(&snapshot.generation);
                    // What was made anew may have the same bytes, and so the name that was reported.
                    let _ = stands(&work.mirror, repo, Some(&snapshot.generation)).await;
                    let from = |layers| format!("{layers} layers from the primary: {new_objects} objects");
                    repaired(repo, (lost > 0).then(|| from(lost)));
                    drop(repair.take());
                }
                repo.evidence().done(format!("published generation {}", snapshot.generation.number));
                confirmed(work, repo, asked, &left_out);
                if was_removed {
                    // Where it stays, nodes look at the record once more now and then.
                    let _ = work.mirror.bucket.unmark_removed(&repo.path).await;
                }
                known.over(work, repo).await;
                return Ok(Synced::Published { number: snapshot.generation.number, new_objects });
            }
            Published::Lost(winner) => {
                repo.evidence().done(format!("another node published generation {}", winner.number));
                let is_ours = work.mirror.bucket.is_record_of(&winner.primary, &work.mirror.primary.name());
                if is_ours && !winner.removed {
                    // If it cannot be opened, the next round reports why.
                    let _ = work.mirror.open(repo, *winner).await;
                }
                seen_elsewhere = true;
                last = SyncError::Moving;
            }
        }
    }
    Err(last)
}

/// The layers of the next generation, the new one stored. A history that shares nothing with what was there (a repository
/// made again under its name) replaces it.
async fn layers(
    work: &Work,
    repo: &Repo,
    below: Option<&Snapshot>,
    made: Option<&NewLayer>,
    seen: &Refs,
    repairing: bool,
) -> Result<Vec<LayerRef>, StoreError> {
    let stands_alone = made.is_some_and(|new| {
        let layer = &new.layer;
        layer.graph.externals().len() == 0 && seen.tips().iter().all(|tip| layer.lookup(tip).is_some())
    });
    let mut layers = match below {
        Some(below) if !stands_alone => below.generation.layers.clone(),
        _ => Vec::new(),
    };
    if let Some(new) = made {
        layers.push(store_layer(work, repo, new, repairing).await?);
    }
    Ok(layers)
}

/// Takes note that what is published is what the primary showed when it was asked at `asked`.
fn confirmed(work: &Work, repo: &Repo, asked: Moment, left_out: &LeftOut) {
    let left_out = work.mirror.primary.note_left_out(&repo.path, left_out);
    let before = {
        let mut health = repo.health();
        if let Some(words) = &left_out {
            repo.evidence().done(words.clone());
        }
        health.left_out = left_out;
        health.by_others = false;
        health.asked.replace(asked)
    };
    equal(repo);
    if let Some(before) = before {
        let lag = asked.instant.saturating_duration_since(before.instant);
        metrics::histogram!(names::REPO_LAG).record(lag.as_secs_f64());
    }
}

/// Takes note of how the primary differs from what is published.
fn differs(repo: &Repo, published: &Snapshot, seen: &Refs, asked: Moment) {
    let before = repo.health().asked.map(|asked| asked.time);
    let mut evidence = repo.evidence();
    if evidence.differs(&published.refs, seen, asked.time, before)
        && let Some(found) = evidence.newest(asked.time)
    {
        metrics::counter!(names::DIFFERENCES).increment(1);
        let first = found.refs.first().map(|r| r.name.as_str()).unwrap_or_default();
        let number = published.generation.number;
        tracing::info!(repo = %repo.path, number, refs = found.refs_count, first, "differs from the primary");
    }
}

/// Takes note that what is published equals the primary.
fn equal(repo: &Repo) {
    let mut evidence = repo.evidence();
    let now = time_of_day();
    if let Some(over) = evidence.equal(now) {
        let took = now.duration_since(over.since).unwrap_or_default();
        metrics::histogram!(names::DIFFERENCE_SECONDS).record(took.as_secs_f64());
        tracing::info!(repo = %repo.path, ?took, done = over.done.join(", "), "equal to the primary again");
    }
}

/// The object that `words` say the primary does not have.
fn refused(words: &str) -> Option<ObjectId> {
    let (_, behind) = words.split_once("not our ref ")?;
    ObjectId::from_hex(behind.split_whitespace().next()?.as_bytes()).ok()
}

fn missing_tips(below: Option<&Snapshot>, seen: &Refs) -> Vec<ObjectId> {
    let mut tips = seen.tips();
    if let Some(below) = below {
        tips.retain(|tip| below.stack.lookup(tip).is_none());
    }
    tips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_that_was_refused_is_read() {
        for id in ["1".repeat(40), "2".repeat(64)] {
            let oid = ObjectId::from_hex(id.as_bytes()).ok();
            assert_eq!(refused(&format!("upload-pack: not our ref {id}")), oid);
            assert_eq!(refused(&format!("upload-pack: not our ref {id}\nfatal: it ends here")), oid);
        }
        assert_eq!(refused("upload-pack: not our ref refs/heads/a"), None);
        assert_eq!(refused("not our ref "), None);
    }
}
