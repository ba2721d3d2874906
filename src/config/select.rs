//! Which repositories are mirrored: an ordered list of globs.
//!
//! `*` stays within one path segment, `**` crosses segments, `{a,b}` and `[ab]` as usual. A glob with `!` in
//! front takes repositories out again; the last glob that matches a repository decides. A list that starts
//! with `!` takes everything else. `team/app` and `team/app.git` are the same repository to a glob.
//! This is a choice of what to store, not access control: who may read is the primary's decision.

use globset::{Glob, GlobBuilder, GlobMatcher};

/// A compiled list of globs.
#[derive(Debug, Clone)]
pub struct Selection {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    take: bool,
    glob: GlobMatcher,
}

/// A glob that does not parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadGlob {
    /// The glob as it was given.
    pub glob: String,
    /// What is wrong with it.
    pub why: String,
}

impl Selection {
    /// Compiles `globs`; an empty list selects nothing.
    pub fn new<S: AsRef<str>>(globs: &[S]) -> Result<Self, BadGlob> {
        let mut rules = Vec::with_capacity(globs.len() + 1);
        for text in globs.iter().map(AsRef::as_ref) {
            let bad = |why: &str| BadGlob { glob: text.to_owned(), why: why.to_owned() };
            let (take, body) = match text.strip_prefix('!') {
                Some(rest) => (false, rest),
                None => (true, text),
            };
            let body = body.strip_prefix('/').unwrap_or(body);
            if body.is_empty() {
                return Err(bad("it is empty"));
            }
            if rules.is_empty() && !take {
                rules.push(Rule { take: true, glob: compile("**").map_err(|why| bad(&why))? });
            }
            let glob = compile(body.strip_suffix(".git").unwrap_or(body)).map_err(|why| bad(&why))?;
            rules.push(Rule { take, glob });
        }
        Ok(Self { rules })
    }

    /// Says whether `repo` (a path as clients ask for it, without leading `/`) is to be mirrored.
    pub fn selects(&self, repo: &str) -> bool {
        let bare = repo.strip_suffix(".git").unwrap_or(repo);
        self.rules.iter().rev().find(|rule| rule.glob.is_match(bare)).is_some_and(|rule| rule.take)
    }
}

fn compile(text: &str) -> Result<GlobMatcher, String> {
    let glob: Result<Glob, globset::Error> =
        GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|error| error.kind().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_decides() {
        let cases: &[(&[&str], &[&str], &[&str])] = &[
            (&["**"], &["a", "a.git", "a/b", "a/b/c.git", "ünï/x y"], &[]),
            (&["*"], &["a", "a.git"], &["a/b"]),
            (
                &["team/*", "!team/secret"],
                &["team/app", "team/app.git"],
                &["team/secret", "team/secret.git", "other/app"],
            ),
            (&["!team/secret.git"], &["team/app", "x"], &["team/secret", "team/secret.git"]),
            (&["!team/**", "team/open"], &["team/open", "x/y"], &["team/a", "team/a/b"]),
            (&["team/**"], &["team/a", "team/a/b.git"], &["team", "teams/a"]),
            (&["/team/{a,b}"], &["team/a", "team/b"], &["team/c"]),
            (&[], &[], &["a"]),
        ];
        for (globs, taken, left) in cases {
            let selection = Selection::new(globs).unwrap();
            for repo in *taken {
                assert!(selection.selects(repo), "{globs:?} should select {repo}");
            }
            for repo in *left {
                assert!(!selection.selects(repo), "{globs:?} should not select {repo}");
            }
        }
    }

    #[test]
    fn a_broken_glob_is_named() {
        for glob in ["team/[a", "{a", "", "!", "!/"] {
            let bad = Selection::new(&[glob]).unwrap_err();
            assert_eq!(bad.glob, glob);
            assert!(!bad.why.is_empty());
        }
    }
}
