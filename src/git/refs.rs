//! The refs of one repository at one instant.
//!
//! A manifest, the sorted lines `<oid> SP <name> LF`, is what two sides compare; `packed-refs`, git's
//! own file, is what is stored. HEAD and other symrefs stand beside it.
//! Relies on: [`Refs::new`] having sorted and checked. Elsewhere: the wire (`ls_refs`, `advert`), the
//! stored record (`store`).

use super::line;
use super::refname;
use bstr::{BString, ByteSlice};
use gix_hash::{Kind as HashKind, ObjectId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// The most bytes that the refs of one repository may have as `packed-refs` text: some two million refs. They are held
/// in memory for as long as the repository is open.
pub const MOST_PACKED_REFS: u64 = 128 << 20;

/// One ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// The full name, below `refs/`.
    pub name: BString,
    /// What it points to.
    pub oid: ObjectId,
    /// What is left when all tags are peeled off, if it points to a tag.
    pub peeled: Option<ObjectId>,
}

/// Where HEAD points.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "HeadText", into = "HeadText")]
pub enum Head {
    /// To a ref, which may not exist yet (unborn).
    Symbolic {
        /// The full name of the ref.
        target: BString,
    },
    /// To an object itself.
    Detached(ObjectId),
    /// Nowhere that the other side showed us.
    #[default]
    Missing,
}

/// How HEAD is written in records.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum HeadText {
    Symbolic(String),
    Detached(String),
    Missing,
}

impl From<Head> for HeadText {
    fn from(head: Head) -> Self {
        match head {
            Head::Symbolic { target } => Self::Symbolic(refname::to_text(target.as_bstr())),
            Head::Detached(oid) => Self::Detached(oid.to_string()),
            Head::Missing => Self::Missing,
        }
    }
}

impl TryFrom<HeadText> for Head {
    type Error = BadRefs;

    fn try_from(text: HeadText) -> Result<Self, BadRefs> {
        let bad = |text: &str| BadRefs::Name(text.into());
        Ok(match text {
            HeadText::Symbolic(text) => {
                let target = refname::from_text(&text).ok_or_else(|| bad(&text))?;
                if !refname::is_ref(&target) {
                    return Err(bad(&text));
                }
                Self::Symbolic { target }
            }
            HeadText::Detached(hex) => {
                Self::Detached(ObjectId::from_hex(hex.as_bytes()).map_err(|_| bad(&hex))?)
            }
            HeadText::Missing => Self::Missing,
        })
    }
}

/// Refs that do not fit together, or text that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRefs {
    /// A name that git would not allow.
    #[error("bad ref name '{0}'")]
    Name(String),
    /// The same name twice.
    #[error("ref '{0}' stands there twice")]
    Twice(String),
    /// No object.
    #[error("ref '{0}' names no object")]
    Null(String),
    /// An object id of another hash than the repository's.
    #[error("ref '{0}' has an object id of another hash")]
    Hash(String),
    /// More than packmirror keeps for one repository.
    #[error("more refs than packmirror keeps for one repository ({0} bytes of at most {MOST_PACKED_REFS})")]
    TooMany(u64),
    /// A line of a packed-refs file that is none.
    #[error("bad line {0} in packed-refs")]
    Line(usize),
}

/// All refs of one repository. Made by [`Refs::new`], which keeps the lists sorted and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refs {
    /// The hash of the repository's object ids.
    pub hash: HashKind,
    /// Where HEAD points.
    pub head: Head,
    /// The refs, sorted bytewise by name; HEAD is not among them.
    pub refs: Vec<Ref>,
    /// Symbolic refs other than HEAD, `(name, target)`, sorted by name; they stand in `refs` as well.
    pub symrefs: Vec<(BString, BString)>,
}

impl Refs {
    /// Sorts and checks: names as git allows them, none twice, an object for each, all ids of one hash.
    pub fn new(
        hash: HashKind,
        head: Head,
        mut refs: Vec<Ref>,
        mut symrefs: Vec<(BString, BString)>,
    ) -> Result<Self, BadRefs> {
        refs.sort_by(|a, b| a.name.cmp(&b.name));
        symrefs.sort();
        for r in &refs {
            if !refname::is_ref(&r.name) {
                return Err(BadRefs::Name(refname::to_text(r.name.as_bstr())));
            }
            if r.oid.kind() != hash || r.peeled.is_some_and(|peeled| peeled.kind() != hash) {
                return Err(BadRefs::Hash(refname::to_text(r.name.as_bstr())));
            }
            if r.oid.is_null() {
                return Err(BadRefs::Null(refname::to_text(r.name.as_bstr())));
            }
        }
        let twice = |name: &BString| BadRefs::Twice(refname::to_text(name.as_bstr()));
        if let Some(pair) = refs.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(twice(&pair[0].name));
        }
        if let Some(pair) = symrefs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(twice(&pair[0].0));
        }
        // Git itself lets HEAD and other symrefs lead nowhere but below refs/, or to HEAD.
        let names = symrefs.iter().flat_map(|(name, target)| [name, target]).filter(|name| *name != "HEAD");
        let head_target = match &head {
            Head::Symbolic { target } => Some(target),
            Head::Detached(oid) if oid.is_null() => return Err(BadRefs::Null("HEAD".into())),
            Head::Detached(oid) if oid.kind() != hash => return Err(BadRefs::Hash("HEAD".into())),
            Head::Detached(_) | Head::Missing => None,
        };
        if let Some((name, _)) = symrefs.iter().find(|(name, _)| name == "HEAD") {
            return Err(BadRefs::Name(refname::to_text(name.as_bstr())));
        }
        if let Some(name) = names.chain(head_target).find(|name| !refname::is_ref(name)) {
            return Err(BadRefs::Name(refname::to_text(name.as_bstr())));
        }
        let line = 2 * hash.len_in_hex() + 4;
        let names = symrefs.iter().map(|(name, target)| name.len() + target.len());
        let bytes = refs.iter().map(|r| r.name.len() + line).chain(names).sum::<usize>() as u64;
        if bytes > MOST_PACKED_REFS {
            return Err(BadRefs::TooMany(bytes));
        }
        Ok(Self { hash, head, refs, symrefs })
    }

    /// Makes the refs of an empty repository.
    pub fn empty(hash: HashKind, head: Head) -> Self {
        Self { hash, head, refs: Vec::new(), symrefs: Vec::new() }
    }

    /// Writes the manifest: one line `<oid> SP <name> LF` for each ref, sorted by name.
    pub fn manifest(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.refs.len() * (self.hash.len_in_hex() + 40));
        for r in &self.refs {
            put_line(&mut out, r);
        }
        out
    }

    /// Gives the SHA-256 of the manifest. HEAD is not part of it.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.manifest()).into()
    }

    /// Writes git's `packed-refs` file (`refs/packed-backend.c`), peeled values included.
    pub fn packed_refs(&self) -> Vec<u8> {
        let mut out = b"# pack-refs with: peeled fully-peeled sorted \n".to_vec();
        for r in &self.refs {
            put_line(&mut out, r);
            if let Some(peeled) = r.peeled {
                out.push(b'^');
                line::put_oid(&mut out, &peeled);
                out.push(b'\n');
            }
        }
        out
    }

    /// Reads a `packed-refs` file as [`Refs::packed_refs`] writes it; other headers are not looked at.
    pub fn parse_packed_refs(text: &[u8], hash: HashKind) -> Result<Vec<Ref>, BadRefs> {
        let mut refs: Vec<Ref> = Vec::new();
        for (at, line) in text.lines_with_terminator().enumerate() {
            let bad = || BadRefs::Line(at + 1);
            let line = line.strip_suffix(b"\n").ok_or_else(bad)?;
            if line.starts_with(b"#") {
                continue;
            }
            if let Some(peeled) = line.strip_prefix(b"^") {
                let last = refs.last_mut().filter(|last| last.peeled.is_none()).ok_or_else(bad)?;
                let (oid, rest) = line::oid(peeled, hash).ok_or_else(bad)?;
                last.peeled = rest.is_empty().then_some(oid);
                if last.peeled.is_none() {
                    return Err(bad());
                }
                continue;
            }
            let (oid, rest) = line::oid(line, hash).ok_or_else(bad)?;
            let name = rest.strip_prefix(b" ").filter(|name| refname::is_ref(name)).ok_or_else(bad)?;
            if refs.last().is_some_and(|last| last.name.as_slice() >= name) {
                return Err(bad());
            }
            refs.push(Ref { name: name.into(), oid, peeled: None });
        }
        Ok(refs)
    }

    /// Finds a ref by its full name.
    pub fn find(&self, name: &[u8]) -> Option<&Ref> {
        let at = self.refs.binary_search_by(|r| r.name.as_slice().cmp(name)).ok()?;
        self.refs.get(at)
    }

    /// Gives the refs whose name starts with `prefix`.
    pub fn with_prefix(&self, prefix: &[u8]) -> &[Ref] {
        let start = self.refs.partition_point(|r| r.name.as_slice() < prefix);
        let rest = &self.refs[start..];
        &rest[..rest.partition_point(|r| r.name.starts_with(prefix))]
    }

    /// Gives where a symbolic ref other than HEAD points.
    pub fn symref_target(&self, name: &[u8]) -> Option<&BString> {
        let at = self.symrefs.binary_search_by(|(symref, _)| symref.as_slice().cmp(name)).ok()?;
        self.symrefs.get(at).map(|(_, target)| target)
    }

    /// Gives what HEAD points to in the end, and that peeled; `None` if it is unborn or missing.
    pub fn head(&self) -> Option<(ObjectId, Option<ObjectId>)> {
        match &self.head {
            Head::Symbolic { target } => self.find(target).map(|r| (r.oid, r.peeled)),
            Head::Detached(oid) => Some((*oid, None)),
            Head::Missing => None,
        }
    }

    /// Gives the object HEAD points to in the end; `None` if it is unborn or missing.
    pub fn head_oid(&self) -> Option<ObjectId> {
        self.head().map(|(oid, _)| oid)
    }

    /// Gives every object a ref or HEAD points to, once each, sorted.
    pub fn tips(&self) -> Vec<ObjectId> {
        let all: BTreeSet<_> = self.refs.iter().map(|r| r.oid).chain(self.head_oid()).collect();
        all.into_iter().collect()
    }
}

fn put_line(out: &mut Vec<u8>, r: &Ref) {
    line::put_oid(out, &r.oid);
    out.push(b' ');
    out.extend_from_slice(&r.name);
    out.push(b'\n');
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn oid(fill: u8) -> ObjectId {
        ObjectId::from([fill; 20])
    }

    pub(crate) fn a_ref(name: &str, fill: u8, peeled: Option<u8>) -> Ref {
        Ref { name: name.into(), oid: oid(fill), peeled: peeled.map(oid) }
    }

    pub(crate) fn sample() -> Refs {
        let refs = vec![
            a_ref("refs/tags/v1", 3, Some(1)),
            a_ref("refs/heads/main", 1, None),
            a_ref("refs/heads/side", 2, None),
            a_ref("refs/remotes/o/HEAD", 2, None),
        ];
        let symrefs = vec![("refs/remotes/o/HEAD".into(), "refs/heads/side".into())];
        Refs::new(HashKind::Sha1, Head::Symbolic { target: "refs/heads/main".into() }, refs, symrefs).unwrap()
    }

    /// Any refs that `Refs::new` accepts.
    pub(crate) fn any_refs() -> impl Strategy<Value = Refs> {
        let one = ("refs/(heads|tags)/[a-c]{1,3}(/[a-c]{1,2})?", 1u8.., proptest::option::of(any::<u8>()));
        let head = prop_oneof![
            Just(Head::Missing),
            (1u8..).prop_map(|fill| Head::Detached(oid(fill))),
            "refs/heads/[a-c]{1,2}".prop_map(|target| Head::Symbolic { target: target.into() }),
        ];
        (proptest::collection::vec(one, 0..12), head).prop_map(|(mut list, head)| {
            list.sort();
            list.dedup_by(|a, b| a.0 == b.0);
            let refs: Vec<_> = list.iter().map(|(name, fill, peeled)| a_ref(name, *fill, *peeled)).collect();
            Refs::new(HashKind::Sha1, head, refs, Vec::new()).unwrap()
        })
    }

    #[test]
    fn a_manifest_is_what_ls_remote_shows() {
        let manifest = sample().manifest();
        let lines: Vec<_> = manifest.lines().map(|line| line[41..].to_str_lossy().into_owned()).collect();
        assert_eq!(lines, ["refs/heads/main", "refs/heads/side", "refs/remotes/o/HEAD", "refs/tags/v1"]);
        assert_eq!(sample().digest(), <[u8; 32]>::from(Sha256::digest(&manifest)));
    }

    #[test]
    fn finds_and_selects() {
        let refs = sample();
        assert_eq!(refs.find(b"refs/heads/side").unwrap().oid, oid(2));
        assert_eq!(refs.find(b"refs/heads/sid"), None);
        assert_eq!(refs.with_prefix(b"refs/heads/").len(), 2);
        assert_eq!(refs.with_prefix(b"").len(), 4);
        assert_eq!(refs.with_prefix(b"refs/z").len(), 0);
        assert_eq!(refs.head_oid(), Some(oid(1)));
        assert_eq!(refs.tips(), [oid(1), oid(2), oid(3)]);
        assert_eq!(refs.symref_target(b"refs/remotes/o/HEAD").unwrap(), "refs/heads/side");
    }

    #[test]
    fn refuses_refs_that_cannot_be() {
        let make = |refs| Refs::new(HashKind::Sha1, Head::Missing, refs, Vec::new());
        assert!(matches!(make(vec![a_ref("HEAD", 1, None)]), Err(BadRefs::Name(_))));
        assert!(matches!(make(vec![a_ref("refs/a\nb", 1, None)]), Err(BadRefs::Name(_))));
        assert!(matches!(
            make(vec![a_ref("refs/a", 1, None), a_ref("refs/a", 2, None)]),
            Err(BadRefs::Twice(_))
        ));
        let other = Ref { name: "refs/a".into(), oid: HashKind::Sha256.null(), peeled: None };
        assert!(matches!(make(vec![other]), Err(BadRefs::Hash(_))));
        for target in ["refs/a b", "config", "objects/pack", "@", "refs/../config", "/etc/passwd", ""] {
            let head = Head::Symbolic { target: target.into() };
            assert!(Refs::new(HashKind::Sha1, head, Vec::new(), Vec::new()).is_err(), "{target}");
            let text = serde_json::json!({ "symbolic": target });
            assert!(serde_json::from_value::<Head>(text).is_err(), "{target}");
            for symref in [(target, "refs/a"), ("refs/a", target)] {
                let symrefs = vec![(symref.0.into(), symref.1.into())];
                assert!(Refs::new(HashKind::Sha1, Head::Missing, Vec::new(), symrefs).is_err(), "{symref:?}");
            }
        }
        let symrefs = vec![("refs/a".into(), "HEAD".into())];
        assert!(Refs::new(HashKind::Sha1, Head::Missing, Vec::new(), symrefs).is_ok());
    }

    #[test]
    fn refuses_packed_refs_with_bad_lines() {
        let id = oid(1);
        let bad = [
            format!("{id} refs/a"),
            format!("{id}  refs/a\n"),
            format!("^{id}\n"),
            format!("{id} refs/a\n^{id}\n^{id}\n"),
            format!("{id} refs/a\n^{id}x\n"),
            format!("{id} refs/b\n{id} refs/a\n"),
            format!("{id} refs/a\n{id} refs/a\n"),
            format!("{id} HEAD\n"),
            "\n".into(),
        ];
        for text in bad {
            assert!(Refs::parse_packed_refs(text.as_bytes(), HashKind::Sha1).is_err(), "{text:?}");
        }
    }

    #[test]
    fn head_is_written_as_text() {
        for (head, want) in [
            (
                Head::Symbolic { target: "refs/heads/\u{e9}%".into() },
                "{\"symbolic\":\"refs/heads/\u{e9}%25\"}",
            ),
            (Head::Detached(oid(1)), "{\"detached\":\"0101010101010101010101010101010101010101\"}"),
            (Head::Missing, "\"missing\""),
        ] {
            assert_eq!(serde_json::to_string(&head).unwrap(), want);
            assert_eq!(serde_json::from_str::<Head>(want).unwrap(), head);
        }
        assert!(serde_json::from_str::<Head>("{\"symbolic\":\"refs/a b\"}").is_err());
        assert!(serde_json::from_str::<Head>("{\"detached\":\"12\"}").is_err());
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn packed_refs_come_back(refs in any_refs()) {
            prop_assert_eq!(Refs::parse_packed_refs(&refs.packed_refs(), HashKind::Sha1).unwrap(), refs.refs);
        }

        #[test]
        fn any_packed_refs_are_read_without_panic(text in "(([0-9a-f]{40}|\\^[0-9a-f]{40}|#)( refs/[a-z/]{1,5})?\n?){0,5}") {
            let _ = Refs::parse_packed_refs(text.as_bytes(), HashKind::Sha1);
        }
    }
}
