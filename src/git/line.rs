//! How git reads a line: the C rules behind its protocol parsers.
//!
//! git treats a packet as a C string and reads numbers with `strtol` and friends. A server that wants
//! to accept and refuse exactly what git does needs the same rules, so they live here once.
//! Relies on: nothing. Elsewhere: framing (`pkt`), the meaning of a line (`request`, `v0`).

use gix_hash::{Kind as HashKind, ObjectId};

/// Gives the text git sees in a packet: one trailing LF removed, cut at the first NUL.
pub fn text(payload: &[u8]) -> &[u8] {
    let line = payload.strip_suffix(b"\n").unwrap_or(payload);
    line.iter().position(|byte| *byte == 0).map_or(line, |nul| &line[..nul])
}

/// Reads the object id at the front of `text` and gives what follows it (git's `parse_oid_hex`).
///
/// Like git, hex digits of either case count and nothing is said about the rest.
pub fn oid(text: &[u8], hash: HashKind) -> Option<(ObjectId, &[u8])> {
    let (hex, rest) = text.split_at_checked(hash.len_in_hex())?;
    Some((ObjectId::from_hex(hex).ok()?, rest))
}

/// Appends the lower-case hex of `id`.
pub fn put_oid(out: &mut Vec<u8>, id: &gix_hash::oid) {
    let mut hex = HashKind::hex_buf();
    out.extend_from_slice(id.hex_to_buf(&mut hex).as_bytes());
}

/// A number as C's `strtoumax(text, &end, 0)` reads it.
#[derive(Debug, PartialEq, Eq)]
pub struct Number<'a> {
    /// The absolute value, `u64::MAX` if it did not fit.
    pub magnitude: u64,
    /// Whether a minus sign stood before it.
    pub negative: bool,
    /// Whether the value did not fit (C's `ERANGE`).
    pub overflow: bool,
    /// Whether there was at least one digit; without one nothing is consumed.
    pub found: bool,
    /// What follows the number.
    pub rest: &'a [u8],
}

/// Reads a number in base 0: blanks, a sign, then `0x` hexadecimal, `0` octal or decimal digits.
pub fn number(text: &[u8]) -> Number<'_> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0x09..=0x0d);
    let mut at = text.iter().take_while(|byte| blank(byte)).count();
    let negative = text.get(at) == Some(&b'-');
    if matches!(text.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    let hexadecimal = text.get(at) == Some(&b'0')
        && matches!(text.get(at + 1), Some(b'x' | b'X'))
        && text.get(at + 2).is_some_and(u8::is_ascii_hexdigit);
    let base: u32 = match (hexadecimal, text.get(at)) {
        (true, _) => 16,
        (false, Some(b'0')) => 8,
        _ => 10,
    };
    if hexadecimal {
        at += 2;
    }
    let start = at;
    let mut value = Some(0u64);
    while let Some(digit) = text.get(at).and_then(|byte| char::from(*byte).to_digit(base)) {
        value = value.and_then(|v| v.checked_mul(base.into())?.checked_add(digit.into()));
        at += 1;
    }
    let found = at > start;
    Number {
        magnitude: value.unwrap_or(u64::MAX),
        negative: negative && found,
        overflow: value.is_none(),
        found,
        rest: if found { &text[at..] } else { text },
    }
}

/// Reads a whole text as `(int)strtol(text, &end, 0)`; `None` if anything follows the number.
pub fn int(text: &[u8]) -> Option<i32> {
    let number = number(text);
    if !number.rest.is_empty() {
        return None;
    }
    let limit = if number.negative { i64::MIN.unsigned_abs() } else { i64::MAX.unsigned_abs() };
    let magnitude = number.magnitude.min(limit);
    // strtol saturates; the cast to int then keeps the low 32 bits, as git's does.
    let long = if number.negative { magnitude.wrapping_neg() } else { magnitude };
    Some(long as i32)
}

/// Reads a whole text as git's `parse_timestamp(text, &end, 0)`; `None` if anything follows.
pub fn timestamp(text: &[u8]) -> Option<u64> {
    let number = number(text);
    if !number.rest.is_empty() {
        return None;
    }
    let wrapped = number.negative && !number.overflow;
    Some(if wrapped { number.magnitude.wrapping_neg() } else { number.magnitude })
}

/// Reads a size with an optional `k`, `m` or `g` behind it (git's `git_parse_ulong`).
pub fn size(text: &[u8]) -> Option<u64> {
    if text.contains(&b'-') {
        return None;
    }
    let number = number(text);
    if number.overflow || !number.found {
        return None;
    }
    let factor = match number.rest {
        b"" => 1,
        b"k" | b"K" => 1 << 10,
        b"m" | b"M" => 1 << 20,
        b"g" | b"G" => 1 << 30,
        _ => return None,
    };
    number.magnitude.checked_mul(factor)
}

/// Says whether a feature stands in a list separated by white space, alone or with `=value`
/// (git's `parse_feature_request`).
pub fn has_feature(list: &[u8], feature: &str) -> bool {
    feature_value(list, feature).is_some()
}

/// Gives the value of a feature (empty if it has none), or `None` if the list lacks it
/// (git's `parse_feature_value`).
pub fn feature_value<'a>(list: &'a [u8], feature: &str) -> Option<&'a [u8]> {
    features(list).find_map(|token| match token.strip_prefix(feature.as_bytes())? {
        b"" => Some(&b""[..]),
        rest => rest.strip_prefix(b"="),
    })
}

/// Splits a feature list at white space.
pub fn features(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0x09..=0x0d);
    list.split(blank).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_is_a_c_string() {
        let cases: [(&[u8], &[u8]); 6] =
            [(b"a\n", b"a"), (b"a", b"a"), (b"a\n\n", b"a\n"), (b"a\0b\n", b"a"), (b"\n", b""), (b"", b"")];
        for (input, want) in cases {
            assert_eq!(text(input), want, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn reads_numbers_as_strtol_does() {
        let cases: [(&[u8], Option<i32>); 14] = [
            (b"1", Some(1)),
            (b" +7", Some(7)),
            (b"0x10", Some(16)),
            (b"010", Some(8)),
            (b"08", None),
            (b"0x", None),
            (b"2147483647", Some(i32::MAX)),
            (b"4294967297", Some(1)),
            (b"99999999999999999999", Some(-1)),
            (b"-99999999999999999999", Some(0)),
            (b"-3", Some(-3)),
            (b"", Some(0)),
            (b"1 ", None),
            (b"x", None),
        ];
        for (input, want) in cases {
            assert_eq!(int(input), want, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn reads_timestamps_and_sizes() {
        assert_eq!(timestamp(b"1700000000"), Some(1_700_000_000));
        assert_eq!(timestamp(b"-1"), Some(u64::MAX));
        assert_eq!(timestamp(b"99999999999999999999"), Some(u64::MAX));
        assert_eq!(timestamp(b"12h"), None);
        let sizes: [(&[u8], Option<u64>); 9] = [
            (b"0", Some(0)),
            (b"1k", Some(1024)),
            (b"2M", Some(2 << 20)),
            (b"3g", Some(3 << 30)),
            (b"1kb", None),
            (b"-1", None),
            (b"", None),
            (b"0x10k", Some(16384)),
            (b"18446744073709551615k", None),
        ];
        for (input, want) in sizes {
            assert_eq!(size(input), want, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn finds_features_as_whole_words() {
        let list = b" multi_ack_detailed side-band-64k agent=git/2 x=y";
        assert!(has_feature(list, "multi_ack_detailed"));
        assert!(!has_feature(list, "multi_ack"));
        assert!(!has_feature(list, "side-band"));
        assert!(has_feature(list, "agent"));
        assert_eq!(feature_value(list, "agent"), Some(&b"git/2"[..]));
        assert_eq!(feature_value(list, "side-band-64k"), Some(&b""[..]));
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn any_text_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (text(&bytes), int(&bytes), timestamp(&bytes), size(&bytes));
            let _ = (oid(&bytes, HashKind::Sha1), oid(&bytes, HashKind::Sha256));
            let _ = has_feature(&bytes, "agent");
        }

        #[test]
        fn plain_decimals_come_back(value in 1u64..) {
            prop_assert_eq!(timestamp(value.to_string().as_bytes()), Some(value));
            prop_assert_eq!(size(value.to_string().as_bytes()), Some(value));
        }
    }
}
