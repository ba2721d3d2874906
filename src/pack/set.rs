//! Sets of objects while an answer is put together.
//!
//! A fetch touches objects in no order and asks "is it in?" for each of them, so a plain bit per
//! object of the stack is the fastest and is small: one megabyte for eight million objects.
//! What is kept longer is a `RoaringBitmap`.
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use roaring::RoaringBitmap;

use super::Gid;

/// A set of gids of one stack, as one bit each.
#[derive(Debug, Clone, Default)]
pub struct GidSet {
    words: Vec<u64>,
}

impl GidSet {
    /// Makes an empty set for the gids below `universe`.
    pub fn new(universe: u32) -> Self {
        Self { words: vec![0; (universe as usize).div_ceil(64)] }
    }

    /// A bound of the gids that have room in it.
    pub fn universe(&self) -> u32 {
        u32::try_from(self.words.len().saturating_mul(64)).unwrap_or(u32::MAX)
    }

    /// Adds `gid` and says whether it was new. A gid outside the universe is never added.
    pub fn insert(&mut self, gid: Gid) -> bool {
        let Some(word) = self.words.get_mut(gid as usize / 64) else { return false };
        let bit = 1u64 << (gid % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes `gid` out.
    pub fn remove(&mut self, gid: Gid) {
        if let Some(word) = self.words.get_mut(gid as usize / 64) {
            *word &= !(1u64 << (gid % 64));
        }
    }

    /// Says whether `gid` is in the set.
    pub fn contains(&self, gid: Gid) -> bool {
        self.words.get(gid as usize / 64).is_some_and(|word| word & (1u64 << (gid % 64)) != 0)
    }

    /// Says whether the set has no room for any member, as [`GidSet::default`].
    pub fn is_roomless(&self) -> bool {
        self.words.is_empty()
    }

    /// Gives the members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Gid> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors((word != 0).then_some(word), |word| {
                let rest = word & (word - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |word| index as u32 * 64 + word.trailing_zeros())
        })
    }

    /// Gives the same set in the form that is kept.
    pub fn to_roaring(&self) -> RoaringBitmap {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        RoaringBitmap::from_lsb0_bytes(0, &bytes)
    }

    /// Makes the set of the members of `bitmap` that are below `universe`.
    pub fn from_roaring(bitmap: &RoaringBitmap, universe: u32) -> Self {
        let mut set = Self::new(universe);
        for gid in bitmap {
            set.insert(gid);
        }
        set
    }
}

/// Hashes gids: they are small dense numbers of our own making, so mixing the bits is enough.
#[derive(Debug, Clone, Copy, Default)]
pub struct GidHasher(u64);

impl Hasher for GidHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// A small set of gids.
pub type Gids = HashSet<Gid, BuildHasherDefault<GidHasher>>;
/// A small map from gids.
pub type GidMap<V> = HashMap<Gid, V, BuildHasherDefault<GidHasher>>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn behaves_as_a_set(adds in prop::collection::vec(0u32..500, 0..200), dels in prop::collection::vec(0u32..500, 0..50)) {
            let (mut set, mut model) = (GidSet::new(500), std::collections::BTreeSet::new());
            for gid in adds {
                prop_assert_eq!(set.insert(gid), model.insert(gid));
            }
            for gid in dels {
                set.remove(gid);
                model.remove(&gid);
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert!(set.to_roaring().iter().eq(model.iter().copied()));
            prop_assert!(GidSet::from_roaring(&set.to_roaring(), 500).iter().eq(set.iter()));
            prop_assert!((0..600).all(|gid| set.contains(gid) == model.contains(&gid)));
        }
    }

    #[test]
    fn keeps_to_its_universe() {
        let mut set = GidSet::new(10);
        assert!(!set.insert(64));
        assert_eq!(set.iter().count(), 0);
    }
}
