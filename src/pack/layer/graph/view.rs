//! A graph file in use: typed columns over mapped bytes.
//!
//! [`Graph::open`] checks the checksum, the bounds of every section and everything one column says
//! about another (list bounds, refs, positions), in one pass over the columns. After that no access
//! can go out of bounds; asked for an object it does not have, an accessor answers `None`.
//!
//! Relies on: the format (`format`). Elsewhere: several graphs together (`stack`).
use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId, oid};
use gix_object::Kind;
use sha2::{Digest, Sha256};

use super::NONE;
use super::columns::{Csr, U32Iter, U32s, U64s};
use super::format::{CHECKSUM_LEN, HEADER_LEN, MAGIC, ROW_LEN, Section, VERSION, hash_from_code};
use crate::pack::entry::{RawKind, kind_from_code};

/// The most bytes of one block of a pack: it is fetched and held as a whole.
const MOST_BLOCK: u64 = 16 << 20;

/// A graph or `.idx` cannot be used. Fetch it again, or build it again from its pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// The bytes are not what was written.
    #[error("graph is damaged: {0}")]
    Bytes(&'static str),
    /// Written by another version of packmirror; build it again from the pack.
    #[error("graph has version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// The files of one layer do not belong together.
    #[error("graph and index do not belong together: {0}")]
    Mismatch(&'static str),
    /// The layers of one stack do not belong together: this object should be in a layer below.
    #[error("layers are not complete: {0} is in no layer below the one that needs it")]
    NotBelow(ObjectId),
    /// More objects than a gid can number.
    #[error("too many objects in one stack")]
    TooMany,
}

/// The graph of one layer.
#[derive(Debug, Clone)]
pub struct Graph {
    hash: HashKind,
    objects: u32,
    facts: Bytes,
    blocks: Bytes,
    offsets: U64s,
    kinds: Bytes,
    raws: Bytes,
    header_lens: Bytes,
    bases: U32s,
    sizes: U64s,
    entry_sizes: U64s,
    ranks: U32s,
    positions: U32s,
    links: U32s,
    dups: U32s,
    externals: Bytes,
    commits: U32s,
    generations: U32s,
    dates: U64s,
    trees: U32s,
    parents: Csr,
    first: Csr,
    again: Csr,
    tags: U32s,
    targets: U32s,
    other_objects: U32s,
    other_commits: U32s,
    leaning: U32s,
    joins: U32s,
    leaves: U32s,
}

/// Where an entry lies in its pack and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphEntry {
    /// First byte of the entry header.
    pub offset: u64,
    /// First byte after the entry.
    pub end: u64,
    /// Bytes of the entry header.
    pub header_len: u8,
    /// Whole or what kind of delta.
    pub raw: RawKind,
    /// Position of the delta base.
    pub base: Option<u32>,
    /// Inflated size of the entry's data: the object's, or the delta's.
    pub entry_size: u64,
}

impl Graph {
    /// Opens a graph file, checking all of it.
    pub fn open(file: Bytes) -> Result<Self, Damaged> {
        let bad = Damaged::Bytes;
        let body_len = file.len().checked_sub(CHECKSUM_LEN).ok_or(bad("file is cut short"))?;
        let word = |at: usize| -> Option<u32> {
            file.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
        };
        let long = |at: usize| -> Option<usize> {
            let bytes = file.get(at..at + 8)?.first_chunk()?;
            usize::try_from(u64::from_le_bytes(*bytes)).ok()
        };
        let (Some(version), Some(hash), Some(sections)) = (word(4), word(8), word(12)) else {
            return Err(bad("file is cut short"));
        };
        if !file.starts_with(&MAGIC) {
            return Err(bad("not a graph file"));
        }
        if Sha256::digest(&file[..body_len]).as_slice() != &file[body_len..] {
            return Err(bad("checksum does not match"));
        }
        if version != VERSION {
            return Err(Damaged::Version(version));
        }
        let hash = hash_from_code(hash).ok_or(bad("unknown object hash"))?;
        let section = |wanted: Section, width: usize| -> Result<Bytes, Damaged> {
            let row = (0..sections as usize)
                .map(|index| HEADER_LEN + index * ROW_LEN)
                .take_while(|row| row + ROW_LEN <= body_len)
                .find(|&row| word(row) == Some(wanted as u32))
                .ok_or(bad("a section is missing"))?;
            let (start, len) = long(row + 8).zip(long(row + 16)).ok_or(bad("a section is out of bounds"))?;
            let end = start.checked_add(len).filter(|&end| end <= body_len);
            let end = end.ok_or(bad("a section is out of bounds"))?;
            if !len.is_multiple_of(width) {
                return Err(bad("a section has a broken length"));
            }
            Ok(file.slice(start..end))
        };
        let u32s = |wanted| section(wanted, 4).map(U32s);
        let u64s = |wanted| section(wanted, 8).map(U64s);
        let csr = |starts, items| Ok(Csr { starts: u32s(starts)?, items: u32s(items)? });

        let kinds = section(Section::Kinds, 1)?;
        let graph = Self {
            hash,
            objects: u32::try_from(kinds.len()).ok().filter(|&n| n < NONE).ok_or(Damaged::TooMany)?,
            facts: section(Section::Facts, 1)?,
            blocks: section(Section::Blocks, 32)?,
            offsets: u64s(Section::Offsets)?,
            kinds,
            raws: section(Section::Raws, 1)?,
            header_lens: section(Section::HeaderLens, 1)?,
            bases: u32s(Section::Bases)?,
            sizes: u64s(Section::Sizes)?,
            entry_sizes: u64s(Section::EntrySizes)?,
            ranks: u32s(Section::Ranks)?,
            positions: u32s(Section::Positions)?,
            links: u32s(Section::Links)?,
            dups: u32s(Section::Dups)?,
            externals: section(Section::Externals, hash.len_in_bytes())?,
            commits: u32s(Section::Commits)?,
            generations: u32s(Section::Generations)?,
            dates: u64s(Section::Dates)?,
            trees: u32s(Section::Trees)?,
            parents: csr(Section::ParentStarts, Section::Parents)?,
            first: csr(Section::FirstStarts, Section::First)?,
            again: csr(Section::AgainStarts, Section::Again)?,
            tags: u32s(Section::Tags)?,
            targets: u32s(Section::Targets)?,
            other_objects: u32s(Section::OtherObjects)?,
            other_commits: u32s(Section::OtherCommits)?,
            leaning: u32s(Section::Leaning)?,
            joins: u32s(Section::Joins)?,
            leaves: u32s(Section::Leaves)?,
        };
        graph.check()?;
        Ok(graph)
    }

    /// Checks what one column says about another.
    fn check(&self) -> Result<(), Damaged> {
        let (n, c, t) = (self.objects as usize, self.commits.len(), self.tags.len());
        let refs = self.objects as u64 + self.externals().len() as u64;
        let must = |good: bool, what| if good { Ok(()) } else { Err(Damaged::Bytes(what)) };
        must(refs < u64::from(NONE), "too many refs")?;
        must(self.facts.len() == 48 + self.hash.len_in_bytes(), "pack facts have a broken length")?;
        let (len, block) = (self.pack_len(), u64::from(self.block_size()));
        must(
            block > 0 && block <= MOST_BLOCK && len.div_ceil(block) == (self.blocks.len() / 32) as u64,
            "block hashes do not cover the pack",
        )?;
        let bytes_columns = [&self.raws, &self.header_lens].iter().all(|column| column.len() == n);
        let u32_columns =
            [&self.bases, &self.ranks, &self.positions, &self.links].iter().all(|column| column.len() == n);
        must(bytes_columns && u32_columns, "an object column has a broken length")?;
        must(
            self.sizes.0.len() == n * 8 && self.entry_sizes.0.len() == n * 8,
            "a size column has a broken length",
        )?;
        must(self.offsets.0.len() == (n + 1) * 8, "the offsets have a broken length")?;
        must(self.offsets.iter().is_sorted_by(|a, b| a < b), "offsets do not rise")?;
        must(self.offsets.get(self.objects).is_some_and(|end| end <= len), "an entry is outside the pack")?;
        must(self.kinds.iter().all(|&code| kind_from_code(code).is_some()), "unknown object type")?;
        must(self.raws.iter().all(|&code| RawKind::from_u8(code).is_some()), "unknown entry type")?;
        let position = |value: u32| value < self.objects;
        must(self.bases.iter().all(|base| position(base) || base == NONE), "a base is out of bounds")?;
        must(self.ranks.iter().chain(self.positions.iter()).all(position), "a rank is out of bounds")?;
        must(self.links.iter().all(|link| position(link) || link == NONE), "a link is out of bounds")?;
        let rising = |column: &U32s| column.iter().all(position) && column.iter().is_sorted_by(|a, b| a < b);
        must(rising(&self.dups) && rising(&self.commits) && rising(&self.tags), "positions do not rise")?;
        must(
            [&self.generations, &self.trees, &self.joins, &self.leaves]
                .iter()
                .all(|column| column.len() == c),
            "a commit column has a broken length",
        )?;
        must(self.dates.0.len() == c * 8 && self.targets.len() == t, "a commit column has a broken length")?;
        let within = |column: &U32s| column.iter().all(|value| u64::from(value) < refs);
        must(within(&self.trees) && within(&self.targets), "a ref is out of bounds")?;
        must(
            self.other_objects.len() == self.other_commits.len(),
            "the other introducers have a broken length",
        )?;
        let others = within(&self.other_objects) && self.other_objects.iter().is_sorted();
        must(others && self.other_commits.iter().all(position), "the other introducers are broken")?;
        let based = |delta: u32| (self.bases.get(delta).unwrap_or(NONE), delta);
        let leaning = self.leaning.iter().all(|delta| based(delta).0 != NONE)
            && self.leaning.iter().map(based).is_sorted_by(|a, b| a < b);
        must(leaning, "the deltas are not sorted by their bases")?;
        must(self.parents.is_sound(c, refs), "the parents are broken")?;
        must(self.first.is_sound(c, refs), "the introductions are broken")?;
        must(self.again.is_sound(c, refs), "the repeated introductions are broken")?;
        must(self.tags_end(), "tags lead in a circle")
    }

    /// Says whether every chain of tags ends: peeling a tag follows its chain to the end.
    fn tags_end(&self) -> bool {
        // The row from which each row was met first; a chain that meets itself has no end.
        let mut met = vec![NONE; self.tags.len()];
        (0..self.tags.len() as u32).all(|start| {
            let mut next = Some(start);
            while let Some(row) = next {
                match met.get_mut(row as usize) {
                    Some(from) if *from == NONE => *from = start,
                    Some(from) => return *from != start,
                    None => return false,
                }
                next = self.target(row).and_then(|target| self.tag_row(target));
            }
            true
        })
    }

    /// The object hash of the repository.
    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// The number of objects.
    pub fn len(&self) -> u32 {
        self.objects
    }

    /// Says whether the pack is empty.
    pub fn is_empty(&self) -> bool {
        self.objects == 0
    }

    /// SHA-256 of the whole pack: its name in the bucket.
    pub fn pack_sha256(&self) -> [u8; 32] {
        self.facts.first_chunk().copied().unwrap_or_default()
    }

    /// Bytes of the whole pack, git's trailer included.
    pub fn pack_len(&self) -> u64 {
        let bytes = self.facts.get(32..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Bytes per block of the pack.
    pub fn block_size(&self) -> u32 {
        let bytes = self.facts.get(40..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// The hash git wrote at the end of the pack.
    pub fn pack_trailer(&self) -> &[u8] {
        self.facts.get(48..).unwrap_or_default()
    }

    /// SHA-256 of block `block` of the pack.
    pub fn block_hash(&self, block: u64) -> Option<[u8; 32]> {
        let at = usize::try_from(block).ok()?.checked_mul(32)?;
        self.blocks.get(at..)?.first_chunk().copied()
    }

    /// SHA-256 of every block, 32 bytes each, as one slice of the mapped file.
    pub fn block_hashes(&self) -> Bytes {
        self.blocks.clone()
    }

    /// The type of the object at `position`.
    #[inline]
    pub fn kind(&self, position: u32) -> Option<Kind> {
        kind_from_code(*self.kinds.get(position as usize)?)
    }

    /// The size of the object at `position`, inflated and resolved.
    #[inline]
    pub fn size(&self, position: u32) -> Option<u64> {
        self.sizes.get(position)
    }

    /// Where the entry at `position` starts; at [`Self::len`], where the last one ends.
    #[inline]
    pub fn offset(&self, position: u32) -> Option<u64> {
        self.offsets.get(position)
    }

    /// The entry at `position`.
    pub fn entry(&self, position: u32) -> Option<GraphEntry> {
        Some(GraphEntry {
            offset: self.offsets.get(position)?,
            end: self.offsets.get(position.checked_add(1)?)?,
            header_len: *self.header_lens.get(position as usize)?,
            raw: RawKind::from_u8(*self.raws.get(position as usize)?)?,
            base: self.bases.get(position).filter(|&base| base != NONE),
            entry_size: self.entry_sizes.get(position)?,
        })
    }

    /// Positions of the deltas whose base is the object at `position`, sorted.
    pub fn leaning_on(&self, position: u32) -> U32Iter<'_> {
        let base = |bytes: &[u8; 4]| self.bases.get(u32::from_le_bytes(*bytes)).unwrap_or(NONE);
        let deltas = self.leaning.0.as_chunks().0;
        let start = deltas.partition_point(|delta| base(delta) < position);
        let len = deltas.get(start..).unwrap_or_default().partition_point(|delta| base(delta) <= position);
        self.leaning.slice(start as u32, (start + len) as u32)
    }

    /// Finds the object whose entry starts at `offset`.
    pub fn position_at(&self, offset: u64) -> Option<u32> {
        let starts = self.offsets.0.as_chunks().0;
        let at = starts.binary_search_by_key(&offset, |bytes| u64::from_le_bytes(*bytes)).ok()?;
        u32::try_from(at).ok().filter(|&position| position < self.objects)
    }

    /// Where the id of the object at `position` stands in the `.idx`.
    #[inline]
    pub fn rank(&self, position: u32) -> Option<u32> {
        self.ranks.get(position)
    }

    /// The position of the object at `rank` of the `.idx`.
    #[inline]
    pub fn position(&self, rank: u32) -> Option<u32> {
        self.positions.get(rank)
    }

    /// Positions of objects that a layer below holds already, sorted.
    pub fn dups(&self) -> &U32s {
        &self.dups
    }

    /// The ids that refs `>= len()` name: `len() + i` names the i-th.
    pub fn externals(&self) -> impl ExactSizeIterator<Item = &oid> + '_ {
        let width = self.hash.len_in_bytes();
        self.externals.chunks_exact(width).map(oid::from_bytes_unchecked)
    }

    /// Positions of this layer's commits, sorted. The index into it is the commit's row.
    pub fn commits(&self) -> &U32s {
        &self.commits
    }

    /// Positions of this layer's tags, sorted. The index into it is the tag's row.
    pub fn tags(&self) -> &U32s {
        &self.tags
    }

    /// The row of the commit at `position`; `None` for other objects and those held below.
    #[inline]
    pub fn commit_row(&self, position: u32) -> Option<u32> {
        self.row(position, Kind::Commit, &self.commits)
    }

    /// The row of the tag at `position`; `None` for other objects and those held below.
    pub fn tag_row(&self, position: u32) -> Option<u32> {
        self.row(position, Kind::Tag, &self.tags)
    }

    fn row(&self, position: u32, kind: Kind, rows: &U32s) -> Option<u32> {
        let row = self.links.get(position)?;
        (self.kind(position) == Some(kind) && rows.get(row) == Some(position)).then_some(row)
    }

    /// The generation number of the commit in `row`.
    #[inline]
    pub fn generation(&self, row: u32) -> Option<u32> {
        self.generations.get(row)
    }

    /// The first link of the trunk that has the commit in `row` among its ancestors, or is it; [`NONE`] if none has.
    #[inline]
    pub fn joins(&self, row: u32) -> Option<u32> {
        self.joins.get(row)
    }

    /// 1 + the last link of the trunk that the commit in `row` has among its ancestors, or is; 0 if none.
    #[inline]
    pub fn leaves(&self, row: u32) -> Option<u32> {
        self.leaves.get(row)
    }

    /// Committer seconds of the commit in `row`.
    #[inline]
    pub fn date(&self, row: u32) -> Option<u64> {
        self.dates.get(row)
    }

    /// The ref of the root tree of the commit in `row`.
    pub fn tree(&self, row: u32) -> Option<u32> {
        self.trees.get(row)
    }

    /// Refs of the parents of the commit in `row`.
    #[inline]
    pub fn parents(&self, row: u32) -> U32Iter<'_> {
        self.parents.row(row)
    }

    /// Refs of what the commit in `row` introduced and no ancestor is known to have before.
    #[inline]
    pub fn first(&self, row: u32) -> U32Iter<'_> {
        self.first.row(row)
    }

    /// Refs of what the commit in `row` introduced although an ancestor had before.
    #[inline]
    pub fn again(&self, row: u32) -> U32Iter<'_> {
        self.again.row(row)
    }

    /// The ref of the target of the tag in `row`.
    pub fn target(&self, row: u32) -> Option<u32> {
        self.targets.get(row)
    }

    /// Position of the commit that first introduced the tree or blob at `position`.
    #[inline]
    pub fn introducer(&self, position: u32) -> Option<u32> {
        match self.kind(position)? {
            Kind::Tree | Kind::Blob => self.links.get(position).filter(|&link| link != NONE),
            Kind::Commit | Kind::Tag => None,
        }
    }

    /// Positions of further commits that have the object of `stored`, a ref, among their first
    /// introductions: none of them is known to have another as its ancestor.
    pub fn other_introducers(&self, stored: u32) -> U32Iter<'_> {
        let rows = self.other_objects.0.as_chunks().0;
        let start = rows.partition_point(|bytes| u32::from_le_bytes(*bytes) < stored);
        let end = rows.partition_point(|bytes| u32::from_le_bytes(*bytes) <= stored);
        self.other_commits.slice(start as u32, end as u32)
    }
}
