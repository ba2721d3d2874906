//! Refs at the primary that cannot be mirrored: what is wrong with them is said, and the others are served as ever.

use std::fs;

use crate::mirror_only;
use crate::node::Setup;
use crate::oracle::{State, from_bucket, mirrored};
use crate::primary::{Primary, Repo};
use crate::shapes;
use crate::world::{World, eventually};

/// Files where refs should be, as a crash, a full disk or a tool that writes them itself leaves them.
fn spoil(repo: &Repo) {
    let heads = repo.dir.join("refs/heads");
    fs::create_dir_all(&heads).unwrap();
    let id = repo.oid("refs/heads/main");
    let null = "0".repeat(id.len());
    fs::write(heads.join("empty"), "").unwrap();
    fs::write(heads.join("zero"), null + "\n").unwrap();
    fs::write(heads.join("nonsense"), "nonsense\n").unwrap();
    fs::write(heads.join("dangling"), "ref: refs/heads/nowhere\n").unwrap();
    fs::write(heads.join("a..b"), id.clone() + "\n").unwrap();
    fs::write(heads.join("x~y"), id + "\n").unwrap();
}

/// The refs that a clone should have: what `for-each-ref` lists without complaint.
fn fit(repo: &Repo) -> Vec<String> {
    repo.git().run("for-each-ref --format=%(refname)").lines()
}

fn check(world: &World, primary: &Primary, address: &str) {
    let repo = primary.repo("team/app.git", shapes::town);
    let node = Setup::new(world, address).set("compare_every = \"1s\"").start();
    mirrored(world, &node, &repo);
    let before = State::of(&world.clone_of(&node.repo(&repo.path), "--mirror"));
    spoil(&repo);
    let warned = || node.log().matches("refs that cannot be mirrored").count();
    eventually("the refs to be named", || (warned() > 0).then_some(()));
    let log = node.log();
    for name in ["empty", "zero", "nonsense", "a..b", "x~y"] {
        assert!(log.contains(&format!("refs/heads/{name}: ")), "{name} is not named:\n{log}");
    }

    // What comes later is mirrored beside them, and what was said is not said again.
    let new = repo.git().run("commit-tree main^{tree} -p main -m later").line();
    repo.set_ref("refs/heads/later", &new);
    let names = fit(&repo);
    assert!(names.contains(&"refs/heads/later".into()) && !names.iter().any(|name| name.contains("empty")));
    eventually("the new branch in the bucket", || {
        let newest = world.store.newest(&repo.path)?;
        (newest["manifest_digest"] == repo.digest()).then_some(())
    });
    let generations = world.store.generations(&repo.path).len();
    let fetched = world.clone_of(&node.repo(&repo.path), "--single-branch --branch later");
    assert_eq!(crate::git::git(&fetched).run("rev-parse HEAD").line(), new);
    from_bucket(&node, || world.clone_of(&node.repo(&repo.path), "--single-branch --branch later --bare"));
    assert!(before.objects.len() > 1);
    let seen = node.metric("packmirror_sync_runs_total", &["result=\"unchanged\""]);
    eventually("two more comparisons", || {
        (node.metric("packmirror_sync_runs_total", &["result=\"unchanged\""]) > seen + 1.0).then_some(())
    });
    assert_eq!(world.store.generations(&repo.path).len(), generations, "the digest does not flap");
    assert_eq!(warned(), 1, "it is said once:\n{}", node.log());
    assert!(node.metric("packmirror_refs_left_out_total", &[]) >= 5.0);
}

#[test]
fn over_http() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    check(&world, &primary, &primary.url);
}

#[test]
fn in_a_directory() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    check(&world, &primary, primary.root().to_str().unwrap());
}
