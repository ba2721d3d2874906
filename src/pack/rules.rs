//! Rules: a filter in the form in which it is applied.
//!
//! The meaning of each filter is that of git's `list-objects-filter.c`. Rules by type and size need
//! the graph alone; rules by path (`tree:<n>`, `sparse:oid`) need tree walks. Where a combination
//! makes git drop an object that one path of it would keep, we keep it.
//!
//! Elsewhere: the text of filters (`git::filter`), tree walks (`trees`).
use bstr::{BStr, BString};
use gix_object::Kind;

use super::sparse::Patterns;
use crate::git::filter::Filter;

/// What a filter keeps of what hangs below the wants. Wants themselves are always kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    commits: bool,
    tags: bool,
    trees: bool,
    /// Blobs of fewer bytes are kept; `None` keeps all.
    blobs_below: Option<u64>,
    /// Trees and blobs are kept this many levels from a root tree, which is level 0.
    levels: Option<u64>,
    /// Blobs are kept whose path all of these select.
    sparse: Vec<Patterns>,
}

/// The blob that holds sparse patterns is not there; git dies with these words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to access sparse blob in '{0}'")]
pub struct NoPatterns(pub BString);

impl Rules {
    /// The rules that keep everything.
    pub fn all() -> Self {
        Self { commits: true, tags: true, trees: true, blobs_below: None, levels: None, sparse: Vec::new() }
    }

    /// Compiles `filter`; `patterns` finds and reads the blob that a `sparse:oid` filter names.
    pub fn compile(
        filter: &Filter,
        patterns: &mut dyn FnMut(&BStr) -> Option<Patterns>,
    ) -> Result<Self, NoPatterns> {
        let mut rules = Self::all();
        rules.add(filter, patterns)?;
        Ok(rules)
    }

    fn add(
        &mut self,
        filter: &Filter,
        patterns: &mut dyn FnMut(&BStr) -> Option<Patterns>,
    ) -> Result<(), NoPatterns> {
        match filter {
            Filter::BlobNone | Filter::Tree(0) => self.limit_blobs(0),
            Filter::BlobLimit(limit) => self.limit_blobs(*limit),
            Filter::Tree(levels) => {
                self.levels = Some(self.levels.map_or(*levels, |known| known.min(*levels)))
            }
            Filter::ObjectType(kind) => {
                self.commits &= *kind == Kind::Commit;
                self.tags &= *kind == Kind::Tag;
                self.trees &= *kind == Kind::Tree;
                if *kind != Kind::Blob {
                    self.limit_blobs(0);
                }
            }
            Filter::SparseOid(name) => {
                self.sparse.push(patterns(name.as_ref()).ok_or_else(|| NoPatterns(name.clone()))?);
            }
            Filter::Combine(parts) => parts.iter().try_for_each(|part| self.add(part, patterns))?,
        }
        self.trees &= *filter != Filter::Tree(0);
        Ok(())
    }

    fn limit_blobs(&mut self, below: u64) {
        self.blobs_below = Some(self.blobs_below.map_or(below, |known| known.min(below)));
    }

    /// Applies the rules by type and size; `size` is asked for blobs only.
    pub fn keeps(&self, kind: Kind, size: impl FnOnce() -> u64) -> bool {
        match kind {
            Kind::Commit => self.commits,
            Kind::Tag => self.tags,
            Kind::Tree => self.trees,
            Kind::Blob => self.blobs_below.is_none_or(|below| below > 0 && size() < below),
        }
    }

    /// Says whether anything at all is kept below commits.
    pub fn keeps_contents(&self) -> bool {
        self.trees || self.keeps_blobs()
    }

    /// Says whether some blobs are kept.
    pub fn keeps_blobs(&self) -> bool {
        self.blobs_below != Some(0)
    }

    /// Says whether where an object lies matters, so that trees must be walked.
    pub fn by_path(&self) -> bool {
        self.keeps_contents() && (self.levels.is_some() || !self.sparse.is_empty())
    }

    /// Says whether objects `level` levels from a root tree are kept.
    pub fn keeps_level(&self, level: u64) -> bool {
        self.levels.is_none_or(|levels| level < levels)
    }

    /// The sets of patterns that must all select a blob's path.
    pub fn sparse(&self) -> &[Patterns] {
        &self.sparse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(spec: &str) -> Rules {
        let filter = Filter::parse(spec.as_bytes()).unwrap();
        Rules::compile(&filter, &mut |name| (name == "known").then(|| Patterns::parse(b"/*"))).unwrap()
    }

    #[test]
    fn keeps_what_git_keeps() {
        use Kind::*;
        // Commit, tag, tree, blob of 9 bytes, blob of 10 bytes, by path.
        let cases = [
            ("blob:none", [true, true, true, false, false, false]),
            ("blob:limit=10", [true, true, true, true, false, false]),
            ("blob:limit=0", [true, true, true, false, false, false]),
            ("tree:0", [true, true, false, false, false, false]),
            ("tree:2", [true, true, true, true, true, true]),
            ("object:type=commit", [true, false, false, false, false, false]),
            ("object:type=tag", [false, true, false, false, false, false]),
            ("object:type=tree", [false, false, true, false, false, false]),
            ("object:type=blob", [false, false, false, true, true, false]),
            ("sparse:oid=known", [true, true, true, true, true, true]),
            ("combine:tree:3+blob:limit=10", [true, true, true, true, false, true]),
            ("combine:tree:0+tree:3", [true, true, false, false, false, false]),
            ("combine:object:type=tree+blob:limit=10", [false, false, true, false, false, false]),
        ];
        for (spec, want) in cases {
            let rules = rules(spec);
            let got = [(Commit, 0), (Tag, 0), (Tree, 0), (Blob, 9), (Blob, 10)]
                .map(|(kind, size)| rules.keeps(kind, || size));
            assert_eq!((&got[..], rules.by_path()), (&want[..5], want[5]), "{spec}");
        }
        assert!(rules("combine:tree:3+tree:2").keeps_level(1));
        assert!(!rules("combine:tree:3+tree:2").keeps_level(2));
    }

    #[test]
    fn patterns_that_are_not_there_are_an_error() {
        let filter = Filter::parse(b"sparse:oid=unknown").unwrap();
        assert_eq!(Rules::compile(&filter, &mut |_| None), Err(NoPatterns("unknown".into())));
    }
}
