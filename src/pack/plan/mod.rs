//! The plan: which objects an answer holds and how they lie in its pack, before a byte of it is read.
//!
//! - [`select`]: which objects a request gets.
//! - `anew`: which of them are packed anew, and `joins`: by which stored deltas they are joined to a base.
//! - [`depth`]: which of them would end chains of deltas that are too long.
//! - `layout`: where each entry lies, and how it names its base.
//! - [`search`](mod@search): deltas among them that are stored nowhere, and `names`: which objects are worth comparing.
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
pub mod depth;
mod joins;
mod layout;
mod names;
pub mod search;
pub mod select;
pub mod stored;

use super::entry;
use super::layer::graph::view::GraphEntry;
use super::meter::{Halt, Meter};
use super::set::{GidMap, GidSet, Gids};
use super::{Gid, Selection, Stack};
use anew::Anew;
use layout::Layout;
pub use layout::{Plan, Segment};
use search::Found;
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
    plan_with(stack, selection, Hint::None, options, meter)
}

/// What is known of a selection beside what the stack says.
#[derive(Clone, Copy)]
pub enum Hint<'a> {
    /// Nothing.
    None,
    /// A stored answer: what it holds of the selection stands before the rest, but for what is packed anew.
    Stored(&'a Stored),
    /// The bases that a search among the objects of the selection has found.
    Found(&'a Found),
    /// Objects that are packed whole.
    Whole(&'a Gids),
}

/// The same, with a hint.
pub fn plan_with(
    stack: &Stack,
    selection: &mut Selection<'_>,
    hint: Hint<'_>,
    options: PlanOptions,
    meter: &dyn Meter,
) -> Result<Plan, Halt> {
    let (stored, found, whole) = match hint {
        Hint::None => (None, None, None),
        Hint::Stored(stored) => (Some(stored), None, None),
        Hint::Found(found) => (None, Some(found), None),
        Hint::Whole(whole) => (None, None, Some(whole)),
    };
    let chosen = GidSet::from_roaring(&selection.objects, stack.len());
    let objects = selection.objects.len() as u32;
    let usable = stored.map(|stored| stored.usable(stack, &chosen, meter)).transpose()?;
    let is_stored = |gid| usable.as_ref().is_some_and(|usable| usable.set.contains(gid));
    let mut anew = Anew::find(stack, &chosen, &is_stored, (found, whole), selection, options.thin, meter)?;
    let joined = std::mem::take(&mut anew.joined);
    let mut layout = Layout::new(stack, &chosen, (&anew.set, &anew.forward), options.ofs_delta);
    layout.stored = usable.as_ref();
    layout.literal(&entry::pack_header(objects));
    layout.out = 0;
    let mut counted = 0;
    let mut paths: GidMap<Vec<Gid>> =
        joined.into_iter().filter_map(|path| Some((*path.first()?, path))).collect();
    let mut chain = Vec::new();
    for gid in anew.set.iter() {
        // Bases that were found by a search may stand behind.
        let mut at = Some(gid).filter(|gid| !layout.has_number(*gid));
        while let Some(gid) = at {
            chain.push(gid);
            let base = found.and_then(|found| found.base(gid));
            at = base.filter(|base| !layout.has_number(*base));
        }
        while let Some(gid) = chain.pop() {
            let join = paths.remove(&gid).map(|path| {
                layout.plan.joins.push(path);
                layout.plan.joins.len() as u32 - 1
            });
            layout.anew(gid, join, meter)?;
        }
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
