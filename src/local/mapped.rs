//! Whole blobs as mapped files: indexes, graphs and refs.
//!
//! A framed blob (graph, refs) is unpacked once and mapped as it is used; an index is mapped as it is. On disk each file
//! ends with the SHA-256 of what stands before it, which is checked when the file is first opened by a process. Bytes
//! handed out keep their mapping alive; the same file is mapped once however many use it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::blocks::{blocking, gave_up};
use super::disk::{Disk, Name};
use super::{Inner, Local, remove};
use crate::store::{BlobRef, StoreError};

/// Length of the hash behind the content.
const TAIL: usize = 32;

/// A frame that unpacks to more than this many times its length (and a mebibyte) is no record of ours.
const MOST_GROWTH: u64 = 1000;

pub(super) type Loaded = Result<Arc<Held>, StoreError>;

/// Files that somebody uses.
pub(super) type Live = Mutex<HashMap<BlobRef, Weak<Held>>>;

/// A blob ready for use: on disk if possible.
pub(super) enum Held {
    /// A file and the hash behind its content.
    Mapped(Arc<Mmap>),
    /// For a disk that takes no more.
    Memory(Vec<u8>),
}

struct Owner(Arc<Held>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        match &*self.0 {
            Held::Mapped(map) => &map[..map.len().saturating_sub(TAIL)],
            Held::Memory(bytes) => bytes,
        }
    }
}

impl Local {
    /// The content of an index, or the unpacked content of a graph or refs blob, proven. Costs nothing while another
    /// copy of the returned bytes lives.
    pub async fn mapped(&self, blob: &BlobRef) -> Result<Bytes, StoreError> {
        for _ in 0..4 {
            if let Some(held) = self.inner.live(blob) {
                return Ok(Bytes::from_owner(Owner(held)));
            }
            let (ticket, wait) = self.inner.files.join(blob);
            if let Some(ticket) = ticket {
                let (inner, blob) = (self.inner.clone(), *blob);
                tokio::spawn(async move {
                    let loaded = inner.load(blob).await;
                    if let Ok(held) = &loaded {
                        inner.remember(blob, held);
                    }
                    ticket.finish(loaded);
                });
            }
            if let Some(loaded) = wait.value().await {
                return Ok(Bytes::from_owner(Owner(loaded?)));
            }
        }
        Err(gave_up(blob))
    }
}

impl Inner {
    fn live(&self, blob: &BlobRef) -> Option<Arc<Held>> {
        self.live.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(blob)?.upgrade()
    }

    fn remember(&self, blob: BlobRef, held: &Arc<Held>) {
        let mut live = self.live.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        live.retain(|_, held| held.strong_count() > 0);
        live.insert(blob, Arc::downgrade(held));
    }

    async fn load(self: &Arc<Self>, blob: BlobRef) -> Loaded {
        let name = Name::Whole(blob.id, blob.kind);
        let inner = self.clone();
        if let Some(map) = blocking(move || inner.disk.map(name, tail_is_right)).await? {
            self.hit();
            return Ok(Arc::new(Held::Mapped(map)));
        }
        self.miss(1);
        match self.load_to_disk(blob, name).await {
            Err(StoreError::Local { path, source }) => {
                tracing::debug!(path, error = %source, %blob, "not kept on disk");
                self.load_to_memory(blob).await
            }
            other => other,
        }
    }

    async fn load_to_disk(self: &Arc<Self>, blob: BlobRef, name: Name) -> Loaded {
        let inner = self.clone();
        let temp = blocking(move || inner.disk.temp()).await?.map_err(|error| local(&blob, error))?;
        let temp = Temp(temp.1);
        self.bucket.download(&blob, &temp.0).await?;
        let inner = self.clone();
        blocking(move || {
            let (ready, len) = if blob.kind.is_framed() {
                unpack_file(&inner.disk, &blob, &temp)?
            } else {
                let append = || {
                    let mut file = File::options().append(true).open(&temp.0)?;
                    file.write_all(blob.id.as_bytes())
                };
                append().map_err(|error| local(&blob, error))?;
                (temp, blob.len + TAIL as u64)
            };
            inner.disk.adopt(name, &ready.0, len).map_err(|error| local(&blob, error))?;
            let map = inner.disk.map(name, tail_is_right);
            map.map(|map| Arc::new(Held::Mapped(map))).ok_or_else(|| local(&blob, io::ErrorKind::NotFound.into()))
        })
        .await?
    }

    async fn load_to_memory(&self, blob: BlobRef) -> Loaded {
        let bytes = self.bucket.get_blob(&blob).await?;
        let content = blocking(move || {
            let mut content = Vec::new();
            if blob.kind.is_framed() {
                unpack(&bytes[..], &blob, &mut content).map_err(|error| bad_frame(&blob, &error))?;
            } else {
                content.extend_from_slice(&bytes);
            }
            Ok(content)
        });
        Ok(Arc::new(Held::Memory(content.await??)))
    }
}

/// A temporary file that goes away unless it was adopted.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Checks a file's own hash.
fn tail_is_right(file: &[u8]) -> bool {
    file.split_last_chunk::<TAIL>().is_some_and(|(content, tail)| Sha256::digest(content).as_slice() == tail)
}

/// Unpacks a downloaded frame into a new temporary file with its hash behind; also gives the file's length.
fn unpack_file(disk: &Disk, blob: &BlobRef, from: &Temp) -> Result<(Temp, u64), StoreError> {
    let open = || -> io::Result<(File, File, Temp)> {
        let from = File::open(&from.0)?;
        let (file, path) = disk.temp()?;
        Ok((from, file, Temp(path)))
    };
    let (from, file, temp) = open().map_err(|error| local(blob, error))?;
    let mut to = Hashing { file: io::BufWriter::new(file), hasher: Sha256::new(), len: 0, failed: false };
    if let Err(error) = unpack(from, blob, &mut to) {
        // Told apart because a full disk is not the blob's fault.
        return Err(if to.failed { local(blob, error) } else { bad_frame(blob, &error) });
    }
    let Hashing { mut file, hasher, len, .. } = to;
    file.write_all(&hasher.finalize()).and_then(|()| file.flush()).map_err(|error| local(blob, error))?;
    Ok((temp, len + TAIL as u64))
}

/// Unpacks one zstd frame, which may not grow beyond reason.
fn unpack(from: impl Read, blob: &BlobRef, to: &mut impl Write) -> io::Result<()> {
    let limit = blob.len.saturating_mul(MOST_GROWTH).saturating_add(1 << 20);
    let mut content = zstd::stream::read::Decoder::new(from)?.take(limit);
    io::copy(&mut content, to)?;
    if content.limit() == 0 {
        return Err(io::Error::other("it grows beyond reason"));
    }
    Ok(())
}

struct Hashing {
    file: io::BufWriter<File>,
    hasher: Sha256,
    len: u64,
    failed: bool,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).inspect_err(|_| self.failed = true)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn bad_frame(blob: &BlobRef, error: &io::Error) -> StoreError {
    StoreError::Damaged { key: blob.to_string(), what: format!("not a zstd frame: {error}") }
}

fn local(blob: &BlobRef, error: io::Error) -> StoreError {
    StoreError::Local { path: blob.to_string(), source: Arc::new(error) }
}
