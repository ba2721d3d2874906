//! Vetting one repository: is what is published what the primary has, and is what is stored whole?
//!
//! It changes nothing. A node finds and repairs the same by itself; this is for people who ask now.
//! Relies on: `primary` for one answer, `examine` for what is stored. Elsewhere: who prints it (`cli`).

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;

use crate::mirror::Mirror;
use crate::mirror::evidence::{Finding, RefChange, changes};
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::{object_format, publishes, refs_of};
use crate::primary::{Auth, PrimaryError, Seen};
use crate::store::{Generation, StoreError};
use crate::text::chain;
use crate::work::examine::{Flaw, Pace, present, whole};

/// How what is published stands against the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Against {
    /// Both are equal.
    Equal,
    /// They differ.
    Differs,
    /// The primary does not have the repository.
    Gone,
    /// It could not be found out.
    Unknown,
}

/// A blob with which something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WrongBlob {
    /// Its name in the bucket, without the folder.
    pub blob: String,
    /// What is wrong.
    pub what: String,
}

/// What was found about a repository.
#[derive(Debug, Clone, Serialize)]
pub struct Vetted {
    /// Its canonical path.
    pub repo: String,
    /// The generation that was looked at.
    pub generation: Option<u64>,
    /// How it stands against the primary.
    pub primary: Against,
    /// How many refs differ.
    pub refs_count: u64,
    /// The first of them.
    pub refs: Vec<RefChange>,
    /// Blobs that were looked for.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were read and hashed.
    pub read_bytes: u64,
    /// Blobs with which something is wrong.
    pub wrong: Vec<WrongBlob>,
    /// What could not be found out, and why.
    pub errors: Vec<String>,
    /// Whether trying again later may find out what could not be.
    pub is_transient: bool,
    /// What nodes found to differ lately.
    pub differences: Vec<Finding>,
}

impl Vetted {
    /// Whether it equals the primary and nothing is wrong with what is stored.
    pub fn is_well(&self) -> bool {
        self.primary == Against::Equal && self.wrong.is_empty() && self.errors.is_empty()
    }

    /// Whether it was found to differ from the primary, or to be damaged.
    pub fn is_wrong(&self) -> bool {
        matches!(self.primary, Against::Differs | Against::Gone) || !self.wrong.is_empty()
    }
}

/// Vets a repository; `deep` reads and hashes all that is stored. `read` is told how many bytes of how many were read. What is
/// wrong with stored data is noted with `repo`, so that a sync mends it. `None`: the bucket does not have it.
pub async fn vet(
    mirror: &Mirror,
    repo: &Arc<Repo>,
    deep: bool,
    read: &(dyn Fn(u64, u64) + Send + Sync),
) -> Option<Vetted> {
    let mut found = Vetted {
        repo: repo.path.to_string(),
        generation: None,
        primary: Against::Unknown,
        refs_count: 0,
        refs: Vec::new(),
        blobs: 0,
        bytes: 0,
        read_bytes: 0,
        wrong: Vec::new(),
        errors: Vec::new(),
        is_transient: false,
        differences: Vec::new(),
    };
    let generation = match compare(mirror, repo, &mut found).await {
        Ok(generation) => generation?,
        Err(error) => {
            found.is_transient = error.is_transient();
            found.errors.push(format!("the bucket: {}", error.chain()));
            return Some(found);
        }
    };
    let spoilt = mirror.bucket.spoilt_above(&repo.path, generation.number).await;
    let stored = stored(mirror, &generation, deep, &mut found, read).await;
    match spoilt.and_then(|spoilt| Ok((spoilt, stored?))) {
        Ok((spoilt, flaws)) => {
            if !spoilt.is_empty() {
                repo.damage().record_is_spoilt(generation.number);
            }
            found.wrong.extend(spoilt.into_iter().map(|key| WrongBlob {
                blob: key,
                what: "a record that cannot be read: the one before it is taken for the newest".into(),
            }));
            repo.damage().note(flaws.iter().map(|flaw| (flaw.blob, flaw.fault)).collect());
            let wrong = |flaw: Flaw| WrongBlob { blob: flaw.blob.to_string(), what: flaw.words };
            found.wrong.extend(flaws.into_iter().map(wrong));
        }
        Err(error) => {
            found.is_transient = error.is_transient();
            found.errors.push(format!("the bucket: {}", error.chain()));
        }
    }
    Some(found)
}

/// Compares the newest generation with the primary. A difference counts if a second look finds the same one: a node may have
/// published between the two questions.
async fn compare(mirror: &Mirror, repo: &Repo, found: &mut Vetted) -> Result<Option<Generation>, StoreError> {
    let mut before = None;
    loop {
        let looked = mirror.primary.seen(&repo.path, Auth::Service).await;
        let newest = mirror.bucket.newest(&repo.path).await?;
        let Some(newest) = newest.filter(|newest| !newest.removed) else { return Ok(None) };
        found.generation = Some(newest.number);
        let Seen { refs: seen, .. } = match looked {
            Ok(seen) => seen,
            Err(error) => {
                if matches!(error, PrimaryError::NotFound) {
                    found.primary = Against::Gone;
                } else {
                    found.is_transient = error.is_transient();
                    found.errors.push(format!("the primary: {}", chain(&error)));
                }
                return Ok(Some(newest));
            }
        };
        if publishes(&newest, &seen) {
            found.primary = Against::Equal;
            return Ok(Some(newest));
        }
        let now = Some((newest.number, seen.digest()));
        if before != now {
            before = now;
            continue;
        }
        found.primary = Against::Differs;
        // Refs that cannot be read are told as damage.
        if let Ok(text) = mirror.local.mapped(&newest.refs).await
            && let Ok(hash) = object_format(&newest)
            && let Ok(published) = refs_of(&newest, hash, &text)
        {
            (found.refs_count, found.refs) = changes(&published, &seen);
        }
        return Ok(Some(newest));
    }
}

async fn stored(
    mirror: &Mirror,
    generation: &Generation,
    deep: bool,
    found: &mut Vetted,
    read: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Vec<Flaw>, StoreError> {
    found.blobs = generation.needed().count();
    found.bytes = generation.needed().map(|blob| blob.len).fold(0, u64::saturating_add);
    let mut flaws = present(&mirror.bucket, generation).await?;
    if deep {
        let (done, total) = (std::sync::atomic::AtomicU64::new(0), found.bytes);
        let told = |bytes| {
            let before = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            read(before + bytes, total);
        };
        let deeper = whole(mirror, generation, &mut Pace::new(None), &told).await?;
        let known: HashSet<_> = flaws.iter().map(|flaw| flaw.blob).collect();
        flaws.extend(deeper.into_iter().filter(|flaw| !known.contains(&flaw.blob)));
        found.read_bytes = done.into_inner();
    }
    Ok(flaws)
}
