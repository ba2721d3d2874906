//! `packmirror doctor`: probes store, primary and this machine, and explains what is wrong.

mod address;
mod check;
mod client;

use super::exit::Failure;
use super::print;
use crate::config::{Loaded, Settings};
use crate::git::path::RepoPath;
use crate::local::Local;
use crate::node;
use crate::primary::{Auth, PrimaryError};
use std::collections::HashSet;

pub use check::{Check, Code, Verdict, is_well, json, report};

const EXAMPLES: &str = "\
Examples:
  packmirror doctor --primary https://git.example.com --store s3://bucket/prefix
  packmirror doctor --config /etc/packmirror/packmirror.toml
  packmirror doctor --client https://git.example.com/team/app.git

Exits with 1 if a check failed. The probe of the store writes and removes a few small objects under
the prefix.";

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Look at git on this machine instead: would it use the mirror for this address?
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<String>,
    /// The mirror that --client should find
    #[arg(long, value_name = "URL", requires = "client")]
    pub via: Option<url::Url>,
}

/// Looks at git on this machine, as a client.
pub async fn run_client(args: &Args, address: &str) -> Result<(), Failure> {
    tell(args, &client::checks(address, args.via.as_ref()).await)
}

fn tell(args: &Args, checks: &[Check]) -> Result<(), Failure> {
    print(&if args.json { json(checks).map_err(Failure::failed)? } else { report(checks) })?;
    if is_well(checks) { Ok(()) } else { Err(Failure::failed("something is wrong, see above")) }
}

/// Runs all checks.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let checks =
        vec![store(&loaded.settings).await, primary(&loaded.settings).await, cache(&loaded.settings)];
    tell(args, &checks)
}

/// Tries what packmirror relies on, on throw-away keys.
async fn store(settings: &Settings) -> Check {
    let what = format!("store {}", settings.store);
    let bucket = match node::bucket(settings).await {
        Ok(bucket) => bucket,
        Err(e) => {
            return Check::bad(
                Code::StoreAddress,
                what,
                format!("{e:#}"),
                "see `packmirror help serve` for --store and the AWS_* variables",
            );
        }
    };
    match bucket.probe().await {
        Ok(probe) => {
            let slowest = probe.steps.iter().map(|(_, took)| *took).max().unwrap_or_default();
            Check::good(
                Code::StoreOk,
                what,
                format!("{} promises kept, slowest answer {slowest:.0?}", probe.steps.len()),
            )
        }
        Err(failed) => Check::bad(
            Code::StorePromise,
            what,
            failed.to_string(),
            "nodes refuse such a store; nothing was left behind that matters",
        ),
    }
}

/// Asks the primary about a repository that is unlikely to exist: every answer but silence is a good sign.
async fn primary(settings: &Settings) -> Check {
    let name = settings.primary.clone().unwrap_or_else(|| "none".into());
    let what = format!("primary {name}");
    let primary = match node::primary(settings).await {
        Ok(primary) => primary,
        Err(e) => {
            return Check::bad(
                Code::PrimaryDirectory,
                what,
                format!("{e:#}"),
                "give the URL of a Git host, or a directory, as --primary",
            );
        }
    };
    let Ok(probe) = RepoPath::parse("packmirror-doctor/no-such-repository.git") else {
        return Check::good(Code::PrimaryOk, what, "not asked");
    };
    match primary.look(&probe, Auth::Service, &HashSet::new(), &crate::pack::meter::Unlimited).await {
        Ok(_) => Check::good(Code::PrimaryOk, what, "answers"),
        Err(PrimaryError::NotFound) => {
            Check::good(Code::PrimaryOk, what, "answers, and knows what it does not have")
        }
        Err(PrimaryError::Denied { status }) => Check::warning(
            Code::PrimaryUnknown,
            what,
            format!("answers {status} to the service credential"),
            "fine for hosts that hide what does not exist; private repositories need credential_file",
        ),
        Err(e) => Check::bad(
            Code::PrimaryUnreachable,
            what,
            e.to_string(),
            "check the address, the network and the certificate (primary_ca_file)",
        ),
    }
}

fn cache(settings: &Settings) -> Check {
    let what = format!("cache {}", settings.cache_dir.display());
    if let Err(e) = Local::examine(&settings.cache_dir) {
        return Check::bad(
            Code::CacheForeign,
            what,
            e.to_string(),
            "a node would refuse it; nothing in it was touched",
        );
    }
    match tempfile::tempfile_in(&settings.cache_dir) {
        Ok(_) => Check::good(Code::CacheOk, what, "can be written"),
        Err(e) => Check::bad(
            Code::CacheUnwritable,
            what,
            e.to_string(),
            "name a directory that this user may write with --cache-dir",
        ),
    }
}
