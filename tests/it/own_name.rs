//! A region in which the primary's own name leads to the mirror: nginx ends TLS with a certificate for that name, in front
//! of the primary and in front of the mirror, and git looks the name up as this region does.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::git::{clean, finish, git};
use crate::mirror_only;
use crate::node::Setup;
use crate::oracle::from_bucket;
use crate::primary::{Primary, Wrong};
use crate::shapes;
use crate::world::{SOON, World, eventually, skip};

const NAME: &str = "git.example.test";

/// Programs that may be missing.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        skip(&format!("the program {name}"));
    }
    found
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Runs a program to its end in `dir`.
fn run(program: &Path, dir: &Path, words: &[&str]) -> crate::git::Output {
    let mut command = Command::new(program);
    clean(&mut command);
    command.current_dir(dir).args(words);
    finish(command, b"", SOON)
}

/// nginx, which ends with the test.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // It has children, which it ends itself.
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

impl Nginx {
    /// Ends TLS for `NAME` on each port, in front of the address beside it.
    fn start(program: &Path, dir: &Path, servers: &[(u16, &str)]) -> Self {
        let folder = dir.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {folder}/{name};\n"));
        let servers = servers.iter().map(|(port, to)| {
            format!(
                "server {{ listen 127.0.0.1:{port} ssl; server_name {NAME};\n\
                 ssl_certificate {folder}/crt; ssl_certificate_key {folder}/key;\n\
                 location / {{ proxy_pass http://{to}; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;\n\
                 proxy_set_header Host $http_host; proxy_set_header Connection close;\n\
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }} }}\n"
            )
        });
        let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
        let text = format!(
            "{user}\npid {folder}/pid;\nerror_log {folder}/log info;\nevents {{}}\nhttp {{\naccess_log off;\n{}{}}}\n",
            temporary.concat(),
            servers.collect::<String>()
        );
        std::fs::write(dir.join("conf"), text).expect("a configuration");
        let mut command = Command::new(program);
        command.args(["-e", "stderr", "-g", "daemon off;", "-p"]).arg(dir).arg("-c").arg(dir.join("conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(
            command
                .stderr(std::fs::File::create(dir.join("err")).expect("a file"))
                .spawn()
                .expect("nginx starts"),
        )
    }
}

#[test]
fn the_primarys_own_name_leads_to_the_mirror() {
    mirror_only!();
    let (Some(nginx), Some(openssl), Some(curl)) = (program("nginx"), program("openssl"), program("curl"))
    else {
        return;
    };
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    primary.fault(Wrong::Page, |seen| {
        seen.path == "/login" && seen.header("x-forwarded-proto") == Some("https")
    });
    let dir = world.folder("nginx");
    let names = format!("subjectAltName=DNS:{NAME}");
    let key =
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key -out crt";
    let subject = format!("/CN={NAME}");
    let mut words: Vec<&str> = key.split(' ').collect();
    words.extend(["-subj", &subject, "-addext", &names, "-addext", "basicConstraints=critical,CA:FALSE"]);
    run(&openssl, &dir, &words).must();
    let (far, near, certificate) = (free_port(), free_port(), dir.join("crt").display().to_string());

    let node = Setup::new(&world, &format!("https://{NAME}"))
        .set(&format!("primary_address = \"127.0.0.1:{far}\""))
        .set(&format!("primary_ca_file = \"{certificate}\""))
        .set("other_paths = \"pass\"")
        .set("trusted_proxies = [\"127.0.0.1\"]")
        .start();
    let _nginx = Nginx::start(&nginx, &dir, &[(far, primary.address()), (near, node.address())]);
    let lookup = format!("{NAME}:{near}:127.0.0.1");
    let page = || {
        let url = format!("https://{NAME}:{near}/login");
        run(&curl, &dir, &["-sS", "--noproxy", "*", "--cacert", &certificate, "--resolve", &lookup, &url])
    };
    eventually("nginx", || page().ok().then_some(()));
    assert!(page().text().contains("Please sign in"), "{}", page().text());

    primary.forget_log();
    let url = format!("https://{NAME}:{near}/{}", repo.path);
    let clone = || {
        let copy = world.unused("copy");
        let git =
            git(world.path()).config("http.sslCAInfo", &certificate).config("http.curloptResolve", &lookup);
        git.run(&format!("clone -q --mirror {url} {}", copy.display()));
        let same = crate::git::git(&copy).run("for-each-ref").text();
        assert_eq!(same, repo.git().run("for-each-ref").text());
    };
    clone();
    eventually("the first generation", || world.store.newest(&repo.path));
    from_bucket(&node, clone);
    let log = primary.log();
    assert!(log.iter().all(|seen| seen.header("host") == Some(NAME)), "{log:?}");
    let of_clients = log
        .iter()
        .filter(|seen| seen.header("user-agent").is_some_and(|agent| !agent.contains("packmirror")));
    let told: Vec<_> = of_clients.filter_map(|seen| seen.header("x-forwarded-for")).collect();
    // The client, nginx in front of the mirror, and the mirror, as nginx in front of the primary saw it.
    assert!(
        !told.is_empty() && told.iter().all(|told| *told == "127.0.0.1, 127.0.0.1, 127.0.0.1"),
        "{told:?}"
    );
}
