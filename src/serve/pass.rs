//! Passing a request on to the primary and its answer back, as streams, with the client's own credentials.
//!
//! This is what makes the mirror never worse than the primary: whatever it cannot answer exactly, the primary answers.
//! Every pass is counted with its reason.

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use futures::TryStreamExt;
use http::{HeaderMap, Method, Version, header};
use http_body_util::BodyExt;

use crate::answer::reason::Reason;
use crate::git::path::Endpoint;
use crate::primary::{self, Denial};
use crate::serve::app::App;
use crate::serve::error::Failure;
use crate::serve::told;

/// Asks the primary and returns its answer, its body still a stream.
pub async fn pass(app: &App, request: primary::Request, reason: Reason) -> Result<Response, Failure> {
    Ok(client_response(ask(app, request, reason).await?))
}

/// The same with the primary's own response, for those who go by it.
pub async fn ask(app: &App, request: primary::Request, reason: Reason) -> Result<primary::Response, Failure> {
    told::answered("primary", reason.word());
    tracing::debug!(repo = %request.repo, endpoint = ?request.endpoint, reason = reason.word(), "passed to the primary");
    Ok(app.mirror.primary.send(request).await?)
}

/// Hands the primary's response to the client.
///
/// An answer that ends only with its connection goes on the same way: with an end of our making it would look whole,
/// also where it was cut.
pub fn client_response(answer: primary::Response) -> Response {
    let mut response = Response::new(Body::from_stream(answer.body));
    if answer.unframed {
        *response.version_mut() = Version::HTTP_10;
    }
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

/// The body of a request to be passed on, as a stream. GET and HEAD go on without one.
pub fn outbound(method: &Method, headers: &HeaderMap, body: Body) -> primary::Body {
    if is_bodiless(method) || body.is_end_stream() {
        return primary::Body::Empty;
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let pieces = TryStreamExt::map_err(body.into_data_stream(), std::io::Error::other);
    primary::Body::Stream { pieces: Box::pin(pieces), length }
}

/// Whether requests with this method have no body: servers need not look for one (RFC 9110, 9.3.1).
fn is_bodiless(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Refuses what a server behind us might read in another way than we do, before anything of it goes on. No endpoint: it is
/// not for Git.
pub async fn check(
    method: &Method,
    endpoint: Option<&Endpoint>,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<(), Failure> {
    let lengths = headers.get_all(header::CONTENT_LENGTH);
    if lengths.iter().any(|v| v.is_empty() || !v.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Err(Failure::Malformed("Content-Length is not a number".into()));
    }
    let coding = headers.get(header::CONTENT_ENCODING).map(|v| v.as_bytes());
    let smart = matches!(endpoint, Some(Endpoint::UploadPack | Endpoint::ReceivePack));
    if smart && !matches!(coding, None | Some(b"identity" | b"gzip" | b"x-gzip")) {
        return Err(Failure::Malformed("this Content-Encoding is not known; send gzip or none".into()));
    }
    if is_bodiless(method) && !body.is_end_stream() {
        // In HTTP/2 the end of an empty body may come behind its request.
        let empty = match body.frame().await {
            None => true,
            Some(Ok(frame)) => frame.data_ref().is_some_and(Bytes::is_empty) && body.is_end_stream(),
            Some(Err(_)) => false,
        };
        if !empty {
            return Err(Failure::Malformed("a GET or HEAD request must not have a body".into()));
        }
    }
    Ok(())
}
