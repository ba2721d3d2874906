//! The index: small records that a node keeps for its next start, in sled 0.34.
//!
//! Thousands of records, never one per Git object (sled takes gigabytes for a million). Nothing in it is the truth: every
//! error and every panic of sled means "start empty", and so does an index made for another bucket or by another version.
//! No other module knows sled. Calls are short but touch the disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{make_private, move_aside};

/// Changes whenever records are written in another way.
const SCHEMA: &str = "packmirror index 1";

/// The record that holds [`SCHEMA`] and the bucket's name.
const IDENTITY: &[u8] = b"\0identity";

/// sled's cache of pages.
const CACHE_BYTES: u64 = 8 << 20;

/// A damaged database must not keep the node from starting.
const OPENING: Duration = Duration::from_secs(20);
/// How often, and how long apart, a lock that is being freed is tried: two seconds in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Small records by table and key. Cheap to clone.
#[derive(Clone)]
pub struct Index {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    identity: String,
    slot: RwLock<Slot>,
}

struct Slot {
    /// None if not even an empty database can be had: then nothing is remembered.
    db: Option<sled::Db>,
    /// How many databases came before.
    epoch: u64,
}

impl Index {
    /// Opens the index at `path` for the bucket of this name; empty if there is none that fits.
    pub(super) fn open(path: &Path, bucket: &str) -> Self {
        let identity = format!("{SCHEMA}\n{bucket}");
        let db = open_or_start_empty(path, &identity);
        let slot = RwLock::new(Slot { db, epoch: 0 });
        Self { inner: Arc::new(Inner { path: path.to_owned(), identity, slot }) }
    }

    /// The record at `key`, if there is one that can be read as `T`.
    pub fn get<T: DeserializeOwned>(&self, table: &str, key: &str) -> Option<T> {
        let bytes = self.run(|db| db.get(full_key(table, key)))??;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(_) => {
                self.remove(table, key);
                None
            }
        }
    }

    /// Remembers a record.
    pub fn put<T: Serialize>(&self, table: &str, key: &str, value: &T) {
        match serde_json::to_vec(value) {
            Ok(bytes) => drop(self.run(|db| db.insert(full_key(table, key), bytes.as_slice()))),
            Err(error) => tracing::warn!(table, key, %error, "a record cannot be written"),
        }
    }

    /// Forgets a record.
    pub fn remove(&self, table: &str, key: &str) {
        self.run(|db| db.remove(full_key(table, key)));
    }

    /// All records of a table that can be read as `T`, by key.
    pub fn iter<T: DeserializeOwned>(&self, table: &str) -> Vec<(String, T)> {
        let prefix = full_key(table, "");
        let found =
            self.run(|db| db.scan_prefix(&prefix).collect::<sled::Result<Vec<_>>>()).unwrap_or_default();
        let read = |(key, value): (sled::IVec, sled::IVec)| {
            let key = std::str::from_utf8(&key[prefix.len()..]).ok()?.to_owned();
            Some((key, serde_json::from_slice(&value).ok()?))
        };
        found.into_iter().filter_map(read).collect()
    }

    /// Writes to disk what is still in memory; at the end of a process.
    pub fn flush(&self) {
        self.run(|db| db.flush());
    }

    /// Does something with the database. If that fails or panics, the index starts empty.
    fn run<T>(&self, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Option<T> {
        let (db, epoch) = {
            let slot = self.inner.slot.read().unwrap_or_else(PoisonError::into_inner);
            (slot.db.clone()?, slot.epoch)
        };
        let why = match catch_unwind(AssertUnwindSafe(|| work(&db))) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled panicked".to_owned(),
        };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
        self.start_empty(epoch, &why);
        None
    }

    /// Puts an empty database in the place of number `epoch`, unless another caller has done so.
    fn start_empty(&self, epoch: u64, why: &str) {
        let mut slot = self.inner.slot.write().unwrap_or_else(PoisonError::into_inner);
        if slot.epoch != epoch {
            return;
        }
        tracing::warn!(why, "the local index is damaged; starting with an empty one");
        slot.epoch += 1;
        let broken = slot.db.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        move_aside(&self.inner.path);
        slot.db = open_or_start_empty(&self.inner.path, &self.inner.identity);
    }
}

fn full_key(table: &str, key: &str) -> Vec<u8> {
    [table.as_bytes(), b"\0", key.as_bytes()].concat()
}

fn open_or_start_empty(path: &Path, identity: &str) -> Option<sled::Db> {
    for _ in 0..2 {
        match open(path, identity) {
            Ok(db) => return Some(db),
            Err(why) => {
                if path.exists() {
                    tracing::warn!(path = %path.display(), why, "the local index is of no use");
                    move_aside(path);
                }
            }
        }
    }
    tracing::warn!(path = %path.display(), "no local index can be had; the node goes on without");
    None
}

/// Opens a database that an earlier handle may still be letting go of: sled frees its lock file from a thread of its own,
/// after the handle was dropped, and tells nobody. The cache directory's own lock keeps other processes out.
fn open_when_free(config: &sled::Config) -> sled::Result<sled::Db> {
    let mut tries = 0;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if tries < LOCK_TRIES && is_locked(&error) => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// sled wraps the system's refusal of the lock into an error of kind `Other`.
fn is_locked(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

/// Opens the database in a thread of its own: sled panics on some damaged files, and nobody knows whether it ends on all.
fn open(path: &Path, identity: &str) -> Result<sled::Db, String> {
    make_private(path).map_err(|error| error.to_string())?;
    let (tell, told) = mpsc::channel();
    let (path, identity) = (path.to_owned(), identity.to_owned());
    std::thread::spawn(move || {
        let open = || -> sled::Result<Option<sled::Db>> {
            let config =
                sled::Config::new().path(&path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(500));
            let db = open_when_free(&config)?;
            if db.is_empty() {
                db.insert(IDENTITY, identity.as_bytes())?;
            }
            let fits = db.get(IDENTITY)?.is_some_and(|found| *found == *identity.as_bytes());
            Ok(fits.then_some(db))
        };
        // Nobody listens any more if it took too long.
        let _ = tell.send(catch_unwind(AssertUnwindSafe(open)));
    });
    match told.recv_timeout(OPENING) {
        Ok(Ok(Ok(Some(db)))) => Ok(db),
        Ok(Ok(Ok(None))) => Err("it was made for another bucket or by another version".into()),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(_)) => Err("sled panicked".into()),
        Err(_) => Err("it does not open in time".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(path: &Path) {
        let index = Index::open(path, "bucket");
        for n in 0..500 {
            index.put("repos", &format!("team/{n}"), &(n, "x".repeat(n)));
        }
        index.put("other", "team/1", &"else");
        index.flush();
    }

    fn works(index: &Index) {
        index.put("t", "k", &vec![1, 2, 3]);
        assert_eq!(index.get("t", "k"), Some(vec![1, 2, 3]));
        index.remove("t", "k");
        assert_eq!(index.get::<Vec<u32>>("t", "k"), None);
    }

    #[test]
    fn records_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let index = Index::open(dir.path(), "bucket");
        assert_eq!(index.get("repos", "team/7"), Some((7, "x".repeat(7))));
        assert_eq!(index.iter::<(usize, String)>("repos").len(), 500);
        assert_eq!(index.iter::<String>("other"), [("team/1".to_owned(), "else".to_owned())]);
        assert_eq!(index.iter::<String>("nothing"), []);
        assert_eq!(index.get::<u32>("repos", "team/7"), None, "another type is no record");
        assert_eq!(index.get::<(usize, String)>("repos", "team/7"), None, "and is forgotten");
        works(&index);
    }

    #[test]
    fn an_index_of_another_bucket_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        filled(&path);
        let index = Index::open(&path, "another bucket");
        assert_eq!(index.get::<(usize, String)>("repos", "team/7"), None);
        works(&index);
        assert!(dir.path().join("index.damaged").exists());
    }

    fn files(path: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_file()).collect()
    }

    #[test]
    fn truncated_files_mean_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        let names = {
            let path = dir.path().join("template");
            filled(&path);
            files(&path).into_iter().map(|file| file.file_name().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert!(names.len() >= 2, "{names:?}");
        for (n, name) in names.iter().enumerate() {
            for (m, keep) in [0.0, 0.3, 0.9, 0.999].into_iter().enumerate() {
                let path = dir.path().join(format!("index{n}-{m}"));
                filled(&path);
                if let Ok(file) = std::fs::File::options().write(true).open(path.join(name)) {
                    let len = file.metadata().unwrap().len();
                    file.set_len((len as f64 * keep) as u64).unwrap();
                }
                let index = Index::open(&path, "bucket");
                // Whatever is still there is right; the rest is simply not there.
                for (key, (n, text)) in index.iter::<(usize, String)>("repos") {
                    assert_eq!((key, text), (format!("team/{n}"), "x".repeat(n)));
                }
                works(&index);
            }
        }
    }

    #[test]
    fn damage_found_while_running_means_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        filled(&path);
        let index = Index::open(&path, "bucket");
        let panicked: Option<()> = index.run(|_| panic!("as sled does on some damaged pages"));
        assert_eq!(panicked, None);
        assert_eq!(index.get::<(usize, String)>("repos", "team/7"), None);
        works(&index);
        let failed: Option<()> = index.run(|_| Err(sled::Error::Unsupported("so".into())));
        assert_eq!(failed, None);
        works(&index);
    }

    #[test]
    fn without_a_place_nothing_is_remembered_and_nothing_fails() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let index = Index::open(&file.path().join("below a file"), "bucket");
        index.put("t", "k", &1);
        assert_eq!(index.get::<u32>("t", "k"), None);
        assert_eq!(index.iter::<u32>("t"), []);
        index.remove("t", "k");
        index.flush();
    }
}
