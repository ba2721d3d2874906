//! What a node remembers of its repositories, so that a restart is warm: which they are, and the failures after which it
//! waits.
//!
//! Nothing depends on it: what is published is read from the bucket, and a node that remembers nothing finds all of it
//! there. Relies on: `local` for small records that belong to this bucket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::boot::time_of_day;
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::repo::{Phase, Repo};

/// The table of the index.
const REPOS: &str = "repos";

/// One repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Whether anything was published.
    published: bool,
    failures: u32,
    #[serde(with = "humantime_serde::option")]
    not_before: Option<SystemTime>,
    error: Option<String>,
}

impl Remembered {
    fn of(repo: &Repo) -> Self {
        let published = repo.known().is_some();
        let health = repo.health();
        let left = |then: Instant| time_of_day() + then.saturating_duration_since(Instant::now());
        let not_before = health.not_before.filter(|_| health.failures > 0).map(left);
        Self { published, failures: health.failures, not_before, error: health.error.clone() }
    }
}

impl Mirror {
    /// Starts with the repositories that this node mirrored before it was stopped. Returns how many they are.
    pub fn recall(self: &Arc<Self>) -> usize {
        let mut count = 0;
        for (key, remembered) in self.local.index().iter::<Remembered>(REPOS) {
            let path = RepoPath::parse(&key).ok().filter(|path| self.selects(path));
            match path {
                Some(path) if remembered.published => {
                    self.start(Arc::new(self.known(path)));
                    count += 1;
                }
                Some(_) => {}
                None => self.local.index().remove(REPOS, &key),
            }
        }
        count
    }

    /// A repository with what is remembered of it.
    pub(super) fn known(&self, path: RepoPath) -> Repo {
        let remembered = self.local.index().get::<Remembered>(REPOS, path.as_str());
        let repo = Repo::new(path);
        let Some(remembered) = remembered else { return repo };
        let wait = remembered.not_before.and_then(|then| then.duration_since(time_of_day()).ok());
        if remembered.failures > 0 {
            let mut health = repo.health();
            health.phase = Phase::Failing;
            health.failures = remembered.failures;
            health.error = remembered.error;
            // A clock that was set back must not make it wait longer than any backoff.
            let wait = wait.map(|wait| wait.min(LONGEST_WAIT));
            health.not_before = wait.map(|wait| Instant::now() + wait);
            health.next = health.not_before;
        }
        repo
    }

    /// Remembers what is known of a repository now, if it is news: most comparisons find what the last one found.
    pub fn remember(&self, repo: &Repo) {
        let (index, key, mut now) = (self.local.index(), repo.path.as_str(), Remembered::of(repo));
        let before = index.get::<Remembered>(REPOS, key);
        // After a restart it may be some time until the record is read.
        now.published |= before.as_ref().is_some_and(|before| before.published);
        if before.as_ref() != Some(&now) {
            index.put(REPOS, key, &now);
        }
    }

    /// Forgets a repository that is not mirrored any more.
    pub fn unlearn(&self, path: &RepoPath) {
        self.local.index().remove(REPOS, path.as_str());
    }
}

/// The longest wait that is taken over from before a restart.
const LONGEST_WAIT: Duration = Duration::from_secs(6 * 3600);
