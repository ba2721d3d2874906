//! `packmirror serve`: one node: serves clients, syncs repositories, compares them with the primary.

use std::path::PathBuf;

use super::exit::Failure;
use crate::config::Loaded;

const EXAMPLES: &str = "\
Examples:
  packmirror serve --primary https://git.example.com
  packmirror serve --primary https://git.example.com --store s3://bucket/prefix \\
      --cache-dir /var/cache/packmirror --listen 0.0.0.0:8080
  packmirror serve --primary /srv/git --mirror 'team/*' --mirror '!team/secret'
  packmirror serve --primary https://git.example.com --store s3://git/eu \\
      --s3-endpoint http://127.0.0.1:9000

Several nodes may use one store and one primary; each needs a cache directory of its own.
/livez, /readyz and /metrics answer on the same port. SIGTERM drains: requests in flight are
finished within --drain-timeout.";

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write the port that is listened on to this file once the node is ready [default: none]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub port_file: Option<PathBuf>,
}

/// Runs the node until a signal ends it.
pub async fn run(_args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    loaded.settings.primary()?;
    Err(Failure::failed("serve is not part of this build"))
}
