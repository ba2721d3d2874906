//! The cache over a merge: blocks of a merged pack are made from blocks of the packs that it was merged from.
//!
//! A merged pack holds the entries of its inputs as they were stored, but for the headers of some deltas. So its blocks need
//! not come from the bucket where the node has those of the inputs. Each block is checked against its hash like one that was
//! fetched; what cannot be made, or comes out wrong, is fetched when somebody needs it.
//! Blocking. Relies on: graphs for where entries lie. Elsewhere: merging (`work::compact`).

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use crate::local::{Local, PackBlob};
use crate::mirror::blocks::Blocks;
use crate::pack::Stack;
use crate::pack::entry::{self, Header, RawKind};
use crate::pack::layer::Layer;
use crate::pack::layer::graph::view::GraphEntry;

/// Makes blocks of the packs that are new in `new` from those of the packs that are in `old` alone, until `end`. Gives the number
/// of blocks that were made.
pub fn carry(old: (&Stack, &Blocks), new: (&Stack, &Blocks), end: Instant) -> u64 {
    let lacks = |packs: &[PackBlob], pack: &PackBlob| !packs.iter().any(|other| other.blob == pack.blob);
    let inputs: Vec<Input<'_>> = (old.0.layers().iter().zip(old.1.packs()))
        .filter(|(_, pack)| lacks(new.1.packs(), pack))
        .map(|(layer, pack)| Input { local: old.1.local(), layer, pack, held: None })
        .collect();
    if inputs.is_empty() {
        return 0;
    }
    let fresh = new.0.layers().iter().zip(new.1.packs()).filter(|(_, pack)| lacks(old.1.packs(), pack));
    let mut made = 0;
    let mut inputs = inputs;
    for (layer, pack) in fresh {
        let mut out = Out { local: new.1.local(), pack, at: 0, block: Some(Vec::new()), made: 0 };
        rebuild(layer, &mut inputs, &mut out, end);
        made += out.made;
    }
    made
}

/// Writes the pack of `layer` as far as the inputs have it.
fn rebuild(layer: &Layer, inputs: &mut [Input<'_>], out: &mut Out<'_>, end: Instant) {
    let graph = &layer.graph;
    out.put(&entry::pack_header(graph.len()));
    for position in 0..graph.len() {
        let (Some(entry), Some(oid)) = (graph.entry(position), layer.oid(position)) else { return };
        if position % 64 == 0 && Instant::now() > end {
            return;
        }
        // Where an object lies in several inputs, any copy with the same data will do.
        let base = entry.base.and_then(|base| layer.oid(base));
        let data_len = entry.end - entry.offset - u64::from(entry.header_len);
        let found = inputs.iter_mut().find_map(|input| {
            let position = input.layer.lookup(&oid)?;
            let stored = input.layer.graph.entry(position)?;
            let data = stored.offset + u64::from(stored.header_len)..stored.end;
            let same = data.end - data.start == data_len
                && stored.entry_size == entry.entry_size
                && stored.base.and_then(|base| input.layer.oid(base)) == base;
            same.then_some((input, data))
        });
        let start = out.at;
        if let (Some((input, data)), Some(header)) = (found, header(layer, position, &entry)) {
            out.put(&header);
            input.copy(data, out);
        }
        out.skip(start + (entry.end - entry.offset) - out.at);
    }
    out.put(graph.pack_trailer());
    out.end_of_pack();
}

/// The header of an entry as it stands in the pack.
fn header(layer: &Layer, position: u32, entry: &GraphEntry) -> Option<Vec<u8>> {
    let graph = &layer.graph;
    let header = match (entry.raw, entry.base) {
        (RawKind::Whole, _) => Header::Whole(graph.kind(position)?),
        (RawKind::OfsDelta, Some(base)) => {
            Header::OfsDelta { distance: entry.offset.checked_sub(graph.offset(base)?)? }
        }
        (RawKind::RefDelta, Some(base)) => Header::RefDelta { base: layer.oid(base)? },
        (RawKind::OfsDelta | RawKind::RefDelta, None) => return None,
    };
    let mut bytes = Vec::with_capacity(entry::MAX_HEADER_LEN);
    entry::encode(&header, entry.entry_size, &mut bytes);
    (bytes.len() == usize::from(entry.header_len)).then_some(bytes)
}

/// A pack that was merged, and the block of it that was read last.
struct Input<'a> {
    local: &'a Local,
    layer: &'a Layer,
    pack: &'a PackBlob,
    held: Option<(u64, Option<Bytes>)>,
}

impl Input<'_> {
    /// Copies `range` of the pack, as far as it is on this node's disk.
    fn copy(&mut self, range: Range<u64>, out: &mut Out<'_>) {
        let size = self.pack.block_size.max(1);
        let mut at = range.start;
        while at < range.end {
            let n = at / size;
            let stop = range.end.min((n + 1) * size);
            if self.held.as_ref().is_none_or(|(held, _)| *held != n) {
                self.held = Some((n, self.local.cached_block(self.pack, n)));
            }
            let block = self.held.as_ref().and_then(|(_, block)| block.as_ref());
            match block.and_then(|block| block.get((at - n * size) as usize..(stop - n * size) as usize)) {
                Some(bytes) => out.put(bytes),
                None => out.skip(stop - at),
            }
            at = stop;
        }
    }
}

/// The merged pack on its way into the cache, block by block.
struct Out<'a> {
    local: &'a Local,
    pack: &'a PackBlob,
    /// Where in the pack.
    at: u64,
    /// What there is of the present block; none if a part of it could not be made.
    block: Option<Vec<u8>>,
    made: u64,
}

impl Out<'_> {
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.left() as usize));
            if let Some(block) = &mut self.block {
                block.extend_from_slice(now);
            }
            self.advance(now.len() as u64);
            bytes = rest;
        }
    }

    /// Leaves out so many bytes, and the blocks that they lie in.
    fn skip(&mut self, mut len: u64) {
        while len > 0 {
            let now = len.min(self.left());
            self.block = None;
            self.advance(now);
            len -= now;
        }
    }

    /// Bytes up to the end of the block.
    fn left(&self) -> u64 {
        let size = self.pack.block_size.max(1);
        size - self.at % size
    }

    fn advance(&mut self, len: u64) {
        self.at += len;
        if self.at.is_multiple_of(self.pack.block_size.max(1)) {
            self.end_of_block(self.at / self.pack.block_size.max(1) - 1);
        }
    }

    fn end_of_block(&mut self, n: u64) {
        if let Some(block) = self.block.replace(Vec::new())
            && !self.local.has_block(self.pack, n)
            && self.local.keep_block(self.pack, n, block.into())
        {
            self.made += 1;
        }
    }

    /// Keeps the last block, which is shorter.
    fn end_of_pack(&mut self) {
        if !self.at.is_multiple_of(self.pack.block_size.max(1)) {
            self.end_of_block(self.at / self.pack.block_size.max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use gix_hash::{Kind as HashKind, ObjectId};
    use object_store::memory::InMemory;

    use crate::local::LocalOptions;
    use crate::mirror::snapshot::pack_blob;
    use crate::pack::testing::{Packed, Random, Repo, stack};
    use crate::store::{BlobKind, BlobRef, Bucket};

    /// Two layers with blobs that span blocks, and all of it in one pack with the same deltas.
    fn packs() -> (Vec<Packed>, Vec<Packed>) {
        let repo = Repo::new(HashKind::Sha1);
        let mut random = Random::new(7);
        let mut blob = |len: usize| {
            let bytes: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
            repo.store("blob", &bytes)
        };
        let lower: Vec<ObjectId> = (0..4).map(|_| blob(700_000)).collect();
        let upper: Vec<ObjectId> = (0..4).map(|_| blob(500_000)).collect();
        let apart = vec![repo.pack_objects(&lower), repo.pack_objects(&upper)];
        (apart, vec![repo.pack_objects(&[lower, upper].concat())])
    }

    fn blocks(local: &Local, stack: &Stack, packs: &[Packed]) -> Blocks {
        let blob = |packed: &Packed| BlobRef::of(BlobKind::Pack, &packed.pack);
        let blobs = stack.layers().iter().zip(packs).map(|(layer, packed)| pack_blob(&blob(packed), layer));
        Blocks::new(local.clone(), blobs.collect())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn blocks_of_a_merged_pack_are_made_from_those_that_are_here() {
        let (apart, merged) = packs();
        let (old, new) = (stack(&apart, HashKind::Sha1).0, stack(&merged, HashKind::Sha1).0);
        for (here, all) in [(vec![0, 1], true), (vec![1], false), (vec![], false)] {
            let bucket = Bucket::over(Arc::new(InMemory::new()), "farm");
            let dir = tempfile::tempdir().unwrap();
            let local = Local::open(dir.path(), &LocalOptions::default(), bucket.clone()).unwrap();
            let (old_blocks, new_blocks) = (blocks(&local, &old, &apart), blocks(&local, &new, &merged));
            for &layer in &here {
                bucket.put_blob(BlobKind::Pack, apart[layer].pack.clone()).await.unwrap();
                let pack = &old_blocks.packs()[layer];
                for n in 0..pack.blocks() {
                    local.block(pack, n).await.unwrap();
                }
            }
            let end = Instant::now() + Duration::from_secs(60);
            let made = carry((&old, &old_blocks), (&new, &new_blocks), end);
            // The bucket does not have the merged pack: what is here was made here.
            let pack = &new_blocks.packs()[0];
            let found: Vec<u64> = (0..pack.blocks()).filter(|&n| local.has_block(pack, n)).collect();
            assert_eq!(made, found.len() as u64);
            assert_eq!(found.len() as u64 == pack.blocks(), all, "{found:?} of {}", pack.blocks());
            assert_eq!(found.is_empty(), here.is_empty());
            for n in found {
                let start = (n * pack.block_size) as usize;
                let wanted = &merged[0].pack[start..merged[0].pack.len().min(start + (1 << 20))];
                assert_eq!(local.cached_block(pack, n).unwrap(), wanted);
            }
            assert_eq!(carry((&old, &old_blocks), (&new, &new_blocks), end), 0, "they are here");
            assert_eq!(carry((&new, &new_blocks), (&new, &new_blocks), end), 0);
        }
    }
}
