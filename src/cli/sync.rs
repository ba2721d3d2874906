//! `packmirror sync [REPO…]`: bring repositories up to date now, without a running node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::exit::Failure;
use super::print;
use super::progress::{Board, Task, Unit};
use super::table::safe;
use crate::config::Loaded;
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::repo::Repo;
use crate::node;
use crate::text::chain;
use crate::work::Work;
use crate::work::error::SyncError;
use crate::work::sync::{Synced, sync};

/// How often the progress is looked at.
const SHOW_EVERY: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  packmirror sync --primary https://git.example.com team/app.git team/lib.git
  packmirror sync --primary /srv/git                 every repository the bucket already has

Repositories are named as in their URL, without the leading slash. One that could not be taken in before is tried again
at once. Exits with 1 if one of them failed.";

/// Arguments of `sync`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repositories; without any, all that the bucket has
    #[arg(value_name = "REPO")]
    pub repos: Vec<String>,
}

/// Syncs, with a progress bar on a terminal.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    settings.primary()?;
    let named: Result<Vec<RepoPath>, _> =
        args.repos.iter().map(|repo| RepoPath::parse(repo.trim_matches('/'))).collect();
    let named = named.map_err(Failure::usage)?;
    let bucket = node::bucket(settings).await.map_err(Failure::failed)?;
    let primary = node::primary(settings).await.map_err(Failure::failed)?;
    // A node may be running on the configured cache; what this command needs to remember it forgets again.
    let dir = tempfile::tempdir()?;
    let local = node::local(settings, dir.path(), &bucket).await.map_err(Failure::failed)?;
    bucket.probe().await.map_err(Failure::unavailable)?;
    bucket.ensure_format().await.map_err(Failure::store)?;
    let mirror = Mirror::new(settings, bucket, local, primary, CancellationToken::new())?;
    let mut repos =
        if named.is_empty() { mirror.bucket.repos().await.map_err(Failure::store)? } else { Vec::new() };
    for path in &named {
        repos.push(mirror.name_of(path).await.map_err(Failure::store)?);
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
    results.sort_by(|a, b| a.0.cmp(&b.0));
    let mut failed = 0;
    for (path, result) in &results {
        let words = match result {
            Ok(Synced::Unchanged) => "equal to the primary".to_owned(),
            Ok(Synced::Followed) => "another node was faster".to_owned(),
            Ok(Synced::Published { number, new_objects }) => {
                format!("generation {number} published, {new_objects} new objects")
            }
            Err(error) => {
                failed += 1;
                eprintln!("{}: failed: {}", safe(path.as_str()), safe(&chain(error)));
                continue;
            }
        };
        print(&format!("{}: {words}\n", safe(path.as_str())))?;
    }
    match failed {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {} repositories could not be synced", results.len()))),
    }
}

/// Syncs one repository and shows how far it is.
async fn one(work: &Work, path: &RepoPath, task: &Task) -> Result<Synced, SyncError> {
    let repo = Arc::new(Repo::new(path.clone()));
    let mut syncing = std::pin::pin!(sync(work, &repo, true));
    let mut shown = String::new();
    let mut tick = tokio::time::interval(SHOW_EVERY);
    let result = loop {
        tokio::select! {
            result = &mut syncing => break result,
            _ = tick.tick() => {
                let stage = repo.health().stage.clone();
                let stage = stage.split(':').next().unwrap_or_default().to_owned();
                if stage != shown {
                    task.phase(&stage, Unit::Bytes, None);
                    shown = stage;
                }
                task.set(repo.received().load(Ordering::Relaxed), None);
            }
        }
    };
    task.finish(if result.is_ok() { "done" } else { "failed" });
    result
}
