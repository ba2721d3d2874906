//! Running the git binary for the demo, apart from whatever repository the demo was started in.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::DemoError;

/// Variables that would point git at another repository than the one we name.
const MISLEADING: &[&str] = &[
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_QUARANTINE_PATH",
    "GIT_PROTOCOL",
];

/// Lines of a failed command's messages that are worth showing.
const LINES_SHOWN: usize = 8;

/// How git is run.
#[derive(Debug, Clone)]
pub struct Git {
    /// A directory without settings of the user's; `None` keeps the user's own (credential helpers of a real
    /// primary live there).
    home: Option<PathBuf>,
    /// A header, and whom it is shown to.
    shown: Option<(SecretString, Vec<String>)>,
}

impl Git {
    /// Runs git with no settings but its own defaults.
    pub fn plain(home: &Path) -> Self {
        Self { home: Some(home.to_owned()), shown: None }
    }

    /// Runs git with the user's settings.
    pub fn of_the_user() -> Self {
        Self { home: None, shown: None }
    }

    /// Shows `header` to the server at `url` from now on.
    pub fn showing(mut self, header: SecretString, url: &str) -> Self {
        self.shown = Some((header, vec![url.to_owned()]));
        self
    }

    /// Shows what it shows to the server at `url` too.
    pub fn show_to(&mut self, url: &str) {
        if let Some((_, urls)) = &mut self.shown {
            urls.push(url.to_owned());
        }
    }

    /// Says which git there is, or how to get one.
    pub async fn version(&self) -> Result<String, DemoError> {
        let text = self.run(Path::new("/"), &["version"]).await?;
        Ok(text.trim().trim_start_matches("git version ").to_owned())
    }

    /// Runs `git ARGS` in `dir` and gives what it printed.
    pub async fn run(&self, dir: &Path, args: &[&str]) -> Result<String, DemoError> {
        self.feed(dir, args, Vec::new()).await
    }

    /// Runs `git ARGS` in `dir` with `input` on its standard input.
    pub async fn feed(&self, dir: &Path, args: &[&str], input: Vec<u8>) -> Result<String, DemoError> {
        let shown = || format!("git {}", args.join(" "));
        let mut child = self.command(dir).args(args).spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DemoError::NoGit,
            _ => DemoError::Start { program: "git".into(), source },
        })?;
        // Input and output have to flow at the same time, or both sides may wait for each other.
        let pipe = child.stdin.take();
        let write = async move {
            if let Some(mut pipe) = pipe {
                // A git that ends early says why by its exit code.
                let _ = pipe.write_all(&input).await;
            }
        };
        let (out, ()) = tokio::join!(child.wait_with_output(), write);
        let out = out.map_err(|source| DemoError::Start { program: "git".into(), source })?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&out.stderr);
        Err(DemoError::Command {
            command: shown(),
            status: out.status.to_string(),
            said: tail(&said, LINES_SHOWN),
        })
    }

    fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new("git");
        command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        for name in MISLEADING {
            command.env_remove(name);
        }
        // The mirror is on this machine; a proxy could not reach it.
        let direct = std::env::var("no_proxy").or_else(|_| std::env::var("NO_PROXY")).unwrap_or_default();
        command.env(
            "no_proxy",
            if direct.is_empty() { "127.0.0.1".into() } else { format!("{direct},127.0.0.1") },
        );
        command.env("LC_ALL", "C");
        if let Some((header, urls)) = &self.shown {
            command.envs(settings(header, urls));
        }
        if let Some(home) = &self.home {
            command.env("HOME", home).env("XDG_CONFIG_HOME", home);
            command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
            command.env("GIT_TERMINAL_PROMPT", "0");
            command.env_remove("GIT_CONFIG_COUNT").env_remove("GIT_CONFIG_PARAMETERS");
            for role in ["AUTHOR", "COMMITTER"] {
                command
                    .env(format!("GIT_{role}_NAME"), "Demo")
                    .env(format!("GIT_{role}_EMAIL"), "demo@example.com");
            }
        }
        command
    }
}

/// Settings of git as variables of its environment, behind those that are there: a header for each of `urls`. They stand on no
/// command line.
fn settings(header: &SecretString, urls: &[String]) -> Vec<(String, String)> {
    let there = std::env::var("GIT_CONFIG_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    let mut out = vec![("GIT_CONFIG_COUNT".into(), (there + urls.len()).to_string())];
    for (number, url) in (there..).zip(urls) {
        out.push((format!("GIT_CONFIG_KEY_{number}"), format!("http.{url}.extraHeader")));
        out.push((format!("GIT_CONFIG_VALUE_{number}"), header.expose_secret().to_owned()));
    }
    out
}

/// Gives the last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
