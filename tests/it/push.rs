//! Pushes go through to the primary byte for byte, and the pusher's next fetch through any node sees them.

use crate::git::git;
use crate::oracle::{in_bucket, mirrored, same};
use crate::primary::{Primary, Wrong};
use crate::world::World;
use crate::{mirror_only, shapes};

#[test]
fn a_push_reaches_the_primary_and_every_node() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let (one, two) = (world.node(&primary), world.node(&primary));
    mirrored(&world, &one, &repo);
    let dir = world.clone_of(&one.repo(&repo.path), "");
    let other = world.clone_of(&two.repo(&repo.path), "");
    for n in 0..3 {
        std::fs::write(dir.join(format!("pushed{n}")), "text\n").unwrap();
        let g = git(&dir);
        g.run("add .");
        g.run("commit -q -m pushed");
        g.run("push -q origin main");
        let tip = g.run("rev-parse HEAD").line();
        assert_eq!(repo.oid("refs/heads/main"), tip, "the primary has it when the push has ended");
        // Read your write: through the same node and through the other, at once.
        g.run("fetch -q origin");
        assert_eq!(g.run("rev-parse origin/main").line(), tip);
        git(&other).run("fetch -q origin");
        assert_eq!(git(&other).run("rev-parse origin/main").line(), tip);
    }
    // The push itself starts the sync; nobody has to ask for it.
    in_bucket(&world, &one, &repo);
    same(&world, &primary, &two, &repo.path);
}

#[test]
fn a_push_starts_the_sync() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let dir = world.clone_of(&node.repo(&repo.path), "");
    git(&dir).run("commit -q --allow-empty -m pushed");
    git(&dir).run("push -q origin main");
    in_bucket(&world, &node, &repo);
}

#[test]
fn force_delete_tags_and_refusals() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::merges);
    let node = world.setup(&primary).set("compare_every = \"1s\"").start();
    mirrored(&world, &node, &repo);
    let dir = world.clone_of(&node.repo(&repo.path), "");
    let g = git(&dir);
    g.run("commit -q --amend -m rewritten");
    g.run("tag -a -m t v1");
    g.try_run("push -q origin main").must_fail(&["rejected", "non-fast-forward"]);
    g.run("push -q --force origin main v1 :topic1 HEAD:refs/heads/new HEAD:refs/pull/9/head");
    same(&world, &primary, &node, &repo.path);
    repo.configure("[receive]\n\tdenyDeletes = true\n\tdenyNonFastForwards = true\n");
    let said = g.try_run("push -q origin :topic2").must_fail(&["deletion prohibited"]);
    assert!(said.stderr.contains("topic2"), "{}", said.stderr);
    in_bucket(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
}

/// The words of a hook at the primary reach the person who pushes.
#[test]
fn hooks_speak_through_the_mirror() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let node = world.node(&primary);
    let hooks = repo.dir.join("hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    let hook = hooks.join("pre-receive");
    std::fs::write(&hook, "#!/bin/sh\necho the hook says no >&2\nexit 1\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let dir = world.clone_of(&node.repo(&repo.path), "");
    git(&dir).run("commit -q --allow-empty -m pushed");
    git(&dir).try_run("push origin main").must_fail(&["the hook says no"]);
}

/// A large push arrives chunked after a probe; it must come through unchanged, and the first push of a repository
/// must work as well.
#[test]
fn a_large_push_into_an_empty_repository() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::empty);
    let node = world.node(&primary);
    let dir = world.clone_of(&node.repo(&repo.path), "");
    std::fs::write(dir.join("big"), shapes::noise(5, 3 << 20)).unwrap();
    let g = git(&dir);
    g.run("add .");
    g.run("commit -q -m big");
    g.run("push -q origin HEAD:main");
    same(&world, &primary, &node, &repo.path);
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
}

/// What goes over the wire is what the client sent: same bytes, once.
#[test]
fn a_push_is_not_altered_and_not_repeated() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let node = world.node(&primary);
    let dir = world.clone_of(&node.repo(&repo.path), "");
    git(&dir).run("commit -q --allow-empty -m pushed");
    let push = |url: &str| git(&dir).try_run(&format!("push -q {url} main"));
    let posts =
        || primary.log().into_iter().filter(|s| s.path.ends_with("git-receive-pack")).collect::<Vec<_>>();

    let old = repo.oid("refs/heads/main");
    push(&primary.repo_url(&repo.path)).must();
    let direct = posts();
    repo.set_ref("refs/heads/main", &old);
    primary.forget_log();
    push(&node.repo(&repo.path)).must();
    let through = posts().into_iter().filter(|s| s.method == "POST").collect::<Vec<_>>();
    let direct = direct.into_iter().filter(|s| s.method == "POST").collect::<Vec<_>>();
    assert_eq!(through.len(), direct.len());
    assert_eq!(through.last().unwrap().digest, direct.last().unwrap().digest);

    // The primary fails after it has the body: the client is told, nobody tries again.
    git(&dir).run("commit -q --allow-empty -m second");
    primary.forget_log();
    primary.fault(Wrong::Status(502, vec![]), |s| s.method == "POST" && s.path.ends_with("git-receive-pack"));
    push(&node.repo(&repo.path)).must_fail(&["502", "RPC failed", "error"]);
    assert_eq!(posts().iter().filter(|s| s.method == "POST").count(), 1, "a push is never retried");
}

/// Credentials of the pusher, and nobody else's, go with a push.
#[test]
fn a_push_needs_the_pushers_own_rights() {
    let (world, primary) = (World::new(), Primary::start());
    primary.account("alice", "alicepw");
    primary.account("bob", "bobpw");
    primary.account("service", "servicepw");
    let repo = primary.repo("r.git", shapes::linear);
    primary.private("r.git", &["alice", "service"]);
    let node = world.setup(&primary).set("credential = \"service:servicepw\"").start();
    let dir = world.clone_of(&node.repo_as("alice", "alicepw", &repo.path), "");
    let g = git(&dir);
    g.run("commit -q --allow-empty -m pushed");
    let main = |url: String| g.try_run(&format!("push -q {url} main"));
    main(node.repo(&repo.path)).must_fail(&["Authentication failed", "could not read Username"]);
    main(node.repo_as("bob", "bobpw", &repo.path)).must_fail(&["not found", "404", "403"]);
    main(node.repo_as("alice", "wrong", &repo.path)).must_fail(&["Authentication failed"]);
    assert_ne!(repo.oid("refs/heads/main"), g.run("rev-parse HEAD").line());
    main(node.repo_as("alice", "alicepw", &repo.path)).must();
    assert_eq!(repo.oid("refs/heads/main"), g.run("rev-parse HEAD").line());
}
