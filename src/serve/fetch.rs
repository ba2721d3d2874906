//! A fetch answered from the bucket, or the reason why the primary answers it.
//!
//! Nothing is sent before everything that could still lead to the primary is decided: a grant is in hand, every want is
//! reachable from what is published, and the plan stands.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use gix_hash::ObjectId;

use crate::budget::Room;
use crate::config::Freshness;
use crate::git::pkt;
use crate::git::request::{Command, CommandRequest, FetchRequest};
use crate::git::response::unknown_ref;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Granted;
use crate::pack::encode;
use crate::pack::meter::Halt;
use crate::pack::plan::Plan;
use crate::pack::trees::TreeError;
use crate::pack::write;
use crate::pack::{Scratch, Sender};
use crate::serve::app::App;
use crate::serve::compute::compute;
use crate::serve::error::Failure;
use crate::serve::git::{Asked, git_error, pass_on, upload_pack_result};
use crate::serve::meter::JobMeter;
use crate::serve::pass::Reason;
use crate::serve::plans::Key;
use crate::serve::prepare::{Prepared, Trouble, named, prepare};
use crate::serve::reaching::{MANY, open};
use crate::serve::send::{Framing, Pipe, holding, stream};
use crate::serve::turns::LONGEST_QUEUE;
use crate::store::StoreError;
use crate::telemetry::metrics as names;
use crate::text::chain;

/// How long a fetch waits for its first byte from the bucket.
const BUCKET_PATIENCE: Duration = Duration::from_secs(10);
/// Decoded objects that one stream keeps for the deltas that lean on them.
const DECODE_CACHE: usize = 16 << 20;
/// The same where there is little memory.
const SMALL_DECODE_CACHE: usize = 2 << 20;
/// The largest object that is packed anew in memory.
const LARGEST_OBJECT: u64 = 4 << 30;
/// What a stream holds while its client reads: the pieces on their way.
const PIECES: u64 = 3 << 19;
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
    let prepared = match app.plans.get(key, make).await {
        Ok(prepared) => prepared,
        Err(Unprepared::Failure(failure)) => return Err(failure),
        Err(Unprepared::Trouble(Trouble::Refuse(words))) => return Ok(git_error(&words)),
        Err(Unprepared::Trouble(Trouble::Trees(e))) => {
            let reason = match &e {
                TreeError::Halt(halt @ (Halt::Busy | Halt::Stopped)) => return Err(halt.clone().into()),
                TreeError::Halt(_) | TreeError::TooMany(_) => Reason::TooCostly,
                _ => Reason::BucketDown,
            };
            repo.report_damage(&granted.generation, &e);
            tracing::warn!(repo = %asked.path, error = chain(&e), "passed to the primary");
            return pass_on(app, asked, reason).await;
        }
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
    counted("fetch");
    let permit = app.may_serve().await?;
    let (mut room, cache) = room(app, plan.anew > 0).await?;
    let framing = match &request.v0 {
        None => Framing::Band(pkt::MAX_BAND),
        Some(v0) => v0.band.max().map_or(Framing::Bare, Framing::Band),
    };
    let progress = !request.no_progress;
    let repo = Arc::clone(repo);
    let work = app.memory.work.clone();
    let body = stream(framing, app.mirror.settings.limits.client_timeout, move |pipe| {
        let _permit = permit;
        let meter = JobMeter::new(pipe.stopped(), work);
        pipe.plain(&head)?;
        if progress {
            tell(pipe, &plan)?;
        }
        let begun = std::time::Instant::now();
        let mut scratch = Scratch::new(cache, LARGEST_OBJECT);
        let mut sender = Sender::new(plan, write::CHUNK);
        let known = prepared.trailer();
        if let Some(trailer) = known {
            sender = sender.ending(trailer);
        }
        match write::send(sender, &granted.stack, &granted.source().streaming(), &mut scratch, &meter, pipe) {
            Ok(written) if known.is_none() => prepared.ended(written.trailer),
            Ok(_) => {}
            Err(e) => {
                repo.report_damage(&granted.generation, &e);
                return Err(io::Error::other(e));
            }
        }
        metrics::counter!(names::FETCH_BYTES, "source" => "bucket").increment(pipe.sent);
        metrics::histogram!(names::FETCH_SECONDS, "phase" => "send").record(begun.elapsed().as_secs_f64());
        if framing != Framing::Bare {
            pipe.plain(pkt::FLUSH)?;
        }
        // What is still on its way is small; the rest is for others.
        drop(scratch);
        room.shrink_to(PIECES);
        Ok(())
    });
    Ok(upload_pack_result(body))
}

/// The room of one stream, and how many bytes of decoded objects it may keep. Only the first few streams get much: the
/// others' least must always fit beside it.
async fn room(app: &App, packs_anew: bool) -> Result<(Room, usize), Failure> {
    let readers = &app.memory.readers;
    for (cache, eighths) in [(DECODE_CACHE, 6), (SMALL_DECODE_CACHE, 5)] {
        if packs_anew
            && readers.free() > readers.most() / 8 * eighths
            && let Ok(room) = readers.try_take(PIECES + encode::SMALL + cache as u64)
        {
            return Ok((room, cache));
        }
    }
    let least = PIECES + if packs_anew { encode::SMALL } else { 0 };
    let room = tokio::time::timeout(LONGEST_QUEUE, readers.take(least)).await;
    Ok((room.map_err(|_| Failure::Busy)??, 0))
}

/// What `git pack-objects` would say of such a pack.
fn tell(pipe: &mut Pipe, plan: &Plan) -> io::Result<()> {
    let n = plan.objects;
    pipe.progress(&format!("Enumerating objects: {n}, done.\n"))?;
    pipe.progress(&format!("Total {n} (delta 0), reused {} (delta 0), pack-reused {0}\n", n - plan.anew))
}

fn counted(kind: &'static str) {
    metrics::counter!(names::ANSWERS, "source" => "bucket", "reason" => kind).increment(1);
}
