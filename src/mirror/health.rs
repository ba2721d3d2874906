//! What a node says of itself in the bucket, so that `packmirror status` can show all nodes from anywhere.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::evidence::Finding;
use crate::mirror::progress::Sync;
use crate::mirror::repo::{Phase, Repo};
use crate::store::StoreError;

/// A node that has said nothing for so long is not there any more.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// The longest text of a failure that is shown, in characters.
const MOST_TEXT: usize = 1000;

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeHealth {
    /// When it wrote this.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// The program's version.
    pub version: String,
    /// Its repositories.
    pub repos: Vec<RepoHealth>,
}

/// One repository as a node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepoHealth {
    /// The canonical path.
    pub repo: String,
    /// What its worker does, or how its last comparison ended.
    pub phase: Phase,
    /// The newest generation this node knows.
    pub generation: Option<u64>,
    /// When the primary was asked by the comparison that last found it equal to that.
    #[serde(with = "humantime_serde::option")]
    pub compared: Option<SystemTime>,
    /// When it is compared next.
    #[serde(with = "humantime_serde::option")]
    pub next: Option<SystemTime>,
    /// The last failure.
    pub error: Option<String>,
    /// Refs of the primary that are not mirrored, in words.
    #[serde(default)]
    pub left_out: Option<String>,
    /// The comparison or sync that runs.
    #[serde(default)]
    pub sync: Option<Sync>,
    /// What last differed from the primary, with a few refs; none if that has been over for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Finding>,
}

impl RepoHealth {
    /// What is known of a repository now.
    pub fn of(repo: &Repo) -> Self {
        let generation = repo.known().map(|generation| generation.number);
        let health = repo.health();
        let left = |then: Instant| SystemTime::now() + then.saturating_duration_since(Instant::now());
        let sync = repo.progress().shown();
        let difference = repo.evidence().newest(SystemTime::now());
        Self {
            repo: repo.path.to_string(),
            phase: if sync.is_some() { Phase::Syncing } else { health.phase },
            generation,
            compared: health.asked.map(|asked| asked.time),
            next: health.next.map(left),
            error: health.error.clone(),
            left_out: health.left_out.clone(),
            sync,
            difference,
        }
    }
}

impl Mirror {
    /// Writes what this node knows into the bucket.
    pub async fn tell_health(&self) -> Result<(), StoreError> {
        let health = NodeHealth {
            at: SystemTime::now(),
            version: env!("CARGO_PKG_VERSION").into(),
            repos: self.repos().iter().map(|repo| RepoHealth::of(repo)).collect(),
        };
        // Strings, numbers and lists: serialising them cannot fail.
        let words = serde_json::to_vec(&health).unwrap_or_default();
        self.bucket.put_node(&self.node, words.into()).await
    }
}

/// Shortens foreign text to what a line can show.
pub fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MOST_TEXT) {
        text.truncate(end);
    }
}

/// All nodes that wrote lately. Older records are removed on the way, those of a newer version are passed over.
pub async fn nodes(bucket: &crate::store::Bucket) -> Result<Vec<NodeHealth>, StoreError> {
    let mut nodes = Vec::new();
    for (name, words) in bucket.nodes().await? {
        let Ok(mut health) = serde_json::from_slice::<NodeHealth>(&words) else { continue };
        health.repos.retain_mut(|repo| {
            repo.sync.iter_mut().for_each(|sync| cut(&mut sync.words));
            repo.difference = repo.difference.take().map(Finding::bounded);
            repo.error.iter_mut().chain(&mut repo.left_out).for_each(cut);
            RepoPath::parse(&repo.repo).is_ok()
        });
        let age = SystemTime::now().duration_since(health.at).unwrap_or_default();
        if age < FORGOTTEN {
            nodes.push(health);
        } else if age > FORGOTTEN * 10 {
            bucket.remove_node(&name).await?;
        }
    }
    nodes.sort_by_key(|node| std::cmp::Reverse(node.at));
    Ok(nodes)
}
