//! A store that breaks on demand and counts what it is asked: for tests only.
//!
//! It stands between a [`super::Bucket`] and any other store. Faults are planned by number of call, over all calls or
//! over those of one kind, so that a test can try every call of a protocol in turn.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Semaphore;

use crate::retry::Policy;

/// A policy of that many attempts with no time in between.
pub fn at_once(attempts: u32) -> Policy {
    Policy::new(Duration::ZERO, Duration::ZERO).attempts(attempts)
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// An unconditional write.
    Put,
    /// A write with `If-None-Match: *`.
    Create,
    /// The start of an upload in parts.
    Upload,
    /// One part of an upload.
    Part,
    /// The end of an upload.
    Complete,
    /// A whole read.
    Get,
    /// A ranged read.
    Range,
    /// A question for the length.
    Head,
    /// A listing.
    List,
    /// A deletion.
    Delete,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing happens and the answer is 503.
    Unavailable,
    /// It happens, but the answer is lost.
    ReplyLost,
    /// The answer is 403.
    Refused,
    /// The answer is 404; an empty listing.
    Missing,
    /// The answer is 409 or 412 although nothing was written.
    Conflict,
    /// A condition is ignored: the write goes through.
    ConditionIgnored,
    /// Half of the body, under the full length.
    ShortBody,
    /// One bit of the body is flipped.
    CorruptByte,
    /// It works, after a while.
    Latency(Duration),
    /// It works once the gate gives a permit, which it takes.
    Gate(Arc<Semaphore>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Nth(usize),
    NthOf(Op, usize),
    EveryOf(Op),
    Every,
}

#[derive(Debug, Default)]
struct State {
    plan: Vec<(When, Fault)>,
    counts: BTreeMap<Op, usize>,
    total: usize,
}

/// The store that breaks on demand.
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

impl Faulty {
    /// Wraps `store`; nothing breaks until told to.
    pub fn over(store: impl ObjectStore) -> Arc<Self> {
        Self::shared(Arc::new(store))
    }

    /// Wraps a store that others use too: several nodes on one bucket, each with its own faults.
    pub fn shared(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { inner: store, state: Arc::default() })
    }

    /// Breaks the `n`th call from now on counted from the last [`Faulty::reset`], the first being 1.
    pub fn nth(&self, n: usize, fault: Fault) {
        self.lock().plan.push((When::Nth(n), fault));
    }

    /// Breaks the `n`th call of a kind, the first being 1.
    pub fn on(&self, op: Op, n: usize, fault: Fault) {
        self.lock().plan.push((When::NthOf(op, n), fault));
    }

    /// Breaks every call of a kind.
    pub fn always(&self, op: Op, fault: Fault) {
        self.lock().plan.push((When::EveryOf(op), fault));
    }

    /// Breaks every call: the store is down.
    pub fn down(&self, fault: Fault) {
        self.lock().plan.push((When::Every, fault));
    }

    /// Forgets all planned faults, and keeps counting.
    pub fn heal(&self) {
        self.lock().plan.clear();
    }

    /// Forgets all planned faults and starts counting from nothing.
    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    /// Requests by kind since the last [`Faulty::reset`]; kinds without a request are not in it.
    pub fn counts(&self) -> BTreeMap<Op, usize> {
        self.lock().counts.clone()
    }

    /// All requests since the last [`Faulty::reset`].
    pub fn total(&self) -> usize {
        self.lock().total
    }

    /// All keys of the store below, sorted; not counted. Empty if the listing fails.
    pub async fn keys(&self) -> Vec<String> {
        let listing = self.inner.list(None).map_ok(|entry| entry.location.to_string());
        let mut keys: Vec<_> = listing.try_collect().await.unwrap_or_default();
        keys.sort();
        keys
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    async fn count(&self, op: Op) -> Option<Fault> {
        count(&self.state, op).await
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Counts a call and says what goes wrong with it. Waits here if that is all.
async fn count(state: &Mutex<State>, op: Op) -> Option<Fault> {
    wait(tick(state, op)).await
}

/// Waits if that is all the fault does.
async fn wait(fault: Option<Fault>) -> Option<Fault> {
    match fault {
        Some(Fault::Latency(time)) => tokio::time::sleep(time).await,
        Some(Fault::Gate(gate)) => {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
        }
        fault => return fault,
    }
    None
}

fn tick(state: &Mutex<State>, op: Op) -> Option<Fault> {
    let mut state = lock(state);
    state.total += 1;
    let total = state.total;
    let of_kind = state.counts.entry(op).or_default();
    *of_kind += 1;
    let of_kind = *of_kind;
    let hit = |when: &When| match *when {
        When::Nth(n) => n == total,
        When::NthOf(kind, n) => kind == op && n == of_kind,
        When::EveryOf(kind) => kind == op,
        When::Every => true,
    };
    state.plan.iter().find(|(when, _)| hit(when)).map(|(_, fault)| fault.clone())
}

fn unavailable() -> Error {
    Error::Generic { store: "faulty", source: "status code: 503 planned".into() }
}

/// The error that comes instead of doing anything, if the fault is of that kind.
fn before(fault: &Option<Fault>, path: &str) -> Result<()> {
    let (path, source) = (path.to_owned(), "planned".into());
    Err(match fault {
        Some(Fault::Unavailable) => unavailable(),
        Some(Fault::Refused) => Error::PermissionDenied { path, source },
        Some(Fault::Missing) => Error::NotFound { path, source },
        Some(Fault::Conflict) => Error::AlreadyExists { path, source },
        _ => return Ok(()),
    })
}

/// The result, unless its reply is lost.
fn after<T>(fault: &Option<Fault>, result: T) -> Result<T> {
    if matches!(fault, Some(Fault::ReplyLost)) { Err(unavailable()) } else { Ok(result) }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let op = if options.mode == PutMode::Create { Op::Create } else { Op::Put };
        let fault = self.count(op).await;
        before(&fault, path.as_ref())?;
        if matches!(fault, Some(Fault::ConditionIgnored)) {
            options.mode = PutMode::Overwrite;
        }
        let result = self.inner.put_opts(path, payload, options).await?;
        after(&fault, result)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let fault = self.count(Op::Upload).await;
        before(&fault, path.as_ref())?;
        let upload = self.inner.put_multipart_opts(path, options).await?;
        let upload = FaultyUpload { inner: upload, state: self.state.clone(), path: path.to_string() };
        after(&fault, Box::new(upload) as Box<dyn MultipartUpload>)
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let op = match &options {
            options if options.head => Op::Head,
            options if options.range.is_some() => Op::Range,
            _ => Op::Get,
        };
        let fault = self.count(op).await;
        before(&fault, path.as_ref())?;
        let mut answer = after(&fault, self.inner.get_opts(path, options).await?)?;
        if op == Op::Head || !matches!(fault, Some(Fault::ShortBody | Fault::CorruptByte)) {
            return Ok(answer);
        }
        let (meta, range) = (answer.meta.clone(), answer.range.clone());
        let attributes = std::mem::take(&mut answer.attributes);
        let mut body = answer.bytes().await?.to_vec();
        let half = body.len() / 2;
        match fault {
            Some(Fault::ShortBody) => body.truncate(half),
            _ => {
                if let Some(byte) = body.get_mut(half) {
                    *byte ^= 1;
                }
            }
        }
        let payload = GetResultPayload::Stream(stream::once(async { Ok(Bytes::from(body)) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions: Default::default() })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, state) = (self.inner.clone(), self.state.clone());
        let delete = move |path: Result<Path>| {
            let (inner, state) = (inner.clone(), state.clone());
            async move {
                let path = path?;
                let fault = count(&state, Op::Delete).await;
                before(&fault, path.as_ref())?;
                let mut one = inner.delete_stream(stream::once(async move { Ok(path) }).boxed());
                match one.next().await {
                    Some(result) => after(&fault, result?),
                    None => Err(unavailable()),
                }
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let fault = tick(&self.state, Op::List);
        match fault {
            Some(Fault::Missing) => stream::empty().boxed(),
            fault @ Some(Fault::Latency(_) | Fault::Gate(_)) => {
                let listing = self.inner.list(prefix);
                stream::once(wait(fault)).flat_map(|_| stream::empty()).chain(listing).boxed()
            }
            fault => match before(&fault, "list").and_then(|()| after(&fault, ())) {
                Ok(()) => self.inner.list(prefix),
                Err(error) => stream::once(async { Err(error) }).boxed(),
            },
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let fault = self.count(Op::List).await;
        before(&fault, "list")?;
        let result = self.inner.list_with_delimiter(prefix).await?;
        after(&fault, result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    state: Arc<Mutex<State>>,
    path: String,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> object_store::UploadPart {
        let fault = tick(&self.state, Op::Part);
        if let Err(error) = before(&fault, &self.path) {
            return Box::pin(async { Err(error) });
        }
        let sent = self.inner.put_part(data);
        Box::pin(async move {
            let fault = wait(fault).await;
            sent.await?;
            after(&fault, ())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = count(&self.state, Op::Complete).await;
        before(&fault, &self.path)?;
        let result = self.inner.complete().await?;
        after(&fault, result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
