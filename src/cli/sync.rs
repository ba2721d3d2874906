//! `packmirror sync [REPO…]`: bring repositories up to date now, without a running node.

use super::exit::Failure;
use crate::config::Loaded;

const EXAMPLES: &str = "\
Examples:
  packmirror sync --primary https://git.example.com team/app.git team/lib.git
  packmirror sync --primary /srv/git                 every repository the bucket already has

Repositories are named as in their URL, without the leading slash. Exits with 1 if one of them failed.";

/// Arguments of `sync`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repositories; without any, all that the bucket has
    #[arg(value_name = "REPO")]
    pub repos: Vec<String>,
}

/// Syncs, with a progress bar on a terminal.
pub async fn run(_args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    loaded.settings.primary()?;
    Err(Failure::failed("sync is not part of this build"))
}
