//! The sender: turns a plan into the bytes of its pack, one step at a time, without doing any I/O.
//!
//! The loop around it, blocking (`write`) or async (`serve::send`), asks for a [`Step`], does what it says,
//! feeds the result back and asks again. The sender cuts copies into pieces, keeps the running hash
//! of the pack, and ends with its trailer. It also fills in the distances that the plan could not know: once
//! an object packed anew is sent, the sender knows where it lies and how long it is.
//!
//! Elsewhere: how plans are made (`plan`), packing objects anew (`layer::encode`).
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};
use sha2::Digest;

use crate::pack::Gid;
use crate::pack::entry::{self, Header};
use crate::pack::plan::{Plan, Segment};

/// What the loop around a sender has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes.
    Bytes(Bytes),
    /// Read these bytes of the pack of a layer and feed them; fewer are fine, at least one.
    NeedRange {
        /// Index of the layer in the stack.
        layer: u32,
        /// Bytes of its pack.
        range: Range<u64>,
    },
    /// Pack this object with [`crate::pack::layer::encode::anew`] and feed the entry.
    NeedAnew {
        /// The object.
        gid: Gid,
        /// Which of the plan's joins it may be a delta by.
        join: Option<u32>,
    },
    /// All is sent.
    Done(Written),
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The hash at the end of the pack.
    pub trailer: ObjectId,
    /// Bytes of the pack, trailer included.
    pub bytes: u64,
}

/// The sender was not fed what it asked for, or its hash failed; the pack cannot be finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No bytes, or more than asked for.
    #[error("a pack was fed {got} bytes where 1 to {asked} were asked for")]
    Fed {
        /// Bytes fed.
        got: usize,
        /// Bytes asked for.
        asked: u64,
    },
    /// Bytes were fed that nobody asked for.
    #[error("a pack was fed without asking")]
    Unasked,
    /// A base is not where the plan has it, or what was packed anew is no entry.
    #[error("a delta of a pack does not find its base")]
    NoBase,
}

/// Where entries have come to lie that others name by distance.
#[derive(Clone, Default)]
struct Places {
    /// Starts of objects packed anew that others name, by their number.
    anew: Vec<(u32, u64)>,
    /// Where the objects packed anew end.
    front: u64,
    /// From planned offsets on, by how much entries lie behind them; only where that changes.
    shifts: Vec<(u64, i64)>,
}

impl Places {
    /// Where an object packed anew starts.
    fn anew(&self, number: u32) -> Option<u64> {
        let at = self.anew.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.anew.get(at).map(|(_, start)| *start)
    }

    /// Where the entry starts that is laid out at `planned`.
    fn laid(&self, planned: u64) -> Option<u64> {
        let below = self.shifts.partition_point(|(from, _)| *from <= planned);
        let shift =
            below.checked_sub(1).and_then(|last| self.shifts.get(last)).map_or(0, |(_, shift)| *shift);
        (self.front + planned).checked_add_signed(shift)
    }

    /// Notes that a header at `start` has `len` bytes and not those that were planned.
    fn shift(&mut self, start: u64, len: usize, planned: u8) {
        let before = self.shifts.last().map_or(0, |(_, shift)| *shift);
        let by = len as i64 - i64::from(planned);
        if by != 0 {
            let laid = (start - self.front).wrapping_add_signed(-before);
            self.shifts.push((laid + u64::from(planned), before + by));
        }
    }
}

/// The hash of a pack on its way out, with the processor's own instructions where it has them.
///
/// Collisions are looked for when objects are indexed (`gix_hash`). The search costs many times more, and here it would
/// find nothing new.
#[derive(Clone)]
enum Hasher {
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
}

impl Hasher {
    fn new(hash: HashKind) -> Self {
        match hash {
            HashKind::Sha256 => Self::Sha256(sha2::Sha256::new()),
            _ => Self::Sha1(sha1::Sha1::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> ObjectId {
        match self {
            Self::Sha1(hasher) => <[u8; 20]>::from(hasher.finalize()).into(),
            Self::Sha256(hasher) => <[u8; 32]>::from(hasher.finalize()).into(),
        }
    }
}

/// The trailer: to be computed, known from an earlier time, or given out.
#[derive(Clone)]
enum End {
    Ahead(Hasher),
    Known(ObjectId),
    Given(ObjectId),
}

/// A plan on its way out.
#[derive(Clone)]
pub struct Sender {
    plan: Arc<Plan>,
    /// The segment in work.
    at: usize,
    /// Bytes of it that are done.
    within: u64,
    /// The longest range asked for at once.
    chunk: u64,
    end: End,
    sent: u64,
    ready: Option<Bytes>,
    /// What comes behind `ready`.
    rest: Option<Bytes>,
    places: Places,
}

impl Sender {
    /// Starts at the beginning; asks for at most `chunk` bytes at a time.
    pub fn new(plan: Arc<Plan>, chunk: u64) -> Self {
        let end = End::Ahead(Hasher::new(plan.hash));
        let places = Places::default();
        Self { plan, at: 0, within: 0, chunk: chunk.max(1), end, sent: 0, ready: None, rest: None, places }
    }

    /// Ends with `trailer`, which the same plan ended with before, instead of hashing everything again.
    #[must_use]
    pub fn ending(mut self, trailer: ObjectId) -> Self {
        self.end = End::Known(trailer);
        self
    }

    /// The plan being sent.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Bytes given out so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Says what to do next.
    pub fn step(&mut self) -> Result<Step, SendError> {
        if let Some(bytes) = self.ready.take().or_else(|| self.rest.take()) {
            return Ok(self.give(bytes));
        }
        if self.at == self.plan.anew as usize + 1 && self.within == 0 {
            self.places.front = self.sent;
        }
        match self.plan.segments.get(self.at) {
            Some(&Segment::Copy { layer, start, len }) => {
                let from = start + self.within;
                Ok(Step::NeedRange { layer, range: from..from + (len - self.within).min(self.chunk) })
            }
            Some(&Segment::Literal { start, len }) => {
                let literal = self.plan.literals.get(start as usize..start as usize + len as usize);
                let bytes = Bytes::copy_from_slice(literal.unwrap_or_default());
                self.at += 1;
                Ok(self.give(bytes))
            }
            Some(&Segment::OnAnew { base, size, planned }) => {
                self.late(self.places.anew(base), size, planned)
            }
            Some(&Segment::Across { base, size, planned }) => {
                self.late(self.places.laid(base), size, planned)
            }
            Some(&Segment::Anew { gid, join, .. }) => Ok(Step::NeedAnew { gid, join }),
            None => Ok(self.finish()),
        }
    }

    /// Gives the header of a delta on the entry that starts at `base`.
    fn late(&mut self, base: Option<u64>, size: u64, planned: u8) -> Result<Step, SendError> {
        let header = self.header(base, size)?;
        self.places.shift(self.sent, header.len(), planned);
        self.at += 1;
        Ok(self.give(header))
    }

    /// Makes the header of an entry here that is a delta on the one that starts at `base`.
    fn header(&self, base: Option<u64>, size: u64) -> Result<Bytes, SendError> {
        let distance = base.and_then(|base| self.sent.checked_sub(base)).filter(|distance| *distance > 0);
        let distance = distance.ok_or(SendError::NoBase)?;
        let mut header = Vec::with_capacity(entry::MAX_HEADER_LEN);
        entry::encode(&Header::OfsDelta { distance }, size, &mut header);
        Ok(header.into())
    }

    /// Takes what the last step asked for. An entry packed anew must come in one piece.
    pub fn feed(&mut self, bytes: Bytes) -> Result<(), SendError> {
        if self.ready.is_some() || self.rest.is_some() {
            return Err(SendError::Unasked);
        }
        let asked = match self.plan.segments.get(self.at) {
            Some(&Segment::Copy { len, .. }) => (len - self.within).min(self.chunk),
            Some(Segment::Anew { .. }) => u64::MAX,
            _ => return Err(SendError::Unasked),
        };
        let got = bytes.len() as u64;
        if got == 0 || got > asked {
            return Err(SendError::Fed { got: bytes.len(), asked });
        }
        if let Some(&Segment::Anew { base, is_base, .. }) = self.plan.segments.get(self.at) {
            return self.feed_anew(bytes, base, is_base);
        }
        self.within += got;
        let done = match self.plan.segments.get(self.at) {
            Some(&Segment::Copy { len, .. }) => self.within == len,
            _ => true,
        };
        if done {
            self.at += 1;
            self.within = 0;
        }
        self.ready = Some(bytes);
        Ok(())
    }

    /// Takes an entry packed anew. If it names a base of this pack by id, it names that by distance from here on.
    fn feed_anew(&mut self, entry: Bytes, base: Option<u32>, is_base: bool) -> Result<(), SendError> {
        let start = self.sent;
        if let Some(base) = base {
            let decoded = entry::decode(&entry, self.plan.hash).map_err(|_| SendError::NoBase)?;
            if matches!(decoded.header, Header::RefDelta { .. }) {
                self.ready = Some(self.header(self.places.anew(base), decoded.size)?);
                self.rest = Some(entry.slice(decoded.header_len..));
            }
        }
        if self.ready.is_none() {
            self.ready = Some(entry);
        }
        if is_base {
            // The first segment is the pack's header.
            self.places.anew.push((self.at.saturating_sub(1) as u32, start));
        }
        self.at += 1;
        Ok(())
    }

    /// What will be read next, for reading ahead: ranges of packs, up to about `bytes` in total. `stored` says where an
    /// object that is packed anew is stored; its bases are not among them.
    pub fn upcoming<'s>(
        &'s self,
        bytes: u64,
        stored: impl Fn(Gid) -> (u32, Range<u64>) + 's,
    ) -> impl Iterator<Item = (u32, Range<u64>)> + 's {
        let mut left = bytes;
        let rest = self.plan.segments.get(self.at..).unwrap_or_default().iter().enumerate();
        rest.filter_map(move |(index, segment)| match *segment {
            Segment::Copy { layer, start, len } => {
                let done = if index == 0 { self.within } else { 0 };
                Some((layer, start + done, len - done))
            }
            Segment::Anew { gid, .. } => {
                let (layer, range) = stored(gid);
                Some((layer, range.start, range.end - range.start))
            }
            _ => None,
        })
        .map_while(move |(layer, start, len)| {
            let take = len.min(left);
            left -= take;
            (take > 0).then_some((layer, start..start + take))
        })
    }

    fn give(&mut self, bytes: Bytes) -> Step {
        if let End::Ahead(hasher) = &mut self.end {
            hasher.update(&bytes);
        }
        self.sent += bytes.len() as u64;
        Step::Bytes(bytes)
    }

    fn finish(&mut self) -> Step {
        let trailer = match &self.end {
            End::Ahead(hasher) => hasher.clone().finish(),
            End::Known(trailer) => *trailer,
            End::Given(trailer) => return Step::Done(Written { trailer: *trailer, bytes: self.sent }),
        };
        self.end = End::Given(trailer);
        self.sent += trailer.as_slice().len() as u64;
        Step::Bytes(Bytes::copy_from_slice(trailer.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Arc<Plan> {
        let segments = vec![
            Segment::Literal { start: 0, len: 4 },
            Segment::Anew { gid: 7, join: None, base: None, is_base: false },
            Segment::Copy { layer: 0, start: 100, len: 10 },
            Segment::Literal { start: 4, len: 2 },
            Segment::Copy { layer: 1, start: 5, len: 3 },
        ];
        let literals = b"PACKab".to_vec();
        let hash = HashKind::Sha1;
        Arc::new(Plan { segments, literals, objects: 3, anew: 1, known_len: 39, ..Plan::empty(hash) })
    }

    #[test]
    fn walks_through_a_plan() {
        let mut sender = Sender::new(plan(), 8);
        let upcoming = sender.upcoming(15, |gid| (3, u64::from(gid)..10)).collect::<Vec<_>>();
        assert_eq!(upcoming, [(3, 7..10), (0, 100..110), (1, 5..7)]);
        let mut out = Vec::new();
        let written = loop {
            match sender.step().unwrap() {
                Step::Bytes(bytes) => out.extend_from_slice(&bytes),
                Step::NeedAnew { gid, join } => {
                    assert_eq!((gid, join), (7, None));
                    sender.feed(Bytes::from_static(b"whole")).unwrap();
                }
                Step::NeedRange { layer, range } => {
                    assert!(range.end - range.start <= 8);
                    // Fewer bytes than asked for are fine.
                    let len = (range.end - range.start).min(5) as usize;
                    sender.feed(vec![b'0' + layer as u8; len].into()).unwrap();
                }
                Step::Done(written) => break written,
            }
        };
        let body: &[u8] = b"PACKwhole0000000000ab111";
        assert_eq!(&out[..body.len()], body);
        let mut hasher = gix_hash::hasher(HashKind::Sha1);
        hasher.update(body);
        assert_eq!(written, Written { trailer: hasher.try_finalize().unwrap(), bytes: out.len() as u64 });
        assert_eq!(&out[body.len()..], written.trailer.as_slice());
        assert!(matches!(sender.step(), Ok(Step::Done(again)) if again == written));
        let mut again = Sender::new(plan(), 100).ending(written.trailer);
        let said = loop {
            match again.step().unwrap() {
                Step::Bytes(_) => {}
                Step::NeedAnew { .. } => again.feed(Bytes::from_static(b"whole")).unwrap(),
                Step::NeedRange { range, .. } => {
                    again.feed(vec![0; (range.end - range.start) as usize].into()).unwrap();
                }
                Step::Done(written) => break written,
            }
        };
        assert_eq!(said, written, "remembered, not hashed");
    }

    #[test]
    fn takes_only_what_it_asked_for() {
        let mut sender = Sender::new(plan(), 8);
        assert_eq!(sender.feed(Bytes::from_static(b"x")), Err(SendError::Unasked));
        assert!(matches!(sender.step(), Ok(Step::Bytes(_))));
        assert_eq!(sender.step(), Ok(Step::NeedAnew { gid: 7, join: None }));
        assert!(sender.feed(Bytes::new()).is_err());
        sender.feed(Bytes::from_static(b"w")).unwrap();
        assert_eq!(sender.feed(Bytes::from_static(b"w")), Err(SendError::Unasked));
        assert!(matches!(sender.step(), Ok(Step::Bytes(_))));
        assert_eq!(sender.feed(vec![0; 9].into()), Err(SendError::Fed { got: 9, asked: 8 }));
    }

    /// Two objects packed anew, the second on the first; three deltas, the last of them on what stands before the others.
    #[test]
    fn states_distances_when_they_are_known() {
        let late = |base, size| Segment::OnAnew { base, size, planned: 2 };
        let segments = vec![
            Segment::Literal { start: 0, len: 4 },
            Segment::Anew { gid: 1, join: None, base: None, is_base: true },
            Segment::Anew { gid: 2, join: Some(0), base: Some(0), is_base: true },
            Segment::Copy { layer: 0, start: 0, len: 10 },
            late(0, 3),
            Segment::Copy { layer: 0, start: 20, len: 200 },
            late(1, 3),
            Segment::Copy { layer: 0, start: 400, len: 5 },
            Segment::Across { base: 0, size: 9, planned: 3 },
            Segment::Across { base: 212, size: 9, planned: 3 },
        ];
        let hash = HashKind::Sha1;
        let joins = vec![vec![2, 1]];
        let literals = b"PACK".to_vec();
        let plan = Plan { segments, literals, objects: 6, joins, anew: 2, ..Plan::empty(hash) };
        let named = |header: &Header, data: &[u8]| {
            let mut entry = Vec::new();
            entry::encode(header, 3, &mut entry);
            [&entry[..], data].concat()
        };
        let by_id = named(&Header::RefDelta { base: ObjectId::null(hash) }, b"data");
        let mut sender = Sender::new(Arc::new(plan), 1 << 20);
        let mut out = Vec::new();
        loop {
            match sender.step().unwrap() {
                Step::Bytes(bytes) => out.extend_from_slice(&bytes),
                Step::NeedAnew { gid: 1, .. } => sender.feed(vec![b'w'; 300].into()).unwrap(),
                Step::NeedAnew { .. } => sender.feed(by_id.clone().into()).unwrap(),
                Step::NeedRange { range, .. } => {
                    sender.feed(vec![b'c'; (range.end - range.start) as usize].into()).unwrap();
                }
                Step::Done(_) => break,
            }
        }
        let mut want = [&b"PACK"[..], &[b'w'; 300]].concat();
        let delta = |want: &mut Vec<u8>, base: usize, size: u64, data: &[u8]| {
            let header = Header::OfsDelta { distance: (want.len() - base) as u64 };
            entry::encode(&header, size, want);
            want.extend_from_slice(data);
        };
        let anew = want.len();
        delta(&mut want, 4, 3, b"data");
        let front = want.len();
        want.extend_from_slice(&[b'c'; 10]);
        delta(&mut want, 4, 3, &[b'c'; 200]);
        let second = want.len();
        delta(&mut want, anew, 3, b"ccccc");
        delta(&mut want, front, 9, b"");
        delta(&mut want, second, 9, b"");
        assert_eq!(out[..want.len()].escape_ascii().to_string(), want.escape_ascii().to_string());
        assert_eq!(out.len(), want.len() + hash.len_in_bytes());
    }

    #[test]
    fn a_segment_is_small() {
        assert_eq!(size_of::<Segment>(), 24, "plans of millions of objects are kept in memory");
    }
}
