//! Several nodes on one bucket, and nodes that die, start cold, lose their cache or find it damaged.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use crate::git::git;
use crate::node::Node;
use crate::oracle::{compare, from_bucket, in_bucket, mirrored, same};
use crate::primary::{Primary, Repo, Seen, Wrong};
use crate::world::{World, eventually};
use crate::{mirror_only, shapes, wire};

/// A clone through a node that has nothing on its disk comes from the bucket: no sync, no pack from the primary.
#[test]
fn a_cold_node_serves_at_once() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let one = world.node(&primary);
    mirrored(&world, &one, &repo);
    drop(one);
    let cold = world.node(&primary);
    primary.forget_log();
    from_bucket(&cold, || world.clone_of(&cold.repo(&repo.path), "--mirror"));
    assert_eq!(primary.count(|s| s.is("fetch")), 0, "a cold node fetched from the primary");
    same(&world, &primary, &cold, &repo.path);
    assert_eq!(world.store.generations(&repo.path).len(), 1, "nothing had changed");
}

#[test]
fn what_one_node_synced_all_serve() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::merges);
    let nodes = [world.node(&primary), world.node(&primary), world.node(&primary)];
    for node in &nodes {
        same(&world, &primary, node, &repo.path);
    }
    mirrored(&world, &nodes[0], &repo);
    for round in 0..4 {
        repo.commit("main", &format!("f{round}"), "1");
        if round == 2 {
            repo.set_ref("refs/heads/main", "refs/heads/main~2");
        }
        mirrored(&world, &nodes[round % 3], &repo);
        for node in &nodes {
            same(&world, &primary, node, &repo.path);
        }
    }
    let cold = world.node(&primary);
    from_bucket(&cold, || same(&world, &primary, &cold, &repo.path));
    world.store.audit();
}

/// Syncs of the same change at the same time, by nodes and by commands: one chain of generations, nothing lost.
#[test]
fn racing_syncs_make_one_chain() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::merges);
    let nodes = [world.node(&primary), world.node(&primary)];
    for round in 0..4 {
        repo.commit("main", &format!("f{round}"), "1");
        std::thread::scope(|s| {
            for node in &nodes {
                s.spawn(|| git(world.path()).args(&["ls-remote", "-q", &node.repo(&repo.path)]).must());
            }
            s.spawn(|| nodes[0].command(&["sync", &repo.path]).must());
            s.spawn(|| nodes[1].command(&["sync", &repo.path]).must());
        });
        in_bucket(&world, &nodes[0], &repo);
        for node in &nodes {
            same(&world, &primary, node, &repo.path);
        }
    }
    world.store.audit();
}

/// Starts to read a big clone and leaves it half-way.
fn half_a_clone(node: &Node, repo: &Repo) -> TcpStream {
    let want = format!("want {}", repo.oid("refs/heads/main"));
    let body = wire::command("fetch", &["object-format=sha1"], &[&want, "no-progress", "done"]);
    let mut stream = TcpStream::connect(node.address()).unwrap();
    let head = format!(
        "POST /{}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
        repo.path,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let mut some = vec![0u8; 100_000];
    stream.read_exact(&mut some).unwrap();
    assert!(some.starts_with(b"HTTP/1.1 200"), "{}", some[..200].escape_ascii());
    stream
}

/// kill -9 in the middle of a clone: that client fails loudly, another node serves it, the killed one comes back.
#[test]
fn a_node_dies_while_it_serves() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::big_blob);
    let (mut one, two) = (world.node(&primary), world.node(&primary));
    mirrored(&world, &one, &repo);
    let mut stream = half_a_clone(&one, &repo);
    one.kill();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut answer must not look finished");
    from_bucket(&two, || same(&world, &primary, &two, &repo.path));
    one.restart();
    from_bucket(&one, || same(&world, &primary, &one, &repo.path));
    world.store.audit();
}

/// kill -9 in the middle of a first sync: nothing is published, and the next node does it.
#[test]
fn a_node_dies_while_it_syncs() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let mut one = world.node(&primary);
    primary.fault(Wrong::Hang, |s| s.is("fetch"));
    git(world.path()).run(&format!("ls-remote -q {}", one.repo(&repo.path)));
    eventually("the sync to fetch", || (primary.count(|s| s.is("fetch")) > 0).then_some(()));
    one.kill();
    assert_eq!(world.store.generations(&repo.path).len(), 0);
    primary.heal();
    let two = world.node(&primary);
    mirrored(&world, &two, &repo);
    one.restart();
    from_bucket(&one, || same(&world, &primary, &one, &repo.path));
    world.store.audit();
}

/// kill -9 at arbitrary moments while pushes and fetches go on: in the end everything is equal.
#[test]
fn a_node_dies_again_and_again() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::merges);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    for round in 0..6 {
        repo.commit("main", &format!("f{round}"), &shapes::prose(round, 50));
        let generations = world.store.generations(&repo.path).len();
        git(world.path()).run(&format!("ls-remote -q {}", node.repo(&repo.path)));
        // Each round kills a little later in the life of the sync: by what it has put into the bucket.
        let packs = world.store.blobs("pack").len();
        match round % 3 {
            0 => {}
            1 => eventually("a pack", || (world.store.blobs("pack").len() > packs).then_some(())),
            _ => eventually("a generation", || {
                (world.store.generations(&repo.path).len() > generations).then_some(())
            }),
        }
        node.kill();
        world.store.audit();
        node.restart();
        same(&world, &primary, &node, &repo.path);
    }
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
    world.store.audit();
}

#[test]
fn a_wiped_cache_loses_nothing() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
    node.kill();
    std::fs::remove_dir_all(node.cache()).unwrap();
    node.restart();
    primary.forget_log();
    from_bucket(&node, || world.clone_of(&node.repo(&repo.path), "--mirror"));
    assert_eq!(primary.count(|s| s.is("fetch")), 0);
    same(&world, &primary, &node, &repo.path);
}

/// A node that starts again goes on with what it mirrored, and still looks whether somebody was faster meanwhile.
#[test]
fn a_restart_goes_on_with_what_was_mirrored() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let (one, two) = (primary.repo("one.git", shapes::town), primary.repo("two.git", shapes::linear));
    let mut node = world.node(&primary);
    mirrored(&world, &node, &one);
    mirrored(&world, &node, &two);
    let other = world.node(&primary);
    from_bucket(&other, || same(&world, &primary, &other, &two.path));
    // The index is written behind the work.
    std::thread::sleep(std::time::Duration::from_secs(2));
    node.kill();
    two.commit("main", "later", "text");
    from_bucket(&other, || same(&world, &primary, &other, &two.path));
    node.restart();
    node.logged(&["goes on with what was mirrored before", "repositories=2"]);
    primary.forget_log();
    from_bucket(&node, || same(&world, &primary, &node, &one.path));
    from_bucket(&node, || world.clone_of(&node.repo(&two.path), "--mirror"));
    assert_eq!(primary.count(|s| s.is("fetch") && s.path.contains("two")), 0);
    same(&world, &primary, &node, &two.path);
}

/// What a node remembers is no state of the bucket: one that was emptied is filled again.
#[test]
fn a_bucket_that_was_emptied_is_filled_again() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    std::thread::sleep(std::time::Duration::from_secs(2));
    node.kill();
    for name in ["blobs", "repos"].iter().flat_map(|folder| world.store.list(folder)) {
        world.store.delete(&name);
    }
    assert!(world.store.generations(&repo.path).is_empty());
    node.restart();
    mirrored(&world, &node, &repo);
    world.store.audit();
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
}

/// A cold node opens a repository of many layers for the client that waits for it.
#[test]
fn a_cold_node_serves_its_first_client() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    for n in 0..12 {
        repo.commit("main", &format!("file{n}"), "text");
        same(&world, &primary, &node, &repo.path);
    }
    for _ in 0..3 {
        let cold = world.node(&primary);
        from_bucket(&cold, || world.clone_of(&cold.repo(&repo.path), "--mirror"));
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    found
}

/// Flips bits all over a file.
fn spoil(path: &Path) {
    let Ok(mut bytes) = std::fs::read(path) else { return };
    for at in (0..bytes.len()).step_by(97) {
        bytes[at] ^= 0x55;
    }
    let _ = std::fs::write(path, bytes);
}

/// Every single file of the cache spoiled, the index among them: the node starts and serves what is right.
#[test]
fn a_damaged_cache_is_found_and_replaced() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
    node.kill();
    let all = files(node.cache());
    assert!(!all.is_empty(), "the node cached nothing at all");
    all.iter().for_each(|f| spoil(f));
    node.restart();
    same(&world, &primary, &node, &repo.path);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
}

/// The same one file at a time, so that no damage hides behind another; cut short instead of flipped, too.
#[test]
fn any_damaged_cache_file_is_found() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
    let all = files(node.cache());
    for (n, file) in all.iter().enumerate().take(12) {
        node.kill();
        let Ok(length) = std::fs::metadata(file).map(|m| m.len()) else { continue };
        if n % 2 == 0 {
            spoil(file);
        } else {
            std::fs::File::options().write(true).open(file).unwrap().set_len(length / 2).unwrap();
        }
        node.restart();
        if let Err(found) = compare(&world, &primary.repo_url(&repo.path), &node.repo(&repo.path)) {
            panic!("with {} damaged:\n{found}", file.display());
        }
    }
}

/// A blob with a flipped bit, or gone: a node without a cache notices. What was not begun to be sent is passed
/// through; a pack that turns bad on the way ends in a failure the client sees. Never a wrong success.
#[test]
fn a_damaged_or_missing_blob_is_found() {
    mirror_only!();
    for kind in ["pack", "idx", "graph", "refs"] {
        for gone in [false, true] {
            let (world, primary) = (World::new(), Primary::start());
            let repo = primary.repo("r.git", shapes::town);
            let one = world.node(&primary);
            mirrored(&world, &one, &repo);
            drop(one);
            let blob = world.store.blobs(kind).remove(0);
            if gone {
                world.store.delete(&blob)
            } else {
                world.store.damage(&blob)
            }
            let cold = world.node(&primary);
            let dir = world.unused("clone");
            let line = format!("clone -q --mirror {} {}", cold.repo(&repo.path), dir.display());
            let out = git(world.path()).try_run(&line);
            if out.ok() {
                same(&world, &primary, &cold, &repo.path);
            } else {
                assert!(kind == "pack" && !gone, "{kind} gone={gone}: not passed through: {}", out.stderr);
            }
            let id = blob.rsplit('/').next().unwrap()[..12].to_owned();
            eventually(&format!("a log line about {blob} (gone={gone})"), || {
                let log = cold.log();
                log.lines()
                    .any(|l| l.contains(&id) && (l.contains("WARN") || l.contains("ERROR")))
                    .then_some(())
            });
        }
    }
}

/// A cache directory belongs to one process; a second one is told so.
#[test]
fn two_nodes_on_one_cache_directory() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let one = world.node(&primary);
    match world.setup(&primary).cache(one.cache()).launch() {
        Ok(_) => panic!("two processes share {}", one.cache().display()),
        Err((status, log)) => {
            assert!(!status.success());
            assert!(log.contains("in use") || log.contains("another process"), "{log}");
        }
    }
}

/// A node that only knows an older generation learns of the newer ones by itself.
#[test]
fn a_node_that_slept_catches_up() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let (awake, asleep) = (world.node(&primary), world.node(&primary));
    mirrored(&world, &awake, &repo);
    same(&world, &primary, &asleep, &repo.path);
    for n in 0..5 {
        repo.commit("main", &format!("f{n}"), "1");
        mirrored(&world, &awake, &repo);
    }
    primary.forget_log();
    from_bucket(&asleep, || world.clone_of(&asleep.repo(&repo.path), "--mirror"));
    assert_eq!(primary.count(|s| s.is("fetch")), 0, "the bucket had it all");
    same(&world, &primary, &asleep, &repo.path);
}

/// Gives the newest generation of a repository a graph that says it has another version, as a program of that version
/// would have left it.
fn with_graph_version(world: &World, repo: &str, version: u32) {
    use sha2::{Digest, Sha256};
    let store = &world.store;
    let name = store.generations(repo).swap_remove(0);
    let mut record = store.newest(repo).expect("a generation");
    for layer in record["layers"].as_array_mut().expect("layers") {
        let id = layer["graph"]["id"].as_str().expect("an id").to_owned();
        let frame = store.get(&format!("blobs/{}/{id}.graph", &id[..2]));
        let mut graph = zstd::stream::decode_all(&frame[..]).expect("a frame");
        graph[4..8].copy_from_slice(&version.to_le_bytes());
        let body = graph.len() - 32;
        let sum = Sha256::digest(&graph[..body]);
        graph[body..].copy_from_slice(&sum);
        let frame = zstd::bulk::compress(&graph, 3).expect("a frame");
        let id = hex::encode(Sha256::digest(&frame));
        layer["graph"]["id"] = id.clone().into();
        layer["graph"]["len"] = frame.len().into();
        store.put(&format!("blobs/{}/{id}.graph", &id[..2]), frame);
    }
    let line = format!("{record}\n");
    let sum = hex::encode(Sha256::digest(&line));
    store.put(&name, format!("{line}\"{sum}\"\n").into_bytes());
}

/// A cold node on what a program of that version left.
fn after_version(version: u32) -> (World, Primary, Repo, Node) {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::merges);
    let one = world.node(&primary);
    mirrored(&world, &one, &repo);
    drop(one);
    with_graph_version(&world, &repo.path, version);
    let cold = world.node(&primary);
    same(&world, &primary, &cold, &repo.path);
    (world, primary, repo, cold)
}

/// From the packs that the bucket has: the primary is asked for no pack.
#[test]
fn a_graph_of_an_older_version_is_built_again() {
    mirror_only!();
    let (world, primary, repo, cold) = after_version(1);
    let packs = || {
        let record = world.store.newest(&repo.path).expect("a generation");
        let layers = record["layers"].as_array().expect("layers").clone();
        layers.into_iter().map(|layer| [layer["pack"].clone(), layer["idx"].clone()]).collect::<Vec<_>>()
    };
    let stored = packs();
    let made_anew = || (world.store.generations(&repo.path).len() == 2).then_some(());
    eventually("a generation that can be read", made_anew);
    assert_eq!(packs(), stored);
    let ours = |seen: &Seen| seen.header("user-agent").is_some_and(|agent| agent.contains("packmirror"));
    assert_eq!(primary.count(|s| s.is("fetch") && ours(s)), 1, "more than the first sync's fetch");
    from_bucket(&cold, || same(&world, &primary, &cold, &repo.path));
    world.store.audit();
}

#[test]
fn a_graph_of_a_newer_version_is_left_alone() {
    mirror_only!();
    let (world, primary, repo, cold) = after_version(1_000);
    let told = || cold.log().contains("written by a newer packmirror").then_some(());
    eventually("the reason in the log", told);
    same(&world, &primary, &cold, &repo.path);
    assert_eq!(world.store.generations(&repo.path).len(), 1, "it was not replaced");
}

/// Bounded freshness: while what is published is young enough, refs, grant and pack are answered with no trip to the
/// primary.
#[test]
fn bounded_freshness_asks_the_primary_nothing() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let settings =
        ["freshness = \"bounded\"", "max_age = \"1h\"", "grant_ttl = \"5m\"", "compare_every = \"1h\""];
    let node = settings.into_iter().fold(world.setup(&primary), |setup, line| setup.set(line)).start();
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
    for version in [2, 1, 0] {
        primary.forget_log();
        let protocol = format!("-c protocol.version={version}");
        from_bucket(&node, || world.clone_of(&node.repo(&repo.path), &format!("--mirror {protocol}")));
        assert_eq!(primary.count(|_| true), 0, "version {version}: the primary was asked");
    }
    same(&world, &primary, &node, &repo.path);
}
