//! `packmirror sync [REPO…]`: bring repositories up to date now, without a running node.

use std::sync::Arc;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::exit::Failure;
use super::progress::{Board, SHOW_EVERY, Task};
use super::table::safe;
use super::{claim, print, repository};
use crate::config::Loaded;
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::repo::Repo;
use crate::node;
use crate::primary::{Auth, Primary};
use crate::store::Cause;
use crate::text::{chain, line};
use crate::work::Work;
use crate::work::error::SyncError;
use crate::work::sync::{Synced, sync};

const EXAMPLES: &str = "\
Examples:
  packmirror sync --primary https://git.example.com team/app.git team/lib.git
  packmirror sync --primary /srv/git --all           every repository the bucket already has

Repositories are named as in their URL, without the leading slash. One that could not be taken in before is tried again
at once. A failure does not stop the others; the last line sums up, and the exit status is 1 if one failed.";

/// Arguments of `sync`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repositories; without any, all that the bucket has, as with --all
    #[arg(value_name = "REPO")]
    pub repos: Vec<String>,
    /// All repositories that the bucket has
    #[arg(long, conflicts_with = "repos")]
    pub all: bool,
}

/// Syncs, with a progress bar on a terminal.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    settings.primary()?;
    let named: Vec<RepoPath> = args.repos.iter().map(|repo| repository(repo)).collect::<Result<_, _>>()?;
    let all = args.all || named.is_empty();
    let primary = node::primary(settings).await.map_err(Failure::failed)?;
    // A store is not made for what the primary does not have, nor by a slip in its name.
    let bucket = match node::existing_bucket(settings).await {
        Err(error) if error.cause() == Some(Cause::NoDirectory) && !all => {
            one_is_there(&primary, &named).await?;
            node::bucket(settings).await
        }
        opened => opened,
    };
    let bucket = bucket.map_err(Failure::store)?;
    // A node may be running on the configured cache; what this command needs to remember it forgets again.
    let dir = tempfile::tempdir()?;
    let local = node::local(settings, dir.path(), &bucket).await.map_err(Failure::failed)?;
    claim(&bucket, &primary).await?;
    let mirror = Mirror::new(settings, bucket, local, primary, CancellationToken::new())?;
    let mut repos = if all { mirror.bucket.repos().await.map_err(Failure::store)? } else { Vec::new() };
    for path in &named {
        repos.push(mirror.name_of(path).await.map_err(Failure::store)?);
    }
    if repos.is_empty() {
        return print(
            "Nothing to sync: the bucket has no repositories yet. Name one: packmirror sync team/app.git\n",
        );
    }
    let at_once = settings.max_syncs.max(1);
    let work = Work::new(mirror, settings);
    work.store_is_sound();
    let board = Board::new();
    let mut results: Vec<(RepoPath, Result<Synced, SyncError>)> = futures::stream::iter(repos)
        .map(|path| async {
            let result = one(&work, &path, &board.task(path.as_str())).await;
            (path, result)
        })
        .buffer_unordered(at_once)
        .collect()
        .await;
    work.ended().await;
    results.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut failed, mut published) = (0, 0);
    for (path, result) in &results {
        let words = match result {
            Ok(Synced::Unchanged) => "equal to the primary".to_owned(),
            Ok(Synced::Followed) => "another node was faster".to_owned(),
            Ok(Synced::Published { number, new_objects }) => {
                published += 1;
                format!("generation {number} published, {new_objects} new objects")
            }
            Err(error) => {
                failed += 1;
                eprintln!("{}: failed: {}", safe(path.as_str()), safe(&line(&chain(error))));
                continue;
            }
        };
        print(&format!("{}: {words}\n", safe(path.as_str())))?;
    }
    let count = results.len();
    if count > 1 {
        print(&format!(
            "{count} repositories: {published} published, {} equal, {failed} failed\n",
            count - published - failed
        ))?;
    }
    match failed {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {count} repositories could not be synced"))),
    }
}

/// Says whether the primary shows one of the repositories; otherwise why it does not show the first.
async fn one_is_there(primary: &Primary, repos: &[RepoPath]) -> Result<(), Failure> {
    let mut first = None;
    for repo in repos {
        match primary.seen(repo, Auth::Service).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                first = first.or(Some(format!(
                    "{}: failed: the primary: {}",
                    safe(repo.as_str()),
                    safe(&chain(&error))
                )))
            }
        }
    }
    Err(Failure::failed(first.unwrap_or_else(|| "no repository was named".to_owned())))
}

/// Syncs one repository and shows how far it is.
async fn one(work: &Work, path: &RepoPath, task: &Task) -> Result<Synced, SyncError> {
    let repo = Arc::new(Repo::new(path.clone()));
    let mut syncing = std::pin::pin!(sync(work, &repo, true));
    let mut tick = tokio::time::interval(SHOW_EVERY);
    let result = loop {
        tokio::select! {
            result = &mut syncing => break result,
            _ = tick.tick() => {
                if let Some(running) = repo.progress().shown() {
                    task.sync(&running);
                }
            }
        }
    };
    task.clear();
    result
}
