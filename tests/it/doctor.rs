//! Broken set-ups, one at a time: what the doctor calls wrong, that `serve` refuses the same, and that nothing was made.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::git::git;
use crate::mirror_only;
use crate::oracle::{mirrored, same};
use crate::primary::Primary;
use crate::shapes;
use crate::world::{SOON, World, skip};

/// The environment of a command: nothing but what is named, and no cloud's metadata service.
fn command(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packmirror"));
    command.args(args).current_dir(dir).stdin(Stdio::null()).env_clear();
    command.env("HOME", dir).env("AWS_EC2_METADATA_DISABLED", "true");
    for name in ["PATH", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(env.iter().copied());
    command
}

fn run(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    command(dir, args, env).output().expect("packmirror runs")
}

/// Runs `serve`, which has to end by itself, and gives its exit code and what it said last.
fn serve(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let log = dir.join("serve.log");
    let file = std::fs::File::create(&log).expect("a log");
    let args = [&["serve"], args].concat();
    let mut child =
        command(dir, &args, env).stdout(Stdio::null()).stderr(file).spawn().expect("packmirror runs");
    let end = Instant::now() + SOON;
    let code = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status.code(),
            None if Instant::now() > end => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    (code, said.lines().last().unwrap_or_default().to_owned())
}

/// All names below a folder.
fn names(dir: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![dir.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// What the doctor says, and which part of its advice and of the last words of `serve` it is known by.
struct Case<'a> {
    args: Vec<&'a str>,
    env: Vec<(&'a str, &'a str)>,
    repo: Option<&'a str>,
    code: &'a str,
    advice: &'a str,
    exit: i32,
    serve: Option<&'a str>,
}

impl<'a> Case<'a> {
    fn bad(code: &'a str, advice: &'a str, args: &[&'a str]) -> Self {
        Case { args: args.to_vec(), env: Vec::new(), repo: None, code, advice, exit: 1, serve: None }
    }

    fn settings(advice: &'a str, args: &[&'a str]) -> Self {
        Case { exit: 2, serve: Some(advice), ..Self::bad("settings.bad", advice, args) }
    }

    fn warning(code: &'a str, advice: &'a str, args: &[&'a str]) -> Self {
        Case { exit: 0, ..Self::bad(code, advice, args) }
    }

    /// `serve` refuses it too, with these words.
    fn refused(self, words: &'a str) -> Self {
        Case { serve: Some(words), ..self }
    }

    fn env(self, env: &[(&'a str, &'a str)]) -> Self {
        Case { env: env.to_vec(), ..self }
    }

    fn repo(self, repo: &'a str) -> Self {
        Case { repo: Some(repo), ..self }
    }

    #[track_caller]
    fn check(&self, dir: &Path) {
        let before = names(dir);
        let mut args = [&["doctor", "--json"][..], &self.args].concat();
        if !args.contains(&"--listen") {
            args.extend(["--listen", "127.0.0.1:0"]);
        }
        args.extend(self.repo);
        let out = run(dir, &args, &self.env);
        let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let report: serde_json::Value =
            serde_json::from_str(&said).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}{errors}"));
        let checks = report["checks"].as_array().expect("checks");
        let found = checks.iter().find(|check| check["code"] == self.code);
        let found = found.unwrap_or_else(|| panic!("{args:?}: no {}: {said}{errors}", self.code));
        let words = format!("{} {}", found["found"], found["advice"]);
        assert!(words.contains(self.advice), "{args:?}: {:?} is not in {words}", self.advice);
        assert!(!words.contains("<?xml") && !words.contains("<Code>"), "{args:?}: {words}");
        assert_eq!(out.status.code(), Some(self.exit), "{args:?}: {said}{errors}");
        assert_eq!(report["ok"], self.exit == 0, "{args:?}: {said}");
        let bad: Vec<_> =
            checks.iter().filter(|check| check["verdict"] == "bad").map(|check| &check["code"]).collect();
        assert_eq!(bad.len(), usize::from(self.exit != 0), "{args:?}: one advice a cause: {bad:?}");
        assert!(errors.lines().count() <= 1, "{args:?}: {errors}");
        assert_eq!(names(dir), before, "{args:?}: something was made or removed");
        if let Some(words) = self.serve {
            let mut args = self.args.clone();
            if !args.contains(&"--listen") {
                args.extend(["--listen", "127.0.0.1:0"]);
            }
            let (code, last) = serve(dir, &args, &self.env);
            assert!(
                code.is_some_and(|code| code > 0),
                "{args:?}: serve did not end by itself: {code:?} {last}"
            );
            assert!(last.contains(words), "{args:?}: {words:?} is not in {last}");
        }
    }
}

/// A directory with a repository and everything else that a good set-up needs, made good.
struct Place {
    world: World,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let world = World::on_disk();
        let dir = world.folder("place");
        crate::primary::Repo::create(&dir.join("git"), "app.git", "sha1").commit("main", "f", "1");
        for folder in ["empty", "store", "foreign"] {
            std::fs::create_dir(dir.join(folder)).unwrap();
        }
        for file in ["file", "foreign/notes.txt"] {
            std::fs::write(dir.join(file), "mine\n").unwrap();
        }
        Place { world, dir }
    }
}

#[test]
fn addresses_with_a_slip_are_errors_and_no_directories() {
    mirror_only!();
    let place = Place::new();
    let primary = ["--primary", "git"];
    for (store, advice) in [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("s3:bucket", "s3://bucket"),
        ("S3://bucket/x", "s3://bucket/x"),
        ("s3:///prefix", "s3://BUCKET/PREFIX"),
        ("gs://bucket/x", "s3://BUCKET/PREFIX"),
        ("https://s3.example.com/bucket", "s3.endpoint"),
        ("~/store", "the full path"),
    ] {
        Case::settings(advice, &[&primary[..], &["--store", store]].concat()).check(&place.dir);
        for reader in [
            &["ls"][..],
            &["status"],
            &["export", "app.git", "out"],
            &["sync", "app.git", "--primary", "git"],
        ] {
            let before = names(&place.dir);
            let out = run(&place.dir, &[reader, &["--store", store]].concat(), &[]);
            assert_eq!(out.status.code(), Some(2), "{reader:?} {store}");
            assert_eq!(names(&place.dir), before, "{reader:?} {store}");
        }
    }
    for (primary, advice) in [
        ("https:/git.example.com", "https://git.example.com"),
        ("git.example.com", "https://git.example.com"),
        ("git@git.example.com:app.git", "HTTPS URL"),
        ("http://git.example.com", "insecure_primary"),
    ] {
        Case::settings(advice, &["--primary", primary, "--store", "store"]).check(&place.dir);
    }
}

/// Whoever reads makes nothing, and says which store there is none of.
#[test]
fn commands_that_read_make_nothing() {
    mirror_only!();
    let place = Place::new();
    let before = names(&place.dir);
    for (args, code, words) in [
        (&["ls", "--store", "stroe"][..], 1, "there is no such directory"),
        (&["status", "--store", "stroe"], 1, "--store"),
        (&["export", "--store", "stroe", "app.git", "out"], 1, "there is no such directory"),
        (&["sync", "--store", "stroe", "--primary", "git", "no/such.git"], 1, "shows no such repository"),
        (&["sync", "--store", "stroe", "--primary", "git", "--all"], 1, "there is no such directory"),
        (
            &["adopt", "--store", "stroe", "--primary", "git", "--from", "/srv/old"],
            1,
            "there is no such directory",
        ),
        (
            &["adopt", "--store", "store", "--primary", "git", "--from", "/srv/old"],
            1,
            "there is no store yet",
        ),
        (&["ls", "--store", "foreign"], 1, "`notes.txt`"),
    ] {
        let out = run(&place.dir, args, &[]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert_eq!(names(&place.dir), before, "{args:?}");
    }
}

#[test]
fn what_is_wrong_with_this_machine_is_wrong_for_the_doctor() {
    mirror_only!();
    let place = Place::new();
    let dir = &place.dir;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken: &'static str = String::leak(listener.local_addr().unwrap().to_string());
    std::fs::create_dir(dir.join("newer")).unwrap();
    std::fs::write(dir.join("newer/format"), "{\"packmirror\":9}\n").unwrap();
    std::fs::create_dir(dir.join("other")).unwrap();
    std::fs::write(dir.join("other/format"), "{\"packmirror\":1}\n").unwrap();
    std::fs::write(dir.join("other/owner"), "{\"primary\":\"https://git.other.example\"}\n").unwrap();
    std::fs::write(dir.join("secret"), "user:canary\n").unwrap();
    let https = ["--primary", "https://127.0.0.1:1", "--store", "new-store"];
    let git = ["--primary", "git"];
    let with = |more: &[&'static str]| [&git[..], &["--store", "new-store"], more].concat();
    Case::warning("store.new", "serve", &with(&[])).check(dir);
    let store = |name: &'static str| [&git[..], &["--store", name]].concat();
    let cases = [
        Case::bad("primary.none", "--primary", &["--store", "new-store"]).refused("--primary https://"),
        Case::bad("store.foreign", "empty or a new", &store("foreign")).refused("`notes.txt`"),
        Case::bad("store.unwritable", "own the directory", &store("file")).refused("file"),
        Case::bad("store.unwritable", "own the directory", &store("file/below")).refused("file"),
        Case::bad("store.format", "newer packmirror", &store("newer")).refused("newer packmirror"),
        Case::bad("store.owner", "packmirror adopt --from https://git.other.example", &store("other"))
            .refused("packmirror adopt --from https://git.other.example"),
        Case::bad("primary.directory", "full path", &["--primary", "./nope", "--store", "new-store"])
            .refused("nope"),
        Case::bad("primary.directory", "not a directory", &["--primary", "./file", "--store", "new-store"])
            .refused("not a directory"),
        Case::bad(
            "primary.no-repositories",
            "above the repositories",
            &["--primary", "empty", "--store", "new-store"],
        ),
        Case::bad(
            "primary.ca-file",
            "primary_ca_file",
            &[&https[..], &["--primary-ca-file", "no.pem"]].concat(),
        )
        .refused("certificate file"),
        Case::bad(
            "primary.ca-file",
            "no PEM certificate",
            &[&https[..], &["--primary-ca-file", "file"]].concat(),
        )
        .refused("no PEM certificate"),
        Case::bad("primary.credential", "credential_file", &with(&["--credential-file", "no-such"]))
            .refused("credential file"),
        Case::bad(
            "primary.unreachable",
            "network",
            &["--primary", "http://127.0.0.1:1", "--store", "new-store"],
        ),
        Case::bad("cache.foreign", "--cache-dir", &with(&["--cache-dir", "foreign"])).refused("notes.txt"),
        Case::bad("cache.unwritable", "--cache-dir", &with(&["--cache-dir", "file/below"])).refused("file"),
        Case::bad("listen.refused", "--listen", &with(&["--listen", "192.0.2.1:80"])).refused("192.0.2.1:80"),
        Case::warning("listen.in-use", "another address", &with(&["--listen", taken])),
        Case::warning("cache.room", "cache_max", &with(&["--cache-max", "1000TiB"])),
        Case::warning("primary.credential-open", "chmod 600", &with(&["--credential-file", "secret"])),
    ];
    for case in &cases {
        case.check(dir);
        // What `serve` made before it ended.
        for made in ["new-store", ".cache", ".local"] {
            let _ = std::fs::remove_dir_all(dir.join(made));
        }
    }
    drop(place.world);
}

#[test]
fn a_repository_that_cannot_be_mirrored_is_wrong() {
    mirror_only!();
    let (world, primary) = (World::on_disk(), Primary::start());
    primary.repo("team/app.git", shapes::linear);
    primary.repo("team/secret.git", shapes::linear);
    primary.private("team/secret.git", &["alice"]);
    primary.account("alice", "canary-good");
    git(primary.root()).run("init -q --bare team/empty.git");
    git(primary.root()).run(&format!(
        "clone -q --bare --depth=1 file://{}/team/app.git team/shallow.git",
        primary.root().display()
    ));
    let outside = world.folder("outside");
    git(&outside).run("init -q --bare far.git");
    std::os::unix::fs::symlink(outside.join("far.git"), primary.root().join("team/link.git")).unwrap();
    let dir = world.folder("here");
    let at = |url: &'static str| ["--primary", url, "--store", "store"].to_vec();
    let (http, root): (&'static str, &'static str) =
        (String::leak(primary.url.clone()), String::leak(primary.root().display().to_string()));
    let wrong = [("PACKMIRROR__CREDENTIAL", "alice:canary-wrong")];
    let right = [("PACKMIRROR__CREDENTIAL", "alice:canary-good")];
    for case in [
        Case::warning("repository.ok", "refs", &at(http)).repo("team/app.git"),
        Case::warning("repository.ok", "service credential", &at(http)).repo("team/secret.git").env(&right),
        Case::warning("repository.empty", "empty", &at(root)).repo("team/empty.git"),
        Case::bad("repository.missing", "URL", &at(http)).repo("team/nope.git"),
        Case::bad("repository.name", "team/app.git", &at(http)).repo("team/../app.git"),
        Case::bad("repository.needs-credential", "credential_file", &at(http)).repo("team/secret.git"),
        Case::bad("repository.refused", "renew", &at(http)).repo("team/secret.git").env(&wrong),
        Case::bad("repository.not-selected", "mirror", &[&at(http)[..], &["--mirror", "other/*"]].concat())
            .repo("team/app.git"),
        Case::bad("repository.shallow", "unshallow", &at(http)).repo("team/shallow.git"),
        Case::bad("repository.shallow", "unshallow", &at(root)).repo("team/shallow.git"),
        Case::bad("repository.link", "into the directory", &at(root)).repo("team/link.git"),
    ] {
        case.check(&dir);
    }
    let out = run(&dir, &["sync", "--primary", root, "--store", "store", "team/link.git"], &[]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("symbolic link"), "{out:?}");
    let out = run(&dir, &["sync", "--primary", http, "--store", "store", "team/secret.git"], &[]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("none is set: set credential_file"), "{out:?}");
    assert!(names(&dir).is_empty(), "a store was made for what could not be synced");
    primary.speak_only_v0(true);
    Case::bad("repository.no-v2", "Git-Protocol", &at(http)).repo("team/app.git").check(&dir);
    primary.down();
    Case::bad("primary.unreachable", "network", &at(http)).repo("team/app.git").check(&dir);
}

/// An nginx with files, and nothing that knows git.
struct Nginx {
    child: std::process::Child,
    url: String,
}

impl Nginx {
    fn start(dir: &Path, root: &Path) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].iter().find(|path| Path::new(path).exists())?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (here, user) =
            (dir.display(), if rustix::process::geteuid().is_root() { "user root;" } else { "" });
        std::fs::write(
            dir.join("nginx.conf"),
            format!(
                "{user} daemon off; pid {here}/pid; error_log {here}/error.log; events {{}}\n\
                 http {{ access_log off; default_type text/plain; client_body_temp_path {here}/t1; proxy_temp_path {here}/t2;\n\
                 fastcgi_temp_path {here}/t3; uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;\n\
                 server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
                root.display()
            ),
        )
        .unwrap();
        let child = Command::new(program)
            .args([
                "-e",
                &format!("{here}/error.log"),
                "-c",
                &format!("{here}/nginx.conf"),
                "-p",
                &here.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let nginx = Nginx { child, url: format!("http://127.0.0.1:{port}") };
        crate::world::eventually("nginx", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A polite end takes its workers along.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

#[test]
fn a_web_server_is_no_git_host() {
    mirror_only!();
    let world = World::on_disk();
    let files = world.folder("files");
    std::fs::write(files.join("index.html"), "<h1>hello</h1>").unwrap();
    let repo = crate::primary::Repo::create(&files, "team/app.git", "sha1");
    repo.commit("main", "f", "1");
    git(&files.join("team/app.git")).run("update-server-info");
    let Some(nginx) = Nginx::start(&world.folder("nginx"), &files) else { return skip("nginx") };
    let dir = world.folder("here");
    let args = ["--primary", nginx.url.as_str(), "--store", "store"];
    Case::bad("primary.not-git", "packmirror doctor REPO", &args).check(&dir);
    Case::bad("repository.dumb", "http-backend", &args).repo("team/app.git").check(&dir);
    Case::bad("repository.missing", "URL", &args).repo("team/nope.git").check(&dir);
}

/// An S3 server of one answer: what Amazon says and no server that can be run here does.
struct Answering {
    address: std::net::SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Answering {
    fn start(status: &'static str, code: &'static str, message: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let length =
                    text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                let _ = stream.read_exact(&mut body);
                let xml = format!(
                    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
                );
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{xml}",
                    xml.len()
                );
            }
        });
        Answering { address, thread: Some(thread), stop }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn credentials_that_cannot_be_had_or_have_run_out_are_one_line() {
    mirror_only!();
    let place = Place::new();
    let s3 = ["--primary", "git", "--store", "s3://bucket/prefix", "--s3-region", "eu-central-1"];
    Case::bad("store.no-credentials", "AWS_PROFILE", &s3)
        .refused("no AWS credentials were found")
        .check(&place.dir);
    let half = [("AWS_ACCESS_KEY_ID", "AKIA")];
    Case::bad("store.no-credentials", "only one is set", &s3)
        .env(&half)
        .refused("only one is set")
        .check(&place.dir);
    let profile = [("AWS_PROFILE", "nobodys")];
    Case::bad("store.no-credentials", "AWS_PROFILE", &s3).env(&profile).check(&place.dir);
    let out = run(&place.dir, &["ls", "--store", "s3://bucket/prefix"], &[]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("no AWS credentials were found; set AWS_ACCESS_KEY_ID"), "{said}");
    let _ = std::fs::remove_dir_all(place.dir.join(".cache"));
    for (status, code, message, found, advice) in [
        (
            "400 Bad Request",
            "ExpiredToken",
            "The provided token has expired.",
            "store.expired-credentials",
            "sign in again",
        ),
        ("403 Forbidden", "AccessDenied", "Access Denied", "store.denied", "s3:ListBucket"),
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            "Use another endpoint.",
            "store.wrong-region",
            "s3.region",
        ),
        ("403 Forbidden", "RequestTimeTooSkewed", "The difference is too large.", "store.clock", "clock"),
    ] {
        let server = Answering::start(status, code, message);
        let endpoint = format!("http://{}", server.address);
        let env = [
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "canary"),
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ];
        Case::bad(found, advice, &s3)
            .env(&env)
            .refused(if found == "store.wrong-region" { "another region" } else { code })
            .check(&place.dir);
        let _ = std::fs::remove_dir_all(place.dir.join(".cache"));
    }
}

/// A MinIO of one's own, with a region that it insists on.
struct Minio {
    dir: PathBuf,
    endpoint: String,
}

const MINIO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/parts/minio.sh");

impl Minio {
    fn start(dir: PathBuf) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let status = Command::new("bash")
            .args([MINIO, "start"])
            .arg(&dir)
            .arg(port.to_string())
            .env("MINIO_SITE_REGION", "us-east-1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let minio = Minio { dir, endpoint: format!("http://127.0.0.1:{port}") };
        status.is_ok_and(|status| status.success()).then_some(minio)
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = Command::new("bash").args([MINIO, "stop"]).arg(&self.dir).stderr(Stdio::null()).status();
    }
}

#[test]
fn an_s3_server_that_says_no_is_told_by_what_it_says() {
    mirror_only!();
    let place = Place::new();
    let Some(minio) = Minio::start(place.world.folder("minio")) else {
        return skip("MinIO (infra/parts/install.sh minio)");
    };
    let store = "s3://packmirror/doctor";
    let base = ["--primary", "git", "--s3-endpoint", minio.endpoint.as_str(), "--store"];
    let at = |store| [&base[..], &[store]].concat();
    let keys = |id, secret| [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)];
    let good = keys("packmirror", "packmirror-secret");
    let more = |more| [good[0], good[1], more];
    for case in [
        Case::warning("store.ok", "promises", &at(store)).env(&good),
        Case::bad("store.wrong-credentials", "AWS_ACCESS_KEY_ID", &at(store))
            .env(&keys("nobody", "canary"))
            .refused("InvalidAccessKeyId"),
        Case::bad("store.wrong-credentials", "AWS_SECRET_ACCESS_KEY", &at(store))
            .env(&keys("packmirror", "canary"))
            .refused("SignatureDoesNotMatch"),
        Case::bad("store.wrong-credentials", "AWS_", &at(store)).env(&more(("AWS_SESSION_TOKEN", "canary"))),
        Case::bad("store.no-bucket", "make the bucket", &at("s3://no-such-bucket/x"))
            .env(&good)
            .refused("NoSuchBucket"),
        Case::bad("store.wrong-region", "s3.region", &at(store))
            .env(&more(("AWS_REGION", "eu-west-1")))
            .refused("region"),
    ] {
        case.check(&place.dir);
        let _ = std::fs::remove_dir_all(place.dir.join(".cache"));
    }
    let out =
        run(&place.dir, &["ls", "--s3-endpoint", &minio.endpoint, "--store", "s3://no-such-bucket/x"], &good);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(said.matches("NoSuchBucket").count(), 1, "{said}");
    assert!(said.lines().count() == 1 && !said.contains("<Code>"), "{said}");
}

/// The host moves: the store goes on under the new address, without a new sync, and nodes of the old one end.
#[test]
fn a_change_of_address_is_adopted_and_nothing_is_synced_anew() {
    mirror_only!();
    let (world, primary, stranger) = (World::new(), Primary::start(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    stranger.repo("team/app.git", shapes::town);
    let mut old = world.setup(&primary).set("compare_every = \"1s\"").start();
    mirrored(&world, &old, &repo);
    let from = primary.url.trim_end_matches('/');
    let root = primary.root().display().to_string();
    let moved = || crate::node::Setup::new(&world, &root);

    let Err((_, log)) = moved().launch() else { panic!("a store of another primary was served") };
    assert!(log.contains(&format!("packmirror adopt --from {from}")), "{log}");
    let other = crate::node::Setup::new(&world, &stranger.url);
    let out = other.command(&["adopt", "--from", from]);
    assert!(!out.ok() && out.stderr.contains("another repository of this name"), "{}", out.stderr);
    let out = moved().command(&["adopt", "--from", "https://git.other.example"]);
    assert!(!out.ok() && out.stderr.contains(&format!("--from {from}")), "{}", out.stderr);
    old.get("/livez");

    for _ in 0..2 {
        let out = moved().command(&["adopt", "--from", from]).must();
        assert!(out.text().contains("set `primary` of all nodes"), "{}", out.text());
    }
    assert!(!old.ended().success(), "a node of the old address went on");
    assert!(old.log().contains("packmirror adopt"), "{}", old.log());
    let generations = world.store.generations(&repo.path).len();
    let out = moved().command(&["sync", &repo.path]).must();
    assert!(out.text().contains("equal to the primary"), "{}", out.text());
    assert_eq!(world.store.generations(&repo.path).len(), generations, "it was synced anew");
    let new = moved().start();
    same(&world, &primary, &new, &repo.path);
    assert!(new.answered_from_bucket() > 0.0);
    repo.commit("main", "after", "the move");
    mirrored(&world, &new, &repo);
    assert_eq!(world.store.newest(&repo.path).unwrap()["primary"], format!("file://{root}"));
}

#[test]
fn a_sync_of_all_sums_up_and_tells_what_failed() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let setup = world.setup(&primary);
    let out = setup.command(&["sync", "--all"]).must();
    assert!(out.text().contains("Nothing to sync"), "{}", out.text());
    let repos = ["a.git", "b.git", "c.git"].map(|name| primary.repo(name, shapes::linear));
    setup.command(&["sync", "a.git", "b.git", "c.git"]).must();
    repos[0].commit("main", "more", "1");
    std::fs::remove_dir_all(primary.root().join("b.git")).unwrap();
    let out = setup.command(&["sync", "--all"]);
    assert_eq!(out.status.code(), Some(1), "{}", out.stderr);
    assert!(out.text().contains("3 repositories: 1 published, 1 equal, 1 failed"), "{}", out.text());
    assert!(
        out.stderr.contains("b.git: failed: the primary: the primary shows no such repository"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("1 of 3 repositories could not be synced"), "{}", out.stderr);
}
