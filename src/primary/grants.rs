//! Grants: the primary's yes that a credential may read a repository, and how long it is believed.
//!
//! The question is an `ls-refs` that matches no ref, posted to `git-upload-pack` with the client's own headers:
//! what a fetch would do, so hosts that ask for a password only there are asked rightly. Yes is a 200 of the
//! right type whose body is not git's `ERR`. 401, 403 and 404 go back to the client as they are; anything
//! else (redirects, errors, silence) is no answer, which denies. A yes is believed for a short time counted from
//! the moment we asked, a no never. What is kept is a keyed hash of the credential, not the credential.
//! Relies on: a monotonic clock, and connections that carry nothing but these questions ([`Line::Grants`]), so that no
//! client can make the primary say yes out of turn. Elsewhere: what needs a [`Grant`] (`mirror`), headers (`pass`).

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, Shared as SharedFuture, WeakShared};
use futures::{FutureExt, Stream, StreamExt};
use gix_hash::Kind as HashKind;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, SET_COOKIE};
use http::{Method, StatusCode};
use sha2::Sha256;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::git::ls_refs::LsRefs;
use crate::git::path::{Endpoint, RepoPath};
use crate::git::request::Command;

use super::answer::{self, REQUEST, RESULT};
use super::body::{Pieces, collect, drain};
use super::client::{common_headers, plainly, too_late};
use super::{Body, ClientHeaders, FetchAsked, Line, Outgoing, Primary, PrimaryError, Response};

/// The longest time a grant may be believed, whatever the settings say: the bound of a revocation.
pub const LONGEST_TTL: Duration = Duration::from_secs(300);
/// The most grants that are remembered; beyond that each request asks.
const MOST_GRANTS: usize = 100_000;
/// The most questions at once.
const MOST_QUESTIONS: usize = 64;
/// The longest body of a refusal that is passed on.
const MOST_REFUSAL: usize = 256 * 1024;
/// How often a question is asked anew because the grants of the repository were withdrawn while it was asked.
const MOST_WITHDRAWALS: u32 = 3;

/// The primary's yes for one credential and one repository. Only this module can make one.
#[derive(Clone, Debug)]
pub struct Grant {
    repo: RepoPath,
    asked: Instant,
    until: Instant,
}

impl Grant {
    /// The repository that may be read.
    pub fn repo(&self) -> &RepoPath {
        &self.repo
    }

    /// The same yes for the name under which the repository is kept. `mirror` alone calls this, as a test of the sources
    /// holds: it knows which spellings are one repository.
    pub fn known_as(mut self, own: RepoPath) -> Self {
        self.repo = own;
        self
    }

    /// When the primary was asked.
    pub fn asked(&self) -> Instant {
        self.asked
    }

    /// Whether a further request may go by it. The request it was given to may use it in any case.
    pub fn is_live(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Why there is no grant.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// The primary says no, or asks for credentials: pass this on as it is.
    Answer(Box<Denial>),
    /// The primary gave no answer that counts: 503, and nothing of the repository.
    Unavailable(PrimaryError),
}

/// The primary's own 401, 403 or 404.
#[derive(Clone)]
pub struct Denial {
    /// The status.
    pub status: StatusCode,
    /// Its headers, the challenge among them; without cookies, since several clients may share this answer.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl fmt::Debug for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denial").field("status", &self.status).finish_non_exhaustive()
    }
}

/// All grants of this process. Cheap to clone.
#[derive(Clone)]
pub struct Grants(Arc<Inner>);

struct Inner {
    primary: Primary,
    ttl: Duration,
    /// Made at start and never stored: the hashes mean nothing to another process.
    key: [u8; 64],
    held: Mutex<Held>,
    questions: Semaphore,
}

type Key = [u8; 32];
type Outcome = Result<Answered, Refusal>;
type Question = SharedFuture<BoxFuture<'static, Outcome>>;

/// A yes, and whether it still counted when it came.
#[derive(Clone, Copy)]
struct Answered {
    asked: Instant,
    withdrawn: bool,
}

struct Held {
    grants: HashMap<Key, (RepoPath, State)>,
    /// When the grants of a repository were last withdrawn: what was asked before does not count.
    withdrawn: HashMap<RepoPath, Instant>,
    questions: u64,
    sweep_at: usize,
}

enum State {
    Yes {
        asked: Instant,
        until: Instant,
    },
    /// Owned by the requests that wait for it: when all of them are gone, the question is dropped.
    Asking {
        number: u64,
        question: WeakShared<BoxFuture<'static, Outcome>>,
    },
}

impl Grants {
    /// Believes a yes for `ttl`, at most [`LONGEST_TTL`]; zero: each request asks.
    pub fn new(primary: Primary, ttl: Duration) -> Self {
        let held = Held { grants: HashMap::new(), withdrawn: HashMap::new(), questions: 0, sweep_at: 1024 };
        Self(Arc::new(Inner {
            primary,
            ttl: ttl.min(LONGEST_TTL),
            key: rand::random(),
            held: Mutex::new(held),
            questions: Semaphore::new(MOST_QUESTIONS),
        }))
    }

    /// Gives the grant of this client for this repository: a live one, or the primary's answer now. Equal
    /// questions at the same time are one. `hash` is the repository's, which the question has to name.
    pub async fn check(
        &self,
        repo: &RepoPath,
        client: &ClientHeaders,
        hash: HashKind,
    ) -> Result<Grant, Refusal> {
        let key = self.0.key(repo, client);
        for _ in 0..MOST_WITHDRAWALS {
            let question = match self.0.find(key, repo) {
                Found::Grant(grant) => return Ok(grant),
                Found::Question(question) => question,
                Found::Nothing => self.begin(key, repo, client, hash),
            };
            let answered = question.await?;
            if !answered.withdrawn {
                return Ok(self.0.grant(repo, answered.asked));
            }
        }
        let busy =
            PrimaryError::Unreachable("the repository's grants are being withdrawn again and again".into());
        Err(Refusal::Unavailable(busy))
    }

    /// Gives a live grant without asking the primary.
    pub fn live(&self, repo: &RepoPath, client: &ClientHeaders) -> Option<Grant> {
        match self.0.find(self.0.key(repo, client), repo) {
            Found::Grant(grant) => Some(grant),
            Found::Question(_) | Found::Nothing => None,
        }
    }

    /// Watches an answer that is passed through: if it turns out to be a yes to this client's own
    /// `git-upload-pack`, it is remembered like the answer to a question of ours. The bytes stay as they are.
    pub fn observe(&self, mut response: Response) -> Response {
        let Some(asked) = response.asked.take() else { return response };
        if response.status == StatusCode::OK && answer::is_type(&response.headers, RESULT) {
            let (grants, first) = (self.clone(), Vec::with_capacity(8));
            response.body = Box::pin(Observed { pieces: response.body, watch: Some((grants, asked, first)) });
        }
        response
    }

    /// Forgets all grants of a repository at once, and those being asked for: it was renamed, made private or
    /// deleted, or someone lost access to it.
    pub fn invalidate(&self, repo: &RepoPath) {
        let mut held = self.0.held();
        held.grants.retain(|_, (of, _)| of != repo);
        held.withdrawn.insert(repo.clone(), Instant::now());
    }

    /// Begins a question, unless another request has begun it.
    fn begin(&self, key: Key, repo: &RepoPath, client: &ClientHeaders, hash: HashKind) -> Question {
        let mut held = self.0.held();
        if let Some((_, State::Asking { question, .. })) = held.grants.get(&key)
            && let Some(question) = question.upgrade()
        {
            return question;
        }
        held.sweep();
        held.questions += 1;
        let number = held.questions;
        let (inner, of, client) = (self.0.clone(), repo.clone(), client.clone());
        let question = async move {
            let outcome = inner.ask(&of, &client, hash).await;
            inner.settle(key, number, &of, outcome)
        };
        let question = question.boxed().shared();
        if let Some(weak) = question.downgrade() {
            held.grants.insert(key, (repo.clone(), State::Asking { number, question: weak }));
        }
        question
    }
}

enum Found {
    Grant(Grant),
    Question(Question),
    Nothing,
}

impl Held {
    /// Throws away what is over, whenever the table has doubled.
    fn sweep(&mut self) {
        if self.grants.len() + self.withdrawn.len() < self.sweep_at {
            return;
        }
        let now = Instant::now();
        // Beyond this no answer is young enough to be remembered.
        self.withdrawn.retain(|_, at| *at + LONGEST_TTL > now);
        self.grants.retain(|_, (_, state)| match state {
            State::Yes { until, .. } => *until > now,
            State::Asking { question, .. } => question.upgrade().is_some(),
        });
        self.sweep_at = ((self.grants.len() + self.withdrawn.len()) * 2).max(1024);
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self, repo: &RepoPath, asked: Instant) -> Grant {
        Grant { repo: repo.clone(), asked, until: asked + self.ttl }
    }

    /// HMAC over primary, repository and everything the client sent that may say who it is.
    fn key(&self, repo: &RepoPath, client: &ClientHeaders) -> Key {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        for part in [self.primary.name().as_bytes(), repo.as_str().as_bytes()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        client.write_identity(|bytes| mac.update(bytes));
        mac.finalize().into_bytes().into()
    }

    fn find(&self, key: Key, repo: &RepoPath) -> Found {
        match self.held().grants.get(&key) {
            Some((_, State::Yes { asked, until })) if Instant::now() < *until => {
                Found::Grant(self.grant(repo, *asked))
            }
            Some((_, State::Asking { question, .. })) => {
                question.upgrade().map_or(Found::Nothing, Found::Question)
            }
            _ => Found::Nothing,
        }
    }

    /// Records a question's outcome.
    fn settle(&self, key: Key, number: u64, repo: &RepoPath, outcome: Result<Instant, Refusal>) -> Outcome {
        let mut held = self.held();
        if matches!(held.grants.get(&key), Some((_, State::Asking { number: n, .. })) if *n == number) {
            held.grants.remove(&key);
        }
        let asked = outcome?;
        let withdrawn = held.withdrawn.get(repo).is_some_and(|at| asked <= *at);
        self.remember(&mut held, key, repo, asked);
        Ok(Answered { asked, withdrawn })
    }

    /// Keeps a yes, if it is young enough and was not withdrawn after it was asked for.
    fn remember(&self, held: &mut Held, key: Key, repo: &RepoPath, asked: Instant) {
        let until = asked + self.ttl;
        let withdrawn = held.withdrawn.get(repo).is_some_and(|at| asked <= *at);
        if !withdrawn && until > Instant::now() && held.grants.len() < MOST_GRANTS {
            held.grants.insert(key, (repo.clone(), State::Yes { asked, until }));
        }
    }

    /// Asks the primary; `Ok` is a yes, with the time at which it was asked.
    async fn ask(&self, repo: &RepoPath, client: &ClientHeaders, hash: HashKind) -> Result<Instant, Refusal> {
        let limit = self.primary.settings().timeouts.question;
        let asked = timeout(limit, async {
            let closed = |_| Refusal::Unavailable(PrimaryError::Unreachable("shutting down".into()));
            let _place = self.questions.acquire().await.map_err(closed)?;
            let asked = Instant::now();
            match self.ask_once(repo, client, hash).await {
                // A connection from the pool may have died unnoticed; the question changes nothing anywhere.
                Err(Refusal::Unavailable(PrimaryError::Unreachable(_))) => {
                    let asked = Instant::now();
                    self.ask_once(repo, client, hash).await.map(|()| asked)
                }
                outcome => outcome.map(|()| asked),
            }
        });
        asked.await.unwrap_or_else(|_| Err(Refusal::Unavailable(too_late(limit))))
    }

    async fn ask_once(&self, repo: &RepoPath, client: &ClientHeaders, hash: HashKind) -> Result<(), Refusal> {
        let mut headers = client.identity();
        common_headers(&mut headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(REQUEST));
        headers.insert(ACCEPT, HeaderValue::from_static(RESULT));
        let outgoing = Outgoing {
            line: Line::Grants,
            method: Method::POST,
            repo: repo.clone(),
            endpoint: Endpoint::UploadPack,
            query: None,
            headers,
            body: Body::Whole(question(hash).into()),
        };
        let response = self.primary.exchange(outgoing).await.map_err(Refusal::Unavailable)?;
        if matches!(response.status.as_u16(), 401 | 403 | 404) {
            return Err(deny(response).await);
        }
        let mut response = answer::accept(response, RESULT).map_err(Refusal::Unavailable)?;
        let mut first = Vec::new();
        while let Some(piece) = response.body.next().await {
            first.extend_from_slice(&piece.map_err(Refusal::Unavailable)?);
            match verdict(&first) {
                Some(true) => {
                    drain(&mut response.body).await;
                    return Ok(());
                }
                Some(false) => break,
                None => {}
            }
        }
        let text = super::error::plain(first.get(4..).unwrap_or_default(), 200);
        Err(Refusal::Unavailable(PrimaryError::Protocol(format!("no yes and no no, but '{text}'"))))
    }
}

/// The smallest thing a reader may do: list the refs whose names begin with one that no ref has.
fn question(hash: HashKind) -> Vec<u8> {
    let request = LsRefs { prefixes: vec!["refs/packmirror/none/".into()], ..LsRefs::default() };
    plainly(Command::LsRefs(request), hash).encode()
}

/// Copies a refusal, for all requests that wait for it.
async fn deny(response: Response) -> Refusal {
    let (status, mut headers) = (response.status, response.headers);
    match collect(response.body, MOST_REFUSAL).await {
        Ok(body) => {
            headers.remove(SET_COOKIE);
            headers.remove(CONTENT_LENGTH);
            Refusal::Answer(Box::new(Denial { status, headers, body: body.unwrap_or_default() }))
        }
        Err(error) => Refusal::Unavailable(error),
    }
}

/// Reads from the first bytes of an `upload-pack` answer whether it is one. Some hosts (those on JGit) wrap
/// their no into a 200 with an `ERR` packet. `None`: too little was read.
fn verdict(first: &[u8]) -> Option<bool> {
    let digits = first.first_chunk::<4>()?;
    let length = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some(length) = length.and_then(|text| usize::from_str_radix(text, 16).ok()) else {
        return Some(false);
    };
    match length {
        3 => Some(false),
        0..=7 => Some(true),
        _ => Some(first.get(4..8)? != b"ERR "),
    }
}

/// An answer that passes through while its first bytes are looked at.
struct Observed {
    pieces: Pieces,
    watch: Option<(Grants, FetchAsked, Vec<u8>)>,
}

impl Stream for Observed {
    type Item = Result<Bytes, PrimaryError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let piece = std::task::ready!(self.pieces.poll_next_unpin(cx));
        if let (Some((_, _, first)), Some(Ok(piece))) = (&mut self.watch, &piece) {
            first.extend_from_slice(&piece[..piece.len().min(8)]);
            if let Some(yes) = verdict(first)
                && let Some((grants, asked, _)) = self.watch.take()
                && yes
            {
                let inner = &grants.0;
                let key = inner.key(&asked.repo, &asked.client);
                inner.remember(&mut inner.held(), key, &asked.repo, asked.at);
            }
        }
        std::task::Poll::Ready(piece)
    }
}
