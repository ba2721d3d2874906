//! Mending while the primary does not answer.
//!
//! What a cache has whole, and what is derived from the rest, needs no primary: the record itself says what it names. What was
//! pushed meanwhile is none of its business, and nothing is published.
//! Relies on: `heal`, `lend`. Elsewhere: mending with what the primary shows (`sync`).

use std::sync::Arc;

use crate::mirror::damage::stands;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::object_format;
use crate::store::{BlobRef, Generation, Note};
use crate::text::chain;
use crate::work::Work;
use crate::work::cost::{Cost, StopOnDrop};
use crate::work::error::SyncError;
use crate::work::heal::{heal, refs_text, repaired};
use crate::work::lease::Asked;
use crate::work::lend::ask_others;

/// Makes what is damaged of a repository whole again, as far as that can be done without the primary.
pub(super) async fn mend_alone(work: &Work, repo: &Arc<Repo>) {
    match mend(work, repo).await {
        Ok(true) => repaired(repo, None),
        Ok(false) => tracing::debug!(repo = %repo.path, "not mended without the primary"),
        Err(error) => {
            tracing::debug!(repo = %repo.path, error = chain(&error), "not mended without the primary");
        }
    }
}

/// Says whether all is whole again.
async fn mend(work: &Work, repo: &Arc<Repo>) -> Result<bool, SyncError> {
    let Some(record) = work.mirror.newest(repo).await? else { return Ok(false) };
    if !stands(&work.mirror, repo, Some(&record)).await? {
        return Ok(false);
    }
    let Asked::Ours(_lease) = work.try_lease(&repo.path, Note::Repair).await? else { return Ok(false) };
    let Some(missing) = heal_once(work, repo, &record).await? else { return Ok(true) };
    // The wait holds no place and no memory that others need.
    let have_come = !missing.is_empty() && ask_others(work, repo, missing, 0).await?;
    Ok(have_come && heal_once(work, repo, &record).await?.is_none())
}

/// Mends what can be mended here. `None`: all is whole again; else what is missing still, as far as others may have it.
async fn heal_once(
    work: &Work,
    repo: &Arc<Repo>,
    record: &Generation,
) -> Result<Option<Vec<BlobRef>>, SyncError> {
    let _place = work.lanes.first(repo).await.ok_or(SyncError::Stopped)?;
    let cost = Arc::new(Cost::begin(&work.sync_memory).await?.of(repo.progress()));
    let _end = StopOnDrop(Arc::clone(&cost));
    let Some(refs) = refs_text(work, record, object_format(record)?).await else {
        return Ok(Some(vec![record.refs]));
    };
    let mended = heal(work, repo, record, &refs, &cost).await?;
    Ok((!mended.restored).then_some(mended.missing))
}
