//! kill -9 at each step: a node is killed with its n-th request to a real S3 server, before the server hears of it or before the node
//! hears of the answer, and the next node makes everything whole.
//!
//! Each eighth request of a sync in turn, one in 16 of those of a purge, and one in 64 of those of a merge and a collection; with
//! `PACKMIRROR_TEST_TIMES=64` each.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::oracle::{mirrored, same};
use crate::primary::Primary;
use crate::purge::{commit, in_store, on_disk, push_away, secret, wanted};
use crate::seed::times;
use crate::world::{World, block_on, eventually, runtime, skip};
use crate::{git::git, mirror_only, shapes};

/// Requests of one in this many runs are tried: of a sync, of a merge and a collection, and of a purge.
const STRIDES: [u64; 3] = [8, 64, 16];

/// A TCP gate in front of the S3 server, which counts requests and kills the node with one of them.
struct Gate {
    address: String,
    state: Arc<State>,
}

struct State {
    /// Requests that were begun since the node's process is known.
    begun: AtomicU64,
    /// With which of them it is killed, and whether the server hears of it.
    nth: u64,
    heard: bool,
    pid: AtomicU32,
    dead: AtomicBool,
}

impl State {
    fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let pid = self.pid.load(Ordering::SeqCst).to_string();
        let _ = Command::new("kill").args(["-KILL", &pid]).status();
    }

    /// Counts the heads of requests in a piece, and says whether the fatal one is among them.
    fn is_fatal(&self, piece: &[u8]) -> bool {
        let heads = piece.windows(11).filter(|w| w == b" HTTP/1.1\r\n").count() as u64;
        if heads == 0 || self.pid.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let before = self.begun.fetch_add(heads, Ordering::SeqCst);
        (before + 1..=before + heads).contains(&self.nth)
    }
}

impl Gate {
    fn before(server: &str, nth: u64, heard: bool) -> Self {
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (server, pid, dead) = (server.to_owned(), AtomicU32::new(0), AtomicBool::new(false));
        let state = Arc::new(State { begun: AtomicU64::new(0), nth, heard, pid, dead });
        let of_all = state.clone();
        runtime().spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), of_all.clone());
                tokio::spawn(async move { drop(through(client, &server, &state).await) });
            }
        });
        Self { address, state }
    }
}

async fn through(client: TcpStream, server: &str, state: &Arc<State>) -> std::io::Result<()> {
    let (mut from, mut to) = client.into_split();
    let (mut answers, mut server) = TcpStream::connect(server).await?.into_split();
    let fatal = Arc::new(AtomicBool::new(false));
    let (of_answers, is_fatal) = (state.clone(), fatal.clone());
    let answering = tokio::spawn(async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(len @ 1..) = answers.read(&mut piece).await {
            if is_fatal.load(Ordering::SeqCst) {
                return of_answers.kill();
            }
            if of_answers.dead.load(Ordering::SeqCst) || to.write_all(&piece[..len]).await.is_err() {
                return;
            }
        }
    });
    let mut piece = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        if state.is_fatal(&piece[..len]) {
            if !state.heard {
                state.kill();
                break;
            }
            fatal.store(true, Ordering::SeqCst);
        }
        server.write_all(&piece[..len]).await?;
    }
    // What the server says last is read, also where it says that the request was cut.
    server.shutdown().await?;
    let _ = answering.await;
    Ok(())
}

/// A node is killed with its `nth` request after its start, in a first sync or that of a push. Says whether it makes so many.
fn once(server: &str, nth: u64, heard: bool) -> bool {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let gate = Gate::before(server, nth, heard);
    let mut node = world.setup(&primary).env("AWS_ENDPOINT_URL", &format!("http://{}", gate.address)).start();
    gate.state.pid.store(node.pid(), Ordering::SeqCst);
    let is_dead = || gate.state.dead.load(Ordering::SeqCst);
    for n in 0..2 {
        // It fails where the node dies.
        let _ = git(world.path()).try_run(&format!("ls-remote -q {}", node.repo(&repo.path)));
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !is_dead() && world.store.newest(&repo.path).is_none_or(|newest| newest["number"] != n + 1) {
            assert!(std::time::Instant::now() < end, "neither dead nor published, request {nth}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        repo.commit("main", "new", &n.to_string());
    }
    let died = is_dead();
    node.kill();
    world.store.audit();
    let next = world.node(&primary);
    mirrored(&world, &next, &repo);
    same(&world, &primary, &next, &repo.path);
    world.store.audit();
    died
}

/// A node is killed with its `nth` request after its start, which it makes for a push, the merge that follows, or the collection of
/// what was merged. Says whether it makes so many.
fn once_late(server: &str, nth: u64, heard: bool) -> bool {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let layers =
        || world.store.newest(&repo.path).map_or(0, |newest| newest["layers"].as_array().unwrap().len());
    // Also of the first one, since the longest grace of all nodes counts.
    let setup = |every: &str| {
        let setup = world.setup(&primary).set("gc.grace = \"1s\"").set("limits.transfer = \"1s\"");
        setup.set(&format!("gc.every = \"{every}\""))
    };
    let mut first = setup("1h").start();
    mirrored(&world, &first, &repo);
    for n in 0..4 {
        repo.commit("main", "new", &n.to_string());
        mirrored(&world, &first, &repo);
    }
    assert_eq!(layers(), 5);
    first.kill();
    let gate = Gate::before(server, nth, heard);
    let mut node = setup("2s").env("AWS_ENDPOINT_URL", &format!("http://{}", gate.address)).start();
    gate.state.pid.store(node.pid(), Ordering::SeqCst);
    let is_dead = || gate.state.dead.load(Ordering::SeqCst);
    repo.commit("main", "new", "last");
    let is_done = || layers() < 5 && world.store.blobs("pack").len() == layers();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is_dead() && !is_done() {
        // It fails where the node dies.
        let _ = git(world.path()).try_run(&format!("ls-remote -q {}", node.repo(&repo.path)));
        assert!(std::time::Instant::now() < end, "neither dead nor collected, request {nth}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let died = is_dead();
    node.kill();
    let next = world.node(&primary);
    mirrored(&world, &next, &repo);
    same(&world, &primary, &next, &repo.path);
    newest_is_whole(&world, &repo.path);
    died
}

/// `packmirror purge` is killed with its `nth` request, and run once more. Says whether it makes so many.
fn once_purging(server: &str, nth: u64, heard: bool) -> bool {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let (bytes, piece) = secret(nth);
    let leaked = commit(&repo, "secret", &bytes);
    let node = world.setup(&primary).set("compare_every = \"4s\"").start();
    mirrored(&world, &node, &repo);
    push_away(&repo);
    let gate = Gate::before(server, nth, heard);
    let command = ["purge", &repo.path, "--oid", &leaked];
    let setup = world.setup(&primary).env("AWS_ENDPOINT_URL", &format!("http://{}", gate.address));
    // What a command that is killed leaves of its own goes with the world.
    let setup = setup.env("TMPDIR", &world.folder("tmp").display().to_string());
    let mut purging = setup.begin(&command, &world.unused("cache"));
    gate.state.pid.store(purging.id(), Ordering::SeqCst);
    let status = eventually("the end of the purge", || purging.try_wait().unwrap());
    let died = gate.state.dead.load(Ordering::SeqCst);
    assert_eq!(status.success(), !died, "request {nth}: {status}");
    same(&world, &primary, &node, &repo.path);
    newest_is_whole(&world, &repo.path);
    let again = node.command(&command);
    if again.ok() {
        assert_eq!(in_store(&world, &piece), [""; 0], "request {nth}");
        world.store.audit();
    } else {
        // The marks of the one that died count for so long.
        again.must_fail(&["some blobs are still there: purge again in half an hour"]);
    }
    assert_eq!(on_disk(node.cache(), &piece), [""; 0], "request {nth}");
    assert!(!wanted(&world, &node.repo(&repo.path), &leaked).ok(), "request {nth}");
    same(&world, &primary, &node, &repo.path);
    newest_is_whole(&world, &repo.path);
    died
}

/// Checks that all that the newest record names is there.
fn newest_is_whole(world: &World, repo: &str) {
    let newest = world.store.newest(repo).unwrap();
    let named =
        newest["layers"].as_array().unwrap().iter().flat_map(|l| [&l["pack"], &l["idx"], &l["graph"]]);
    for blob in named {
        let (id, kind) = (blob["id"].as_str().unwrap(), blob["kind"].as_str().unwrap());
        let there = world.store.try_get(&format!("blobs/{}/{id}.{kind}", &id[..2]));
        assert_eq!(there.map(|bytes| bytes.len() as u64), blob["len"].as_u64(), "{blob}");
    }
}

#[test]
fn a_node_that_is_killed_with_any_request_leaves_what_the_next_one_makes_whole() {
    each(STRIDES[0], once);
}

#[test]
fn a_node_that_is_killed_as_it_merges_or_collects_leaves_what_the_next_one_makes_whole() {
    each(STRIDES[1], once_late);
}

#[test]
fn a_purge_that_is_killed_with_any_request_loses_nothing_and_another_one_goes_on() {
    each(STRIDES[2], once_purging);
}

/// Tries one of `stride` requests, until there are no more.
fn each(stride: u64, once: impl Fn(&str, u64, bool) -> bool + Sync) {
    mirror_only!();
    let endpoint = std::env::var("AWS_ENDPOINT_URL").unwrap_or_default();
    if std::env::var("PACKMIRROR_TEST_S3_URL").is_err() || !endpoint.starts_with("http://") {
        return skip("an S3 server, named by PACKMIRROR_TEST_S3_URL and AWS_ENDPOINT_URL");
    }
    let server = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let stride = (stride / times(1).min(stride)) as usize;
    let numbers = Mutex::new((1..).step_by(stride));
    // Most of the time they wait until the work of the dead is taken over.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (once, numbers) = (&once, &numbers);
            scope.spawn(move || {
                loop {
                    let nth = numbers.lock().unwrap().next().unwrap();
                    let died = [false, true].map(|heard| once(server, nth, heard));
                    eprintln!("request {nth}: {died:?}");
                    if died == [false; 2] {
                        assert!(nth > 8, "it was never killed");
                        return;
                    }
                }
            });
        }
    });
}
