//! Nodes that share the work on one bucket.

use crate::git::git;
use crate::node::Node;
use crate::oracle::{from_bucket, in_bucket, same};
use crate::primary::{Primary, Repo, Seen, Wrong};
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

/// Questions for refs that the primary got, of whatever repository.
fn questions(primary: &Primary) -> usize {
    primary.count(|seen| seen.is("ls-refs"))
}

/// Each repository is compared once a round, whatever the number of nodes; what one of them finds all take part in; a node that
/// dies is covered.
#[test]
fn the_nodes_divide_the_comparisons() {
    mirror_only!();
    const REPOS: usize = 30;
    let (world, primary) = (World::new(), Primary::start());
    let repos: Vec<Repo> =
        (0..REPOS).map(|n| primary.repo(&format!("team/{n}.git"), shapes::linear)).collect();
    let start = || world.setup(&primary).set("compare_every = \"4s\"").start();
    let mut nodes: Vec<Node> = (0..3).map(|_| start()).collect();
    let names: Vec<&str> = repos.iter().map(|repo| repo.path.as_str()).collect();
    nodes[0].command(&[&["sync"], &names[..]].concat()).must();
    let divided = |nodes: &[Node]| {
        let live = nodes.iter().all(|node| node.metric("packmirror_live_nodes", &[]) == nodes.len() as f64);
        let own: Vec<f64> = nodes.iter().map(|node| node.metric("packmirror_owned_repos", &[])).collect();
        (live && own.iter().sum::<f64>() == REPOS as f64 && own.iter().all(|own| *own > 0.0)).then_some(())
    };
    eventually("the nodes to have divided the repositories", || divided(&nodes));
    // Rounds are counted by what happens at the primary: what was due before the division is over after one.
    let round = || {
        let (begun, before) = (std::time::Instant::now(), questions(&primary));
        eventually("a round", || (questions(&primary) >= before + REPOS).then_some(()));
        begun.elapsed()
    };
    round();
    round();
    let took = round() + round() + round();
    assert!(
        took.as_secs_f64() >= 3.0 * 4.0 * 0.8,
        "three rounds took {took:?}: compared more often than needed"
    );
    let shown = |seen: &Seen| seen.path.ends_with("/info/refs");
    let before = primary.count(shown);
    round();
    assert_eq!(primary.count(shown), before, "what it can do is known: a comparison is one request");
    // What is pushed is found by the owner, and served by all.
    primary.forget_log();
    let pushed = &repos[7];
    pushed.commit("main", "more", "text");
    in_bucket(&world, &nodes[0], pushed);
    assert_eq!(primary.count(|seen| seen.is("fetch")), 1);
    for node in &nodes {
        from_bucket(node, || same(&world, &primary, node, &pushed.path));
    }
    // Two of three die: the last one compares all.
    nodes.truncate(1);
    eventually("the last node to own all", || divided(&nodes));
    for repo in &repos {
        repo.commit("main", "last", "text");
    }
    for repo in &repos {
        in_bucket(&world, &nodes[0], repo);
    }
    world.store.audit();
}

/// What the owner found equal to the primary another node serves without asking, and never as younger than it is.
#[test]
fn bounded_freshness_counts_from_what_the_owner_asked() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let settings =
        ["freshness = \"bounded\"", "max_age = \"1h\"", "grant_ttl = \"5m\"", "compare_every = \"4s\""];
    let start = || settings.into_iter().fold(world.setup(&primary), |setup, line| setup.set(line)).start();
    let nodes = [start(), start()];
    for node in &nodes {
        git(world.path()).args(&["ls-remote", "-q", &node.repo(&repo.path)]).must();
        in_bucket(&world, node, &repo);
        same(&world, &primary, node, &repo.path);
    }
    let owns = |node: &Node| node.metric("packmirror_owned_repos", &[]);
    eventually("an owner", || (owns(&nodes[0]) + owns(&nodes[1]) == 1.0).then_some(()));
    let other = if owns(&nodes[0]) == 0.0 { &nodes[0] } else { &nodes[1] };
    // From here on the node that does not own it compares nothing.
    let runs = || other.metric("packmirror_sync_runs_total", &[]);
    let compared = |primary: &Primary| questions(primary);
    let asked = compared(&primary);
    eventually("what was due before", || (compared(&primary) >= asked + 2).then_some(()));
    let (before, asked) = (runs(), compared(&primary));
    eventually("rounds of the owner", || (compared(&primary) >= asked + 4).then_some(()));
    assert_eq!(runs(), before, "it compared what another node owns");
    let fresh = || (other.metric("packmirror_staleness_seconds", &[]) < 16.0).then_some(());
    eventually("the findings of the owner", fresh);
    from_bucket(other, || world.clone_of(&other.repo(&repo.path), "--mirror"));
    // The primary does not answer any more: the age goes up with the time.
    primary.fault(Wrong::Status(503, Vec::new()), |_| true);
    let down = std::time::Instant::now();
    eventually("the state to age", || {
        let age = other.metric("packmirror_staleness_seconds", &[]);
        let true_age = down.elapsed().as_secs_f64();
        assert!(age + 0.5 >= true_age, "{age} s old by the node, at least {true_age} s in truth");
        (true_age > 12.0).then_some(())
    });
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
