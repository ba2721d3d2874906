//! The probe: does this store keep the promises that everything else rests on?
//!
//! Some S3 servers answer 200 to a conditional write and overwrite all the same; with one of those, two nodes would
//! publish over each other unseen. So before anything is written in earnest the promises are tried on throw-away keys,
//! and any surprise means no. Relies on nothing. Source of the list: the conditional-write behaviour of S3
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html>).

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::Error as Foreign;
use object_store::path::Path;

use super::{Bucket, StoreError, nonce};
use crate::boot::time_of_day;

/// Writers that create one key at the same time.
const RACERS: usize = 8;

/// What is tried, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A key is created.
    Create,
    /// The same key is created again: it must exist.
    CreateAgain,
    /// The first writer's bytes are read back.
    ReadBack,
    /// Some bytes from the middle are read.
    Range,
    /// A listing shows the key.
    List,
    /// Several writers create one key at once: exactly one must win.
    Race,
    /// The keys are deleted, and gone.
    Delete,
}

impl Step {
    /// The step in words.
    fn describe(self) -> &'static str {
        match self {
            Self::Create => "creating an object",
            Self::CreateAgain => "creating an object that exists",
            Self::ReadBack => "reading an object back",
            Self::Range => "reading a range of an object",
            Self::List => "listing an object just written",
            Self::Race => "creating one object from several writers at once",
            Self::Delete => "deleting an object",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// A store that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The steps that were tried and how long each took.
    pub steps: Vec<(Step, Duration)>,
    /// How far the store's clock is ahead of ours, in seconds; negative: behind. Within the time that its answer took.
    pub clock_ahead: i64,
}

/// A store that did not pass, and what an operator can do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store {store} cannot be used: {step}: {explanation}")]
pub struct ProbeFailed {
    /// [`Bucket::name`].
    pub store: String,
    /// The step that went wrong.
    pub step: Step,
    /// What happened and what to do, in whole sentences.
    pub explanation: String,
    /// The error met, if the store gave one.
    #[source]
    pub source: Option<StoreError>,
}

impl ProbeFailed {
    /// Says whether the store was merely not reachable, so that the same probe may pass later.
    pub fn is_transient(&self) -> bool {
        self.source.as_ref().is_some_and(StoreError::is_transient)
    }
}

impl Bucket {
    /// Tries the store on keys under `.probe/`. Refuses on any surprise.
    pub async fn probe(&self) -> Result<Probe, ProbeFailed> {
        let folder = Path::from(".probe");
        let nonce = nonce();
        let key = folder.clone().join(nonce.as_str());
        let raced = folder.clone().join(format!("{nonce}-race"));
        let result = self.probe_steps(&folder, &key, &raced).await;
        if result.is_err() {
            // Best effort: whoever refuses the store should not litter it.
            let _ = self.remove(&key).await;
            let _ = self.remove(&raced).await;
        }
        result
    }

    async fn probe_steps(&self, folder: &Path, key: &Path, raced: &Path) -> Result<Probe, ProbeFailed> {
        let body = Bytes::from(format!("packmirror probe {key}\n"));
        let mut steps = Vec::new();
        let mut start = Instant::now();
        let mut passed = |step| {
            steps.push((step, start.elapsed()));
            start = Instant::now();
        };

        let before = time_of_day();
        let step = Step::Create;
        self.try_create(key, body.clone())
            .await
            .map_err(|error| self.failed(step, self.sort("create", key, error)))?;
        passed(step);
        let after = time_of_day();

        let step = Step::CreateAgain;
        match self.try_create(key, "a second writer's bytes\n".into()).await {
            Err(Foreign::AlreadyExists { .. } | Foreign::Precondition { .. }) => {}
            Ok(()) => return Err(self.surprise(step, NO_CONDITIONS)),
            Err(error) => return Err(self.failed(step, self.sort("create", key, error))),
        }
        passed(step);

        let step = Step::ReadBack;
        let found = self.read(key).await.map_err(|error| self.failed(step, error))?;
        if found != body {
            return Err(self.surprise(step, NO_CONDITIONS));
        }
        passed(step);

        let step = Step::Range;
        let found = self.read_range(key, 3..9).await.map_err(|error| self.failed(step, error))?;
        if found != body[3..9] {
            let what = "It did not give exactly the bytes asked for. Use a store that honours the Range header; a proxy or \
                cache in between may be dropping it.";
            return Err(self.surprise(step, what));
        }
        passed(step);

        let step = Step::List;
        let listing = self.inner.store.list(Some(&self.at(folder)));
        let listed: Vec<_> = listing
            .try_collect()
            .await
            .map_err(|error| self.failed(step, self.sort("list", folder, error)))?;
        let Some(entry) = listed.iter().find(|entry| self.below(&entry.location).as_ref() == Some(key))
        else {
            let what = "The listing did not show an object written just before. Use a store whose listings are up to date \
                (Amazon S3, MinIO and versitygw are); a cache in front of the store must not keep listings.";
            return Err(self.surprise(step, what));
        };
        let clock_ahead = ahead(entry.last_modified.into(), before, after);
        passed(step);

        let step = Step::Race;
        let bodies = (0..RACERS).map(|n| Bytes::from(format!("racer {n} of {raced}\n")));
        let racers = bodies.map(|body| async {
            let outcome = self.try_create(raced, body.clone()).await;
            (body, outcome)
        });
        let mut winners = Vec::new();
        let mut trouble = None;
        for (body, outcome) in join_all(racers).await {
            match outcome {
                Ok(()) => winners.push(body),
                Err(Foreign::AlreadyExists { .. } | Foreign::Precondition { .. }) => {}
                Err(error) => trouble = Some(self.sort("create", raced, error)),
            }
        }
        if winners.len() > 1 {
            let what = "Several writers were told that they created the same object: the store checks and writes in two \
                steps. Use a store with atomic conditional writes (Amazon S3, MinIO, versitygw, or a plain directory).";
            return Err(self.surprise(step, what));
        }
        let found = match self.read(raced).await {
            Ok(found) => Some(found),
            // Conflicts all round (409) may leave nothing; no winner then.
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(self.failed(step, error)),
        };
        match (winners.first(), found, trouble) {
            (Some(winner), Some(found), _) if *winner == found => {}
            // A lost reply: somebody's bytes are there and nobody else was told that they won.
            (None, _, Some(error)) => return Err(self.failed(step, error)),
            (None, _, None) => {}
            _ => return Err(self.surprise(step, NO_CONDITIONS)),
        }
        passed(step);

        let step = Step::Delete;
        for key in [key, raced] {
            self.remove(key).await.map_err(|error| self.failed(step, error))?;
            match self.read(key).await {
                Err(StoreError::NotFound { .. }) => {}
                Ok(_) => {
                    let what = "A deleted object can still be read. Use a store with read-after-delete consistency; a cache \
                        in front of the store must not keep objects under this prefix.";
                    return Err(self.surprise(step, what));
                }
                Err(error) => return Err(self.failed(step, error)),
            }
        }
        passed(step);
        Ok(Probe { steps, clock_ahead })
    }

    /// The store answered, but not as it must.
    fn surprise(&self, step: Step, explanation: &str) -> ProbeFailed {
        ProbeFailed { store: self.name().to_owned(), step, explanation: explanation.to_owned(), source: None }
    }

    /// The store answered with an error.
    fn failed(&self, step: Step, error: StoreError) -> ProbeFailed {
        let advice = match &error {
            StoreError::Unavailable { .. } => {
                "Check that the endpoint is right and reachable from here, and that the server is up; it is tried again."
            }
            // It says itself what to do.
            StoreError::Refused { .. } if error.cause().is_some() => "",
            StoreError::Refused { .. } => {
                "Check that the bucket exists (packmirror does not create it), the region, the credentials, and that they \
                 allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket under the prefix. For a directory: \
                 that this user may write there and that its file system has hard links."
            }
            StoreError::NotFound { .. } => {
                "An object vanished right after it was written: use a store that is consistent, with no cache in front."
            }
            _ => "Check the store's own log.",
        };
        let explanation = format!("{}. {advice}", error.chain()).trim_end_matches([' ', '.']).to_owned();
        ProbeFailed { store: self.name().to_owned(), step, explanation, source: Some(error) }
    }
}

/// Seconds by which `stamp` is off a time between `before` and `after`; stores keep whole seconds.
fn ahead(stamp: SystemTime, before: SystemTime, after: SystemTime) -> i64 {
    let seconds = |time: SystemTime| match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0,
    };
    let (stamp, before, after) = (seconds(stamp), seconds(before), seconds(after));
    if stamp < before { stamp - before } else { (stamp - after).max(0) }
}

/// The explanation for the fault that matters most.
const NO_CONDITIONS: &str = "The store overwrote an object although it was told to create it only if absent \
    (If-None-Match: *). Several nodes would silently undo each other's work, so packmirror does not use it. Use a store with \
    conditional writes (Amazon S3, MinIO, versitygw, or a plain directory), or a newer version of this one.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::{Fault, Faulty, Op, at_once};
    use object_store::memory::InMemory;

    fn bucket() -> (Bucket, std::sync::Arc<Faulty>) {
        let faulty = Faulty::over(InMemory::new());
        (Bucket::over(faulty.clone(), "farm").with_policy(at_once(1)), faulty)
    }

    #[tokio::test]
    async fn a_good_store_passes_and_is_left_clean() {
        let (bucket, faulty) = bucket();
        let probe = bucket.probe().await.unwrap();
        assert_eq!(probe.steps.len(), 7);
        assert_eq!(faulty.keys().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_store_that_ignores_conditions_is_refused() {
        let (bucket, faulty) = bucket();
        faulty.always(Op::Create, Fault::ConditionIgnored);
        let failed = bucket.probe().await.unwrap_err();
        assert_eq!(failed.step, Step::CreateAgain);
        assert!(failed.explanation.contains("If-None-Match"), "{failed}");
        assert!(!failed.is_transient());
        assert_eq!(faulty.keys().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_store_that_lets_two_racers_win_is_refused() {
        let (bucket, faulty) = bucket();
        // The first two creates are the steps before; of the racers, the second one overwrites.
        faulty.on(Op::Create, 4, Fault::ConditionIgnored);
        assert_eq!(bucket.probe().await.unwrap_err().step, Step::Race);
    }

    #[tokio::test]
    async fn every_fault_at_every_call_is_refused_or_harmless() {
        let (bucket, faulty) = bucket();
        bucket.probe().await.unwrap();
        let calls = faulty.total();
        for n in 1..=calls {
            for fault in [
                Fault::Unavailable,
                Fault::ReplyLost,
                Fault::Refused,
                Fault::Missing,
                Fault::ShortBody,
                Fault::CorruptByte,
                Fault::ConditionIgnored,
            ] {
                faulty.reset();
                faulty.nth(n, fault.clone());
                match bucket.probe().await {
                    Ok(_) => {}
                    Err(failed) => {
                        assert!(failed.explanation.len() > 40, "{failed}");
                        if matches!(fault, Fault::Unavailable | Fault::ReplyLost) {
                            assert!(failed.is_transient(), "call {n}: {failed}");
                        }
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn the_words_name_the_step_and_what_to_do() {
        for (op, fault, step, word) in [
            (Op::Create, Fault::Unavailable, Step::Create, "reachable"),
            (Op::Create, Fault::Refused, Step::Create, "s3:PutObject"),
            (Op::Create, Fault::Missing, Step::Create, "bucket exists"),
            (Op::Range, Fault::ShortBody, Step::Range, "Range header"),
            (Op::List, Fault::Missing, Step::List, "listing"),
            (Op::Delete, Fault::Refused, Step::Delete, "s3:DeleteObject"),
        ] {
            let (bucket, faulty) = bucket();
            faulty.always(op, fault);
            let failed = bucket.probe().await.unwrap_err();
            assert_eq!(failed.step, step);
            assert!(failed.to_string().contains(word), "{failed}");
        }
    }

    #[test]
    fn a_clock_is_off_by_what_no_answer_took() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (stamp, off) in [(100, 0), (105, 0), (110, 0), (99, -1), (40, -60), (170, 60)] {
            assert_eq!(ahead(at(stamp), at(100), at(110)), off, "{stamp}");
        }
    }
}
