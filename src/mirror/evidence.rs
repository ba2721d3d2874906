//! What comparisons with the primary found to differ, and what became of it.
//!
//! The last findings of a repository stay in this node's memory: which refs, since when, what was done, when it was equal
//! again. All of it is bounded, and names no credential. Elsewhere: who compares (`work::sync`), who shows it (`standing`).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use bstr::{BStr, ByteSlice};
use serde::{Deserialize, Serialize};

use crate::git::refname;
use crate::git::refs::{Head, Refs};
use crate::mirror::health::cut;

/// Findings that are kept.
const MOST_FINDINGS: usize = 20;
/// Refs of one finding that are named; the others are counted.
pub const MOST_REFS: usize = 50;
/// Refs that are named in all findings of one repository together: the older ones keep their counts.
const MOST_REFS_KEPT: usize = 100;
/// Lines that say what was done about one finding.
const MOST_DONE: usize = 10;
/// The longest ref name that is kept whole, in characters.
const LONGEST_NAME: usize = 200;
/// Refs of a finding that a node tells the others.
const FEW_REFS: usize = 3;
/// A finding that was over for so long is not told to others any more.
const TOLD_FOR: Duration = Duration::from_secs(3600);

/// One ref that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefChange {
    /// Its name; `HEAD` for where HEAD points.
    pub name: String,
    /// What is published: an object, or the ref that a symbolic one names. None: it is not published.
    pub old: Option<String>,
    /// What the primary showed. None: it is not there any more.
    pub new: Option<String>,
}

/// A difference between the primary and what is published, from the comparison that found it to the one that found both
/// equal. In JSON times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// When the primary was asked by the first comparison that found it.
    #[serde(with = "humantime_serde")]
    pub since: SystemTime,
    /// When the primary was asked by the last comparison that found both equal before.
    #[serde(with = "humantime_serde::option")]
    pub equal_before: Option<SystemTime>,
    /// How many refs differ.
    pub refs_count: u64,
    /// The first of them, by name.
    pub refs: Vec<RefChange>,
    /// What was done about it, in words, the oldest first.
    pub done: Vec<String>,
    /// When both were equal again.
    #[serde(with = "humantime_serde::option")]
    pub equal_again: Option<SystemTime>,
}

impl Finding {
    /// The finding as others are told of it: with a few refs; none if it has been over for long.
    fn short(&self, now: SystemTime) -> Option<Self> {
        let over = self.equal_again.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
        (over < TOLD_FOR).then(|| {
            let refs = self.refs.iter().take(FEW_REFS).cloned().collect();
            Self { refs, ..self.clone() }
        })
    }

    /// Bounds what came from elsewhere.
    pub fn bounded(mut self) -> Self {
        self.refs.truncate(MOST_REFS);
        self.done.truncate(MOST_DONE);
        self.refs.iter_mut().for_each(|r| cut(&mut r.name));
        self.done.iter_mut().for_each(cut);
        self
    }
}

/// The last findings of a repository, the oldest first.
#[derive(Debug, Default)]
pub struct Evidence {
    findings: VecDeque<Finding>,
}

impl Evidence {
    /// Takes note that a comparison, which asked the primary at `asked`, found `seen` where `published` is published;
    /// `equal_before` says when both were equal last. Says whether that is news: a difference that is known is brought up to date.
    pub fn differs(
        &mut self,
        published: &Refs,
        seen: &Refs,
        asked: SystemTime,
        equal_before: Option<SystemTime>,
    ) -> bool {
        let (refs_count, refs) = changes(published, seen);
        if let Some(open) = self.open() {
            (open.refs_count, open.refs) = (refs_count, refs);
            return false;
        }
        if self.findings.len() >= MOST_FINDINGS {
            self.findings.pop_front();
        }
        let (done, equal_again) = (Vec::new(), None);
        self.findings.push_back(Finding { since: asked, equal_before, refs_count, refs, done, equal_again });
        let mut left = MOST_REFS_KEPT;
        for finding in self.findings.iter_mut().rev() {
            finding.refs.truncate(left);
            left -= finding.refs.len();
        }
        true
    }

    /// Takes note of what was done about the difference that is known, if one is.
    pub fn done(&mut self, words: impl Into<String>) {
        let Some(open) = self.open() else { return };
        let mut words = words.into();
        cut(&mut words);
        if open.done.last() == Some(&words) {
            return;
        }
        if open.done.len() >= MOST_DONE {
            // The first says how it began, the last how it stands.
            open.done.remove(1);
        }
        open.done.push(words);
    }

    /// Takes note that both are equal. Gives the finding that is over by that, if there is one.
    pub fn equal(&mut self, now: SystemTime) -> Option<&Finding> {
        let open = self.open()?;
        open.equal_again = Some(now);
        Some(open)
    }

    /// All that is kept, the newest first.
    pub fn all(&self) -> Vec<Finding> {
        self.findings.iter().rev().cloned().collect()
    }

    /// The newest finding as others are told of it.
    pub fn newest(&self, now: SystemTime) -> Option<Finding> {
        self.findings.back()?.short(now)
    }

    fn open(&mut self) -> Option<&mut Finding> {
        self.findings.back_mut().filter(|finding| finding.equal_again.is_none())
    }
}

/// The refs in which `new` differs from `old`: how many, and the first of them by name. HEAD counts as one, and comes first.
pub fn changes(old: &Refs, new: &Refs) -> (u64, Vec<RefChange>) {
    let (mut count, mut named) = (0, Vec::new());
    let mut note = |name: &BStr, old: Option<String>, new: Option<String>| {
        count += 1;
        if named.len() < MOST_REFS {
            let mut name = refname::to_text(name);
            if let Some((end, _)) = name.char_indices().nth(LONGEST_NAME) {
                name.truncate(end);
            }
            named.push(RefChange { name, old, new });
        }
    };
    if old.head != new.head {
        note(b"HEAD".as_bstr(), head(&old.head), head(&new.head));
    }
    let (mut left, mut right) = (old.refs.iter().peekable(), new.refs.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(l), Some(r)) => l.name.cmp(&r.name),
        };
        let l = if order.is_le() { left.next() } else { None };
        let r = if order.is_ge() { right.next() } else { None };
        let oid = |r: Option<&crate::git::refs::Ref>| r.map(|r| r.oid.to_string());
        if let Some(either) = l.or(r).filter(|_| l.map(|l| l.oid) != r.map(|r| r.oid)) {
            note(either.name.as_bstr(), oid(l), oid(r));
        }
    }
    if old.symrefs != new.symrefs {
        let targets = |refs: &Refs| refs.symrefs.iter().cloned().collect::<BTreeMap<_, _>>();
        let (old, new) = (targets(old), targets(new));
        let text = |target: &bstr::BString| format!("ref: {}", refname::to_text(target.as_bstr()));
        for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
            let (l, r) = (old.get(name), new.get(name));
            if l != r {
                note(name.as_bstr(), l.map(text), r.map(text));
            }
        }
    }
    (count, named)
}

fn head(head: &Head) -> Option<String> {
    match head {
        Head::Symbolic { target } => Some(format!("ref: {}", refname::to_text(target.as_bstr()))),
        Head::Detached(oid) => Some(oid.to_string()),
        Head::Missing => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::HashKind;
    use crate::git::refs::Ref;
    use gix_hash::ObjectId;

    fn refs(names: &[(&str, u8)], head: &str) -> Refs {
        let of = |(name, n): &(&str, u8)| Ref {
            name: format!("refs/heads/{name}").into(),
            oid: ObjectId::from([*n; 20]),
            peeled: None,
        };
        let head = Head::Symbolic { target: format!("refs/heads/{head}").into() };
        Refs::new(HashKind::Sha1, head, names.iter().map(of).collect(), vec![]).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn refs_that_came_went_and_moved_are_named() {
        let (old, new) =
            (refs(&[("a", 1), ("b", 2), ("c", 3)], "a"), refs(&[("b", 9), ("c", 3), ("d", 4)], "b"));
        let (count, named) = changes(&old, &new);
        let said: Vec<_> = named
            .iter()
            .map(|r| (r.name.as_str(), r.old.as_deref().map(|o| &o[..2]), r.new.as_deref().map(|o| &o[..2])))
            .collect();
        let want = [
            ("HEAD", Some("re"), Some("re")),
            ("refs/heads/a", Some("01"), None),
            ("refs/heads/b", Some("02"), Some("09")),
            ("refs/heads/d", None, Some("04")),
        ];
        assert_eq!((count, said.as_slice()), (4, &want[..]));
        assert_eq!(changes(&old, &old), (0, vec![]));
    }

    #[test]
    fn a_difference_is_one_finding_until_both_are_equal() {
        let mut evidence = Evidence::default();
        let (old, new, newer) = (refs(&[("a", 1)], "a"), refs(&[("a", 2)], "a"), refs(&[("a", 3)], "a"));
        assert!(evidence.equal(at(1)).is_none());
        assert!(evidence.differs(&old, &new, at(10), Some(at(5))));
        assert!(!evidence.differs(&old, &newer, at(12), Some(at(5))), "it is the same difference");
        evidence.done("fetched 3 objects");
        evidence.done("fetched 3 objects");
        let over = evidence.equal(at(13)).unwrap();
        assert_eq!((over.since, over.equal_before, over.equal_again), (at(10), Some(at(5)), Some(at(13))));
        assert_eq!(over.done, ["fetched 3 objects"]);
        assert_eq!(over.refs[0].new.as_deref(), Some("03".repeat(20).as_str()));
        evidence.done("after it");
        assert!(evidence.differs(&newer, &old, at(20), Some(at(13))));
        assert_eq!(evidence.all().len(), 2);
        assert_eq!(evidence.newest(at(21)).unwrap().since, at(20));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut evidence = Evidence::default();
        let many: Vec<String> = (0..200).map(|n| format!("{n:03}")).collect();
        let of = |n| refs(&many.iter().map(|name| (name.as_str(), n)).collect::<Vec<_>>(), "000");
        let (old, new) = (of(1), of(2));
        for n in 0..50 {
            evidence.differs(&old, &new, at(n), None);
            (0..100).for_each(|n| evidence.done(format!("try {n}")));
            evidence.equal(at(n));
        }
        let all = evidence.all();
        assert_eq!(all.len(), MOST_FINDINGS);
        assert_eq!((all[0].refs.len(), all[0].refs_count), (MOST_REFS, 200));
        assert_eq!(all.iter().map(|f| f.refs.len()).sum::<usize>(), MOST_REFS_KEPT);
        assert_eq!(all[0].done.len(), MOST_DONE);
        assert_eq!((all[0].done[0].as_str(), all[0].done[9].as_str()), ("try 0", "try 99"));
        assert!(evidence.newest(at(49) + TOLD_FOR).is_none(), "it is over for long");
    }
}
