//! Publishing a new layer although another writer was faster, where that one only merged layers or built graphs again.
//!
//! A layer names what it leans on by id. So where the winner of the number has the same refs, the layer lies on its layers as
//! it lay on those before, and need not be fetched again: putting the stack together shows it.
//! Relies on: `publish`. Elsewhere: winners that publish something else (`sync` starts over).

use std::sync::Arc;

use crate::git::refs::Refs;
use crate::mirror::repo::Repo;
use crate::pack::Stack;
use crate::store::{Generation, LayerRef};
use crate::work::Work;
use crate::work::error::SyncError;
use crate::work::ingest::NewLayer;
use crate::work::publish::{Draft, Published, publish};

/// How many winners in a row are built upon.
const MAX_ROUNDS: usize = 4;

/// Publishes `draft`, whose highest layer is `new`, if there is one; upon the winner's layers if another writer was faster
/// and published the same refs as the draft's base.
pub(super) async fn publish_upon(
    work: &Work,
    repo: &Repo,
    draft: Draft<'_>,
    new: Option<&NewLayer>,
) -> Result<Published, SyncError> {
    let (before, refs, asked, repairing) = (draft.base, draft.refs, draft.asked, draft.repairing);
    let lies_on = before.is_some_and(|before| {
        draft.layers.split_last().is_some_and(|(_, below)| !below.is_empty() && below == before.layers)
    });
    let top = draft.layers.last().copied();
    let mut published = publish(work, repo, draft).await?;
    let (Some(before), Some(top), Some(new), true, false) = (before, top, new, lies_on, repairing) else {
        return Ok(published);
    };
    for _ in 0..MAX_ROUNDS {
        let Published::Lost(winner) = published else { break };
        let Some(layers) = upon(work, repo, before, &winner, (top, new, refs)).await else {
            return Ok(Published::Lost(winner));
        };
        let draft = Draft { base: Some(&*winner), layers, refs, asked, repairing, answers: None };
        published = publish(work, repo, draft).await?;
    }
    Ok(published)
}

/// The layers of `winner` with the new one on top, if it can lie there.
async fn upon(
    work: &Work,
    repo: &Repo,
    before: &Generation,
    winner: &Generation,
    (top, new, refs): (LayerRef, &NewLayer, &Refs),
) -> Option<Vec<LayerRef>> {
    let is_ours = work.mirror.bucket.is_record_of(&winner.primary, &work.mirror.primary.name());
    if !is_ours || winner.removed || winner.manifest_digest != before.manifest_digest {
        return None;
    }
    // What was fetched before a purge lies on nothing after it: the next round of the sync asks the primary again.
    if work.mirror.is_closed(repo, before.number).await.unwrap_or(true) {
        return None;
    }
    // If it cannot be opened, the next round of the sync reports why.
    let open = work.mirror.open(repo, winner.clone()).await.ok()?;
    if open.generation.number != winner.number || winner.layers.contains(&top) {
        return None;
    }
    // What no ref reached before may have been left out of a merged layer.
    let (layers, tips) = ([open.stack.layers(), &[Arc::clone(&new.layer)]].concat(), refs.tips());
    let fits = crate::threads::spawn_blocking(move || {
        Stack::open(layers).is_ok_and(|stack| tips.iter().all(|tip| stack.lookup(tip).is_some()))
    });
    let fits = fits.await;
    fits.unwrap_or(false).then(|| [&winner.layers[..], &[top]].concat())
}
