//! What each commit introduces: the objects of its tree that are in none of its parents' trees.
//!
//! Trees are compared entry by entry with the trees at the same path in all parents; what any
//! parent has there under the same name is skipped with all below it. So an object that only moved
//! counts as introduced again: lists may hold more than the exact difference, never less.
use std::cmp::Ordering;

use bytes::Bytes;
use gix_object::Kind;

use super::history::{History, Search};
use super::objects::Objects;
use super::seen::Seen;
use super::{BuildError, Link, NOBODY};
use crate::pack::Gid;
use crate::pack::object::{TreeEntries, TreeEntry};

/// Collects introductions, commit by commit, parents first.
pub(super) struct Introductions<'o, 'a> {
    objects: &'o mut Objects<'a>,
    history: &'o History<'a>,
    found: Found,
    seen: Seen,
    search: Search,
}

/// All introductions.
pub(super) struct Found {
    /// Per position: the position of the commit that first introduced it, or [`NOBODY`].
    pub introducers: Vec<u32>,
    /// Per row: start, end of `first`, end of `again` in `gids`.
    bounds: Vec<[usize; 3]>,
    gids: Vec<Gid>,
}

impl Found {
    /// What the commit in `row` introduced: first, and again.
    pub fn of(&self, row: u32) -> (&[Gid], &[Gid]) {
        let [start, middle, end] = self.bounds[row as usize];
        (&self.gids[start..middle], &self.gids[middle..end])
    }
}

impl<'o, 'a> Introductions<'o, 'a> {
    pub fn new(objects: &'o mut Objects<'a>, history: &'o History<'a>) -> Self {
        let count = objects.len() as usize;
        let found =
            Found { introducers: vec![NOBODY; count], bounds: vec![[0; 3]; history.len()], gids: Vec::new() };
        let (seen, search) = (Seen::new(count), Search::new(history.len()));
        Self { objects, history, found, seen, search }
    }

    pub fn finish(self) -> Found {
        self.found
    }

    /// Adds the commit in `row`, whose parents have been added.
    pub fn add(&mut self, row: u32) -> Result<(), BuildError> {
        let tree = self.history.tree(row);
        let parents = self.history.parents(row).iter().filter_map(|&parent| self.history.tree_of(parent));
        let mut parents: Vec<Gid> = parents.collect();
        parents.sort_unstable();
        parents.dedup();
        self.seen.forget();
        let mut introduced = self.compare(tree, parents)?;
        introduced.sort_unstable();
        let start = self.found.gids.len();
        let again = self.known(row, &introduced);
        let mut push = |wanted: bool| {
            let kept = introduced.iter().zip(&again).filter(|&(_, &again)| again == wanted);
            self.found.gids.extend(kept.map(|(&gid, _)| gid));
            self.found.gids.len()
        };
        let middle = push(false);
        let end = push(true);
        self.found.bounds[row as usize] = [start, middle, end];
        Ok(())
    }

    /// Says for each introduced object whether an ancestor of `row` introduced it before, and
    /// records `row` as the introducer of what nobody did.
    fn known(&mut self, row: u32, introduced: &[Gid]) -> Vec<bool> {
        let position = self.history.positions[row as usize];
        let mut again = vec![false; introduced.len()];
        let mut repeats: Vec<(Gid, usize)> = Vec::new();
        for (index, &gid) in introduced.iter().enumerate() {
            match self.objects.position(gid) {
                Some(at) => match &mut self.found.introducers[at as usize] {
                    introducer @ &mut NOBODY => *introducer = position,
                    introducer => repeats.push((self.objects.base() + *introducer, index)),
                },
                None => {
                    let introducer = self.objects.below().and_then(|stack| stack.introducer(gid));
                    repeats.extend(introducer.map(|introducer| (introducer, index)));
                }
            }
        }
        if !repeats.is_empty() {
            let mut commits: Vec<Gid> = repeats.iter().map(|&(commit, _)| commit).collect();
            commits.sort_unstable();
            commits.dedup();
            let ancestors = self.history.ancestors(row, &commits, &mut self.search);
            for (commit, index) in repeats {
                let at = commits.binary_search(&commit);
                again[index] = at.is_ok_and(|at| ancestors[at]);
            }
        }
        again
    }

    /// Lists what is in `tree` and in none of `parents` at the same path.
    fn compare(&mut self, tree: Gid, parents: Vec<Gid>) -> Result<Vec<Gid>, BuildError> {
        let mut introduced = Vec::new();
        if parents.contains(&tree) {
            return Ok(introduced);
        }
        let hash = self.objects.hash();
        let mut work = vec![(tree, parents)];
        while let Some((tree, parents)) = work.pop() {
            // A second path to the same tree: all below it is introduced or some parent's already.
            if !self.seen.mark(self.objects.position(tree), tree) {
                continue;
            }
            introduced.push(tree);
            let bytes = self.objects.bytes(tree)?;
            let parents: Vec<Bytes> =
                parents.iter().map(|&parent| self.objects.bytes(parent)).collect::<Result<_, _>>()?;
            let mut cursors: Vec<Cursor<'_>> = parents
                .iter()
                .map(|bytes| Cursor { rest: TreeEntries::new(bytes, hash), next: None })
                .collect();
            for entry in TreeEntries::new(&bytes, hash) {
                let entry =
                    entry.map_err(|error| BuildError::Malformed { oid: self.objects.oid(tree), error })?;
                let mut subtrees = Vec::new();
                let mut in_parent = false;
                for cursor in &mut cursors {
                    let Some(other) = cursor.same_name(&entry) else { continue };
                    if other.oid == entry.oid && other.kind() == entry.kind() {
                        in_parent = true;
                        break;
                    }
                    if other.kind() == Some(Kind::Tree) {
                        subtrees.push(other.oid);
                    }
                }
                let Some(kind) = entry.kind().filter(|_| !in_parent) else { continue };
                let gid = self.objects.need(entry.oid, kind, Link::Entry, tree)?;
                if kind == Kind::Tree {
                    let subtrees = subtrees.into_iter().filter_map(|subtree| self.objects.find(subtree));
                    work.push((gid, subtrees.collect()));
                } else if self.seen.mark(self.objects.position(gid), gid) {
                    introduced.push(gid);
                }
            }
        }
        Ok(introduced)
    }
}

/// A parent's tree, read alongside the commit's.
struct Cursor<'a> {
    rest: TreeEntries<'a>,
    /// Read already, but sorts after what was asked for.
    next: Option<TreeEntry<'a>>,
}

impl<'a> Cursor<'a> {
    /// Gives the entry of this tree at the place of `entry`. To be asked in sorted order; where a
    /// tree is not sorted, matches are missed, which only makes lists longer.
    fn same_name(&mut self, entry: &TreeEntry<'a>) -> Option<TreeEntry<'a>> {
        if self.next.is_none() && self.rest.skip_equal(entry.raw) {
            return Some(*entry);
        }
        loop {
            // A malformed parent was refused when it was introduced.
            let other = self.next.take().or_else(|| self.rest.next()?.ok())?;
            match in_tree_order(&other, entry) {
                Ordering::Less => {}
                Ordering::Equal => return Some(other),
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
