//! The merge of a purge: all layers become one that holds what the given tips reach, and nothing else.
//!
//! Unlike a merge in the background it asks for no other retained generation, and for no policy. What it publishes it
//! publishes upon the very generation that it was made from.
//! Elsewhere: what is done about the generations before (`work::purge`).

use std::sync::Arc;

use gix_hash::ObjectId;
use roaring::RoaringBitmap;

use super::merge::{Layers, all};
use super::roots::{Kept, of_tips};
use super::{CompactError, enough_scratch, make, store};
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Snapshot;
use crate::store::LayerRef;
use crate::work::Work;
use crate::work::cost::Cost;
use crate::work::cost::StopOnDrop;
use crate::work::publish::{Draft, Published, publish};

/// What tips reach of an open generation, and what they do not.
pub(in crate::work) struct Reached {
    kept: Kept,
    /// The objects that they do not reach.
    pub unreachable: RoaringBitmap,
}

impl Reached {
    /// Says whether the tips reach an object of `open`.
    pub fn reaches(&self, open: &Snapshot, oid: &ObjectId) -> bool {
        open.stack.lookup(oid).is_some_and(|gid| self.kept.objects.contains(gid))
    }
}

/// Finds what `tips` reach of `open`.
pub(in crate::work) async fn reached(
    work: &Work,
    open: &Arc<Snapshot>,
    tips: Vec<ObjectId>,
) -> Result<Reached, CompactError> {
    let cost = Arc::new(Cost::begin(&work.sync_memory).await?);
    let _end = StopOnDrop(Arc::clone(&cost));
    let kept = of_tips(open, tips, &cost).await?;
    let unreachable = all(&open.stack) - &kept.objects;
    Ok(Reached { kept, unreachable })
}

/// Publishes a generation with the refs of `open` and one layer of what was `reached`; with the layers of `open`, if that is all of
/// them. `None`: another writer was faster, and nothing was published.
pub(in crate::work) async fn publish_reached(
    work: &Work,
    repo: &Arc<Repo>,
    open: &Arc<Snapshot>,
    reached: &Reached,
) -> Result<Option<Arc<Snapshot>>, CompactError> {
    if reached.unreachable.is_empty() {
        return publish_layers(work, repo, open, open.generation.layers.clone()).await;
    }
    let (below, inputs) = (
        Layers::default(),
        Layers::of(&open.generation.layers, open.stack.layers(), 0..open.generation.layers.len()),
    );
    enough_scratch(work, &inputs.named)?;
    let cost = Arc::new(Cost::begin(&work.sync_memory).await?.of(repo.compaction()));
    let _end = StopOnDrop(Arc::clone(&cost));
    let made = make(work, repo, open, (&below, &inputs), Some(reached.kept.clone()), cost).await;
    let (layers, _scratch) = match made.inspect_err(|_| repo.compaction().end())? {
        Some((new, scratch)) => (vec![store(work, repo, &new).await?], Some(scratch)),
        None => (Vec::new(), None),
    };
    repo.compaction().end();
    publish_layers(work, repo, open, layers).await
}

/// Publishes a generation with the refs of `open` and other layers.
async fn publish_layers(
    work: &Work,
    repo: &Arc<Repo>,
    open: &Arc<Snapshot>,
    layers: Vec<LayerRef>,
) -> Result<Option<Arc<Snapshot>>, CompactError> {
    let (base, refs) = (&open.generation, &open.refs);
    // Answers may hold what is purged.
    let answers = Some(Vec::new());
    let draft = Draft { base: Some(base), layers, refs, asked: base.verified_at, repairing: false, answers };
    match publish(work, repo, draft).await? {
        Published::Won(published) => Ok(Some(published)),
        Published::Lost(_) => Ok(None),
    }
}
