//! Uploads of files: in one piece when small, in parts when big, with bounded memory either way.
//!
//! Each part carries its SHA-256 to stores that check it (S3), and the bytes that are read for sending are hashed again,
//! so a file that changes while it goes up is never stored under a wrong name. An upload that fails or is dropped is
//! aborted as far as possible; what a crash leaves is found by its note ([`super::numbered`]).

use std::io::Read;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use object_store::MultipartUpload;
use sha2::{Digest, Sha256};

use super::blobs::blocking;
use super::{BlobId, BlobKind, BlobRef, Bucket, StoreError};
use crate::boot::Boot;

/// Files up to this size go up in one request; parts have at least this size.
const PART: u64 = 16 << 20;

/// S3 allows 10,000 parts to an upload.
const MOST_PARTS: u64 = 9_000;

/// Parts of one upload in flight.
const PARTS_AT_ONCE: usize = 4;

impl Bucket {
    /// Stores the file at `path`. `known` is its SHA-256 if the caller has it, which saves one reading of the file; it is
    /// checked all the same. `progress` is told how many bytes of how many are done.
    ///
    /// A blob that is there with the same length is not sent again.
    pub async fn put_blob_file(
        &self,
        kind: BlobKind,
        path: &FilePath,
        known: Option<BlobId>,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<BlobRef, StoreError> {
        let local = |error| StoreError::local(path, error);
        let owned = path.to_owned();
        let read = blocking(move || {
            let len = std::fs::metadata(&owned)?.len();
            let small = (len <= PART).then(|| std::fs::read(&owned)).transpose()?;
            Ok((len, small.map(|bytes| (BlobRef::of(kind, &bytes), Bytes::from(bytes)))))
        });
        let (len, small) = read.await?.map_err(local)?;
        if let Some((blob, bytes)) = small {
            expect(known, blob.id, path)?;
            self.put_named(&blob, bytes).await?;
            progress(len, len);
            return Ok(blob);
        }
        let id = match known {
            Some(id) => id,
            None => hash_file(path).await?,
        };
        let blob = BlobRef { id, kind, len };
        let begun = Boot::now();
        let there = self.head(&blob).await;
        if there.is_ok() {
            progress(len, len);
            return Ok(blob);
        }
        self.put_parts(&blob, path, progress).await?;
        if matches!(there, Err(StoreError::NotFound { .. })) {
            self.is_fresh(&blob, begun);
        }
        Ok(blob)
    }

    async fn put_parts(
        &self,
        blob: &BlobRef,
        path: &FilePath,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), StoreError> {
        let key = blob.key();
        let (upload, note) = self.begin_upload(&key).await?;
        let ended = self.put_through(Upload(Some(upload)), blob, path, progress).await;
        if let Some(note) = note {
            // If this fails, a collection does it.
            let _ = self.remove(&note).await;
        }
        ended
    }

    async fn put_through(
        &self,
        mut upload: Upload,
        blob: &BlobRef,
        path: &FilePath,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), StoreError> {
        match self.send_parts(&mut upload, blob, path, progress).await {
            Ok(()) => {}
            Err(error) => {
                upload.abort().await;
                return Err(error);
            }
        }
        match upload.complete().await {
            Ok(()) => Ok(()),
            // The store may have put it together although the reply was lost.
            Err(error) => match self.head(blob).await {
                Ok(()) => Ok(()),
                Err(_) => Err(self.sort("upload", &blob.key(), error)),
            },
        }
    }

    /// Reads the file once, in order, and sends its parts a few at a time.
    async fn send_parts(
        &self,
        upload: &mut Upload,
        blob: &BlobRef,
        path: &FilePath,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), StoreError> {
        let key = blob.key();
        let owned = path.to_owned();
        let mut file =
            blocking(move || std::fs::File::open(&owned).map_err(|e| StoreError::local(&owned, e))).await??;
        let mut hasher = Sha256::new();
        let mut sending = FuturesUnordered::new();
        let mut done = 0;
        let size = part_size(blob.len);
        for start in (0..blob.len).step_by(size as usize) {
            let wanted = size.min(blob.len - start);
            while sending.len() >= PARTS_AT_ONCE {
                finish_one(&mut sending, &mut done, blob.len, progress)
                    .await
                    .map_err(|e| self.sort("upload", &key, e))?;
            }
            // Held until the part has arrived: bounds the memory of all uploads together.
            let room = loop {
                if sending.is_empty() {
                    let room = self.inner.in_flight.acquire().await;
                    break room.map_err(|error| StoreError::unavailable("upload", error.to_string()))?;
                }
                tokio::select! {
                    biased;
                    room = self.inner.in_flight.acquire() => {
                        break room.map_err(|error| StoreError::unavailable("upload", error.to_string()))?;
                    }
                    finished = finish_one(&mut sending, &mut done, blob.len, progress) => {
                        finished.map_err(|e| self.sort("upload", &key, e))?;
                    }
                }
            };
            let (read, part);
            (file, hasher, part, read) = blocking(move || {
                let mut part = Vec::with_capacity(wanted as usize);
                let read = (&mut file).take(wanted).read_to_end(&mut part);
                hasher.update(&part);
                (file, hasher, Bytes::from(part), read)
            })
            .await?;
            read.map_err(|error| StoreError::local(path, error))?;
            let len = part.len() as u64;
            if len != wanted {
                return Err(StoreError::damaged(path.display(), "the file became shorter while it was sent"));
            }
            let sent = upload.part(part);
            sending.push(async move {
                let _room = room;
                sent.await.map(|()| len)
            });
        }
        while !sending.is_empty() {
            finish_one(&mut sending, &mut done, blob.len, progress)
                .await
                .map_err(|e| self.sort("upload", &key, e))?;
        }
        expect(Some(blob.id), BlobId::from_hasher(hasher), path)
    }
}

/// Waits for one part to arrive and reports it.
async fn finish_one<F: Future<Output = object_store::Result<u64>>>(
    sending: &mut FuturesUnordered<F>,
    done: &mut u64,
    total: u64,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> object_store::Result<()> {
    if let Some(part) = sending.next().await {
        *done += part?;
        progress(*done, total);
    }
    Ok(())
}

/// Equal parts (some stores insist) of whole mebibytes, few enough for S3.
fn part_size(len: u64) -> u64 {
    PART.max(len.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

fn expect(known: Option<BlobId>, found: BlobId, path: &FilePath) -> Result<(), StoreError> {
    match known {
        Some(known) if known != found => {
            Err(StoreError::damaged(path.display(), format!("hashes to {found}, not to {known}")))
        }
        _ => Ok(()),
    }
}

/// Names a file without holding it in memory.
async fn hash_file(path: &FilePath) -> Result<BlobId, StoreError> {
    let path = path.to_owned();
    blocking(move || {
        let mut hasher = Sha256::new();
        let mut read = || {
            let mut file = std::fs::File::open(&path)?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => hasher.update(&buffer[..n]),
                }
            }
        };
        read().map_err(|error| StoreError::local(&path, error))?;
        Ok(BlobId::from_hasher(hasher))
    })
    .await?
}

/// An upload in parts that is aborted when it is dropped unfinished.
struct Upload(Option<Box<dyn MultipartUpload>>);

impl Upload {
    fn part(&mut self, bytes: Bytes) -> object_store::UploadPart {
        match &mut self.0 {
            Some(upload) => upload.put_part(bytes.into()),
            None => Box::pin(async { Ok(()) }),
        }
    }

    async fn complete(mut self) -> object_store::Result<()> {
        match self.0.take() {
            Some(mut upload) => upload.complete().await.map(drop),
            None => Ok(()),
        }
    }

    async fn abort(mut self) {
        if let Some(mut upload) = self.0.take() {
            // Best effort: its note tells of it otherwise.
            let _ = upload.abort().await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_few() {
        assert_eq!(part_size(PART + 1), PART);
        for len in [1u64 << 30, 160 << 30, 1 << 40, 5 << 40] {
            assert!(len.div_ceil(part_size(len)) <= MOST_PARTS);
            assert_eq!(part_size(len) % (1 << 20), 0);
        }
    }
}
