//! Publishing: what was made goes into the bucket, and then the generation that names it.
//!
//! Data before its name: every blob is stored before the generation is created, so a crash leaves the old state or the new
//! one, and garbage (I1, I10). Syncs, repairs and new graphs are all published here.
//! Elsewhere: what is published (`sync`, `ingest`, `regraph`), the record itself (`store`).

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::boot::{time_of_day, unix_seconds};
use crate::git::refs::Refs;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Snapshot;
use crate::store::{
    AnswerRef, BlobKind, BlobRef, Generation, LayerRef, Name, Publish, StoreError, VERSION, nonce,
};
use crate::telemetry::metrics as names;
use crate::work::Work;
use crate::work::error::SyncError;
use crate::work::ingest::NewLayer;

/// A state of a repository that is to be published.
pub(super) struct Draft<'a> {
    /// The record on which it builds, as it was read: the new one takes the number behind it and names it as its parent.
    /// None if nothing was published yet.
    pub base: Option<&'a Generation>,
    /// The layers, lowest first. Their blobs are stored.
    pub layers: Vec<LayerRef>,
    /// The refs.
    pub refs: &'a Refs,
    /// When the primary was asked for them, Unix seconds.
    pub asked: u64,
    /// Whether blobs that are stored already are written again, since they may be what is damaged. Answers are left out then.
    pub repairing: bool,
    /// The answers, where they are not those of the base.
    pub answers: Option<Vec<AnswerRef>>,
}

/// What became of a [`Draft`].
pub(super) enum Published {
    /// It is published, and open.
    Won(Arc<Snapshot>),
    /// Another writer built on the same base and was faster: this is its record, or a later one.
    Lost(Box<Generation>),
}

/// Creates the generation that names what `draft` says, and opens it.
pub(super) async fn publish(work: &Work, repo: &Repo, draft: Draft<'_>) -> Result<Published, SyncError> {
    let Draft { base, layers, refs: seen, asked, repairing, answers } = draft;
    let of_base = || base.filter(|_| !repairing).map(|base| base.answers.clone());
    let answers = answers.or_else(of_base).unwrap_or_default();
    let text = zstd::bulk::compress(&seen.packed_refs(), 3)?;
    let text = Bytes::from(text);
    let refs = put(work, BlobKind::Refs, text.clone(), repairing).await?;
    let mut generation = Generation {
        version: VERSION,
        repo: repo.path.clone(),
        number: base.map_or(1, |base| base.number + 1),
        parent: base.map(Generation::id),
        writer: nonce(),
        primary: work.mirror.primary.name(),
        object_format: seen.hash.to_string(),
        head: seen.head.clone(),
        symrefs: seen.symrefs.clone(),
        manifest_digest: hex::encode(seen.digest()),
        refs,
        ref_count: seen.refs.len() as u64,
        layers,
        answers,
        created_at: unix_seconds(time_of_day()),
        verified_at: asked,
        removed: false,
        gone: None,
        stored: None,
    };
    let named: HashSet<Name> = base.iter().flat_map(|base| base.blobs()).map(|blob| blob.name()).collect();
    let new: Vec<BlobRef> = generation.blobs().filter(|blob| !named.contains(&blob.name())).collect();
    hold(work, &new, &text).await?;
    if let Publish::Lost(winner) = work.mirror.bucket.publish_next(&mut generation).await? {
        metrics::counter!(names::CAS_CONFLICTS).increment(1);
        tracing::info!(repo = %repo.path, number = winner.number, writer = winner.writer, "another node published first");
        return Ok(Published::Lost(winner));
    }
    // Once more, now that the record names them: a collector that looked before has marked what it deletes.
    hold(work, &new, &text).await?;
    work.mirror.bucket.are_named(new.into_iter());
    let (number, layers) = (generation.number, generation.layers.len());
    tracing::info!(repo = %repo.path, number, layers, refs = seen.refs.len(), "published");
    // Read back through the bucket, so that what is served is what was stored, and is mapped instead of held in memory.
    Ok(Published::Won(work.mirror.open(repo, generation).await?))
}

/// Makes sure that `blobs` stay where a collector may be about to delete them.
async fn hold(work: &Work, blobs: &[BlobRef], refs: &Bytes) -> Result<(), StoreError> {
    let bucket = &work.mirror.bucket;
    let restore = |blob: BlobRef| async move {
        if blob.kind == BlobKind::Refs {
            return bucket.put_blob(blob.kind, refs.clone()).await.map(drop);
        }
        let file = work.sources().get(&blob.name()).cloned();
        let file = file.ok_or_else(|| {
            let why = "it was collected before it was named; it is made again at the next try";
            StoreError::unavailable(format!("head {blob}"), why)
        })?;
        bucket.put_blob_file(blob.kind, &file, Some(blob.id), &|_, _| {}).await.map(drop)
    };
    bucket.hold(blobs, work.grace, restore).await
}

/// Stores the files of a new layer; the repository's sync shows how far that is.
pub(super) async fn store_layer(
    work: &Work,
    repo: &Repo,
    new: &NewLayer,
    repairing: bool,
) -> Result<LayerRef, StoreError> {
    repo.progress().set(0, bytes(new));
    put_layer(work, new, repairing, &|bytes| repo.progress().add(bytes)).await
}

/// The bytes of a layer's files.
pub(super) fn bytes(new: &NewLayer) -> u64 {
    [&new.pack, &new.idx, &new.graph].map(|file| file.metadata().map_or(0, |data| data.len())).iter().sum()
}

/// Stores the files of a layer; see [`put_file`].
pub(super) async fn put_layer(
    work: &Work,
    new: &NewLayer,
    repairing: bool,
    sent: &(dyn Fn(u64) + Send + Sync),
) -> Result<LayerRef, StoreError> {
    let (pack, idx, graph) = tokio::try_join!(
        put_file(work, BlobKind::Pack, &new.pack, repairing, sent),
        put_file(work, BlobKind::Idx, &new.idx, repairing, sent),
        put_file(work, BlobKind::Graph, &new.graph, repairing, sent),
    )?;
    Ok(LayerRef { pack, idx, graph, objects: new.layer.graph.len() })
}

/// Stores a file as a blob; `sent` is told of bytes as they arrive. In a repair a blob that is stored already is written again, since it may be what is damaged.
pub(super) async fn put_file(
    work: &Work,
    kind: BlobKind,
    path: &Path,
    repairing: bool,
    sent: &(dyn Fn(u64) + Send + Sync),
) -> Result<BlobRef, StoreError> {
    let bucket = &work.mirror.bucket;
    let before = AtomicU64::new(0);
    let progress = |done: u64, _| sent(done.saturating_sub(before.swap(done, Ordering::Relaxed)));
    let blob = bucket.put_blob_file(kind, path, None, &progress).await?;
    work.remember_source(&blob, path);
    if repairing && bucket.verify(&blob).await.is_err_and(|e| e.is_loss()) {
        bucket.remove_blob(&blob).await?;
        let blob = bucket.put_blob_file(kind, path, Some(blob.id), &|_, _| {}).await?;
        // Where there was one: a collector may have seen it.
        bucket.doubt(&blob);
        return Ok(blob);
    }
    Ok(blob)
}

/// Stores bytes as a blob; in a repair over whatever has its name.
pub(super) async fn put(
    work: &Work,
    kind: BlobKind,
    bytes: impl Into<Bytes>,
    repairing: bool,
) -> Result<BlobRef, StoreError> {
    if repairing {
        work.mirror.bucket.restore_blob(kind, bytes.into()).await
    } else {
        work.mirror.bucket.put_blob(kind, bytes.into()).await
    }
}
