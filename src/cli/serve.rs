//! `packmirror serve`: one node: serves clients, syncs repositories, compares them with the primary.

use std::path::PathBuf;
use std::sync::Arc;

use super::exit::Failure;
use super::progress::{Board, fancy};
use crate::config::Loaded;
use crate::mirror::Mirror;
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
/livez, /readyz and /metrics answer on the same port. SIGTERM drains: /readyz says no for
--drain-delay while everything is served, then requests in flight are finished within
--drain-timeout. SIGINT (Ctrl-C) and a second signal skip the delay.";

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
    let stop = node::Stop::default();
    tokio::spawn(signals(stop.clone()));
    let port_file = args.port_file.clone();
    let bound = move |address: std::net::SocketAddr, mirror: &Arc<Mirror>| {
        if fancy() {
            let mirror = Arc::clone(mirror);
            tokio::spawn(async move { Board::new().follow(mirror).await });
        }
        let Some(path) = port_file else { return Ok(()) };
        // Under its name only once it is whole: whoever waits for it reads it at once.
        let part = path.with_extension("part");
        crate::umask::as_caller(|| std::fs::write(&part, format!("{}\n", address.port())))?;
        std::fs::rename(part, path)
    };
    node::run(loaded.settings.clone(), recorder, stop, bound).await.map_err(Failure::failed)
}

/// Asks the node to stop at the first SIGTERM or SIGINT. SIGINT, which is a person's, does not wait for load balancers, and
/// neither does a second signal.
async fn signals(stop: node::Stop) {
    use tokio::signal::unix::{SignalKind, signal};
    let (term, int) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    // Without handlers the signals end the process by themselves.
    let (Ok(mut term), Ok(mut int)) = (term, int) else { return };
    loop {
        let hurried = tokio::select! {
            _ = term.recv() => stop.asked.is_cancelled(),
            _ = int.recv() => true,
        };
        if hurried {
            stop.hurry.cancel();
        }
        stop.asked.cancel();
    }
}
