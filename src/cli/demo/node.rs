//! A node as a child process: this very program, started with `serve`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio::process::{Child, Command};

use super::DemoError;
use super::counters::Counters;
use super::git::tail;
use crate::config::keys::ENV_PREFIX;

/// How long a node may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to end after it was asked to.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// Pace of looking.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of a node's log that are shown when something fails.
const LOG_LINES: usize = 15;

/// How nodes of the demo are started.
pub struct Plan {
    /// This program.
    pub program: PathBuf,
    /// The primary, as `--primary` takes it.
    pub primary: String,
    /// The bucket: a directory.
    pub store: PathBuf,
    /// Further arguments of the user's.
    pub extra: Vec<String>,
    /// The service credential, where the user's settings name none.
    pub credential: Option<SecretString>,
    /// Whether `PACKMIRROR__…` variables reach the node: only with a primary of the user's.
    pub keep_env: bool,
}

/// A running node; it is killed if it is dropped.
pub struct Node {
    child: Child,
    log: PathBuf,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    http: reqwest::Client,
}

impl Node {
    /// Starts a node with its cache, port file and log under `dir`, and waits until it is ready.
    pub async fn start(plan: &Plan, dir: &Path) -> Result<Self, DemoError> {
        std::fs::create_dir_all(dir)?;
        let (port_file, log) = (dir.join("port"), dir.join("log"));
        let mut command = Command::new(&plan.program);
        command
            .arg("serve")
            .args(&plan.extra)
            .args(["--listen=127.0.0.1:0", "--log-format=text", "--drain-delay=0s"])
            .arg(format!("--primary={}", plan.primary))
            .arg(format!("--store={}", plan.store.display()))
            .arg(format!("--cache-dir={}", dir.join("cache").display()))
            .arg(format!("--port-file={}", port_file.display()));
        if !plan.keep_env {
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with(ENV_PREFIX) {
                    command.env_remove(name);
                }
            }
        }
        if let Some(secret) = &plan.credential {
            command.env(format!("{ENV_PREFIX}CREDENTIAL"), secret.expose_secret());
        }
        let file = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let start = |source| DemoError::Start { program: plan.program.display().to_string(), source };
        let mut child = command.spawn().map_err(start)?;
        crate::tls::provide();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(start)? {
                return Err(DemoError::Node { what: format!("it ended ({status})"), log: log_tail(&log) });
            }
            let port =
                std::fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse::<u16>().ok());
            if let Some(port) = port {
                let url = format!("http://127.0.0.1:{port}");
                let answer = http.get(format!("{url}/readyz")).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return Ok(Self { child, log, url, http });
                }
            }
            if begun.elapsed() > READY_WITHIN {
                let what = format!("it is not ready after {READY_WITHIN:?}");
                return Err(DemoError::Node { what, log: log_tail(&log) });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads the node's counters.
    pub async fn counters(&self) -> Result<Counters, DemoError> {
        let answer = self.http.get(format!("{}/metrics", self.url)).send().await?.error_for_status()?;
        Ok(Counters::parse(&answer.text().await?))
    }

    /// Waits until the node has finished a sync, for as long as `patience` says so.
    pub async fn synced(&mut self, patience: Duration) -> Result<(), DemoError> {
        use crate::telemetry::metrics::label;
        let begun = Instant::now();
        loop {
            let syncs = self.counters().await?.syncs;
            let count = |result: &str| syncs.get(result).copied().unwrap_or_default();
            if count(label::PUBLISHED) + count(label::UNCHANGED) + count(label::FOLLOWED) > 0 {
                return Ok(());
            }
            let what = match count(label::FAILED) {
                0..3 if begun.elapsed() <= patience => {
                    tokio::time::sleep(LOOK_EVERY * 5).await;
                    continue;
                }
                0..3 => format!("its first sync is not done after {} s", patience.as_secs()),
                failed => format!("its first sync failed {failed} times"),
            };
            return Err(DemoError::Node { what, log: self.log_tail() });
        }
    }

    /// The last lines of the node's log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Kills the node, as a lost machine would end it.
    pub async fn kill(mut self) -> Result<(), DemoError> {
        Ok(self.child.kill().await?)
    }

    /// Asks the node to end (SIGTERM) and waits for it; kills it if it takes too long.
    pub async fn stop(mut self) -> Result<(), DemoError> {
        if let Some(id) = self.child.id() {
            // The standard library can only kill; the shell's builtin sends the gentler signal.
            let asked =
                Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &id.to_string()]).status().await;
            if asked.is_ok_and(|status| status.success())
                && let Ok(ended) = tokio::time::timeout(STOP_WITHIN, self.child.wait()).await
            {
                ended?;
                return Ok(());
            }
        }
        self.kill().await
    }
}

fn log_tail(log: &Path) -> String {
    tail(&std::fs::read_to_string(log).unwrap_or_default(), LOG_LINES)
}
