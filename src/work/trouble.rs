//! Repositories that cannot be taken in as the primary shows them: an object over a limit, a history with holes, a disk that
//! is too small.
//!
//! Another try costs the primary a whole pack and ends the same way, so the next one waits longer each time, up to
//! [`LONGEST`]. It is made earlier when the primary shows something else, when a setting has changed that it depends on,
//! or when somebody runs `packmirror sync`. What failed is noted in the bucket, so that no other node tries the same; what
//! only this node's disk is too small for is known here alone.
//! Relies on: `store` for notes. Clocks pace the tries and decide nothing else.

use std::io;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::boot::{time_of_day, unix_seconds};
use crate::mirror::health::cut;
use crate::mirror::repo::Repo;
use crate::pack::index::IndexError;
use crate::pack::layer::graph::BuildError;
use crate::pack::meter::Halt;
use crate::primary::PrimaryError;
use crate::store::Note;
use crate::text::chain;
use crate::work::Work;
use crate::work::error::SyncError;
use crate::work::ingest::IngestError;

/// The longest wait between two tries.
pub const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Settings under which nodes of one farm have tried, at most.
const MOST_TRIES: usize = 8;
/// Words by which git's server says that its repository is broken, before it sends any of the pack.
const BROKEN: &[&str] = &["corrupt", "missing", "bad object", "unable to read", "unable to parse"];

/// A try that failed and would fail again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The manifest digest of what the primary showed.
    digest: String,
    /// The settings that decide whether it can be taken in.
    settings: String,
    /// Failures in a row.
    failures: u32,
    /// When it is tried again, Unix seconds.
    until: u64,
    /// What went wrong.
    error: String,
}

/// Where another try would fail as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// On this node.
    Here,
    /// On every node with the same settings.
    Everywhere,
}

/// What is known of a repository's trouble.
#[derive(Debug, Default)]
pub(super) struct Known {
    noted: Vec<Trouble>,
    here: Option<Trouble>,
}

impl Known {
    /// What this node knows, and what the nodes have noted. A note that cannot be read counts as none.
    pub async fn read(work: &Work, repo: &Repo) -> Self {
        let words = work.mirror.bucket.note(&Note::Trouble.of(&repo.path)).await.unwrap_or_else(|e| {
            tracing::debug!(repo = %repo.path, error = e.chain(), "what others met cannot be read");
            None
        });
        let noted = words.and_then(|words| serde_json::from_slice(&words).ok());
        let mut noted: Vec<Trouble> = noted.unwrap_or_default();
        noted.truncate(MOST_TRIES);
        noted.iter_mut().for_each(|trouble| cut(&mut trouble.error));
        Self { noted, here: work.here().get(&repo.path).cloned() }
    }

    fn of(&self, digest: &str, settings: &str) -> Option<&Trouble> {
        let tries = self.here.iter().chain(&self.noted);
        tries
            .filter(|trouble| trouble.digest == digest && trouble.settings == settings)
            .max_by_key(|t| t.until)
    }

    /// The reason not to fetch what the primary shows, if there is one.
    pub fn forbids(&self, work: &Work, digest: &str) -> Option<SyncError> {
        let trouble = self.of(digest, &settings(work))?;
        let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(trouble.until))?;
        // The other node's clock may be wrong: no wait is longer than the longest that any node sets.
        let left = until.duration_since(time_of_day()).ok().filter(|left| *left <= LONGEST)?;
        (!left.is_zero()).then(|| stuck(trouble.error.clone(), until, true))
    }

    /// Takes note of `error` if another try would end the same way; gives what is said of it.
    pub async fn failed(mut self, work: &Work, repo: &Repo, digest: &str, error: SyncError) -> SyncError {
        let Some(place) = lasting(repo, &error) else { return error };
        let settings = settings(work);
        let failures = self.of(digest, &settings).map_or(0, |trouble| trouble.failures).saturating_add(1);
        let until = time_of_day() + work.patience.at_least_half(failures);
        let seconds = unix_seconds(until);
        let mut error = chain(&error);
        if place == Where::Here {
            error += ": the disk of cache_dir is too small for it";
        }
        let trouble = Trouble { digest: digest.to_owned(), settings, failures, until: seconds, error };
        let words = trouble.error.clone();
        if place == Where::Everywhere {
            self.noted.retain(|other| other.settings != trouble.settings);
            self.noted.push(trouble.clone());
            let tries = &self.noted[self.noted.len().saturating_sub(MOST_TRIES)..];
            // Strings and numbers: serialising them cannot fail.
            let note = serde_json::to_vec(tries).unwrap_or_default();
            if let Err(e) = work.mirror.bucket.rewrite_note(&Note::Trouble.of(&repo.path), note.into()).await
            {
                tracing::debug!(repo = %repo.path, error = e.chain(), "other nodes could not be told");
            }
        }
        work.here().insert(repo.path.clone(), trouble);
        stuck(words, until, false)
    }

    /// Takes note that it was taken in after all.
    pub async fn over(self, work: &Work, repo: &Repo) {
        work.here().remove(&repo.path);
        // If the note stays, it is about a state that the primary no longer has.
        if !self.noted.is_empty()
            && let Err(e) = work.mirror.bucket.remove_note(&Note::Trouble.of(&repo.path)).await
        {
            tracing::debug!(repo = %repo.path, error = e.chain(), "a note that is outdated could not be removed");
        }
    }
}

fn stuck(words: String, until: SystemTime, known: bool) -> SyncError {
    SyncError::Stuck { words, until: humantime::format_rfc3339_seconds(until).to_string(), known }
}

/// What decides whether a repository can be taken in: limits, and what this program can do.
fn settings(work: &Work) -> String {
    let limits = &work.limits;
    let version = env!("CARGO_PKG_VERSION");
    format!("limits.object={} limits.sync_memory={} version={version}", limits.object, limits.sync_memory)
}

/// Where a fetch that ended with `error` would end the same way again. None: another try may succeed.
fn lasting(repo: &Repo, error: &SyncError) -> Option<Where> {
    let halted = |halt: &Halt| matches!(halt, Halt::TooLong { .. } | Halt::TooMuch { .. });
    let everywhere = |lasts: bool| lasts.then_some(Where::Everywhere);
    match error {
        SyncError::Scratch(e)
        | SyncError::Ingest(IngestError::Scratch(e) | IngestError::Index(IndexError::Io(e))) => {
            is_full(e).then_some(Where::Here)
        }
        SyncError::Ingest(IngestError::Index(e)) => match e {
            IndexError::Base { .. } => None,
            IndexError::Costs { halt, .. } | IndexError::Halted(halt) => everywhere(halted(halt)),
            _ => Some(Where::Everywhere),
        },
        SyncError::Ingest(IngestError::Graph(BuildError::Halted(halt))) => everywhere(halted(halt)),
        SyncError::Ingest(IngestError::Graph(e)) => everywhere(e.is_about_the_pack()),
        // Its server gave up, after it had sent a part of the pack or because of what it has.
        SyncError::Primary(PrimaryError::Remote(words)) => {
            let begun = repo.progress().received().load(std::sync::atomic::Ordering::Relaxed) > 0;
            everywhere(begun || BROKEN.iter().any(|broken| words.contains(broken)))
        }
        _ => None,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::path::RepoPath;

    #[test]
    fn what_would_fail_again_is_told_from_what_may_pass() {
        let repo = Repo::new(RepoPath::parse("a").unwrap());
        let ingest = |e: IndexError| SyncError::Ingest(e.into());
        let large = IndexError::TooLarge { offset: 12, size: 2, most: 1 };
        let remote = |words: &str| SyncError::Primary(PrimaryError::Remote(words.into()));
        let cases = [
            (ingest(large), Some(Where::Everywhere)),
            (ingest(IndexError::Halted(Halt::TooLong { most: 1 })), Some(Where::Everywhere)),
            (ingest(IndexError::Halted(Halt::Busy)), None),
            (ingest(io::Error::from(io::ErrorKind::StorageFull).into()), Some(Where::Here)),
            (ingest(io::Error::from(io::ErrorKind::UnexpectedEof).into()), None),
            (SyncError::Scratch(io::ErrorKind::QuotaExceeded.into()), Some(Where::Here)),
            (SyncError::Ingest(BuildError::Stopped.into()), None),
            (
                remote("aborting due to possible repository corruption on the remote side"),
                Some(Where::Everywhere),
            ),
            (remote("too many connections"), None),
            (SyncError::Primary(PrimaryError::Timeout(String::new())), None),
            (SyncError::Moving, None),
        ];
        for (error, expected) in cases {
            assert_eq!(lasting(&repo, &error), expected, "{error}");
        }
        repo.progress().received().store(1, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(lasting(&repo, &remote("too many connections")), Some(Where::Everywhere), "it had begun");
    }

    #[test]
    fn a_try_is_forbidden_for_the_same_state_and_settings_alone() {
        let trouble = |digest: &str, settings: &str, until| Trouble {
            digest: digest.into(),
            settings: settings.into(),
            failures: 1,
            until,
            error: String::new(),
        };
        let known = Known {
            noted: vec![trouble("a", "x", 5), trouble("a", "y", 9)],
            here: Some(trouble("a", "x", 7)),
        };
        assert_eq!(known.of("a", "x").unwrap().until, 7);
        assert_eq!(known.of("a", "y").unwrap().until, 9);
        assert!(known.of("b", "x").is_none() && known.of("a", "z").is_none());
    }
}
