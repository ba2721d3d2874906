//! The objects of an answer that are packed anew, and the bases of those that are sent as deltas.
//!
//! An object is packed anew if its stored delta has a base that the client will not have. So is a big object that is
//! stored whole, if stored deltas join it to one that the client has (an older version, most often). It is sent as a delta
//! on an object of the client or, where the base that is left out joins it to another object packed anew, on that one
//! ([`copies`](crate::pack::copies)); and else whole. Where bases were searched for (`search`), these decide, and what is the base of another object is packed anew
//! too. Objects packed anew come first in the pack: their length is known
//! only when they are sent, so all other entries are shifted by the same amount.
//!
//! The deltas of a plan form no cycle. An object packed anew has as its base an object that is not in the answer, or
//! one that was packed anew before it. The base of any other entry, as it is stored, lies in the entry's own layer, and
//! the canonical gid of that base lies in the same layer or in a lower one. From entry to base the layer therefore never
//! rises, so a cycle would lie within one layer. Within a layer the entries have the bases that its pack has, and a pack
//! has no cycle. A pack that holds an object twice is the exception, since both copies have one gid. There, and for
//! deltas by id that stand before their base, the chain of bases is followed once before anything is laid out, and an
//! entry whose chain leads back to it is packed anew. What is copied from a stored answer leans on nothing else.
//!
//! Relies on: what the client surely has (`select`). Elsewhere: the paths along stored deltas (`joins`), the entries
//! themselves (`encode`).
use super::each_entry;
use super::joins::{self, Orphans};
use super::search::Found;
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::{GidSet, Gids};
use crate::pack::{Gid, Selection, Stack};

/// From this size on, in the pack, an object that is stored whole is worth a delta.
const BIG: u64 = 512;
/// An object of fewer bytes is not worth a delta, however it is stored.
const SMALL: u64 = 64;
/// An object of more bytes is copied as it is stored, which needs no memory.
const HUGE: u64 = 16 << 20;

/// The objects that do not go as they are stored.
pub(super) struct Anew {
    pub set: GidSet,
    /// For those that are sent as deltas: the path from each to its base, in the order of gids.
    pub joined: Vec<Vec<Gid>>,
    /// Entries whose base stands behind them in the order of gids.
    pub forward: Gids,
}

impl Anew {
    /// Finds them among the `chosen` objects but those that are `stored` otherwise; `thin` allows bases that only the client has.
    pub fn find(
        stack: &Stack,
        chosen: &GidSet,
        stored: &dyn Fn(Gid) -> bool,
        (found, whole): (Option<&Found>, Option<&Gids>),
        selection: &mut Selection<'_>,
        thin: bool,
        meter: &dyn Meter,
    ) -> Result<Self, Halt> {
        let set = GidSet::new(stack.len());
        let mut anew = Self { set, joined: Vec::new(), forward: Gids::default() };
        let thin = thin && selection.knows_client();
        let mut forward = Vec::new();
        let mut orphans = Orphans::default();
        each_entry(stack, chosen, |gid, layer, _, entry| {
            meter.step(1)?;
            if stored(gid) {
                return Ok(());
            }
            if whole.is_some_and(|whole| whole.contains(&gid)) {
                anew.set.insert(gid);
                return Ok(());
            }
            let base = entry.base.map(|base| stack.canonical(layer, base));
            let is_big = entry.end - entry.offset >= BIG;
            match base {
                Some(base) if chosen.contains(base) => {
                    // What is stored otherwise stands before it.
                    if base >= gid && !stored(base) {
                        forward.push(gid);
                    }
                    return Ok(());
                }
                Some(base) if thin && selection.surely_has(base, meter)? => return Ok(()),
                Some(_) => _ = anew.set.insert(gid),
                None if found.is_some() || is_big => {}
                None => return Ok(()),
            }
            if let Some(found) = found {
                if let Some(base) = found.base(gid) {
                    anew.set.insert(gid);
                    anew.set.insert(base);
                    anew.joined.push(vec![gid, base]);
                }
                return Ok(());
            }
            let mut to_client = None;
            if thin && (SMALL..=HUGE).contains(&stack.size(gid)) {
                let fits = |before: &Gid| stack.size(*before) <= HUGE && !chosen.contains(*before);
                to_client = selection.predecessor(gid).filter(fits).map(|before| vec![gid, before]);
                if to_client.is_none() {
                    to_client = joins::to_client(stack, chosen, selection, gid, meter)?;
                }
            }
            let path = match base {
                Some(_) if to_client.is_none() => orphans.join(stack, gid),
                _ => to_client,
            };
            if let Some(path) = path {
                anew.set.insert(gid);
                anew.joined.push(path);
            }
            Ok(())
        })?;
        for gid in forward {
            if anew.leads_back(stack, chosen, stored, gid, meter)? {
                anew.set.insert(gid);
            } else {
                anew.forward.insert(gid);
            }
        }
        Ok(anew)
    }

    /// Says whether the chain of bases of `gid`, of deltas that go as stored, leads back to it. Every cycle has a member
    /// whose base stands behind it in the order of gids, so only those are asked about.
    fn leads_back(
        &self,
        stack: &Stack,
        chosen: &GidSet,
        stored: &dyn Fn(Gid) -> bool,
        gid: Gid,
        meter: &dyn Meter,
    ) -> Result<bool, Halt> {
        let mut seen = Gids::default();
        let mut at = gid;
        while !self.set.contains(at) && !stored(at) && seen.insert(at) {
            match stack.entry(at).base.filter(|&base| chosen.contains(base)) {
                Some(base) if base == gid => return Ok(true),
                Some(base) => at = base,
                None => return Ok(false),
            }
            meter.step(1)?;
        }
        Ok(false)
    }
}
