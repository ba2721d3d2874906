//! How long chains of deltas are: what lies too deep is packed whole, so that a chain does not grow with each push.
//!
//! A push brings deltas on what was pushed before, so merged layers would have chains as long as the history of a file, and with
//! them every clone. git bounds what it packs (`pack.depth`, 50); so does a merge.
//! Elsewhere: what becomes of those that are found (`anew`).
use roaring::RoaringBitmap;

use crate::pack::meter::{Halt, Held, Meter};
use crate::pack::set::{GidSet, Gids};
use crate::pack::{Gid, Stack};

/// The longest chain of deltas that is made, as by git.
pub(super) const DEEPEST: u32 = 50;
/// The depth of an object that was not looked at.
const UNKNOWN: u8 = u8::MAX;

/// Finds the `objects` that are to be packed whole, so that no chain of stored deltas among them has more than 50. Takes a byte for each
/// object of the stack, which is held on `meter`.
pub fn too_deep(stack: &Stack, objects: &RoaringBitmap, meter: &dyn Meter) -> Result<Gids, Halt> {
    let _held = Held::new(meter, u64::from(stack.len()))?;
    let chosen = GidSet::from_roaring(objects, stack.len());
    let mut depths = vec![UNKNOWN; stack.len() as usize];
    let mut deep = Gids::default();
    let mut chain: Vec<Gid> = Vec::new();
    for gid in chosen.iter() {
        let mut at = Some(gid);
        let mut depth = None;
        while let Some(gid) = at {
            meter.step(1)?;
            match depths.get_mut(gid as usize) {
                Some(known) if *known == UNKNOWN => *known = 0,
                // Also where the chain leads back to itself: what lies there is packed anew in any case.
                known => {
                    depth = known.copied();
                    break;
                }
            }
            chain.push(gid);
            at = stack.entry(gid).base.filter(|&base| chosen.contains(base));
        }
        while let Some(gid) = chain.pop() {
            let below = depth.map_or(0, |depth| depth + 1);
            let is_deep = u32::from(below) > DEEPEST;
            if is_deep {
                deep.insert(gid);
            }
            let own = if is_deep { 0 } else { below };
            if let Some(known) = depths.get_mut(gid as usize) {
                *known = own;
            }
            depth = Some(own);
        }
    }
    Ok(deep)
}
