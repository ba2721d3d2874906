//! This node's memory: what it fetched from the bucket, on its own disk, bounded, proven, and replaceable.
//!
//! Everything here can be rebuilt from the bucket. A damaged file is fetched again, a damaged index starts empty, a full
//! disk makes the node slower but not wrong, and the whole directory may be deleted while the node is stopped. Layout:
//!
//! ```text
//! DIR/CACHEDIR.TAG  the mark of packmirror, without which nothing is deleted here
//! DIR/lock          one process at a time
//! DIR/index/        small records (sled)
//! DIR/cache/        blocks of packs, and whole idx, graph and refs files; together at most `max_bytes`
//! DIR/scratch/      work in progress; emptied at start
//! ```
//!
//! Relies on: blobs named by content ([`crate::store`]), block hashes that come with a pack's graph (the caller passes
//! them). Elsewhere: what the bytes mean ([`crate::pack`]), what is worth remembering ([`crate::mirror`]).

mod blocks;
mod disk;
mod entries;
mod expected;
mod file;
mod flight;
mod home;
mod index;
mod listing;
mod mapped;
mod maps;
mod order;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::budget::Budget;
use crate::folder::Folder;
use crate::store::{BlobRef, Bucket, Name};
use blocks::Fetching;
use disk::Disk;
use expected::Expected;
use flight::Flights;
use home::{Home, is_work};
use mapped::Live;
use maps::Maps;

pub use blocks::{BlockHashes, PackBlob};
pub use file::map_file;
pub use index::Index;

/// Bytes of whole blobs in memory where the disk gives or takes nothing.
const MOST_IN_MEMORY: u64 = 512 << 20;

/// Files of the cache that are looked at, at the same time; each takes a thread.
const LOOKS: usize = 64;

/// The node's directory cannot be used: the only way in which opening fails.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Another process works in it: give each node a directory of its own.
    #[error("cache directory {dir} is in use by another process{holder}: give each node its own --cache-dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Which process, if it can be told.
        holder: String,
    },
    /// It is not empty and packmirror did not make it: nothing in it was touched.
    #[error(
        "cache directory {dir} holds `{entry}`, which is not packmirror's, and has no mark of packmirror (CACHEDIR.TAG): \
         name an empty or a new directory with --cache-dir"
    )]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// The first entry that packmirror would not have made.
        entry: String,
    },
    /// Something else has the name of one of its folders or files.
    #[error(
        "cache directory: {path} is a link or something else that packmirror did not make and does not follow: move it \
         away, or name another directory with --cache-dir"
    )]
    Foreign {
        /// What is in the way.
        path: PathBuf,
    },
    /// A newer packmirror made it.
    #[error("cache directory {dir} belongs to a newer packmirror: give this one a --cache-dir of its own")]
    Newer {
        /// The directory.
        dir: PathBuf,
    },
    /// It cannot be made or written.
    #[error("cache directory: cannot use {path}: {source}")]
    Unusable {
        /// The file or directory in question.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Bounds of the local side.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// Bytes on disk for blocks and files, all together. The scratch space and the index come on top.
    pub max_bytes: u64,
    /// Ranged reads of the bucket in flight for readers that wait: so many blocks of 1 MiB, or more that are smaller.
    pub fetches: usize,
    /// Ranged reads of the bucket in flight ahead of readers, up to 4 MiB each.
    pub fetches_ahead: usize,
    /// Files mapped at the same time; beyond it they are read into memory.
    pub mappings: usize,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { max_bytes: 20 << 30, fetches: 16, fetches_ahead: 16, mappings: Maps::fitting() }
    }
}

/// What the cache did since the node started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Blocks and files taken from the disk.
    pub hits: u64,
    /// Blocks and files fetched from the bucket.
    pub misses: u64,
    /// Cached files that turned out damaged, and were fetched again.
    pub damaged: u64,
    /// Writes that the disk refused.
    pub refused: u64,
    /// How often a cached file could not be opened or mapped, and was done without.
    pub unusable: u64,
    /// Bytes in the cache now.
    pub bytes: u64,
    /// The bound of `bytes`.
    pub max_bytes: u64,
}

/// The local side of one node. Cheap to clone.
#[derive(Clone)]
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    bucket: Bucket,
    disk: Disk,
    index: Index,
    home: PathBuf,
    fetching: Fetching,
    /// First blocks that are on their way without proof.
    expected: Expected,
    /// Files that are looked at, at the same time.
    looks: Semaphore,
    /// Pays for whole blobs that are not on disk.
    memory: Budget,
    files: Flights<BlobRef, mapped::Loaded>,
    live: Live,
    counters: Counters,
    _home: Home,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Local({})", self.inner.home.display())
    }
}

impl Local {
    /// Opens or makes the directory `dir` for this process alone. A directory that is not packmirror's is refused. What
    /// lies in ours damaged is fetched anew. Blocks for as long as a listing of the cache takes.
    pub fn open(dir: &Path, options: &LocalOptions, bucket: Bucket) -> Result<Self, LocalError> {
        let home = Home::take(dir)?;
        let scratch = home.sub("scratch")?;
        empty(&scratch).map_err(unusable(scratch.path()))?;
        let index = Index::open(&home, bucket.name())?;
        let disk = Disk::open(&home, options.max_bytes, options.mappings, &order::recalled(&index))?;
        Ok(Self {
            inner: Arc::new(Inner {
                bucket,
                disk,
                index,
                home: dir.to_owned(),
                fetching: Fetching::new(options),
                expected: Expected::default(),
                looks: Semaphore::new(LOOKS),
                memory: Budget::new(MOST_IN_MEMORY, "cache_dir"),
                files: Flights::default(),
                live: Live::default(),
                counters: Counters::default(),
                _home: home,
            }),
        })
    }

    /// Says whether a node would take the directory `dir`, which must exist. Nothing is made or changed.
    pub fn examine(dir: &Path) -> Result<(), LocalError> {
        home::examine(dir)
    }

    /// The bucket behind.
    pub fn bucket(&self) -> &Bucket {
        &self.inner.bucket
    }

    /// Small records that make the next start quicker.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// A directory for work in progress, removed when dropped, or at the next start.
    pub fn scratch(&self) -> std::io::Result<TempDir> {
        let scratch = self.inner.home.join("scratch");
        match tempfile::Builder::new().prefix("work-").tempdir_in(&scratch) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Home::again(&self.inner.home)?.make_folder("scratch")?;
                tempfile::Builder::new().prefix("work-").tempdir_in(&scratch)
            }
            other => other,
        }
    }

    /// Bytes that the disk has left for work in progress.
    pub fn free_scratch(&self) -> std::io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.inner.home)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Files that may be mapped at the same time.
    pub fn mappings(&self) -> usize {
        self.inner.disk.most_maps()
    }

    /// Puts bytes aside for somebody who is slow to take them: into a nameless file of the scratch space, mapped.
    pub fn set_aside(&self, bytes: &[u8]) -> std::io::Result<Bytes> {
        let folder = self.scratch()?;
        let path = folder.path().join("aside");
        std::fs::write(&path, bytes)?;
        map_file(&path)
    }

    /// Removes what is cached of `blobs`, and keeps nothing of them from now on, until [`Local::allow`]. Returns how many files
    /// those were; an error says that some may have stayed. For blocking threads.
    pub fn purge(&self, blobs: &HashSet<Name>) -> std::io::Result<usize> {
        let ids = blobs.iter().map(|(id, _)| *id).collect();
        self.inner.disk.purge(Some(&ids))
    }

    /// Removes all that is cached. For blocking threads.
    pub fn purge_all(&self) -> std::io::Result<usize> {
        self.inner.disk.purge(None)
    }

    /// Keeps what is fetched of `blobs` again: a record names them that may be served.
    pub fn allow(&self, blobs: impl IntoIterator<Item = BlobRef>) {
        self.inner.disk.allow(blobs.into_iter().map(|blob| blob.id));
    }

    /// Remembers in which order the files of the cache were used, so that after a restart the right ones go first.
    pub fn remember_order(&self) {
        order::remember(&self.inner.index, &self.inner.disk.in_order());
        self.inner.index.flush();
    }

    /// What the cache did so far.
    pub fn stats(&self) -> Stats {
        let (bytes, max_bytes) = self.inner.disk.usage();
        let [damaged, refused, unusable] = self.inner.disk.troubles();
        let Counters { hits, misses } = &self.inner.counters;
        let [hits, misses] = [hits, misses].map(|counter| counter.load(Ordering::Relaxed));
        Stats { hits, misses, damaged, refused, unusable, bytes, max_bytes }
    }
}

impl Inner {
    fn hit(&self) {
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
    }

    fn miss(&self, blocks: usize) {
        self.counters.misses.fetch_add(blocks as u64, Ordering::Relaxed);
    }
}

fn unusable(path: &Path) -> impl FnOnce(std::io::Error) -> LocalError + '_ {
    move |source| LocalError::Unusable { path: path.to_owned(), source }
}

/// Removes the work in progress that an earlier process left. What is not ours stays.
fn empty(scratch: &Folder) -> std::io::Result<()> {
    let entries: Vec<_> = scratch.entries()?.collect::<std::io::Result<_>>()?;
    let mut foreign = 0;
    for (name, kind) in entries {
        if name.to_str().is_some_and(|text| is_work(scratch, text, kind)) {
            // What cannot be removed harms nobody: each piece of work has a folder of its own.
            if let Err(error) = scratch.remove_tree(&name) {
                tracing::warn!(directory = %scratch.path().display(), ?name, %error, "cannot remove what an earlier start left");
            }
        } else {
            foreign += 1;
        }
    }
    if foreign > 0 {
        tracing::warn!(
            directory = %scratch.path().display(),
            files = foreign,
            "this directory holds what is not packmirror's; it is left alone"
        );
    }
    Ok(())
}
