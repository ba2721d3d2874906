//! Bytes inside a pack: entry headers, deltas, zlib data, and the objects themselves.
use crate::pack::copies::Copies;
use crate::pack::layer::encode;
use crate::pack::object::{TreeEntries, commit, tag};
use crate::pack::{delta, entry};
use crate::{byte, hash};
use gix_hash::Kind as HashKind;

/// One target: the first byte chooses the hash and what the rest is.
pub fn run(mut data: &[u8]) {
    let Some(choice) = byte(&mut data) else { return };
    let hash = hash(choice);
    match choice >> 1 & 3 {
        0 => entry_header(data, hash),
        1 => a_delta(data),
        2 => zlib(data),
        _ => objects(data, hash),
    }
}

fn entry_header(data: &[u8], hash: HashKind) {
    let _ = entry::parse_pack_header(data);
    let Ok(found) = entry::decode(data, hash) else { return };
    assert!(found.header_len <= entry::MAX_HEADER_LEN && found.header_len <= data.len());
    let mut out = Vec::new();
    entry::encode(&found.header, found.size, &mut out);
    assert_eq!(out.len(), entry::encoded_len(&found.header, found.size));
    assert!(out.len() <= found.header_len, "ours is the shortest");
    assert_eq!(entry::decode(&out, hash), Ok(entry::Decoded { header_len: out.len(), ..found }));
    assert_eq!(entry::decode(&data[..found.header_len], hash), Ok(found), "nothing behind it counts");
}

fn a_delta(mut data: &[u8]) {
    const LIMIT: u64 = 1 << 16;
    let length = usize::from(byte(&mut data).unwrap_or(0)).min(data.len());
    let (base, delta) = data.split_at(length);
    let Ok(made) = delta::apply(base, delta, LIMIT) else { return };
    let (from, to, used) = delta::sizes(delta).expect("it was applied");
    assert_eq!((from, to), (base.len() as u64, made.len() as u64), "the promised sizes");
    assert!(to <= LIMIT && used <= delta.len().min(delta::MAX_SIZES_LEN));
    if to > 0 {
        assert!(delta::apply(base, delta, to - 1).is_err(), "the limit is kept");
    }
    let remade = |delta: Option<Vec<u8>>, base: &[u8]| delta::apply(base, &delta.expect("it fits"), LIMIT);
    let back = Copies::of(delta).expect("it was applied").reversed().delta(to, base);
    assert_eq!(remade(back, &made).as_deref(), Ok(base), "the base from its result");
    let compared = Copies::between(base, &made).delta(from, &made);
    assert_eq!(remade(compared, base), Ok(made), "the result by comparing");
}

fn zlib(mut data: &[u8]) {
    let size = usize::from(byte(&mut data).unwrap_or(0));
    let mut state = gix_zlib::Inflate::default();
    if let Ok(out) = delta::inflate(&mut state, data, size) {
        assert_eq!(out.len(), size);
        let mut front = [0; 16];
        let front = delta::inflate_front(&mut state, data, &mut front).expect("all of it inflates");
        assert!(out.starts_with(front) && front.len() == size.min(16));
    }
    let mut zipped = Vec::new();
    encode::deflate(data, &mut zipped);
    assert_eq!(delta::inflate(&mut state, &zipped, data.len()).as_deref(), Ok(data));
}

fn objects(data: &[u8], hash: HashKind) {
    if let Ok(links) = commit(data, hash) {
        assert!(data.len() >= (1 + links.parents.len()) * hash.len_in_hex());
        assert!(data.starts_with(b"tree "));
    }
    if tag(data, hash).is_ok() {
        assert!(data.starts_with(b"object "));
    }
    let mut joined = Vec::new();
    let mut whole = true;
    for found in TreeEntries::new(data, hash) {
        match found {
            Ok(found) => {
                assert!(!found.name.is_empty() && !found.name.contains(&0));
                assert!(TreeEntries::new(found.raw, hash).skip_equal(found.raw));
                joined.extend_from_slice(found.raw);
            }
            Err(_) => whole = false,
        }
    }
    assert!(data.starts_with(&joined) && (!whole || joined == data), "entries are the tree");
}
