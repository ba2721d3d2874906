//! The search for deltas: on which other objects of an answer those are best packed whose stored bases are not in it.
//!
//! As `git pack-objects` does it (`find_deltas` and `try_delta`): objects of a type in the order of their names and sizes, each compared with
//! the ten before it. Deltas that are stored stay, if their base is in the answer; what is stored whole in a layer is no delta on
//! another such object of that layer, since whoever packed the layer has tried that. Objects without a name, as in an answer of blobs alone, lie beside those with which they
//! share a chain of stored deltas.
//!
//! It takes many times longer than laying out an answer, so it is for what is stored and sent many times.
//! Elsewhere: names (`names`), comparing (`copies`), what becomes of the bases that are found (`anew`).
use std::cmp::Reverse;
use std::collections::VecDeque;

use bytes::Bytes;
use gix_object::Kind;
use roaring::RoaringBitmap;

use super::depth::DEEPEST;
use super::each_entry;
use super::names::names;
use crate::pack::copies::Blocks;
use crate::pack::filter::trees::TreeError;
use crate::pack::layer::decode;
use crate::pack::meter::{Halt, Held, Meter};
use crate::pack::set::{GidMap, GidSet};
use crate::pack::tally::Tally;
use crate::pack::{Gid, Scratch, Source, Stack};

/// With how many objects each is compared.
const WINDOW: usize = 10;
/// Smaller objects are not worth a delta.
const SMALL: u64 = 50;
/// Larger objects are not compared.
const LARGE: u64 = 16 << 20;
/// Bytes of objects that others are compared with, and of what is known of them, beside the one that came last.
const WINDOW_BYTES: usize = 24 << 20;
/// Bytes of decoded objects that are kept.
const CACHE: usize = 16 << 20;
/// What is kept of one object.
const NOTE: u64 = 64;
/// Comparing so many bytes counts as one step.
const BYTES_A_STEP: u64 = 64;

/// The bases that a search has found.
#[derive(Debug, Default)]
pub struct Found {
    bases: GidMap<Gid>,
}

impl Found {
    /// The object on which `gid` is best packed as a delta; none if it is best as it is stored, or whole. Following bases leads
    /// to no cycle.
    pub fn base(&self, gid: Gid) -> Option<Gid> {
        self.bases.get(&gid).copied()
    }

    /// For how many objects one was found.
    pub fn len(&self) -> usize {
        self.bases.len()
    }

    /// Says whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }
}

/// Looks for deltas among `objects`. Work and memory count on `meter`.
pub fn search(
    stack: &Stack,
    source: &dyn Source,
    objects: &RoaringBitmap,
    meter: &dyn Meter,
) -> Result<Found, TreeError> {
    let _held = Held::new(meter, (WINDOW_BYTES + CACHE) as u64)?;
    let chosen = GidSet::from_roaring(objects, stack.len());
    let (mut scratch, mut tally) = (Scratch::new(CACHE, u64::MAX), Tally::new(meter));
    let names = names(stack, source, &chosen, &mut scratch, &mut tally, meter)?;
    let candidates = candidates(stack, &chosen, &names, &mut tally, meter)?;
    drop(names);
    let mut found = Found::default();
    let mut window = Window::default();
    for candidate in &candidates {
        let room = decode::peak(stack, candidate.gid, meter)?;
        let _held = Held::new(meter, room)?;
        let (_, bytes) = decode::object(stack, source, candidate.gid, &mut scratch, meter)?;
        if let Some(base) = window.take(candidate, bytes, meter)? {
            found.bases.insert(candidate.gid, base);
            tally.add(NOTE)?;
        }
    }
    Ok(found)
}

/// An object that may become a delta, or the base of one.
struct Candidate {
    gid: Gid,
    kind: Kind,
    name: u32,
    size: u64,
    /// The layer that has it whole.
    whole: Option<usize>,
    /// The longest chain of stored deltas that leads to it.
    height: u32,
}

/// Those whose stored base is not in the answer or that have none, in the order in which they are compared.
fn candidates(
    stack: &Stack,
    chosen: &GidSet,
    names: &GidMap<u32>,
    tally: &mut Tally<'_>,
    meter: &dyn Meter,
) -> Result<Vec<Candidate>, Halt> {
    let mut candidates = Vec::new();
    let mut heights: GidMap<u32> = GidMap::default();
    each_entry(stack, chosen, |gid, layer, _, entry| {
        meter.step(1)?;
        let (root, height) = chain(stack, gid, |base| chosen.contains(base), meter)?;
        if height > 0 {
            let highest = heights.entry(root).or_default();
            *highest = height.max(*highest);
            return tally.add(if height == 1 { NOTE } else { 0 });
        }
        let size = stack.size(gid);
        if !(SMALL..=LARGE).contains(&size) {
            return Ok(());
        }
        let (name, whole) = (names.get(&gid).copied(), entry.base.is_none().then_some(layer));
        let name = match name {
            Some(name) => name,
            None => chain(stack, gid, |_| true, meter)?.0,
        };
        candidates.push(Candidate { gid, kind: stack.kind(gid), name, size, whole, height: 0 });
        tally.add(NOTE)
    })?;
    for candidate in &mut candidates {
        candidate.height = heights.get(&candidate.gid).copied().unwrap_or(0);
    }
    let order = |of: &Candidate| (of.kind, Reverse(of.name), Reverse(of.size), of.gid);
    candidates.sort_unstable_by_key(order);
    Ok(candidates)
}

/// Follows stored bases for as long as they are `good`: gives the last, and how many they are. A cycle, which only an object that
/// lies twice in its pack can make, is left after a while.
fn chain(stack: &Stack, gid: Gid, good: impl Fn(Gid) -> bool, meter: &dyn Meter) -> Result<(Gid, u32), Halt> {
    let (mut at, mut len) = (gid, 0);
    while len < 100 * DEEPEST
        && let Some(base) = stack.entry(at).base.filter(|&base| good(base))
    {
        meter.step(1)?;
        (at, len) = (base, len + 1);
    }
    Ok((at, len))
}

/// An object that others are compared with.
struct Slot {
    gid: Gid,
    kind: Kind,
    bytes: Bytes,
    /// Made when it is compared with first.
    blocks: Option<Blocks>,
    /// How many deltas lead to it.
    depth: u32,
    whole: Option<usize>,
}

impl Slot {
    fn held(&self) -> usize {
        self.bytes.len() + self.blocks.as_ref().map_or(0, Blocks::bytes)
    }
}

/// The objects that came last, the last in front; before the others those that were good bases.
#[derive(Default)]
struct Window(VecDeque<Slot>);

impl Window {
    /// Compares an object with those before it, and takes it in. Gives its base, if one was found.
    fn take(&mut self, candidate: &Candidate, bytes: Bytes, meter: &dyn Meter) -> Result<Option<Gid>, Halt> {
        self.0.retain(|slot| slot.kind == candidate.kind);
        let best = self.best(candidate, &bytes, meter)?;
        let depth = best.map_or(0, |best| best.depth);
        let base = best.and_then(|best| self.0.remove(best.at));
        let found = base.as_ref().map(|base| base.gid);
        base.into_iter().for_each(|base| self.0.push_front(base));
        if depth < DEEPEST {
            let Candidate { gid, kind, whole, .. } = *candidate;
            self.0.push_front(Slot { gid, kind, bytes, blocks: None, depth, whole });
        }
        self.0.truncate(WINDOW);
        let mut held: usize = self.0.iter().skip(1).map(Slot::held).sum();
        while held > WINDOW_BYTES
            && let Some(gone) = self.0.pop_back()
        {
            held -= gone.held();
        }
        Ok(found)
    }

    /// The shortest delta that makes `bytes`.
    fn best(&mut self, of: &Candidate, bytes: &[u8], meter: &dyn Meter) -> Result<Option<Best>, Halt> {
        let deepest = DEEPEST.saturating_sub(of.height);
        let mut best: Option<Best> = None;
        for (at, slot) in self.0.iter_mut().enumerate() {
            if of.whole.is_some() && of.whole == slot.whole || slot.depth >= deepest {
                continue;
            }
            // A delta that is deeper has to be shorter for that.
            let (most, depth) = best.map_or((of.size / 2 - HEADER, 1), |best| (best.len, best.depth));
            let most = most * u64::from(deepest - slot.depth) / u64::from(deepest - depth + 1);
            let base_size = slot.bytes.len() as u64;
            if most == 0 || of.size.saturating_sub(base_size) >= most || of.size < base_size / 32 {
                continue;
            }
            meter.step((of.size + base_size) / BYTES_A_STEP)?;
            let blocks = slot.blocks.get_or_insert_with(|| Blocks::of(&slot.bytes));
            let Some((_, len)) = blocks.copies(&slot.bytes, bytes, most) else { continue };
            let depth = slot.depth + 1;
            if best.is_none_or(|best| len < best.len || len == best.len && depth < best.depth) {
                best = Some(Best { at, len, depth });
            }
        }
        Ok(best)
    }
}

/// What naming a base takes, at most.
const HEADER: u64 = 20;

/// The best delta so far.
#[derive(Clone, Copy)]
struct Best {
    /// The place of its base in the window.
    at: usize,
    len: u64,
    depth: u32,
}
