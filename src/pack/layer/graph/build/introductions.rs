//! What each commit introduces: the objects of its tree that are in none of its parents' trees, and whether an ancestor
//! introduced them before.
//!
//! Relies on: `compare` for the lists, which come from several threads in the order of the history.
use super::compare::Introduced;
use super::history::{NewCommits, Search};
use super::objects::Objects;
use super::{BuildError, NOBODY};
use crate::pack::Gid;
use crate::pack::meter::Growing;

/// Collects introductions, commit by commit, parents first.
pub(super) struct Introductions<'o, 'a> {
    objects: &'o Objects<'a>,
    history: &'o NewCommits<'a>,
    found: Found,
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
    pub fn new(objects: &'o Objects<'a>, history: &'o NewCommits<'a>) -> Result<Self, BuildError> {
        let found = Found {
            introducers: vec![NOBODY; objects.len() as usize],
            others: Vec::new(),
            bounds: vec![[0; 3]; history.len()],
            gids: Vec::new(),
        };
        let held = Growing::new(objects.meter, 0)?;
        Ok(Self { objects, history, found, search: Search::new(history.len()), held })
    }

    pub fn finish(self) -> Found {
        self.found
    }

    /// Adds the commits in `rows`, whose parents have been added or stand before them.
    pub fn add(&mut self, rows: &[u32], introduced: &Introduced<'_>) -> Result<(), BuildError> {
        rows.iter().zip(introduced.lists()).try_for_each(|(&row, introduced)| self.add_one(row, introduced))
    }

    fn add_one(&mut self, row: u32, introduced: &[Gid]) -> Result<(), BuildError> {
        // Kept once as an object of this layer and once as it is stored.
        self.held.more(2 * size_of_val(introduced) as u64)?;
        let start = self.found.gids.len();
        let again = self.known(row, introduced);
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
}
