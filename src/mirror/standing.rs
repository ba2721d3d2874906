//! How a repository stands against the primary: what `packmirror status` and a node's `/status` show.
//!
//! Relies on: what a node knows or has said (`health`), what is published (`store`). Elsewhere: tables for people (`cli`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::mirror::Mirror;
use crate::mirror::evidence::Finding;
use crate::mirror::health::{Mended, RepoHealth};
use crate::mirror::progress::Sync;
use crate::mirror::repo::{Phase, Repo};
use crate::store::{AnswerRef, Generation, LayerRef};
use crate::text::is_obeyed;

/// How a repository stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Known, but nothing is published yet.
    New,
    /// A sync is running.
    Syncing,
    /// Equal to the primary when last compared.
    Current,
    /// The primary has something newer.
    Behind,
    /// The last sync failed; it is tried again.
    Failing,
    /// What is stored is damaged or missing; it is being mended, and requests that need it are passed on.
    Damaged,
    /// The primary does not have it any more; what was published is kept for a while.
    Gone,
}

impl State {
    /// The word in tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Syncing => "syncing",
            Self::Current => "current",
            Self::Behind => "behind",
            Self::Failing => "failing",
            Self::Damaged => "damaged",
            Self::Gone => "gone",
        }
    }
}

/// One repository. In JSON times are RFC 3339 and durations seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoStatus {
    /// Canonical path.
    pub repo: String,
    /// How it stands.
    pub state: State,
    /// Newest generation, if any is published.
    pub generation: Option<u64>,
    /// Number of refs.
    pub refs: u64,
    /// Bytes in the bucket.
    pub bytes: u64,
    /// Number of objects in its layers.
    pub objects: u64,
    /// Answers that are kept in the bucket, since they are asked for again and again; the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<KeptAnswer>,
    /// When it was last found equal to the primary.
    #[serde(with = "humantime_serde::option")]
    pub last_compared: Option<SystemTime>,
    /// How old what is served may be.
    #[serde(rename = "lag_seconds", with = "seconds")]
    pub lag: Option<Duration>,
    /// When a failed sync is tried again.
    #[serde(with = "humantime_serde::option")]
    pub next_try: Option<SystemTime>,
    /// Refs of the primary that are not mirrored: the first, and how many more.
    #[serde(default)]
    pub left_out: Option<String>,
    /// The name of the node that compares it with the primary, if a live one says so.
    #[serde(default)]
    pub compared_by: Option<String>,
    /// Why the last sync failed.
    pub error: Option<String>,
    /// The comparison or sync that runs.
    #[serde(default)]
    pub sync: Option<Sync>,
    /// The merge of its layers that runs.
    #[serde(default)]
    pub merge: Option<Sync>,
    /// Why its layers could not be merged; what is published is as it was.
    #[serde(default)]
    pub unmerged: Option<String>,
    /// What is known to be wrong with its stored data, in words.
    #[serde(default)]
    pub damage: Option<String>,
    /// When it was last mended, and what was done.
    #[serde(default)]
    pub mended: Option<Mended>,
    /// What differed from the primary lately, the newest first. A node's own `/status` has all that it remembers.
    #[serde(default)]
    pub differences: Vec<Finding>,
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// What was asked for, in words.
    pub kind: String,
    /// Bytes of its pack.
    pub bytes: u64,
    /// Objects in it.
    pub objects: u64,
}

impl KeptAnswer {
    fn of(named: &AnswerRef) -> Self {
        let LayerRef { pack, objects, .. } = named.layer;
        Self { kind: named.kind.clone(), bytes: pack.len, objects: objects.into() }
    }
}

/// What is told of a repository that is marked as gone.
const GONE: &str = "the primary does not have it any more; it is served to nobody, and kept for gc.gone_after in case it \
    comes back";

impl RepoStatus {
    /// A repository of this node.
    pub fn of(repo: &Repo, now: SystemTime) -> Self {
        let health = RepoHealth::of(repo);
        let standing = match repo.known() {
            Some(generation) => Self::published(&generation, Some(health), now),
            None => Self::unpublished(health),
        };
        Self { differences: repo.evidence().all(), ..standing }
    }

    /// All repositories of a node.
    pub fn of_all(mirror: &Mirror, now: SystemTime) -> Vec<Self> {
        let owners = mirror.division();
        let row = |repo: &Arc<Repo>| {
            let by = owners.owner(repo.path.as_str()).to_owned();
            Self { compared_by: Some(by), ..Self::of(repo, now) }
        };
        mirror.repos().iter().map(row).collect()
    }

    /// A repository of which `generation` is the newest, with what a node said of it.
    pub fn published(generation: &Generation, health: Option<RepoHealth>, now: SystemTime) -> Self {
        let published = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(generation.verified_at));
        let published = published.unwrap_or(SystemTime::UNIX_EPOCH);
        let compared =
            health.as_ref().and_then(|health| health.compared).map_or(published, |at| at.max(published));
        let behind =
            health.as_ref().is_some_and(|health| health.generation.is_some_and(|n| n > generation.number));
        let current = Self {
            repo: generation.repo.to_string(),
            state: State::Current,
            generation: Some(generation.number),
            refs: generation.ref_count,
            bytes: generation.blobs().map(|blob| blob.len).fold(0, u64::saturating_add),
            objects: generation.layers.iter().map(|layer| u64::from(layer.objects)).sum(),
            answers: generation.answers.iter().map(KeptAnswer::of).collect(),
            last_compared: Some(compared),
            lag: Some(now.duration_since(compared).unwrap_or_default()),
            next_try: None,
            left_out: None,
            compared_by: None,
            error: None,
            sync: None,
            merge: None,
            unmerged: None,
            damage: None,
            mended: None,
            differences: Vec::new(),
        };
        let current = match generation.gone {
            Some(_) => Self { state: State::Gone, error: Some(GONE.into()), ..current },
            None => current,
        };
        let Some(health) = health else { return current };
        Self {
            state: match current.state {
                State::Gone => State::Gone,
                _ if behind => State::Behind,
                _ => state(&health),
            },
            next_try: health.next,
            left_out: health.left_out,
            error: current.error.or(health.error),
            sync: health.sync,
            merge: health.merge,
            unmerged: health.unmerged,
            damage: health.damage,
            mended: health.mended,
            differences: health.difference.into_iter().collect(),
            ..current
        }
    }

    /// A repository that a node knows and of which nothing is published.
    pub fn unpublished(health: RepoHealth) -> Self {
        let state = state(&health);
        Self {
            repo: health.repo,
            state,
            generation: None,
            refs: 0,
            bytes: 0,
            objects: 0,
            answers: Vec::new(),
            last_compared: None,
            lag: None,
            next_try: health.next,
            left_out: health.left_out,
            compared_by: None,
            error: health.error,
            sync: health.sync,
            merge: health.merge,
            unmerged: health.unmerged,
            damage: health.damage,
            mended: health.mended,
            differences: health.difference.into_iter().collect(),
        }
    }
}

fn state(health: &RepoHealth) -> State {
    match health.phase {
        Phase::New | Phase::Current | Phase::Failing if health.damage.is_some() => State::Damaged,
        Phase::New => State::New,
        Phase::Syncing => State::Syncing,
        Phase::Current => State::Current,
        Phase::Failing => State::Failing,
        Phase::Gone => State::Gone,
    }
}

mod seconds {
    use super::{Deserialize, Duration};

    pub fn serialize<S: serde::Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => serializer.serialize_some(&duration.as_secs()),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_secs))
    }
}

/// Writes rows as a JSON array. What a terminal might obey is escaped, since people look at it too.
pub fn json(rows: &[RepoStatus]) -> Result<String, serde_json::Error> {
    Ok(escaped(&serde_json::to_string_pretty(rows)?) + "\n")
}

/// Escapes in a JSON text what a terminal might obey.
pub fn escaped(text: &str) -> String {
    // Outside strings JSON has no such character but line feeds, which strings do not have.
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            c if is_obeyed(c) => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")))
            }
            c => out.push(c),
        }
    }
    out
}
