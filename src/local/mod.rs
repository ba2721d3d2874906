//! This node's memory: what it fetched from the bucket, on its own disk, bounded, proven, and of no lasting value.
//!
//! Everything here can be rebuilt from the bucket. A damaged file is fetched again, a damaged index starts empty, a full
//! disk makes the node slower but not wrong, and the whole directory may be deleted while the node is stopped. Layout:
//!
//! ```text
//! DIR/lock      one process at a time
//! DIR/index/    small records (sled)
//! DIR/cache/    blocks of packs, and whole idx, graph and refs files; together at most `max_bytes`
//! DIR/scratch/  work in progress; emptied at start
//! ```
//!
//! Relies on: blobs named by content ([`crate::store`]), block hashes that come with a pack's graph (the caller passes
//! them). Elsewhere: what the bytes mean ([`crate::pack`]), what is worth remembering ([`crate::mirror`]).

mod blocks;
mod disk;
mod file;
mod flight;
mod index;
mod lock;
mod mapped;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use crate::store::{BlobRef, Bucket};
use blocks::Fetching;
use disk::Disk;
use flight::Flights;
use lock::DirLock;
use mapped::Live;

pub use blocks::{BlockHashes, PackBlob};
pub use file::map_file;
pub use index::Index;

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
    /// Ranged reads of the bucket in flight for readers that wait, one block each.
    pub fetches: usize,
    /// Ranged reads of the bucket in flight ahead of readers, up to 8 MiB each.
    pub fetches_ahead: usize,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { max_bytes: 20 << 30, fetches: 16, fetches_ahead: 8 }
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
    scratch: PathBuf,
    fetching: Fetching,
    files: Flights<BlobRef, mapped::Loaded>,
    live: Live,
    counters: Counters,
    _lock: DirLock,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Local({})", self.inner.scratch.display())
    }
}

impl Local {
    /// Opens or makes the directory `dir` for this process alone. What lies in it damaged is moved aside with a warning,
    /// and the node starts without it. Blocks for as long as a listing of the cache takes.
    pub fn open(dir: &Path, options: &LocalOptions, bucket: Bucket) -> Result<Self, LocalError> {
        make_private(dir).map_err(unusable(dir))?;
        let lock = DirLock::take(dir)?;
        let cache = sound_directory(dir, "cache")?;
        let scratch = sound_directory(dir, "scratch")?;
        empty(&scratch);
        let disk = match Disk::open(&cache, options.max_bytes) {
            Ok(disk) => disk,
            Err(_) => {
                move_aside(&cache);
                make_private(&cache).map_err(unusable(&cache))?;
                Disk::open(&cache, options.max_bytes).map_err(unusable(&cache))?
            }
        };
        let index = Index::open(&dir.join("index"), bucket.name());
        Ok(Self {
            inner: Arc::new(Inner {
                bucket,
                disk,
                index,
                scratch,
                fetching: Fetching::new(options),
                files: Flights::default(),
                live: Live::default(),
                counters: Counters::default(),
                _lock: lock,
            }),
        })
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
        match tempfile::Builder::new().prefix("work-").tempdir_in(&self.inner.scratch) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                make_private(&self.inner.scratch)?;
                tempfile::Builder::new().prefix("work-").tempdir_in(&self.inner.scratch)
            }
            other => other,
        }
    }

    /// What the cache did so far.
    pub fn stats(&self) -> Stats {
        let (bytes, max_bytes, damaged, refused) = self.inner.disk.usage();
        let Counters { hits, misses } = &self.inner.counters;
        let [hits, misses] = [hits, misses].map(|counter| counter.load(Ordering::Relaxed));
        Stats { hits, misses, damaged, refused, bytes, max_bytes }
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

/// Makes a directory that only this user can read: it holds other people's repositories.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// The directory `name` in `dir`; whatever else has that name is moved aside.
fn sound_directory(dir: &Path, name: &str) -> Result<PathBuf, LocalError> {
    let path = dir.join(name);
    if make_private(&path).is_err() {
        move_aside(&path);
        make_private(&path).map_err(unusable(&path))?;
    }
    Ok(path)
}

/// Moves a damaged file or directory out of the way, in place of an earlier one. If that fails, removes it.
fn move_aside(path: &Path) {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".damaged");
    let aside = path.with_file_name(name);
    remove(&aside);
    tracing::warn!(path = %path.display(), aside = %aside.display(), "local data is damaged; starting without it");
    if std::fs::rename(path, &aside).is_err() {
        remove(path);
    }
}

/// Removes a file or directory; failures show when something is to be put in its place.
fn remove(path: &Path) {
    let _ = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    };
}

/// Removes what is in a directory.
fn empty(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        remove(&entry.path());
    }
}
