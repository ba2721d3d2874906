//! Indexing: a pack that comes in is checked, completed, and gets its `.idx`, in little memory.
//!
//! What git's `index-pack --strict --fix-thin` does, in three passes over a file that the caller keeps:
//! [`receive`] reads the stream once, piece by piece; [`complete`](complete::complete) puts the bases of a thin pack
//! before the deltas on them; [`resolve`](resolve::resolve) computes the ids, and [`write`](write::write) the
//! `.idx`. Objects that are no deltas and no bases are never held whole, whatever their size; what must be held is
//! counted on a [`Meter`](crate::pack::meter::Meter), or lies in a file ([`resolve::Keep`]).
//!
//! Why not gix-pack's writer: it holds the compressed bytes of each entry, every object whole, and as many bases as the
//! shape of the deltas asks for, bounded one by one only.
//! Relies on: gix-hash, which finds SHA-1 collisions. Elsewhere: files (`work::ingest`), closure (`layer::graph::build`).

pub mod complete;
pub mod receive;
pub mod resolve;
#[cfg(test)]
mod tests;
pub mod write;

use std::io;

use gix_hash::ObjectId;

use super::DecodeError;
use super::meter::Halt;

/// What one entry costs while a pack is indexed: its row, its id, its place among the children of its base, its place in
/// the order of ids.
pub const BYTES_PER_ENTRY: u64 = 96;
/// Bytes that cost as much to inflate and to hash as reading one entry of a tree.
const BYTES_PER_STEP: u64 = 16;

/// One entry of a pack, in the order of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First byte of its header.
    pub offset: u64,
    /// Bytes of the inflated data: the object's, or the delta's.
    pub size: u64,
    /// CRC-32 of the header and the zlib data.
    pub crc: u32,
    /// The base, for a delta.
    pub base: Base,
    /// Bytes of its header.
    pub header_len: u8,
    /// The number of its type in packs: 1 to 4, or 6 and 7 for deltas.
    pub code: u8,
}

/// The base of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// None: the object is whole.
    Whole,
    /// The entry at this position, which is before this one.
    At(u32),
    /// The object whose id is at this index of [`Entries::bases`].
    Named(u32),
}

/// All entries of a pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// In the order of the pack.
    pub list: Vec<Entry>,
    /// Ids of bases that deltas name.
    pub bases: Vec<ObjectId>,
    /// First byte of the pack's trailer.
    pub end: u64,
}

impl Entries {
    /// The first byte behind the entry at `position`.
    fn end_of(&self, position: usize) -> u64 {
        self.list.get(position + 1).map_or(self.end, |next| next.offset)
    }
}

/// A pack that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The stream ended or broke, or a file could not be written: another try may succeed.
    #[error("the pack could not be received: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no pack. The sender is at fault.
    #[error("the pack is damaged at byte {offset}: {reason}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// An object is larger than the settings allow.
    #[error(
        "the object at byte {offset} of the pack has {size} bytes, and {most} are allowed (limits.object)"
    )]
    TooLarge {
        /// Where it begins.
        offset: u64,
        /// Its size.
        size: u64,
        /// The size allowed.
        most: u64,
    },
    /// The base of a delta is neither in the pack nor in a layer below.
    #[error("the delta base {base} is neither in the pack nor in what was published before")]
    MissingBase {
        /// Its id.
        base: ObjectId,
    },
    /// A base that was published before cannot be read: see the source whether to try again.
    #[error("the delta base {base} could not be read")]
    Base {
        /// Its id.
        base: ObjectId,
        /// Why.
        #[source]
        error: DecodeError,
    },
    /// Bytes made to have the id of others.
    #[error("the object at byte {offset} of the pack is part of a SHA-1 collision")]
    Collision {
        /// Where it begins.
        offset: u64,
    },
    /// It costs more than it may.
    #[error("the object at byte {offset} of the pack: {halt}")]
    Costs {
        /// Where it begins.
        offset: u64,
        /// What it costs.
        halt: Halt,
    },
    /// The pack as a whole costs more than it may, or nobody waits for it.
    #[error("the pack: {0}")]
    Halted(#[from] Halt),
}

impl IndexError {
    /// Why it had to end, if that is why.
    pub fn halt(&self) -> Option<&Halt> {
        match self {
            Self::Costs { halt, .. } | Self::Halted(halt) => Some(halt),
            _ => None,
        }
    }
}

fn damaged(offset: u64, reason: &'static str) -> IndexError {
    IndexError::Damaged { offset, reason }
}

/// Adds the offset at which it happened.
fn at(offset: u64) -> impl Fn(Halt) -> IndexError {
    move |halt| match halt {
        Halt::Stopped => IndexError::Halted(halt),
        halt => IndexError::Costs { offset, halt },
    }
}
