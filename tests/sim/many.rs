//! Nodes with many repositories: what is open is bounded, and what is as it was costs the store nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::client::{Outcome, clone};
use super::primary::Host;
use super::schedules::in_paused_time;
use super::store::Shared;
use super::world::{Node, settings};
use crate::config::Settings;
use crate::git::path::RepoPath;
use crate::local::LocalOptions;
use crate::mirror::repo::Repo;
use crate::serve::listen::router;
use crate::store::{Generation, Publish, nonce};

/// Settings under which nothing runs but comparisons and heartbeats.
fn quiet() -> Settings {
    let mut settings = settings();
    (settings.vet.exists_every, settings.vet.hash_every) = (Duration::ZERO, Duration::ZERO);
    settings.gc.every = Duration::ZERO;
    settings
}

fn name(n: usize) -> String {
    format!("team/{n:03}.git")
}

async fn cloned(node: &Node, n: usize) {
    let cloned = clone(&router(node.app.clone()), &name(n)).await;
    assert!(matches!(cloned, Outcome::Whole(_)), "{n}: {cloned:?}");
}

fn open(node: &Node) -> Vec<Arc<Repo>> {
    node.app.mirror.repos().into_iter().filter(|repo| repo.snapshot().is_some()).collect()
}

/// Lets simulated time go on until `is_so`.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..3600 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{what} does not come to pass");
}

#[test]
fn a_round_costs_the_primary_one_comparison_a_repository_and_the_store_nothing() {
    const REPOS: usize = 100;
    const ROUNDS: u64 = 5;
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        (0..REPOS).for_each(|n| host.set(&name(n), Some(0)));
        let first = Node::start(&shared, &host, 1, &quiet()).await;
        for n in 0..REPOS {
            cloned(&first, n).await;
        }
        let nodes = [first, Node::start(&shared, &host, 2, &quiet()).await];
        until("a division", || {
            nodes.iter().all(|node| {
                let mirror = &node.app.mirror;
                mirror.live_nodes() == 2
                    && mirror.repos().iter().filter(|repo| repo.known().is_some()).count() == REPOS
            })
        })
        .await;
        // What was due before the division is over after a round.
        tokio::time::sleep(quiet().compare_every * 2).await;
        let calls = || nodes.iter().map(|node| node.view.calls()).sum::<u64>();
        let before = (calls(), host.asked.load(Ordering::Relaxed));
        tokio::time::sleep(quiet().compare_every * ROUNDS as u32).await;
        let (calls, asked) = (calls() - before.0, host.asked.load(Ordering::Relaxed) - before.1);
        // A comparison asks for the refs.
        let all = REPOS as u64 * ROUNDS;
        assert!(
            (all * 8 / 10..=all * 12 / 10).contains(&asked),
            "{asked} requests to the primary instead of {all}"
        );
        let beats = 2 * ROUNDS * quiet().compare_every.as_secs() / 30;
        assert!(calls <= beats * 12, "{calls} requests to the store in {beats} heartbeats");
    });
}

#[test]
fn many_open_repositories_are_looked_up_by_one_listing() {
    const REPOS: usize = 40;
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        (0..REPOS).for_each(|n| host.set(&name(n), Some(0)));
        let node = Node::start(&shared, &host, 1, &quiet()).await;
        for n in 0..REPOS {
            cloned(&node, n).await;
        }
        until("all syncs", || open(&node).len() == REPOS).await;
        let repo = node.app.mirror.repo(&RepoPath::parse(&name(7)).unwrap()).unwrap();
        // As somebody does who merges layers: the refs stay.
        let before = Generation::clone(&repo.known().unwrap());
        let (number, parent) = (before.number + 1, Some(before.id()));
        let mut next = Generation { number, parent, writer: nonce(), stored: None, ..before };
        assert_eq!(node.app.mirror.bucket.publish_next(&mut next).await.unwrap(), Publish::Won);
        until("the newer record", || repo.snapshot().is_some_and(|open| open.generation.number == number))
            .await;
    });
}

#[test]
fn what_was_used_longest_ago_is_closed_and_who_reads_it_goes_on() {
    const REPOS: usize = 40;
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        (0..REPOS).for_each(|n| host.set(&name(n), Some(n % 4)));
        let options = LocalOptions { max_bytes: 64 << 20, mappings: 32, ..Default::default() };
        let node = Node::start_with(&shared, &host, 1, &quiet(), &options).await;
        let repo = |n: usize| node.app.mirror.repo(&RepoPath::parse(&name(n)).unwrap()).unwrap();
        for n in 0..REPOS {
            cloned(&node, n).await;
        }
        until("all syncs", || {
            node.app.mirror.repos().iter().filter(|repo| repo.known().is_some()).count() == REPOS
        })
        .await;
        cloned(&node, 0).await;
        cloned(&node, 1).await;
        let reader = repo(0).snapshot().unwrap();
        for n in 2..REPOS {
            cloned(&node, n).await;
            // Somebody comes back to this one all the time.
            cloned(&node, 1).await;
            let open = open(&node);
            // Each has one layer of two files; three quarters of the mappings are for them.
            assert!(open.len() * 2 <= 24, "{} are open after {n}", open.len());
        }
        assert!(repo(0).snapshot().is_none(), "it was used longest ago");
        assert!(
            repo(1).snapshot().is_some() && repo(REPOS - 1).snapshot().is_some(),
            "these were used just now"
        );
        assert!(open(&node).len() >= 8, "not more is closed than has to be");
        assert!(
            reader.tips().iter().all(|tip| reader.is_tip(&reader.stack.oid(*tip))),
            "it is read all the same"
        );
        cloned(&node, 0).await;
        assert!(repo(0).snapshot().is_some());
    });
}

#[test]
fn after_a_start_a_record_is_enough_to_compare() {
    const REPOS: usize = 40;
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        (0..REPOS).for_each(|n| host.set(&name(n), Some(n % 4)));
        let first = Node::start(&shared, &host, 1, &quiet()).await;
        for n in 0..REPOS {
            cloned(&first, n).await;
        }
        until("all syncs", || open(&first).len() == REPOS).await;
        first.kill();
        // Up to twelve files count as little here: half of what may be open.
        let options = LocalOptions { max_bytes: 64 << 20, mappings: 32, ..Default::default() };
        let node = Node::start_with(&shared, &host, 2, &quiet(), &options).await;
        let compared = || {
            let repos = node.app.mirror.repos();
            repos.len() == REPOS && repos.iter().all(|repo| repo.health().asked.is_some())
        };
        until("a first round", compared).await;
        let open = open(&node).len();
        assert!((1..=12).contains(&open), "{open} are open though nobody asked for them");
        // The record of each is found by one listing and read; the rest is heartbeats, and what was opened.
        let calls = node.view.calls();
        assert!(calls < 2 * REPOS as u64 + 12 * 6 + 150, "{calls} requests to the store");
        for n in 0..REPOS {
            cloned(&node, n).await;
        }
    });
}

#[test]
fn of_many_that_are_due_at_once_none_lacks_memory() {
    const REPOS: usize = 150;
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        (0..REPOS).for_each(|n| host.set(&name(n), Some(n % 4)));
        let mut settings = quiet();
        // Less than all of them need to begin.
        settings.limits.sync_memory = 256 << 20;
        let node = Node::start(&shared, &host, 1, &settings).await;
        until("a start", || node.app.ready.load(Ordering::SeqCst)).await;
        for n in 0..REPOS {
            node.app.mirror.adopt(&RepoPath::parse(&name(n)).unwrap());
        }
        until("all syncs", || {
            let repos = node.app.mirror.repos();
            for repo in &repos {
                let health = repo.health();
                assert_eq!(health.failures, 0, "{:?}", health.error);
            }
            repos.iter().filter(|repo| repo.known().is_some()).count() == REPOS
        })
        .await;
    });
}
