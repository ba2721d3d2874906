//! A set of new objects or rows and of gids below, emptied in no time.
use std::collections::HashSet;

use crate::pack::Gid;
use crate::pack::lru::Spread;

pub(super) struct Seen {
    /// Per object of the new layer: the round in which it was last marked.
    stamps: Vec<u32>,
    round: u32,
    below: HashSet<Gid, Spread>,
}

impl Seen {
    /// An empty set over `count` new objects.
    pub fn new(count: usize) -> Self {
        Self { stamps: vec![0; count], round: 1, below: HashSet::default() }
    }

    /// Empties the set.
    pub fn forget(&mut self) {
        match self.round.checked_add(1) {
            Some(round) => self.round = round,
            None => {
                self.stamps.fill(0);
                self.round = 1;
            }
        }
        self.below.clear();
    }

    /// Marks a new object by its index, or one below by its gid; false if it was marked before.
    pub fn mark(&mut self, index: Option<u32>, gid: Gid) -> bool {
        match index {
            Some(index) => std::mem::replace(&mut self.stamps[index as usize], self.round) != self.round,
            None => self.below.insert(gid),
        }
    }
}
