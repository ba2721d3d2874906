//! The index: small records that a node keeps for its next start, in sled 0.34.
//!
//! Thousands of records, never one per Git object (sled takes gigabytes for a million). Nothing in it is the truth:
//! damage and every panic of sled mean "start empty", and so does an index made for another bucket or by another version.
//! If the system refuses to open it for lack of files or memory, that is no damage: the node goes on without the index,
//! which stays.
//! No other module knows sled, which opens its files by path: that they are no links is looked up before. Calls are short
//! but touch the disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::time::Duration;

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::home::{Home, is_sled, keep_private};
use super::{LocalError, unusable};
use crate::folder::{Folder, Kind};

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
    /// The folder that `index` lies in.
    home: PathBuf,
    identity: String,
    slot: RwLock<Slot>,
    told: AtomicBool,
}

struct Slot {
    /// None if not even an empty database can be had: then nothing is remembered.
    db: Option<sled::Db>,
    /// How many databases came before.
    epoch: u64,
}

impl Index {
    /// Opens the folder `index` of this node's directory for the bucket of this name; empty if there is none that fits.
    pub(super) fn open(home: &Home, bucket: &str) -> Result<Self, LocalError> {
        let index = home.sub("index")?;
        let foreign = only_sled(&index).map_err(unusable(index.path()))?;
        if let Some(name) = foreign {
            return Err(LocalError::Foreign { path: index.path().join(name) });
        }
        Ok(Self::in_home(home.folder.path(), bucket))
    }

    fn in_home(home: &Path, bucket: &str) -> Self {
        let identity = format!("{SCHEMA}\n{bucket}");
        let db = open_or_start_empty(home, &identity);
        let (slot, told) = (RwLock::new(Slot { db, epoch: 0 }), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { home: home.to_owned(), identity, slot, told }) }
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
            Ok(Err(error)) if is_want(&error) => {
                if !self.inner.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the local index cannot be used at the moment; going on without");
                }
                return None;
            }
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
        if let Err(error) = put_aside(&self.inner.home) {
            tracing::warn!(%error, "no local index can be had; the node goes on without");
            return;
        }
        slot.db = open_or_start_empty(&self.inner.home, &self.inner.identity);
    }
}

fn full_key(table: &str, key: &str) -> Vec<u8> {
    [table.as_bytes(), b"\0", key.as_bytes()].concat()
}

/// Why a database does not open.
enum Unopened {
    /// It is damaged: every try ends the same way.
    Useless(String),
    /// The system lacks something (files, memory): the index may be whole.
    Want(String),
}

fn open_or_start_empty(home: &Path, identity: &str) -> Option<sled::Db> {
    let path = home.join("index");
    for _ in 0..2 {
        match open(&path, identity) {
            Ok(db) => return Some(db),
            Err(Unopened::Want(why)) => {
                tracing::warn!(path = %path.display(), why, "the local index cannot be opened; going on without");
                return None;
            }
            Err(Unopened::Useless(why)) => {
                tracing::warn!(path = %path.display(), why, "the local index is of no use; starting with an empty one");
                if let Err(error) = put_aside(home) {
                    tracing::warn!(path = %path.display(), %error, "it cannot be put aside");
                    break;
                }
            }
        }
    }
    tracing::warn!(path = %path.display(), "no local index can be had; the node goes on without");
    None
}

/// Says whether an error of sled means that the system lacks something, and not damage.
fn is_want(error: &sled::Error) -> bool {
    let sled::Error::Io(error) = error else { return false };
    use std::io::ErrorKind::*;
    let lacks =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS];
    let lacks = lacks.map(|errno| Some(errno.raw_os_error()));
    lacks.contains(&error.raw_os_error())
        || matches!(error.kind(), PermissionDenied | OutOfMemory | StorageFull | WouldBlock)
        || is_locked(error)
}

/// Puts a damaged index out of the way, in place of an earlier one. Only what sled makes is removed.
fn put_aside(home: &Path) -> std::io::Result<()> {
    let home = Folder::at(home)?;
    match home.folder("index.damaged") {
        Ok(earlier) => {
            if let Some(name) = only_sled(&earlier)? {
                return Err(std::io::Error::other(format!(
                    "{} is in the way",
                    earlier.path().join(name).display()
                )));
            }
            home.remove_tree("index.damaged")?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match home.folder("index") {
        Ok(_) => home.rename("index", &home, "index.damaged"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The first entry of an index that sled would not make.
fn only_sled(index: &Folder) -> std::io::Result<Option<std::ffi::OsString>> {
    for entry in index.entries()? {
        let (name, kind) = entry?;
        let blobs = kind == Kind::Folder && name == "blobs";
        let ours = name.to_str().is_some_and(|text| is_sled(index, text, kind));
        if !ours
            || blobs && index.folder(&name)?.entries()?.any(|entry| !matches!(entry, Ok((_, Kind::File))))
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Opens a database that an earlier handle may still be letting go of: sled frees its lock file from a thread of its own,
/// after the handle was dropped, and gives no sign of it. The cache directory's own lock keeps other processes out.
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

/// Opens the database in a thread of its own: sled panics on some damaged files, and may run forever on others.
fn open(path: &Path, identity: &str) -> Result<sled::Db, Unopened> {
    use Unopened::{Useless, Want};
    let made = path.parent().zip(path.file_name()).map(|(home, name)| Folder::at(home)?.make_folder(name));
    match made {
        Some(Ok((folder, _))) => keep_private(&folder),
        Some(Err(error)) => return Err(Want(error.to_string())),
        None => return Err(Want("it has no place".into())),
    }
    let (tell, told) = mpsc::channel();
    let (path, identity) = (path.to_owned(), identity.to_owned());
    let start = std::thread::Builder::new().name("index".into()).spawn(move || {
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
        // The receiver is gone if it took too long.
        let _ = tell.send(catch_unwind(AssertUnwindSafe(open)));
    });
    start.map_err(|error| Want(error.to_string()))?;
    match told.recv_timeout(OPENING) {
        Ok(Ok(Ok(Some(db)))) => Ok(db),
        Ok(Ok(Ok(None))) => Err(Useless("it was made for another bucket or by another version".into())),
        Ok(Ok(Err(error))) if is_want(&error) => Err(Want(error.to_string())),
        Ok(Ok(Err(error))) => Err(Useless(error.to_string())),
        Ok(Err(_)) => Err(Useless("sled panicked".into())),
        Err(_) => Err(Useless("it does not open in time".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(path: &Path) {
        let index = Index::in_home(path, "bucket");
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
        let index = Index::in_home(dir.path(), "bucket");
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
        filled(dir.path());
        let index = Index::in_home(dir.path(), "another bucket");
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
            files(&path.join("index"))
                .into_iter()
                .map(|file| file.file_name().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert!(names.len() >= 2, "{names:?}");
        for (n, name) in names.iter().enumerate() {
            for (m, keep) in [0.0, 0.3, 0.9, 0.999].into_iter().enumerate() {
                let path = dir.path().join(format!("index{n}-{m}"));
                filled(&path);
                if let Ok(file) = std::fs::File::options().write(true).open(path.join("index").join(name)) {
                    let len = file.metadata().unwrap().len();
                    file.set_len((len as f64 * keep) as u64).unwrap();
                }
                let index = Index::in_home(&path, "bucket");
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
        filled(dir.path());
        let index = Index::in_home(dir.path(), "bucket");
        let panicked: Option<()> = index.run(|_| panic!("as sled does on some damaged pages"));
        assert_eq!(panicked, None);
        assert_eq!(index.get::<(usize, String)>("repos", "team/7"), None);
        works(&index);
        let failed: Option<()> = index.run(|_| Err(sled::Error::Unsupported("so".into())));
        assert_eq!(failed, None);
        works(&index);
    }

    #[test]
    fn what_the_system_refuses_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let index = Index::in_home(dir.path(), "bucket");
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO, Errno::NOSPC, Errno::ACCESS] {
            let refused: Option<()> =
                index.run(|_| Err(sled::Error::Io(std::io::Error::from_raw_os_error(errno.raw_os_error()))));
            assert_eq!(refused, None);
            assert_eq!(index.get("repos", "team/7"), Some((7, "x".repeat(7))), "{errno}");
        }
        assert!(!dir.path().join("index.damaged").exists());
    }

    #[test]
    fn an_earlier_damaged_index_goes_only_if_it_is_one() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        std::fs::create_dir(dir.path().join("index.damaged")).unwrap();
        std::fs::write(dir.path().join("index.damaged/thesis"), "precious").unwrap();
        let index = Index::in_home(dir.path(), "another bucket");
        index.put("t", "k", &1);
        assert_eq!(index.get::<u32>("t", "k"), None, "without an index");
        assert_eq!(std::fs::read(dir.path().join("index.damaged/thesis")).unwrap(), b"precious");
    }

    #[test]
    fn without_a_place_nothing_is_remembered_and_nothing_fails() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let index = Index::in_home(&file.path().join("below a file"), "bucket");
        index.put("t", "k", &1);
        assert_eq!(index.get::<u32>("t", "k"), None);
        assert_eq!(index.iter::<u32>("t"), []);
        index.remove("t", "k");
        index.flush();
    }
}
