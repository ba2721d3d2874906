//! What is told of each request: one line of the log when its answer has ended, and numbers.
//!
//! Handlers note what they learn ([`note`], [`answered`]) wherever they are; the notes belong to the request whose task
//! runs. Nothing secret is noted: no query, no header but an identifier of the request, no credential.
//! Elsewhere: where a request begins and ends (`count`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::git::path::{Endpoint, RepoPath, Service};
use crate::telemetry::metrics as names;

/// The headers in which clients and load balancers name a request, the strongest first.
const IDS: [&str; 2] = ["x-request-id", "x-gitaly-correlation-id"];
/// The header in which the answer names it.
pub const ID: &str = "x-request-id";
/// The longest name that is taken over.
const LONGEST_ID: usize = 64;

tokio::task_local! {
    static TOLD: Arc<Told>;
}

/// What is known of one request.
#[derive(Debug)]
pub struct Told {
    id: String,
    /// Whether the client or a load balancer knows it.
    given: bool,
    facts: Mutex<Facts>,
}

/// What handlers have learnt of a request.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The repository, canonical.
    pub repo: Option<RepoPath>,
    /// What it is: one of few words.
    pub kind: &'static str,
    /// Who answers: `bucket`, `primary`, or this node itself.
    pub source: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Objects in the pack that is sent.
    pub objects: Option<u64>,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// None: the client left before there was an answer.
    pub status: Option<u16>,
    /// Bytes of its body.
    pub bytes: u64,
    /// Until the first byte of the body, or the head of an answer without one.
    pub first: Option<Duration>,
    /// Until the last.
    pub total: Duration,
    /// The body was sent to its end.
    pub whole: bool,
}

impl Told {
    /// Begins with the identifier that the client or a load balancer gave, or a new one.
    pub fn of(headers: &HeaderMap) -> Arc<Self> {
        let said = IDS.iter().filter_map(|name| headers.get(*name)?.to_str().ok()).find(|id| is_sane(id));
        let given = said.is_some();
        let id = said.map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
        let facts = Facts { repo: None, kind: "other", source: "node", reason: "", objects: None };
        Arc::new(Self { id, given, facts: Mutex::new(facts) })
    }

    /// Runs a handler whose notes are about this request.
    pub async fn during<F: Future>(self: &Arc<Self>, handler: F) -> F::Output {
        TOLD.scope(Arc::clone(self), handler).await
    }

    /// The identifier as a header of the answer, for those who gave one: git's own answers have no such header.
    pub fn id(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.id).ok().filter(|_| self.given)
    }

    /// Writes the line and the numbers.
    pub fn end(&self, end: End) {
        let Facts { repo, kind, source, reason, objects } = self.facts().clone();
        let End { status, bytes, first, total, whole } = end;
        let repo = repo.as_ref().map(RepoPath::as_str);
        let milliseconds = |time: Duration| time.as_millis() as u64;
        let (first_ms, total_ms) = (first.map(milliseconds), milliseconds(total));
        let ended = if whole { "whole" } else { "cut" };
        tracing::info!(
            id = self.id,
            repo,
            kind,
            source,
            reason,
            status,
            objects,
            bytes,
            first_ms,
            total_ms,
            ended,
            "answered"
        );
        metrics::counter!(names::ANSWER_BYTES, "source" => source).increment(bytes);
        if let Some(first) = first {
            metrics::histogram!(names::FIRST_BYTE_SECONDS, "kind" => kind, "source" => source)
                .record(first.as_secs_f64());
        }
        if whole {
            metrics::histogram!(names::ANSWER_SECONDS, "kind" => kind, "source" => source)
                .record(total.as_secs_f64());
        }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes something about the request that this task answers.
pub fn note(change: impl FnOnce(&mut Facts)) {
    // An error says that it is nobody's request: a test of a handler.
    let _ = TOLD.try_with(|told| change(&mut told.facts()));
}

/// Notes which part of which repository is asked for.
pub fn asked(repo: &RepoPath, endpoint: &Endpoint) {
    note(|facts| {
        facts.repo = Some(repo.clone());
        facts.kind = kind(endpoint);
    });
}

/// Notes who answers and why, and counts it.
pub fn answered(source: &'static str, reason: &'static str) {
    metrics::counter!(names::ANSWERS, "source" => source, "reason" => reason).increment(1);
    note(|facts| (facts.source, facts.reason) = (source, reason));
}

fn kind(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint::InfoRefs(Some(Service::ReceivePack)) => "push-refs",
        Endpoint::InfoRefs(_) => "refs",
        Endpoint::UploadPack => "fetch",
        Endpoint::ReceivePack => "push",
        Endpoint::Plain(path) if path.starts_with("info/lfs/") => "lfs",
        Endpoint::Plain(path) if path == "git-upload-archive" => "archive",
        Endpoint::Plain(_) => "file",
    }
}

/// Whether a name from outside may stand in the log and in an answer.
fn is_sane(id: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+/=".contains(&byte);
    (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(fine)
}

/// Measures one answer.
#[derive(Debug)]
pub struct Watch {
    told: Arc<Told>,
    begun: Instant,
    end: End,
    silent: bool,
}

impl Watch {
    /// Begins with the request's head. Of a `silent` one nothing is told.
    pub fn begin(told: Arc<Told>, silent: bool) -> Self {
        let end = End { status: None, bytes: 0, first: None, total: Duration::ZERO, whole: false };
        Self { told, begun: Instant::now(), end, silent }
    }

    /// Notes the answer's head.
    pub fn head(&mut self, status: u16) {
        self.end.status = Some(status);
    }

    /// Notes bytes of the body that go out.
    pub fn bytes(&mut self, n: usize) {
        self.end.bytes += n as u64;
        self.end.first.get_or_insert_with(|| self.begun.elapsed());
    }

    /// How many bytes of the body went out.
    pub fn sent(&self) -> u64 {
        self.end.bytes
    }

    /// Notes that the body is whole.
    pub fn whole(&mut self) {
        self.end.whole = true;
        self.end.first.get_or_insert_with(|| self.begun.elapsed());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.silent {
            self.told.end(End { total: self.begun.elapsed(), ..self.end });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_requests_are_taken_over_if_they_are_sane() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_static(value));
            }
            Told::of(&headers).id.clone()
        };
        assert_eq!(of(&[("x-request-id", "01H:a/b+c=_-.")]), "01H:a/b+c=_-.");
        assert_eq!(of(&[("x-gitaly-correlation-id", "g"), ("x-request-id", "x")]), "x");
        assert_eq!(of(&[("x-gitaly-correlation-id", "g"), ("x-request-id", "a b")]), "g");
        let long = "x".repeat(LONGEST_ID + 1).leak();
        for bad in [&*long, "", "a\"b", "a,b", "<script>"] {
            let own = of(&[("x-request-id", bad)]);
            assert!(own.len() == 16 && own.bytes().all(|byte| byte.is_ascii_hexdigit()), "{own}");
        }
        assert_ne!(of(&[]), of(&[]));
    }

    #[tokio::test]
    async fn notes_belong_to_the_request_that_runs() {
        let told = [Told::of(&HeaderMap::new()), Told::of(&HeaderMap::new())];
        let repo = RepoPath::parse("team/app.git").unwrap();
        told[0].during(async { asked(&repo, &Endpoint::Plain("info/lfs/objects/batch".into())) }).await;
        told[1].during(async { answered("bucket", "fetch") }).await;
        answered("bucket", "refs");
        let facts = told.map(|told| told.facts().clone());
        assert_eq!((facts[0].kind, facts[0].repo.as_ref(), facts[0].source), ("lfs", Some(&repo), "node"));
        assert_eq!((facts[1].kind, facts[1].source, facts[1].reason), ("other", "bucket", "fetch"));
    }
}
