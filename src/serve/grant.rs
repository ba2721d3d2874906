//! The grant of a client: the primary's yes, asked with the client's own headers.

use axum::response::Response;
use gix_hash::Kind as HashKind;

use crate::git::path::RepoPath;
use crate::mirror::repo::Repo;
use crate::primary::{ClientHeaders, Grant, Refusal};
use crate::serve::app::App;
use crate::serve::error::Failure;
use crate::serve::pass::denial_response;
use crate::serve::told;

/// Asks for the grant; what the client gets instead if there is none.
pub async fn grant(
    app: &App,
    repo: &Repo,
    path: &RepoPath,
    client: &ClientHeaders,
) -> Result<Result<Grant, Response>, Failure> {
    let hash = repo.snapshot().map_or(HashKind::Sha1, |snapshot| snapshot.refs.hash);
    match app.grants.check(path, client, hash).await {
        Ok(grant) => Ok(Ok(app.mirror.under_own_name(grant))),
        Err(Refusal::Answer(denial)) => {
            told::note(|facts| (facts.source, facts.reason) = ("primary", "refused"));
            Ok(Err(denial_response(*denial)))
        }
        Err(Refusal::Unavailable(e)) => Err(e.into()),
    }
}
