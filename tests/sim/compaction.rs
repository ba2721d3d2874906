//! Compaction in a farm over days: what was force-pushed away goes after its grace, and all nodes follow.

use std::sync::Arc;
use std::time::Duration;

use super::checks::unprefixed;
use super::client::{Outcome, clone};
use super::primary::{Host, Universe, git, run};
use super::schedules::in_paused_time;
use super::store::Shared;
use super::walker::{self, Record};
use super::world::{Node, settings};
use crate::serve::listen::router;

const REPO: &str = "team/app.git";

fn newest(shared: &Arc<Shared>) -> Record {
    walker::records(&unprefixed(shared), REPO).swap_remove(0)
}

fn objects(record: &Record) -> u64 {
    record.value["layers"].as_array().unwrap().iter().map(|layer| layer["objects"].as_u64().unwrap()).sum()
}

/// Objects that the primary's refs reach in a state, as git counts them.
fn reachable(state: usize) -> u64 {
    let args = ["rev-list", "--objects", "--all"];
    let out = run(git(&Universe::get().repo(state)).args(args), b"");
    out.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[test]
fn what_was_pushed_away_goes_after_its_grace_and_lives_if_it_is_pushed_again() {
    for again in [false, true] {
        in_paused_time(async move {
            let mut settings = settings();
            settings.compare_every = Duration::from_secs(1800);
            let (shared, host) = (Shared::new(), Host::new(1));
            host.set(REPO, Some(0));
            let mut nodes = Vec::new();
            for n in 0..2 {
                nodes.push(Node::start(&shared, &host, n, &settings).await);
            }
            for state in [0, 1, 2, 3, 5, 1] {
                host.set(REPO, Some(state));
                // The second one waits for the sync that the first one began.
                for node in [&nodes[0], &nodes[0], &nodes[1]] {
                    let cloned = clone(&router(node.app.clone()), REPO).await;
                    assert!(matches!(cloned, Outcome::Whole(_)), "{cloned:?}");
                }
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            let full = objects(&newest(&shared));
            assert!(full > reachable(5), "all is kept: {full}");
            tokio::time::sleep(Duration::from_secs(20 * 3600)).await;
            assert!(objects(&newest(&shared)) >= reachable(5), "within the grace");
            let last = if again { 3 } else { 1 };
            let kept = objects(&newest(&shared));
            if again {
                host.set(REPO, Some(last));
                let cloned = clone(&router(nodes[0].app.clone()), REPO).await;
                assert!(matches!(cloned, Outcome::Whole(_)), "{cloned:?}");
                tokio::time::sleep(Duration::from_secs(60)).await;
                let dump = unprefixed(&shared);
                let refs = walker::refs(&dump, &newest(&shared).value);
                assert_eq!(refs, Universe::get().states[last].refs);
                assert_eq!(objects(&newest(&shared)), kept, "what was kept is not stored again");
            }
            tokio::time::sleep(Duration::from_secs(32 * 3600)).await;
            let after = newest(&shared);
            if again {
                assert!(objects(&after) >= reachable(last));
            } else {
                assert_eq!(objects(&after), reachable(last), "exactly what the refs reach");
            }
            walker::check_closure(&unprefixed(&shared), &after.value);
            for node in nodes {
                let known = node.app.mirror.repos().into_iter().find_map(|repo| repo.known());
                assert!(known.is_some_and(|known| known.number <= after.number));
                let cloned = clone(&router(node.app.clone()), REPO).await;
                let Outcome::Whole(refs) = cloned else { panic!("{cloned:?}") };
                assert_eq!(refs.len(), Universe::get().states[last].refs.len());
                node.kill();
            }
        });
    }
}
