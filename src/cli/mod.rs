//! The command line: what it offers, and the way from arguments to an exit code.
//!
//! One file per command, each with its arguments and a `run`. Settings are flags of every command, made from
//! the table of settings (`flags`). Results go to stdout, everything else to stderr.
//! Relies on: `config` for settings, `telemetry` for the log, and the rooms below for the work.
//! Elsewhere: anything that a server or another program could want too.

pub mod adopt;
pub mod completions;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod exit;
pub mod export;
pub mod flags;
pub mod gc;
pub mod git_credential;
pub mod ls;
pub mod progress;
pub mod purge;
pub mod rm;
pub mod rows;
pub mod serve;
pub mod status;
pub mod sync;
pub mod table;
pub mod vet;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Inputs, Loaded, LogFormat, load};
use crate::git::path::RepoPath;
use crate::primary::Primary;
use crate::store::Bucket;
use crate::telemetry::log;
use exit::Failure;
use flags::Flags;

const EXAMPLES: &str = "\
Examples:
  See it work, with a small primary made for the occasion:
    packmirror demo

  Mirror a Git host into a directory on this machine, then clone through it:
    packmirror serve --primary https://git.example.com
    git clone http://127.0.0.1:8080/team/app.git

  The same into a bucket, for a region:
    packmirror serve --primary https://git.example.com --store s3://bucket/prefix \\
        --listen 0.0.0.0:8080

  Let git use the mirror for every clone of that host:
    git config --global url.\"http://127.0.0.1:8080/\".insteadOf https://git.example.com/

Settings come from flags, PACKMIRROR__… variables and a TOML file, in that order of strength;
`packmirror config` shows what holds and why. `packmirror help COMMAND` lists the settings that it uses as flags;
the others are taken too, and have no effect there.";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    it failed; the message says why
  2    wrong arguments or settings
  3    the bucket or the primary did not answer; trying again later can help
  4    there is no such repository in the mirror
  5    vet: a repository differs from the primary, or stored data is damaged
  130  interrupted";

/// A Git mirror whose disk is a bucket.
#[derive(Debug, Parser)]
#[command(name = "packmirror", version, about, long_about = None)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    /// Settings given as flags.
    #[command(flatten)]
    pub flags: Flags,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clones and fetches, and keep the mirror true
    Serve(serve::Args),
    /// Show the mirror at work: clone, push and fetch through it, and prove the result
    Demo(demo::Args),
    /// Bring repositories up to date now
    Sync(sync::Args),
    /// List the repositories in the bucket
    Ls(ls::Args),
    /// Take repositories out of the mirror
    Rm(rm::Args),
    /// Show how each repository stands against the primary
    Status(status::Args),
    /// Compare with the primary now, and look whether what is stored is whole
    Vet(vet::Args),
    /// Delete from the bucket what nobody names any more
    Gc(gc::Args),
    /// Make history that no ref reaches any more unreadable on every node, and delete it
    Purge(purge::Args),
    /// Write a repository from the bucket as a plain bare repository; needs no primary
    Export(export::Args),
    /// Tell the store that its primary has another address now
    Adopt(adopt::Args),
    /// Examine store, primary and this machine, and explain what is wrong
    Doctor(doctor::Args),
    /// Print the effective settings as TOML, without secrets
    Config(config::Args),
    /// Give git the primary's credential for the mirror: a credential helper for clients
    GitCredential(git_credential::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let matches = flags::fitted(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // stderr may be closed; the exit code still tells.
            let _ = writeln!(std::io::stderr(), "packmirror: {failure}");
            failure.exit.into()
        }
    }
}

/// The stack of every thread of ours, in bytes. Nothing here recurses over what comes from outside.
const STACK: usize = 2 << 20;
/// How long a thread that waits for work stays. Each keeps up to a megabyte of memory that it freed, so a burst that needed hundreds
/// of them is not paid for long after.
const IDLE: Duration = Duration::from_secs(1);

fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Completions(args) = &cli.command {
        return completions::run(args);
    }
    let flags = cli.flags;
    // It runs on clients, whose machines have no settings of a node.
    if let Command::GitCredential(args) = &cli.command {
        return git_credential::run(args, &flags);
    }
    if let Command::Doctor(args) = &cli.command
        && let Some(address) = &args.client
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(doctor::run_client(args, address));
    }
    let loaded = load(&Inputs::from_process(flags.config.clone(), flags.given.clone())?);
    let loaded = loaded.map_err(|error| match &cli.command {
        Command::Doctor(args) => doctor::settings_do_not_load(args, error),
        _ => error.into(),
    })?;
    start_log(&cli.command, &loaded)?;
    // An exported repository is the caller's; all else that is made is packmirror's own.
    if !matches!(cli.command, Command::Export(_) | Command::Demo(_)) {
        crate::umask::make_private();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(STACK)
        .thread_keep_alive(IDLE)
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        match &cli.command {
            Command::Serve(args) => serve::run(args, &loaded).await,
            Command::Demo(args) => demo::run(args, &flags, &loaded.settings).await,
            Command::Sync(args) => sync::run(args, &loaded).await,
            Command::Ls(args) => ls::run(args, &loaded).await,
            Command::Rm(args) => rm::run(args, &loaded).await,
            Command::Status(args) => status::run(args, &loaded).await,
            Command::Vet(args) => vet::run(args, &loaded).await,
            Command::Gc(args) => gc::run(args, &loaded).await,
            Command::Purge(args) => purge::run(args, &loaded).await,
            Command::Export(args) => export::run(args, &loaded).await,
            Command::Adopt(args) => adopt::run(args, &loaded).await,
            Command::Doctor(args) => doctor::run(args, &loaded).await,
            Command::Config(args) => config::run(args, &loaded).await,
            Command::Completions(_) | Command::GitCredential(_) => Ok(()),
        }
    });
    // Blocking work that was abandoned must not hold up the end of the process.
    runtime.shutdown_background();
    done
}

/// `serve` and `sync` tell what they do at the chosen level; commands that answer a question are quiet below
/// warnings unless a level was asked for.
fn start_log(command: &Command, loaded: &Loaded) -> Result<(), Failure> {
    let asked = loaded
        .origins
        .get("log_level")
        .is_some_and(|origin| *origin != crate::config::error::Origin::Default);
    let level = match command {
        Command::Serve(_) | Command::Sync(_) => &loaded.settings.log_level,
        _ if asked => &loaded.settings.log_level,
        // What it finds stands in its report, with what to do.
        Command::Doctor(_) => "error",
        _ => "warn",
    };
    let json = match loaded.settings.log_format {
        LogFormat::Auto => None,
        LogFormat::Text => Some(false),
        LogFormat::Json => Some(true),
    };
    log::start(level, json).map_err(Failure::usage)
}

/// Reads the name of a repository as people write it: the path of its URL, with slashes around it or without.
pub fn repository(text: &str) -> Result<RepoPath, Failure> {
    RepoPath::parse(text.trim_matches('/')).map_err(Failure::usage)
}

/// Makes sure, before anything is written, that the store keeps its promises and is the mirror of this primary.
async fn claim(bucket: &Bucket, primary: &Primary) -> Result<(), Failure> {
    bucket.probe().await.map_err(|failed| match failed.is_transient() {
        true => Failure::unavailable(failed),
        false => Failure::failed(failed),
    })?;
    bucket.take(&primary.name()).await.map_err(Failure::store)
}

/// Writes a result to stdout. A reader that has gone away is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::config::keys::KEYS;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_are_flags_before_and_after_the_command() {
        for line in [
            ["packmirror", "--store", "/s", "ls"].as_slice(),
            &["packmirror", "ls", "--store", "/s"],
            &["packmirror", "ls", "--store=/s"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.flags.given, [("store", vec!["/s".to_owned()])], "{line:?}");
        }
        let line = [
            "packmirror",
            "serve",
            "--mirror",
            "a/*",
            "--mirror",
            "!a/{b,c}",
            "--insecure-primary",
            "--config",
            "f",
        ];
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!(cli.flags.config.as_deref(), Some("f".as_ref()));
        assert_eq!(
            cli.flags.given,
            [
                ("insecure_primary", vec!["true".to_owned()]),
                ("mirror", vec!["a/*".to_owned(), "!a/{b,c}".to_owned()])
            ]
        );
        assert!(Cli::try_parse_from(["packmirror", "serve", "--freshness", "fresh"]).is_err());
        assert!(Cli::try_parse_from(["packmirror", "serve", "--credential", "user:password"]).is_err());
    }

    #[test]
    fn long_help_names_each_flag_that_the_command_uses_with_default_and_variable() {
        let mut command = flags::fitted(Cli::command());
        let mut shown = std::collections::BTreeMap::new();
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            let name = sub.get_name().to_owned();
            let help = sub.render_long_help().to_string();
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            for key in KEYS {
                let Some(flag) = key.flag() else { continue };
                if help.contains(&format!("--{flag} <")) || help.contains(&format!("--{flag}[=")) {
                    assert!(help.contains(&format!("[default: {}]", key.default_text())), "{name}: {flag}");
                    assert!(help.contains(&key.env()), "{name}: {flag}");
                    shown.entry(name.clone()).or_insert_with(Vec::new).push(key.name);
                }
            }
        }
        let flags = KEYS.iter().filter(|key| key.flag().is_some()).count();
        for all in ["serve", "doctor", "config"] {
            assert_eq!(shown[all].len(), flags, "{all} uses all: {:?}", shown[all]);
        }
        let has = |command: &str, key: &str| shown.get(command).is_some_and(|keys| keys.contains(&key));
        for (command, used, not) in [
            (
                "ls",
                &["store", "s3.endpoint", "log_level"][..],
                &["primary", "listen", "limits.object", "cache_dir"][..],
            ),
            ("status", &["store", "s3.region"], &["primary", "grant_ttl"]),
            ("export", &["store"], &["primary", "credential_file"]),
            (
                "sync",
                &["primary", "store", "credential_file", "limits.object"],
                &["listen", "grant_ttl", "cache_dir"],
            ),
            (
                "purge",
                &["primary", "store", "credential_file", "gc.grace"],
                &["listen", "grant_ttl", "cache_dir"],
            ),
            ("adopt", &["primary", "store", "primary_ca_file"], &["listen", "limits.object"]),
            ("demo", &["primary", "s3.endpoint"], &["store", "cache_dir", "listen"]),
            ("git-credential", &["primary"], &["store", "log_level", "credential_file"]),
            ("completions", &[], &["store", "log_level", "primary"]),
        ] {
            for key in used {
                assert!(has(command, key), "{command} does not show {key}");
            }
            for key in not {
                assert!(!has(command, key), "{command} shows {key}");
            }
        }
        let short = command.find_subcommand_mut("serve").unwrap().render_help().to_string();
        assert!(short.contains("--store") && !short.contains("--limits-object"), "{short}");
    }

    #[test]
    fn a_flag_that_a_command_does_not_use_is_taken() {
        let line = ["packmirror", "ls", "--listen", "127.0.0.1:0", "--store", "/s"];
        let matches = flags::fitted(Cli::command()).try_get_matches_from(line).unwrap();
        let cli = Cli::from_arg_matches(&matches).unwrap();
        assert_eq!(cli.flags.get("listen"), Some("127.0.0.1:0"));
        assert_eq!(cli.flags.get("store"), Some("/s"));
        let matches = flags::fitted(Cli::command())
            .try_get_matches_from(["packmirror", "--store", "/s", "ls"])
            .unwrap();
        assert_eq!(Cli::from_arg_matches(&matches).unwrap().flags.get("store"), Some("/s"));
    }
}
