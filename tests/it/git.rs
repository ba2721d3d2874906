//! Runs git as a client with nothing of this machine in its environment, and with a bound on its time.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The longest any single command may take before it is killed and the test fails.
const LIMIT: Duration = Duration::from_secs(60);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    pub what: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.status.success()
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub fn must(self) -> Self {
        assert!(self.ok(), "{} failed ({}):\n{}\n{}", self.what, self.status, self.stderr, self.text());
        self
    }

    /// Fails the test unless the command failed and said `words` (any of them) on stderr.
    #[track_caller]
    pub fn must_fail(self, words: &[&str]) -> Self {
        assert!(!self.ok(), "{} succeeded, it should not have:\n{}\n{}", self.what, self.stderr, self.text());
        let said = words.is_empty() || words.iter().any(|w| self.stderr.contains(w));
        assert!(said, "{} failed without any of {words:?}:\n{}", self.what, self.stderr);
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn line(&self) -> String {
        self.text().trim_end().to_owned()
    }

    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }
}

/// A git command under construction.
#[derive(Clone)]
pub struct Git {
    dir: PathBuf,
    config: Vec<(String, String)>,
    limit: Duration,
}

/// The git in the path, by its whole name. A program that is looked up in a changed environment is started by a fork, which
/// copies the page tables of a test process of a gigabyte each time.
pub fn program() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut all = std::env::split_paths(&path).map(|folder| folder.join("git"));
        all.find(|program| program.is_file()).expect("git in the path")
    })
}

/// git in `dir`.
pub fn git(dir: impl AsRef<Path>) -> Git {
    Git { dir: dir.as_ref().to_owned(), config: Vec::new(), limit: LIMIT }
}

impl Git {
    /// Sets a configuration value for this command and all commands it starts.
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Gives the command so much time.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn protocol(self, version: u8) -> Self {
        self.config("protocol.version", &version.to_string())
    }

    /// Runs `git <line>`, split at spaces, and wants it to succeed.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        self.try_run(line).must()
    }

    pub fn try_run(&self, line: &str) -> Output {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.args(&words)
    }

    pub fn args(&self, args: &[&str]) -> Output {
        self.with_input(args, b"")
    }

    pub fn with_input(&self, args: &[&str], input: &[u8]) -> Output {
        finish(self.command(args), input, self.limit)
    }

    /// The command itself, for tests that want to hold the process.
    pub fn command(&self, args: &[&str]) -> Command {
        let chosen = std::env::var_os("PACKMIRROR_TEST_GIT");
        let mut command = Command::new(chosen.unwrap_or_else(|| program().into()));
        command.current_dir(&self.dir).args(args);
        clean(&mut command);
        let fixed = [
            ("user.name", "Tester"),
            ("user.email", "tester@example.com"),
            ("init.defaultBranch", "main"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("advice.detachedHead", "false"),
            ("protocol.file.allow", "always"),
            ("pack.threads", "1"),
            ("credential.helper", ""),
        ];
        let fixed = fixed.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        let config: Vec<_> = fixed.chain(self.config.iter().cloned()).collect();
        command.env("GIT_CONFIG_COUNT", config.len().to_string());
        for (n, (key, value)) in config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{n}"), key).env(format!("GIT_CONFIG_VALUE_{n}"), value);
        }
        command
    }
}

/// Takes this machine's settings out of a command's environment: what a test sees must not depend on them.
pub fn clean(command: &mut Command) {
    static HOME: OnceLock<tempfile::TempDir> = OnceLock::new();
    let home = HOME.get_or_init(|| tempfile::tempdir().expect("a temporary directory"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .env("LC_ALL", "C.UTF-8")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000");
    for key in ["TMPDIR", "LD_LIBRARY_PATH", "GIT_EXEC_PATH", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(key) {
            command.env(key, value);
        }
    }
}

/// Runs a command to its end, feeding `input`; kills it and all it started when `limit` has passed.
pub fn finish(mut command: Command, input: &[u8], limit: Duration) -> Output {
    let what = format!("{:?} {:?}", command.get_program(), command.get_args().collect::<Vec<_>>());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let mut stdout = child.stdout.take().expect("piped");
    let mut stderr = child.stderr.take().expect("piped");
    let (status, out, err) = std::thread::scope(|s| {
        s.spawn(move || {
            // A command that does not read its input closes the pipe: that is its business.
            let _ = stdin.write_all(input);
        });
        let out = s.spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.read_to_end(&mut bytes);
            bytes
        });
        let err = s.spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            bytes
        });
        let end = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        let status = loop {
            match child.try_wait().expect("a child can be waited for") {
                Some(status) => break Some(status),
                None if Instant::now() > end => {
                    let group = format!("-{}", child.id());
                    let _ = Command::new("kill").args(["-9", "--", &group]).status();
                    let _ = child.wait();
                    break None;
                }
                None => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        (status, out.join().expect("reader"), err.join().expect("reader"))
    });
    let stderr = String::from_utf8_lossy(&err).into_owned();
    let Some(status) = status else { panic!("{what} did not end within {limit:?}:\n{stderr}") };
    Output { what, status, stdout: out, stderr }
}
