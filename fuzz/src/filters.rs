//! Filters: their text, and the rules that are made of them, within a bound on memory and on steps.
use bstr::{BStr, ByteSlice};
use bytes::Bytes;
use gix_object::Kind;

use crate::bound::{Allowed, within};
use crate::byte;
use crate::git::Filter;
use crate::pack::Gid;
use crate::pack::filter::rules::{BadRules, Rules, SparseBlobs};
use crate::pack::filter::trees::TreeError;

/// Blobs that lie one behind the other in the data; a name means the one whose number is its length.
struct Blobs<'d> {
    data: &'d [u8],
    reads: [bool; 16],
}

impl SparseBlobs for Blobs<'_> {
    fn find(&mut self, name: &BStr) -> Result<Option<Gid>, TreeError> {
        Ok(Some(name.len() as Gid % 20).filter(|&blob| blob < 16))
    }

    fn read(&mut self, blob: Gid) -> Result<Bytes, BadRules> {
        let read = &mut self.reads[blob as usize];
        assert!(!std::mem::replace(read, true), "a blob is read once");
        let size = self.data.len() / 16;
        Ok(Bytes::copy_from_slice(&self.data[blob as usize * size..][..size]))
    }
}

/// The target: a length, so much of a filter, and the blobs.
pub fn run(mut data: &[u8]) {
    let length = usize::from(byte(&mut data).unwrap_or(0)) * 8;
    let (spec, blobs) = data.split_at(length.min(data.len()));
    // A part can be two bytes of the text; escapes are read again at each level.
    let Ok(filter) = within(4096 + 64 * spec.len(), || Filter::parse(spec)) else { return };
    // Each level writes two bytes more for a `%`.
    let written = within(4096 + 256 * spec.len(), || filter.spec());
    assert_eq!(Filter::parse(&written).as_ref(), Ok(&filter), "what is written is read back");

    let allowed = Allowed::new(10_000 + 2 * blobs.len() as u64, 4096 + 32 * blobs.len() as u64);
    let mut blobs = Blobs { data: blobs, reads: [false; 16] };
    match Rules::compile(&filter, &mut blobs, &allowed) {
        Ok(rules) => {
            let reads = blobs.reads.iter().filter(|read| **read).count();
            assert_eq!(rules.sparse().len(), reads, "a set of patterns for each blob");
            assert!(reads == 0 || spec.contains_str("sparse:oid"));
            assert!(!rules.keeps(Kind::Blob, || u64::MAX) || rules.keeps_blobs());
            assert!(!rules.by_path() || rules.keeps_contents());
            let none_held = allowed.bytes() == 4096 + 32 * blobs.data.len() as u64;
            assert_eq!(
                none_held,
                reads == 0 || blobs.data.len() < 16,
                "patterns are held, unless they are empty"
            );
        }
        Err(BadRules::NoBlob(_) | BadRules::TooManyNames) => {}
        Err(error) => panic!("{error}"),
    }
    assert_eq!(allowed.bytes(), 4096 + 32 * blobs.data.len() as u64, "and given back");
}
