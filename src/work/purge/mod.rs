//! A purge: history that no ref reaches any more becomes unreadable on every node and leaves the bucket at once.
//!
//! In this order, so that a purge that ends anywhere loses nothing that is reachable, and another one ends it: the repository is
//! synced; a generation is published that holds what the refs reach and nothing else; the nodes are told to forget what came before
//! (an order) and are waited for; it is looked whether one of them has published meanwhile what it had on its way; blobs that
//! only older records name are deleted, and then these records.
//!
//! - [`report`]: what was done, for people. `nodes`: which nodes are live and what they have obeyed. `stored`: which
//!   objects only older records' packs hold.
//!
//! Relies on: `compact` for the merge, `collect` for deleting beside writers, `store` for orders. Elsewhere: what a node does
//! with an order (`mirror::orders`).

mod nodes;
pub mod report;
mod stored;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gix_hash::ObjectId;

use crate::git::path::RepoPath;
use crate::mirror::newest::NotFound;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Snapshot;
use crate::pack::meter::Unlimited;
use crate::primary::{Auth, PrimaryError};
use crate::store::{MOST_BLOBS, Name, Order, StoreError};
use crate::work::Work;
use crate::work::collect::CollectError;
use crate::work::collect::purge::{Survey, delete, survey};
use crate::work::collect::round::Told;
use crate::work::compact::CompactError;
use crate::work::compact::purge::{Reached, publish_reached, reached};
use crate::work::error::SyncError;
use crate::work::sync::sync;
use nodes::wait_for_nodes;
use report::Report;
use stored::{named_ref, only_in_old_packs};

/// How often it is begun anew after another writer was faster.
const MAX_ROUNDS: usize = 5;

/// How often the store's clock is read until it has gone on, and how long apart.
const MOST_TICKS: usize = 6;
const TICK: Duration = Duration::from_millis(500);

/// What is to be purged, and how.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The repository, by its name in the mirror.
    pub repo: RepoPath,
    /// Objects that must not be reachable any more.
    pub oids: Vec<ObjectId>,
    /// Change nothing.
    pub dry_run: bool,
    /// How long nodes are waited for.
    pub wait: Duration,
}

/// Why a purge ended early. Nothing that is reachable is lost, and another one goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// The mirror does not have the repository.
    #[error("the bucket does not have it")]
    NoRepository,
    /// It could not be brought up to date.
    #[error("it could not be synced first: {0}")]
    Sync(#[from] SyncError),
    /// The primary did not say what it shows.
    #[error("the primary: {0}")]
    Primary(#[from] PrimaryError),
    /// An object that is to go is part of what the primary shows.
    #[error(
        "{oid} is still reachable{}: rewrite that history at the primary first (every branch and tag that has it), push it there, and purge \
         again; nothing was purged",
        by.as_deref().map(|name| format!(" from {name}")).unwrap_or_default()
    )]
    Reachable {
        /// The object.
        oid: ObjectId,
        /// A ref that reaches it, if one was found.
        by: Option<String>,
    },
    /// What is published could not be made anew without what is unreachable.
    #[error("{0}")]
    Merge(#[from] CompactError),
    /// What is published cannot be read.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The bucket did not answer as it should.
    #[error("the bucket: {0}")]
    Store(#[from] StoreError),
    /// What may be deleted could not be told, or the bucket did not answer.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// Other writers published first in every round.
    #[error("others published first each time: try again")]
    Moving,
}

impl PurgeError {
    /// Whether the same may go well later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Moving => true,
            Self::Store(error) => error.is_transient(),
            Self::Collect(error) => error.is_transient(),
            Self::Primary(error) | Self::Sync(SyncError::Primary(error)) => error.is_transient(),
            Self::Sync(SyncError::Store(error)) => error.is_transient(),
            _ => false,
        }
    }
}

/// Purges a repository, or says what would be purged. `repo` is told how far the sync and the merge are, `told` of the rest.
pub async fn purge(work: &Work, repo: &Arc<Repo>, wish: &Wish, told: Told<'_>) -> Result<Report, PurgeError> {
    let bucket = &work.mirror.bucket;
    for _ in 0..MAX_ROUNDS {
        let mut report =
            Report { repository: wish.repo.to_string(), dry_run: wish.dry_run, ..Report::default() };
        let open = rid(work, repo, wish, &mut report).await?;
        let found = survey(bucket, &wish.repo, work.grace, told).await?.ok_or(PurgeError::NoRepository)?;
        let is_reached =
            |oid: &ObjectId| open.as_ref().is_some_and(|(open, reached)| reached.reaches(open, oid));
        let stored =
            only_in_old_packs(work, &found, open.as_ref().map(|(open, _)| &**open), is_reached, told).await?;
        report.unreachable_objects += stored.objects;
        let in_newest = |oid: &&ObjectId| report.found.contains(*oid) || stored.has(oid);
        report.not_stored = wish.oids.iter().filter(|oid| !in_newest(oid)).map(ObjectId::to_string).collect();
        report.survey(&found);
        if wish.dry_run {
            return Ok(report);
        }
        let answered =
            if found.is_empty() { None } else { tell(work, wish, &found, &mut report, told).await? };
        if answered.is_some() && brought_back(work, repo, report.generation).await? {
            continue;
        }
        let purged = delete(bucket, &wish.repo, found, answered, told).await?;
        report.purged(&purged);
        return Ok(report);
    }
    Err(PurgeError::Moving)
}

/// Says whether what nodes had on their way is published, upon `generation` and before they obeyed: nothing tells them to forget
/// it. From then on they publish only what the primary shows since.
async fn brought_back(work: &Work, repo: &Arc<Repo>, generation: u64) -> Result<bool, PurgeError> {
    let newest = work.mirror.newest_record(repo).await?;
    if newest.is_none_or(|newest| newest.removed || newest.number == generation) {
        return Ok(false);
    }
    // Which a sync compares with.
    work.mirror.look_up(repo).await?;
    match sync(work, repo, true).await {
        Err(SyncError::Removed) => return Ok(true),
        synced => _ = synced?,
    }
    let Some(open) = work.mirror.refresh(repo).await? else { return Ok(true) };
    Ok(!reached(work, &open, open.refs.tips()).await?.unreachable.is_empty())
}

/// Publishes a generation that holds nothing that its refs do not reach, if that is not a dry run; also where the newest one is
/// such a one, so that what others are about to publish finds its number taken. Gives the one before with what is
/// reached; `None`: the repository was taken out of the mirror, and nothing is.
async fn rid(
    work: &Work,
    repo: &Arc<Repo>,
    wish: &Wish,
    report: &mut Report,
) -> Result<Option<(Arc<Snapshot>, Reached)>, PurgeError> {
    for _ in 0..MAX_ROUNDS {
        let newest = work.mirror.newest_record(repo).await?.ok_or(PurgeError::NoRepository)?;
        report.generation = newest.number;
        if newest.removed {
            return Ok(None);
        }
        if !wish.dry_run {
            // What a sync compares with, where others have published since the last round.
            work.mirror.look_up(repo).await?;
            match sync(work, repo, true).await {
                Err(SyncError::Removed) => continue,
                synced => _ = synced?,
            }
        }
        let open = work.mirror.refresh(repo).await?.ok_or(PurgeError::NoRepository)?;
        let refs = match wish.dry_run {
            true => {
                let left_out = HashSet::new();
                work.mirror.primary.look(&wish.repo, Auth::Service, &left_out, None, &Unlimited).await?.refs
            }
            false => open.refs.clone(),
        };
        let reached = reached(work, &open, refs.tips()).await?;
        if let Some(oid) = wish.oids.iter().find(|oid| reached.reaches(&open, oid)) {
            let by = named_ref(work, &open, &refs, *oid).await;
            return Err(PurgeError::Reachable { oid: *oid, by });
        }
        report.generation = open.generation.number;
        report.is_synced = open.equals(&refs);
        report.found = wish.oids.iter().filter(|oid| open.stack.lookup(oid).is_some()).copied().collect();
        report.unreachable_objects = reached.unreachable.len();
        if wish.dry_run {
            return Ok(Some((open, reached)));
        }
        let Some(published) = publish_reached(work, repo, &open, &reached).await? else { continue };
        report.generation = published.generation.number;
        return Ok(Some((open, reached)));
    }
    Err(PurgeError::Moving)
}

/// Orders all nodes to forget what came before the newest generation, and waits for them. Gives since when all live ones have
/// done so, by the store's clock; `None` if some have not.
async fn tell(
    work: &Work,
    wish: &Wish,
    found: &Survey,
    report: &mut Report,
    told: Told<'_>,
) -> Result<Option<SystemTime>, PurgeError> {
    let bucket = &work.mirror.bucket;
    // Whoever stored a blob before this is asked to look for it before it is named. The store's clock may be exact to a second.
    let mut before = bucket.clock().await?;
    for _ in 0..MOST_TICKS {
        if found.youngest.is_none_or(|youngest| youngest < before) {
            break;
        }
        tokio::time::sleep(TICK).await;
        before = bucket.clock().await?;
    }
    bucket.doubt_all(&found.blobs);
    let mut blobs: Vec<Name> = found.blobs.iter().copied().collect();
    blobs.sort_unstable();
    let mut last = 0;
    for part in blobs.chunks(MOST_BLOBS).chain(blobs.is_empty().then_some(&[][..])) {
        let blobs = part.iter().copied().collect();
        last = bucket.give_order(&Order { repo: wish.repo.clone(), generation: found.newest, blobs }).await?;
    }
    report.order = Some(last);
    report.nodes = wait_for_nodes(bucket, last, wish.wait, told).await?;
    Ok(report.unanswered().next().is_none().then_some(before))
}
