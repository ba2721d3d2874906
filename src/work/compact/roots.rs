//! What is kept when the lowest layer is rewritten: all that a ref of a retained generation reaches.
//!
//! Only a merge that includes the lowest layer leaves anything out: the layers below any other may be leaned on. Retained are
//! the newest generation and those that were it within the grace, so what was force-pushed away stays for that long,
//! and what is pushed again meanwhile is at hand. Where something about them cannot be read, or there are too many, nothing is
//! left out this time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gix_hash::ObjectId;
use roaring::RoaringBitmap;

use crate::mirror::repo::Repo;
use crate::mirror::snapshot::{Snapshot, object_format, refs_of};
use crate::pack::filter::trees::{TreeError, TreeLimits};
use crate::pack::{Gid, Reach};
use crate::store::{Generation, Note};
use crate::text::chain;
use crate::work::Work;
use crate::work::cost::Cost;

/// The most retained records, and the most different states among them.
const MOST_RECORDS: usize = 20_000;
const MOST_STATES: usize = 2_000;
/// The most tips of all of them together.
const MOST_TIPS: usize = 4_000_000;

/// What is kept of a stack.
#[derive(Clone)]
pub struct Kept {
    /// The objects.
    pub objects: RoaringBitmap,
    /// What the refs of retained generations name, as far as the stack has it.
    pub tips: Vec<ObjectId>,
    /// Bytes of packs that would be kept.
    pub bytes: u64,
}

/// Finds what the refs of `open` alone reach, and how many bytes that is.
pub async fn of_newest(open: &Arc<Snapshot>, cost: &Arc<Cost>) -> Result<Kept, TreeError> {
    reached(open, open.refs.tips(), cost).await
}

/// Finds what `tips` alone reach, as far as the stack has them.
pub async fn of_tips(open: &Arc<Snapshot>, tips: Vec<ObjectId>, cost: &Arc<Cost>) -> Result<Kept, TreeError> {
    reached(open, tips, cost).await
}

/// Finds what the refs of all retained generations reach. `None`: it cannot be told, and all is to be kept.
pub async fn of_retained(work: &Work, repo: &Repo, open: &Arc<Snapshot>, cost: &Arc<Cost>) -> Option<Kept> {
    let tips = match tips(work, repo, &open.generation).await {
        Ok(tips) => tips,
        Err(words) => {
            tracing::info!(repo = %repo.path, why = words, "what nobody reaches any more is kept this time");
            return None;
        }
    };
    let kept = reached(open, tips, cost).await;
    let kept = kept.inspect_err(|e| {
        tracing::info!(repo = %repo.path, why = chain(e), "what nobody reaches any more is kept this time");
    });
    kept.ok()
}

/// What the refs of retained generations name.
async fn tips(work: &Work, repo: &Repo, newest: &Generation) -> Result<Vec<ObjectId>, String> {
    let (bucket, local) = (&work.mirror.bucket, &work.mirror.local);
    let words = |e: crate::store::StoreError| e.to_string();
    // Written by whoever holds the claim, at most some seconds ago.
    let now = bucket.note_time(&repo.path, Note::Compaction).await.map_err(words)?;
    let now = now.ok_or("another node took over the merge")?;
    let numbers = bucket.retained(&repo.path, now, work.grace).await.map_err(words)?;
    if numbers.first() != Some(&newest.number) {
        return Err("something was published meanwhile".into());
    }
    if numbers.len() > MOST_RECORDS {
        return Err(format!("{} records are retained", numbers.len()));
    }
    let mut states: BTreeMap<String, Generation> = BTreeMap::new();
    for number in numbers {
        let record = bucket.get(&repo.path, number).await.map_err(words)?;
        let record = record.ok_or("a record that was listed is not there")?;
        let head = serde_json::to_string(&record.head).unwrap_or_default();
        states.insert(format!("{} {head}", record.manifest_digest), record);
        if states.len() > MOST_STATES {
            return Err(format!("more than {MOST_STATES} states of the refs are retained"));
        }
    }
    let mut tips = BTreeSet::new();
    for record in states.values().filter(|record| !record.removed) {
        let text = local.mapped(&record.refs).await.map_err(words)?;
        let hash = object_format(record).map_err(|e| e.to_string())?;
        let refs = refs_of(record, hash, &text).map_err(|e| e.to_string())?;
        tips.extend(refs.tips());
        if tips.len() > MOST_TIPS {
            return Err("too many refs are retained".into());
        }
    }
    Ok(tips.into_iter().collect())
}

/// What `tips` reach, off the async threads.
async fn reached(open: &Arc<Snapshot>, tips: Vec<ObjectId>, cost: &Arc<Cost>) -> Result<Kept, TreeError> {
    let (open, cost) = (Arc::clone(open), Arc::clone(cost));
    let job = crate::threads::spawn_blocking(move || {
        let stack = &open.stack;
        // What a newer generation does not have any more was left out before, or belonged to another repository of this name.
        let tips: Vec<ObjectId> = tips.into_iter().filter(|tip| stack.lookup(tip).is_some()).collect();
        let gids: Vec<Gid> = tips.iter().filter_map(|tip| stack.lookup(tip)).collect();
        let source = open.blocks_for_work();
        let reach = Reach::new(stack, source, &gids, &TreeLimits::default(), &*cost)?;
        let entry = |gid| {
            let entry = stack.entry(gid);
            entry.end - entry.offset
        };
        let bytes = reach.objects().iter().map(entry).sum();
        Ok(Kept { objects: reach.objects().clone(), tips, bytes })
    });
    job.await.unwrap_or(Err(TreeError::Halt(crate::pack::meter::Halt::Stopped)))
}
