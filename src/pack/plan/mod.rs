//! The plan: how the objects of an answer lie in its pack, before a byte of it is read.
//!
//! Entries are copied as they are stored, in the order of the stack (layer by layer, pack order).
//! Neighbours whose offset deltas keep their distances are one [`Segment::Copy`], so a clone is a
//! few dozen segments. Where something was left out, the header of a delta that spans the gap is
//! rewritten: with the new distance, or with the base's id if the client did not say `ofs-delta`, or if
//! the base is the client's (a thin pack). A client that said `ofs-delta` gets no delta by id on an object
//! of the same pack, however it was stored: some cannot read one.
//!
//! Objects whose stored delta leans on nothing that the client will have are packed anew. So are big
//! objects that are stored whole, if the client has one that is joined to them by stored deltas (an
//! older version, most often). They are sent as deltas on that or, where the base that is left out joins
//! them to another one of their kind, on that one ([`super::copies`]); and else whole. They come
//! first in the pack: their length is known only when they are sent, so standing in front of all
//! else they shift every other entry by the same amount.
//!
//! The distance to one of them, and so the length of a header that states it, is known only when it is sent. Such a header
//! is a segment of its own ([`Segment::OnAnew`]), laid out with a length that may be wrong by some bytes. Deltas that
//! span one are segments that the sender completes too ([`Segment::Across`]); all other distances are known here.
//!
//! The deltas of a plan form no cycle. An object packed anew has as its base an object that is not in the answer, or
//! one that was packed anew before it. The base of any other entry, as it is stored, lies in the entry's own layer, and
//! the canonical gid of that base lies in the same layer or in a lower one. From entry to base the layer therefore never
//! rises, so a cycle would lie within one layer. Within a layer the entries have the bases that its pack has, and a pack
//! has no cycle. A pack that holds an object twice is the exception, since both copies have one gid. There, and for
//! deltas by id that stand before their base, the chain of bases is followed once before anything is laid out, and an
//! entry whose chain leads back to it is packed anew.
//!
//! Relies on: gids as the stack numbers them. Elsewhere: what is in the answer (`select`), how
//! entries lie and name their bases (`layout`), turning a plan into bytes (`send`, `write`).
use super::entry;
use joins::Orphans;
mod joins;
mod layout;
pub mod select;

use super::layer::encode;
use super::layer::graph::view::GraphEntry;
use super::meter::{Halt, Meter};
use super::set::{GidSet, Gids};
use super::{Gid, Selection, Stack};
use layout::Layout;
pub use layout::{Plan, Segment};

/// From this size on, in the pack, an object that is stored whole is worth a delta.
const BIG: u64 = 512;
/// An object of fewer bytes is not worth a delta, however it is stored.
const SMALL: u64 = 64;
/// An object of more bytes is copied as it is stored, which needs no memory.
const HUGE: u64 = 16 << 20;
/// A plan's memory is counted whenever it has grown by so many bytes.
const COUNTED: u64 = 1 << 20;

/// What the client can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlanOptions {
    /// Deltas may name their base by distance (`ofs-delta`).
    pub ofs_delta: bool,
    /// Deltas may lean on objects the client has (`thin-pack`).
    pub thin: bool,
}

/// Lays out the objects of `selection`. Objects, and what is looked at to find deltas, count on `meter`.
pub fn plan(
    stack: &Stack,
    selection: &mut Selection<'_>,
    options: PlanOptions,
    meter: &dyn Meter,
) -> Result<Plan, Halt> {
    let chosen = GidSet::from_roaring(&selection.objects, stack.len());
    let objects = selection.objects.len() as u32;
    let mut anew = Anew::find(stack, &chosen, selection, options.thin, meter)?;
    let joined = std::mem::take(&mut anew.joined);
    let mut layout = Layout::new(stack, &chosen, (&anew.set, &anew.forward), options.ofs_delta);
    layout.literal(&entry::pack_header(objects));
    layout.out = 0;
    let mut counted = 0;
    let mut joined = joined.into_iter().peekable();
    for gid in anew.set.iter() {
        let path = joined.next_if(|path| path.first() == Some(&gid));
        let join = path.map(|path| {
            layout.plan.joins.push(path);
            layout.plan.joins.len() as u32 - 1
        });
        let path = join.and_then(|join| layout.plan.joins.get(join as usize)).map_or(&[][..], Vec::as_slice);
        layout.plan.room = layout.plan.room.max(encode::room(stack, gid, path, meter)?);
        let last = path.last().copied();
        let base = last.filter(|_| options.ofs_delta).and_then(|base| layout.number_of(base));
        layout.plan.segments.push(Segment::Anew { gid, join, base, is_base: false });
        layout.plan.anew += 1;
    }
    each_entry(stack, &chosen, |gid, layer, position, entry| {
        if !anew.set.contains(gid) {
            layout.object(gid, layer, position, entry);
        }
        let bytes = (layout.plan.literals.len() + size_of_val(&layout.plan.segments[..])) as u64;
        if bytes >= counted + COUNTED {
            meter.hold(bytes - counted)?;
            counted = bytes;
        }
        meter.step(1)
    })?;
    let mut plan = layout.plan;
    plan.objects = objects;
    plan.known_len = entry::PACK_HEADER_LEN as u64 + layout.out + stack.hash().len_in_bytes() as u64;
    Ok(plan)
}

/// Calls `each` with gid, layer, position and entry of each chosen object in order, until it fails.
fn each_entry(
    stack: &Stack,
    chosen: &GidSet,
    mut each: impl FnMut(Gid, usize, u32, &GraphEntry) -> Result<(), Halt>,
) -> Result<(), Halt> {
    let mut layer = 0;
    let mut end = stack.first_gid(1);
    for gid in chosen.iter() {
        while gid >= end && layer < stack.layers().len() {
            layer += 1;
            end = stack.first_gid(layer + 1);
        }
        let position = gid - stack.first_gid(layer);
        if let Some(entry) = stack.layers().get(layer).and_then(|held| held.graph.entry(position)) {
            each(gid, layer, position, &entry)?;
        }
    }
    Ok(())
}

/// The objects that do not go as they are stored.
struct Anew {
    set: GidSet,
    /// Ways from some of them to what they are to lean on, in the order of gids.
    joined: Vec<Vec<Gid>>,
    /// Entries whose base stands behind them in the order of gids.
    forward: Gids,
}

impl Anew {
    fn find(
        stack: &Stack,
        chosen: &GidSet,
        selection: &mut Selection<'_>,
        thin: bool,
        meter: &dyn Meter,
    ) -> Result<Self, Halt> {
        let set = GidSet::new(stack.len());
        let mut anew = Self { set, joined: Vec::new(), forward: Gids::default() };
        let thin = thin && selection.knows_client();
        let mut forward = Vec::new();
        let mut orphans = Orphans::default();
        each_entry(stack, chosen, |gid, layer, _, entry| {
            meter.step(1)?;
            let base = entry.base.map(|base| stack.canonical(layer, base));
            let is_big = entry.end - entry.offset >= BIG;
            match base {
                Some(base) if chosen.contains(base) => {
                    if base >= gid {
                        forward.push(gid);
                    }
                    return Ok(());
                }
                Some(base) if thin && selection.surely_has(base, meter)? => return Ok(()),
                Some(_) => _ = anew.set.insert(gid),
                None if is_big => {}
                None => return Ok(()),
            }
            let mut to_client = None;
            if thin && (SMALL..=HUGE).contains(&stack.size(gid)) {
                let fits = |before: &Gid| stack.size(*before) <= HUGE && !chosen.contains(*before);
                to_client = selection.predecessor(gid).filter(fits).map(|before| vec![gid, before]);
                if to_client.is_none() {
                    to_client = joins::to_client(stack, chosen, selection, gid, meter)?;
                }
            }
            let path = match base {
                Some(_) if to_client.is_none() => orphans.join(stack, gid),
                _ => to_client,
            };
            if let Some(path) = path {
                anew.set.insert(gid);
                anew.joined.push(path);
            }
            Ok(())
        })?;
        for gid in forward {
            if anew.leans_on_itself(stack, chosen, gid, meter)? {
                anew.set.insert(gid);
            } else {
                anew.forward.insert(gid);
            }
        }
        Ok(anew)
    }

    /// Follows the chain of deltas that go as stored. Every cycle has a member whose base stands behind it.
    fn leans_on_itself(
        &self,
        stack: &Stack,
        chosen: &GidSet,
        gid: Gid,
        meter: &dyn Meter,
    ) -> Result<bool, Halt> {
        let mut seen = Gids::default();
        let mut at = gid;
        while !self.set.contains(at) && seen.insert(at) {
            match stack.entry(at).base.filter(|&base| chosen.contains(base)) {
                Some(base) if base == gid => return Ok(true),
                Some(base) => at = base,
                None => return Ok(false),
            }
            meter.step(1)?;
        }
        Ok(false)
    }
}
