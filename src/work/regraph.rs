//! Graphs of an older version, built again from the packs and indices that the bucket has.
//!
//! A graph is derived from its pack and the layers below, so the primary is asked for nothing. The packs and indices stay
//! what they are: the new generation names the same ones, with other graphs beside them.
//! Relies on: `ingest` for building one graph, `publish` for the generation. Elsewhere: when it is due (`sync`).

use std::sync::Arc;

use gix_hash::ObjectId;

use crate::git::HashKind;
use crate::local::map_file;
use crate::mirror::blocks::Blocks;
use crate::mirror::damage::Fault;
use crate::mirror::progress::Step;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::{OpenError, belongs, object_format, pack_blob, refs_of, unusable};
use crate::pack::Source;
use crate::pack::layer::Layer;
use crate::pack::layer::graph::{Damaged, graph_version_is_old};
use crate::pack::layer::stack::Stack;
use crate::store::{BlobKind, Generation, LayerRef, StoreError};
use crate::work::Work;
use crate::work::cost::Cost;
use crate::work::error::SyncError;
use crate::work::ingest::{IngestError, NewGraph, THREADS, graph_of};
use crate::work::publish::{Draft, Published, publish, put_file};

/// Publishes `old` once more, with graphs that this program reads.
pub(super) async fn regraph(
    work: &Work,
    repo: &Arc<Repo>,
    old: &Generation,
    cost: &Arc<Cost>,
) -> Result<Published, SyncError> {
    tracing::info!(repo = %repo.path, number = old.number, layers = old.layers.len(), "building graphs of an older version again");
    repo.step(Step::Graph);
    let made = layers(work, repo, old, cost).await;
    let (refs, layers) = made.inspect_err(|e| {
        repo.report_damage(old, e);
    })?;
    // Graphs of answers are as old, and these are made again when they are asked for.
    let answers = Some(Vec::new());
    let asked = old.verified_at;
    let draft = Draft { base: Some(old), layers, refs: &refs, asked, repairing: false, answers };
    repo.step(Step::Publishing);
    publish(work, repo, draft).await
}

/// The layers of `old` with graphs that this program reads, stored; and its refs.
async fn layers(
    work: &Work,
    repo: &Repo,
    old: &Generation,
    cost: &Arc<Cost>,
) -> Result<(crate::git::refs::Refs, Vec<LayerRef>), SyncError> {
    let number = old.number;
    let store = |what| move |source| OpenError::Store { what, number, source };
    let text = work.mirror.local.mapped(&old.refs).await.map_err(store("the refs"))?;
    let hash = object_format(old)?;
    let refs = refs_of(old, hash, &text)?;
    let mut named: Vec<LayerRef> = Vec::with_capacity(old.layers.len());
    let mut open: Vec<Arc<Layer>> = Vec::with_capacity(old.layers.len());
    for (n, layer) in old.layers.iter().enumerate() {
        let idx = work.mirror.local.mapped(&layer.idx).await.map_err(store("an index"))?;
        let graph = work.mirror.local.mapped(&layer.graph).await.map_err(store("a graph"))?;
        match Layer::open(idx.clone(), graph, hash) {
            Ok(current) => {
                belongs(layer, &current).map_err(|e| unusable("a layer", number, &e))?;
                named.push(*layer);
                open.push(Arc::new(current));
                continue;
            }
            Err(Damaged::Version(version)) if graph_version_is_old(version) => {}
            Err(e) => return Err(unusable("a layer", number, &e).into()),
        }
        // The tips must be found in the highest layer or below it; the layers below are complete in themselves.
        let tips = if n + 1 == old.layers.len() { refs.tips() } else { Vec::new() };
        let below = (&named[..], &open[..]);
        let built = build(work, layer, idx, below, (hash, tips), cost).await;
        let (new, _scratch) = built.inspect_err(|e| {
            // A pack from which no graph can be built is damaged.
            if let SyncError::Ingest(IngestError::Graph(e)) = e
                && e.is_about_the_pack()
                && repo.damage().note(vec![(layer.graph, Fault::Useless)])
            {
                repo.ask();
            }
        })?;
        let graph = put_file(work, BlobKind::Graph, &new.file, false, &|_| {}).await?;
        named.push(LayerRef { graph, ..*layer });
        open.push(new.layer);
    }
    Ok((refs, named))
}

/// Builds the graph of one layer on top of those below.
async fn build(
    work: &Work,
    layer: &LayerRef,
    idx: bytes::Bytes,
    (named, open): (&[LayerRef], &[Arc<Layer>]),
    (hash, tips): (HashKind, Vec<ObjectId>),
    cost: &Arc<Cost>,
) -> Result<(NewGraph, tempfile::TempDir), SyncError> {
    let scratch = work.mirror.local.scratch()?;
    let pack = scratch.path().join("pack");
    work.mirror.bucket.download(&layer.pack, &pack).await?;
    let packs = named.iter().zip(open).map(|(named, layer)| pack_blob(&named.pack, layer)).collect();
    let blocks = Blocks::new(work.mirror.local.clone(), packs);
    let (below, cost) = (open.to_vec(), Arc::clone(cost));
    let made = crate::threads::spawn_blocking(move || {
        let stack = Stack::open(below).map_err(|e| IngestError::Graph(e.into()))?;
        let below = (!stack.layers().is_empty()).then_some((&stack, &blocks as &dyn Source));
        let pack = map_file(&pack).map_err(IngestError::Scratch)?;
        graph_of(&pack, idx, below, (hash, THREADS), &tips, scratch.path(), &cost).map(|made| (made, scratch))
    });
    Ok(made.await.map_err(|e| StoreError::unavailable("build a graph", e.to_string()))??)
}
