//! What a node says of itself in the bucket: for `packmirror status`, which shows all nodes from anywhere, and for the other
//! nodes, which take part in what it found ([`farm`](super::farm)).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::boot::time_of_day;
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::evidence::Finding;
use crate::mirror::progress::Sync;
use crate::mirror::repo::{Phase, Repo};
use crate::store::{BlobId, StoreError};

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
    /// Its name, new at each start.
    #[serde(default)]
    pub node: String,
    /// The number of this text; 0 in those of earlier versions.
    #[serde(default)]
    pub beat: u64,
    /// How often it writes at least, in milliseconds.
    #[serde(default)]
    pub pace_ms: u64,
    /// How long data stays in the bucket after it was named last as far as it goes by this node, in seconds; 0 in those of
    /// earlier versions.
    #[serde(default)]
    pub grace_s: u64,
    /// The last texts that it had read of other nodes when it composed this one, by number.
    #[serde(default)]
    pub heard: BTreeMap<String, u64>,
    /// The highest number of an order to forget up to which it has obeyed all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub obeyed: u64,
    /// The repositories that it compares, and those of which it has something to say.
    pub repos: Vec<RepoHealth>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The first bytes of a zstd frame.
const FRAME: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Up to so many bytes the text is left as it is: a store bills the request, and a person can read it there.
const PLAIN: usize = 4096;
/// The longest text of one node.
const MOST_WORDS: usize = 16 << 20;

impl NodeHealth {
    /// The stored bytes.
    fn encode(&self) -> Vec<u8> {
        // Strings, numbers and lists: serialising them cannot fail, nor can compressing in memory.
        let words = serde_json::to_vec(self).unwrap_or_default();
        if words.len() <= PLAIN {
            return words;
        }
        zstd::bulk::compress(&words, 3).unwrap_or(words)
    }

    /// Reads stored bytes, if they are a node's.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(&FRAME) {
            return serde_json::from_slice(bytes).ok();
        }
        serde_json::from_slice(&zstd::bulk::decompress(bytes, MOST_WORDS).ok()?).ok()
    }

    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self {
            at: SystemTime::UNIX_EPOCH,
            version: String::new(),
            node: String::new(),
            beat: 1,
            pace_ms: 0,
            grace_s: 0,
            heard: BTreeMap::new(),
            obeyed: 0,
            repos: Vec::new(),
        }
    }
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
    /// How long before the text was composed that was at the most, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_ms: Option<u64>,
    /// Whether it is this node that compares it.
    #[serde(default)]
    pub ours: bool,
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
    /// The merge of its layers that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Sync>,
    /// Why its layers could not be merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmerged: Option<String>,
    /// What is known to be wrong with its stored data, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// When it was last mended, and what was done, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mended: Option<Mended>,
    /// What last differed from the primary, with a few refs; none if that has been over for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Finding>,
    /// Its kept answers that were used lately, and how many seconds ago.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used: Vec<(BlobId, u64)>,
}

/// A repair that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// When.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// What was mended, and from where, in words.
    pub what: String,
}

impl RepoHealth {
    /// What is known of a repository now.
    pub fn of(repo: &Repo) -> Self {
        let generation = repo.known().map(|generation| generation.number);
        let health = repo.health();
        let left = |then: Instant| time_of_day() + then.saturating_duration_since(Instant::now());
        let sync = repo.progress().shown();
        let (damage, mended) = {
            let damage = repo.damage();
            (damage.words(), damage.last().map(|(at, what)| Mended { at, what }))
        };
        let difference = repo.evidence().newest(time_of_day());
        Self {
            repo: repo.path.to_string(),
            phase: if sync.is_some() { Phase::Syncing } else { health.phase },
            generation,
            compared: health.asked.map(|asked| asked.time),
            // Rounded up: it must not seem younger than it is.
            asked_ms: health.asked.map(|asked| asked.instant.elapsed().as_millis() as u64 + 1),
            ours: false,
            next: health.next.map(left),
            error: health.error.clone(),
            left_out: health.left_out.clone(),
            sync,
            merge: repo.compaction().shown(),
            unmerged: health.unmerged.clone(),
            damage,
            mended,
            difference,
            used: repo.uses.told(),
        }
    }

    /// The same without what its node did then: that node has died, or has ended it without a word.
    pub fn ended(self) -> Self {
        let phase = match (self.phase, self.compared) {
            (Phase::Syncing, Some(_)) => Phase::Current,
            (Phase::Syncing, None) => Phase::New,
            (phase, _) => phase,
        };
        Self { phase, sync: None, merge: None, ..self }
    }
}

impl Mirror {
    /// Writes what this node knows into the bucket: of the repositories that it compares, and of those that it has asked the
    /// primary about lately or has trouble with.
    pub async fn tell_health(&self) -> Result<(), StoreError> {
        let (beat, heard) = {
            let mut farm = self.farm();
            (farm.beat(), farm.heard())
        };
        let mut repos: Vec<RepoHealth> = Vec::new();
        let division = self.division();
        for repo in self.repos() {
            let ours = division.is_ours(repo.path.as_str());
            if ours || self.has_news_of(&repo) {
                repos.push(RepoHealth { ours, ..RepoHealth::of(&repo) });
            }
        }
        let health = NodeHealth {
            at: time_of_day(),
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.node.clone(),
            beat,
            pace_ms: self.beat_every.as_millis() as u64,
            grace_s: self.grace.as_secs(),
            heard,
            obeyed: self.obeyed(),
            repos,
        };
        self.bucket.put_node(&self.node, health.encode().into()).await
    }

    /// Whether the nodes may learn something of a repository from this one, though another one compares it.
    fn has_news_of(&self, repo: &Repo) -> bool {
        let health = repo.health();
        let lately = |asked: Instant| asked.elapsed() < self.compare_every.saturating_mul(2);
        let asked = !health.by_others && health.asked.is_some_and(|asked| lately(asked.instant));
        asked
            || health.error.is_some()
            || health.unmerged.is_some()
            || repo.progress().shown().is_some()
            || repo.compaction().shown().is_some()
            || !repo.uses.told().is_empty()
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
        let Some(mut health) = NodeHealth::decode(&words) else { continue };
        cut(&mut health.node);
        health.repos.retain_mut(|repo| {
            repo.sync.iter_mut().chain(&mut repo.merge).for_each(|sync| cut(&mut sync.words));
            repo.difference = repo.difference.take().map(Finding::bounded);
            repo.mended.iter_mut().for_each(|mended| cut(&mut mended.what));
            let words = repo.error.iter_mut().chain(&mut repo.left_out).chain(&mut repo.damage);
            words.chain(&mut repo.unmerged).for_each(cut);
            RepoPath::parse(&repo.repo).is_ok()
        });
        let age = time_of_day().duration_since(health.at).unwrap_or_default();
        if age < FORGOTTEN {
            nodes.push(health);
        } else if age > FORGOTTEN * 10 {
            bucket.remove_node(&name).await?;
        }
    }
    nodes.sort_by_key(|node| std::cmp::Reverse(node.at));
    Ok(nodes)
}
