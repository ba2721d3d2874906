//! The plan: which objects an answer holds and how they lie in its pack, before a byte of it is read.
//!
//! - [`select`]: which objects a request gets.
//! - `anew`: which of them are packed anew, and `joins`: by which stored deltas they are joined to a base.
//! - `layout`: where each entry lies, and how it names its base.
//! - [`stored`]: an answer that was made before, from which entries are copied where that can be done.
//!
//! Entries are copied as they are stored, in the order of the stack (layer by layer, pack order).
//! Neighbours whose offset deltas keep their distances are one [`Segment::Copy`], so a clone is a
//! few dozen segments. Where something was left out, the header of a delta that spans the gap is
//! rewritten: with the new distance, or with the base's id if the client did not say `ofs-delta`, or if
//! the base is the client's (a thin pack). A client that said `ofs-delta` gets no delta by id on an object
//! of the same pack, however it was stored: some cannot read one.
//!
//! Relies on: gids as the stack numbers them. Elsewhere: turning a plan into bytes (`write`).
mod anew;
mod joins;
mod layout;
pub mod select;
pub mod stored;

use super::entry;
use super::layer::encode;
use super::layer::graph::view::GraphEntry;
use super::meter::{Halt, Meter};
use super::set::GidSet;
use super::{Gid, Selection, Stack};
use anew::Anew;
use layout::Layout;
pub use layout::{Plan, Segment};
use stored::Stored;

/// A plan's memory is counted whenever it has grown by so many bytes.
const COUNTED: u64 = 1 << 20;

/// What the client can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlanOptions {
    /// Deltas may name their base by distance (`ofs-delta`).
    pub ofs_delta: bool,
    /// Deltas may have bases that only the client has (`thin-pack`).
    pub thin: bool,
}

/// Lays out the objects of `selection`. Objects, and what is looked at to find deltas, count on `meter`.
pub fn plan(
    stack: &Stack,
    selection: &mut Selection<'_>,
    options: PlanOptions,
    meter: &dyn Meter,
) -> Result<Plan, Halt> {
    plan_with(stack, selection, None, options, meter)
}

/// The same, with a stored answer: what it holds of the selection stands before the rest, but for what is packed anew.
pub fn plan_with(
    stack: &Stack,
    selection: &mut Selection<'_>,
    stored: Option<&Stored>,
    options: PlanOptions,
    meter: &dyn Meter,
) -> Result<Plan, Halt> {
    let chosen = GidSet::from_roaring(&selection.objects, stack.len());
    let objects = selection.objects.len() as u32;
    let usable = stored.map(|stored| stored.usable(stack, &chosen, meter)).transpose()?;
    let is_stored = |gid| usable.as_ref().is_some_and(|usable| usable.set.contains(gid));
    let mut anew = Anew::find(stack, &chosen, &is_stored, selection, options.thin, meter)?;
    let joined = std::mem::take(&mut anew.joined);
    let mut layout = Layout::new(stack, &chosen, (&anew.set, &anew.forward), options.ofs_delta);
    layout.stored = usable.as_ref();
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
        let path = layout.plan.path(join);
        let room = encode::room(stack, gid, path, meter)?;
        let last = path.last().copied();
        layout.plan.room = layout.plan.room.max(room);
        layout.plan.anew_bytes += stack.size(gid);
        let base = last.filter(|_| options.ofs_delta).and_then(|base| layout.number_of(base));
        layout.plan.segments.push(Segment::Anew { gid, join, base, is_base: false });
        layout.plan.anew += 1;
    }
    let mut count = |plan: &Plan| {
        let bytes = (plan.literals.len() + size_of_val(&plan.segments[..])) as u64;
        if bytes >= counted + COUNTED {
            meter.hold(bytes - counted)?;
            counted = bytes;
        }
        meter.step(1)
    };
    for &position in usable.iter().flat_map(|usable| &usable.positions) {
        layout.stored(position);
        count(&layout.plan)?;
    }
    each_entry(stack, &chosen, |gid, layer, position, entry| {
        if !anew.set.contains(gid) && !is_stored(gid) {
            layout.object(gid, layer, position, entry);
        }
        count(&layout.plan)
    })?;
    let mut plan = layout.plan;
    plan.objects = objects;
    plan.known_len = entry::PACK_HEADER_LEN as u64 + layout.out + stack.hash().len_in_bytes() as u64;
    plan.trailer = stored.and_then(|stored| stored.trailer_of(&plan));
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
