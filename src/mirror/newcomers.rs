//! How many repositories a node takes up because clients ask for them: so many a minute, and so many in all.
//!
//! Any client that can read a repository of the primary can have it mirrored; what that costs is bounded here. Requests
//! over the bound are passed on to the primary, counted, and mentioned in the log now and then.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::git::path::RepoPath;
use crate::telemetry::metrics as names;

/// How often the log mentions that repositories are not taken up.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Counts repositories that are new here.
pub struct Newcomers {
    per_minute: f64,
    most: usize,
    state: Mutex<State>,
}

struct State {
    /// How many may come now, at `at`.
    room: f64,
    at: Instant,
    /// Refused since the log said so last.
    refused: u64,
    told: Option<Instant>,
}

impl Newcomers {
    /// Lets `per_minute` come a minute, and `most` be there in all.
    pub fn new(per_minute: usize, most: usize) -> Self {
        let per_minute = per_minute as f64;
        let state = State { room: per_minute, at: Instant::now(), refused: 0, told: None };
        Self { per_minute, most, state: Mutex::new(state) }
    }

    /// Says whether a repository may be taken up now, `known` being there already.
    pub fn admit(&self, path: &RepoPath, known: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let earned = now.duration_since(state.at).as_secs_f64() * self.per_minute / 60.0;
        (state.room, state.at) = ((state.room + earned).min(self.per_minute), now);
        let reason = if known >= self.most { "max_repositories" } else { "max_new_per_minute" };
        if known < self.most && state.room >= 1.0 {
            state.room -= 1.0;
            return true;
        }
        metrics::counter!(names::NEW_REFUSED, "reason" => reason).increment(1);
        state.refused += 1;
        if state.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            let since_last = std::mem::take(&mut state.refused);
            tracing::warn!(repo = %path, setting = reason, since_last, known,
                "a repository is not taken up: too many new ones; it is passed through");
            state.told = Some(now);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_a_minute_and_so_many_in_all() {
        let path = RepoPath::parse("a").unwrap();
        let newcomers = Newcomers::new(3, 10);
        let admitted = |known| (0..20).filter(|_| newcomers.admit(&path, known)).count();
        assert_eq!(admitted(0), 3);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(admitted(0), 1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(admitted(10), 0, "there are enough");
        assert_eq!(admitted(9), 3, "no more than a minute's worth is saved up");
    }
}
