//! Which layers of a stack are to be merged: those at the top, from the lowest one that is no larger than what lies on it.
//!
//! A stack is *even* if each layer is larger than all layers on top of it together. Then the bytes from one layer up are
//! at least twice those from the next one up, so there are no more layers than the logarithm of the bytes; and a layer that
//! is rewritten becomes part of one that is twice as large, so a byte is written no more often than that either. Small
//! layers are left until several have gathered, or a day has passed: merging each push at once would double the number of
//! records and write the fixed parts of indices and graphs again and again. An even stack of many layers, or one with several
//! very small ones at a day's end, loses its highest ones, which are the smallest.
//!
//! Bounds on what is merged at once can leave a stack uneven. They never make a merged layer be merged again: each merge
//! makes the stack shorter, and one that is even from the first layer within the bounds on is left alone.
//! Pure. Elsewhere: the merge itself (`merge`), when the question is asked (`mod`).

use std::ops::RangeFrom;

/// So many layers gather before they are merged.
pub const GATHERED: usize = 6;

/// With so many layers the highest are merged although the stack is even.
pub const MANY: usize = 16;

/// Layers that have no more bytes than this together are merged at a day's end although the stack is even.
const SMALL: u64 = 64 << 10;

/// What is known of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes of its pack.
    pub bytes: u64,
    /// Objects in it.
    pub objects: u64,
}

/// What one merge may read.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of packs.
    pub bytes: u64,
    /// Objects: their number decides how much memory a merge takes.
    pub objects: u64,
}

/// Says which layers, lowest first, are to be merged into one: those from the start of the range on. `is_due` says that a day
/// has passed, so that also a few small ones are merged.
pub fn choose(layers: &[Size], is_due: bool, bounds: Bounds) -> Option<RangeFrom<usize>> {
    let (mut bytes, mut objects) = (0u64, 0u64);
    let mut from = None;
    for (n, layer) in layers.iter().enumerate().rev() {
        let is_uneven = n + 1 < layers.len() && layer.bytes <= bytes;
        bytes = bytes.saturating_add(layer.bytes);
        objects = objects.saturating_add(layer.objects);
        if bytes > bounds.bytes || objects > bounds.objects {
            break;
        }
        if is_uneven {
            from = Some(n);
        }
    }
    let enough = if is_due { 2 } else { GATHERED };
    let from = from.filter(|from| layers.len() - from >= enough);
    from.or_else(|| gathered(layers, is_due, bounds)).map(|from| from..)
}

/// The first of the highest layers of an even stack that are merged all the same: the top ones of many, or on a day's end those that
/// are small together.
fn gathered(layers: &[Size], is_due: bool, bounds: Bounds) -> Option<usize> {
    let most = if layers.len() >= MANY { GATHERED } else { 0 };
    let (mut bytes, mut objects, mut count) = (0u64, 0u64, 0);
    for layer in layers.iter().rev() {
        bytes = bytes.saturating_add(layer.bytes);
        objects = objects.saturating_add(layer.objects);
        let is_small = is_due && bytes <= SMALL;
        if bytes > bounds.bytes || objects > bounds.objects || !(is_small || count < most) {
            break;
        }
        count += 1;
    }
    (count > 1).then(|| layers.len() - count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREE: Bounds = Bounds { bytes: u64::MAX, objects: u64::MAX };

    fn sizes(bytes: &[u64]) -> Vec<Size> {
        bytes.iter().map(|&bytes| Size { bytes, objects: 1 }).collect()
    }

    /// Merges as `choose` says. Gives the bytes that were written.
    fn merge(layers: &mut Vec<Size>, is_due: bool, bounds: Bounds) -> u64 {
        let Some(range) = choose(layers, is_due, bounds) else { return 0 };
        let merged = layers.drain(range).fold(Size { bytes: 0, objects: 0 }, |sum, layer| Size {
            bytes: sum.bytes + layer.bytes,
            objects: sum.objects + layer.objects,
        });
        layers.push(merged);
        merged.bytes
    }

    #[test]
    fn the_lowest_layer_is_rewritten_when_as_much_lies_on_it() {
        assert_eq!(choose(&sizes(&[100, 40, 9, 9, 9, 9, 9]), false, FREE), Some(1..), "50 lie on 40");
        assert_eq!(choose(&sizes(&[100, 60, 9, 9, 9, 9, 9]), false, FREE), Some(0..));
        assert_eq!(choose(&sizes(&[100, 60, 50]), false, FREE), None, "few");
        assert_eq!(choose(&sizes(&[100, 60, 50]), true, FREE), Some(0..), "a day has passed");
        assert_eq!(choose(&sizes(&[100, 30, 10, 5, 2, 1, 0]), false, FREE), None, "even");
        let large = |bytes: &[u64]| sizes(&bytes.iter().map(|n| n << 20).collect::<Vec<_>>());
        assert_eq!(choose(&large(&[100, 30, 10, 5, 2, 1]), true, FREE), None, "even, and not small");
        let with_small = [large(&[100, 30, 10]), sizes(&[60_000, 3_000, 800])].concat();
        assert_eq!(choose(&with_small, true, FREE), Some(3..), "a day has passed over small ones");
        assert_eq!(choose(&with_small, false, FREE), None);
        let even: Vec<u64> = (0..20).rev().map(|n| 3 << (2 * n)).collect();
        assert_eq!(choose(&sizes(&even[..15]), false, FREE), None);
        assert_eq!(choose(&sizes(&even[..16]), false, FREE), Some(10..), "sixteen have gathered");
        assert_eq!(choose(&sizes(&[100]), true, FREE), None);
        assert_eq!(choose(&[], true, FREE), None);
    }

    #[test]
    fn ten_thousand_pushes_make_few_layers_and_few_bytes() {
        for first in [0u64, 1, 50, 100_000] {
            let mut layers = if first == 0 { Vec::new() } else { sizes(&[first]) };
            let (mut written, mut most) = (0u64, 0usize);
            for push in 1..=10_000u64 {
                layers.push(Size { bytes: 1, objects: 1 });
                written += merge(&mut layers, false, FREE);
                let bound = 2.0 * (push as f64).log2() + 4.0;
                let repositorys_own = usize::from(first > 0);
                assert!((layers.len() - repositorys_own) as f64 <= bound, "{} after {push}", layers.len());
                most = most.max(layers.len());
            }
            let factor = written as f64 / (10_000 + first) as f64;
            println!(
                "first {first}: at most {most} layers, {factor:.2} bytes written for each that was pushed"
            );
            assert!(factor <= 10_000f64.log2(), "{factor}");
        }
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        /// A merge makes the stack even, so that nothing is merged until something is pushed; also within bounds.
        #[test]
        fn nothing_is_merged_twice(
            bytes in prop::collection::vec(0u64..1 << 30, 0..40),
            is_due: bool,
            most in 1u64..1 << 33,
        ) {
            let mut layers = sizes(&bytes);
            merge(&mut layers, is_due, FREE);
            prop_assert_eq!(choose(&layers, is_due, FREE), None);

            let bounds = Bounds { bytes: most, objects: 1 << 20 };
            let mut layers = sizes(&bytes);
            let mut before = layers.len();
            loop {
                merge(&mut layers, is_due, bounds);
                if layers.len() == before {
                    break;
                }
                before = layers.len();
            }
            prop_assert!(choose(&layers, is_due, bounds).is_none());
        }

        /// Each byte is written at most once for each time that the whole has doubled, whatever is pushed.
        #[test]
        fn layers_and_bytes_written_stay_below_the_logarithm(
            pushes in prop::collection::vec(1u64..1_000, 1..400),
        ) {
            let (mut layers, mut written, mut pushed) = (Vec::new(), 0, 0);
            for bytes in pushes {
                layers.push(Size { bytes, objects: 1 });
                pushed += bytes;
                written += merge(&mut layers, false, FREE);
                let log = (pushed as f64).log2();
                prop_assert!(layers.len() as f64 <= log + GATHERED as f64 + 1.0);
                prop_assert!(written as f64 <= log.max(1.0) * pushed as f64);
            }
        }
    }
}
