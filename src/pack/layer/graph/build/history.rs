//! The new commits: read, put in order, numbered by generation, and asked for their ancestors.
use std::collections::VecDeque;

use gix_object::Kind;

use super::objects::{Hands, Objects};
use super::ordered::ordered;
use super::seen::Seen;
use super::{BuildError, Link, NONE, Progress, set};
use crate::pack::meter::{Growing, Held};
use crate::pack::{Gid, Stack, object};

/// How many commits a search for an ancestor looks at. Giving up makes a list longer, never wrong.
const MAX_STEPS: usize = 2000;
/// How many parents of them it looks at.
const MAX_PARENTS: usize = 100_000;
/// What a parent costs in the columns of the graph and of those who make it.
const BYTES_PER_PARENT: u64 = 16;
/// Commits that are read at once.
const PIECE: usize = 256;

/// The commits of the new layer. A row is an index into its columns, in the order of positions.
pub(super) struct NewCommits<'a> {
    base: Gid,
    below: Option<&'a Stack>,
    pub positions: Vec<u32>,
    pub generations: Vec<u32>,
    pub dates: Vec<u64>,
    /// All rows, parents before children.
    pub order: Vec<u32>,
    trees: Vec<Gid>,
    parent_starts: Vec<usize>,
    parents: Vec<Gid>,
    /// Per position: the row of the commit there, or NONE.
    rows: Vec<u32>,
    trunk: Trunk,
    /// Room for what is kept of each commit.
    held: Growing<'a>,
}

impl<'a> NewCommits<'a> {
    pub fn read(objects: &Objects<'a>, threads: usize, progress: &Progress<'_>) -> Result<Self, BuildError> {
        let positions = objects.new_of(Kind::Commit);
        let mut history = Self {
            base: objects.base(),
            below: objects.below(),
            generations: vec![0; positions.len()],
            dates: Vec::with_capacity(positions.len()),
            order: Vec::with_capacity(positions.len()),
            trees: Vec::with_capacity(positions.len()),
            parent_starts: vec![0],
            parents: Vec::new(),
            rows: vec![NONE; objects.len() as usize],
            trunk: Trunk::default(),
            held: Growing::new(objects.meter, 64 * positions.len() as u64)?,
            positions,
        };
        let len = u64::from(objects.len());
        let Self { positions, dates, trees, parent_starts, parents, held, base, .. } = &mut history;
        let read = |hands: &mut Hands, piece: usize| {
            let rows = positions.chunks(PIECE).nth(piece).unwrap_or_default();
            let mut held = Growing::new(objects.meter, 0)?;
            let mut commits = Vec::with_capacity(rows.len());
            for &position in rows {
                let commit = Commit::read(objects, *base + position, hands)?;
                held.more(size_of_val(&commit.parents[..]) as u64)?;
                commits.push(commit);
            }
            Ok((commits, held))
        };
        let mut take = |(piece, _held): (Vec<Commit>, Growing<'a>)| -> Result<(), BuildError> {
            for commit in piece {
                progress.step(len, 2 * len, dates.len())?;
                held.more(BYTES_PER_PARENT * commit.parents.len() as u64)?;
                parents.extend(commit.parents);
                parent_starts.push(parents.len());
                trees.push(commit.tree);
                dates.push(commit.date);
            }
            Ok(())
        };
        ordered(threads, positions.len().div_ceil(PIECE), &|| objects.hands(), &read, &mut take)?;
        for (row, &position) in (0u32..).zip(&history.positions) {
            set(&mut history.rows, position, row);
        }
        history.sort()?;
        history.trunk = Trunk::find(&history);
        Ok(history)
    }

    /// Per row: where it joins the trunk and where it leaves it.
    pub fn into_trunk(self) -> (Vec<u32>, Vec<u32>) {
        (self.trunk.joins, self.trunk.leaves)
    }

    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// The row of a commit of the new layer.
    pub fn row(&self, gid: Gid) -> Option<u32> {
        let row = self.rows.get(gid.checked_sub(self.base)? as usize)?;
        (*row != NONE).then_some(*row)
    }

    pub fn parents(&self, row: u32) -> &[Gid] {
        &self.parents[self.parent_starts[row as usize]..self.parent_starts[row as usize + 1]]
    }

    pub fn tree(&self, row: u32) -> Gid {
        self.trees[row as usize]
    }

    /// The root tree of any commit, here or below.
    pub fn tree_of(&self, commit: Gid) -> Option<Gid> {
        match self.row(commit) {
            Some(row) => Some(self.tree(row)),
            None => Some(self.below?.commit(commit)?.tree()),
        }
    }

    fn generation(&self, commit: Gid) -> u32 {
        match self.row(commit) {
            Some(row) => self.generations[row as usize],
            None => self.below.and_then(|stack| stack.commit(commit)).map_or(0, |commit| commit.generation()),
        }
    }

    /// Orders the rows, parents first, otherwise as git ordered the pack from its end: oldest first.
    fn sort(&mut self) -> Result<(), BuildError> {
        let mut state = vec![State::New; self.len()];
        let mut path: Vec<u32> = Vec::new();
        for start in (0..self.len() as u32).rev() {
            path.push(start);
            while let Some(&row) = path.last() {
                match state[row as usize] {
                    State::Done => {
                        path.pop();
                    }
                    State::New => {
                        state[row as usize] = State::Open;
                        // Reversed, so that the first parent's side comes first.
                        let range = self.parent_starts[row as usize]..self.parent_starts[row as usize + 1];
                        for &parent in self.parents[range].iter().rev() {
                            let Some(parent) = self.row(parent) else { continue };
                            match state[parent as usize] {
                                State::New => path.push(parent),
                                State::Open => return Err(BuildError::Pack("a commit is its own ancestor")),
                                State::Done => {}
                            }
                        }
                    }
                    State::Open => {
                        path.pop();
                        state[row as usize] = State::Done;
                        let parents = self.parents(row).iter().map(|&parent| self.generation(parent));
                        let generation = parents.max().unwrap_or(0).saturating_add(1);
                        self.generations[row as usize] = generation;
                        self.order.push(row);
                    }
                }
            }
        }
        Ok(())
    }

    /// Says for each of `targets`, sorted commits here or below, whether it is surely an ancestor of `row`.
    pub fn ancestors(&self, row: u32, targets: &[Gid], search: &mut Search) -> Vec<bool> {
        let by_trunk = |&target: &Gid| self.row(target).is_some_and(|target| self.trunk.reaches(row, target));
        let mut found: Vec<bool> = targets.iter().map(by_trunk).collect();
        let mut left = found.iter().filter(|&&found| !found).count();
        let open = targets.iter().zip(&found).filter(|&(_, &found)| !found);
        let Some(lowest) = open.map(|(&target, _)| self.generation(target)).min() else { return found };
        // What the trunk reaches was answered by it, but the trunk does not tell of commits below.
        let all_here = targets.first().is_some_and(|&target| target >= self.base);
        search.seen.forget();
        search.queue.clear();
        let mut parents_left = MAX_PARENTS;
        let visit = |search: &mut Search, parent: Gid| {
            let parent_row = self.row(parent);
            if all_here && parent_row.is_none_or(|parent| self.trunk.reaches(row, parent)) {
                return;
            }
            if self.generation(parent) >= lowest && search.seen.mark(parent_row, parent) {
                search.queue.push_back(parent);
            }
        };
        self.parents(row).iter().take(MAX_PARENTS).for_each(|&parent| visit(search, parent));
        for _ in 0..MAX_STEPS {
            let Some(commit) = search.queue.pop_front().filter(|_| parents_left > 0) else { break };
            if let Ok(at) = targets.binary_search(&commit)
                && !std::mem::replace(&mut found[at], true)
            {
                left -= 1;
                if left == 0 {
                    break;
                }
            }
            match self.row(commit) {
                Some(row) => {
                    let parents = self.parents(row).iter().take(parents_left);
                    parents_left -= parents.len();
                    parents.for_each(|&parent| visit(search, parent));
                }
                None => {
                    let commit = self.below.and_then(|stack| stack.commit(commit));
                    for parent in commit.into_iter().flat_map(|commit| commit.parents()).take(parents_left) {
                        parents_left -= 1;
                        visit(search, parent);
                    }
                }
            }
        }
        found
    }
}

/// A commit as it is read.
struct Commit {
    tree: Gid,
    date: u64,
    parents: Vec<Gid>,
}

impl Commit {
    fn read(objects: &Objects<'_>, gid: Gid, hands: &mut Hands) -> Result<Self, BuildError> {
        let bytes = objects.bytes(gid, hands)?;
        let _held = Held::new(objects.meter, 2 * bytes.len() as u64)?;
        let links = object::commit(&bytes, objects.hash())
            .map_err(|error| BuildError::Malformed { oid: objects.oid(gid), error })?;
        objects.meter.step(links.parents.len() as u64)?;
        let parents =
            links.parents.iter().map(|parent| objects.need(parent, Kind::Commit, Link::Parent, gid));
        let parents = parents.collect::<Result<_, _>>()?;
        let tree = objects.need(&links.tree, Kind::Tree, Link::RootTree, gid)?;
        Ok(Self { tree, date: links.date, parents })
    }
}

/// What a search for ancestors needs, kept between searches.
pub(super) struct Search {
    seen: Seen,
    queue: VecDeque<Gid>,
}

impl Search {
    /// Ready for a history of `rows` commits.
    pub fn new(rows: usize) -> Self {
        Self { seen: Seen::new(rows as u32), queue: VecDeque::new() }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    Open,
    Done,
}

/// The trunk: the chain of first parents of a commit of the highest generation, which reaches most of a history.
///
/// For each commit two numbers: the first link of the chain that reaches it, and the last link it
/// reaches. An ancestor by way of the chain is then one comparison, however far away.
#[derive(Default)]
struct Trunk {
    /// Per row: the first link of the chain that has it among its ancestors, or is it.
    joins: Vec<u32>,
    /// Per row: 1 + the last link of the chain that it has among its ancestors, or is; 0 for none.
    leaves: Vec<u32>,
}

impl Trunk {
    fn find(history: &NewCommits<'_>) -> Self {
        let rows = history.len();
        let mut chain = Vec::new();
        let mut next = (0..rows as u32).max_by_key(|&row| history.generations[row as usize]);
        while let Some(row) = next {
            chain.push(row);
            next = history.parents(row).first().and_then(|&parent| history.row(parent));
        }
        chain.reverse();
        let mut trunk = Self { joins: vec![u32::MAX; rows], leaves: vec![0; rows] };
        let mut path = Vec::new();
        for (link, &row) in (0u32..).zip(&chain) {
            trunk.leaves[row as usize] = link + 1;
            path.push(row);
            while let Some(row) = path.pop() {
                if trunk.joins[row as usize] == u32::MAX {
                    trunk.joins[row as usize] = link;
                    path.extend(history.parents(row).iter().filter_map(|&parent| history.row(parent)));
                }
            }
        }
        for &row in &history.order {
            let parents = history.parents(row).iter().filter_map(|&parent| history.row(parent));
            let leaves = parents.map(|parent| trunk.leaves[parent as usize]).max().unwrap_or(0);
            trunk.leaves[row as usize] = trunk.leaves[row as usize].max(leaves);
        }
        trunk
    }

    /// Says whether `target` is an ancestor of `row`, or is it, by way of the chain.
    fn reaches(&self, row: u32, target: u32) -> bool {
        self.joins[target as usize] < self.leaves[row as usize]
    }
}
