//! The other end: the Git host that is mirrored.
//!
//! [`Primary::send`] passes one request of a client on and streams the answer back, with the client's own
//! headers and nothing of ours. [`Primary::refs`] and [`Primary::fetch`] are our own client, for sync, with
//! the service credential. [`Grants`] asks the primary whether a client may read.
//! Relies on: one origin fixed in the settings, which no request ever leaves: redirects are not followed.
//! Everything is dropped to cancel it: dropping a [`Response`] or a [`Pack`] aborts the request behind it.
//! Elsewhere: which request is answered from where (`serve`), what is done with a pack (`work`).

mod answer;
mod body;
mod cgi;
mod client;
#[cfg(test)]
mod client_tests;
mod credential;
mod directory;
mod error;
mod examine;
mod grants;
#[cfg(test)]
mod grants_tests;
mod health;
mod hops;
mod host;
mod http;
mod idle;
mod left_out;
mod other;
mod pack_stream;
mod pass;
#[cfg(test)]
mod pass_tests;
#[cfg(test)]
pub(crate) mod played;
mod settings;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use ::http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::git::path::{Endpoint, RepoPath};

pub use body::{Body, Pieces, RequestPieces};
pub use client::{Auth, FetchSpec, Seen};
pub use credential::{BadCredential, Credential};
pub use error::PrimaryError;
pub use examine::{Answers, Examined};
pub use grants::{Denial, Grant, Grants, Refusal};
pub use hops::farm_token;
pub use host::{Interface, Naming};
pub use other::{Duplex, OtherRequest, asks_for_websocket};
pub use pack_stream::{Pack, Progress};
pub use pass::{BadHeaders, ClientHeaders, MOST_HEADER_BYTES};
pub use settings::{BadLocation, Location, PrimarySettings, Timeouts};

/// The primary, ready to be asked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Primary(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: PrimarySettings,
    backend: Backend,
    said: left_out::Said,
    health: health::Health,
}

/// Which connections (of a directory: which processes) a request may use.
///
/// HTTP/1 tells answers apart by their order alone. A server that does not read a body where none is usual takes it for the
/// next request, and the answer to that for the next answer. So what a client can shape never shares a connection with what
/// others, or grants, depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Questions for grants, and nothing else.
    Grants,
    /// Clients' requests whose bytes are those that we would write: nothing in them can be read as a second request.
    Plain,
    /// Everything else of clients: one request a connection.
    Once,
    /// Our own, with the service credential.
    Own,
}

#[derive(Debug)]
enum Backend {
    Http(http::Http),
    Directory(cgi::Cgi),
    #[cfg(test)]
    Played(Arc<dyn played::Play>),
}

/// A client's request to be passed on.
pub struct Request {
    /// GET, HEAD or POST for Git itself; others for what else a repository's path serves (LFS).
    pub method: Method,
    /// The repository.
    pub repo: RepoPath,
    /// The part of it. For [`Endpoint::InfoRefs`] the service makes the query.
    pub endpoint: Endpoint,
    /// The raw query for [`Endpoint::Plain`], without `?`.
    pub query: Option<String>,
    /// The client's headers.
    pub client: ClientHeaders,
    /// The client's body.
    pub body: Body,
}

/// Without headers' values and without the query, which may hold a token.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Request");
        shown.field("method", &self.method).field("repo", &self.repo).field("endpoint", &self.endpoint);
        shown.finish_non_exhaustive()
    }
}

/// The primary's answer, whatever its status.
pub struct Response {
    /// The primary's own.
    pub status: StatusCode,
    /// The primary's own, but for those of its connection and its host name.
    pub headers: HeaderMap,
    /// The body; dropping it aborts the request.
    pub body: Pieces,
    /// Only the end of the connection ends the body, as in HTTP/1.0: whether it is whole nobody can tell.
    pub unframed: bool,
    /// The connection, where it has changed its protocol (101).
    pub tunnel: Option<Box<dyn Duplex>>,
    /// Set only where a client's own `git-upload-pack` was answered; what [`Grants::observe`] goes by.
    asked: Option<FetchAsked>,
}

/// Who asked the primary for which repository, and when.
#[derive(Clone, Debug)]
struct FetchAsked {
    repo: RepoPath,
    client: ClientHeaders,
    at: Instant,
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// One request as a backend sends it: everything decided, nothing added after.
struct Outgoing {
    method: Method,
    repo: RepoPath,
    endpoint: Endpoint,
    query: Option<String>,
    headers: HeaderMap,
    body: Body,
    line: Line,
}

impl Outgoing {
    /// The query to send: for `info/refs` only the service, so that nothing can be read in two ways.
    fn query(&self) -> Option<String> {
        match &self.endpoint {
            Endpoint::InfoRefs(service) => service.map(|service| format!("service={}", service.name())),
            Endpoint::Plain(_) => self.query.clone(),
            Endpoint::UploadPack | Endpoint::ReceivePack => None,
        }
    }
}

impl Primary {
    /// Checks the settings and prepares connections; sends nothing.
    pub async fn open(settings: PrimarySettings) -> Result<Self, PrimaryError> {
        let backend = match &settings.location {
            Location::Http(url) => {
                let ca = http::read_ca(settings.ca_file.as_deref()).await?;
                Backend::Http(http::Http::new(url.clone(), &ca, &settings)?)
            }
            Location::Directory(root) => Backend::Directory(cgi::Cgi::open(root, settings.allow_push).await?),
        };
        if settings.credential.is_some() && matches!(settings.location, Location::Directory(_)) {
            tracing::warn!(
                "the primary is a directory and has no accounts: the service credential is not used"
            );
        }
        Ok(Self(Arc::new(Inner {
            settings,
            backend,
            said: left_out::Said::default(),
            health: health::Health::default(),
        })))
    }

    /// The primary's address as it is written into records, logs and grants; it holds no secret.
    pub fn name(&self) -> String {
        self.0.settings.location.to_string()
    }

    /// The web address below which everything of the primary lies; `None`: it is a directory.
    pub fn web(&self) -> Option<&Url> {
        match &self.0.settings.location {
            Location::Http(url) => Some(url),
            Location::Directory(_) => None,
        }
    }

    /// Says whether a request with these headers has been here before: the primary's name leads to this mirror.
    pub fn came_back(&self, headers: &HeaderMap) -> bool {
        hops::came_back(headers, &self.0.settings.token)
    }

    /// The settings it was opened with.
    pub fn settings(&self) -> &PrimarySettings {
        &self.0.settings
    }

    /// Whether the primary was found not to answer, which is told already.
    pub fn is_down(&self) -> bool {
        self.0.health.is_down()
    }

    /// Asks whether the primary is there at all: for an HTTP host any answer that is not its own trouble, for
    /// a directory that it can be read. It says nothing about repositories or credentials.
    pub async fn reach(&self) -> Result<(), PrimaryError> {
        let limit = self.0.settings.timeouts.question;
        let asked = async {
            match &self.0.backend {
                Backend::Http(http) => http.reach().await,
                Backend::Directory(cgi) => cgi.reach().await,
                #[cfg(test)]
                Backend::Played(_) => Ok(()),
            }
        };
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(client::too_late(limit)))
    }

    /// Passes a client's request on, once, and gives the primary's answer, whatever its status. Both bodies are
    /// streamed with a bounded amount in flight. An error means that there was no answer.
    pub async fn send(&self, request: Request) -> Result<Response, PrimaryError> {
        let asks = request.method == Method::POST && request.endpoint == Endpoint::UploadPack;
        let asked = asks.then(|| FetchAsked {
            repo: request.repo.clone(),
            client: request.client.clone(),
            at: Instant::now(),
        });
        let outgoing = Outgoing {
            line: pass::line(&request),
            method: request.method,
            repo: request.repo,
            endpoint: request.endpoint,
            query: request.query,
            headers: request.client.all(),
            body: request.body,
        };
        let mut response = self.exchange(outgoing).await?;
        response.asked = asked;
        Ok(response)
    }

    /// Sends to a backend and watches both directions for silence.
    async fn exchange(&self, mut outgoing: Outgoing) -> Result<Response, PrimaryError> {
        let watch = idle::Watch::new(self.0.settings.timeouts.idle);
        outgoing.body = watch.over_request(outgoing.body);
        let (op, begun) = (health::op(&outgoing), Instant::now());
        let answered = match &self.0.backend {
            Backend::Http(http) => watch.over_head(http.send(outgoing)).await,
            Backend::Directory(cgi) => watch.over_head(cgi.send(outgoing)).await,
            #[cfg(test)]
            Backend::Played(player) => watch.over_head(played::send(player, outgoing)).await,
        };
        let answered = answered.and_then(|answer| answer);
        self.0.health.note(op, begun.elapsed(), &answered);
        let response = answered?;
        if response.status.is_informational() {
            return Err(PrimaryError::Protocol(format!(
                "the interim status {} as an answer",
                response.status
            )));
        }
        Ok(pass::returned(response, &watch))
    }
}
