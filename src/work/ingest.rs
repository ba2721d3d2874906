//! A pack, received or merged, becomes a layer: completed, indexed strictly, its closure proven, its graph built.
//!
//! Everything happens in a scratch directory that is removed with the value; nothing is published here.
//! Blocking and CPU-bound: run it off the async threads.
//! Relies on: `pack::index` for receiving and indexing (checks the trailer and every object's hash, with collision
//! detection) and `pack::layer::graph::build` for the proof that nothing is missing, both on the sync's meter ([`Cost`]).
//! Elsewhere: uploading and publishing (`publish`).

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use gix_hash::{ObjectId, oid};
use gix_object::Kind;

use crate::local::map_file;
use crate::mirror::progress::Step;
use crate::pack::index::complete::{self, Bases};
use crate::pack::index::receive::receive;
use crate::pack::index::resolve::{Keep, Resolve, resolve};
use crate::pack::index::write::write;
use crate::pack::index::{Entries, IndexError};
use crate::pack::layer::Layer;
use crate::pack::layer::decode;
use crate::pack::layer::graph::build::{self, BuildError, BuildInput};
use crate::pack::meter::{Halt, Held, Meter};
use crate::pack::{DecodeError, Scratch, Source, Stack};
use crate::work::cost::Cost;

/// Threads that compute the ids of a pack from the primary, and its graph.
pub const THREADS: usize = 2;
/// Bases of so many bytes or more lie in files while a pack is indexed.
const KEEP_FROM: u64 = 4 << 20;
/// How much of a base is copied at once.
const PIECE: u64 = 1 << 20;
/// A small pack needs no large cache of trees.
const LEAST_CACHE: u64 = 8 << 20;

/// Why a pack was not taken in. Nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The bytes are no pack, or end early, or exceed a limit of this node.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The pack is complete, but an object that is reachable from it is missing: the primary's answer was not closed.
    #[error("the primary's answer is not complete")]
    Graph(#[from] BuildError),
    /// A file in the scratch directory.
    #[error("scratch space: {0}")]
    Scratch(#[source] io::Error),
}

impl IngestError {
    /// Why it had to end early, if that is why.
    pub fn halt(&self) -> Option<&Halt> {
        match self {
            Self::Index(error) => error.halt(),
            Self::Graph(BuildError::Halted(halt)) => Some(halt),
            _ => None,
        }
    }
}

/// What a pack has to be.
pub struct Expected {
    /// Objects that must be found in it or below.
    pub tips: Vec<ObjectId>,
    /// The object hash of the repository.
    pub hash: gix_hash::Kind,
    /// The largest object that is taken, in bytes.
    pub largest_object: u64,
    /// Threads that compute its ids and its graph.
    pub threads: usize,
}

/// A layer that is ready to be uploaded.
pub struct NewLayer {
    /// The pack, complete for its deltas.
    pub pack: PathBuf,
    /// Its index, version 2.
    pub idx: PathBuf,
    /// Its graph, compressed.
    pub graph: PathBuf,
    /// The same, open.
    pub layer: Arc<Layer>,
}

/// Takes in the pack that `stream` carries on top of `below`; `tips` must be found afterwards.
///
/// `None` says that the pack was empty. `step` is told what is being done.
pub fn ingest(
    mut stream: impl BufRead,
    scratch: &Path,
    below: Option<(&Stack, &dyn Source)>,
    expected: &Expected,
    cost: &Cost,
    step: &dyn Fn(Step),
) -> Result<Option<NewLayer>, IngestError> {
    let Expected { tips, hash, largest_object, threads } = expected;
    let (hash, largest, threads) = (*hash, *largest_object, *threads);
    let mut pack = scratch.join("received");
    let mut entries = writing(&pack, |out| receive(&mut stream, out, hash, largest, cost))?;
    drop(stream);
    if entries.list.is_empty() {
        return Ok(None);
    }
    let _entries = held_for(&entries, cost)?;
    step(Step::Indexing);
    let mut pack_bytes = map_file(&pack).map_err(IngestError::Scratch)?;
    if let Some((stack, source)) = below {
        let bases = Below { stack, source, cost };
        if complete::is_thin(&entries, &bases) {
            let thin = std::mem::replace(&mut pack, scratch.join("complete"));
            entries =
                writing(&pack, |out| complete::complete(&pack_bytes, &entries, &bases, hash, out, cost))?;
            pack_bytes = map_file(&pack).map_err(IngestError::Scratch)?;
            std::fs::remove_file(thin).map_err(IngestError::Scratch)?;
        }
    }
    let ids = resolve(&Resolve {
        pack: &pack_bytes,
        entries: &entries,
        hash,
        largest,
        keep: &Files { scratch },
        keep_from: KEEP_FROM,
        meter: cost,
        threads,
    })?;
    let idx = scratch.join("idx");
    let trailer = pack_bytes.get(entries.end as usize..).unwrap_or_default();
    writing(&idx, |out| write(&entries, &ids, trailer, hash, out))?;
    drop((ids, entries, _entries));

    step(Step::Graph);
    let idx_bytes = map_file(&idx).map_err(IngestError::Scratch)?;
    let NewGraph { file: graph, layer } =
        graph_of(&pack_bytes, idx_bytes, below, (hash, threads), tips, scratch, cost)?;
    Ok(Some(NewLayer { pack, idx, graph, layer }))
}

/// A graph that is ready to be uploaded.
pub struct NewGraph {
    /// The graph, compressed.
    pub file: PathBuf,
    /// The layer that it makes with its index, open.
    pub layer: Arc<Layer>,
}

/// Builds the graph of a pack that lies on `below`, in files of `scratch`, on so many threads.
pub fn graph_of(
    pack: &[u8],
    idx: Bytes,
    below: Option<(&Stack, &dyn Source)>,
    (hash, threads): (gix_hash::Kind, usize),
    tips: &[ObjectId],
    scratch: &Path,
    cost: &Cost,
) -> Result<NewGraph, IngestError> {
    let cache = cache(cost, pack.len() as u64)?;
    let draft = build::build(BuildInput {
        pack,
        idx: idx.clone(),
        below,
        hash,
        tips,
        facts: None,
        cache_bytes: cache.0,
        threads,
        meter: cost,
        // It goes through all objects twice.
        progress: &|done, total| cost.tell(done / 2, total / 2),
        stop: cost.stopped(),
    })?;
    drop(cache);
    let plain = scratch.join("graph");
    writing(&plain, |out| Ok(draft.write_to(out)?))?;
    drop(draft);
    let open = map_file(&plain).map_err(IngestError::Scratch)?;
    let file = scratch.join("graph.zst");
    writing(&file, |out| Ok(crate::pack::layer::graph::compress_to(&open, out)?))?;
    let layer =
        Layer::open(idx, open, hash).map_err(|e| IngestError::Scratch(io::Error::other(e.to_string())))?;
    Ok(NewGraph { file, layer: Arc::new(layer) })
}

/// Lets `write` write a new file.
fn writing<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<T, IndexError>,
) -> Result<T, IngestError> {
    let mut file = BufWriter::with_capacity(64 << 10, File::create_new(path).map_err(IngestError::Scratch)?);
    let made = write(&mut file)?;
    file.flush().map_err(IngestError::Scratch)?;
    Ok(made)
}

/// What is kept of the entries until they are written.
fn held_for<'m>(entries: &Entries, cost: &'m Cost) -> Result<Held<'m>, IngestError> {
    let bytes = crate::pack::index::BYTES_PER_ENTRY * entries.list.len() as u64;
    Ok(Held::new(cost, bytes).map_err(IndexError::Halted)?)
}

/// Takes room for a cache of decoded trees: less if memory is short or the pack is small.
fn cache(cost: &Cost, pack: u64) -> Result<(usize, Held<'_>), IngestError> {
    let mut bytes = (32 * pack).clamp(LEAST_CACHE, build::DEFAULT_CACHE as u64).min(cost.share());
    loop {
        match Held::new(cost, bytes) {
            Ok(held) => return Ok((bytes as usize, held)),
            Err(_) if bytes > LEAST_CACHE => bytes /= 2,
            Err(halt) => return Err(IndexError::Halted(halt).into()),
        }
    }
}

/// Keeps large objects in the scratch directory, nameless.
struct Files<'a> {
    scratch: &'a Path,
}

impl Keep for Files<'_> {
    fn keep(&self, _: u64, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<Bytes> {
        let file = tempfile::NamedTempFile::new_in(self.scratch)?;
        let mut out = BufWriter::with_capacity(64 << 10, file.as_file());
        write(&mut out)?;
        out.flush()?;
        drop(out);
        map_file(file.path())
    }
}

/// The bases that a thin pack may need: the objects of the layers below.
struct Below<'a> {
    stack: &'a Stack,
    source: &'a dyn Source,
    cost: &'a Cost,
}

impl Bases for Below<'_> {
    fn find(&self, id: &oid) -> Option<(Kind, u64)> {
        let gid = self.stack.lookup(id)?;
        Some((self.stack.kind(gid), self.stack.size(gid)))
    }

    fn write(&self, id: &oid, out: &mut dyn Write) -> Result<(), IndexError> {
        let missing = || IndexError::MissingBase { base: id.to_owned() };
        let failed = |error| IndexError::Base { base: id.to_owned(), error };
        let (stack, source) = (self.stack, self.source);
        let gid = stack.lookup(id).ok_or_else(missing)?;
        let entry = stack.entry(gid);
        if entry.base_local.is_none() {
            // As it is stored, however large it is.
            let mut at = entry.offset + u64::from(entry.header_len);
            while at < entry.end {
                let end = entry.end.min(at + PIECE);
                let piece = source.read(entry.layer, at..end);
                let layer = entry.layer;
                let piece = piece.map_err(|error| failed(DecodeError::Read { layer, error }))?;
                out.write_all(&piece)?;
                at = end;
            }
            return Ok(());
        }
        // A base, a delta and their result.
        let size = stack.size(gid);
        let _held = Held::new(self.cost, size.saturating_mul(3)).map_err(|halt| {
            if halt == Halt::Busy { IndexError::Halted(halt) } else { failed(DecodeError::Halt(halt)) }
        })?;
        let mut scratch = Scratch::new(0, size.saturating_mul(2).max(1 << 20));
        let (_, data) = decode::object(stack, source, gid, &mut scratch, self.cost).map_err(failed)?;
        let mut zipped = gix_zlib::stream::deflate::Write::new(out, gix_zlib::Compression::DEFAULT);
        zipped.write_all(&data)?;
        Ok(zipped.flush()?)
    }
}
