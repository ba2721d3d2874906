//! An upload-pack request that was read, and the forms in which it is answered or passed on.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Method};

use crate::answer::reason::Reason;
use crate::git::path::{Endpoint, RepoPath};
use crate::git::response::put_error;
use crate::primary::{self, ClientHeaders};
use crate::serve::app::App;
use crate::serve::body::Sent;
use crate::serve::error::Failure;
use crate::serve::pass::{ask, client_response};

/// The protocol version a client asks for, by its `Git-Protocol` header (gitprotocol-http(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The original protocol.
    V0,
    /// The same with a version line.
    V1,
    /// Commands.
    V2,
}

impl Version {
    /// The highest version that the header names, as `determine_protocol_version_server` has it.
    pub fn of(headers: &HeaderMap) -> Self {
        let keys = headers.get_all("git-protocol").iter().flat_map(|v| v.as_bytes().split(|b| *b == b':'));
        keys.filter_map(|key| match key {
            b"version=2" => Some(Self::V2),
            b"version=1" => Some(Self::V1),
            _ => None,
        })
        .max()
        .unwrap_or(Self::V0)
    }
}

/// An upload-pack request, its body read.
pub struct Asked {
    /// The repository, canonical.
    pub path: RepoPath,
    /// The client's headers as they may go to the primary.
    pub client: ClientHeaders,
    /// The protocol version.
    pub version: Version,
    /// The body in both forms.
    pub sent: Sent,
}

impl Asked {
    /// The request for the primary, its body as it was sent.
    pub fn request(&self) -> primary::Request {
        primary::Request {
            method: Method::POST,
            repo: self.path.clone(),
            endpoint: Endpoint::UploadPack,
            query: None,
            client: self.client.clone(),
            body: primary::Body::Whole(self.sent.raw.clone()),
        }
    }
}

/// Passes an upload-pack request on with the body as it was sent.
pub async fn pass_on(app: &App, asked: &Asked, reason: Reason) -> Result<Response, Failure> {
    let answer = ask(app, asked.request(), reason).await?;
    Ok(client_response(app.grants.observe(answer)))
}

/// Tells the client in Git's own form: an `ERR` packet, which it prints as `remote error: …`.
pub fn git_error(words: &str) -> Response {
    let mut body = Vec::new();
    put_error(&mut body, words);
    upload_pack_result(Body::from(body))
}

/// A `git-upload-pack` answer with the headers that `git http-backend` gives it.
pub fn upload_pack_result(body: Body) -> Response {
    uncached(body, "application/x-git-upload-pack-result")
}

/// An answer that nobody may keep (`hdr_nocache` of http-backend.c).
pub fn uncached(body: Body, content_type: &'static str) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert("expires", http::HeaderValue::from_static("Fri, 01 Jan 1980 00:00:00 GMT"));
    headers.insert("pragma", http::HeaderValue::from_static("no-cache"));
    headers.insert("cache-control", http::HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
    headers.insert("content-type", http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_highest_version_counts() {
        let cases: [(&[&'static str], Version); 6] = [
            (&[], Version::V0),
            (&["version=1"], Version::V1),
            (&["version=2"], Version::V2),
            (&["version=1:version=2"], Version::V2),
            (&["foo=bar:version=1"], Version::V1),
            (&["version=3"], Version::V0),
        ];
        for (values, want) in cases {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("git-protocol", HeaderValue::from_static(value));
            }
            assert_eq!(Version::of(&headers), want, "{values:?}");
        }
    }
}
