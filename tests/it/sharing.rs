//! Nodes that share the work on one bucket.

use crate::git::git;
use crate::node::Node;
use crate::oracle::{from_bucket, in_bucket, same};
use crate::primary::{Primary, Repo, Wrong};
use crate::world::{World, eventually};
use crate::{mirror_only, shapes};

/// A node that compares only when a client asks.
fn node(world: &World, primary: &Primary) -> Node {
    world.setup(primary).set("compare_every = \"1h\"").start()
}

/// Shows the present refs to a client of each node, all at the same moment.
fn ask_all(world: &World, nodes: &[Node], repo: &Repo) {
    std::thread::scope(|s| {
        for node in nodes {
            s.spawn(|| git(world.path()).args(&["ls-remote", "-q", &node.repo(&repo.path)]).must());
        }
    });
}

/// Comparisons and syncs that ended well.
fn well(node: &Node) -> f64 {
    let runs = |labels: &[&str]| node.metric("packmirror_sync_runs_total", labels);
    runs(&[]) - runs(&["failed"])
}

/// What is asked for through eight nodes at the same moment leaves the primary once.
#[test]
fn one_node_fetches_what_eight_need() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", |dir| {
        shapes::linear(dir);
        git(dir).run("update-ref refs/heads/other refs/heads/main");
    });
    repo.commit("main", "noise", &hex::encode(shapes::noise(1, 1 << 20)));
    let nodes: Vec<Node> = (0..8).map(|_| node(&world, &primary)).collect();
    // Each node sees the difference before the first has fetched.
    primary.fault(Wrong::Late(std::time::Duration::from_secs(2)), |seen| seen.is("fetch"));
    for round in 0..2 {
        let (sent, packs) = (primary.sent(), world.store.blobs("pack"));
        let before: Vec<f64> = nodes.iter().map(well).collect();
        primary.forget_log();
        ask_all(&world, &nodes, &repo);
        in_bucket(&world, &nodes[0], &repo);
        for (node, before) in nodes.iter().zip(before) {
            eventually("all nodes to have it", || (well(node) > before).then_some(()));
        }
        let new: Vec<String> = world.store.blobs("pack").into_iter().filter(|p| !packs.contains(p)).collect();
        assert_eq!(new.len(), 1, "round {round}: {new:?}");
        let pack = world.store.get(&new[0]).len() as u64;
        let sent = primary.sent() - sent;
        assert_eq!(primary.count(|seen| seen.is("fetch")), 1, "round {round}");
        assert!(
            sent * 100 <= pack * 105,
            "round {round}: {sent} bytes from the primary for a pack of {pack}"
        );
        assert_eq!(world.store.generations(&repo.path).len(), round + 1);
        repo.commit("main", "more", &hex::encode(shapes::noise(2, 1 << 20)));
    }
    ask_all(&world, &nodes, &repo);
    in_bucket(&world, &nodes[0], &repo);
    primary.heal();
    for node in &nodes {
        from_bucket(node, || same(&world, &primary, node, &repo.path));
    }
    let waits: f64 = nodes.iter().map(|node| node.metric("packmirror_lease_waits_total", &[])).sum();
    assert!(waits >= 7.0, "{waits} waits: the nodes did not meet");
    eventually("the lease to be given up", || {
        world.store.list("repos").iter().all(|name| !name.ends_with("/fetch")).then_some(())
    });
    world.store.audit();
}

/// kill -9 of the node that fetches: another one takes the work over.
#[test]
fn a_fetch_goes_on_when_its_node_dies() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let (mut first, second) = (node(&world, &primary), node(&world, &primary));
    primary.fault(Wrong::Hang, |seen| seen.is("fetch"));
    git(world.path()).args(&["ls-remote", "-q", &first.repo(&repo.path)]).must();
    eventually("the first node to fetch", || (primary.count(|seen| seen.is("fetch")) > 0).then_some(()));
    git(world.path()).args(&["ls-remote", "-q", &second.repo(&repo.path)]).must();
    let waits = || (second.metric("packmirror_lease_waits_total", &[]) > 0.0).then_some(());
    eventually("the second node to wait", waits);
    assert_eq!(primary.count(|seen| seen.is("fetch")), 1, "the second node did not wait");
    let died = std::time::Instant::now();
    first.kill();
    primary.heal();
    in_bucket(&world, &second, &repo);
    let took = died.elapsed();
    assert!(took.as_secs() <= 30, "taken over after {took:?}");
    from_bucket(&second, || same(&world, &primary, &second, &repo.path));
    assert_eq!(second.metric("packmirror_leases_taken_over_total", &[]), 1.0);
    first.restart();
    from_bucket(&first, || same(&world, &primary, &first, &repo.path));
    world.store.audit();
}
