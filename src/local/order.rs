//! The order in which the files of the cache were used, as it outlives a restart.
//!
//! A row for each folder of the cache: its files with their places in the order. What is not in it was written later.

use std::collections::{BTreeMap, HashMap};

use super::entries::Name;
use super::index::Index;

/// The table of the index.
const ORDER: &str = "order";

/// Remembers the order, the least recently used first.
pub(super) fn remember(index: &Index, names: &[Name]) {
    let mut rows: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    for (name, place) in names.iter().zip(0..) {
        rows.entry(name.folder()).or_default().push((name.file(), place));
    }
    for (folder, _) in index.iter::<serde::de::IgnoredAny>(ORDER) {
        if !rows.contains_key(&folder) {
            index.remove(ORDER, &folder);
        }
    }
    for (folder, row) in rows {
        index.put(ORDER, &folder, &row);
    }
}

/// The place of each file.
pub(super) fn recalled(index: &Index) -> HashMap<Name, u64> {
    let rows = index.iter::<Vec<(String, u64)>>(ORDER).into_iter().flat_map(|(_, row)| row);
    rows.filter_map(|(file, place)| Some((Name::parse(&file)?, place))).collect()
}
