//! Names: a hash of the path at which an object lies in the trees of an answer, so that versions of one file are found by it.
//!
//! The hash is git's own (`pack_name_hash`): the last characters count most, so files with the same ending come to lie beside each
//! other too. Elsewhere: what is done with it (`search`).
use std::collections::hash_map::Entry;

use gix_object::Kind;

use crate::pack::filter::trees::TreeError;
use crate::pack::layer::decode;
use crate::pack::meter::Meter;
use crate::pack::object::TreeEntries;
use crate::pack::set::{GidMap, GidSet};
use crate::pack::tally::Tally;
use crate::pack::{Gid, Scratch, Source, Stack};

/// What is kept of one object.
const NOTE: u64 = 16;

/// The hash of a path that goes on with `name`; of the root, which has no name, it is 0.
fn hash(before: u32, name: &[u8]) -> u32 {
    let counted = name.iter().filter(|byte| !byte.is_ascii_whitespace());
    counted.fold(before, |hash, &byte| (hash >> 2).wrapping_add(u32::from(byte) << 24))
}

/// Finds the names of what lies in trees of the `chosen` commits, as far as these trees are chosen too. The first path
/// counts, of the commit that comes first. What is kept counts on `tally`.
pub(super) fn names(
    stack: &Stack,
    source: &dyn Source,
    chosen: &GidSet,
    scratch: &mut Scratch,
    tally: &mut Tally<'_>,
    meter: &dyn Meter,
) -> Result<GidMap<u32>, TreeError> {
    let mut names = GidMap::default();
    let mut waiting: Vec<(Gid, u32)> = Vec::new();
    for commit in chosen.iter() {
        let Some(root) = stack.commit(commit).map(|commit| commit.tree()) else { continue };
        meter.step(1)?;
        if chosen.contains(root) && names.insert(root, 0).is_none() {
            waiting.push((root, 0));
        }
        while let Some((tree, name)) = waiting.pop() {
            let (_, bytes) = decode::object(stack, source, tree, scratch, meter)?;
            let folder = if name == 0 { 0 } else { hash(name, b"/") };
            for entry in TreeEntries::new(&bytes, stack.hash()) {
                let entry = entry?;
                meter.step(1)?;
                let Some(kind) = entry.kind() else { continue };
                let Some(gid) = stack.lookup(entry.oid).filter(|gid| chosen.contains(*gid)) else { continue };
                let Entry::Vacant(place) = names.entry(gid) else { continue };
                let name = *place.insert(hash(folder, entry.name));
                tally.add(NOTE)?;
                if kind == Kind::Tree {
                    waiting.push((gid, name));
                }
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are what `git pack-objects` computes.
    #[test]
    fn the_hash_of_a_path_goes_on_from_that_of_its_folder() {
        let whole = |path: &str| hash(0, path.as_bytes());
        assert_eq!(whole("a"), 0x6100_0000);
        assert_eq!(whole("ab"), (0x6100_0000 >> 2) + 0x6200_0000);
        assert_eq!(whole("a b"), whole("ab"), "white space does not count");
        assert_eq!(hash(hash(whole("src"), b"/"), b"main.rs"), whole("src/main.rs"));
    }
}
