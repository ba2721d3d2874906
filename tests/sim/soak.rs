//! A farm for a long time: four nodes collect as early as they may, under pushes, syncs, merges, clones, purges and ends of nodes, and
//! no client sees anything fail.
//!
//! The whole of it, 500 collections: `PACKMIRROR_TEST_TIMES=25 cargo test --lib sim::soak`.

use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::checks::{self, unprefixed};
use super::client::{Outcome, clone};
use super::primary::{Host, Universe};
use super::purge::Process;
use super::schedules::in_paused_time;
use super::store::Shared;
use super::world::{Node, settings};
use crate::retry::plan;
use crate::seed::{seed, times};
use crate::serve::listen::router;

const REPOS: [&str; 2] = ["team/app.git", "team/lib.git"];
/// Streams end after so long, and nodes read a new generation within five minutes: data must stay no longer.
const GRACE: Duration = Duration::from_secs(600);

#[test]
fn no_client_sees_a_collection() {
    let (seed, wanted) = (seed(), times(20));
    plan(seed);
    in_paused_time(async {
        let universe = Universe::get();
        let mut chance = StdRng::seed_from_u64(seed);
        let (shared, host, mut settings) = (Shared::new(), Host::new(seed), settings());
        settings.gc.every = GRACE / 2;
        settings.gc.grace = GRACE;
        settings.limits.transfer = GRACE;
        for repo in REPOS {
            host.set(repo, Some(0));
        }
        let mut nodes = Vec::new();
        for n in 0..4 {
            nodes.push(Node::start(&shared, &host, n, &settings).await);
        }
        let (mut collected, mut last, mut clones, mut purges, mut most) = (0, None, 0, 0, 0);
        while collected < wanted {
            let repo = REPOS[chance.random_range(0..REPOS.len())];
            host.set(repo, Some(chance.random_range(0..universe.states.len())));
            let everywhere = nodes.iter().map(|node| router(node.app.clone()));
            let everywhere = everywhere.flat_map(|router| REPOS.map(|repo| (router.clone(), repo)));
            let cloned =
                join_all(everywhere.map(async |(router, repo)| (repo, clone(&router, repo).await))).await;
            for (repo, outcome) in cloned {
                let Outcome::Whole(refs) = outcome else {
                    panic!("{repo}, after {collected} collections and {clones} clones: {outcome:?}")
                };
                assert_eq!(refs.into_iter().collect::<std::collections::BTreeMap<_, _>>(), {
                    universe.states[host.state(repo).unwrap()].refs.clone()
                });
                clones += 1;
            }
            if chance.random_range(0..12) == 0 {
                let report = Process::start(&shared, &host, 6).purge_of(repo).await.unwrap();
                assert_eq!(report.unanswered().count(), 0, "{report:?}");
                purges += 1;
            }
            if chance.random_range(0..20) == 0 {
                nodes.swap_remove(chance.random_range(0..nodes.len())).kill();
                nodes.push(Node::start(&shared, &host, chance.random_range(4..u64::MAX), &settings).await);
            }
            tokio::time::sleep(Duration::from_secs(chance.random_range(1..240))).await;
            let round = shared.modified("farm/gc/round");
            collected += u64::from(round != last);
            last = round;
            most = most.max(unprefixed(&shared).keys().filter(|key| key.starts_with("blobs/")).count());
        }
        eprintln!("{collected} collections, {clones} clones, {purges} purges, at most {most} blobs");
        assert!(most < 500, "the bucket stays small: {most} blobs");
        tokio::time::sleep(settings.compare_every * 2 + Duration::from_secs(60)).await;
        for repo in REPOS {
            checks::bucket(&shared, &host, repo, Some(GRACE));
            for node in &nodes {
                checks::node(&shared, &host, repo, node).await;
            }
        }
        for node in nodes {
            node.kill();
        }
    });
}
