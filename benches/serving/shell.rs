//! Running git and servers; whatever was started ends with the bench, however that ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::Result;

/// Process groups of what runs.
static GROUPS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// A server, at the head of a process group of its own.
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts `command`, its output going to a log in `dir`.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = spawn(command).map_err(|error| format!("{name}: {error}"))?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    pub fn group(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of the log when the server has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("{} ended ({status}):\n{}", self.name, self.log_end()).into()),
        }
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(self.group());
        let _ = self.child.wait();
        forget(self.group());
    }
}

/// Starts what will lead a process group, known to the end of the bench from its first moment.
fn spawn(mut command: Command) -> std::io::Result<Child> {
    let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    groups.push(child.id());
    Ok(child)
}

fn forget(group: u32) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != group);
}

fn kill(group: u32) {
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).stderr(Stdio::null()).status();
}

/// Begins a bench, if cargo runs it as one: `run` gets the folder in which it works, which goes with it if none is named.
pub fn bench(
    name: &str,
    is_one: bool,
    work: Option<&Path>,
    run: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    if !is_one {
        println!("run it as `cargo bench --bench {name}`");
        return Ok(());
    }
    end_with_signals()?;
    let temporary = tempfile::tempdir()?;
    let work = work.unwrap_or(temporary.path());
    std::fs::create_dir_all(work)?;
    run(&std::fs::canonicalize(work)?)
}

/// Ends all servers and the bench on Ctrl-C and SIGTERM.
fn end_with_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        });
        // The lock stays held: nothing is started any more.
        let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        groups.iter().for_each(|group| kill(*group));
        std::process::exit(130);
    });
    Ok(())
}

/// A free port of loopback.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where a program lies; servers are often outside of a user's PATH.
pub fn find(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = places.map(|place| place.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| format!("{name} is not installed; in Debian it is in the package {package}").into())
}

/// Runs git in `dir` and gives what it printed.
pub fn git(dir: &Path, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8(feed(dir, args, &mut |_| Ok(()))?)?)
}

/// Runs git with input, which `write` makes as it goes.
pub fn feed(
    dir: &Path,
    args: &[&str],
    write: &mut (dyn FnMut(&mut dyn Write) -> std::io::Result<()> + Send),
) -> Result<Vec<u8>> {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    let mut child = spawn(command)?;
    let group = child.id();
    let stdin = child.stdin.take().ok_or("no stdin")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut stdin = std::io::BufWriter::new(stdin);
            // A git that ends early says why by its exit code.
            let _ = write(&mut stdin).and_then(|()| stdin.flush());
        });
        child.wait_with_output()
    });
    forget(group);
    let output = output?;
    if !output.status.success() {
        return Err(format!("git {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}
