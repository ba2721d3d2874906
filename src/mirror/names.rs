//! The repositories of a node by their names, whatever their case where the host does not mind it.
//!
//! Elsewhere: how a host names repositories (`primary`), when one is taken up (`mirror`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::git::path::RepoPath;
use crate::mirror::repo::Repo;

/// The repositories of a node.
#[derive(Default)]
pub(super) struct Repos {
    /// By the spelling under which each is taken up.
    pub by_path: HashMap<RepoPath, Arc<Repo>>,
    /// The spelling that stands for all that differ in case alone; empty where the host minds case.
    by_folded: HashMap<String, RepoPath>,
    /// Whether the host ignores case.
    folds: bool,
    /// Those that are about to be taken up.
    pub coming: HashSet<RepoPath>,
}

impl Repos {
    /// The repository that a path names, whatever its case where the host does not mind it.
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
        let folded = folded(path);
        if self.by_folded.get(&folded) == Some(path) {
            self.by_folded.remove(&folded);
        }
    }

    /// Takes note that the host ignores case.
    pub fn fold(&mut self) {
        self.folds = true;
        let mut paths: Vec<_> = self.by_path.keys().cloned().collect();
        paths.sort();
        for path in paths {
            self.by_folded.entry(folded(&path)).or_insert(path);
        }
    }
}

/// What spellings have in common that differ in case alone.
pub(super) fn folded(path: &RepoPath) -> String {
    path.as_str().to_ascii_lowercase()
}
