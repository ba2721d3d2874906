//! The graph as a file: which sections it has, how they are written, how their bounds are read.
//!
//! ```text
//! "PMGR" | version u32 | object hash u32 (1 SHA-1, 2 SHA-256) | sections u32
//! per section: id u32 | 0 u32 | offset u64 | length u64
//! sections, each at a multiple of 8, zeros between
//! SHA-256 of everything before
//! ```
//!
//! All numbers are little-endian. A section is a column of fixed-width values; [`Section`] tells
//! what each holds. A *ref* names an object of this layer by its position `< n`, or the object
//! `externals[ref - n]` of a layer below. In a bucket the file is one zstd frame.
//!
//! Elsewhere: reading the columns (`view`), filling them (`build`).
use std::io::{self, Write};

use gix_hash::{Kind as HashKind, ObjectId};
use sha2::{Digest, Sha256};

use super::facts::PackFacts;

/// The first bytes of a graph file.
pub const MAGIC: [u8; 4] = *b"PMGR";
/// The version written and the only one read. A graph of another version is built again.
pub const VERSION: u32 = 2;
/// Bytes of the fixed header and of one section's row in the table.
pub const HEADER_LEN: usize = 16;
/// Bytes of one section's row in the table.
pub const ROW_LEN: usize = 24;
/// Bytes of the checksum at the end.
pub const CHECKSUM_LEN: usize = 32;

/// The sections of a graph file. `n` objects, `c` commits, `t` tags; positions are in pack order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Section {
    /// SHA-256 of the pack (32 bytes), its length u64, block size u32, 0 u32, git's pack trailer (20 or 32 bytes).
    Facts = 1,
    /// SHA-256 of each block of the pack, 32 bytes each.
    Blocks = 2,
    /// u64 × (n+1): where each entry starts; the last is the end of the last entry.
    Offsets = 3,
    /// u8 × n: object type, 1 commit, 2 tree, 3 blob, 4 tag.
    Kinds = 4,
    /// u8 × n: 0 whole, 6 offset delta, 7 reference delta.
    Raws = 5,
    /// u8 × n: bytes of the entry header.
    HeaderLens = 6,
    /// u32 × n: position of the delta base, or NONE.
    Bases = 7,
    /// u64 × n: size of the object, inflated and resolved.
    Sizes = 8,
    /// u64 × n: size that the entry header states (of the delta, for a delta).
    EntrySizes = 9,
    /// u32 × n: rank of the object's id in the `.idx`.
    Ranks = 10,
    /// u32 × n: position of the object at each rank of the `.idx`.
    Positions = 11,
    /// u32 × n: commit or tag: its row in the tables below; tree or blob: position of the commit
    /// that first introduced it; NONE for an object that a layer below holds or nobody introduces.
    Links = 12,
    /// u32, sorted: positions of objects that a layer below holds already.
    Dups = 13,
    /// Object ids, raw: what refs `>= n` name.
    Externals = 14,
    /// u32 × c, sorted: position of each commit.
    Commits = 15,
    /// u32 × c: 1 + the highest generation of its parents, 1 for a root.
    Generations = 16,
    /// u64 × c: committer time in seconds.
    Dates = 17,
    /// u32 × c: ref of the root tree.
    Trees = 18,
    /// u32 × (c+1): where each commit's parents start.
    ParentStarts = 19,
    /// Refs of parents.
    Parents = 20,
    /// u32 × (c+1): where each commit's first introductions start.
    FirstStarts = 21,
    /// Refs of objects that no ancestor is known to have introduced before.
    First = 22,
    /// u32 × (c+1): where each commit's repeated introductions start.
    AgainStarts = 23,
    /// Refs of objects that an ancestor has introduced before.
    Again = 24,
    /// u32 × t, sorted: position of each tag.
    Tags = 25,
    /// u32 × t: ref of the tag's target.
    Targets = 26,
    /// u32, sorted: refs of objects in `First` of a commit that is not the one in `Links` (of this
    /// layer or of the object's own), once per such commit.
    OtherObjects = 27,
    /// u32, as many: position of that commit.
    OtherCommits = 28,
    /// u32: positions of all deltas, sorted by their base, then by themselves.
    Leaning = 29,
    /// u32 × c: the first link of the layer's trunk (the chain of first parents of a commit of the highest generation,
    /// counted from its root) that has the commit among its ancestors, or is it; NONE if no link has.
    Joins = 30,
    /// u32 × c: 1 + the last link of the trunk that is among the commit's ancestors, or is it; 0 if none is.
    Leaves = 31,
}

/// Gives the number a graph file uses for an object hash.
pub fn hash_code(hash: HashKind) -> u32 {
    match hash {
        HashKind::Sha1 => 1,
        HashKind::Sha256 => 2,
        // gix_hash::Kind is open for more; 0 is refused when read.
        _ => 0,
    }
}

/// Reads a number written by [`hash_code`].
pub fn hash_from_code(code: u32) -> Option<HashKind> {
    match code {
        1 => Some(HashKind::Sha1),
        2 => Some(HashKind::Sha256),
        _ => None,
    }
}

/// A list of refs per row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lists {
    /// Where each row starts in `items`; one more than rows.
    pub starts: Vec<u32>,
    /// All rows, one after another.
    pub items: Vec<u32>,
}

impl Default for Lists {
    fn default() -> Self {
        Self { starts: vec![0], items: Vec::new() }
    }
}

impl Lists {
    /// Appends a row; false if the table is full.
    #[must_use]
    pub fn push(&mut self, row: &[u32]) -> bool {
        self.items.extend_from_slice(row);
        let end = u32::try_from(self.items.len());
        self.starts.push(end.unwrap_or(u32::MAX));
        end.is_ok()
    }
}

/// The columns of commits, rows sorted by position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitColumns {
    /// [`Section::Commits`]
    pub positions: Vec<u32>,
    /// [`Section::Generations`]
    pub generations: Vec<u32>,
    /// [`Section::Dates`]
    pub dates: Vec<u64>,
    /// [`Section::Trees`]
    pub trees: Vec<u32>,
    /// [`Section::Parents`]
    pub parents: Lists,
    /// [`Section::First`]
    pub first: Lists,
    /// [`Section::Again`]
    pub again: Lists,
    /// [`Section::Joins`]
    pub joins: Vec<u32>,
    /// [`Section::Leaves`]
    pub leaves: Vec<u32>,
}

/// A graph in the making: every column as [`Section`] describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // each field is the section of the same name
pub struct Draft {
    pub hash: HashKind,
    pub facts: PackFacts,
    /// The hash that git wrote at the end of the pack.
    pub trailer: ObjectId,
    pub offsets: Vec<u64>,
    pub kinds: Vec<u8>,
    pub raws: Vec<u8>,
    pub header_lens: Vec<u8>,
    pub bases: Vec<u32>,
    pub sizes: Vec<u64>,
    pub entry_sizes: Vec<u64>,
    pub ranks: Vec<u32>,
    pub positions: Vec<u32>,
    pub links: Vec<u32>,
    pub dups: Vec<u32>,
    pub externals: Vec<ObjectId>,
    pub commits: CommitColumns,
    pub tags: Vec<u32>,
    pub targets: Vec<u32>,
    pub other_objects: Vec<u32>,
    pub other_commits: Vec<u32>,
    pub leaning: Vec<u32>,
}

/// One section about to be written.
enum Column<'a> {
    U8(&'a [u8]),
    U32(&'a [u32]),
    U64(&'a [u64]),
    Hashes(&'a [[u8; 32]]),
    Ids(&'a [ObjectId], usize),
    Bytes(Vec<u8>),
}

impl Column<'_> {
    fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::U32(values) => values.len() * 4,
            Self::U64(values) => values.len() * 8,
            Self::Hashes(values) => values.len() * 32,
            Self::Ids(values, width) => values.len() * width,
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::U8(values) => out.write_all(values),
            Self::U32(values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
            Self::U64(values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
            Self::Hashes(values) => values.iter().try_for_each(|value| out.write_all(value)),
            Self::Ids(values, _) => values.iter().try_for_each(|value| out.write_all(value.as_slice())),
            Self::Bytes(bytes) => out.write_all(bytes),
        }
    }
}

/// Counts and hashes what is written through it.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    hasher: Sha256,
    len: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Draft {
    fn columns(&self) -> Vec<(Section, Column<'_>)> {
        use Column::*;
        let mut facts = self.facts.sha256.to_vec();
        facts.extend_from_slice(&self.facts.len.to_le_bytes());
        facts.extend_from_slice(&self.facts.block_size.to_le_bytes());
        facts.extend_from_slice(&[0; 4]);
        facts.extend_from_slice(self.trailer.as_slice());
        let commits = &self.commits;
        vec![
            (Section::Facts, Bytes(facts)),
            (Section::Blocks, Hashes(&self.facts.blocks)),
            (Section::Offsets, U64(&self.offsets)),
            (Section::Kinds, U8(&self.kinds)),
            (Section::Raws, U8(&self.raws)),
            (Section::HeaderLens, U8(&self.header_lens)),
            (Section::Bases, U32(&self.bases)),
            (Section::Sizes, U64(&self.sizes)),
            (Section::EntrySizes, U64(&self.entry_sizes)),
            (Section::Ranks, U32(&self.ranks)),
            (Section::Positions, U32(&self.positions)),
            (Section::Links, U32(&self.links)),
            (Section::Dups, U32(&self.dups)),
            (Section::Externals, Ids(&self.externals, self.hash.len_in_bytes())),
            (Section::Commits, U32(&commits.positions)),
            (Section::Generations, U32(&commits.generations)),
            (Section::Dates, U64(&commits.dates)),
            (Section::Trees, U32(&commits.trees)),
            (Section::ParentStarts, U32(&commits.parents.starts)),
            (Section::Parents, U32(&commits.parents.items)),
            (Section::FirstStarts, U32(&commits.first.starts)),
            (Section::First, U32(&commits.first.items)),
            (Section::AgainStarts, U32(&commits.again.starts)),
            (Section::Again, U32(&commits.again.items)),
            (Section::Tags, U32(&self.tags)),
            (Section::Targets, U32(&self.targets)),
            (Section::OtherObjects, U32(&self.other_objects)),
            (Section::OtherCommits, U32(&self.other_commits)),
            (Section::Leaning, U32(&self.leaning)),
            (Section::Joins, U32(&commits.joins)),
            (Section::Leaves, U32(&commits.leaves)),
        ]
    }

    /// Writes the graph file to `out`, in pieces of 64 KiB.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let hashing = Hashing { out, hasher: Sha256::new(), len: 0 };
        let mut out = io::BufWriter::with_capacity(1 << 16, hashing);
        let columns = self.columns();
        out.write_all(&MAGIC)?;
        for value in [VERSION, hash_code(self.hash), columns.len() as u32] {
            out.write_all(&value.to_le_bytes())?;
        }
        let mut at = HEADER_LEN + columns.len() * ROW_LEN;
        for (section, column) in &columns {
            at = at.next_multiple_of(8);
            out.write_all(&(*section as u32).to_le_bytes())?;
            out.write_all(&[0; 4])?;
            out.write_all(&(at as u64).to_le_bytes())?;
            out.write_all(&(column.len() as u64).to_le_bytes())?;
            at += column.len();
        }
        let mut at = HEADER_LEN + columns.len() * ROW_LEN;
        for (_, column) in &columns {
            let start = at.next_multiple_of(8);
            out.write_all(&[0; 8][..start - at])?;
            column.write(&mut out)?;
            at = start + column.len();
        }
        let Hashing { out, hasher, .. } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.write_all(&hasher.finalize())?;
        out.flush()
    }

    /// Gives the graph file as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to memory fails only where allocating would have ended the process.
        let _ = self.write_to(&mut bytes);
        bytes
    }
}

/// Packs a graph file as [`compress`] does, piece by piece.
pub fn compress_to(graph: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let mut encoder = zstd::stream::Encoder::new(out, 3)?;
    // The frame states the length, as one that is made at once does.
    encoder.set_pledged_src_size(Some(graph.len() as u64))?;
    encoder.write_all(graph)?;
    encoder.finish()?.flush()
}

/// Packs a graph file into the zstd frame that is stored in a bucket.
pub fn compress(graph: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(graph, 3)
}

/// Unpacks what [`compress`] made, at most `limit` bytes.
pub fn decompress(frame: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(frame, limit)
}
