//! `packmirror ls`: the repositories in the bucket; needs no primary.

use super::exit::Failure;
use crate::config::Loaded;

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
pub async fn run(_args: &Args, _loaded: &Loaded) -> Result<(), Failure> {
    Err(Failure::failed("ls is not part of this build"))
}
