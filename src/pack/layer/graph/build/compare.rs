//! Comparing a commit's tree with those of its parents, entry by entry.
//!
//! Trees are compared with the trees at the same path in all parents; what any parent has there under the same name is
//! skipped with all below it. So an object that only moved counts as introduced again: lists may hold more than the exact
//! difference, never less.
//!
//! The parents are compared with one after another: what is left of a tree after the first is compared with the second.
//! So two trees are held at a time, however many parents a commit has.
//!
//! A comparison depends on the two trees alone, so several threads compare at once.
use std::cmp::Ordering;

use gix_object::Kind;

use super::history::NewCommits;
use super::objects::{Hands, Objects};
use super::seen::Seen;
use super::{BuildError, Link};
use crate::pack::Gid;
use crate::pack::meter::{Growing, Held};
use crate::pack::object::{TreeEntries, TreeEntry};

/// What one thread compares with.
pub(super) struct Comparison<'o, 'a> {
    objects: &'o Objects<'a>,
    history: &'o NewCommits<'a>,
    hands: Hands,
    seen: Seen,
}

/// What some commits introduce, one list after another, each sorted.
pub(super) struct Introduced<'a> {
    gids: Vec<Gid>,
    /// Where each commit's list ends.
    ends: Vec<usize>,
    _held: Growing<'a>,
}

impl Introduced<'_> {
    /// The lists, in the order of the commits.
    pub fn lists(&self) -> impl Iterator<Item = &[Gid]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(&start, &end)| &self.gids[start..end])
    }
}

impl<'o, 'a> Comparison<'o, 'a> {
    pub fn new(objects: &'o Objects<'a>, history: &'o NewCommits<'a>) -> Self {
        Self { objects, history, hands: objects.hands(), seen: Seen::new(objects.len()) }
    }

    /// Lists what the commits in `rows` introduce.
    pub fn of(&mut self, rows: &[u32]) -> Result<Introduced<'a>, BuildError> {
        let mut gids = Vec::new();
        let mut ends = Vec::with_capacity(rows.len());
        let mut held = Growing::new(self.objects.meter, 0)?;
        for &row in rows {
            let tree = self.history.tree(row);
            let parents = self.history.parents(row).iter();
            let mut parents: Vec<Gid> = parents.filter_map(|&parent| self.history.tree_of(parent)).collect();
            self.objects.meter.step(parents.len() as u64)?;
            parents.sort_unstable();
            parents.dedup();
            self.seen.forget();
            let start = gids.len();
            self.compare(tree, parents, &mut gids)?;
            held.more(((gids.len() - start) * size_of::<Gid>()) as u64)?;
            gids[start..].sort_unstable();
            ends.push(gids.len());
        }
        Ok(Introduced { gids, ends, _held: held })
    }

    /// Adds to `introduced` what is in `tree` and in none of `parents` at the same path.
    fn compare(&mut self, tree: Gid, parents: Vec<Gid>, introduced: &mut Vec<Gid>) -> Result<(), BuildError> {
        if parents.contains(&tree) {
            return Ok(());
        }
        let meter = self.objects.meter;
        let mut held = Growing::new(meter, 0)?;
        let mut work = vec![(tree, parents)];
        while let Some((tree, parents)) = work.pop() {
            held.less(cost_of(&parents));
            // A second path to the same tree: all below it is introduced or some parent's already.
            if !self.seen.mark(self.objects.position(tree), tree) {
                continue;
            }
            introduced.push(tree);
            for (gid, kind, subtrees) in self.left_of(tree, &parents)? {
                if kind == Kind::Tree {
                    held.more(cost_of(&subtrees))?;
                    work.push((gid, subtrees));
                } else if self.seen.mark(self.objects.position(gid), gid) {
                    // The list, which doubles when it grows, and the mark.
                    held.more(3 * size_of::<Gid>() as u64)?;
                    introduced.push(gid);
                }
            }
        }
        Ok(())
    }

    /// Gives the entries of `tree` that no tree of `parents` has too: each with the trees that the parents have under
    /// its name.
    fn left_of(&mut self, tree: Gid, parents: &[Gid]) -> Result<Vec<(Gid, Kind, Vec<Gid>)>, BuildError> {
        let (meter, hash) = (self.objects.meter, self.objects.hash());
        let bytes = self.objects.bytes(tree, &mut self.hands)?;
        let mut held = Growing::new(meter, bytes.len() as u64)?;
        let mut left: Vec<Left<'_>> = Vec::new();
        let mut parents = parents.iter();
        {
            let first =
                parents.next().map(|&parent| self.objects.bytes(parent, &mut self.hands)).transpose()?;
            let first = first.unwrap_or_default();
            let _first = Held::new(meter, first.len() as u64)?;
            meter.step((bytes.len() + first.len()) as u64 / LEAST_ENTRY)?;
            let mut cursor = Cursor { rest: TreeEntries::new(&first, hash), next: None };
            let mut entries = TreeEntries::new(&bytes, hash);
            loop {
                cursor.skip_common(&mut entries);
                let Some(entry) = entries.next() else { break };
                let entry =
                    entry.map_err(|error| BuildError::Malformed { oid: self.objects.oid(tree), error })?;
                let mut kept = Left { entry, subtrees: Vec::new() };
                if entry.kind().is_some() && !kept.is_in(&mut cursor, self.objects) {
                    held.more(cost_of(&kept.subtrees) + size_of::<Left<'_>>() as u64)?;
                    left.push(kept);
                }
            }
        }
        for &parent in parents {
            if left.is_empty() {
                break;
            }
            let other = self.objects.bytes(parent, &mut self.hands)?;
            let _other = Held::new(meter, other.len() as u64)?;
            meter.step(other.len() as u64 / LEAST_ENTRY + left.len() as u64)?;
            let mut cursor = Cursor { rest: TreeEntries::new(&other, hash), next: None };
            let mut more = 0;
            left.retain_mut(|kept| {
                let before = kept.subtrees.len();
                let keep = !kept.is_in(&mut cursor, self.objects);
                more += kept.subtrees.len() - before;
                keep
            });
            held.more((more * size_of::<Gid>()) as u64)?;
        }
        let found = left.into_iter().map(|Left { entry, subtrees }| {
            let kind = entry.kind().unwrap_or(Kind::Blob);
            Ok((self.objects.need(entry.oid, kind, Link::Entry, tree)?, kind, subtrees))
        });
        found.collect()
    }
}

/// The fewest bytes of an entry of a tree.
const LEAST_ENTRY: u64 = 24;

/// What a tree that is still to be compared takes, with the trees that it is compared with.
fn cost_of(subtrees: &[Gid]) -> u64 {
    (size_of::<(Gid, Vec<Gid>)>() + size_of_val(subtrees)) as u64
}

/// An entry that no parent had so far.
struct Left<'a> {
    entry: TreeEntry<'a>,
    /// The trees that parents have under its name.
    subtrees: Vec<Gid>,
}

impl<'a> Left<'a> {
    /// Says whether the parent that `cursor` reads has the very same entry; if it has another tree there, it is noted.
    fn is_in<'p>(&mut self, cursor: &mut Cursor<'p>, objects: &Objects<'_>) -> bool {
        let Some(other) = cursor.same_name(&self.entry) else { return false };
        let Some(other) = other else { return true };
        if other.oid == self.entry.oid && other.kind() == self.entry.kind() {
            return true;
        }
        if other.kind() == Some(Kind::Tree)
            && self.entry.kind() == Some(Kind::Tree)
            && let Some(tree) = objects.find(other.oid)
        {
            self.subtrees.push(tree);
        }
        false
    }
}

/// A parent's tree, read alongside the commit's.
struct Cursor<'a> {
    rest: TreeEntries<'a>,
    /// Read already, but sorts after what was asked for.
    next: Option<TreeEntry<'a>>,
}

impl<'a> Cursor<'a> {
    /// Skips what both trees have next in the very same bytes, which is most of them.
    fn skip_common(&mut self, entries: &mut TreeEntries<'_>) {
        if self.next.is_none() {
            entries.skip_common(&mut self.rest);
        }
    }

    /// Gives the entry of this tree at the place of `entry`, or none within if it is stored in the very same bytes. To be
    /// asked in sorted order; where a tree is not sorted, matches are missed, which only makes lists longer.
    fn same_name(&mut self, entry: &TreeEntry<'_>) -> Option<Option<TreeEntry<'a>>> {
        if self.next.is_none() && self.rest.skip_equal(entry.raw) {
            return Some(None);
        }
        loop {
            // A malformed parent was refused when it was introduced.
            let other = self.next.take().or_else(|| self.rest.next()?.ok())?;
            match in_tree_order(&other, entry) {
                Ordering::Less => {}
                Ordering::Equal => return Some(Some(other)),
                Ordering::Greater => {
                    self.next = Some(other);
                    return None;
                }
            }
        }
    }
}

/// git's `base_name_compare`: a tree sorts as if its name ended in a slash.
fn in_tree_order(a: &TreeEntry<'_>, b: &TreeEntry<'_>) -> Ordering {
    let common = a.name.len().min(b.name.len());
    let end = |entry: &TreeEntry<'_>| match entry.name.get(common) {
        Some(&byte) => byte,
        None if entry.kind() == Some(Kind::Tree) => b'/',
        None => 0,
    };
    a.name[..common].cmp(&b.name[..common]).then_with(|| end(a).cmp(&end(b)))
}
