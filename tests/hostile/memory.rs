//! Requests that make a node hold much or compute long: bodies, objects packed anew, walks.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::hostile::full;
use crate::mirror_only;
use crate::node::Node;
use crate::oracle::{mirrored, same};
use crate::primary::{Primary, gzip};
use crate::shapes::{self, Change, History, noise};
use crate::wire::command;
use crate::world::{World, eventually};

const MIB: u64 = 1 << 20;
/// What a node of these tests may have.
const MEMORY: u64 = 2 << 30;
const MAIN: &str = "refs/heads/main";

/// Sends an upload-pack request up to `part` bytes of its body, and leaves the connection open.
fn ask(node: &Node, path: &str, more: &str, body: &[u8], part: usize) -> TcpStream {
    let mut stream = TcpStream::connect(node.address()).expect("a connection");
    let head = format!(
        "POST /{path}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n{more}\
         Content-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("a head");
    // The node may have answered already.
    let _ = stream.write_all(&body[..part]);
    stream
}

/// The private memory of a node while `attack` runs, in MiB above what it was before.
fn taken<T>(node: &Node, attack: impl FnOnce() -> T) -> (u64, T) {
    let before = node.status("RssAnon");
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                most = most.max(node.status("RssAnon"));
                std::thread::sleep(Duration::from_millis(20));
            }
            most.max(node.status("RssAnon"))
        });
        let result = attack();
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        (watch.join().expect("a watch").saturating_sub(before) / MIB, result)
    })
}

/// Anybody may send bodies. What they inflate to is not held before the primary has said yes.
#[test]
fn a_crowd_with_large_bodies_takes_little() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    primary.account("alice", "secret");
    primary.repo("team/private.git", shapes::linear);
    primary.private("team/private.git", &["alice"]);
    let node = world.setup(&primary).memory(MEMORY).start();
    mirrored(&world, &node, &repo);
    let lines = vec![format!("have {}", "2".repeat(40)); 300_000];
    let want = format!("want {}", "1".repeat(40));
    let arguments: Vec<&str> = [want.as_str()].into_iter().chain(lines.iter().map(String::as_str)).collect();
    let body = gzip(&command("fetch", &[], &arguments));
    let crowd = if full() { 1500 } else { 300 };
    let (mib, open) = taken(&node, || {
        let mut open = Vec::new();
        for n in 0..crowd {
            let path = ["team/none.git", "team/private.git", "team/app.git"][n % 3];
            // Some stop in the middle.
            let part = if n % 2 == 0 { body.len() } else { body.len() / 2 };
            open.push(ask(&node, path, "Content-Encoding: gzip\r\n", &body, part));
        }
        same(&world, &primary, &node, &repo.path);
        open
    });
    assert!(mib < 600, "{mib} MiB for {crowd} requests");
    drop(open);
}

/// What takes more memory to pack anew than one request may have is left to the primary.
#[test]
fn a_large_object_on_a_left_out_base_is_not_packed_anew_for_a_crowd() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let megabytes = if full() { 400 } else { 12 };
    let repo = primary.repo("team/large.git", |dir| {
        let text: String = hex::encode(noise(1, 500_000)).repeat(megabytes);
        let mut h = History::new();
        let one = h.commit(MAIN, &[], &[Change::File("large", &text)]);
        h.commit(MAIN, &[one], &[Change::File("large", &(text + "and more"))]);
        h.import(dir);
    });
    repo.git().run("-c core.bigFileThreshold=1g repack -adfq");
    let node = world.setup(&primary).memory(MEMORY).set("limits.memory = \"32MiB\"").start();
    mirrored(&world, &node, &repo);
    let old = repo.oid("main~");
    let body = command("fetch", &[], &["ofs-delta", "deepen 1", &format!("want {old}"), "done"]);
    let (mib, readers) = taken(&node, || {
        let ask_and_look = |_| {
            let mut stream = ask(&node, "team/large.git", "", &body, body.len());
            let _ = stream.read(&mut [0; 4096]);
            stream
        };
        (0..12).map(ask_and_look).collect::<Vec<_>>()
    });
    assert!(mib < 120, "{mib} MiB for twelve readers");
    drop(readers);
    assert!(node.metric("packmirror_answers_total", &["reason=\"too-costly\""]) >= 12.0);
    same(&world, &primary, &node, &repo.path);
}

/// Jobs whose clients have left end, and what two clients ask for keeps no third one waiting.
#[test]
fn long_computations_end_with_their_clients_and_hold_up_nobody() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    // Each commit changes one file of a wide tree: a filter by path reads all of them.
    let (wide, commits) = if full() { (5_000, 20_000) } else { (1_000, 600) };
    let repo = primary.repo("team/wide.git", |dir| {
        let mut h = History::new();
        let names: Vec<String> = (0..wide).map(|n| format!("file{n:06}")).collect();
        let all: Vec<Change> = names.iter().map(|name| Change::File(name, "x")).collect();
        let mut at = h.commit(MAIN, &[], &all);
        for n in 0..commits {
            at = h.commit(MAIN, &[at], &[Change::File(&names[n * 7919 % wide], &n.to_string())]);
        }
        h.import(dir);
    });
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let tip = repo.oid("main");
    for round in 0..8 {
        // Each asks for something else, so that none shares another's plan.
        let filter = format!("filter combine:tree:{}+blob:limit={}", 100 + round, 1_000_000 + round);
        let body = command("fetch", &[], &[&filter, &format!("want {tip}"), "done"]);
        let stream = ask(&node, "team/wide.git", "", &body, body.len());
        std::thread::sleep(Duration::from_millis(50));
        drop(stream);
    }
    let begun = Instant::now();
    eventually("a node that does nothing", || (busy(&node, Duration::from_millis(200)) < 0.5).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(5), "it computed for {:?}", begun.elapsed());
    same(&world, &primary, &node, &repo.path);
}

/// The share of one core that the node takes over `span`.
fn busy(node: &Node, span: Duration) -> f64 {
    let ticks = || -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum()
    };
    let before = ticks();
    std::thread::sleep(span);
    (ticks() - before) / 100.0 / span.as_secs_f64()
}
