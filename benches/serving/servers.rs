//! The servers under test: `git http-backend` behind nginx, and packmirror in front of that.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client::{ask, page};
use crate::procs::Procs;
use crate::repo::PRIMARY;
use crate::requests::{Repository, fetch};
use crate::shell::{Server, find, free_port, git};
use crate::{Result, requests};

/// How long a server may take to start, and a mirror to be made.
pub const START: Duration = Duration::from_secs(30);
pub const SYNC: Duration = Duration::from_secs(3600);
/// How many requests fcgiwrap answers at a time.
const FCGI_CHILDREN: usize = 8;
/// Between two looks at a page of a server.
const LOOK: Duration = Duration::from_millis(50);

/// A server that can be asked and measured.
pub struct Subject {
    pub name: &'static str,
    /// Host and port.
    pub address: String,
    pub procs: Procs,
    /// Its counters say whether the primary had to answer.
    pub mirror: bool,
    /// They end with it.
    pub servers: Vec<Server>,
}

/// Starts nginx with `git http-backend` for the repositories in `root`.
pub fn start_git(root: &Path, run: &Path, port: u16) -> Result<Subject> {
    let (nginx, fcgiwrap) = (find("nginx", "nginx-light")?, find("fcgiwrap", "fcgiwrap")?);
    let backend = PathBuf::from(git(root, &["--exec-path"])?.trim()).join("git-http-backend");
    let (times, backend) = (run.join("git.times"), timed(&backend, run)?);
    let socket = run.join("fcgi.sock");
    let mut command = Command::new(fcgiwrap);
    command.args(["-c", &FCGI_CHILDREN.to_string(), "-s"]).arg(format!("unix:{}", socket.display()));
    let fcgi = Server::start("fcgiwrap", command, run)?;
    let config = run.join("nginx.conf");
    std::fs::write(&config, nginx_config(root, run, &backend, &socket, port)?)?;
    let mut command = Command::new(nginx);
    command.arg("-p").arg(run).arg("-e").arg(run.join("nginx-error.log")).arg("-c").arg(&config);
    let mut servers = vec![fcgi, Server::start("nginx", command, run)?];
    let address = format!("127.0.0.1:{port}");
    let info = format!("/{PRIMARY}/info/refs?service=git-upload-pack");
    until(START, "git behind nginx", &mut servers, || Ok(page(&address, &info).is_ok()))?;
    // fcgiwrap and its children, nginx's master and two workers.
    let processes = 1 + FCGI_CHILDREN + 3;
    Ok(Subject {
        name: "git",
        address,
        procs: procs(&servers, processes, Some(times))?,
        mirror: false,
        servers,
    })
}

/// A script in place of `git http-backend` that notes what it cost: fcgiwrap does not wait for its children, so the
/// system adds their time to nobody's. Bash, since its `time` counts in milliseconds; its own time is not counted.
fn timed(backend: &Path, run: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let (script, bash) = (run.join("timed-backend"), find("bash", "bash")?);
    std::fs::write(run.join("git.times"), "")?;
    let text = format!(
        "#!{}\nexec 3>&2 2>>'{}'\nTIMEFORMAT='%U %S'\ntime '{}' 2>&3 3>&-\n",
        bash.display(),
        run.join("git.times").display(),
        backend.display()
    );
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

fn nginx_config(root: &Path, run: &Path, backend: &Path, socket: &Path, port: u16) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    // Workers of a master that root has started would become another user, who may not read the repositories.
    let user = if std::fs::metadata("/proc/self")?.uid() == 0 { "user root;\n" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", run.display()))
        .concat();
    Ok(format!(
        "{user}daemon off;
worker_processes 2;
pid {run}/nginx.pid;
error_log {run}/nginx-error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
{temporary}    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        location / {{
            fastcgi_pass unix:{socket};
            fastcgi_buffering off;
            fastcgi_read_timeout 600s;
            fastcgi_param SCRIPT_FILENAME {backend};
            fastcgi_param GIT_PROJECT_ROOT {root};
            fastcgi_param GIT_HTTP_EXPORT_ALL 1;
            fastcgi_param PATH_INFO $uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param REMOTE_ADDR $remote_addr;
        }}
    }}
}}
",
        run = run.display(),
        socket = socket.display(),
        backend = backend.display(),
        root = root.display(),
    ))
}

/// Starts a mirror of `primary` with its directories in `work`, and waits until it serves both repositories itself.
pub fn start_mirror(
    freshness: &'static str,
    binary: &Path,
    primary: &Subject,
    work: &Path,
    run: &Path,
    repositories: &[&Repository],
) -> Result<Subject> {
    let port_file = run.join(format!("{freshness}.port"));
    let mut command = Command::new(binary);
    command.args(["serve", "--listen", "127.0.0.1:0", "--freshness", freshness, "--compare-every", "1h"]);
    command.arg("--primary").arg(format!("http://{}", primary.address)).arg("--port-file").arg(&port_file);
    command
        .arg("--store")
        .arg(work.join("store"))
        .arg("--cache-dir")
        .arg(work.join(format!("cache-{freshness}")));
    if freshness == "bounded" {
        command.args(["--max-age", "2h", "--grant-ttl", "5m"]);
    }
    let mut servers = vec![Server::start(freshness, command, run)?];
    until(START, "packmirror", &mut servers, || Ok(port_file.exists()))?;
    let address = format!("127.0.0.1:{}", std::fs::read_to_string(&port_file)?.trim());
    for repository in repositories {
        eprintln!("waiting for the {freshness} mirror of {}", repository.name);
        until(SYNC, "the mirror", &mut servers, || mirrored(&address, repository, freshness))?;
    }
    Ok(Subject { name: freshness, address, procs: procs(&servers, 1, None)?, mirror: true, servers })
}

/// Whether the mirror at `address` answers for `repository` without its primary. If not, it has been told to compare,
/// and that has ended.
pub fn mirrored(address: &str, repository: &Repository, freshness: &str) -> Result<bool> {
    let runs =
        || Ok::<f64, crate::Error>(counter(&page(address, "/metrics")?, "packmirror_sync_runs_total", &[]));
    let (before, passed) = (runs()?, passed_on(address)?);
    let refs = ask(address, &requests::ls_refs(repository, &[]), None)?;
    ask(address, &fetch(repository, &["deepen 1"], std::slice::from_ref(&repository.head), &[]), None)?;
    if passed_on(address)? == passed && (freshness == "strict" || refs.head.contains("\npackmirror-age:")) {
        return Ok(true);
    }
    // A want that nobody has makes it compare; what the primary says to that does not matter.
    let _ = ask(address, &fetch(repository, &["deepen 1"], &[repository.unknown()], &[]), None);
    let end = Instant::now() + Duration::from_secs(10);
    while runs()? == before && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
    Ok(false)
}

/// How many requests the primary answered that a mirror should answer.
pub fn passed_on(address: &str) -> Result<f64> {
    let text = page(address, "/metrics")?;
    let answers = |labels: &[&str]| counter(&text, "packmirror_answers_total", labels);
    Ok(answers(&["source=\"primary\""]) - answers(&["source=\"primary\"", "reason=\"live\""]))
}

/// The sum of the series of a counter that have these labels.
pub fn counter(text: &str, name: &str, labels: &[&str]) -> f64 {
    let series = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

pub fn procs(servers: &[Server], count: usize, log: Option<PathBuf>) -> Result<Procs> {
    Procs::new(servers.iter().map(Server::group).collect(), count, log)
}

/// Waits until `ready`, as long as the servers live.
pub fn until(
    patience: Duration,
    what: &str,
    servers: &mut [Server],
    ready: impl Fn() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + patience;
    loop {
        servers.iter_mut().try_for_each(Server::alive)?;
        if ready()? {
            return Ok(());
        }
        if Instant::now() > end {
            let logs: Vec<String> = servers.iter().map(Server::log_end).collect();
            return Err(format!("{what} is not ready:\n{}", logs.join("\n")).into());
        }
        std::thread::sleep(LOOK);
    }
}

/// The port of the primary: a mirror keeps its store for one primary, so it is the same one in each run.
pub fn primary_port(work: &Path) -> Result<u16> {
    let file = work.join("port");
    if let Ok(text) = std::fs::read_to_string(&file) {
        return Ok(text.trim().parse()?);
    }
    let port = free_port()?;
    std::fs::write(file, port.to_string())?;
    Ok(port)
}
