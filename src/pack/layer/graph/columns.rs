//! Columns of fixed-width little-endian values, read where they lie.
//!
//! Relies on: nothing; every access is checked. Elsewhere: what the columns mean (`view`).
use bytes::Bytes;

/// A column of little-endian u32.
#[derive(Debug, Clone)]
pub struct U32s(pub(super) Bytes);

impl U32s {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Says whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value at `index`.
    #[inline]
    pub fn get(&self, index: u32) -> Option<u32> {
        let at = index as usize * 4;
        self.0.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// All values.
    pub fn iter(&self) -> U32Iter<'_> {
        U32Iter(self.0.as_chunks().0.iter())
    }

    /// The values `start..end`; empty where that is out of bounds.
    pub(super) fn slice(&self, start: u32, end: u32) -> U32Iter<'_> {
        let bytes = self.0.get(start as usize * 4..end as usize * 4).unwrap_or_default();
        U32Iter(bytes.as_chunks().0.iter())
    }

    /// Finds `value` in a sorted column.
    pub fn binary_search(&self, value: u32) -> Option<u32> {
        self.0
            .as_chunks()
            .0
            .binary_search_by_key(&value, |bytes| u32::from_le_bytes(*bytes))
            .ok()
            .map(|at| at as u32)
    }
}

/// Values of a u32 column.
#[derive(Debug, Clone)]
pub struct U32Iter<'a>(std::slice::Iter<'a, [u8; 4]>);

impl Iterator for U32Iter<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        self.0.next().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for U32Iter<'_> {}

/// A column of little-endian u64.
#[derive(Debug, Clone)]
pub(super) struct U64s(pub(super) Bytes);

impl U64s {
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<u64> {
        let at = index as usize * 8;
        self.0.get(at..at + 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

/// A list of refs per row.
#[derive(Debug, Clone)]
pub(super) struct Csr {
    pub(super) starts: U32s,
    pub(super) items: U32s,
}

impl Csr {
    #[inline]
    pub(super) fn row(&self, row: u32) -> U32Iter<'_> {
        match (self.starts.get(row), self.starts.get(row.saturating_add(1))) {
            (Some(start), Some(end)) => self.items.slice(start, end),
            _ => self.items.slice(0, 0),
        }
    }

    pub(super) fn is_sound(&self, rows: usize, refs: u64) -> bool {
        self.starts.len() == rows + 1
            && self.starts.get(0) == Some(0)
            && self.starts.get(rows as u32).map(|end| end as usize) == Some(self.items.len())
            && self.starts.iter().is_sorted()
            && self.items.iter().all(|item| u64::from(item) < refs)
    }
}
