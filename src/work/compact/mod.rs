//! Compaction: layers of one repository are merged, so that it has few of them however often it was pushed to.
//!
//! It runs beside the syncs and holds none up, one repository at a time on a node: after something was published here, and
//! once a day. The merged layer replaces its inputs in a new generation with the same refs. A sync that publishes first is no
//! hindrance: its layer then lies on the merged one, since layers name what lies below them by id. A node that ends in the
//! middle leaves blobs that no record names, and nothing else.
//!
//! - [`policy`]: which layers. [`queue`]: which repositories. `roots`: what is kept. `merge`: the merged layer. `seal`: the last
//!   check before it replaces anything. `purge`: all layers become one at once, of what the newest refs reach alone.
//!
//! Relies on: `publish` for the generation, `lease` so that two nodes do not do the same. Elsewhere: what nobody names any
//! more is deleted by others.

mod merge;
pub mod policy;
pub(super) mod purge;
pub mod queue;
mod roots;
mod seal;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gix_hash::ObjectId;
use indicatif::HumanBytes;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::git::refs::Refs;
use crate::mirror::newest::NotFound;
use crate::mirror::progress::Step;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::{OpenError, Snapshot};
use crate::mirror::wishes::Wish;
use crate::pack::filter::trees::TreeError;
use crate::pack::meter::Halt;
use crate::retry::Dice;
use crate::store::{Generation, LayerRef, Note, StoreError};
use crate::telemetry::metrics as names;
use crate::text::chain;
use crate::work::Work;
use crate::work::cost::Cost;
use crate::work::cost::StopOnDrop;
use crate::work::error::SyncError;
use crate::work::ingest::{IngestError, NewLayer};
use crate::work::publish::{Draft, Published, bytes, publish, put_layer};
use merge::{Layers, Merge, merge};
use policy::{Bounds, Size, choose};
use roots::Kept;

/// How often all repositories are looked at where `gc.every` says nothing.
const DAY: Duration = Duration::from_secs(86_400);
/// After the start of a node all repositories are looked at earlier than `gc.every` says.
const FIRST_LOOK: Duration = Duration::from_secs(3_600);
/// The memory that a merge may take.
pub const MOST_MEMORY: u64 = 256 << 20;
/// What one object costs a merge.
const MEMORY_AN_OBJECT: u64 = 256;
/// Of so many parts of the packs one may be what nobody reaches.
const MOST_WASTE: u64 = 4;
/// And so many bytes beside.
const SMALL_WASTE: u64 = 1 << 10;
/// Scratch space that is left to others.
pub(super) const SPARE_SCRATCH: u64 = 256 << 20;
/// How much longer a graph may be than its blob, which is compressed.
const GRAPH_GROWS: u64 = 4;
/// How long another node's merge of the same repository is waited for.
const LEASE_PATIENCE: Duration = Duration::from_secs(90);
/// How often a merged layer is put under what was published meanwhile.
const MAX_ROUNDS: usize = 8;

/// Why layers were not merged. What is published is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The bucket did not answer as it should.
    #[error("the bucket: {0}")]
    Store(#[from] StoreError),
    /// What is published cannot be found or opened just now.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The layers could not be merged.
    #[error("the layers: {0}")]
    Merge(#[from] IngestError),
    /// It could not be told what nobody reaches.
    #[error("what is reachable: {0}")]
    Reach(#[from] TreeError),
    /// There is no memory for a merge to begin.
    #[error("it could not begin: {0}")]
    Halted(#[from] Halt),
    /// The disk is too small.
    #[error(
        "{} of scratch space are needed and {} are free: make room beside the cache directory, or set cache_max lower",
        HumanBytes(*.needed),
        HumanBytes(*.free)
    )]
    Scratch {
        /// Bytes that the merge would write.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The scratch directory cannot be used.
    #[error("scratch space of this node: {0}")]
    Io(#[from] io::Error),
    /// The merged layer is not what it should be.
    #[error("{0}: nothing was published; please report it")]
    Seal(#[from] seal::Broken),
    /// It could not be published.
    #[error("{0}")]
    Publish(#[from] SyncError),
}

impl From<OpenError> for CompactError {
    fn from(error: OpenError) -> Self {
        NotFound::from(error).into()
    }
}

/// How a look at a repository ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing is to be merged.
    Nothing,
    /// Layers were merged and the generation is published.
    Merged,
    /// Another node does it, or has done it.
    Elsewhere,
    /// What was merged is not in the newest generation any more.
    Overtaken,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Merged => "merged",
            Self::Elsewhere => "elsewhere",
            Self::Overtaken => "overtaken",
        }
    }
}

/// Merges the layers of repositories that were asked for, and each `gc.every` of all, until `stop`.
pub async fn run(work: Arc<Work>, stop: CancellationToken) {
    // Where nothing is collected by itself, layers are merged all the same.
    let every = if work.collect_every.is_zero() { DAY } else { work.collect_every };
    let first = every.min(FIRST_LOOK);
    let mut day = tokio::time::Instant::now() + first / 2 + Dice::random().up_to(first);
    loop {
        let (path, is_due) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(day) => {
                day = tokio::time::Instant::now() + every;
                ask_all(&work);
                continue;
            }
            next = work.compaction.next() => next,
        };
        let Some(repo) = work.mirror.repo(&path) else { continue };
        let begun = Instant::now();
        let looking = stop.run_until_cancelled(look(&work, &repo, is_due));
        let Some(outcome) = looking.await else { return };
        repo.compaction().end();
        record(&work, &repo, begun, outcome);
    }
}

/// Puts all repositories in line of which something may be merged or left out, and which this node looks after: to find out
/// they are opened.
fn ask_all(work: &Work) {
    let division = work.mirror.division();
    for repo in work.mirror.repos() {
        if division.is_ours(repo.path.as_str())
            && repo.known().is_some_and(|known| known.gone.is_none() && may_be_due(work, &known, true))
        {
            work.compaction.ask_due(&repo.path);
        }
    }
}

/// Says whether layers of a generation are to be merged, or may hold much that nobody reaches.
fn may_be_due(work: &Work, generation: &Generation, is_due: bool) -> bool {
    let is_lean = work.compaction.is_lean(&generation.repo, generation.number);
    choose(&sizes(generation), is_due, bounds(work)).is_some()
        || is_due && !is_lean && !generation.layers.is_empty() && fits(work, generation)
}

/// Says whether all layers may be merged at once.
fn fits(work: &Work, generation: &Generation) -> bool {
    let objects: u64 = generation.layers.iter().map(|layer| u64::from(layer.objects)).sum();
    objects <= bounds(work).objects
}

fn record(work: &Work, repo: &Repo, begun: Instant, outcome: Result<Outcome, CompactError>) {
    let result = match &outcome {
        Ok(outcome) => outcome.word(),
        Err(CompactError::Seal(_)) => "unsealed",
        Err(CompactError::Scratch { .. }) => "no-scratch",
        Err(_) => "failed",
    };
    if result != Outcome::Nothing.word() {
        metrics::counter!(names::COMPACTIONS, "result" => result).increment(1);
        metrics::histogram!(names::COMPACTION_SECONDS).record(begun.elapsed().as_secs_f64());
    }
    let Err(error) = outcome else {
        repo.health().unmerged = None;
        return work.compaction.went_well(&repo.path);
    };
    let next_try_in = work.compaction.went_wrong(&repo.path);
    let words = chain(&error);
    repo.health().unmerged = Some(words.clone());
    if let CompactError::Seal(_) = error {
        tracing::error!(repo = %repo.path, error = words, "a merged layer is not what it should be");
    } else {
        tracing::warn!(repo = %repo.path, error = words, ?next_try_in, "layers could not be merged; they stay as they are");
    }
}

fn sizes(generation: &Generation) -> Vec<Size> {
    let layers = generation.layers.iter();
    layers.map(|layer| Size { bytes: layer.pack.len, objects: layer.objects.into() }).collect()
}

fn bounds(work: &Work) -> Bounds {
    Bounds { bytes: u64::MAX, objects: work.compaction_memory.most() / MEMORY_AN_OBJECT }
}

/// Merges layers of one repository if some are to be merged.
async fn look(work: &Work, repo: &Arc<Repo>, is_due: bool) -> Result<Outcome, CompactError> {
    if repo.known().is_none_or(|known| !may_be_due(work, &known, is_due)) {
        return Ok(Outcome::Nothing);
    }
    let Some(newest) = work.mirror.newest(repo).await? else { return Ok(Outcome::Nothing) };
    if repo.damage().is_known() || !may_be_due(work, &newest, is_due) {
        return Ok(Outcome::Nothing);
    }
    if choose(&sizes(&newest), is_due, bounds(work)).is_none() && is_lean(work, repo, &newest).await? {
        return Ok(Outcome::Nothing);
    }
    let taking = work.lease(&repo.path, Note::Compaction, newest.number);
    let lease = match tokio::time::timeout(LEASE_PATIENCE, taking).await {
        Ok(lease) => lease?,
        Err(_) => return Ok(Outcome::Elsewhere),
    };
    let Some(_lease) = lease else {
        // Something was published meanwhile. If there is still something to be merged, that is found at the next look.
        work.compaction.ask(&repo.path);
        return Ok(Outcome::Elsewhere);
    };
    compact(work, repo, newest, is_due).await
}

/// Says whether the refs of the newest generation reach nearly all that its layers hold: then nothing is gained by leaving
/// anything out, whatever else is retained.
async fn is_lean(work: &Work, repo: &Arc<Repo>, newest: &Generation) -> Result<bool, CompactError> {
    let open = work.mirror.open(repo, newest.clone()).await?;
    let cost = Arc::new(Cost::begin(&work.compaction_memory).await?);
    let _end = StopOnDrop(Arc::clone(&cost));
    let kept = roots::of_newest(&open, &cost).await?;
    let is_lean = !is_wasteful(&open.generation, &kept);
    if is_lean {
        work.compaction.note_lean(&repo.path, open.generation.number);
    }
    Ok(is_lean)
}

/// Says whether much of the packs would be left out.
fn is_wasteful(generation: &Generation, kept: &Kept) -> bool {
    let all: u64 = generation.layers.iter().map(|layer| layer.pack.len).sum();
    all.saturating_sub(kept.bytes) > all / MOST_WASTE + SMALL_WASTE
}

/// Merges what the policy says, and publishes it.
async fn compact(
    work: &Work,
    repo: &Arc<Repo>,
    newest: Generation,
    is_due: bool,
) -> Result<Outcome, CompactError> {
    let open = work.mirror.open(repo, newest).await?;
    let layers = &open.generation.layers;
    let cost = Arc::new(Cost::begin(&work.compaction_memory).await?.of(repo.compaction()));
    let _end = StopOnDrop(Arc::clone(&cost));
    let chosen = choose(&sizes(&open.generation), is_due, bounds(work)).map(|range| range.start);
    let mut kept = None;
    if chosen == Some(0) || is_due && fits(work, &open.generation) {
        kept = roots::of_retained(work, repo, &open, &cost).await;
    }
    let is_wasteful = kept.as_ref().is_some_and(|kept| is_wasteful(&open.generation, kept));
    let from = match chosen {
        _ if is_wasteful => 0,
        Some(from) => from,
        None => return Ok(Outcome::Nothing),
    };
    let kept = kept.filter(|_| from == 0);
    let below = Layers::of(layers, open.stack.layers(), 0..from);
    let inputs = Layers::of(layers, open.stack.layers(), from..layers.len());
    enough_scratch(work, &inputs.named)?;
    let count = inputs.named.len();
    let read: u64 = inputs.named.iter().map(|layer| layer.pack.len).sum();
    tracing::info!(repo = %repo.path, layers = count, of = layers.len(), bytes = read, "merging layers");

    let drops = kept.is_some();
    let made = make(work, repo, &open, (&below, &inputs), kept, cost).await?;
    let Some((new, _scratch)) = made else { return Ok(Outcome::Nothing) };

    let merged = store(work, repo, &new).await?;
    if inputs.named == [merged] {
        return Ok(Outcome::Nothing);
    }
    let outcome = replace(work, repo, open, (&below.named, &inputs.named), merged, drops).await?;
    if outcome == Outcome::Merged {
        metrics::counter!(names::COMPACTION_READ).increment(read);
        metrics::counter!(names::COMPACTION_WRITTEN).increment(merged.pack.len);
    }
    Ok(outcome)
}

/// Makes the layer that `inputs` become upon `below`, of what is kept, and seals it. `None`: nothing is left. Its files lie in the
/// folder beside it.
async fn make(
    work: &Work,
    repo: &Repo,
    open: &Arc<Snapshot>,
    (below, inputs): (&Layers, &Layers),
    kept: Option<Kept>,
    cost: Arc<Cost>,
) -> Result<Option<(NewLayer, TempDir)>, CompactError> {
    repo.compaction().step(Step::Compacting, true);
    let mut tips = open.refs.tips();
    let keep = kept.map(|kept| {
        tips.extend(kept.tips);
        kept.objects
    });
    let stack = Arc::clone(&open.stack);
    let job = Merge {
        inputs: (inputs.clone(), inputs.blocks(&work.mirror.local)),
        below: (below.clone(), below.blocks(&work.mirror.local)),
        keep,
        tips,
        hash: open.refs.hash,
    };
    let scratch = work.mirror.local.scratch()?;
    let made = crate::threads::spawn_blocking(move || {
        let made = merge(&job, scratch.path(), &cost).map_err(CompactError::from)?;
        let Some(new) = made else { return Ok(None) };
        let keep = job.keep.as_ref();
        let is_kept =
            |oid: &ObjectId| keep.is_none_or(|keep| stack.lookup(oid).is_some_and(|gid| keep.contains(gid)));
        seal::check(&job.inputs.0.open, &new.layer, &job.below.0.open, &job.tips, is_kept)?;
        Ok(Some((new, scratch)))
    });
    let made: Result<_, CompactError> = made.await.map_err(io::Error::other)?;
    made.inspect_err(|e| {
        // Lost and damaged blobs are made anew by a sync.
        repo.report_damage(&open.generation, e);
    })
}

/// Makes sure that the scratch space takes the merged layer.
fn enough_scratch(work: &Work, inputs: &[LayerRef]) -> Result<(), CompactError> {
    let layer =
        |layer: &LayerRef| [layer.pack.len, layer.idx.len, layer.graph.len.saturating_mul(GRAPH_GROWS)];
    let needed = inputs.iter().flat_map(layer).fold(0, u64::saturating_add);
    let free = work.mirror.local.free_scratch()?;
    if free < needed.saturating_add(SPARE_SCRATCH) {
        return Err(CompactError::Scratch { needed, free });
    }
    Ok(())
}

/// Stores the files of the merged layer.
async fn store(work: &Work, repo: &Repo, new: &NewLayer) -> Result<LayerRef, StoreError> {
    let (progress, total, done) = (repo.compaction(), bytes(new), AtomicU64::new(0));
    let sent = |bytes| progress.set(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    put_layer(work, new, false, &sent).await
}

/// Publishes a generation that has `merged` where the newest one has `inputs`, upon `below`. What was published meanwhile may
/// need what was left out: if something `drops` objects, it is published upon what it was made from alone.
async fn replace(
    work: &Work,
    repo: &Arc<Repo>,
    mut base: Arc<Snapshot>,
    (below, inputs): (&[LayerRef], &[LayerRef]),
    merged: LayerRef,
    drops: bool,
) -> Result<Outcome, CompactError> {
    for _ in 0..MAX_ROUNDS {
        let Some(layers) = replaced(&base.generation.layers, below, inputs, merged) else { break };
        let (generation, refs): (&Generation, &Refs) = (&base.generation, &base.refs);
        let draft = Draft {
            base: Some(generation),
            layers,
            refs,
            asked: generation.verified_at,
            repairing: false,
            answers: None,
        };
        match publish(work, repo, draft).await? {
            Published::Won(_) => return Ok(Outcome::Merged),
            Published::Lost(winner) => {
                let is_ours = work.mirror.bucket.is_record_of(&winner.primary, &work.mirror.primary.name());
                if !is_ours || winner.removed || drops {
                    break;
                }
                base = work.mirror.open(repo, *winner).await?;
            }
        }
    }
    work.compaction.ask(&repo.path);
    Ok(Outcome::Overtaken)
}

/// The layers of a stack with `merged` in the place of `inputs`; none if they do not lie upon `below` in it any more.
fn replaced(
    layers: &[LayerRef],
    below: &[LayerRef],
    inputs: &[LayerRef],
    merged: LayerRef,
) -> Option<Vec<LayerRef>> {
    let above = layers.strip_prefix(below)?.strip_prefix(inputs)?;
    Some([below, &[merged], above].concat())
}

impl Work {
    /// Says that something was published, so that layers may have to be merged, and answers to be made.
    pub(super) fn published(&self, repo: &Arc<Repo>) {
        self.compaction.ask(&repo.path);
        if self.makes_depth1 {
            self.mirror.wish(Wish::Head(Arc::clone(repo)));
        }
    }
}

#[cfg(test)]
mod tests;
