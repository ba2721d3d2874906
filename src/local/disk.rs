//! Files on this node's disk: within a bound, the least recently used going first.
//!
//! What lies on the disk is known from a listing at start and from then on by heart. A file is believed only after its
//! content was proven in this process; a change of its size, time or inode makes it unproven again. All calls block: they
//! belong on a blocking thread. Relies on: this process alone writing below the directory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use memmap2::Mmap;

use super::{empty, make_private, remove};
use crate::store::{BlobId, BlobKind};

/// How long a disk that refused a write is left alone by those who need not write.
const REST: Duration = Duration::from_secs(10);

/// How many mappings are kept for the next one who asks, as long as nobody needs their room.
const KEPT: usize = 4096;

/// What a file holds; its name on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// A block of a pack.
    Block(BlobId, u32),
    /// A whole blob, ready for use.
    Whole(BlobId, BlobKind),
}

impl Name {
    /// The path below the cache directory.
    fn path(self) -> PathBuf {
        let (id, rest) = match self {
            Self::Block(id, n) => (id.to_string(), n.to_string()),
            Self::Whole(id, kind) => (id.to_string(), kind.ending().to_owned()),
        };
        [&id[..2], &format!("{id}.{rest}")].iter().collect()
    }

    fn parse(name: &str) -> Option<Self> {
        let (id, rest) = name.split_once('.')?;
        let id = id.parse().ok()?;
        match BlobKind::from_ending(rest) {
            Some(kind) => Some(Self::Whole(id, kind)),
            None => Some(Self::Block(id, rest.parse().ok()?)),
        }
    }
}

/// What tells a file from a changed one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(meta);
        #[cfg(not(unix))]
        let inode = 0;
        Self { len: meta.len(), modified: meta.modified().ok(), inode }
    }
}

struct Entry {
    len: u64,
    used: u64,
    proven: Option<Stamp>,
    /// A mapping that keeps the disk space even if the file is removed.
    mapped: Weak<Mmap>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Name, Entry>,
    /// Oldest use first.
    order: BTreeMap<u64, Name>,
    bytes: u64,
    clock: u64,
    refused: Option<Instant>,
    /// Mappings of files used lately, the latest last: mapping and faulting in costs more than reading a small entry.
    kept: VecDeque<Arc<Mmap>>,
}

/// The cache directory.
pub(super) struct Disk {
    root: PathBuf,
    max: u64,
    state: Mutex<State>,
    temps: AtomicU64,
    damaged: AtomicU64,
    refusals: AtomicU64,
}

impl Disk {
    /// Lists `root` and brings it inside its bound. Files that do not belong there are removed.
    pub(super) fn open(root: &Path, max: u64) -> io::Result<Self> {
        let mut found = Vec::new();
        for folder in std::fs::read_dir(root)? {
            let folder = folder?.path();
            if folder.file_name().is_some_and(|name| name == "tmp") {
                continue;
            }
            let Ok(entries) = std::fs::read_dir(&folder) else {
                remove(&folder);
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().to_str().and_then(Name::parse);
                match (name, entry.metadata()) {
                    (Some(name), Ok(meta)) if meta.is_file() && root.join(name.path()) == entry.path() => {
                        found.push((meta.modified().ok(), name, meta.len()));
                    }
                    _ => remove(&entry.path()),
                }
            }
        }
        let disk = Self {
            root: root.to_owned(),
            max,
            state: Mutex::default(),
            temps: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        };
        make_private(&disk.temp_folder())?;
        empty(&disk.temp_folder());
        found.sort_by_key(|(modified, ..)| *modified);
        let mut state = disk.lock();
        for (_, name, len) in found {
            state.insert(name, len, None);
        }
        // Nothing is mapped yet, so everything beyond the bound can go.
        disk.make_room(&mut state, 0);
        drop(state);
        Ok(disk)
    }

    /// Bytes held, their bound, damaged files met, writes refused.
    pub(super) fn usage(&self) -> (u64, u64, u64, u64) {
        let counters = [&self.damaged, &self.refusals].map(|counter| counter.load(Ordering::Relaxed));
        (self.lock().bytes, self.max, counters[0], counters[1])
    }

    /// Says whether a file is here, without looking at the disk.
    pub(super) fn has(&self, name: Name) -> bool {
        self.lock().entries.contains_key(&name)
    }

    /// Says whether the disk refused a write a moment ago.
    pub(super) fn is_resting(&self) -> bool {
        self.lock().refused.is_some_and(|since| since.elapsed() < REST)
    }

    /// Reads a file if it is here and `prove` accepts its content. One that is not as it should be is removed.
    pub(super) fn read(&self, name: Name, prove: impl FnOnce(&[u8]) -> bool) -> Option<Bytes> {
        let (len, proven) = self.touch(name)?;
        let read = || -> io::Result<(Vec<u8>, Stamp)> {
            let file = File::open(self.root.join(name.path()))?;
            let stamp = Stamp::of(&file.metadata()?);
            let mut bytes = Vec::with_capacity(len as usize);
            // One byte more would show a file that has grown.
            file.take(len + 1).read_to_end(&mut bytes)?;
            Ok((bytes, stamp))
        };
        match read() {
            Ok((bytes, stamp)) if bytes.len() as u64 == len => {
                if proven.as_ref() != Some(&stamp) {
                    if !prove(&bytes) {
                        self.spoilt(name, "its content is wrong");
                        return None;
                    }
                    self.proven(name, stamp, Weak::new());
                }
                Some(bytes.into())
            }
            Ok(_) => {
                self.spoilt(name, "its length is wrong");
                None
            }
            Err(error) => {
                self.spoilt(name, &error.to_string());
                None
            }
        }
    }

    /// Maps a file if it is here and `prove` accepts its content. One that is not as it should be is removed. A mapping
    /// that is still there is shared while the file is what was proven.
    pub(super) fn map(&self, name: Name, prove: impl FnOnce(&[u8]) -> bool) -> Option<Arc<Mmap>> {
        let (len, proven) = self.touch(name)?;
        if let Some(map) = self.mapped(name) {
            let stamp = std::fs::metadata(self.root.join(name.path())).map(|meta| Stamp::of(&meta));
            if stamp.ok() == proven && proven.is_some() {
                return Some(map);
            }
        }
        let map = || -> io::Result<(Mmap, Stamp)> {
            let file = File::open(self.root.join(name.path()))?;
            let stamp = Stamp::of(&file.metadata()?);
            // SAFETY: the file lies in this node's own directory, which it has locked; packmirror replaces and removes
            // such files but never writes into one. Somebody else who truncates it while it is mapped kills this
            // process, which then starts anew and finds the damage; the bytes are never trusted beyond their proof.
            let map = unsafe { Mmap::map(&file) }?;
            Ok((map, stamp))
        };
        match map() {
            Ok((map, stamp)) if map.len() as u64 == len => {
                if proven.as_ref() != Some(&stamp) && !prove(&map) {
                    self.spoilt(name, "its content is wrong");
                    return None;
                }
                let map = Arc::new(map);
                self.proven(name, stamp, Arc::downgrade(&map));
                self.keep(&map);
                Some(map)
            }
            Ok(_) => {
                self.spoilt(name, "its length is wrong");
                None
            }
            Err(error) => {
                self.spoilt(name, &error.to_string());
                None
            }
        }
    }

    /// Keeps proven bytes. An error means only that they are not kept.
    pub(super) fn write(&self, name: Name, bytes: &[u8]) -> io::Result<()> {
        let fill = || {
            let (mut file, path) = self.fresh()?;
            let written = file.write_all(bytes).and_then(|()| file.metadata());
            match written {
                Ok(meta) => Ok((path, Stamp::of(&meta))),
                Err(error) => {
                    remove(&path);
                    Err(error)
                }
            }
        };
        let len = bytes.len() as u64;
        let kept = self.reserve(len).and_then(|()| {
            let filled = match fill() {
                // The disk is fuller than our bound knows: give back some of what we hold and try once more.
                Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                    let mut state = self.lock();
                    let target = state.bytes.saturating_sub(len.saturating_mul(8).max(self.max / 16));
                    self.shrink(&mut state, target);
                    drop(state);
                    fill()
                }
                other => other,
            };
            let placed = filled.and_then(|(path, stamp)| self.place(&path, name).map(|()| stamp));
            self.settle(name, len, placed)
        });
        self.note(kept)
    }

    /// Takes over a finished, proven file of `len` bytes from [`Disk::temp`]; it is gone from there in any case.
    pub(super) fn adopt(&self, name: Name, temp: &Path, len: u64) -> io::Result<()> {
        let kept = self.reserve(len).and_then(|()| {
            let stamp = std::fs::metadata(temp).map(|meta| Stamp::of(&meta));
            let placed = stamp.and_then(|stamp| self.place(temp, name).map(|()| stamp));
            self.settle(name, len, placed)
        });
        if kept.is_err() {
            remove(temp);
        }
        self.note(kept)
    }

    /// A fresh file beside the cache, to be filled and adopted.
    pub(super) fn temp(&self) -> io::Result<(File, PathBuf)> {
        self.fresh().inspect_err(|error| self.refused(error))
    }

    fn fresh(&self) -> io::Result<(File, PathBuf)> {
        let path = self.temp_folder().join(self.temps.fetch_add(1, Ordering::Relaxed).to_string());
        let create = || File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_private(&self.temp_folder()).and_then(|()| create())
            }
            other => other,
        };
        Ok((file?, path))
    }

    /// Drops a file.
    pub(super) fn forget(&self, name: Name) {
        self.lock().remove(name);
        remove(&self.root.join(name.path()));
    }

    fn temp_folder(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Marks a file as used; its length and what is proven about it.
    fn touch(&self, name: Name) -> Option<(u64, Option<Stamp>)> {
        let mut state = self.lock();
        let state = &mut *state;
        let entry = state.entries.get_mut(&name)?;
        state.order.remove(&entry.used);
        state.clock += 1;
        entry.used = state.clock;
        state.order.insert(entry.used, name);
        Some((entry.len, entry.proven.clone()))
    }

    fn mapped(&self, name: Name) -> Option<Arc<Mmap>> {
        self.lock().entries.get(&name)?.mapped.upgrade()
    }

    /// Keeps a mapping for the next one who asks.
    fn keep(&self, map: &Arc<Mmap>) {
        let mut state = self.lock();
        if state.kept.len() >= KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back(Arc::clone(map));
    }

    fn proven(&self, name: Name, stamp: Stamp, mapped: Weak<Mmap>) {
        if let Some(entry) = self.lock().entries.get_mut(&name) {
            entry.proven = Some(stamp);
            entry.mapped = mapped;
        }
    }

    fn spoilt(&self, name: Name, why: &str) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(file = %name.path().display(), why, "a cached file is damaged; fetching it again");
        self.forget(name);
    }

    /// Makes room for `len` more bytes and counts them in.
    fn reserve(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        if !self.make_room(&mut state, len) {
            return Err(io::Error::new(ErrorKind::QuotaExceeded, "no room inside the cache's bound"));
        }
        state.bytes += len;
        Ok(())
    }

    fn make_room(&self, state: &mut State, len: u64) -> bool {
        len <= self.max && {
            self.shrink(state, self.max - len);
            state.bytes <= self.max - len
        }
    }

    /// Removes the least recently used files until at most `target` bytes are left. Mapped ones stay: removing them
    /// would free nothing.
    fn shrink(&self, state: &mut State, target: u64) {
        if state.bytes <= target {
            return;
        }
        state.kept.clear();
        let mut left = state.bytes;
        let mut gone = Vec::new();
        for name in state.order.values() {
            if left <= target {
                break;
            }
            if let Some(entry) = state.entries.get(name)
                && entry.mapped.strong_count() == 0
            {
                left -= entry.len;
                gone.push(*name);
            }
        }
        for name in gone {
            state.remove(name);
            remove(&self.root.join(name.path()));
        }
    }

    /// Puts a finished file in its place.
    fn place(&self, from: &Path, name: Name) -> io::Result<()> {
        let to = self.root.join(name.path());
        let placed = match std::fs::rename(from, &to) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                to.parent().map_or(Ok(()), make_private).and_then(|()| std::fs::rename(from, &to))
            }
            other => other,
        };
        if placed.is_err() {
            remove(from);
        }
        placed
    }

    /// Turns a reservation of `len` bytes into an entry, or gives it back.
    fn settle(&self, name: Name, len: u64, placed: io::Result<Stamp>) -> io::Result<()> {
        let mut state = self.lock();
        state.bytes -= len;
        let stamp = placed?;
        state.insert(name, len, Some(stamp));
        Ok(())
    }

    fn note(&self, kept: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &kept {
            self.refused(error);
        }
        kept
    }

    /// Remembers that the disk refused a write, and says so once in a while.
    fn refused(&self, error: &io::Error) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
        if !self.is_resting() {
            tracing::warn!(%error, directory = %self.root.display(), "cannot keep data on disk; going on without");
        }
        self.lock().refused = Some(Instant::now());
    }
}

impl State {
    fn insert(&mut self, name: Name, len: u64, proven: Option<Stamp>) {
        self.remove(name);
        self.clock += 1;
        self.order.insert(self.clock, name);
        self.entries.insert(name, Entry { len, used: self.clock, proven, mapped: Weak::new() });
        self.bytes += len;
    }

    fn remove(&mut self, name: Name) {
        if let Some(entry) = self.entries.remove(&name) {
            if let Some(map) = entry.mapped.upgrade() {
                self.kept.retain(|kept| !Arc::ptr_eq(kept, &map));
            }
            self.order.remove(&entry.used);
            self.bytes -= entry.len;
        }
    }
}
