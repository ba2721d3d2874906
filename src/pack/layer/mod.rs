//! A layer: one self-contained pack as seen through its `.idx` and its graph; and the layers of one repository.
//!
//! - [`graph`]: what one layer knows about its objects, as a file that is mapped, not parsed.
//! - [`stack`]: the layers of one repository on top of each other, their objects numbered through.
//! - [`decode`], [`encode`]: the bytes of one object of a stack, through its chain of deltas; its entry made anew.
//!
//! Elsewhere: where the bytes of packs come from ([`Source`](super::Source)), the bytes themselves (`entry`, `delta`).
pub mod decode;
pub mod encode;
pub mod graph;
pub mod stack;

use std::path::PathBuf;

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId, oid};

use graph::{Damaged, Graph};

/// A pack's `.idx` and graph, opened together.
pub struct Layer {
    /// The `.idx`: ids, sorted.
    pub idx: gix_pack::index::File<Bytes>,
    /// Everything else, in pack order.
    pub graph: Graph,
}

impl Layer {
    /// Opens the files of one layer and checks that they describe the same pack.
    ///
    /// The graph is verified by its own checksum; the `.idx` should have been verified by its blob
    /// id when it was fetched: here only its structure is checked.
    pub fn open(idx: Bytes, graph: Bytes, hash: HashKind) -> Result<Self, Damaged> {
        let idx = open_idx(idx, hash)?;
        let graph = Graph::open(graph)?;
        if graph.hash() != hash {
            return Err(Damaged::Mismatch("object hash"));
        }
        if idx.num_objects() != graph.len() {
            return Err(Damaged::Mismatch("number of objects"));
        }
        if idx.pack_checksum().as_slice() != graph.pack_trailer() {
            return Err(Damaged::Mismatch("pack checksum"));
        }
        Ok(Self { idx, graph })
    }

    /// Finds the position of an object by its id.
    pub fn lookup(&self, oid: &oid) -> Option<u32> {
        if oid.kind() != self.graph.hash() {
            return None;
        }
        self.idx.lookup(oid).and_then(|rank| self.graph.position(rank))
    }

    /// Gives the id of the object at `position`.
    pub fn oid(&self, position: u32) -> Option<ObjectId> {
        let rank = self.graph.rank(position).filter(|&rank| rank < self.idx.num_objects())?;
        Some(self.idx.oid_at_index(rank).to_owned())
    }
}

/// Opens the bytes of a version 2 `.idx`.
pub(crate) fn open_idx(idx: Bytes, hash: HashKind) -> Result<gix_pack::index::File<Bytes>, Damaged> {
    gix_pack::index::File::from_data(idx, PathBuf::from("layer.idx"), hash)
        .map_err(|_| Damaged::Bytes("the index does not open"))
}
