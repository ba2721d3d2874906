//! Clients that read slowly and clients that come in crowds: they cost others nothing, and get what they asked for.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::hostile::full;
use crate::mirror_only;
use crate::node::Node;
use crate::oracle::{from_bucket, mirrored, same};
use crate::primary::{Primary, Seen};
use crate::shapes::{Change, History, noise};
use crate::wire::{command, read_reply};
use crate::world::{AtEnd, SOON, World, eventually};

const MIB: u64 = 1 << 20;
const MAIN: &str = "refs/heads/main";

/// Asks for a fetch and reads nothing yet.
pub fn ask(node: &Node, path: &str, arguments: &[&str]) -> TcpStream {
    let body = command("fetch", &[], arguments);
    let mut stream = TcpStream::connect(node.address()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let head = format!(
        "POST /{path}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nConnection: close\r\n\
         Content-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).expect("a request");
    stream
}

/// Waits until a stream has begun.
pub fn begun(stream: &mut TcpStream) {
    let mut head = [0; 12];
    stream.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200");
}

/// A commit with so much in it that no buffer takes a clone of it.
fn large(dir: &std::path::Path) {
    let mut h = History::new();
    let files: Vec<String> = (0..16).map(|n| hex::encode(noise(n, 1 << 20))).collect();
    let names: Vec<String> = (0..16).map(|n| format!("file{n}")).collect();
    let all: Vec<Change> = names.iter().zip(&files).map(|(name, text)| Change::File(name, text)).collect();
    h.commit(MAIN, &[], &all);
    h.import(dir);
}

/// Reads a little from each now and then, until told to stop.
fn dribble(streams: &mut [TcpStream], stop: &AtomicBool) {
    let mut some = [0; 2048];
    streams.iter().for_each(|stream| stream.set_nonblocking(true).expect("a socket"));
    while !stop.load(Ordering::SeqCst) {
        for stream in &mut *streams {
            match stream.read(&mut some) {
                Ok(n) => assert_ne!(n, 0, "a slow reader was cut off"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    streams.iter().for_each(|stream| stream.set_nonblocking(false).expect("a socket"));
}

/// What a node holds for those who may read, in bytes, and how many fetches are in flight.
fn held(node: &Node) -> (f64, f64) {
    let memory = node.metric("packmirror_memory_held_bytes", &["share=\"readers\""]);
    (memory, node.metric("packmirror_inflight", &["service=\"fetch\""]))
}

/// Hundreds that take a pack and read on slowly: others are served as ever, the node holds little for each, and nothing once
/// they have left.
#[test]
fn slow_readers_hold_nothing_that_others_need() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let large = primary.repo("team/large.git", large);
    let small = primary.repo("team/small.git", crate::shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &large);
    mirrored(&world, &node, &small);
    let crowd: u64 = if full() { 1000 } else { 150 };
    let want = format!("want {}", large.oid("main"));
    // What both are answered with is kept.
    from_bucket(&node, || same(&world, &primary, &node, &large.path));
    from_bucket(&node, || same(&world, &primary, &node, &small.path));
    let idle = eventually("nothing in flight", || Some(held(&node)).filter(|held| held.1 == 0.0));
    let (before, threads) = (node.status("RssAnon"), node.status("Threads"));
    let mut slow: Vec<TcpStream> =
        (0..crowd).map(|_| ask(&node, &large.path, &["ofs-delta", "no-progress", &want, "done"])).collect();
    slow.iter_mut().for_each(begun);
    // They are slow once what lies between them and the node is full.
    eventually("little memory for each slow reader", || {
        let took = node.status("RssAnon").saturating_sub(before) / crowd;
        (took < MIB).then_some(())
    });
    // A thread of the pool that has nothing to do ends after ten seconds.
    eventually("few threads for slow readers", || {
        let more = node.status("Threads").saturating_sub(threads) / 1024;
        (more < crowd / 4).then_some(())
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = AtEnd(&stop);
        scope.spawn(|| dribble(&mut slow, &stop));
        from_bucket(&node, || same(&world, &primary, &node, &small.path));
        from_bucket(&node, || same(&world, &primary, &node, &large.path));
        eventually("a small share of the memory for each slow reader", || {
            (held(&node).0 - idle.0 < (crowd * 128 * 1024) as f64).then_some(())
        });
    });
    // Who reads on gets all of it.
    let mut rest = slow.swap_remove(0);
    let mut all = Vec::new();
    rest.read_to_end(&mut all).expect("the rest");
    assert!(all.len() as u64 > 16 * MIB && all.ends_with(b"0000\r\n0\r\n\r\n"), "{} bytes", all.len());
    drop((rest, slow));
    eventually("nothing is held for those who left", || {
        let now = held(&node);
        // Less than one of them held: the plan of what they asked for is kept.
        (now.1 == 0.0 && now.0 < idle.0 + 65536.0).then_some(())
    });
}

/// More slow readers than the node has memory for: a few of those who wait in vain go to the primary, the others are told to
/// come back before anything was sent; and there is room for everybody once the crowd has left.
#[test]
fn who_finds_no_memory_is_told_to_come_back() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let large = primary.repo("team/large.git", large);
    let node = world.setup(&primary).set("limits.memory = \"64MiB\"").start();
    mirrored(&world, &node, &large);
    let want = format!("want {}", large.oid("main"));
    let crowd: Vec<TcpStream> =
        (0..400).map(|_| ask(&node, &large.path, &["ofs-delta", "no-progress", &want, "done"])).collect();
    let heads = std::thread::scope(|scope| {
        let readers: Vec<_> = crowd
            .iter()
            .map(|mut stream| {
                scope.spawn(move || {
                    let (mut head, mut byte) = (String::new(), [0]);
                    stream.set_read_timeout(Some(SOON)).expect("a timeout");
                    while !head.ends_with("\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                        head.push(char::from(byte[0]));
                    }
                    head.to_ascii_lowercase()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect::<Vec<_>>()
    });
    let all = |status: &str| heads.iter().filter(|head| head.starts_with(status)).collect::<Vec<_>>();
    let (served, refused) = (all("http/1.1 200").len(), all("http/1.1 503"));
    assert!(served > 100 && refused.len() > 100, "{served} served, {} refused", refused.len());
    assert!(refused.iter().all(|head| head.contains("\r\nretry-after: ")), "{refused:?}");
    // A primary takes its time for so many.
    let asked = |seen: &&Seen| String::from_utf8_lossy(&seen.body).contains("no-progress");
    let passed = primary.log().iter().filter(asked).count();
    assert!(passed == 8 && served + refused.len() + passed >= 400, "{passed} passed on");
    drop(crowd);
    eventually("nothing in flight", || (held(&node).1 == 0.0).then_some(()));
    from_bucket(&node, || same(&world, &primary, &node, &large.path));
}

/// Two hundred clones of one repository at once all end, from the bucket.
#[test]
fn two_hundred_clones_at_once_all_end() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let large = primary.repo("team/large.git", large);
    let node = world.node(&primary);
    mirrored(&world, &node, &large);
    let want = format!("want {}", large.oid("main"));
    let passed = node.passed();
    let streams: Vec<TcpStream> =
        (0..200).map(|_| ask(&node, &large.path, &["ofs-delta", "no-progress", &want, "done"])).collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                scope.spawn(move || {
                    let (mut piece, mut bytes, mut end) = (vec![0; 1 << 16], 0, Vec::new());
                    loop {
                        let n = stream.read(&mut piece).expect("an answer");
                        if n == 0 {
                            return (bytes, end);
                        }
                        bytes += n as u64;
                        end.extend_from_slice(&piece[..n]);
                        end.drain(..end.len().saturating_sub(11));
                    }
                })
            })
            .collect();
        for reader in readers {
            let (bytes, end) = reader.join().expect("a reader");
            assert!(bytes > 16 * MIB && end == b"0000\r\n0\r\n\r\n", "{bytes} bytes, {}", end.escape_ascii());
        }
    });
    assert_eq!(node.passed(), passed, "{}", node.answers_text());
}

/// A stream that lasts for longer than is allowed ends broken, so that what it reads may be deleted after the grace; a fast one is whole.
#[test]
fn a_stream_that_takes_too_long_is_cut() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let large = primary.repo("team/large.git", large);
    let node = world.setup(&primary).set("limits.transfer = \"3s\"").start();
    mirrored(&world, &node, &large);
    let want = format!("want {}", large.oid("main"));
    let mut slow = ask(&node, &large.path, &["ofs-delta", "no-progress", &want, "done"]);
    begun(&mut slow);
    node.logged(&["a stream took longer than limits.transfer allows"]);
    let mut all = Vec::new();
    let ended = slow.read_to_end(&mut all);
    assert!(ended.is_err() || !all.ends_with(b"0\r\n\r\n"), "{} bytes look whole", all.len());
    assert!((all.len() as u64) < 16 * MIB, "{} bytes", all.len());
}

/// Many that want depth 1, for which everything is packed anew, come at once: each is told that it is worked for, and all
/// are answered from the bucket.
#[test]
fn a_crowd_that_wants_depth_one_shares_the_node() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", |dir| {
        let mut h = History::new();
        let names: Vec<String> = (0..200).map(|n| format!("file{n}")).collect();
        let mut at = None;
        // Of the many versions of a file the last is a delta on one that is not sent.
        for version in 0..6 {
            let texts: Vec<String> =
                (0..200).map(|n| format!("{}{version}", crate::shapes::prose(n, 120))).collect();
            let all: Vec<Change> =
                names.iter().zip(&texts).map(|(name, text)| Change::File(name, text)).collect();
            at = Some(h.commit(MAIN, &at.into_iter().collect::<Vec<_>>(), &all));
        }
        h.import(dir);
    });
    let node = world.setup(&primary).set("limits.memory = \"64MiB\"").start();
    mirrored(&world, &node, &repo);
    let crowd = if full() { 300 } else { 60 };
    let commits = [repo.oid("main"), repo.oid("main~1"), repo.oid("main~2")];
    let passed = node.passed();
    let streams: Vec<TcpStream> = (0..crowd)
        .map(|n| {
            let want = format!("want {}", commits[n % 3]);
            ask(&node, &repo.path, &["ofs-delta", "deepen 1", &want, "done"])
        })
        .collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = streams
            .into_iter()
            .map(|mut stream| scope.spawn(move || read_reply(&mut stream, false)))
            .collect();
        for reader in readers {
            let reply = reader.join().expect("a reader").expect("an answer");
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert!(reply.complete && reply.body.ends_with(b"0000"), "a whole answer");
        }
    });
    assert_eq!(node.passed(), passed, "{}", node.answers_text());
}
