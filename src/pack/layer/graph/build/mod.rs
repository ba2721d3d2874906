//! Building a graph: from a pack, its `.idx` and the layers below, proving that nothing is missing.
//!
//! One pass over the entries gives the object columns (`entries`). The commits are read and put in
//! order, parents first (`history`); each one's tree is compared with all its parents' trees, and
//! what is in none of them at the same path is what the commit introduces (`introductions`). Every
//! object met on the way must exist here or below and have the right type, and what is not met is
//! in a parent's tree, proven before: so a built graph is a proof of closure. Last, the tags, and
//! the trees that only tags and refs lead to, are followed (`tips`).
//!
//! Reading entries and commits and comparing trees is shared by threads, and what they find is taken in the order of the
//! history (`ordered`): the graph is the same however many there are.
//!
//! Relies on: the pack was indexed strictly (every object inflates and has the id the `.idx` says);
//! the layers below were built here.
//! Elsewhere: fetching packs (`work::receive`), indexing them (`index`), the file's layout ([`format`](super::format)).
mod compare;
mod entries;
mod history;
mod introductions;
mod objects;
mod ordered;
mod seen;
#[cfg(test)]
mod tests;
mod tips;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};
use gix_object::Kind;

use super::facts::{BLOCK_SIZE, PackFacts};
use super::format::Draft;
use super::view::Damaged;
use super::{CommitColumns, Lists, NONE};
use crate::pack::lru::Spread;
use crate::pack::meter::{Halt, Held, Meter};
use crate::pack::object::Malformed;
use crate::pack::{DecodeError, Gid, Source, Stack};
use compare::{Comparison, Introduced};
use history::NewCommits;
use introductions::Introductions;
use objects::Objects;
use ordered::ordered;

/// What to build a graph from.
pub struct BuildInput<'a> {
    /// The whole pack, complete for its deltas (thin packs completed).
    pub pack: &'a [u8],
    /// The whole `.idx` of it.
    pub idx: Bytes,
    /// The layers the new one will lie on, and their bytes.
    pub below: Option<(&'a Stack, &'a dyn Source)>,
    /// The object hash of the repository.
    pub hash: HashKind,
    /// Every object a ref points to: must exist here or below with all it leads to.
    pub tips: &'a [ObjectId],
    /// The pack's hashes where known already; computed otherwise.
    pub facts: Option<PackFacts>,
    /// How many bytes of decoded trees to keep; [`DEFAULT_CACHE`] is good for most.
    pub cache_bytes: usize,
    /// Threads that work on it; the graph does not depend on how many there are.
    pub threads: usize,
    /// What the build may cost: steps, and bytes held beyond `cache_bytes`.
    pub meter: &'a dyn Meter,
    /// Told `(done, total)` in units of objects, now and then.
    pub progress: &'a dyn Fn(u64, u64),
    /// Set from outside to end the build with [`BuildError::Stopped`].
    pub stop: &'a AtomicBool,
}

/// What one object costs in the columns of the graph and of those who make it.
const BYTES_PER_OBJECT: u64 = 72;
/// Commits whose trees are compared at once: neighbours share most of their trees.
const PIECE: usize = 64;
/// Bytes that cost as much to make or to look through as reading one entry of a tree.
const BYTES_PER_STEP: u64 = 64;

/// A cache of decoded trees that serves repositories of a million objects well: in git/git twice as much saves one
/// hundredth of the work.
pub const DEFAULT_CACHE: usize = 32 << 20;

/// How one object leads to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A commit's parent.
    Parent,
    /// A commit's root tree.
    RootTree,
    /// An entry of a tree.
    Entry,
    /// A tag's target.
    Target,
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Parent => "parent (is the primary shallow or grafted?)",
            Self::RootTree => "root tree",
            Self::Entry => "tree entry",
            Self::Target => "tag target",
        })
    }
}

/// No graph was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The history is not closed: fetch again asking for more, or the primary itself lacks it.
    #[error("object {oid} is missing: it is needed by {needed_by} as its {link}")]
    Missing {
        /// What is neither in the pack nor below.
        oid: ObjectId,
        /// Who names it.
        needed_by: ObjectId,
        /// As what.
        link: Link,
    },
    /// A ref points to an object that is neither in the pack nor below.
    #[error("object {oid} is missing: a ref points to it")]
    MissingTip {
        /// What the ref points to.
        oid: ObjectId,
    },
    /// An object is named as something it is not. git cannot walk this history either.
    #[error("object {oid} is a {found}, but {needed_by} names it as a {expected}")]
    WrongKind {
        /// The object.
        oid: ObjectId,
        /// What it is.
        found: Kind,
        /// What it is named as.
        expected: Kind,
        /// Who names it.
        needed_by: ObjectId,
    },
    /// A commit, tree or tag that git could not walk either.
    #[error("object {oid} cannot be walked")]
    Malformed {
        /// The object.
        oid: ObjectId,
        /// What is wrong with it.
        #[source]
        error: Malformed,
    },
    /// Pack and `.idx` are damaged, thin, or not of each other. Index the pack again.
    #[error("the pack cannot be used: {0}")]
    Pack(&'static str),
    /// An object of a layer below could not be read; see the source whether to try again.
    #[error("a layer below could not be read")]
    Below(#[from] DecodeError),
    /// The `.idx` does not open, or there are more objects than a stack can number.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// It costs more than it may, or nobody waits for it.
    #[error("the graph could not be built: {0}")]
    Halted(#[from] Halt),
    /// `stop` was set.
    #[error("building the graph was stopped")]
    Stopped,
}

impl BuildError {
    /// Says whether the pack itself is at fault, so that building again ends the same way.
    pub fn is_about_the_pack(&self) -> bool {
        !matches!(self, Self::Below(_) | Self::Halted(_) | Self::Stopped)
    }
}

/// Builds the graph of one pack.
pub fn build<'a>(input: BuildInput<'a>) -> Result<Draft, BuildError> {
    let progress = Progress { report: input.progress, stop: input.stop };
    let idx = crate::pack::layer::open_idx(input.idx, input.hash)?;
    let trailer = idx.pack_checksum();
    if !input.pack.ends_with(trailer.as_slice()) {
        return Err(BuildError::Pack("pack and index are not of each other"));
    }
    // Held until the graph is written: the columns are what the caller gets.
    let _columns = Held::new(input.meter, BYTES_PER_OBJECT * u64::from(idx.num_objects()))?;
    input.meter.step(u64::from(idx.num_objects()))?;
    let threads = input.threads;
    let pack = input.pack;
    let (entries, facts) = std::thread::scope(|scope| {
        let is_large = pack.len() > BLOCK_SIZE as usize;
        let hashing =
            (threads > 1 && is_large && input.facts.is_none()).then(|| scope.spawn(|| PackFacts::of(pack)));
        let entries = entries::scan(pack, &idx, input.hash, threads, &progress);
        let facts =
            hashing.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (entries, facts.or(input.facts))
    });
    let entries = entries?;
    let objects = entries.kinds.len() as u32;
    let cache = (input.cache_bytes, threads);
    let mut objects_at = Objects::new(pack, idx, input.hash, entries, input.below, cache, input.meter)?;
    let history = NewCommits::read(&objects_at, threads, &progress)?;
    objects_at.keep_trees();
    let found = {
        let mut introductions = Introductions::new(&objects_at, &history)?;
        let rows = |piece: usize| history.order.chunks(PIECE).nth(piece).unwrap_or_default();
        let mut done = 0;
        let mut take = |introduced: Introduced<'_>| {
            let rows = rows(done);
            introductions.add(rows, &introduced)?;
            done += 1;
            let of = scaled(done * PIECE, history.len(), objects).min(u64::from(objects));
            progress.step(u64::from(objects) + of, 2 * u64::from(objects), 0)
        };
        let compare = |comparison: &mut Comparison<'_, 'a>, piece: usize| comparison.of(rows(piece));
        let begin = || Comparison::new(&objects_at, &history);
        ordered(threads, history.len().div_ceil(PIECE), &begin, &compare, &mut take)?;
        introductions.finish()
    };
    let tags = tips::prove(&objects_at, &found.introducers, input.tips, &progress)?;
    progress.step(2 * u64::from(objects), 2 * u64::from(objects), 0)?;
    objects_at.forget();

    let facts = facts.unwrap_or_else(|| PackFacts::of(pack));
    if facts.len != pack.len() as u64 {
        return Err(BuildError::Pack("the given facts are of another pack"));
    }
    let mut refs =
        Refs { base: objects_at.base(), objects, externals: Vec::new(), known: HashMap::default() };
    let mut commits = CommitColumns::default();
    for row in 0..history.len() as u32 {
        let stored =
            |refs: &mut Refs, gids: &[Gid]| gids.iter().map(|&gid| refs.stored(gid)).collect::<Vec<_>>();
        let (first, again) = found.of(row);
        let lists: [(&mut Lists, &[Gid]); 3] = [
            (&mut commits.parents, history.parents(row)),
            (&mut commits.first, first),
            (&mut commits.again, again),
        ];
        for (list, gids) in lists {
            if !list.push(&stored(&mut refs, gids)) {
                return Err(Damaged::TooMany.into());
            }
        }
        commits.trees.push(refs.stored(history.tree(row)));
    }
    commits.positions = history.positions.clone();
    commits.generations = history.generations.clone();
    commits.dates = history.dates.clone();
    (commits.joins, commits.leaves) = history.into_trunk();

    let mut links = found.introducers;
    for (row, &position) in (0u32..).zip(&commits.positions) {
        set(&mut links, position, row);
    }
    for (row, &(position, _)) in (0u32..).zip(&tags) {
        set(&mut links, position, row);
    }
    let targets = tags.iter().map(|&(_, target)| refs.stored(target)).collect();
    let mut others: Vec<(u32, u32)> =
        found.others.iter().map(|&(gid, commit)| (refs.stored(gid), commit)).collect();
    others.sort_unstable();
    let externals = refs.externals.iter().map(|&gid| objects_at.oid(gid)).collect();
    let dups = objects_at.dups().iter().map(|&(position, _)| position).collect();
    let entries = objects_at.into_entries();
    let deltas = entries.bases.iter().copied().zip(0..).filter(|&(base, _)| base != NONE);
    let mut leaning: Vec<(u32, u32)> = Vec::with_capacity(deltas.clone().count());
    leaning.extend(deltas);
    leaning.sort_unstable();
    Ok(Draft {
        hash: input.hash,
        facts,
        trailer,
        offsets: entries.offsets,
        kinds: entries.kinds,
        raws: entries.raws,
        header_lens: entries.header_lens,
        bases: entries.bases,
        sizes: entries.sizes,
        entry_sizes: entries.entry_sizes,
        ranks: entries.ranks,
        positions: entries.positions,
        links,
        dups,
        externals,
        commits,
        tags: tags.iter().map(|&(position, _)| position).collect(),
        targets,
        other_objects: others.iter().map(|&(object, _)| object).collect(),
        other_commits: others.iter().map(|&(_, commit)| commit).collect(),
        leaning: leaning.into_iter().map(|(_, delta)| delta).collect(),
    })
}

fn set(column: &mut [u32], index: u32, value: u32) {
    if let Some(slot) = column.get_mut(index as usize) {
        *slot = value;
    }
}

fn scaled(done: usize, of: usize, to: u32) -> u64 {
    (done as u64 * u64::from(to)) / (of.max(1) as u64)
}

/// Tells how far the build is, and whether it should end.
struct Progress<'a> {
    report: &'a dyn Fn(u64, u64),
    stop: &'a AtomicBool,
}

impl Progress<'_> {
    /// Called for each unit of work, `count` of which are done in this phase.
    fn step(&self, done: u64, total: u64, count: usize) -> Result<(), BuildError> {
        if count.is_multiple_of(1024) {
            (self.report)(done, total);
        }
        if count.is_multiple_of(64) { self.check_stop() } else { Ok(()) }
    }

    /// Ends the build if it should end.
    fn check_stop(&self) -> Result<(), BuildError> {
        if self.stop.load(Ordering::Relaxed) { Err(BuildError::Stopped) } else { Ok(()) }
    }
}

/// Turns gids of the coming stack into refs of the new layer.
struct Refs {
    base: Gid,
    objects: u32,
    externals: Vec<Gid>,
    known: HashMap<Gid, u32, Spread>,
}

impl Refs {
    fn stored(&mut self, gid: Gid) -> u32 {
        match gid.checked_sub(self.base) {
            Some(position) => position,
            None => {
                let Self { objects, externals, known, .. } = self;
                *known.entry(gid).or_insert_with(|| {
                    externals.push(gid);
                    *objects + (externals.len() - 1) as u32
                })
            }
        }
    }
}

/// Says that nobody introduced an object.
const NOBODY: u32 = NONE;
