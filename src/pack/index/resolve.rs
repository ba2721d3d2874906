//! The ids of all objects of a pack: each is made, hashed, and dropped once all deltas on it are made.
//!
//! Deltas are followed from the objects that are whole. Of the deltas on a base the one that most others depend on comes
//! last, and the base is dropped before it: so at most as many bases are held as the logarithm of the number of deltas,
//! whatever shape they have. Large bases lie in files. A delta that names its base by id is made once that id is known.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};
use gix_object::Kind;
use gix_zlib::{Decompress, FlushDecompress, Inflate, Status};

use super::{BYTES_PER_STEP, Base, Entries, IndexError, at, damaged};
use crate::pack::delta::{self, BadData};
use crate::pack::entry::{MAX_HEADER_LEN, kind_from_code};
use crate::pack::meter::{Held, Meter};

/// The ids of the objects of a pack, by position.
pub struct Ids {
    bytes: Vec<u8>,
    len: usize,
}

impl Ids {
    /// The id of the object at `position`.
    pub fn get(&self, position: u32) -> &[u8] {
        let start = position as usize * self.len;
        self.bytes.get(start..start + self.len).unwrap_or_default()
    }
}

/// Keeps a large object in a file.
pub trait Keep: Sync {
    /// Lets `write` write an object of `size` bytes, and gives it back as bytes that take no memory.
    fn keep(&self, size: u64, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<Bytes>;
}

/// How a pack is resolved.
pub struct Resolve<'a> {
    /// The whole pack.
    pub pack: &'a [u8],
    /// Its entries.
    pub entries: &'a Entries,
    /// The object hash.
    pub hash: HashKind,
    /// The largest object that is taken.
    pub largest: u64,
    /// Where bases from `keep_from` bytes on are kept.
    pub keep: &'a dyn Keep,
    /// See `keep`.
    pub keep_from: u64,
    /// What it may cost.
    pub meter: &'a dyn Meter,
    /// Threads that work on it.
    pub threads: usize,
}

/// Computes the ids of all objects.
pub fn resolve(job: &Resolve<'_>) -> Result<Ids, IndexError> {
    let count = job.entries.list.len();
    let len = job.hash.len_in_bytes();
    let shared = Shared {
        children: Children::of(job.entries),
        named: Mutex::new(HashMap::new()),
        ids: Mutex::new(Ids { bytes: vec![0; count * len], len }),
        done: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
    };
    for (position, entry) in (0u32..).zip(&job.entries.list) {
        if let Base::Named(index) = entry.base {
            let base = job.entries.bases[index as usize];
            lock(&shared.named).entry(base).or_default().push(position);
        }
    }
    let outcomes = std::thread::scope(|scope| {
        let work =
            || Worker::new(job, &shared).run().inspect_err(|_| shared.failed.store(true, Ordering::Relaxed));
        let others: Vec<_> = (1..job.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut outcomes = vec![work()];
        for other in others {
            let ended = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcomes.push(ended);
        }
        outcomes
    });
    outcomes.into_iter().collect::<Result<(), _>>()?;
    if let Some(base) = lock(&shared.named).keys().min() {
        return Err(IndexError::MissingBase { base: *base });
    }
    if shared.done.into_inner() != count {
        return Err(damaged(job.entries.end, "not every delta leans on an object"));
    }
    Ok(shared.ids.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The deltas on each entry, the one that fewest others depend on last.
struct Children {
    starts: Vec<u32>,
    list: Vec<u32>,
}

impl Children {
    fn of(entries: &Entries) -> Self {
        let count = entries.list.len();
        let mut starts = vec![0u32; count + 2];
        // The base of every entry stands before the entry.
        let mut below = vec![1u32; count];
        for (position, entry) in entries.list.iter().enumerate().rev() {
            if let Base::At(base) = entry.base {
                starts[base as usize + 2] += 1;
                below[base as usize] = below[base as usize].saturating_add(below[position]);
            }
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut list = vec![0; starts[count + 1] as usize];
        for (position, entry) in (0u32..).zip(&entries.list) {
            if let Base::At(base) = entry.base {
                let slot = &mut starts[base as usize + 1];
                list[*slot as usize] = position;
                *slot += 1;
            }
        }
        starts.pop();
        for base in 0..count {
            let children = &mut list[starts[base] as usize..starts[base + 1] as usize];
            children.sort_by_key(|&child| std::cmp::Reverse(below[child as usize]));
        }
        Self { starts, list }
    }

    fn on(&self, position: u32) -> &[u32] {
        let at = position as usize;
        &self.list[self.starts[at] as usize..self.starts[at + 1] as usize]
    }
}

struct Shared {
    children: Children,
    /// Deltas whose base is named and was not found yet.
    named: Mutex<HashMap<ObjectId, Vec<u32>>>,
    ids: Mutex<Ids>,
    done: AtomicUsize,
    /// The position at which the next whole object is looked for.
    next: AtomicUsize,
    failed: AtomicBool,
}

/// An object that is the base of deltas.
struct Frame<'m> {
    kind: Kind,
    bytes: Bytes,
    /// The deltas still to be made; the next is the last.
    children: Vec<u32>,
    _held: Held<'m>,
}

struct Worker<'a> {
    job: &'a Resolve<'a>,
    shared: &'a Shared,
    stream: Decompress,
    inflate: Inflate,
}

impl<'a> Worker<'a> {
    fn new(job: &'a Resolve<'a>, shared: &'a Shared) -> Self {
        Self { job, shared, stream: Decompress::new(), inflate: Inflate::default() }
    }

    fn run(&mut self) -> Result<(), IndexError> {
        let count = self.job.entries.list.len();
        let mut frames: Vec<Frame<'a>> = Vec::new();
        while !self.shared.failed.load(Ordering::Relaxed) {
            let position = self.shared.next.fetch_add(1, Ordering::Relaxed);
            if position >= count {
                break;
            }
            if self.job.entries.list[position].base != Base::Whole {
                continue;
            }
            frames.extend(self.whole(position as u32)?);
            while let Some(frame) = frames.last_mut() {
                let Some(child) = frame.children.pop() else {
                    frames.pop();
                    continue;
                };
                let last = if frame.children.is_empty() { frames.pop() } else { None };
                let made = match (&last, frames.last()) {
                    (Some(base), _) | (None, Some(base)) => self.delta(child, base)?,
                    (None, None) => None,
                };
                drop(last);
                frames.extend(made);
            }
        }
        Ok(())
    }

    /// Notes an id; gives the deltas on the object.
    fn found(&self, position: u32, id: &ObjectId) -> Vec<u32> {
        let mut children = self.shared.children.on(position).to_vec();
        {
            let mut ids = lock(&self.shared.ids);
            let start = position as usize * ids.len;
            if let Some(slot) = {
                let end = start + ids.len;
                ids.bytes.get_mut(start..end)
            } {
                slot.copy_from_slice(id.as_slice());
            }
        }
        let done = self.shared.done.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        self.job.meter.tell(done, self.job.entries.list.len() as u64);
        if !self.job.entries.bases.is_empty()
            && let Some(named) = lock(&self.shared.named).remove(id)
        {
            children.extend(named);
        }
        children
    }

    /// The zlib data of an entry.
    fn data(&self, position: u32) -> Result<(&'a [u8], u64, u64), IndexError> {
        let entry = &self.job.entries.list[position as usize];
        let start = entry.offset as usize + usize::from(entry.header_len).min(MAX_HEADER_LEN);
        let data = self.job.pack.get(start..self.job.entries.end_of(position as usize) as usize);
        Ok((data.ok_or(damaged(entry.offset, "an entry is outside the pack"))?, entry.size, entry.offset))
    }

    /// Hashes an object that is no delta; gives it back if it is the base of a delta.
    fn whole(&mut self, position: u32) -> Result<Option<Frame<'a>>, IndexError> {
        let (data, size, offset) = self.data(position)?;
        let (job, stream) = (self.job, &mut self.stream);
        let kind = kind_from_code(job.entries.list[position as usize].code);
        let kind = kind.ok_or(damaged(offset, "unknown object type"))?;
        job.meter.step(2 * (size / BYTES_PER_STEP + 1)).map_err(at(offset))?;
        let mut hasher = start(job.hash, kind, size);
        let small = size < job.keep_from;
        let held = Held::new(job.meter, if small { size } else { 0 }).map_err(at(offset))?;
        let mut whole = Vec::new();
        if small {
            let inflated = delta::inflate(&mut self.inflate, data, size as usize);
            whole = inflated.map_err(|bad| damaged(offset, bad.0))?;
            hasher.update(&whole);
        } else {
            inflate(stream, data, size, offset, &mut |piece| {
                hasher.update(piece);
                Ok(())
            })?;
        }
        let id = hasher.try_finalize().map_err(|_| IndexError::Collision { offset })?;
        let children = self.found(position, &id);
        if children.is_empty() {
            return Ok(None);
        }
        let stream = &mut self.stream;
        let bytes = if small {
            whole.into()
        } else {
            job.keep.keep(size, &mut |out| {
                let made = inflate(stream, data, size, offset, &mut |piece| out.write_all(piece));
                made.map_err(|error| match error {
                    IndexError::Io(error) => error,
                    other => io::Error::other(other),
                })
            })?
        };
        Ok(Some(Frame { kind, bytes, children, _held: held }))
    }

    /// Makes an object of its base and hashes it; gives it back if it is the base of a delta.
    fn delta(&mut self, position: u32, base: &Frame<'_>) -> Result<Option<Frame<'a>>, IndexError> {
        let (data, entry_size, offset) = self.data(position)?;
        let job = self.job;
        let bad = |bad: BadData| damaged(offset, bad.0);
        let _delta = Held::new(job.meter, entry_size).map_err(at(offset))?;
        let delta = delta::inflate(&mut self.inflate, data, entry_size as usize).map_err(bad)?;
        let (_, size, _) = delta::sizes(&delta).map_err(bad)?;
        if size > job.largest {
            return Err(IndexError::TooLarge { offset, size, most: job.largest });
        }
        job.meter.step((entry_size + size) / BYTES_PER_STEP + 1).map_err(at(offset))?;
        let mut hasher = start(job.hash, base.kind, size);
        // Small objects are made once, whether or not they turn out to be bases.
        let small = size < job.keep_from;
        let held = Held::new(job.meter, if small { size } else { 0 }).map_err(at(offset))?;
        let mut whole = Vec::new();
        if small {
            whole = delta::apply(&base.bytes, &delta, size).map_err(bad)?;
            hasher.update(&whole);
        } else {
            delta::apply_to(&base.bytes, &delta, size, &mut |piece| {
                hasher.update(piece);
                Ok(())
            })
            .map_err(|error| apart(error, offset))?;
        }
        let id = hasher.try_finalize().map_err(|_| IndexError::Collision { offset })?;
        let children = self.found(position, &id);
        if children.is_empty() {
            return Ok(None);
        }
        let bytes = if small {
            whole.into()
        } else {
            let kept = job.keep.keep(size, &mut |out| {
                let made = delta::apply_to(&base.bytes, &delta, size, &mut |piece| out.write_all(piece));
                made.map_err(|error| match error {
                    delta::ApplyError::Write(error) => error,
                    delta::ApplyError::Bad(bad) => io::Error::other(bad),
                })
            });
            kept?
        };
        Ok(Some(Frame { kind: base.kind, bytes, children, _held: held }))
    }
}

fn apart(error: delta::ApplyError, offset: u64) -> IndexError {
    match error {
        delta::ApplyError::Bad(bad) => damaged(offset, bad.0),
        delta::ApplyError::Write(error) => IndexError::Io(error),
    }
}

/// Begins the hash of an object as git does: its type and size come first.
fn start(hash: HashKind, kind: Kind, size: u64) -> gix_hash::Hasher {
    let mut hasher = gix_hash::hasher(hash);
    hasher.update(&gix_object::encode::loose_header(kind, size));
    hasher
}

/// Inflates a zlib stream of `size` bytes piece by piece.
fn inflate(
    state: &mut Decompress,
    mut data: &[u8],
    size: u64,
    offset: u64,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), IndexError> {
    let mut out = [0; 32 * 1024];
    state.reset();
    loop {
        let (before_in, before_out) = (state.total_in(), state.total_out());
        let status = state.decompress(data, &mut out, FlushDecompress::None);
        let status = status.map_err(|_| damaged(offset, "zlib data does not inflate"))?;
        let used = (state.total_in() - before_in) as usize;
        let made = (state.total_out() - before_out) as usize;
        data = data.get(used..).unwrap_or_default();
        take(out.get(..made).unwrap_or_default())?;
        match status {
            Status::StreamEnd if state.total_out() == size => return Ok(()),
            _ if status == Status::StreamEnd || state.total_out() > size || (used == 0 && made == 0) => {
                return Err(damaged(offset, "zlib data has not the promised length"));
            }
            _ => {}
        }
    }
}
