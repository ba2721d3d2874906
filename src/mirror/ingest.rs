//! A received pack becomes a layer: completed, indexed strictly, its closure proven, its graph built.
//!
//! Everything happens in a scratch directory that is removed with the value; nothing is published here.
//! Blocking and CPU-bound: run it off the async threads.
//! Relies on: gix-pack for indexing (checks the trailer and every object's hash, with collision detection) and
//! `pack::graph::build` for the proof that nothing is missing. Elsewhere: uploading and publishing (`sync`).

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use gix_hash::{ObjectId, oid};
use gix_pack::bundle::write::Options;

use crate::local::map_file;
use crate::mirror::snapshot::Snapshot;
use crate::pack::graph::build::{self, BuildError, BuildInput};
use crate::pack::layer::Layer;
use crate::pack::meter::Unlimited;
use crate::pack::{Scratch, Source, decode};

/// Why a pack was not taken in. Nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The stream ended early or the disk failed: another try may succeed.
    #[error("the pack could not be received: {0}")]
    Receive(String),
    /// The pack is complete but something that its objects need is nowhere: the primary's answer was not closed.
    #[error("the primary's answer is not complete")]
    Graph(#[from] BuildError),
    /// A file in the scratch directory.
    #[error("scratch space: {0}")]
    Scratch(#[source] io::Error),
}

/// What a pack has to be.
pub struct Expected {
    /// Objects that must be found in it or below.
    pub tips: Vec<ObjectId>,
    /// The object hash of the repository.
    pub hash: gix_hash::Kind,
    /// The largest object that is taken, in bytes.
    pub largest_object: u64,
}

/// A layer that is ready to be uploaded.
pub struct NewLayer {
    /// The pack, complete for its deltas.
    pub pack: PathBuf,
    /// Its index, version 2.
    pub idx: PathBuf,
    /// Its graph, not compressed.
    pub graph: bytes::Bytes,
    /// The same, open.
    pub layer: Arc<Layer>,
}

/// Takes in the pack that `stream` carries on top of `below`; `tips` must be found afterwards.
///
/// `None` says that the pack was empty. `stage` is told what is being done, for the log and `status`.
pub fn ingest(
    mut stream: impl BufRead,
    scratch: &Path,
    below: Option<&Snapshot>,
    expected: &Expected,
    stop: &AtomicBool,
    stage: &dyn Fn(&str),
) -> Result<Option<NewLayer>, IngestError> {
    let Expected { tips, hash, largest_object } = expected;
    let (hash, largest_object) = (*hash, *largest_object);
    let bases = below.map(|snapshot| Bases { snapshot, largest_object, failed: Mutex::new(None) });
    let options = Options {
        thread_limit: Some(2),
        // What a hostile pack could ask us to allocate.
        alloc_limit_bytes: Some(usize::try_from(largest_object).unwrap_or(usize::MAX)),
        ..Options::default()
    };
    let written = gix_pack::Bundle::write_to_directory(
        &mut stream,
        Some(scratch),
        &mut gix_utils::progress::Discard,
        stop,
        bases.as_ref(),
        hash,
        options,
    );
    if let Some(reason) = bases.as_ref().and_then(|bases| bases.failed.lock().ok()?.take()) {
        return Err(IngestError::Receive(format!("a delta base could not be read: {reason}")));
    }
    let written = written.map_err(|e| IngestError::Receive(format!("{e:?}")))?;
    let (Some(pack), Some(idx)) = (written.data_path, written.index_path) else { return Ok(None) };
    if written.index.num_objects == 0 {
        return Ok(None);
    }
    stage("graph");
    let pack_bytes = map_file(&pack).map_err(IngestError::Scratch)?;
    let idx_bytes = map_file(&idx).map_err(IngestError::Scratch)?;
    let draft = build::build(BuildInput {
        pack: &pack_bytes,
        idx: idx_bytes.clone(),
        below: below.map(|snapshot| (&*snapshot.stack, &snapshot.blocks as &dyn Source)),
        hash,
        tips,
        facts: None,
        cache_bytes: build::DEFAULT_CACHE,
        progress: &|_, _| {},
        stop,
    })?;
    let path = scratch.join("graph");
    let mut file = BufWriter::new(File::create(&path).map_err(IngestError::Scratch)?);
    draft.write_to(&mut file).and_then(|()| file.flush()).map_err(IngestError::Scratch)?;
    drop(draft);
    let graph = map_file(&path).map_err(IngestError::Scratch)?;
    let layer = Layer::open(idx_bytes, graph.clone(), hash)
        .map_err(|e| IngestError::Scratch(io::Error::other(e.to_string())))?;
    Ok(Some(NewLayer { pack, idx, graph, layer: Arc::new(layer) }))
}

/// The objects that a thin pack may lean on: what the layers below hold.
struct Bases<'a> {
    snapshot: &'a Snapshot,
    largest_object: u64,
    /// gix takes "not found" for an answer only; what really went wrong is kept here.
    failed: Mutex<Option<String>>,
}

impl gix_object::Find for Bases<'_> {
    fn try_find<'a>(
        &self,
        id: &oid,
        buffer: &'a mut Vec<u8>,
    ) -> gix_error::Result<Option<gix_object::Data<'a>>> {
        let Some(gid) = self.snapshot.stack.lookup(id) else { return Ok(None) };
        let mut scratch = Scratch::new(0, self.largest_object);
        match decode::object(&self.snapshot.stack, &self.snapshot.blocks, gid, &mut scratch, &Unlimited) {
            Ok((kind, data)) => {
                buffer.clear();
                buffer.extend_from_slice(&data);
                Ok(Some(gix_object::Data { kind, object_hash: id.kind(), data: buffer }))
            }
            Err(e) => {
                if let Ok(mut failed) = self.failed.lock() {
                    *failed = Some(e.to_string());
                }
                Ok(None)
            }
        }
    }
}
