//! A primary over HTTP(S): one origin, no redirects, nothing added to a request but what the connection needs.
//!
//! Relies on: reqwest without its decompression, cookie and redirect features, so that bodies and headers pass
//! as they are. Elsewhere: which headers travel (`pass`), silence (`idle`).

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{Method, StatusCode, Version};
use reqwest::{Certificate, Client, ClientBuilder, Url, redirect, retry};

use super::{
    Body, Duplex, Line, Location, OtherRequest, Outgoing, PrimaryError, PrimarySettings, Response, hops,
};
use crate::git::other_path::OtherPath;
use crate::text::chain;

/// Unused connections are closed after this, before most load balancers close them under a request.
const POOLED: Duration = Duration::from_secs(30);
/// Finds peers that vanished without a word.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The most unused connections of a kind.
const MOST_POOLED: usize = 64;

/// Connections to the primary, of each kind their own.
#[derive(Debug)]
pub(super) struct Http {
    base: Url,
    grants: Client,
    plain: Client,
    once: Client,
    own: Client,
    /// What requests of ours are known by when they come back.
    token: String,
}

/// Reads the file of further certificate authorities, if one is configured.
pub(super) async fn read_ca(file: Option<&Path>) -> Result<Vec<Certificate>, PrimaryError> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let pem = tokio::fs::read(file).await.map_err(|error| {
        PrimaryError::CaFile(format!("cannot read the certificate file {}: {error}", file.display()))
    })?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(PrimaryError::CaFile(format!("{} holds no PEM certificate", file.display()))),
    }
}

impl Http {
    /// Prepares pools of connections to `base`; sends nothing.
    pub(super) fn new(
        base: Url,
        ca: &[Certificate],
        settings: &PrimarySettings,
    ) -> Result<Self, PrimaryError> {
        crate::tls::provide();
        let builder = || {
            let mut builder = Client::builder()
                .redirect(redirect::Policy::none())
                // The caller, which knows what a request does, repeats it; the library never does.
                .retry(retry::never())
                .referer(false)
                .connect_timeout(settings.timeouts.connect)
                .pool_idle_timeout(POOLED)
                .pool_max_idle_per_host(MOST_POOLED)
                .tcp_keepalive(KEEPALIVE)
                .http2_keep_alive_interval(KEEPALIVE)
                .http2_adaptive_window(true)
                .tls_certs_merge(ca.iter().cloned());
            if base.scheme() == "https" {
                builder = builder.https_only(true);
            }
            if Location::Http(base.clone()).is_loopback() {
                builder = builder.no_proxy();
            }
            // A proxy would look the name up itself.
            if let (Some(host), Some(address)) = (base.host_str(), settings.address) {
                builder = builder.resolve(host, address).no_proxy();
            }
            builder
        };
        let build = |builder: ClientBuilder| {
            let built = builder.build();
            built.map_err(|error| PrimaryError::Settings(format!("cannot set up TLS: {}", chain(&error))))
        };
        Ok(Self {
            grants: build(builder())?,
            plain: build(builder())?,
            // HTTP/1 alone, since only there a request can say that it is the last one.
            once: build(builder().pool_max_idle_per_host(0).http1_only())?,
            own: build(builder())?,
            token: settings.token.clone(),
            base,
        })
    }

    fn client(&self, line: Line) -> &Client {
        match line {
            Line::Grants => &self.grants,
            Line::Plain => &self.plain,
            Line::Once => &self.once,
            Line::Own => &self.own,
        }
    }

    /// The address of a request, always below the base.
    fn url(&self, outgoing: &Outgoing) -> Result<Url, PrimaryError> {
        let mut url = self.base.clone();
        let below = self.base.path().trim_end_matches('/');
        let path = format!("{below}/{}/{}", outgoing.repo.to_url(), outgoing.endpoint.to_url());
        url.set_path(&path);
        if url.path() != path {
            return Err(PrimaryError::Settings("the path has no single spelling in a URL".into()));
        }
        url.set_query(outgoing.query().as_deref());
        Ok(url)
    }

    /// Asks for the base itself, with no headers of a client and no credential.
    pub(super) async fn reach(&self) -> Result<(), PrimaryError> {
        let asked = self.own.get(self.base.clone()).header(hops::HOPS, &self.token);
        let answer = asked.send().await.map_err(sort)?;
        match answer.status() {
            status if status.is_server_error() => Err(super::answer::sort(status, answer.headers())),
            _ => Ok(()),
        }
    }

    /// The address of what is not Git, always below the base.
    fn other_url(&self, other: &OtherPath) -> Result<Url, PrimaryError> {
        let mut url = self.base.clone();
        let below = self.base.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{below}{}", other.path()));
        if !url.path().starts_with(&format!("{below}/")) {
            return Err(PrimaryError::Settings("the path leads elsewhere".into()));
        }
        url.set_query(other.query());
        Ok(url)
    }

    /// Sends one request and gives the head of its answer; both bodies stream.
    pub(super) async fn send(&self, outgoing: Outgoing) -> Result<Response, PrimaryError> {
        let mut request = reqwest::Request::new(outgoing.method.clone(), self.url(&outgoing)?);
        *request.headers_mut() = outgoing.headers;
        if outgoing.line == Line::Once {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.execute(request, outgoing.body, outgoing.line).await
    }

    /// The same for what is not Git.
    pub(super) async fn send_other(&self, other: OtherRequest) -> Result<Response, PrimaryError> {
        let mut request = reqwest::Request::new(other.method, self.other_url(&other.path)?);
        *request.headers_mut() = other.client.all();
        if other.websocket {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        } else {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.execute(request, other.body, Line::Once).await
    }

    async fn execute(
        &self,
        mut request: reqwest::Request,
        body: Body,
        line: Line,
    ) -> Result<Response, PrimaryError> {
        let bodiless = request.method() == Method::HEAD;
        let changes = request.headers().contains_key(UPGRADE);
        hops::add(request.headers_mut(), &self.token);
        let length = body.len();
        *request.body_mut() = match body {
            Body::Empty => None,
            Body::Whole(bytes) => Some(bytes.into()),
            body @ Body::Stream { .. } => {
                if let Some(length) = length {
                    request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
                }
                Some(reqwest::Body::wrap_stream(body.into_pieces()))
            }
        };
        let answer = self.client(line).execute(request).await.map_err(sort)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if changes && status == StatusCode::SWITCHING_PROTOCOLS {
            let tunnel: Box<dyn Duplex> = Box::new(answer.upgrade().await.map_err(sort)?);
            let body = Box::pin(futures::stream::empty());
            return Ok(Response {
                status,
                headers,
                body,
                unframed: false,
                tunnel: Some(tunnel),
                asked: None,
            });
        }
        let unframed = !bodiless && is_unframed(&answer);
        let body = answer.bytes_stream().map(|piece| piece.map_err(sort));
        Ok(Response { status, headers, body: Box::pin(body), unframed, tunnel: None, asked: None })
    }
}

/// Whether an answer ends only where its connection does (RFC 9112, 6.3).
fn is_unframed(answer: &reqwest::Response) -> bool {
    let (status, headers) = (answer.status(), answer.headers());
    answer.version() < Version::HTTP_2
        && !headers.contains_key(CONTENT_LENGTH)
        && !headers.contains_key(TRANSFER_ENCODING)
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Sorts what reqwest reports; the only place that looks at its errors.
fn sort(error: reqwest::Error) -> PrimaryError {
    let error = error.without_url();
    if error.is_timeout() {
        return PrimaryError::Timeout("no connection".into());
    }
    if error.is_builder() {
        return PrimaryError::Settings(chain(&error));
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return PrimaryError::Protocol(format!("it is not HTTP ({inner})"));
        }
        cause = inner.source();
    }
    PrimaryError::Unreachable(chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::path::{Endpoint, RepoPath, Service};
    use http::HeaderMap;

    proptest::proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn every_path_arrives_as_it_is(repo in "[^\\x00-\\x1f]{1,40}") {
            if let Ok(path) = RepoPath::parse(&repo) {
                let url = url("https://git.example.com/scm", path.as_str(), Endpoint::UploadPack, None);
                let sent = url.strip_prefix("https://git.example.com/scm/").unwrap();
                let sent = sent.strip_suffix("/git-upload-pack").unwrap();
                let decoded = percent_encoding::percent_decode_str(sent).decode_utf8().unwrap();
                proptest::prop_assert_eq!(decoded.as_ref(), path.as_str());
                proptest::prop_assert!(!sent.contains(['?', '#', ' ']));
            }
        }
    }

    fn http(base: &str) -> Http {
        let location = Location::parse(base, false).unwrap();
        let Location::Http(url) = location.clone() else { panic!() };
        Http::new(url, &[], &PrimarySettings::new(location)).unwrap()
    }

    #[test]
    fn other_paths_stay_below_the_base_and_as_they_are() {
        for base in ["https://git.example.com", "https://git.example.com/scm"] {
            for path in [
                "/",
                "//evil.example/x",
                "/@evil.example",
                "/a%2Fb//c/?",
                "/%E9%25",
                "/https://evil.example/",
            ] {
                let (path, query) =
                    path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
                let url = http(base).other_url(&OtherPath::read(path, query).unwrap()).unwrap();
                let want =
                    format!("{base}{path}{}", query.map(|query| format!("?{query}")).unwrap_or_default());
                assert_eq!(url.as_str(), want);
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::seed::cases(512))]

        #[test]
        fn no_other_path_leaves_the_base_or_changes(path in "/([a/%.\\\\;@:?#\"<>^|`{}~-]|%2[eEfF5]|%[0-9a-f]{2}){0,12}") {
            let path = path.replace(['?', '#'], "");
            if let Ok(other) = OtherPath::read(&path, None) {
                let url = http("https://git.example.com/scm").other_url(&other).unwrap();
                proptest::prop_assert_eq!(url.origin().ascii_serialization(), "https://git.example.com");
                let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
                // A backslash is a slash to a URL, and nothing that leads elsewhere.
                let (sent, came) = (decoded(url.path()), decoded(&format!("/scm{path}").replace('\\', "/")));
                proptest::prop_assert_eq!(sent, came);
            }
        }
    }

    fn url(base: &str, repo: &str, endpoint: Endpoint, query: Option<&str>) -> String {
        let http = http(base);
        let outgoing = Outgoing {
            method: Method::GET,
            repo: RepoPath::parse(repo).unwrap(),
            endpoint,
            query: query.map(str::to_owned),
            headers: HeaderMap::new(),
            body: Body::Empty,
            line: Line::Plain,
        };
        http.url(&outgoing).unwrap().to_string()
    }

    #[test]
    fn requests_stay_below_the_base() {
        let info = || Endpoint::InfoRefs(Some(Service::UploadPack));
        let host = "https://git.example.com";
        let cases = [
            (host, "team/app.git", "https://git.example.com/team/app.git/info/refs?service=git-upload-pack"),
            (
                "https://git.example.com/scm/",
                "a/b",
                "https://git.example.com/scm/a/b/info/refs?service=git-upload-pack",
            ),
            (
                host,
                "@evil.example",
                "https://git.example.com/@evil.example/info/refs?service=git-upload-pack",
            ),
            (
                host,
                "https:/evil.example",
                "https://git.example.com/https:/evil.example/info/refs?service=git-upload-pack",
            ),
            (host, "a b/ü", "https://git.example.com/a%20b/%C3%BC/info/refs?service=git-upload-pack"),
            (host, "a?b#c", "https://git.example.com/a%3Fb%23c/info/refs?service=git-upload-pack"),
        ];
        for (base, repo, expected) in cases {
            assert_eq!(url(base, repo, info(), Some("service=git-receive-pack")), expected);
        }
        assert_eq!(
            url(host, "r", Endpoint::UploadPack, Some("x=1")),
            "https://git.example.com/r/git-upload-pack"
        );
        assert_eq!(
            url(host, "r", Endpoint::Plain("info/lfs/locks".into()), Some("path=a%20b")),
            "https://git.example.com/r/info/lfs/locks?path=a%20b"
        );
    }
}
