//! Collection: what is not in use any more leaves the bucket, and nobody who clones meanwhile sees anything of it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::bucket::Store;
use crate::git::git;
use crate::node::{Node, Setup};
use crate::oracle::{State, from_bucket, mirrored, published, same};
use crate::primary::{Primary, Repo};
use crate::world::{AtEnd, World, eventually};
use crate::{mirror_only, shapes};

/// A node whose data stays for five seconds after it was named last.
fn setup(world: &World, primary: &Primary, every: &str) -> Setup {
    let every = format!("gc.every = \"{every}\"");
    world.setup(primary).set("gc.grace = \"5s\"").set("limits.transfer = \"5s\"").set(&every)
}

fn bytes(store: &Store) -> usize {
    store.list("blobs").iter().map(|name| store.get(name).len()).sum()
}

fn gc(node: &Node, args: &[&str]) -> serde_json::Value {
    let out = node.command(&[&["gc", "--json"], args].concat()).must();
    serde_json::from_str(&out.text()).expect("JSON")
}

/// Everything that the newest generation names is there.
#[track_caller]
fn is_whole(world: &World, repo: &Repo) {
    let newest = world.store.newest(&repo.path).expect("a generation");
    let layers = newest["layers"].as_array().expect("layers").iter();
    for blob in layers.flat_map(|l| [&l["pack"], &l["idx"], &l["graph"]]).chain([&newest["refs"]]) {
        let (id, kind) = (blob["id"].as_str().expect("an id"), blob["kind"].as_str().expect("a kind"));
        let there = world.store.try_get(&format!("blobs/{}/{id}.{kind}", &id[..2]));
        assert_eq!(there.map(|bytes| bytes.len() as u64), blob["len"].as_u64(), "{blob}");
    }
}

#[test]
fn two_collections_free_what_was_taken_out() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let kept = primary.repo("team/app.git", shapes::linear);
    let node = setup(&world, &primary, "0s").start();
    mirrored(&world, &node, &kept);
    let fresh = bytes(&world.store);
    let old = primary.repo("team/old.git", shapes::town);
    mirrored(&world, &node, &old);
    assert!(bytes(&world.store) > 2 * fresh, "the repository that goes is the larger one");
    node.command(&["rm", &old.path]).must();

    let first = gc(&node, &[]);
    assert_eq!(first["blobs"]["objects"], 0, "{first}");
    assert!(first["marked"]["objects"].as_u64() >= Some(4), "{first}");
    let before = world.store.list("blobs");
    let would = eventually("its time has come", || {
        let would = gc(&node, &["--dry-run"]);
        (would["blobs"]["objects"].as_u64() >= Some(4)).then_some(would)
    });
    assert_eq!(world.store.list("blobs"), before, "a dry run deletes nothing");
    let second = gc(&node, &[]);
    assert_eq!(second["blobs"], would["blobs"]);
    let left = bytes(&world.store);
    assert!(left * 10 <= fresh * 12, "{left} bytes are left, and a fresh mirror has {fresh}");
    assert_eq!(world.store.list("tombs"), [""; 0]);
    from_bucket(&node, || same(&world, &primary, &node, &kept.path));
    is_whole(&world, &kept);
    let text = node.command(&["gc"]).must().text();
    assert!(text.contains("are in use"), "{text}");

    // A record that cannot be read: nothing is deleted, and the message says what to do.
    let newest = world.store.generations(&kept.path).remove(0);
    world.store.damage(&newest);
    node.command(&["gc"]).must_fail(&["cannot be read, so nothing is deleted"]);
}

/// Two nodes collect all the time with the shortest grace, while states come back that were left seconds ago.
#[test]
fn clients_notice_nothing_of_collections() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let states = [repo.oid("main"), repo.commit("main", "b", "two\n"), repo.commit("main", "c", "three\n")];
    let nodes = [(); 2].map(|()| setup(&world, &primary, "1s").start());
    nodes.iter().for_each(|node| mirrored(&world, node, &repo));
    let done = AtomicBool::new(false);
    let url = nodes[0].repo(&repo.path);
    std::thread::scope(|scope| {
        let end = AtEnd(&done);
        let reader = scope.spawn(|| {
            let (folder, mut rounds) = (world.folder("clones"), 0);
            while !done.load(Ordering::SeqCst) {
                let dir = folder.join(rounds.to_string());
                git(&folder).args(&["clone", "-q", "--mirror", &url, dir.to_str().unwrap()]);
                git(&dir).run("fsck --strict --no-progress --no-dangling");
                rounds += 1;
            }
            rounds
        });
        let deleted = || {
            let metric = |node| Node::metric(node, "packmirror_collected_objects_total", &["kind=\"blob\""]);
            nodes.iter().map(metric).sum::<f64>()
        };
        for n in 0..24 {
            repo.set_ref("refs/heads/main", &states[n % 3]);
            published(&world, &nodes[n % 2], &repo);
            is_whole(&world, &repo);
        }
        eventually("something was collected", || (deleted() > 0.0).then_some(()));
        for n in 0..6 {
            repo.set_ref("refs/heads/main", &states[n % 3]);
            published(&world, &nodes[n % 2], &repo);
            is_whole(&world, &repo);
        }
        drop(end);
        assert!(reader.join().unwrap() > 2);
    });
    for node in &nodes {
        same(&world, &primary, node, &repo.path);
        assert_eq!(node.metric("packmirror_collections_total", &["result=\"stopped\""]), 0.0);
        assert_eq!(node.metric("packmirror_repairs_total", &[]), 0.0, "nothing had to be made anew");
    }
    let (ours, theirs) =
        (world.clone_of(&url, "--mirror"), world.clone_of(&primary.repo_url(&repo.path), "--mirror"));
    assert_eq!(State::of(&theirs).differences(&State::of(&ours), false), "");
}
