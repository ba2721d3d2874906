//! Repositories that are asked for only to be mirrored: so many a minute, so many in all, and each under one name.

use super::fake::Fake;
use crate::git::git;
use crate::node::Setup;
use crate::oracle::mirrored;
use crate::primary::Primary;
use crate::world::{World, eventually};
use crate::{mirror_only, shapes, wire};

#[test]
fn new_repositories_are_bounded_and_the_others_still_served() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    for (setting, most) in [("max_new_per_minute = 2", 2), ("max_repositories = 3", 3)] {
        let setup = world.setup(&primary).set(setting).store(&format!("{}-{most}", world.store.url));
        let node = setup.start();
        for n in 0..6 {
            let repo = primary.repo(&format!("team/{most}-{n}.git"), shapes::linear);
            let copy = world.clone_of(&node.repo(&repo.path), "--bare");
            assert_eq!(git(&copy).run("rev-parse HEAD").line(), repo.oid("HEAD"));
        }
        eventually("refusals that are counted", || {
            (node.metric("packmirror_new_repos_refused_total", &[]) > 0.0).then_some(())
        });
        let taken = eventually("those taken up", || {
            let lines = node.command(&["ls"]).must().text();
            let taken = lines.lines().filter(|line| line.contains("team/")).count();
            (taken == most).then_some(taken)
        });
        assert_eq!(taken, most);
        assert!(node.log().contains("not taken up"), "it is said");
    }
}

/// All spellings of a repository of a host that ignores case are one mirrored repository, under the host's own name.
#[test]
fn spellings_of_one_repository_are_one() {
    mirror_only!();
    let world = World::new();
    let repo = crate::primary::Repo::create(&world.folder("host"), "x.git", "sha1");
    shapes::linear(&repo.dir);
    let fake = Fake::gitea(&repo.dir, "Alice/DemoRepository");
    let nodes = [Setup::new(&world, &fake.url).start(), Setup::new(&world, &fake.url).start()];
    let spelled = |n: u32| -> String {
        let name = "alice/demorepository".chars().enumerate();
        name.map(|(at, c)| if n >> (at % 16) & 1 == 1 { c.to_ascii_uppercase() } else { c }).collect()
    };
    for n in 0..60 {
        let suffix = if n % 3 == 0 { "" } else { ".git" };
        let path = format!("/{}{suffix}/info/refs?service=git-upload-pack", spelled(n * 37));
        let reply = wire::get(nodes[n as usize % 2].address(), &path, &[("Git-Protocol", "version=2")]);
        assert_eq!(reply.unwrap().status, 200);
    }
    for node in &nodes {
        eventually("a clone of another spelling from the bucket", || {
            let before = node.answered_from_bucket();
            for suffix in ["", ".git"] {
                let copy = world.clone_of(&node.repo(&format!("{}{suffix}", spelled(12345))), "--bare");
                assert_eq!(git(&copy).run("rev-parse HEAD").line(), repo.oid("HEAD"));
            }
            (node.answered_from_bucket() > before + 1.0).then_some(())
        });
    }
    nodes[0].command(&["sync", "ALICE/demorepository"]).must();
    let listed = nodes[0].command(&["ls"]).must().text();
    let names: Vec<&str> =
        listed.lines().filter(|line| line.to_ascii_lowercase().contains("alice/")).collect();
    assert_eq!(names.len(), 1, "{listed}");
    assert!(names[0].contains("Alice/DemoRepository.git"), "{listed}");
}

/// The primary is asked in the client's own spelling, and its yes to one says nothing about another.
#[test]
fn each_spelling_has_grants_of_its_own() {
    mirror_only!();
    let world = World::new();
    let repo = crate::primary::Repo::create(&world.folder("host"), "x.git", "sha1");
    shapes::linear(&repo.dir);
    let fake = Fake::gitea(&repo.dir, "Alice/Demo");
    let node = Setup::new(&world, &fake.url).start();
    eventually("a clone from the bucket", || {
        let before = node.answered_from_bucket();
        world.clone_of(&node.repo("alice/DEMO"), "--bare");
        (node.answered_from_bucket() > before).then_some(())
    });
    let asked = fake.asked();
    for path in ["alice/DEMO/info/refs", "alice/DEMO/git-upload-pack", "Alice/Demo.git/git-upload-pack"] {
        assert!(asked.iter().any(|asked| asked == path), "{path}: {asked:?}");
    }
    let want = format!("want {}", repo.oid("HEAD"));
    let fetch = wire::command("fetch", &["object-format=sha1"], &[&want, "done"]);
    let status = |path: &str| {
        let path = format!("/{path}/git-upload-pack");
        wire::post(node.address(), &path, &[wire::V2], &fetch).unwrap().status
    };
    assert_eq!(status("Alice/Demo.git"), 200);
    fake.refuses("alice/demo.git/");
    assert_eq!((status("Alice/Demo.git"), status("alice/demo.git")), (200, 403));
}

/// What was stored before it was known that two spellings are one is found under both, whichever of them it was.
#[test]
fn what_was_stored_under_another_spelling_is_found() {
    mirror_only!();
    let (one, both) = (&["Alice/Demo"][..], &["Alice/Demo", "Alice/Demo.git"][..]);
    for stored in [one, both] {
        let world = World::new();
        let repo = crate::primary::Repo::create(&world.folder("host"), "x.git", "sha1");
        shapes::linear(&repo.dir);
        let fake = Fake::gitea(&repo.dir, "Alice/Demo");
        fake.minds_case(true);
        let setup = Setup::new(&world, &fake.url);
        for path in stored {
            setup.command(&["sync", path]).must();
        }
        fake.minds_case(false);
        let node = setup.start();
        for path in ["Alice/Demo", "Alice/Demo.git", "alice/demo"] {
            eventually("a clone from the bucket", || {
                let before = node.answered_from_bucket();
                let copy = world.clone_of(&node.repo(path), "--bare");
                assert_eq!(git(&copy).run("rev-parse HEAD").line(), repo.oid("HEAD"));
                (node.answered_from_bucket() > before).then_some(())
            });
        }
        let listed = node.command(&["ls"]).must().text();
        assert_eq!(listed.matches("Alice/Demo").count(), stored.len(), "{listed}");
    }
}

/// On a host that minds case two spellings are two repositories, whatever they hold.
#[test]
fn case_matters_where_the_host_minds_it() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let node = world.node(&primary);
    let one = primary.repo("team/app.git", shapes::linear);
    let two = primary.repo("team/APP.git", shapes::tags);
    for repo in [&one, &two] {
        mirrored(&world, &node, repo);
        let copy = world.clone_of(&node.repo(&repo.path), "--bare");
        assert_eq!(git(&copy).run("rev-parse HEAD").line(), repo.oid("HEAD"), "{}", repo.path);
    }
}
