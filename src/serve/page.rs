//! The page at `/` for people who follow a clone address into a browser: what this is, and how to clone from it.
//!
//! It holds no script and loads nothing. What comes from the request is a host name, and only if it looks like one.

use std::net::IpAddr;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, Method, header};

use crate::serve::app::App;
use crate::serve::origin;

/// Whether a browser asks for the front page.
pub fn is_wanted(parts: &Parts) -> bool {
    let accepts = parts.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    matches!(parts.method, Method::GET | Method::HEAD)
        && parts.uri.path() == "/"
        && accepts.into_iter().any(|value| value.to_ascii_lowercase().contains("text/html"))
}

/// The page.
pub fn page(app: &App, parts: &Parts) -> Response {
    let named = origin::host(app, parts).filter(|name| is_a_name(name)).unwrap_or("THIS-HOST");
    // Whoever ends TLS in front need not say so: a wrong `https` does not work, a wrong `http` shows credentials to others.
    let scheme = origin::scheme(app, parts).unwrap_or(if is_this_machine(named) { "http" } else { "https" });
    let here = format!("{scheme}://{named}/");
    let primary = app.mirror.primary.web().map(|url| url.as_str().trim_end_matches('/').to_owned());
    let text = html(&here, primary.as_deref());
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn html(here: &str, primary: Option<&str>) -> String {
    let here = escaped(here);
    let (of, how) = match primary.map(escaped) {
        Some(primary) => (
            format!("<a href=\"{primary}/\">{primary}</a>"),
            format!(
                "<p>Let git take everything of that host from here, with the same user and password or token:</p>\n\
                 <pre>git config --global url.\"{here}\".insteadOf {primary}/</pre>\n\
                 <p>Or clone a single repository:</p>\n"
            ),
        ),
        None => ("a directory of repositories".to_owned(), "<p>Clone a repository:</p>\n".to_owned()),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>packmirror</title></head>\n<body>\n\
         <h1>packmirror</h1>\n<p>This is a Git mirror of {of}. It serves clones and fetches, and passes pushes on.</p>\n\
         {how}<pre>git clone {here}PATH/OF/REPOSITORY.git</pre>\n</body>\n</html>\n"
    )
}

/// Whether a text can be a host with a port.
fn is_a_name(text: &str) -> bool {
    let of_name = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    !text.is_empty() && text.len() <= 255 && text.chars().all(of_name)
}

fn is_this_machine(name: &str) -> bool {
    let host = match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => name,
    };
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A text as it stands in HTML, also within quotation marks.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_how_and_holds_nothing_foreign() {
        let page =
            html("https://mirror.example/", Some("https://git.example/a\"><script>alert('x')</script>"));
        assert!(page.contains("url.\"https://mirror.example/\".insteadOf") && !page.contains("<script>"));
        assert!(html("https://m/", None).contains("git clone https://m/PATH"));
    }

    #[test]
    fn only_names_are_shown() {
        for name in ["mirror.example", "mirror.example:8080", "[::1]:80", "127.0.0.1"] {
            assert!(is_a_name(name), "{name}");
        }
        for name in ["", "a b", "a\"b", "<x>", "a/b", "a@b", &"x".repeat(256)] {
            assert!(!is_a_name(name), "{name}");
        }
        for (name, want) in
            [("[::1]:80", true), ("[::1]", true), ("127.0.0.1:8080", true), ("localhost", true)]
        {
            assert_eq!(is_this_machine(name), want, "{name}");
        }
        assert!(!is_this_machine("mirror.example:80") && !is_this_machine("10.0.0.1"));
    }
}
