//! `packmirror doctor`: probes store, primary and this machine, and explains what is wrong.

use super::exit::Failure;
use super::print;
use super::table::safe;
use crate::config::{Loaded, Settings};
use crate::git::path::RepoPath;
use crate::local::Local;
use crate::node;
use crate::primary::{Auth, PrimaryError};
use std::collections::HashSet;

const EXAMPLES: &str = "\
Examples:
  packmirror doctor --primary https://git.example.com --store s3://bucket/prefix
  packmirror doctor --config /etc/packmirror/packmirror.toml

Exits with 1 if a check failed. The probe of the store writes and removes a few small objects under
the prefix.";

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, but someone should know.
    Warning,
    /// Does not work.
    Bad,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it, unless all is well.
    pub advice: Option<String>,
}

/// Writes the checks as text: a line each, advice indented below.
pub fn report(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Bad => "BAD ",
        };
        out.push_str(&format!("{mark}  {}: {}\n", safe(&check.what), safe(&check.found)));
        if let Some(advice) = &check.advice {
            out.push_str(&format!("      {}\n", safe(advice)));
        }
    }
    let bad = checks.iter().filter(|check| check.verdict == Verdict::Bad).count();
    out.push_str(&match bad {
        0 => "Nothing is wrong.\n".to_owned(),
        1 => "1 check failed.\n".to_owned(),
        n => format!("{n} checks failed.\n"),
    });
    out
}

/// Runs all checks.
pub async fn run(_args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let checks =
        vec![store(&loaded.settings).await, primary(&loaded.settings).await, cache(&loaded.settings)];
    print(&report(&checks))?;
    match checks.iter().any(|check| check.verdict == Verdict::Bad) {
        false => Ok(()),
        true => Err(Failure::failed("something is wrong, see above")),
    }
}

fn good(what: String, found: String) -> Check {
    Check { what, verdict: Verdict::Good, found, advice: None }
}

fn bad(what: String, error: impl std::fmt::Display, advice: &str) -> Check {
    Check { what, verdict: Verdict::Bad, found: error.to_string(), advice: Some(advice.to_owned()) }
}

/// Tries what packmirror relies on, on throw-away keys.
async fn store(settings: &Settings) -> Check {
    let what = format!("store {}", settings.store);
    let bucket = match node::bucket(settings).await {
        Ok(bucket) => bucket,
        Err(e) => {
            return bad(
                what,
                format!("{e:#}"),
                "see `packmirror help serve` for --store and the AWS_* variables",
            );
        }
    };
    match bucket.probe().await {
        Ok(probe) => {
            let slowest = probe.steps.iter().map(|(_, took)| *took).max().unwrap_or_default();
            good(what, format!("{} promises kept, slowest answer {slowest:.0?}", probe.steps.len()))
        }
        Err(failed) => bad(what, &failed, "nodes refuse such a store; nothing was left behind that matters"),
    }
}

/// Asks the primary about a repository that is unlikely to exist: every answer but silence is a good sign.
async fn primary(settings: &Settings) -> Check {
    let name = settings.primary.clone().unwrap_or_else(|| "none".into());
    let what = format!("primary {name}");
    let primary = match node::primary(settings).await {
        Ok(primary) => primary,
        Err(e) => {
            return bad(what, format!("{e:#}"), "give the URL of a Git host, or a directory, as --primary");
        }
    };
    let Ok(probe) = RepoPath::parse("packmirror-doctor/no-such-repository.git") else {
        return good(what, "not asked".into());
    };
    match primary.look(&probe, Auth::Service, &HashSet::new(), &crate::pack::meter::Unlimited).await {
        Ok(_) => good(what, "answers".into()),
        Err(PrimaryError::NotFound) => good(what, "answers, and knows what it does not have".into()),
        Err(PrimaryError::Denied { status }) => Check {
            what,
            verdict: Verdict::Warning,
            found: format!("answers {status} to the service credential"),
            advice: Some(
                "fine for hosts that hide what does not exist; private repositories need credential_file"
                    .into(),
            ),
        },
        Err(e) => bad(what, e, "check the address, the network and the certificate (primary_ca_file)"),
    }
}

fn cache(settings: &Settings) -> Check {
    let what = format!("cache {}", settings.cache_dir.display());
    if let Err(e) = Local::examine(&settings.cache_dir) {
        return bad(what, e, "a node would refuse it; nothing in it was touched");
    }
    match tempfile::tempfile_in(&settings.cache_dir) {
        Ok(_) => good(what, "can be written".into()),
        Err(e) => bad(what, e, "name a directory that this user may write with --cache-dir"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_is_bad_and_what_to_do() {
        let check = |what: &str, verdict, found: &str, advice: Option<&str>| Check {
            what: what.into(),
            verdict,
            found: found.into(),
            advice: advice.map(str::to_owned),
        };
        let text = report(&[
            check("store", Verdict::Good, "creates a key once only", None),
            check("primary", Verdict::Bad, "401 \u{1b}[2J", Some("set credential_file")),
        ]);
        assert_eq!(
            text,
            "ok    store: creates a key once only\nBAD   primary: 401 \\u{1b}[2J\n      set credential_file\n1 check failed.\n"
        );
    }
}
