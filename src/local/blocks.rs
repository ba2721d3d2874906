//! Blocks of packs: fetched once, proven by their hash, kept on disk.
//!
//! A pack is read in blocks of equal size, the last one shorter. Nothing is handed out before its SHA-256 is what the
//! layer's graph says. However many readers want a block, it is fetched once; a reader that goes away does not stop the fetch.
//! Memory holds only blocks in flight: their number is bounded, and a block is dropped once it is on disk and its readers
//! have it. Relies on: block hashes that come from a proven graph.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::disk::Found;
use super::entries::Name;
use super::flight::{Flights, Lead};
use super::maps::Map;
use super::{Inner, Local, LocalOptions};
use crate::budget::Budget;
use crate::store::{BlobId, BlobRef, StoreError};

/// The most that one read ahead asks of the bucket: a single connection is slower than several.
const RUN: u64 = 4 << 20;

/// What a block counts at the most among those that are fetched for readers that wait.
const MOST_BLOCK: u64 = 1 << 20;

/// And at least: so many requests are under way where blocks are small.
const LEAST_ROOM: u64 = 64 << 10;

type Key = (BlobId, u32);
type Answer = Result<Bytes, StoreError>;

/// The SHA-256 of each block of a pack.
pub trait BlockHashes: Send + Sync {
    /// The hash of block `n`; none beyond the last.
    fn hash(&self, n: u64) -> Option<[u8; 32]>;
}

impl BlockHashes for Vec<[u8; 32]> {
    fn hash(&self, n: u64) -> Option<[u8; 32]> {
        self.get(usize::try_from(n).ok()?).copied()
    }
}

/// A pack that can be read in blocks.
#[derive(Clone)]
pub struct PackBlob {
    /// The pack in the bucket.
    pub blob: BlobRef,
    /// Bytes of each block but the last.
    pub block_size: u64,
    /// What each block hashes to.
    pub hashes: Arc<dyn BlockHashes>,
}

impl PackBlob {
    /// The number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blob.len.div_ceil(self.block_size.max(1))
    }

    /// Where block `n` lies in the pack.
    fn range(&self, n: u64) -> Range<u64> {
        let start = n.saturating_mul(self.block_size).min(self.blob.len);
        start..start.saturating_add(self.block_size).min(self.blob.len)
    }

    /// The key and hash of block `n`.
    fn block(&self, n: u64) -> Result<(Key, [u8; 32]), StoreError> {
        let hash = self.hashes.hash(n).filter(|_| n < self.blocks());
        match (u32::try_from(n), hash) {
            (Ok(number), Some(hash)) => Ok(((self.blob.id, number), hash)),
            _ => {
                Err(StoreError::Damaged { key: self.blob.to_string(), what: format!("it has no block {n}") })
            }
        }
    }
}

/// What is being fetched, and how much at once.
pub(super) struct Fetching {
    flights: Flights<Key, Answer>,
    wanted: Budget,
    ahead: Arc<Semaphore>,
}

impl Fetching {
    pub(super) fn new(options: &LocalOptions) -> Self {
        Self {
            flights: Flights::default(),
            wanted: Budget::new(options.fetches.max(1) as u64 * MOST_BLOCK, "cache_dir"),
            ahead: Arc::new(Semaphore::new(options.fetches_ahead.max(1))),
        }
    }
}

impl Local {
    /// Says whether block `n` of a pack is on this node's disk, without looking at the disk.
    pub fn has_block(&self, pack: &PackBlob, n: u64) -> bool {
        pack.block(n).is_ok_and(|(key, _)| self.inner.disk.has(Name::Block(key.0, key.1)))
    }

    /// Block `n` of a pack if it is on this node's disk, mapped: no copy is made and nothing is waited for but the disk.
    /// For blocking threads.
    pub fn cached_block(&self, pack: &PackBlob, n: u64) -> Option<Bytes> {
        let (key, hash) = pack.block(n).ok()?;
        match self.inner.disk.map(Name::Block(key.0, key.1), |bytes| is(bytes, &hash)) {
            Found::Here(map) => {
                self.inner.hit();
                Some(Bytes::from_owner(Mapped(map)))
            }
            Found::Absent | Found::NotNow => None,
        }
    }

    /// Keeps block `n` of a pack that somebody made from what is here, if it is the right one and not here yet. Says whether
    /// it is here then. For blocking threads.
    pub fn keep_block(&self, pack: &PackBlob, n: u64, bytes: Bytes) -> bool {
        let Ok((key, hash)) = pack.block(n) else { return false };
        let disk = &self.inner.disk;
        if !disk.has(Name::Block(key.0, key.1)) && !disk.is_resting() {
            self.inner.keep(key, &hash, bytes);
        }
        disk.has(Name::Block(key.0, key.1))
    }

    /// Block `n` of a pack, proven, from the disk or from the bucket.
    pub async fn block(&self, pack: &PackBlob, n: u64) -> Result<Bytes, StoreError> {
        let (key, _) = pack.block(n)?;
        for _ in 0..4 {
            let (lead, wait) = self.inner.fetching.flights.join(&key);
            let own = lead.is_some();
            if let Some(lead) = lead {
                let (inner, pack) = (self.inner.clone(), pack.clone());
                tokio::spawn(async move { lead.finish(inner.block(&pack, n).await) });
            }
            match wait.value().await {
                // A read ahead, or a flight that was about to end, may fail where this read does not.
                Some(Err(error)) if !own && error.is_transient() => {}
                Some(answer) => return answer,
                // The task died: ask again.
                None => {}
            }
        }
        Err(gave_up(&pack.blob))
    }

    /// Starts to fetch those of `blocks` that are not here, neighbours together, as far as there is room for more in
    /// flight; gives the block up to which there was. A hint: it returns at once, and [`Local::block`] waits for what is on its way.
    /// Needs a tokio runtime.
    pub fn read_ahead(&self, pack: &PackBlob, blocks: Range<u64>) -> u64 {
        let inner = &self.inner;
        if inner.disk.is_resting() {
            // A block that cannot be kept would be fetched twice.
            return blocks.start;
        }
        let longest = (RUN / pack.block_size.max(1)).max(1);
        let end = blocks.end.min(pack.blocks());
        let mut next = blocks.start;
        while next < end {
            let Ok(room) = inner.fetching.ahead.clone().try_acquire_owned() else { break };
            let run = inner.claim_run(pack, &mut next, end, longest);
            if run.is_empty() {
                break;
            }
            tokio::spawn(inner.clone().fetch_run(pack.clone(), run, room));
        }
        next
    }
}

/// A mapped block; the mapping lives as long as its bytes.
struct Mapped(Arc<Map>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A block to fetch, and those to tell.
struct Claim {
    n: u64,
    hash: [u8; 32],
    lead: Lead<Key, Answer>,
}

impl Inner {
    /// Claims the first run of absent neighbours at or after `next`, and moves `next` behind it.
    fn claim_run(&self, pack: &PackBlob, next: &mut u64, end: u64, longest: u64) -> Vec<Claim> {
        let mut run = Vec::new();
        while *next < end && (run.len() as u64) < longest {
            let n = *next;
            let claim = pack.block(n).ok().and_then(|(key, hash)| {
                let absent = !self.disk.has(Name::Block(key.0, key.1));
                let lead = absent.then(|| self.fetching.flights.claim(&key))??;
                Some(Claim { n, hash, lead })
            });
            match claim {
                Some(claim) => run.push(claim),
                None if run.is_empty() => {}
                None => break,
            }
            *next += 1;
        }
        run
    }

    async fn block(self: &Arc<Self>, pack: &PackBlob, n: u64) -> Answer {
        let (key, hash) = pack.block(n)?;
        let inner = self.clone();
        let name = Name::Block(key.0, key.1);
        let mut keep = true;
        if self.disk.has(name) {
            match blocking(move || inner.disk.read(name, |bytes| is(bytes, &hash))).await? {
                Found::Here(bytes) => {
                    self.hit();
                    return Ok(bytes);
                }
                Found::Absent => {}
                // It is kept already. What prevents reading it would also prevent writing it.
                Found::NotNow => keep = false,
            }
        }
        // Small ones are as many as there is room for: a fetch from many layers waits for one trip.
        let range = pack.range(n);
        let bytes = (range.end - range.start).clamp(LEAST_ROOM, MOST_BLOCK);
        let room = self.fetching.wanted.take(bytes).await;
        let _room = room.map_err(|halt| StoreError::unavailable("fetch a block", halt.to_string()))?;
        self.miss(1);
        self.fetch(pack, n, hash, keep).await
    }

    /// Fetches one block, twice if the first answer is wrong, and keeps it if told to.
    async fn fetch(self: &Arc<Self>, pack: &PackBlob, n: u64, hash: [u8; 32], keep: bool) -> Answer {
        let (key, _) = pack.block(n)?;
        for _ in 0..2 {
            let ahead = self.expected.take(&pack.blob, pack.range(n)).await;
            let is_ahead = ahead.is_some();
            let bytes = match ahead {
                Some(bytes) => bytes,
                None => self.bucket.get_range(&pack.blob, pack.range(n)).await?,
            };
            let inner = self.clone();
            let proven = blocking(move || match keep {
                true => inner.keep(key, &hash, bytes),
                false => is(&bytes, &hash).then_some(bytes),
            });
            if let Some(bytes) = proven.await? {
                if is_ahead {
                    self.expected.is_proven(pack.blob.id);
                }
                return Ok(bytes);
            }
        }
        Err(StoreError::Damaged { key: pack.blob.to_string(), what: format!("block {n} has another hash") })
    }

    /// Fetches neighbours with one request and gives them to all who wait.
    async fn fetch_run(self: Arc<Self>, pack: PackBlob, run: Vec<Claim>, room: OwnedSemaphorePermit) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let (start, end) = (pack.range(first.n).start, pack.range(last.n).end);
        self.miss(run.len());
        let bytes = match self.bucket.get_range(&pack.blob, start..end).await {
            Ok(bytes) => bytes,
            Err(error) => {
                for claim in run {
                    claim.lead.finish(Err(error.clone()));
                }
                return;
            }
        };
        for claim in run {
            let range = pack.range(claim.n);
            // A copy: a slice would keep the whole run in memory for as long as one slow reader has one block.
            let block =
                Bytes::copy_from_slice(&bytes[(range.start - start) as usize..(range.end - start) as usize]);
            let (inner, key, hash) = (self.clone(), (pack.blob.id, claim.n as u32), claim.hash);
            let answer = match blocking(move || inner.keep(key, &hash, block)).await {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => self.fetch(&pack, claim.n, claim.hash, true).await,
                Err(error) => Err(error),
            };
            claim.lead.finish(answer);
        }
        drop(room);
    }

    /// Proves a block and puts it on disk; none if it is not the right one. If the disk refuses it, the block is still given.
    fn keep(&self, key: Key, hash: &[u8; 32], bytes: Bytes) -> Option<Bytes> {
        if !is(&bytes, hash) {
            return None;
        }
        // The disk has counted and told the refusal.
        let _ = self.disk.write(Name::Block(key.0, key.1), &bytes);
        Some(bytes)
    }
}

fn is(bytes: &[u8], hash: &[u8; 32]) -> bool {
    Sha256::digest(bytes).as_slice() == hash
}

pub(super) fn gave_up(blob: &BlobRef) -> StoreError {
    StoreError::unavailable(format!("fetch {blob}"), "the task that fetched it ended early")
}

/// Runs work on the disk or the CPU off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    crate::threads::spawn_blocking(work)
        .await
        .map_err(|error| StoreError::unavailable("local work", error.to_string()))
}
