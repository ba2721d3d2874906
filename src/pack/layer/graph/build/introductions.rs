//! What each commit introduces: the objects of its tree that are in none of its parents' trees.
//!
//! Trees are compared entry by entry with the trees at the same path in all parents; what any
//! parent has there under the same name is skipped with all below it. So an object that only moved
//! counts as introduced again: lists may hold more than the exact difference, never less.
//!
//! The parents are compared with one after another: what is left of a tree after the first is compared with the second.
//! So two trees are held at a time, however many parents a commit has.
use std::cmp::Ordering;

use gix_object::Kind;

use super::history::{NewCommits, Search};
use super::objects::Objects;
use super::seen::Seen;
use super::{BuildError, Link, NOBODY};
use crate::pack::Gid;
use crate::pack::meter::{Growing, Held};
use crate::pack::object::{TreeEntries, TreeEntry};

/// Collects introductions, commit by commit, parents first.
pub(super) struct Introductions<'o, 'a> {
    objects: &'o mut Objects<'a>,
    history: &'o NewCommits<'a>,
    found: Found,
    seen: Seen,
    search: Search,
    /// Room for the lists in `found`.
    held: Growing<'a>,
}

/// All introductions.
pub(super) struct Found {
    /// Per position: the position of the commit that first introduced it, or [`NOBODY`].
    pub introducers: Vec<u32>,
    /// Further commits, by position, with what they introduced first without being its introducer.
    pub others: Vec<(Gid, u32)>,
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
    pub fn new(objects: &'o mut Objects<'a>, history: &'o NewCommits<'a>) -> Result<Self, BuildError> {
        let count = objects.len() as usize;
        let found = Found {
            introducers: vec![NOBODY; count],
            others: Vec::new(),
            bounds: vec![[0; 3]; history.len()],
            gids: Vec::new(),
        };
        let (seen, search) = (Seen::new(count), Search::new(history.len()));
        let held = Growing::new(objects.meter, 0)?;
        Ok(Self { objects, history, found, seen, search, held })
    }

    pub fn finish(self) -> Found {
        self.found
    }

    /// Adds the commit in `row`, whose parents have been added.
    pub fn add(&mut self, row: u32) -> Result<(), BuildError> {
        let tree = self.history.tree(row);
        let parents = self.history.parents(row).iter().filter_map(|&parent| self.history.tree_of(parent));
        let mut parents: Vec<Gid> = parents.collect();
        self.objects.meter.step(parents.len() as u64)?;
        parents.sort_unstable();
        parents.dedup();
        self.seen.forget();
        let mut introduced = self.compare(tree, parents)?;
        // Kept once as an object of this layer and once as it is stored.
        self.held.more(2 * size_of_val(&introduced[..]) as u64)?;
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
                    let below = self.objects.below();
                    let before = repeats.len();
                    let introducers = below.into_iter().flat_map(|stack| stack.introducers(gid));
                    repeats.extend(introducers.map(|introducer| (introducer, index)));
                    if repeats.len() == before {
                        self.found.others.push((gid, position));
                    }
                }
            }
        }
        if !repeats.is_empty() {
            let mut commits: Vec<Gid> = repeats.iter().map(|&(commit, _)| commit).collect();
            commits.sort_unstable();
            commits.dedup();
            let ancestors = self.history.ancestors(row, &commits, &mut self.search);
            for &(commit, index) in &repeats {
                let at = commits.binary_search(&commit);
                again[index] |= at.is_ok_and(|at| ancestors[at]);
            }
            repeats.dedup_by_key(|&mut (_, index)| index);
            let parallel = repeats.iter().filter(|&&(_, index)| !again[index]);
            self.found.others.extend(parallel.map(|&(_, index)| (introduced[index], position)));
        }
        again
    }

    /// Lists what is in `tree` and in none of `parents` at the same path.
    fn compare(&mut self, tree: Gid, parents: Vec<Gid>) -> Result<Vec<Gid>, BuildError> {
        let mut introduced = Vec::new();
        if parents.contains(&tree) {
            return Ok(introduced);
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
                    held.more(2 * size_of::<Gid>() as u64)?;
                    introduced.push(gid);
                }
            }
        }
        Ok(introduced)
    }

    /// Gives the entries of `tree` that no tree of `parents` has too: each with the trees that the parents have under
    /// its name.
    fn left_of(&mut self, tree: Gid, parents: &[Gid]) -> Result<Vec<(Gid, Kind, Vec<Gid>)>, BuildError> {
        let (meter, hash) = (self.objects.meter, self.objects.hash());
        let bytes = self.objects.bytes(tree)?;
        let mut held = Growing::new(meter, bytes.len() as u64)?;
        let mut left: Vec<Left<'_>> = Vec::new();
        let mut parents = parents.iter();
        {
            let first = parents.next().map(|&parent| self.objects.bytes(parent)).transpose()?;
            let first = first.unwrap_or_default();
            let _first = Held::new(meter, first.len() as u64)?;
            meter.step((bytes.len() + first.len()) as u64 / LEAST_ENTRY)?;
            let mut cursor = Cursor { rest: TreeEntries::new(&first, hash), next: None };
            for entry in TreeEntries::new(&bytes, hash) {
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
            let other = self.objects.bytes(parent)?;
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
