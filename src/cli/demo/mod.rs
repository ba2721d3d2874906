//! `packmirror demo`: the mirror at work, from outside: a primary, nodes as processes, and git in between.
//!
//! Everything is seen as a user sees it: the nodes are this program started with `serve`, clients are the git
//! binary, results are proven with git. It cleans up after itself, also after a failure or Ctrl-C.
//! Borders: knows no room of the mirror; only the command line, `/readyz` and `/metrics`.

mod access;
mod counters;
mod git;
mod node;
mod primary;
mod proof;
mod story;

use std::path::Path;
use std::time::Instant;

use super::exit::{Exit, Failure};
use super::flags::Flags;
use crate::config::Settings;
use access::{Access, access};
use git::Git;
use node::{Node, Plan};
use story::{Story, direct_address};

const EXAMPLES: &str = "\
Examples:
  packmirror demo
  packmirror demo --primary https://git.example.com --repo team/app.git
  packmirror demo --primary /srv/git --repo app.git --keep

Without --primary a small one is made, with a few hundred commits. To a real primary nothing is pushed. What it asks for is
found as git finds it (credential helpers, or a question), or in the settings (credential_file).
Needs the git binary. Directories are made under TMPDIR and removed at the end.";

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The repository on the primary given with --primary [default: a small one is made]
    #[arg(long, value_name = "NAME")]
    pub repo: Option<String>,
    /// Leave the directories for a look around [default: they are removed]
    #[arg(long)]
    pub keep: bool,
}

/// Settings that the demo chooses itself.
const CHOSEN: &[&str] = &["primary", "store", "cache_dir", "listen", "log_format"];

/// Why the demo did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// There is no git binary.
    #[error("the demo needs the git binary, and there is none on PATH; install git and try again")]
    NoGit,
    /// A program does not start.
    #[error("{program} cannot be started: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// git failed.
    #[error("`{command}` failed ({status}):\n{said}")]
    Command {
        /// The command.
        command: String,
        /// Its exit status.
        status: String,
        /// The last lines it said.
        said: String,
    },
    /// The mirror failed.
    #[error("the mirror failed: {what}; the end of its log:\n{log}")]
    Node {
        /// What happened.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// The two sides are not the same.
    #[error("the mirror differs from the primary ({what}): {first}")]
    Differs {
        /// What was compared.
        what: &'static str,
        /// The first difference.
        first: String,
    },
    /// Answers did not come from the bucket although the mirror has its copy.
    #[error("the mirror has its copy, but did not answer from it: {answers}")]
    NotMirrored {
        /// Where answers came from.
        answers: String,
    },
    /// The service credential cannot be used.
    #[error(transparent)]
    Credential(#[from] crate::primary::BadCredential),
    /// The node's HTTP side did not answer as it should.
    #[error("the mirror's own pages did not answer: {0}")]
    Http(#[from] reqwest::Error),
    /// The disk, mostly.
    #[error("the demo's directory cannot be used: {0}")]
    Disk(#[from] std::io::Error),
}

/// Runs the demo.
pub async fn run(args: &Args, flags: &Flags, settings: &Settings) -> Result<(), Failure> {
    let given = match (flags.get("primary"), &args.repo) {
        (Some(primary), Some(repo)) => Some((absolute(primary)?, repo.trim_matches('/').to_owned())),
        (Some(_), None) => return Err(Failure::usage("say which repository of it: --repo team/app.git")),
        (None, Some(_)) => {
            return Err(Failure::usage("say where that repository is: --primary URL_OR_DIRECTORY"));
        }
        (None, None) => None,
    };
    for name in ["store", "cache_dir", "listen"] {
        if flags.get(name).is_some() {
            let flag = name.replace('_', "-");
            return Err(Failure::usage(format!(
                "the demo makes its own; leave --{flag} away, or use `packmirror serve`"
            )));
        }
    }
    let dir = tempfile::Builder::new().prefix("packmirror-demo-").tempdir()?;
    let mut node = None;
    let ended = tokio::select! {
        told = tell(given, flags, settings, dir.path(), &mut node) => told.map_err(Failure::failed),
        () = interrupted() => Err(Failure::new(Exit::Interrupted, "interrupted; cleaning up")),
    };
    // Whatever happened: the last node ends before its directory goes.
    let stopped = match node.take() {
        Some(node) => node.stop().await.map_err(Failure::failed),
        None => Ok(()),
    };
    if args.keep {
        let path = dir.keep();
        println!("\nEverything is left in {}", path.display());
    } else if let Err(error) = remove(dir).await {
        eprintln!("packmirror: {error}");
    }
    ended?;
    stopped
}

async fn tell(
    given: Option<(String, String)>,
    flags: &Flags,
    settings: &Settings,
    dir: &Path,
    node: &mut Option<Node>,
) -> Result<(), DemoError> {
    let ours = given.is_none();
    let git = if ours { Git::plain(dir) } else { Git::of_the_user() };
    let version = git.version().await?;
    println!("packmirror {}, git {version}\n", env!("CARGO_PKG_VERSION"));
    let begun = Instant::now();
    let (primary, repo, words) = match given {
        Some((primary, repo)) => {
            let words = format!("The primary is {primary}, the repository {repo}. Nothing is pushed to it.");
            (primary, repo, words)
        }
        None => {
            let made = primary::make(&git, &dir.join("primary")).await?;
            let words = format!(
                "A small primary was made: {} with {} commits, {} branches, {} tags.",
                primary::REPO,
                made.commits,
                made.branches,
                made.tags
            );
            (made.dir.display().to_string(), primary::REPO.to_owned(), words)
        }
    };
    let chosen = Flags {
        config: flags.config.clone().filter(|_| !ours),
        given: flags.given.iter().filter(|(name, _)| !CHOSEN.contains(name)).cloned().collect(),
    };
    let direct = direct_address(&primary, &repo);
    let access = if ours { Access::default() } else { access(&git, settings, &direct, dir).await? };
    let git = match access.header {
        Some(header) => git.showing(header, &direct),
        None => git,
    };
    let plan = Plan {
        program: std::env::current_exe()?,
        primary: primary.clone(),
        store: dir.join("bucket"),
        extra: chosen.arguments(),
        credential: access.for_node,
        keep_env: !ours,
    };
    let mut story = Story::new(plan, git, repo, direct, ours, dir.to_owned());
    story.tell(begun, &words);
    story.run(node).await?;
    println!("{}", go_on(if ours { None } else { Some(&primary) }));
    Ok(())
}

/// How to go on after the demo.
fn go_on(primary: Option<&str>) -> String {
    let primary = primary.unwrap_or("https://git.example.com");
    let (program, address) = ("packmirror", "http://127.0.0.1:8080");
    let instead = if primary.contains("://") {
        format!("  git config --global url.\"{address}/\".insteadOf {}/\n", primary.trim_end_matches('/'))
    } else {
        String::new()
    };
    format!(
        "\nHow to go on:\n  {program} serve --primary {primary}\n  git clone {address}/REPOSITORY\n{instead}  \
         {program} serve --help        all settings, an S3 bucket among them\n  \
         {program} doctor --help       what to do when something is not as it should be"
    )
}

/// A directory as an absolute path; a URL as it is.
fn absolute(primary: &str) -> Result<String, Failure> {
    if primary.contains("://") {
        return Ok(primary.to_owned());
    }
    let path = std::fs::canonicalize(primary).map_err(|error| {
        Failure::usage(format!(
            "there is no directory {primary} ({error}); for a host write https://{primary}"
        ))
    })?;
    Ok(path.display().to_string())
}

/// Waits for Ctrl-C or a request to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let one = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = one(SignalKind::interrupt()) => {}
        () = one(SignalKind::terminate()) => {}
        () = one(SignalKind::hangup()) => {}
    }
}

/// Removes the demo's directory. Git processes that were cut off may still be writing into it for a moment.
async fn remove(dir: tempfile::TempDir) -> std::io::Result<()> {
    let path = dir.keep();
    let mut tries = 0;
    loop {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if tries == 20 => return Err(error),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
