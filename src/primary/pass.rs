//! Which headers travel between a client and the primary, in each direction.
//!
//! A client's headers go on as they came, since hosts take credentials in headers of their own making, but for
//! two kinds: those of one connection (RFC 9110, 7.6.1), and those by which a reverse proxy tells its backend who
//! or where a client is, or what it really asked for. The primary may trust us as such a proxy, so a
//! client that could send them through us could name itself, or let us ask about one repository while
//! the primary answers about another.
//! Relies on: header names being lower case (the `http` crate), the server in front having parsed one request.
//! Elsewhere: what the values grant (`grants`), the service credential (`credential`), paths (`git::path`).

use std::fmt;
use std::sync::{Arc, LazyLock};

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::hops::HOPS;
use super::idle::Watch;
use super::{Body, Line, Request, Response};
use crate::git::path::Endpoint;

/// The most headers a client may send.
pub const MOST_HEADERS: usize = 100;
/// The most bytes of header names and values a client may send.
pub const MOST_HEADER_BYTES: usize = 32 * 1024;

/// Headers of one connection, never passed on in either direction.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Request headers that we make ourselves or that the primary may never receive from a client. Compared with
/// `_` read as `-`, since many servers do not tell them apart.
const NEVER_SENT: [&str; 44] = [
    // Made anew for our own connection.
    "host",
    "content-length",
    "expect",
    "max-forwards",
    "http2-settings",
    "packmirror-hops",
    // Who the client is or where it comes from, in the words of reverse proxies and single sign-on gates.
    "forwarded",
    "via",
    "client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-real-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-originating-ip",
    "remote-user",
    "remote-name",
    "remote-email",
    "remote-groups",
    "x-remote-user",
    "x-remote-group",
    "x-remote-groups",
    "x-user",
    "x-email",
    "x-authenticated-user",
    "x-authenticated-userid",
    "x-authenticated-email",
    "x-authenticated-groups",
    "x-verified-user",
    "x-client-cert",
    "x-client-dn",
    "x-client-verify",
    "client-cert",
    "client-cert-chain",
    // What was really asked for.
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Families of the same kind.
const NEVER_SENT_PREFIXES: [&str; 9] = [
    "x-forwarded",
    "x-webauth-",
    "x-auth-request-",
    "x-ssl-",
    "ssl-client-",
    "x-goog-authenticated-user-",
    "x-goog-iap-",
    "x-ms-client-principal",
    "x-accel-",
];

/// Request headers that say nothing about who asks: not part of a grant's key, not sent with its question.
const HARMLESS: [&str; 25] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-encoding",
    "content-type",
    "date",
    "dnt",
    "git-protocol",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "pragma",
    "priority",
    "range",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-amzn-trace-id",
    "x-correlation-id",
    "x-request-id",
    "x-b3-traceid",
];

/// Response headers that would speak for the primary's host name about ours.
const NEVER_RETURNED: [&str; 4] =
    ["alt-svc", "strict-transport-security", "public-key-pins", "public-key-pins-report-only"];

/// Request headers by which an answer may come without its body.
const CONDITIONS: [&str; 6] =
    ["if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "range"];

/// Request headers that must come once: two servers might pick different ones.
static ONCE: LazyLock<[HeaderName; 6]> = LazyLock::new(|| {
    [
        header::AUTHORIZATION,
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        HeaderName::from_static("git-protocol"),
    ]
});

/// A client's headers as they may go to the primary. Cheap to clone; `Debug` shows names only.
#[derive(Clone, Default)]
pub struct ClientHeaders {
    /// Its own.
    own: Arc<HeaderMap>,
    /// What we say of where it came from and through which mirrors. The primary may go by it, so it is part of a grant's key.
    origin: Arc<HeaderMap>,
}

impl ClientHeaders {
    /// No headers: an anonymous client.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sorts a request's headers; an error is the client's fault and nothing was sent anywhere.
    pub fn of(headers: &HeaderMap) -> Result<Self, BadHeaders> {
        check_size(headers)?;
        for name in ONCE.iter() {
            if headers.get_all(name).iter().nth(1).is_some() {
                return Err(BadHeaders::Twice(name.as_str().to_owned()));
            }
        }
        if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
            return Err(BadHeaders::TwoLengths);
        }
        let named = named_by_connection(headers);
        let mut kept = HeaderMap::with_capacity(headers.len());
        for (name, value) in headers {
            if is_hop_by_hop(name) || named.contains(name) || is_never_sent(name) {
                continue;
            }
            let mut value = value.clone();
            value.set_sensitive(!is_harmless(name));
            kept.append(name, value);
        }
        // HTTP/2 may send a cookie in parts, which HTTP/1 may not (RFC 9113, 8.2.3).
        let cookies: Vec<_> = kept.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if cookies.len() > 1
            && let Ok(mut whole) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
        {
            whole.set_sensitive(true);
            kept.insert(header::COOKIE, whole);
        }
        let hops = headers.get_all(HOPS).iter().map(|value| (HOPS, value.clone())).collect_appended();
        Ok(Self { own: Arc::new(kept), origin: Arc::new(hops) })
    }

    /// The same, with what is known of where the client came from.
    pub fn from_there(mut self, origin: HeaderMap) -> Self {
        let all = self.origin.iter().map(|(name, value)| (name.clone(), value.clone()));
        let more = origin.iter().map(|(name, value)| (name.clone(), value.clone()));
        self.origin = Arc::new(all.chain(more).collect_appended());
        self
    }

    /// One header, if it was sent and may be passed on.
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.own.get(name)
    }

    /// All that is passed on.
    pub(super) fn all(&self) -> HeaderMap {
        let all = self.own.iter().chain(self.origin.iter());
        all.map(|(name, value)| (name.clone(), value.clone())).collect_appended()
    }

    /// The part that may say who asks, for a question of our own in the client's name.
    pub(super) fn identity(&self) -> HeaderMap {
        let of_identity = self.own.iter().filter(|(name, _)| !is_harmless(name));
        of_identity
            .chain(self.origin.iter())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect_appended()
    }

    /// Feeds that part into a hash, unambiguously: names sorted, values in their order, all with their lengths.
    pub(super) fn write_identity(&self, mut write: impl FnMut(&[u8])) {
        let identity = self.identity();
        let mut names: Vec<&HeaderName> = identity.keys().collect();
        names.sort_by_key(|name| name.as_str());
        let mut part = |bytes: &[u8]| {
            write(&(bytes.len() as u64).to_be_bytes());
            write(bytes);
        };
        for name in names {
            part(name.as_str().as_bytes());
            let values = identity.get_all(name);
            part(&(values.iter().count() as u64).to_be_bytes());
            values.iter().for_each(|value| part(value.as_bytes()));
        }
    }
}

impl fmt::Debug for ClientHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.own.keys()).finish()
    }
}

/// Collects pairs without losing repeated names.
trait CollectAppended {
    fn collect_appended(self) -> HeaderMap;
}

impl<I: Iterator<Item = (HeaderName, HeaderValue)>> CollectAppended for I {
    fn collect_appended(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }
}

/// Headers of a client that are not passed on at all; the texts may be shown to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeaders {
    /// Two values where one decides: answer 400.
    #[error("the header {0} was sent twice")]
    Twice(String),
    /// `Transfer-Encoding` and `Content-Length` together, the way requests are smuggled: answer 400.
    #[error("the request gives its length in two ways")]
    TwoLengths,
    /// Above [`MOST_HEADERS`] or [`MOST_HEADER_BYTES`]: answer 431.
    #[error("the request's headers are too large")]
    TooLarge,
}

fn check_size(headers: &HeaderMap) -> Result<(), BadHeaders> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > MOST_HEADERS || bytes > MOST_HEADER_BYTES {
        return Err(BadHeaders::TooLarge);
    }
    Ok(())
}

/// The primary's answer as it may go to a client, under watch.
pub(super) fn returned(mut response: Response, watch: &Watch) -> Response {
    response.headers = response_headers(&response.headers);
    response.body = watch.over_answer(response.body);
    response
}

/// The primary's headers as they may go to a client.
pub(super) fn response_headers(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let kept = headers.iter().filter(|(name, _)| {
        !is_hop_by_hop(name) && !named.contains(name) && !NEVER_RETURNED.contains(&name.as_str())
    });
    kept.map(|(name, value)| (name.clone(), value.clone())).collect_appended()
}

/// The further hop-by-hop headers that `Connection` names.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str().replace('_', "-").as_str())
}

/// Which connections a client's request may use: shared ones only if nothing in it could be read as a second request.
pub(super) fn line(request: &Request) -> Line {
    let conditional = CONDITIONS.iter().any(|name| request.client.own.contains_key(*name));
    let plain = match (&request.method, &request.endpoint, &request.body) {
        (&Method::GET, Endpoint::InfoRefs(Some(_)), Body::Empty) => true,
        (&Method::POST, Endpoint::UploadPack, Body::Whole(body)) => {
            !request.client.own.contains_key(header::CONTENT_ENCODING) && is_plain_question(body)
        }
        _ => false,
    };
    if plain && !conditional { Line::Plain } else { Line::Once }
}

/// Whether a body is an `ls-refs` whose first line no server takes for a request's, with no line ends but git's.
fn is_plain_question(body: &[u8]) -> bool {
    let harmless = |byte: &u8| *byte == b'\n' || *byte >= b' ' && *byte != 0x7f;
    body.starts_with(b"0014command=ls-refs\n") && body.iter().all(harmless)
}

fn is_never_sent(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    NEVER_SENT.contains(&name.as_str()) || NEVER_SENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_harmless(name: &HeaderName) -> bool {
    HARMLESS.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::path::Service;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        pairs.collect_appended()
    }

    fn identity(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        ClientHeaders::of(&map(pairs)).unwrap().write_identity(|part| bytes.extend_from_slice(part));
        bytes
    }

    #[test]
    fn what_belongs_to_the_client_goes_on_and_the_rest_stays() {
        let sent = map(&[
            ("Host", "mirror.example"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Transfer-Encoding", "chunked"),
            ("Transfer_Encoding", "chunked"),
            ("Content_Length", "7"),
            ("Proxy-Authorization", "Basic cHJveHk="),
            ("Expect", "100-continue"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X_Forwarded_Host", "evil.example"),
            ("Forwarded", "for=10.0.0.1"),
            ("X-WEBAUTH-USER", "admin"),
            ("Remote_User", "admin"),
            ("X-Original-URL", "/public.git/git-upload-pack"),
            ("X-HTTP-Method-Override", "GET"),
            ("Authorization", "Basic abc"),
            ("Private-Token", "glpat"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
            ("Git-Protocol", "version=2"),
            ("Content-Type", "application/x-git-upload-pack-request"),
            ("Content-Encoding", "gzip"),
            ("User-Agent", "git/2.47.3"),
        ]);
        let headers = ClientHeaders::of(&sent).unwrap();
        let all = headers.all();
        let mut names: Vec<_> = all.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "content-encoding",
                "content-type",
                "cookie",
                "git-protocol",
                "private-token",
                "user-agent"
            ]
        );
        assert_eq!(headers.all().get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        let identity = headers.identity();
        let mut names: Vec<_> = identity.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "cookie", "private-token"]);
        assert!(identity.values().all(HeaderValue::is_sensitive));
        assert!(!format!("{headers:?}").contains("abc") && !format!("{identity:?}").contains("abc"));
    }

    #[test]
    fn every_list_is_lower_case_and_disjoint() {
        for name in HOP_BY_HOP.iter().chain(&NEVER_SENT).chain(&HARMLESS).chain(&NEVER_RETURNED) {
            assert_eq!(name.parse::<HeaderName>().unwrap().as_str(), *name);
        }
        for name in HARMLESS {
            assert!(!is_never_sent(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let twice = [("Authorization", "Basic a"), ("authorization", "Basic b")];
        assert_eq!(ClientHeaders::of(&map(&twice)).unwrap_err(), BadHeaders::Twice("authorization".into()));
        let same = [("Authorization", "Basic a"), ("Authorization", "Basic a")];
        assert!(ClientHeaders::of(&map(&same)).is_err(), "even if they agree");
        let lengths = [("Content-Length", "3"), ("Content-Length", "3")];
        assert_eq!(
            ClientHeaders::of(&map(&lengths)).unwrap_err(),
            BadHeaders::Twice("content-length".into())
        );
        let lengths = [("Transfer-Encoding", "chunked"), ("Content-Length", "3")];
        assert_eq!(ClientHeaders::of(&map(&lengths)).unwrap_err(), BadHeaders::TwoLengths);
        let mut many = HeaderMap::new();
        (0..=MOST_HEADERS).for_each(|_| {
            many.append("x-a", HeaderValue::from_static("1"));
        });
        assert_eq!(ClientHeaders::of(&many).unwrap_err(), BadHeaders::TooLarge);
        let long = "x".repeat(MOST_HEADER_BYTES);
        assert_eq!(ClientHeaders::of(&map(&[("x-a", &long)])).unwrap_err(), BadHeaders::TooLarge);
    }

    #[test]
    fn what_a_client_can_shape_shares_no_connection() {
        let listing = b"0014command=ls-refs\n0015object-format=sha1\n00010009peel\n0000";
        let whole = |bytes: &[u8]| Body::Whole(bytes.to_vec().into());
        let stream = || Body::Stream { pieces: Box::pin(futures::stream::empty()), length: Some(0) };
        let info = |service| Endpoint::InfoRefs(Some(service));
        let of = |method: Method, endpoint: Endpoint, body: Body, headers: &[(&str, &str)]| {
            let client = ClientHeaders::of(&map(headers)).unwrap();
            let repo = crate::git::path::RepoPath::parse("r").unwrap();
            line(&Request { method, repo, endpoint, query: None, client, body })
        };
        let fetch = || Endpoint::UploadPack;
        assert_eq!(of(Method::GET, info(Service::UploadPack), Body::Empty, &[("Cookie", "a")]), Line::Plain);
        assert_eq!(of(Method::GET, info(Service::ReceivePack), Body::Empty, &[]), Line::Plain);
        assert_eq!(of(Method::POST, fetch(), whole(listing), &[]), Line::Plain);
        let once = [
            of(Method::GET, info(Service::UploadPack), Body::Empty, &[("If-None-Match", "*")]),
            of(Method::GET, info(Service::UploadPack), Body::Empty, &[("Range", "bytes=0-1")]),
            of(Method::HEAD, info(Service::UploadPack), Body::Empty, &[]),
            of(Method::POST, info(Service::UploadPack), Body::Empty, &[]),
            of(Method::GET, Endpoint::InfoRefs(None), Body::Empty, &[]),
            of(Method::GET, Endpoint::Plain("HEAD".into()), Body::Empty, &[]),
            of(Method::POST, Endpoint::ReceivePack, whole(b"0000"), &[]),
            of(Method::POST, fetch(), stream(), &[]),
            of(Method::POST, fetch(), whole(listing), &[("Content-Encoding", "gzip")]),
            of(Method::POST, fetch(), whole(b"0014command=ls-refs\n0017ref-prefix a\r\nHost: x\n0000"), &[]),
            of(Method::POST, fetch(), whole(b"0013command=ls-refs0001"), &[]),
            of(Method::POST, fetch(), whole(b"0012command=fetch\n0001"), &[]),
            of(Method::POST, fetch(), whole(b"GET / HTTP/1.1\nHost: x\n\n"), &[]),
            of(Method::POST, fetch(), whole(b""), &[]),
        ];
        assert_eq!(once, [Line::Once; 14]);
    }

    #[test]
    fn identities_differ_exactly_where_clients_may() {
        let base = identity(&[("Authorization", "Basic abc")]);
        let same = [
            vec![("authorization", "Basic abc"), ("User-Agent", "other"), ("Accept", "*/*")],
            vec![("Accept-Encoding", "gzip"), ("Authorization", "Basic abc"), ("X-Forwarded-For", "1")],
        ];
        for pairs in same {
            assert_eq!(identity(&pairs), base);
        }
        let others = [
            vec![],
            vec![("Authorization", "basic abc")],
            vec![("Authorization", "Basic abC")],
            vec![("Authorization", "Basic  abc")],
            vec![("Authorization", "Basic abc=")],
            vec![("Authorization", "Bearer abc")],
            vec![("Authorization", "Basic abc"), ("Cookie", "s=1")],
            vec![("Authorization", "Basic abc"), ("Private-Token", "t")],
            vec![("X-Token", "Basic abc")],
            vec![("Cookie", "a"), ("Cookie", "b")],
            vec![("Cookie", "b"), ("Cookie", "a")],
            vec![("Cookie", "ab")],
        ];
        let mut seen = vec![base];
        for pairs in others {
            let found = identity(&pairs);
            assert!(!seen.contains(&found), "{pairs:?}");
            seen.push(found);
        }
        // The order in which different headers come says nothing.
        let (a, c) = (("Authorization", "x"), ("Cookie", "y"));
        assert_eq!(identity(&[a, c]), identity(&[c, a]));
    }

    #[test]
    fn the_primarys_headers_come_back_but_not_those_for_its_own_name() {
        let answer = map(&[
            ("WWW-Authenticate", "Basic realm=\"x\""),
            ("WWW-Authenticate", "Bearer"),
            ("Content-Type", "text/plain"),
            ("Content-Length", "3"),
            ("Retry-After", "7"),
            ("Connection", "close, X-Internal"),
            ("X-Internal", "1"),
            ("Transfer-Encoding", "chunked"),
            ("Strict-Transport-Security", "max-age=1"),
            ("Alt-Svc", "h3"),
        ]);
        let kept = response_headers(&answer);
        let mut names: Vec<_> = kept.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "content-type", "retry-after", "www-authenticate"]);
        assert_eq!(kept.get_all("www-authenticate").iter().count(), 2);
    }
}
