//! The decision about a fetch.
//!
//! Nothing is sent before everything that could still lead to the primary is decided: every want is reachable from what is
//! published, the plan is made, and its first bytes could be read. Follows the order of git's `upload-pack.c`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gix_hash::ObjectId;

use crate::answer::plans::Key;
use crate::answer::prepare::{Trouble, named, needs_reach, prepare};
use crate::answer::reaching::{MANY, leave};
use crate::answer::reason::Reason;
use crate::answer::{Answers, Decision, Failed, Ready};
use crate::budget::Room;
use crate::config::Freshness;
use crate::git::object_info::ObjectInfo;
use crate::git::request::FetchRequest;
use crate::git::response::unknown_ref;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Granted;
use crate::pack::filter::trees::TreeError;
use crate::pack::meter::Halt;
use crate::pack::plan::Plan;
use crate::primary::Grant;
use crate::store::StoreError;
use crate::telemetry::metrics as names;

/// How long a fetch waits for its first byte from the bucket.
const BUCKET_PATIENCE: Duration = Duration::from_secs(10);
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
        let granted = match self.open(repo, grant, &request.wants).await? {
            Ok(granted) => granted,
            Err(reason) => return Ok(Decision::Pass(reason)),
        };
        let mut wants = request.wants.clone();
        for name in &request.want_refs {
            match named(&granted, name.as_ref()) {
                Some(oid) => wants.push(oid),
                None => return Ok(Decision::Refuse(unknown_ref(name.as_ref()))),
            }
        }
        if request.v0.is_some() && !granted.are_tips_or_commits(&wants) {
            // v0 serves what the advertised refs reach; for other objects than commits that depends on settings we cannot see.
            return Ok(Decision::Pass(Reason::NotOurs));
        }
        if needs_reach(&request)
            && let Err(failed) = self.publish(&granted).await?
        {
            return Ok(Decision::Pass(leave(repo, &granted, &failed)));
        }
        self.plan(repo, granted, Arc::new(request), wants).await
    }

    /// Why the request is not for this node, as far as that can be told without a look at what is published; waits until what
    /// is published is what the client was shown.
    async fn not_ours(&self, repo: &Repo, request: &FetchRequest) -> Option<Reason> {
        if !request.unknown.is_empty() || !request.packfile_uris.is_empty() {
            return Some(Reason::NotOurs);
        }
        let capabilities = repo.health().capabilities.clone();
        if request.v0.is_none() && capabilities.is_some_and(|caps| request.unoffered(&caps).is_some()) {
            return Some(Reason::NotOffered);
        }
        let settings = &self.mirror.settings;
        if !request.want_refs.is_empty() && settings.freshness == Freshness::Strict {
            // The names are to be read as they stand now, and no `ls-refs` of this client says how that is.
            let ticket = repo.ask();
            let confirmed = tokio::time::timeout(settings.sync_wait, repo.settled(ticket)).await;
            if confirmed != Ok(true) {
                return Some(Reason::NotConfirmed);
            }
        }
        if request.include_tag
            && let Some(ticket) = repo.tags_on_their_way()
        {
            let _ = tokio::time::timeout(settings.sync_wait, repo.settled(ticket)).await;
        }
        None
    }

    async fn plan(
        &self,
        repo: &Arc<Repo>,
        granted: Granted,
        request: Arc<FetchRequest>,
        wants: Vec<ObjectId>,
    ) -> Result<Decision, Failed> {
        let begun = Instant::now();
        let key = self.key(&granted, &request).await?;
        let make = async {
            let (granted, request) = (granted.clone(), Arc::clone(&request));
            let made = self.compute(move |meter| prepare(&granted, &request, &wants, meter)).await?;
            let mut prepared = made?;
            prepared.hold(self.readers.try_take(prepared.size() as u64).map_err(Failed::from)?);
            Ok::<_, Unprepared>(prepared)
        };
        let prepared = match self.plans.get(key, &granted.generation.layers, make).await {
            Ok(prepared) => prepared,
            Err(Unprepared::Failed(failed)) => return Err(failed),
            Err(Unprepared::Trouble(Trouble::Refuse(words))) => return Ok(Decision::Refuse(words)),
            Err(Unprepared::Trouble(Trouble::Trees(TreeError::Halt(Halt::Busy | Halt::Stopped)))) => {
                return Err(Failed::Busy);
            }
            Err(Unprepared::Trouble(Trouble::Trees(e))) => {
                return Ok(Decision::Pass(leave(repo, &granted, &e)));
            }
        };
        if let Some(plan) = &prepared.plan {
            if let Err(halt) = self.work.fits(plan.room) {
                tracing::warn!(repo = %repo.path, error = %halt, "an object is too large to be packed anew; passed to the primary");
                return Err(Failed::TooCostly);
            }
            metrics::histogram!(names::FETCH_SECONDS, "phase" => "plan")
                .record(begun.elapsed().as_secs_f64());
            if let Err(e) = at_hand(&granted, plan).await {
                // Nothing was sent yet, so the primary can still answer.
                tracing::warn!(repo = %repo.path, error = e.chain(), "a stored pack cannot be read; passed to the primary");
                repo.report_damage(&granted.generation, &e);
                return Ok(Decision::Pass(Reason::BucketDown));
            }
        }
        Ok(Decision::Send(Box::new(Ready { granted, request, prepared })))
    }

    /// The key of a request's plan.
    async fn key(&self, granted: &Granted, request: &Arc<FetchRequest>) -> Result<Key, Failed> {
        if request.wants.len().max(request.haves.len()) < MANY {
            return Ok(Key::of(granted, request));
        }
        let (granted, request) = (granted.clone(), Arc::clone(request));
        self.compute(move |_| Key::of(&granted, &request)).await
    }

    /// The answer to `object-info`, with what it takes of the memory for readers; or why the primary gives it.
    pub async fn object_info(
        &self,
        repo: &Arc<Repo>,
        grant: &Grant,
        request: ObjectInfo,
    ) -> Result<Result<(Vec<u8>, Room), Reason>, Failed> {
        let granted = match self.open(repo, grant, &request.oids).await? {
            Ok(granted) => granted,
            Err(reason) => return Ok(Err(reason)),
        };
        let room = self.readers.try_take(OBJECT_INFO * request.oids.len() as u64)?;
        let body = self.compute(move |_| {
            let mut body = Vec::new();
            // `open` has found all of them published.
            let size = |oid: &ObjectId| granted.stack.lookup(oid).map(|gid| granted.stack.size(gid));
            request.answer(size, &mut body);
            body
        });
        Ok(Ok((body.await?, room)))
    }
}

/// Makes sure that sending can begin; a bucket that is silent is given little time, since the primary can answer.
async fn at_hand(granted: &Granted, plan: &Plan) -> Result<(), StoreError> {
    let begins = tokio::time::timeout(BUCKET_PATIENCE, granted.source().at_hand(plan));
    begins
        .await
        .unwrap_or_else(|_| Err(StoreError::unavailable("read a pack", "the store did not answer in time")))
}

/// Why there is no plan.
enum Unprepared {
    /// The node could not make one.
    Failed(Failed),
    /// There is none.
    Trouble(Trouble),
}

impl From<Failed> for Unprepared {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<Trouble> for Unprepared {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}
