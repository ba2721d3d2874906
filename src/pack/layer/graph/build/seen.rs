//! A set of new objects or rows and of gids below, emptied at the price of what was marked.
use std::collections::HashSet;

use crate::pack::Gid;
use crate::pack::lru::Spread;
use crate::pack::set::GidSet;

pub(super) struct Seen {
    /// A bit per object of the new layer.
    new: GidSet,
    /// What is marked in it.
    marked: Vec<u32>,
    below: HashSet<Gid, Spread>,
}

impl Seen {
    /// An empty set over `count` new objects.
    pub fn new(count: u32) -> Self {
        Self { new: GidSet::new(count), marked: Vec::new(), below: HashSet::default() }
    }

    /// Empties the set.
    pub fn forget(&mut self) {
        for index in self.marked.drain(..) {
            self.new.remove(index);
        }
        self.below.clear();
    }

    /// Marks a new object by its index, or one below by its gid; false if it was marked before.
    pub fn mark(&mut self, index: Option<u32>, gid: Gid) -> bool {
        match index {
            Some(index) => {
                let is_new = self.new.insert(index);
                if is_new {
                    self.marked.push(index);
                }
                is_new
            }
            None => self.below.insert(gid),
        }
    }
}
