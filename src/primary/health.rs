//! Whether the primary answers: told once when trouble begins and once when it ends, whoever asked.
//!
//! Trouble is what a client or a repository cannot cause alone: no connection, silence, a gateway's error; and not before
//! several answers in a row were such. Every request is counted with its outcome.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::{Outgoing, PrimaryError, Response};
use crate::git::path::{Endpoint, Service};
use crate::telemetry::metrics as names;

/// So many failures in a row, with no answer between them, are trouble of the primary's own.
const TROUBLE: u32 = 2;

/// What is known of the primary.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Since when it is in trouble.
    down: Option<Instant>,
}

/// How the primary stands after an outcome, where that is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Down,
    Up(Duration),
}

impl Health {
    /// Whether the primary is in trouble.
    pub(super) fn is_down(&self) -> bool {
        self.state().down.is_some()
    }

    /// Takes note of the outcome of one request, up to the head of its answer.
    pub(super) fn note(&self, op: &'static str, took: Duration, outcome: &Result<Response, PrimaryError>) {
        let (word, trouble) = match outcome {
            Ok(answer) => sort(answer.status),
            Err(PrimaryError::Timeout(_)) => ("timeout", true),
            Err(PrimaryError::Unreachable(_)) => ("unreachable", true),
            Err(_) => ("unusable", false),
        };
        metrics::counter!(names::PRIMARY_REQUESTS, "op" => op, "outcome" => word).increment(1);
        metrics::histogram!(names::PRIMARY_SECONDS, "op" => op, "outcome" => word).record(took.as_secs_f64());
        let news = self.state().take(trouble);
        metrics::gauge!(names::PRIMARY_UP).set(if self.is_down() { 0.0 } else { 1.0 });
        match (news, outcome) {
            (Some(News::Down), Err(error)) => tracing::warn!(%error, "the primary does not answer"),
            (Some(News::Down), Ok(answer)) => {
                tracing::warn!(status = answer.status.as_u16(), "the primary does not answer");
            }
            (Some(News::Up(lasted)), _) => tracing::warn!(?lasted, "the primary answers again"),
            (None, _) => {}
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, trouble: bool) -> Option<News> {
        if !trouble {
            self.failures = 0;
            return self.down.take().map(|since| News::Up(since.elapsed()));
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < TROUBLE || self.down.is_some() {
            return None;
        }
        self.down = Some(Instant::now());
        Some(News::Down)
    }
}

/// The outcome in a word, and whether it is trouble of the primary's own.
fn sort(status: StatusCode) -> (&'static str, bool) {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            ("5xx", true)
        }
        status if status.is_server_error() => ("5xx", false),
        StatusCode::TOO_MANY_REQUESTS => ("429", false),
        status if status.is_client_error() => ("4xx", false),
        _ => ("ok", false),
    }
}

/// What a request asks for, as a label: one of few words.
pub(super) fn op(outgoing: &Outgoing) -> &'static str {
    match &outgoing.endpoint {
        Endpoint::InfoRefs(Some(Service::ReceivePack)) | Endpoint::ReceivePack => "push",
        Endpoint::InfoRefs(_) => "refs",
        Endpoint::UploadPack => "upload-pack",
        Endpoint::Plain(path) if path.starts_with("info/lfs/") => "lfs",
        Endpoint::Plain(_) => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_once_and_so_is_its_end() {
        let mut state = State::default();
        assert_eq!(state.take(true), None, "one failure may be anybody's");
        assert_eq!(state.take(false), None);
        let news: Vec<_> = (0..5).filter_map(|_| state.take(true)).collect();
        assert_eq!(news, [News::Down]);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(state.take(false), Some(News::Up(Duration::from_secs(7))));
        assert_eq!(state.take(false), None);
    }
}
