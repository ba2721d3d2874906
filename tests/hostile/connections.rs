//! Connections that say nothing, do not read, or are cut: none stays beyond its deadline, what stands behind it ends with it,
//! and whoever asks for health is answered.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::git::git;
use crate::node::{Node, Setup};
use crate::oracle::{mirrored, same};
use crate::primary::{Primary, Seen, Wrong};
use crate::wire;
use crate::world::{World, block_on, eventually, skip};
use crate::{hostile, mirror_only, shapes};

/// HTTP/2's first bytes, and an empty frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Ways to say nothing.
const SILENT: [(&str, &[u8]); 6] = [
    ("zero", b""),
    ("p", b"P"),
    ("pri", b"PRI * HTTP/2.0\r\n"),
    ("h2", PREFACE),
    ("ka", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("head", b"GET /li"),
];

fn open(node: &Node, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.write_all(first).unwrap();
    stream
}

/// Whether the other end has closed.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut piece = [0; 64 << 10];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

#[track_caller]
fn healthy(node: &Node) {
    for path in ["/livez", "/readyz", "/metrics"] {
        let begin = Instant::now();
        let reply = node.try_get(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(reply.status, 200, "{path}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{path} took {:?}", begin.elapsed());
    }
}

/// A repository whose list of refs fills every buffer on the way.
fn many_refs(dir: &Path) {
    shapes::linear(dir);
    let oid = git(dir).args(&["rev-parse", "refs/heads/main"]).must().line();
    let refs: String = (0..200_000).map(|n| format!("{oid} refs/heads/topic/number-{n:06}\n")).collect();
    std::fs::write(dir.join("packed-refs"), format!("# pack-refs with: peeled fully-peeled sorted \n{refs}"))
        .unwrap();
}

fn listing(path: &str) -> Vec<u8> {
    let body = wire::command("ls-refs", &["object-format=sha1"], &[]);
    let head = format!(
        "POST /{path}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// All places are taken by clients that say nothing: others get in at once, health or not.
#[test]
fn silence_takes_nobodys_place() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let places = if hostile::full() { 4096 } else { 16 };
    let node = world.setup(&primary).set(&format!("limits.connections = {places}")).start();
    mirrored(&world, &node, &repo);
    for (mode, first) in SILENT {
        let mut silent: Vec<_> = (0..places + 8).map(|_| open(&node, first)).collect();
        healthy(&node);
        same(&world, &primary, &node, &repo.path);
        if hostile::full() {
            std::thread::sleep(Duration::from_secs(45));
            let closed = silent.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count();
            assert_eq!(closed, silent.len(), "{mode}");
        }
    }
}

/// Clients that are served hold all places: health is answered, others are told to come back, until who does not read is cut.
#[test]
fn health_is_answered_when_all_places_are_busy() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", many_refs);
    let node =
        world.setup(&primary).set("limits.connections = 4").set("limits.client_timeout = \"20s\"").start();
    let mut deaf: Vec<_> = (0..4).map(|_| open(&node, &listing(&repo.path))).collect();
    // Their requests have come before others ask for places.
    std::thread::sleep(Duration::from_millis(500));
    eventually("the answers to be under way", || {
        (node.metric("packmirror_inflight", &["service=\"fetch\""]) == 4.0).then_some(())
    });
    healthy(&node);
    let reply = wire::get(node.address(), "/team/app.git/HEAD", &[]).unwrap();
    assert!(
        reply.status == 200 || (reply.status == 503 && reply.header("retry-after").is_some()),
        "{}",
        reply.status
    );
    // Five seconds of not reading are enough when others want the places.
    eventually("a place to be given away", || {
        let reply = wire::get(node.address(), "/team/app.git/HEAD", &[]).unwrap();
        (reply.status == 200).then_some(())
    });
    assert!(deaf.iter_mut().any(is_closed));
}

/// Processes that have `word` in their environment.
fn processes(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let environments = entries.filter_map(|entry| std::fs::read(entry.path().join("environ")).ok());
    environments.filter(|env| String::from_utf8_lossy(env).contains(word)).count()
}

/// A directory as the primary, and clients that do not read the refs of one repository: they are cut, and the processes and
/// places with them.
#[test]
fn readers_that_do_not_read_hold_no_process_for_long() {
    mirror_only!();
    let world = World::new();
    let root = world.folder("root");
    for (name, shape) in [("app.git", shapes::linear as fn(&Path)), ("many.git", many_refs)] {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        git(&dir).run("init -q --bare --template= .");
        shape(&dir);
    }
    let node = Setup::new(&world, root.to_str().unwrap()).set("limits.client_timeout = \"3s\"").start();
    let url = node.repo("app.git");
    let answered = || {
        let before = node.answered_from_bucket();
        world.clone_of(&url, "--bare");
        (node.answered_from_bucket() > before).then_some(())
    };
    eventually("the repository to be mirrored", answered);
    let readers = if hostile::full() { 100 } else { 64 };
    let mut deaf: Vec<_> = (0..readers).map(|_| open(&node, &listing("many.git"))).collect();
    let word = format!("GIT_PROJECT_ROOT={}", root.canonicalize().unwrap().display());
    eventually("the processes to start", || (processes(&word) > 10).then_some(()));
    // It waits for a process no longer than until the readers are cut.
    git(world.path()).args(&["ls-remote", "--exit-code", &url]).must();
    eventually("the processes to end", || (processes(&word) == 0).then_some(()));
    eventually("the readers to be cut", || deaf.iter_mut().all(is_closed).then_some(()));
    eventually("their requests to end", || {
        (node.metric("packmirror_inflight", &["service=\"fetch\""]) == 0.0).then_some(())
    });
}

/// Bodies that stop coming, for us and for the primary: the request ends, at the primary too.
#[test]
fn bodies_that_stop_are_given_up() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.setup(&primary).set("limits.client_timeout = \"1s\"").start();
    mirrored(&world, &node, &repo);
    for endpoint in ["git-upload-pack", "git-receive-pack", "info/lfs/objects/batch"] {
        for framing in ["Content-Length: 1000\r\n\r\n0000", "Transfer-Encoding: chunked\r\n\r\n4\r\n0000\r\n"]
        {
            let head = format!("POST /{}/{endpoint} HTTP/1.1\r\nHost: x\r\n{framing}", repo.path);
            let mut stream = open(&node, head.as_bytes());
            eventually("the request to be given up", || is_closed(&mut stream).then_some(()));
        }
    }
    eventually("no request in flight", || {
        let health = node.metric("packmirror_inflight", &["service=\"health\""]);
        (node.metric("packmirror_inflight", &[]) == health).then_some(())
    });
    same(&world, &primary, &node, &repo.path);
}

/// A primary that answers every request with these bytes and closes.
fn cut_primary(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // The thread ends with the test's process; it holds nothing.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(answer);
            let _ = stream.shutdown(Shutdown::Write);
            // The rest of the request is read, so that the answer is not lost to a reset.
            while stream.read(&mut head).is_ok_and(|n| n > 0) {}
        }
    });
    url
}

/// However an answer of the primary breaks off, no client takes it for a whole one, in HTTP/1 and in HTTP/2.
#[test]
fn a_cut_answer_never_looks_whole() {
    mirror_only!();
    let answers: [(&str, &[u8]); 4] = [
        (
            "a length not reached",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nabc",
        ),
        ("chunks without an end", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        ("a broken chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n9\r\nabc"),
        ("no length at all", b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nabc"),
    ];
    for (what, answer) in answers {
        let world = World::new();
        let node = Setup::new(&world, &cut_primary(answer)).start();
        for path in ["/team/app.git/HEAD", "/team/app.git/info/refs?service=git-upload-pack"] {
            let reply = wire::get(node.address(), path, &[]).unwrap();
            assert!(!reply.complete, "{what}: {path} looks whole");
            let url = format!("{}{path}", node.url);
            let modern = async {
                packmirror::tls::provide();
                let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
                let reply = client.get(url).send().await;
                match reply {
                    Ok(reply) => reply.status() == 200 && reply.bytes().await.is_ok(),
                    Err(_) => false,
                }
            };
            assert!(!block_on(modern), "{what}: {path} looks whole in HTTP/2");
        }
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// Headers without any compression (RFC 7541, 6.2.2).
fn headers(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in pairs {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            out.push(text.len() as u8);
            out.extend(text.bytes());
        }
    }
    out
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn get_frame(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    let pairs = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", path)];
    frame(1, END_HEADERS | flags, stream, &headers(&pairs))
}

/// Reads frames until one is picked; `None`: the connection ended.
fn frames(stream: &mut TcpStream, mut pick: impl FnMut(u8, u32, &[u8]) -> bool) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).ok()?;
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if pick(head[3], of, &payload) {
            return Some(());
        }
    }
}

/// What HTTP/2 says about lengths that contradict each other, and about a body of a GET.
#[test]
fn http2_requests_have_one_length_and_gets_no_body() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    let push = format!("/{}/git-receive-pack", repo.path);
    let base = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", push.as_str())];
    // A malformed request ends its stream with PROTOCOL_ERROR (RFC 9113, 8.1.1).
    let refused = |extra: &[(&str, &str)]| {
        let mut stream = open(&node, PREFACE);
        stream.write_all(&frame(1, END_HEADERS, 1, &headers(&[&base[..], extra].concat()))).unwrap();
        let _ = stream.write_all(&frame(0, END_STREAM, 1, b"0000"));
        let mut refused = false;
        frames(&mut stream, |kind, of, payload| {
            let status = kind == 1 && of == 1;
            // 400 is the fifth of the statuses that have a number of their own (RFC 7541, appendix A).
            refused = (kind == 3 && payload == [0, 0, 0, 1]) || (status && payload.first() == Some(&0x8c));
            refused || kind == 3 || status
        });
        assert!(refused, "{extra:?}");
    };
    let pushes = |which: fn(&Seen) -> bool| {
        primary.count(|seen| seen.method == "POST" && seen.path.ends_with("git-receive-pack") && which(seen))
    };
    for extra in [
        vec![("content-length", "4"), ("transfer-encoding", "chunked")],
        vec![("transfer-encoding", "chunked")],
        vec![("connection", "content-length"), ("content-length", "4")],
        vec![("content-length", "4"), ("content-length", "5")],
        vec![("content-length", "+4")],
        vec![("te", "chunked")],
        vec![("upgrade", "h2c")],
    ] {
        refused(&extra);
    }
    assert_eq!(pushes(|_| true), 0, "a request with two lengths reached the primary");
    // A body that is sent on as it comes shows its wrong length only when the head has gone on: what was too much never does.
    for length in ["5", "0"] {
        refused(&[("content-length", length)]);
    }
    assert_eq!(
        pushes(|seen| !seen.body.is_empty()),
        0,
        "a body of another length reached the primary as a whole"
    );
    for (what, body) in [("data", &b"0000"[..]), ("nothing", b"")] {
        let mut stream = open(&node, PREFACE);
        stream.write_all(&get_frame(1, &format!("/{}/HEAD", repo.path), 0)).unwrap();
        let _ = stream.write_all(&frame(0, END_STREAM, 1, body));
        let mut status = None;
        frames(&mut stream, |kind, of, payload| {
            if kind == 1 && of == 1 {
                status = payload.first().copied();
            }
            status.is_some()
        });
        let want = if body.is_empty() { 0x88 } else { 0x8c };
        assert_eq!(status, Some(want), "{what}");
    }
}

/// HTTP/2: a stream that is not read is given up though its connection lives, and a flood of resets ends its connection.
#[test]
fn http2_streams_are_bounded() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", many_refs);
    let node = world.setup(&primary).set("limits.client_timeout = \"2s\"").start();
    let path = format!("/{}/info/refs?service=git-upload-pack", repo.path);
    let mut deaf = open(&node, PREFACE);
    deaf.write_all(&get_frame(1, &path, END_STREAM)).unwrap();
    let in_flight = || node.metric("packmirror_inflight", &["service=\"refs\""]);
    eventually("the answer to be under way", || (in_flight() == 1.0).then_some(()));
    // It takes all bytes there are, answers pings, and never makes room in the stream.
    let begin = Instant::now();
    frames(&mut deaf, |kind, _, _| kind == 7);
    assert!(begin.elapsed() < Duration::from_secs(15));
    eventually("the answer to be given up", || (in_flight() == 0.0).then_some(()));

    let mut flood = open(&node, PREFACE);
    for n in 0..20_000u32 {
        let stream = 2 * n + 1;
        let reset = frame(3, 0, stream, &8u32.to_be_bytes());
        if flood.write_all(&[get_frame(stream, &path, END_STREAM), reset].concat()).is_err() {
            break;
        }
    }
    eventually("the flood to be cut off", || is_closed(&mut flood).then_some(()));
    healthy(&node);
    eventually("nothing of the flood to be left", || (in_flight() == 0.0).then_some(()));
}

/// Many requests on few connections: no more are in flight than there are places, and health is not asked to come back.
#[test]
fn http2_requests_are_bounded_in_all() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    primary.fault(Wrong::Hang, |seen| seen.path.ends_with("/HEAD"));
    let node = world.setup(&primary).set("limits.connections = 40").start();
    let path = format!("/{}/HEAD", repo.path);
    let all: Vec<u8> = (0..30).flat_map(|n| get_frame(2 * n + 1, &path, END_STREAM)).collect();
    let mut many: Vec<_> = (0..2).map(|_| open(&node, &[PREFACE, &all].concat())).collect();
    let mut busy = 0;
    // 30 are under way on the first connection, and 10 on the second: 20 get their 503.
    let mut count = |stream: &mut TcpStream, enough: usize| {
        frames(stream, |kind, _, _| {
            busy += usize::from(kind == 1);
            busy == enough
        })
    };
    count(&mut many[1], 20).or_else(|| count(&mut many[0], 20)).unwrap();
    healthy(&node);
    let in_flight = node.metric("packmirror_inflight", &["service=\"plain\""]);
    assert_eq!(in_flight, 40.0);
}

/// Few open files are allowed: connections leave some for what serves them, and the log stays short.
#[test]
fn a_lack_of_files_closes_idle_connections() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.setup(&primary).files(200).start();
    mirrored(&world, &node, &repo);
    let silent: Vec<_> = (0..400).map(|_| open(&node, b"")).collect();
    healthy(&node);
    same(&world, &primary, &node, &repo.path);
    drop(silent);
    let lines = node.log().lines().filter(|line| line.contains("could not be accepted")).count();
    assert!(lines < 3, "{lines} lines");
    node.logged(&["too few open files", "limits.connections"]);
}

/// Every question of h2spec is answered as RFC 9113 wants, but for one: what is no HTTP/2 is HTTP/1 here, and gets its 400.
#[test]
fn h2spec() {
    mirror_only!();
    let Some(program) = std::env::var_os("PACKMIRROR_TEST_H2SPEC") else {
        return skip("PACKMIRROR_TEST_H2SPEC, a built h2spec");
    };
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    let port = node.address().rsplit(':').next().unwrap();
    // A path where bodies are read before anything is answered.
    let path = format!("/{}/git-upload-pack", repo.path);
    let said = Command::new(program)
        .args(["-h", "127.0.0.1", "-P", &path, "-o", "10", "-p", port])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let failures = text.split("Failures:").nth(1).unwrap_or_default();
    let failed: Vec<_> = failures.lines().filter(|line| line.contains('×')).map(str::trim).collect();
    assert_eq!(failed, ["× 2: Sends invalid connection preface"], "{text}");
    healthy(&node);
}
