//! What follows when the primary says that it does not have a repository.
//!
//! It is looked for ever less often. When it is believed to be gone (`mirror::gone`) it is marked, and served to nobody; when the
//! primary shows it again, to a comparison or to a client, the mark goes.
//! Elsewhere: taking it out after `gc.gone_after` (`collect`).

use std::sync::Arc;

use tokio::time::Instant;

use crate::mirror::gone::Missing;
use crate::mirror::newest::NotFound;
use crate::mirror::repo::Repo;
use crate::text::chain;
use crate::work::Work;
use crate::work::error::SyncError;

/// Takes note of how the primary answered a comparison, but for one that found nothing.
pub(super) fn answered<T>(repo: &Repo, outcome: &Result<T, SyncError>) {
    let mut health = repo.health();
    match outcome {
        Ok(_) => {
            health.missing = None;
            health.primary_failed = None;
        }
        Err(SyncError::Primary(_)) => {
            // What is counted are answers in a row that it is not there.
            health.missing = None;
            health.primary_failed = Some(Instant::now());
        }
        Err(_) => {}
    }
}

/// Takes note that a comparison found nothing.
pub(super) async fn missed(work: &Work, repo: &Arc<Repo>) {
    if let Err(error) = weigh(work, repo).await {
        tracing::debug!(repo = %repo.path, error = chain(&error), "it was not marked as gone; tried again later");
    }
}

async fn weigh(work: &Work, repo: &Arc<Repo>) -> Result<(), NotFound> {
    let mirror = &work.mirror;
    // After a start it is not known yet what is published.
    if repo.known().is_none() && mirror.look_up(repo).await? {
        mirror.take_out(repo);
        return Ok(());
    }
    if repo.was_shown() {
        // It is there: this node's own credentials do not show it.
        repo.health().missing = None;
        if repo.is_gone() {
            came_back(work, repo).await?;
        }
        return Ok(());
    }
    if repo.known().is_none() || repo.is_gone() || !mirror.is_calm_beside(repo) {
        return Ok(());
    }
    let is_believed = Missing::again(&mut repo.health().missing, work.compare_every);
    if is_believed && let Some(marked) = mirror.mark_gone(repo, true).await? {
        let kept_for = work.gone_after;
        tracing::warn!(repo = %repo.path, number = marked.number, ?kept_for, "marked as gone: the primary has not had it for an hour; it is served to nobody, and taken out later unless it comes back");
    }
    Ok(())
}

/// Takes the mark off: the primary shows it again.
pub(super) async fn came_back(work: &Work, repo: &Repo) -> Result<(), NotFound> {
    if let Some(newest) = work.mirror.mark_gone(repo, false).await? {
        tracing::info!(repo = %repo.path, number = newest.number, "it is back: the primary shows it again");
    }
    Ok(())
}
