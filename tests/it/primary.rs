//! The primary: a Git host inside the test process, `git http-backend` behind a server that knows accounts and
//! can be told to misbehave.
//!
//! It keeps a log of every request it got, which is what most tests about credentials and load look at.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::git::{Git, clean, git};
use crate::world::{block_on, runtime};

type Body = BoxBody<Bytes, std::io::Error>;

/// One request as the primary got it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Still percent-encoded.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Of the body as it came over the wire.
    pub digest: String,
    /// The body, inflated.
    pub body: Vec<u8>,
    /// What was answered; 0 while the request is under way or was hung.
    pub status: u16,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether this is a protocol v2 request for `command`.
    pub fn is(&self, command: &str) -> bool {
        let line = format!("command={command}");
        self.body.get(4..4 + line.len()) == Some(line.as_bytes())
    }
}

/// How a request may go wrong.
#[derive(Debug, Clone)]
pub enum Wrong {
    /// This status with these headers and a short text.
    Status(u16, Vec<(&'static str, String)>),
    /// Never an answer.
    Hang,
    /// 200, the content type git expects, and bytes that are none of git's.
    Garbage(Vec<u8>),
    /// 200 with a web page, as a login form or a captive portal would answer.
    Page,
    /// The true answer, but the connection breaks after so many bytes of its body.
    Cut(usize),
    /// A redirect with this status to the same path on another host.
    Redirect(u16, String),
    /// The true answer, with a pause before each 16 KiB of it.
    Trickle(Duration),
    /// The true answer, this much later.
    Late(Duration),
}

type Test = Box<dyn Fn(&Seen) -> bool + Send>;

struct Fault {
    when: Test,
    what: Wrong,
}

#[derive(Default, Clone)]
struct Rules {
    /// Who may read; `None`: everybody.
    readers: Option<BTreeSet<String>>,
    /// A private repository whose `info/refs` is open and which asks for credentials only at the POST.
    open_front: bool,
    /// What a known user without rights gets.
    refusal: Option<u16>,
}

#[derive(Default)]
struct State {
    root: PathBuf,
    rules: Mutex<BTreeMap<String, Rules>>,
    passwords: Mutex<BTreeMap<String, String>>,
    tokens: Mutex<BTreeMap<String, String>>,
    faults: Mutex<Vec<Fault>>,
    log: Mutex<Vec<Seen>>,
    /// Bytes of the bodies of all answers.
    sent: AtomicU64,
    /// Answers every request in protocol v0, as a server from before v2 would.
    old: Mutex<bool>,
}

/// A running primary.
pub struct Primary {
    _dir: tempfile::TempDir,
    pub url: String,
    port: u16,
    state: Arc<State>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

/// A bare repository on a primary's disk.
#[derive(Clone)]
pub struct Repo {
    pub dir: PathBuf,
    /// Its path under the primary's URL.
    pub path: String,
}

impl Primary {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("primary-").tempdir().expect("a temporary directory");
        let state = Arc::new(State { root: dir.path().to_owned(), ..State::default() });
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = runtime().spawn(serve(listener, state.clone()));
        Primary {
            _dir: dir,
            url: format!("http://127.0.0.1:{port}"),
            port,
            state,
            serving: Mutex::new(Some(serving)),
        }
    }

    pub fn root(&self) -> &Path {
        &self.state.root
    }

    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub fn repo_url(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// The address with credentials in it.
    pub fn repo_as(&self, user: &str, password: &str, path: &str) -> String {
        format!("http://{user}:{password}@{}/{path}", self.address())
    }

    /// Makes a repository and lets `shape` fill it.
    #[track_caller]
    pub fn repo(&self, path: &str, shape: impl FnOnce(&Path)) -> Repo {
        self.repo_with(path, "sha1", shape)
    }

    #[track_caller]
    pub fn repo_with(&self, path: &str, format: &str, shape: impl FnOnce(&Path)) -> Repo {
        let repo = Repo::create(&self.state.root, path, format);
        shape(&repo.dir);
        repo
    }

    pub fn account(&self, user: &str, password: &str) {
        self.state.passwords.lock().unwrap().insert(user.into(), password.into());
    }

    pub fn token(&self, user: &str, token: &str) {
        self.state.tokens.lock().unwrap().insert(token.into(), user.into());
    }

    pub fn revoke(&self, token: &str) {
        self.state.tokens.lock().unwrap().remove(token);
    }

    /// Only `readers` may read and write from now on.
    pub fn private(&self, repo: &str, readers: &[&str]) {
        self.rule(repo, |r| r.readers = Some(readers.iter().map(|s| s.to_string()).collect()));
    }

    pub fn open_front(&self, repo: &str) {
        self.rule(repo, |r| r.open_front = true);
    }

    /// What a known user without rights is told instead of 404.
    pub fn refuse_with(&self, repo: &str, status: u16) {
        self.rule(repo, |r| r.refusal = Some(status));
    }

    fn rule(&self, repo: &str, change: impl FnOnce(&mut Rules)) {
        change(self.state.rules.lock().unwrap().entry(repo.into()).or_default());
    }

    /// Lets requests that `when` picks go wrong; later faults are asked first.
    pub fn fault(&self, what: Wrong, when: impl Fn(&Seen) -> bool + Send + 'static) {
        self.state.faults.lock().unwrap().push(Fault { when: Box::new(when), what });
    }

    pub fn heal(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    pub fn speak_only_v0(&self, old: bool) {
        *self.state.old.lock().unwrap() = old;
    }

    /// Everything asked so far.
    pub fn log(&self) -> Vec<Seen> {
        self.state.log.lock().unwrap().clone()
    }

    /// How many bytes all answers had so far.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    pub fn forget_log(&self) {
        self.state.log.lock().unwrap().clear();
    }

    pub fn count(&self, which: impl Fn(&Seen) -> bool) -> usize {
        self.state.log.lock().unwrap().iter().filter(|s| which(s)).count()
    }

    /// Closes the port and every connection.
    pub fn down(&self) {
        let task = self.serving.lock().unwrap().take().expect("a primary that is up");
        task.abort();
        let _ = block_on(task);
    }

    pub fn up(&self) {
        let listener = block_on(TcpListener::bind(("127.0.0.1", self.port))).expect("the same port");
        *self.serving.lock().unwrap() = Some(runtime().spawn(serve(listener, self.state.clone())));
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        if let Some(task) = self.serving.lock().unwrap().take() {
            task.abort();
        }
        if std::thread::panicking() {
            eprintln!("--- requests at the primary {}", self.url);
            let log = self.state.log.lock().unwrap();
            for seen in log.iter().skip(log.len().saturating_sub(60)) {
                let body = String::from_utf8_lossy(&seen.body[..seen.body.len().min(160)]).replace('\n', "|");
                eprintln!("{} {} {}?{} {body}", seen.status, seen.method, seen.path, seen.query);
            }
        }
    }
}

impl Repo {
    /// A new bare repository that takes pushes from anybody and filters as the big hosts do.
    #[track_caller]
    pub fn create(root: &Path, path: &str, format: &str) -> Repo {
        let dir = root.join(path);
        std::fs::create_dir_all(&dir).expect("a repository's directory");
        git(&dir).run(&format!("init -q --bare --template= --object-format={format} ."));
        let repo = Repo { dir, path: path.to_owned() };
        repo.configure(
            "[http]\n\treceivepack = true\n[uploadpack]\n\tallowFilter = true\n[gc]\n\tauto = 0\n",
        );
        repo
    }

    /// Appends to its configuration.
    pub fn configure(&self, text: &str) {
        let file = self.dir.join("config");
        let old = std::fs::read_to_string(&file).expect("a configuration");
        std::fs::write(&file, old + text).expect("a configuration");
    }

    pub fn git(&self) -> Git {
        git(&self.dir)
    }

    /// Adds a commit to a branch, straight in the repository; makes the branch where it is new.
    #[track_caller]
    pub fn commit(&self, branch: &str, file: &str, content: &str) -> String {
        let name = format!("refs/heads/{branch}");
        let known = self.git().try_run(&format!("rev-parse -q --verify {name}")).ok();
        let count = self.git().run("rev-list --all --count").line().parse::<u64>().expect("a count");
        let from = if known { format!("from {name}^0\n") } else { String::new() };
        let when = 1_800_000_000 + count * 60;
        let script = format!(
            "commit {name}\ncommitter T <t@example.com> {when} +0000\ndata <<E\n{file}\nE\n{from}M 100644 inline {file}\ndata {}\n{content}\n",
            content.len()
        );
        self.git().with_input(&["fast-import", "--quiet", "--force"], script.as_bytes()).must();
        self.oid(&name)
    }

    #[track_caller]
    pub fn oid(&self, name: &str) -> String {
        self.git().args(&["rev-parse", "--verify", name]).must().line()
    }

    #[track_caller]
    pub fn set_ref(&self, name: &str, to: &str) {
        self.git().args(&["update-ref", name, to]).must();
    }

    #[track_caller]
    pub fn delete_ref(&self, name: &str) {
        self.git().args(&["update-ref", "-d", name]).must();
    }

    /// The manifest digest of docs/formats.md, made with stock tools.
    pub fn digest(&self) -> String {
        let out = self.git().args(&["for-each-ref", "--format=%(objectname) %(refname)"]).must();
        let mut lines: Vec<&[u8]> = out.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
        lines.sort_by_key(|l| l.splitn(2, |b| *b == b' ').nth(1).map(<[u8]>::to_vec));
        let mut hash = Sha256::new();
        for line in lines {
            hash.update(line);
            hash.update(b"\n");
        }
        hex::encode(hash.finalize())
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    // Connections belong to this task: when it is aborted they end with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| handle(state.clone(), request));
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn handle(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let raw = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(n, v)| (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect();
    let gzip = headers.iter().any(|(n, v)| n == "content-encoding" && v.contains("gzip"));
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        digest: hex::encode(Sha256::digest(&raw)),
        body: if gzip { inflate(&raw).await } else { raw.to_vec() },
        headers,
        status: 0,
    };
    let index = {
        let mut log = state.log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let response = answer(&state, &seen, &raw).await;
    if let Some(entry) = state.log.lock().unwrap().get_mut(index) {
        entry.status = response.status().as_u16();
    }
    Ok(response.map(|body| {
        let counted = BodyStream::new(body).inspect_ok(move |frame| {
            let sent = frame.data_ref().map_or(0, Bytes::len);
            state.sent.fetch_add(sent as u64, Ordering::Relaxed);
        });
        BodyExt::boxed(StreamBody::new(counted))
    }))
}

async fn answer(state: &State, seen: &Seen, raw: &[u8]) -> Response<Body> {
    let wrong = {
        let faults = state.faults.lock().unwrap();
        faults.iter().rev().find(|f| (f.when)(seen)).map(|f| f.what.clone())
    };
    match wrong {
        None => truth(state, seen, raw, None).await,
        Some(Wrong::Hang) => std::future::pending().await,
        Some(Wrong::Late(by)) => {
            tokio::time::sleep(by).await;
            truth(state, seen, raw, None).await
        }
        Some(Wrong::Trickle(pause)) => {
            let whole = truth(state, seen, raw, None).await;
            whole.map(|body| {
                let slow = BodyStream::new(body).then(move |frame| async move {
                    tokio::time::sleep(pause).await;
                    frame
                });
                BodyExt::boxed(StreamBody::new(slow))
            })
        }
        Some(Wrong::Cut(after)) => truth(state, seen, raw, Some(after)).await,
        Some(Wrong::Status(status, headers)) => {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            plain(status, &headers, b"the test wants this\n".to_vec())
        }
        Some(Wrong::Page) => {
            plain(200, &[("content-type", "text/html")], b"<html>Please sign in</html>".to_vec())
        }
        Some(Wrong::Redirect(status, host)) => {
            let query = if seen.query.is_empty() { String::new() } else { format!("?{}", seen.query) };
            plain(status, &[("location", &format!("{host}{}{query}", seen.path))], Vec::new())
        }
        Some(Wrong::Garbage(bytes)) => {
            let kind = match (seen.path.rsplit('/').next().unwrap_or(""), seen.query.strip_prefix("service="))
            {
                ("refs", Some(service)) => format!("application/x-{service}-advertisement"),
                (service, _) => format!("application/x-{service}-result"),
            };
            plain(200, &[("content-type", &kind)], bytes)
        }
    }
}

fn plain(status: u16, headers: &[(&str, &str)], body: Vec<u8>) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed()).expect("a response")
}

enum Who {
    Nobody,
    User(String),
    Unknown,
}

fn who(state: &State, seen: &Seen) -> Who {
    let Some(header) = seen.header("authorization") else { return Who::Nobody };
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    let tokens = state.tokens.lock().unwrap();
    if scheme.eq_ignore_ascii_case("bearer") {
        return tokens.get(rest.trim()).cloned().map_or(Who::Unknown, Who::User);
    }
    let text = base64::engine::general_purpose::STANDARD.decode(rest.trim()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let (user, secret) = text.split_once(':').unwrap_or((&text, ""));
    if state.passwords.lock().unwrap().get(user).is_some_and(|p| p == secret) {
        return Who::User(user.to_owned());
    }
    tokens.get(secret).cloned().map_or(Who::Unknown, Who::User)
}

/// The repository's path and what is asked of it.
fn split(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_start_matches('/');
    ["/info/refs", "/git-upload-pack", "/git-receive-pack", "/HEAD", "/objects/", "/info/"]
        .iter()
        .filter_map(|end| path.find(end).map(|at| (&path[..at], &path[at + 1..])))
        .min_by_key(|(repo, _)| repo.len())
}

async fn truth(state: &State, seen: &Seen, raw: &[u8], cut: Option<usize>) -> Response<Body> {
    let decoded = percent_encoding::percent_decode_str(&seen.path).decode_utf8_lossy().into_owned();
    let Some((repo, rest)) = split(&decoded) else { return plain(404, &[], b"no such page\n".to_vec()) };
    let rules = state.rules.lock().unwrap().get(repo).cloned().unwrap_or_default();
    let challenge = [("www-authenticate", "Basic realm=\"primary\""), ("content-type", "text/plain")];
    let refused = || plain(401, &challenge, b"credentials, please\n".to_vec());
    let user = match who(state, seen) {
        Who::Unknown => return refused(),
        Who::Nobody => None,
        Who::User(user) => Some(user),
    };
    let front = rules.open_front && rest == "info/refs" && seen.query.contains("upload-pack");
    if let Some(readers) = rules.readers.as_ref().filter(|_| !front) {
        match &user {
            None => return refused(),
            Some(user) if !readers.contains(user) => {
                return plain(rules.refusal.unwrap_or(404), &[], b"not for you\n".to_vec());
            }
            Some(_) => {}
        }
    }
    // git would also find `name.git` under `name`: here a repository has one name, as rights hang on it.
    if !state.root.join(repo).join("HEAD").exists() {
        return plain(404, &[], b"no such repository\n".to_vec());
    }
    backend(state, seen, &decoded, user, raw, cut).await
}

/// Runs `git http-backend` for one request.
async fn backend(
    state: &State,
    seen: &Seen,
    path: &str,
    user: Option<String>,
    raw: &[u8],
    cut: Option<usize>,
) -> Response<Body> {
    let mut command = std::process::Command::new(crate::git::program());
    clean(&mut command);
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &state.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", &seen.query)
        .env("REQUEST_METHOD", &seen.method)
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("CONTENT_LENGTH", raw.len().to_string())
        .env("CONTENT_TYPE", seen.header("content-type").unwrap_or_default());
    if let Some(encoding) = seen.header("content-encoding") {
        command.env("HTTP_CONTENT_ENCODING", encoding);
    }
    if let Some(version) = seen.header("git-protocol").filter(|_| !*state.old.lock().unwrap()) {
        command.env("GIT_PROTOCOL", version);
    }
    if let Some(user) = user {
        command.env("REMOTE_USER", user);
    }
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().expect("git http-backend");
    let mut stdin = child.stdin.take().expect("piped");
    let input = raw.to_vec();
    let feed = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let mut out = Vec::new();
    let _ = child.stdout.take().expect("piped").read_to_end(&mut out).await;
    let _ = feed.await;
    let _ = child.wait().await;
    let Some(end) = out.windows(4).position(|w| w == b"\r\n\r\n") else {
        return plain(500, &[], b"git http-backend said nothing\n".to_vec());
    };
    let mut response = Response::builder().status(200);
    for line in String::from_utf8_lossy(&out[..end]).split("\r\n") {
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("status") => {
                response = response.status(value.trim()[..3].parse::<u16>().unwrap_or(500));
            }
            Some((name, value)) => response = response.header(name, value.trim()),
            None => {}
        }
    }
    response.body(streamed(Bytes::from(out).slice(end + 4..), cut)).expect("a response")
}

/// A body in chunks that breaks off after `cut` bytes, if told so.
fn streamed(all: Bytes, cut: Option<usize>) -> Body {
    let end = cut.map_or(all.len(), |n| n.min(all.len()));
    let mut frames = Vec::new();
    let mut at = 0;
    while at < end {
        let next = (at + 16 * 1024).min(end);
        frames.push(Ok(Frame::data(all.slice(at..next))));
        at = next;
    }
    let stream = futures::stream::iter(frames);
    let broken = cut.is_some();
    let tail = futures::stream::once(async move {
        // Lets the bytes before the break leave first: hyper drops what it has not sent when a body fails.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut by the test"))
    });
    let tail = tail.filter(move |_| std::future::ready(broken));
    BodyExt::boxed(StreamBody::new(stream.chain(tail)))
}

async fn inflate(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = async_compression::tokio::bufread::GzipDecoder::new(raw).read_to_end(&mut out).await;
    out
}

/// Deflates as git does with large request bodies.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    block_on(async {
        let mut encoder = async_compression::tokio::write::GzipEncoder::new(Vec::new());
        encoder.write_all(bytes).await.expect("memory");
        encoder.shutdown().await.expect("memory");
        encoder.into_inner()
    })
}
