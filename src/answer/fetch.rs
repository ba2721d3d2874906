//! The decision about a fetch.
//!
//! Nothing is sent before everything that could still lead to the primary is decided: every want is reachable from what is
//! published, the plan is made, and of each pack that it reads the first bytes could be read. Follows the order of git's `upload-pack.c`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gix_object::Kind;

use crate::answer::kept::is_anew;
use crate::answer::numbers::Numbers;
use crate::answer::plans::Key;
use crate::answer::prepare::{NoPlan, is_fresh, needs_reach, prepare};
use crate::answer::reaching::leave;
use crate::answer::reason::Reason;
use crate::answer::{Answers, Decision, Failed, Ready};
use crate::budget::Room;
use crate::config::Freshness;
use crate::git::object_info::ObjectInfo;
use crate::git::request::{FetchRequest, Wire};
use crate::mirror::answers::{MOST_OBJECTS, room};
use crate::mirror::blocks::Blocks;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Granted;
use crate::mirror::wishes::{Wish, Wished};
use crate::pack::Gid;
use crate::pack::filter::trees::TreeError;
use crate::pack::layer::stack::Stack;
use crate::pack::meter::{Halt, Meter};
use crate::pack::plan::Plan;
use crate::primary::Grant;
use crate::store::StoreError;
use crate::telemetry::metrics as names;

/// How long a fetch waits for the first bytes of its packs from the bucket.
const BUCKET_PATIENCE: Duration = Duration::from_secs(10);
/// How long a fetch waits for an answer that is being made for many.
const MAKING_PATIENCE: Duration = Duration::from_secs(30);
/// What a line of an answer to `object-info` takes.
const OBJECT_INFO: u64 = 96;

impl Answers {
    /// Decides about a fetch of the client that holds `grant`.
    pub async fn fetch(&self, repo: &Arc<Repo>, grant: &Grant, request: FetchRequest) -> Decision {
        self.decide(repo, grant, request).await.unwrap_or_else(Decision::from)
    }

    async fn decide(
        &self,
        repo: &Arc<Repo>,
        grant: &Grant,
        request: FetchRequest,
    ) -> Result<Decision, Failed> {
        if let Some(reason) = self.not_ours(repo, &request).await {
            return Ok(Decision::Pass(reason));
        }
        let (granted, wants) = match self.open(repo, grant, &request.wants).await? {
            Ok(opened) => opened,
            Err(reason) => return Ok(Decision::Pass(reason)),
        };
        if request.wire != Wire::V2 {
            // v0 serves what the advertised refs reach; for other objects than commits that depends on settings we cannot see.
            let is_commit = |want: Gid| granted.stack.kind(want) == Kind::Commit;
            let mut each = request.wants.iter().zip(&wants);
            if !each.all(|(oid, want)| granted.is_tip(oid) || is_commit(*want)) {
                return Ok(Decision::Pass(Reason::NotOurs));
            }
        }
        let request = Arc::new(request);
        let (numbers, key) = match self.look_up(&granted, &request, wants).await? {
            Ok(found) => found,
            Err(words) => return Ok(Decision::Refuse(words)),
        };
        if needs_reach(&request)
            && let Err(failed) = self.publish(&granted).await?
        {
            return Ok(Decision::Pass(leave(repo, &granted, &failed)));
        }
        let is_fresh = is_fresh(&numbers);
        let decided = self.plan(repo, granted.clone(), Arc::clone(&request), numbers, key).await?;
        let Decision::Send(ready) = &decided else { return Ok(decided) };
        if !is_fresh || !self.is_made_meanwhile(repo, ready).await {
            return Ok(decided);
        }
        // Of the state that names the answer; if it is not that any more, the first plan is as good.
        let Ok((granted, wants)) = self.open(repo, grant, &request.wants).await? else { return Ok(decided) };
        match self.look_up(&granted, &request, wants).await? {
            Ok((numbers, key)) => self.plan(repo, granted, request, numbers, key).await,
            Err(_) => Ok(decided),
        }
    }

    /// Takes part in what many ask for: the second request of its kind wishes for an answer that serves all, if each costs much, and
    /// those behind it wait for that. Says whether it waited.
    async fn is_made_meanwhile(&self, repo: &Arc<Repo>, ready: &Ready) -> bool {
        let (prepared, request) = (&ready.prepared, &ready.request);
        let wanted = prepared.plan.as_ref().zip(prepared.costly.as_ref());
        let Some((plan, objects)) = wanted.filter(|_| request.ofs_delta && self.answers_share > 0) else {
            return false;
        };
        let fits = || plan.known_len <= room(&ready.granted.generation, self.answers_share);
        if plan.objects > MOST_OBJECTS || !fits() {
            return false;
        }
        let before = prepared.asked.again();
        if before == 0 {
            return false;
        }
        let made = prepared.asked.once(|done| {
            let (repo, snapshot) = (Arc::clone(repo), Arc::clone(ready.granted.snapshot()));
            let (plan, objects) = (Arc::clone(plan), Arc::clone(objects));
            let (answer, kind) = (prepared.answer.clone(), request.kind());
            self.mirror.wish(Wish::Asked(Wished { repo, snapshot, plan, objects, answer, kind, done }));
        });
        before > 1
            && is_anew(plan)
            && !made.is_cancelled()
            && tokio::time::timeout(MAKING_PATIENCE, made.cancelled()).await.is_ok()
    }

    /// Why the request is not for this node, as far as that can be told without a look at what is published; waits until what
    /// is published is what the client was shown.
    async fn not_ours(&self, repo: &Repo, request: &FetchRequest) -> Option<Reason> {
        if !request.unknown.is_empty() || !request.packfile_uris.is_empty() {
            return Some(Reason::NotOurs);
        }
        let capabilities = repo.health().capabilities.clone();
        if capabilities.is_some_and(|(caps, _)| request.unoffered(&caps).is_some()) {
            return Some(Reason::NotOffered);
        }
        if !request.want_refs.is_empty() && self.freshness == Freshness::Strict {
            // The names are to be read as they stand now, and no `ls-refs` of this client says how that is.
            let ticket = repo.ask();
            let confirmed = tokio::time::timeout(self.sync_wait, repo.settled(ticket)).await;
            if confirmed != Ok(true) {
                return Some(Reason::NotConfirmed);
            }
        }
        if request.include_tag
            && let Some(ticket) = repo.tags_on_their_way()
        {
            let _ = tokio::time::timeout(self.sync_wait, repo.settled(ticket)).await;
        }
        None
    }

    async fn plan(
        &self,
        repo: &Arc<Repo>,
        granted: Granted,
        request: Arc<FetchRequest>,
        numbers: Numbers,
        key: Key,
    ) -> Result<Decision, Failed> {
        let numbers = Arc::new(numbers);
        loop {
            // Each stored answer is lost once at most.
            let (granted, request) = (granted.clone(), Arc::clone(&request));
            if let Some(decided) = self.plan_once(repo, granted, request, &numbers, key).await? {
                return Ok(decided);
            }
        }
    }

    /// The same; `None`: a stored answer that was to be used is lost.
    async fn plan_once(
        &self,
        repo: &Arc<Repo>,
        granted: Granted,
        request: Arc<FetchRequest>,
        numbers: &Arc<Numbers>,
        key: Key,
    ) -> Result<Option<Decision>, Failed> {
        let begun = Instant::now();
        let make = async {
            let answers = if is_fresh(numbers) { granted.answers().await } else { Vec::new() };
            let (granted, request, numbers) = (granted.clone(), Arc::clone(&request), Arc::clone(numbers));
            let job = move |meter: &dyn Meter| prepare(&granted, &request, &numbers, &answers, meter);
            let made = self.compute(job).await?;
            let mut prepared = made?;
            prepared.hold(self.readers.try_take(prepared.size() as u64).map_err(Failed::from)?);
            Ok::<_, Unprepared>(prepared)
        };
        let prepared = match self.plans.get(key, &granted.generation, make).await {
            Ok(prepared) => prepared,
            Err(Unprepared::Failed(failed)) => return Err(failed),
            Err(Unprepared::NoPlan(NoPlan::Refuse(words))) => return Ok(Some(Decision::Refuse(words))),
            Err(Unprepared::NoPlan(NoPlan::Trees(TreeError::Halt(Halt::Busy | Halt::Stopped)))) => {
                return Err(Failed::Busy);
            }
            Err(Unprepared::NoPlan(NoPlan::Trees(e))) => {
                return Ok(Some(Decision::Pass(leave(repo, &granted, &e))));
            }
        };
        if let Some(plan) = &prepared.plan {
            if let Err(halt) = self.work.fits(plan.room) {
                tracing::warn!(repo = %repo.path, error = %halt, "an object is too large to be packed anew; passed to the primary");
                return Err(Failed::TooCostly);
            }
            metrics::histogram!(names::FETCH_SECONDS, "phase" => "plan")
                .record(begun.elapsed().as_secs_f64());
            let source = granted.source().with_answer(prepared.answer.clone());
            if let Err(e) = at_hand(&source, plan, &granted.stack).await {
                if let Some(answer) =
                    prepared.answer.as_ref().filter(|answer| !answer.is_lost() && e.is_loss())
                {
                    tracing::info!(repo = %repo.path, answer = %answer.pack.blob, error = e.chain(), "a stored answer is lost; it is not used any more");
                    answer.lose();
                    return Ok(None);
                }
                // Nothing was sent yet, so the primary can still answer.
                tracing::warn!(repo = %repo.path, error = e.chain(), "a stored pack cannot be read; passed to the primary");
                repo.report_damage(&granted.generation, &e);
                return Ok(Some(Decision::Pass(Reason::BucketDown)));
            }
        }
        Ok(Some(Decision::Send(Box::new(Ready { granted, request, prepared }))))
    }

    /// Looks up what a request names, and makes the key of its plan. An error of the inner kind refuses it in git's words.
    async fn look_up(
        &self,
        granted: &Granted,
        request: &Arc<FetchRequest>,
        wants: Vec<Gid>,
    ) -> Result<Result<(Numbers, Key), String>, Failed> {
        let (granted, request) = (granted.clone(), Arc::clone(request));
        let objects = request.wants.len().max(request.haves.len()).max(request.shallow.len());
        let look_up = move || {
            let numbers = Numbers::of(&granted, &request, wants)?;
            let key = Key::of(&granted, &request, &numbers);
            Ok((numbers, key))
        };
        self.compute_many(objects, look_up).await
    }

    /// The answer to `object-info`, with what it takes of the memory for readers; or why the primary gives it.
    pub async fn object_info(
        &self,
        repo: &Arc<Repo>,
        grant: &Grant,
        request: ObjectInfo,
    ) -> Result<Result<(Vec<u8>, Room), Reason>, Failed> {
        let (granted, numbers) = match self.open(repo, grant, &request.oids).await? {
            Ok(opened) => opened,
            Err(reason) => return Ok(Err(reason)),
        };
        let room = self.readers.try_take(OBJECT_INFO * request.oids.len() as u64)?;
        let body = self.compute(move |_| {
            let mut body = Vec::new();
            // It asks for the size of each in turn.
            let mut numbers = numbers.into_iter();
            let size = |_: &_| numbers.next().map(|number| granted.stack.size(number));
            request.answer(size, &mut body);
            body
        });
        Ok(Ok((body.await?, room)))
    }
}

/// Makes sure that sending can begin and that no pack is missing; a bucket that is silent is given little time, since the primary can answer.
async fn at_hand(source: &Blocks, plan: &Plan, stack: &Stack) -> Result<(), StoreError> {
    let begins = tokio::time::timeout(BUCKET_PATIENCE, source.at_hand(plan, stack));
    begins
        .await
        .unwrap_or_else(|_| Err(StoreError::unavailable("read a pack", "the store did not answer in time")))
}

/// Why there is no plan.
enum Unprepared {
    /// The node could not make one.
    Failed(Failed),
    /// There is none.
    NoPlan(NoPlan),
}

impl From<Failed> for Unprepared {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<NoPlan> for Unprepared {
    fn from(trouble: NoPlan) -> Self {
        Self::NoPlan(trouble)
    }
}
