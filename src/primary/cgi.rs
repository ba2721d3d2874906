//! A directory of bare repositories as the primary, through `git http-backend` (CGI, RFC 3875).
//!
//! A directory has no accounts, so every client may read. Pushing is off unless the repository's own
//! `http.receivepack`, or the setting `allow_push` for all, says yes. Each request is one process with an environment of ours; no header of the
//! client but those git needs gets there, so credentials never do. Both bodies are piped through, and
//! dropping the answer kills the process and its children at once.
//! Relies on: `git` in `PATH`. Elsewhere: which folder a path means (`directory`), silence (`idle`).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::git::path::{Endpoint, Service};

use super::body::RequestPieces;
use super::error::plain;
use super::{Body, Line, Outgoing, PrimaryError, Response, directory};

/// The most processes at once for what is passed on; further requests wait.
const MOST_PROCESSES: usize = 64;
/// The same for questions for grants, which clients that are slow with other answers must not hold up.
const MOST_QUESTIONS: usize = 16;
/// The same for syncs and comparisons.
const MOST_OWN: usize = 16;
/// What a push is told that the repository does not take.
const PUSHES_ARE_OFF: &str = "This primary is a directory, which has no accounts, and pushing to this repository is off.\n\
    To let everybody push who reaches it, set http.receivepack = true in the repository's configuration, or allow_push\n\
    for all repositories in packmirror's settings.\n";
/// The most bytes of a CGI head.
const MOST_HEAD: usize = 64 * 1024;
/// How much is read from the process at once.
const PIECE: usize = 64 * 1024;
/// How much of the end of the process's messages is kept for the log.
const KEPT_MESSAGES: usize = 2048;

/// The directory, ready to be asked.
#[derive(Debug)]
pub(super) struct Cgi {
    /// Without symbolic links.
    root: PathBuf,
    git: PathBuf,
    path: OsString,
    /// Whether repositories that do not say who may push take pushes from everybody.
    allow_push: bool,
    passing: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

impl Cgi {
    /// Checks that the directory and git are there.
    pub(super) async fn open(root: &Path, allow_push: bool) -> Result<Self, PrimaryError> {
        let wrong = |why: String| PrimaryError::Settings(format!("the primary {}: {why}", root.display()));
        let real = tokio::fs::canonicalize(root).await.map_err(|error| wrong(error.to_string()))?;
        if !tokio::fs::metadata(&real).await.is_ok_and(|meta| meta.is_dir()) {
            return Err(wrong("it is not a directory".into()));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        // By its whole path: to look it up in a changed environment, this whole process would be forked.
        let mut found = std::env::split_paths(&path).map(|folder| folder.join("git"));
        let git = found.find(|program| program.is_file()).unwrap_or_else(|| "git".into());
        Command::new(&git).arg("--version").output().await.map_err(|error| {
            wrong(format!("a directory is served through git, which cannot be started: {error}"))
        })?;
        let places = |most| Arc::new(Semaphore::new(most));
        let (passing, questions, own) = (places(MOST_PROCESSES), places(MOST_QUESTIONS), places(MOST_OWN));
        Ok(Self { root: real, git, path, allow_push, passing, questions, own })
    }

    /// Looks whether the directory can be read.
    pub(super) async fn reach(&self) -> Result<(), PrimaryError> {
        let gone = |error: io::Error| {
            PrimaryError::Unreachable(format!("{} cannot be read: {error}", self.root.display()))
        };
        tokio::fs::read_dir(&self.root).await.map(drop).map_err(gone)
    }

    /// Runs one request and gives the head of its answer; both bodies stream.
    pub(super) async fn send(&self, outgoing: Outgoing) -> Result<Response, PrimaryError> {
        let (root, repo) = (self.root.clone(), outgoing.repo.clone());
        let pushes = matches!(
            outgoing.endpoint,
            Endpoint::ReceivePack | Endpoint::InfoRefs(Some(Service::ReceivePack))
        );
        let found = crate::threads::spawn_blocking(move || directory::find(&root, &repo)).await;
        let Ok(Some(folder)) = found else { return Ok(not_found()) };
        let places = match outgoing.line {
            Line::Grants => &self.questions,
            Line::Own => &self.own,
            Line::Plain | Line::Once => &self.passing,
        };
        let permit = Arc::clone(places).acquire_owned().await;
        let permit = permit.map_err(|_| PrimaryError::Unreachable("shutting down".into()))?;
        let mut command = self.command(&outgoing, &folder);
        // What a push makes in the primary's directory gets the permissions that its owner chose.
        let mut child = crate::umask::as_caller(|| command.spawn()).map_err(|error| {
            PrimaryError::Unreachable(format!("git http-backend cannot be started: {error}"))
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(PrimaryError::Unreachable("git http-backend has no output".into()));
        };
        let broken = CancellationToken::new();
        let feed = child.stdin.take().map(|stdin| {
            AbortOnDropHandle::new(tokio::spawn(feed(outgoing.body.into_pieces(), stdin, broken.clone())))
        });
        let mut running = Running {
            group: child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)),
            output: ReaderStream::with_capacity(stdout, PIECE),
            rest: Bytes::new(),
            child,
            messages: tokio::spawn(last_words(stderr)),
            broken,
            repo: outgoing.repo.to_string(),
            _feed: feed,
            _permit: permit,
        };
        let (status, headers) = running.head().await?;
        if status == StatusCode::FORBIDDEN && !self.allow_push && pushes {
            return Ok(text(status, PUSHES_ARE_OFF));
        }
        if outgoing.method == Method::HEAD {
            return Ok(Response {
                status,
                headers,
                body: Box::pin(stream::empty()),
                unframed: false,
                tunnel: None,
                asked: None,
            });
        }
        let body = stream::try_unfold(running, |mut running| async move {
            Ok(running.piece().await?.map(|piece| (piece, running)))
        });
        Ok(Response { status, headers, body: Box::pin(body), unframed: false, tunnel: None, asked: None })
    }

    /// The process with all of its environment: nothing of ours but `PATH`, no user or system configuration.
    fn command(&self, outgoing: &Outgoing, folder: &Path) -> Command {
        let mut command = Command::new(&self.git);
        command
            .arg("http-backend")
            .current_dir(&self.root)
            .env_clear()
            .env("PATH", &self.path)
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            // The operator named the directory, so the owner of the repositories in it does not matter.
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .env("SERVER_PROTOCOL", "HTTP/1.1")
            .env("REQUEST_METHOD", outgoing.method.as_str())
            .env("PATH_INFO", path_info(folder, outgoing))
            .env("QUERY_STRING", outgoing.query().unwrap_or_default())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if self.allow_push {
            // A user's name switches pushing on where the repository does not say otherwise (http-backend.c).
            command.env("REMOTE_USER", "packmirror");
        }
        let header = |name: HeaderName| outgoing.headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(kind) = header(CONTENT_TYPE) {
            command.env("CONTENT_TYPE", kind);
        }
        if let Some(encoding) = header(CONTENT_ENCODING) {
            command.env("HTTP_CONTENT_ENCODING", encoding);
        }
        if let Some(protocol) = header(HeaderName::from_static("git-protocol")) {
            command.env("GIT_PROTOCOL", protocol);
        }
        match outgoing.body {
            Body::Empty => command.stdin(Stdio::null()),
            _ => command.stdin(Stdio::piped()),
        };
        if let Some(length) = outgoing.body.len().filter(|_| outgoing.method == Method::POST) {
            command.env("CONTENT_LENGTH", length.to_string());
        }
        command
    }
}

fn path_info(folder: &Path, outgoing: &Outgoing) -> OsString {
    let endpoint = match &outgoing.endpoint {
        Endpoint::Plain(rest) => rest.clone(),
        smart => smart.to_url(),
    };
    let mut path = OsString::from("/");
    path.push(folder);
    path.push("/");
    path.push(endpoint);
    path
}

fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "Repository not found\n")
}

/// An answer of our own, which git shows to its user line by line.
fn text(status: StatusCode, words: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let body = stream::iter([Ok(Bytes::from_static(words.as_bytes()))]);
    Response { status, headers, body: Box::pin(body), unframed: false, tunnel: None, asked: None }
}

/// Pipes a request's body into the process. If the client breaks off, the pipe stays open until the process is
/// killed: an end would look like a whole request.
async fn feed(mut pieces: RequestPieces, mut stdin: ChildStdin, broken: CancellationToken) {
    while let Some(piece) = pieces.next().await {
        match piece {
            // A process may answer without reading all of its input.
            Ok(piece) if stdin.write_all(&piece).await.is_err() => return,
            Ok(_) => {}
            Err(_) => {
                broken.cancel();
                return std::future::pending().await;
            }
        }
    }
}

/// Reads the process's messages to their end, so that it never waits for us, and keeps the last of them.
async fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept = VecDeque::new();
    let mut piece = [0; 1024];
    while let Ok(n @ 1..) = stderr.read(&mut piece).await {
        kept.extend(&piece[..n]);
        kept.drain(..kept.len().saturating_sub(KEPT_MESSAGES));
    }
    plain(kept.make_contiguous(), KEPT_MESSAGES)
}

/// A process that is answering; dropping it kills it.
struct Running {
    output: ReaderStream<ChildStdout>,
    /// What came with the head and belongs to the body.
    rest: Bytes,
    child: Child,
    /// The process and its children, until it has ended by itself.
    group: Option<Pid>,
    messages: tokio::task::JoinHandle<String>,
    broken: CancellationToken,
    repo: String,
    _feed: Option<AbortOnDropHandle<()>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // An error means that all of them have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Running {
    /// Reads the head of the answer.
    async fn head(&mut self) -> Result<(StatusCode, HeaderMap), PrimaryError> {
        let mut seen = BytesMut::new();
        let (lines, body) = loop {
            if let Some(ends) = end_of_head(&seen) {
                break ends;
            }
            if seen.len() > MOST_HEAD {
                return Err(PrimaryError::Protocol("git http-backend's head does not end".into()));
            }
            match self.read().await? {
                Some(piece) => seen.extend_from_slice(&piece),
                None => {
                    let said = (&mut self.messages).await.unwrap_or_default();
                    return Err(PrimaryError::Protocol(format!("git http-backend gave no answer: {said}")));
                }
            }
        };
        let head = parse_head(&seen[..lines])?;
        self.rest = seen.freeze().slice(body..);
        Ok(head)
    }

    /// The next piece of the body.
    async fn piece(&mut self) -> Result<Option<Bytes>, PrimaryError> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        let piece = self.read().await?;
        if piece.is_none() {
            self.end().await?;
        }
        Ok(piece)
    }

    async fn read(&mut self) -> Result<Option<Bytes>, PrimaryError> {
        let piece = tokio::select! {
            piece = self.output.next() => piece,
            () = self.broken.cancelled() => {
                return Err(PrimaryError::Unreachable("the request broke off".into()));
            }
        };
        let lost = |error: io::Error| PrimaryError::Unreachable(format!("git http-backend: {error}"));
        piece.transpose().map_err(lost)
    }

    /// Waits for the process. A failure that git has put into its answer itself ends the body as usual, as any
    /// CGI server does; a process that was killed did not finish its answer.
    async fn end(&mut self) -> Result<(), PrimaryError> {
        let lost = |error: io::Error| PrimaryError::Unreachable(format!("git http-backend: {error}"));
        let status = self.child.wait().await.map_err(lost)?;
        // From here on the system may give the process number to another process.
        self.group = None;
        if !status.success() {
            let said = (&mut self.messages).await.unwrap_or_default();
            tracing::info!(repo = %self.repo, %status, %said, "git http-backend failed");
        }
        match status.code() {
            Some(_) => Ok(()),
            None => Err(PrimaryError::Unreachable(format!("git http-backend was killed ({status})"))),
        }
    }
}

/// Where the head's lines end, and where the body begins.
type Ends = (usize, usize);

fn end_of_head(seen: &[u8]) -> Option<Ends> {
    let mut from = 0;
    while let Some(at) = seen[from..].iter().position(|byte| *byte == b'\n').map(|at| at + from) {
        match &seen[at + 1..] {
            [b'\n', ..] => return Some((at, at + 2)),
            [b'\r', b'\n', ..] => return Some((at, at + 3)),
            _ => from = at + 1,
        }
    }
    None
}

/// Reads the head of a CGI answer (RFC 3875, 6.3): headers, the status among them.
fn parse_head(lines: &[u8]) -> Result<(StatusCode, HeaderMap), PrimaryError> {
    let mut status = StatusCode::OK;
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let bad =
            || PrimaryError::Protocol(format!("git http-backend's head has the line '{}'", plain(line, 200)));
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(bad)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"status") {
            status = value.get(..3).and_then(|code| StatusCode::from_bytes(code).ok()).ok_or_else(bad)?;
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| bad())?;
        headers.append(name, HeaderValue::from_bytes(value).map_err(|_| bad())?);
    }
    Ok((status, headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_end_at_the_first_empty_line() {
        let cases: [(&[u8], Option<Ends>); 6] = [
            (b"A: 1\r\n\r\nbody\n\n", Some((5, 8))),
            (b"A: 1\n\nbody", Some((4, 6))),
            (b"A: 1\nB: 2\r\n\r\n", Some((10, 13))),
            (b"A: 1\r\n", None),
            (b"A: 1\r\n\r", None),
            (b"", None),
        ];
        for (seen, ends) in cases {
            assert_eq!(end_of_head(seen), ends, "{}", seen.escape_ascii());
        }
    }

    #[test]
    fn heads_are_read_or_refused() {
        let (status, headers) = parse_head(b"Status: 404 Not Found\r\nExpires: never\r\nX: a:b\r").unwrap();
        assert_eq!((status, headers["expires"].as_bytes()), (StatusCode::NOT_FOUND, &b"never"[..]));
        assert_eq!(headers["x"], "a:b");
        assert_eq!(parse_head(b"X: y").unwrap().0, StatusCode::OK);
        for bad in [&b"fatal"[..], b"Status: 9", b"Status: abc", b"a b: c", b"X: \x01"] {
            assert!(matches!(parse_head(bad), Err(PrimaryError::Protocol(_))), "{}", bad.escape_ascii());
        }
    }
}
