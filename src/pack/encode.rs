//! Whole entries: an object packed anew, because the delta it is stored as leans on nothing in the answer.
//!
//! Elsewhere: entry headers (`entry`), which objects need this (`plan`).
use gix_object::Kind;
use gix_zlib::stream::deflate::{Compress, FlushCompress};
use gix_zlib::{Compression, Status};

use super::entry::{self, Header};

/// Makes the pack entry of an object: header, then its bytes deflated at the fastest level.
///
/// The fastest, since this happens while a client waits.
pub fn whole(kind: Kind, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() / 2 + 32);
    entry::encode(&Header::Whole(kind), object.len() as u64, &mut out);
    deflate(object, &mut out);
    out
}

/// Appends `bytes` as a zlib stream.
pub fn deflate(bytes: &[u8], out: &mut Vec<u8>) {
    let mut zip = Compress::new(Compression::BEST_SPEED);
    loop {
        let done_in = usize::try_from(zip.total_in()).unwrap_or(usize::MAX);
        let rest = bytes.get(done_in..).unwrap_or_default();
        let start = out.len();
        let before = zip.total_out();
        out.resize(start + rest.len() / 2 + 64, 0);
        let status = zip.compress(rest, out.get_mut(start..).unwrap_or_default(), FlushCompress::Finish);
        out.truncate(start + (zip.total_out() - before) as usize);
        match status {
            Ok(Status::StreamEnd) => return,
            Ok(Status::Ok | Status::BufError) => {}
            // Deflating memory into memory has no way to fail; stored blocks would be the fallback
            // of a library that disagrees, and an empty tail makes the receiver's check fail loudly.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::delta;
    use gix_hash::Kind as HashKind;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_read_back(object in prop::collection::vec(any::<u8>(), 0..5000), repeat in 1usize..40) {
            let object = object.repeat(repeat);
            let bytes = whole(Kind::Blob, &object);
            let header = entry::decode(&bytes, HashKind::Sha1).unwrap();
            prop_assert_eq!(header.header, Header::Whole(Kind::Blob));
            prop_assert_eq!(header.size, object.len() as u64);
            let mut inflate = gix_zlib::Inflate::default();
            prop_assert_eq!(delta::inflate(&mut inflate, &bytes[header.header_len..], object.len()).unwrap(), object);
        }
    }
}
