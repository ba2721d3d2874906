//! A fetch on its way to its client: asked for, decided, sent or passed on.

use std::error::Error;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use tokio_util::sync::CancellationToken;

use crate::answer::meter::JobMeter;
use crate::answer::prepare::Prepared;
use crate::answer::reason::Reason;
use crate::answer::{Decision, Ready};
use crate::git::request::{Command, CommandRequest, FetchRequest};
use crate::mirror::repo::Repo;
use crate::pack::Sender;
use crate::pack::plan::Plan;
use crate::serve::app::App;
use crate::serve::asked::{Asked, git_error, pass_on, upload_pack_result};
use crate::serve::error::Failure;
use crate::serve::frame::{Frame, Framing};
use crate::serve::grant::grant;
use crate::serve::holding::Holding;
use crate::serve::send::{CHUNK, Cut, Outgoing, Sent, holding, stream};
use crate::serve::told;
use crate::store::Generation;
use crate::telemetry::metrics as names;

/// Answers a v2 command other than `ls-refs`.
pub async fn command(
    app: &App,
    repo: Arc<Repo>,
    asked: &Asked,
    command: CommandRequest,
) -> Result<Response, Failure> {
    match command.command {
        _ if !command.unknown.is_empty() => pass_on(app, asked, Reason::NotOurs).await,
        Command::Fetch(request) => fetch(app, &repo, asked, *request).await,
        Command::ObjectInfo(request) => {
            let grant = match grant(app, &repo, &asked.path, &asked.client).await? {
                Ok(grant) => grant,
                Err(refused) => return Ok(refused),
            };
            match app.answers.object_info(&repo, &grant, request).await? {
                Ok((body, room)) => {
                    counted("object-info");
                    Ok(upload_pack_result(holding(body, room)))
                }
                Err(reason) => pass_on(app, asked, reason).await,
            }
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
    let grant = match grant(app, repo, &asked.path, &asked.client).await? {
        Ok(grant) => grant,
        Err(refused) => return Ok(refused),
    };
    match app.answers.fetch(repo, &grant, request).await {
        Decision::Send(ready) => send(app, repo, *ready).await,
        Decision::Refuse(words) => Ok(git_error(&words)),
        Decision::Pass(Reason::Busy) => Err(Failure::Busy),
        Decision::Pass(reason) => pass_on(app, asked, reason).await,
    }
}

async fn send(app: &App, repo: &Arc<Repo>, ready: Ready) -> Result<Response, Failure> {
    let Ready { granted, request, prepared } = ready;
    let head = prepared.head.clone();
    let Some(plan) = prepared.plan.clone() else {
        counted("negotiation");
        return Ok(upload_pack_result(Body::from(head)));
    };
    let held = Holding::begin(&app.memory.readers, (&app.filling.door, app.flow), plan.anew > 0).await?;
    counted("fetch");
    told::note(|facts| facts.objects = Some(u64::from(plan.objects)));
    let mut frame = Frame::new(request.wire.band().max().map_or(Framing::Bare, Framing::Band));
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
    let answer = prepared.answer.clone();
    if let Some(answer) = &answer {
        repo.uses.note(answer.id());
        metrics::counter!(names::KEPT_ANSWERS_USED).increment(1);
    }
    let out = Outgoing::new(frame, sender, granted, answer, meter, local, memory);
    let repo = Arc::clone(repo);
    let ended = move |sent: Result<Sent, &Cut>| match sent {
        Ok(sent) => {
            if known.is_none() {
                prepared.ended(sent.written.trailer);
            }
            metrics::histogram!(names::FETCH_SECONDS, "phase" => "send").record(sent.took.as_secs_f64());
        }
        Err(Cut::Write(e)) => broken(&repo, &generation, &prepared, e),
        Err(Cut::Store(e)) => broken(&repo, &generation, &prepared, e),
        Err(Cut::Gone | Cut::TooLong | Cut::Purged | Cut::Job(_)) => {}
    };
    let limits = &app.terms.limits;
    let patience = (limits.client_timeout, limits.transfer);
    Ok(upload_pack_result(stream(out, held, (Arc::clone(places), app.flow), patience, stop, ended)))
}

/// Takes note that what a stream reads cannot be read.
fn broken(repo: &Repo, generation: &Generation, prepared: &Prepared, error: &(dyn Error + 'static)) {
    prepared.answer.iter().for_each(|answer| answer.lose());
    repo.report_damage(generation, error);
}

/// What `git pack-objects` would say of such a pack.
fn tell(frame: &mut Frame, plan: &Plan) {
    let n = plan.objects;
    frame.progress(&format!("Enumerating objects: {n}, done.\n"));
    frame.progress(&format!("Total {n} (delta 0), reused {} (delta 0), pack-reused {0}\n", n - plan.anew));
}

fn counted(kind: &'static str) {
    told::answered("bucket", kind);
}
