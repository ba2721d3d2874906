//! A fetch answered from the bucket, or the reason why the primary answers it.
//!
//! Nothing is sent before everything that could still lead to the primary is decided: a grant is in hand, every want is
//! reachable from what is published, and the plan stands.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use gix_hash::ObjectId;
use tokio_util::sync::CancellationToken;

use crate::config::Freshness;
use crate::git::pkt;
use crate::git::request::{Command, CommandRequest, FetchRequest};
use crate::git::response::unknown_ref;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Granted;
use crate::pack::Sender;
use crate::pack::meter::Halt;
use crate::pack::plan::Plan;
use crate::pack::trees::TreeError;
use crate::serve::app::App;
use crate::serve::compute::compute;
use crate::serve::error::Failure;
use crate::serve::frame::{Frame, Framing};
use crate::serve::git::{Asked, git_error, pass_on, upload_pack_result};
use crate::serve::holding::Holding;
use crate::serve::meter::JobMeter;
use crate::serve::pass::Reason;
use crate::serve::plans::Key;
use crate::serve::prepare::{Prepared, Trouble, named, needs_reach, prepare};
use crate::serve::reaching::{MANY, open, publish};
use crate::serve::send::{CHUNK, Cut, Outgoing, Sent, holding, stream};
use crate::store::StoreError;
use crate::telemetry::metrics as names;
use crate::text::chain;

/// How long a fetch waits for its first byte from the bucket.
const BUCKET_PATIENCE: Duration = Duration::from_secs(10);
/// What a line of an answer to `object-info` takes.
const OBJECT_INFO: u64 = 96;

/// Answers a v2 command other than `ls-refs`.
pub async fn command(
    app: &App,
    repo: Arc<Repo>,
    asked: &Asked,
    command: CommandRequest,
) -> Result<Response, Failure> {
    if !command.unknown.is_empty() {
        return pass_on(app, asked, Reason::NotOurs).await;
    }
    match command.command {
        Command::Fetch(request) => fetch(app, &repo, asked, *request).await,
        Command::ObjectInfo(request) => {
            let granted = match open(app, &repo, asked, &request.oids).await? {
                Ok(granted) => granted,
                Err(instead) => return instead.answer(app, asked).await,
            };
            let room = app.memory.readers.try_take(OBJECT_INFO * request.oids.len() as u64)?;
            let body = compute(app, move |_| {
                let mut body = Vec::new();
                // `open` has found all of them published.
                let size = |oid: &ObjectId| granted.stack.lookup(oid).map(|gid| granted.stack.size(gid));
                request.answer(size, &mut body);
                body
            });
            let body = body.await?;
            counted("object-info");
            Ok(upload_pack_result(holding(body, room)))
        }
        Command::LsRefs(_) | Command::BundleUri | Command::Other(_) => {
            pass_on(app, asked, Reason::NotOurs).await
        }
    }
}

/// Answers a fetch.
pub async fn fetch(
    app: &App,
    repo: &Arc<Repo>,
    asked: &Asked,
    request: FetchRequest,
) -> Result<Response, Failure> {
    if !request.unknown.is_empty() || !request.packfile_uris.is_empty() {
        return pass_on(app, asked, Reason::NotOurs).await;
    }
    let capabilities = repo.health().capabilities.clone();
    if request.v0.is_none() && capabilities.is_some_and(|caps| request.unoffered(&caps).is_some()) {
        return pass_on(app, asked, Reason::NotOffered).await;
    }
    if !request.want_refs.is_empty() && app.mirror.settings.freshness == Freshness::Strict {
        // The names are to be read as they stand now, and no `ls-refs` of this client says how that is.
        let ticket = repo.ask();
        let confirmed = tokio::time::timeout(app.mirror.settings.sync_wait, repo.settled(ticket)).await;
        if confirmed != Ok(true) {
            return pass_on(app, asked, Reason::NotConfirmed).await;
        }
    }
    if request.include_tag
        && let Some(ticket) = repo.tags_on_their_way()
    {
        let _ = tokio::time::timeout(app.mirror.settings.sync_wait, repo.settled(ticket)).await;
    }
    let granted = match open(app, repo, asked, &request.wants).await? {
        Ok(granted) => granted,
        Err(instead) => return instead.answer(app, asked).await,
    };
    let mut wants = request.wants.clone();
    for name in &request.want_refs {
        match named(&granted, name.as_ref()) {
            Some(oid) => wants.push(oid),
            None => return Ok(git_error(&unknown_ref(name.as_ref()))),
        }
    }
    if request.v0.is_some() && !granted.are_tips_or_commits(&wants) {
        // v0 serves what the advertised refs reach; for other objects than commits that depends on settings we cannot see.
        return pass_on(app, asked, Reason::NotOurs).await;
    }
    if needs_reach(&request)
        && let Err(failed) = publish(app, &granted).await?
    {
        return leave(app, repo, asked, &granted, &failed).await;
    }
    let begun = std::time::Instant::now();
    let request = Arc::new(request);
    let key = key(app, &granted, &request).await?;
    let make = async {
        let (granted, request) = (granted.clone(), Arc::clone(&request));
        let made = compute(app, move |meter| prepare(&granted, &request, &wants, meter)).await?;
        let mut prepared = made?;
        prepared.hold(app.memory.readers.try_take(prepared.size() as u64).map_err(Failure::from)?);
        Ok::<_, Unprepared>(prepared)
    };
    let prepared = match app.plans.get(key, &granted.generation.layers, make).await {
        Ok(prepared) => prepared,
        Err(Unprepared::Failure(failure)) => return Err(failure),
        Err(Unprepared::Trouble(Trouble::Refuse(words))) => return Ok(git_error(&words)),
        Err(Unprepared::Trouble(Trouble::Trees(TreeError::Halt(halt @ (Halt::Busy | Halt::Stopped))))) => {
            return Err(halt.into());
        }
        Err(Unprepared::Trouble(Trouble::Trees(e))) => return leave(app, repo, asked, &granted, &e).await,
    };
    if let Some(plan) = &prepared.plan
        && let Err(halt) = app.memory.work.fits(plan.room)
    {
        tracing::warn!(repo = %asked.path, error = %halt, "an object is too large to be packed anew; passed to the primary");
        return pass_on(app, asked, Reason::TooCostly).await;
    }
    metrics::histogram!(names::FETCH_SECONDS, "phase" => "plan").record(begun.elapsed().as_secs_f64());
    if let Some(plan) = &prepared.plan
        && let Err(e) = at_hand(&granted, plan).await
    {
        // Nothing was sent yet, so the primary can still answer.
        tracing::warn!(repo = %asked.path, error = e.chain(), "a stored pack cannot be read; passed to the primary");
        repo.report_damage(&granted.generation, &e);
        return pass_on(app, asked, Reason::BucketDown).await;
    }
    send(app, repo, granted, &request, prepared).await
}

/// Leaves to the primary what cannot be planned here.
async fn leave(
    app: &App,
    repo: &Repo,
    asked: &Asked,
    granted: &Granted,
    why: &TreeError,
) -> Result<Response, Failure> {
    repo.report_damage(&granted.generation, why);
    tracing::warn!(repo = %asked.path, error = chain(why), "passed to the primary");
    pass_on(app, asked, if why.costs_too_much() { Reason::TooCostly } else { Reason::BucketDown }).await
}

/// Makes sure that sending can begin; a bucket that is silent is given little time, since the primary can answer.
async fn at_hand(granted: &Granted, plan: &Plan) -> Result<(), StoreError> {
    let begins = tokio::time::timeout(BUCKET_PATIENCE, granted.source().at_hand(plan));
    begins
        .await
        .unwrap_or_else(|_| Err(StoreError::unavailable("read a pack", "the store did not answer in time")))
}

/// The key of a request's plan.
async fn key(app: &App, granted: &Granted, request: &Arc<FetchRequest>) -> Result<Key, Failure> {
    if request.wants.len().max(request.haves.len()) < MANY {
        return Ok(Key::of(granted, request));
    }
    let (granted, request) = (granted.clone(), Arc::clone(request));
    compute(app, move |_| Key::of(&granted, &request)).await
}

/// Why there is no plan.
enum Unprepared {
    /// The node could not make one.
    Failure(Failure),
    /// There is none.
    Trouble(Trouble),
}

impl From<Failure> for Unprepared {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Trouble> for Unprepared {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

async fn send(
    app: &App,
    repo: &Arc<Repo>,
    granted: Granted,
    request: &FetchRequest,
    prepared: Arc<Prepared>,
) -> Result<Response, Failure> {
    let head = prepared.head.clone();
    let Some(plan) = prepared.plan.clone() else {
        counted("negotiation");
        return Ok(upload_pack_result(Body::from(head)));
    };
    let held = Holding::begin(&app.memory.readers, plan.anew > 0).await?;
    counted("fetch");
    let mut frame = Frame::new(match &request.v0 {
        None => Framing::Band(pkt::MAX_BAND),
        Some(v0) => v0.band.max().map_or(Framing::Bare, Framing::Band),
    });
    frame.plain(&prepared.head);
    if !request.no_progress {
        tell(&mut frame, &plan);
    }
    let places = if plan.anew > 0 { &app.filling.packing } else { &app.filling.copying };
    let stop = CancellationToken::new();
    let meter = JobMeter::new(stop.clone(), app.memory.work.clone());
    let sender = Sender::new(plan, CHUNK);
    let known = prepared.trailer();
    let sender = known.into_iter().fold(sender, Sender::ending);
    let (local, memory) = (app.mirror.local.clone(), app.memory.readers.clone());
    let generation = granted.generation.clone();
    let out = Outgoing::new(frame, sender, granted, meter, local, memory);
    let repo = Arc::clone(repo);
    let ended = move |sent: Result<Sent, &Cut>| match sent {
        Ok(sent) => {
            if known.is_none() {
                prepared.ended(sent.written.trailer);
            }
            metrics::counter!(names::FETCH_BYTES, "source" => "bucket").increment(sent.written.bytes);
            metrics::histogram!(names::FETCH_SECONDS, "phase" => "send").record(sent.took.as_secs_f64());
        }
        Err(Cut::Write(e)) => _ = repo.report_damage(&generation, e),
        Err(Cut::Store(e)) => _ = repo.report_damage(&generation, e),
        Err(Cut::Gone | Cut::Job(_)) => {}
    };
    let patience = app.mirror.settings.limits.client_timeout;
    Ok(upload_pack_result(stream(out, held, Arc::clone(places), patience, stop, ended)))
}

/// What `git pack-objects` would say of such a pack.
fn tell(frame: &mut Frame, plan: &Plan) {
    let n = plan.objects;
    frame.progress(&format!("Enumerating objects: {n}, done.\n"));
    frame.progress(&format!("Total {n} (delta 0), reused {} (delta 0), pack-reused {0}\n", n - plan.anew));
}

fn counted(kind: &'static str) {
    metrics::counter!(names::ANSWERS, "source" => "bucket", "reason" => kind).increment(1);
}
