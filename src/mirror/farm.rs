//! The other nodes of the bucket: who is there, and what they found.
//!
//! Nodes divide the repositories among the live ones and tell in their heartbeats what they found; each one takes part in
//! what the others found. A node is live while its heartbeat changes, by the clock of whoever looks. How old a finding is
//! never depends on another node's clock: a heartbeat repeats the number of the last heartbeat that its writer had read of
//! each other node. So it was written after that one, and whoever wrote that one knows when.
//! Relies on: `store` for heartbeats, `health` for their text, `division` for who owns what. Elsewhere: who compares when
//! (`work::worker`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use crate::boot::time_of_day;
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::division::Division;
use crate::mirror::health::{NodeHealth, RepoHealth};
use crate::mirror::repo::{Moment, Phase, Repo};
use crate::store::StoreError;

/// Own heartbeats whose moments are remembered.
const MOST_BEATS: usize = 256;
/// The slowest pace of heartbeats that another node is believed to have.
const SLOWEST: Duration = Duration::from_secs(120);
/// The most records read in one round because of what other nodes found; others are read in the next ones.
const MOST_READS: usize = 1000;
/// Records read at once because of what other nodes found.
const READS: usize = 16;

/// What a node knows of the others.
#[derive(Default)]
pub(super) struct Farm {
    /// When own heartbeats were composed, by number.
    beats: VecDeque<(u64, Instant)>,
    others: HashMap<String, Other>,
    /// The heartbeats were listed before: one that is new now is of a node that has just begun.
    listed: bool,
}

/// Another node.
#[derive(Default)]
struct Other {
    /// What tells its last heartbeat from the next one.
    tag: String,
    /// The number of its last heartbeat; 0 for a node of an earlier version, which divides nothing.
    beat: u64,
    pace: Duration,
    /// When it was last seen to change.
    changed: Option<Instant>,
}

impl Other {
    fn is_live(&self) -> bool {
        self.beat > 0 && self.changed.is_some_and(|changed| changed.elapsed() < self.pace * 5 / 2)
    }
}

impl Farm {
    /// The number of the next heartbeat, which is composed now.
    pub(super) fn beat(&mut self) -> u64 {
        let number = self.beats.back().map_or(1, |(last, _)| last + 1);
        self.beats.push_back((number, Instant::now()));
        if self.beats.len() > MOST_BEATS {
            self.beats.pop_front();
        }
        number
    }

    /// The last heartbeats that were read of the live nodes.
    pub(super) fn heard(&self) -> BTreeMap<String, u64> {
        let live = self.others.iter().filter(|(_, other)| other.is_live());
        live.map(|(name, other)| (name.clone(), other.beat)).collect()
    }

    /// A moment that was over when `told` was composed.
    fn composed_after(&self, me: &str, told: &NodeHealth) -> Option<Instant> {
        let heard = told.heard.get(me)?;
        self.beats.iter().find(|(number, _)| number == heard).map(|(_, then)| *then)
    }

    /// Takes note of a heartbeat with a new tag. Says whether it is news: not an earlier text that arrived late.
    fn note(&mut self, name: &str, tag: String, told: Option<&NodeHealth>) -> bool {
        let is_known = self.others.contains_key(name);
        let other = self.others.entry(name.to_owned()).or_default();
        other.tag = tag;
        let Some(told) = told.filter(|told| told.beat > other.beat) else { return false };
        other.beat = told.beat;
        other.pace = Duration::from_millis(told.pace_ms).min(SLOWEST);
        // The first heartbeat that is ever read of a node may be of long ago.
        if is_known || self.listed {
            other.changed = Some(Instant::now());
        }
        true
    }
}

impl Mirror {
    pub(super) fn farm(&self) -> MutexGuard<'_, Farm> {
        self.farm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many nodes are live, this one included.
    pub fn live_nodes(&self) -> usize {
        1 + self.farm().others.values().filter(|other| other.is_live()).count()
    }

    /// Says whether it is this node that compares a repository at the set pace.
    pub fn is_ours(&self, repo: &RepoPath) -> bool {
        self.division().is_ours(repo.as_str())
    }

    /// Who compares what, as this node sees it now.
    pub fn division(&self) -> Division {
        let farm = self.farm();
        let live = farm.others.iter().filter(|(_, other)| other.is_live());
        Division::new(self.node.clone(), live.map(|(name, _)| name.clone()))
    }

    /// Reads the heartbeats that changed, and takes part in what their nodes found: newer records are read, repositories that
    /// are new here are entered, and what was found equal to the primary is as good as compared here.
    pub async fn listen(self: &Arc<Self>) -> Result<(), StoreError> {
        let tags: HashMap<String, String> =
            self.farm().others.iter().map(|(name, other)| (name.clone(), other.tag.clone())).collect();
        let told = self.bucket.nodes_beside(&tags).await?;
        let mut findings = Vec::new();
        {
            let mut farm = self.farm();
            farm.others.retain(|name, _| told.iter().any(|node| node.name == *name));
            for node in told.into_iter().filter(|node| node.name != self.node) {
                let Some(words) = node.words else { continue };
                let health = NodeHealth::decode(&words);
                if !farm.note(&node.name, node.tag, health.as_ref()) {
                    continue;
                }
                let Some(health) = health else { continue };
                let composed = farm.composed_after(&self.node, &health);
                findings.extend(health.repos.into_iter().map(|repo| (repo, composed)));
            }
            farm.listed = true;
        }
        let reads = AtomicUsize::new(0);
        let take = |(found, composed): (RepoHealth, _)| self.take_part(found, composed, &reads);
        futures::stream::iter(findings).map(take).buffer_unordered(READS).collect::<()>().await;
        Ok(())
    }

    /// Takes part in what another node found, in a heartbeat that was composed after `composed`.
    async fn take_part(self: &Arc<Self>, found: RepoHealth, composed: Option<Instant>, reads: &AtomicUsize) {
        let (Some(number), Ok(path)) = (found.generation, RepoPath::parse(&found.repo)) else { return };
        let known = self.lock_repos().get(&path).cloned();
        let repo = match known {
            Some(repo) => repo,
            None if self.selects(&path) => self.start(Arc::new(self.known(path))),
            None => return,
        };
        if let Some(composed) = composed {
            repo.uses.hear(&found.used, composed);
        }
        let is_newer = repo.known().is_none_or(|known| known.number < number);
        if is_newer && reads.fetch_add(1, Ordering::Relaxed) < MOST_READS {
            // If this fails, it is read when somebody asks for the repository, or at the next comparison.
            if repo.snapshot().is_some() {
                let _ = self.refresh(&repo).await;
            } else {
                let _ = self.look_up(&repo).await;
            }
        }
        if found.phase == Phase::Failing {
            // A primary in trouble is not believed about others.
            repo.health().primary_failed = Some(Instant::now());
        }
        let Some(ago) = found.asked_ms.map(Duration::from_millis) else { return };
        // Who compares next may be mistaken about the age, who serves may not.
        if let Some(attended) = Instant::now().checked_sub(ago) {
            attend(&repo, number, found.phase, attended);
        }
        if let Some(asked) = composed.and_then(|composed| composed.checked_sub(ago)) {
            confirm(&repo, number, found.phase, asked);
        }
    }
}

/// Takes note that another node looks after a repository, and last asked the primary at about `attended`.
fn attend(repo: &Repo, number: u64, phase: Phase, attended: Instant) {
    // What is found gone is equal to nothing, and one node looks for it.
    let is_news = phase == Phase::Gone || repo.known().is_none_or(|known| known.number <= number);
    if is_news {
        let mut health = repo.health();
        health.attended = health.attended.max(Some(attended));
    }
}

/// Takes note that another node asked the primary at `asked` or later, and found it equal to generation `number`. Of what that
/// node is doing now, or failed to do since, nothing follows.
fn confirm(repo: &Repo, number: u64, phase: Phase, asked: Instant) {
    if phase == Phase::Gone || repo.known().is_none_or(|known| known.number != number) {
        return;
    }
    let mut health = repo.health();
    let is_later = health.asked.is_none_or(|before| before.instant < asked);
    if let Some(time) = time_of_day().checked_sub(asked.elapsed()).filter(|_| is_later) {
        health.asked = Some(Moment { instant: asked, time });
        health.by_others = true;
        if health.phase == Phase::New {
            health.phase = Phase::Current;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::generation_for_tests as sample;

    fn told(beat: u64, heard: &[(&str, u64)]) -> NodeHealth {
        let heard = heard.iter().map(|(name, beat)| ((*name).to_owned(), *beat)).collect();
        NodeHealth { beat, heard, pace_ms: 30_000, ..NodeHealth::empty() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_live_while_its_heartbeat_changes() {
        let mut farm = Farm::default();
        assert!(farm.note("old", "1".into(), Some(&told(7, &[]))));
        farm.listed = true;
        assert!(farm.heard().is_empty(), "a first look does not tell when it was written");
        assert!(farm.note("old", "2".into(), Some(&told(8, &[]))));
        assert!(farm.note("new", "1".into(), Some(&told(1, &[]))));
        assert_eq!(farm.heard().len(), 2);
        tokio::time::advance(Duration::from_secs(74)).await;
        assert!(farm.note("new", "2".into(), Some(&told(2, &[]))));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(farm.heard(), BTreeMap::from([("new".to_owned(), 2)]));
        assert!(!farm.note("new", "1".into(), Some(&told(1, &[]))), "an earlier text that arrived late");
        farm.note("earlier version", "1".into(), Some(&told(0, &[])));
        assert_eq!(farm.heard().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_finding_is_never_younger_than_it_is_known_to_be() {
        let mut farm = Farm::default();
        let first = Instant::now();
        assert_eq!(farm.beat(), 1);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(farm.beat(), 2);
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(farm.composed_after("me", &told(9, &[("me", 1)])), Some(first));
        assert_eq!(farm.composed_after("me", &told(9, &[("other", 1)])), None, "it had not read ours");
        assert_eq!(farm.composed_after("me", &told(9, &[("me", 3)])), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_generation_that_was_found_equal_is_confirmed() {
        let repo = Repo::new(sample().repo);
        repo.know(sample());
        let (number, asked) = (sample().number, Instant::now());
        tokio::time::advance(Duration::from_secs(60)).await;
        confirm(&repo, number + 1, Phase::Current, asked);
        assert!(repo.health().asked.is_none());
        confirm(&repo, number, Phase::Gone, asked);
        attend(&repo, number - 1, Phase::Current, asked);
        assert!(repo.health().asked.is_none() && repo.health().attended.is_none());
        attend(&repo, number, Phase::Current, asked);
        assert!(repo.health().asked.is_none() && repo.health().attended.is_some());
        confirm(&repo, number, Phase::Current, asked);
        assert_eq!(repo.health().asked.map(|asked| asked.instant), Some(asked));
        confirm(&repo, number, Phase::Current, asked - Duration::from_secs(5));
        assert_eq!(repo.health().asked.map(|asked| asked.instant), Some(asked), "it never goes back");
    }
}
