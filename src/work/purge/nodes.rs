//! Which nodes are live, and which of them have obeyed an order.
//!
//! A node is live while its heartbeat is younger than two and a half of its beats; both times are the store's.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::Instant;

use crate::mirror::health::NodeHealth;
use crate::store::{Bucket, StoreError};
use crate::work::collect::round::Told;

/// How often heartbeats are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pace of a node of an earlier version, which does not tell it, and the slowest that is believed.
const USUAL_PACE: Duration = Duration::from_secs(30);
const SLOWEST_PACE: Duration = Duration::from_secs(120);
/// A node that has been silent for longer is not mentioned.
const FORGOTTEN: Duration = Duration::from_secs(86_400);

/// What is known of a node and an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It has obeyed.
    Obeyed,
    /// It is live and has not obeyed yet.
    NotYet,
    /// It does not write heartbeats any more. It obeys when it starts again.
    Silent,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name, as `packmirror status` shows it.
    pub node: String,
    /// Its program's version.
    pub version: String,
    /// Whether it has obeyed.
    pub answer: Answer,
    /// How old its last heartbeat is, in seconds.
    pub heartbeat_seconds: u64,
}

/// The last heartbeat of a node.
struct Beat {
    tag: String,
    modified: SystemTime,
    health: Option<NodeHealth>,
}

/// Waits until all live nodes have obeyed `order`, for `wait` at most, and gives all nodes.
pub(super) async fn wait_for_nodes(
    bucket: &Bucket,
    order: u64,
    wait: Duration,
    told: Told<'_>,
) -> Result<Vec<Node>, StoreError> {
    let (mut beats, begun) = (BTreeMap::<String, Beat>::new(), Instant::now());
    let clock = bucket.clock().await?;
    loop {
        listen(bucket, &mut beats).await?;
        let now = clock + begun.elapsed();
        let nodes: Vec<Node> = beats.iter().filter_map(|(name, beat)| node(name, beat, order, now)).collect();
        let count = |answer| nodes.iter().filter(|node| node.answer == answer).count() as u64;
        let (obeyed, waiting) = (count(Answer::Obeyed), count(Answer::NotYet));
        told("waiting for nodes", obeyed, obeyed + waiting);
        if waiting == 0 || begun.elapsed() >= wait {
            return Ok(nodes);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Reads the heartbeats that are news.
async fn listen(bucket: &Bucket, beats: &mut BTreeMap<String, Beat>) -> Result<(), StoreError> {
    let tags: HashMap<String, String> =
        beats.iter().map(|(name, beat)| (name.clone(), beat.tag.clone())).collect();
    let told = bucket.nodes_beside(&tags).await?;
    beats.retain(|name, _| told.iter().any(|node| node.name == *name));
    for node in told {
        if let Some(words) = node.words {
            let health = NodeHealth::decode(&words);
            beats.insert(node.name, Beat { tag: node.tag, modified: node.modified, health });
        }
    }
    Ok(())
}

fn node(name: &str, beat: &Beat, order: u64, now: SystemTime) -> Option<Node> {
    let age = now.duration_since(beat.modified).unwrap_or_default();
    let health = beat.health.as_ref();
    let pace = health.map_or(0, |health| health.pace_ms);
    let pace = if pace == 0 { USUAL_PACE } else { Duration::from_millis(pace).min(SLOWEST_PACE) };
    let answer = match () {
        () if health.is_some_and(|health| health.obeyed >= order) => Answer::Obeyed,
        // The store's times may be exact to a second only.
        () if age < pace * 5 / 2 + Duration::from_secs(1) => Answer::NotYet,
        () => Answer::Silent,
    };
    let version = health.map_or_else(|| "unknown".to_owned(), |health| health.version.clone());
    let heartbeat_seconds = age.as_secs();
    (age < FORGOTTEN).then(|| Node { node: name.to_owned(), version, answer, heartbeat_seconds })
}
