//! The cache directory: whose it is, and what in it is ours.
//!
//! packmirror deletes and overwrites only in a directory that bears its mark, a `CACHEDIR.TAG` with a line of its own
//! (<https://bford.info/cachedir/>: backups leave such directories out). An empty directory gets the mark. One that an
//! earlier version made has no mark yet: it gets it if there is nothing in it that packmirror would not have made.
//! Everything else is refused. Elsewhere: opening without following links ([`crate::folder`]).

use std::ffi::OsStr;
use std::fs::TryLockError;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

use super::entries::Name;
use super::{LocalError, unusable};
use crate::folder::{Folder, Kind, is_foreign};

/// The file that makes a directory ours.
const MARK: &str = "CACHEDIR.TAG";

/// Its content: the signature that all such tags begin with, and our line.
const MARK_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # packmirror cache directory, version 1: packmirror deletes what lies in it. All of it can be fetched again.\n";

/// How our line begins, whatever the version.
const MARK_LINE: &str = "# packmirror cache directory, version ";

/// The longest mark that is read.
const MARK_MOST: u64 = 4096;

/// The longest `lock` that holds nothing but the number of a process.
const LOCK_MOST: u64 = 20;

/// Where a directory comes from.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// It bears the mark.
    Marked,
    /// There is nothing in it.
    Empty,
    /// All that is in it is what packmirror makes.
    Unmarked,
}

/// The directory of this node, locked for this process.
pub(super) struct Home {
    pub(super) folder: Folder,
    /// The system's lock on `DIR/lock`: it goes away with the process, however that ends.
    _lock: std::fs::File,
}

impl Home {
    /// Takes the directory for this process alone, or says why not. Nothing in a foreign directory is touched.
    pub(super) fn take(dir: &Path) -> Result<Self, LocalError> {
        let folder = Folder::at(dir).map_err(unusable(dir))?;
        let origin = origin(&folder)?;
        let lock = take_lock(&folder, &origin)?;
        settle(&folder, &origin).map_err(unusable(&dir.join(MARK)))?;
        Ok(Self { folder, _lock: lock })
    }

    /// Opens the directory anew after somebody removed it while this process ran. It must be as fit as at the start.
    pub(super) fn again(dir: &Path) -> io::Result<Folder> {
        let folder = Folder::at(dir)?;
        let origin = origin(&folder).map_err(io::Error::other)?;
        settle(&folder, &origin)?;
        Ok(folder)
    }

    /// The folder `name`, made if it is missing.
    pub(super) fn sub(&self, name: &str) -> Result<Folder, LocalError> {
        let sub = self.folder.make_folder(name).map_err(|error| {
            let path = self.folder.path().join(name);
            if is_foreign(&error) { LocalError::Foreign { path } } else { unusable(&path)(error) }
        });
        let (sub, _) = sub?;
        keep_private(&sub);
        Ok(sub)
    }
}

/// Says whether a directory is ours or may become so, and is nobody's at the moment. Makes nothing.
pub(super) fn examine(dir: &Path) -> Result<(), LocalError> {
    let folder = Folder::existing(dir).map_err(unusable(dir))?;
    origin(&folder)?;
    match folder.file("lock") {
        // The lock goes away with this file at once.
        Ok((file, _)) if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) => {
            Err(LocalError::InUse { dir: dir.to_owned(), holder: holder(file) })
        }
        _ => Ok(()),
    }
}

/// Which process has the lock, if it can be told.
fn holder(file: std::fs::File) -> String {
    let mut pid = String::new();
    let _ = file.take(LOCK_MOST).read_to_string(&mut pid);
    let pid = pid.trim();
    if pid.is_empty() { String::new() } else { format!(" (pid {pid})") }
}

/// Says whether this was our mark once, or was to become it.
fn is_like_mark(bytes: &[u8]) -> bool {
    let same = bytes.iter().zip(MARK_TEXT.as_bytes()).filter(|(found, ours)| found == ours).count();
    // Longer than the signature that the tags of others have too.
    bytes.is_empty() || bytes.len() >= 56 && same + 8 >= bytes.len()
}

/// Takes a folder from all other users, or warns that it cannot be had.
pub(super) fn keep_private(folder: &Folder) {
    if let Err(why) = folder.make_private() {
        tracing::warn!(
            directory = %folder.path().display(),
            why,
            "the cache holds private repositories, and other users may reach it"
        );
    }
}

/// Marks a directory that is fit to be ours, and takes it from all other users.
fn settle(folder: &Folder, origin: &Origin) -> io::Result<()> {
    keep_private(folder);
    if *origin == Origin::Marked {
        return Ok(());
    }
    if *origin == Origin::Unmarked {
        tracing::info!(directory = %folder.path().display(), "this cache of an earlier version is taken over");
    }
    let (mut mark, _) = folder.file_to_write(MARK)?;
    mark.write_all(MARK_TEXT.as_bytes())?;
    mark.set_len(MARK_TEXT.len() as u64)
}

/// Says where a directory comes from; an error if it is not ours.
fn origin(folder: &Folder) -> Result<Origin, LocalError> {
    let at = |error| unusable(folder.path())(error);
    let foreign = |name: &OsStr| LocalError::NotOurs {
        dir: folder.path().to_owned(),
        entry: name.to_string_lossy().into_owned(),
    };
    match folder.file(MARK) {
        Ok((file, _)) => {
            let mut bytes = Vec::new();
            file.take(MARK_MOST).read_to_end(&mut bytes).map_err(at)?;
            let text = String::from_utf8_lossy(&bytes);
            match text.lines().nth(1).and_then(|line| line.strip_prefix(MARK_LINE)) {
                Some(rest) if rest.starts_with("1:") => return Ok(Origin::Marked),
                Some(_) => return Err(LocalError::Newer { dir: folder.path().to_owned() }),
                // Left by a start that was interrupted, or damaged by the disk: the other entries decide.
                None if is_like_mark(&bytes) => {}
                None => return Err(foreign(OsStr::new(MARK))),
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if is_foreign(&error) => return Err(foreign(OsStr::new(MARK))),
        Err(error) => return Err(at(error)),
    }
    let mut empty = true;
    for entry in folder.entries().map_err(at)? {
        let (name, kind) = entry.map_err(at)?;
        match (name.to_str(), kind) {
            // The root of a file system of its own.
            (Some("lost+found"), Kind::Folder) => continue,
            (Some(MARK), _) => continue,
            (Some("lock"), Kind::File) if is_lock(folder) => {}
            (Some("cache"), Kind::Folder) => only(folder, "cache", &is_shard).map_err(|_| foreign(&name))?,
            (Some("scratch"), Kind::Folder) => {
                only(folder, "scratch", &is_work).map_err(|_| foreign(&name))?
            }
            (Some("index"), Kind::Folder) => only(folder, "index", &is_sled).map_err(|_| foreign(&name))?,
            (Some("index.damaged" | "cache.damaged" | "scratch.damaged"), Kind::Folder | Kind::File) => {}
            _ => return Err(foreign(&name)),
        }
        empty = false;
    }
    Ok(if empty { Origin::Empty } else { Origin::Unmarked })
}

type Test<'a> = &'a dyn Fn(&Folder, &str, Kind) -> bool;

/// Checks that every entry of the folder `name` is one of ours.
fn only(folder: &Folder, name: &str, ours: Test<'_>) -> io::Result<()> {
    let folder = folder.folder(name)?;
    for entry in folder.entries()? {
        let (name, kind) = entry?;
        if !name.to_str().is_some_and(|name| ours(&folder, name, kind)) {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    Ok(())
}

/// A `lock` holds the number of a process or nothing.
fn is_lock(folder: &Folder) -> bool {
    let mut text = String::new();
    let read = folder.file("lock").and_then(|(file, facts)| {
        file.take(LOCK_MOST + 1).read_to_string(&mut text)?;
        Ok(facts)
    });
    read.is_ok_and(|facts| {
        facts.links == 1
            && facts.len <= LOCK_MOST
            && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'\n')
    })
}

/// A folder of cached files, or the one of those in the making.
fn is_shard(cache: &Folder, name: &str, kind: Kind) -> bool {
    let file = |_: &Folder, file: &str, kind| {
        kind == Kind::File && Name::parse(file).is_some_and(|parsed| parsed.folder() == name)
    };
    let temp = |_: &Folder, name: &str, kind| kind == Kind::File && is_temp(name);
    kind == Kind::Folder
        && match name {
            "tmp" => only(cache, name, &temp).is_ok(),
            _ => is_shard_name(name) && only(cache, name, &file).is_ok(),
        }
}

/// The name of a folder of cached files: the first two digits of a hash.
pub(super) fn is_shard_name(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of a file in the making.
pub(super) fn is_temp(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// A folder for work in progress.
pub(super) fn is_work(_: &Folder, name: &str, kind: Kind) -> bool {
    let rest = name.strip_prefix("work-").unwrap_or_default();
    kind == Kind::Folder && !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// What sled 0.34 makes.
pub(super) fn is_sled(_: &Folder, name: &str, kind: Kind) -> bool {
    match kind {
        Kind::File => name == "conf" || name == "db" || name.starts_with("snap."),
        Kind::Folder => name == "blobs",
        Kind::Other => false,
    }
}

/// Takes the lock, or says who has it.
fn take_lock(folder: &Folder, origin: &Origin) -> Result<std::fs::File, LocalError> {
    let path = folder.path().join("lock");
    let opened = folder.file_to_write("lock");
    let (mut file, _) = match &opened {
        // In a directory of ours the name says enough, of a file that is no other's too.
        Ok((_, facts)) if *origin == Origin::Marked && facts.links == 1 && facts.len <= LOCK_MOST => opened,
        Ok(_) if !is_lock(folder) => return Err(LocalError::Foreign { path }),
        Err(error) if is_foreign(error) => return Err(LocalError::Foreign { path }),
        _ => opened,
    }
    .map_err(unusable(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = holder(file);
            return Err(LocalError::InUse { dir: folder.path().to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&path)(error)),
    }
    // The number is there only for the message of a second process: a full disk must not keep the node from starting.
    let _ =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}
