//! `packmirror doctor`: examines store, primary and this machine before a node does, and explains what is wrong.
//!
//! Whatever `serve` refuses, or passes through for ever, is bad here. It makes nothing: no store, no cache directory.
//!
//! - `check`: a check and its code, text and JSON. `store`, `primary`, `machine`: the checks. `client`, `address`: git on
//!   a client's machine.

mod address;
pub mod check;
mod client;
mod machine;
mod primary;
mod store;

use super::exit::{Exit, Failure};
use super::print;
use crate::config::{ConfigError, Loaded};

use check::{Check, Code, is_well, json, report};

const EXAMPLES: &str = "\
Examples:
  packmirror doctor --primary https://git.example.com --store s3://bucket/prefix
  packmirror doctor --config /etc/packmirror/packmirror.toml team/app.git
  packmirror doctor --client https://git.example.com/team/app.git
  packmirror doctor --json | jq -r '.checks[] | select(.verdict != \"good\") | .code'

Run it as the user and in the environment of `packmirror serve`. What serve would refuse, or pass through for
ever, is BAD, and the exit status is 1. The probe of a store that exists writes and removes a few small
objects under the prefix; nothing else is made. docs/doctor.md lists the codes.";

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repositories to be read as a sync would, with the service credential
    #[arg(value_name = "REPO")]
    pub repos: Vec<String>,
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

/// Runs all checks.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    let primary = primary::open(settings).await;
    let name = primary.as_ref().ok().map(|primary| primary.name());
    let mut checks = store::check(settings, name.as_deref()).await;
    match primary {
        Err(check) => checks.push(*check),
        Ok(primary) => {
            let host = primary::host(settings, &primary, !args.repos.is_empty()).await;
            let answers = is_well(&host);
            checks.extend(host);
            for repo in args.repos.iter().filter(|_| answers) {
                checks.extend(primary::repository(settings, &primary, repo).await);
            }
        }
    }
    checks.extend(machine::credential(settings));
    checks.extend(machine::cache(settings));
    checks.extend(machine::listen(settings));
    checks.extend(machine::system(settings));
    tell(args, &checks)
}

fn tell(args: &Args, checks: &[Check]) -> Result<(), Failure> {
    show(args, checks)?;
    if is_well(checks) { Ok(()) } else { Err(Failure::failed("something is wrong, see above")) }
}

fn show(args: &Args, checks: &[Check]) -> Result<(), Failure> {
    print(&if args.json { json(checks).map_err(Failure::failed)? } else { report(checks) })
}

/// Settings that do not load end every command; here as a check, for scripts that read JSON.
pub fn settings_do_not_load(args: &Args, error: ConfigError) -> Failure {
    if args.json {
        let advice = "see `packmirror config` for what holds, and where each setting came from";
        let check = Check::bad(Code::SettingsBad, "settings", error.to_string(), advice);
        if let Err(failure) = show(args, &[check]) {
            return failure;
        }
    }
    Failure::new(Exit::Usage, error)
}
