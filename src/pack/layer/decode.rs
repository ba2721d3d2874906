//! The bytes of one object: its chain of deltas read from the packs of a stack and applied.
//!
//! Relies on: layers complete for their deltas, so a chain never leaves its layer.
//! Elsewhere: where bytes of packs come from ([`Source`]), what objects mean (`object`).
use bytes::Bytes;
use gix_object::Kind;
use gix_zlib::Inflate;

use super::stack::Entry;
use crate::pack::delta::{self, BadData};
use crate::pack::lru::ByteLru;
use crate::pack::meter::{Halt, Meter};
use crate::pack::{Gid, Source, Stack};

/// An object could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The pack could not be read; the same call may succeed later if the source says so.
    #[error("cannot read the pack of layer {layer}")]
    Read {
        /// Index of the layer in the stack.
        layer: usize,
        /// What the source said.
        #[source]
        error: std::io::Error,
    },
    /// Pack and graph do not fit, or are damaged. Verify the pack, build the graph again.
    #[error("object at position {position} of layer {layer} does not decode")]
    Damaged {
        /// Index of the layer in the stack.
        layer: usize,
        /// Position in its pack.
        position: u32,
        /// What is wrong.
        #[source]
        error: BadData,
    },
    /// The object, or a delta on the way to it, is larger than the caller allows.
    #[error("object of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Bytes needed.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The meter ended the job.
    #[error(transparent)]
    Halt(#[from] Halt),
}

/// Decoding or copying so many bytes counts as one step.
const BYTES_A_STEP: u64 = 64;

/// What decoding keeps between objects: zlib state and a bounded cache of results.
///
/// Good for one stack only, since gids mean nothing elsewhere.
pub struct Scratch {
    inflate: Inflate,
    cache: ByteLru<Kind>,
    limit: u64,
}

impl Scratch {
    /// Keeps at most `cache_bytes` of decoded objects and refuses objects above `limit` bytes.
    pub fn new(cache_bytes: usize, limit: u64) -> Self {
        Self { inflate: Inflate::default(), cache: ByteLru::new(cache_bytes), limit }
    }
}

/// Gives type and bytes of an object.
///
/// Every object on its delta chain passes through the cache of `scratch`, so objects that follow
/// each other in a pack cost one delta each. `source` is asked once per entry on the chain. Bytes count as steps on
/// `meter`; the memory that is needed for a moment, [`peak`], is the caller's to count.
pub fn object(
    stack: &Stack,
    source: &dyn Source,
    gid: Gid,
    scratch: &mut Scratch,
    meter: &dyn Meter,
) -> Result<(Kind, Bytes), DecodeError> {
    let kind = stack.kind(gid);
    let mut chain: Vec<(Gid, Entry)> = Vec::new();
    let (layer, _) = stack.layer_of(gid);
    let first = stack.first_gid(layer);
    let mut at = gid;
    let mut bytes = loop {
        if let Some((bytes, _)) = scratch.cache.get(at) {
            break bytes;
        }
        let entry = stack.entry(at);
        // A chain stays in its layer, so it is followed by position, not by canonical gid.
        match entry.base_local {
            Some(base) => {
                if chain.len() as u64 > u64::from(stack.len()) {
                    return Err(damaged(&entry, BadData("delta chain has no end")));
                }
                meter.step(1)?;
                chain.push((at, entry));
                at = first + base;
            }
            None => {
                meter.step(entry.entry_size / BYTES_A_STEP)?;
                let whole = read(source, &entry, scratch)?;
                let whole = Bytes::from(whole);
                scratch.cache.put(at, whole.clone(), kind);
                break whole;
            }
        }
    };
    while let Some((gid, entry)) = chain.pop() {
        let delta = read(source, &entry, scratch)?;
        let size = stack.size(gid);
        if size > scratch.limit {
            return Err(DecodeError::TooLarge { size, limit: scratch.limit });
        }
        meter.step((entry.entry_size + size) / BYTES_A_STEP)?;
        bytes = delta::apply(&bytes, &delta, size).map_err(|error| damaged(&entry, error))?.into();
        scratch.cache.put(gid, bytes.clone(), kind);
    }
    Ok((kind, bytes))
}

/// Gives the most bytes that [`object`] holds at once, by what the graph says of sizes: a base, a delta and their result.
pub fn peak(stack: &Stack, gid: Gid, meter: &dyn Meter) -> Result<u64, Halt> {
    let (layer, _) = stack.layer_of(gid);
    let first = stack.first_gid(layer);
    let (mut at, mut most) = (gid, stack.size(gid));
    // No chain is longer than its layer; one that has no end is found when it is read.
    for _ in 0..stack.len() {
        let entry = stack.entry(at);
        let Some(base) = entry.base_local else { break };
        meter.step(1)?;
        let base = first + base;
        let sum = stack.size(base).saturating_add(entry.entry_size).saturating_add(stack.size(at));
        most = most.max(sum);
        at = base;
    }
    Ok(most)
}

/// Gives the bytes of the delta that an object is stored as; `None` if it is stored whole.
pub fn stored_delta(
    stack: &Stack,
    source: &dyn Source,
    gid: Gid,
    scratch: &mut Scratch,
    meter: &dyn Meter,
) -> Result<Option<Vec<u8>>, DecodeError> {
    let entry = stack.entry(gid);
    meter.step(entry.entry_size / BYTES_A_STEP)?;
    entry.base_local.map(|_| read(source, &entry, scratch)).transpose()
}

fn damaged(entry: &Entry, error: BadData) -> DecodeError {
    DecodeError::Damaged { layer: entry.layer, position: entry.position, error }
}

/// Reads and inflates the data of one entry.
fn read(source: &dyn Source, entry: &Entry, scratch: &mut Scratch) -> Result<Vec<u8>, DecodeError> {
    let size = usize::try_from(entry.entry_size).unwrap_or(usize::MAX);
    if entry.entry_size > scratch.limit || size == usize::MAX {
        return Err(DecodeError::TooLarge { size: entry.entry_size, limit: scratch.limit });
    }
    let start = entry.offset + u64::from(entry.header_len);
    if start >= entry.end {
        return Err(damaged(entry, BadData("entry has no data")));
    }
    let zipped = source
        .read(entry.layer, start..entry.end)
        .map_err(|error| DecodeError::Read { layer: entry.layer, error })?;
    delta::inflate(&mut scratch.inflate, &zipped, size).map_err(|error| damaged(entry, error))
}
