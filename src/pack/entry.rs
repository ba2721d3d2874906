//! Pack entries: the header in front of each object's zlib data, and the header of the pack itself.
//!
//! The rules are those of git's `Documentation/gitformat-pack.adoc` ("pack-*.pack files have the
//! following format") and `packfile.c` (`unpack_object_header_buffer`, `get_delta_base`). Size
//! headers that are longer than needed are accepted, as git does, so the length found in a pack is
//! recorded rather than computed.
//!
//! Elsewhere: what the zlib data holds (`delta`, `object`), which entries are sent (`plan`).
use gix_hash::{Kind as HashKind, ObjectId};
use gix_object::Kind;

/// The length of the header of a pack: `PACK`, version, number of objects.
pub const PACK_HEADER_LEN: usize = 12;
/// The longest entry header [`encode`] writes and [`decode`] accepts.
pub const MAX_HEADER_LEN: usize = 10 + 32;

const OFS_DELTA: u8 = 6;
const REF_DELTA: u8 = 7;

/// What an entry header says besides the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The object itself is in the entry.
    Whole(Kind),
    /// A delta on the entry that starts `distance` bytes before this one.
    OfsDelta {
        /// Bytes from the start of the base's entry to the start of this one.
        distance: u64,
    },
    /// A delta on the object named `base`.
    RefDelta {
        /// The id of the base object.
        base: ObjectId,
    },
}

/// How an object lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RawKind {
    /// The object itself.
    Whole = 0,
    /// A delta whose header gives the distance to its base.
    OfsDelta = 6,
    /// A delta whose header gives the id of its base.
    RefDelta = 7,
}

impl RawKind {
    /// Reads the number stored in a graph.
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Whole),
            OFS_DELTA => Some(Self::OfsDelta),
            REF_DELTA => Some(Self::RefDelta),
            _ => None,
        }
    }

    /// Says whether the entry is a delta.
    pub fn is_delta(self) -> bool {
        self != Self::Whole
    }
}

impl Header {
    /// Says how the object lies in the pack.
    pub fn raw_kind(&self) -> RawKind {
        match self {
            Self::Whole(_) => RawKind::Whole,
            Self::OfsDelta { .. } => RawKind::OfsDelta,
            Self::RefDelta { .. } => RawKind::RefDelta,
        }
    }
}

/// An entry header as it was found in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Type, and base of a delta.
    pub header: Header,
    /// Bytes of the inflated data: the object's, or the delta's.
    pub size: u64,
    /// Bytes of the header; the zlib data follows.
    pub header_len: usize,
}

/// The bytes are no entry header or pack header that git would accept. The pack is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad pack entry: {0}")]
pub struct BadEntry(pub &'static str);

impl BadEntry {
    /// Says whether more bytes could make a header of it.
    pub fn is_short(&self) -> bool {
        matches!(self.0, HEADER_SHORT | BASE_SHORT)
    }
}

const HEADER_SHORT: &str = "header is cut short";
const BASE_SHORT: &str = "base id is cut short";

/// Gives the number git writes for an object type in packs: commit 1, tree 2, blob 3, tag 4.
pub fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Commit => 1,
        Kind::Tree => 2,
        Kind::Blob => 3,
        Kind::Tag => 4,
    }
}

/// Reads a number written by [`kind_code`].
pub fn kind_from_code(code: u8) -> Option<Kind> {
    match code {
        1 => Some(Kind::Commit),
        2 => Some(Kind::Tree),
        3 => Some(Kind::Blob),
        4 => Some(Kind::Tag),
        _ => None,
    }
}

/// Reads the entry header at the front of `bytes`; [`MAX_HEADER_LEN`] bytes are always enough.
pub fn decode(bytes: &[u8], hash: HashKind) -> Result<Decoded, BadEntry> {
    let mut rest = bytes;
    let first = next(&mut rest)?;
    let mut size = u64::from(first & 0x0f);
    let (mut byte, mut shift) = (first, 4u32);
    while byte & 0x80 != 0 {
        byte = next(&mut rest)?;
        let bits = u64::from(byte & 0x7f);
        // Padding zeros are fine, but set bits must stay inside 64.
        if bits != 0 && (shift >= 64 || bits.leading_zeros() < shift) {
            return Err(BadEntry("size does not fit 64 bits"));
        }
        if shift < 64 {
            size |= bits << shift;
        }
        shift = (shift + 7).min(64);
        if bytes.len() - rest.len() > 10 {
            return Err(BadEntry("size header is too long"));
        }
    }
    let header = match (first >> 4) & 7 {
        OFS_DELTA => Header::OfsDelta { distance: decode_distance(&mut rest)? },
        REF_DELTA => {
            let (id, after) = rest.split_at_checked(hash.len_in_bytes()).ok_or(BadEntry(BASE_SHORT))?;
            rest = after;
            Header::RefDelta {
                base: ObjectId::try_from(id).map_err(|_| BadEntry("base id has a bad length"))?,
            }
        }
        code => Header::Whole(kind_from_code(code).ok_or(BadEntry("unknown object type"))?),
    };
    Ok(Decoded { header, size, header_len: bytes.len() - rest.len() })
}

fn next(rest: &mut &[u8]) -> Result<u8, BadEntry> {
    let (first, after) = rest.split_first().ok_or(BadEntry(HEADER_SHORT))?;
    *rest = after;
    Ok(*first)
}

fn decode_distance(rest: &mut &[u8]) -> Result<u64, BadEntry> {
    let mut byte = next(rest)?;
    let mut distance = u64::from(byte & 0x7f);
    while byte & 0x80 != 0 {
        byte = next(rest)?;
        distance = distance
            .checked_add(1)
            .filter(|value| value.leading_zeros() >= 7)
            .ok_or(BadEntry("base distance does not fit 64 bits"))?;
        distance = (distance << 7) | u64::from(byte & 0x7f);
    }
    if distance == 0 {
        return Err(BadEntry("base distance is zero"));
    }
    Ok(distance)
}

/// Appends the shortest header for `header` and the inflated `size` to `out`.
pub fn encode(header: &Header, size: u64, out: &mut Vec<u8>) {
    let code = match header {
        Header::Whole(kind) => kind_code(*kind),
        Header::OfsDelta { .. } => OFS_DELTA,
        Header::RefDelta { .. } => REF_DELTA,
    };
    let mut byte = (code << 4) | (size & 0x0f) as u8;
    let mut rest = size >> 4;
    while rest != 0 {
        out.push(byte | 0x80);
        byte = (rest & 0x7f) as u8;
        rest >>= 7;
    }
    out.push(byte);
    match header {
        Header::Whole(_) => {}
        Header::OfsDelta { distance } => encode_distance(*distance, out),
        Header::RefDelta { base } => out.extend_from_slice(base.as_slice()),
    }
}

fn encode_distance(distance: u64, out: &mut Vec<u8>) {
    let mut bytes = [0u8; 10];
    let mut at = bytes.len() - 1;
    bytes[at] = (distance & 0x7f) as u8;
    let mut rest = distance >> 7;
    while rest != 0 {
        rest -= 1;
        at -= 1;
        bytes[at] = 0x80 | (rest & 0x7f) as u8;
        rest >>= 7;
    }
    out.extend_from_slice(&bytes[at..]);
}

/// Gives the number of bytes [`encode`] writes, without writing them.
pub fn encoded_len(header: &Header, size: u64) -> usize {
    let size_bits = 64 - (size >> 4).leading_zeros() as usize;
    let base = match header {
        Header::Whole(_) => 0,
        Header::OfsDelta { distance } => {
            let (mut len, mut rest) = (1, *distance >> 7);
            while rest != 0 {
                rest = (rest - 1) >> 7;
                len += 1;
            }
            len
        }
        Header::RefDelta { base } => base.as_slice().len(),
    };
    1 + size_bits.div_ceil(7) + base
}

/// Writes the header of a version 2 pack of `objects` entries.
pub fn pack_header(objects: u32) -> [u8; PACK_HEADER_LEN] {
    let mut header = *b"PACK\0\0\0\x02\0\0\0\0";
    header[8..].copy_from_slice(&objects.to_be_bytes());
    header
}

/// Reads the number of objects from the header of a pack, version 2 or 3.
pub fn parse_pack_header(bytes: &[u8]) -> Result<u32, BadEntry> {
    let header = bytes.first_chunk::<PACK_HEADER_LEN>().ok_or(BadEntry("pack header is cut short"))?;
    let [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, a, b, c, d] = *header else {
        return Err(BadEntry("not a version 2 or 3 pack"));
    };
    Ok(u32::from_be_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> impl Strategy<Value = Header> {
        prop_oneof![
            (1u8..5).prop_map(|code| Header::Whole(kind_from_code(code).unwrap())),
            (1u64..).prop_map(|distance| Header::OfsDelta { distance }),
            (1u64..100_000).prop_map(|distance| Header::OfsDelta { distance }),
            any::<[u8; 20]>().prop_map(|id| Header::RefDelta { base: ObjectId::from(id) }),
        ]
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn what_is_written_is_read(header in headers(), size in prop_oneof![any::<u64>(), 0u64..5000],
                                   tail in proptest::collection::vec(any::<u8>(), 0..4)) {
            let mut bytes = Vec::new();
            encode(&header, size, &mut bytes);
            let header_len = bytes.len();
            prop_assert_eq!(header_len, encoded_len(&header, size));
            prop_assert!(header_len <= MAX_HEADER_LEN);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(decode(&bytes, HashKind::Sha1), Ok(Decoded { header, size, header_len }));
            for cut in 0..header_len {
                prop_assert!(decode(&bytes[..cut], HashKind::Sha1).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_as_gix_reads_them_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(decoded) = decode(&bytes, HashKind::Sha1) {
                let other = gix_pack::data::Entry::from_bytes(&bytes, 1 << 40, HashKind::Sha1).unwrap();
                prop_assert_eq!(other.decompressed_size, decoded.size);
                prop_assert_eq!(other.header_size(), decoded.header_len);
            }
        }
    }

    #[test]
    fn reads_what_git_writes_and_refuses_the_rest() {
        let blob = |size, header_len| Ok(Decoded { header: Header::Whole(Kind::Blob), size, header_len });
        let cases: [(&[u8], Result<Decoded, BadEntry>); 6] = [
            (&[0x33], blob(3, 1)),
            (&[0xb3, 0x00], blob(3, 2)),
            (&[0xbf, 0x01], blob(31, 2)),
            (&[0x53], Err(BadEntry("unknown object type"))),
            (&[0x63, 0x00], Err(BadEntry("base distance is zero"))),
            (
                &[0xb3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
                Err(BadEntry("size does not fit 64 bits")),
            ),
        ];
        for (input, want) in cases {
            assert_eq!(decode(input, HashKind::Sha1), want, "{input:x?}");
        }
    }

    #[test]
    fn the_header_of_a_pack_is_read_back() {
        assert_eq!(parse_pack_header(&pack_header(70_000)), Ok(70_000));
        assert!(parse_pack_header(b"PACK\0\0\0\x04\0\0\0\0").is_err());
        assert!(parse_pack_header(b"PACK").is_err());
    }
}
