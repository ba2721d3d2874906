//! Behind nginx and HAProxy, configured as `infra/` ships them: what passes through, and that nodes come and go unseen.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::front::{BOTH, Front, free_port};
use crate::mirror_only;
use crate::oracle::{State, from_bucket, mirrored};
use crate::primary::Primary;
use crate::shapes;
use crate::world::{AtEnd, World, eventually};

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

/// Two nodes are stopped and started in turn, again and again, under clones, fetches and `ls-remote`s without a pause. Not
/// one of them fails.
#[test]
fn nodes_are_restarted_behind_either_proxy_and_no_request_fails() {
    mirror_only!();
    for kind in BOTH {
        let (world, primary) = (World::new(), Primary::start());
        let repo = primary.repo("team/app.git", shapes::town);
        let start = || world.setup(&primary).port(free_port()).set("drain_delay = \"4s\"").start();
        let mut nodes = [start(), start()];
        let Some(front) = Front::start(&world, kind, &[nodes[0].address(), nodes[1].address()]) else {
            continue;
        };
        mirrored(&world, &nodes[0], &repo);
        let url = front.repo(&repo.path);
        let kept = world.unused("kept");
        front.git(world.path()).run(&format!("clone -q --mirror {url} {}", kept.display()));
        let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let again = |what: &(dyn Fn() + Sync)| {
            while !stop.load(Ordering::SeqCst) {
                what();
                done.fetch_add(1, Ordering::SeqCst);
            }
        };
        let clones = || {
            let dir = world.unused("clone");
            front.git(world.path()).run(&format!("clone -q --mirror {url} {}", dir.display()));
            std::fs::remove_dir_all(dir).unwrap();
        };
        let asks = || _ = front.git(world.path()).run(&format!("ls-remote -q {url}"));
        let fetches = || _ = front.git(&kept).run("fetch -q --prune origin");
        let work: [&(dyn Fn() + Sync); 4] = [&clones, &clones, &asks, &fetches];
        // A failed command fails its thread, and with it the test.
        std::thread::scope(|scope| {
            let _end = AtEnd(&stop);
            let again = &again;
            let threads: Vec<_> = work.into_iter().map(|work| scope.spawn(move || again(work))).collect();
            for turn in 0..4 {
                let node = &mut nodes[turn % 2];
                node.signal("TERM");
                assert!(node.ended().success());
                repo.commit("main", &format!("turn{turn}"), "new\n");
                node.restart();
                // Not before requests have gone to it again.
                let before = done.load(Ordering::SeqCst);
                let idle = || threads.iter().any(std::thread::ScopedJoinHandle::is_finished);
                eventually("requests to the node that came back", || {
                    let served = node.metric("packmirror_http_requests_total", &["service=\"fetch\""]) > 0.0;
                    (idle() || served && done.load(Ordering::SeqCst) > before).then_some(())
                });
            }
        });
        let done = done.into_inner();
        assert!(done > 20, "{kind:?}: only {done} commands");
    }
}
