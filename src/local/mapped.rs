//! Whole blobs as mapped files: indexes, graphs and refs.
//!
//! A framed blob (graph, refs) is unpacked once and mapped as it is used; an index is mapped as it is. On disk each file
//! ends with the SHA-256 of what stands before it, which is checked when the file is first opened by a process. Bytes
//! handed out keep their mapping alive; the same file is mapped once however many use it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::blocks::{blocking, gave_up};
use super::disk::{Disk, Found, Temp};
use super::entries::Name;
use super::maps::Map;
use super::{Inner, Local};
use crate::budget::{Budget, Room};
use crate::store::frame::unpack;
use crate::store::{BlobRef, StoreError, WINDOW};

/// Length of the hash behind the content.
const TAIL: usize = 32;

/// How far memory is asked for ahead of what is unpacked into it.
const STEP: u64 = 1 << 20;

pub(super) type Loaded = Result<Arc<Held>, StoreError>;

/// Files that somebody uses.
pub(super) type Live = Mutex<HashMap<BlobRef, Weak<Held>>>;

/// A blob ready for use: on disk if possible.
pub(super) enum Held {
    /// A file and the hash behind its content.
    Mapped(Arc<Map>),
    /// A file that could not be mapped, read: content and hash.
    Read(Bytes, #[allow(dead_code, reason = "it pays for the bytes")] Room),
    /// The content, for a disk that takes no more.
    Memory(Vec<u8>, #[allow(dead_code, reason = "it pays for the bytes")] Room),
}

struct Owner(Arc<Held>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        match &*self.0 {
            Held::Mapped(map) => &map[..map.len().saturating_sub(TAIL)],
            Held::Read(bytes, _) => &bytes[..bytes.len().saturating_sub(TAIL)],
            Held::Memory(bytes, _) => bytes,
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
        // Now and then, so that it costs little for each however many there are.
        if live.len() == live.capacity() {
            live.retain(|_, held| held.strong_count() > 0);
            let used = live.len();
            live.reserve(used.max(1));
        }
        live.insert(blob, Arc::downgrade(held));
    }

    async fn load(self: &Arc<Self>, blob: BlobRef) -> Loaded {
        let name = Name::Whole(blob.id, blob.kind);
        if self.disk.has(name) {
            // A thread each would be many where a repository of many layers is opened.
            let _place = self.looks.acquire().await;
            let inner = self.clone();
            match blocking(move || inner.on_disk(&blob, name)).await? {
                Found::Here(held) => {
                    self.hit();
                    return Ok(Arc::new(held));
                }
                Found::Absent => {}
                // It is kept already. What prevents reading it would also prevent writing it.
                Found::NotNow => {
                    self.miss(1);
                    return self.load_to_memory(blob).await;
                }
            }
        }
        self.miss(1);
        let loaded = match blob.len <= WINDOW {
            true => self.load_at_once(blob, name).await,
            false => self.load_to_disk(blob, name).await,
        };
        match loaded {
            Err(StoreError::Local { path, source }) => {
                tracing::debug!(path, error = %source, %blob, "not kept on disk");
                self.load_to_memory(blob).await
            }
            other => other,
        }
    }

    /// The blob's file, mapped, or read where it cannot be mapped.
    fn on_disk(&self, blob: &BlobRef, name: Name) -> Found<Held> {
        match self.disk.map(name, tail_is_right) {
            Found::Here(map) => return Found::Here(Held::Mapped(map)),
            Found::Absent => return Found::Absent,
            Found::NotNow => {}
        }
        let Some(len) = self.disk.len(name) else { return Found::Absent };
        let Ok(room) = self.memory.try_take(len) else {
            tracing::debug!(%blob, "no memory is free for a file that cannot be mapped");
            return Found::NotNow;
        };
        match self.disk.read(name, tail_is_right) {
            Found::Here(bytes) => Found::Here(Held::Read(bytes, room)),
            Found::Absent => Found::Absent,
            Found::NotNow => Found::NotNow,
        }
    }

    /// For a blob that is fetched with one request: what follows is one job.
    async fn load_at_once(self: &Arc<Self>, blob: BlobRef, name: Name) -> Loaded {
        let inner = self.clone();
        let put = move |bytes: Bytes| {
            let temp = || inner.disk.temp().map_err(|error| local(&blob, error));
            let (ready, len) = if blob.kind.is_framed() {
                unpack_into(&inner.disk, &blob, &bytes[..], temp()?)?
            } else {
                let temp = temp()?;
                let written =
                    (&temp.file).write_all(&bytes).and_then(|()| (&temp.file).write_all(blob.id.as_bytes()));
                written.map_err(|error| local(&blob, error))?;
                (temp, blob.len + TAIL as u64)
            };
            inner.adopt(&blob, name, ready, len)
        };
        self.bucket.get_blob_for(&blob, put).await?
    }

    /// Takes over a file that is ready, and opens it.
    fn adopt(&self, blob: &BlobRef, name: Name, ready: Temp, len: u64) -> Loaded {
        self.disk.adopt(name, ready, len).map_err(|error| local(blob, error))?;
        match self.on_disk(blob, name) {
            Found::Here(held) => Ok(Arc::new(held)),
            Found::Absent | Found::NotNow => Err(local(blob, io::ErrorKind::NotFound.into())),
        }
    }

    async fn load_to_disk(self: &Arc<Self>, blob: BlobRef, name: Name) -> Loaded {
        let inner = self.clone();
        let temp = blocking(move || inner.disk.temp()).await?.map_err(|error| local(&blob, error))?;
        let file = temp.file.try_clone().map_err(|error| local(&blob, error))?;
        self.bucket.download_into(&blob, file, &temp.path()).await?;
        let inner = self.clone();
        blocking(move || {
            let (ready, len) = if blob.kind.is_framed() {
                unpack_file(&inner.disk, &blob, temp)?
            } else {
                let append = || {
                    let mut file = &temp.file;
                    file.seek(io::SeekFrom::End(0))?;
                    file.write_all(blob.id.as_bytes())
                };
                append().map_err(|error| local(&blob, error))?;
                (temp, blob.len + TAIL as u64)
            };
            inner.adopt(&blob, name, ready, len)
        })
        .await?
    }

    /// Holds the blob in memory because the disk can be neither read nor written; as far as there is memory for such blobs.
    async fn load_to_memory(&self, blob: BlobRef) -> Loaded {
        let take = |bytes| self.memory.try_take(bytes).map_err(|halt| no_memory(&blob, &halt));
        let paid = take(blob.len)?;
        let bytes = self.bucket.get_blob(&blob).await?;
        if !blob.kind.is_framed() {
            return Ok(Arc::new(Held::Memory(bytes.into(), paid)));
        }
        let mut to = Paid { content: Vec::new(), budget: self.memory.clone(), room: take(0)?, short: false };
        let most = self.disk.usage().1;
        let held = blocking(move || {
            let unpacked = unpack(&bytes[..], &blob, most, &mut to);
            drop(paid);
            match unpacked {
                Ok(()) => Ok(Held::Memory(to.content, to.room)),
                Err(error) if to.short => Err(local(&blob, error)),
                Err(error) => Err(bad_frame(&blob, &error)),
            }
        });
        held.await?.map(Arc::new)
    }
}

/// Checks a file's own hash.
fn tail_is_right(file: &[u8]) -> bool {
    file.split_last_chunk::<TAIL>().is_some_and(|(content, tail)| Sha256::digest(content).as_slice() == tail)
}

/// Unpacks a downloaded frame into a new temporary file with its hash behind; also gives the file's length.
fn unpack_file(disk: &Disk, blob: &BlobRef, from: Temp) -> Result<(Temp, u64), StoreError> {
    let to = (&from.file).rewind().and_then(|()| disk.temp()).map_err(|error| local(blob, error))?;
    unpack_into(disk, blob, &from.file, to)
}

/// Unpacks a frame into `ready`, with the hash of its content behind; also gives the file's length.
fn unpack_into(disk: &Disk, blob: &BlobRef, from: impl Read, ready: Temp) -> Result<(Temp, u64), StoreError> {
    let file = ready.file.try_clone().map_err(|error| local(blob, error))?;
    let mut to = Hashing { file: io::BufWriter::new(file), hasher: Sha256::new(), len: 0, failed: false };
    if let Err(error) = unpack(from, blob, disk.usage().1, &mut to) {
        // A full disk is told apart from damage: the blob is not at fault.
        return Err(if to.failed { local(blob, error) } else { bad_frame(blob, &error) });
    }
    let Hashing { mut file, hasher, len, .. } = to;
    file.write_all(&hasher.finalize()).and_then(|()| file.flush()).map_err(|error| local(blob, error))?;
    Ok((ready, len + TAIL as u64))
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

fn no_memory(blob: &BlobRef, halt: &crate::pack::meter::Halt) -> StoreError {
    local(blob, io::Error::new(io::ErrorKind::OutOfMemory, halt.to_string()))
}

/// Bytes in memory, counted on the budget as they come.
struct Paid {
    content: Vec<u8>,
    budget: Budget,
    room: Room,
    short: bool,
}

impl Write for Paid {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = (self.content.len() + bytes.len()) as u64;
        if len > self.room.bytes() {
            let grown = self.room.grow_to(len.next_multiple_of(STEP).min(self.budget.most().max(len)));
            grown.map_err(|halt| {
                self.short = true;
                io::Error::new(io::ErrorKind::OutOfMemory, halt.to_string())
            })?;
        }
        self.content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
