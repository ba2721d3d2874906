//! Stored answers: what is asked for again and again is made once, and what clients get from it is what the primary gives.

use std::path::Path;

use crate::git::git;
use crate::node::Node;
use crate::oracle::{State, from_bucket, mirrored, same};
use crate::primary::{Primary, Repo};
use crate::shapes::{Change, History, prose};
use crate::world::{World, eventually};
use crate::{mirror_only, shapes};

const FILES: u64 = 40;

/// Files that become shorter with each commit: git stores the newest as deltas on older ones, which a shallow clone does not get.
fn shrinking(dir: &Path) {
    let mut history = History::new();
    let mut parents = Vec::new();
    for round in 0..4 {
        let texts: Vec<(String, String)> =
            (0..FILES).map(|n| (format!("src/f{n}.txt"), prose(n, 400 - round * 2))).collect();
        let changes: Vec<Change> = texts.iter().map(|(name, text)| Change::File(name, text)).collect();
        parents = vec![history.commit("refs/heads/main", &parents, &changes)];
    }
    history.import(dir);
    git(dir).run("repack -adfq");
}

/// The same with branches that are merged: each commit makes all files a line shorter and changes others of their lines.
fn merging(dir: &Path) {
    let mut history = History::new();
    let mut parents = Vec::new();
    let mut texts: Vec<Vec<String>> =
        (0..FILES).map(|n| prose(n, 400).lines().map(str::to_owned).collect()).collect();
    for round in 0..12u64 {
        for (n, text) in (0..).zip(&mut texts) {
            text.truncate(400 - round as usize);
            let line = (n * 37 + round * 101) as usize % text.len();
            text[line] = prose(1000 + n * 100 + round, 1).trim().to_owned();
        }
        let files: Vec<(String, String)> =
            texts.iter().zip(0..).map(|(text, n)| (format!("src/f{n}.txt"), text.join("\n"))).collect();
        let changes: Vec<Change> = files.iter().map(|(name, text)| Change::File(name, text)).collect();
        let (half, rest) = changes.split_at(changes.len() / 2);
        let side = history.commit("refs/heads/side", &parents, half);
        let main = history.commit("refs/heads/main", &parents, rest);
        parents = vec![history.commit("refs/heads/main", &[main, side], half)];
    }
    history.import(dir);
    git(dir).run("repack -adfq");
}

/// The answers that the newest record names.
fn answers(world: &World, repo: &Repo) -> Vec<serde_json::Value> {
    let newest = world.store.newest(&repo.path).expect("a generation");
    newest["answers"].as_array().cloned().unwrap_or_default()
}

fn used(node: &Node) -> f64 {
    node.metric("packmirror_kept_answers_used_total", &[])
}

fn made(node: &Node) -> f64 {
    node.metric("packmirror_kept_answers_total", &["result=\"made\""])
}

/// Waits for the one answer of a repository.
fn kept(world: &World, repo: &Repo) -> serde_json::Value {
    eventually("an answer to be stored", || {
        let mut found = answers(world, repo);
        (found.len() == 1).then(|| found.remove(0))
    })
}

/// Clones through the node, and finds what a clone from the primary finds.
#[track_caller]
fn same_clone(world: &World, primary: &Primary, node: &Node, repo: &Repo, options: &str) {
    let ours = from_bucket(node, || world.clone_of(&node.repo(&repo.path), options));
    let theirs = world.clone_of(&primary.repo_url(&repo.path), options);
    assert_eq!(State::of(&theirs).differences(&State::of(&ours), true), "", "{options}");
}

/// Bytes of the packs of a clone.
fn packed(clone: &Path) -> u64 {
    let files = std::fs::read_dir(clone.join("objects/pack")).unwrap().map(Result::unwrap);
    let packs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "pack"));
    packs.map(|pack| pack.metadata().unwrap().len()).sum()
}

/// Clones as [`same_clone`] does, and finds at most 1.1 times the bytes. Says whether a kept answer was used.
#[track_caller]
fn short_clone(world: &World, primary: &Primary, node: &Node, repo: &Repo, options: &str) -> bool {
    let before = used(node);
    let ours = from_bucket(node, || world.clone_of(&node.repo(&repo.path), options));
    let theirs = world.clone_of(&primary.repo_url(&repo.path), options);
    assert_eq!(State::of(&theirs).differences(&State::of(&ours), true), "", "{options}");
    let (ours, theirs) = (packed(&ours), packed(&theirs));
    assert!(ours * 10 <= theirs * 11, "{options}: {ours} bytes, {theirs} from the primary");
    used(node) > before
}

const SHALLOW: &str = "--bare --depth 1";

#[test]
fn a_shallow_clone_that_is_asked_for_again_is_stored_and_serves_all_nodes() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shrinking);
    let node = world.setup(&primary).set("answers.depth1 = false").start();
    mirrored(&world, &node, &repo);
    same_clone(&world, &primary, &node, &repo, SHALLOW);
    assert_eq!(answers(&world, &repo).len(), 0, "nobody has asked again");
    same_clone(&world, &primary, &node, &repo, SHALLOW);
    assert_eq!(kept(&world, &repo)["kind"], "depth 1");
    eventually("the node to open it", || {
        same_clone(&world, &primary, &node, &repo, SHALLOW);
        (used(&node) >= 1.0).then_some(())
    });

    let other = world.setup(&primary).set("answers.depth1 = false").start();
    same_clone(&world, &primary, &other, &repo, SHALLOW);
    assert_eq!(used(&other), 1.0, "a node that starts finds it");
    same_clone(&world, &primary, &other, &repo, "--bare --filter=blob:none");
    same_clone(&world, &primary, &other, &repo, "--mirror");

    // A push leaves most of it as it is, whatever is merged.
    for n in 0..3 {
        repo.commit("main", "src/f3.txt", &prose(1000 + n, 50));
        mirrored(&world, &node, &repo);
        let before = used(&node);
        same_clone(&world, &primary, &node, &repo, SHALLOW);
        assert_eq!(used(&node), before + 1.0);
    }
    assert_eq!(answers(&world, &repo).len(), 1, "what is left to be packed anew is little");

    // What a force-push leaves behind is not sent, though it lies in the stored answer.
    let old = repo.oid("main~5");
    repo.set_ref("refs/heads/main", &old);
    mirrored(&world, &node, &repo);
    for _ in 0..3 {
        same_clone(&world, &primary, &node, &repo, SHALLOW);
    }
    nodes_agree(&world, &primary, &[&node, &other], &repo);
    world.store.audit();
}

#[track_caller]
fn nodes_agree(world: &World, primary: &Primary, nodes: &[&Node], repo: &Repo) {
    nodes.iter().for_each(|node| same(world, primary, node, &repo.path));
}

#[test]
fn the_answer_to_a_clone_of_depth_one_is_there_before_it_is_asked_for() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shrinking);
    let small = primary.repo("team/small.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    mirrored(&world, &node, &small);
    kept(&world, &repo);
    eventually("the node to open it", || {
        same_clone(&world, &primary, &node, &repo, SHALLOW);
        (used(&node) >= 1.0).then_some(())
    });
    assert_eq!(answers(&world, &small).len(), 0, "it would save nothing");
    assert_eq!(made(&node), 1.0);
}

#[test]
fn a_kept_answer_of_any_depth_has_no_more_bytes_than_gits_and_serves_a_tip_that_moved() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", merging);
    let node = world.setup(&primary).set("answers.depth1 = false").set("answers.share = 1000").start();
    mirrored(&world, &node, &repo);
    let depths = ["--bare --depth 1", "--bare --depth 3", "--bare --depth 6"];
    for (n, depth) in depths.iter().enumerate() {
        eventually("an answer of that depth to be stored", || {
            same_clone(&world, &primary, &node, &repo, depth);
            (answers(&world, &repo).len() == n + 1).then_some(())
        });
    }
    let other = world.setup(&primary).set("answers.depth1 = false").start();
    for depth in depths {
        assert!(short_clone(&world, &primary, &other, &repo, depth), "{depth}");
    }
    for n in 0..3 {
        let file = format!("src/f{n}.txt");
        let text = repo.git().args(&["show", &format!("main:{file}")]).must().text();
        repo.commit("main", &file, &format!("{text}\nand a line more\n"));
        mirrored(&world, &other, &repo);
        // Of a deeper one much has left with the boundary, so it is used only where that saves something.
        let is_used = depths.map(|depth| short_clone(&world, &primary, &other, &repo, depth));
        assert!(is_used[0], "after {n} commits more");
    }
    same(&world, &primary, &other, &repo.path);
    world.store.audit();
}

#[test]
fn answers_to_two_branches_are_kept_side_by_side() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shrinking);
    repo.set_ref("refs/heads/before", &repo.oid("main~1"));
    let node = world.setup(&primary).set("answers.share = 1000").start();
    mirrored(&world, &node, &repo);
    kept(&world, &repo);
    eventually("another one to be stored", || {
        same_clone(&world, &primary, &node, &repo, "--bare --depth 1 --branch before");
        (answers(&world, &repo).len() == 2).then_some(())
    });
    let before = used(&node);
    same_clone(&world, &primary, &node, &repo, SHALLOW);
    assert_eq!(used(&node), before + 1.0, "the first one is there still");
}

#[test]
fn a_wave_of_clones_costs_one_computation() {
    mirror_only!();
    const CLIENTS: usize = 24;
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shrinking);
    let nodes: Vec<Node> =
        (0..2).map(|_| world.setup(&primary).set("answers.depth1 = false").start()).collect();
    mirrored(&world, &nodes[0], &repo);
    let theirs = State::of(&world.clone_of(&primary.repo_url(&repo.path), SHALLOW));
    let dirs: Vec<_> = (0..CLIENTS).map(|_| world.unused("clone")).collect();
    std::thread::scope(|scope| {
        for (n, dir) in dirs.iter().enumerate() {
            let url = nodes[n % 2].repo(&repo.path);
            let target = dir.to_str().unwrap();
            let (folder, depth) =
                (world.path(), ["clone", "-q", "--bare", "--depth", "1", &url, target].map(str::to_owned));
            scope.spawn(move || git(folder).args(&depth.each_ref().map(String::as_str)));
        }
    });
    for dir in &dirs {
        assert_eq!(theirs.differences(&State::of(dir), true), "");
    }
    assert_eq!(nodes.iter().map(made).sum::<f64>(), 1.0, "{}", nodes[0].log());
    assert_eq!(answers(&world, &repo).len(), 1);
    nodes.iter().for_each(|node| assert_eq!(node.passed(), 0.0));
}

#[test]
fn a_stored_answer_that_is_lost_is_done_without() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shrinking);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let answer = kept(&world, &repo);
    for kind in ["pack", "graph"] {
        let id = answer[kind]["id"].as_str().unwrap();
        let key = format!("blobs/{}/{id}.{kind}", &id[..2]);
        let bytes = world.store.get(&key);
        world.store.delete(&key);
        let other = world.node(&primary);
        same_clone(&world, &primary, &other, &repo, SHALLOW);
        assert_eq!(used(&other), 0.0, "without its {kind}");
        let mut spoilt = bytes.clone();
        let middle = spoilt.len() / 2;
        spoilt[middle] ^= 1;
        world.store.put(&key, spoilt);
        let other = world.node(&primary);
        same_clone(&world, &primary, &other, &repo, SHALLOW);
        assert_eq!(used(&other), 0.0, "with a spoilt {kind}");
        world.store.put(&key, bytes);
    }
    let other = world.node(&primary);
    same_clone(&world, &primary, &other, &repo, SHALLOW);
    assert_eq!(used(&other), 1.0);
}

#[test]
fn what_is_purged_is_in_no_stored_answer() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shrinking);
    repo.commit("main", "secret.txt", "the password\n");
    let secret = repo.oid("main:secret.txt");
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let id = kept(&world, &repo)["pack"]["id"].as_str().unwrap().to_owned();
    let clean = repo.oid("main~1");
    repo.set_ref("refs/heads/main", &clean);
    node.command(&["purge", &repo.path, "--oid", &secret]).must();
    assert!(!world.store.list("blobs").iter().any(|key| key.contains(&id)), "the answer held it");
    same_clone(&world, &primary, &node, &repo, SHALLOW);
    same(&world, &primary, &node, &repo.path);
    world.store.audit();
}

#[test]
fn nothing_is_stored_where_that_is_not_wanted() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shrinking);
    let node = world.setup(&primary).set("answers.share = 0").start();
    mirrored(&world, &node, &repo);
    for _ in 0..4 {
        same_clone(&world, &primary, &node, &repo, SHALLOW);
    }
    assert_eq!((answers(&world, &repo).len(), made(&node)), (0, 0.0));
}
