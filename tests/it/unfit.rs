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

/// Refs of objects that are not there, as a disk that has lost files leaves them: git's server shows them like any other, and
/// refuses to send them.
fn check_lost(world: &World, primary: &Primary, address: &str) {
    let repo = primary.repo("team/app.git", shapes::town);
    let digest = repo.digest();
    let lost = |n: &str| n.repeat(repo.oid("refs/heads/main").len()) + "\n";
    fs::create_dir_all(repo.dir.join("refs/tags")).unwrap();
    fs::write(repo.dir.join("refs/heads/lost"), lost("1")).unwrap();
    fs::write(repo.dir.join("refs/tags/lost"), lost("2")).unwrap();
    let setup = Setup::new(world, address).set("compare_every = \"1s\"");
    let node = setup.clone().start();
    let published =
        |digest: &str| world.store.newest(&repo.path).is_some_and(|n| n["manifest_digest"] == digest);
    crate::git::git(world.path()).args(&["ls-remote", "-q", &node.repo(&repo.path)]).must();
    eventually("the other refs in the bucket", || published(&digest).then_some(()));
    let warned = || node.log().matches("refs that cannot be mirrored").count();
    eventually("the refs to be named", || (warned() > 0).then_some(()));
    for name in ["refs/heads/lost", "refs/tags/lost"] {
        let words = format!("{name}: its object is not there");
        assert!(node.log().contains(&words), "{name} is not named:\n{}", node.log());
    }
    let words = "left out: refs/heads/lost: its object is not there; and 1 more";
    eventually("the status", || setup.command(&["status"]).must().text().contains(words).then_some(()));
    from_bucket(&node, || world.clone_of(&node.repo(&repo.path), "--single-branch --branch main --bare"));

    // It is fetched no more for their sake, and what comes later is mirrored beside them.
    let fetched = || node.log().matches("fetching from the primary").count();
    let (generations, before) = (world.store.generations(&repo.path).len(), fetched());
    let runs = || node.metric("packmirror_sync_runs_total", &["result=\"unchanged\""]);
    let seen = runs();
    eventually("two more comparisons", || (runs() > seen + 1.0).then_some(()));
    assert_eq!((world.store.generations(&repo.path).len(), fetched(), warned()), (generations, before, 1));
    fs::remove_file(repo.dir.join("refs/tags/lost")).unwrap();
    let new = repo.git().run("commit-tree main^{tree} -p main -m later").line();
    repo.set_ref("refs/heads/lost", &new);
    eventually("the ref that was lost", || published(&repo.digest()).then_some(()));
}

#[test]
fn lost_over_http() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    check_lost(&world, &primary, &primary.url);
}

#[test]
fn lost_in_a_directory() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    check_lost(&world, &primary, primary.root().to_str().unwrap());
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
