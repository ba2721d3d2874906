//! The bytes of a repository's packs, as the blocking [`Source`] that the pure pack code reads from.
//!
//! Relies on: `local` for verified blocks. Called from blocking threads only, because an absent block is fetched from
//! the bucket while the caller waits.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;

use crate::local::{Local, PackBlob};
use crate::pack::Source;

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
        self.packs
            .get(layer)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("no layer {layer} in this stack")))
    }

    /// This node's cache, for readers that wait asynchronously.
    pub fn local(&self) -> &Local {
        &self.local
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
    if bytes.len() as u64 == range.end - range.start { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
