//! Deltas: how one object is written as copies from another, and zlib data of known length.
//!
//! The rules are those of git's `Documentation/gitformat-pack.adoc` ("Deltified representation")
//! and `patch-delta.c`.
//!
//! Elsewhere: where the base of a delta is found (`layer`).
use gix_zlib::{Inflate, Status};

/// The bytes are no delta, or not one for this base; or no zlib data of the promised length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad pack data: {0}")]
pub struct BadData(pub &'static str);

/// The longest pair of sizes at the front of a delta.
pub const MAX_SIZES_LEN: usize = 20;

/// Reads the size of the base and of the result from the front of a delta: `(base, result, used)`.
pub fn sizes(delta: &[u8]) -> Result<(u64, u64, usize), BadData> {
    let mut used = 0;
    let base = size(delta, &mut used)?;
    let result = size(delta, &mut used)?;
    Ok((base, result, used))
}

fn size(delta: &[u8], used: &mut usize) -> Result<u64, BadData> {
    let (mut value, mut shift) = (0u64, 0u32);
    loop {
        let byte = *delta.get(*used).ok_or(BadData("delta is cut short"))?;
        *used += 1;
        let bits = u64::from(byte & 0x7f);
        if shift >= 64 || (bits != 0 && bits.leading_zeros() < shift) {
            return Err(BadData("delta size does not fit 64 bits"));
        }
        value |= bits << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
}

/// Applies `delta` to `base`. The result has at most `limit` bytes, or the delta is refused.
pub fn apply(base: &[u8], delta: &[u8], limit: u64) -> Result<Vec<u8>, BadData> {
    let (_, result_size, _) = checked_sizes(base, delta, limit)?;
    let mut out = Vec::with_capacity(result_size as usize);
    let made = apply_to(base, delta, limit, &mut |piece| {
        out.extend_from_slice(piece);
        Ok(())
    });
    match made {
        Ok(()) => Ok(out),
        Err(ApplyError::Bad(bad)) => Err(bad),
        Err(ApplyError::Write(_)) => Err(BadData("delta could not be applied")),
    }
}

/// Why [`apply_to`] ended early.
#[derive(Debug)]
pub enum ApplyError {
    /// See [`BadData`].
    Bad(BadData),
    /// The result was not taken.
    Write(std::io::Error),
}

impl From<BadData> for ApplyError {
    fn from(bad: BadData) -> Self {
        Self::Bad(bad)
    }
}

fn checked_sizes(base: &[u8], delta: &[u8], limit: u64) -> Result<(u64, u64, usize), BadData> {
    let (base_size, result_size, used) = sizes(delta)?;
    if base_size != base.len() as u64 {
        return Err(BadData("delta is for a base of another size"));
    }
    if result_size > limit {
        return Err(BadData("delta result is larger than expected"));
    }
    Ok((base_size, result_size, used))
}

/// Applies `delta` to `base` as [`apply`] does, and gives the result piece by piece.
pub fn apply_to(
    base: &[u8],
    delta: &[u8],
    limit: u64,
    take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<(), ApplyError> {
    let (_, result_size, used) = checked_sizes(base, delta, limit)?;
    let mut made = 0u64;
    let mut rest = delta.get(used..).unwrap_or_default();
    while let Some(command) = command(&mut rest)? {
        let piece = match command {
            Command::Copy { offset, len } => {
                let piece = base.get(offset..offset.saturating_add(len));
                piece.ok_or(BadData("delta copies beyond its base"))?
            }
            Command::Insert(piece) => piece,
        };
        made += piece.len() as u64;
        if made > result_size {
            return Err(BadData("delta gives more than it promised").into());
        }
        take(piece).map_err(ApplyError::Write)?;
    }
    if made != result_size {
        return Err(BadData("delta gives less than it promised").into());
    }
    Ok(())
}

/// One step of making an object from its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'d> {
    /// Bytes of the base.
    Copy {
        /// The first byte.
        offset: usize,
        /// The number of bytes.
        len: usize,
    },
    /// Bytes of the delta itself.
    Insert(&'d [u8]),
}

/// Reads the next command from the front of `rest`; none at the end.
pub fn command<'d>(rest: &mut &'d [u8]) -> Result<Option<Command<'d>>, BadData> {
    let Some((&command, after)) = rest.split_first() else { return Ok(None) };
    *rest = after;
    if command & 0x80 != 0 {
        let offset = operand(command & 0x0f, rest)?;
        let len = match operand((command >> 4) & 0x07, rest)? {
            0 => 0x10000,
            len => len,
        };
        return Ok(Some(Command::Copy { offset, len }));
    }
    if command == 0 {
        return Err(BadData("delta command 0 is reserved"));
    }
    let (piece, after) = rest.split_at_checked(command.into()).ok_or(BadData("delta is cut short"))?;
    *rest = after;
    Ok(Some(Command::Insert(piece)))
}

/// Appends a size as it stands at the front of a delta.
pub fn put_size(mut size: u64, out: &mut Vec<u8>) {
    while size >= 0x80 {
        out.push(size as u8 | 0x80);
        size >>= 7;
    }
    out.push(size as u8);
}

/// Appends a copy command; `len` is 1 to 0x10000.
pub fn put_copy(offset: u32, len: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.push(0x80);
    let mut mask = 0x80;
    // A length of 0x10000 is written as none at all.
    let operands = offset.to_le_bytes().into_iter().chain(len.to_le_bytes().into_iter().take(2));
    for (bit, byte) in operands.enumerate() {
        if byte != 0 {
            mask |= 1 << bit;
            out.push(byte);
        }
    }
    if let Some(command) = out.get_mut(start) {
        *command = mask;
    }
}

/// Reads the little-endian operand whose present bytes `mask` tells.
fn operand(mask: u8, rest: &mut &[u8]) -> Result<usize, BadData> {
    let mut value = 0usize;
    for bit in 0..4 {
        if mask & (1 << bit) != 0 {
            let (byte, after) = rest.split_first().ok_or(BadData("delta is cut short"))?;
            *rest = after;
            value |= usize::from(*byte) << (8 * bit);
        }
    }
    Ok(value)
}

/// Inflates the zlib stream at the front of `input`, which must give exactly `size` bytes.
pub fn inflate(state: &mut Inflate, input: &[u8], size: usize) -> Result<Vec<u8>, BadData> {
    // One spare byte shows a stream that goes on, and keeps the buffer from being empty.
    let mut out = vec![0; size + 1];
    state.reset();
    let (status, _, written) =
        state.once(input, &mut out).map_err(|_| BadData("zlib data does not inflate"))?;
    if status != Status::StreamEnd || written != size {
        return Err(BadData("zlib data has not the promised length"));
    }
    out.truncate(size);
    Ok(out)
}

/// Inflates the first bytes of the zlib stream at the front of `input`, as many as there are and fit.
pub fn inflate_front<'a>(state: &mut Inflate, input: &[u8], out: &'a mut [u8]) -> Result<&'a [u8], BadData> {
    state.reset();
    let (_, _, written) = state.prefix(input, out).map_err(|_| BadData("zlib data does not inflate"))?;
    out.get(..written).ok_or(BadData("zlib data does not inflate"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn copies_and_inserts() {
        type Case = (&'static [u8], Result<&'static [u8], BadData>);
        let cases: [Case; 8] = [
            (&[4, 3, 0x91, 1, 2, 1, b'x'], Ok(b"bcx")),
            (&[4, 0], Ok(b"")),
            (&[3, 1, 1, b'x'], Err(BadData("delta is for a base of another size"))),
            (&[4, 1, 0], Err(BadData("delta command 0 is reserved"))),
            (&[4, 4, 0x91, 2, 4], Err(BadData("delta copies beyond its base"))),
            (&[4, 1, 2, b'x'], Err(BadData("delta is cut short"))),
            (&[4, 1, 2, b'x', b'y'], Err(BadData("delta gives more than it promised"))),
            (&[4, 2, 1, b'x'], Err(BadData("delta gives less than it promised"))),
        ];
        for (delta, want) in cases {
            assert_eq!(apply(b"abcd", delta, 100).as_deref(), want.as_deref(), "{delta:?}");
        }
        assert_eq!(apply(b"", &[0, 101], 100), Err(BadData("delta result is larger than expected")));
        let base = vec![7; 0x10000];
        assert_eq!(apply(&base, &[0x80, 0x80, 4, 0x80, 0x80, 4, 0x80], 1 << 20).unwrap(), base);
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn any_bytes_are_applied_or_refused(base in proptest::collection::vec(any::<u8>(), 0..20),
                                            delta in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(out) = apply(&base, &delta, 1000) {
                prop_assert!(out.len() <= 1000);
            }
        }

        #[test]
        fn any_bytes_are_inflated_or_refused(input in proptest::collection::vec(any::<u8>(), 0..60), size in 0usize..50) {
            let mut state = Inflate::default();
            let _ = inflate(&mut state, &input, size);
            let _ = inflate_front(&mut state, &input, &mut [0; 9]);
        }
    }

    #[test]
    fn inflates_exactly_what_was_promised() {
        use std::io::Write;
        for len in [0usize, 1, 100, 70_000] {
            let data: Vec<u8> = (0..len).map(|i| (i * i % 251) as u8).collect();
            let mut writer =
                gix_zlib::stream::deflate::Write::new(Vec::new(), gix_zlib::Compression::DEFAULT);
            writer.write_all(&data).unwrap();
            writer.flush().unwrap();
            let zipped = writer.into_inner();
            let mut state = Inflate::default();
            assert_eq!(inflate(&mut state, &zipped, len).unwrap(), data);
            assert!(inflate(&mut state, &zipped, len + 1).is_err());
            assert!(len == 0 || inflate(&mut state, &zipped, len - 1).is_err());
            assert!(inflate(&mut state, &zipped[..zipped.len() - 1], len).is_err());
            let mut front = [0; 10];
            assert_eq!(inflate_front(&mut state, &zipped, &mut front).unwrap(), &data[..len.min(10)]);
        }
    }
}
