//! What goes wrong around a node: a primary that stops, lies or is gone, a bucket that refuses, a full disk. Clients
//! get what the primary gives or a clear error; nothing is published by half; it heals by itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::git::git;
use crate::node::Setup;
use crate::oracle::{compare, from_bucket, in_bucket, mirrored, same};
use crate::primary::{Primary, Seen, Wrong};
use crate::wire::{self, pkt};
use crate::world::{World, block_on, cannot, eventually, runtime, skip};
use crate::{mirror_only, shapes};

/// The fetches of packmirror itself: the user agent tells them from clients' own.
fn by_sync(seen: &Seen) -> bool {
    seen.is("fetch") && seen.header("user-agent").is_some_and(|a| a.contains("packmirror"))
}

/// A v2 answer with a pack in it.
fn answer_with(pack: &[u8]) -> Vec<u8> {
    let mut body = pkt("packfile\n").into_bytes();
    for piece in pack.chunks(8000) {
        body.extend_from_slice(format!("{:04x}\u{1}", piece.len() + 5).as_bytes());
        body.extend_from_slice(piece);
    }
    body.extend_from_slice(b"0000");
    body
}

/// Waits until at least `count` fetches of a sync went wrong, and checks that nothing came of them.
#[track_caller]
fn nothing_comes_of(world: &World, primary: &Primary, node: &crate::node::Node, repo: &str) {
    git(world.path()).run(&format!("ls-remote -q {}", node.repo(repo)));
    eventually("the sync to have failed and been reported", || {
        (primary.count(by_sync) > 0
            && node.metric("packmirror_sync_runs_total", &["result=\"failed\""]) > 0.0)
            .then_some(())
    });
    assert!(world.store.generations(repo).is_empty(), "something was published");
    world.store.audit();
}

/// Faults of the primary's pack: each is noticed, none is published, clients are served by the primary meanwhile,
/// and when it is over the mirror is right without anybody's help.
fn heals_from(wrong: Wrong) {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let node = world.setup(&primary).set("compare_every = \"1s\"").start();
    primary.fault(wrong, by_sync);
    nothing_comes_of(&world, &primary, &node, &repo.path);
    same(&world, &primary, &node, &repo.path);
    primary.heal();
    in_bucket(&world, &node, &repo);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    world.store.audit();
}

#[test]
fn the_primary_stops_in_the_pack() {
    mirror_only!();
    heals_from(Wrong::Cut(3000));
}

#[test]
fn the_primary_stops_before_the_pack() {
    mirror_only!();
    heals_from(Wrong::Cut(2));
}

#[test]
fn the_primary_sends_noise_for_a_pack() {
    mirror_only!();
    heals_from(Wrong::Garbage(answer_with(&shapes::noise(3, 5000))));
}

#[test]
fn the_primary_sends_no_git_at_all() {
    mirror_only!();
    heals_from(Wrong::Garbage(shapes::noise(4, 500)));
}

#[test]
fn the_primary_fails_with_a_status() {
    mirror_only!();
    heals_from(Wrong::Status(503, vec![("retry-after", "1".into())]));
}

#[test]
fn the_primary_answers_with_an_error_of_git() {
    mirror_only!();
    heals_from(Wrong::Garbage(format!("{}0000", pkt("ERR upload-pack: not our ref 1234\n")).into_bytes()));
}

/// A pack of a true history that lacks what the refs need: closure is proven, not believed.
#[test]
fn the_primary_sends_too_little() {
    mirror_only!();
    let donor = Primary::start();
    let repo = donor.repo("r.git", shapes::town);
    let old = wire::command(
        "fetch",
        &["object-format=sha1"],
        &[&format!("want {}", repo.oid("refs/heads/main~5")), "ofs-delta", "no-progress", "done"],
    );
    let reply = wire::post(donor.address(), "/r.git/git-upload-pack", &[wire::V2], &old).unwrap();
    heals_from(Wrong::Garbage(reply.body));
}

/// A whole pack whose trailer is right but whose commit points to a tree that is nowhere.
#[test]
fn the_primary_sends_a_history_with_a_hole() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let g = repo.git();
    let text = format!(
        "tree {}\nparent {}\nauthor T <t@example.com> 1800000000 +0000\ncommitter T <t@example.com> 1800000000 +0000\n\nhole\n",
        "12".repeat(20),
        repo.oid("refs/heads/main")
    );
    let oid = g.with_input(&["hash-object", "-t", "commit", "-w", "--literally", "--stdin"], text.as_bytes());
    let oid = oid.must().line();
    let list = [g.run("rev-list --objects main").text(), oid.clone() + "\n"].concat();
    let ids: String = list.lines().filter_map(|l| l.split(' ').next()).map(|o| o.to_owned() + "\n").collect();
    let pack = g.with_input(&["pack-objects", "--stdout", "-q"], ids.as_bytes()).must().stdout;
    let node = world.node(&primary);
    primary.fault(Wrong::Garbage(answer_with(&pack)), by_sync);
    // The ref is there for the mirror to see; a real host would never have taken it.
    std::fs::write(repo.dir.join("refs/heads/hole"), oid + "\n").unwrap();
    nothing_comes_of(&world, &primary, &node, &repo.path);
}

/// A pass-through that breaks must look broken to the client.
#[test]
fn a_cut_answer_passed_through_is_not_a_success() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let node = world.node(&primary);
    primary.fault(Wrong::Cut(3000), |s| s.is("fetch"));
    let dir = world.unused("clone");
    let line = format!("clone -q --mirror {} {}", node.repo(&repo.path), dir.display());
    git(world.path()).try_run(&line).must_fail(&[
        "early EOF",
        "RPC failed",
        "unexpected disconnect",
        "disconnected",
    ]);
}

#[test]
fn refs_that_are_nonsense() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.setup(&primary).set("compare_every = \"1s\"").start();
    mirrored(&world, &node, &repo);
    let before = world.store.generations(&repo.path);
    let tip = repo.oid("refs/heads/main");
    for body in [
        "not a pkt-line".to_owned(),
        format!("{}0000", pkt("nonsense\n")),
        format!("{}0000", pkt(&format!("{} refs/heads/main\n", &tip[..20]))),
        format!("{}{}0000", pkt(&format!("{tip} refs/heads/x\n")), pkt(&format!("{tip} refs/heads/x\n"))),
        pkt(&format!("{tip} refs/heads/main\n")),
    ] {
        let failures = || node.metric("packmirror_sync_runs_total", &["result=\"failed\""]);
        let failed = failures();
        primary.heal();
        primary.fault(Wrong::Garbage(body.clone().into_bytes()), |s| s.is("ls-refs"));
        eventually(&format!("a comparison to fail on {body:?}"), || (failures() > failed).then_some(()));
    }
    primary.heal();
    assert_eq!(world.store.generations(&repo.path), before, "a lie was published");
    same(&world, &primary, &node, &repo.path);
}

/// A server from before protocol v2: everything works, passed through.
#[test]
fn a_primary_without_protocol_v2() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    primary.speak_only_v0(true);
    let node = world.node(&primary);
    same(&world, &primary, &node, &repo.path);
    repo.commit("main", "new", "1");
    same(&world, &primary, &node, &repo.path);
    world.clone_of(&node.repo(&repo.path), "--depth=1");
}

/// `deny`, the default: while nobody can say who may read, nobody reads, and the client is told why.
#[test]
fn the_primary_is_down() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
    primary.down();
    let reply = node.get(&format!("/{}/info/refs?service=git-upload-pack", repo.path));
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some());
    assert!(reply.text().contains("primary"), "{}", reply.text());
    git(world.path()).args(&["ls-remote", &node.repo(&repo.path)]).must_fail(&["503"]);
    assert_eq!(node.get("/readyz").status, 200, "a node is ready without its primary");
    primary.up();
    repo.commit("main", "new", "1");
    same(&world, &primary, &node, &repo.path);
}

/// `serve-verified`: who has a live grant goes on reading the last verified state; who has none does not.
#[test]
fn the_primary_is_down_and_grants_live() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    primary.account("alice", "alicepw");
    primary.account("bob", "bobpw");
    let repo = primary.repo("team/app.git", shapes::town);
    primary.private(&repo.path, &["alice", "bob"]);
    let node = world
        .setup(&primary)
        .set("on_primary_down = \"serve-verified\"")
        .set("grant_ttl = \"5m\"")
        .set("credential = \"alice:alicepw\"")
        .start();
    let alice = node.repo_as("alice", "alicepw", &repo.path);
    crate::oracle::mirrored_at(&world, &node, &alice, &repo);
    let want = crate::oracle::State::of(&world.clone_of(&alice, "--mirror"));
    primary.down();
    let dir = from_bucket(&node, || world.clone_of(&alice, "--mirror"));
    assert_eq!(want.differences(&crate::oracle::State::of(&dir), true), "");
    // Never seen, wrong, and nobody: no.
    for url in [
        node.repo_as("bob", "bobpw", &repo.path),
        node.repo_as("alice", "wrong", &repo.path),
        node.repo(&repo.path),
    ] {
        git(world.path()).args(&["ls-remote", &url]).must_fail(&["503", "could not read Username"]);
    }
    // Pushes have nowhere to go.
    git(&dir).args(&["push", "-q", &alice, "refs/heads/main:refs/heads/x"]).must_fail(&["503", "502"]);
    primary.up();
    same_for_alice(&world, &primary, &node, &repo.path);
}

fn same_for_alice(world: &World, primary: &Primary, node: &crate::node::Node, repo: &str) {
    crate::oracle::same_as(world, primary, node, "alice", "alicepw", repo);
}

/// A primary that comes up only after the node.
#[test]
fn the_primary_comes_later() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    primary.down();
    let node = world.node(&primary);
    git(world.path()).args(&["ls-remote", &node.repo(&repo.path)]).must_fail(&["503"]);
    primary.up();
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
}

#[test]
fn a_slow_primary_is_only_slow() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    primary.fault(Wrong::Late(Duration::from_millis(300)), |_| true);
    let node = world.node(&primary);
    same(&world, &primary, &node, &repo.path);
    mirrored(&world, &node, &repo);
    repo.commit("main", "new", "1");
    same(&world, &primary, &node, &repo.path);
}

/// What the mirror lacks and cannot get in time is passed through: the sync hangs, the client does not.
#[test]
fn a_sync_that_hangs_does_not_hold_clients() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.setup(&primary).set("sync_wait = \"1s\"").start();
    mirrored(&world, &node, &repo);
    primary.fault(Wrong::Hang, by_sync);
    repo.commit("main", "new", "1");
    same(&world, &primary, &node, &repo.path);
}

/// A directory store that vanishes under the node: clients are served by the primary, and when it is back, from it.
#[test]
fn the_bucket_is_gone_for_a_while() {
    mirror_only!();
    let world = World::on_disk();
    let dir = world.store.dir.clone().expect("a directory");
    let primary = Primary::start();
    let repo = primary.repo("team/app.git", shapes::town);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let away = world.unused("store-away");
    std::fs::rename(&dir, &away).unwrap();
    // Not even a directory can be made in its place.
    std::fs::write(&dir, "no directory").unwrap();
    same(&world, &primary, &node, &repo.path);
    repo.commit("main", "new", "1");
    same(&world, &primary, &node, &repo.path);
    primary.repo("team/other.git", shapes::linear);
    same(&world, &primary, &node, "team/other.git");
    std::fs::remove_file(&dir).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    mirrored(&world, &node, &repo);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    node.restart();
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    world.store.audit();
}

/// What stands between a node and its S3 server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Connections are closed at once.
    Shut,
    /// Connections are taken and nothing is ever said.
    Silent,
    /// Everything is answered with 503.
    Busy,
}

/// A TCP gate in front of the S3 server; a change of its way also ends the connections that are open.
struct Gate {
    address: String,
    way: tokio::sync::watch::Sender<Way>,
}

impl Gate {
    fn before(server: &str) -> Gate {
        let (way, ways) = tokio::sync::watch::channel(Way::Open);
        let listener = block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = server.to_owned();
        runtime().spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, mut ways) = (server.clone(), ways.clone());
                tokio::spawn(async move {
                    let now = *ways.borrow_and_update();
                    tokio::select! {
                        () = through(client, now, &server) => {}
                        _ = ways.changed() => {}
                    }
                });
            }
        });
        Gate { address, way }
    }
}

async fn through(mut client: tokio::net::TcpStream, way: Way, server: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    match way {
        Way::Shut => {}
        Way::Silent => std::future::pending().await,
        Way::Open => {
            let Ok(mut server) = tokio::net::TcpStream::connect(server).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        Way::Busy => {
            let mut some = vec![0; 64 << 10];
            while let Ok(1..) = client.read(&mut some).await {
                let busy = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = client.write_all(busy.as_bytes()).await;
            }
        }
    }
}

/// The S3 server stops answering, in three ways: clients are served by the primary in good time, and from the bucket
/// when it is back.
fn the_s3_server_is(way: Way) {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let endpoint = std::env::var("AWS_ENDPOINT_URL").unwrap_or_default();
    if world.store.dir.is_some() || !endpoint.starts_with("http://") {
        return skip("an S3 server, named by PACKMIRROR_TEST_S3_URL and AWS_ENDPOINT_URL");
    }
    let gate = Gate::before(endpoint.trim_start_matches("http://").trim_end_matches('/'));
    let repo = primary.repo("team/app.git", shapes::town);
    let node = world.setup(&primary).env("AWS_ENDPOINT_URL", &format!("http://{}", gate.address)).start();
    mirrored(&world, &node, &repo);
    gate.way.send_replace(way);
    let begun = std::time::Instant::now();
    same(&world, &primary, &node, &repo.path);
    repo.commit("main", "new", "1");
    same(&world, &primary, &node, &repo.path);
    let other = primary.repo("team/other.git", shapes::linear);
    same(&world, &primary, &node, &other.path);
    let took = begun.elapsed();
    gate.way.send_replace(Way::Open);
    mirrored(&world, &node, &repo);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    world.store.audit();
    assert!(took < Duration::from_secs(60), "three clones took {took:?} without the bucket");
}

#[test]
fn the_s3_server_refuses_connections() {
    the_s3_server_is(Way::Shut);
}

#[test]
fn the_s3_server_says_nothing() {
    the_s3_server_is(Way::Silent);
}

#[test]
fn the_s3_server_is_busy() {
    the_s3_server_is(Way::Busy);
}

/// At the start a store must prove itself; the refusal names it and says what to do.
#[test]
fn a_store_that_cannot_be_used_is_refused() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let file = world.unused("a-file");
    std::fs::write(&file, "no directory").unwrap();
    for store in [file.display().to_string(), "ftp://example.com/x".into(), "s3://".into()] {
        match Setup::new(&world, &primary.url).store(&store).launch() {
            Ok(_) => panic!("{store} was accepted"),
            Err((status, log)) => {
                assert!(!status.success(), "{store}");
                assert!(!log.contains("panicked"), "{log}");
                assert!(log.to_lowercase().contains("store") || log.contains(&store), "{store}: {log}");
            }
        }
    }
}

/// Plain HTTP to somewhere else than this machine needs to be asked for.
#[test]
fn plain_http_is_refused() {
    mirror_only!();
    let world = World::new();
    match Setup::new(&world, "http://git.example.com").launch() {
        Ok(_) => panic!("credentials would travel in the clear"),
        Err((status, log)) => {
            assert!(!status.success());
            assert!(log.contains("insecure_primary") || log.contains("insecure-primary"), "{log}");
        }
    }
}

/// A small file system in memory, for a disk that is full; gone when the test ends.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Small> {
        std::fs::create_dir_all(at).ok()?;
        let options = format!("size={size}");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output().ok()?;
        done.status.success().then(|| Small(at.to_owned()))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(done.is_ok_and(|s| s.success()), "remount");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The cache's disk is full: syncs that need it fail cleanly, clients are served all the same.
#[test]
fn the_caches_disk_is_full() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let cache = world.unused("small-cache");
    let Some(small) = Small::mount(&cache, "3m") else {
        return cannot("it needs root to mount a small tmpfs");
    };
    let repo = primary.repo("team/app.git", shapes::big_blob);
    {
        let big = world.node(&primary);
        mirrored(&world, &big, &repo);
    }
    let node = world.setup(&primary).cache(&cache).set("compare_every = \"1s\"").start();
    same(&world, &primary, &node, &repo.path);
    same(&world, &primary, &node, &repo.path);
    // A sync that cannot fit its scratch space.
    let other = primary.repo("team/other.git", shapes::big_blob);
    same(&world, &primary, &node, &other.path);
    repo.commit("main", "small", "1");
    same(&world, &primary, &node, &repo.path);
    assert!(!node.log().contains("panicked"));
    world.store.audit();
    small.grow("100m");
    mirrored(&world, &node, &other);
    from_bucket(&node, || same(&world, &primary, &node, &other.path));
    drop(node);
    world.store.audit();
}

/// The store's disk is full: nothing is published by half, and it goes on when there is room.
#[test]
fn the_stores_disk_is_full() {
    mirror_only!();
    let (world, primary) = (World::on_disk(), Primary::start());
    let dir = world.store.dir.clone().expect("a directory");
    let Some(small) = Small::mount(&dir, "2m") else { return cannot("it needs root to mount a small tmpfs") };
    let repo = primary.repo("team/app.git", shapes::big_blob);
    let node = world.setup(&primary).set("compare_every = \"1s\"").start();
    nothing_comes_of(&world, &primary, &node, &repo.path);
    same(&world, &primary, &node, &repo.path);
    let line = node.logged(&["WARN"]);
    assert!(!line.is_empty());
    small.grow("100m");
    in_bucket(&world, &node, &repo);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    world.store.audit();
    drop(node);
    drop(small);
}

/// The primary stays wrong for one repository: its neighbour is not slowed.
#[test]
fn one_repositorys_trouble_is_its_own() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let bad = primary.repo("team/bad.git", shapes::linear);
    let good = primary.repo("team/good.git", shapes::linear);
    let node = world.node(&primary);
    primary.fault(Wrong::Hang, |s| by_sync(s) && s.path.contains("bad"));
    git(world.path()).run(&format!("ls-remote -q {}", node.repo(&bad.path)));
    mirrored(&world, &node, &good);
    from_bucket(&node, || same(&world, &primary, &node, &good.path));
    if let Err(found) = compare(&world, &primary.repo_url(&bad.path), &node.repo(&bad.path)) {
        panic!("{found}");
    }
}

/// Failed syncs are repeated at a growing distance, not in a tight loop.
#[test]
fn failures_are_not_repeated_at_once() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    primary.fault(Wrong::Status(500, vec![]), by_sync);
    let node = world.node(&primary);
    git(world.path()).run(&format!("ls-remote -q {}", node.repo(&repo.path)));
    eventually("the sync to fail twice", || (primary.count(by_sync) >= 2).then_some(()));
    for _ in 0..20 {
        git(world.path()).run(&format!("ls-remote -q {}", node.repo(&repo.path)));
    }
    let tries = primary.count(by_sync);
    assert!(tries <= 12, "{tries} tries while 20 clients asked");
    assert!(world.store.generations(&repo.path).is_empty());
}
