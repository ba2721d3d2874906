//! The files of a generation: all that an opening needs, asked for at once.
//!
//! Relies on: `local` for fetching and proving. Elsewhere: what they make together (`snapshot`).

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use crate::budget::Budget;
use crate::git::HashKind;
use crate::local::Local;
use crate::mirror::snapshot::{OpenError, belongs, unusable};
use crate::pack::layer::Layer;
use crate::store::{BlobRef, Generation, LayerRef, StoreError};

/// Bytes of files of one repository that are fetched at the same time: small files however many layers there are, and of large ones a
/// few windows.
const AT_ONCE: u64 = 64 << 20;
/// What a file counts of it at least, and at the most.
const FILE: RangeInclusive<u64> = 128 << 10..=32 << 20;
/// A graph of so many bytes is checked in a job of its own, beside others and beside those that are still on their way.
const LARGE: usize = 256 << 10;

/// A layer on its way into a stack.
pub(super) enum Part {
    /// It is open: in an older snapshot, or because it is large.
    Open(Arc<Layer>),
    /// Its files.
    Mapped { idx: Bytes, graph: Bytes },
}

/// What was fetched.
pub(super) struct Files {
    /// The refs, unpacked.
    pub refs: Bytes,
    /// The layers, lowest first.
    pub parts: Vec<Part>,
}

/// Fetches what is not here. `shared` gives a layer that is open already. However many layers there are, they cost one round trip.
pub(super) async fn fetch(
    local: &Local,
    generation: &Generation,
    hash: HashKind,
    shared: impl Fn(&LayerRef) -> Option<Arc<Layer>>,
) -> Result<Files, OpenError> {
    let number = generation.number;
    let room = Budget::new(AT_ONCE, "cache_dir");
    let file = async |what, blob: &BlobRef| {
        // Never refused: no file counts more than there is.
        let _room = room.take(blob.len.clamp(*FILE.start(), *FILE.end())).await;
        local.mapped(blob).await.map_err(|source| OpenError::Store { what, number, source })
    };
    let part = async |layer: &LayerRef| {
        if let Some(open) = shared(layer) {
            return Ok(Part::Open(open));
        }
        let (idx, graph) = tokio::try_join!(file("an index", &layer.idx), file("a graph", &layer.graph))?;
        if graph.len() < LARGE {
            return Ok(Part::Mapped { idx, graph });
        }
        let layer = *layer;
        let opening = crate::threads::spawn_blocking(move || opened(&layer, idx, graph, hash, number));
        let opened = opening.await.unwrap_or_else(|e| {
            let source = StoreError::unavailable("open a layer", e.to_string());
            Err(OpenError::Store { what: "a layer", number, source })
        });
        opened.map(Part::Open)
    };
    let parts = try_join_all(generation.layers.iter().map(part));
    let (refs, parts) = tokio::try_join!(file("the refs", &generation.refs), parts)?;
    Ok(Files { refs, parts })
}

/// Opens a layer of a record.
pub(super) fn opened(
    named: &LayerRef,
    idx: Bytes,
    graph: Bytes,
    hash: HashKind,
    number: u64,
) -> Result<Arc<Layer>, OpenError> {
    let opened = Layer::open(idx, graph, hash).map_err(|e| unusable("a layer", number, &e))?;
    belongs(named, &opened).map_err(|e| unusable("a layer", number, &e))?;
    Ok(Arc::new(opened))
}
