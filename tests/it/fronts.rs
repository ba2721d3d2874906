//! Behind nginx and HAProxy, configured as `infra/` ships them: what passes through.

use std::time::Duration;

use crate::front::{BOTH, Front};
use crate::mirror_only;
use crate::oracle::{State, from_bucket, mirrored};
use crate::primary::Primary;
use crate::shapes;
use crate::world::World;

/// A clone through TLS with a private authority, an incremental fetch, and a push that is streamed: 100 MB of noise, of
/// which the primary gets every byte.
#[test]
fn clones_and_a_push_of_100_mb_go_through_either_proxy() {
    mirror_only!();
    for kind in BOTH {
        let (world, primary) = (World::new(), Primary::start());
        let node = world.node(&primary);
        let Some(front) = Front::start(&world, kind, &[node.address()]) else { continue };
        let repo = primary.repo("team/app.git", shapes::town);
        mirrored(&world, &node, &repo);
        let (ours, theirs) = (world.unused("ours"), world.unused("theirs"));
        let clone = |url: &str, dir: &std::path::Path| {
            front.git(world.path()).run(&format!("clone -q --mirror {url} {}", dir.display()));
        };
        clone(&primary.repo_url(&repo.path), &ours);
        from_bucket(&node, || clone(&front.repo(&repo.path), &theirs));
        let differ = State::of(&ours).differences(&State::of(&theirs), true);
        assert!(differ.is_empty(), "{kind:?}: {differ}");
        let refused = crate::git::git(world.path()).try_run(&format!("ls-remote {}", front.repo(&repo.path)));
        refused.must_fail(&["certificate"]);

        let work = world.unused("work");
        let git = front.git(world.path()).within(Duration::from_secs(180));
        git.run(&format!("clone -q {} {}", front.repo(&repo.path), work.display()));
        std::fs::write(work.join("noise"), shapes::noise(7, 100 << 20)).unwrap();
        let git = front.git(&work).within(Duration::from_secs(180)).config("core.compression", "0");
        git.run("add noise");
        git.run("commit -q -m noise");
        git.run("push -q origin HEAD:refs/heads/noise");
        let pushed = git.run("rev-parse HEAD").line();
        assert_eq!(repo.oid("refs/heads/noise"), pushed, "{kind:?}");
        repo.git().run("fsck --strict");
        git.run(&format!("fetch -q {} refs/heads/noise", front.repo(&repo.path)));

        assert_eq!(front.curl("/metrics", &[]).0, 404, "{kind:?}: metrics are not for everybody");
        assert_eq!(front.curl("/readyz", &[]).0, 200, "{kind:?}");
    }
}
