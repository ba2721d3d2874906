//! Walks over trees, for what the graph's introductions cannot tell: whole trees of shallow
//! boundaries and of wanted trees, and filters by path.
//!
//! A port of what git's `list-objects.c` and `list-objects-filter.c` do below a root. Trees are
//! decoded once each where the filter allows it. What a given base tree (one the client has) holds
//! at the same path is left out: both are read side by side, so only differing parts are decoded.
//!
//! Relies on: layers complete (proven when they were built), so every entry is found.
//! Elsewhere: which roots are walked (`select`), decoding (`decode`).
use std::collections::{HashMap, HashSet};

use gix_hash::ObjectId;
use gix_object::Kind;

use super::meter::{self, Halt, Meter};
use super::object::{Malformed, TreeEntries};
use super::rules::Rules;
use super::set::{GidMap, GidSet};
use super::sparse::Verdict;
use super::{DecodeError, Gid, Scratch, Source, Stack, decode};

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
    /// More trees than the limit allows; somebody else should answer this request.
    #[error("the request needs more than {0} trees to be read")]
    TooMany(u32),
    /// The job had to end.
    #[error(transparent)]
    Halt(#[from] Halt),
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
/// From so many subtrees on, those that wait to be walked are counted.
const MANY: usize = 1024;

/// Bounds of the work that tree walks of one request may cause.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Trees decoded.
    pub trees: u32,
    /// Bytes of one object.
    pub object: u64,
    /// Bytes of decoded objects kept at hand.
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
    scratch: Scratch,
    limit: u32,
    left: u32,
    /// Trees walked, where paths do not matter.
    seen: GidSet,
    /// The shallowest level at which a tree was walked.
    levels: GidMap<u64>,
    /// Trees walked and where, for patterns.
    places: HashSet<(Gid, u32)>,
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

/// One entry of a base tree.
struct Held {
    name: Vec<u8>,
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
        Ok(Self {
            stack,
            source,
            rules,
            meter,
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
        while let Some(item) = waiting.pop() {
            if self.is_news(&item) {
                self.tree(&item, within, found, &mut waiting)?;
            }
        }
        Ok(())
    }

    /// Says whether walking a tree here and now can find anything, and notes that it is walked.
    fn is_news(&mut self, item: &Waiting) -> bool {
        let Some(rules) = self.rules else { return self.seen.insert(item.tree) };
        if !rules.keeps_level(item.level) || !rules.keeps_contents() {
            return false;
        }
        if !rules.sparse().is_empty() {
            // A wanted tree and a root tree have the same path but not the same level.
            let place = item.path * 2 + u32::from(item.level == 0);
            return self.places.insert((item.tree, place));
        }
        if !rules.by_path() {
            return self.seen.insert(item.tree);
        }
        match self.levels.get(&item.tree) {
            Some(&level) if level <= item.level => false,
            _ => {
                self.levels.insert(item.tree, item.level);
                true
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
        let bases = item.bases.iter().map(|&base| self.held(base)).collect::<Result<Vec<_>, _>>()?;
        let bytes = self.read(item.tree)?;
        let before = waiting.len();
        for entry in TreeEntries::new(&bytes, self.stack.hash()) {
            let entry = entry?;
            self.meter.step(1)?;
            let Some(kind) = entry.kind() else { continue };
            let at_same_path = || bases.iter().flat_map(|base| at_name(base, entry.name));
            if at_same_path().any(|held| *held.oid == *entry.oid) {
                continue;
            }
            let gid = self.stack.lookup(entry.oid).ok_or_else(|| TreeError::Missing(entry.oid.to_owned()))?;
            if within.is_some_and(|within| !within.contains(gid)) {
                continue;
            }
            if let Some(held) = at_same_path().find(|held| held.kind == kind) {
                self.note_before(gid, held);
            }
            if kind == Kind::Tree {
                if self.rules.is_none_or(|rules| rules.keeps(Kind::Tree, || 0)) {
                    found.insert(gid);
                }
                let path = self.paths.down(item.path, entry.name)?;
                let trees = at_same_path().filter(|held| held.kind == Kind::Tree);
                let bases = trees.filter_map(|held| self.stack.lookup(&held.oid)).collect();
                waiting.push(Waiting { tree: gid, path, level: item.level + 1, bases });
            } else {
                let by_size = |rules: &Rules<'_>| rules.keeps(Kind::Blob, || self.stack.size(gid));
                if self.rules.is_none_or(by_size) && self.paths.keeps(item.path, entry.name)? {
                    found.insert(gid);
                }
            }
        }
        let more = waiting.len() - before;
        if more > MANY {
            self.meter.hold((more * size_of::<Waiting>()) as u64)?;
        }
        Ok(())
    }

    /// Room for reading a tree and those of the client at its place, unless they are small.
    fn room(&self, item: &Waiting) -> Result<Option<meter::Held<'a>>, Halt> {
        let mut bytes = decode::peak(self.stack, item.tree, self.meter)?;
        for &base in &item.bases {
            // Its entries are kept beside its bytes.
            bytes += decode::peak(self.stack, base, self.meter)? + 2 * self.stack.size(base);
        }
        (bytes > SMALL).then(|| meter::Held::new(self.meter, bytes)).transpose()
    }

    /// Reads a tree of the client, noting that it has all of its entries.
    fn held(&mut self, base: Gid) -> Result<Vec<Held>, TreeError> {
        let bytes = self.read(base)?;
        let mut entries = Vec::new();
        for entry in TreeEntries::new(&bytes, self.stack.hash()) {
            let entry = entry?;
            self.meter.step(1)?;
            let Some(kind) = entry.kind() else { continue };
            // Under a filter the client may lack what its trees name.
            if self.rules.is_none()
                && let Some(gid) = self.stack.lookup(entry.oid)
            {
                if self.owned.is_roomless() {
                    self.owned = GidSet::new(self.stack.len());
                }
                self.owned.insert(gid);
            }
            entries.push(Held { name: entry.name.to_vec(), kind, oid: entry.oid.to_owned() });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn note_before(&mut self, gid: Gid, held: &Held) {
        // Under a filter the client may lack what its trees name.
        if self.rules.is_none()
            && let Some(before) = self.stack.lookup(&held.oid)
        {
            self.before.entry(gid).or_insert(before);
        }
    }

    fn read(&mut self, tree: Gid) -> Result<bytes::Bytes, TreeError> {
        self.left = self.left.checked_sub(1).ok_or(TreeError::TooMany(self.limit))?;
        let (kind, bytes) = decode::object(self.stack, self.source, tree, &mut self.scratch, self.meter)?;
        if kind != Kind::Tree {
            return Err(Malformed { kind: Kind::Tree, reason: "a tree entry names another type" }.into());
        }
        Ok(bytes)
    }
}

/// The entries called `name` of a base tree: one, or in a broken tree the first few.
fn at_name<'b>(base: &'b [Held], name: &[u8]) -> impl Iterator<Item = &'b Held> {
    let start = base.partition_point(|held| held.name.as_slice() < name);
    let len = base[start..].iter().take_while(|held| held.name == name).count();
    base[start..start + len.min(4)].iter()
}

/// Directories met on the way, numbered, with what each set of patterns says of them; 0 is the root.
struct Paths<'a> {
    rules: Option<&'a Rules<'a>>,
    meter: &'a dyn Meter,
    known: Vec<(Vec<u8>, Vec<bool>)>,
    numbers: HashMap<(u32, Vec<u8>), u32>,
}

impl<'a> Paths<'a> {
    fn new(rules: Option<&'a Rules<'a>>, meter: &'a dyn Meter) -> Result<Self, Halt> {
        let rules = rules.filter(|rules| !rules.sparse().is_empty());
        let mut paths = Self { rules, meter, known: Vec::new(), numbers: HashMap::new() };
        // git starts with "not selected" (`filter_sparse_oid__init`).
        let above =
            paths.rules.iter().flat_map(|rules| rules.sparse().iter().map(|_| false)).collect::<Vec<_>>();
        let root = paths.judge(&above, b"", true)?;
        paths.known.push((Vec::new(), root));
        Ok(paths)
    }

    /// What each set of patterns says of a path, given what it says of the directory above.
    fn judge(&self, above: &[bool], path: &[u8], is_dir: bool) -> Result<Vec<bool>, Halt> {
        let sets = self.rules.iter().flat_map(|rules| rules.sparse());
        sets.zip(above)
            .map(|(patterns, &above)| {
                Ok(match patterns.judge(path, is_dir, self.meter)? {
                    Verdict::Matched => true,
                    Verdict::NotMatched => false,
                    Verdict::Undecided => above,
                })
            })
            .collect()
    }

    fn join(&self, dir: u32, name: &[u8]) -> (Vec<u8>, &[bool]) {
        let Some((above, verdicts)) = self.known.get(dir as usize) else { return (name.to_vec(), &[]) };
        let mut path = above.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        (path, verdicts)
    }

    /// The number of the directory `name` in `dir`; always 0 if there are no patterns.
    fn down(&mut self, dir: u32, name: &[u8]) -> Result<u32, Halt> {
        if self.rules.is_none() {
            return Ok(0);
        }
        let key = (dir, name.to_vec());
        if let Some(&number) = self.numbers.get(&key) {
            return Ok(number);
        }
        let (path, above) = self.join(dir, name);
        let verdicts = self.judge(above, &path, true)?;
        let number = self.known.len() as u32;
        self.known.push((path, verdicts));
        self.numbers.insert(key, number);
        Ok(number)
    }

    /// Says whether all patterns select the file `name` in `dir`.
    fn keeps(&self, dir: u32, name: &[u8]) -> Result<bool, Halt> {
        if self.rules.is_none() {
            return Ok(true);
        }
        let (path, above) = self.join(dir, name);
        Ok(self.judge(above, &path, false)?.into_iter().all(|selected| selected))
    }
}
