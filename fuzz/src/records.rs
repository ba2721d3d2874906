//! What lies in the bucket and in the cache: graphs, generation records, names of blobs. Checksums are made right, so
//! that what is behind them is reached: a bucket can be written by others than us.
use std::sync::Arc;

use bytes::Bytes;
use gix_hash::Kind as HashKind;
use sha2::{Digest, Sha256};

use crate::byte;
use crate::pack::filter::trees::TreeLimits;
use crate::pack::history::shallow::{Deepen, deepen};
use crate::pack::layer::decode;
use crate::pack::layer::graph::{compress, decompress};
use crate::pack::meter::Unlimited;
use crate::pack::plan::select::{Query, SelectLimits, select};
use crate::pack::{Damaged, Graph, Layer, PlanOptions, Reach, Scratch, Selection, Source, Stack, plan};
use crate::store::{BlobId, Generation, read};

/// The index of the pack whose graph is the seed `graph-1`.
const IDX: &[u8] = include_bytes!("records.idx");

/// One target: the first byte chooses what the rest is.
pub fn run(mut data: &[u8]) {
    match byte(&mut data).unwrap_or(0) & 3 {
        0 => a_graph(data),
        1 => a_frame(data),
        2 => a_generation(data),
        _ => a_name(data),
    }
}

/// `data` is a graph file without its checksum.
fn a_graph(data: &[u8]) {
    let file = Bytes::from([data, &Sha256::digest(data)].concat());
    match Graph::open(file.clone()) {
        Ok(graph) => {
            walk(&graph);
            stacked(file);
            let cut = Bytes::copy_from_slice(data);
            assert!(Graph::open(cut).is_err(), "a checksum that is not there was accepted");
        }
        Err(error) => assert_ne!(error, Damaged::Bytes("checksum does not match")),
    }
}

/// Asks everything of every position, and of some beyond: what is promised of an open graph must hold.
fn walk(graph: &Graph) {
    let n = graph.len();
    let refs = u64::from(n) + graph.externals().len() as u64;
    let within =
        |mut list: crate::pack::layer::graph::columns::U32Iter<'_>| list.all(|item| u64::from(item) < refs);
    let mut end = 0;
    for position in 0..n {
        let entry = graph.entry(position).expect("each position has an entry");
        assert!(entry.offset >= end && entry.end > entry.offset && entry.end <= graph.pack_len());
        end = entry.end;
        assert!(entry.base.is_none_or(|base| base < n));
        assert!(graph.kind(position).is_some() && graph.size(position).is_some());
        assert!(graph.rank(position).is_some_and(|rank| rank < n && graph.position(rank).is_some()));
        assert_eq!(graph.position_at(entry.offset), Some(position));
        if let Some(row) = graph.commit_row(position) {
            assert!(within(graph.parents(row)) && within(graph.first(row)) && within(graph.again(row)));
            assert!(graph.generation(row).is_some() && graph.date(row).is_some());
            assert!(graph.tree(row).is_some_and(|tree| u64::from(tree) < refs));
        }
        if let Some(row) = graph.tag_row(position) {
            assert!(graph.target(row).is_some_and(|target| u64::from(target) < refs));
        }
        assert!(graph.introducer(position).is_none_or(|commit| commit < n));
    }
    for stored in 0..refs.min(10_000) as u32 {
        assert!(graph.other_introducers(stored).all(|commit| commit < n));
    }
    let blocks = graph.block_hashes().len() as u64 / 32;
    assert!((0..blocks).all(|block| graph.block_hash(block).is_some()) && graph.block_hash(blocks).is_none());
    for beyond in [n, n + 1, u32::MAX] {
        let rows = (graph.commit_row(beyond), graph.tag_row(beyond), graph.entry(beyond), graph.kind(beyond));
        assert!(matches!(rows, (None, None, None, None)));
        let _ = (graph.parents(beyond).count(), graph.first(beyond).count(), graph.again(beyond).count());
    }
    let _ = (graph.pack_sha256(), graph.pack_trailer().len(), graph.dups().len(), graph.block_size());
}

/// A graph that opens but tells lies, with its index: questions end, whatever they answer. The pack cannot be read.
fn stacked(graph: Bytes) {
    let Ok(layer) = Layer::open(Bytes::from_static(IDX), graph, HashKind::Sha1) else { return };
    let Ok(stack) = Stack::open(vec![Arc::new(layer)]) else { return };
    let all: Vec<u32> = (0..stack.len()).collect();
    for &gid in &all {
        let _ = (stack.oid(gid), stack.peel(gid), stack.introducers(gid).count());
        let _ = decode::object(&stack, &Unreadable, gid, &mut Scratch::new(1 << 16, 1 << 20), &Unlimited);
    }
    let _ = Reach::new(&stack, &Unreadable, &all, &TreeLimits::default(), &Unlimited);
    let (wants, haves) = all.split_at(all.len() / 2);
    for how in [Deepen::Depth(2), Deepen::Relative(2), Deepen::RevList { since: Some(3), not: haves }] {
        let shallow = deepen(&stack, wants, haves, how, |_| true, &Unlimited).ok();
        let query = Query { wants, haves, shallow: shallow.as_ref(), ..Query::default() };
        let Ok(mut selection) = select(&stack, &Unreadable, &query, &SelectLimits::default(), &Unlimited)
        else {
            continue;
        };
        for thin in [true, false] {
            plan::plan(&stack, &mut selection, PlanOptions { ofs_delta: thin, thin }, &Unlimited).unwrap();
        }
    }
    let mut whole = Selection::of(all.into_iter().collect());
    plan::plan(&stack, &mut whole, PlanOptions { ofs_delta: true, thin: false }, &Unlimited).unwrap();
}

struct Unreadable;

impl Source for Unreadable {
    fn read(&self, _: usize, _: std::ops::Range<u64>) -> std::io::Result<Bytes> {
        Err(std::io::Error::other("no such pack"))
    }
}

/// A frame never gives more than is asked for.
fn a_frame(data: &[u8]) {
    const LIMIT: usize = 1 << 16;
    if let Ok(file) = decompress(data, LIMIT) {
        assert!(file.len() <= LIMIT);
    }
    let frame = compress(data).expect("memory");
    assert_eq!(decompress(&frame, data.len()).expect("our own frame"), data);
    assert!(data.is_empty() || decompress(&frame, data.len() - 1).is_err());
}

/// `data` is the first line of a record.
fn a_generation(data: &[u8]) {
    let line = [data.split(|&b| b == b'\n').next().unwrap_or_default(), b"\n"].concat();
    let bytes = [&line[..], format!("\"{}\"\n", BlobId::of(&line)).as_bytes()].concat();
    let Ok(outline) = serde_json::from_slice::<Generation>(&line) else {
        assert!(read(&bytes, "", 1).is_err());
        return;
    };
    assert!(read(&bytes, &outline.repo.key(), outline.number.wrapping_add(1)).is_err(), "another number's");
    assert!(read(&bytes, &"0".repeat(64), outline.number).is_err(), "another repository's");
    let Ok(record) = read(&bytes, &outline.repo.key(), outline.number) else { return };
    assert_eq!(record.stored, Some(BlobId::of(&bytes)));
    assert_eq!((record.number == 1, record.number > 0), (record.parent.is_none(), true));
    let again = read(&record.encode(), &record.repo.key(), record.number).expect("our own record");
    assert_eq!(Generation { stored: None, ..again }, Generation { stored: None, ..record.clone() });
    assert_eq!(record.blobs().count(), 1 + 3 * record.layers.len());
}

fn a_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = text.parse::<BlobId>() {
        assert_eq!(id.to_string(), text, "a name has one spelling");
    }
}
