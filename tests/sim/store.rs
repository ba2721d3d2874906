//! The bucket of the simulation: objects in memory under a clock of its own, seen by each node through a view that breaks.
//!
//! Nothing of it is shared with what packmirror stores through: a map, and what S3 promises of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;

use super::mutants::Mutant;
use super::turns::note;

/// The store's clock at the beginning.
pub const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// A request that was signed longer ago than this is turned down.
const SKEW: Duration = Duration::from_secs(900);

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    etag: String,
    modified: SystemTime,
}

/// What a store held at some time.
pub struct Kept {
    objects: BTreeMap<String, Object>,
    age: Duration,
}

/// What all views show.
pub struct Shared {
    objects: Mutex<BTreeMap<String, Object>>,
    begun: Instant,
    /// How far the store's clock is ahead, in seconds.
    ahead: Mutex<i64>,
    /// Records and blobs that were written over with other bytes.
    rewritten: Mutex<Vec<String>>,
    /// Records and orders to forget as they were written, the oldest first.
    told: Mutex<Vec<(String, Bytes)>>,
}

impl Shared {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            objects: Mutex::default(),
            begun: Instant::now(),
            ahead: Mutex::default(),
            rewritten: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// All that is there, for many stores to begin with.
    pub fn keep(&self) -> Kept {
        Kept {
            objects: self.lock().clone(),
            age: self.now().duration_since(SystemTime::UNIX_EPOCH + EPOCH).unwrap(),
        }
    }

    /// A store that begins with what was kept.
    pub fn of(kept: &Kept) -> Arc<Self> {
        let shared = Self::new();
        shared.lock().clone_from(&kept.objects);
        shared.turn_clock(kept.age.as_secs() as i64 + 1);
        shared
    }

    /// The store's clock.
    pub fn now(&self) -> SystemTime {
        let ahead = *self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::UNIX_EPOCH + EPOCH + self.begun.elapsed();
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }

    /// Moves the store's clock by so many seconds.
    pub fn turn_clock(&self, by: i64) {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }

    /// When an object was written, by the store's clock.
    pub fn modified(&self, key: &str) -> Option<SystemTime> {
        self.lock().get(key).map(|object| object.modified)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All objects, for the walker.
    pub fn dump(&self) -> BTreeMap<String, Bytes> {
        self.lock().iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// Records that were written over.
    pub fn rewritten(&self) -> Vec<String> {
        self.rewritten.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All records and orders to forget that were ever written, in that order.
    pub fn told(&self) -> Vec<(String, Bytes)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes an object away behind everybody's back.
    pub fn lose(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Flips one bit of an object behind everybody's back.
    pub fn flip(&self, key: &str, at: usize) {
        if let Some(object) = self.lock().get_mut(key) {
            let mut bytes = object.bytes.to_vec();
            let at = at % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (at % 8);
            }
            object.bytes = bytes.into();
        }
    }

    fn put(&self, key: &str, bytes: Bytes, mode: &PutMode) -> Result<PutResult> {
        let modified = self.now();
        let mut objects = self.lock();
        let there = objects.get(key);
        match mode {
            PutMode::Overwrite => {}
            PutMode::Create if there.is_some() => return Err(exists(key)),
            PutMode::Create => {}
            PutMode::Update(version) => match there {
                Some(object) if version.e_tag.as_ref() == Some(&object.etag) => {}
                _ => return Err(precondition(key)),
            },
        }
        if there.is_some_and(|there| there.bytes != bytes) && key.contains("/gen/") {
            self.rewritten.lock().unwrap_or_else(PoisonError::into_inner).push(key.to_owned());
        }
        if key.contains("/gen/") || key.contains("/purges/") {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).push((key.to_owned(), bytes.clone()));
        }
        // As S3's of objects sent in one piece: equal bytes have equal tags.
        let etag = format!("\"{}\"", hex::encode(&<sha2::Sha256 as sha2::Digest>::digest(&bytes)[..16]));
        objects.insert(key.to_owned(), Object { bytes, etag: etag.clone(), modified });
        Ok(PutResult { e_tag: Some(etag), version: None, extensions: Default::default() })
    }
}

fn exists(key: &str) -> Error {
    Error::AlreadyExists { path: key.into(), source: "status code: 412".into() }
}

fn precondition(key: &str) -> Error {
    Error::Precondition { path: key.into(), source: "status code: 412".into() }
}

fn missing(key: &str) -> Error {
    Error::NotFound { path: key.into(), source: "status code: 404".into() }
}

fn broken(words: &'static str) -> Error {
    Error::Generic { store: "sim", source: words.into() }
}

/// How often what goes wrong, in thousandths of the calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// 503 or 429, nothing happened.
    pub before: u32,
    /// It happened, and the reply was lost.
    pub after: u32,
    /// 409 or 412 to a conditional write that did not happen for another's sake.
    pub conflict: u32,
    /// It takes seconds.
    pub slow: u32,
    /// It takes minutes.
    pub stall: u32,
    /// A body is cut or has a bit flipped.
    pub spoilt: u32,
    /// A listing ends early, and says nothing of it.
    pub cut_short: u32,
}

impl Weather {
    fn is_clear(&self) -> bool {
        self.slow == 0 && self.stall == 0
    }
}

/// One node's way to the bucket.
pub struct View {
    shared: Arc<Shared>,
    name: u64,
    chance: Mutex<StdRng>,
    weather: Mutex<Weather>,
    /// Frozen while false: no call begins or ends. Dropped: the node is dead.
    runs: watch::Sender<bool>,
    dead: Mutex<bool>,
    calls: Mutex<u64>,
    /// What each call takes, where that is not left to chance.
    pace: Mutex<Option<Duration>>,
    /// What was asked, since somebody wants to know.
    ledger: Mutex<Option<Vec<Call>>>,
    /// What the build of this node does wrong.
    pub mutant: Mutex<Option<Mutant>>,
    /// The call that fails, and how.
    pub nth: Mutex<Option<(u64, Fate)>>,
    /// Which record is held up on its way: the first to come, or one after it.
    pub hold: Mutex<Option<Hold>>,
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// `list`, `folders`, `get`, `create`, `put`, `delete`, and what uploads in parts do.
    pub what: &'static str,
    pub key: String,
    /// Bytes of what was read.
    pub bytes: u64,
}

/// A record on its way that waits.
pub struct Hold {
    /// So many pass before.
    pub after: u32,
    pub arrived: Arc<tokio::sync::Notify>,
    pub go: Arc<tokio::sync::Notify>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    FailsBefore,
    FailsAfter,
    /// The node ends, as with kill -9, before the store hears of it.
    DiesBefore,
    /// And before it hears of the store again.
    DiesAfter,
}

impl Fate {
    pub const ALL: [Self; 4] = [Self::FailsBefore, Self::FailsAfter, Self::DiesBefore, Self::DiesAfter];
}

enum Ill {
    Before,
    After,
    /// The node hears of nothing any more.
    Dies,
    Conflict,
    /// At this part of a thousand: flipped if odd, cut if even.
    Spoilt(usize),
    CutShort(usize),
}

impl View {
    pub fn of(shared: &Arc<Shared>, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            name: seed,
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            weather: Mutex::default(),
            runs: watch::Sender::new(true),
            dead: Mutex::default(),
            calls: Mutex::default(),
            pace: Mutex::default(),
            ledger: Mutex::default(),
            mutant: Mutex::default(),
            nth: Mutex::default(),
            hold: Mutex::default(),
        })
    }

    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// Waits if this record is to be held up.
    async fn held(&self) {
        let hold = {
            let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *hold {
                Some(one) if one.after > 0 => {
                    one.after -= 1;
                    None
                }
                _ => hold.take(),
            }
        };
        if let Some(hold) = hold {
            hold.arrived.notify_one();
            hold.go.notified().await;
        }
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets each call take so long.
    pub fn set_pace(&self, pace: Duration) {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = Some(pace);
    }

    /// Begins to write down what is asked.
    pub fn listen(&self) {
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// What was asked since.
    pub fn heard(&self) -> Vec<Call> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    fn write_down(&self, what: &'static str, key: &str, bytes: u64) {
        if let Some(ledger) = &mut *self.ledger.lock().unwrap_or_else(PoisonError::into_inner) {
            ledger.push(Call { what, key: key.to_owned(), bytes });
        }
    }

    /// From now on no call has an effect or an answer.
    pub fn kill(&self) {
        *self.dead.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Stops the node's way out, also of calls under way, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        self.runs.send_replace(!frozen);
    }

    fn mutant(&self) -> Option<Mutant> {
        *self.mutant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn passes(&self) {
        if *self.dead.lock().unwrap_or_else(PoisonError::into_inner) {
            std::future::pending::<()>().await;
        }
        let _ = self.runs.subscribe().wait_for(|runs| *runs).await;
        if *self.dead.lock().unwrap_or_else(PoisonError::into_inner) {
            std::future::pending::<()>().await;
        }
    }

    /// What comes before a call, and what is wrong with it.
    async fn begin(&self, what: &'static str, key: &str) -> Option<Ill> {
        note(|| format!("{} {what} {key}", self.name));
        // What is read is written down with its bytes.
        if what != "get" {
            self.write_down(what, key, 0);
        }
        let number = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            *calls += 1;
            *calls
        };
        let planned = *self.nth.lock().unwrap_or_else(PoisonError::into_inner);
        let (wait, ill) = {
            let weather = *self.weather.lock().unwrap_or_else(PoisonError::into_inner);
            let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = match chance.random_range(0..1000) {
                n if n < weather.stall => Duration::from_secs(chance.random_range(60..900)),
                n if n < weather.stall + weather.slow => {
                    Duration::from_millis(chance.random_range(100..20_000))
                }
                _ => Duration::from_millis(chance.random_range(0..30)),
            };
            let mut left = chance.random_range(0..1000);
            let mut hit = |of: u32| {
                let is = left < of;
                left = if is { u32::MAX } else { left.saturating_sub(of) };
                is
            };
            let ill = if hit(weather.before) {
                Some(Ill::Before)
            } else if hit(weather.after) {
                Some(Ill::After)
            } else if hit(weather.conflict) {
                Some(Ill::Conflict)
            } else if hit(weather.spoilt) {
                Some(Ill::Spoilt(chance.random_range(0..1000)))
            } else if hit(weather.cut_short) {
                Some(Ill::CutShort(chance.random_range(0..20)))
            } else {
                None
            };
            (wait, ill)
        };
        let pace = *self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        self.passes().await;
        match pace {
            Some(pace) => tokio::time::sleep(pace).await,
            None => self.wait(wait).await,
        }
        self.passes().await;
        match planned {
            Some((n, Fate::FailsBefore)) if n == number => Some(Ill::Before),
            Some((n, Fate::FailsAfter)) if n == number => Some(Ill::After),
            Some((n, Fate::DiesAfter)) if n == number => Some(Ill::Dies),
            Some((n, Fate::DiesBefore)) if n == number => {
                self.kill();
                std::future::pending().await
            }
            _ => ill,
        }
    }

    /// Waits; when the weather clears, what stood still goes on.
    async fn wait(&self, long: Duration) {
        let until = Instant::now() + long;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
            if self.weather.lock().unwrap_or_else(PoisonError::into_inner).is_clear() {
                return;
            }
        }
    }

    async fn end<T>(&self, ill: &Option<Ill>, result: T) -> Result<T> {
        if matches!(ill, Some(Ill::Dies)) {
            self.kill();
        }
        self.passes().await;
        if matches!(ill, Some(Ill::After)) { Err(broken("the reply was lost")) } else { Ok(result) }
    }

    fn metas(&self, prefix: &str, ill: &Option<Ill>) -> Vec<ObjectMeta> {
        let objects = self.shared.lock();
        let below = |key: &&String| {
            prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        let mutant = self.mutant();
        let shows = |key: &&String| mutant.is_none_or(|mutant| mutant.shows(prefix, key));
        let here = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let found = here.filter(|(key, _)| below(key) && shows(key)).map(|(key, object)| meta(key, object));
        match ill {
            Some(Ill::CutShort(most)) => found.take(*most).collect(),
            _ => found.collect(),
        }
    }
}

fn meta(key: &str, object: &Object) -> ObjectMeta {
    ObjectMeta {
        location: Path::from(key),
        last_modified: object.modified.into(),
        size: object.bytes.len() as u64,
        e_tag: Some(object.etag.clone()),
        version: None,
    }
}

fn before(ill: &Option<Ill>) -> Result<()> {
    if matches!(ill, Some(Ill::Before)) { Err(broken("status code: 503, slow down")) } else { Ok(()) }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sim")
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("View")
    }
}

/// A view as a store.
#[derive(Debug, Clone)]
pub struct Store(pub Arc<View>);

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sim")
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let what = if options.mode == PutMode::Create { "create" } else { "put" };
        let ill = self.0.begin(what, path.as_ref()).await;
        before(&ill)?;
        if options.mode == PutMode::Create && path.as_ref().contains("/gen/") {
            self.0.held().await;
        }
        if matches!(ill, Some(Ill::Conflict)) && options.mode != PutMode::Overwrite {
            return Err(exists(path.as_ref()));
        }
        let (mut bytes, mut mode) = (Bytes::from(payload), options.mode);
        if let Some(mutant) = self.0.mutant() {
            mutant.puts(&self.0.shared, path.as_ref(), &mut bytes, &mut mode);
        }
        let result = self.0.shared.put(path.as_ref(), bytes, &mode)?;
        if let Some(mutant) = self.0.mutant() {
            mutant.has_put(&self.0.shared, path.as_ref());
        }
        self.0.end(&ill, result).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let ill = self.0.begin("begin", path.as_ref()).await;
        before(&ill)?;
        let upload = Upload { view: self.0.clone(), key: path.to_string(), parts: Arc::default() };
        self.0.end(&ill, Box::new(upload) as Box<dyn MultipartUpload>).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let ill = self.0.begin("get", path.as_ref()).await;
        before(&ill)?;
        let key = path.as_ref();
        let object = self.0.shared.lock().get(key).cloned();
        let Some(object) = object else {
            self.0.write_down("get", key, 0);
            return Err(missing(key));
        };
        options.check_preconditions(&meta(key, &object))?;
        let size = object.bytes.len() as u64;
        let range = match &options.range {
            None => 0..size,
            Some(range) => {
                range.as_range(size).map_err(|e| Error::Generic { store: "sim", source: Box::new(e) })?
            }
        };
        let what = if options.head { "head" } else { "get" };
        self.0.write_down(what, key, if options.head { 0 } else { range.end - range.start });
        let mut bytes = object.bytes.slice(range.start as usize..range.end as usize);
        if let Some(mutant) = self.0.mutant() {
            mutant.gets(key, &mut bytes);
        }
        if let Some(Ill::Spoilt(at)) = ill
            && !bytes.is_empty()
        {
            let mut spoilt = bytes.to_vec();
            let place = spoilt.len() * at / 1000;
            if at % 2 == 0 {
                spoilt.truncate(place)
            } else {
                spoilt[place] ^= 1
            };
            bytes = spoilt.into();
        }
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        let meta = meta(key, &object);
        self.0
            .end(
                &ill,
                GetResult {
                    payload,
                    meta,
                    range,
                    attributes: Default::default(),
                    extensions: Default::default(),
                },
            )
            .await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let view = self.0.clone();
        paths
            .then(move |path| {
                let view = view.clone();
                async move {
                    let path = path?;
                    let signed = Instant::now();
                    let ill = view.begin("delete", path.as_ref()).await;
                    before(&ill)?;
                    // As S3 does with what arrives long after it was signed.
                    if signed.elapsed() > SKEW {
                        return Err(broken("status code: 403, RequestTimeTooSkewed"));
                    }
                    view.shared.lock().remove(path.as_ref());
                    view.end(&ill, path).await
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (view, prefix) = (self.0.clone(), prefix.map(Path::to_string).unwrap_or_default());
        let listing = async move {
            let ill = view.begin("list", &prefix).await;
            before(&ill)?;
            let metas = view.metas(&prefix, &ill);
            view.end(&ill, metas).await
        };
        listing
            .map(|listed| match listed {
                Ok(metas) => stream::iter(metas.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .flatten_stream()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let ill = self.0.begin("folders", prefix.map(Path::as_ref).unwrap_or_default()).await;
        before(&ill)?;
        let prefix = prefix.map(Path::to_string).unwrap_or_default();
        let mut folders = std::collections::BTreeSet::new();
        let mut objects = Vec::new();
        for meta in self.0.metas(&prefix, &ill) {
            let key = meta.location.to_string();
            let rest = key[prefix.len()..].trim_start_matches('/');
            match rest.split_once('/') {
                Some((folder, _)) => {
                    let parts = [prefix.as_str(), folder];
                    folders.insert(parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/"));
                }
                None => objects.push(meta),
            }
        }
        let common_prefixes = folders.into_iter().map(Path::from).collect();
        self.0.end(&ill, ListResult { common_prefixes, objects, extensions: Default::default() }).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, _: CopyOptions) -> Result<()> {
        let ill = self.0.begin("copy", from.as_ref()).await;
        before(&ill)?;
        let object =
            self.0.shared.lock().get(from.as_ref()).cloned().ok_or_else(|| missing(from.as_ref()))?;
        self.0.shared.put(to.as_ref(), object.bytes, &PutMode::Overwrite)?;
        self.0.end(&ill, ()).await
    }
}

#[derive(Debug)]
struct Upload {
    view: Arc<View>,
    key: String,
    parts: Arc<Mutex<Vec<(usize, Bytes)>>>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (view, parts) = (self.view.clone(), self.parts.clone());
        let number = parts.lock().unwrap_or_else(PoisonError::into_inner).len();
        parts.lock().unwrap_or_else(PoisonError::into_inner).push((number, data.into()));
        async move {
            let ill = view.begin("part", "").await;
            before(&ill)?;
            view.end(&ill, ()).await
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let ill = self.view.begin("complete", &self.key).await;
        before(&ill)?;
        let whole: Vec<u8> = self
            .parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .flat_map(|(_, bytes)| bytes.to_vec())
            .collect();
        let result = self.view.shared.put(&self.key, whole.into(), &PutMode::Overwrite)?;
        self.view.end(&ill, result).await
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}
