//! A directory held open: what lies in it is reached by name through its descriptor, and no symbolic link is followed.
//!
//! A path can mean another file from one moment to the next; a descriptor cannot. So the cache and a directory store open
//! each folder on the way by one name, refuse links, and make what they make for this user alone (0700, 0600).
//! Relies on: `rustix` for the calls of the system. All calls block. Elsewhere: what may be deleted ([`crate::local`]).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Folders that one tree may have within each other, where a tree is removed.
const DEEPEST: usize = 16;

/// An open directory.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// What an entry of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, a socket, a pipe, a device.
    Other,
}

/// What the system knows of an entry, a link being an entry itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file.
    pub len: u64,
    /// When it was last written: seconds and nanoseconds of the Unix time.
    pub modified: (i64, u64),
    /// The number of its inode.
    pub inode: u64,
    /// Names that the file has.
    pub links: u64,
    /// The user it belongs to.
    pub owner: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Facts {
    fn of(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            _ => Kind::Other,
        };
        // The types of these fields differ from system to system.
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        Self {
            kind,
            len: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
            owner: stat.st_uid,
            mode: stat.st_mode as u32 & 0o7777,
        }
    }

    /// The facts of an open file.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(file)?))
    }

    /// Says whether this user owns it and it is a regular file: nobody else could change it behind our back.
    pub fn is_own_file(&self) -> bool {
        self.kind == Kind::File && self.owner == rustix::process::geteuid().as_raw()
    }

    /// Says whether others than its owner may read, write or enter it.
    pub fn is_open_to_others(&self) -> bool {
        self.mode & 0o077 != 0
    }
}

/// Says whether an error tells of something at this place that packmirror did not put there: a link, a folder for a
/// file, a file for a folder, a pipe. It is neither damaged data nor a system short of something.
pub fn is_foreign(error: &io::Error) -> bool {
    let codes = [Errno::LOOP, Errno::NOTDIR, Errno::ISDIR, Errno::NXIO].map(|e| Some(e.raw_os_error()));
    codes.contains(&error.raw_os_error()) || error.get_ref().is_some_and(|e| e.is::<NotRegular>())
}

/// An entry of a folder that is no regular file.
#[derive(Debug, thiserror::Error)]
#[error("it is a link, a folder or something else that packmirror does not follow; move it away")]
struct NotRegular;

fn not_regular() -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, NotRegular)
}

impl Folder {
    /// Opens the directory at `path`, which an operator gave: links on the way are his. It is made where it is missing.
    pub fn at(path: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::existing(path)
    }

    /// Opens the directory at `path`, which an operator gave, and makes nothing.
    pub fn existing(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Where it was when it was opened: for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a folder in this one.
    pub fn folder(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = one_name(name.as_ref())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::openat(&self.fd, name, flags, Mode::empty())?, path: self.path.join(name) })
    }

    /// Opens a folder in this one, or makes it; also says whether it was made.
    pub fn make_folder(&self, name: impl AsRef<OsStr>) -> io::Result<(Self, bool)> {
        let name = one_name(name.as_ref())?;
        match self.folder(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => return other.map(|folder| (folder, false)),
        }
        let made = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        Ok((self.folder(name)?, made))
    }

    /// Opens a regular file for reading.
    pub fn file(&self, name: impl AsRef<OsStr>) -> io::Result<(File, Facts)> {
        self.open_file(name.as_ref(), OFlags::RDONLY)
    }

    /// Opens a regular file for reading and writing, or makes it. What is in it stays.
    pub fn file_to_write(&self, name: impl AsRef<OsStr>) -> io::Result<(File, Facts)> {
        self.open_file(name.as_ref(), OFlags::RDWR | OFlags::CREATE)
    }

    /// Makes a file for reading and writing; an error if something has that name.
    pub fn create(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        Ok(self.open_file(name.as_ref(), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?.0)
    }

    fn open_file(&self, name: &OsStr, flags: OFlags) -> io::Result<(File, Facts)> {
        // A pipe is not waited for: it is found out below.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::openat(&self.fd, one_name(name)?, flags, Mode::from_raw_mode(0o600))?;
        let facts = Facts::of(&rustix::fs::fstat(&fd)?);
        if facts.kind != Kind::File {
            return Err(not_regular());
        }
        Ok((fd.into(), facts))
    }

    /// What lies under a name; a link is not followed.
    pub fn look(&self, name: impl AsRef<OsStr>) -> io::Result<Facts> {
        let name = one_name(name.as_ref())?;
        Ok(Facts::of(&rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// The facts of the folder itself.
    pub fn facts(&self) -> io::Result<Facts> {
        Ok(Facts::of(&rustix::fs::fstat(&self.fd)?))
    }

    /// Names and kinds of what lies here, in no order, read as they are asked for.
    pub fn entries(&self) -> io::Result<Entries<'_>> {
        Ok(Entries { dir: rustix::fs::Dir::read_from(&self.fd)?, folder: self })
    }

    /// Gives a file a name in another folder; what had that name is replaced, a link itself and not what it leads to.
    pub fn rename(&self, name: impl AsRef<OsStr>, to: &Self, new: impl AsRef<OsStr>) -> io::Result<()> {
        let (name, new) = (one_name(name.as_ref())?, one_name(new.as_ref())?);
        Ok(rustix::fs::renameat(&self.fd, name, &to.fd, new)?)
    }

    /// Gives a file of this folder a second name here; an error if something has it.
    pub fn link(&self, name: impl AsRef<OsStr>, new: impl AsRef<OsStr>) -> io::Result<()> {
        let (name, new) = (one_name(name.as_ref())?, one_name(new.as_ref())?);
        Ok(rustix::fs::linkat(&self.fd, name, &self.fd, new, AtFlags::empty())?)
    }

    /// Removes a name that is no folder's; of a link the link itself.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, one_name(name.as_ref())?, AtFlags::empty())?)
    }

    /// Removes an empty folder.
    pub fn remove_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, one_name(name.as_ref())?, AtFlags::REMOVEDIR)?)
    }

    /// Removes a folder of ours with all that lies in it. Links in it are removed and not followed.
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        self.remove_within(name.as_ref(), DEEPEST)
    }

    fn remove_within(&self, name: &OsStr, depth: usize) -> io::Result<()> {
        let below = self.folder(name)?;
        if depth == 0 {
            return Err(io::Error::other("too many folders within each other"));
        }
        let entries: Vec<_> = below.entries()?.collect::<io::Result<_>>()?;
        for (name, kind) in entries {
            match kind {
                Kind::Folder => below.remove_within(&name, depth - 1)?,
                Kind::File | Kind::Other => below.remove(&name)?,
            }
        }
        self.remove_folder(name)
    }

    /// Makes names that were given or removed here survive a power cut.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Takes the folder from all others; what cannot be had comes back in words.
    pub fn make_private(&self) -> Result<(), String> {
        let facts = |e: io::Error| e.to_string();
        let before = self.facts().map_err(facts)?;
        if before.is_open_to_others() {
            let private = rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(0o700));
            private.map_err(|e| format!("others may enter it, and that cannot be changed: {e}"))?;
            // Some file systems say yes and keep what they had.
            if self.facts().map_err(facts)?.is_open_to_others() {
                return Err("others may enter it, and its file system keeps no permissions".into());
            }
        }
        if before.owner != rustix::process::geteuid().as_raw() {
            return Err(format!("it belongs to another user (number {}), who may change it", before.owner));
        }
        Ok(())
    }
}

/// Takes a file from all others.
pub fn make_file_private(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(0o600))?)
}

/// A name, not a path.
fn one_name(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a file name"));
    }
    Ok(name)
}

/// The entries of a folder as they are read.
pub struct Entries<'a> {
    dir: rustix::fs::Dir,
    folder: &'a Folder,
}

impl Iterator for Entries<'_> {
    type Item = io::Result<(OsString, Kind)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.dir.read()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Folder,
                FileType::Unknown => match self.folder.look(&name) {
                    Ok(facts) => facts.kind,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Some(Err(error)),
                },
                _ => Kind::Other,
            };
            return Some(Ok((name, kind)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("file"), "precious").unwrap();
        let folder = Folder::at(&inside).unwrap();
        symlink(&outside, inside.join("folder")).unwrap();
        symlink(outside.join("file"), inside.join("file")).unwrap();
        for error in [
            folder.folder("folder").map(drop).unwrap_err(),
            folder.make_folder("folder").map(drop).unwrap_err(),
            folder.file("file").map(drop).unwrap_err(),
            folder.file("folder").map(drop).unwrap_err(),
            folder.file_to_write("file").map(drop).unwrap_err(),
        ] {
            assert!(is_foreign(&error), "{error}");
        }
        assert_eq!(folder.create("file").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(folder.remove_tree("folder").is_err());
        // A tree of ours that holds links goes, and what they lead to stays.
        let (ours, made) = folder.make_folder("ours").unwrap();
        assert!(made);
        symlink(&outside, inside.join("ours/link")).unwrap();
        ours.make_folder("sub").unwrap();
        folder.remove_tree("ours").unwrap();
        assert!(!inside.join("ours").exists());
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"precious");
        for name in ["", ".", "..", "a/b", "../outside"] {
            assert_eq!(folder.look(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::at(dir.path()).unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap();
        assert!(made.success());
        assert!(is_foreign(&folder.file("pipe").map(drop).unwrap_err()));
    }

    #[test]
    fn what_is_made_belongs_to_its_user_and_what_was_open_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let folder = Folder::at(&path).unwrap();
        folder.make_private().unwrap();
        folder.make_folder("sub").unwrap();
        folder.create("file").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!([&path, &path.join("sub")].map(|path| mode(path)), [0o700; 2]);
        assert_eq!(mode(&path.join("file")), 0o600);
    }

    #[test]
    fn entries_come_with_their_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::at(dir.path()).unwrap();
        folder.create("file").unwrap();
        folder.make_folder("folder").unwrap();
        symlink("folder", dir.path().join("link")).unwrap();
        for _ in 0..2 {
            let mut found: Vec<_> = folder.entries().unwrap().map(Result::unwrap).collect();
            found.sort();
            let kinds = found.iter().map(|(name, kind)| (name.to_str().unwrap(), *kind));
            assert_eq!(
                kinds.collect::<Vec<_>>(),
                [("file", Kind::File), ("folder", Kind::Folder), ("link", Kind::Other)]
            );
        }
    }
}
