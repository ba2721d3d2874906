//! Joins: the paths along stored deltas from an object that is packed anew to one that can be its base.
//!
//! Relies on: stored deltas forming trees within a layer. Elsewhere: which objects need one (`anew`), the delta that
//! follows from a path (`copies`).
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::{GidMap, GidSet, Gids};
use crate::pack::{Gid, Selection, Stack};

/// How many objects are looked at to find one that the client has.
const JOIN_SEARCH: usize = 200;
/// How many objects a join may consist of.
const LONGEST_JOIN: usize = 32;
/// The longest chain of deltas among objects packed anew; git's own limit for deltas is 50.
const DEEPEST: u32 = 40;

/// Orphans: objects of the answer whose bases are not in it and not the client's. Two orphans are joined if their chains
/// of bases meet.
#[derive(Default)]
pub(super) struct Orphans {
    /// For a base that is left out: the object that is stored as a delta on it, on the path to the last orphan that was
    /// looked at.
    below: GidMap<Gid>,
    /// For each orphan that is sent as a delta: the length of its chain of deltas among objects packed anew.
    depths: GidMap<u32>,
}

impl Orphans {
    /// Gives the path from `gid` to an orphan that was looked at before: these two, however many bases that are left out lie
    /// between them. Each delta in between tells less of what they share, so they are compared.
    pub fn join(&mut self, stack: &Stack, gid: Gid) -> Option<Vec<Gid>> {
        let mut path = vec![gid];
        let mut meeting = None;
        while let Some(entry) = path.last().map(|&at| stack.entry(at))
            && let Some(base) = entry.base_local
            && path.len() < LONGEST_JOIN
            && meeting.is_none()
        {
            path.push(stack.first_gid(entry.layer) + base);
            meeting = path.last().and_then(|base| self.below.get(base)).copied();
        }
        let up = path.len();
        while let Some(next) = meeting {
            path.push(next);
            meeting = self.below.get(&next).copied();
        }
        // A later orphan that meets this path is led down to `gid`.
        for (below, above) in path.iter().zip(path.get(1..up).unwrap_or_default()) {
            self.below.insert(*above, *below);
        }
        let orphan = path.get(up..).and_then(<[Gid]>::last).copied()?;
        let depth = self.depths.get(&orphan).copied().unwrap_or(0) + 1;
        if path.len() > LONGEST_JOIN || depth > DEEPEST {
            return None;
        }
        self.depths.insert(gid, depth);
        Some(vec![gid, orphan])
    }
}

/// Looks for the nearest object of the client that stored deltas join to `gid`, and gives the path to it.
///
/// An object that is in the answer is passed over, even if the client has it: it may itself be a delta on `gid`.
pub(super) fn to_client(
    stack: &Stack,
    chosen: &GidSet,
    selection: &mut Selection<'_>,
    gid: Gid,
    meter: &dyn Meter,
) -> Result<Option<Vec<Gid>>, Halt> {
    // Each object met, and the index of the one that led to it.
    let mut met: Vec<(Gid, usize)> = vec![(gid, 0)];
    let mut known = Gids::from_iter([gid]);
    let mut at = 0;
    while let Some(&(here, _)) = met.get(at) {
        for next in stack.joined(here) {
            if met.len() == JOIN_SEARCH {
                return Ok(None);
            }
            meter.step(1)?;
            if !known.insert(next) {
                continue;
            }
            met.push((next, at));
            let (layer, position) = stack.layer_of(next);
            let canonical = stack.canonical(layer, position);
            if !chosen.contains(canonical) && selection.surely_has(canonical, meter)? {
                let mut path = vec![next];
                let mut back = at;
                while let Some(&(gid, before)) = met.get(back) {
                    path.push(gid);
                    if back == 0 {
                        break;
                    }
                    back = before;
                }
                path.reverse();
                return Ok(Some(path));
            }
        }
        at += 1;
    }
    Ok(None)
}
