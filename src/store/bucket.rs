//! The bucket: a store, a prefix in it, and the few ways in which everything else reads and writes it.
//!
//! Keys in errors and arguments are relative to the prefix. Here a foreign error becomes a [`StoreError`], short answers
//! are noticed, and a conditional write whose reply was lost is settled by reading back. Relies on: a store that passed
//! the probe ([`super::probe`]). Elsewhere: blobs ([`super::blobs`]), generations ([`super::generations`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    Error as Foreign, GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode,
};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::error::is_expired_token;
use super::{Name, StoreError};
use crate::boot::Boot;
use crate::retry::{GaveUp, Policy};

/// The layout version written into `<prefix>/format`.
pub const LAYOUT: u32 = 1;

/// The key of the layout version.
const FORMAT: &str = "format";

/// The longest object that is read as a whole without its length being known before: records are far shorter.
pub(super) const MOST_RECORD: u64 = 32 << 20;

/// Upload parts in memory at once, over all uploads through one [`Bucket`].
const PARTS_IN_FLIGHT: usize = 6;

/// A prefix of a store: all that the nodes of a farm share. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    parts: Parts,
    /// Upload parts in memory.
    pub(super) in_flight: Semaphore,
    /// When each repository's newest generation was last known for sure.
    pub(super) known: Mutex<HashMap<String, Boot>>,
    /// Blobs that were stored through this bucket where there was none, and when that began ([`super::tombs`]).
    pub(super) fresh: Mutex<HashMap<Name, Boot>>,
    /// Blobs that are about to be deleted however fresh they are, and since when that is known.
    pub(super) doubted: Mutex<HashMap<Name, Boot>>,
    /// Addresses that the primary had before ([`super::owner`]).
    pub(super) former: Mutex<Vec<String>>,
}

impl std::ops::Deref for Inner {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// What a bucket is made of.
#[derive(Clone)]
pub(super) struct Parts {
    /// Answers each request once: repeating is ours.
    pub(super) store: Arc<dyn ObjectStore>,
    /// For uploads in parts: the same store with retries of its own, since a part cannot be sent again from outside.
    pub(super) uploads: Arc<dyn ObjectStore>,
    /// The same, where what is never ended must be aborted by its number.
    pub(super) numbered: Option<Arc<dyn MultipartStore>>,
    pub(super) prefix: Path,
    pub(super) name: String,
    /// Listings come in order of keys, so the first entry is the newest generation.
    pub(super) ordered: bool,
    pub(super) policy: Policy,
    /// No region was set for a bucket at Amazon.
    pub(super) region_is_assumed: bool,
    /// Forgets cached credentials, if there are any that can be renewed.
    pub(super) renew: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// How patiently a store is asked unless told otherwise: six attempts within half a minute.
pub(super) fn default_policy() -> Policy {
    Policy::new(Duration::from_millis(100), Duration::from_secs(5))
        .attempts(6)
        .budget(Duration::from_secs(30))
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
        Self::build(Parts {
            uploads: store.clone(),
            numbered: None,
            store,
            prefix: Path::from(prefix),
            name,
            ordered: false,
            policy: default_policy(),
            region_is_assumed: false,
            renew: None,
        })
    }

    pub(super) fn build(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts,
                in_flight: Semaphore::new(PARTS_IN_FLIGHT),
                known: Mutex::default(),
                fresh: Mutex::default(),
                doubted: Mutex::default(),
                former: Mutex::default(),
            }),
        }
    }

    /// The same bucket, asked with other patience.
    pub fn with_policy(&self, policy: Policy) -> Self {
        Self::build(Parts { policy, ..self.inner.parts.clone() })
    }

    /// What the bucket is called in logs, and what tells one bucket's local records from another's. No secrets.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Creates `<prefix>/format`, or checks that this program knows the layout that lies there.
    pub async fn ensure_format(&self) -> Result<(), StoreError> {
        if self.check_format().await? {
            return Ok(());
        }
        let key = Path::from(FORMAT);
        match self.create(&key, format!("{{\"packmirror\":{LAYOUT}}}\n").into()).await? {
            Created::Ours => Ok(()),
            Created::Other(found) => known_format(&key, &found),
        }
    }

    /// Says whether the bucket lies at Amazon, and where was not set.
    pub fn region_is_assumed(&self) -> bool {
        self.inner.region_is_assumed
    }

    /// Checks that this program knows the layout of the store; false where there is no store yet. Writes nothing.
    pub async fn check_format(&self) -> Result<bool, StoreError> {
        let key = Path::from(FORMAT);
        match self.read(&key).await {
            Ok(found) => known_format(&key, &found).map(|()| true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
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
            return StoreError::unavailable(
                format!("{verb} {key}"),
                "the credentials ran out, and fresh ones are fetched",
            );
        }
        StoreError::from_store(verb, key, error)
    }

    /// Repeats `op` by the bucket's policy while its errors are transient.
    pub(super) async fn retrying<T, F>(&self, mut op: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        // Never cancelled: whoever does not want to wait drops the future.
        let stop = CancellationToken::new();
        let halted = |halt: GaveUp<_>| {
            halt.into_error().unwrap_or_else(|| StoreError::unavailable("retry", "stopped"))
        };
        self.inner.policy.run(&stop, |_| op()).await.map_err(halted)
    }

    /// Reads a whole object.
    pub(super) async fn read(&self, key: &Path) -> Result<Bytes, StoreError> {
        self.retrying(|| self.read_once(key)).await
    }

    async fn read_once(&self, key: &Path) -> Result<Bytes, StoreError> {
        let sort = |error| self.sort("get", key, error);
        let answer = self.inner.store.get(&self.at(key)).await.map_err(sort)?;
        let size = answer.meta.size;
        if size > MOST_RECORD {
            return Err(StoreError::damaged(key, format!("{size} bytes, more than any record has")));
        }
        let bytes = body(answer, size).await.map_err(sort)?;
        if bytes.len() as u64 != size {
            let why = format!("the body ended after {} of {size} bytes", bytes.len());
            return Err(StoreError::unavailable(format!("get {key}"), why));
        }
        Ok(bytes)
    }

    /// Reads `range` of an object; the answer may be shorter if the object is.
    pub(super) async fn read_range(
        &self,
        key: &Path,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let sort = |error| self.sort("get", key, error);
        self.retrying(|| async {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..Default::default() };
            let answer = self.inner.store.get_opts(&self.at(key), options).await.map_err(sort)?;
            body(answer, range.end.saturating_sub(range.start)).await.map_err(sort)
        })
        .await
    }

    /// The stored length of an object.
    pub(super) async fn length(&self, key: &Path) -> Result<u64, StoreError> {
        self.retrying(|| self.length_once(key)).await
    }

    pub(super) async fn length_once(&self, key: &Path) -> Result<u64, StoreError> {
        let meta = self.inner.store.head(&self.at(key)).await.map_err(|e| self.sort("head", key, e))?;
        Ok(meta.size)
    }

    /// Writes an object whatever was there.
    pub(super) async fn overwrite(&self, key: &Path, bytes: Bytes) -> Result<(), StoreError> {
        self.retrying(|| async {
            let put = self.inner.store.put(&self.at(key), bytes.clone().into()).await;
            put.map(drop).map_err(|error| self.sort("put", key, error))
        })
        .await
    }

    /// One conditional write, not settled.
    pub(super) async fn try_create(&self, key: &Path, bytes: Bytes) -> Result<(), Foreign> {
        self.inner.store.put_opts(&self.at(key), bytes.into(), PutMode::Create.into()).await.map(drop)
    }

    /// Removes an object; one that is not there is as good.
    pub(super) async fn remove(&self, key: &Path) -> Result<(), StoreError> {
        self.retrying(|| async {
            match self.inner.store.delete(&self.at(key)).await {
                Ok(()) | Err(Foreign::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.sort("delete", key, error)),
            }
        })
        .await
    }

    /// Creates `key` with `bytes`, which nobody else writes.
    pub(super) async fn create(&self, key: &Path, bytes: Bytes) -> Result<Created, StoreError> {
        self.retrying(|| self.create_once(key, &bytes)).await
    }

    /// Whatever the reply, what counts is what lies there after: "exists" may be our own earlier attempt, a conflict (409)
    /// or a lost reply may have left nothing.
    async fn create_once(&self, key: &Path, bytes: &Bytes) -> Result<Created, StoreError> {
        let error = match self.try_create(key, bytes.clone()).await {
            Ok(()) => return Ok(Created::Ours),
            Err(error) => self.sort("create", key, error),
        };
        if matches!(error, StoreError::Refused { .. }) {
            return Err(error);
        }
        match self.read_once(key).await {
            Ok(found) if found == *bytes => Ok(Created::Ours),
            Ok(found) => Ok(Created::Other(found)),
            Err(StoreError::NotFound { .. }) => Err(error),
            Err(unread) => Err(unread),
        }
    }
}

/// Checks a layout mark.
fn known_format(key: &Path, found: &[u8]) -> Result<(), StoreError> {
    #[derive(Deserialize)]
    struct Format {
        /// The layout's version.
        packmirror: u32,
    }
    let format: Format = serde_json::from_slice(found)
        .map_err(|error| StoreError::damaged(key, format!("not a layout version: {error}")))?;
    if format.packmirror != LAYOUT {
        return Err(StoreError::Newer { key: key.to_string(), found: format.packmirror, known: LAYOUT });
    }
    Ok(())
}

/// Reads an answer's body, and no more of it than was asked for.
pub(super) async fn body(answer: GetResult, most: u64) -> Result<Bytes, Foreign> {
    let mut stream = match answer.payload {
        // Its length was taken when it was opened.
        GetResultPayload::File(..) if answer.range.end - answer.range.start <= most => {
            return answer.bytes().await;
        }
        GetResultPayload::File(..) => answer.into_stream(),
        GetResultPayload::Stream(stream) => stream,
    };
    let mut whole = BytesMut::new();
    while let Some(piece) = stream.try_next().await? {
        if (whole.len() + piece.len()) as u64 > most {
            return Err(Foreign::Generic {
                store: "store",
                source: "the answer is longer than was asked for".into(),
            });
        }
        if whole.is_empty() && piece.len() as u64 == most {
            return Ok(piece);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::{Fault, Faulty, Op, at_once};
    use object_store::memory::InMemory;

    fn bucket() -> (Bucket, Arc<Faulty>) {
        let faulty = Faulty::over(InMemory::new());
        (Bucket::over(faulty.clone(), "farm/one").with_policy(at_once(4)), faulty)
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
}
