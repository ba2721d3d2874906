//! What the AWS chain of credentials asks STS, SSO, containers and instances with: the HTTP client that everything else uses.
//!
//! The AWS libraries bring a client of their own, with its own TLS; it would be a fifth of the program to build.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use futures::TryStreamExt;
use reqwest::{Client, redirect};

/// The longest answer that is read: credentials are a few kilobytes.
const LONGEST: usize = 1 << 20;
/// Time for an answer where the chain sets none.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client; its connections are shared by all that the chain asks.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    /// For plain HTTP: containers and instances answer at addresses of the machine's own, which no proxy reaches.
    near: Client,
    /// For HTTPS, through the proxy of the environment if there is one.
    far: Client,
}

impl Asking {
    /// Prepares the client; it sends nothing yet.
    pub(super) fn new() -> reqwest::Result<Self> {
        crate::tls::provide();
        let builder = || Client::builder().redirect(redirect::Policy::none());
        Ok(Self { near: builder().no_proxy().build()?, far: builder().https_only(true).build()? })
    }
}

impl HttpClient for Asking {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let parts = [settings.connect_timeout(), settings.read_timeout()];
        let patience = parts.into_iter().flatten().reduce(|a, b| a + b).unwrap_or(PATIENCE);
        SharedHttpConnector::new(Connector { client: self.clone(), patience })
    }
}

/// The client for one kind of question.
#[derive(Debug)]
struct Connector {
    client: Asking,
    patience: Duration,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, patience) = (self.client.clone(), self.patience);
        HttpConnectorFuture::new(ask(client, patience, request))
    }
}

async fn ask(
    client: Asking,
    patience: Duration,
    request: HttpRequest,
) -> Result<HttpResponse, ConnectorError> {
    let user = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::user(error);
    let request = request.try_into_http1x().map_err(|error| user(error.into()))?;
    let client = if request.uri().scheme_str() == Some("http") { &client.near } else { &client.far };
    let request = request.map(|body| body.bytes().map(<[u8]>::to_vec).unwrap_or_default());
    let mut request = reqwest::Request::try_from(request).map_err(|error| user(error.into()))?;
    *request.timeout_mut() = Some(patience);
    let mut answer = client.execute(request).await.map_err(sort)?;
    let mut head = http::Response::new(());
    *head.status_mut() = answer.status();
    *head.headers_mut() = std::mem::take(answer.headers_mut());
    let mut body = Vec::new();
    let mut pieces = answer.bytes_stream().map_err(sort);
    while let Some(piece) = pieces.try_next().await? {
        if body.len() + piece.len() > LONGEST {
            return Err(ConnectorError::other("the answer is longer than credentials are".into(), None));
        }
        body.extend_from_slice(&piece);
    }
    HttpResponse::try_from(head.map(|()| SdkBody::from(body))).map_err(|error| user(error.into()))
}

fn sort(error: reqwest::Error) -> ConnectorError {
    if error.is_timeout() { ConnectorError::timeout(error.into()) } else { ConnectorError::io(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(url: &str) -> Result<HttpResponse, ConnectorError> {
        let request = HttpRequest::get(url).unwrap();
        ask(Asking::new().unwrap(), Duration::from_secs(10), request).await
    }

    #[tokio::test]
    async fn an_answer_comes_back_with_status_headers_and_body() {
        let role = "/latest/meta-data/iam/security-credentials/";
        let app = axum::Router::new()
            .route(role, axum::routing::get(|| async { ([("x-kind", "role")], "packmirror") }))
            .route("/long", axum::routing::get(|| async { "x".repeat(LONGEST + 1) }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let answer = get(&format!("{base}{role}")).await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.headers().get("x-kind"), Some("role"));
        assert_eq!(answer.body().bytes(), Some(&b"packmirror"[..]));
        assert_eq!(get(&format!("{base}/none")).await.unwrap().status().as_u16(), 404);
        assert!(get(&format!("{base}/long")).await.is_err());
        server.abort();
        let _ = server.await;
        assert!(get(&base).await.unwrap_err().is_io(), "nobody listens any more");
    }
}
