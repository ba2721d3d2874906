//! Mending what is damaged or missing in the bucket with as little of the primary as possible.
//!
//! A blob that this node's cache has whole is stored again. An index and a graph are made again from their pack. Where a pack
//! itself is lost, the layers below it are what the primary's answer is built upon: only what lay in that layer and above is
//! fetched again. Every blob is proven by its hash before it is stored, and what is made again by the same code that makes it
//! of the primary's packs, so a pack that does not index is found here too.
//! Relies on: a claim, held by the caller; `ingest` for layers; `publish` for storing. Elsewhere: what is reported
//! (`mirror::damage`), the fetch and the generation that follow (`sync`).

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::sync::Arc;

use bytes::Bytes;
use gix_hash::ObjectId;
use sha2::{Digest, Sha256};

use crate::git::HashKind;
use crate::git::refs::Refs;
use crate::local::PackBlob;
use crate::mirror::blocks::Blocks;
use crate::mirror::damage::Fault;
use crate::mirror::progress::Step;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::{OpenError, Snapshot, belongs, object_format, pack_blob, publishes, refs_of};
use crate::pack::layer::Layer;
use crate::pack::{Source, Stack};
use crate::store::{BlobId, BlobKind, BlobRef, Generation, LayerRef, StoreError};
use crate::telemetry::metrics as names;
use crate::work::Work;
use crate::work::cost::Cost;
use crate::work::error::SyncError;
use crate::work::examine::present;
use crate::work::ingest::{Expected, IngestError, NewLayer, THREADS, ingest};
use crate::work::publish::{put, put_file};

/// What a repair can go on with.
pub(super) struct Mended {
    /// All that the record names is in the bucket again: nothing has to be published.
    pub restored: bool,
    /// The layers that are whole, open, under refs that are stored; none if not even the lowest is.
    pub below: Option<Arc<Snapshot>>,
    /// How many layers are lost: the primary is asked for what they held.
    pub lost: usize,
    /// The blobs that are missing or damaged still.
    pub missing: Vec<BlobRef>,
}

/// Mends what `record` names, as far as that can be done without a fetch; `seen` is what the primary shows.
pub(super) async fn heal(
    work: &Work,
    repo: &Arc<Repo>,
    record: &Generation,
    seen: &Refs,
    cost: &Arc<Cost>,
) -> Result<Mended, SyncError> {
    repo.step(Step::Mending);
    let bad = bad(work, repo, record).await?;
    tracing::warn!(repo = %repo.path, number = record.number, blobs = bad.len(), "what is stored is damaged; it is mended");
    let hash = object_format(record)?;
    let healing = Healing { work, repo, record, bad: &bad, hash, cost };
    let (refs, is_record_s) = healing.refs(seen).await?;
    let tips = if is_record_s { refs_text(work, record, hash).await } else { None };
    let tips = tips.map(|refs| refs.tips()).unwrap_or_default();
    let (mut named, mut open) = (Vec::new(), Vec::new());
    for (n, layer) in record.layers.iter().enumerate() {
        let tips = if n + 1 == record.layers.len() { tips.clone() } else { Vec::new() };
        let Some((layer, opened)) = healing.layer(layer, (&named, &open), tips).await? else { break };
        named.push(layer);
        open.push(opened);
    }
    let restored = named == record.layers && is_record_s && bad.values().all(|fault| *fault == Fault::Lost);
    if restored {
        bad.keys().for_each(|blob| repo.damage().is_whole(&blob.id));
    }
    let lost = record.layers.len() - named.len();
    let below = match named.is_empty() || restored {
        true => None,
        false => {
            let partial =
                Generation { layers: named, answers: Vec::new(), ..refs.unwrap_or_else(|| record.clone()) };
            match Snapshot::open(&work.mirror.local, partial, None).await {
                Ok(open) => Some(Arc::new(open)),
                Err(OpenError::Store { source, .. }) if !source.is_loss() => return Err(source.into()),
                // They do not fit together: everything is made anew.
                Err(_) => None,
            }
        }
    };
    let lost = if below.is_none() && !restored { record.layers.len() } else { lost };
    let in_lost = record.layers.iter().rev().take(lost).flat_map(LayerRef::blobs);
    let missing = in_lost.filter(|blob| bad.contains_key(blob)).collect();
    Ok(Mended { restored, below, lost, missing })
}

/// Stores again those of the `blobs` of `record` that this node's cache has whole, for another node that has lost them. Says
/// whether all of them are there now.
pub(super) async fn lend(
    work: &Work,
    repo: &Arc<Repo>,
    record: &Generation,
    blobs: &[BlobRef],
) -> Result<bool, SyncError> {
    let bad: HashMap<BlobRef, Fault> = blobs.iter().map(|blob| (*blob, Fault::Lost)).collect();
    let (hash, cost) = (object_format(record)?, Arc::new(Cost::begin(&work.sync_memory).await?));
    let healing = Healing { work, repo, record, bad: &bad, hash, cost: &cost };
    let mut is_all = !bad.contains_key(&record.refs);
    for layer in &record.layers {
        let is_bad = |blob: &BlobRef| bad.contains_key(blob);
        if !layer.blobs().iter().any(is_bad) {
            continue;
        }
        let mut now = *layer;
        let idx = healing.whole(&mut now.idx, is_bad(&layer.idx)).await?;
        let graph = healing.whole(&mut now.graph, is_bad(&layer.graph)).await?;
        let opened = idx.zip(graph).and_then(|(idx, graph)| Layer::open(idx, graph, hash).ok());
        let pack = match opened.filter(|opened| belongs(&now, opened).is_ok()).map(Arc::new) {
            Some(opened) if is_bad(&layer.pack) => healing.pack(&pack_blob(&layer.pack, &opened)).await?,
            Some(_) => true,
            None => false,
        };
        is_all &= pack && now == *layer;
    }
    let mut damage = repo.damage();
    if damage.has_mended() {
        damage.over(Some("for another node that had lost it".into()));
    }
    Ok(is_all)
}

/// The blobs of `record` with which something is wrong: of those that were reported the ones that still are, and those that are missing.
async fn bad(work: &Work, repo: &Repo, record: &Generation) -> Result<HashMap<BlobRef, Fault>, StoreError> {
    let mut bad = HashMap::new();
    let reported = repo.damage().reported();
    for (blob, fault) in reported.into_iter().filter(|(blob, _)| record.needed().any(|named| named == *blob))
    {
        let verified = match fault {
            Fault::Useless => None,
            Fault::Lost => Some(work.mirror.bucket.verify(&blob).await),
        };
        match verified {
            Some(Ok(())) => repo.damage().is_whole(&blob.id),
            Some(Err(e)) if !e.is_loss() => return Err(e),
            Some(Err(_)) | None => _ = bad.insert(blob, fault),
        }
    }
    for flaw in present(&work.mirror.bucket, record).await? {
        bad.insert(flaw.blob, flaw.fault);
    }
    Ok(bad)
}

/// The refs of a record, if they can be read.
pub(super) async fn refs_text(work: &Work, record: &Generation, hash: HashKind) -> Option<Refs> {
    let text = work.mirror.local.mapped(&record.refs).await.ok()?;
    refs_of(record, hash, &text).ok()
}

/// One mending.
struct Healing<'a> {
    work: &'a Work,
    repo: &'a Arc<Repo>,
    record: &'a Generation,
    bad: &'a HashMap<BlobRef, Fault>,
    hash: HashKind,
    cost: &'a Arc<Cost>,
}

impl Healing<'_> {
    /// Makes sure that refs are stored. Gives a record that names the primary's where those of the record are lost; and whether
    /// the record's own are whole.
    async fn refs(&self, seen: &Refs) -> Result<(Option<Generation>, bool), SyncError> {
        let Some(fault) = self.bad.get(&self.record.refs) else { return Ok((None, true)) };
        let known = match fault {
            Fault::Lost => refs_text(self.work, self.record, self.hash).await,
            Fault::Useless => None,
        };
        let source = if known.is_some() { "cache" } else { "primary" };
        let known = known.or_else(|| publishes(self.record, seen).then(|| seen.clone()));
        if let Some(known) = known {
            let text = zstd::bulk::compress(&known.packed_refs(), 3)?;
            if put(self.work, BlobKind::Refs, text, true).await? == self.record.refs {
                self.told(self.record.refs, source);
                return Ok((None, *fault == Fault::Lost));
            }
        }
        let refs =
            put(self.work, BlobKind::Refs, zstd::bulk::compress(&seen.packed_refs(), 3)?, true).await?;
        self.told(self.record.refs, "primary");
        let record = Generation {
            refs,
            ref_count: seen.refs.len() as u64,
            head: seen.head.clone(),
            symrefs: seen.symrefs.clone(),
            manifest_digest: hex::encode(seen.digest()),
            ..self.record.clone()
        };
        Ok((Some(record), false))
    }

    /// A layer with all its blobs stored, under the names that they have now; `None` if its pack is lost.
    async fn layer(
        &self,
        layer: &LayerRef,
        below: (&[LayerRef], &[Arc<Layer>]),
        tips: Vec<ObjectId>,
    ) -> Result<Option<(LayerRef, Arc<Layer>)>, SyncError> {
        let fault = |blob: &BlobRef| self.bad.get(blob).copied();
        let mut now = *layer;
        // Where all files of a record are in doubt, those that open are none of those that are meant.
        let is_doubt = [layer.idx, layer.graph].iter().all(|blob| fault(blob) == Some(Fault::Useless));
        let idx = match fault(&layer.idx) {
            Some(Fault::Useless) if !is_doubt => None,
            fault => self.whole(&mut now.idx, fault == Some(Fault::Lost)).await?,
        };
        let graph = match fault(&layer.graph) {
            Some(Fault::Useless) if !is_doubt => None,
            fault => self.whole(&mut now.graph, fault == Some(Fault::Lost)).await?,
        };
        let opened = idx.zip(graph).and_then(|(idx, graph)| Layer::open(idx, graph, self.hash).ok());
        let opened = opened.filter(|opened| belongs(&now, opened).is_ok()).map(Arc::new);
        let is_lost = match (&opened, fault(&layer.pack)) {
            (_, None) => false,
            (Some(opened), Some(Fault::Lost)) => !self.pack(&pack_blob(&layer.pack, opened)).await?,
            _ => true,
        };
        if is_lost {
            return Ok(None);
        }
        if let Some(opened) = opened {
            return Ok(Some((now, opened)));
        }
        let Some((new, scratch)) = self.again(layer, below, tips).await? else { return Ok(None) };
        let idx = put_file(self.work, BlobKind::Idx, &new.idx, true, &|_| {}).await?;
        let graph = put_file(self.work, BlobKind::Graph, &new.graph, true, &|_| {}).await?;
        drop(scratch);
        let made = LayerRef { idx, graph, ..*layer };
        let useless = [layer.idx, layer.graph].iter().any(|blob| fault(blob) == Some(Fault::Useless));
        if made == *layer && useless {
            // The same again cannot be what was wrong: the pack is.
            return Ok(None);
        }
        [layer.idx, layer.graph]
            .into_iter()
            .filter(|blob| fault(blob).is_some())
            .for_each(|b| self.told(b, "pack"));
        Ok(Some((made, new.layer)))
    }

    /// The content of an index or a graph out of this node's cache or the bucket, and stored again if it `is_lost` there. The
    /// same content in another frame has another name.
    async fn whole(&self, blob: &mut BlobRef, is_lost: bool) -> Result<Option<Bytes>, SyncError> {
        let content = match self.work.mirror.local.mapped(blob).await {
            Ok(content) => content,
            Err(e) if e.is_loss() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if !is_lost {
            return Ok(Some(content));
        }
        let scratch = self.work.mirror.local.scratch()?;
        let file = scratch.path().join("blob");
        let (kind, from, to) = (blob.kind, content.clone(), file.clone());
        let written = crate::threads::spawn_blocking(move || match kind {
            BlobKind::Graph => {
                let mut out = std::fs::File::create_new(&to)?;
                crate::pack::layer::graph::compress_to(&from, &mut out)
            }
            _ => std::fs::write(&to, &from),
        });
        written.await.map_err(std::io::Error::other)??;
        let stored = put_file(self.work, kind, &file, true, &|_| {}).await?;
        self.told(*blob, "cache");
        *blob = stored;
        Ok(Some(content))
    }

    /// Stores a pack again whose blocks are all in this node's cache. Says whether it did.
    async fn pack(&self, pack: &PackBlob) -> Result<bool, SyncError> {
        let local = &self.work.mirror.local;
        if !(0..pack.blocks()).all(|n| local.has_block(pack, n)) {
            return Ok(false);
        }
        let scratch = local.scratch()?;
        let path = scratch.path().join("pack");
        let (mut file, mut hasher) = (std::fs::File::create_new(&path)?, Sha256::new());
        for n in 0..pack.blocks() {
            let block = match local.block(pack, n).await {
                Ok(block) => block,
                // It was damaged, or has left the cache meanwhile.
                Err(e) if e.is_loss() => return Ok(false),
                Err(e) => return Err(e.into()),
            };
            let written = crate::threads::spawn_blocking(move || {
                hasher.update(&block);
                file.write_all(&block).map(|()| (file, hasher))
            });
            (file, hasher) = written.await.map_err(std::io::Error::other)??;
        }
        drop(file);
        if BlobId::from_hasher(hasher) != pack.blob.id {
            return Ok(false);
        }
        put_file(self.work, BlobKind::Pack, &path, true, &|_| {}).await?;
        self.told(pack.blob, "cache");
        Ok(true)
    }

    /// Makes a layer again from its pack; `None` if the pack is no such pack.
    async fn again(
        &self,
        layer: &LayerRef,
        (named, open): (&[LayerRef], &[Arc<Layer>]),
        tips: Vec<ObjectId>,
    ) -> Result<Option<(NewLayer, tempfile::TempDir)>, SyncError> {
        let local = &self.work.mirror.local;
        let scratch = local.scratch()?;
        let stored = scratch.path().join("stored");
        match self.work.mirror.bucket.download(&layer.pack, &stored).await {
            Ok(()) => {}
            Err(e) if e.is_loss() => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let packs = named.iter().zip(open).map(|(named, layer)| pack_blob(&named.pack, layer)).collect();
        let blocks = Blocks::new(local.clone(), packs);
        let expected = Expected { tips, hash: self.hash, largest_object: u64::MAX, threads: THREADS };
        let (below, cost, teller) = (open.to_vec(), Arc::clone(self.cost), Arc::clone(self.repo));
        let made = crate::threads::spawn_blocking(move || {
            let stack = Stack::open(below).map_err(|e| IngestError::Graph(e.into()))?;
            let below = (!stack.layers().is_empty()).then_some((&stack, &blocks as &dyn Source));
            let file = std::fs::File::open(&stored).map_err(IngestError::Scratch)?;
            let stream = BufReader::with_capacity(256 << 10, file);
            ingest(stream, scratch.path(), below, &expected, &cost, &|step| teller.step(step))
                .map(|made| made.map(|new| (new, scratch)))
        });
        match made.await.map_err(|e| StoreError::unavailable("make a layer again", e.to_string()))? {
            Ok(made) => Ok(made.filter(|(new, _)| new.layer.graph.pack_sha256() == layer.pack.id.0)),
            Err(e) if e.halt().is_some() || matches!(e, IngestError::Scratch(_)) => Err(e.into()),
            Err(e) => {
                tracing::warn!(repo = %self.repo.path, pack = %layer.pack, error = %e, "a stored pack cannot be indexed");
                Ok(None)
            }
        }
    }

    fn told(&self, blob: BlobRef, source: &'static str) {
        metrics::counter!(names::BLOBS_MENDED, "kind" => blob.kind.ending(), "source" => source).increment(1);
        tracing::info!(repo = %self.repo.path, %blob, source, "mended");
        self.repo.damage().mended(format!("{blob} from {}", words(source)));
    }
}

/// Where a blob was mended from, for people.
fn words(source: &str) -> &str {
    match source {
        "cache" => "this node's cache",
        "pack" => "its pack",
        _ => "the primary",
    }
}

/// Takes note that what was damaged is whole again; `words` say what else was done for it.
pub(super) fn repaired(repo: &Repo, words: Option<String>) {
    metrics::counter!(names::REPAIRS).increment(1);
    let mut damage = repo.damage();
    damage.over(words);
    let done = damage.last().map(|(_, words)| words).unwrap_or_default();
    tracing::info!(repo = %repo.path, done, "what was damaged is whole again");
}

/// The commits of a stack that are no other's parents: with them goes all the history that it holds.
pub(super) fn heads(stack: &Stack, most: usize) -> Vec<ObjectId> {
    let mut is_parent = vec![false; stack.len() as usize];
    let commits = || (0..stack.len()).filter_map(|gid| Some((gid, stack.commit(gid)?)));
    for (_, commit) in commits() {
        for parent in commit.parents() {
            if let Some(mark) = is_parent.get_mut(parent as usize) {
                *mark = true;
            }
        }
    }
    let heads = commits().filter(|(gid, _)| !is_parent.get(*gid as usize).copied().unwrap_or(true));
    heads.take(most).map(|(gid, _)| stack.oid(gid)).collect()
}
