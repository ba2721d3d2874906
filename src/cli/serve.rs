//! `packmirror serve`: one node: serves clients, syncs repositories, compares them with the primary.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::exit::Failure;
use crate::config::Loaded;
use crate::node;
use crate::telemetry::metrics::Recorder;

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
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    loaded.settings.primary()?;
    let recorder = Recorder::install().map_err(Failure::failed)?;
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    tokio::spawn(async move {
        signal().await;
        tracing::info!("asked to stop");
        signalled.cancel();
    });
    let port_file = args.port_file.clone();
    let bound = move |address: std::net::SocketAddr| match port_file {
        // Under its name only once it is whole: whoever waits for it reads it at once.
        Some(path) => {
            let part = path.with_extension("part");
            crate::umask::as_caller(|| std::fs::write(&part, format!("{}\n", address.port())))?;
            std::fs::rename(part, path)
        }
        None => Ok(()),
    };
    node::run(loaded.settings.clone(), recorder, stop, bound).await.map_err(Failure::failed)
}

/// Waits for SIGTERM or SIGINT.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        // Without handlers the signals end the process by themselves.
        _ => std::future::pending().await,
    }
}
