//! Tags, and the trees that only tags and refs lead to: the rest of the proof of closure.
use std::collections::HashSet;

use gix_hash::ObjectId;
use gix_object::Kind;

use super::objects::Objects;
use super::{BYTES_PER_STEP, BuildError, Link, NOBODY, Progress};
use crate::pack::Gid;
use crate::pack::lru::Spread;
use crate::pack::meter::{Growing, Held};
use crate::pack::object::{self, TreeEntries};

/// Reads the new tags, `(position, target)` by position, and proves that everything they and
/// `tips` lead to exists.
pub(super) fn prove(
    objects: &Objects<'_>,
    introducers: &[u32],
    tips: &[ObjectId],
    progress: &Progress<'_>,
) -> Result<Vec<(u32, Gid)>, BuildError> {
    let mut tags = Vec::new();
    let mut trees = Vec::new();
    let (hash, mut hands) = (objects.hash(), objects.hands());
    for position in objects.new_of(Kind::Tag) {
        let gid = objects.base() + position;
        let bytes = objects.bytes(gid, &mut hands)?;
        let (target, kind) = object::tag(&bytes, hash)
            .map_err(|error| BuildError::Malformed { oid: objects.oid(gid), error })?;
        let target = objects.need(&target, kind, Link::Target, gid)?;
        tags.push((position, target));
        trees.extend((kind == Kind::Tree).then_some(target));
    }
    for oid in tips {
        let tip = objects.find(oid).ok_or(BuildError::MissingTip { oid: *oid })?;
        trees.extend((objects.kind(tip) == Kind::Tree).then_some(tip));
    }
    // What a commit introduced is proven; the rest is walked. A tree is marked where it is found, so that trees which
    // name one tree many times leave it to be walked once.
    let mut seen: HashSet<Gid, Spread> = HashSet::default();
    let mut held = Growing::new(objects.meter, 0)?;
    let mut is_new = |objects: &Objects<'_>, tree: Gid| {
        let proven = match objects.position(tree) {
            Some(position) => introducers.get(position as usize) != Some(&NOBODY),
            None => objects.below().is_some_and(|stack| stack.introducer(tree).is_some()),
        };
        !proven && seen.insert(tree)
    };
    trees.retain(|&tree| is_new(objects, tree));
    while let Some(tree) = trees.pop() {
        progress.check_stop()?;
        let bytes = objects.bytes(tree, &mut hands)?;
        let _bytes = Held::new(objects.meter, bytes.len() as u64)?;
        objects.meter.step(bytes.len() as u64 / BYTES_PER_STEP + 1)?;
        for entry in TreeEntries::new(&bytes, hash) {
            let entry = entry.map_err(|error| BuildError::Malformed { oid: objects.oid(tree), error })?;
            if let Some(kind) = entry.kind() {
                let gid = objects.need(entry.oid, kind, Link::Entry, tree)?;
                if kind == Kind::Tree && is_new(objects, gid) {
                    held.more(4 * size_of::<Gid>() as u64)?;
                    trees.push(gid);
                }
            }
        }
    }
    Ok(tags)
}
