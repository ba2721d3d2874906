//! The table of the cache's files, in memory: their names, what is proven of them, the order of their use.
//!
//! Elsewhere: the files themselves (`disk`), what a start finds (`listing`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::maps::Map;
use crate::folder::Facts;
use crate::store::{BlobId, BlobKind};

/// What a file holds; its name on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// A block of a pack.
    Block(BlobId, u32),
    /// A whole blob, ready for use.
    Whole(BlobId, BlobKind),
}

impl Name {
    /// The blob that it is of.
    pub(super) fn blob(self) -> BlobId {
        let (Self::Block(id, _) | Self::Whole(id, _)) = self;
        id
    }

    /// The name of its folder: the first two digits of the hash.
    pub(super) fn folder(self) -> String {
        hex::encode(&self.blob().as_bytes()[..1])
    }

    /// The name in that folder.
    pub(super) fn file(self) -> String {
        match self {
            Self::Block(id, n) => format!("{id}.{n}"),
            Self::Whole(id, kind) => format!("{id}.{}", kind.ending()),
        }
    }

    /// The path below the cache directory, for messages.
    pub(super) fn path(self) -> PathBuf {
        [self.folder(), self.file()].iter().collect()
    }

    /// Reads a name in its only spelling.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (id, rest) = name.split_once('.')?;
        let id = id.parse().ok()?;
        let found = match BlobKind::from_ending(rest) {
            Some(kind) => Self::Whole(id, kind),
            None => Self::Block(id, rest.parse().ok()?),
        };
        (found.file() == name).then_some(found)
    }
}

/// What tells a file from a changed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    len: u64,
    modified: (i64, u64),
    inode: u64,
}

impl Stamp {
    /// Reads it from a file as it is now.
    pub fn of(facts: &Facts) -> Self {
        Self { len: facts.len, modified: facts.modified, inode: facts.inode }
    }
}

/// A file that is here.
pub(super) struct Entry {
    pub len: u64,
    pub used: u64,
    pub proven: Option<Stamp>,
    /// A mapping that keeps the disk space even if the file is removed.
    pub mapped: Weak<Map>,
}

/// What lies on the disk, as far as this process knows without looking.
#[derive(Default)]
pub(super) struct State {
    pub entries: HashMap<Name, Entry>,
    /// Oldest use first.
    pub order: BTreeMap<u64, Name>,
    pub bytes: u64,
    pub clock: u64,
    pub refused: Option<Instant>,
    /// Blobs of which nothing is kept.
    pub forbidden: HashSet<BlobId>,
    /// Mappings of files used lately, the latest last: mapping and faulting in costs more than reading a small entry.
    pub kept: VecDeque<Arc<Map>>,
}

impl State {
    /// Enters a file as the one used last.
    pub fn insert(&mut self, name: Name, len: u64, proven: Option<Stamp>) {
        self.remove(name);
        self.clock += 1;
        self.order.insert(self.clock, name);
        self.entries.insert(name, Entry { len, used: self.clock, proven, mapped: Weak::new() });
        self.bytes += len;
    }

    /// Forgets a file.
    pub fn remove(&mut self, name: Name) {
        if let Some(entry) = self.entries.remove(&name) {
            if let Some(map) = entry.mapped.upgrade() {
                self.kept.retain(|kept| !Arc::ptr_eq(kept, &map));
            }
            self.order.remove(&entry.used);
            self.bytes -= entry.len;
        }
    }
}
