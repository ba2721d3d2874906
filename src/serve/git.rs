//! Where a Git request goes: which repository, which endpoint, answered from the bucket or passed on.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{Method, StatusCode};

use crate::answer::reason::Reason;
use crate::config::{OnPrimaryDown, Unselected};
use crate::fair::Flow;
use crate::git::HashKind;
use crate::git::ls_refs::LsRefs;
use crate::git::other_path::may_be_gits;
use crate::git::path::{BadPath, Endpoint, RepoPath, Service, split};
use crate::git::request::{BadRequest, Command, CommandRequest, FetchRequest, RequestLimits, parse_v2};
use crate::git::v0::parse_v0;
use crate::mirror::opening::NotOpen;
use crate::mirror::repo::Repo;
use crate::primary::{self, ClientHeaders};
use crate::serve::advertise::{self, When};
use crate::serve::app::App;
use crate::serve::asked::{Asked, Version, git_error, pass_on};
use crate::serve::body::{self, Begun};
use crate::serve::error::Failure;
use crate::serve::fetch;
use crate::serve::grant::grant;
use crate::serve::origin;
use crate::serve::other;
use crate::serve::pass::{ask, check, client_response, outbound, pass};
use crate::serve::told;
use crate::serve::watch::{Form, watch};
use crate::telemetry::metrics as names;
use crate::text::chain;

/// Answers any request under a repository's path.
pub async fn handle(State(app): State<App>, request: Request) -> Response {
    answer(&app, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(app: &App, request: Request) -> Result<Response, Failure> {
    let (parts, mut body) = request.into_parts();
    // In HTTP/2 the authority belongs to every request; in HTTP/1 it makes an absolute-form one, which is for proxies.
    if parts.version < http::Version::HTTP_2 && parts.uri.authority().is_some() {
        return Err(Failure::Malformed("the request names another host; this is no forward proxy".into()));
    }
    if app.mirror.primary.came_back(&parts.headers) {
        return Err(Failure::Loops);
    }
    let query = parts.uri.query();
    let (path, endpoint) = match split(parts.uri.path(), query) {
        Err(bad) if !matches!(bad, BadPath::Service(_)) && !may_be_gits(parts.uri.path()) => {
            return other::answer(app, parts, body, bad).await;
        }
        cut => cut?,
    };
    told::asked(&path, &endpoint);
    let client = origin::client(app, &parts)?;
    check(&parts.method, Some(&endpoint), &parts.headers, &mut body).await?;
    let version = Version::of(&parts.headers);
    let selected = app.mirror.selects(&path);
    if !selected && app.terms.unselected == Unselected::Refuse {
        return Err(Failure::NotSelected);
    }
    if selected && parts.method == Method::POST && endpoint == Endpoint::UploadPack {
        let app = &app.in_turns_of(Flow::of(&path, origin::address(app, &parts)));
        let limits = &app.terms.limits;
        let begun = body::begin(&parts.headers, body, limits, &app.memory.strangers).await?;
        return upload_pack(app, path, client, version, begun).await;
    }
    let method = parts.method.clone();
    let body = outbound(&method, &parts.headers, body);
    let (repo, query) = (path.clone(), query.map(str::to_owned));
    let request =
        primary::Request { method, repo, endpoint: endpoint.clone(), query, client: client.clone(), body };
    let known =
        matches!(parts.method, Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::DELETE);
    if !known {
        return Err(Failure::Malformed("this method is not for Git".into()));
    }
    if !selected {
        return pass(app, request, Reason::NotSelected).await;
    }
    match (&parts.method, &endpoint) {
        (&Method::GET, Endpoint::InfoRefs(Some(Service::UploadPack))) => {
            info_refs(app, &path, &client, version, request).await
        }
        (_, Endpoint::InfoRefs(Some(Service::ReceivePack))) => pass(app, request, Reason::Push).await,
        (&Method::POST, Endpoint::ReceivePack) => push(app, &path, request).await,
        _ => pass(app, request, Reason::OtherEndpoint).await,
    }
}

/// `GET info/refs?service=git-upload-pack`: capabilities in v2, the refs themselves in v0 and v1.
async fn info_refs(
    app: &App,
    path: &RepoPath,
    client: &ClientHeaders,
    version: Version,
    request: primary::Request,
) -> Result<Response, Failure> {
    if let Some(known) = advertise::info_refs(app, path, client, version, When::Fresh).await {
        return Ok(known);
    }
    let response = match pass(app, request, Reason::Live).await {
        Err(down @ Failure::PrimaryDown(_)) => {
            let known = advertise::info_refs(app, path, client, version, When::PrimaryDown).await;
            return known.ok_or_else(|| or_challenge(app, client, down));
        }
        live => live?,
    };
    if !is_yes(&response, "application/x-git-upload-pack-advertisement") {
        return Ok(response);
    }
    match (taken_up(app, path), version) {
        (Some(repo), Version::V0 | Version::V1) => Ok(response.map(|body| watch(body, repo, Form::V0))),
        _ => Ok(response),
    }
}

/// While live grants are honoured without the primary, a client that has shown no credential is asked for one: git sends
/// its credentials only when asked, and the grant is theirs. It tells nothing about the repository.
fn or_challenge(app: &App, client: &ClientHeaders, down: Failure) -> Failure {
    let honours = app.terms.on_primary_down == OnPrimaryDown::ServeVerified;
    if honours && client.get(&http::header::AUTHORIZATION).is_none() { Failure::WhoAreYou } else { down }
}

/// The repository, now that the primary has shown it: opened or taken up behind the request if it is new to this node.
fn taken_up(app: &App, path: &RepoPath) -> Option<Arc<Repo>> {
    match app.mirror.at_hand(path) {
        Some(Some(repo)) if repo.snapshot().is_some() => Some(repo),
        _ => app.mirror.adopt(path),
    }
}

fn is_yes(response: &Response, content_type: &str) -> bool {
    let sent = response.headers().get(http::header::CONTENT_TYPE).map(|v| v.as_bytes());
    response.status() == StatusCode::OK && sent == Some(content_type.as_bytes())
}

/// `POST git-upload-pack`: a command in v2, a fetch in v0 and v1.
///
/// Only what fits into a beginning is looked at before the primary has said yes.
async fn upload_pack(
    app: &App,
    path: RepoPath,
    client: ClientHeaders,
    version: Version,
    begun: Begun,
) -> Result<Response, Failure> {
    let begun = match begun {
        // The primary answers `ls-refs`, which need not wait until the repository is open here.
        Begun::Whole(sent) if app.mirror.at_hand(&path).is_none() => {
            match Parsed::of(version, &sent.plain, HashKind::Sha1) {
                Parsed::Command(Ok(Some(CommandRequest { command: Command::LsRefs(request), .. }))) => {
                    return ls_refs(app, &Asked { path, client, version, sent }, &request).await;
                }
                _ => Begun::Whole(sent),
            }
        }
        begun => begun,
    };
    let (repo, instead) = match app.mirror.find(&path).await {
        Ok(repo) => (repo.filter(|repo| repo.snapshot().is_some()), Reason::NotYetMirrored),
        Err(NotOpen::Opening) => (None, Reason::Opening),
        Err(NotOpen::Failed(e)) => {
            tracing::warn!(repo = %path, error = chain(&*e), "the bucket could not be read");
            (None, Reason::BucketDown)
        }
    };
    let sent = match (begun, &repo) {
        (Begun::Whole(sent), _) => sent,
        (Begun::More(more), None) => {
            let (method, body) = (Method::POST, more.into_body());
            let request = primary::Request {
                method,
                repo: path,
                endpoint: Endpoint::UploadPack,
                query: None,
                client,
                body,
            };
            return pass(app, request, instead).await;
        }
        (Begun::More(more), Some(repo)) => {
            if let Err(refused) = grant(app, repo, &path, &client).await? {
                return Ok(refused);
            }
            more.whole(&app.terms.limits, &app.memory.readers).await?
        }
    };
    let asked = Asked { path, client, version, sent };
    let hash = repo.as_ref().and_then(|repo| repo.snapshot()).map_or(HashKind::Sha1, |s| s.refs.hash);
    let parsed = if asked.sent.is_long() {
        let plain = asked.sent.plain.clone();
        app.answers.compute(move |_| Parsed::of(version, &plain, hash)).await?
    } else {
        Parsed::of(version, &asked.sent.plain, hash)
    };
    if parsed.has_nothing() {
        told::note(|facts| facts.kind = "clone");
    }
    match (parsed, repo) {
        (Parsed::Command(Ok(Some(CommandRequest { command: Command::LsRefs(request), .. }))), _)
            if instead != Reason::BucketDown =>
        {
            ls_refs(app, &asked, &request).await
        }
        (_, None) => pass_on(app, &asked, instead).await,
        // The probe of a client that is about to send a large body.
        (Parsed::Command(Ok(None)), _) => pass_on(app, &asked, Reason::NotOurs).await,
        (Parsed::Command(Ok(Some(command))), Some(repo)) => {
            if command.object_format.unwrap_or(HashKind::Sha1) != hash {
                repo.ask();
                return pass_on(app, &asked, Reason::NotYetMirrored).await;
            }
            or_primary(app, &asked, fetch::command(app, repo, &asked, command).await).await
        }
        // A client that wants nothing after all.
        (Parsed::Fetch(Ok(request)), _) if request.wants.is_empty() => {
            pass_on(app, &asked, Reason::NotOurs).await
        }
        (Parsed::Fetch(Ok(request)), Some(repo)) => {
            or_primary(app, &asked, fetch::fetch(app, &repo, &asked, request).await).await
        }
        (Parsed::OtherHash, Some(repo)) => {
            repo.ask();
            pass_on(app, &asked, Reason::NotYetMirrored).await
        }
        (Parsed::Command(Err(bad)) | Parsed::Fetch(Err(bad)), _) => Ok(git_error(&bad.to_string())),
    }
}

/// A request, read.
enum Parsed {
    /// In v2.
    Command(Result<Option<CommandRequest>, BadRequest>),
    /// In v0 and v1.
    Fetch(Result<FetchRequest, BadRequest>),
    /// Of a repository made again with another hash: the client knows it from the primary before we do.
    OtherHash,
}

impl Parsed {
    /// Whether it is a fetch whose client has nothing yet: a clone, but for what few clients leave out.
    fn has_nothing(&self) -> bool {
        match self {
            Self::Command(Ok(Some(CommandRequest { command: Command::Fetch(request), .. }))) => {
                request.haves.is_empty()
            }
            Self::Fetch(Ok(request)) => request.haves.is_empty(),
            _ => false,
        }
    }

    fn of(version: Version, plain: &[u8], hash: HashKind) -> Self {
        // Not by the refs known here: the client may know of more, which the primary has just shown it.
        let limits = RequestLimits::default();
        if version == Version::V2 {
            let parsed = parse_v2(plain, &limits, hash);
            // Whether the hash is ours is told by `object-format`.
            return Self::Command(
                parsed.or_else(|bad| parse_v2(plain, &limits, other(hash)).map_err(|_| bad)),
            );
        }
        match parse_v0(plain, &limits, hash) {
            Err(_) if parse_v0(plain, &limits, other(hash)).is_ok() => Self::OtherHash,
            parsed => Self::Fetch(parsed),
        }
    }
}

/// The hash that it is not.
pub fn other(hash: HashKind) -> HashKind {
    if hash == HashKind::Sha256 { HashKind::Sha1 } else { HashKind::Sha256 }
}

/// `ls-refs`: the primary's live answer, or in bounded mode what is published.
async fn ls_refs(app: &App, asked: &Asked, request: &LsRefs) -> Result<Response, Failure> {
    told::note(|facts| facts.kind = "ls-refs");
    if let Some(known) = advertise::ls_refs(app, asked, request, When::Fresh).await {
        return Ok(known);
    }
    let answer = match ask(app, asked.request(), Reason::Live).await {
        Err(down @ Failure::PrimaryDown(_)) => {
            let known = advertise::ls_refs(app, asked, request, When::PrimaryDown).await;
            return known.ok_or_else(|| or_challenge(app, &asked.client, down));
        }
        answered => answered?,
    };
    // The primary may have just let this credential use git-upload-pack here: that is the yes a fetch needs.
    let response = client_response(app.grants.observe(answer));
    if !is_yes(&response, "application/x-git-upload-pack-result") {
        return Ok(response);
    }
    match taken_up(app, &asked.path) {
        Some(repo) => Ok(response.map(|body| watch(body, repo, Form::LsRefs))),
        None => Ok(response),
    }
}

/// What this node has no place for goes to the primary, since git does not try again after a 503; but only a little of it at a time.
async fn or_primary(
    app: &App,
    asked: &Asked,
    answer: Result<Response, Failure>,
) -> Result<Response, Failure> {
    match answer {
        Err(Failure::Busy) => {
            let Ok(place) = Arc::clone(&app.overflow).try_acquire_owned() else {
                metrics::counter!(names::SHED).increment(1);
                return Err(Failure::Busy);
            };
            let response = pass_on(app, asked, Reason::Busy).await?;
            Ok(response.map(|body| Body::from_stream(body.into_data_stream().inspect(move |_| _ = &place))))
        }
        answer => answer,
    }
}

/// `POST git-receive-pack`: to the primary byte for byte, never tried again; then the mirror catches up.
async fn push(app: &App, path: &RepoPath, request: primary::Request) -> Result<Response, Failure> {
    let response = pass(app, request, Reason::Push).await?;
    if response.status() != StatusCode::OK {
        return Ok(response);
    }
    let Some(Some(repo)) = app.mirror.at_hand(path) else { return Ok(response) };
    // Asked once the answer has ended: only then are the primary's refs what the client was told.
    Ok(response.map(|body| {
        let end = futures::stream::once(async move {
            repo.ask();
            Ok(bytes::Bytes::new())
        });
        Body::from_stream(body.into_data_stream().chain(end))
    }))
}
