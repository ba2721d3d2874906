//! Purging: a secret that was pushed away at the primary is on no node and in no object of the bucket any more.

use std::io::Read;
use std::path::Path;

use crate::git::{Output, git};
use crate::node::{Node, Setup};
use crate::oracle::{State, from_bucket, mirrored, same};
use crate::primary::{Primary, Repo};
use crate::slow::{ask, begun};
use crate::world::{World, eventually};
use crate::{mirror_only, shapes};

/// A node whose heartbeat beats every second.
pub fn setup(world: &World, primary: &Primary) -> Setup {
    world.setup(primary).set("compare_every = \"4s\"")
}

/// Bytes that no compression changes, and a piece of them by which they are found wherever they lie.
pub fn secret(seed: u64) -> (Vec<u8>, Vec<u8>) {
    let bytes = shapes::noise(seed, 96 << 10);
    let piece = bytes[5000..5048].to_vec();
    (bytes, piece)
}

/// Commits bytes to `main`.
#[track_caller]
pub fn commit(repo: &Repo, file: &str, bytes: &[u8]) -> String {
    let head = format!(
        "commit refs/heads/main\ncommitter T <t@example.com> 1900000000 +0000\ndata 2\n{}\nfrom refs/heads/main^0\nM 100644 inline {file}\ndata {}\n",
        &file[..1],
        bytes.len()
    );
    let script = [head.as_bytes(), bytes, b"\n"].concat();
    repo.git().with_input(&["fast-import", "--quiet", "--force"], &script).must();
    repo.oid("refs/heads/main")
}

/// Takes the last commit off `main` at the primary, for good.
pub fn push_away(repo: &Repo) {
    repo.set_ref("refs/heads/main", "refs/heads/main~1");
    repo.git().run("reflog expire --expire=now --all");
    repo.git().run("repack -adq");
    repo.git().run("prune --expire=now");
}

fn holds(bytes: &[u8], piece: &[u8]) -> bool {
    bytes.windows(piece.len()).any(|window| window == piece)
}

/// The objects of the bucket that hold a piece of bytes.
pub fn in_store(world: &World, piece: &[u8]) -> Vec<String> {
    world.store.list("").into_iter().filter(|name| holds(&world.store.get(name), piece)).collect()
}

/// The files below a folder that hold it.
pub fn on_disk(folder: &Path, piece: &[u8]) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.metadata().unwrap().is_dir() {
                folders.push(entry.path());
            } else if holds(&std::fs::read(entry.path()).unwrap_or_default(), piece) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

/// The ids of all objects in all packs of the bucket, by stock git.
fn stored_objects(world: &World) -> Vec<String> {
    let mut ids = Vec::new();
    for name in world.store.blobs("pack") {
        let dir = world.folder("pack");
        std::fs::write(dir.join("p.pack"), world.store.get(&name)).unwrap();
        git(&dir).run("index-pack p.pack");
        let listed = git(&dir).run("verify-pack -v p.pack");
        ids.extend(listed.lines().iter().filter_map(|line| line.split(' ').next()).map(str::to_owned));
    }
    ids
}

/// What a client is told that wants an object by its id.
pub fn wanted(world: &World, url: &str, oid: &str) -> Output {
    let dir = world.folder("wants");
    git(&dir).run("init -q .");
    git(&dir).args(&["fetch", "-q", url, oid])
}

fn clones(world: &World, node: &Node, repo: &Repo) {
    from_bucket(node, || world.clone_of(&node.repo(&repo.path), "--mirror"));
}

fn purge(node: &Node, args: &[&str]) -> serde_json::Value {
    let out = node.command(&[&["purge", "--json"], args].concat()).must();
    serde_json::from_str(&out.text()).expect("JSON")
}

#[test]
fn a_leaked_secret_is_on_no_node_and_in_no_object_of_the_bucket() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let (bytes, piece) = secret(1);
    let mut nodes: Vec<Node> = (0..3).map(|_| setup(&world, &primary).start()).collect();
    mirrored(&world, &nodes[0], &repo);
    let leaked = commit(&repo, "secret", &bytes);
    let tree = repo.oid("refs/heads/main^{tree}");
    let blob = repo.oid("refs/heads/main:secret");
    for node in &nodes {
        mirrored(&world, node, &repo);
        eventually("the node to serve it", || {
            let dir = world.clone_of(&node.repo(&repo.path), "--mirror");
            git(&dir).try_run(&format!("cat-file -e {leaked}")).ok().then_some(())
        });
        assert!(!on_disk(node.cache(), &piece).is_empty(), "the node has it in its cache");
    }
    assert!(!in_store(&world, &piece).is_empty());

    // It is refused while a ref has it.
    let refused = nodes[0].command(&["purge", &repo.path, "--oid", &blob]);
    refused
        .must_fail(&["is still reachable from refs/heads/main", "rewrite that history at the primary first"]);
    assert!(!in_store(&world, &piece).is_empty(), "nothing was purged");

    // One node is stopped, with the secret on its disk.
    nodes[2].kill();
    push_away(&repo);
    let would = purge(&nodes[0], &[&repo.path, "--dry-run"]);
    assert_eq!(would["is_synced"], false, "{would}");
    assert!(
        would["unreachable_objects"].as_u64() >= Some(3) && !in_store(&world, &piece).is_empty(),
        "{would}"
    );

    let unknown = "1".repeat(40);
    let done = purge(&nodes[0], &[&repo.path, "--oid", &leaked, "--oid", &blob, "--oid", &unknown]);
    assert_eq!(done["not_stored"], serde_json::json!([unknown]), "{done}");
    assert!(done["unreachable_objects"].as_u64() >= Some(3), "{done}");
    let answers: Vec<&str> =
        done["nodes"].as_array().unwrap().iter().map(|node| node["answer"].as_str().unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| **answer == "obeyed").count(), 2, "{done}");
    assert_eq!(answers.iter().filter(|answer| **answer == "silent").count(), 1, "{done}");

    assert_eq!(in_store(&world, &piece), [""; 0]);
    let stored = stored_objects(&world);
    for gone in [&leaked, &tree, &blob] {
        assert!(!stored.contains(gone), "{gone} is in a pack");
    }
    assert_eq!(world.store.generations(&repo.path).len(), 1, "older records are gone");
    for name in world.store.list("repos") {
        assert!(!holds(&world.store.get(&name), leaked.as_bytes()), "{name} names the commit");
    }
    world.store.audit();
    for node in &nodes[..2] {
        assert_eq!(on_disk(node.cache(), &piece), [""; 0]);
        for oid in [&leaked, &blob] {
            let (ours, theirs) = (
                wanted(&world, &node.repo(&repo.path), oid),
                wanted(&world, &primary.repo_url(&repo.path), oid),
            );
            assert!(!theirs.ok());
            let without = |text: &str, url: &str| text.replace(url, "URL");
            assert_eq!(
                without(&ours.stderr, &node.url),
                without(&theirs.stderr, primary.repo_url("").trim_end_matches('/'))
            );
        }
        from_bucket(node, || same(&world, &primary, node, &repo.path));
        let clone = world.clone_of(&node.repo(&repo.path), "--mirror");
        assert!(State::of(&clone).fsck.starts_with("true"), "{:?}", State::of(&clone).fsck);
    }

    // The stopped node comes back: it forgets before it goes on.
    assert!(!on_disk(nodes[2].cache(), &piece).is_empty());
    nodes[2].restart();
    eventually("the node that was away to forget", || {
        on_disk(nodes[2].cache(), &piece).is_empty().then_some(())
    });
    clones(&world, &nodes[2], &repo);
    same(&world, &primary, &nodes[2], &repo.path);
    assert_eq!(on_disk(nodes[2].cache(), &piece), [""; 0]);

    // Once more there is nothing to forget, and the mirror goes on.
    let again = purge(&nodes[1], &[&repo.path]);
    assert_eq!(
        (&again["unreachable_objects"], &again["blobs"]["objects"]),
        (&0.into(), &0.into()),
        "{again}"
    );
    repo.commit("main", "later", "later\n");
    mirrored(&world, &nodes[1], &repo);
    same(&world, &primary, &nodes[1], &repo.path);
}

#[test]
fn another_repository_with_the_same_blobs_is_undisturbed() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let (one, two) = (primary.repo("one.git", shapes::linear), primary.repo("two.git", shapes::linear));
    let (bytes, piece) = secret(2);
    let leaked = commit(&one, "secret", &bytes);
    commit(&two, "secret", &bytes);
    let node = setup(&world, &primary).start();
    mirrored(&world, &node, &one);
    mirrored(&world, &node, &two);
    push_away(&one);
    let done = purge(&node, &[&one.path, "--oid", &leaked]);
    assert!(done["shared"]["objects"].as_u64() >= Some(3), "both were taken in as the same pack: {done}");
    assert!(!in_store(&world, &piece).is_empty());
    for repo in [&one, &two] {
        from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    }
    world.store.audit();
    assert!(wanted(&world, &node.repo(&two.path), &leaked).ok());
    assert!(!wanted(&world, &node.repo(&one.path), &leaked).ok());
    // A node with an empty cache has all of the other one.
    let cold = setup(&world, &primary).start();
    from_bucket(&cold, || same(&world, &primary, &cold, &two.path));
}

#[test]
fn a_node_that_does_not_answer_is_named_and_obeys_when_it_goes_on() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let (bytes, piece) = secret(3);
    let leaked = commit(&repo, "secret", &bytes);
    // Its heartbeat counts for 75 s.
    let slow = world.setup(&primary).set("compare_every = \"10m\"").start();
    mirrored(&world, &slow, &repo);
    clones(&world, &slow, &repo);
    slow.signal("STOP");
    push_away(&repo);
    let failed = slow.command(&["purge", &repo.path, "--oid", &leaked, "--wait", "2s"]);
    failed.must_fail(&["these nodes have not forgotten it in time", "purge again"]);
    slow.signal("CONT");
    let done = purge(&slow, &[&repo.path, "--oid", &leaked]);
    assert_eq!(done["nodes"][0]["answer"], "obeyed", "{done}");
    assert_eq!(in_store(&world, &piece), [""; 0]);
    assert_eq!(on_disk(slow.cache(), &piece), [""; 0]);
    world.store.audit();
    from_bucket(&slow, || same(&world, &primary, &slow, &repo.path));
}

#[test]
fn a_repository_that_was_taken_out_leaves_nothing() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let (repo, other) = (primary.repo("r.git", shapes::linear), primary.repo("other.git", shapes::merges));
    let (bytes, piece) = secret(7);
    commit(&repo, "secret", &bytes);
    let node = setup(&world, &primary).start();
    for repo in [&repo, &other] {
        mirrored(&world, &node, repo);
        clones(&world, &node, repo);
    }
    node.command(&["purge", "absent.git"]).must_fail(&["the bucket holds no repository `absent.git`"]);
    node.command(&["rm", &repo.path]).must();
    let done = purge(&node, &[&repo.path]);
    assert!(done["deleted"]["blobs"]["objects"].as_u64() >= Some(4), "{done}");
    assert_eq!((in_store(&world, &piece), on_disk(node.cache(), &piece)), (vec![], vec![]));
    assert_eq!(world.store.blobs("pack").len(), 1, "the other one's");
    from_bucket(&node, || same(&world, &primary, &node, &other.path));
    world.store.audit();
}

/// What a client reads when the pack that it is taking is purged is never taken for a whole one.
#[test]
fn a_pack_that_is_purged_while_it_is_sent_breaks_off() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let leaked = commit(&repo, "secret", &shapes::noise(4, 48 << 20));
    let node = setup(&world, &primary).start();
    mirrored(&world, &node, &repo);
    let want = format!("want {leaked}");
    let mut stream = ask(&node, &repo.path, &["ofs-delta", "no-progress", &want, "done"]);
    begun(&mut stream);
    push_away(&repo);
    let done = purge(&node, &[&repo.path, "--oid", &leaked]);
    assert_eq!(done["nodes"][0]["answer"], "obeyed", "{done}");
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    assert!(all.len() > 1 << 20 && all.len() < 48 << 20, "{} bytes", all.len());
    // The last chunk is missing, whether the words on the side band came through or not.
    assert!(!all.ends_with(b"0\r\n\r\n"), "{read:?}");
    node.logged(&["a pack that was purged is not sent to its end"]);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    assert_eq!(node.metric("packmirror_repairs_total", &[]), 0.0, "what is gone is no damage");
}

#[test]
fn a_node_that_was_away_for_longer_than_orders_are_kept_empties_its_cache() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repos = ["one.git", "two.git"].map(|path| primary.repo(path, shapes::linear));
    let (bytes, piece) = secret(5);
    commit(&repos[0], "secret", &bytes);
    commit(&repos[1], "other", &secret(6).0);
    let mut node = setup(&world, &primary).start();
    for repo in &repos {
        mirrored(&world, &node, repo);
        clones(&world, &node, repo);
    }
    node.kill();
    for repo in &repos {
        push_away(repo);
        purge(&node, &[&repo.path]);
    }
    let orders = world.store.list("purges");
    assert_eq!(orders.len(), 2);
    // As a collection does it after 90 days.
    world.store.delete(&orders[0]);
    assert!(!on_disk(node.cache(), &piece).is_empty());
    node.restart();
    node.logged(&["its cache is empty now"]);
    assert_eq!(on_disk(node.cache(), &piece), [""; 0]);
    from_bucket(&node, || same(&world, &primary, &node, &repos[0].path));
}
