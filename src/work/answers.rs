//! Answers that are kept: what clients ask for again and again, and what costs much each time, is made once for all nodes.
//!
//! The pack of an answer is written as a client would get it, taken in like a pack from the primary, stored, and named by a new
//! generation with the same refs and layers. So it is seen, kept and collected like everything else, and nobody has to look for it.
//! It serves as a source of entries alone: which objects an answer holds is decided anew for each request. What a force-push left
//! behind is therefore not sent, however long it lies in a stored answer, and a purge names none.
//!
//! Deltas are searched for while it is made (`pack::plan::search`), since that is done once. What an older answer holds is searched
//! anew: it is made again only when much has changed.
//!
//! One at a time on a node, and by one node for all. What fails is made some other day: the same can be sent without it.
//! Relies on: wishes of `answer`, `publish`, `lease`. Elsewhere: how they are used (`pack::plan::stored`).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::kept::{LaidOut, is_anew, of_head};
use crate::git::path::RepoPath;
use crate::mirror::answers::{MOST_OBJECTS, room};
use crate::mirror::newest::NotFound;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::OpenError;
use crate::mirror::wishes::{Wish, Wished};
use crate::pack::filter::trees::TreeError;
use crate::pack::meter::Halt;
use crate::pack::plan::search::search;
use crate::pack::plan::{Hint, Plan, PlanOptions, plan_with};
use crate::pack::write::reader::PackReader;
use crate::pack::{Scratch, Selection, Source, Stack};
use crate::store::{AnswerRef, BlobId, Note, StoreError};
use crate::telemetry::metrics as names;
use crate::text::chain;
use crate::work::Work;
use crate::work::compact::SPARE_SCRATCH;
use crate::work::cost::{Cost, StopOnDrop};
use crate::work::error::SyncError;
use crate::work::ingest::{Expected, IngestError, NewLayer, ingest};
use crate::work::publish::{Draft, Published, publish, put_layer};

/// The most answers of one repository.
const MOST: usize = 16;
/// An answer goes where a new one of its kind holds all but one of so many of its objects.
const OUTGROWN: u32 = 8;
/// Bytes of decoded objects that are kept while objects are packed anew.
const SCRATCH: usize = 16 << 20;
/// How often it is looked, of one repository, what a clone of depth 1 costs.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often an answer is put beside what was published meanwhile.
const MAX_ROUNDS: usize = 8;
/// Threads that compute the ids of its objects.
const THREADS: usize = 1;

/// Why an answer was not stored.
#[derive(Debug, thiserror::Error)]
enum NotMade {
    #[error("the bucket: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotFound(#[from] NotFound),
    #[error("what it holds: {0}")]
    Plan(String),
    #[error("its pack: {0}")]
    Pack(#[from] IngestError),
    #[error("it could not begin: {0}")]
    Halted(#[from] Halt),
    #[error("scratch space of this node: {0}")]
    Io(#[from] io::Error),
    #[error(
        "{needed} bytes of scratch space are needed and {free} are free: make room beside the cache directory, or set cache_max lower"
    )]
    NoScratch { needed: u64, free: u64 },
    #[error("it takes {bytes} bytes, and answers.share leaves {room}")]
    NoRoom { bytes: u64, room: u64 },
    #[error("it has {objects} objects, and at most {MOST_OBJECTS} are kept")]
    TooMany { objects: u32 },
    #[error("{0}")]
    Publish(#[from] SyncError),
}

impl From<OpenError> for NotMade {
    fn from(error: OpenError) -> Self {
        NotFound::from(error).into()
    }
}

/// Makes what is wished for, until `stop`.
pub async fn run(work: Arc<Work>, mut wishes: mpsc::Receiver<Wish>, stop: CancellationToken) {
    let mut looked = HashMap::new();
    while let Some(Some(wish)) = stop.run_until_cancelled(wishes.recv()).await {
        let begun = Instant::now();
        let fulfilling = async {
            match wish {
                Wish::Asked(wished) => Some((Arc::clone(&wished.repo), make(&work, wished).await)),
                Wish::Head(repo) => match head(&work, &repo, &mut looked).await {
                    Ok(None) => None,
                    Ok(Some(wished)) => Some((repo, make(&work, wished).await)),
                    Err(error) => Some((repo, Err(error))),
                },
            }
        };
        let Some(fulfilled) = stop.run_until_cancelled(fulfilling).await else { return };
        let Some((repo, made)) = fulfilled else { continue };
        let result = match &made {
            Ok(true) => "made",
            Ok(false) => "elsewhere",
            Err(NotMade::NoRoom { .. } | NotMade::TooMany { .. }) => "no-room",
            Err(_) => "failed",
        };
        metrics::counter!(names::KEPT_ANSWERS, "result" => result).increment(1);
        metrics::histogram!(names::KEPT_ANSWER_SECONDS).record(begun.elapsed().as_secs_f64());
        if let Err(error) = made {
            tracing::info!(repo = %repo.path, error = chain(&error), "an answer was not stored; it is made for each client");
        }
    }
}

/// The answer to a clone of depth 1 of HEAD, if it is to be made: each one costs much without it.
async fn head(
    work: &Work,
    repo: &Arc<Repo>,
    looked: &mut HashMap<RepoPath, Instant>,
) -> Result<Option<Wished>, NotMade> {
    let now = Instant::now();
    looked.retain(|_, at| now.duration_since(*at) < LOOK_AGAIN);
    let Some(snapshot) = repo.snapshot().filter(|_| looked.insert(repo.path.clone(), now).is_none()) else {
        return Ok(None);
    };
    let cost = Arc::new(Cost::begin(&work.compaction_memory).await?);
    let _end = StopOnDrop(Arc::clone(&cost));
    let answers = snapshot.answers().await;
    let job = crate::threads::spawn_blocking(move || {
        let source = snapshot.blocks_for_work().reader();
        let plan = of_head(&snapshot, &source, &answers, &*cost);
        drop(source);
        plan.map(|made| made.map(|made| (snapshot, made)))
    });
    let planned = job.await.map_err(io::Error::other)?.map_err(|e| NotMade::Plan(chain(&e)))?;
    let Some((snapshot, LaidOut { plan, answer, costly: Some(objects) })) = planned else { return Ok(None) };
    Ok(Some(Wished {
        repo: Arc::clone(repo),
        snapshot,
        plan: Arc::new(plan),
        objects,
        answer,
        kind: "depth 1".into(),
        done: CancellationToken::new().drop_guard(),
    }))
}

/// Makes one, unless another node does. Says whether it did.
async fn make(work: &Work, wished: Wished) -> Result<bool, NotMade> {
    let (repo, begun_with) = (Arc::clone(&wished.repo), &wished.snapshot.generation);
    if !work.is_sound() || repo.damage().is_known() {
        return Ok(false);
    }
    let lease = work.lease(&repo.path, Note::Answer, begun_with.number).await?;
    let newest = work.mirror.newest(&repo).await?;
    let is_news = newest.as_ref().is_none_or(|newest| newest.answers != begun_with.answers);
    let (Some(_lease), Some(newest), false) = (lease, newest, is_news) else {
        // Another node was faster, or something was published: whoever asks again finds it, or wishes anew.
        work.mirror.refresh(&repo).await?;
        return Ok(false);
    };
    let room = room(&newest, work.answers_share);
    let bytes = wished.plan.known_len;
    if bytes > room {
        return Err(NotMade::NoRoom { bytes, room });
    }
    if wished.plan.objects > MOST_OBJECTS {
        return Err(NotMade::TooMany { objects: wished.plan.objects });
    }
    let (free, needed) = (work.mirror.local.free_scratch()?, bytes.saturating_add(wished.plan.anew_bytes));
    if free < needed.saturating_add(SPARE_SCRATCH) {
        return Err(NotMade::NoScratch { needed, free });
    }
    let cost = Arc::new(Cost::begin(&work.compaction_memory).await?);
    let _end = StopOnDrop(Arc::clone(&cost));
    let (Some(new), _scratch) = write(work, &wished, cost).await? else { return Ok(false) };
    let bytes = new.layer.graph.pack_len();
    if bytes > room {
        return Err(NotMade::NoRoom { bytes, room });
    }
    let layer = put_layer(work, &new, false, &|_| {}).await?;
    let answer = AnswerRef { layer, kind: wished.kind.clone() };
    tracing::info!(repo = %repo.path, kind = answer.kind, bytes = layer.pack.len, objects = layer.objects, "an answer is kept");
    let outgrown = wished.answer.as_ref().filter(|old| old.stored.is_mostly_in(&new.layer, OUTGROWN));
    name(work, &wished, answer, outgrown.map(|old| old.id()), room).await
}

/// Writes the pack, and takes it in.
async fn write(
    work: &Work,
    wished: &Wished,
    cost: Arc<Cost>,
) -> Result<(Option<NewLayer>, tempfile::TempDir), NotMade> {
    let scratch = work.mirror.local.scratch()?;
    let (snapshot, plan) = (Arc::clone(&wished.snapshot), Arc::clone(&wished.plan));
    let objects = Arc::clone(&wished.objects);
    let blocks = snapshot.blocks_for_work().with_answer(wished.answer.clone());
    let job = crate::threads::spawn_blocking(move || {
        let (source, decoded) = (blocks.reader(), Scratch::new(SCRATCH, u64::MAX));
        // Where little is packed anew the deltas are there, in too many pieces.
        let better = match is_anew(&plan) {
            true => best(&snapshot.stack, &source, &objects, &cost)?,
            false => None,
        };
        let plan = better.map_or(plan, Arc::new);
        let stream = PackReader::new(plan, &snapshot.stack, &source, decoded, &*cost);
        let (tips, hash) = (Vec::new(), snapshot.refs.hash);
        let expected = Expected { tips, hash, largest_object: u64::MAX, threads: THREADS };
        let new = ingest(stream, scratch.path(), Some((&snapshot.stack, &source)), &expected, &cost, &|_| {});
        Ok::<_, NotMade>((new?, scratch))
    });
    job.await.map_err(io::Error::other)?
}

/// The plan with deltas that are searched for; `None` where that takes more memory than there is.
fn best(
    stack: &Stack,
    source: &dyn Source,
    objects: &RoaringBitmap,
    cost: &Cost,
) -> Result<Option<Plan>, NotMade> {
    let laid_out = search(stack, source, objects, cost).and_then(|found| {
        let options = PlanOptions { ofs_delta: true, thin: false };
        Ok(plan_with(stack, &mut Selection::of(objects.clone()), Hint::Found(&found), options, cost)?)
    });
    match laid_out {
        Ok(plan) => Ok(Some(plan)),
        Err(TreeError::Halt(Halt::Busy | Halt::TooMuch { .. })) => Ok(None),
        Err(error) => Err(NotMade::Plan(chain(&error))),
    }
}

/// Publishes a generation that names it, upon whatever is the newest.
async fn name(
    work: &Work,
    wished: &Wished,
    answer: AnswerRef,
    outgrown: Option<BlobId>,
    room: u64,
) -> Result<bool, NotMade> {
    let (repo, begun_with) = (&wished.repo, &wished.snapshot);
    let mut base = Arc::clone(begun_with);
    for _ in 0..MAX_ROUNDS {
        let Some(newest) = work.mirror.newest(repo).await? else { return Ok(false) };
        // It may hold what was purged since.
        if work.mirror.is_closed(repo, begun_with.generation.number).await? {
            return Ok(false);
        }
        if newest.number > base.generation.number {
            base = work.mirror.open(repo, newest).await?;
        }
        let generation = &base.generation;
        if generation.object_format != begun_with.generation.object_format {
            return Ok(false);
        }
        let answers = Some(with(&generation.answers, &answer, outgrown, room, |id| repo.uses.last(id)));
        let (layers, asked) = (generation.layers.clone(), generation.verified_at);
        let draft =
            Draft { base: Some(generation), layers, refs: &base.refs, asked, repairing: false, answers };
        if let Published::Won(_) = publish(work, repo, draft).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The answers with a new one, which takes the place of the one of its kind that it has outgrown. Where there are too many, those go
/// that nobody is known to have used, and then those whose `last` use is longest ago; of the same, the oldest.
fn with(
    before: &[AnswerRef],
    new: &AnswerRef,
    outgrown: Option<BlobId>,
    room: u64,
    last: impl Fn(BlobId) -> Option<Instant>,
) -> Vec<AnswerRef> {
    let others = before.iter().filter(|answer| {
        let is_outgrown = outgrown == Some(answer.layer.pack.id) && answer.kind == new.kind;
        answer.layer.pack != new.layer.pack && !is_outgrown
    });
    let mut kept: Vec<AnswerRef> = others.cloned().collect();
    let bytes = |kept: &[AnswerRef]| kept.iter().map(|answer| answer.layer.pack.len).sum::<u64>();
    while kept.len() >= MOST || bytes(&kept) + new.layer.pack.len > room {
        let idlest = kept.iter().enumerate().min_by_key(|(_, answer)| last(answer.layer.pack.id));
        let Some((idlest, _)) = idlest else { break };
        kept.remove(idlest);
    }
    kept.push(new.clone());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BlobKind, BlobRef, LayerRef};

    fn answer(id: u8) -> AnswerRef {
        let blob = |kind| BlobRef { id: BlobId([id; 32]), kind, len: 10 };
        let (pack, idx, graph) = (blob(BlobKind::Pack), blob(BlobKind::Idx), blob(BlobKind::Graph));
        AnswerRef { layer: LayerRef { pack, idx, graph, objects: 1 }, kind: "depth 1".into() }
    }

    #[test]
    fn what_is_not_used_makes_room_for_a_new_answer() {
        let before = [1, 2, 3, 4].map(answer);
        let now = Instant::now();
        // The first was used just now, the third before that; of the others nothing is known.
        let last = |id: BlobId| match id.0[0] {
            1 => Some(now + Duration::from_secs(9)),
            3 => Some(now),
            _ => None,
        };
        let left = |room, outgrown: Option<u8>| -> Vec<u8> {
            let outgrown = outgrown.map(|id| BlobId([id; 32]));
            let kept = with(&before, &answer(5), outgrown, room, last);
            kept.iter().map(|answer| answer.layer.pack.id.0[0]).collect()
        };
        assert_eq!(left(50, None), [1, 2, 3, 4, 5]);
        assert_eq!(left(49, None), [1, 3, 4, 5]);
        assert_eq!(left(30, None), [1, 3, 5]);
        assert_eq!(left(20, None), [1, 5]);
        assert_eq!(left(10, None), [5]);
        assert_eq!(left(40, Some(1)), [2, 3, 4, 5], "it is outgrown, however much it was used");
    }
}
