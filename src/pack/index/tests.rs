//! Packs that git makes, and packs that nobody should make, are indexed as git does.

use std::io::Write as _;

use super::complete::{Bases, complete, is_thin};
use super::receive::receive;
use super::resolve::{Keep, Resolve, resolve};
use super::*;
use crate::pack::delta::put_size;
use crate::pack::entry::{self, Header};
use crate::pack::meter::{Meter, Unlimited};
use crate::pack::testing::Repo;
use bytes::Bytes;
use gix_hash::{Kind as HashKind, oid};
use gix_object::Kind;
use std::sync::Mutex;

struct InMemory;

impl Keep for InMemory {
    fn keep(&self, _: u64, write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>) -> io::Result<Bytes> {
        let mut out = Vec::new();
        write(&mut out)?;
        Ok(out.into())
    }
}

/// The `.idx` of a pack as we write it. Objects from `keep_from` bytes on go by way of [`Keep`].
fn index(pack: &[u8], hash: HashKind, keep_from: u64, meter: &dyn Meter) -> Result<Vec<u8>, IndexError> {
    let mut copy = Vec::new();
    let entries = receive(&mut &*pack, &mut copy, hash, u64::MAX, meter)?;
    assert_eq!(copy, pack);
    let job = Resolve {
        pack,
        entries: &entries,
        hash,
        largest: u64::MAX,
        keep: &InMemory,
        keep_from,
        meter,
        threads: 2,
    };
    let ids = resolve(&job)?;
    let mut idx = Vec::new();
    write::write(&entries, &ids, &pack[entries.end as usize..], hash, &mut idx)?;
    Ok(idx)
}

/// A pack made by hand.
#[derive(Default)]
struct Made {
    entries: Vec<Vec<u8>>,
}

impl Made {
    fn put(&mut self, header: Header, data: &[u8]) {
        let mut entry = Vec::new();
        entry::encode(&header, data.len() as u64, &mut entry);
        let mut zipped = gix_zlib::stream::deflate::Write::new(entry, gix_zlib::Compression::BEST_SPEED);
        zipped.write_all(data).unwrap();
        zipped.flush().unwrap();
        self.entries.push(zipped.into_inner());
    }

    fn blob(&mut self, data: &[u8]) -> ObjectId {
        self.put(Header::Whole(Kind::Blob), data);
        gix_object::compute_hash(HashKind::Sha1, Kind::Blob, data).unwrap()
    }

    /// A delta that puts `tail` behind all of a base of `len` bytes, below 64 KiB.
    fn longer(&mut self, base: ObjectId, len: usize, tail: &[u8]) {
        let mut delta = Vec::new();
        put_size(len as u64, &mut delta);
        put_size((len + tail.len()) as u64, &mut delta);
        crate::pack::delta::put_copy(0, len as u32, &mut delta);
        delta.push(tail.len() as u8);
        delta.extend_from_slice(tail);
        self.put(Header::RefDelta { base }, &delta);
    }

    fn pack(&self) -> Vec<u8> {
        let mut pack = entry::pack_header(self.entries.len() as u32).to_vec();
        pack.extend(self.entries.concat());
        let mut hasher = gix_hash::hasher(HashKind::Sha1);
        hasher.update(&pack);
        pack.extend_from_slice(hasher.try_finalize().unwrap().as_slice());
        pack
    }
}

#[test]
fn indexes_are_those_of_git() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let repo = Repo::new(hash);
        let mut parent = Vec::new();
        for n in 0..30u32 {
            let text: String =
                (0..200).map(|line| format!("line {line} {}\n", if line == n { n } else { 0 })).collect();
            let blob = repo.store("blob", text.as_bytes());
            let tree = repo.tree(&[("100644", "file", blob)]);
            parent = vec![repo.commit(tree, &parent)];
        }
        let packed = repo.pack(&["--revs"], &format!("{}\n", parent[0]));
        for keep_from in [u64::MAX, 1] {
            assert!(index(&packed.pack, hash, keep_from, &Unlimited).unwrap() == packed.idx, "{hash}");
        }
    }
}

#[test]
fn damage_is_found_wherever_it_is() {
    let mut made = Made::default();
    let base = made.blob(&[7; 3000]);
    made.longer(base, 3000, b"x");
    let pack = made.pack();
    let take = |pack: &[u8]| index(pack, HashKind::Sha1, u64::MAX, &Unlimited);
    assert!(take(&pack).is_ok());
    for at in 0..pack.len() {
        let mut bad = pack.clone();
        bad[at] ^= 0x41;
        let found = take(&bad);
        assert!(matches!(found, Err(IndexError::Damaged { .. } | IndexError::Io(_))), "byte {at}: {found:?}");
        assert!(matches!(take(&pack[..at]), Err(IndexError::Io(_))), "cut at {at}");
    }
    assert!(matches!(take(&[&pack[..], b"x"].concat()), Err(IndexError::Damaged { .. })));
    let nowhere = {
        let mut made = Made::default();
        made.longer(base, 3000, b"x");
        made.pack()
    };
    assert!(matches!(take(&nowhere), Err(IndexError::MissingBase { base: missing }) if missing == base));
    let mut out = Vec::new();
    let large = receive(&mut &*pack, &mut out, HashKind::Sha1, 2999, &Unlimited);
    assert!(matches!(large, Err(IndexError::TooLarge { size: 3000, .. })));
}

struct Given(Kind, Vec<u8>);

impl Bases for Given {
    fn find(&self, id: &oid) -> Option<(Kind, u64)> {
        let own = gix_object::compute_hash(HashKind::Sha1, self.0, &self.1).unwrap();
        (own == id).then_some((self.0, self.1.len() as u64))
    }

    fn write(&self, _: &oid, out: &mut dyn io::Write) -> Result<(), IndexError> {
        let mut zipped = gix_zlib::stream::deflate::Write::new(out, gix_zlib::Compression::DEFAULT);
        zipped.write_all(&self.1)?;
        Ok(zipped.flush()?)
    }
}

/// A thin pack gets the base before the first delta on it; deltas on it by distance keep it as their base.
#[test]
fn a_thin_pack_is_completed() {
    let text = vec![9; 5000];
    let base = gix_object::compute_hash(HashKind::Sha1, Kind::Blob, &text).unwrap();
    let mut made = Made::default();
    made.blob(b"first");
    made.longer(base, 5000, b"one");
    let distance = made.entries.last().unwrap().len() as u64;
    let mut delta = Vec::new();
    put_size(5003, &mut delta);
    put_size(5, &mut delta);
    crate::pack::delta::put_copy(4998, 5, &mut delta);
    made.put(Header::OfsDelta { distance }, &delta);
    made.longer(base, 5000, b"two");
    let thin = made.pack();
    let mut copy = Vec::new();
    let entries = receive(&mut &*thin, &mut copy, HashKind::Sha1, u64::MAX, &Unlimited).unwrap();
    let bases = Given(Kind::Blob, text);
    assert!(is_thin(&entries, &bases));
    let mut whole = Vec::new();
    let completed = complete(&thin, &entries, &bases, HashKind::Sha1, &mut whole, &Unlimited).unwrap();
    let mut copy = Vec::new();
    let read = receive(&mut &*whole, &mut copy, HashKind::Sha1, u64::MAX, &Unlimited).unwrap();
    assert_eq!(read, completed, "what is written is what was said to be");
    assert_eq!(read.list.len(), 5);
    assert!(!read.list.iter().any(|entry| matches!(entry.base, Base::Named(_))));
    let repo = Repo::new(HashKind::Sha1);
    let path = repo.path().join("made.pack");
    std::fs::write(&path, &whole).unwrap();
    repo.git(&["index-pack", "--strict", path.to_str().unwrap()]);
    let theirs = std::fs::read(path.with_extension("idx")).unwrap();
    assert!(index(&whole, HashKind::Sha1, 100, &Unlimited).unwrap() == theirs);
}

/// Counts what is held, and the most that was.
#[derive(Default)]
struct Counting(Mutex<(u64, u64)>);

impl Meter for Counting {
    fn step(&self, _: u64) -> Result<(), Halt> {
        Ok(())
    }

    fn hold(&self, bytes: u64) -> Result<(), Halt> {
        let mut held = self.0.lock().unwrap();
        held.0 += bytes;
        held.1 = held.1.max(held.0);
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.0.lock().unwrap().0 -= bytes;
    }
}

/// A comb: every object has two deltas on it, one that is the base of nothing, and one that the rest depends on. Holding
/// all bases that still have children holds the whole comb.
#[test]
fn few_bases_are_held_whatever_leans_on_them() {
    let (teeth, len) = (500, 20_000);
    let mut bytes = vec![5; len];
    let mut made = Made::default();
    made.blob(&bytes);
    // By distance, as git sends them.
    let mut behind = made.entries[0].len() as u64;
    for n in 0..teeth {
        for tail in [b'a', b'b'] {
            let mut delta = Vec::new();
            put_size(bytes.len() as u64, &mut delta);
            put_size(bytes.len() as u64 + 1, &mut delta);
            crate::pack::delta::put_copy(0, bytes.len() as u32, &mut delta);
            delta.extend([1, tail.wrapping_add(n as u8)]);
            made.put(Header::OfsDelta { distance: behind }, &delta);
            let last = made.entries.last().unwrap().len() as u64;
            behind = if tail == b'a' { behind + last } else { last };
        }
        bytes.push(b'b'.wrapping_add(n as u8));
    }
    let meter = Counting::default();
    index(&made.pack(), HashKind::Sha1, u64::MAX, &meter).unwrap();
    let (left, most) = *meter.0.lock().unwrap();
    assert_eq!(left, 0, "all is given back");
    assert!(most < 10 * len as u64 + 3000 * BYTES_PER_ENTRY, "{most} bytes were held at once");
}
