//! What is not Git, on its way to the primary: pages, archives, interfaces, and connections that change their protocol.
//!
//! The path goes on as it is; everything that a client can shape has a connection of its own (`Line::Once`). Of changes of
//! protocol only WebSocket is passed on, since others (h2c) would let a client speak past whoever reads its requests.
//! Relies on: paths that were read by `git::other_path`. Elsewhere: what a tunnel's silence is (`serve`).

use tokio::io::{AsyncRead, AsyncWrite};

use ::http::{HeaderMap, Method, header};

use super::{Backend, Body, ClientHeaders, Primary, PrimaryError, Response, idle, pass};
use crate::git::other_path::OtherPath;

/// A request of a client that is not Git's.
pub struct OtherRequest {
    /// Any but CONNECT and TRACE.
    pub method: Method,
    /// Where to.
    pub path: OtherPath,
    /// The client's headers.
    pub client: ClientHeaders,
    /// The client's body.
    pub body: Body,
    /// Whether the client asks for a WebSocket.
    pub websocket: bool,
    /// Whether the client asks by the primary's own name, for which the primary may speak.
    pub own_name: bool,
}

/// The bytes of a connection that has changed its protocol, in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Says whether a request asks for a WebSocket (RFC 6455, 4.1).
pub fn asks_for_websocket(method: &Method, headers: &HeaderMap) -> bool {
    let says = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    let upgrade =
        headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    method == Method::GET && upgrade && says(header::CONNECTION, "upgrade")
}

impl Primary {
    /// Passes a request on that is not Git's, once, and gives the primary's answer, whatever its status.
    pub async fn send_other(&self, mut request: OtherRequest) -> Result<Response, PrimaryError> {
        let Backend::Http(http) = &self.0.backend else {
            return Err(PrimaryError::Settings("a directory has nothing but repositories".into()));
        };
        let watch = idle::Watch::new(self.0.settings.timeouts.idle);
        request.body = watch.over_request(request.body);
        let own_name = request.own_name;
        let response = watch.over_head(http.send_other(request)).await??;
        if response.status.is_informational() && response.tunnel.is_none() {
            return Err(PrimaryError::Protocol(format!(
                "the interim status {} as an answer",
                response.status
            )));
        }
        let strict = response.headers.get(header::STRICT_TRANSPORT_SECURITY).cloned().filter(|_| own_name);
        let mut response = pass::returned(response, &watch);
        if let Some(strict) = strict {
            response.headers.insert(header::STRICT_TRANSPORT_SECURITY, strict);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;

    #[test]
    fn only_a_websocket_is_one() {
        let asks = |method: Method, connection: &'static str, upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
            headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            asks_for_websocket(&method, &headers)
        };
        assert!(asks(Method::GET, "keep-alive, Upgrade", "WebSocket"));
        for (method, connection, upgrade) in [
            (Method::POST, "Upgrade", "websocket"),
            (Method::GET, "close", "websocket"),
            (Method::GET, "Upgrade", "h2c"),
            (Method::GET, "Upgrade, HTTP2-Settings", "websocket, h2c"),
        ] {
            assert!(!asks(method, connection, upgrade), "{connection} {upgrade}");
        }
        assert!(!asks_for_websocket(&Method::GET, &HeaderMap::new()));
    }
}
