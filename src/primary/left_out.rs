//! What is said about refs that the primary shows and that cannot be mirrored: once, and again when they are others.
//!
//! Elsewhere: which refs these are (`git::ls_refs`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bstr::ByteSlice;

use super::Primary;
use crate::git::ls_refs::{LeftOut, Unfit};
use crate::git::path::RepoPath;
use crate::git::refname;
use crate::telemetry::metrics::REFS_LEFT_OUT;

/// Of so many repositories it is remembered what was said.
const REMEMBERED: usize = 1000;
/// So much of a name is shown.
const SHOWN: usize = 200;

/// What was said last of the repositories that have such refs.
#[derive(Debug, Default)]
pub(super) struct Said(Mutex<HashMap<RepoPath, LeftOut>>);

impl Said {
    /// Takes note of what was found now; true if it is news.
    fn is_news(&self, repo: &RepoPath, found: &LeftOut) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.count == 0 {
            said.remove(repo);
            return false;
        }
        if said.get(repo) == Some(found) {
            return false;
        }
        if said.len() >= REMEMBERED {
            said.clear();
        }
        said.insert(repo.clone(), found.clone());
        true
    }
}

impl Primary {
    /// Says and counts which refs of `repo` are left out, if that was not said before. Gives the first, and how many more.
    pub fn note_left_out(&self, repo: &RepoPath, found: &LeftOut) -> Option<String> {
        if self.0.said.is_news(repo, found) {
            let first: Vec<String> = found.first.iter().map(line).collect();
            let (repo, count, first) = (repo.as_str(), found.count, first.join("; "));
            tracing::warn!(
                repo,
                count,
                first,
                "the primary shows refs that cannot be mirrored; they are left out"
            );
            metrics::counter!(REFS_LEFT_OUT).increment(found.count as u64);
        }
        let first = line(found.first.first()?);
        let more = found.count - 1;
        Some(if more == 0 {
            format!("left out: {first}")
        } else {
            format!("left out: {first}; and {more} more")
        })
    }
}

/// A ref and what is wrong with it, in one line.
pub(super) fn line((name, why): &(bstr::BString, Unfit)) -> String {
    let name = name.get(..SHOWN).unwrap_or(name);
    format!("{}: {why}", refname::to_text(name.as_bstr()).escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once() {
        let (said, repo) = (Said::default(), RepoPath::parse("a").unwrap());
        let found = |names: &[&str]| LeftOut {
            count: names.len(),
            first: names.iter().map(|name| ((*name).into(), Unfit::Name)).collect(),
        };
        for (names, news) in [
            (&[][..], false),
            (&["refs/heads/a..b"], true),
            (&["refs/heads/a..b"], false),
            (&["refs/heads/a..b", "refs/heads/x~y"], true),
            (&[], false),
            (&["refs/heads/a..b"], true),
        ] {
            assert_eq!(said.is_news(&repo, &found(names)), news, "{names:?}");
        }
        assert_eq!(line(&("refs/a\nb".into(), Unfit::Empty)), "refs/a\\nb: it names no object");
    }
}
