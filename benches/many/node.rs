//! The node that is measured.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::Result;
use crate::client::page;
use crate::shell::Server;

/// How long it may take to start and to end.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at a page of it.
const LOOK: Duration = Duration::from_millis(100);
/// The same until it is ready.
const LOOK_CLOSELY: Duration = Duration::from_millis(2);

/// A running node.
pub struct Node {
    pub address: String,
    /// How long it took until it was ready.
    pub ready_after: Duration,
    begun: Instant,
    server: Mutex<Server>,
}

/// What a process takes.
pub struct Usage {
    /// Bytes of anonymous memory.
    pub anonymous: u64,
    /// Bytes of files that are in its memory.
    pub files: u64,
    pub mappings: usize,
    /// Seconds, without those of children.
    pub cpu: f64,
}

impl Node {
    /// Starts a node of `primary`, and waits until it is ready.
    pub fn start(
        binary: &Path,
        primary: &str,
        store: &str,
        cache: &Path,
        run: &Path,
        every: Duration,
        with: &[String],
    ) -> Result<Self> {
        let port_file = run.join("node.port");
        let _ = std::fs::remove_file(&port_file);
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--drain-delay", "0s", "--grant-ttl", "5m"]);
        command.arg("--primary").arg(format!("http://{primary}")).arg("--port-file").arg(&port_file);
        command.arg("--store").arg(store).arg("--cache-dir").arg(cache);
        command.arg("--compare-every").arg(format!("{}s", every.as_secs()));
        command.args(["--max-new-per-minute", "1000000", "--max-repositories", "1000000"]).args(with);
        let begun = Instant::now();
        let mut server = Server::start("node", command, run)?;
        let ready = || -> Option<String> {
            let port = std::fs::read_to_string(&port_file).ok()?;
            let address = format!("127.0.0.1:{}", port.trim());
            page(&address, "/readyz").is_ok().then_some(address)
        };
        let address = loop {
            server.alive()?;
            if let Some(address) = ready() {
                break address;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("the node is not ready:\n{}", server.log_end()).into());
            }
            std::thread::sleep(LOOK_CLOSELY);
        };
        Ok(Self { address, ready_after: begun.elapsed(), begun, server: Mutex::new(server) })
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits until something is so.
    pub fn until(&self, patience: Duration, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !is_so(self)? {
            let mut server = self.server.lock().unwrap();
            server.alive()?;
            if begun.elapsed() > patience {
                return Err(format!("it does not come to pass:\n{}", server.log_end()).into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The page of metrics.
    pub fn metrics(&self) -> Result<String> {
        page(&self.address, "/metrics")
    }

    /// The sum of a metric's series that have these labels.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(crate::servers::counter(&self.metrics()?, name, labels))
    }

    /// How many repositories it knows.
    pub fn known(&self) -> Result<f64> {
        self.metric("packmirror_repos", &[])
    }

    /// What it takes now.
    pub fn usage(&self) -> Result<Usage> {
        let pid = self.server.lock().unwrap().group();
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let status = read("status")?;
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or_default() << 10
        };
        let stat = read("stat")?;
        let fields: Vec<&str> = stat[stat.rfind(')').ok_or("no stat")? + 2..].split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse().unwrap_or(0)).sum();
        Ok(Usage {
            anonymous: bytes("RssAnon:"),
            files: bytes("RssFile:"),
            mappings: read("maps")?.lines().count(),
            cpu: ticks as f64 / 100.0,
        })
    }

    /// Ends it as a person does, and waits for its end.
    pub fn end(self) -> Result<()> {
        let mut server = self.server.into_inner().unwrap();
        let pid = server.group().to_string();
        Command::new("kill").args(["-INT", &pid]).status()?;
        let begun = Instant::now();
        while server.alive().is_ok() {
            if begun.elapsed() > PATIENCE {
                return Err("the node does not end".into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
