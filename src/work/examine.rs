//! Looking whether what a generation names is stored, and is what its name says.
//!
//! Two depths: every blob is there with its length ([`present`]), and every byte is read again and hashed, the blocks of packs
//! against their graph too ([`whole`]). Memory is a few windows, whatever the length; dropping the future ends it.
//! Relies on: `store` for blobs, `mirror::snapshot` for what graphs and refs must be. Elsewhere: what is done about it
//! (`sync`), when it is due (`rotation`), telling people (`vet`).

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::mirror::Mirror;
use crate::mirror::damage::{Fault, faults};
use crate::mirror::snapshot::{OpenError, Snapshot};
use crate::pack::layer::Layer;
use crate::store::{BlobId, BlobKind, BlobRef, Bucket, Generation, StoreError};
use crate::text::chain;

/// Blobs of one repository that are asked for at once.
const AT_ONCE: usize = 16;
/// How much of a blob is read and hashed at once.
const WINDOW: u64 = 8 << 20;

/// Something that is wrong with a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The blob.
    pub blob: BlobRef,
    /// What it means for a repair.
    pub fault: Fault,
    /// What is wrong, in words.
    pub words: String,
}

impl Flaw {
    fn lost(blob: BlobRef, error: &StoreError) -> Self {
        Self { blob, fault: Fault::Lost, words: chain(error) }
    }
}

/// How fast bytes are read: at most so many a second on average.
#[derive(Debug)]
pub struct Pace {
    rate: Option<u64>,
    begun: Instant,
    done: u64,
}

impl Pace {
    /// Reads at most `rate` bytes a second; without one, as fast as the store gives them.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), begun: Instant::now(), done: 0 }
    }

    /// Takes note that `bytes` were read, and waits until more may be.
    pub async fn took(&mut self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        self.done += bytes;
        let due = self.begun + Duration::from_secs_f64(self.done as f64 / rate as f64);
        tokio::time::sleep_until(due).await;
        // What was not read while nobody wanted to read is not made up for.
        let now = Instant::now();
        if now > due + Duration::from_secs(1) {
            (self.begun, self.done) = (now, 0);
        }
    }
}

/// Looks whether every blob of `generation` is there with its length.
pub async fn present(bucket: &Bucket, generation: &Generation) -> Result<Vec<Flaw>, StoreError> {
    let blobs: Vec<BlobRef> = generation.needed().collect();
    let looks = stream::iter(blobs).map(|blob| async move {
        match bucket.head(&blob).await {
            Ok(()) => Ok(None),
            Err(error) if error.is_loss() => Ok(Some(Flaw::lost(blob, &error))),
            Err(error) => Err(error),
        }
    });
    looks.buffered(AT_ONCE).try_filter_map(async |flaw| Ok(flaw)).try_collect().await
}

/// Reads every byte of `generation` again: each blob has the hash that names it, graphs and refs can be used, and the blocks
/// of packs are what the graphs say. `read` is told of bytes as they come.
pub async fn whole(
    mirror: &Mirror,
    generation: &Generation,
    pace: &mut Pace,
    read: &(dyn Fn(u64) + Send + Sync),
) -> Result<Vec<Flaw>, StoreError> {
    let mut flaws = Vec::new();
    for small in generation.needed().filter(|blob| blob.kind != BlobKind::Pack) {
        flaws.extend(blob(&mirror.bucket, &small, None, pace, read).await?);
    }
    let mut open: Option<Snapshot> = None;
    if flaws.is_empty() {
        match Snapshot::open(&mirror.local, generation.clone(), None).await {
            Ok(snapshot) => open = Some(snapshot),
            Err(OpenError::Store { source, .. }) if !source.is_loss() => return Err(source),
            Err(error) => {
                let words = chain(&error);
                let of = |(blob, fault)| Flaw { blob, fault, words: words.clone() };
                flaws.extend(faults(generation, &error).into_iter().map(of));
            }
        }
    }
    for (n, named) in generation.layers.iter().enumerate() {
        let layer = open.as_ref().and_then(|open| Some((open.stack.layers().get(n)?, named.graph)));
        flaws.extend(blob(&mirror.bucket, &named.pack, layer, pace, read).await?);
    }
    Ok(flaws)
}

/// Reads a blob again: its bytes have the hash that names it; and the blocks of a pack, if its layer is given with the
/// graph's name, those that the graph holds.
pub async fn blob(
    bucket: &Bucket,
    blob: &BlobRef,
    layer: Option<(&Arc<Layer>, BlobRef)>,
    pace: &mut Pace,
    read: &(dyn Fn(u64) + Send + Sync),
) -> Result<Option<Flaw>, StoreError> {
    let mut sums = Sums::new(layer.map(|(layer, _)| Arc::clone(layer)));
    let mut start = 0;
    while start < blob.len {
        let end = (start + WINDOW).min(blob.len);
        let window = match bucket.get_range(blob, start..end).await {
            Ok(window) => window,
            Err(error) if error.is_loss() => return Ok(Some(Flaw::lost(*blob, &error))),
            Err(error) => return Err(error),
        };
        let summed = crate::threads::spawn_blocking(move || {
            sums.add(&window);
            sums
        });
        sums = summed.await.map_err(|e| StoreError::unavailable("hash a blob", e.to_string()))?;
        read(end - start);
        pace.took(end - start).await;
        start = end;
    }
    let (id, wrong) = sums.end();
    if id != blob.id {
        // Once more, since the way may have spoilt it.
        return match bucket.verify(blob).await {
            Ok(()) => Ok(None),
            Err(error) if error.is_loss() => Ok(Some(Flaw::lost(*blob, &error))),
            Err(error) => Err(error),
        };
    }
    Ok(wrong.zip(layer).map(|(n, (_, graph))| Flaw {
        blob: graph,
        fault: Fault::Useless,
        words: format!("{graph}: it has another hash for block {n} of {blob} than the pack itself"),
    }))
}

/// The hashes of a pack and of its blocks, as far as it was read.
struct Sums {
    layer: Option<Arc<Layer>>,
    whole: Sha256,
    block: Sha256,
    /// Bytes of the block in work.
    within: u64,
    number: u64,
    /// The first block that is not what the graph says.
    wrong: Option<u64>,
}

impl Sums {
    fn new(layer: Option<Arc<Layer>>) -> Self {
        Self { layer, whole: Sha256::new(), block: Sha256::new(), within: 0, number: 0, wrong: None }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.whole.update(bytes);
        let Some(size) = self.layer.as_ref().map(|layer| u64::from(layer.graph.block_size()).max(1)) else {
            return;
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = usize::try_from(size - self.within).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.block.update(now);
            self.within += now.len() as u64;
            rest = later;
            if self.within == size {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        let found: [u8; 32] = self.block.finalize_reset().into();
        let named = self.layer.as_ref().and_then(|layer| layer.graph.block_hash(self.number));
        if named != Some(found) {
            self.wrong = self.wrong.or(Some(self.number));
        }
        (self.number, self.within) = (self.number + 1, 0);
    }

    /// The hash of all, and the first block that is not what the graph says.
    fn end(mut self) -> (BlobId, Option<u64>) {
        if self.within > 0 {
            self.end_block();
        }
        (BlobId::from_hasher(self.whole), self.wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_read_at_the_pace_that_was_set() {
        let begun = Instant::now();
        let mut pace = Pace::new(Some(1000));
        for _ in 0..10 {
            pace.took(500).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 5);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let begun = Instant::now();
        pace.took(500).await;
        pace.took(2000).await;
        assert_eq!(begun.elapsed().as_secs(), 2, "an hour without reading is not made up for");
        Pace::new(None).took(1 << 40).await;
        Pace::new(Some(0)).took(1 << 40).await;
        assert_eq!(begun.elapsed().as_secs(), 2);
    }
}
