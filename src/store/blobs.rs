//! Blobs: writing them once, reading them with proof.
//!
//! Nothing leaves this module unproven except [`Bucket::get_range`], whose caller knows the hash of the block it asked
//! for. A body that is short or wrong is fetched once more before the blob is called damaged, since the way may have
//! spoilt it. Relies on: keys named by content, so that any writer's bytes are as good as ours. Elsewhere: uploads of
//! files and in parts ([`super::upload`]).

use std::fs::File;
use std::io::{Seek, Write};
use std::ops::Range;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use sha2::{Digest, Sha256};

use super::bucket::body;
use super::{BlobId, BlobKind, BlobRef, Bucket, StoreError};
use crate::boot::Boot;

/// Blobs up to this size are fetched with one request; longer ones in windows of it.
pub const WINDOW: u64 = 8 << 20;

/// Windows in flight for one download: bounds its memory to 32 MiB.
const WINDOWS_IN_FLIGHT: usize = 4;

impl Bucket {
    /// Stores `bytes` under their name: one request if nobody stored them before.
    pub async fn put_blob(&self, kind: BlobKind, bytes: Bytes) -> Result<BlobRef, StoreError> {
        let hashed = bytes.clone();
        let blob = blocking(move || BlobRef::of(kind, &hashed)).await?;
        self.put_named(&blob, bytes).await?;
        Ok(blob)
    }

    /// Writes the blob over whatever lies under its name. For repair: [`Bucket::put_blob`] believes a stored blob of the
    /// right length, this does not.
    pub async fn restore_blob(&self, kind: BlobKind, bytes: Bytes) -> Result<BlobRef, StoreError> {
        let hashed = bytes.clone();
        let blob = blocking(move || BlobRef::of(kind, &hashed)).await?;
        self.doubt(&blob);
        self.overwrite(&blob.key(), bytes).await?;
        Ok(blob)
    }

    /// Fetches a whole blob into memory and proves it. For small ones: see [`Bucket::download`].
    pub async fn get_blob(&self, blob: &BlobRef) -> Result<Bytes, StoreError> {
        self.get_blob_for(blob, |bytes| bytes).await
    }

    /// Like [`Bucket::get_blob`]; the job that has proven the bytes goes on with them, since a job of its own would cost more than most
    /// of what is done with a small blob.
    pub async fn get_blob_for<T: Send + 'static>(
        &self,
        blob: &BlobRef,
        go_on: impl FnOnce(Bytes) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (key, id) = (blob.key(), blob.id);
        let mut go_on = go_on;
        let mut what = String::new();
        for _ in 0..2 {
            let bytes = match self.read_checked(blob).await {
                Ok(bytes) => bytes,
                Err(StoreError::Damaged { what: reason, .. }) => {
                    what = reason;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let gone_on = blocking(move || {
                let found = BlobId::of(&bytes);
                if found == id { Ok(go_on(bytes)) } else { Err((found, go_on)) }
            });
            match gone_on.await? {
                Ok(made) => return Ok(made),
                Err((found, back)) => (what, go_on) = (format!("its bytes hash to {found}"), back),
            }
        }
        Err(StoreError::damaged(key, what))
    }

    /// Fetches a blob into the file at `to`, made if need be, proving it on the way; memory is bounded whatever the length.
    /// On any error the file's content is worthless.
    pub async fn download(&self, blob: &BlobRef, to: &FilePath) -> Result<(), StoreError> {
        self.download_telling(blob, to, &|_| {}).await
    }

    /// Like [`Bucket::download`]; `progress` is told how many bytes are there.
    pub async fn download_telling(
        &self,
        blob: &BlobRef,
        to: &FilePath,
        progress: Told<'_>,
    ) -> Result<(), StoreError> {
        let place = to.to_owned();
        let file =
            blocking(move || File::create(place)).await?.map_err(|error| StoreError::local(to, error))?;
        self.write_into(blob, file, to, progress).await
    }

    /// Like [`Bucket::download`], into an open file whose place is named only for messages.
    pub async fn download_into(
        &self,
        blob: &BlobRef,
        file: File,
        place: &FilePath,
    ) -> Result<(), StoreError> {
        self.write_into(blob, file, place, &|_| {}).await
    }

    async fn write_into(
        &self,
        blob: &BlobRef,
        mut file: File,
        place: &FilePath,
        progress: Told<'_>,
    ) -> Result<(), StoreError> {
        let local = |error| StoreError::local(place, error);
        for _ in 0..2 {
            let emptied;
            (file, emptied) = blocking(move || {
                let emptied = file.rewind().and_then(|()| file.set_len(0));
                (file, emptied)
            })
            .await?;
            emptied.map_err(local)?;
            let mut to = Some(file);
            let found = self.stream(blob, &mut to, place, progress).await?;
            let Some(back) = to else { break };
            file = back;
            if found == blob.id {
                return Ok(());
            }
        }
        Err(StoreError::damaged(blob.key(), "its bytes hash to another name"))
    }

    /// Reads a blob completely and proves it, keeping nothing.
    pub async fn verify(&self, blob: &BlobRef) -> Result<(), StoreError> {
        for _ in 0..2 {
            if self.stream(blob, &mut None, FilePath::new(""), &|_| {}).await? == blob.id {
                return Ok(());
            }
        }
        Err(StoreError::damaged(blob.key(), "its bytes hash to another name"))
    }

    /// Fetches `range` of a blob, in full length but unproven: the caller checks it against the layer's block hashes.
    pub async fn get_range(&self, blob: &BlobRef, range: Range<u64>) -> Result<Bytes, StoreError> {
        let key = blob.key();
        if range.start > range.end || range.end > blob.len {
            return Err(StoreError::damaged(key, format!("{range:?} was asked of {} bytes", blob.len)));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let mut found = 0;
        for _ in 0..2 {
            let bytes = self.read_range(&key, range.clone()).await?;
            found = bytes.len() as u64;
            if found == wanted {
                return Ok(bytes);
            }
        }
        Err(StoreError::damaged(key, format!("{range:?} gave {found} bytes")))
    }

    /// Checks with one small request that a blob is there with its recorded length.
    pub async fn head(&self, blob: &BlobRef) -> Result<(), StoreError> {
        check_length(blob, self.length(&blob.key()).await?)
    }

    /// Removes a blob. Only for bytes that are proven bad or that no retained generation names.
    pub async fn remove_blob(&self, blob: &BlobRef) -> Result<(), StoreError> {
        self.doubt(blob);
        self.remove(&blob.key()).await
    }

    /// Stores `bytes`, whose name is `blob`, if they are not there. An unknown outcome is settled by looking.
    pub(super) async fn put_named(&self, blob: &BlobRef, bytes: Bytes) -> Result<(), StoreError> {
        let begun = Boot::now();
        match self.retrying(|| self.put_named_once(blob, &bytes)).await {
            // Half a blob under its name: leftovers of a store that does not write atomically.
            Err(StoreError::Damaged { .. }) => {
                self.doubt(blob);
                self.overwrite(&blob.key(), bytes).await
            }
            Ok(true) => {
                self.is_fresh(blob, begun);
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Says whether there was none before, for sure.
    async fn put_named_once(&self, blob: &BlobRef, bytes: &Bytes) -> Result<bool, StoreError> {
        let key = blob.key();
        let error = match self.try_create(&key, bytes.clone()).await {
            Ok(()) => return Ok(true),
            Err(error) => self.sort("create", &key, error),
        };
        if matches!(error, StoreError::Refused { .. }) {
            return Err(error);
        }
        match self.length_once(&key).await {
            Ok(length) => check_length(blob, length).map(|()| false),
            Err(StoreError::NotFound { .. }) => Err(error),
            Err(unseen) => Err(unseen),
        }
    }

    /// Reads a blob in one request, but never more than its recorded length.
    async fn read_checked(&self, blob: &BlobRef) -> Result<Bytes, StoreError> {
        let key = blob.key();
        let sort = |error| self.sort("get", &key, error);
        self.retrying(|| async {
            let answer = self.inner.store.get(&self.at(&key)).await.map_err(sort)?;
            check_length(blob, answer.meta.size)?;
            let bytes = body(answer, blob.len).await.map_err(sort)?;
            check_length(blob, bytes.len() as u64)?;
            Ok(bytes)
        })
        .await
    }

    /// Reads a blob in order, into a file if one is given, and returns the hash of what was read. `place` names the file.
    async fn stream(
        &self,
        blob: &BlobRef,
        to: &mut Option<File>,
        place: &FilePath,
        progress: Told<'_>,
    ) -> Result<BlobId, StoreError> {
        let windows = if blob.len <= WINDOW {
            let whole = async {
                match self.read_checked(blob).await {
                    // Once more, for a body that was cut on the way; the hash decides about the rest.
                    Err(StoreError::Damaged { .. }) => self.read_checked(blob).await,
                    other => other,
                }
            };
            futures::stream::once(whole).left_stream()
        } else {
            let starts = (0..blob.len).step_by(WINDOW as usize);
            let window = |start| self.get_range(blob, start..(start + WINDOW).min(blob.len));
            futures::stream::iter(starts).map(window).buffered(WINDOWS_IN_FLIGHT).right_stream()
        };
        let mut windows = std::pin::pin!(windows);
        let (mut hasher, mut done) = (Sha256::new(), 0);
        while let Some(window) = windows.try_next().await? {
            done += window.len() as u64;
            let mut file = to.take();
            let written;
            (hasher, *to, written) = blocking(move || {
                let written = file.as_mut().map_or(Ok(()), |file| file.write_all(&window));
                hasher.update(&window);
                (hasher, file, written)
            })
            .await?;
            written.map_err(|error| StoreError::local(place, error))?;
            progress(done);
        }
        Ok(BlobId::from_hasher(hasher))
    }
}

/// Who is told how many bytes of a blob are there.
type Told<'a> = &'a (dyn Fn(u64) + Send + Sync);

fn check_length(blob: &BlobRef, found: u64) -> Result<(), StoreError> {
    if found != blob.len {
        return Err(StoreError::damaged(blob.key(), format!("{found} bytes instead of {}", blob.len)));
    }
    Ok(())
}

/// Runs work that burns CPU off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    crate::threads::spawn_blocking(work)
        .await
        .map_err(|error| StoreError::unavailable("work on a blob", error.to_string()))
}
