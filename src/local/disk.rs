//! Files on this node's disk: within a bound, the least recently used going first.
//!
//! A listing at start says what lies on the disk; after that the node keeps a table of it in memory (`entries`) and does
//! not list it again. A file is used only after its content was proven in this process; a change of its size, time or inode
//! makes it unproven again. Only files whose names are ours are counted, replaced or removed. A file that cannot be
//! opened or mapped at the moment is not damaged: it stays, and the caller gets nothing. All calls block: they belong on
//! a blocking thread. Relies on: a directory that is ours ([`super::home`]), and this process alone writing below it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::entries::{Name, Stamp, State};
use super::home::{Home, keep_private};
use super::listing::{empty_temp, list};
use super::maps::{Map, Maps};
use crate::folder::{Facts, Folder, Kind, is_foreign};
use crate::store::BlobId;

/// How long nothing is written that need not be, after the disk refused a write.
const REST: Duration = Duration::from_secs(10);

/// How often the log mentions that files are here and cannot be used.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How many mappings are kept for the next reader, as long as their room is not needed.
const KEPT: usize = 4096;

/// How many files of another make may stand where one in the making is to be put.
const TEMP_TRIES: usize = 1000;

/// How looking for a file ended.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// It is here, proven.
    Here(T),
    /// It is not here, or no longer.
    Absent,
    /// It is here and cannot be used at the moment: the process has too many files or mappings open, or the disk does
    /// not answer. It is neither damaged nor to be fetched again for keeping.
    NotNow,
}

/// The two folders that files are in.
struct Roots {
    cache: Folder,
    temp: Folder,
}

/// The cache directory.
pub(super) struct Disk {
    home: PathBuf,
    roots: RwLock<Arc<Roots>>,
    max: u64,
    maps: Maps,
    state: Mutex<State>,
    temps: AtomicU64,
    damaged: AtomicU64,
    refusals: AtomicU64,
    unusable: AtomicU64,
    told: Mutex<Option<Instant>>,
    /// What the system says whenever a file is to be opened.
    #[cfg(test)]
    failing: std::sync::atomic::AtomicI32,
}

impl Disk {
    /// Lists the folder `cache` of this node's directory and brings what is ours in it inside its bound of `max` bytes.
    /// `used` says when each was used last, as far as it is remembered.
    pub(super) fn open(
        home: &Home,
        max: u64,
        mappings: usize,
        used: &HashMap<Name, u64>,
    ) -> Result<Self, super::LocalError> {
        let cache = home.sub("cache")?;
        let broken = |error| super::unusable(cache.path())(error);
        let listed = list(&cache).map_err(broken)?;
        let temp = cache.make_folder("tmp").map_err(|error| {
            let path = cache.path().join("tmp");
            if is_foreign(&error) {
                super::LocalError::Foreign { path }
            } else {
                super::unusable(&path)(error)
            }
        });
        let (temp, _) = temp?;
        keep_private(&temp);
        let foreign = listed.foreign + empty_temp(&temp).map_err(broken)?;
        let mut found = listed.files;
        // What was written after the order was remembered was used last.
        let rank = |name: &Name| used.get(name).copied().unwrap_or(u64::MAX);
        found.sort_by_key(|(modified, name, _)| (rank(name), *modified));
        let disk = Self {
            home: home.folder.path().to_owned(),
            roots: RwLock::new(Arc::new(Roots { cache, temp })),
            max,
            maps: Maps::new(mappings),
            state: Mutex::default(),
            temps: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            unusable: AtomicU64::new(0),
            told: Mutex::default(),
            #[cfg(test)]
            failing: Default::default(),
        };
        let mut state = disk.lock();
        for (_, name, len) in found {
            state.insert(name, len, None);
        }
        // Nothing is mapped yet, so everything beyond the bound can go.
        disk.make_room(&mut state, 0);
        drop(state);
        if foreign > 0 {
            tracing::warn!(
                directory = %disk.roots().cache.path().display(),
                files = foreign,
                "this directory holds what is not packmirror's; it is left alone and does not count"
            );
        }
        Ok(disk)
    }

    /// All files that are here, the least recently used first.
    pub(super) fn in_order(&self) -> Vec<Name> {
        self.lock().order.values().copied().collect()
    }

    /// Bytes held, and their bound.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.lock().bytes, self.max)
    }

    /// Files that may be mapped at the same time.
    pub(super) fn most_maps(&self) -> usize {
        self.maps.most
    }

    /// Damaged files met, writes refused, and how often a file was here and could not be used.
    pub(super) fn troubles(&self) -> [u64; 3] {
        [&self.damaged, &self.refusals, &self.unusable].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Says whether a file is here, without looking at the disk.
    pub(super) fn has(&self, name: Name) -> bool {
        self.lock().entries.contains_key(&name)
    }

    /// The length of a file that is here.
    pub(super) fn len(&self, name: Name) -> Option<u64> {
        Some(self.lock().entries.get(&name)?.len)
    }

    /// Says whether the disk refused a write a moment ago.
    pub(super) fn is_resting(&self) -> bool {
        self.lock().refused.is_some_and(|since| since.elapsed() < REST)
    }

    /// Opens the folder that a file lies in.
    fn shard(&self, name: Name) -> io::Result<Folder> {
        #[cfg(test)]
        if let errno @ 1.. = self.failing.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.roots().cache.folder(name.folder())
    }

    /// Lets every opening of a file fail with an error of the system, or no more.
    #[cfg(test)]
    pub(super) fn fail_with(&self, errno: Option<i32>) {
        self.failing.store(errno.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Reads a file if it is here and `prove` accepts its content. One that is not as it should be is removed.
    pub(super) fn read(&self, name: Name, prove: impl FnOnce(&[u8]) -> bool) -> Found<Bytes> {
        let Some((len, proven)) = self.touch(name) else { return Found::Absent };
        let read = || -> io::Result<(Vec<u8>, Stamp)> {
            let (file, facts) = self.shard(name)?.file(name.file())?;
            let mut bytes = Vec::with_capacity(usize::try_from(len.min(facts.len)).unwrap_or(0));
            // One byte more would show a file that has grown.
            file.take(len + 1).read_to_end(&mut bytes)?;
            Ok((bytes, Stamp::of(&facts)))
        };
        match read() {
            Ok((bytes, stamp)) if bytes.len() as u64 == len => {
                if proven != Some(stamp) {
                    if !prove(&bytes) {
                        return self.spoilt(name, "its content is wrong");
                    }
                    self.proven(name, stamp, Weak::new());
                }
                Found::Here(bytes.into())
            }
            Ok(_) => self.spoilt(name, "its length is wrong"),
            Err(error) => self.not_read(name, &error),
        }
    }

    /// Maps a file if it is here and `prove` accepts its content. One that is not as it should be is removed. A mapping
    /// that is still there is shared while the file is what was proven.
    pub(super) fn map(&self, name: Name, prove: impl FnOnce(&[u8]) -> bool) -> Found<Arc<Map>> {
        let Some((len, proven)) = self.touch(name) else { return Found::Absent };
        let folder = match self.shard(name) {
            Ok(folder) => folder,
            Err(error) => return self.not_read(name, &error),
        };
        if let Some(map) = self.mapped(name)
            && folder.look(name.file()).is_ok_and(|facts| Some(Stamp::of(&facts)) == proven)
        {
            return Found::Here(map);
        }
        if !self.room_to_map() {
            return self.not_now(name, &"this process has as many files mapped as it may");
        }
        let map = || -> io::Result<(Map, Stamp)> {
            let (file, facts) = folder.file(name.file())?;
            Ok((self.maps.map(&file)?, Stamp::of(&facts)))
        };
        match map() {
            Ok((map, stamp)) if map.len() as u64 == len => {
                if proven != Some(stamp) && !prove(&map) {
                    return self.spoilt(name, "its content is wrong");
                }
                let map = Arc::new(map);
                self.proven(name, stamp, Arc::downgrade(&map));
                self.keep(&map);
                Found::Here(map)
            }
            Ok(_) => self.spoilt(name, "its length is wrong"),
            // An empty file cannot be mapped; none of ours is empty.
            Err(_) if folder.look(name.file()).is_ok_and(|facts| facts.len == 0) => {
                self.spoilt(name, "its length is wrong")
            }
            Err(error) => self.not_read(name, &error),
        }
    }

    /// Keeps proven bytes. An error means only that they are not kept.
    pub(super) fn write(&self, name: Name, bytes: &[u8]) -> io::Result<()> {
        if self.is_forbidden(name) {
            return Ok(());
        }
        let fill = || -> io::Result<Temp> {
            let mut temp = self.fresh()?;
            temp.file.write_all(bytes)?;
            Ok(temp)
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
            let placed = filled.and_then(|temp| self.place(temp, name));
            self.settle(name, len, placed)
        });
        self.note(kept)
    }

    /// Takes over a finished, proven file of `len` bytes from [`Disk::temp`]; it is gone from there in any case.
    pub(super) fn adopt(&self, name: Name, temp: Temp, len: u64) -> io::Result<()> {
        if self.is_forbidden(name) {
            return Ok(());
        }
        let kept = self.reserve(len).and_then(|()| {
            let placed = self.place(temp, name);
            self.settle(name, len, placed)
        });
        self.note(kept)
    }

    /// A fresh file beside the cache, to be filled and adopted.
    pub(super) fn temp(&self) -> io::Result<Temp> {
        self.fresh().inspect_err(|error| self.refused(error))
    }

    fn fresh(&self) -> io::Result<Temp> {
        match self.fresh_in(self.roots()) {
            Err(error) if error.kind() == ErrorKind::NotFound => self.fresh_in(self.renew()?),
            other => other,
        }
    }

    fn fresh_in(&self, roots: Arc<Roots>) -> io::Result<Temp> {
        for _ in 0..TEMP_TRIES {
            let name = self.temps.fetch_add(1, Ordering::Relaxed).to_string();
            match roots.temp.create(&name) {
                Ok(file) => return Ok(Temp { file, name, roots, placed: false }),
                // Not ours: this process counts.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "the folder of files in the making is not ours alone"))
    }

    /// Drops a file.
    pub(super) fn forget(&self, name: Name) {
        self.lock().remove(name);
        self.remove_file(name);
    }

    /// Removes all files of `blobs`, or of all blobs if none are named, and keeps none of the named ones from now on. An error
    /// says that something may have stayed.
    pub(super) fn purge(&self, blobs: Option<&HashSet<BlobId>>) -> io::Result<usize> {
        let gone: Vec<Name> = {
            let mut state = self.lock();
            state.forbidden.extend(blobs.into_iter().flatten());
            let is_meant = |name: &Name| blobs.is_none_or(|blobs| blobs.contains(&name.blob()));
            let gone: Vec<Name> = state.entries.keys().copied().filter(is_meant).collect();
            gone.iter().for_each(|name| state.remove(*name));
            gone
        };
        let mut removed = Ok(gone.len());
        for name in gone {
            match self.unlink(name) {
                Err(error) if error.kind() != ErrorKind::NotFound => removed = Err(error),
                _ => {}
            }
        }
        removed
    }

    /// Keeps files of `blobs` again.
    pub(super) fn allow(&self, blobs: impl IntoIterator<Item = BlobId>) {
        let mut state = self.lock();
        if !state.forbidden.is_empty() {
            blobs.into_iter().for_each(|blob| _ = state.forbidden.remove(&blob));
        }
    }

    fn is_forbidden(&self, name: Name) -> bool {
        self.lock().forbidden.contains(&name.blob())
    }

    fn unlink(&self, name: Name) -> io::Result<()> {
        let folder = self.shard(name)?;
        match folder.look(name.file())?.kind {
            Kind::File => folder.remove(name.file()),
            // Not made by us.
            Kind::Folder | Kind::Other => Ok(()),
        }
    }

    fn remove_file(&self, name: Name) {
        // A file that stays shows at the next start.
        let _ = self.unlink(name);
    }

    fn roots(&self) -> Arc<Roots> {
        Arc::clone(&self.roots.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the folders anew after somebody removed them.
    fn renew(&self) -> io::Result<Arc<Roots>> {
        let mut roots = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        let home = Home::again(&self.home)?;
        let (cache, _) = home.make_folder("cache")?;
        let (temp, _) = cache.make_folder("tmp")?;
        *roots = Arc::new(Roots { cache, temp });
        Ok(Arc::clone(&roots))
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
        Some((entry.len, entry.proven))
    }

    fn mapped(&self, name: Name) -> Option<Arc<Map>> {
        self.lock().entries.get(&name)?.mapped.upgrade()
    }

    /// Keeps a mapping for the next one who asks.
    fn keep(&self, map: &Arc<Map>) {
        let mut state = self.lock();
        if state.kept.len() >= KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back(Arc::clone(map));
    }

    fn proven(&self, name: Name, stamp: Stamp, mapped: Weak<Map>) {
        if let Some(entry) = self.lock().entries.get_mut(&name) {
            entry.proven = Some(stamp);
            entry.mapped = mapped;
        }
    }

    /// Says whether another file may be mapped, letting go of those that nobody uses if need be.
    fn room_to_map(&self) -> bool {
        self.maps.has_room() || {
            let kept = std::mem::take(&mut self.lock().kept);
            drop(kept);
            self.maps.has_room()
        }
    }

    fn spoilt<T>(&self, name: Name, why: &str) -> Found<T> {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(file = %name.path().display(), why, "a cached file is damaged; fetching it again");
        self.forget(name);
        Found::Absent
    }

    /// Sorts what the system said: gone, not ours, or merely not to be had.
    fn not_read<T>(&self, name: Name, error: &io::Error) -> Found<T> {
        if error.kind() == ErrorKind::NotFound || is_foreign(error) {
            // Nothing is removed: there is nothing, or nothing of ours.
            self.lock().remove(name);
            return Found::Absent;
        }
        self.not_now(name, error)
    }

    /// Counts a file that cannot be used, and says so once in a while.
    fn not_now<T>(&self, name: Name, why: &dyn std::fmt::Display) -> Found<T> {
        let times = self.unusable.fetch_add(1, Ordering::Relaxed) + 1;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|since| since.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            drop(told);
            tracing::warn!(
                file = %name.path().display(), why = %why, times,
                "a cached file cannot be used at the moment; going on without"
            );
        }
        Found::NotNow
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
            self.remove_file(name);
        }
    }

    /// Puts a finished file in its place; what tells it from a changed one.
    fn place(&self, mut temp: Temp, name: Name) -> io::Result<Stamp> {
        let stamp = Stamp::of(&Facts::of_file(&temp.file)?);
        let (folder, _) = temp.roots.cache.make_folder(name.folder())?;
        match folder.look(name.file()) {
            Ok(facts) if facts.kind != Kind::File => {
                return Err(io::Error::other("something that is not packmirror's has this name"));
            }
            _ => temp.roots.temp.rename(&temp.name, &folder, name.file())?,
        }
        temp.placed = true;
        Ok(stamp)
    }

    /// Turns a reservation of `len` bytes into an entry, or gives it back.
    fn settle(&self, name: Name, len: u64, placed: io::Result<Stamp>) -> io::Result<()> {
        let mut state = self.lock();
        state.bytes -= len;
        let stamp = placed?;
        if state.forbidden.contains(&name.blob()) {
            // It was purged while it was on its way here.
            drop(state);
            return self.unlink(name);
        }
        state.insert(name, len, Some(stamp));
        Ok(())
    }

    fn note(&self, kept: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &kept {
            self.refused(error);
        }
        kept
    }

    /// Remembers that the disk refused a write, and says so once for as long as it goes on.
    fn refused(&self, error: &io::Error) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
        if !self.is_resting() {
            tracing::warn!(%error, directory = %self.home.display(), "cannot keep data on disk; going on without");
        }
        self.lock().refused = Some(Instant::now());
    }
}

/// A file in the making; it goes away unless it was put in its place.
pub(super) struct Temp {
    /// The open file.
    pub(super) file: File,
    name: String,
    roots: Arc<Roots>,
    placed: bool,
}

impl Temp {
    /// Where it lies, for messages.
    pub(super) fn path(&self) -> PathBuf {
        self.roots.temp.path().join(&self.name)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.placed {
            // What stays is removed at the next start.
            let _ = self.roots.temp.remove(&self.name);
        }
    }
}
