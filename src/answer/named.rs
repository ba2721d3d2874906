//! What a `sparse:oid` filter names: blobs of the published refs, as git resolves such names.
//!
//! Relies on: a grant, and the set of what is published, which was made before ([`super::reaching`]). Elsewhere: what
//! their patterns mean ([`crate::pack::filter::sparse`]).

use bstr::BStr;
use bytes::Bytes;
use gix_hash::ObjectId;
use gix_object::Kind;

use crate::mirror::snapshot::Granted;
use crate::pack::Gid;
use crate::pack::filter::rules::{BadRules, SparseBlobs};
use crate::pack::filter::sparse;
use crate::pack::filter::trees::TreeError;
use crate::pack::layer::decode::{self, DecodeError, Scratch};
use crate::pack::meter::{Held, Meter};
use crate::pack::object::TreeEntries;

/// Largest tree on the way to a blob.
const MAX_TREE: u64 = 64 << 20;

/// Finds and reads blobs for one request.
pub struct Named<'a> {
    granted: &'a Granted,
    meter: &'a dyn Meter,
    trees: Scratch,
}

impl<'a> Named<'a> {
    /// Looks in what is granted and counts on `meter`.
    pub fn new(granted: &'a Granted, meter: &'a dyn Meter) -> Self {
        Self { granted, meter, trees: Scratch::new(1 << 20, MAX_TREE) }
    }

    /// The object at `path` below `rev`.
    fn at_path(&mut self, rev: &BStr, path: &[u8]) -> Result<Option<Gid>, TreeError> {
        let Self { granted, meter, trees } = self;
        let stack = &granted.stack;
        let oid = by_short_name(granted, rev).or_else(|| ObjectId::from_hex(rev).ok());
        let Some(gid) = oid.and_then(|oid| granted.published(&oid)) else {
            return Ok(None);
        };
        let Some(commit) = stack.commit(stack.peel(gid)) else { return Ok(None) };
        let mut at = commit.tree();
        for part in path.split(|b| *b == b'/') {
            meter.step(1)?;
            let _held = Held::new(*meter, decode::peak(stack, at, *meter)?)?;
            let (kind, tree) = decode::object(stack, granted.source(), at, trees, *meter)?;
            if kind != Kind::Tree {
                return Ok(None);
            }
            let mut found = None;
            for entry in TreeEntries::new(&tree, stack.hash()) {
                let entry = entry?;
                meter.step(1)?;
                if entry.name == part {
                    found = stack.lookup(entry.oid);
                    break;
                }
            }
            let Some(next) = found else { return Ok(None) };
            at = next;
        }
        Ok(Some(at))
    }
}

impl SparseBlobs for Named<'_> {
    /// An object id, a ref, or `<ref>:<path>`.
    fn find(&mut self, name: &BStr) -> Result<Option<Gid>, TreeError> {
        if let Ok(oid) = ObjectId::from_hex(name) {
            return Ok(self.granted.published(&oid));
        }
        match name.iter().position(|b| *b == b':') {
            Some(colon) => self.at_path(name[..colon].into(), &name[colon + 1..]),
            None => Ok(by_short_name(self.granted, name).and_then(|oid| self.granted.published(&oid))),
        }
    }

    fn read(&mut self, blob: Gid) -> Result<Bytes, BadRules> {
        let (stack, limit) = (&self.granted.stack, sparse::MAX_FILE as u64);
        let unreadable = || BadRules::NoPatterns(stack.oid(blob));
        if stack.kind(blob) != Kind::Blob || stack.size(blob) > limit {
            return Err(unreadable());
        }
        let _held = Held::new(self.meter, decode::peak(stack, blob, self.meter)?)?;
        let mut scratch = Scratch::new(1 << 20, limit);
        match decode::object(stack, self.granted.source(), blob, &mut scratch, self.meter) {
            Ok((_, bytes)) => Ok(bytes),
            Err(DecodeError::TooLarge { .. }) => Err(unreadable()),
            Err(e) => Err(TreeError::from(e).into()),
        }
    }
}

/// The one ref that a short name means (`expand_ref` of git's refs.c); none if it means none or several.
pub fn by_short_name(granted: &Granted, name: &BStr) -> Option<ObjectId> {
    const RULES: [(&str, &str); 6] = [
        ("", ""),
        ("refs/", ""),
        ("refs/tags/", ""),
        ("refs/heads/", ""),
        ("refs/remotes/", ""),
        ("refs/remotes/", "/HEAD"),
    ];
    if name == "HEAD" {
        return granted.refs.head_oid();
    }
    let full = RULES.iter().map(|(before, after)| [before.as_bytes(), name, after.as_bytes()].concat());
    let mut found = full.filter_map(|full| granted.refs.find(&full));
    let first = found.next()?;
    found.next().is_none().then_some(first.oid)
}
