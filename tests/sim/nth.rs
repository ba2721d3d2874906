//! Each call of the store in a node's life fails or is its last, in turn: from the start over a sync that publishes to the merge of its
//! layers.

use std::sync::Arc;
use std::time::Duration;

use super::checks;
use super::client::{Outcome, clone};
use super::primary::Host;
use super::schedules::{in_paused_time, on_all_cores};
use super::store::{Fate, Kept, Shared};
use super::turns::note;
use super::walker;
use super::world::{Node, settings};
use crate::retry::plan;
use crate::serve::listen::router;

const REPO: &str = "team/app.git";
/// Each a push; the last one makes so many layers that they are merged.
const PUSHES: [usize; 6] = [0, 1, 2, 3, 5, 7];

async fn cloned(node: &Node) -> Outcome {
    clone(&router(node.app.clone()), REPO).await
}

fn layers(shared: &Arc<Shared>) -> usize {
    let newest = walker::records(&checks::unprefixed(shared), REPO).swap_remove(0);
    newest.value["layers"].as_array().unwrap().len()
}

/// A bucket to which all but the last was pushed.
fn before() -> Kept {
    plan(1);
    let mut kept = None;
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        host.set(REPO, Some(PUSHES[0]));
        let node = Node::start(&shared, &host, 1, &settings()).await;
        for state in &PUSHES[..PUSHES.len() - 1] {
            host.set(REPO, Some(*state));
            for _ in 0..2 {
                assert!(matches!(cloned(&node).await, Outcome::Whole(_)));
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(layers(&shared), PUSHES.len() - 1);
        node.kill();
        kept = Some(shared.keep());
    });
    kept.unwrap()
}

/// A node starts, sees the last push and merges the layers, and meets `fate` with its `n`th call. Says whether it makes so many.
fn once(kept: &Kept, n: u64, fate: Fate) -> bool {
    plan(n);
    let mut met = false;
    in_paused_time(async {
        let (shared, host, settings) = (Shared::of(kept), Host::new(1), settings());
        for state in PUSHES {
            host.set(REPO, Some(state));
        }
        let first = Node::start(&shared, &host, 1, &settings).await;
        *first.view.nth.lock().unwrap() = Some((n, fate));
        note(|| format!("call {n}: {fate:?}"));
        let _ = tokio::time::timeout(Duration::from_secs(120), async {
            for _ in 0..2 {
                let _ = cloned(&first).await;
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        })
        .await;
        met = first.view.calls() >= n;
        if !met {
            assert_eq!(layers(&shared), 1, "without a fault they are merged");
        }
        let last = if first.has_ended() || matches!(fate, Fate::DiesBefore | Fate::DiesAfter) {
            first.kill();
            Node::start(&shared, &host, n + 1, &settings).await
        } else {
            first
        };
        let _ = cloned(&last).await;
        tokio::time::sleep(settings.compare_every * 2 + Duration::from_secs(60)).await;
        checks::bucket(&shared, &host, REPO, Some(settings.gc.grace));
        checks::node(&shared, &host, REPO, &last).await;
        last.kill();
    });
    met
}

#[test]
fn a_node_that_fails_or_ends_at_any_call_leaves_what_the_next_one_makes_whole() {
    let kept = before();
    every_call(|n, fate| once(&kept, n, fate));
}

/// Runs `once` with each call that it makes meeting each fate. It says whether there is such a call.
pub fn every_call(once: impl Fn(u64, Fate) -> bool + Sync) {
    let calls = (1..).find(|n| n % 16 == 0 && !once(*n, Fate::FailsBefore)).unwrap();
    eprintln!("up to {calls} calls");
    on_all_cores(1..=calls, |n| {
        for fate in Fate::ALL {
            once(n, fate);
        }
    });
}
