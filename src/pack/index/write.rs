//! The `.idx` of a pack, version 2 (gitformat-pack, "Version 2 pack-*.idx files").

use std::io::{self, Write};

use gix_hash::Kind as HashKind;

use super::resolve::Ids;
use super::{Entries, IndexError};

/// Offsets from here on stand in a table of their own.
const LARGE: u64 = 0x8000_0000;

/// Writes the `.idx` of the pack whose trailer is `trailer`.
pub fn write(
    entries: &Entries,
    ids: &Ids,
    trailer: &[u8],
    hash: HashKind,
    out: &mut dyn Write,
) -> Result<(), IndexError> {
    let mut order: Vec<u32> = (0..entries.list.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| ids.get(a).cmp(ids.get(b)));
    let mut out = Hashing { out, hasher: gix_hash::hasher(hash) };
    out.write_all(b"\xfftOc\0\0\0\x02")?;
    let mut counts = [0u32; 256];
    for &position in &order {
        if let Some(count) = ids.get(position).first().and_then(|&first| counts.get_mut(usize::from(first))) {
            *count += 1;
        }
    }
    let mut sum = 0u32;
    for count in counts {
        sum += count;
        out.write_all(&sum.to_be_bytes())?;
    }
    let entry = |position: &u32| &entries.list[*position as usize];
    for &position in &order {
        out.write_all(ids.get(position))?;
    }
    for entry in order.iter().map(entry) {
        out.write_all(&entry.crc.to_be_bytes())?;
    }
    let mut large = Vec::new();
    for entry in order.iter().map(entry) {
        let small = if entry.offset < LARGE {
            entry.offset as u32
        } else {
            large.push(entry.offset);
            LARGE as u32 | (large.len() - 1) as u32
        };
        out.write_all(&small.to_be_bytes())?;
    }
    for offset in large {
        out.write_all(&offset.to_be_bytes())?;
    }
    out.write_all(trailer)?;
    let Hashing { out, hasher } = out;
    let id = hasher.try_finalize().map_err(|_| io::Error::other("the index collides with another"))?;
    out.write_all(id.as_slice())?;
    Ok(out.flush()?)
}

struct Hashing<'a> {
    out: &'a mut dyn Write,
    hasher: gix_hash::Hasher,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
