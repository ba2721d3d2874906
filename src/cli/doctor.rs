//! `packmirror doctor`: probes store, primary and this machine, and explains what is wrong.

use super::exit::Failure;
use super::table::safe;
use crate::config::Loaded;

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
pub async fn run(_args: &Args, _loaded: &Loaded) -> Result<(), Failure> {
    Err(Failure::failed("doctor is not part of this build"))
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
