//! Mappings of files, counted: the system gives one process only so many.
//!
//! Beyond that number files are read into memory instead, which costs more and does not fail for this reason.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;

/// Mappings a process may have where the system does not say: Linux' default.
const USUAL: usize = 65_530;

/// How many mappings there may be, and how many there are.
#[derive(Debug, Clone)]
pub(super) struct Maps {
    count: Arc<AtomicUsize>,
    /// How many there may be.
    pub(super) most: usize,
}

/// A mapped file.
#[derive(Debug)]
pub(super) struct Map {
    map: Mmap,
    count: Arc<AtomicUsize>,
}

impl Maps {
    /// Allows `most` mappings at once.
    pub(super) fn new(most: usize) -> Self {
        Self { count: Arc::default(), most }
    }

    /// Half of what the system allows one process: the rest is for memory, threads and programs.
    pub(super) fn fitting() -> usize {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        text.trim().parse().unwrap_or(USUAL) / 2
    }

    /// Says whether another file may be mapped.
    pub(super) fn has_room(&self) -> bool {
        self.count.load(Ordering::Relaxed) < self.most
    }

    /// Maps a file of the cache.
    #[allow(unsafe_code)]
    pub(super) fn map(&self, file: &File) -> io::Result<Map> {
        // SAFETY: the file lies in this node's own directory, which it has locked; packmirror replaces and removes
        // such files but never writes into one. Somebody else who truncates it while it is mapped kills this
        // process, which then starts anew and finds the damage; the bytes are never trusted beyond their proof.
        let map = unsafe { Mmap::map(file) }?;
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(Map { map, count: Arc::clone(&self.count) })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
