//! Runs packmirror: nodes that serve, and the other commands, as child processes.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::git::{Output, clean, finish};
use crate::wire::{self, Reply};
use crate::world::{SOON, World, eventually, passthrough};

/// How one node or command is started.
#[derive(Clone)]
pub struct Setup {
    folder: PathBuf,
    primary: String,
    store: String,
    pub cache: PathBuf,
    settings: Vec<String>,
    env: Vec<(String, String)>,
    /// Where it listens: a free port, or one that it has again after a restart.
    listen: String,
    /// The most private memory the process may have, in bytes.
    memory: Option<u64>,
    /// What the program is started by: a command and its first arguments.
    within: Vec<String>,
}

impl Setup {
    pub fn new(world: &World, primary: &str) -> Self {
        Setup {
            folder: world.folder("node"),
            primary: primary.to_owned(),
            store: world.store.url.clone(),
            cache: world.unused("cache"),
            env: Vec::new(),
            listen: "127.0.0.1:0".into(),
            memory: None,
            within: Vec::new(),
            settings: vec![
                "log_format = \"text\"".into(),
                "log_level = \"debug\"".into(),
                // No load balancer has to notice.
                "drain_delay = \"0s\"".into(),
            ],
        }
    }

    /// Adds a line to the settings file, e.g. `grant_ttl = "1s"`; the later of two lines for a key counts.
    pub fn set(mut self, line: &str) -> Self {
        let key = line.split('=').next().unwrap_or_default().trim().to_owned();
        self.settings.retain(|l| l.split('=').next().unwrap_or_default().trim() != key);
        self.settings.push(line.to_owned());
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Lets the process have at most `bytes` of private memory (`RLIMIT_DATA`): it ends where it would take more.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Starts the program by another command, which gets it as its last arguments.
    pub fn within(mut self, command: &[&str]) -> Self {
        self.within = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Lets the process open at most `n` files.
    pub fn files(self, n: u64) -> Self {
        self.within(&["prlimit", &format!("--nofile={n}")])
    }

    /// Starts the program with this umask, in octal digits.
    pub fn umask(self, mask: &str) -> Self {
        self.within(&["sh", "-c", "umask \"$0\" && exec \"$@\"", mask])
    }

    /// Lets it listen on a port of its own, also after a restart.
    pub fn port(mut self, port: u16) -> Self {
        self.listen = format!("127.0.0.1:{port}");
        self
    }

    pub fn store(mut self, url: &str) -> Self {
        self.store = url.into();
        self
    }

    pub fn cache(mut self, dir: &Path) -> Self {
        self.cache = dir.to_owned();
        self
    }

    fn base(&self, first: &[&str], cache: &Path) -> Command {
        let file = self.folder.join("packmirror.toml");
        std::fs::write(&file, self.settings.join("\n") + "\n").expect("a settings file");
        let mut words = self.within.clone();
        if let Some(bytes) = self.memory {
            words.extend(["prlimit".to_owned(), format!("--data={bytes}")]);
        }
        words.push(env!("CARGO_BIN_EXE_packmirror").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        clean(&mut command);
        for (key, value) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("AWS_") {
                command.env(key, value);
            }
        }
        command.current_dir(&self.folder).args(first);
        command.arg("--config").arg(&file).args(["--primary", &self.primary, "--store", &self.store]);
        command.arg("--cache-dir").arg(cache).env("RUST_BACKTRACE", "1");
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// The words of another command for a shell, with a cache directory of its own.
    pub fn line(&self, args: &[&str], cache: &Path) -> String {
        let command = self.base(args, cache);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    /// Starts a node and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Node {
        match self.launch() {
            Ok(node) => node,
            Err((status, log)) => panic!("packmirror serve ended at once ({status}):\n{log}"),
        }
    }

    /// Starts a node; gives its exit status and log when it ends instead of getting ready.
    pub fn launch(self) -> Result<Node, (ExitStatus, String)> {
        let mut node = Node { setup: self, child: None, url: String::new() };
        if passthrough() {
            node.url = node.setup.primary.trim_end_matches('/').to_owned();
            return Ok(node);
        }
        match node.spawn() {
            None => Ok(node),
            Some(status) => Err((status, node.log())),
        }
    }

    /// Starts another command, whose words nobody reads, with a cache directory that it may make.
    pub fn begin(&self, args: &[&str], cache: &Path) -> Child {
        let mut command = self.base(args, cache);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("packmirror starts")
    }

    /// Runs another command to its end, with a cache directory of its own as one does beside a running node.
    pub fn command(&self, args: &[&str]) -> Output {
        let cache = tempfile::tempdir_in(&self.folder).expect("a temporary directory");
        finish(self.base(args, cache.path()), b"", Duration::from_secs(60))
    }
}

/// A running `packmirror serve`, killed when it goes out of scope; its log is printed if the test failed.
pub struct Node {
    setup: Setup,
    child: Option<Child>,
    /// `http://127.0.0.1:PORT`
    pub url: String,
}

impl Node {
    /// Starts the process; `Some(status)` if it ended before it was ready.
    fn spawn(&mut self) -> Option<ExitStatus> {
        let port_file = self.setup.folder.join("port");
        let _ = std::fs::remove_file(&port_file);
        let log =
            std::fs::File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.setup.base(&["serve"], &self.setup.cache);
        command.args(["--listen", &self.setup.listen, "--port-file"]).arg(&port_file);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .process_group(0);
        self.child = Some(command.spawn().expect("packmirror starts"));
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().expect("a child")) {
                self.child = None;
                return Some(status);
            }
            let text = std::fs::read_to_string(&port_file).unwrap_or_default();
            let port = text.trim().rsplit(':').next().unwrap_or_default().parse::<u16>();
            if let (Ok(port), true) = (port, text.ends_with('\n') || !text.is_empty()) {
                self.url = format!("http://127.0.0.1:{port}");
                if self.try_get("/readyz").is_ok_and(|r| r.status == 200) {
                    return None;
                }
            }
            assert!(Instant::now() < end, "packmirror is not ready after {SOON:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The address for a repository.
    pub fn repo(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// The address with credentials in it.
    pub fn repo_as(&self, user: &str, password: &str, path: &str) -> String {
        format!("{}/{path}", self.url.replacen("http://", &format!("http://{user}:{password}@"), 1))
    }

    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub fn cache(&self) -> &Path {
        &self.setup.cache
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running node").id()
    }

    /// A line of `/proc/PID/status` with a size, in bytes: `RssAnon`, `VmHWM`.
    pub fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_default() * 1024
    }

    pub fn log_path(&self) -> PathBuf {
        self.setup.folder.join("log")
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Waits for a line of the log that contains all of `words`.
    #[track_caller]
    pub fn logged(&self, words: &[&str]) -> String {
        let what = format!("a log line with {words:?}");
        eventually(&what, || {
            self.log().lines().find(|l| words.iter().all(|w| l.contains(w))).map(str::to_owned)
        })
    }

    pub fn try_get(&self, path: &str) -> std::io::Result<Reply> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address());
        wire::raw(self.address(), head.as_bytes())
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.try_get(path).expect("an answer")
    }

    /// The sum of all series of a counter or gauge whose labels contain every one of `labels`, e.g. `source="bucket"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        if passthrough() {
            return 0.0;
        }
        let text = self.get("/metrics").text();
        let series = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            let exact = found.is_empty() || found.starts_with('{');
            (exact && labels.iter().all(|l| found.contains(l))).then(|| value.parse::<f64>().ok())?
        });
        series.sum()
    }

    /// How many fetches were answered from the bucket so far.
    pub fn answered_from_bucket(&self) -> f64 {
        let refs = self.metric("packmirror_answers_total", &["source=\"bucket\"", "reason=\"refs\""]);
        self.metric("packmirror_answers_total", &["source=\"bucket\""]) - refs
    }

    /// How many requests were passed to the primary that a mirror should answer. Live refs are the primary's by
    /// promise, and pushes and other files by nature.
    pub fn passed(&self) -> f64 {
        let by = |reason: &str| {
            let reason = format!("reason=\"{reason}\"");
            self.metric("packmirror_answers_total", &["source=\"primary\"", &reason])
        };
        let rightly: f64 = ["live", "push", "other-endpoint"].into_iter().map(by).sum();
        self.metric("packmirror_answers_total", &["source=\"primary\""]) - rightly
    }

    /// What all `packmirror_answers_total` series say: for messages.
    pub fn answers_text(&self) -> String {
        if passthrough() {
            return String::new();
        }
        let text = self.get("/metrics").text();
        text.lines().filter(|l| l.starts_with("packmirror_answers_total")).collect::<Vec<_>>().join("\n")
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|s| s.success()), "kill -{name}");
    }

    /// Waits until the process has ended by itself.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running node");
        eventually("the end of the process", || child.try_wait().expect("a child"))
    }

    /// Starts the same node again, on the same cache directory.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        if !passthrough()
            && let Some(status) = self.spawn()
        {
            panic!("packmirror serve ended at its restart ({status}):\n{}", self.log());
        }
    }

    /// Runs another packmirror command against the same primary and store.
    pub fn command(&self, args: &[&str]) -> Output {
        self.setup.command(args)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(150);
            eprintln!("--- log of {} (last lines)\n{}\n---", self.url, lines[from..].join("\n"));
        }
    }
}
