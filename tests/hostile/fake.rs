//! A primary that speaks Git's protocol badly, in as many ways as there are first path segments.
//!
//! Everything but the way's own fault is honest: it comes from `git upload-pack` on one repository.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::primary::gzip;
use crate::wire::pkt;

const ADVERTISEMENT: &str = "application/x-git-upload-pack-advertisement";
const RESULT: &str = "application/x-git-upload-pack-result";

/// The primary; its threads end with the test's process.
pub struct Fake {
    pub url: String,
    state: Arc<State>,
}

/// What it serves.
struct State {
    repo: PathBuf,
    head: String,
    /// A host that ignores case, and what it calls its repository.
    own_spelling: Option<String>,
    /// It minds spellings after all, as long as this is set.
    minds: AtomicBool,
    /// Whose requests are refused, by the beginning of their path.
    refused: Mutex<Option<String>>,
    /// The paths that were asked for, as they came.
    asked: Mutex<Vec<String>>,
}

impl Fake {
    /// Serves `repo`, whose branch is `main`.
    pub fn start(repo: &Path) -> Self {
        Self::with(repo, None)
    }

    /// The same as a Gitea that calls the repository `own_spelling`, under which case does not matter.
    pub fn gitea(repo: &Path, own_spelling: &str) -> Self {
        Self::with(repo, Some(own_spelling.to_owned()))
    }

    /// Whether a host that ignores case minds it for now, and does not say what it is.
    pub fn minds_case(&self, minds: bool) {
        self.state.minds.store(minds, Ordering::SeqCst);
    }

    /// Refuses what is asked for under paths that begin so.
    pub fn refuses(&self, beginning: &str) {
        *self.state.refused.lock().expect("a lock") = Some(beginning.to_owned());
    }

    /// The paths that were asked for, as they came.
    pub fn asked(&self) -> Vec<String> {
        self.state.asked.lock().expect("a lock").clone()
    }

    fn with(repo: &Path, own_spelling: Option<String>) -> Self {
        let head = crate::git::git(repo).run("rev-parse main").line();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(State {
            repo: repo.to_owned(),
            head,
            own_spelling,
            minds: AtomicBool::new(false),
            refused: Mutex::default(),
            asked: Mutex::default(),
        });
        let serving = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&serving);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { url, state }
    }
}

/// Answers one request. A connection that breaks is the other side's business.
fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let mut body = vec![0; header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let mut line = head.split(' ');
    let (method, target) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
    let mut path = target.split('?').next().unwrap_or_default().trim_start_matches('/').to_owned();
    state.asked.lock().expect("a lock").push(path.clone());
    if state.refused.lock().expect("a lock").as_ref().is_some_and(|refused| path.starts_with(&**refused)) {
        return answer(&mut stream, 403, "text/plain", "", b"not you");
    }
    if let Some(own) = state.own_spelling.as_ref().filter(|_| !state.minds.load(Ordering::SeqCst)) {
        path = path.to_ascii_lowercase();
        let name = own.to_ascii_lowercase();
        if path == "api/v1/version" {
            return answer(&mut stream, 200, "application/json", "", br#"{"version":"1.22.3"}"#);
        }
        if path == format!("api/v1/repos/{name}") {
            let found = format!(r#"{{"full_name":"{own}"}}"#);
            return answer(&mut stream, 200, "application/json", "", found.as_bytes());
        }
        if !path.starts_with(&format!("{name}.git/")) && !path.starts_with(&format!("{name}/")) {
            return answer(&mut stream, 404, "text/plain", "", b"not found");
        }
    }
    if path.starts_with("api/") || path.starts_with("rest/") {
        return answer(&mut stream, 404, "text/plain", "", b"not found");
    }
    let way = path.split('/').next().unwrap_or_default();
    if method == "GET" {
        return match way {
            "gzipadv" => answer(
                &mut stream,
                200,
                ADVERTISEMENT,
                "Content-Encoding: gzip\r\n",
                &gzip(&vec![0; 1 << 24]),
            ),
            "bighead" => {
                let more: String = (0..90).map(|n| format!("X-{n}: {}\r\n", "y".repeat(60_000))).collect();
                answer(&mut stream, 200, ADVERTISEMENT, &more, b"")
            }
            "endlessadv" => {
                begin(&mut stream, ADVERTISEMENT)?;
                stream.write_all(format!("{}0000", pkt("# service=git-upload-pack\n")).as_bytes())?;
                loop {
                    stream.write_all(pkt(&"x".repeat(60_000)).as_bytes())?;
                }
            }
            _ => {
                let lines =
                    ["version 2\n", "agent=fake\n", "ls-refs=unborn\n", "fetch\n", "object-format=sha1\n"];
                let lines: String = lines.iter().map(|line| pkt(line)).collect();
                let all = format!("{}0000{lines}0000", pkt("# service=git-upload-pack\n"));
                answer(&mut stream, 200, ADVERTISEMENT, "", all.as_bytes())
            }
        };
    }
    let id = &state.head;
    let refs = |lines: &[String]| -> Vec<u8> {
        let lines: String = lines.iter().map(|line| pkt(line)).collect();
        format!("{lines}0000").into_bytes()
    };
    if body.windows(7).any(|words| words == b"ls-refs") {
        let lines = match way {
            "control" => vec![format!("{id} refs/heads/a\u{1}b\n")],
            "dots" => vec![format!("{id} refs/heads/../../x\n")],
            "longname" => vec![format!("{id} refs/heads/{}\n", "n".repeat(60_000))],
            "newline" => vec![format!("{id} refs/heads/a\n{id} refs/heads/evil\n")],
            "symref" => vec![format!("{id} HEAD symref-target:../../etc/passwd\n")],
            "missing" => vec![format!("{} refs/heads/main\n", "1".repeat(40))],
            "endlessrefs" => {
                begin(&mut stream, RESULT)?;
                for from in (0u64..).step_by(1000) {
                    let lines: String =
                        (from..from + 1000).map(|n| pkt(&format!("{id} refs/heads/n{n:012}\n"))).collect();
                    stream.write_all(lines.as_bytes())?;
                }
                return Ok(());
            }
            "silentrefs" => {
                std::thread::sleep(Duration::from_secs(300));
                return Ok(());
            }
            "close" => {
                begin(&mut stream, RESULT)?;
                return stream.write_all(pkt(&format!("{id} refs/heads/main\n")).as_bytes());
            }
            _ => {
                vec![format!("{id} HEAD symref-target:refs/heads/main\n"), format!("{id} refs/heads/main\n")]
            }
        };
        return answer(&mut stream, 200, RESULT, "", &refs(&lines));
    }
    match way {
        "progress" => {
            begin(&mut stream, RESULT)?;
            stream.write_all(pkt("packfile\n").as_bytes())?;
            loop {
                stream.write_all(pkt(&format!("\u{2}{}\n", "p".repeat(900))).as_bytes())?;
            }
        }
        "silentpack" => {
            begin(&mut stream, RESULT)?;
            stream.write_all(pkt("packfile\n").as_bytes())?;
            loop {
                stream.write_all(pkt("\u{2}Counting objects\n").as_bytes())?;
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        _ => {}
    }
    let mut git = Command::new("git")
        .args(["upload-pack", "--stateless-rpc"])
        .arg(&state.repo)
        .env("GIT_PROTOCOL", "version=2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    git.stdin.take().expect("piped").write_all(&body)?;
    let mut out = git.wait_with_output()?.stdout;
    match way {
        // The last bytes are those of the trailer and the flush packet.
        "trailer" => {
            let at = out.len() - 10;
            out[at] ^= 1;
        }
        "trunc" => out.truncate(out.len() - 40),
        "extra" => out.extend_from_slice(b"0005x"),
        _ => {}
    }
    answer(&mut stream, 200, RESULT, "", &out)
}

fn answer(stream: &mut TcpStream, status: u16, kind: &str, more: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// Begins an answer that ends with its connection.
fn begin(stream: &mut TcpStream, kind: &str) -> std::io::Result<()> {
    stream
        .write_all(format!("HTTP/1.1 200 X\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n").as_bytes())
}
