//! Is there a Git host at the primary's address? For whoever has to tell an operator, before a repository is named.
//!
//! Many hosts answer alike to strangers and to those who ask for what is not there, so not every address can be judged. Sure are:
//! hosts that are known by name or interface ([`super::host`]), the headers of git's own `http-backend` and of JGit, and servers that
//! do with a request what no Git host does. No credential is sent. Elsewhere: what a named repository answers (`client`).

use std::time::{Duration, SystemTime};

use bstr::ByteSlice;
use http::header::{CONTENT_TYPE, DATE, EXPIRES, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use tokio::time::timeout;

use super::answer::{self, ADVERTISEMENT, REQUEST};
use super::body::collect;
use super::client::{common_headers, too_late};
use super::{Body, Line, Location, Naming, Outgoing, Pieces, Primary, PrimaryError, Response, directory};
use crate::git::path::{Endpoint, RepoPath, Service};

/// A repository that nobody has.
const NOBODYS: &str = "packmirror-doctor/no-such-repository.git";

/// The date by which git's `http-backend` and JGit forbid to keep an answer (http-backend.c, `hdr_nocache`).
const LONG_AGO: &str = "Fri, 01 Jan 1980 00:00:00 GMT";

/// What the pages say that web servers make themselves for what they do not have.
const OWN_PAGES: &[(&str, &str)] = &[
    ("<hr><center>nginx", "nginx"),
    ("<hr><center>openresty", "openresty"),
    ("<address>Apache/", "Apache"),
    ("Nothing matches the given URI", "a server of files"),
];

/// The longest page that is looked at.
const MOST_PAGE: usize = 16 * 1024;

/// What was found at the primary's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// What answers there.
    pub answers: Answers,
    /// How far its clock is ahead of ours, in seconds; negative: behind. None where it does not say.
    pub clock_ahead: Option<i64>,
}

/// What answers at the primary's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// A Git host, and how that is known.
    Git(&'static str),
    /// A directory with repositories.
    Repositories,
    /// A directory without any.
    NoRepositories,
    /// A server that is no Git host, and what it did.
    NotGit(String),
    /// A server that sends Git's requests elsewhere.
    Moved(String),
    /// A server that may be one; what it did.
    Unknown(String),
}

impl Primary {
    /// Looks what is at the primary's address. An error: nothing answers, or it is in trouble.
    pub async fn examine(&self) -> Result<Examined, PrimaryError> {
        match &self.settings().location {
            Location::Directory(root) => {
                let root = root.canonicalize().unwrap_or_else(|_| root.clone());
                let looked = crate::threads::spawn_blocking(move || directory::has_any(&root)).await;
                let any = match looked {
                    Ok(Ok(any)) => any,
                    Ok(Err(error)) => {
                        return Err(PrimaryError::Unreachable(format!("it cannot be read: {error}")));
                    }
                    Err(_) => return Err(PrimaryError::Unreachable("stopped".into())),
                };
                let answers = if any { Answers::Repositories } else { Answers::NoRepositories };
                Ok(Examined { answers, clock_ahead: None })
            }
            Location::Http(_) => self.examine_host().await,
        }
    }

    async fn examine_host(&self) -> Result<Examined, PrimaryError> {
        let before = SystemTime::now();
        let first = self.ask_nobody(Method::GET).await?;
        let clock_ahead = ahead(&first.headers, before, SystemTime::now());
        let done = |answers| Ok(Examined { answers, clock_ahead });
        if let Naming::AnyCase(_) = self.naming().await? {
            return done(Answers::Git("it is a host that packmirror knows"));
        }
        let status = first.status;
        if is_gits(&first.headers)
            || status == StatusCode::OK && answer::is_type(&first.headers, ADVERTISEMENT)
        {
            return done(Answers::Git("it answers as git does"));
        }
        if status.is_success() {
            let kind = answer::kind(&first.headers);
            return done(Answers::NotGit(format!("it answers {kind} where a Git host lists refs")));
        }
        if first.headers.contains_key(LOCATION)
            && let PrimaryError::Moved { to } = answer::sort(status, &first.headers)
        {
            let end = format!("{NOBODYS}/info/refs");
            return done(match to.strip_suffix(&end) {
                Some(base) => Answers::Moved(base.trim_end_matches('/').to_owned()),
                None => Answers::Unknown(format!("it redirects to {to}")),
            });
        }
        if let Some(server) = own_page(first.body).await {
            return done(Answers::NotGit(format!(
                "{server} itself answers {} where a Git host lists refs",
                status.as_u16()
            )));
        }
        // Servers of files take no such request, whatever its path; a Git host does.
        let second = self.ask_nobody(Method::POST).await?;
        if is_gits(&second.headers) {
            return done(Answers::Git("it answers as git does"));
        }
        done(match second.status.as_u16() {
            code @ (405 | 501) => {
                Answers::NotGit(format!("it answers {code} where a Git host takes requests"))
            }
            _ if first.headers.contains_key(WWW_AUTHENTICATE) => {
                Answers::Unknown(format!("it answers {} to everybody who asks", status.as_u16()))
            }
            _ => Answers::Unknown(format!("it answers {} for a repository that nobody has", status.as_u16())),
        })
    }

    /// Asks for nobody's repository as git does; trouble of the host is an error.
    async fn ask_nobody(&self, method: Method) -> Result<Response, PrimaryError> {
        let limit = self.settings().timeouts.question;
        let mut headers = HeaderMap::new();
        common_headers(&mut headers);
        let posts = method == Method::POST;
        if posts {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(REQUEST));
        }
        let repo = RepoPath::parse(NOBODYS).map_err(|bad| PrimaryError::Protocol(bad.to_string()))?;
        let outgoing = Outgoing {
            line: Line::Own,
            method,
            repo,
            endpoint: if posts {
                Endpoint::UploadPack
            } else {
                Endpoint::InfoRefs(Some(Service::UploadPack))
            },
            query: None,
            headers,
            body: if posts { Body::Whole("0000".into()) } else { Body::Empty },
        };
        let response = timeout(limit, self.exchange(outgoing)).await.map_err(|_| too_late(limit))??;
        match answer::sort(response.status, &response.headers) {
            // A server of files says so to what it does not know; it is not in trouble.
            error @ PrimaryError::ServerError { .. } if response.status != StatusCode::NOT_IMPLEMENTED => {
                Err(error)
            }
            _ => Ok(response),
        }
    }
}

/// Which web server made this page by itself: nothing behind it was asked, so no Git host.
async fn own_page(body: Pieces) -> Option<&'static str> {
    let body = collect(body, MOST_PAGE).await.ok()??;
    let has = |mark: &&(&str, &str)| body.find(mark.0).is_some();
    OWN_PAGES.iter().find(has).map(|(_, server)| *server)
}

fn is_gits(headers: &HeaderMap) -> bool {
    headers.get(EXPIRES).is_some_and(|value| value == LONG_AGO)
}

/// Seconds by which the `Date` of an answer is off the time between question and answer.
fn ahead(headers: &HeaderMap, before: SystemTime, after: SystemTime) -> Option<i64> {
    let stamp = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    // The header has whole seconds.
    let earliest = before.checked_sub(Duration::from_secs(1)).unwrap_or(before);
    Some(match (earliest.duration_since(stamp), stamp.duration_since(after)) {
        (Ok(behind), _) => -seconds(behind),
        (_, Ok(ahead)) => seconds(ahead),
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primary::testing::{Server, answer};

    #[tokio::test]
    async fn what_answers_is_judged_by_what_only_it_does() {
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: [(u16, Pairs, u16, &str); 9] = [
            (404, &[("X-Page", "nginx")], 404, "not"),
            (404, &[("Expires", LONG_AGO)], 404, "git"),
            (200, &[("Content-Type", ADVERTISEMENT)], 200, "git"),
            (200, &[("Content-Type", "text/html")], 200, "not"),
            (404, &[], 405, "not"),
            (404, &[], 501, "not"),
            (404, &[], 404, "unknown"),
            (401, &[("WWW-Authenticate", "Basic realm=\"x\"")], 401, "unknown"),
            (302, &[("Location", "https://login.example.com/")], 302, "unknown"),
        ];
        for (get, headers, post, expected) in cases {
            let server = Server::start(move |request| async move {
                let asks = request.uri().to_string().contains(NOBODYS);
                match (asks, request.method().as_str()) {
                    (true, "GET") if headers.iter().any(|(name, _)| *name == "X-Page") => {
                        answer(get, headers, "<h1>404 Not Found</h1></center><hr><center>nginx/1.26</center>")
                    }
                    (true, "GET") => answer(get, headers, ""),
                    (true, _) => answer(post, &[], ""),
                    _ => answer(404, &[], ""),
                }
            })
            .await;
            let found = server.primary_with(|_| {}).await.examine().await.unwrap();
            let word = match &found.answers {
                Answers::Git(_) => "git",
                Answers::NotGit(_) => "not",
                Answers::Unknown(_) => "unknown",
                _ => "other",
            };
            assert_eq!(word, expected, "{get} {headers:?} {post}: {found:?}");
        }
        let moved = Server::start(|request| async move {
            answer(301, &[("Location", &format!("https://new.example.com{}", request.uri()))], "")
        })
        .await;
        let found = moved.primary_with(|_| {}).await.examine().await.unwrap();
        assert_eq!(found.answers, Answers::Moved("https://new.example.com".into()));
        let down = Server::start(|_| async { answer(503, &[], "") }).await;
        let error = down.primary_with(|_| {}).await.examine().await.unwrap_err();
        assert!(matches!(error, PrimaryError::ServerError { status: 503, .. }), "{error}");
    }

    #[test]
    fn a_date_is_compared_with_the_time_of_the_question() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let off = |date: SystemTime| {
            let mut headers = HeaderMap::new();
            headers.insert(DATE, httpdate::fmt_http_date(date).parse().unwrap());
            ahead(&headers, now, now + Duration::from_secs(2)).unwrap()
        };
        assert_eq!(off(now), 0);
        assert_eq!(off(now + Duration::from_secs(62)), 60);
        assert!((-60..=-59).contains(&off(now - Duration::from_secs(61))));
        assert_eq!(ahead(&HeaderMap::new(), now, now), None);
    }
}
