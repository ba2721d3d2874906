//! What is not Git: passed on to the primary, sent there, or refused, as `other_paths` says.
//!
//! Passed on, the mirror can stand under the primary's own name: pages, archives, interfaces and WebSockets work as before. Then
//! nothing of the mirror's own is to be seen beside `/livez`, `/readyz` and `/metrics`, since any path could be one of the
//! primary's; otherwise a browser at `/` gets a page that says what this is.
//! Elsewhere: which paths these are (`git::other_path`), the connection to the primary (`primary`), the page (`page`).

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};

use crate::answer::reason::Reason;
use crate::config::OtherPaths;
use crate::git::other_path::OtherPath;
use crate::git::path::BadPath;
use crate::primary::{OtherRequest, asks_for_websocket};
use crate::serve::app::App;
use crate::serve::error::Failure;
use crate::serve::origin;
use crate::serve::page;
use crate::serve::pass::{check, client_response, outbound};
use crate::serve::told;
use crate::serve::tunnel;
use crate::telemetry::metrics as names;

/// Answers a request that is not for Git; `bad` says why it is not.
pub async fn answer(app: &App, mut parts: Parts, mut body: Body, bad: BadPath) -> Result<Response, Failure> {
    check(&parts.method, None, &parts.headers, &mut body).await?;
    if matches!(parts.method, Method::TRACE | Method::CONNECT) {
        return Err(Failure::Method);
    }
    let mode = app.terms.other_paths;
    if mode != OtherPaths::Pass && page::is_wanted(&parts) {
        return Ok(page::page(app, &parts));
    }
    if mode == OtherPaths::Refuse {
        return Err(bad.into());
    }
    let path = OtherPath::read(parts.uri.path(), parts.uri.query())?;
    match mode {
        OtherPaths::Pass => pass(app, &mut parts, path, body).await,
        _ => redirect(app, &parts, &path),
    }
}

/// Passes a request on as a stream, and its answer back.
async fn pass(app: &App, parts: &mut Parts, path: OtherPath, body: Body) -> Result<Response, Failure> {
    let Some(base) = app.mirror.primary.web() else { return Err(Failure::OnlyGit) };
    let own_name = origin::host(app, parts).is_some_and(|name| is_own_name(base, name));
    let place = Arc::clone(&app.others).try_acquire_owned().map_err(|_| {
        metrics::counter!(names::SHED).increment(1);
        Failure::Busy
    })?;
    let client = origin::client(app, parts)?;
    let websocket = tunnel::is_possible(parts) && asks_for_websocket(&parts.method, &parts.headers);
    told::answered("primary", Reason::NotGit.word());
    // Without its path: hosts put secrets into addresses, of invitations for example.
    tracing::debug!(method = %parts.method, "passed to the primary, since it is not for git");
    let method = parts.method.clone();
    let body = outbound(&method, &parts.headers, body);
    let request = OtherRequest { method, path, client, body, websocket, own_name };
    let mut answer = app.mirror.primary.send_other(request).await?;
    if let Some(far) = answer.tunnel.take() {
        return Ok(tunnel::begin(parts, answer, far, place));
    }
    // Held until the body has ended, or is given up.
    answer.body = Box::pin(answer.body.inspect(move |_| _ = &place));
    Ok(client_response(answer))
}

/// Sends the client to the same path at the primary: always below its configured address.
fn redirect(app: &App, parts: &Parts, path: &OtherPath) -> Result<Response, Failure> {
    let base = app.mirror.primary.web().ok_or(Failure::OnlyGit)?;
    if origin::host(app, parts).is_some_and(|name| is_own_name(base, name)) {
        return Err(Failure::OwnName);
    }
    let query = path.query().map(|query| format!("?{query}")).unwrap_or_default();
    let to = format!("{}{}{query}", base.as_str().trim_end_matches('/'), path.path());
    let to = HeaderValue::from_str(&to).map_err(|_| BadPath::Refused("it is not ASCII"))?;
    let mut response =
        Response::new(Body::from("packmirror: only Git is served here; the rest is at the primary\n"));
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, to);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Whether a host, with a port or without, is the primary's own name.
fn is_own_name(base: &url::Url, name: &str) -> bool {
    let named = url::Url::parse(&format!("{}://{name}/", base.scheme()));
    named.is_ok_and(|named| named.host() == base.host() && named.port() == base.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primarys_own_name_is_known_in_all_spellings() {
        let base = url::Url::parse("https://git.example.com/scm").unwrap();
        for name in ["git.example.com", "GIT.example.com:443"] {
            assert!(is_own_name(&base, name), "{name}");
        }
        for name in ["git.example.com:8443", "mirror.example.com", "git.example.com.evil.example", "", "a b"]
        {
            assert!(!is_own_name(&base, name), "{name}");
        }
    }
}
