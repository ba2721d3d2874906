//! A push and a merge at the same moment: who loses the number does not begin anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::checks;
use super::client::{Outcome, clone};
use super::primary::Host;
use super::schedules::in_paused_time;
use super::store::{Hold, Shared};
use super::walker;
use super::world::{Node, settings};
use crate::retry::plan;
use crate::serve::listen::router;

const REPO: &str = "team/app.git";
/// Each a push; the sixth makes so many layers that they are merged.
const PUSHES: [usize; 6] = [0, 1, 2, 3, 5, 7];
/// A push that lies on what was there.
const LAST: usize = 10;

/// Holds up a record of `node`'s after so many. Gives what tells that it has come, and what lets it go on.
fn hold(node: &Node, after: u32) -> (Arc<Notify>, Arc<Notify>) {
    let (arrived, go) = (Arc::<Notify>::default(), Arc::<Notify>::default());
    *node.view.hold.lock().unwrap() = Some(Hold { after, arrived: arrived.clone(), go: go.clone() });
    (arrived, go)
}

fn layers(shared: &Arc<Shared>) -> usize {
    let records = walker::records(&checks::unprefixed(shared), REPO);
    records.first().map_or(0, |newest| newest.value["layers"].as_array().unwrap().len())
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("in vain: {what}");
}

async fn arrived(what: &str, arrived: &Notify) {
    let waited = tokio::time::timeout(Duration::from_secs(100), arrived.notified()).await;
    waited.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[test]
fn a_push_that_loses_its_number_to_a_merge_lies_on_the_merged_layer() {
    plan(1);
    in_paused_time(async {
        let (shared, host, settings) = (Shared::new(), Host::new(1), settings());
        host.set(REPO, Some(PUSHES[0]));
        let merging = Node::start(&shared, &host, 1, &settings).await;
        let pushed = Node::start(&shared, &host, 2, &settings).await;
        let (mut merge_came, mut merge_go) = (Arc::default(), Arc::default());
        for (n, state) in PUSHES.into_iter().enumerate() {
            host.set(REPO, Some(state));
            if n + 1 == PUSHES.len() {
                // Its own record passes, and that of the merge which follows is held up.
                (merge_came, merge_go) = hold(&merging, 1);
            }
            for _ in 0..2 {
                assert!(matches!(clone(&router(merging.app.clone()), REPO).await, Outcome::Whole(_)));
            }
            until("each push to be published", || layers(&shared) == n + 1).await;
            tokio::time::sleep(Duration::from_secs(if n + 1 < PUSHES.len() { 60 } else { 0 })).await;
        }
        arrived("the merge", &merge_came).await;

        let (push_came, push_go) = hold(&pushed, 0);
        host.set(REPO, Some(LAST));
        let (app, router_of) = (pushed.app.clone(), router);
        let cloning = tokio::spawn(async move { clone(&router_of(app), REPO).await });
        arrived("the push", &push_came).await;
        let sent = host.sent.lock().unwrap().get(REPO).copied();
        merge_go.notify_one();
        until("the merge to be published", || layers(&shared) == 1).await;
        push_go.notify_one();
        until("the push to be published", || layers(&shared) == 2).await;
        let _ = cloning.await;
        assert!(matches!(clone(&router(pushed.app.clone()), REPO).await, Outcome::Whole(_)));
        assert_eq!(host.sent.lock().unwrap().get(REPO).copied(), sent, "nothing was fetched again");
        tokio::time::sleep(settings.compare_every * 2).await;
        checks::bucket(&shared, &host, REPO, None);
        for node in [&merging, &pushed] {
            checks::node(&shared, &host, REPO, node).await;
        }
        assert_eq!(host.sent.lock().unwrap().get(REPO).copied(), sent);
        merging.kill();
        pushed.kill();
    });
}
