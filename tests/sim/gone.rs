//! Repositories that the primary does not have any more, in a farm over hours and days.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::checks::unprefixed;
use super::client::{Outcome, clone};
use super::primary::{Host, Mood};
use super::schedules::in_paused_time;
use super::store::Shared;
use super::walker;
use super::world::{Node, settings};
use crate::config::Settings;
use crate::retry::plan;
use crate::seed::rounds;
use crate::serve::listen::router;

const REPO: &str = "team/app.git";
const OTHER: &str = "team/lib.git";
const HOUR: Duration = Duration::from_secs(3600);

/// Runs a test with a few seeds.
fn simulated(test: impl AsyncFn()) {
    for seed in rounds(2) {
        plan(seed);
        eprintln!("seed {seed}");
        in_paused_time(test());
    }
}

struct Farm {
    shared: Arc<Shared>,
    host: Arc<Host>,
    nodes: Vec<Node>,
}

impl Farm {
    /// Two nodes that serve both repositories.
    async fn start(settings: &Settings) -> Self {
        let (shared, host) = (Shared::new(), Host::new(1));
        host.set(REPO, Some(3));
        host.set(OTHER, Some(5));
        let mut nodes = Vec::new();
        for seed in [1, 2] {
            nodes.push(Node::start(&shared, &host, seed, settings).await);
        }
        let farm = Self { shared, host, nodes };
        for repo in [REPO, OTHER] {
            while !farm.is_served(repo).await {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
        farm
    }

    /// Whether clients get it whole from all nodes, and all nodes have it open.
    async fn is_served(&self, repo: &str) -> bool {
        let mut all = true;
        for node in &self.nodes {
            all &= matches!(clone(&router(node.app.clone()), repo).await, Outcome::Whole(_))
                && is_open(node, repo);
        }
        all
    }

    fn marked(&self, repo: &str) -> bool {
        !walker::records(&unprefixed(&self.shared), repo)[0].value["gone"].is_null()
    }
}

fn is_open(node: &Node, repo: &str) -> bool {
    node.app.mirror.repos().iter().any(|known| known.path.as_str() == repo && known.snapshot().is_some())
}

fn keys(shared: &Arc<Shared>, repo: &str) -> BTreeSet<String> {
    let dump = unprefixed(shared);
    walker::records(&dump, repo)
        .iter()
        .flat_map(|record| walker::named(&record.value))
        .map(|(key, _)| key)
        .collect()
}

#[test]
fn it_is_marked_after_an_hour_served_to_nobody_and_back_at_once() {
    simulated(async || {
        let farm = Farm::start(&settings()).await;
        farm.host.set(REPO, None);
        tokio::time::sleep(HOUR * 9 / 10).await;
        assert!(!farm.marked(REPO), "not within the hour");
        tokio::time::sleep(HOUR * 5 / 2).await;
        assert!(farm.marked(REPO));
        for node in &farm.nodes {
            assert!(!is_open(node, REPO), "no node has it open");
            assert!(!matches!(clone(&router(node.app.clone()), REPO).await, Outcome::Whole(_)));
        }
        assert!(farm.is_served(OTHER).await);
        // Older records may be collected meanwhile.
        let newest = walker::records(&unprefixed(&farm.shared), REPO)[0].number;
        tokio::time::sleep(HOUR * 24).await;
        assert_eq!(walker::records(&unprefixed(&farm.shared), REPO)[0].number, newest, "marked once");

        let one = Node::start(&farm.shared, &farm.host, 3, &settings()).await;
        tokio::time::sleep(HOUR / 10).await;
        assert!(!is_open(&one, REPO), "nor a node that comes later");

        farm.host.set(REPO, Some(3));
        clone(&router(farm.nodes[0].app.clone()), REPO).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!farm.marked(REPO), "a client was shown it");
        assert!(farm.is_served(REPO).await);
    });
}

#[test]
fn a_primary_in_trouble_is_not_believed() {
    simulated(async || {
        let farm = Farm::start(&settings()).await;
        farm.host.set(REPO, None);
        farm.host.set_mood(Mood { errors: 700, ..Mood::default() });
        tokio::time::sleep(HOUR * 24).await;
        assert!(!farm.marked(REPO), "others get errors");
        farm.host.set_mood(Mood::default());
        farm.host.set(OTHER, None);
        tokio::time::sleep(HOUR * 24).await;
        assert!(!farm.marked(REPO) && !farm.marked(OTHER), "nothing is found any more");
        farm.host.set(OTHER, Some(5));
        tokio::time::sleep(HOUR * 24).await;
        assert!(farm.marked(REPO) && !farm.marked(OTHER));
    });
}

#[test]
fn it_is_collected_when_its_time_has_come() {
    simulated(async || {
        let mut settings = settings();
        (settings.gc.every, settings.gc.grace, settings.gc.gone_after) = (HOUR, HOUR, HOUR * 12);
        let farm = Farm::start(&settings).await;
        let (its, others) = (keys(&farm.shared, REPO), keys(&farm.shared, OTHER));
        farm.host.set(REPO, None);
        tokio::time::sleep(HOUR * 10).await;
        assert!(farm.marked(REPO));
        let dump = unprefixed(&farm.shared);
        assert!(its.iter().all(|key| dump.contains_key(key)), "all of it is kept");
        tokio::time::sleep(HOUR * 18).await;
        assert_eq!(walker::records(&unprefixed(&farm.shared), REPO)[0].value["removed"], true);
        assert!(
            farm.nodes.iter().all(|node| node
                .app
                .mirror
                .repos()
                .iter()
                .all(|repo| repo.path.as_str() != REPO))
        );
        let dump = unprefixed(&farm.shared);
        assert!(its.difference(&others).all(|key| !dump.contains_key(key)), "what it alone had is deleted");
        assert!(farm.is_served(OTHER).await);

        // A client that the primary shows it to takes it up again.
        farm.host.set(REPO, Some(4));
        clone(&router(farm.nodes[0].app.clone()), REPO).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(farm.is_served(REPO).await);
    });
}
