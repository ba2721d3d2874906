//! Rules: a filter in the form in which it is applied.
//!
//! The meaning of each filter is that of git's `list-objects-filter.c`. Rules by type and size need
//! the graph alone; rules by path (`tree:<n>`, `sparse:oid`) need tree walks. Where a combination
//! makes git drop an object that one path of it would keep, we keep it.
//!
//! A blob of patterns is read once, however often the filter names it: it selects the same each time.
//!
//! Elsewhere: the text of filters (`git::filter`), tree walks (`trees`), what a name means ([`SparseBlobs`]).
use std::collections::HashMap;
use std::fmt;

use bstr::{BStr, BString};
use bytes::Bytes;
use gix_hash::ObjectId;
use gix_object::Kind;

use super::sparse::Patterns;
use super::trees::TreeError;
use crate::git::filter::Filter;
use crate::pack::Gid;
use crate::pack::meter::{Halt, Meter};

/// Names that the `sparse:oid` filters of one request may give; clients give one.
const MAX_NAMES: usize = 64;

/// Bytes of patterns that one request may name; git takes 100 MiB for each name.
const MAX_BYTES: usize = 16 << 20;

/// Patterns that one request may name.
const MAX_PATTERNS: usize = 1_000_000;

/// What a filter keeps of the objects reachable from the wants. Wants themselves are always kept.
pub struct Rules<'m> {
    commits: bool,
    tags: bool,
    trees: bool,
    /// Blobs of fewer bytes are kept; `None` keeps all.
    blobs_below: Option<u64>,
    /// Trees and blobs are kept this many levels from a root tree, which is level 0.
    levels: Option<u64>,
    /// Blobs are kept whose path all of these select; at most [`MAX_NAMES`].
    sparse: Vec<Patterns<'m>>,
}

/// Finds and reads the blobs that `sparse:oid` filters name.
pub trait SparseBlobs {
    /// Finds what `name` means; `None` if it means nothing that the client may see.
    fn find(&mut self, name: &BStr) -> Result<Option<Gid>, TreeError>;

    /// Reads what was found.
    fn read(&mut self, blob: Gid) -> Result<Bytes, BadRules>;
}

/// A filter that cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum BadRules {
    /// The blob with the patterns is not there; git dies with these words.
    #[error("unable to access sparse blob in '{0}'")]
    NoBlob(BString),
    /// It is no blob, or too large for git; git dies with these words.
    #[error("unable to parse sparse filter data in {0}")]
    NoPatterns(ObjectId),
    /// More names than a request may give.
    #[error("filter not supported: it names more than {MAX_NAMES} blobs of sparse patterns")]
    TooManyNames,
    /// More patterns than a request may bring.
    #[error("filter not supported: more than {MAX_PATTERNS} sparse patterns, or {MAX_BYTES} bytes of them")]
    TooManyPatterns,
    /// The client may get an answer elsewhere: objects could not be read, or the job had to end.
    #[error(transparent)]
    Trees(#[from] TreeError),
}

impl From<Halt> for BadRules {
    fn from(halt: Halt) -> Self {
        Self::Trees(halt.into())
    }
}

impl fmt::Debug for Rules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("sparse", &self.sparse.len()).finish_non_exhaustive()
    }
}

impl<'m> Rules<'m> {
    /// The rules that keep everything.
    pub fn all() -> Self {
        Self { commits: true, tags: true, trees: true, blobs_below: None, levels: None, sparse: Vec::new() }
    }

    /// Compiles `filter`, whose `sparse:oid` names `blobs` knows. What the patterns take is held on `meter`.
    pub fn compile(
        filter: &Filter,
        blobs: &mut dyn SparseBlobs,
        meter: &'m dyn Meter,
    ) -> Result<Self, BadRules> {
        let mut rules = Self::all();
        let mut names: HashMap<&BStr, Gid> = HashMap::new();
        let (mut bytes, mut patterns) = (0, 0);
        // Parts in their order, so that git's first complaint is ours.
        let mut waiting = vec![filter];
        while let Some(filter) = waiting.pop() {
            meter.step(1)?;
            match filter {
                Filter::BlobNone => rules.limit_blobs(0),
                Filter::Tree(0) => {
                    rules.limit_blobs(0);
                    rules.trees = false;
                }
                Filter::BlobLimit(limit) => rules.limit_blobs(*limit),
                Filter::Tree(levels) => {
                    rules.levels = Some(rules.levels.map_or(*levels, |known| known.min(*levels)));
                }
                Filter::ObjectType(kind) => {
                    rules.commits &= *kind == Kind::Commit;
                    rules.tags &= *kind == Kind::Tag;
                    rules.trees &= *kind == Kind::Tree;
                    if *kind != Kind::Blob {
                        rules.limit_blobs(0);
                    }
                }
                Filter::SparseOid(name) => {
                    let name: &BStr = name.as_ref();
                    if names.contains_key(name) {
                        continue;
                    }
                    if names.len() == MAX_NAMES {
                        return Err(BadRules::TooManyNames);
                    }
                    let blob = blobs.find(name)?.ok_or_else(|| BadRules::NoBlob(name.to_owned()))?;
                    let is_news = names.values().all(|known| *known != blob);
                    names.insert(name, blob);
                    if is_news {
                        let file = blobs.read(blob)?;
                        bytes += file.len();
                        patterns += Patterns::count(&file);
                        if bytes > MAX_BYTES || patterns > MAX_PATTERNS {
                            return Err(BadRules::TooManyPatterns);
                        }
                        rules.sparse.push(Patterns::parse(file, meter)?);
                    }
                }
                Filter::Combine(parts) => waiting.extend(parts.iter().rev()),
            }
        }
        Ok(rules)
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
    pub fn sparse(&self) -> &[Patterns<'m>] {
        &self.sparse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::meter::Unlimited;

    /// Knows blob 1 by two names, and counts how often it was read.
    #[derive(Default)]
    struct Known(u32);

    impl SparseBlobs for Known {
        fn find(&mut self, name: &BStr) -> Result<Option<Gid>, TreeError> {
            Ok(["known", "known-too"].iter().any(|known| name == known).then_some(1))
        }

        fn read(&mut self, _: Gid) -> Result<Bytes, BadRules> {
            self.0 += 1;
            Ok(Bytes::from_static(b"/*"))
        }
    }

    fn rules(spec: &str) -> Rules<'static> {
        Rules::compile(&Filter::parse(spec.as_bytes()).unwrap(), &mut Known::default(), &Unlimited).unwrap()
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
    fn a_blob_is_read_once_and_names_are_bounded() {
        let mut blobs = Known::default();
        let mut compile = |spec: &str| {
            let filter = Filter::parse(spec.as_bytes()).unwrap();
            Rules::compile(&filter, &mut blobs, &Unlimited).map(|rules| rules.sparse.len())
        };
        let often = ["sparse:oid=known"; 1000].join("+") + "+sparse:oid=known-too";
        assert_eq!(compile(&format!("combine:{often}")).unwrap(), 1);
        let unknown = compile("sparse:oid=unknown").unwrap_err();
        assert_eq!(unknown.to_string(), "unable to access sparse blob in 'unknown'");
        assert_eq!(blobs.0, 1);
    }
}
