//! `packmirror gc`: deletes from the bucket what nobody names any more; needs no primary.

use super::exit::Failure;
use super::print;
use super::progress::Board;
use crate::config::Loaded;
use crate::node;
use crate::work::collect::round::{Terms, round};

const EXAMPLES: &str = "\
Examples:
  packmirror gc --dry-run --store s3://bucket/prefix     what would be deleted
  packmirror gc --store s3://bucket/prefix

What no record names any more is marked, and deleted by the first collection that comes when it has been marked for gc.grace.
So two collections with the grace between them free what was there before the first. The nodes of a farm do the same by
themselves (gc.every); it may run beside them. The longest gc.grace of all nodes that run counts. If a record cannot be read nothing is
deleted, and the exit status is 1.";

/// Arguments of `gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Change nothing, and say what would be deleted
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Collects once, with progress on a terminal.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    let bucket = node::existing_bucket(settings).await.map_err(Failure::store)?;
    let gc = &settings.gc;
    let terms = Terms { grace: gc.grace, gone_after: gc.gone_after, dry_run: args.dry_run };
    let board = Board::new();
    let task = board.task("collecting");
    let collected = round(&bucket, &terms, &|phase, done, total| task.objects(phase, done, total)).await;
    task.clear();
    let report = collected.map_err(|error| match error.is_transient() {
        true => Failure::unavailable(error),
        false => Failure::failed(error),
    })?;
    print(&if args.json {
        serde_json::to_string_pretty(&report).map_err(Failure::failed)? + "\n"
    } else {
        report.text()
    })
}
