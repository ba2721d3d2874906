//! A stored answer: a pack beside the stack whose entries stand in for those of the stack.
//!
//! An answer that was made once holds its objects in the form in which a client gets them: what leans on nothing outside of it, in
//! one piece. The same objects are then copied from it, whatever else a later answer holds. It counts only for objects that are in
//! the answer anyway: which these are is decided by the stack alone.
//!
//! Relies on: a pack that holds each object once and whose deltas have their bases in it, before them where they name them by
//! distance. Elsewhere: which objects an answer holds (`select`), where they lie in it (`layout`).
use std::sync::Arc;

use gix_hash::ObjectId;
use roaring::RoaringBitmap;

use super::{Plan, Segment};
use crate::pack::entry;
use crate::pack::layer::Layer;
use crate::pack::layer::graph::NONE;
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::GidSet;
use crate::pack::{Gid, Stack};

/// The number by which a [`super::Segment::Copy`] names the pack of a stored answer.
pub const STORED: u32 = u32::MAX;

/// A stored answer, beside one stack.
pub struct Stored {
    pub(super) layer: Arc<Layer>,
    /// By position in its pack: the object as the stack numbers it, or NONE if the stack does not have it.
    gids: Vec<Gid>,
    /// The objects that the stack has, sorted, each with its position.
    places: Vec<(Gid, u32)>,
}

impl Stored {
    /// Finds the objects of an answer in a stack: one look each.
    pub fn beside(layer: Arc<Layer>, stack: &Stack) -> Self {
        let of = |position| layer.oid(position).and_then(|oid| stack.lookup(&oid)).unwrap_or(NONE);
        let gids: Vec<Gid> = (0..layer.graph.len()).map(of).collect();
        let mut places: Vec<(Gid, u32)> =
            gids.iter().copied().zip(0..).filter(|(gid, _)| *gid != NONE).collect();
        places.sort_unstable();
        places.dedup_by_key(|(gid, _)| *gid);
        Self { layer, gids, places }
    }

    /// About how many bytes it takes beside the mapped files.
    pub fn bytes(&self) -> u64 {
        (size_of_val(&self.gids[..]) + size_of_val(&self.places[..])) as u64
    }

    /// The object at a position, as the stack numbers it.
    pub(super) fn gid(&self, position: u32) -> Gid {
        self.gids.get(position as usize).copied().unwrap_or(NONE)
    }

    /// The position of an object.
    pub(super) fn position(&self, gid: Gid) -> Option<u32> {
        let at = self.places.binary_search_by_key(&gid, |(gid, _)| *gid).ok()?;
        self.places.get(at).map(|(_, position)| *position)
    }

    /// Says whether another pack holds all but one of each `part` of its objects.
    pub fn is_mostly_in(&self, other: &Layer, part: u32) -> bool {
        let oids = (0..self.layer.graph.len()).filter_map(|position| self.layer.oid(position));
        let lacking = oids.filter(|oid| other.lookup(oid).is_none()).count();
        lacking as u64 * u64::from(part) <= u64::from(self.layer.graph.len())
    }

    /// How many objects it holds.
    pub fn objects(&self) -> u64 {
        self.gids.len() as u64
    }

    /// How many of `chosen` it holds.
    pub fn count(&self, chosen: &RoaringBitmap) -> u64 {
        self.places.iter().filter(|(gid, _)| chosen.contains(*gid)).count() as u64
    }

    /// The trailer of a plan that is this pack as it lies there.
    pub(super) fn trailer_of(&self, plan: &Plan) -> Option<ObjectId> {
        let header = entry::pack_header(self.layer.graph.len());
        let (start, end) = (header.len() as u64, self.layer.graph.offset(self.layer.graph.len())?);
        let is_whole = plan.literals == header
            && plan.segments.get(1..)
                == Some(&[Segment::Copy { layer: STORED, start, len: end.checked_sub(start)? }]);
        is_whole.then(|| ObjectId::try_from(self.layer.graph.pack_trailer()).ok()).flatten()
    }

    /// The objects of `chosen` that are copied from it: those whose bases are, and that the stack would not give in fewer bytes.
    pub(super) fn usable(
        &self,
        stack: &Stack,
        chosen: &GidSet,
        meter: &dyn Meter,
    ) -> Result<Usable<'_>, Halt> {
        let mut set = GidSet::new(chosen.universe());
        let mut usable = vec![false; self.gids.len()];
        for &(gid, position) in self.places.iter().filter(|(gid, _)| chosen.contains(*gid)) {
            let (here, there) = (self.layer.graph.entry(position), stack.entry(gid));
            let is_anew = there.base.is_some_and(|base| !chosen.contains(base));
            // Headers differ where distances do.
            let len =
                |end: u64, offset: u64, header_len: u8| (end - offset).saturating_sub(header_len.into());
            let there = len(there.end, there.offset, there.header_len);
            let is_longer = here.is_none_or(|here| len(here.end, here.offset, here.header_len) > there);
            if let Some(place) = usable.get_mut(position as usize) {
                *place = is_anew || !is_longer;
            }
        }
        meter.step(self.gids.len() as u64)?;
        // A base by distance stands before what leans on it, so one pass finds all; one that stands behind counts as not there.
        let mut positions = Vec::new();
        for (position, &gid) in (0..).zip(&self.gids) {
            let entry =
                self.layer.graph.entry(position).filter(|_| usable.get(position as usize) == Some(&true));
            let leans_well = entry.is_some_and(|entry| {
                entry.base.is_none_or(|base| base < position && usable.get(base as usize) == Some(&true))
            });
            if let Some(place) = usable.get_mut(position as usize) {
                *place = leans_well;
            }
            if leans_well {
                set.insert(gid);
                positions.push(position);
            }
        }
        Ok(Usable { stored: self, set, positions })
    }
}

/// What of a stored answer goes into another one.
pub(super) struct Usable<'s> {
    pub stored: &'s Stored,
    /// The objects.
    pub set: GidSet,
    /// Their positions, in the order of the pack.
    pub positions: Vec<u32>,
}
