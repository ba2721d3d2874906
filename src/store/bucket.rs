//! The bucket: a store, a prefix in it, and the few ways in which everything else reads and writes it.
//!
//! Keys in errors and arguments are relative to the prefix. Here a foreign error becomes a [`StoreError`], short answers
//! are noticed, and a conditional write whose reply was lost is settled by reading back. Relies on: a store that passed
//! the probe ([`super::probe`]). Elsewhere: blobs ([`super::blobs`]), generations ([`super::generations`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as Foreign, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::StoreError;
use super::error::is_expired_token;

/// The layout version written into `<prefix>/format`.
pub const LAYOUT: u32 = 1;

/// Upload parts in memory at once, over all uploads through one [`Bucket`].
const PARTS_IN_FLIGHT: usize = 6;

/// How patiently the store is asked. The first attempt is not counted as a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Retries of one request.
    pub attempts: u32,
    /// The first wait is random below this; the bound doubles each time.
    pub base: Duration,
    /// No wait is longer.
    pub cap: Duration,
    /// After this time no retry is started.
    pub budget: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 6,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(5),
            budget: Duration::from_secs(30),
        }
    }
}

impl Retry {
    /// Retries without waiting: for tests.
    pub fn at_once() -> Self {
        Self { base: Duration::ZERO, cap: Duration::ZERO, ..Self::default() }
    }

    /// The wait before retry number `attempt` (from 0): full jitter below an exponential bound.
    fn wait(&self, attempt: u32) -> Duration {
        let bound = self.base.saturating_mul(1 << attempt.min(16)).min(self.cap);
        bound.mul_f64(rand::random::<f64>())
    }
}

/// A prefix of a store: all that the nodes of a farm share. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) store: Arc<dyn ObjectStore>,
    prefix: Path,
    name: String,
    /// Listings come in order of keys, so the first entry is the newest generation.
    pub(super) ordered: bool,
    pub(super) retry: Retry,
    /// Forgets cached credentials, if there are any that can be renewed.
    renew: Option<Arc<dyn Fn() + Send + Sync>>,
    pub(super) parts: Semaphore,
    /// When each repository's newest generation was last known for sure.
    pub(super) known: Mutex<HashMap<String, Instant>>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.inner.name)
    }
}

/// How a conditional create ended, after an unknown outcome was settled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// The key holds our bytes, written by this call or by an earlier one whose reply was lost.
    Ours,
    /// The key holds these other bytes.
    Other(Bytes),
}

impl Bucket {
    /// Uses `store` below `prefix` (empty for all of it). Makes no request.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let name = format!("{store}/{prefix}");
        Self::build(store, Path::from(prefix), name, Retry::default(), false, None)
    }

    pub(super) fn build(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        name: String,
        retry: Retry,
        ordered: bool,
        renew: Option<Arc<dyn Fn() + Send + Sync>>,
    ) -> Self {
        let parts = Semaphore::new(PARTS_IN_FLIGHT);
        let known = Mutex::default();
        Self { inner: Arc::new(Inner { store, prefix, name, ordered, retry, renew, parts, known }) }
    }

    /// The same bucket, asked with other patience.
    pub fn with_retry(&self, retry: Retry) -> Self {
        let Inner { store, prefix, name, ordered, renew, .. } = &*self.inner;
        Self::build(store.clone(), prefix.clone(), name.clone(), retry, *ordered, renew.clone())
    }

    /// What the bucket is called in logs, and what tells one bucket's local records from another's. No secrets.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Creates `<prefix>/format`, or checks that this program knows the layout that lies there.
    pub async fn ensure_format(&self) -> Result<(), StoreError> {
        #[derive(Serialize, Deserialize)]
        struct Format {
            /// The layout's version.
            packmirror: u32,
        }
        let key = Path::from("format");
        let found = match self.read(&key).await {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => {
                let ours = Bytes::from(format!("{{\"packmirror\":{LAYOUT}}}\n"));
                match self.create(&key, ours.clone()).await? {
                    Created::Ours => ours,
                    Created::Other(found) => found,
                }
            }
            Err(error) => return Err(error),
        };
        let format: Format = serde_json::from_slice(&found)
            .map_err(|error| StoreError::damaged(&key, format!("not a layout version: {error}")))?;
        if format.packmirror != LAYOUT {
            return Err(StoreError::Newer { key: key.to_string(), found: format.packmirror, known: LAYOUT });
        }
        Ok(())
    }

    /// The key in the store.
    pub(super) fn at(&self, key: &Path) -> Path {
        self.inner.prefix.parts().chain(key.parts()).collect()
    }

    /// The key below the prefix, of a key that a listing gave.
    pub(super) fn below(&self, location: &Path) -> Option<Path> {
        Some(location.prefix_match(&self.inner.prefix)?.collect())
    }

    /// Sorts an error and, if credentials have run out early, drops them so that the next request gets fresh ones.
    pub(super) fn sort(&self, verb: &str, key: &Path, error: Foreign) -> StoreError {
        if let Some(renew) = &self.inner.renew
            && is_expired_token(&error)
        {
            renew();
            return StoreError::unavailable(format!("{verb} {key}"), format!("credentials ran out: {error}"));
        }
        StoreError::from_store(verb, key, error)
    }

    /// Reads a whole object. A body shorter than the store announced is read once more.
    pub(super) async fn read(&self, key: &Path) -> Result<Bytes, StoreError> {
        let mut found = 0;
        for _ in 0..2 {
            let sort = |error| self.sort("get", key, error);
            let answer = self.inner.store.get(&self.at(key)).await.map_err(sort)?;
            let size = answer.meta.size;
            let bytes = answer.bytes().await.map_err(sort)?;
            if bytes.len() as u64 == size {
                return Ok(bytes);
            }
            found = bytes.len();
        }
        Err(StoreError::unavailable(format!("get {key}"), format!("the body ended after {found} bytes")))
    }

    /// Reads `range` of an object; the answer may be shorter if the object is.
    pub(super) async fn read_range(
        &self,
        key: &Path,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let sort = |error| self.sort("get", key, error);
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..Default::default() };
        let answer = self.inner.store.get_opts(&self.at(key), options).await.map_err(sort)?;
        answer.bytes().await.map_err(sort)
    }

    /// The stored length of an object.
    pub(super) async fn length(&self, key: &Path) -> Result<u64, StoreError> {
        let meta = self.inner.store.head(&self.at(key)).await.map_err(|e| self.sort("head", key, e))?;
        Ok(meta.size)
    }

    /// Writes an object whatever was there.
    pub(super) async fn overwrite(&self, key: &Path, bytes: Bytes) -> Result<(), StoreError> {
        let put = self.inner.store.put(&self.at(key), bytes.into()).await;
        put.map(drop).map_err(|error| self.sort("put", key, error))
    }

    /// One conditional write, not settled.
    pub(super) async fn try_create(&self, key: &Path, bytes: Bytes) -> Result<(), Foreign> {
        self.inner.store.put_opts(&self.at(key), bytes.into(), PutMode::Create.into()).await.map(drop)
    }

    /// Removes an object; one that is not there is as good.
    pub(super) async fn remove(&self, key: &Path) -> Result<(), StoreError> {
        match self.inner.store.delete(&self.at(key)).await {
            Ok(()) | Err(Foreign::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.sort("delete", key, error)),
        }
    }

    /// Creates `key` with `bytes`, which nobody else writes. Whatever the reply, what counts is what lies there after:
    /// "exists" may be our own earlier attempt, a conflict (409) or a lost reply may have left nothing.
    pub(super) async fn create(&self, key: &Path, bytes: Bytes) -> Result<Created, StoreError> {
        let mut patience = self.patience();
        loop {
            let mut error = match self.try_create(key, bytes.clone()).await {
                Ok(()) => return Ok(Created::Ours),
                Err(error) => self.sort("create", key, error),
            };
            if matches!(error, StoreError::Refused { .. }) {
                return Err(error);
            }
            match self.read(key).await {
                Ok(found) if found == bytes => return Ok(Created::Ours),
                Ok(found) => return Ok(Created::Other(found)),
                Err(StoreError::NotFound { .. }) => {}
                Err(unread) if unread.is_transient() => error = unread,
                Err(unread) => return Err(unread),
            }
            if !patience.wait().await {
                return Err(error);
            }
        }
    }

    /// Counts our own attempts at something that takes several requests.
    pub(super) fn patience(&self) -> Patience {
        Patience { retry: self.inner.retry, attempt: 0, start: Instant::now() }
    }
}

/// Attempts at an operation made of several requests: few, since each request has its own retries below.
pub(super) struct Patience {
    retry: Retry,
    attempt: u32,
    start: Instant,
}

impl Patience {
    /// Waits before the next attempt; false if there is none left.
    pub(super) async fn wait(&mut self) -> bool {
        if self.attempt >= self.retry.attempts.min(3) || self.start.elapsed() > self.retry.budget {
            return false;
        }
        let wait = self.retry.wait(self.attempt);
        self.attempt += 1;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::{Fault, Faulty, Op};
    use object_store::memory::InMemory;

    fn bucket() -> (Bucket, Arc<Faulty>) {
        let faulty = Faulty::over(InMemory::new());
        (Bucket::over(faulty.clone(), "farm/one").with_retry(Retry::at_once()), faulty)
    }

    #[tokio::test]
    async fn the_format_is_made_once_and_checked() {
        let (bucket, faulty) = bucket();
        bucket.ensure_format().await.unwrap();
        bucket.ensure_format().await.unwrap();
        assert_eq!(faulty.counts()[&Op::Create], 1);
        let key = Path::from("format");
        bucket.overwrite(&key, "{\"packmirror\":9}".into()).await.unwrap();
        assert!(matches!(bucket.ensure_format().await, Err(StoreError::Newer { found: 9, .. })));
        bucket.overwrite(&key, "nonsense".into()).await.unwrap();
        assert!(matches!(bucket.ensure_format().await, Err(StoreError::Damaged { .. })));
    }

    #[tokio::test]
    async fn a_lost_reply_is_settled_by_reading_back() {
        let (bucket, faulty) = bucket();
        let key = Path::from("a/b");
        faulty.on(Op::Create, 1, Fault::ReplyLost);
        assert_eq!(bucket.create(&key, "mine".into()).await.unwrap(), Created::Ours);
        assert_eq!(bucket.create(&key, "theirs".into()).await.unwrap(), Created::Other("mine".into()));
    }

    #[tokio::test]
    async fn a_conflict_that_left_nothing_is_tried_again() {
        let (bucket, faulty) = bucket();
        faulty.on(Op::Create, 1, Fault::Conflict);
        assert_eq!(bucket.create(&"k".into(), "mine".into()).await.unwrap(), Created::Ours);
        assert_eq!(faulty.counts()[&Op::Create], 2);
    }

    #[tokio::test]
    async fn a_short_body_is_read_again() {
        let (bucket, faulty) = bucket();
        bucket.overwrite(&"k".into(), "0123456789".into()).await.unwrap();
        faulty.on(Op::Get, 1, Fault::ShortBody);
        assert_eq!(bucket.read(&"k".into()).await.unwrap(), "0123456789");
        faulty.always(Op::Get, Fault::ShortBody);
        assert!(bucket.read(&"k".into()).await.unwrap_err().is_transient());
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let retry = Retry { base: Duration::from_secs(1), cap: Duration::from_secs(3), ..Retry::default() };
        for attempt in 0..40 {
            let bound = Duration::from_secs(3).min(Duration::from_secs(1 << attempt.min(8)));
            assert!(retry.wait(attempt) <= bound);
        }
        assert_eq!(Retry::at_once().wait(30), Duration::ZERO);
    }
}
