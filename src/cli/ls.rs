//! `packmirror ls`: the repositories in the bucket; needs no primary.

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
  packmirror ls --store s3://bucket/prefix
  packmirror ls --json | jq -r '.[].repo'";

/// Arguments of `ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Lists the repositories.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let bucket = node::existing_bucket(&loaded.settings).await.map_err(Failure::store)?;
    let rows = rows(&bucket).await.map_err(Failure::store)?;
    let text = if args.json {
        json(&rows).map_err(Failure::failed)? + "\n"
    } else {
        let bold = std::io::stdout().is_terminal() && colours();
        table(&rows, Columns::Stored, SystemTime::now(), bold)
    };
    print(&text)
}
