//! What a client is told when it does not get what it asked for: a status and a sentence that says what to do next.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::answer::Failed;
use crate::git::path::BadPath;
use crate::pack::meter::Halt;
use crate::primary::{BadHeaders, PrimaryError};
use crate::telemetry::metrics as names;

/// A request that ends without Git's own answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The path is not one that any client of ours should send.
    #[error("{0}; clone http(s)://THIS-HOST/PATH-OF-THE-REPOSITORY")]
    Path(#[from] BadPath),
    /// The request is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The request is larger than the limits.
    #[error("the request is too large: {0}")]
    TooLarge(&'static str),
    /// The path is of nothing in a primary that is a directory.
    #[error(
        "not a path of a git repository, and this mirror's primary is a directory of those; clone http(s)://THIS-HOST/PATH-OF-THE-REPOSITORY"
    )]
    OnlyGit,
    /// The method is one that no proxy passes on.
    #[error("this method is not passed on")]
    Method,
    /// The primary's name leads here.
    #[error(
        "this request came back to the mirror: the primary's name leads to it. Set primary_address to the address of the primary itself"
    )]
    Loops,
    /// The client would be sent to the primary, by whose name it came.
    #[error(
        "this is not for Git, and the primary's own name leads to this mirror: set other_paths = \"pass\", and primary_address to the address of the primary itself"
    )]
    OwnName,
    /// The settings exclude the repository.
    #[error("this mirror does not serve this repository; use the primary")]
    NotSelected,
    /// The primary could not be asked, so nobody may read.
    #[error("the primary cannot be asked whether you may read this; try again later")]
    PrimaryDown(Option<Duration>),
    /// The primary is down and no credential was shown that could have a live grant.
    #[error("the primary cannot be asked; only who has just read this may read on, with the same credential")]
    WhoAreYou,
    /// More work is under way than this node takes on.
    #[error("this node is busy; try again")]
    Busy,
    /// The client's headers contradict each other or are too many.
    #[error("{0}")]
    Headers(#[from] BadHeaders),
    /// A fault of ours, logged with its cause.
    #[error("the mirror failed; try again, or use the primary")]
    Internal,
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Busy => {
                metrics::counter!(names::SHED).increment(1);
                Self::Busy
            }
            Failed::TooCostly => {
                Self::TooLarge("it needs more memory than one request may have (setting limits.memory)")
            }
            Failed::Internal => Self::Internal,
        }
    }
}

impl From<Halt> for Failure {
    fn from(halt: Halt) -> Self {
        Failed::from(halt).into()
    }
}

impl From<PrimaryError> for Failure {
    fn from(e: PrimaryError) -> Self {
        if e == PrimaryError::Loops {
            tracing::warn!(error = %e, "the primary could not be asked");
            return Self::Loops;
        }
        // That the primary does not answer is told once, and each request has its line: see `primary::health`.
        if e.is_transient() {
            tracing::debug!(error = %e, "the primary could not be asked");
        } else {
            tracing::warn!(error = %e, "the primary could not be asked");
        }
        Self::PrimaryDown(e.retry_after())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Path(BadPath::NotGit) | Self::OnlyGit => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Loops | Self::OwnName => StatusCode::LOOP_DETECTED,
            Self::Path(BadPath::Service(_)) => StatusCode::FORBIDDEN,
            Self::Path(BadPath::TooLong) => StatusCode::URI_TOO_LONG,
            Self::Path(BadPath::Refused(_)) | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotSelected => StatusCode::NOT_FOUND,
            Self::Headers(BadHeaders::TooLarge) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Headers(_) => StatusCode::BAD_REQUEST,
            Self::WhoAreYou => StatusCode::UNAUTHORIZED,
            Self::PrimaryDown(_) | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let challenge = matches!(self, Self::WhoAreYou);
        let wait = match &self {
            Self::PrimaryDown(wait) => Some(wait.unwrap_or(Duration::from_secs(5))),
            Self::Busy => Some(Duration::from_secs(2)),
            _ => None,
        };
        let mut response = Response::new(Body::from(format!("packmirror: {self}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if challenge {
            let realm = HeaderValue::from_static("Basic realm=\"packmirror, for the primary\"");
            headers.insert(header::WWW_AUTHENTICATE, realm);
        }
        if let Some(wait) = wait {
            headers.insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
        }
        response
    }
}
