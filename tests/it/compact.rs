//! Compaction: however often a repository is pushed to, it has few layers, and what clients get is what the primary has.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::git::git;
use crate::node::Node;
use crate::oracle::{State, from_bucket, mirrored, published, same};
use crate::primary::{Primary, Repo};
use crate::world::{AtEnd, World, eventually};
use crate::{mirror_only, shapes};

/// The layers of the newest generation.
fn layers(world: &World, repo: &Repo) -> Vec<serde_json::Value> {
    world.store.newest(&repo.path).expect("a generation")["layers"].as_array().expect("layers").clone()
}

/// Pushes commit number `n` to the primary.
fn change(repo: &Repo, n: usize) {
    repo.commit("main", &format!("d{}/f{}", n % 3, n % 7), &format!("text of {n}\n"));
}

/// Pushes commit number `n`, and waits until the node has published it.
fn push(world: &World, node: &Node, repo: &Repo, n: usize) {
    change(repo, n);
    mirrored(world, node, repo);
}

/// How often a node has merged layers.
fn merges(node: &Node) -> f64 {
    node.metric("packmirror_compactions_total", &["result=\"merged\""])
}

/// Takes the packs of the newest generation out of the bucket and lets git look at each by itself.
#[track_caller]
fn stock_git_takes_each_pack(world: &World, repo: &Repo) {
    for (n, layer) in layers(world, repo).iter().enumerate() {
        let blob = |kind: &str| {
            let id = layer[kind]["id"].as_str().expect("an id");
            world.store.get(&format!("blobs/{}/{id}.{kind}", &id[..2]))
        };
        let dir = world.folder("pack");
        let file = |end: &str| dir.join(format!("layer.{end}"));
        std::fs::write(file("pack"), blob("pack")).unwrap();
        std::fs::write(file("idx"), blob("idx")).unwrap();
        git(&dir).run("verify-pack layer.pack");
        let ours = std::fs::read(file("idx")).unwrap();
        git(&dir).run("index-pack -o again.idx layer.pack");
        assert_eq!(std::fs::read(dir.join("again.idx")).unwrap(), ours, "the index of layer {n}");
    }
}

#[test]
fn two_hundred_pushes_make_few_layers_and_clients_see_no_difference() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let follower = world.clone_of(&node.repo(&repo.path), "--mirror");
    for n in 1..=200usize {
        push(&world, &node, &repo, n);
        let bound = 2.0 * (n as f64).log2() + 5.0;
        eventually("few layers", || (layers(&world, &repo).len() as f64 <= bound).then_some(()));
        if n % 40 == 0 {
            from_bucket(&node, || git(&follower).run("fetch -q"));
            same(&world, &primary, &node, &repo.path);
        }
    }
    assert!(merges(&node) > 20.0, "{}", merges(&node));
    assert_eq!(node.metric("packmirror_compactions_total", &["result=\"unsealed\""]), 0.0);
    assert!(node.metric("packmirror_layers", &[]) < 20.0);
    let (ours, theirs) =
        (State::of(&follower), State::of(&world.clone_of(&primary.repo_url(&repo.path), "--mirror")));
    assert_eq!((&theirs.refs, &theirs.objects, &theirs.fsck), (&ours.refs, &ours.objects, &ours.fsck));
    stock_git_takes_each_pack(&world, &repo);
    world.store.audit();

    // Another node, which saw none of it, and plain git on an export have the same.
    let cold = world.node(&primary);
    from_bucket(&cold, || same(&world, &primary, &cold, &repo.path));
    let out = world.unused("export");
    cold.command(&["export", &repo.path, out.to_str().unwrap()]).must();
    assert_eq!(theirs.differences(&State::of(&out), false), "");
}

/// Clones and fetches while layers are merged under them, through the node that merges and through one that follows.
#[test]
fn clients_notice_nothing_of_a_merge() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let nodes = [world.node(&primary), world.node(&primary)];
    nodes.iter().for_each(|node| mirrored(&world, node, &repo));
    let done = AtomicBool::new(false);
    let read = |node: &Node, folder: &Path| {
        let url = node.repo(&repo.path);
        let mut rounds = 0;
        while !done.load(Ordering::SeqCst) || rounds == 0 {
            let dir = folder.join(rounds.to_string());
            git(folder).args(&["clone", "-q", "--mirror", &url, dir.to_str().unwrap()]);
            git(&dir).run("fsck --strict --no-progress --no-dangling");
            rounds += 1;
        }
        rounds
    };
    let folders = [world.folder("clones"), world.folder("clones")];
    let push = |n: usize| {
        change(&repo, n);
        published(&world, &nodes[n % 2], &repo);
    };
    std::thread::scope(|scope| {
        let end = AtEnd(&done);
        let readers: Vec<_> = nodes
            .iter()
            .zip(&folders)
            .map(|(node, folder)| scope.spawn(move || read(node, folder)))
            .collect();
        for n in 1..=40 {
            push(n);
        }
        drop(end);
        for reader in readers {
            assert!(reader.join().unwrap() > 1);
        }
    });
    // Which node merges what is chance; each has carried its cache over a merge after a few.
    let has_carried = |node: &Node| node.log().contains("carried into merged packs");
    let mut n = 40;
    while !(nodes.iter().all(has_carried) && nodes.iter().map(merges).sum::<f64>() >= 4.0) {
        n += 1;
        assert!(n <= 120, "{}\n\n{}", nodes[0].log(), nodes[1].log());
        push(n);
        for (node, folder) in nodes.iter().zip(&folders) {
            let url = node.repo(&repo.path);
            git(folder).args(&["clone", "-q", "--mirror", &url, &format!("more-{n}")]);
        }
    }
    nodes.iter().for_each(|node| same(&world, &primary, node, &repo.path));
    world.store.audit();
}

/// kill -9 at whatever a merge is at: what is published is whole, and what is left over is named by nobody.
#[test]
fn a_node_that_dies_in_a_merge_leaves_garbage_and_nothing_else() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(repo.path.as_bytes()));
    let mut n = 0;
    for _ in 0..4 {
        let begun = |node: &Node| node.log().matches("merging layers").count();
        let (before, end) = (begun(&node), n + 20);
        while begun(&node) == before {
            n += 1;
            assert!(n <= end, "no merge begins\n{}", node.log());
            push(&world, &node, &repo, n);
        }
        node.kill();
        world.store.audit();
        // Its note would keep others waiting until it is seen not to be renewed.
        let note = format!("repos/{hash}/compaction");
        if world.store.try_get(&note).is_some() {
            world.store.delete(&note);
        }
        node.restart();
        from_bucket(&node, || same(&world, &primary, &node, &repo.path));
        // What was begun is done, if not by this push then by one of the next: which layers are due depends on where it died.
        let end = n + 20;
        while merges(&node) == 0.0 {
            n += 1;
            assert!(n <= end, "{} layers\n{}", layers(&world, &repo).len(), node.log());
            push(&world, &node, &repo, n);
        }
        eventually("few layers", || (layers(&world, &repo).len() < 10).then_some(()));
    }
    stock_git_takes_each_pack(&world, &repo);
}

#[test]
fn two_nodes_do_not_merge_the_same_layers() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(repo.path.as_bytes()));
    let note = format!("repos/{hash}/compaction");
    // Another node says that it merges.
    world.store.put(&note, b"another node".to_vec());
    for n in 1..=10 {
        push(&world, &node, &repo, n);
    }
    assert_eq!(layers(&world, &repo).len(), 11, "it waits for the other one");
    world.store.delete(&note);
    eventually("a merge", || (merges(&node) >= 1.0).then_some(()));
    assert!(layers(&world, &repo).len() <= 6);
    same(&world, &primary, &node, &repo.path);
}
