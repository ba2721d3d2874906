//! `packmirror purge REPO [--oid OID]…`: makes history that no ref reaches any more unreadable everywhere, and deletes it.

use std::sync::Arc;
use std::time::Duration;

use gix_hash::ObjectId;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::progress::{Board, SHOW_EVERY, Task};
use super::table::{escaped, safe};
use super::{claim, print, repository};
use crate::config::Loaded;
use crate::mirror::Mirror;
use crate::mirror::names::not_there;
use crate::mirror::repo::Repo;
use crate::node;
use crate::work::Work;
use crate::work::purge::report::Report;
use crate::work::purge::{PurgeError, Wish, purge};

const EXAMPLES: &str = "\
Examples:
  packmirror purge --dry-run --primary https://git.example.com --store s3://bucket/prefix team/app.git
  packmirror purge team/app.git --oid 83a4f1…          refused while a branch or tag still has that object

For a secret that was pushed by mistake: make the secret useless where it is used, rewrite the history at the primary (force-push every
branch, delete every tag that has it), and then purge. The repository is synced first. Then what no ref reaches is left out of
what is stored, every node forgets what came before and says so, and the old packs and records are deleted without waiting for
gc.grace. Clones and fetches that are under way end with an error and can be tried again.

A node that does not answer within --wait is named, and the exit status is 1: stop it or wait, and purge again. A node that is
stopped obeys when it starts. If the bucket keeps old versions of objects, it keeps the deleted ones too (docs/operations.md).";

/// Arguments of `purge`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The repository, named as in its URL without the leading slash
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// An object that must be gone; refused if a ref still reaches it
    #[arg(long, value_name = "OID", value_parser = oid)]
    pub oid: Vec<ObjectId>,
    /// How long nodes are waited for
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// Change nothing, and say what would be purged
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

fn oid(text: &str) -> Result<ObjectId, String> {
    ObjectId::from_hex(text.as_bytes())
        .map_err(|_| "an object id in full is needed, 40 or 64 hex digits".to_owned())
}

/// Purges, with progress on a terminal.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    settings.primary()?;
    let named = repository(&args.repo)?;
    let bucket = node::existing_bucket(settings).await.map_err(Failure::store)?;
    let primary = node::primary(settings).await.map_err(Failure::failed)?;
    // What this command caches is gone with it.
    let dir = tempfile::tempdir()?;
    let local = node::local(settings, dir.path(), &bucket).await.map_err(Failure::failed)?;
    if !args.dry_run {
        claim(&bucket, &primary).await?;
    }
    let mirror = Mirror::new(settings, bucket, local, primary, CancellationToken::new())?;
    let path = mirror.name_of(&named).await.map_err(Failure::store)?;
    let work = Work::new(Arc::clone(&mirror), settings);
    work.store_is_sound();
    let wish = Wish { repo: path.clone(), oids: args.oid.clone(), dry_run: args.dry_run, wait: args.wait };
    let board = Board::new();
    let purged = shown(&work, &wish, &board.task(path.as_str())).await;
    work.ended().await;
    let report = match purged {
        Ok(report) => report,
        Err(PurgeError::NoRepository) => {
            return Err(Failure::new(Exit::NoRepository, not_there(&mirror.bucket, &path).await));
        }
        Err(error) if error.is_transient() => return Err(Failure::unavailable(error)),
        Err(error) => return Err(Failure::failed(error)),
    };
    print(&match args.json {
        true => escaped(&serde_json::to_string_pretty(&report).map_err(Failure::failed)?) + "\n",
        false => report.text(),
    })?;
    if args.dry_run || report.is_whole() { Ok(()) } else { Err(Failure::failed(unfinished(&report))) }
}

/// Purges and shows how far it is.
async fn shown(work: &Work, wish: &Wish, task: &Task) -> Result<Report, PurgeError> {
    let repo = Arc::new(Repo::new(wish.repo.clone()));
    let told = |phase: &str, done, total| task.objects(phase, done, total);
    let mut purging = std::pin::pin!(purge(work, &repo, wish, &told));
    let mut tick = tokio::time::interval(SHOW_EVERY);
    let result = loop {
        tokio::select! {
            result = &mut purging => break result,
            _ = tick.tick() => {
                if let Some(running) = repo.progress().shown().or_else(|| repo.compaction().shown()) {
                    task.sync(&running);
                }
            }
        }
    };
    task.clear();
    result
}

/// What is to be done about what is left.
fn unfinished(report: &Report) -> String {
    let nodes: Vec<String> =
        report.unanswered().map(|node| format!("{} ({})", safe(&node.node), safe(&node.version))).collect();
    match nodes.as_slice() {
        [] => "some blobs are still there: purge again in half an hour".to_owned(),
        nodes => format!(
            "these nodes have not forgotten it in time and may still serve it: {}; look whether they reach the bucket, stop them or \
             upgrade them, and purge again",
            nodes.join(", ")
        ),
    }
}
