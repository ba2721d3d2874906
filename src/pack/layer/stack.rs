//! A stack: the layers of one repository, its objects numbered through.
//!
//! A layer's first gid is the sum of the objects in the layers below it. An object that several
//! layers hold (a base that completed a thin pack) is known by its lowest gid, the canonical one:
//! that is what every method here returns and expects.
//!
//! Relies on: each layer complete with the layers below it (proven when it was built).
//! Elsewhere: bytes of objects (`decode`), walks and selections (`history::walk`, `plan::select`).
use std::sync::Arc;

use gix_hash::{Kind as HashKind, ObjectId, oid};
use gix_object::Kind;

use super::graph::columns::U32Iter;
use super::graph::{Damaged, NONE};
use crate::pack::entry::RawKind;
use crate::pack::{Gid, Layer};

/// The layers of one repository, lowest first.
pub struct Stack {
    hash: HashKind,
    rows: Vec<Row>,
    layers: Vec<Arc<Layer>>,
    len: u32,
}

/// What the stack knows about one layer beside the layer itself.
struct Row {
    first: Gid,
    /// Gid of each external of the graph.
    externals: Vec<Gid>,
    /// Gid of each external with its ref, sorted.
    by_gid: Vec<(Gid, u32)>,
    /// Canonical gid of each dup of the graph.
    dups: Vec<Gid>,
}

/// Where an object lies, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The layer whose pack holds it.
    pub layer: usize,
    /// Its position in that pack.
    pub position: u32,
    /// First byte of the entry header in that pack.
    pub offset: u64,
    /// First byte after the entry.
    pub end: u64,
    /// Bytes of the entry header; zlib data follows.
    pub header_len: u8,
    /// Whole or what kind of delta.
    pub raw: RawKind,
    /// The canonical gid of the delta base.
    pub base: Option<Gid>,
    /// The position of the delta base in the same pack.
    pub base_local: Option<u32>,
    /// Inflated size of the entry's data: the object's, or the delta's.
    pub entry_size: u64,
}

impl Stack {
    /// Puts `layers`, lowest first, on top of each other. An empty stack has no objects.
    pub fn open(layers: Vec<Arc<Layer>>) -> Result<Self, Damaged> {
        Self::of(layers, false)
    }

    /// Puts some neighbouring layers of a repository on top of each other, without those below them. Objects that lie
    /// below are not known to it: commits lead to no gid there, and what completed a thin pack is the lowest copy there is.
    /// For laying out what the layers hold ([`plan`](mod@crate::pack::plan)), and for no walk.
    pub fn open_part(layers: Vec<Arc<Layer>>) -> Result<Self, Damaged> {
        Self::of(layers, true)
    }

    fn of(layers: Vec<Arc<Layer>>, is_part: bool) -> Result<Self, Damaged> {
        let hash = layers.first().map_or(HashKind::Sha1, |layer| layer.graph.hash());
        let mut stack = Self { hash, rows: Vec::new(), layers: Vec::new(), len: 0 };
        for layer in layers {
            stack.push(layer, is_part)?;
        }
        Ok(stack)
    }

    /// Adds a layer on top. What should lie below and does not is an error, unless this is a part of a stack.
    fn push(&mut self, layer: Arc<Layer>, is_part: bool) -> Result<(), Damaged> {
        if layer.graph.hash() != self.hash {
            return Err(Damaged::Mismatch("object hash of two layers"));
        }
        let first = self.len;
        let below = |oid: &oid, otherwise: Gid| {
            let found = self.lookup(oid).or(is_part.then_some(otherwise));
            found.ok_or_else(|| Damaged::NotBelow(oid.to_owned()))
        };
        let externals = layer.graph.externals().map(|oid| below(oid, NONE));
        let externals: Vec<Gid> = externals.collect::<Result<_, _>>()?;
        let mut by_gid: Vec<(Gid, u32)> = externals.iter().copied().zip(layer.graph.len()..).collect();
        by_gid.sort_unstable();
        let dups = layer
            .graph
            .dups()
            .iter()
            .map(|position| {
                let oid = layer.oid(position).ok_or(Damaged::Bytes("a rank is out of bounds"))?;
                below(&oid, first.saturating_add(position))
            })
            .collect::<Result<_, _>>()?;
        self.len = first.checked_add(layer.graph.len()).filter(|&len| len < NONE).ok_or(Damaged::TooMany)?;
        self.rows.push(Row { first, externals, by_gid, dups });
        self.layers.push(layer);
        Ok(())
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// The object hash of the repository.
    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// The number of gids: entries of all layers, dups included.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Says whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Finds an object by its id, in the lowest layer that holds it.
    pub fn lookup(&self, oid: &oid) -> Option<Gid> {
        let mut layers = self.rows.iter().zip(&self.layers);
        layers.find_map(|(row, layer)| layer.lookup(oid).map(|position| row.first + position))
    }

    /// The layer of a gid and its position there; for a gid beyond [`Self::len`], a position beyond the layer's end.
    #[inline]
    pub fn layer_of(&self, gid: Gid) -> (usize, u32) {
        let layer = self.rows.partition_point(|row| row.first <= gid).saturating_sub(1);
        (layer, gid - self.rows.get(layer).map_or(0, |row| row.first))
    }

    /// The first gid of `layer`.
    pub fn first_gid(&self, layer: usize) -> Gid {
        self.rows.get(layer).map_or(self.len, |row| row.first)
    }

    /// The canonical gid of what lies at `position` of `layer`.
    #[inline]
    pub fn canonical(&self, layer: usize, position: u32) -> Gid {
        let Some((row, held)) = self.rows.get(layer).zip(self.layers.get(layer)) else { return NONE };
        if !row.dups.is_empty()
            && let Some(&below) =
                held.graph.dups().binary_search(position).and_then(|index| row.dups.get(index as usize))
        {
            return below;
        }
        row.first + position
    }

    /// The id of an object; the null id for a gid this stack does not have.
    pub fn oid(&self, gid: Gid) -> ObjectId {
        let (layer, position) = self.layer_of(gid);
        let oid = self.layers.get(layer).and_then(|layer| layer.oid(position));
        oid.unwrap_or_else(|| ObjectId::null(self.hash))
    }

    /// The type of an object; blob for a gid this stack does not have.
    #[inline]
    pub fn kind(&self, gid: Gid) -> Kind {
        let (layer, position) = self.layer_of(gid);
        self.layers.get(layer).and_then(|layer| layer.graph.kind(position)).unwrap_or(Kind::Blob)
    }

    /// The size of an object, inflated and resolved; 0 for a gid this stack does not have.
    #[inline]
    pub fn size(&self, gid: Gid) -> u64 {
        let (layer, position) = self.layer_of(gid);
        self.layers.get(layer).and_then(|layer| layer.graph.size(position)).unwrap_or(0)
    }

    /// Where an object lies, and how; all zero for a gid this stack does not have.
    pub fn entry(&self, gid: Gid) -> Entry {
        let (layer, position) = self.layer_of(gid);
        match self.layers.get(layer).and_then(|held| held.graph.entry(position)) {
            Some(entry) => Entry {
                layer,
                position,
                offset: entry.offset,
                end: entry.end,
                header_len: entry.header_len,
                raw: entry.raw,
                base: entry.base.map(|base| self.canonical(layer, base)),
                base_local: entry.base,
                entry_size: entry.entry_size,
            },
            None => Entry {
                layer,
                position,
                offset: 0,
                end: 0,
                header_len: 0,
                raw: RawKind::Whole,
                base: None,
                base_local: None,
                entry_size: 0,
            },
        }
    }

    /// The objects that a stored delta joins to `gid` in its own layer: the deltas on it, and its base. Gids of that
    /// layer, canonical or not.
    pub fn joined(&self, gid: Gid) -> impl Iterator<Item = Gid> + '_ {
        let (layer, position) = self.layer_of(gid);
        let first = self.first_gid(layer);
        let graph = self.layers.get(layer).map(|held| &held.graph);
        let leaning = graph.into_iter().flat_map(move |graph| graph.leaning_on(position));
        let base = graph.and_then(|graph| graph.entry(position)?.base);
        leaning.chain(base).map(move |position| first + position)
    }

    /// What the graph knows about a commit; `None` if the object is none.
    #[inline]
    pub fn commit(&self, mut gid: Gid) -> Option<Commit<'_>> {
        loop {
            let (layer, position) = self.layer_of(gid);
            let held = self.layers.get(layer)?;
            match held.graph.commit_row(position) {
                Some(row) => return Some(Commit { stack: self, layer, row }),
                None => gid = self.below(gid)?,
            }
        }
    }

    /// The canonical gid of a gid that is not.
    fn below(&self, gid: Gid) -> Option<Gid> {
        let (layer, position) = self.layer_of(gid);
        Some(self.canonical(layer, position)).filter(|&canonical| canonical < gid)
    }

    /// What a tag names directly; `None` if the object is no tag.
    pub fn tag_target(&self, mut gid: Gid) -> Option<Gid> {
        loop {
            let (layer, position) = self.layer_of(gid);
            let graph = &self.layers.get(layer)?.graph;
            match graph.tag_row(position) {
                Some(row) => return graph.target(row).map(|target| self.resolve(layer, target)),
                None => gid = self.below(gid)?,
            }
        }
    }

    /// What an object is after following tags; itself if it is none.
    pub fn peel(&self, gid: Gid) -> Gid {
        // Tags name what existed before them, so this ends; the bound is for damaged graphs.
        let mut peeled = gid;
        for _ in 0..self.len {
            match self.tag_target(peeled) {
                Some(target) => peeled = target,
                None => break,
            }
        }
        peeled
    }

    /// The commit that first introduced a tree or blob into history; `None` if it is neither, or
    /// only a tag or ref leads to it.
    pub fn introducer(&self, mut gid: Gid) -> Option<Gid> {
        loop {
            let (layer, position) = self.layer_of(gid);
            match self.layers.get(layer)?.graph.introducer(position) {
                Some(commit) => return Some(self.first_gid(layer) + commit),
                None => gid = self.below(gid)?,
            }
        }
    }

    /// Every commit that has a tree or blob among its first introductions, [`Self::introducer`]
    /// before others. A client that has one of these commits with its history has the object. An object that was
    /// introduced on several branches side by side has several.
    pub fn introducers(&self, gid: Gid) -> impl Iterator<Item = Gid> + '_ {
        let gid = self.below(gid).unwrap_or(gid);
        let (lowest, _) = self.layer_of(gid);
        let others = (lowest..self.layers.len()).flat_map(move |layer| {
            let first = self.first_gid(layer);
            let commits = self
                .stored(layer, gid)
                .zip(self.layers.get(layer))
                .map(|(stored, held)| held.graph.other_introducers(stored));
            commits.into_iter().flatten().map(move |position| first + position)
        });
        self.introducer(gid).into_iter().chain(others)
    }

    /// Turns a canonical gid into the ref by which `layer` knows it.
    fn stored(&self, layer: usize, gid: Gid) -> Option<u32> {
        let row = self.rows.get(layer)?;
        match gid.checked_sub(row.first) {
            Some(position) => Some(position),
            None => {
                let at = row.by_gid.binary_search_by_key(&gid, |&(external, _)| external).ok()?;
                row.by_gid.get(at).map(|&(_, stored)| stored)
            }
        }
    }

    /// Turns a ref of `layer` into a gid.
    #[inline]
    fn resolve(&self, layer: usize, stored: u32) -> Gid {
        let Some((row, held)) = self.rows.get(layer).zip(self.layers.get(layer)) else { return NONE };
        match stored.checked_sub(held.graph.len()) {
            None => row.first + stored,
            Some(external) => row.externals.get(external as usize).copied().unwrap_or(NONE),
        }
    }
}

/// Where a commit lies along the trunk of its layer, a chain of commits each of which has the one before as its first
/// parent.
///
/// Links are counted from the chain's root. Whether one commit is an ancestor of another can often be told from this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The layer. A commit's ancestors are in its own layer and below.
    pub layer: usize,
    /// The first link that has the commit among its ancestors, or is it; `u32::MAX` if none has.
    pub joins: u32,
    /// 1 + the last link that the commit has among its ancestors, or is; 0 if none.
    pub leaves: u32,
}

/// A commit of a stack.
#[derive(Clone, Copy)]
pub struct Commit<'a> {
    stack: &'a Stack,
    layer: usize,
    row: u32,
}

impl<'a> Commit<'a> {
    fn layer(&self) -> Option<&'a Layer> {
        self.stack.layers.get(self.layer).map(Arc::as_ref)
    }

    /// 1 + the highest generation of the parents; 1 for a root.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.layer().and_then(|layer| layer.graph.generation(self.row)).unwrap_or(0)
    }

    /// Committer time in seconds as git parses it.
    #[inline]
    pub fn date(&self) -> u64 {
        self.layer().and_then(|layer| layer.graph.date(self.row)).unwrap_or(0)
    }

    /// Where it lies along the trunk of its layer.
    #[inline]
    pub fn place(&self) -> Option<Place> {
        let graph = &self.layer()?.graph;
        Some(Place { layer: self.layer, joins: graph.joins(self.row)?, leaves: graph.leaves(self.row)? })
    }

    /// The root tree.
    pub fn tree(&self) -> Gid {
        let tree = self.layer().and_then(|layer| layer.graph.tree(self.row));
        tree.map_or(NONE, |tree| self.stack.resolve(self.layer, tree))
    }

    /// The parents in their order.
    #[inline]
    pub fn parents(&self) -> GidList<'a> {
        self.gids(|layer, row| layer.graph.parents(row))
    }

    /// What this commit introduced and no ancestor is known to have introduced before.
    #[inline]
    pub fn first(&self) -> GidList<'a> {
        self.gids(|layer, row| layer.graph.first(row))
    }

    /// What this commit introduced although an ancestor had introduced it before: its parents'
    /// trees do not have it, but a client that has all ancestors of this commit has it.
    #[inline]
    pub fn again(&self) -> GidList<'a> {
        self.gids(|layer, row| layer.graph.again(row))
    }

    fn gids(&self, column: impl FnOnce(&'a Layer, u32) -> U32Iter<'a>) -> GidList<'a> {
        GidList {
            stack: self.stack,
            layer: self.layer,
            refs: self.layer().map(|layer| column(layer, self.row)),
        }
    }
}

/// The gids of one of a commit's lists.
#[derive(Clone)]
pub struct GidList<'a> {
    stack: &'a Stack,
    layer: usize,
    refs: Option<U32Iter<'a>>,
}

impl Iterator for GidList<'_> {
    type Item = Gid;

    #[inline]
    fn next(&mut self) -> Option<Gid> {
        let stored = self.refs.as_mut()?.next()?;
        Some(self.stack.resolve(self.layer, stored))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.refs.as_ref().map_or((0, Some(0)), Iterator::size_hint)
    }
}

impl ExactSizeIterator for GidList<'_> {}
