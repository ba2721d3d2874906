//! What one object can copy from another: told by stored deltas, or found by comparing.
//!
//! A stored delta says which ranges of an object lie in its base. Read the other way round it says what the base can
//! copy from the object, and two deltas in a row say what the last object can copy from the first. So for any two
//! objects that are joined by a path of stored deltas there is a delta from one to the other, at the cost of reading
//! those deltas. That is how the newest version of a file, which git stores whole and the older ones as deltas on it,
//! is sent as a delta on the version that the client has. Where no such path is known, or it is long, [`Copies::between`] compares.
//!
//! Relies on: the bytes of deltas (`delta`). Elsewhere: which stored deltas join two objects (`plan::joins`), the entry
//! that is made (`layer::encode`).
use super::delta::{self, BadData, Command};

/// A shorter copy costs about as much as its bytes.
const SHORTEST: u64 = 8;
/// The longest copy that git itself writes in one command (`diff-delta.c`).
const LONGEST: u64 = 0x10000;
/// The most bytes that one command inserts.
const INSERT: usize = 0x7f;
/// Objects are compared by blocks of so many bytes, as in `diff-delta.c`.
const BLOCK: usize = 16;
/// Of so many blocks that may be the same, the one with the longest match counts.
const SAME: usize = 16;
/// A match of so many bytes is long enough.
const ENOUGH: usize = 4096;
/// The largest offset that a copy command can state.
const FARTHEST: u64 = u32::MAX as u64;

/// `len` bytes at `to` are those at `from` in the other object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    to: u64,
    from: u64,
    len: u64,
}

/// The ranges of an object that lie in another one, in order and apart from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    runs: Vec<Run>,
}

impl Copies {
    /// Reads what the result of `delta` copies from its base.
    pub fn of(delta: &[u8]) -> Result<Self, BadData> {
        let mut runs: Vec<Run> = Vec::new();
        let mut to = 0;
        let (_, _, used) = delta::sizes(delta)?;
        let mut rest = delta.get(used..).unwrap_or_default();
        while let Some(command) = delta::command(&mut rest)? {
            let len = match command {
                Command::Insert(bytes) => bytes.len() as u64,
                Command::Copy { offset, len } => {
                    let (from, len) = (offset as u64, len as u64);
                    match runs.last_mut() {
                        Some(last) if last.to + last.len == to && last.from + last.len == from => {
                            last.len += len
                        }
                        _ => runs.push(Run { to, from, len }),
                    }
                    len
                }
            };
            to += len;
        }
        Ok(Self { runs })
    }

    /// Finds what `object` can copy from `base` by comparing their bytes. Takes time in proportion to their lengths, and
    /// memory of up to one and a quarter times that of `base`.
    pub fn between(base: &[u8], object: &[u8]) -> Self {
        let found = Blocks::of(base).copies(base, object, u64::MAX);
        found.map_or(Self { runs: Vec::new() }, |(copies, _)| copies)
    }

    /// What the other object can copy from this one.
    pub fn reversed(&self) -> Self {
        let mut runs: Vec<Run> =
            self.runs.iter().map(|run| Run { to: run.from, from: run.to, len: run.len }).collect();
        // Where ranges overlap, the longest of those that start first wins.
        runs.sort_unstable_by_key(|run| (run.to, std::cmp::Reverse(run.len)));
        let mut end = 0u64;
        for run in &mut runs {
            let skip = end.saturating_sub(run.to).min(run.len);
            *run = Run { to: run.to + skip, from: run.from + skip, len: run.len - skip };
            end = end.max(run.to + run.len);
        }
        runs.retain(|run| run.len >= SHORTEST);
        Self { runs }
    }

    /// What this object can copy from a third, when `other` tells what the other one can copy from that.
    pub fn through(&self, other: &Self) -> Self {
        let mut runs = Vec::new();
        for run in &self.runs {
            let end = run.from + run.len;
            let first = other.runs.partition_point(|below| below.to + below.len <= run.from);
            for below in other.runs.get(first..).unwrap_or_default() {
                if below.to >= end {
                    break;
                }
                let start = below.to.max(run.from);
                let len = end.min(below.to + below.len) - start;
                if len >= SHORTEST {
                    runs.push(Run {
                        to: run.to + (start - run.from),
                        from: below.from + (start - below.to),
                        len,
                    });
                }
            }
        }
        Self { runs }
    }

    /// How many bytes can be copied.
    pub fn copied(&self) -> u64 {
        self.runs.iter().map(|run| run.len).sum()
    }

    /// Writes `object` as a delta on the other object, which has `base_len` bytes. `None` if these copies do not fit
    /// objects of such sizes.
    pub fn delta(&self, base_len: u64, object: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        delta::put_size(base_len, &mut out);
        delta::put_size(object.len() as u64, &mut out);
        let mut at = 0;
        for run in &self.runs {
            if run.from + run.len > base_len || run.from + run.len > FARTHEST {
                return None;
            }
            let to = usize::try_from(run.to).ok()?;
            insert(object.get(at..to)?, &mut out);
            let mut done = 0;
            while done < run.len {
                let len = (run.len - done).min(LONGEST);
                delta::put_copy((run.from + done) as u32, len as u32, &mut out);
                done += len;
            }
            at = to + usize::try_from(run.len).ok()?;
        }
        insert(object.get(at..)?, &mut out);
        Some(out)
    }
}

/// Where the blocks of an object lie, by their content: what others can copy from it is then found without reading it again.
pub struct Blocks {
    /// 1 + number of the first block; 0 for none.
    table: Vec<u32>,
    /// For each block: 1 + number of the next one that may have the same content.
    next: Vec<u32>,
    shift: u32,
}

impl Blocks {
    /// Takes note of the blocks of `base`.
    pub fn of(base: &[u8]) -> Self {
        let blocks = base.as_chunks::<BLOCK>().0;
        let bits = (blocks.len() * 2).next_power_of_two().trailing_zeros().clamp(4, 28);
        let mut found = Self { table: vec![0; 1 << bits], next: vec![0; blocks.len()], shift: 64 - bits };
        // From the last on, so that the first stands in front.
        for (index, block) in blocks.iter().enumerate().rev() {
            let number = index as u32 + 1;
            let slot = found.slot(block);
            if let (Some(first), Some(next)) = (found.table.get_mut(slot), found.next.get_mut(index)) {
                *next = std::mem::replace(first, number);
            }
        }
        found
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.table[..]) + size_of_val(&self.next[..])
    }

    /// What `object` can copy from `base`, whose blocks these are, and how long the delta is; `None` if it is longer than `most` bytes.
    pub fn copies(&self, base: &[u8], object: &[u8], most: u64) -> Option<(Copies, u64)> {
        let mut runs: Vec<Run> = Vec::new();
        let mut len = size_len(base.len() as u64) + size_len(object.len() as u64);
        let (mut at, mut copied) = (0, 0);
        while let Some(block) = object.get(at..).and_then(|rest| rest.first_chunk()) {
            match self.longest(base, object, at, block) {
                Some((from, found)) => {
                    let back = back(base.get(..from)?, object.get(copied..at)?);
                    let run = Run {
                        to: (at - back) as u64,
                        from: (from - back) as u64,
                        len: (found + back) as u64,
                    };
                    len += inserted_len((at - back - copied) as u64) + copy_len(run);
                    runs.push(run);
                    at += found;
                    copied = at;
                }
                None => at += 1,
            }
            if len + (at - copied) as u64 > most {
                return None;
            }
        }
        len += inserted_len((object.len() - copied) as u64);
        (len <= most).then_some((Copies { runs }, len))
    }

    /// The longest of the matches that begin with this block: where it lies in the base, and its length.
    fn longest(&self, base: &[u8], object: &[u8], at: usize, block: &[u8; BLOCK]) -> Option<(usize, usize)> {
        let rest = object.get(at..)?;
        let mut best: Option<(usize, usize)> = None;
        let mut number = *self.table.get(self.slot(block))?;
        for _ in 0..SAME {
            let Some(index) = number.checked_sub(1) else { break };
            let start = index as usize * BLOCK;
            let len = rest.iter().zip(base.get(start..)?).take_while(|(a, b)| a == b).count();
            if len >= BLOCK && best.is_none_or(|(_, longest)| longest < len) {
                best = Some((start, len));
                if len >= ENOUGH || len == rest.len() {
                    break;
                }
            }
            number = *self.next.get(index as usize)?;
        }
        best
    }

    fn slot(&self, block: &[u8; BLOCK]) -> usize {
        let word = u128::from_le_bytes(*block);
        let mixed = (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((word >> 64) as u64).rotate_left(29);
        (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> self.shift) as usize
    }
}

/// With how many bytes both end.
fn back(base: &[u8], object: &[u8]) -> usize {
    object.iter().rev().zip(base.iter().rev()).take_while(|(a, b)| a == b).count()
}

/// How many bytes a size takes at the front of a delta.
fn size_len(size: u64) -> u64 {
    u64::from((64 - size.leading_zeros()).div_ceil(7).max(1))
}

/// How many bytes of a delta insert so many.
fn inserted_len(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(INSERT as u64)
}

/// How many bytes of a delta copy a run, at most.
fn copy_len(run: Run) -> u64 {
    let offset = u64::from((64 - run.from.leading_zeros()).div_ceil(8));
    run.len.div_ceil(LONGEST) * (3 + offset)
}

fn insert(bytes: &[u8], out: &mut Vec<u8>) {
    for piece in bytes.chunks(INSERT) {
        out.push(piece.len() as u8);
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An object made of pieces of `base` and new bytes, and the delta that says so.
    fn derived(base: &[u8], plan: &[(prop::sample::Index, usize, Vec<u8>)]) -> (Vec<u8>, Vec<u8>) {
        let (mut object, mut commands) = (Vec::new(), Vec::new());
        for (at, len, new) in plan {
            let start = at.index(base.len());
            let end = (start + len).min(base.len());
            if end > start {
                object.extend_from_slice(&base[start..end]);
                delta::put_copy(start as u32, (end - start) as u32, &mut commands);
            }
            insert(new, &mut commands);
            object.extend_from_slice(new);
        }
        let mut delta = Vec::new();
        delta::put_size(base.len() as u64, &mut delta);
        delta::put_size(object.len() as u64, &mut delta);
        delta.extend_from_slice(&commands);
        (object, delta)
    }

    fn plans() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Vec<u8>)>> {
        let piece = (any::<prop::sample::Index>(), 0usize..200, prop::collection::vec(any::<u8>(), 0..20));
        prop::collection::vec(piece, 0..12)
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn deltas_turned_and_joined_are_deltas(
            base in prop::collection::vec(any::<u8>(), 1..400), one in plans(), two in plans(), other in plans(),
        ) {
            let (first, to_first) = derived(&base, &one);
            prop_assert_eq!(&delta::apply(&base, &to_first, 1 << 20).unwrap(), &first);
            // The base from what was made of it.
            let back = Copies::of(&to_first).unwrap().reversed();
            let delta = back.delta(first.len() as u64, &base).unwrap();
            prop_assert_eq!(&delta::apply(&first, &delta, 1 << 20).unwrap(), &base);
            if first.is_empty() {
                return Ok(());
            }
            // The base from a version two steps away.
            let (second, to_second) = derived(&first, &two);
            let far = back.through(&Copies::of(&to_second).unwrap().reversed());
            let delta = far.delta(second.len() as u64, &base).unwrap();
            prop_assert_eq!(&delta::apply(&second, &delta, 1 << 20).unwrap(), &base);
            // One of two siblings from the other.
            let (sibling, to_sibling) = derived(&base, &other);
            let across = Copies::of(&to_first).unwrap().through(&Copies::of(&to_sibling).unwrap().reversed());
            let delta = across.delta(sibling.len() as u64, &first).unwrap();
            prop_assert_eq!(&delta::apply(&sibling, &delta, 1 << 20).unwrap(), &first);
        }

        #[test]
        fn what_is_found_by_comparing_is_a_delta(
            base in prop::collection::vec(0u8..4, 0..600), plan in plans(), noise in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let object = if base.is_empty() { noise } else { derived(&base, &plan).0 };
            let delta = Copies::between(&base, &object).delta(base.len() as u64, &object).unwrap();
            prop_assert_eq!(delta::apply(&base, &delta, 1 << 20).unwrap(), object);
        }

        #[test]
        fn any_bytes_are_read_or_refused(delta in prop::collection::vec(any::<u8>(), 0..60), object in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(copies) = Copies::of(&delta) {
                let _ = copies.delta(100, &object);
                let _ = copies.reversed().through(&copies).delta(100, &object);
            }
        }
    }

    #[test]
    fn a_changed_word_costs_a_few_bytes() {
        let old: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let mut new = old.clone();
        new.splice(70_000..70_004, *b"other word");
        let mut stored = Vec::new();
        delta::put_size(new.len() as u64, &mut stored);
        delta::put_size(old.len() as u64, &mut stored);
        // The old version on the new one, as git stores it.
        for start in (0..70_000).step_by(0x10000) {
            delta::put_copy(start, (70_000 - start).min(0x10000), &mut stored);
        }
        insert(&old[70_000..70_004], &mut stored);
        for start in (70_010..new.len() as u32).step_by(0x10000) {
            delta::put_copy(start, (new.len() as u32 - start).min(0x10000), &mut stored);
        }
        assert_eq!(delta::apply(&new, &stored, 1 << 20).unwrap(), old);
        let copies = Copies::of(&stored).unwrap().reversed();
        let delta = copies.delta(old.len() as u64, &new).unwrap();
        assert_eq!(delta::apply(&old, &delta, 1 << 20).unwrap(), new);
        assert!(delta.len() < 100, "{}", delta.len());
        let compared = Copies::between(&old, &new).delta(old.len() as u64, &new).unwrap();
        assert_eq!(delta::apply(&old, &compared, 1 << 20).unwrap(), new);
        assert!(compared.len() < 100, "{}", compared.len());
    }
}
