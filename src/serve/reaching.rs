//! Whether a client may have what it wants: a grant, and a published state that reaches all of it.
//!
//! Relies on: `primary` for grants, `mirror` for snapshots and for catching up. Elsewhere: what is sent (`prepare`).

use std::sync::Arc;

use axum::response::Response;
use gix_hash::{Kind as HashKind, ObjectId};

use crate::git::path::RepoPath;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Granted;
use crate::pack::meter::Halt;
use crate::pack::trees::TreeError;
use crate::primary::{ClientHeaders, Grant, Refusal};
use crate::serve::app::App;
use crate::serve::compute::compute;
use crate::serve::error::Failure;
use crate::serve::git::{Asked, pass_on};
use crate::serve::pass::{Reason, denial_response};
use crate::text::chain;

/// From so many objects on, looking them up is not for an async thread.
pub const MANY: usize = 256;

/// What is answered when the packs are not opened.
pub enum Instead {
    /// The primary's own refusal.
    Refusal(Response),
    /// Whatever the primary says.
    Pass(Reason),
}

impl Instead {
    /// Gives it to the client.
    pub async fn answer(self, app: &App, asked: &Asked) -> Result<Response, Failure> {
        match self {
            Self::Refusal(response) => Ok(response),
            Self::Pass(reason) => pass_on(app, asked, reason).await,
        }
    }
}

/// Asks for the grant; what the client gets instead if there is none.
pub async fn grant(
    app: &App,
    repo: &Repo,
    path: &RepoPath,
    client: &ClientHeaders,
) -> Result<Result<Grant, Response>, Failure> {
    let hash = repo.snapshot().map_or(HashKind::Sha1, |snapshot| snapshot.refs.hash);
    match app.grants.check(path, client, hash).await {
        Ok(grant) => Ok(Ok(grant)),
        Err(Refusal::Answer(denial)) => Ok(Err(denial_response(*denial))),
        Err(Refusal::Unavailable(e)) => Err(e.into()),
    }
}

/// Asks for the grant and for a published state that reaches all of `wants`, waiting for a sync if need be.
pub async fn open(
    app: &App,
    repo: &Arc<Repo>,
    asked: &Asked,
    wants: &[ObjectId],
) -> Result<Result<Granted, Instead>, Failure> {
    let grant = match grant(app, repo, &asked.path, &asked.client).await? {
        Ok(grant) => grant,
        Err(refused) => return Ok(Err(Instead::Refusal(refused))),
    };
    match reaching(app, repo, &grant, wants).await? {
        Reached::All(granted) => return Ok(Ok(granted)),
        Reached::TooCostly => return Ok(Err(Instead::Pass(Reason::TooCostly))),
        Reached::Unreadable => return Ok(Err(Instead::Pass(Reason::BucketDown))),
        Reached::NotAll => {}
    }
    let wait = app.mirror.settings.sync_wait;
    if app.mirror.catch_up(repo, wants, wait).await.is_some()
        && let Reached::All(granted) = reaching(app, repo, &grant, wants).await?
    {
        return Ok(Ok(granted));
    }
    Ok(Err(Instead::Pass(Reason::UnknownWant)))
}

/// What is published, compared with what is wanted.
enum Reached {
    All(Granted),
    NotAll,
    /// It takes too much to tell.
    TooCostly,
    /// What is stored cannot be read.
    Unreadable,
}

/// Looks whether what the present snapshot publishes reaches all of `wants`.
async fn reaching(
    app: &App,
    repo: &Arc<Repo>,
    grant: &Grant,
    wants: &[ObjectId],
) -> Result<Reached, Failure> {
    let Some(granted) = repo.snapshot().and_then(|snapshot| snapshot.open_packs(grant)) else {
        return Ok(Reached::NotAll);
    };
    // Tips are reachable by definition; only other wants need the set of all that is.
    if wants.len() < MANY && granted.publishes_as_tips(wants) {
        return Ok(Reached::All(granted));
    }
    if wants.len() < MANY && wants.iter().any(|oid| granted.stack.lookup(oid).is_none()) {
        return Ok(Reached::NotAll);
    }
    if let Err(failed) = publish(app, &granted).await? {
        if failed.costs_too_much() {
            return Ok(Reached::TooCostly);
        }
        // The primary can tell.
        repo.report_damage(&granted.generation, &failed);
        tracing::warn!(repo = %repo.path, error = chain(&failed), "what the refs reach cannot be told");
        return Ok(Reached::Unreadable);
    }
    let is_published = |granted: &Granted, wants: &[ObjectId]| {
        wants.iter().all(|oid| {
            granted.publishes_as_tips(std::slice::from_ref(oid)) || granted.published(oid).is_some()
        })
    };
    if wants.len() < MANY {
        return Ok(if is_published(&granted, wants) { Reached::All(granted) } else { Reached::NotAll });
    }
    let wants = wants.to_vec();
    let all = compute(app, move |meter| {
        for wants in wants.chunks(MANY) {
            meter.step(wants.len() as u64)?;
            if !is_published(&granted, wants) {
                return Ok(Reached::NotAll);
            }
        }
        Ok::<_, Halt>(Reached::All(granted))
    });
    Ok(all.await??)
}

/// Makes the set of all that is published, unless it is there: once however many ask, in one turn. An error of the inner kind
/// says why it cannot be made.
pub async fn publish(app: &App, granted: &Granted) -> Result<Result<(), TreeError>, Failure> {
    let make = async || {
        let snapshot = granted.clone();
        let made = compute(app, move |meter| snapshot.make_reach(meter)).await.map_err(Err)?;
        made.map_err(|e| match e {
            TreeError::Halt(halt @ (Halt::Busy | Halt::Stopped)) => Err(halt.into()),
            e => Ok(e),
        })
    };
    match granted.reach().get_or_try_init(make).await {
        Ok(_) => Ok(Ok(())),
        Err(Ok(failed)) => Ok(Err(failed)),
        Err(Err(failure)) => Err(failure),
    }
}
