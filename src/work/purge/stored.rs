//! Which objects are stored beside the reachable ones, and which ref reaches one.
//!
//! Elsewhere: what is reachable (`compact::purge`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use gix_hash::ObjectId;

use super::PurgeError;
use crate::git::refname;
use crate::git::refs::Refs;
use crate::mirror::snapshot::{Snapshot, object_format};
use crate::pack::layer::open_idx;
use crate::store::{BlobId, Generation};
use crate::work::Work;
use crate::work::collect::purge::Survey;
use crate::work::collect::round::Told;
use crate::work::compact::purge::reached;

/// The most objects of old packs that are told apart; more are counted as they come.
const MOST_OBJECTS: usize = 4_000_000;
/// How many refs are asked whether they reach an object.
const MOST_REFS: usize = 64;

/// Objects that only packs of older records hold.
pub(super) struct Stored {
    ids: HashSet<ObjectId>,
    /// How many they are.
    pub objects: u64,
}

impl Stored {
    /// Whether one of them has this id.
    pub fn has(&self, oid: &ObjectId) -> bool {
        self.ids.contains(oid)
    }
}

/// Finds what the packs of older records hold beside the newest stack, and what is not `reached` there. What cannot be read
/// holds nothing that a node could read either.
pub(super) async fn only_in_old_packs(
    work: &Work,
    found: &Survey,
    newest: Option<&Snapshot>,
    is_reached: impl Fn(&ObjectId) -> bool,
    told: Told<'_>,
) -> Result<Stored, PurgeError> {
    let of_newest: HashSet<BlobId> =
        newest.iter().flat_map(|open| &open.generation.layers).map(|layer| layer.idx.id).collect();
    let mut old = BTreeMap::new();
    for record in &found.read {
        for layer in record.layers.iter().filter(|layer| !of_newest.contains(&layer.idx.id)) {
            old.insert(layer.idx, object_format(record));
        }
    }
    let total = old.len() as u64;
    let mut stored = Stored { ids: HashSet::new(), objects: 0 };
    for (n, (blob, hash)) in old.into_iter().enumerate() {
        told("reading old indexes", n as u64, total);
        let Ok(hash) = hash else { continue };
        let idx = match work.mirror.local.mapped(&blob).await {
            Err(error) if error.is_loss() => continue,
            idx => idx?,
        };
        let Ok(idx) = open_idx(idx, hash) else { continue };
        for rank in 0..idx.num_objects() {
            let oid = idx.oid_at_index(rank).to_owned();
            let is_known = is_reached(&oid) || newest.is_some_and(|open| open.stack.lookup(&oid).is_some());
            if !is_known && (stored.ids.len() >= MOST_OBJECTS || stored.ids.insert(oid)) {
                stored.objects += 1;
            }
        }
    }
    Ok(stored)
}

/// Says whether the answers that a generation keeps hold nothing but what is `reached`.
pub(super) async fn only_reached_answers(
    work: &Work,
    generation: &Generation,
    is_reached: impl Fn(&ObjectId) -> bool,
) -> Result<bool, PurgeError> {
    for answer in &generation.answers {
        // What is lost or cannot be read is not kept.
        let idx = match work.mirror.local.mapped(&answer.layer.idx).await {
            Err(error) if error.is_loss() => return Ok(false),
            idx => idx?,
        };
        let idx = object_format(generation).ok().and_then(|hash| open_idx(idx, hash).ok());
        let Some(idx) = idx else { return Ok(false) };
        if !(0..idx.num_objects()).all(|rank| is_reached(&idx.oid_at_index(rank).to_owned())) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The name of a ref that reaches an object, if one of the first few does.
pub(super) async fn named_ref(
    work: &Work,
    open: &Arc<Snapshot>,
    refs: &Refs,
    oid: ObjectId,
) -> Option<String> {
    let name = |found: &crate::git::refs::Ref| refname::to_text(found.name.as_ref());
    if let Some(tip) = refs.refs.iter().find(|r| r.oid == oid || r.peeled == Some(oid)) {
        return Some(name(tip));
    }
    for found in refs.refs.iter().take(MOST_REFS) {
        if reached(work, open, vec![found.oid]).await.ok()?.reaches(open, &oid) {
            return Some(name(found));
        }
    }
    None
}
