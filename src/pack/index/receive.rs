//! Reading a pack from a stream, once, piece by piece, while it is written to a file as it is.

use std::io::{BufRead, Write};

use gix_hash::{Hasher, Kind as HashKind};
use gix_zlib::{Decompress, FlushDecompress, Status};

use super::{BYTES_PER_ENTRY, BYTES_PER_STEP, Base, Entries, Entry, IndexError, damaged};
use crate::pack::entry::{self, Header};
use crate::pack::meter::{Growing, Meter};

/// Reads a whole pack and the end of the stream behind it; what it holds is in the stream's order.
///
/// The pack is complete, its trailer right, and every entry inflates to the size it states when this returns. `largest`
/// bounds what one entry may inflate to.
pub fn receive(
    stream: &mut dyn BufRead,
    out: &mut dyn Write,
    hash: HashKind,
    largest: u64,
    meter: &dyn Meter,
) -> Result<Entries, IndexError> {
    let mut stream =
        Copying { stream, out, hasher: gix_hash::hasher(hash), at: 0, crc: crc32fast::Hasher::new() };
    let mut head = [0; entry::PACK_HEADER_LEN];
    stream.exactly(&mut head)?;
    let count = entry::parse_pack_header(&head).map_err(|bad| damaged(0, bad.0))?;
    let mut entries = Entries::default();
    let mut held = Growing::new(meter, 0)?;
    let mut inflate = Decompress::new();
    for done in 0..count {
        meter.tell(u64::from(done), u64::from(count));
        held.more(BYTES_PER_ENTRY)?;
        let entry = one(&mut stream, &mut entries, hash, largest, meter, &mut inflate)?;
        if matches!(entry.base, Base::Named(_)) {
            held.more(size_of::<gix_hash::ObjectId>() as u64)?;
        }
        entries.list.push(entry);
    }
    entries.end = stream.at;
    stream.trailer(hash)?;
    Ok(entries)
}

fn one(
    stream: &mut Copying<'_>,
    entries: &mut Entries,
    hash: HashKind,
    largest: u64,
    meter: &dyn Meter,
    inflate: &mut Decompress,
) -> Result<Entry, IndexError> {
    let offset = stream.at;
    stream.crc = crc32fast::Hasher::new();
    let decoded = stream.header(hash)?;
    if decoded.size > largest {
        return Err(IndexError::TooLarge { offset, size: decoded.size, most: largest });
    }
    let (base, code) = match decoded.header {
        Header::Whole(kind) => (Base::Whole, entry::kind_code(kind)),
        Header::OfsDelta { distance } => {
            let wanted = offset.checked_sub(distance);
            let found = entries.list.binary_search_by(|entry| Some(entry.offset).cmp(&wanted));
            let found = found.map_err(|_| damaged(offset, "a delta leans on what is no entry"))?;
            (Base::At(found as u32), 6)
        }
        Header::RefDelta { base } => {
            entries.bases.push(base);
            (Base::Named((entries.bases.len() - 1) as u32), 7)
        }
    };
    stream.data(decoded.size, inflate, meter)?;
    let crc = std::mem::take(&mut stream.crc).finalize();
    Ok(Entry { offset, size: decoded.size, crc, base, header_len: decoded.header_len as u8, code })
}

/// A stream whose bytes are written, counted and hashed as they are read.
struct Copying<'a> {
    stream: &'a mut dyn BufRead,
    out: &'a mut dyn Write,
    hasher: Hasher,
    crc: crc32fast::Hasher,
    at: u64,
}

impl Copying<'_> {
    /// Takes the first `n` bytes of what is buffered.
    fn take(&mut self, n: usize) -> Result<(), IndexError> {
        let bytes = self.stream.fill_buf()?;
        let bytes = bytes.get(..n).unwrap_or(bytes);
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.crc.update(bytes);
        let n = bytes.len();
        self.at += n as u64;
        self.stream.consume(n);
        Ok(())
    }

    fn exactly(&mut self, into: &mut [u8]) -> Result<(), IndexError> {
        let mut done = 0;
        while done < into.len() {
            let bytes = self.stream.fill_buf()?;
            if bytes.is_empty() {
                return Err(cut_short());
            }
            let n = bytes.len().min(into.len() - done);
            into[done..done + n].copy_from_slice(&bytes[..n]);
            done += n;
            self.take(n)?;
        }
        Ok(())
    }

    /// Reads one entry header, byte by byte: the length is known at its end only.
    fn header(&mut self, hash: HashKind) -> Result<entry::Decoded, IndexError> {
        let offset = self.at;
        let mut bytes = [0; entry::MAX_HEADER_LEN];
        for at in 0..bytes.len() {
            self.exactly(&mut bytes[at..=at])?;
            match entry::decode(&bytes[..=at], hash) {
                Ok(decoded) => return Ok(decoded),
                Err(bad) if !bad.is_short() => return Err(damaged(offset, bad.0)),
                Err(_) => {}
            }
        }
        Err(damaged(offset, "an entry header does not end"))
    }

    /// Reads one zlib stream, which must inflate to `size` bytes.
    fn data(&mut self, size: u64, inflate: &mut Decompress, meter: &dyn Meter) -> Result<(), IndexError> {
        let offset = self.at;
        let bad = |reason| damaged(offset, reason);
        let mut out = [0; 16 * 1024];
        inflate.reset();
        loop {
            let input = self.stream.fill_buf()?;
            if input.is_empty() {
                return Err(cut_short());
            }
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(input, &mut out, FlushDecompress::None);
            let status = status.map_err(|_| bad("zlib data does not inflate"))?;
            let used = (inflate.total_in() - before_in) as usize;
            let made = inflate.total_out() - before_out;
            self.take(used)?;
            meter.step(made / BYTES_PER_STEP + 1)?;
            if inflate.total_out() > size {
                return Err(bad("zlib data has not the promised length"));
            }
            match status {
                Status::StreamEnd if inflate.total_out() == size => return Ok(()),
                Status::StreamEnd => return Err(bad("zlib data has not the promised length")),
                _ if used == 0 && made == 0 => return Err(bad("zlib data does not inflate")),
                _ => {}
            }
        }
    }

    /// Reads the trailer and the end of the stream.
    fn trailer(mut self, hash: HashKind) -> Result<(), IndexError> {
        let offset = self.at;
        let hasher = std::mem::replace(&mut self.hasher, gix_hash::hasher(hash));
        let found = hasher.try_finalize().map_err(|_| IndexError::Collision { offset })?;
        let mut stated = vec![0; hash.len_in_bytes()];
        self.exactly(&mut stated)?;
        if found.as_slice() != stated {
            return Err(damaged(offset, "the trailer does not fit what was received"));
        }
        if !self.stream.fill_buf()?.is_empty() {
            return Err(damaged(self.at, "something follows the trailer"));
        }
        Ok(self.out.flush()?)
    }
}

fn cut_short() -> IndexError {
    IndexError::Io(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the pack is cut short"))
}
