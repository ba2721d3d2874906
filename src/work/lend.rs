//! What one node has lost and another has whole in its cache.
//!
//! A node that is about to fetch much again asks the others first ([`ask_others`]): it leaves a mark in the bucket that names
//! the blobs, and waits a while. Each node looks for such marks ([`run`]), stores again what its cache has whole, and takes the
//! mark away when nothing is missing any more. A mark makes nobody do more than store blobs that its own record names, so
//! whoever writes one gains nothing by it.
//! Relies on: `heal` for storing. Elsewhere: the repair that goes on with what is there then (`sync`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mirror::health::nodes;
use crate::mirror::progress::Step;
use crate::mirror::repo::Repo;
use crate::retry::Dice;
use crate::store::{BlobRef, Generation, StoreError, nonce};
use crate::work::Work;
use crate::work::error::SyncError;
use crate::work::heal::lend;

/// How often nodes look for marks.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long is waited for them: each looks once, and has time to store what it has.
const WAIT: Duration = Duration::from_secs(45);
/// How often the node that waits looks whether its mark is gone.
const POLL: Duration = Duration::from_secs(1);
/// Less than this is fetched from the primary sooner than others are asked.
pub(super) const WORTH: u64 = 16 << 20;

/// A mark.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// Tells one mark from the next.
    nonce: String,
    /// What is missing or damaged.
    blobs: Vec<BlobRef>,
}

/// Asks the other nodes for the `blobs` of a repository, if there are others and these are at least `worth` bytes. Says whether one of
/// them has stored them again.
pub(super) async fn ask_others(
    work: &Work,
    repo: &Repo,
    blobs: Vec<BlobRef>,
    worth: u64,
) -> Result<bool, StoreError> {
    let bucket = &work.mirror.bucket;
    let bytes = blobs.iter().map(|blob| blob.len).fold(0, u64::saturating_add);
    if bytes < worth || nodes(bucket).await?.len() < 2 {
        return Ok(false);
    }
    tracing::info!(repo = %repo.path, bytes, "another node may have in its cache what is lost: it is waited for");
    repo.step(Step::WaitingForRepair);
    // Strings and numbers: serialising them cannot fail.
    let words = serde_json::to_vec(&Mark { nonce: nonce(), blobs }).unwrap_or_default();
    bucket.mark_damaged(&repo.path, words.into()).await?;
    let end = Instant::now() + WAIT;
    while Instant::now() < end {
        tokio::time::sleep(POLL).await;
        if bucket.damaged_words(&repo.path).await?.is_none() {
            return Ok(true);
        }
    }
    bucket.unmark_damaged(&repo.path).await?;
    Ok(false)
}

/// Looks for marks until `stop`.
pub(super) async fn run(work: Arc<Work>, stop: CancellationToken) {
    let mut seen = HashMap::new();
    let mut wait = Dice::random().up_to(LOOK_EVERY);
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        wait = LOOK_EVERY;
        let looked = stop.run_until_cancelled(look(&work, &mut seen)).await;
        if let Some(Err(error)) = looked {
            tracing::debug!(%error, "it could not be looked for what other nodes have lost");
        }
    }
}

/// Looks at marks that were not seen before.
async fn look(work: &Work, seen: &mut HashMap<String, Bytes>) -> Result<(), SyncError> {
    if !work.is_sound() {
        return Ok(());
    }
    let marked = work.mirror.bucket.damaged().await?;
    seen.retain(|key, _| marked.contains(key));
    if marked.is_empty() {
        return Ok(());
    }
    for repo in work.mirror.repos() {
        let key = repo.path.key();
        if !marked.contains(&key) {
            continue;
        }
        let Some(words) = work.mirror.bucket.damaged_words(&repo.path).await? else { continue };
        if seen.get(&key) != Some(&words) {
            let whole = mend(work, &repo, &words).await?;
            seen.insert(key, words);
            if whole {
                work.mirror.bucket.unmark_damaged(&repo.path).await?;
            }
        }
    }
    Ok(())
}

/// Stores again what a mark names and this node has. Says whether all of it is there.
async fn mend(work: &Work, repo: &Arc<Repo>, words: &[u8]) -> Result<bool, SyncError> {
    let Ok(mark) = serde_json::from_slice::<Mark>(words) else { return Ok(false) };
    let Some(record) = repo.known() else { return Ok(false) };
    let named: Vec<BlobRef> = Generation::blobs(&record).filter(|blob| mark.blobs.contains(blob)).collect();
    if named.is_empty() || named.len() < mark.blobs.len() {
        return Ok(false);
    }
    lend(work, repo, &record, &named).await
}
