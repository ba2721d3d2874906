//! Completing a thin pack: bases of its deltas that lie elsewhere are put into it.
//!
//! A base is put before the first delta on it, whose header then gives the distance. So the base of every entry stands
//! before the entry, as in the packs that git writes.

use std::collections::HashMap;
use std::io::{self, Write};

use gix_hash::{Hasher, Kind as HashKind, ObjectId, oid};
use gix_object::Kind;

use super::{BYTES_PER_ENTRY, Base, Entries, Entry, IndexError, damaged};
use crate::pack::entry::{self, Header, kind_from_code};
use crate::pack::meter::{Growing, Meter};

/// Where the bases of a thin pack are.
pub trait Bases {
    /// Type and size of an object, if it is there.
    fn find(&self, id: &oid) -> Option<(Kind, u64)>;

    /// Writes its bytes as one zlib stream.
    fn write(&self, id: &oid, out: &mut dyn Write) -> Result<(), IndexError>;
}

/// Says whether a delta of the pack has its base in `bases`: such a pack has to be completed.
pub fn is_thin(entries: &Entries, bases: &dyn Bases) -> bool {
    entries.bases.iter().any(|id| bases.find(id).is_some())
}

/// Writes the pack anew, complete. Bases that `bases` does not have are left to be found in the pack.
pub fn complete(
    pack: &[u8],
    entries: &Entries,
    bases: &dyn Bases,
    hash: HashKind,
    out: &mut dyn Write,
    meter: &dyn Meter,
) -> Result<Entries, IndexError> {
    let mut held = Growing::new(meter, (BYTES_PER_ENTRY + 4) * entries.list.len() as u64)?;
    let mut outside: HashMap<ObjectId, Option<u32>> = HashMap::new();
    for id in &entries.bases {
        if !outside.contains_key(id) && bases.find(id).is_some() {
            held.more(2 * size_of::<(ObjectId, u32)>() as u64)?;
            outside.insert(*id, None);
        }
    }
    let count = u32::try_from(entries.list.len() + outside.len());
    let count = count.map_err(|_| damaged(0, "more objects than a pack can have"))?;
    let mut out = Counting { out, hasher: gix_hash::hasher(hash), crc: crc32fast::Hasher::new(), at: 0 };
    out.write_all(&entry::pack_header(count))?;

    let mut made = Entries::default();
    let mut moved: Vec<u32> = Vec::with_capacity(entries.list.len());
    for (position, old) in entries.list.iter().enumerate() {
        meter.step(1)?;
        let base = match old.base {
            Base::Whole => Base::Whole,
            Base::At(base) => Base::At(moved[base as usize]),
            Base::Named(index) => {
                let id = entries.bases[index as usize];
                match outside.get(&id).copied() {
                    Some(Some(at)) => Base::At(at),
                    Some(None) => {
                        held.more(BYTES_PER_ENTRY)?;
                        let at = made.list.len() as u32;
                        let entry = put_base(&mut out, bases, &id)?;
                        made.list.push(entry);
                        outside.insert(id, Some(at));
                        Base::At(at)
                    }
                    None => {
                        made.bases.push(id);
                        Base::Named((made.bases.len() - 1) as u32)
                    }
                }
            }
        };
        let header = match base {
            Base::Whole => Header::Whole(kind_from_code(old.code).unwrap_or(Kind::Blob)),
            Base::At(at) => Header::OfsDelta { distance: out.at - made.list[at as usize].offset },
            Base::Named(index) => Header::RefDelta { base: made.bases[index as usize] },
        };
        let start = old.offset + u64::from(old.header_len);
        let data = pack.get(start as usize..entries.end_of(position) as usize);
        let data = data.ok_or(damaged(old.offset, "an entry is outside the pack"))?;
        moved.push(made.list.len() as u32);
        made.list.push(put(&mut out, header, old.size, base, |out| Ok(out.write_all(data)?))?);
    }
    made.end = out.at;
    out.finish(hash)?;
    Ok(made)
}

fn put_base(out: &mut Counting<'_>, bases: &dyn Bases, id: &oid) -> Result<Entry, IndexError> {
    let (kind, size) = bases.find(id).ok_or_else(|| IndexError::MissingBase { base: id.to_owned() })?;
    put(out, Header::Whole(kind), size, Base::Whole, |out| bases.write(id, out))
}

fn put(
    out: &mut Counting<'_>,
    header: Header,
    size: u64,
    base: Base,
    data: impl FnOnce(&mut Counting<'_>) -> Result<(), IndexError>,
) -> Result<Entry, IndexError> {
    let offset = out.at;
    out.crc = crc32fast::Hasher::new();
    let mut head = Vec::with_capacity(entry::MAX_HEADER_LEN);
    entry::encode(&header, size, &mut head);
    out.write_all(&head)?;
    data(out)?;
    let code = match header {
        Header::Whole(kind) => entry::kind_code(kind),
        other => other.raw_kind() as u8,
    };
    let crc = std::mem::take(&mut out.crc).finalize();
    Ok(Entry { offset, size, crc, base, header_len: head.len() as u8, code })
}

/// Counts and hashes what is written.
struct Counting<'a> {
    out: &'a mut dyn Write,
    hasher: Hasher,
    crc: crc32fast::Hasher,
    at: u64,
}

impl Counting<'_> {
    fn finish(mut self, hash: HashKind) -> Result<(), IndexError> {
        let hasher = std::mem::replace(&mut self.hasher, gix_hash::hasher(hash));
        let id = hasher.try_finalize().map_err(|_| IndexError::Collision { offset: self.at })?;
        self.out.write_all(id.as_slice())?;
        Ok(self.out.flush()?)
    }
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.crc.update(bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
