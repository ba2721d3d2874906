//! What stands in front of nodes in a deployment: nginx or HAProxy with the configurations of `infra/`, as they are but for
//! addresses and certificates, and a certificate authority of the test's own.
//!
//! `Front::start(&world, Kind::Nginx, &[node.address()])` gives `None` after a loud skip where the program is missing
//! (`infra/parts/install.sh proxies`).

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::git::{Git, clean, finish, git};
use crate::world::{SOON, World, eventually, skip};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Haproxy,
}

pub const BOTH: [Kind; 2] = [Kind::Nginx, Kind::Haproxy];

/// A running proxy that ends TLS; stopped when it goes out of scope.
pub struct Front {
    pub kind: Kind,
    /// `https://localhost:PORT`
    pub url: String,
    /// The authority that signed its certificate, in PEM.
    pub ca: PathBuf,
    child: Child,
    dir: PathBuf,
}

impl Front {
    /// Starts it in front of `nodes` (`127.0.0.1:PORT`) and waits until it listens.
    #[track_caller]
    pub fn start(world: &World, kind: Kind, nodes: &[&str]) -> Option<Front> {
        let program = program(kind)?;
        let dir = world.folder("front");
        let port = free_port();
        let ca = certificates(&dir);
        let mut command = Command::new(program);
        match kind {
            Kind::Nginx => {
                std::fs::write(dir.join("site.conf"), nginx(&dir, port, nodes)).expect("a configuration");
                // What a distribution's own nginx.conf has around a site. Started by root, its workers are root's too: the
                // test's directories are for their owner alone.
                let user = if is_root() { "user root root;" } else { "" };
                let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {}/{name};\n", dir.display()))
                    .concat();
                let around = format!(
                    "{user}\npid {0}/pid;\nerror_log {0}/log info;\nevents {{}}\nhttp {{\naccess_log {0}/access;\n{temporary}include {0}/site.conf;\n}}\n",
                    dir.display()
                );
                std::fs::write(dir.join("nginx.conf"), around).expect("a configuration");
                command.arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
                command.args(["-e", "stderr", "-g", "daemon off;"]);
            }
            Kind::Haproxy => {
                let file = dir.join("haproxy.cfg");
                std::fs::write(&file, haproxy(&dir, port, nodes)).expect("a configuration");
                command.arg("-db").arg("-f").arg(file);
            }
        }
        let out = std::fs::File::create(dir.join("out")).expect("a log file");
        command.current_dir(&dir).stdin(Stdio::null());
        command.stdout(out.try_clone().expect("a log file")).stderr(out);
        let child = command.spawn().expect("a proxy starts");
        let mut front = Front { kind, url: format!("https://localhost:{port}"), ca, child, dir };
        eventually("a proxy that listens", || {
            if let Some(status) = front.child.try_wait().expect("a child") {
                panic!("{kind:?} ended at once ({status}):\n{}", front.log());
            }
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        if kind == Kind::Haproxy && !nodes.is_empty() {
            // It takes nodes for up until its first question is answered.
            front.must_answer("/readyz");
        }
        Some(front)
    }

    /// The address for a repository.
    pub fn repo(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// git that trusts this proxy's authority.
    pub fn git(&self, dir: impl AsRef<Path>) -> Git {
        git(dir).config("http.sslCAInfo", self.ca.to_str().expect("a path in UTF-8"))
    }

    /// What curl makes of a path: the status, the head and the body of the answer.
    pub fn curl(&self, path: &str, options: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        clean(&mut command);
        command.args(["-sS", "-i", "--noproxy", "*", "--max-time", "20", "--cacert"]).arg(&self.ca);
        command.args(options).arg(format!("{}{path}", self.url));
        let out = finish(command, b"", SOON * 2).must();
        let text = out.text();
        let status = text.split(' ').nth(1).and_then(|word| word.trim().parse().ok()).unwrap_or(0);
        (status, text)
    }

    #[track_caller]
    fn must_answer(&self, path: &str) {
        eventually(&format!("{path} through the proxy"), || (self.curl(path, &[]).0 == 200).then_some(()));
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        ["out", "log", "access"]
            .map(|name| std::fs::read_to_string(self.dir.join(name)).unwrap_or_default())
            .concat()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // nginx has children, which it ends itself when it is asked to.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- {:?}\n{}\n---", self.kind, lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}

/// The program, or a skip.
fn program(kind: Kind) -> Option<PathBuf> {
    let name = match kind {
        Kind::Nginx => "nginx",
        Kind::Haproxy => "haproxy",
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        skip(&format!("{name} (infra/parts/install.sh proxies)"));
    }
    found
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A file of `infra/`.
fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("infra").join(name);
    std::fs::read_to_string(path).expect("a configuration that is shipped")
}

/// Puts `new` in place of `old`, which stands there once.
#[track_caller]
fn put(text: &mut String, old: &str, new: &str) {
    assert_eq!(text.matches(old).count(), 1, "{old:?} stands once in the configuration");
    *text = text.replacen(old, new, 1);
}

/// The shipped lines for two nodes make way for as many as there are.
#[track_caller]
fn put_nodes(text: &mut String, nodes: &[&str], line: impl Fn(usize, &str) -> String) {
    let all: Vec<String> = nodes.iter().enumerate().map(|(n, node)| line(n + 1, node)).collect();
    put(text, &format!("\t{}\n", line(1, "10.0.0.11:8080")), &format!("\t{}\n", all.join("\n\t")));
    put(text, &format!("\t{}\n", line(2, "10.0.0.12:8080")), "");
}

fn nginx(dir: &Path, port: u16, nodes: &[&str]) -> String {
    let mut text = shipped("nginx.conf");
    put(&mut text, "listen 443 ssl;", &format!("listen 127.0.0.1:{port} ssl;"));
    put(&mut text, "/etc/nginx/mirror.crt", &dir.join("leaf.crt").display().to_string());
    put(&mut text, "/etc/nginx/mirror.key", &dir.join("leaf.key").display().to_string());
    put(&mut text, "server_name mirror.example.com;", "server_name localhost;");
    put_nodes(&mut text, nodes, |_, node| format!("server {node} max_fails=0;"));
    text
}

fn haproxy(dir: &Path, port: u16, nodes: &[&str]) -> String {
    let mut text = shipped("haproxy.cfg");
    put(&mut text, "bind :443 ", &format!("bind 127.0.0.1:{port} "));
    put(&mut text, "/etc/haproxy/mirror.pem", &dir.join("leaf.pem").display().to_string());
    put_nodes(&mut text, nodes, |n, node| format!("server node{n} {node}"));
    if !is_root() {
        put(&mut text, "\tuser haproxy\n\tgroup haproxy\n", "");
    }
    text
}

/// Makes an authority and a certificate of it for this machine; gives the authority's.
#[track_caller]
pub fn certificates(dir: &Path) -> PathBuf {
    let openssl = |line: &str| {
        let mut command = Command::new("openssl");
        clean(&mut command);
        command.current_dir(dir).args(line.split(' '));
        finish(command, b"", SOON).must();
    };
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("a file");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority.of.a.test"));
    openssl(&format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN=localhost"));
    openssl(
        "x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out leaf.crt -days 2 -extfile names",
    );
    let both = ["leaf.crt", "leaf.key"].map(|name| std::fs::read_to_string(dir.join(name)).expect("a file"));
    std::fs::write(dir.join("leaf.pem"), both.concat()).expect("a file");
    dir.join("ca.crt")
}

/// A port that nothing listens on and that the system gives nobody by itself, for what comes back on the same one.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id().wrapping_mul(61);
    let ports = (0..12_000u32).map(|_| {
        let n = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        20_000 + (first.wrapping_add(n) % 12_000) as u16
    });
    let mut free = ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("a free port below the system's own range")
}
