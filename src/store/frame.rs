//! Frames: how a refs or graph blob is unpacked within bounds.
//!
//! A blob's hash says who named it, not that it is harmless: a frame of a few kilobytes may unpack to terabytes. So what a
//! frame states is read first, what it gives is counted, and its window is bounded, since zstd keeps that in memory.

use std::io::{self, Read, Write};

use super::{BlobKind, BlobRef};
use crate::git::refs::MOST_PACKED_REFS;

/// A frame that unpacks to more than this many times its length (and a mebibyte) is no record of ours.
const MOST_GROWTH: u64 = 1000;

/// What a frame that does not state the length of its content may unpack to; ours state it.
const MOST_UNSTATED: u64 = 64 << 20;

/// The largest window of a frame, as a power of two; ours need 2 MiB.
const WINDOW_LOG: u32 = 23;

/// Bytes from the start of a frame within which it states the length of its content.
const HEAD: usize = 18;

/// Unpacks a blob's frame into `to`: at most `most` bytes, and no more than a blob of this kind and length can hold.
/// A frame that states more is refused before anything is unpacked. Errors of `to` come through.
pub(crate) fn unpack(mut from: impl Read, blob: &BlobRef, most: u64, to: &mut impl Write) -> io::Result<()> {
    let mut limit = blob.len.saturating_mul(MOST_GROWTH).saturating_add(1 << 20).min(most);
    if blob.kind == BlobKind::Refs {
        limit = limit.min(MOST_PACKED_REFS);
    }
    let too_long = || io::Error::other("it grows beyond reason");
    let mut head = Vec::with_capacity(HEAD);
    from.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    match zstd::zstd_safe::get_frame_content_size(&head) {
        Ok(Some(stated)) if stated > limit => return Err(too_long()),
        Ok(Some(_)) => {}
        _ => limit = limit.min(MOST_UNSTATED),
    }
    let mut frame = zstd::stream::read::Decoder::new(io::Cursor::new(head).chain(from))?;
    frame.window_log_max(WINDOW_LOG)?;
    let mut content = frame.take(limit.saturating_add(1));
    io::copy(&mut content, to)?;
    if content.limit() == 0 { Err(too_long()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(kind: BlobKind, frame: &[u8], most: u64) -> io::Result<usize> {
        let mut to = Vec::new();
        unpack(frame, &BlobRef::of(kind, frame), most, &mut to).map(|()| to.len())
    }

    #[test]
    fn a_frame_gives_no_more_than_it_may() {
        let zeros = vec![0; 3 << 20];
        let stated = zstd::bulk::compress(&zeros, 3).unwrap();
        let unstated = zstd::encode_all(&zeros[..], 3).unwrap();
        for frame in [&stated, &unstated] {
            assert!(unpacked(BlobKind::Refs, frame, u64::MAX).is_err(), "it grew by more than a thousand");
        }
        let plain: Vec<u8> = (0..3u32 << 18).flat_map(|n| n.to_le_bytes()).collect();
        let frame = zstd::bulk::compress(&plain, 3).unwrap();
        assert_eq!(unpacked(BlobKind::Graph, &frame, u64::MAX).unwrap(), plain.len());
        assert_eq!(unpacked(BlobKind::Graph, &frame, plain.len() as u64).unwrap(), plain.len());
        assert!(unpacked(BlobKind::Graph, &frame, plain.len() as u64 - 1).is_err());
        // Two frames in a row give the sum.
        assert!(unpacked(BlobKind::Graph, &[&frame[..], &frame].concat(), plain.len() as u64).is_err());
        assert!(unpacked(BlobKind::Graph, b"no frame at all", u64::MAX).is_err());
        assert!(unpacked(BlobKind::Graph, b"", u64::MAX).is_err());
    }

    #[test]
    fn a_frame_that_states_too_much_is_not_begun() {
        struct Never;
        impl Write for Never {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                panic!("something was unpacked")
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let frame = zstd::bulk::compress(&vec![0; 200 << 20], 1).unwrap();
        for kind in [BlobKind::Refs, BlobKind::Graph] {
            let blob = BlobRef { len: 1 << 30, ..BlobRef::of(kind, &frame) };
            assert!(unpack(&frame[..], &blob, 100 << 20, &mut Never).is_err());
        }
    }

    #[test]
    fn a_frame_of_a_huge_window_is_refused() {
        use zstd::zstd_safe::CParameter;
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(CParameter::WindowLog(27)).unwrap();
        encoder.write_all(&[7; 1000]).unwrap();
        let frame = encoder.finish().unwrap();
        assert!(unpacked(BlobKind::Graph, &frame, u64::MAX).is_err());
    }
}
