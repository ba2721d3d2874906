//! The bytes of commits, trees and tags, read the way git's own walks read them.
//!
//! As forgiving as `commit.c` (`parse_commit_buffer`), `tree-walk.c` (`decode_tree_entry`) and
//! `tag.c` (`parse_tag_buffer`), no more: what git can walk we can walk, what git calls bad is an
//! error here. Nothing is checked that a walk does not need.
//!
//! Elsewhere: where the bytes come from (`layer::decode`), what the links are used for (`layer::graph::build`).
use bstr::ByteSlice;
use gix_hash::{Kind as HashKind, ObjectId, oid};
use gix_object::Kind;

/// git could not walk this object either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {kind}: {reason}")]
pub struct Malformed {
    /// What the object should be.
    pub kind: Kind,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What a walk needs of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitLinks {
    /// The root tree.
    pub tree: ObjectId,
    /// The parents in their order, repeats included.
    pub parents: Vec<ObjectId>,
    /// Committer time in seconds, 0 where git finds none.
    pub date: u64,
}

/// Reads tree, parents and date of a commit as `parse_commit_buffer` does.
pub fn commit(bytes: &[u8], hash: HashKind) -> Result<CommitLinks, Malformed> {
    let bad = |reason| Malformed { kind: Kind::Commit, reason };
    let (tree, mut rest) = id_line(bytes, b"tree ", hash).ok_or(bad("bogus tree line"))?;
    let mut parents = Vec::new();
    while rest.starts_with(b"parent ") {
        let (parent, after) = id_line(rest, b"parent ", hash).ok_or(bad("bad parents"))?;
        parents.push(parent);
        rest = after;
    }
    Ok(CommitLinks { tree, parents, date: date(rest) })
}

/// Finds the committer date as git's `parse_commit_date` does: garbage is 0, never an error.
fn date(rest: &[u8]) -> u64 {
    let committer = || {
        let after_author = rest.strip_prefix(b"author")?;
        let end = after_author.iter().position(|&byte| byte == b'\n')?;
        let line = after_author.get(end + 1..)?.strip_prefix(b"committer")?;
        let line = line.get(..line.iter().position(|&byte| byte == b'\n')?)?;
        let text = line.get(line.iter().rposition(|&byte| byte == b'>')? + 1..)?.trim_ascii_start();
        // As strtoumax: a sign negates in unsigned arithmetic, too large saturates.
        let (negative, digits) = match text.strip_prefix(b"-") {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let value = digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .try_fold(0u64, |value, byte| value.checked_mul(10)?.checked_add(u64::from(byte - b'0')));
        Some(match value {
            Some(value) if negative => value.wrapping_neg(),
            Some(value) => value,
            None => u64::MAX,
        })
    };
    committer().unwrap_or(0)
}

/// Reads `<name><hex id>\n` from the front of `bytes`.
fn id_line<'a>(bytes: &'a [u8], name: &[u8], hash: HashKind) -> Option<(ObjectId, &'a [u8])> {
    let (hex, rest) = bytes.strip_prefix(name)?.split_at_checked(hash.len_in_hex())?;
    Some((ObjectId::from_hex(hex).ok()?, rest.strip_prefix(b"\n")?))
}

/// Reads target and the target's type of a tag as `parse_tag_buffer` does.
pub fn tag(bytes: &[u8], hash: HashKind) -> Result<(ObjectId, Kind), Malformed> {
    let bad = |reason| Malformed { kind: Kind::Tag, reason };
    let (target, rest) = id_line(bytes, b"object ", hash).ok_or(bad("bad object line"))?;
    let rest = rest.strip_prefix(b"type ").ok_or(bad("no type line"))?;
    let kind = [Kind::Commit, Kind::Tree, Kind::Blob, Kind::Tag]
        .into_iter()
        .find(|kind| rest.strip_prefix(kind.as_bytes()).is_some_and(|after| after.starts_with(b"\n")))
        .ok_or(bad("unknown type"))?;
    Ok((target, kind))
}

/// One entry of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeEntry<'a> {
    /// The mode as stored.
    pub mode: u32,
    /// The name, without a slash.
    pub name: &'a [u8],
    /// What it names.
    pub oid: &'a oid,
    /// The entry as it is stored, for comparing whole entries at once.
    pub raw: &'a [u8],
}

impl TreeEntry<'_> {
    /// Says what kind of object the entry names; `None` for a submodule's commit, which is not ours.
    pub fn kind(&self) -> Option<Kind> {
        match self.mode & 0o170000 {
            0o040000 => Some(Kind::Tree),
            0o160000 => None,
            _ => Some(Kind::Blob),
        }
    }
}

/// The entries of a tree in stored order. Ends after the first error.
#[derive(Debug, Clone)]
pub struct TreeEntries<'a> {
    rest: &'a [u8],
    hash_len: usize,
}

impl<'a> TreeEntries<'a> {
    /// Starts at the first entry of the tree `bytes`.
    pub fn new(bytes: &'a [u8], hash: HashKind) -> Self {
        Self { rest: bytes, hash_len: hash.len_in_bytes() }
    }

    /// Skips the next entry if it is stored exactly as `raw`, an entry's stored form, and says so.
    pub fn skip_equal(&mut self, raw: &[u8]) -> bool {
        match self.rest.strip_prefix(raw) {
            Some(after) => {
                self.rest = after;
                true
            }
            None => false,
        }
    }

    /// Skips the entries that this tree and `other`, which is well formed, both have next in the very same bytes.
    pub fn skip_common(&mut self, other: &mut TreeEntries<'_>) {
        let same = common(self.rest, other.rest);
        let mut at = 0;
        // Modes and names have no zero in them.
        while let Some(zero) = self.rest.get(at..same).and_then(|bytes| bytes.find_byte(0)) {
            let end = at + zero + 1 + self.hash_len;
            if end > same {
                break;
            }
            at = end;
        }
        self.rest = self.rest.get(at..).unwrap_or_default();
        other.rest = other.rest.get(at..).unwrap_or_default();
    }

    fn read(&mut self) -> Option<TreeEntry<'a>> {
        let bytes = self.rest;
        let mut mode = 0u32;
        let mut at = 0;
        loop {
            match bytes.get(at)? {
                digit @ b'0'..=b'7' => mode = (mode << 3) | u32::from(digit - b'0'),
                b' ' if at > 0 => break,
                _ => return None,
            }
            at += 1;
        }
        let name_start = at + 1;
        let name_len = bytes.get(name_start..)?.find_byte(0)?;
        let oid_start = name_start + name_len + 1;
        let end = oid_start + self.hash_len;
        let id = bytes.get(oid_start..end)?;
        if name_len == 0 {
            return None;
        }
        self.rest = bytes.get(end..)?;
        Some(TreeEntry {
            mode,
            name: bytes.get(name_start..oid_start - 1)?,
            oid: oid::try_from_bytes(id).ok()?,
            raw: bytes.get(..end)?,
        })
    }
}

/// Counts the bytes with which both begin.
fn common(a: &[u8], b: &[u8]) -> usize {
    let (whole, _) = a.as_chunks::<32>();
    let chunks = whole.iter().zip(b.as_chunks::<32>().0).take_while(|(a, b)| a == b).count();
    let at = chunks * 32;
    let rest = a.get(at..).unwrap_or_default().iter().zip(b.get(at..).unwrap_or_default());
    at + rest.take_while(|(a, b)| a == b).count()
}

impl<'a> Iterator for TreeEntries<'a> {
    type Item = Result<TreeEntry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.read();
        if entry.is_none() {
            self.rest = &[];
        }
        Some(entry.ok_or(Malformed { kind: Kind::Tree, reason: "an entry is not mode, name and id" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn dated(committer: &str) -> u64 {
        let text = format!("tree {ID}\nauthor A <a> 1 +0000\n{committer}\n\nmessage\n");
        commit(text.as_bytes(), HashKind::Sha1).unwrap().date
    }

    #[test]
    fn dates_are_what_git_makes_of_them() {
        let cases = [
            ("committer C <c@x> 1234567890 +0100", 1_234_567_890),
            ("committer C <c@x>  12 +0100", 12),
            ("committer C <c@x>12", 12),
            ("committer <<>> > 12 +0100", 12),
            ("committer C <c@x> 123foo456", 123),
            ("committer C <c@x> foo", 0),
            ("committer C <c@x>", 0),
            ("committer C c@x 12 +0000", 0),
            ("committer C <c@x> -1 +0000", u64::MAX),
            ("committer C <c@x> 18446744073709551616 +0000", u64::MAX),
            ("encoding C <c@x> 12", 0),
        ];
        for (committer, want) in cases {
            assert_eq!(dated(committer), want, "{committer}");
        }
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn what_two_trees_begin_with_is_skipped_entry_by_entry(
            shared in prop::collection::vec((0u8..3, 0u8..40), 0..12),
            left in prop::collection::vec((0u8..3, 0u8..40), 0..3),
            right in prop::collection::vec((0u8..3, 0u8..40), 0..3),
        ) {
            let tree = |tail: &[(u8, u8)]| {
                let entries = shared.iter().chain(tail);
                // Ids with zeros in them, names of many lengths.
                entries.flat_map(|&(id, name)| {
                    let name = "n".repeat(usize::from(name) + 1);
                    [format!("100644 {name}\0").as_bytes(), &[id; 20]].concat()
                }).collect::<Vec<u8>>()
            };
            let (a, b) = (tree(&left), tree(&right));
            let (mut a, mut b) = (TreeEntries::new(&a, HashKind::Sha1), TreeEntries::new(&b, HashKind::Sha1));
            a.skip_common(&mut b);
            let more = left.iter().zip(&right).take_while(|(left, right)| left == right).count();
            prop_assert_eq!(a.count(), left.len() - more);
            prop_assert_eq!(b.count(), right.len() - more);
        }
    }

    #[test]
    fn git_gives_the_same_dates() {
        let repo = crate::pack::testing::Repo::new(HashKind::Sha1);
        let tree = repo.tree(&[]);
        // Which `>` counts when there are several has changed between versions of git.
        for when in ["C <c@x> 12 +0000", "C <c@x> 77x", "C <c@x> y", "C 5", "C <c> 4000000000 +0000"] {
            let text = format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter {when}\n\nmessage\n");
            let oid = repo.store("commit", text.as_bytes());
            let said = repo.git(&["rev-list", "-1", "--timestamp", &oid.to_string()]);
            let (date, _) = said.split_once(' ').unwrap();
            assert_eq!(commit(text.as_bytes(), HashKind::Sha1).unwrap().date.to_string(), date, "{when}");
        }
    }

    #[test]
    fn entries_are_mode_name_and_id() {
        let id = [7u8; 20];
        let entry = |head: &str| [head.as_bytes(), b"\0", &id].concat();
        let good = [entry("40000 dir"), entry("100644 a b"), entry("160000 sub"), entry("120000 l")].concat();
        let kinds: Vec<_> = TreeEntries::new(&good, HashKind::Sha1)
            .map(|entry| entry.map(|entry| (entry.name, entry.kind())))
            .collect();
        let want: [(&[u8], _); 4] = [
            (b"dir", Some(Kind::Tree)),
            (b"a b", Some(Kind::Blob)),
            (b"sub", None),
            (b"l", Some(Kind::Blob)),
        ];
        assert_eq!(kinds, want.map(Ok));
        for bad in
            [entry("40000 "), entry(" a"), entry("4x a"), b"100644 a\0short".to_vec(), b"100644".to_vec()]
        {
            let bytes = [good.clone(), bad].concat();
            let entries: Vec<_> = TreeEntries::new(&bytes, HashKind::Sha1).collect();
            assert!(entries.len() == 5 && entries[4].is_err() && entries[..4].iter().all(Result::is_ok));
        }
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80), head in 0usize..4) {
            let heads = [String::new(), format!("tree {ID}\n"), format!("object {ID}\ntype "), "100644 a\0".into()];
            let bytes = [heads[head].as_bytes(), &bytes].concat();
            for hash in [HashKind::Sha1, HashKind::Sha256] {
                let _ = (commit(&bytes, hash), tag(&bytes, hash));
                let total: usize = TreeEntries::new(&bytes, hash).flatten().map(|entry| entry.raw.len()).sum();
                prop_assert!(total <= bytes.len());
            }
        }
    }
}
