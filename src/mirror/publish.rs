//! Publishing: what was made goes into the bucket, and then the generation that names it.
//!
//! Data before its name: every blob is stored before the generation is created, so a crash leaves the old state or the new
//! one, and garbage (I1, I10). Elsewhere: what is published (`sync`, `ingest`), the record itself (`store`).

use std::path::Path;
use std::sync::Arc;

use crate::git::refs::Refs;
use crate::mirror::Mirror;
use crate::mirror::ingest::NewLayer;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Snapshot;
use crate::mirror::sync::{SyncError, Synced};
use crate::store::{BlobKind, BlobRef, Generation, LayerRef, Publish, StoreError, VERSION, nonce};

/// Uploads what was made and creates the generation that names it. `None`: another writer took the number.
pub(super) async fn publish(
    mirror: &Mirror,
    repo: &Arc<Repo>,
    base: Option<Arc<Snapshot>>,
    below: Option<Arc<Snapshot>>,
    seen: Refs,
    made: Option<(NewLayer, tempfile::TempDir)>,
    repairing: bool,
) -> Result<Option<Synced>, SyncError> {
    repo.health().stage = "uploading".into();
    let mut layers: Vec<LayerRef> = Vec::new();
    let stands_alone = made.as_ref().is_some_and(|(new, _)| {
        new.layer.graph.externals().len() == 0
            && seen.tips().iter().all(|tip| new.layer.lookup(tip).is_some())
    });
    // A history that shares nothing with what was there (a repository made again under its name) replaces it.
    if let Some(below) = below.filter(|_| !stands_alone) {
        layers.extend(below.generation.layers.iter().cloned());
    }
    let mut new_objects = 0;
    // The scratch directory must outlive the uploads.
    if let Some((new, _scratch)) = &made {
        let (pack, idx, graph) = tokio::try_join!(
            put_file(mirror, BlobKind::Pack, &new.pack, repairing),
            put_file(mirror, BlobKind::Idx, &new.idx, repairing),
            put_file(mirror, BlobKind::Graph, &new.graph, repairing),
        )?;
        new_objects = new.layer.graph.len();
        layers.push(LayerRef { pack, idx, graph, objects: new_objects });
    }
    let text = zstd::bulk::compress(&seen.packed_refs(), 3)?;
    let refs = put(mirror, BlobKind::Refs, text, repairing).await?;
    let base_record = match base.as_ref().map(|base| base.generation.clone()) {
        // What is mended may be a record that could not be opened at all: the new one follows it all the same.
        _ if repairing => mirror.bucket.newest(&repo.path).await?,
        known => known,
    };
    let now = unix_now();
    let mut generation = Generation {
        version: VERSION,
        repo: repo.path.clone(),
        number: base_record.as_ref().map_or(1, |base| base.number + 1),
        parent: base_record.as_ref().map(Generation::id),
        writer: nonce(),
        primary: mirror.primary.name(),
        object_format: seen.hash.to_string(),
        head: seen.head.clone(),
        symrefs: seen.symrefs.clone(),
        manifest_digest: hex::encode(seen.digest()),
        refs,
        ref_count: seen.refs.len() as u64,
        layers,
        created_at: now,
        verified_at: now,
        stored: None,
    };
    match mirror.bucket.publish_next(&mut generation).await? {
        Publish::Won => {
            let number = generation.number;
            tracing::info!(repo = %repo.path, number, new_objects, refs = seen.refs.len(), "published");
            // Read back through the bucket: what is served is what was stored, and mapped instead of held in memory.
            repo.install(Snapshot::open(&mirror.local, generation, base.as_deref()).await?);
            Ok(Some(Synced::Published { number, new_objects }))
        }
        Publish::Lost(_) => Ok(None),
    }
}

/// Stores a file as a blob. In a repair what is stored already is not believed, since it may be what is damaged.
async fn put_file(
    mirror: &Mirror,
    kind: BlobKind,
    path: &Path,
    repairing: bool,
) -> Result<BlobRef, StoreError> {
    let bucket = &mirror.bucket;
    let blob = bucket.put_blob_file(kind, path, None, &|_, _| {}).await?;
    if repairing && bucket.verify(&blob).await.is_err_and(|e| e.is_loss()) {
        bucket.remove_blob(&blob).await?;
        return bucket.put_blob_file(kind, path, Some(blob.id), &|_, _| {}).await;
    }
    Ok(blob)
}

async fn put(
    mirror: &Mirror,
    kind: BlobKind,
    bytes: Vec<u8>,
    repairing: bool,
) -> Result<BlobRef, StoreError> {
    if repairing {
        mirror.bucket.restore_blob(kind, bytes.into()).await
    } else {
        mirror.bucket.put_blob(kind, bytes.into()).await
    }
}

/// Seconds since 1970, for people who read the record; nothing depends on it.
fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
