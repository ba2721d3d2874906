//! The repositories of a node by their names: in any case, with `.git` at the end or without, where the host does not mind.
//!
//! Both are of one kind: hosts that keep their repositories by names in a database (Gitea, Forgejo, GitLab, GitHub, Bitbucket) do
//! not mind either, and let nobody make a repository whose name ends with `.git`. For all others `X` and `X.git` are two: no
//! question tells that two paths lead to one repository, for equal refs may be a coincidence that ends tomorrow.
//! Elsewhere: how a host names repositories (`primary`), when one is taken up (`mirror`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::git::path::RepoPath;
use crate::mirror::repo::Repo;
use crate::store::Bucket;

/// The repositories of a node.
#[derive(Default)]
pub(super) struct Repos {
    /// By the spelling under which each is taken up, in order.
    pub by_path: BTreeMap<RepoPath, Arc<Repo>>,
    /// The spelling that stands for all others; empty where the host minds spellings.
    by_folded: HashMap<String, RepoPath>,
    /// Whether the host does not mind them.
    folds: bool,
    /// Those that are about to be taken up.
    pub coming: HashSet<RepoPath>,
}

impl Repos {
    /// The repository that a path names, in any spelling where the host does not mind it.
    pub fn get(&self, path: &RepoPath) -> Option<&Arc<Repo>> {
        self.by_path.get(self.own(path))
    }

    /// The spelling under which it is taken up, or would be.
    pub fn own<'a>(&'a self, path: &'a RepoPath) -> &'a RepoPath {
        match self.folds {
            true if !self.by_path.contains_key(path) => self.by_folded.get(&folded(path)).unwrap_or(path),
            _ => path,
        }
    }

    /// Enters one.
    pub fn insert(&mut self, repo: Arc<Repo>) {
        if self.folds {
            self.by_folded.entry(folded(&repo.path)).or_insert_with(|| repo.path.clone());
        }
        self.by_path.insert(repo.path.clone(), repo);
    }

    /// Takes one out.
    pub fn remove(&mut self, path: &RepoPath) {
        self.by_path.remove(path);
        let of = folded(path);
        if self.by_folded.get(&of) == Some(path) {
            self.by_folded.remove(&of);
            // Two may have been published before it was known that they are one.
            if let Some(other) = self.by_path.keys().filter(|other| folded(other) == of).min() {
                self.by_folded.insert(of, other.clone());
            }
        }
    }

    /// Takes note that the host does not mind spellings.
    pub fn fold(&mut self) {
        self.folds = true;
        for path in self.by_path.keys() {
            self.by_folded.entry(folded(path)).or_insert_with(|| path.clone());
        }
    }
}

/// Says that the bucket does not hold a repository, and under which other spelling it does.
pub async fn not_there(bucket: &Bucket, path: &RepoPath) -> String {
    let stored = bucket.repos().await.unwrap_or_default();
    match stored.iter().find(|known| folded(known) == folded(path) && *known != path) {
        Some(known) => format!("the bucket holds no repository `{path}`, but `{known}`"),
        None => format!("the bucket holds no repository `{path}`; `packmirror ls` shows what it holds"),
    }
}

/// What all spellings of a repository have in common.
pub(super) fn folded(path: &RepoPath) -> String {
    without_suffix(path.as_str()).to_ascii_lowercase()
}

/// The spelling with `.git`, as hosts show it to those who clone.
pub(super) fn with_suffix(path: &RepoPath) -> RepoPath {
    // Longer than a path may be, it stays as it is.
    RepoPath::parse(&format!("{}.git", without_suffix(path.as_str()))).unwrap_or_else(|_| path.clone())
}

/// A path without `.git`, which is a name of its own where nothing is in front of it.
fn without_suffix(path: &str) -> &str {
    path.strip_suffix(".git").filter(|rest| !rest.is_empty() && !rest.ends_with('/')).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    fn repos(paths: &[&str]) -> Repos {
        let mut repos = Repos::default();
        paths.iter().for_each(|one| repos.insert(Arc::new(Repo::new(path(one)))));
        repos
    }

    #[test]
    fn a_suffix_is_one_and_has_a_name_in_front() {
        for (one, want) in [
            ("Team/App.git", "team/app"),
            ("team/app", "team/app"),
            ("team/app.git.git", "team/app.git"),
            ("team/.git", "team/.git"),
            (".git", ".git"),
            ("team/app.GIT", "team/app.git"),
            ("app.wiki.git", "app.wiki"),
        ] {
            assert_eq!(folded(&path(one)), want, "{one}");
        }
        assert_eq!(with_suffix(&path("A/b")).as_str(), "A/b.git");
        assert_eq!(with_suffix(&path("A/b.git")).as_str(), "A/b.git");
    }

    #[test]
    fn spellings_are_one_only_where_the_host_does_not_mind() {
        let mut repos = repos(&["Team/App.git"]);
        let others = [path("team/app"), path("TEAM/APP.git"), path("Team/App")];
        for other in &others {
            assert_eq!(repos.own(other), other);
            assert!(repos.get(other).is_none());
        }
        repos.fold();
        for other in &others {
            assert_eq!(repos.own(other).as_str(), "Team/App.git");
            assert!(repos.get(other).is_some());
        }
        assert!(repos.get(&path("team/app2")).is_none() && repos.get(&path("team/app.git.git")).is_none());
    }

    #[test]
    fn what_was_published_under_both_names_stays_under_both() {
        let mut repos = repos(&["team/app", "team/app.git"]);
        repos.fold();
        for both in ["team/app", "team/app.git"] {
            assert_eq!(repos.own(&path(both)).as_str(), both);
        }
        repos.remove(&path("team/app"));
        assert_eq!(repos.own(&path("team/app")).as_str(), "team/app.git");
        repos.remove(&path("team/app.git"));
        assert_eq!(repos.own(&path("team/app")).as_str(), "team/app");
    }
}
