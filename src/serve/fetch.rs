//! A fetch answered from the bucket, or the reason why the primary answers it.
//!
//! Nothing is sent before everything that could still lead to the primary is decided: a grant is in hand, every want is
//! reachable from what is published, and the plan stands.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use gix_hash::{Kind as HashKind, ObjectId};

use crate::config::Freshness;
use crate::git::pkt;
use crate::git::request::{Command, CommandRequest, FetchRequest, Limits};
use crate::git::response::unknown_ref;
use crate::git::v0::parse_v0;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Granted;
use crate::pack::plan::Plan;
use crate::pack::trees::TreeError;
use crate::pack::write::{self, WriteError};
use crate::pack::{Scratch, Sender};
use crate::primary::{Grant, Refusal};
use crate::serve::app::App;
use crate::serve::error::Failure;
use crate::serve::git::{Asked, git_error, other, pass_on, upload_pack_result};
use crate::serve::pass::{Reason, denial_response};
use crate::serve::plans::Key;
use crate::serve::prepare::{Prepared, Trouble, named, prepare};
use crate::serve::send::{Framing, Pipe, stream};
use crate::store::StoreError;
use crate::telemetry::metrics as names;

/// How long a fetch waits for its first byte from the bucket.
const BUCKET_PATIENCE: Duration = Duration::from_secs(10);
/// Decoded objects that one stream keeps for the deltas that lean on them.
const DECODE_CACHE: usize = 16 << 20;
/// The largest object that is packed anew in memory.
const LARGEST_OBJECT: u64 = 4 << 30;

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
            let mut body = Vec::new();
            // `open` has found all of them published.
            let size = |oid: &ObjectId| granted.stack.lookup(oid).map(|gid| granted.stack.size(gid));
            request.answer(size, &mut body);
            counted("object-info");
            Ok(upload_pack_result(Body::from(body)))
        }
        Command::LsRefs(_) | Command::BundleUri | Command::Other(_) => {
            pass_on(app, asked, Reason::NotOurs).await
        }
    }
}

/// Answers a v0 or v1 request.
pub async fn v0(
    app: &App,
    repo: Arc<Repo>,
    asked: &Asked,
    limits: &Limits,
    hash: HashKind,
) -> Result<Response, Failure> {
    match parse_v0(&asked.sent.plain, limits, hash) {
        // A client that wants nothing after all.
        Ok(request) if request.wants.is_empty() => pass_on(app, asked, Reason::NotOurs).await,
        Ok(request) => fetch(app, &repo, asked, request).await,
        // A repository made again with another hash: the client knows it from the primary before we do.
        Err(_) if parse_v0(&asked.sent.plain, limits, other(hash)).is_ok() => {
            repo.ask();
            pass_on(app, asked, Reason::NotYetMirrored).await
        }
        Err(bad) => Ok(git_error(&bad.to_string())),
    }
}

/// What is answered when the packs are not opened.
enum Instead {
    /// The primary's own refusal.
    Refusal(Response),
    /// Whatever the primary says.
    Pass(Reason),
}

impl Instead {
    async fn answer(self, app: &App, asked: &Asked) -> Result<Response, Failure> {
        match self {
            Self::Refusal(response) => Ok(response),
            Self::Pass(reason) => pass_on(app, asked, reason).await,
        }
    }
}

/// Asks for the grant and for a published state that reaches all of `wants`, waiting for a sync if need be.
async fn open(
    app: &App,
    repo: &Arc<Repo>,
    asked: &Asked,
    wants: &[ObjectId],
) -> Result<Result<Granted, Instead>, Failure> {
    let hash = repo.snapshot().map_or(HashKind::Sha1, |snapshot| snapshot.refs.hash);
    let grant = match app.grants.check(&asked.path, &asked.client, hash).await {
        Ok(grant) => grant,
        Err(Refusal::Answer(denial)) => return Ok(Err(Instead::Refusal(denial_response(*denial)))),
        Err(Refusal::Unavailable(e)) => return Err(e.into()),
    };
    let Some(granted) = reaching(repo, &grant, wants).await? else {
        let wait = app.mirror.settings.sync_wait;
        if app.mirror.catch_up(repo, wants, wait).await.is_some()
            && let Some(granted) = reaching(repo, &grant, wants).await?
        {
            return Ok(Ok(granted));
        }
        return Ok(Err(Instead::Pass(Reason::UnknownWant)));
    };
    Ok(Ok(granted))
}

/// The present snapshot, if what it publishes reaches all of `wants`.
async fn reaching(repo: &Arc<Repo>, grant: &Grant, wants: &[ObjectId]) -> Result<Option<Granted>, Failure> {
    let Some(granted) = repo.snapshot().and_then(|snapshot| snapshot.open_packs(grant)) else {
        return Ok(None);
    };
    if wants.iter().any(|oid| granted.stack.lookup(oid).is_none()) {
        return Ok(None);
    }
    // Tips are reachable by definition; only other wants need the set of all that is.
    if granted.publishes_as_tips(wants) {
        return Ok(Some(granted));
    }
    let wants = wants.to_vec();
    let all = blocking(move || {
        for oid in &wants {
            if granted.published(oid)?.is_none() {
                return Ok(None);
            }
        }
        Ok::<_, TreeError>(Some(granted))
    });
    all.await?.map_err(|e| {
        tracing::warn!(repo = %repo.path, error = %e, "what the refs reach cannot be told");
        Failure::Internal
    })
}

async fn fetch(
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
        let _ = tokio::time::timeout(app.mirror.settings.sync_wait, repo.settled(ticket)).await;
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
    let make = async {
        let permit = app.may_think().await?;
        let (granted, request) = (granted.clone(), request.clone());
        let job = move || {
            let _permit = permit;
            prepare(&granted, &request, &wants)
        };
        Ok::<_, Halt>(blocking(job).await??)
    };
    let prepared = match app.plans.get(Key::of(&granted, &request), make).await {
        Ok(prepared) => prepared,
        Err(Halt::Failure(failure)) => return Err(failure),
        Err(Halt::Trouble(Trouble::Refuse(words))) => return Ok(git_error(&words)),
        Err(Halt::Trouble(Trouble::Trees(e))) => {
            tracing::warn!(repo = %asked.path, error = %e, "passed to the primary");
            return pass_on(app, asked, Reason::BucketDown).await;
        }
    };
    metrics::histogram!(names::FETCH_SECONDS, "phase" => "plan").record(begun.elapsed().as_secs_f64());
    if let Some(plan) = &prepared.plan
        && let Err(e) = at_hand(&granted, plan).await
    {
        // Nothing was sent yet, so the primary can still answer.
        tracing::warn!(repo = %asked.path, error = e.chain(), "a stored pack cannot be read; passed to the primary");
        if e.is_loss() {
            repo.report_damage();
        }
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

/// Why there is no plan.
enum Halt {
    /// The node could not make one.
    Failure(Failure),
    /// There is none.
    Trouble(Trouble),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Trouble> for Halt {
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
    let framing = match &request.v0 {
        None => Framing::Band(pkt::MAX_BAND),
        Some(v0) => v0.band.max().map_or(Framing::Bare, Framing::Band),
    };
    let progress = !request.no_progress;
    let repo = Arc::clone(repo);
    let body = stream(framing, app.mirror.settings.limits.client_timeout, move |pipe| {
        let _permit = permit;
        pipe.plain(&head)?;
        if progress {
            tell(pipe, &plan)?;
        }
        let begun = std::time::Instant::now();
        let mut scratch = Scratch::new(DECODE_CACHE, LARGEST_OBJECT);
        let mut sender = Sender::new(plan, write::CHUNK);
        let known = prepared.trailer();
        if let Some(trailer) = known {
            sender = sender.ending(trailer);
        }
        match write::send(sender, &granted.stack, &granted.source().streaming(), &mut scratch, pipe) {
            Ok(written) if known.is_none() => prepared.ended(written.trailer),
            Ok(_) => {}
            Err(e) => {
                if is_damage(&e) {
                    repo.report_damage();
                }
                return Err(io::Error::other(e));
            }
        }
        metrics::counter!(names::FETCH_BYTES, "source" => "bucket").increment(pipe.sent);
        metrics::histogram!(names::FETCH_SECONDS, "phase" => "send").record(begun.elapsed().as_secs_f64());
        if framing != Framing::Bare {
            pipe.plain(pkt::FLUSH)?;
        }
        Ok(())
    });
    Ok(upload_pack_result(body))
}

/// What `git pack-objects` would say of such a pack.
fn tell(pipe: &mut Pipe, plan: &Plan) -> io::Result<()> {
    let n = plan.objects;
    pipe.progress(&format!("Enumerating objects: {n}, done.\n"))?;
    pipe.progress(&format!("Total {n} (delta 0), reused {} (delta 0), pack-reused {0}\n", n - plan.anew))
}

/// Whether stored bytes are missing or wrong, anywhere down the chain of causes.
fn is_damage(error: &WriteError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(|e| e.get_ref());
        let store = inner.and_then(|e| e.downcast_ref::<StoreError>()).or_else(|| error.downcast_ref());
        if store.is_some_and(StoreError::is_loss) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn counted(kind: &'static str) {
    metrics::counter!(names::ANSWERS, "source" => "bucket", "reason" => kind).increment(1);
}

/// Runs CPU-bound or waiting work off the async threads.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(job).await.map_err(|e| {
        tracing::error!(error = %e, "a job ended by itself");
        Failure::Internal
    })
}
