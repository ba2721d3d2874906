//! Reach: the set of objects that are reachable from the published refs. A want outside of it is not answered from here.
//!
//! An object is reachable if a reachable commit introduced it first: by induction over parents that
//! covers every tree of every reachable commit. A tag makes its target reachable, and trees and
//! blobs that a ref or tag names are walked.
//!
//! Relies on: gids do not change while layers are only added on top.
//! Elsewhere: which refs are published (`mirror`).
use gix_object::Kind;
use roaring::RoaringBitmap;

use super::walk::{Boundary, COMMIT, History};
use crate::pack::filter::trees::{TreeError, TreeLimits, TreeWalk};
use crate::pack::meter::Meter;
use crate::pack::set::{GidSet, Gids};
use crate::pack::{Gid, Source, Stack};

/// The objects reachable from a set of tips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    objects: RoaringBitmap,
    tips: RoaringBitmap,
}

impl Reach {
    /// Computes what `tips` (objects of any type) reach. Costs about one visit per commit.
    pub fn new(
        stack: &Stack,
        source: &dyn Source,
        tips: &[Gid],
        limits: &TreeLimits,
        meter: &dyn Meter,
    ) -> Result<Self, TreeError> {
        let none = Self { objects: RoaringBitmap::new(), tips: RoaringBitmap::new() };
        none.grown(stack, source, tips, limits, meter)
    }

    /// Says whether an object is reachable.
    pub fn contains(&self, gid: Gid) -> bool {
        self.objects.contains(gid)
    }

    /// The number of reachable objects.
    pub fn len(&self) -> u64 {
        self.objects.len()
    }

    /// Says whether nothing is reachable.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The reachable objects.
    pub fn objects(&self) -> &RoaringBitmap {
        &self.objects
    }

    /// The same objects in another stack: gids from `first` on are looked up, those below are what they were. `None` if one of
    /// them is not there.
    pub fn moved(&self, first: Gid, stack: &Stack, to: impl Fn(Gid) -> Option<Gid>) -> Option<Self> {
        let mut objects = GidSet::new(stack.len());
        for gid in &self.objects {
            objects.insert(if gid < first { gid } else { to(gid)? });
        }
        let moved = |tip: Gid| if tip < first { Some(tip) } else { to(tip) };
        let tips = self.tips.iter().map(moved).collect::<Option<_>>()?;
        let mut objects = objects.to_roaring();
        objects.optimize();
        Some(Self { objects, tips })
    }

    /// Computes what `tips` reach from what the old tips reached.
    ///
    /// `None` if something may have become unreachable, so that [`Reach::new`] is needed: an old tip
    /// is neither a tip any more nor an ancestor of one. `stack` may have more layers on top than
    /// the one this was computed with. Costs in proportion to what is new and to how far back old
    /// tips that were merged lie.
    pub fn extend(
        &self,
        stack: &Stack,
        source: &dyn Source,
        tips: &[Gid],
        limits: &TreeLimits,
        meter: &dyn Meter,
    ) -> Result<Option<Self>, TreeError> {
        let kept: RoaringBitmap = tips.iter().copied().collect();
        let gone: Vec<Gid> = (&self.tips - &kept).into_iter().collect();
        if !gone.is_empty() {
            // A tag object, tree or blob may be reachable from its ref alone.
            if gone.iter().any(|&tip| stack.kind(tip) != Kind::Commit) {
                return Ok(None);
            }
            let commits: Vec<Gid> = tips.iter().filter_map(|&tip| stack.to_commit(tip)).collect();
            let none = Gids::default;
            // Old tips that the new tips do not reach are exactly what this walk finds missing.
            let left = Boundary::paint(stack, &gone, &commits, none(), none(), meter)?;
            if !left.missing().is_empty() {
                return Ok(None);
            }
        }
        self.clone().grown(stack, source, tips, limits, meter).map(Some)
    }

    fn grown(
        mut self,
        stack: &Stack,
        source: &dyn Source,
        tips: &[Gid],
        limits: &TreeLimits,
        meter: &dyn Meter,
    ) -> Result<Self, TreeError> {
        let mut found = GidSet::from_roaring(&self.objects, stack.len());
        let mut walk = TreeWalk::new(stack, source, None, limits, meter)?;
        let mut commits = Vec::new();
        for &tip in tips {
            let mut at = tip;
            while let Some(target) = stack.tag_target(at) {
                found.insert(at);
                at = target;
            }
            match stack.kind(at) {
                Kind::Commit => commits.push(at),
                Kind::Tree => {
                    found.insert(at);
                    walk.given(at, &mut found)?;
                }
                Kind::Blob => _ = found.insert(at),
                Kind::Tag => {}
            }
        }
        while let Some(gid) = commits.pop() {
            meter.step(COMMIT)?;
            // All ancestors of a commit in the set are in the set.
            if !found.insert(gid) {
                continue;
            }
            let Some(commit) = stack.commit(gid) else { continue };
            let introduced = commit.first().map(|gid| found.insert(gid)).count();
            meter.step(introduced as u64)?;
            commits.extend(commit.parents());
        }
        self.objects = found.to_roaring();
        self.objects.optimize();
        self.tips = tips.iter().copied().collect();
        Ok(self)
    }
}
