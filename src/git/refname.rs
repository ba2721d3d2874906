//! Ref names: which ones are safe to keep, and how they are written in our own records.
//!
//! The rule is git's `check_refname_format` (`refs.c`). Names come from the primary and end in packets,
//! in `packed-refs` files and in stored records, so nothing unchecked may pass.
//! Relies on: nothing. Elsewhere: the refs themselves (`refs`).

use bstr::{BStr, BString, ByteSlice};

/// The longest ref name in bytes; file systems allow no more.
pub const MAX_NAME: usize = 4096;

/// Says whether `name` may be a ref of a repository: below `refs/` and well formed.
pub fn is_ref(name: &[u8]) -> bool {
    name.starts_with(b"refs/") && is_well_formed(name)
}

/// Says whether `name` is well formed, one level being enough (git's `REFNAME_ALLOW_ONELEVEL`).
pub fn is_well_formed(name: &[u8]) -> bool {
    let bad_byte =
        |byte: &u8| matches!(byte, 0..=0x20 | 0x7f | b'~' | b'^' | b':' | b'?' | b'*' | b'[' | b'\\');
    let good_component = |component: &[u8]| {
        !component.is_empty() && !component.starts_with(b".") && !component.ends_with(b".lock")
    };
    name.len() <= MAX_NAME
        && name != b"@"
        && !name.ends_with(b".")
        && !name.iter().any(bad_byte)
        && !name.contains_str("..")
        && !name.contains_str("@{")
        && name.split(|byte| *byte == b'/').all(good_component)
}

/// Writes a name as text without loss: `%` and bytes that are not UTF-8 become `%xx`.
pub fn to_text(name: &BStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for part in chunk.valid().split_inclusive('%') {
            match part.strip_suffix('%') {
                Some(before) => text.extend([before, "%25"]),
                None => text.push_str(part),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02x}")));
    }
    text
}

/// Reads what [`to_text`] wrote; `None` if a `%` is not followed by two hex digits.
pub fn from_text(text: &str) -> Option<BString> {
    let mut parts = text.split('%');
    let mut name = BString::from(parts.next()?);
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let both_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        name.push(both_hex.then(|| u8::from_str_radix(digits, 16).ok())??);
        name.extend_from_slice(rest.as_bytes());
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn follows_check_ref_format() {
        let good: [&[u8]; 7] = [
            b"refs/heads/main",
            b"refs/x",
            b"refs/heads/a@b",
            b"refs/heads/\xff",
            b"refs/pull/1/head",
            b"refs/h/@",
            b"refs/a.b/c",
        ];
        let bad: [&[u8]; 22] = [
            b"HEAD",
            b"refs",
            b"refs/",
            b"refs//a",
            b"refs/a/",
            b"refs/.a",
            b"refs/a.",
            b"refs/a..b",
            b"refs/a.lock",
            b"refs/a.lock/b",
            b"refs/a b",
            b"refs/a\n",
            b"refs/a\0",
            b"refs/a~",
            b"refs/a^{}",
            b"refs/a:b",
            b"refs/a?",
            b"refs/a*",
            b"refs/[a",
            b"refs/a\\b",
            b"refs/a@{b",
            b"refs/\x7f",
        ];
        for name in good {
            assert!(is_ref(name), "{}", name.escape_ascii());
        }
        for name in bad {
            assert!(!is_ref(name), "{}", name.escape_ascii());
        }
        assert!(is_well_formed(b"HEAD") && !is_well_formed(b"@") && !is_well_formed(b""));
        assert!(!is_ref(&[b"refs/".to_vec(), vec![b'a'; MAX_NAME]].concat()));
    }

    #[test]
    fn names_are_written_readably() {
        assert_eq!(to_text(b"refs/heads/50%".as_bstr()), "refs/heads/50%25");
        assert_eq!(to_text(b"refs/heads/\xffa".as_bstr()), "refs/heads/%ffa");
        assert_eq!(from_text("a%2"), None);
        assert_eq!(from_text("a%+1"), None);
        assert_eq!(from_text("a%\u{e9}x"), None);
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn text_round_trips(name in proptest::collection::vec(any::<u8>(), 0..60)) {
            let name = BString::from(name);
            prop_assert_eq!(from_text(&to_text(name.as_bstr())), Some(name));
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,40}") {
            let _ = (from_text(&text), is_ref(text.as_bytes()));
        }
    }
}
