//! Whether what is published reaches what is wanted.
//!
//! Relies on: a grant, `mirror` for snapshots and for catching up. Elsewhere: what is sent (`prepare`).

use std::sync::Arc;

use gix_hash::ObjectId;

use crate::answer::reason::Reason;
use crate::answer::{Answers, Failed, numbers};
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Granted;
use crate::pack::Gid;
use crate::pack::filter::trees::TreeError;
use crate::pack::meter::Halt;
use crate::primary::Grant;
use crate::text::chain;

/// What is published, compared with what is wanted.
enum Reached {
    All(Granted, Vec<Gid>),
    NotAll,
    /// It cannot be told here.
    Unknown(Reason),
}

impl Answers {
    /// Opens a published state that reaches all of `wants`, waiting for a sync if need be, and gives their numbers there; or
    /// says why the primary is the one to answer.
    pub async fn open(
        &self,
        repo: &Arc<Repo>,
        grant: &Grant,
        wants: &[ObjectId],
    ) -> Result<Result<(Granted, Vec<Gid>), Reason>, Failed> {
        match self.reaching(repo, grant, wants).await? {
            Reached::All(granted, wants) => return Ok(Ok((granted, wants))),
            Reached::Unknown(reason) => return Ok(Err(reason)),
            Reached::NotAll => {}
        }
        if self.mirror.catch_up(repo, wants, self.sync_wait).await.is_some()
            && let Reached::All(granted, wants) = self.reaching(repo, grant, wants).await?
        {
            return Ok(Ok((granted, wants)));
        }
        Ok(Err(Reason::UnknownWant))
    }

    /// Looks whether what the present snapshot publishes reaches all of `wants`.
    async fn reaching(&self, repo: &Arc<Repo>, grant: &Grant, wants: &[ObjectId]) -> Result<Reached, Failed> {
        let Some(granted) = repo.snapshot().and_then(|snapshot| snapshot.open_packs(grant)) else {
            return Ok(Reached::NotAll);
        };
        let named: Arc<[ObjectId]> = wants.into();
        let found = {
            let (granted, named) = (granted.clone(), Arc::clone(&named));
            self.compute_many(wants.len(), move || {
                let numbers = numbers::all(&granted, &named)?;
                Some((numbers, named.iter().all(|oid| granted.is_tip(oid))))
            })
        };
        let Some((numbers, are_tips)) = found.await? else { return Ok(Reached::NotAll) };
        // Tips are reachable by definition; only other wants need the set of all that is.
        if are_tips {
            return Ok(Reached::All(granted, numbers));
        }
        if let Err(failed) = self.publish(&granted).await? {
            return Ok(Reached::Unknown(leave(repo, &granted, &failed)));
        }
        let reached =
            self.compute_many(wants.len(), move || match are_published(&granted, &named, &numbers) {
                true => Reached::All(granted, numbers),
                false => Reached::NotAll,
            });
        reached.await
    }

    /// Makes the set of all that is published, unless it is there: once however many ask, in one turn. An error of the inner
    /// kind says why it cannot be made.
    pub(super) async fn publish(&self, granted: &Granted) -> Result<Result<(), TreeError>, Failed> {
        let make = async || {
            let snapshot = granted.clone();
            let made = self.compute(move |meter| snapshot.make_reach(meter)).await.map_err(Err)?;
            made.map_err(|e| match e {
                TreeError::Halt(halt @ (Halt::Busy | Halt::Stopped)) => Err(halt.into()),
                e => Ok(e),
            })
        };
        match granted.reach().get_or_try_init(make).await {
            Ok(_) => Ok(Ok(())),
            Err(Ok(failed)) => Ok(Err(failed)),
            Err(Err(failed)) => Err(failed),
        }
    }
}

/// Says whether what is published reaches each of `oids`, whose numbers are `numbers`.
fn are_published(granted: &Granted, oids: &[ObjectId], numbers: &[Gid]) -> bool {
    let reach = granted.reach().get();
    let reached = |number| reach.is_some_and(|reach| reach.contains(number));
    oids.iter().zip(numbers).all(|(oid, number)| granted.is_tip(oid) || reached(*number))
}

/// Why the primary answers what cannot be told or planned here; what is wrong with stored data is reported.
pub(super) fn leave(repo: &Repo, granted: &Granted, why: &TreeError) -> Reason {
    repo.report_damage(&granted.generation, why);
    tracing::warn!(repo = %repo.path, error = chain(why), "passed to the primary");
    if why.costs_too_much() { Reason::TooCostly } else { Reason::BucketDown }
}
