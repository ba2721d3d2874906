//! The merge: some layers become one, entry by entry as they are stored, each object once, in chains of deltas that are no longer than git's.
//!
//! What the layers hold is laid out and written by the code that makes answers for clients, and taken in by the code that
//! takes in packs from the primary: every object is inflated and hashed again, and a new graph proves that nothing
//! reachable is missing. Bases that completed a thin pack stay, so the deltas on them stay as they are.
//! Blocking and CPU-bound, with one thread. Elsewhere: which layers (`policy`), the check before anything is published
//! (`seal`), the rest (`mod`).

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use gix_hash::ObjectId;
use roaring::RoaringBitmap;

use crate::local::Local;
use crate::mirror::blocks::{Blocks, Reader};
use crate::mirror::snapshot::pack_blob;
use crate::pack::index::IndexError;
use crate::pack::layer::Layer;
use crate::pack::meter::{Halt, Meter};
use crate::pack::plan::depth::too_deep;
use crate::pack::plan::{Hint, Plan, PlanOptions, plan_with};
use crate::pack::set::GidSet;
use crate::pack::write::reader::PackReader;
use crate::pack::{Scratch, Selection, Source, Stack};
use crate::store::LayerRef;
use crate::work::cost::Cost;
use crate::work::ingest::{Expected, IngestError, NewLayer, ingest};

/// Bytes of decoded objects that are kept while objects are packed anew.
const SCRATCH: usize = 16 << 20;
/// How far the packs are read ahead.
const AHEAD: u64 = 16 << 20;

/// Neighbouring layers of a stack, open.
#[derive(Clone, Default)]
pub struct Layers {
    /// As the record names them, lowest first.
    pub named: Vec<LayerRef>,
    /// The same, open.
    pub open: Vec<Arc<Layer>>,
}

impl Layers {
    /// The layers in `range` of `named` and `open`.
    pub fn of(named: &[LayerRef], open: &[Arc<Layer>], range: Range<usize>) -> Self {
        let named = named.get(range.clone()).unwrap_or_default().to_vec();
        Self { named, open: open.get(range).unwrap_or_default().to_vec() }
    }

    /// The bytes of their packs. Must be called inside a runtime.
    pub fn blocks(&self, local: &Local) -> Blocks {
        let packs = self.named.iter().zip(&self.open).map(|(named, open)| pack_blob(&named.pack, open));
        Blocks::new(local.clone(), packs.collect())
    }
}

/// What is to be merged.
pub struct Merge {
    /// The layers that become one, and the bytes of their packs.
    pub inputs: (Layers, Blocks),
    /// The layers below them, and the bytes of their packs.
    pub below: (Layers, Blocks),
    /// What is kept, as gids of the merged layers; all if none. Only for a merge with nothing below.
    pub keep: Option<RoaringBitmap>,
    /// What must be found in the result or below it.
    pub tips: Vec<ObjectId>,
    /// The object hash.
    pub hash: gix_hash::Kind,
}

/// Makes the layer in `scratch`. `None`: nothing is left.
pub fn merge(job: &Merge, scratch: &Path, cost: &Cost) -> Result<Option<NewLayer>, IngestError> {
    let damaged = |e: crate::pack::Damaged| IngestError::Graph(e.into());
    let part = Stack::open_part(job.inputs.0.open.clone()).map_err(damaged)?;
    let made = lay_out(&part, job.keep.as_ref(), cost).map_err(IndexError::Halted)?;
    let source = Ahead(job.inputs.1.reader());
    let decoded = Scratch::new(SCRATCH, u64::MAX);
    let stream = PackReader::new(Arc::new(made), &part, &source, decoded, cost);

    let below = Stack::open(job.below.0.open.clone()).map_err(damaged)?;
    let below = (!below.is_empty()).then_some((&below, &job.below.1 as &dyn Source));
    // Each object was within the limits when it was taken in.
    let (tips, hash) = (job.tips.clone(), job.hash);
    let expected = Expected { tips, hash, largest_object: u64::MAX, threads: 1 };
    ingest(stream, scratch, below, &expected, cost, &|_| {})
}

/// Lays out what is kept of the layers of `part`, or all if nothing is said. What would end a longer chain of deltas than git makes is packed
/// whole.
pub fn lay_out(part: &Stack, keep: Option<&RoaringBitmap>, meter: &dyn Meter) -> Result<Plan, Halt> {
    let objects = keep.cloned().unwrap_or_else(|| all(part));
    let options = PlanOptions { ofs_delta: true, thin: false };
    let deep = too_deep(part, &objects, meter)?;
    plan_with(part, &mut Selection::of(objects), Hint::Whole(&deep), options, meter)
}

/// The gids of all objects, each once.
pub fn all(part: &Stack) -> RoaringBitmap {
    let mut objects = GidSet::new(part.len());
    for (n, layer) in part.layers().iter().enumerate() {
        let mut last = None;
        for rank in 0..layer.idx.num_objects() {
            let id = layer.idx.oid_at_index(rank);
            // A pack may hold an object twice.
            if last.replace(id) != Some(id)
                && let Some(position) = layer.graph.position(rank)
            {
                objects.insert(part.canonical(n, position));
            }
        }
    }
    objects.to_roaring()
}

/// Packs that are read from one end to the other.
struct Ahead(Reader);

impl Source for Ahead {
    fn read(&self, layer: usize, range: Range<u64>) -> io::Result<Bytes> {
        let layer_number = u32::try_from(layer).unwrap_or(u32::MAX);
        self.0.ahead(std::iter::once((layer_number, range.start..range.start.saturating_add(AHEAD))));
        self.0.read(layer, range)
    }
}
