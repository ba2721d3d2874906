//! Requests within requests: whatever a client sends, the primary sees the one request that it is, and no answer ever
//! reaches a request that it was not for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::mirror_only;
use crate::node::Setup;
use crate::oracle::mirrored;
use crate::primary::Primary;
use crate::wire::{self, Reply};
use crate::world::World;
use crate::{hostile, shapes};

/// A request that no test sends but inside another one.
const HIDDEN: &str = "GET /smuggled.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n";

/// Sends bytes and reads everything until the node closes, or `patience` is over.
fn everything(address: &str, bytes: &[u8], patience: Duration) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let _ = stream.write_all(bytes);
    let (mut all, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (all, true),
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return (all, true),
            Err(_) => return (all, false),
        }
    }
}

fn statuses(answer: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(answer).into_owned();
    text.match_indices("HTTP/1.").map(|(at, _)| text[at + 9..].chars().take(3).collect()).collect()
}

/// Each of these two servers in a row might cut in two ways: a refusal, the end of the connection, and nothing more.
#[test]
fn what_could_be_cut_in_two_ways_is_refused() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    primary.forget_log();
    let n = HIDDEN.len();
    let lengths: Vec<String> = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: chunked\r\nX: y\r\nContent-Length: 0",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Content-Length: 0\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5.0",
        "Content-Length: five",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Content-Length : 5",
        "Content-Length\t: 5",
        " Content-Length: 5",
        "X: y\r\n Content-Length: 5",
        "X: y\r\n\tContent-Length: 5",
        "Content-Length: 5\r\n X: y",
        "X: y\nContent-Length: 5",
        "X: y\rContent-Length: 5",
        "X: y\r\r\nContent-Length: 5",
        "X: y\0\r\nContent-Length: 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding:",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Expect: 200-maybe\r\nContent-Length: 0",
        "Host: other\r\nContent-Length: 0",
        "X\r\nContent-Length: 0",
        ": x\r\nContent-Length: 0",
        "X Y: z\r\nContent-Length: 0",
        "Content_Length: 5\nX: y",
    ]
    .map(|length| {
        format!("POST /{}/git-receive-pack HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n{HIDDEN}", repo.path)
    })
    .to_vec();
    let chunks = [
        format!("0 \r\n\r\n{HIDDEN}"),
        format!("0;a=b\r\n\r\n{HIDDEN}"),
        format!("0\n\n{HIDDEN}"),
        format!("0\r\nX: y\r\n\r\n{HIDDEN}"),
        format!("0\r\n{HIDDEN}"),
        format!("0x0\r\n\r\n{HIDDEN}"),
        format!("-0\r\n\r\n{HIDDEN}"),
        format!("3\r\nabcd\r\n0\r\n\r\n{HIDDEN}"),
        format!("3\r\nabc\n0\r\n\r\n{HIDDEN}"),
        format!("10000000000000000\r\n{HIDDEN}"),
        format!("ffffffffffffffff\r\n{HIDDEN}"),
        format!("\r\n{HIDDEN}"),
    ]
    .map(|body| {
        let head = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("POST /{}/git-receive-pack HTTP/1.1\r\n{head}{body}", repo.path)
    });
    let lines = [
        format!("GET /{}/HEAD HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\n\r\n{HIDDEN}", repo.path),
        format!("HEAD /{}/HEAD HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\n\r\n{HIDDEN}", repo.path),
        format!(
            "GET /{}/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{n:x}\r\n{HIDDEN}\r\n0\r\n\r\n",
            repo.path
        ),
        format!(
            "POST /{}/git-upload-pack HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
            repo.path
        ),
        format!("POST /{}/git-receive-pack HTTP/1.1\r\nContent-Length: 0\r\n\r\n{HIDDEN}", repo.path),
        format!("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("NONSENSE / HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET / HTTP/1.1 \r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET  / HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET / HTTP/1.1\nHost: x\n\n{HIDDEN}"),
        format!("GET / HTTP/9.9\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET /\r\n{HIDDEN}"),
        format!("REFUSED /0 HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("PRI * HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("\0\r\n{HIDDEN}"),
    ];
    let all: Vec<String> = lengths.into_iter().chain(chunks).chain(lines).collect();
    assert!(all.len() > 60);
    for request in &all {
        let shown = request.escape_debug().to_string();
        let (answer, closed) = everything(node.address(), request.as_bytes(), Duration::from_secs(10));
        let got = statuses(&answer);
        assert!(closed, "the connection stayed open after {shown}: {got:?}");
        assert!(got.len() <= 1, "{shown}: {got:?}");
        // A body that turns out to be broken when its request has gone on is the primary's broken request, and no answer.
        let refused = got.first().is_none_or(|status| status.starts_with('4') || status == "503");
        assert!(refused, "{shown}: {got:?}");
    }
    let seen = primary.count(|seen| seen.path.contains("smuggled"));
    assert_eq!(seen, 0, "a request within a request reached the primary");
    let ours =
        |seen: &crate::primary::Seen| seen.header("user-agent").is_some_and(|v| v.contains("packmirror"));
    let gets = primary.count(|seen| matches!(seen.method.as_str(), "GET" | "HEAD") && !ours(seen));
    assert_eq!(gets, 0, "a GET with a body went on");
    // What is sound still goes on, one after the other on one connection.
    let sound = format!(
        "GET /{p}/HEAD HTTP/1.1\r\nHost: x\r\n\r\n\r\nGET /{p}/HEAD HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        p = repo.path
    );
    let (answer, closed) = everything(node.address(), sound.as_bytes(), Duration::from_secs(10));
    assert_eq!((statuses(&answer), closed), (vec!["200".to_owned(), "200".to_owned()], true));
}

/// Ways in which a server, or a proxy in front of one, gets bodies wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// It leaves bodies of GET and HEAD where they are.
    GetBodies,
    /// It reads bodies only of fetches.
    OtherBodies,
    /// It reads no body of what it refuses.
    RefusedBodies,
    /// It sends another answer right after each one for the public repository.
    TwoAnswers,
}

/// A proxy in front of a primary that gets bodies wrong.
struct Sloppy {
    address: String,
    smuggled: Arc<AtomicUsize>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Sloppy {
    fn start(primary: &str, wrong: Wrong) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (smuggled, log) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (primary, count, seen) = (primary.to_owned(), smuggled.clone(), log.clone());
        // The thread ends with the test's process; it holds nothing.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (primary, count, seen) = (primary.clone(), count.clone(), seen.clone());
                std::thread::spawn(move || Self::serve(stream, &primary, wrong, &count, &seen));
            }
        });
        Self { address, smuggled, log }
    }

    fn serve(
        stream: TcpStream,
        primary: &str,
        wrong: Wrong,
        smuggled: &AtomicUsize,
        log: &Mutex<Vec<String>>,
    ) -> Option<()> {
        let _ = stream.set_nodelay(true);
        let mut from = BufReader::new(stream.try_clone().ok()?);
        let mut to = stream;
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                from.read_line(&mut line).ok().filter(|n| *n > 0)?;
                let line = line.trim_end().to_owned();
                if line.is_empty() && head.is_empty() {
                    continue;
                }
                if line.is_empty() {
                    break;
                }
                head.push(line);
            }
            let words: Vec<&str> = head[0].split(' ').collect();
            // As servers do with what is no request at all.
            let (method, path) = (words.first()?.to_string(), words.get(1)?.to_string());
            words.get(2).filter(|v| v.starts_with("HTTP/1."))?;
            let find = |name: &str| {
                head[1..]
                    .iter()
                    .filter_map(|l| l.split_once(':'))
                    .find(|(n, _)| n.eq_ignore_ascii_case(name))
                    .map(|(_, v)| v.trim().to_owned())
            };
            smuggled.fetch_add(usize::from(find("x-smuggled").is_some()), Ordering::SeqCst);
            log.lock().unwrap().push(format!("{method} {path}"));
            let fetch = path.ends_with("/git-upload-pack");
            let refuses = path.contains("/private.git") && find("authorization").is_none();
            let reads = match wrong {
                Wrong::GetBodies => !matches!(method.as_str(), "GET" | "HEAD"),
                Wrong::OtherBodies => fetch,
                Wrong::RefusedBodies => !refuses,
                Wrong::TwoAnswers => true,
            };
            let mut body = Vec::new();
            if reads {
                body = read_body(&mut from, find("content-length"), find("transfer-encoding"))?;
            }
            let reply = if refuses { None } else { Some(ask(primary, &method, &path, &head[1..], &body)?) };
            let mut out = Vec::new();
            match reply {
                None => out.extend_from_slice(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n"),
                Some(reply) => {
                    let kind = reply.header("content-type").unwrap_or("text/plain").to_owned();
                    let head = format!("HTTP/1.1 {} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", reply.status, reply.body.len());
                    let body: &[u8] = if method == "HEAD" { b"" } else { &reply.body };
                    out.extend_from_slice(head.as_bytes());
                    out.extend_from_slice(body);
                    if wrong == Wrong::TwoAnswers && fetch {
                        out.extend_from_within(..);
                    }
                }
            }
            to.write_all(&out).ok()?;
            if find("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
                return None;
            }
        }
    }
}

fn read_body(from: &mut impl BufRead, length: Option<String>, coding: Option<String>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if coding.is_some() {
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok().filter(|n| *n > 0)?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk).ok()?;
            if size == 0 {
                return Some(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    body.resize(length.and_then(|l| l.parse().ok()).unwrap_or(0), 0);
    from.read_exact(&mut body).ok()?;
    Some(body)
}

fn ask(primary: &str, method: &str, path: &str, headers: &[String], body: &[u8]) -> Option<Reply> {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for line in headers {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !["host", "connection", "content-length", "transfer-encoding", "x-smuggled"]
            .contains(&name.as_str())
        {
            head.push_str(line);
            head.push_str("\r\n");
        }
    }
    wire::raw(primary, &[head.as_bytes(), b"\r\n", body].concat()).ok()
}

/// While others smuggle, an anonymous client asks for a private repository that is mirrored.
fn nobody_gets_anothers_answer(wrong: Wrong, ttl: &str) {
    let (world, primary) = (World::new(), Primary::start());
    let private = primary.repo("private.git", shapes::linear);
    primary.repo("public.git", shapes::linear);
    primary.account("alice", "secret");
    primary.private("private.git", &["alice"]);
    let sloppy = Sloppy::start(primary.address(), wrong);
    let node = Setup::new(&world, &format!("http://{}", sloppy.address))
        .set(&format!("grant_ttl = \"{ttl}\""))
        .set("credential = \"alice:secret\"")
        .start();
    let mirrored = || {
        let before = node.answered_from_bucket();
        world.clone_of(&node.repo_as("alice", "secret", "private.git"), "--bare");
        (node.answered_from_bucket() > before).then_some(())
    };
    crate::world::eventually("the private repository to be mirrored", mirrored);

    let question = b"0014command=ls-refs\n00010000";
    let hidden = format!(
        "POST /public.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nX-Smuggled: 1\r\nGit-Protocol: version=2\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n{}",
        question.len(),
        String::from_utf8_lossy(question)
    );
    let n = hidden.len();
    let carriers = [
        format!("GET /public.git/HEAD HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\n\r\n{hidden}"),
        format!(
            "GET /public.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{n:x}\r\n{hidden}\r\n0\r\n\r\n"
        ),
        format!(
            "POST /public.git/info/lfs/objects/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\n\r\n{hidden}"
        ),
        format!("PUT /public.git/info/lfs/x HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\n\r\n{hidden}"),
        format!(
            "POST /public.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\n\r\n{hidden}"
        ),
        format!(
            "POST /private.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\n\r\n{hidden}"
        ),
        format!(
            "POST /private.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nContent-Length: {n}\r\n\r\n{hidden}"
        ),
        String::from(
            "POST /public.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: 28\r\n\r\n0014command=ls-refs\n00010000",
        ),
    ];
    let tip = private.oid("refs/heads/main");
    let want = format!("want {tip}");
    let fetch = wire::command("fetch", &["object-format=sha1"], &[&want, "no-progress", "done"]);
    let listing = wire::command("ls-refs", &["object-format=sha1"], &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let smugglers: Vec<_> = (0..4)
        .map(|first| {
            let (stop, address) = (stop.clone(), node.address().to_owned());
            let carriers = carriers.clone();
            std::thread::spawn(move || {
                for carrier in carriers.iter().cycle().skip(first * 2) {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    everything(&address, carrier.as_bytes(), Duration::from_millis(20));
                }
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(if hostile::full() { 40 } else { 3 });
    let (mut asked, mut given) = (0, Vec::new());
    while Instant::now() < end && given.is_empty() {
        for body in [&fetch, &listing] {
            asked += 1;
            let name = format!("{asked}");
            let headers = [wire::V2, ("X-Try", name.as_str())];
            let reply = wire::post(node.address(), "/private.git/git-upload-pack", &headers, body).unwrap();
            if reply.status == 200 {
                given.push(reply.text());
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    smugglers.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(asked > 3 && sloppy.log.lock().unwrap().len() > 10, "{asked} questions");
    assert!(given.is_empty(), "{wrong:?}: nobody got the private repository's answer: {given:?}");
    assert_eq!(
        sloppy.smuggled.load(Ordering::SeqCst),
        0,
        "{wrong:?}: a request within a request was taken for one"
    );
}

#[test]
fn where_bodies_of_get_are_left_unread() {
    mirror_only!();
    nobody_gets_anothers_answer(Wrong::GetBodies, "30s");
    nobody_gets_anothers_answer(Wrong::GetBodies, "0s");
}

#[test]
fn where_only_bodies_of_fetches_are_read() {
    mirror_only!();
    nobody_gets_anothers_answer(Wrong::OtherBodies, "0s");
}

#[test]
fn where_bodies_of_refused_requests_are_left_unread() {
    mirror_only!();
    nobody_gets_anothers_answer(Wrong::RefusedBodies, "0s");
}

#[test]
fn where_answers_come_before_they_are_asked_for() {
    mirror_only!();
    nobody_gets_anothers_answer(Wrong::TwoAnswers, "0s");
}
