//! Entries made anew: of objects whose stored delta has a base that the client will not have, and of big objects that
//! are stored whole and are better sent as a delta.
//!
//! Elsewhere: entry headers (`entry`), which objects need this (`plan::anew`), what one object copies from another
//! (`copies`).
use gix_object::Kind;
use gix_zlib::stream::deflate::{Compress, FlushCompress};
use gix_zlib::{Compression, Status};

use super::decode::{self, DecodeError, Scratch};
use super::stack::Stack;
use crate::pack::copies::Copies;
use crate::pack::entry::{self, Header};
use crate::pack::meter::{Halt, Held, Meter};
use crate::pack::{Gid, Source};

/// Makes the entry of the object `gid`: a delta on the last object of `path`, or whole where that does not pay, and
/// then as it is stored, if it is whole there.
///
/// `path` begins with `gid`. Of each two neighbours one is stored as a delta on the other, unless the path has these two
/// objects alone. Steps count on `meter`, and the memory of an object that is not small.
pub fn anew(
    stack: &Stack,
    source: &dyn Source,
    gid: Gid,
    path: &[Gid],
    effort: Effort,
    scratch: &mut Scratch,
    meter: &dyn Meter,
) -> Result<Vec<u8>, DecodeError> {
    let room = room(stack, gid, path, meter)?;
    let _held = (room > SMALL).then(|| Held::new(meter, room)).transpose()?;
    let stored = stack.entry(gid);
    let as_stored = || {
        let read = source.read(stored.layer, stored.offset..stored.end);
        read.map(Vec::from).map_err(|error| DecodeError::Read { layer: stored.layer, error })
    };
    if path.is_empty() && stored.base_local.is_none() {
        return as_stored();
    }
    let (kind, object) = decode::object(stack, source, gid, scratch, meter)?;
    meter.step(object.len() as u64 / BYTES_A_STEP)?;
    let delta = match delta_along(stack, source, path, &object, scratch, meter)? {
        Some(delta) => delta,
        None if stored.base_local.is_none() => return as_stored(),
        None => return Ok(undeltified(kind, &object, effort)),
    };
    let base = path.last().copied().unwrap_or(gid);
    let mut out = Vec::with_capacity(delta.len() / 2 + 64);
    entry::encode(&Header::RefDelta { base: stack.oid(base) }, delta.len() as u64, &mut out);
    let header_len = out.len();
    deflate_with(&delta, effort, &mut out);
    let data = stored.offset + u64::from(stored.header_len)..stored.end;
    if stored.base_local.is_none() && (out.len() - header_len) as u64 >= data.end - data.start {
        return as_stored();
    }
    Ok(out)
}

/// What needs no more than this at once is not counted object by object: so few objects are packed anew at the same time.
pub const SMALL: u64 = 1 << 20;
/// Deflating so many bytes counts as one step.
const BYTES_A_STEP: u64 = 16;

/// Gives the most bytes that packing `gid` anew along `path` holds at once.
pub fn room(stack: &Stack, gid: Gid, path: &[Gid], meter: &dyn Meter) -> Result<u64, Halt> {
    let size = stack.size(gid);
    let decoding = decode::peak(stack, gid, meter)?;
    // Bytes that do not compress stay as long, and the output buffer grows by doubling.
    let deflating = size.saturating_mul(3);
    let base = match path {
        // Compared with, it takes as much again and a quarter for where its blocks lie.
        [_, .., last] => decode::peak(stack, *last, meter)?.max(stack.size(*last).saturating_mul(9) / 4),
        _ => 0,
    };
    Ok(decoding.max(deflating).max(size.saturating_add(base)))
}

/// The delta that makes `object`, the first of `path`, from the last; `None` if it is not much shorter than the object.
fn delta_along(
    stack: &Stack,
    source: &dyn Source,
    path: &[Gid],
    object: &[u8],
    scratch: &mut Scratch,
    meter: &dyn Meter,
) -> Result<Option<Vec<u8>>, DecodeError> {
    let mut copies: Option<Copies> = None;
    for pair in path.windows(2) {
        let &[to, from] = pair else { break };
        let step = if leans_on(stack, to, from) {
            let stored = decode::stored_delta(stack, source, to, scratch, meter)?;
            stored.and_then(|delta| Copies::of(&delta).ok())
        } else if leans_on(stack, from, to) {
            let stored = decode::stored_delta(stack, source, from, scratch, meter)?;
            stored.and_then(|delta| Copies::of(&delta).ok()).map(|copies| copies.reversed())
        } else {
            let (_, base) = decode::object(stack, source, from, scratch, meter)?;
            Some(Copies::between(&base, object))
        };
        let Some(step) = step else { return Ok(None) };
        copies = Some(copies.map_or_else(|| step.clone(), |copies| copies.through(&step)));
    }
    let base_len = path.last().map_or(0, |&base| stack.size(base));
    let delta = copies
        .filter(|copies| copies.copied() * 2 > object.len() as u64)
        .and_then(|copies| copies.delta(base_len, object));
    Ok(delta)
}

/// Says whether `gid` is stored as a delta on `base`.
fn leans_on(stack: &Stack, gid: Gid, base: Gid) -> bool {
    let (layer, position) = stack.layer_of(base);
    stack.layer_of(gid).0 == layer && stack.entry(gid).base_local == Some(position)
}

/// How hard entries are deflated. On trees and sources zlib's level 1 gives a third more bytes than git's 6, and 3 a twelfth
/// more in two thirds of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// A client waits: level 3.
    Awaited,
    /// It is stored, and sent many times: git's level.
    Stored,
}

impl Effort {
    fn level(self) -> i32 {
        match self {
            Self::Awaited => 3,
            Self::Stored => 6,
        }
    }
}

/// Makes the pack entry of an object for a client that waits: header, then its bytes deflated.
pub fn whole(kind: Kind, object: &[u8]) -> Vec<u8> {
    undeltified(kind, object, Effort::Awaited)
}

fn undeltified(kind: Kind, object: &[u8], effort: Effort) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() / 2 + 32);
    entry::encode(&Header::Whole(kind), object.len() as u64, &mut out);
    deflate_with(object, effort, &mut out);
    out
}

/// Appends `bytes` as a zlib stream for a client that waits.
pub fn deflate(bytes: &[u8], out: &mut Vec<u8>) {
    deflate_with(bytes, Effort::Awaited, out);
}

fn deflate_with(bytes: &[u8], effort: Effort, out: &mut Vec<u8>) {
    let mut zip = Compress::new(Compression::new(effort.level()).unwrap_or(Compression::BEST_SPEED));
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
        #![proptest_config(crate::seed::cases(256))]

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
