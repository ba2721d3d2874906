//! Object filters of partial clones: what a client asks to leave out.
//!
//! The grammar and the error words are those of git's `list-objects-filter-options.c`.
//! Relies on: nothing. Elsewhere: applying a filter (`pack::plan::select`).

use super::line;
use bstr::{BStr, BString, ByteSlice};
use gix_object::Kind;
use std::fmt;

/// How deep `combine:` may be nested. git has no limit; ours keeps hostile text off the call stack.
const MAX_NESTING: usize = 16;

/// How many filters a specification may hold in all. git has no limit; clients send a few.
const MAX_PARTS: usize = 2048;

/// Bytes that a part of `combine:` must escape, beside white space, control and non-ASCII bytes.
const RESERVED: &[u8] = b"~`!@#$^&*()[]{}\\;'\",<>?";

/// One filter as git knows them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Filter {
    /// `blob:none`: no blobs.
    BlobNone,
    /// `blob:limit=<n>`: no blobs of `n` bytes or more.
    BlobLimit(u64),
    /// `tree:<n>`: nothing that is `n` or more levels below a root tree.
    Tree(u64),
    /// `object:type=<kind>`: only objects of one kind.
    ObjectType(Kind),
    /// `sparse:oid=<blob>`: only what a sparse-checkout specification selects; a name or an oid.
    SparseOid(BString),
    /// `combine:<a>+<b>…`: only what all of them let through.
    Combine(Vec<Filter>),
}

/// A filter that is none, in git's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadFilter(pub String);

impl Filter {
    /// Reads a filter specification, the text behind `filter ` in a request.
    pub fn parse(spec: &[u8]) -> Result<Self, BadFilter> {
        parse(spec, MAX_NESTING, &mut MAX_PARTS.clone())
    }

    /// Says whether it names a blob of the repository, whose content decides what passes.
    pub fn names_a_blob(&self) -> bool {
        match self {
            Self::SparseOid(_) => true,
            Self::Combine(parts) => parts.iter().any(Self::names_a_blob),
            _ => false,
        }
    }

    /// Writes the canonical specification: what git would send, and equal for equal filters.
    pub fn spec(&self) -> BString {
        let mut out = Vec::new();
        self.put(&mut out);
        out.into()
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::BlobNone => out.extend_from_slice(b"blob:none"),
            Self::BlobLimit(limit) => out.extend_from_slice(format!("blob:limit={limit}").as_bytes()),
            Self::Tree(depth) => out.extend_from_slice(format!("tree:{depth}").as_bytes()),
            Self::ObjectType(kind) => out.extend_from_slice(format!("object:type={kind}").as_bytes()),
            Self::SparseOid(name) => {
                out.extend_from_slice(b"sparse:oid=");
                out.extend_from_slice(name);
            }
            Self::Combine(parts) => {
                out.extend_from_slice(b"combine:");
                for (at, part) in parts.iter().enumerate() {
                    if at > 0 {
                        out.push(b'+');
                    }
                    put_escaped(out, &part.spec());
                }
            }
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.spec().as_bstr(), f)
    }
}

fn parse(spec: &[u8], nesting: usize, parts_left: &mut usize) -> Result<Filter, BadFilter> {
    let too_many = || BadFilter(format!("filter not supported: it has more than {MAX_PARTS} parts"));
    *parts_left = parts_left.checked_sub(1).ok_or_else(too_many)?;
    if spec == b"blob:none" {
        return Ok(Filter::BlobNone);
    }
    if let Some(limit) = spec.strip_prefix(b"blob:limit=").and_then(line::size) {
        return Ok(Filter::BlobLimit(limit));
    }
    if let Some(depth) = spec.strip_prefix(b"tree:") {
        let bad = || BadFilter("expected 'tree:<depth>'".into());
        return line::size(depth).map(Filter::Tree).ok_or_else(bad);
    }
    if let Some(name) = spec.strip_prefix(b"sparse:oid=") {
        return Ok(Filter::SparseOid(name.into()));
    }
    if spec.starts_with(b"sparse:path=") {
        return Err(BadFilter("sparse:path filters support has been dropped".into()));
    }
    if let Some(name) = spec.strip_prefix(b"object:type=") {
        let bad = |_| {
            BadFilter(format!("'{}' for 'object:type=<type>' is not a valid object type", BStr::new(name)))
        };
        return Kind::from_bytes(name).map(Filter::ObjectType).map_err(bad);
    }
    if let Some(parts) = spec.strip_prefix(b"combine:") {
        let invalid = || BadFilter(format!("invalid filter-spec '{}'", BStr::new(spec)));
        return parse_combine(parts, nesting.checked_sub(1).ok_or_else(invalid)?, parts_left);
    }
    Err(BadFilter(format!("invalid filter-spec '{}'", BStr::new(spec))))
}

fn parse_combine(parts: &[u8], nesting: usize, parts_left: &mut usize) -> Result<Filter, BadFilter> {
    if parts.is_empty() {
        return Err(BadFilter("expected something after combine:".into()));
    }
    let mut part = |part: &[u8]| {
        if let Some(byte) = part.iter().find(|byte| must_escape(**byte)) {
            let shown = BString::from(vec![*byte]);
            return Err(BadFilter(format!("must escape char in sub-filter-spec: '{shown}'")));
        }
        parse(&decode(part), nesting, parts_left)
    };
    // A `+` at the very end separates nothing and is left on the last part, which it makes invalid.
    let separated = parts.strip_suffix(b"+").unwrap_or(parts);
    let (first, last) = match separated.iter().rposition(|byte| *byte == b'+') {
        Some(at) => (Some(&parts[..at]), &parts[at + 1..]),
        None => (None, parts),
    };
    let first = first.into_iter().flat_map(|first| first.split(|byte| *byte == b'+'));
    first.chain([last]).map(&mut part).collect::<Result<_, _>>().map(Filter::Combine)
}

/// Says whether a byte may not stand as it is in a part of `combine:`. git looks at signed chars, so all
/// bytes above ASCII count as control characters.
fn must_escape(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x80 || RESERVED.contains(&byte)
}

fn put_escaped(out: &mut Vec<u8>, raw: &[u8]) {
    for byte in raw {
        if must_escape(*byte) || matches!(byte, b'%' | b'+') {
            out.extend_from_slice(format!("%{byte:02x}").as_bytes());
        } else {
            out.push(*byte);
        }
    }
}

/// Decodes as git's `url_percent_decode`: broken escapes and `%00` stay as they are.
fn decode(part: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((byte, behind)) = rest.split_first() {
        let value = match behind {
            [high, low, ..] if *byte == b'%' => {
                digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low)
            }
            _ => None,
        };
        match value.and_then(|value| u8::try_from(value).ok()).filter(|value| *value != 0) {
            Some(value) => {
                out.push(value);
                rest = &behind[2..];
            }
            None => {
                out.push(*byte);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn combine(parts: &[Filter]) -> Filter {
        Filter::Combine(parts.to_vec())
    }

    #[test]
    fn reads_what_git_reads() {
        use Filter::*;
        let cases: [(&str, Filter); 13] = [
            ("blob:none", BlobNone),
            ("blob:limit=0", BlobLimit(0)),
            ("blob:limit=1k", BlobLimit(1024)),
            ("blob:limit=2M", BlobLimit(2 << 20)),
            ("tree:0", Tree(0)),
            ("tree:3", Tree(3)),
            ("object:type=commit", ObjectType(Kind::Commit)),
            ("object:type=blob", ObjectType(Kind::Blob)),
            ("sparse:oid=main:x/y", SparseOid("main:x/y".into())),
            ("combine:blob:none+tree:2", combine(&[BlobNone, Tree(2)])),
            ("combine:sparse:oid=a%2bb%20c", combine(&[SparseOid("a+b c".into())])),
            ("combine:sparse:oid=%00%2%zz%", combine(&[SparseOid("%00%2%zz%".into())])),
            ("combine:combine:tree:1%2btree:2+blob:none", combine(&[combine(&[Tree(1), Tree(2)]), BlobNone])),
        ];
        for (spec, want) in cases {
            assert_eq!(Filter::parse(spec.as_bytes()), Ok(want), "{spec}");
        }
    }

    #[test]
    fn refuses_in_gits_words() {
        let cases = [
            ("", "invalid filter-spec ''"),
            ("blob:limit=x", "invalid filter-spec 'blob:limit=x'"),
            ("blob:limit=-1", "invalid filter-spec 'blob:limit=-1'"),
            ("tree:", "expected 'tree:<depth>'"),
            ("tree:-1", "expected 'tree:<depth>'"),
            ("sparse:path=x", "sparse:path filters support has been dropped"),
            ("object:type=foo", "'foo' for 'object:type=<type>' is not a valid object type"),
            ("combine:", "expected something after combine:"),
            ("combine:tree:1++blob:none", "invalid filter-spec ''"),
            ("combine:blob:none+", "invalid filter-spec 'blob:none+'"),
            ("combine:+", "invalid filter-spec '+'"),
            ("combine:tree:1 +blob:none", "must escape char in sub-filter-spec: ' '"),
            ("combine:sparse:oid=~x", "must escape char in sub-filter-spec: '~'"),
        ];
        for (spec, want) in cases {
            assert_eq!(Filter::parse(spec.as_bytes()), Err(BadFilter(want.into())), "{spec}");
        }
        let deep = "combine:".repeat(8000) + "blob:none";
        assert!(Filter::parse(deep.as_bytes()).is_err());
        let wide = |parts: usize| format!("combine:{}", vec!["tree:1"; parts].join("+"));
        assert!(Filter::parse(wide(MAX_PARTS - 1).as_bytes()).is_ok());
        assert_eq!(
            Filter::parse(wide(MAX_PARTS).as_bytes()).unwrap_err().0,
            "filter not supported: it has more than 2048 parts"
        );
    }

    pub(crate) fn any_filter() -> impl Strategy<Value = Filter> {
        let leaf = prop_oneof![
            Just(Filter::BlobNone),
            any::<u64>().prop_map(Filter::BlobLimit),
            any::<u64>().prop_map(Filter::Tree),
            Just(Filter::ObjectType(Kind::Tag)),
            proptest::collection::vec(1u8..255, 0..12).prop_map(|mut name| {
                name.retain(|byte| *byte != b'\n');
                Filter::SparseOid(name.into())
            }),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            proptest::collection::vec(inner, 1..4).prop_map(Filter::Combine)
        })
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn canonical_text_comes_back(filter in any_filter()) {
            prop_assert_eq!(Filter::parse(&filter.spec()), Ok(filter));
        }

        #[test]
        fn any_text_is_read_without_panic(spec in "(combine:|tree:|blob:|limit=|none|sparse:oid=|[+%0-9a-f~ ]){0,12}") {
            if let Ok(filter) = Filter::parse(spec.as_bytes()) {
                prop_assert_eq!(Filter::parse(&filter.spec()), Ok(filter));
            }
        }
    }
}
