//! What a node says of its own state: how old it is, whether it was confirmed, and what is not right with it.

use std::time::Duration;

use crate::git::git;
use crate::mirror_only;
use crate::node::Node;
use crate::oracle::{from_bucket, mirrored, same};
use crate::primary::{Primary, Seen, Wrong};
use crate::shapes;
use crate::wire;
use crate::world::{World, eventually};

/// The fetches of packmirror itself: the user agent tells them from clients' own.
fn by_sync(seen: &Seen) -> bool {
    seen.is("fetch") && is_ours(seen)
}

fn is_ours(seen: &Seen) -> bool {
    seen.header("user-agent").is_some_and(|agent| agent.contains("packmirror"))
}

/// The age that bounded freshness states begins when the primary is asked, so a long sync does not count as age 0.
#[test]
fn what_took_long_to_sync_is_as_old_as_the_question() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    primary.fault(Wrong::Late(Duration::from_secs(4)), by_sync);
    let settings =
        ["freshness = \"bounded\"", "max_age = \"1h\"", "grant_ttl = \"5m\"", "compare_every = \"1h\""];
    let node = settings.into_iter().fold(world.setup(&primary), |setup, line| setup.set(line)).start();
    mirrored(&world, &node, &repo);
    let record = world.store.newest(&repo.path).expect("a generation");
    let times = ["verified_at", "created_at"].map(|name| record[name].as_u64().expect("seconds"));
    assert!(times[0] + 3 <= times[1], "asked at {}, published at {}", times[0], times[1]);
    let body = wire::command("ls-refs", &["object-format=sha1"], &[]);
    let headers = [wire::V2];
    let path = format!("/{}/git-upload-pack", repo.path);
    let age = eventually("an answer from what is published", || {
        let reply = wire::post(node.address(), &path, &headers, &body).expect("an answer");
        reply.header("packmirror-age").map(|age| age.parse::<u64>().expect("seconds"))
    });
    assert!(age >= 3, "{age} s after the primary was asked at least 4 s ago");
}

/// A ref that is wanted by name is read as it stands now, also while the mirror backs off and asks nobody.
#[test]
fn a_wanted_ref_is_never_answered_from_what_nobody_confirmed() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    repo.configure("[uploadpack]\n\tallowRefInWant = true\n");
    let node = world.setup(&primary).set("compare_every = \"1h\"").start();
    mirrored(&world, &node, &repo);
    let body =
        wire::command("fetch", &["object-format=sha1"], &["want-ref refs/heads/main", "no-progress", "done"]);
    let headers = [wire::V2];
    let path = format!("/{}/git-upload-pack", repo.path);
    let wanted = || {
        let reply = wire::post(node.address(), &path, &headers, &body).expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.text()
    };
    assert!(wanted().contains(&repo.oid("refs/heads/main")));
    // From now on comparisons fail, and clients are the primary's.
    primary.fault(Wrong::Status(500, vec![]), |seen| is_ours(seen) && seen.is("ls-refs"));
    for round in 0..6 {
        repo.commit("main", &format!("f{round}"), "1");
        let now = repo.oid("refs/heads/main");
        assert!(wanted().contains(&now), "round {round}: not what the primary has");
    }
    let passed = ["source=\"primary\"", "reason=\"not-confirmed\""];
    assert_eq!(node.metric("packmirror_answers_total", &passed), 6.0);
}

/// Kills a node and removes its cache.
fn without_cache(node: &mut Node) {
    node.kill();
    std::fs::remove_dir_all(node.cache()).expect("a cache");
}

/// Lost blocks that a sync, a plan or a stream meets are made anew, once in the whole farm, and clients are served meanwhile.
#[test]
fn lost_packs_are_made_anew_once() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let mut nodes = [world.node(&primary), world.node(&primary), world.node(&primary)];
    mirrored(&world, &nodes[0], &repo);
    for node in &mut nodes {
        without_cache(node);
    }
    let pack = world.store.blobs("pack").remove(0);
    world.store.delete(&pack);
    for node in &mut nodes {
        node.restart();
    }
    primary.forget_log();
    // One plans a shallow clone, which reads trees; the others stream.
    std::thread::scope(|s| {
        for (node, options) in
            nodes.iter().zip(["--bare --depth=1 --no-single-branch", "--mirror", "--mirror"])
        {
            let (world, repo) = (&world, &repo);
            s.spawn(move || world.clone_of(&node.repo(&repo.path), options));
        }
    });
    eventually("the repair", || (world.store.generations(&repo.path).len() == 2).then_some(()));
    for node in &nodes {
        eventually("an answer from the bucket", || {
            let before = node.answered_from_bucket();
            same(&world, &primary, node, &repo.path);
            (node.answered_from_bucket() > before).then_some(())
        });
    }
    assert_eq!(primary.count(by_sync), 1, "it was fetched more than once");
    assert_eq!(world.store.generations(&repo.path).len(), 2);
}

/// A plan that needs stored trees which are lost: the primary answers, and what is lost is made anew.
#[test]
fn what_cannot_be_planned_is_passed_on_and_made_anew() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let mut node = world.setup(&primary).set("compare_every = \"1h\"").start();
    mirrored(&world, &node, &repo);
    without_cache(&mut node);
    world.store.delete(&world.store.blobs("pack").remove(0));
    node.restart();
    world.clone_of(&node.repo(&repo.path), "--bare --depth=1 --no-single-branch");
    eventually("the repair", || (world.store.generations(&repo.path).len() == 2).then_some(()));
    let shallow = || world.clone_of(&node.repo(&repo.path), "--bare --depth=1 --no-single-branch");
    from_bucket(&node, shallow);
}

/// A sync that needs a lost base makes everything anew, instead of failing until a client meets the same loss.
#[test]
fn a_lost_base_does_not_stop_syncs() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", |_| {});
    let text = shapes::prose(7, 4000);
    repo.commit("main", "book", &text);
    let mut node = world.setup(&primary).set("compare_every = \"1s\"").start();
    mirrored(&world, &node, &repo);
    without_cache(&mut node);
    world.store.damage(&world.store.blobs("pack").remove(0));
    // Sent as a delta against what was published.
    repo.commit("main", "book", &(text + "the end\n"));
    node.restart();
    mirrored(&world, &node, &repo);
    let layers = world.store.newest(&repo.path).expect("a generation")["layers"].as_array().map(Vec::len);
    assert_eq!(layers, Some(1), "the damaged layer is still named");
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
}

/// A repository that cannot be taken in is fetched once, whatever the number of nodes and clients, until it is due again, the
/// primary shows something else, a setting has changed, or somebody asks for it.
#[test]
fn what_cannot_be_taken_in_is_not_fetched_again_and_again() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("big.git", shapes::big_blob);
    let small = ["limits.object = \"4MiB\"", "compare_every = \"1h\""];
    let setup = || small.into_iter().fold(world.setup(&primary), |setup, line| setup.set(line));
    let ask = |node: &Node| git(world.path()).run(&format!("ls-remote -q {}", node.repo(&repo.path)));
    let failed = |node: &Node| node.logged(&["sync failed", "big.git", "object", "4194304", "limits.object"]);
    let one = setup().start();
    ask(&one);
    failed(&one);
    let two = setup().start();
    for _ in 0..5 {
        ask(&two);
        ask(&one);
    }
    two.logged(&["not fetched", "big.git", "limits.object"]);
    assert_eq!(primary.count(by_sync), 1, "it was fetched again");
    // The primary shows something else: one try, by one of them.
    repo.commit("main", "f", "1");
    let three = setup().start();
    ask(&three);
    failed(&three);
    assert_eq!(primary.count(by_sync), 2);
    // Somebody asks.
    let out = three.command(&["sync", &repo.path]);
    assert!(!out.ok() && out.stderr.contains("limits.object"), "{}", out.stderr);
    assert_eq!(primary.count(by_sync), 3);
    // The setting is changed.
    let four = world.node(&primary);
    mirrored(&world, &four, &repo);
    assert_eq!(primary.count(by_sync), 4);
    let trouble = |name: &String| name.ends_with("/trouble");
    eventually("the note to be gone", || (!world.store.list("repos").iter().any(trouble)).then_some(()));
}
