//! For the tests of this room: repositories made by git, and a small HTTP server that stands for a Git host.
//!
//! The server runs the real `git http-backend` by itself (not through `cgi`), so that it is an oracle.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body as AxumBody;
use axum::extract::Request as AxumRequest;
use axum::response::Response as AxumResponse;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use secrecy::SecretString;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

use super::{Body, ClientHeaders, Credential, Location, Primary, PrimarySettings, Request};
use crate::git::path::{Endpoint, RepoPath, split};

/// A folder with repositories, gone at the end of the test.
pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Where the primary's repositories lie.
    pub fn root(&self) -> PathBuf {
        let root = self.dir.path().join("primary");
        std::fs::create_dir_all(&root).unwrap();
        root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bare repository with two commits on `main`, one on `topic`, a tag and an annotated tag.
    pub async fn repo(&self, name: &str, format: &str) -> RepoPath {
        let bare = self.root().join(name);
        let work = self.path(&format!("work-{}", name.replace('/', "-")));
        git(
            self.dir.path(),
            &["init", "-q", "-b", "main", &format!("--object-format={format}"), text(&work)],
        )
        .await;
        for (n, branch) in ["main", "main", "topic"].iter().enumerate() {
            git(&work, &["checkout", "-q", "-B", branch]).await;
            self.commit(&work, &format!("file{n}"), &noise(n as u32, 4000)).await;
        }
        git(&work, &["tag", "light", "main"]).await;
        git(&work, &["tag", "-a", "-m", "annotated", "heavy", "main"]).await;
        git(&work, &["checkout", "-q", "main"]).await;
        git(self.dir.path(), &["clone", "-q", "--mirror", text(&work), text(&bare)]).await;
        RepoPath::parse(name).unwrap()
    }

    /// Commits one file in a working repository.
    pub async fn commit(&self, work: &Path, file: &str, content: &str) {
        std::fs::write(work.join(file), content).unwrap();
        git(work, &["add", "."]).await;
        git(work, &["commit", "-q", "-m", file]).await;
    }
}

/// Text that does not compress to nothing.
pub fn noise(seed: u32, lines: u32) -> String {
    (0..lines).map(|n| format!("{:x}\n", n.wrapping_add(seed << 20).wrapping_mul(2_654_435_761))).collect()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn command(cwd: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(cwd)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .env("NO_PROXY", "*")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@x"), ("GIT_AUTHOR_DATE", "@1 +0000")])
        .envs([
            ("GIT_COMMITTER_NAME", "c"),
            ("GIT_COMMITTER_EMAIL", "c@x"),
            ("GIT_COMMITTER_DATE", "@2 +0000"),
        ])
        .kill_on_drop(true);
    command
}

/// Runs git, which must succeed, and gives what it printed.
pub async fn git(cwd: &Path, args: &[&str]) -> String {
    let (ok, out, err) = try_git(cwd, args).await;
    assert!(ok, "git {args:?}: {err}");
    out
}

pub async fn try_git(cwd: &Path, args: &[&str]) -> (bool, String, String) {
    let out = command(cwd).args(args).stdin(Stdio::null()).output().await.unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (out.status.success(), text(&out.stdout), text(&out.stderr))
}

/// Runs git with something to read.
pub async fn git_with(cwd: &Path, args: &[&str], input: &[u8]) -> (bool, String) {
    let mut child = command(cwd)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let out = child.wait_with_output().await.unwrap();
    feed.await.unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

/// What a server was asked.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub type Handler = Arc<dyn Fn(AxumRequest) -> BoxFuture<'static, AxumResponse> + Send + Sync>;

/// A server on loopback, gone when dropped.
pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    pub async fn start<F>(handler: impl Fn(AxumRequest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = AxumResponse> + Send + 'static,
    {
        Self::with(Arc::new(move |request| handler(request).boxed())).await
    }

    pub async fn with(handler: Handler) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = seen.clone();
        let app = axum::Router::new().fallback(move |request: AxumRequest| {
            log.lock().unwrap().push(Seen {
                method: request.method().to_string(),
                target: request.uri().to_string(),
                headers: request.headers().clone(),
            });
            handler(request)
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, seen, _task: AbortOnDropHandle::new(task) }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub async fn primary(&self) -> Primary {
        self.primary_with(|_| {}).await
    }

    pub async fn primary_with(&self, change: impl FnOnce(&mut PrimarySettings)) -> Primary {
        let mut settings = PrimarySettings::new(Location::parse(&self.url, false).unwrap());
        change(&mut settings);
        Primary::open(settings).await.unwrap()
    }
}

pub fn credential(text: &str) -> Option<Credential> {
    Some(Credential::fixed(SecretString::from(text)).unwrap())
}

pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<AxumBody>) -> AxumResponse {
    let mut response = AxumResponse::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    response
}

/// `git http-backend` over the repositories in `root`, bodies held whole.
pub async fn backend(root: PathBuf, request: AxumRequest) -> AxumResponse {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let header = |name: &str| parts.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let mut child = Command::new("git")
        .arg("http-backend")
        .envs([
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_HTTP_EXPORT_ALL", "1"),
        ])
        .env("GIT_PROJECT_ROOT", root)
        .env(
            "PATH_INFO",
            percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8().unwrap().as_ref(),
        )
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("REMOTE_USER", "tester")
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::spawn(async move {
        let _ = stdin.write_all(&body).await;
    });
    let out = child.wait_with_output().await.unwrap().stdout;
    let end = out.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&out[..end]).unwrap();
    let pairs: Vec<_> = head.lines().map(|line| line.split_once(": ").unwrap()).collect();
    let status = pairs.iter().find(|(name, _)| *name == "Status").map_or("200", |(_, value)| &value[..3]);
    let headers: Vec<_> = pairs.iter().copied().filter(|(name, _)| *name != "Status").collect();
    answer(status.parse().unwrap(), &headers, Bytes::copy_from_slice(&out[end + 4..]))
}

/// A Git host that asks everybody for one of these `Authorization` values, with two challenges.
pub async fn guarded(root: PathBuf, allowed: Vec<&'static str>, request: AxumRequest) -> AxumResponse {
    let given = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    if given.is_some_and(|given| allowed.contains(&given.as_str())) {
        return backend(root, request).await;
    }
    challenge()
}

pub fn challenge() -> AxumResponse {
    let challenges = [("WWW-Authenticate", "Basic realm=\"the host\""), ("WWW-Authenticate", "Bearer")];
    answer(401, &challenges, "who are you?")
}

/// What `serve` does with a request that is passed through, for real git clients in tests.
pub async fn pass(primary: Primary, request: AxumRequest) -> AxumResponse {
    use futures::TryStreamExt;
    let (parts, body) = request.into_parts();
    let Ok((repo, endpoint)) = split(parts.uri.path(), parts.uri.query()) else {
        return answer(400, &[], "");
    };
    let client = ClientHeaders::of(&parts.headers).unwrap();
    let length = parts.headers.get("content-length").map(|value| value.to_str().unwrap().parse().unwrap());
    let pieces = Box::pin(body.into_data_stream().map_err(std::io::Error::other));
    let body = if parts.method == http::Method::POST { Body::Stream { pieces, length } } else { Body::Empty };
    let query = parts.uri.query().map(str::to_owned);
    let request = Request { method: parts.method, repo, endpoint, query, client, body };
    match primary.send(request).await {
        Ok(response) => {
            let mut answer = AxumResponse::new(AxumBody::from_stream(response.body));
            *answer.status_mut() = response.status;
            *answer.headers_mut() = response.headers;
            answer
        }
        Err(error) => answer(503, &[], error.to_string()),
    }
}

/// A client's headers, as a request would bring them.
pub fn client(pairs: &[(&str, &str)]) -> ClientHeaders {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    ClientHeaders::of(&headers).unwrap()
}

/// A request of a client for `endpoint`.
pub fn request(method: http::Method, repo: &RepoPath, endpoint: Endpoint, client: ClientHeaders) -> Request {
    Request { method, repo: repo.clone(), endpoint, query: None, client, body: Body::Empty }
}

/// Reads an answer to its end.
pub async fn collected(response: super::Response) -> Result<Bytes, super::PrimaryError> {
    Ok(super::body::collect(response.body, usize::MAX).await?.unwrap())
}

/// Waits for something that is about to happen; a test that waits in vain fails.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.unwrap()
}

/// Waits until `done` is true.
pub async fn until(mut done: impl FnMut() -> bool) {
    soon(async {
        while !done() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
