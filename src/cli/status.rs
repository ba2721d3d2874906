//! `packmirror status`: how each repository stands against the primary.

use super::exit::Failure;
use crate::config::Loaded;

const EXAMPLES: &str = "\
Examples:
  packmirror status --store s3://bucket/prefix
  packmirror status --json | jq '.[] | select(.state != \"current\")'

Columns: repository, state (new, syncing, current, behind, failing), generation, refs, size and
objects in the bucket, when it was last compared with the primary, how old what is served may be
(lag), when a failed sync is
tried again.";

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Shows the table.
pub async fn run(_args: &Args, _loaded: &Loaded) -> Result<(), Failure> {
    Err(Failure::failed("status is not part of this build"))
}
