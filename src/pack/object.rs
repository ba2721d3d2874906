//! The bytes of commits, trees and tags, read the way git's own walks read them.
//!
//! As forgiving as `commit.c` (`parse_commit_buffer`), `tree-walk.c` (`decode_tree_entry`) and
//! `tag.c` (`parse_tag_buffer`), no more: what git can walk we can walk, what git calls bad is an
//! error here. Nothing is checked that a walk does not need.
//!
//! Elsewhere: where the bytes come from (`decode`), what the links are used for (`graph::build`).
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
        let name_len = bytes.get(name_start..)?.iter().position(|&byte| byte == 0)?;
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
