//! The bytes of a repository's packs, as the blocking [`Source`] that the pure pack code reads from.
//!
//! Relies on: `local` for verified blocks. Called from blocking threads only, because an absent block is fetched from
//! the bucket while the caller waits.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;

use crate::local::{Local, PackBlob};
use crate::pack::Source;
use crate::pack::plan::{Plan, Segment};
use crate::store::StoreError;

/// How many blocks a stream is ahead of itself: at 1 MiB each what a fast connection takes in a store's round trip.
const AHEAD: u64 = 16;

/// The packs of one stack, by layer.
#[derive(Clone)]
pub struct Blocks {
    local: Local,
    packs: Arc<[PackBlob]>,
    runtime: Handle,
}

impl Blocks {
    /// Joins the packs of a stack, lowest layer first, to this node's cache. Must be called inside a runtime.
    pub fn new(local: Local, packs: Vec<PackBlob>) -> Self {
        Self { local, packs: packs.into(), runtime: Handle::current() }
    }

    /// The pack of a layer, or an error that names a layer which the stack does not have.
    pub fn pack(&self, layer: usize) -> io::Result<&PackBlob> {
        self.packs.get(layer).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("no layer {layer} in this stack"))
        })
    }

    /// Makes sure that sending `plan` can begin: its bytes lie on this node's disk, or the first that do not could be
    /// fetched just now.
    pub async fn at_hand(&self, plan: &Plan) -> Result<(), StoreError> {
        let mut seen = (usize::MAX, u64::MAX);
        for segment in &plan.segments {
            let Segment::Copy { layer, start, len } = *segment else { continue };
            let Some(pack) = self.packs.get(layer as usize) else { continue };
            let size = pack.block_size.max(1);
            for n in start / size..=(start + len.max(1) - 1) / size {
                if seen != (layer as usize, n) && !self.local.has_block(pack, n) {
                    return self.local.block(pack, n).await.map(drop);
                }
                seen = (layer as usize, n);
            }
        }
        Ok(())
    }

    /// The same bytes for one stream, which reads ahead.
    pub fn streaming(&self) -> Streaming<'_> {
        Streaming { blocks: self, last: Mutex::new((usize::MAX, 0)) }
    }
}

/// One stream's way through the packs: while it goes straight on, the blocks ahead of it are fetched already.
pub struct Streaming<'a> {
    blocks: &'a Blocks,
    /// Layer and block read last.
    last: Mutex<(usize, u64)>,
}

impl Streaming<'_> {
    fn look_ahead(&self, layer: usize, block: u64) {
        let Ok(pack) = self.blocks.pack(layer) else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == (layer, block) {
            return;
        }
        let straight_on = *last == (layer, block.wrapping_sub(1)) || block == 0;
        *last = (layer, block);
        if straight_on {
            let _inside = self.blocks.runtime.enter();
            self.blocks.local.read_ahead(pack, block..block + AHEAD);
        }
    }
}

impl Source for Streaming<'_> {
    fn read(&self, layer: usize, range: Range<u64>) -> io::Result<Bytes> {
        let size = self.blocks.pack(layer)?.block_size.max(1);
        self.look_ahead(layer, range.start / size);
        self.blocks.read(layer, range)
    }
}

impl Source for Blocks {
    fn read(&self, layer: usize, range: Range<u64>) -> io::Result<Bytes> {
        let pack = self.pack(layer)?;
        let size = pack.block_size.max(1);
        let (first, last) = (range.start / size, range.end.saturating_sub(1).max(range.start) / size);
        let mut joined = BytesMut::new();
        for n in first..=last {
            let block = match self.local.cached_block(pack, n) {
                Some(block) => block,
                None => self.runtime.block_on(self.local.block(pack, n)).map_err(io::Error::other)?,
            };
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

/// A short answer is an error, never padded.
fn exact(bytes: Bytes, range: &Range<u64>) -> io::Result<Bytes> {
    if bytes.len() as u64 == range.end - range.start {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
