//! Passing a request on to the primary and its answer back, as streams, with the client's own credentials.
//!
//! This is what makes the mirror never worse than the primary: whatever it cannot answer exactly, the primary answers.
//! Every pass is counted with its reason.

use axum::body::Body;
use axum::response::Response;
use futures::TryStreamExt;
use http::{HeaderMap, Method, header};

use crate::git::path::{Endpoint, RepoPath};
use crate::primary::{self, ClientHeaders, Denial};
use crate::serve::app::App;
use crate::serve::error::Failure;
use crate::telemetry::metrics as names;

/// Why the bucket does not answer. The names are labels of the counter and are explained in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The live advertisement: only the primary knows it (strict freshness).
    Live,
    /// Pushes belong to the primary.
    Push,
    /// LFS, dumb HTTP files: not mirrored.
    OtherEndpoint,
    /// The settings exclude the repository.
    NotSelected,
    /// Nothing was published yet.
    NotYetMirrored,
    /// A wanted object is not reachable from the published refs, also after a sync.
    UnknownWant,
    /// The request uses something that this mirror leaves to the primary.
    NotOurs,
    /// The primary does not offer what the request asks for: its refusal is the answer.
    NotOffered,
    /// The bucket did not give what was needed.
    BucketDown,
    /// The answer takes more memory or work than one request may have.
    TooCostly,
}

impl Reason {
    /// The label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Push => "push",
            Self::OtherEndpoint => "other-endpoint",
            Self::NotSelected => "not-selected",
            Self::NotYetMirrored => "not-yet-mirrored",
            Self::UnknownWant => "unknown-want",
            Self::NotOurs => "not-ours",
            Self::NotOffered => "not-offered",
            Self::BucketDown => "bucket-down",
            Self::TooCostly => "too-costly",
        }
    }
}

/// Asks the primary and returns its answer, its body still a stream.
pub async fn pass(app: &App, request: primary::Request, reason: Reason) -> Result<Response, Failure> {
    Ok(client_response(ask(app, request, reason).await?))
}

/// The same with the primary's own response, for those who go by it.
pub async fn ask(app: &App, request: primary::Request, reason: Reason) -> Result<primary::Response, Failure> {
    metrics::counter!(names::ANSWERS, "source" => "primary", "reason" => reason.word()).increment(1);
    tracing::debug!(repo = %request.repo, endpoint = ?request.endpoint, reason = reason.word(), "passed to the primary");
    Ok(app.mirror.primary.send(request).await?)
}

/// Hands the primary's response to the client.
pub fn client_response(answer: primary::Response) -> Response {
    let mut response = Response::new(Body::from_stream(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

/// Hands the primary's refusal to the client, as it is.
pub fn denial_response(denial: Denial) -> Response {
    let mut response = Response::new(Body::from(denial.body));
    *response.status_mut() = denial.status;
    *response.headers_mut() = denial.headers;
    response
}

/// A request to be passed on with its body as a stream.
pub fn outbound(
    method: Method,
    repo: &RepoPath,
    endpoint: &Endpoint,
    query: Option<&str>,
    headers: &HeaderMap,
    client: ClientHeaders,
    body: Body,
) -> primary::Request {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let has_body = length.is_some_and(|n: u64| n > 0) || headers.contains_key(header::TRANSFER_ENCODING);
    let body = if has_body || (method != Method::GET && method != Method::HEAD) {
        let pieces = body.into_data_stream().map_err(std::io::Error::other);
        primary::Body::Stream { pieces: Box::pin(pieces), length }
    } else {
        primary::Body::Empty
    };
    primary::Request {
        method,
        repo: repo.clone(),
        endpoint: endpoint.clone(),
        query: query.map(str::to_owned),
        client,
        body,
    }
}
