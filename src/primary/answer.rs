//! Sorts an answer's head: what each HTTP status means for a request of our own.
//!
//! Only a 200 of exactly the expected type is an answer; everything else is an error that says what to do.
//! Elsewhere: statuses of passed-through requests, which are the client's business.

use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, LOCATION, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use url::Url;

use super::error::plain;
use super::{PrimaryError, Response};

/// The types of git's smart answers (gitprotocol-http).
pub(super) const ADVERTISEMENT: &str = "application/x-git-upload-pack-advertisement";
/// See [`ADVERTISEMENT`].
pub(super) const REQUEST: &str = "application/x-git-upload-pack-request";
/// See [`ADVERTISEMENT`].
pub(super) const RESULT: &str = "application/x-git-upload-pack-result";

/// Lets a 200 of type `expected` through.
pub(super) fn accept(response: Response, expected: &str) -> Result<Response, PrimaryError> {
    let headers = &response.headers;
    match response.status {
        // A coding that we did not ask for is not undone: nothing bounds what it would inflate to.
        StatusCode::OK if headers.get(CONTENT_ENCODING).is_some_and(|how| how != "identity") => {
            Err(PrimaryError::Protocol("it is compressed, though nobody asked for that".into()))
        }
        StatusCode::OK if is_type(headers, expected) => Ok(response),
        StatusCode::OK => Err(PrimaryError::NotGit(format!("{} instead of {expected}", kind(headers)))),
        status => Err(sort(status, headers)),
    }
}

/// The type of an answer, to be shown.
pub(super) fn kind(headers: &HeaderMap) -> String {
    headers.get(CONTENT_TYPE).map_or_else(|| "no type".into(), |value| plain(value.as_bytes(), 80))
}

/// Whether an answer is of exactly this type.
pub(super) fn is_type(headers: &HeaderMap, expected: &str) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes() == expected.as_bytes())
}

/// What a status other than 200 means.
pub(super) fn sort(status: StatusCode, headers: &HeaderMap) -> PrimaryError {
    match status.as_u16() {
        code @ (401 | 403) => PrimaryError::Denied { status: code },
        404 | 410 => PrimaryError::NotFound,
        508 => PrimaryError::Loops,
        code @ (408 | 429 | 500..) => {
            PrimaryError::ServerError { status: code, retry_after: retry_after(headers) }
        }
        300..=399 if headers.contains_key(LOCATION) => PrimaryError::Moved { to: destination(headers) },
        code => PrimaryError::Protocol(format!("status {code}")),
    }
}

/// Where a redirect leads, without what could be a secret in it.
fn destination(headers: &HeaderMap) -> String {
    let Some(to) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else { return String::new() };
    let to = match Url::parse(to) {
        Ok(mut url) => {
            // These fail only for addresses that have no such part.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.set_fragment(None);
            url.to_string()
        }
        Err(_) => to.split(['?', '#']).next().unwrap_or_default().to_owned(),
    };
    plain(to.as_bytes(), 200)
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or a date, which is compared with the answer's own `Date`
/// so that no clock of ours matters.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text(RETRY_AFTER)?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    Some(date(value)?.duration_since(date(text(DATE)?)?).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let after = |pairs: &[(HeaderName, &str)]| retry_after(&headers(pairs)).map(|wait| wait.as_secs());
        assert_eq!(after(&[(RETRY_AFTER, "17")]), Some(17));
        let date = (DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(after(&[(RETRY_AFTER, "Sun, 06 Nov 1994 08:50:07 GMT"), date.clone()]), Some(30));
        assert_eq!(after(&[(RETRY_AFTER, "Sun, 06 Nov 1994 08:40:07 GMT"), date]), Some(0));
        let rfc850 = (RETRY_AFTER, "Sunday, 06-Nov-94 08:49:47 GMT");
        assert_eq!(after(&[rfc850, (DATE, "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(10));
        assert_eq!(after(&[(RETRY_AFTER, "Sun, 06 Nov 1994 08:49 GMT"), (DATE, "soon")]), None);
        assert_eq!(after(&[(RETRY_AFTER, "-1")]), None);
        assert_eq!(after(&[]), None);
    }

    #[test]
    fn statuses_say_what_to_do() {
        let none = HeaderMap::new();
        let sorted = |code: u16| sort(StatusCode::from_u16(code).unwrap(), &none);
        for code in [401, 403] {
            assert_eq!(sorted(code), PrimaryError::Denied { status: code });
        }
        for code in [404, 410] {
            assert_eq!(sorted(code), PrimaryError::NotFound);
        }
        for code in [408, 429, 500, 502, 503, 504, 599] {
            assert_eq!(sorted(code), PrimaryError::ServerError { status: code, retry_after: None });
        }
        for code in [204, 206, 304, 400, 405, 415, 451] {
            assert!(matches!(sorted(code), PrimaryError::Protocol(_)), "{code}");
        }
        let to = |to: &str| sort(StatusCode::MOVED_PERMANENTLY, &headers(&[(LOCATION, to)]));
        let moved = |to: &str| PrimaryError::Moved { to: to.into() };
        assert_eq!(to("https://u:canary@new.example/x?token=canary#y"), moved("https://new.example/x"));
        assert_eq!(to("/login?next=canary"), moved("/login"));
    }
}
