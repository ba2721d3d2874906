//! The layout of a plan: where entries lie in the answer, and how each names its base.
//!
//! Entries are laid out one after the other, each behind its base. Runs of neighbours whose distances are as stored are
//! copied as they are; other headers are written anew, or left to the sender where the distance is not known yet.
//!
//! The distance to an object packed anew, and so the length of a header that states it, is known only when that object is
//! sent. Such a header is a segment of its own ([`Segment::OnAnew`]), laid out with a length that may be wrong by some
//! bytes. The sender also completes the headers of deltas whose distance spans such a header ([`Segment::Across`]); all
//! other distances are known here.
//!
//! Relies on: an order without cycles, and on objects packed anew standing in front. Elsewhere: which objects these are
//! (`anew`), stating the distances that are left (`write::send`).
use gix_hash::{Kind as HashKind, ObjectId};

use crate::pack::entry::{self, Header, RawKind};
use crate::pack::layer::encode;
use crate::pack::layer::graph::NONE;
use crate::pack::layer::graph::view::{Graph, GraphEntry};
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::{GidMap, GidSet, Gids};
use crate::pack::{Gid, Stack};

use super::stored::{STORED, Usable};

/// A piece of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// Bytes `start..start + len` of the pack of a layer.
    Copy {
        /// Index of the layer in the stack, or [`STORED`].
        layer: u32,
        /// First byte in that pack.
        start: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Bytes `start..start + len` of [`Plan::literals`].
    Literal {
        /// First byte.
        start: u32,
        /// Number of bytes.
        len: u32,
    },
    /// An object, packed anew when it is sent.
    Anew {
        /// The object.
        gid: Gid,
        /// Which of [`Plan::joins`] it may be a delta by; none sends it whole.
        join: Option<u32>,
        /// The number of its base among the objects packed anew, if it is to name that by distance.
        base: Option<u32>,
        /// Whether something names it by distance.
        is_base: bool,
    },
    /// The header of a delta by distance on an object packed anew; its data follow.
    OnAnew {
        /// The number of the base among the objects packed anew.
        base: u32,
        /// Bytes of the inflated delta.
        size: u64,
        /// The length that the layout counts for the header.
        planned: u8,
    },
    /// The header of a delta by distance whose base lies before a header of unknown length; its data follow.
    Across {
        /// Where the base is laid out, counted from behind the objects packed anew.
        base: u64,
        /// Bytes of the inflated delta.
        size: u64,
        /// The length that the layout counts for the header.
        planned: u8,
    },
}

/// A pack without its trailer, as a list of segments. The same plan always makes the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The pieces in order; the first is the pack header, and what is packed anew comes next.
    pub segments: Vec<Segment>,
    /// Headers that differ from the stored ones.
    pub literals: Vec<u8>,
    /// Number of objects.
    pub objects: u32,
    /// For each object packed anew as a delta: the path from it, the first, to its base, the last, which the client has
    /// or which was packed anew before. Of each two neighbours one is stored as a delta on the other, unless the path has
    /// these two objects alone.
    pub joins: Vec<Vec<Gid>>,
    /// Number of objects packed anew.
    pub anew: u32,
    /// Bytes of these objects, inflated.
    pub anew_bytes: u64,
    /// The most bytes of memory that packing one of them anew takes ([`crate::pack::layer::encode::room`]).
    pub room: u64,
    /// The hash of the repository, and of the trailer.
    pub hash: HashKind,
    /// Length of the pack in bytes, trailer included, without the objects packed anew; headers whose length is not known
    /// yet count as they are laid out.
    pub known_len: u64,
    /// The pack's trailer, where it is a stored answer as it lies there.
    pub trailer: Option<ObjectId>,
}

impl Plan {
    /// A plan of nothing, to be filled.
    pub fn empty(hash: HashKind) -> Self {
        Self {
            segments: Vec::new(),
            literals: Vec::new(),
            objects: 0,
            joins: Vec::new(),
            anew: 0,
            anew_bytes: 0,
            room: 0,
            hash,
            known_len: 0,
            trailer: None,
        }
    }

    /// Gives about how many bytes of memory it takes.
    pub fn bytes(&self) -> u64 {
        let joins = self.joins.iter().map(|path| size_of_val(&path[..])).sum::<usize>();
        (self.literals.len() + size_of_val(&self.segments[..]) + joins) as u64
    }

    /// The path along which an object is packed anew as a delta, by its number in [`Plan::joins`]; empty without one.
    pub fn path(&self, join: Option<u32>) -> &[Gid] {
        join.and_then(|join| self.joins.get(join as usize)).map_or(&[], Vec::as_slice)
    }
}

/// Marks that from a position on, entries of a layer lie `shift` bytes from where they are stored.
struct Break {
    position: u32,
    /// Offset in the answer minus stored offset, wrapping.
    shift: u64,
}

/// A plan being made. Offsets count from behind the objects packed anew.
pub(super) struct Layout<'p> {
    stack: &'p Stack,
    chosen: &'p GidSet,
    /// The objects that are packed anew.
    anew: &'p GidSet,
    /// Entries whose base stands behind them in the order of gids.
    forward: &'p Gids,
    ofs_delta: bool,
    /// What is copied from a stored answer. Here its pack has the number behind those of the stack's layers.
    pub stored: Option<&'p Usable<'p>>,
    pub plan: Plan,
    pub out: u64,
    /// Per layer, by position: an entry's offset in the answer is its stored one plus the last shift before it.
    breaks: Vec<Vec<Break>>,
    /// Layer and position that would continue the last entry.
    next: (usize, u32),
    /// All gids below were laid out, unless packed anew.
    cursor: Gid,
    /// Offsets of entries that had to go earlier than their turn.
    early: GidMap<u64>,
    /// Where the last header of unknown length stands.
    late: Option<u64>,
    scratch: Vec<u8>,
    /// The objects packed anew that were laid out: which each is.
    numbers: GidMap<u32>,
}

/// How an entry names its base.
enum Naming {
    /// As it is stored.
    Kept,
    /// By the header that was put into `scratch`.
    Rewritten,
    /// By a header that the sender completes, laid out with so many bytes.
    Late(Segment, u8),
}

impl<'p> Layout<'p> {
    /// Starts behind the objects packed anew.
    pub fn new(
        stack: &'p Stack,
        chosen: &'p GidSet,
        (anew, forward): (&'p GidSet, &'p Gids),
        ofs_delta: bool,
    ) -> Self {
        let plan = Plan::empty(stack.hash());
        Self {
            stack,
            chosen,
            anew,
            forward,
            ofs_delta,
            plan,
            out: 0,
            stored: None,
            breaks: (0..=stack.layers().len()).map(|_| Vec::new()).collect(),
            next: (0, NONE),
            cursor: 0,
            early: GidMap::default(),
            late: None,
            scratch: Vec::new(),
            numbers: GidMap::default(),
        }
    }

    /// Lays out an object at its turn, after the bases that stand behind it.
    pub fn object(&mut self, gid: Gid, layer: usize, position: u32, entry: &GraphEntry) {
        self.cursor = gid;
        if self.early.contains_key(&gid) {
            return;
        }
        if self.forward.contains(&gid) {
            self.bases_first(gid);
        }
        self.in_turn(layer, position, entry);
    }

    /// Lays out an entry of the stored answer; its base, if it has one, was laid out before.
    pub fn stored(&mut self, position: u32) {
        let layer = self.stack.layers().len();
        let Some(entry) = self.graph(layer).and_then(|graph| graph.entry(position)) else { return };
        self.in_turn(layer, position, &entry);
    }

    /// Lays out an entry behind the one that was laid out last.
    fn in_turn(&mut self, layer: usize, position: u32, entry: &GraphEntry) {
        let shift = self.out.wrapping_sub(entry.offset);
        if let Some(breaks) = self.breaks.get_mut(layer)
            && (self.next != (layer, position) || breaks.last().is_none_or(|last| last.shift != shift))
        {
            breaks.push(Break { position, shift });
        }
        self.next = (layer, position + 1);
        self.entry(layer, entry, self.ofs_delta);
    }

    /// The graph of a layer, or of the stored answer.
    fn graph(&self, layer: usize) -> Option<&'p Graph> {
        let held = self.stack.layers().get(layer);
        held.or_else(|| self.stored.map(|usable| &usable.stored.layer)).map(|held| &held.graph)
    }

    /// The object at a position of a layer, or of the stored answer.
    fn canonical(&self, layer: usize, position: u32) -> Gid {
        match self.stored {
            Some(usable) if layer == self.stack.layers().len() => usable.stored.gid(position),
            _ => self.stack.canonical(layer, position),
        }
    }

    /// Where an object is copied from.
    fn place(&self, gid: Gid) -> (usize, u32) {
        let usable = self.stored.filter(|usable| usable.set.contains(gid));
        let position = usable.and_then(|usable| usable.stored.position(gid));
        position.map_or_else(|| self.stack.layer_of(gid), |at| (self.stack.layers().len(), at))
    }

    /// Lays out the chain of bases of `gid` that were not laid out yet, the deepest first.
    fn bases_first(&mut self, gid: Gid) {
        let mut chain = Vec::new();
        let mut at = gid;
        while let Some(base) = self.stack.entry(at).base
            && base > self.cursor
            && self.chosen.contains(base)
            && !self.anew.contains(base)
            && !self.stored.is_some_and(|usable| usable.set.contains(base))
            && !self.early.contains_key(&base)
        {
            chain.push(base);
            at = base;
        }
        while let Some(base) = chain.pop() {
            let (layer, position) = self.stack.layer_of(base);
            let entry = self.stack.layers().get(layer).and_then(|held| held.graph.entry(position));
            if let Some(entry) = entry {
                self.early.insert(base, self.out);
                self.next = (0, NONE);
                self.entry(layer, &entry, false);
            }
        }
    }

    /// Lays out one entry. With `in_run`, a base at or behind the layer's last break is part of the
    /// same unbroken run, so the distance to it is what it was.
    fn entry(&mut self, layer: usize, entry: &GraphEntry, in_run: bool) {
        let naming = match (entry.raw, entry.base) {
            (RawKind::Whole, _) | (_, None) => Naming::Kept,
            (RawKind::OfsDelta, Some(base)) if in_run && self.is_run(layer, base) => Naming::Kept,
            (_, Some(base)) => self.naming(layer, entry, base),
        };
        let data = entry.offset + u64::from(entry.header_len);
        match naming {
            Naming::Kept => self.copy(layer, entry.offset, entry.end),
            Naming::Rewritten => {
                let header = std::mem::take(&mut self.scratch);
                self.literal(&header);
                self.scratch = header;
                self.copy(layer, data, entry.end);
            }
            Naming::Late(header, planned) => {
                self.late = Some(self.out);
                self.out += u64::from(planned);
                self.plan.segments.push(header);
                self.copy(layer, data, entry.end);
                // The distance from later entries to earlier ones is not known.
                self.next = (0, NONE);
            }
        }
    }

    /// Says whether an entry stands behind the layer's last break.
    fn is_run(&self, layer: usize, position: u32) -> bool {
        let last = self.breaks.get(layer).and_then(|breaks| breaks.last());
        last.is_some_and(|last| position >= last.position)
    }

    /// Finds how the next entry, a delta, names its base.
    fn naming(&mut self, layer: usize, entry: &GraphEntry, base: u32) -> Naming {
        let gid = self.canonical(layer, base);
        let size = entry.entry_size;
        let laid = self.offset_of(gid).filter(|_| self.ofs_delta);
        let header = match laid {
            Some(base) => Header::OfsDelta { distance: self.out - base },
            None => {
                let number = if self.ofs_delta { self.number_of(gid) } else { None };
                if let Some(base) = number {
                    let planned = self.planned(self.out + 1, size);
                    return Naming::Late(Segment::OnAnew { base, size, planned }, planned);
                }
                Header::RefDelta { base: self.stack.oid(gid) }
            }
        };
        if let (Header::OfsDelta { distance }, Some(base)) = (header, laid)
            && self.late.is_some_and(|late| late >= base)
        {
            let planned = self.planned(distance, size);
            return Naming::Late(Segment::Across { base, size, planned }, planned);
        }
        let stored = self.graph(layer).and_then(|graph| graph.offset(base));
        let is_stored = match (header, entry.raw) {
            (Header::OfsDelta { distance }, RawKind::OfsDelta) => {
                stored.is_some_and(|stored| distance == entry.offset - stored)
            }
            (Header::RefDelta { .. }, RawKind::RefDelta) => true,
            _ => false,
        };
        if is_stored {
            return Naming::Kept;
        }
        self.scratch.clear();
        entry::encode(&header, size, &mut self.scratch);
        Naming::Rewritten
    }

    /// The length of the header of a delta by distance.
    fn planned(&mut self, distance: u64, size: u64) -> u8 {
        self.scratch.clear();
        entry::encode(&Header::OfsDelta { distance }, size, &mut self.scratch);
        self.scratch.len() as u8
    }

    /// Lays out the next object that is packed anew, along one of the plan's joins or whole.
    pub fn anew(&mut self, gid: Gid, join: Option<u32>, meter: &dyn Meter) -> Result<(), Halt> {
        let path = self.plan.path(join);
        let room = encode::room(self.stack, gid, path, meter)?;
        let last = path.last().copied();
        self.plan.room = self.plan.room.max(room);
        self.plan.anew_bytes += self.stack.size(gid);
        let base = last.filter(|_| self.ofs_delta).and_then(|base| self.number_of(base));
        self.plan.segments.push(Segment::Anew { gid, join, base, is_base: false });
        self.numbers.insert(gid, self.plan.anew);
        self.plan.anew += 1;
        Ok(())
    }

    /// Says whether an object that is packed anew was laid out.
    pub fn has_number(&self, gid: Gid) -> bool {
        self.numbers.contains_key(&gid)
    }

    /// Finds the number of an object among those packed anew, and notes that it is named by distance.
    fn number_of(&mut self, gid: Gid) -> Option<u32> {
        let number = self.numbers.get(&gid).copied()?;
        // The first segment is the pack's header.
        if let Some(Segment::Anew { is_base, .. }) = self.plan.segments.get_mut(number as usize + 1) {
            *is_base = true;
        }
        Some(number)
    }

    /// Where an object was laid out; `None` if it was packed anew or is not in the answer.
    fn offset_of(&self, gid: Gid) -> Option<u64> {
        if !self.chosen.contains(gid) || self.anew.contains(gid) {
            return None;
        }
        if let Some(&offset) = self.early.get(&gid) {
            return Some(offset);
        }
        let (layer, position) = self.place(gid);
        let breaks = self.breaks.get(layer)?;
        let last = breaks.get(breaks.partition_point(|at| at.position <= position).checked_sub(1)?)?;
        let stored = self.graph(layer)?.offset(position)?;
        Some(stored.wrapping_add(last.shift)).filter(|&offset| offset < self.out)
    }

    fn copy(&mut self, layer: usize, start: u64, end: u64) {
        self.out += end - start;
        let layer = if layer == self.stack.layers().len() { STORED } else { layer as u32 };
        if let Some(Segment::Copy { layer: last, start: from, len }) = self.plan.segments.last_mut()
            && *last == layer
            && *from + *len == start
        {
            *len += end - start;
            return;
        }
        self.plan.segments.push(Segment::Copy { layer, start, len: end - start });
    }

    /// Lays out bytes that are no stored ones.
    pub fn literal(&mut self, bytes: &[u8]) {
        self.out += bytes.len() as u64;
        let start = self.plan.literals.len() as u32;
        self.plan.literals.extend_from_slice(bytes);
        if let Some(Segment::Literal { start: from, len }) = self.plan.segments.last_mut()
            && *from + *len == start
        {
            *len += bytes.len() as u32;
            return;
        }
        self.plan.segments.push(Segment::Literal { start, len: bytes.len() as u32 });
    }
}
