//! First blocks of packs that are fetched before what proves them is here.
//!
//! The hash of a block stands in the graph of its layer. On an empty cache the first block would therefore wait for the graph; fetched
//! beside it, it costs no trip of its own. Until then nobody sees its bytes: whoever asks for the block proves them, as if they had come just
//! then. A hint within [`ROOM`]: what finds no room, or comes to nothing, is fetched when it is wanted, and what nobody wants goes after
//! [`LASTS`]. Elsewhere: blocks that are proven (`blocks`), what is worth it ([`crate::mirror`]).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::entries::Name;
use super::{Local, PackBlob};
use crate::budget::{Budget, Room};
use crate::store::{BlobId, BlobRef, StoreError};

/// Bytes of blocks without proof in memory, over all packs.
const ROOM: u64 = 32 << 20;
/// What one counts at least.
const LEAST: u64 = 64 << 10;
/// How long they are kept for somebody who wants them.
const LASTS: Duration = Duration::from_secs(10);

/// What is on its way.
#[derive(Clone)]
pub(super) struct Expected {
    room: Budget,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    coming: HashMap<BlobId, Coming>,
    /// Packs whose first block has come and was proven, and when.
    proven: HashMap<BlobId, Instant>,
}

/// The beginning of one pack.
struct Coming {
    bytes: u64,
    fetch: AbortOnDropHandle<Result<Bytes, StoreError>>,
    _room: Room,
}

impl Default for Expected {
    fn default() -> Self {
        Self { room: Budget::new(ROOM, "cache_dir"), state: Arc::default() }
    }
}

impl Expected {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a block, not proven, if they were fetched before or are on their way.
    pub(super) async fn take(&self, pack: &BlobRef, range: Range<u64>) -> Option<Bytes> {
        if range.start > 0 {
            return None;
        }
        let coming = self.lock().coming.remove(&pack.id).filter(|coming| coming.bytes == range.end)?;
        coming.fetch.await.ok()?.ok()
    }

    /// Takes note that what was fetched of a pack is the right block.
    pub(super) fn is_proven(&self, pack: BlobId) {
        self.lock().proven.insert(pack, Instant::now());
    }
}

impl Local {
    /// Begins to fetch the first `block` bytes of packs, each given with its graph; [`Local::block`] then finds them. Where the graph is
    /// here already it saves no trip, and nothing is fetched. Needs a tokio runtime.
    pub fn expect(&self, packs: impl IntoIterator<Item = (BlobRef, BlobRef)>, block: u64) {
        let inner = &self.inner;
        if inner.disk.is_resting() {
            return;
        }
        inner.expected.lock().proven.retain(|_, at| at.elapsed() < LASTS);
        for (pack, graph) in packs {
            let bytes = pack.len.min(block);
            let is_cold = ![Name::Block(pack.id, 0), Name::Whole(graph.id, graph.kind)]
                .into_iter()
                .any(|name| inner.disk.has(name));
            if bytes == 0 || !is_cold {
                continue;
            }
            let Ok(room) = inner.expected.room.try_take(bytes.max(LEAST)) else { return };
            let mut state = inner.expected.lock();
            if state.coming.contains_key(&pack.id) {
                continue;
            }
            let bucket = inner.bucket.clone();
            let fetch = tokio::spawn(async move { bucket.get_range(&pack, 0..bytes).await });
            let fetch = AbortOnDropHandle::new(fetch);
            state.coming.insert(pack.id, Coming { bytes, fetch, _room: room });
            drop(state);
            let expected = inner.expected.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LASTS).await;
                expected.lock().coming.remove(&pack.id);
            });
        }
    }

    /// Says whether the first block of a pack was fetched ahead a moment ago and is the right one, so that the pack is there.
    pub fn has_just_come(&self, pack: &PackBlob) -> bool {
        self.inner.expected.lock().proven.get(&pack.blob.id).is_some_and(|at| at.elapsed() < LASTS)
    }

    /// Puts what was expected of `packs` on the disk, now that it can be proven. Returns at once. Needs a tokio runtime.
    pub fn keep_expected(&self, packs: &[PackBlob]) {
        for pack in packs {
            if self.inner.expected.lock().coming.contains_key(&pack.blob.id) {
                let (local, pack) = (self.clone(), pack.clone());
                // What cannot be had is met by whoever needs it.
                tokio::spawn(async move { local.block(&pack, 0).await.map(drop) });
            }
        }
    }
}
