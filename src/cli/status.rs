//! `packmirror status`: how each repository stands against the primary.

use std::io::IsTerminal;
use std::time::SystemTime;

use super::exit::Failure;
use super::print;
use super::progress::colours;
use super::rows::rows;
use super::table::{Columns, json, table};
use crate::config::Loaded;
use crate::node;

const EXAMPLES: &str = "\
Examples:
  packmirror status --store s3://bucket/prefix
  packmirror status --json | jq '.[] | select(.state != \"current\")'

Columns: repository, state (new, syncing, current, behind, failing, damaged, gone), generation, refs, size and
objects in the bucket, when it was last compared with the primary, how old what is served may be
(lag), when a failed sync is tried again, which node compares it (the first letters of its name, which is new at each start).";

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Shows the table.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let bucket = node::existing_bucket(&loaded.settings).await.map_err(Failure::store)?;
    let rows = rows(&bucket).await.map_err(Failure::store)?;
    let text = if args.json {
        json(&rows).map_err(Failure::failed)? + "\n"
    } else {
        let bold = std::io::stdout().is_terminal() && colours();
        table(&rows, Columns::Standing, SystemTime::now(), bold)
    };
    print(&text)
}
