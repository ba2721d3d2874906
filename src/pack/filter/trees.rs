//! Walks over trees, for what the graph's introductions cannot tell: whole trees of shallow
//! boundaries and of wanted trees, and filters by path.
//!
//! A port of what git's `list-objects.c` and `list-objects-filter.c` do below a root. Trees are
//! decoded once each where the filter allows it. What a given base tree (one the client has) holds
//! at the same path is left out: both are read side by side, so only differing parts are decoded.
//!
//! Relies on: layers complete (proven when they were built), so every entry is found.
//! Elsewhere: which roots are walked (`plan::select`), decoding (`layer::decode`), directories and patterns (`paths`).
use std::collections::HashSet;
use std::collections::hash_map::Entry;

use bytes::Bytes;

use gix_hash::ObjectId;
use gix_object::Kind;

use super::paths::Paths;
use super::rules::Rules;
use crate::pack::layer::decode;
use crate::pack::meter::{Halt, Held, Meter};
use crate::pack::object::{Malformed, TreeEntries};
use crate::pack::set::{GidMap, GidSet};
use crate::pack::tally::Tally;
use crate::pack::{DecodeError, Gid, Scratch, Source, Stack};

/// Trees of the client that are read beside one tree.
const BASES: usize = 4;

/// What one entry of a set or map takes.
const NOTE: u64 = 32;

/// A tree could not be walked.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// An object could not be read.
    #[error(transparent)]
    Decode(DecodeError),
    /// A tree is no tree: the layer is damaged.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The layers are not complete: build them again.
    #[error("object {0} is in no layer")]
    Missing(ObjectId),
    /// The request needs more trees than the limit allows; the primary should answer it.
    #[error("the request needs more than {0} trees to be read")]
    TooMany(u32),
    /// The job had to end.
    #[error(transparent)]
    Halt(#[from] Halt),
}

impl TreeError {
    /// Says whether nothing is wrong but that it takes more work or memory than one request may have.
    pub fn costs_too_much(&self) -> bool {
        matches!(self, Self::TooMany(_) | Self::Halt(Halt::TooLong { .. } | Halt::TooMuch { .. }))
    }
}

impl From<DecodeError> for TreeError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Halt(halt) => Self::Halt(halt),
            error => Self::Decode(error),
        }
    }
}

/// Trees that need no more bytes than this are not counted one by one.
const SMALL: u64 = 1 << 20;

/// Bounds of the work that tree walks of one request may cause.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Trees decoded.
    pub trees: u32,
    /// Bytes of one object.
    pub object: u64,
    /// Bytes of decoded objects kept in memory.
    pub cache: usize,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { trees: 2_000_000, object: 256 << 20, cache: 32 << 20 }
    }
}

/// Reads the trees of a stack and remembers what it has seen.
pub struct TreeWalk<'a> {
    stack: &'a Stack,
    source: &'a dyn Source,
    rules: Option<&'a Rules<'a>>,
    meter: &'a dyn Meter,
    tally: Tally<'a>,
    scratch: Scratch,
    limit: u32,
    left: u32,
    /// Trees walked, where paths do not matter.
    seen: GidSet,
    /// The shallowest level at which a tree was walked.
    levels: GidMap<u64>,
    /// Trees walked and where, for patterns.
    places: HashSet<(Gid, u32, bool)>,
    paths: Paths<'a>,
    owned: GidSet,
    before: GidMap<Gid>,
}

/// A tree that waits to be walked.
struct Waiting {
    tree: Gid,
    /// Number of its path, if patterns matter.
    path: u32,
    /// The level of its entries.
    level: u64,
    /// Trees of the client at the same path.
    bases: Vec<Gid>,
}

/// A tree of the client, by names.
struct Base<'m> {
    entries: Vec<BaseEntry>,
    _held: Held<'m>,
}

struct BaseEntry {
    name: Bytes,
    kind: Kind,
    oid: ObjectId,
}

impl<'a> TreeWalk<'a> {
    /// Makes a walk that keeps what `rules` keep and counts on `meter`.
    pub fn new(
        stack: &'a Stack,
        source: &'a dyn Source,
        rules: Option<&'a Rules<'a>>,
        limits: &TreeLimits,
        meter: &'a dyn Meter,
    ) -> Result<Self, TreeError> {
        let mut tally = Tally::new(meter);
        // A bit for each object.
        tally.add(u64::from(stack.len()) / 8)?;
        Ok(Self {
            stack,
            source,
            rules,
            meter,
            tally,
            scratch: Scratch::new(limits.cache, limits.object),
            limit: limits.trees,
            left: limits.trees,
            seen: GidSet::new(stack.len()),
            levels: GidMap::default(),
            places: HashSet::new(),
            paths: Paths::new(rules, meter)?,
            owned: GidSet::default(),
            before: GidMap::default(),
        })
    }

    /// The entries of the base trees that were read: objects the client surely has. And for objects that were found
    /// where a base tree has something else of their type: that.
    pub fn into_owned(self) -> (GidSet, GidMap<Gid>) {
        (self.owned, self.before)
    }

    /// Adds to `found` the root tree of a commit and what is below it.
    ///
    /// Leaves out what `bases`, root trees that the client has, hold at the same path, and, if
    /// `within` is given, every tree (with all below it) and blob that is not in it.
    pub fn root(
        &mut self,
        tree: Gid,
        bases: &[Gid],
        within: Option<&GidSet>,
        found: &mut GidSet,
    ) -> Result<(), TreeError> {
        if bases.contains(&tree) || within.is_some_and(|within| !within.contains(tree)) {
            return Ok(());
        }
        if self.rules.is_none_or(|rules| rules.keeps(Kind::Tree, || 0) && rules.keeps_level(0)) {
            found.insert(tree);
        }
        if let Some(&base) = bases.first()
            && self.rules.is_none()
        {
            self.before.insert(tree, base);
        }
        self.below(Waiting { tree, path: 0, level: 1, bases: bases.to_vec() }, within, found)
    }

    /// Adds to `found` what is below a tree that was asked for by its id.
    ///
    /// Its entries count as level 0, since git does not show a given object to its filter.
    pub fn given(&mut self, tree: Gid, found: &mut GidSet) -> Result<(), TreeError> {
        self.below(Waiting { tree, path: 0, level: 0, bases: Vec::new() }, None, found)
    }

    fn below(
        &mut self,
        start: Waiting,
        within: Option<&GidSet>,
        found: &mut GidSet,
    ) -> Result<(), TreeError> {
        let mut waiting = vec![start];
        let (mut most, mut tally) = (1, Tally::new(self.meter));
        while let Some(item) = waiting.pop() {
            if self.is_news(&item)? {
                self.tree(&item, within, found, &mut waiting)?;
            }
            if waiting.len() > most {
                let size = size_of::<Waiting>() + BASES * size_of::<Gid>();
                tally.add(((waiting.len() - most) * size) as u64)?;
                most = waiting.len();
            }
        }
        Ok(())
    }

    /// Says whether walking a tree here and now can find anything, and notes that it is walked.
    fn is_news(&mut self, item: &Waiting) -> Result<bool, Halt> {
        self.meter.step(1)?;
        let Some(rules) = self.rules else { return Ok(self.seen.insert(item.tree)) };
        if !rules.keeps_level(item.level) || !rules.keeps_contents() {
            return Ok(false);
        }
        if !rules.sparse().is_empty() {
            // A wanted tree and a root tree have the same path but not the same level.
            let is_news = self.places.insert((item.tree, item.path, item.level == 0));
            return if is_news { self.tally.add(NOTE).map(|()| true) } else { Ok(false) };
        }
        if !rules.by_path() {
            return Ok(self.seen.insert(item.tree));
        }
        match self.levels.get(&item.tree) {
            Some(&level) if level <= item.level => Ok(false),
            _ => {
                self.levels.insert(item.tree, item.level);
                self.tally.add(NOTE).map(|()| true)
            }
        }
    }

    fn tree(
        &mut self,
        item: &Waiting,
        within: Option<&GidSet>,
        found: &mut GidSet,
        waiting: &mut Vec<Waiting>,
    ) -> Result<(), TreeError> {
        let _room = self.room(item)?;
        let bases = item.bases.iter().map(|&base| self.base(base)).collect::<Result<Vec<_>, _>>()?;
        let bytes = self.read(item.tree)?;
        for entry in TreeEntries::new(&bytes, self.stack.hash()) {
            let entry = entry?;
            self.meter.step(1)?;
            let Some(kind) = entry.kind() else { continue };
            let at_same_path = || bases.iter().flat_map(|base| base.at_name(entry.name));
            // More than one of a name is no tree of git's, but can be sent.
            self.meter.step(at_same_path().count() as u64)?;
            if at_same_path().any(|held| *held.oid == *entry.oid) {
                continue;
            }
            let gid = self.stack.lookup(entry.oid).ok_or_else(|| TreeError::Missing(entry.oid.to_owned()))?;
            if within.is_some_and(|within| !within.contains(gid)) {
                continue;
            }
            if let Some(held) = at_same_path().find(|held| held.kind == kind) {
                self.note_before(gid, held)?;
            }
            if kind == Kind::Tree {
                if self.rules.is_none_or(|rules| rules.keeps(Kind::Tree, || 0)) {
                    found.insert(gid);
                }
                let path = self.paths.down(item.path, entry.name)?;
                let trees = at_same_path().filter(|held| held.kind == Kind::Tree);
                let bases = trees.filter_map(|held| self.stack.lookup(&held.oid)).take(BASES).collect();
                self.tally.add(size_of::<Waiting>() as u64)?;
                waiting.push(Waiting { tree: gid, path, level: item.level + 1, bases });
            } else {
                let by_size = |rules: &Rules<'_>| rules.keeps(Kind::Blob, || self.stack.size(gid));
                if self.rules.is_none_or(by_size) && self.paths.keeps(item.path, entry.name)? {
                    found.insert(gid);
                }
            }
        }
        Ok(())
    }

    /// Room for decoding a tree and those of the client at its place, unless they are small.
    fn room(&self, item: &Waiting) -> Result<Option<Held<'a>>, Halt> {
        let mut bytes = 0;
        for &tree in item.bases.iter().chain([&item.tree]) {
            bytes += decode::peak(self.stack, tree, self.meter)?;
        }
        (bytes > SMALL).then(|| Held::new(self.meter, bytes)).transpose()
    }

    /// Reads a tree of the client, noting that it has all of its entries.
    fn base(&mut self, base: Gid) -> Result<Base<'a>, TreeError> {
        let bytes = self.read(base)?;
        let count = TreeEntries::new(&bytes, self.stack.hash()).count();
        let held = Held::new(self.meter, (bytes.len() + count * size_of::<BaseEntry>()) as u64)?;
        let mut entries = Vec::with_capacity(count);
        for entry in TreeEntries::new(&bytes, self.stack.hash()) {
            let entry = entry?;
            self.meter.step(1)?;
            let Some(kind) = entry.kind() else { continue };
            // Under a filter the client may lack what its trees name.
            if self.rules.is_none()
                && let Some(gid) = self.stack.lookup(entry.oid)
            {
                if self.owned.is_roomless() {
                    self.tally.add(u64::from(self.stack.len()) / 8)?;
                    self.owned = GidSet::new(self.stack.len());
                }
                self.owned.insert(gid);
            }
            entries.push(BaseEntry { name: bytes.slice_ref(entry.name), kind, oid: entry.oid.to_owned() });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Base { entries, _held: held })
    }

    fn note_before(&mut self, gid: Gid, held: &BaseEntry) -> Result<(), Halt> {
        // Under a filter the client may lack what its trees name.
        if self.rules.is_none()
            && let Some(before) = self.stack.lookup(&held.oid)
            && let Entry::Vacant(place) = self.before.entry(gid)
        {
            place.insert(before);
            self.tally.add(NOTE)?;
        }
        Ok(())
    }

    fn read(&mut self, tree: Gid) -> Result<Bytes, TreeError> {
        self.left = self.left.checked_sub(1).ok_or(TreeError::TooMany(self.limit))?;
        let (kind, bytes) = decode::object(self.stack, self.source, tree, &mut self.scratch, self.meter)?;
        if kind != Kind::Tree {
            return Err(Malformed { kind: Kind::Tree, reason: "a tree entry names another type" }.into());
        }
        Ok(bytes)
    }
}

impl Base<'_> {
    /// The entries called `name`.
    fn at_name(&self, name: &[u8]) -> impl Iterator<Item = &BaseEntry> {
        let start = self.entries.partition_point(|held| held.name < name);
        self.entries[start..].iter().take_while(move |held| held.name == name)
    }
}
