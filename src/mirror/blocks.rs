//! The bytes of a repository's packs, as the blocking [`Source`] that the pure pack code reads from.
//!
//! Relies on: `local` for verified blocks. Called from blocking threads only, because an absent block is fetched from
//! the bucket while the caller waits.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::{TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::local::{Local, PackBlob};
use crate::mirror::answers::Answer;
use crate::pack::Source;
use crate::pack::layer::stack::Stack;
use crate::pack::plan::stored::STORED;
use crate::pack::plan::{Plan, Segment};
use crate::store::StoreError;

/// How many blocks are fetched ahead of a stream: at 1 MiB each what a fast connection takes in a store's round trip.
const AHEAD: u64 = 32;

/// With fewer ahead of it, more are asked for: several at once, so that requests are few.
const ENOUGH: u64 = 24;

/// How many blocks one request holds on to, where the cache is large enough. They are mapped files, not memory.
const HELD: usize = 256;

/// How many packs are looked at side by side before a stream begins; what is fetched of them at once is bounded by its bytes.
const FIRST_BLOCKS: usize = 256;

/// What is known of a pack before a stream begins.
struct Look<'a> {
    pack: &'a PackBlob,
    /// A block that is here.
    last: Option<u64>,
    /// The first one that is not.
    absent: Option<u64>,
}

/// The packs of one stack, by layer.
#[derive(Clone)]
pub struct Blocks {
    local: Local,
    packs: Arc<[PackBlob]>,
    /// An answer that was made before, under the number [`STORED`].
    answer: Option<Arc<Answer>>,
    runtime: Handle,
    /// Cancelled once nothing may be read any more.
    revoked: CancellationToken,
}

impl Blocks {
    /// Joins the packs of a stack, lowest layer first, to this node's cache. Must be called inside a runtime.
    pub fn new(local: Local, packs: Vec<PackBlob>) -> Self {
        let (runtime, revoked) = (Handle::current(), CancellationToken::new());
        Self { local, packs: packs.into(), answer: None, runtime, revoked }
    }

    /// The same, with the pack of an answer.
    pub fn with_answer(&self, answer: Option<Arc<Answer>>) -> Self {
        Self { answer, ..self.clone() }
    }

    /// Lets nothing be read from now on, also by jobs and streams that have begun.
    pub(super) fn revoke(&self) {
        self.revoked.cancel();
    }

    /// Waits until nothing may be read any more.
    pub async fn until_revoked(&self) {
        self.revoked.cancelled().await;
    }

    /// An error if nothing may be read any more.
    fn readable(&self) -> io::Result<()> {
        match self.revoked.is_cancelled() {
            true => Err(io::Error::other("this state of the repository was purged")),
            false => Ok(()),
        }
    }

    /// The pack of a layer, or an error that names a layer which the stack does not have.
    pub fn pack(&self, layer: usize) -> io::Result<&PackBlob> {
        let stored = self.answer.as_ref().filter(|_| layer == STORED as usize).map(|answer| &answer.pack);
        self.packs.get(layer).or(stored).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("no layer {layer} in this stack"))
        })
    }

    /// Makes sure that no pack is missing that sending `plan` reads: of each, all bytes that are needed lie on this node's
    /// disk, or the first block that does not could be fetched just now, or a block was a moment ago. Blocks that are there are not asked for.
    pub async fn at_hand(&self, plan: &Plan, stack: &Stack) -> Result<(), StoreError> {
        self.readable().map_err(|e| StoreError::unavailable("read a pack", e.to_string()))?;
        let mut absent = self.first_absent(plan, stack);
        absent.retain(|(pack, _)| !self.local.has_just_come(pack));
        stream::iter(absent.into_iter().map(Ok))
            .try_for_each_concurrent(FIRST_BLOCKS, |(pack, n)| async move {
                self.local.block(pack, n).await.map(drop)
            })
            .await
    }

    /// The first block of each pack that `plan` reads and that is not on this node's disk.
    fn first_absent(&self, plan: &Plan, stack: &Stack) -> Vec<(&PackBlob, u64)> {
        let packs = self.packs.iter().chain(self.answer.iter().map(|answer| &answer.pack));
        let mut looks: Vec<_> = packs.map(|pack| Look { pack, last: None, absent: None }).collect();
        let mut look = |layer: usize, range: Range<u64>| {
            // That of an answer is the last one.
            let layer = layer.min(self.packs.len());
            let Some(look) = looks.get_mut(layer).filter(|look| look.absent.is_none()) else { return };
            let size = look.pack.block_size.max(1);
            for n in range.start / size..=range.end.saturating_sub(1).max(range.start) / size {
                if look.last != Some(n) && !self.local.has_block(look.pack, n) {
                    look.absent = Some(n);
                    return;
                }
                look.last = Some(n);
            }
        };
        for segment in &plan.segments {
            match *segment {
                Segment::Copy { layer, start, len } => look(layer as usize, start..start + len),
                Segment::Anew { gid, join, .. } => {
                    for gid in plan.path(join).iter().copied().chain([gid]) {
                        let entry = stack.entry(gid);
                        look(entry.layer, entry.offset..entry.end);
                    }
                }
                _ => {}
            }
        }
        looks.into_iter().filter_map(|look| Some((look.pack, look.absent?))).collect()
    }

    /// The packs, lowest layer first.
    pub(super) fn packs(&self) -> &[PackBlob] {
        &self.packs
    }

    /// This node's cache.
    pub(super) fn local(&self) -> &Local {
        &self.local
    }

    /// The same bytes for one job, which comes back to the same blocks again and again.
    pub fn reader(&self) -> Reader {
        let room = self.local.stats().max_bytes / 8;
        let block = self.packs.iter().map(|pack| pack.block_size).max().unwrap_or(1).max(1);
        let most = usize::try_from(room / block).unwrap_or(HELD).clamp(1, HELD);
        Reader { blocks: self.clone(), most, held: Mutex::default(), stream: None }
    }

    /// A [`Reader`] for one stream, which reads ahead and waits for nothing but the disk.
    pub fn streaming(&self) -> Reader {
        Reader { stream: Some(Mutex::default()), ..self.reader() }
    }

    /// Block `n` of the pack of a layer, and whether it is mapped and not in memory.
    fn block(&self, layer: usize, n: u64) -> io::Result<(Bytes, bool)> {
        self.readable()?;
        let pack = self.pack(layer)?;
        match self.local.cached_block(pack, n) {
            Some(block) => Ok((block, true)),
            None => {
                let fetched = crate::threads::wait(&self.runtime, self.local.block(pack, n));
                fetched.map(|block| (block, false)).map_err(io::Error::other)
            }
        }
    }

    /// Reads `range` out of blocks that `block` gives.
    fn join(
        &self,
        layer: usize,
        range: Range<u64>,
        block: impl Fn(u64) -> io::Result<Bytes>,
    ) -> io::Result<Bytes> {
        let size = self.pack(layer)?.block_size.max(1);
        let (first, last) = (range.start / size, range.end.saturating_sub(1).max(range.start) / size);
        let mut joined = BytesMut::new();
        for n in first..=last {
            let block = block(n)?;
            let start = range.start.saturating_sub(n * size) as usize;
            let end = (range.end - n * size).min(block.len() as u64) as usize;
            if start > end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first == last {
                return exact(block.slice(start..end), &range);
            }
            joined.extend_from_slice(&block[start..end]);
        }
        exact(joined.freeze(), &range)
    }
}

/// One job's way through the packs. It holds on to the blocks that it read last, so that reading many small entries costs
/// no system call each.
///
/// That of a stream does not wait for the bucket: a read of a block that is not on this node's disk fails, and
/// [`Reader::absent`] says which block is to be fetched. While a stream goes straight on, the blocks ahead of it are fetched
/// already.
pub struct Reader {
    blocks: Blocks,
    /// How many blocks are held. A held block keeps its place on the disk.
    most: usize,
    held: Mutex<HashMap<At, Bytes>>,
    stream: Option<Mutex<Stream>>,
}

/// A block: its layer in the stack, and its number in the layer's pack.
type At = (usize, u64);

/// Where a stream is.
#[derive(Default)]
struct Stream {
    /// The block read last.
    last: Option<At>,
    /// The block up to which all is here or on its way.
    ahead: Option<At>,
    /// The block that a read failed for.
    absent: Option<At>,
    /// The block that was fetched last.
    missed: Option<At>,
    /// Blocks that were fetched for the step that the stream is at, for a disk that does not keep them.
    fetched: HashMap<At, Bytes>,
}

impl Reader {
    /// The block that the last read lacked, if the read failed because it would have had to wait.
    pub fn absent(&self) -> Option<(usize, u64)> {
        self.stream.as_ref().and_then(|stream| lock(stream).absent.take())
    }

    /// Fetches a block, so that the next read finds it.
    pub async fn fetch(&self, (layer, n): (usize, u64)) -> Result<(), StoreError> {
        let pack =
            self.blocks.pack(layer).map_err(|e| StoreError::unavailable("find a pack", e.to_string()))?;
        let Some(stream) = &self.stream else { return Ok(()) };
        let local = &self.blocks.local;
        // A crowd that waits for one block maps it once it is on the disk, instead of reading a copy each. One that is there
        // and cannot be mapped is read.
        let again = lock(stream).missed.replace((layer, n)) == Some((layer, n));
        if !again && local.has_block(pack, n) {
            return Ok(());
        }
        let block = local.block(pack, n).await?;
        if again || !local.has_block(pack, n) {
            lock(stream).fetched.insert((layer, n), block);
        }
        Ok(())
    }

    /// Takes note that a step is done: what was fetched for it is not held any longer, but for the block that comes next.
    pub fn step_done(&self) {
        if let Some(stream) = &self.stream {
            let mut stream = lock(stream);
            let last = stream.last;
            stream.fetched.retain(|at, _| Some(*at) == last);
        }
    }

    /// Drops all held blocks, since nothing is read for a while.
    pub fn rest(&self) {
        lock(&self.held).clear();
        if let Some(stream) = &self.stream {
            lock(stream).fetched.clear();
        }
    }

    /// Starts to fetch what is read soon: `ranges` of the packs of layers.
    pub fn ahead(&self, ranges: impl Iterator<Item = (u32, Range<u64>)>) {
        let _inside = self.blocks.runtime.enter();
        let mut last = None;
        for (layer, range) in ranges {
            let Ok(pack) = self.blocks.pack(layer as usize) else { return };
            let size = pack.block_size.max(1);
            let (first, end) = (range.start / size, range.end.div_ceil(size).min(range.start / size + AHEAD));
            if last != Some((layer, first)) {
                self.blocks.local.read_ahead(pack, first..end);
                last = Some((layer, first));
            }
        }
    }

    fn look_ahead(&self, stream: &mut Stream, layer: usize, block: u64) {
        let Ok(pack) = self.blocks.pack(layer) else { return };
        if stream.last == Some((layer, block)) {
            return;
        }
        let straight_on = block == 0 || stream.last == Some((layer, block - 1));
        stream.last = Some((layer, block));
        if straight_on {
            let from =
                stream.ahead.filter(|ahead| ahead.0 == layer).map_or(block, |ahead| ahead.1.max(block));
            if from < block + ENOUGH {
                let _inside = self.blocks.runtime.enter();
                stream.ahead = Some((layer, self.blocks.local.read_ahead(pack, from..block + AHEAD)));
            }
        }
    }

    fn hold(&self, at: At, block: &Bytes) {
        let mut held = lock(&self.held);
        if held.len() >= self.most {
            held.clear();
        }
        held.insert(at, block.clone());
    }

    fn held(&self, layer: usize, n: u64) -> io::Result<Bytes> {
        self.blocks.readable()?;
        let at = (layer, n);
        if let Some(block) = lock(&self.held).get(&at) {
            return Ok(block.clone());
        }
        let Some(stream) = &self.stream else {
            let (block, mapped) = self.blocks.block(layer, n)?;
            if mapped {
                self.hold(at, &block);
            }
            return Ok(block);
        };
        let mut stream = lock(stream);
        self.look_ahead(&mut stream, layer, n);
        if let Some(block) = self.blocks.local.cached_block(self.blocks.pack(layer)?, n) {
            stream.fetched.remove(&at);
            self.hold(at, &block);
            return Ok(block);
        }
        if let Some(block) = stream.fetched.get(&at) {
            return Ok(block.clone());
        }
        stream.absent = Some(at);
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source for Reader {
    fn read(&self, layer: usize, range: Range<u64>) -> io::Result<Bytes> {
        self.blocks.join(layer, range, |n| self.held(layer, n))
    }
}

impl Source for Blocks {
    fn read(&self, layer: usize, range: Range<u64>) -> io::Result<Bytes> {
        self.join(layer, range, |n| Ok(self.block(layer, n)?.0))
    }
}

/// A short answer is an error, never padded.
fn exact(bytes: Bytes, range: &Range<u64>) -> io::Result<Bytes> {
    if bytes.len() as u64 == range.end - range.start {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
