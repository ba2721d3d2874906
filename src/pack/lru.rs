//! A cache of object bytes by gid or position, bounded by their sum.
//!
//! Evicts in the order of arrival, but gives what was used since then a second round (the CLOCK
//! algorithm): as good as LRU here and without links between entries.
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;

/// Spreads small integers by one multiplication; keys are positions and gids, never bytes from outside.
#[derive(Default, Clone, Copy)]
pub(crate) struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// Builds [`SpreadHasher`]s for maps and sets keyed by gids.
pub(crate) type Spread = BuildHasherDefault<SpreadHasher>;

/// What an entry costs besides its bytes.
const OVERHEAD: usize = 96;

struct Slot<T> {
    bytes: Bytes,
    extra: T,
    used: bool,
}

/// Object bytes with a small `extra` value each.
pub(crate) struct ByteLru<T> {
    slots: HashMap<u32, Slot<T>, Spread>,
    queue: VecDeque<u32>,
    held: usize,
    max: usize,
}

impl<T: Copy> ByteLru<T> {
    /// Holds at most `max` bytes, overhead included.
    pub fn new(max: usize) -> Self {
        Self { slots: HashMap::default(), queue: VecDeque::new(), held: 0, max }
    }

    /// Gives the bytes kept under `key`.
    pub fn get(&mut self, key: u32) -> Option<(Bytes, T)> {
        let slot = self.slots.get_mut(&key)?;
        slot.used = true;
        Some((slot.bytes.clone(), slot.extra))
    }

    /// Keeps `bytes` under `key`, unless they alone would fill more than a quarter of the cache.
    pub fn put(&mut self, key: u32, bytes: Bytes, extra: T) {
        let cost = bytes.len() + OVERHEAD;
        if cost > self.max / 4 || self.slots.contains_key(&key) {
            return;
        }
        while self.held + cost > self.max {
            let Some(oldest) = self.queue.pop_front() else { break };
            match self.slots.get_mut(&oldest) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.queue.push_back(oldest);
                }
                _ => {
                    if let Some(slot) = self.slots.remove(&oldest) {
                        self.held -= slot.bytes.len() + OVERHEAD;
                    }
                }
            }
        }
        self.held += cost;
        self.slots.insert(key, Slot { bytes, extra, used: false });
        self.queue.push_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_inside_its_bound_and_keeps_what_is_used() {
        let mut cache = ByteLru::new(100 * (OVERHEAD + 4));
        cache.put(0, Bytes::from_static(b"zero"), 0u8);
        for key in 1..1000 {
            cache.put(key, Bytes::from_static(b"data"), 7);
            assert_eq!(cache.get(0), Some((Bytes::from_static(b"zero"), 0)), "after {key}");
            assert!(cache.held <= cache.max && cache.slots.len() <= 100);
        }
        assert!(cache.get(1).is_none() && cache.get(999).is_some());
        cache.put(5000, vec![0; cache.max / 2].into(), 1);
        assert!(cache.get(5000).is_none());
    }
}
