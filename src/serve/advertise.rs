//! Refs and capabilities from what is published: bounded freshness, and a primary that is down.
//!
//! A client gets such an answer only with a grant, and the answer says how old it is (`packmirror-age`, seconds since the
//! primary was asked by the comparison that found it equal). Capabilities are the primary's own, as it gave them at that comparison,
//! less what this mirror leaves to the primary.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;

use crate::config::{Freshness, OnPrimaryDown};
use crate::git::advert::{V0Offer, write_service_line, write_v0};
use crate::git::caps::V2Caps;
use crate::git::ls_refs::{Listing, LsRefs, answer};
use crate::git::path::{RepoPath, Service};
use crate::mirror::snapshot::Granted;
use crate::primary::ClientHeaders;
use crate::serve::app::App;
use crate::serve::asked::{Asked, Version, uncached, upload_pack_result};
use crate::serve::send::holding;
use crate::serve::told;

/// Which occasion an answer from what is published is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Instead of asking the primary, if the settings allow it and what is published is fresh.
    Fresh,
    /// Because the primary did not answer, if the settings allow it.
    PrimaryDown,
}

/// What is published, with its age and what the primary can do.
struct Known {
    granted: Granted,
    age: Duration,
    capabilities: V2Caps,
}

/// The published state, if `when` allows to show it to this client. Anything in doubt is for the primary.
async fn known(app: &App, path: &RepoPath, client: &ClientHeaders, when: When) -> Option<Known> {
    let terms = &app.terms;
    let allowed = match when {
        When::Fresh => terms.freshness == Freshness::Bounded,
        When::PrimaryDown => terms.on_primary_down == OnPrimaryDown::ServeVerified,
    };
    if !allowed {
        return None;
    }
    let repo = app.mirror.at_hand(path)??;
    let snapshot = repo.snapshot()?;
    let (age, capabilities) = {
        let health = repo.health();
        (health.asked?.instant.elapsed(), health.capabilities.clone()?.0)
    };
    if when == When::Fresh && age > terms.max_age {
        // The comparison makes it fresh again for the next request.
        repo.ask();
        return None;
    }
    let grant = match when {
        When::Fresh => app.grants.check(path, client, snapshot.refs.hash).await.ok()?,
        When::PrimaryDown => app.grants.live(path, client)?,
    };
    let grant = app.mirror.under_own_name(grant);
    if when == When::PrimaryDown {
        tracing::warn!(repo = %path, age_seconds = age.as_secs(), "the primary is down; serving what was verified last");
    }
    Some(Known { granted: snapshot.open_packs(&grant)?, age, capabilities: V2Caps::clone(&capabilities) })
}

/// `info/refs` from what is published.
pub async fn info_refs(
    app: &App,
    path: &RepoPath,
    client: &ClientHeaders,
    version: Version,
    when: When,
) -> Option<Response> {
    let known = known(app, path, client, when).await?;
    let room = app.memory.readers.try_take(written(&known)).ok()?;
    let mut body = Vec::new();
    if version == Version::V2 {
        let mut capabilities = known.capabilities;
        ours(&mut capabilities);
        body.extend_from_slice(&capabilities.encode());
    } else {
        write_service_line(Service::UploadPack, &mut body);
        let offer = V0Offer {
            version1: version == Version::V1,
            filter: capabilities_filter(&known.capabilities),
            agent: agent().into(),
            ..V0Offer::default()
        };
        write_v0(&known.granted.refs, &offer, &mut body);
    }
    counted();
    Some(aged(uncached(holding(body, room), "application/x-git-upload-pack-advertisement"), known.age))
}

/// `ls-refs` from what is published.
pub async fn ls_refs(app: &App, asked: &Asked, request: &LsRefs, when: When) -> Option<Response> {
    let known = known(app, &asked.path, &asked.client, when).await?;
    let refs = &known.granted.refs;
    let body = if Listing::serves(request) {
        let pieces = known.granted.listing().answer(request, refs);
        Body::from_stream(futures::stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
    } else {
        let room = app.memory.readers.try_take(written(&known)).ok()?;
        let mut body = Vec::new();
        answer(request, refs, &mut body);
        holding(body, room)
    };
    counted();
    Some(aged(upload_pack_result(body), known.age))
}

/// The most bytes of an answer that is written for one client: what all refs take, peeled tags included.
fn written(known: &Known) -> u64 {
    let refs = known.granted.refs.refs.iter();
    refs.map(|r| 2 * (r.name.len() as u64 + 100)).sum::<u64>() + 4096
}

fn counted() {
    told::answered("bucket", "refs");
}

fn capabilities_filter(capabilities: &V2Caps) -> bool {
    capabilities.has_feature("fetch", "filter")
}

/// What we say of ourselves where git says `git/2.47.3`.
fn agent() -> &'static str {
    concat!("packmirror/", env!("CARGO_PKG_VERSION"))
}

/// Leaves out what is answered by the primary only: in these modes the client is not to depend on it.
fn ours(capabilities: &mut V2Caps) {
    let features: Vec<String> = capabilities
        .fetch_features()
        .filter(|feature| *feature != b"packfile-uris")
        .map(|feature| String::from_utf8_lossy(feature).into_owned())
        .collect();
    if capabilities.has("fetch") {
        capabilities.set("fetch", (!features.is_empty()).then(|| features.join(" ")).as_deref());
    }
    capabilities.0.retain(|(key, _)| key != "bundle-uri");
    capabilities.set("agent", Some(agent()));
}

fn aged(mut response: Response, age: Duration) -> Response {
    response.headers_mut().insert("packmirror-age", age.as_secs().into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::pkt;

    #[test]
    fn what_only_the_primary_answers_is_not_offered() {
        let mut body = Vec::new();
        pkt::text(&mut body, "version 2");
        for line in ["agent=git/2.47.3", "ls-refs=unborn", "fetch=shallow packfile-uris filter", "bundle-uri"]
        {
            pkt::text(&mut body, line);
        }
        body.extend_from_slice(pkt::FLUSH);
        let mut capabilities = V2Caps::parse(&body).unwrap();
        ours(&mut capabilities);
        let text = String::from_utf8(capabilities.encode()).unwrap();
        assert!(text.contains("fetch=shallow filter\n"), "{text}");
        assert!(!text.contains("bundle-uri") && !text.contains("packfile-uris"), "{text}");
        assert!(text.contains(&format!("agent={}", agent())), "{text}");
    }
}
