//! What is known to be wrong with the stored data of a repository, and whether it still is.
//!
//! A reader of stored data that meets an error reports it with the record that named the data ([`Repo::report_damage`]).
//! The report stays until the newest generation no longer names the blob, or until the blob is found whole in the bucket
//! (and then reads without an error); a sync that ends well does not clear it. So a report that comes while a sync runs
//! is looked at after it, and a node whose report was answered by another node's repair asks the primary nothing.
//! Elsewhere: the sync (`work::sync`), which asks [`stands`] before it decides what to build on.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::boot::time_of_day;
use crate::mirror::Mirror;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::OpenError;
use crate::pack::DecodeError;
use crate::pack::filter::trees::TreeError;
use crate::pack::write::WriteError;
use crate::store::{BlobId, BlobRef, Generation, StoreError};

/// For so long after a repair, data that is whole but of no use is not repaired again: if a repair did not help, it is not
/// repeated for each client that asks.
const NO_USE_AGAIN: Duration = Duration::from_secs(3600);

/// What is wrong with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The bucket does not have it, or has other bytes under its name.
    Lost,
    /// Its bytes have the hash that names them, but it was written wrong and is of no use.
    Useless,
}

/// The blobs of a repository that were reported.
#[derive(Debug, Default)]
pub struct Damage {
    blobs: HashMap<BlobId, (BlobRef, Fault)>,
    /// Blobs that were reported as lost and found whole. Reported once more, they are of no use.
    whole: HashSet<BlobId>,
    repaired: Option<Instant>,
    /// The newest record lies spoilt in the bucket, or under one that does: it is to be published again, if it has no greater
    /// number than this.
    record: Option<u64>,
    /// What the running repair has mended, in words.
    mended: Vec<String>,
    /// When the last repair ended, and what it did.
    last: Option<(SystemTime, String)>,
}

/// Things that are named one by one in words; the others are counted.
const MOST_NAMED: usize = 3;

impl Damage {
    /// Notes what is wrong, and says whether any of it is new.
    pub fn note(&mut self, faults: Vec<(BlobRef, Fault)>) -> bool {
        let mut is_new = false;
        for (blob, fault) in faults {
            let fault = if self.whole.contains(&blob.id) { Fault::Useless } else { fault };
            is_new |= self.blobs.insert(blob.id, (blob, fault)).is_none();
        }
        is_new
    }

    /// Says whether anything was reported that may still be so.
    pub fn is_known(&self) -> bool {
        !self.blobs.is_empty() || self.record.is_some()
    }

    /// What was reported, with what is wrong.
    pub fn reported(&self) -> Vec<(BlobRef, Fault)> {
        self.blobs.values().copied().collect()
    }

    /// Takes note that the record `number`, which was the newest that could be read, has to be published again.
    pub fn record_is_spoilt(&mut self, number: u64) {
        self.record = Some(number);
    }

    /// Whether a record with this number has to be published again.
    pub fn is_record_spoilt(&self, number: u64) -> bool {
        self.record.is_some_and(|spoilt| number <= spoilt)
    }

    /// Takes note of something that the running repair has mended.
    pub fn mended(&mut self, words: String) {
        self.mended.push(words);
    }

    /// Whether the running repair has mended anything.
    pub fn has_mended(&self) -> bool {
        !self.mended.is_empty()
    }

    /// What is known to be wrong, in words.
    pub fn words(&self) -> Option<String> {
        let record = self.record.map(|number| format!("the record of generation {number} is spoilt"));
        let blobs = self.blobs.values().map(|(blob, fault)| match fault {
            Fault::Lost => format!("{blob} is missing or damaged"),
            Fault::Useless => format!("{blob} is of no use"),
        });
        listed(record.into_iter().chain(blobs))
    }

    /// When the last repair ended, and what it did, in words.
    pub fn last(&self) -> Option<(SystemTime, String)> {
        self.last.clone()
    }

    /// Takes note that what was reported is whole again; `words` say what else was done for it.
    pub fn over(&mut self, words: Option<String>) {
        let mended = std::mem::take(&mut self.mended);
        let words =
            listed(mended.into_iter().chain(words)).unwrap_or_else(|| "nothing was left to be mended".into());
        self.last = Some((time_of_day(), words));
    }

    /// Forgets what the newest generation does not name.
    fn keep(&mut self, newest: Option<&Generation>) {
        let named: HashSet<BlobId> =
            newest.into_iter().flat_map(Generation::blobs).map(|blob| blob.id).collect();
        self.blobs.retain(|id, _| named.contains(id));
        self.whole.retain(|id| named.contains(id));
        self.record = self.record.filter(|spoilt| newest.is_some_and(|newest| newest.number <= *spoilt));
    }

    /// Takes note that a blob that was reported as lost is whole.
    pub fn is_whole(&mut self, blob: &BlobId) {
        self.blobs.remove(blob);
        self.whole.insert(*blob);
    }

    /// Takes note of the generation that was published.
    pub fn published(&mut self, generation: &Generation) {
        self.keep(Some(generation));
    }

    /// Takes note that what was damaged was made anew and published as `generation`.
    pub fn repaired(&mut self, generation: &Generation) {
        self.repaired = Some(Instant::now());
        self.keep(Some(generation));
    }
}

/// Names the first of some things, and counts the others.
fn listed(things: impl Iterator<Item = String>) -> Option<String> {
    let mut things: Vec<String> = things.collect();
    things.sort();
    let more = things.len().saturating_sub(MOST_NAMED);
    things.truncate(MOST_NAMED);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    (!things.is_empty()).then(|| things.join(", ") + &more)
}

/// What `error`, met while the data of `generation` was read, says about it. Nothing if the data could only not be reached.
pub fn faults(generation: &Generation, error: &(dyn Error + 'static)) -> Vec<(BlobRef, Fault)> {
    let graphs = || generation.layers.iter().map(|layer| (layer.graph, Fault::Useless));
    let mut cause = Some(error);
    while let Some(error) = cause {
        // What an error of the system carries is not among its causes.
        let carried = error.downcast_ref::<io::Error>().and_then(|e| e.get_ref());
        let store = carried.and_then(|e| e.downcast_ref()).or_else(|| error.downcast_ref::<StoreError>());
        if let Some(key) = store.and_then(StoreError::lost) {
            let is_meant = |blob: &BlobRef| key.contains(&blob.id.to_string());
            let named: Vec<_> =
                generation.needed().filter(is_meant).map(|blob| (blob, Fault::Lost)).collect();
            if named.is_empty() && generation.blobs().any(|blob| is_meant(&blob)) {
                // An answer is none of what has to be there.
                return named;
            }
            // This record does not name the blob that was read: any of its blobs may be meant.
            let any = || generation.needed().map(|blob| (blob, Fault::Lost)).collect();
            return if named.is_empty() { any() } else { named };
        }
        let decode = match (error.downcast_ref::<TreeError>(), error.downcast_ref::<WriteError>()) {
            (Some(TreeError::Decode(e)), _) | (_, Some(WriteError::Decode(e))) => Some(e),
            (Some(TreeError::Malformed(_) | TreeError::Missing(_)), _) => return graphs().collect(),
            _ => error.downcast_ref::<DecodeError>(),
        };
        if let Some(DecodeError::Damaged { layer, .. }) = decode {
            return graphs().skip(*layer).take(1).collect();
        }
        if let Some(OpenError::Damaged { .. }) = error.downcast_ref() {
            let packs: HashSet<BlobId> = generation.layers.iter().map(|layer| layer.pack.id).collect();
            let read = generation.needed().filter(|blob| !packs.contains(&blob.id));
            return read.map(|blob| (blob, Fault::Useless)).collect();
        }
        cause = error.source();
    }
    Vec::new()
}

/// Says whether anything that was reported is still wrong with the newest generation, and forgets what is not. Blobs that
/// were lost are read in full: they may have been restored.
pub async fn stands(mirror: &Mirror, repo: &Repo, newest: Option<&Generation>) -> Result<bool, StoreError> {
    let (reported, repaired) = {
        let mut damage = repo.damage();
        damage.keep(newest);
        (damage.blobs.values().copied().collect::<Vec<_>>(), damage.repaired)
    };
    let again = repaired.is_some_and(|at| at.elapsed() < NO_USE_AGAIN);
    for (blob, fault) in reported {
        match fault {
            Fault::Useless if !again => return Ok(true),
            Fault::Useless => {}
            Fault::Lost => match mirror.bucket.verify(&blob).await {
                Ok(()) => repo.damage().is_whole(&blob.id),
                Err(e) if e.is_loss() => return Ok(true),
                Err(e) => return Err(e),
            },
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::path::RepoPath;
    use crate::pack::index::IndexError;
    use crate::store::{BlobKind, LayerRef};

    fn record(number: u64, layers: &[&str]) -> Generation {
        let blob = |kind, text: &str| BlobRef::of(kind, text.as_bytes());
        let layer = |name: &&str| LayerRef {
            pack: blob(BlobKind::Pack, &format!("pack {name}")),
            idx: blob(BlobKind::Idx, &format!("idx {name}")),
            graph: blob(BlobKind::Graph, &format!("graph {name}")),
            objects: 1,
        };
        let layers = layers.iter().map(layer).collect();
        Generation { number, layers, ..crate::store::generation_for_tests() }
    }

    fn lost(blob: &BlobRef) -> StoreError {
        StoreError::NotFound { key: blob.key().to_string() }
    }

    #[test]
    fn what_is_wrong_is_found_down_the_chain_of_causes() {
        let record = record(1, &["a", "b"]);
        let pack = record.layers[1].pack;
        let read = || DecodeError::Read { layer: 1, error: io::Error::other(lost(&pack)) };
        let base = gix_hash::Kind::Sha1.null();
        let errors: [Box<dyn Error>; 5] = [
            Box::new(lost(&pack)),
            Box::new(io::Error::other(lost(&pack))),
            Box::new(TreeError::Decode(read())),
            Box::new(WriteError::Read(io::Error::other(lost(&pack)))),
            Box::new(IndexError::Base { base, error: read() }),
        ];
        for error in errors {
            assert_eq!(faults(&record, &*error), [(pack, Fault::Lost)], "{error}");
        }
        let busy = StoreError::unavailable("get", "it is busy");
        assert_eq!(faults(&record, &busy), [], "unknown is not failure");
        let all = faults(&record, &TreeError::Missing(base));
        assert_eq!(all, record.layers.iter().map(|l| (l.graph, Fault::Useless)).collect::<Vec<_>>());
    }

    #[test]
    fn a_report_stays_until_its_blob_is_not_named_any_more() {
        let (old, grown, anew) = (record(1, &["a"]), record(2, &["a", "b"]), record(3, &["c"]));
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        let error = lost(&old.layers[0].pack);
        assert!(repo.report_damage(&old, &error));
        repo.damage().keep(Some(&grown));
        assert!(repo.damage().is_known(), "a generation on the same layers mends nothing");
        repo.damage().repaired(&anew);
        assert!(!repo.damage().is_known());
        // Reported while the repair ran, about what the repair brought.
        assert!(repo.report_damage(&anew, &lost(&anew.layers[0].pack)));
        repo.damage().repaired(&anew);
        assert!(repo.damage().is_known());
    }

    #[test]
    fn what_is_whole_and_reported_again_is_of_no_use() {
        let record = record(1, &["a"]);
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        let graph = record.layers[0].graph;
        let fault = |repo: &Repo| repo.damage().blobs.get(&graph.id).map(|(_, fault)| *fault);
        assert!(repo.report_damage(&record, &lost(&graph)));
        assert_eq!(fault(&repo), Some(Fault::Lost));
        repo.damage().is_whole(&graph.id);
        assert_eq!(fault(&repo), None);
        assert!(repo.report_damage(&record, &lost(&graph)));
        assert_eq!(fault(&repo), Some(Fault::Useless), "its bytes have their hash, and cannot be read");
    }
}
