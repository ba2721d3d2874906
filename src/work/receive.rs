//! Fetching what is missing from the primary, and making a layer of it.
//!
//! A sync that waits too long for the primary gives up its place and goes on in one for unwell repositories
//! ([`beside_others`]).
//! Relies on: `primary` for the pack, `ingest` for the layer, `lanes` for places. Elsewhere: what is missing (`sync`).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use gix_hash::ObjectId;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::git::refs::Refs;
use crate::mirror::progress::Step;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Snapshot;
use crate::pack::Source;
use crate::pack::index::IndexError;
use crate::primary::{FetchSpec, Pack, PrimaryError};
use crate::work::Work;
use crate::work::cost::Cost;
use crate::work::error::SyncError;
use crate::work::heal::heads;
use crate::work::ingest::{Expected, IngestError, NewLayer, THREADS, ingest};
use crate::work::lanes::Place;

/// More tips than this are not named as haves: the primary finds the common history from fewer.
const MAX_HAVES: usize = 8_192;
/// How long a comparison may take, and the first byte of a pack, before it makes room for others.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a pack that has begun may stand still before its sync makes room for others.
const STILL: Duration = Duration::from_secs(2);
/// How often it is looked whether anything was received.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs `work`. Once `waits_long` says so, it gives up its place of the well and goes on in one of the unwell, or ends if
/// those are all taken.
pub(super) async fn beside_others<T>(
    repo: &Repo,
    place: &mut Place,
    work: impl Future<Output = Result<T, SyncError>>,
    mut waits_long: impl FnMut() -> bool,
) -> Result<T, SyncError> {
    tokio::pin!(work);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = looks.tick() => {}
        }
        if place.is_well() && waits_long() {
            repo.set_well(false);
            place.step_aside().map_err(|_| SyncError::Aside)?;
        }
    }
}

/// Fetches the missing history and makes a layer of it.
pub(super) async fn receive(
    work: &Work,
    repo: &Arc<Repo>,
    below: Option<Arc<Snapshot>>,
    wants: Vec<ObjectId>,
    seen: &Refs,
    cost: &Arc<Cost>,
    comparing: Place,
) -> Result<(Option<(NewLayer, tempfile::TempDir)>, Place), SyncError> {
    let haves = below.as_ref().map(|below| haves(below)).unwrap_or_default();
    tracing::info!(repo = %repo.path, wants = wants.len(), haves = haves.len(), "fetching from the primary");
    repo.step(Step::Fetching);
    let scratch = work.mirror.local.scratch()?;
    let spec = FetchSpec { wants, haves, hash: seen.hash };
    let teller = Arc::clone(repo);
    let on_progress = move |line: &str| teller.progress().say(line);
    // First syncs have their own lane, also once their pack has begun to come: increments do not wait for them.
    let is_first = below.is_none();
    let mut waiting = comparing;
    if is_first {
        drop(waiting);
        waiting = cost.while_waiting(work.lanes.start(repo)).await?.ok_or(SyncError::Stopped)?;
    }
    let asked = Instant::now();
    let beginning = async {
        let mut pack = work.mirror.primary.fetch(&repo.path, &spec, Some(Box::new(on_progress))).await?;
        pack.begun().await?;
        Ok(pack)
    };
    let pack = beside_others(repo, &mut waiting, beginning, || asked.elapsed() > PATIENCE).await?;
    // A place to work is taken once there is something to work on.
    let place = if is_first { work.lanes.first(repo).await } else { work.lanes.increment(repo).await };
    let mut place = place.ok_or(SyncError::Stopped)?;
    drop(waiting);
    let flow = Arc::new(Flow::default());
    let _cut = flow.cut.clone().drop_guard();
    let taking = take_in(repo, pack, below, seen, scratch, work.limits.object, (cost, &flow));
    let mut since = (Instant::now(), 0);
    let waits_long = || {
        let received = repo.progress().received().load(Ordering::Relaxed);
        if received != since.1 || flow.whole.load(Ordering::Relaxed) {
            since = (Instant::now(), received);
        }
        since.0.elapsed() > STILL
    };
    let made = beside_others(repo, &mut place, taking, waits_long).await?;
    Ok((made, place))
}

/// What is known of a pack that comes in, and the means to end it.
#[derive(Default)]
struct Flow {
    /// Nothing more is waited for.
    whole: AtomicBool,
    cut: CancellationToken,
    /// The primary's error, which indexing would turn into words.
    broken: Mutex<Option<PrimaryError>>,
}

/// Makes a layer of a pack.
async fn take_in(
    repo: &Arc<Repo>,
    pack: Pack,
    below: Option<Arc<Snapshot>>,
    seen: &Refs,
    scratch: tempfile::TempDir,
    largest_object: u64,
    (cost, flow): (&Arc<Cost>, &Arc<Flow>),
) -> Result<Option<(NewLayer, tempfile::TempDir)>, SyncError> {
    let cut = Box::pin(flow.cut.clone().cancelled_owned());
    let bridge = SyncIoBridge::new(Incoming { pack, repo: Arc::clone(repo), flow: Arc::clone(flow), cut });
    let expected = Expected { tips: seen.tips(), hash: seen.hash, largest_object, threads: THREADS };
    let (cost, teller) = (Arc::clone(cost), Arc::clone(repo));
    let made = crate::threads::spawn_blocking(move || {
        let reader = std::io::BufReader::with_capacity(256 << 10, bridge);
        let step = |step: Step| teller.step(step);
        let below = below.as_deref().map(|open| (&*open.stack, open.blocks_for_work() as &dyn Source));
        ingest(reader, scratch.path(), below, &expected, &cost, &step)
            .map(|made| made.map(|layer| (layer, scratch)))
    });
    match made.await {
        Ok(Err(IngestError::Index(IndexError::Io(error)))) => {
            // The error that broke the stream says more than that it ended.
            let why = flow.broken.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(why.map_or(IngestError::Index(error.into()).into(), SyncError::Primary))
        }
        Ok(made) => Ok(made?),
        Err(e) => Err(SyncError::Scratch(io::Error::other(e))),
    }
}

/// The pack on its way in: counted, and with the primary's error kept, which indexing would turn into words.
struct Incoming {
    pack: Pack,
    repo: Arc<Repo>,
    flow: Arc<Flow>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::other("nobody waits for it any more")));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.pack).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &polled
            && buf.filled().len() == before
        {
            self.flow.whole.store(true, Ordering::Relaxed);
        }
        if let Poll::Ready(Err(e)) = &polled {
            *self.flow.broken.lock().unwrap_or_else(PoisonError::into_inner) = Pack::error(e).cloned();
        }
        self.repo.progress().received().fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

/// Our haves, whose history the primary leaves out: branches first, since most new commits descend from these.
fn haves(below: &Snapshot) -> Vec<ObjectId> {
    let mut haves = Vec::new();
    for prefix in ["refs/heads/", "refs/tags/", "refs/"] {
        for r in below.refs.with_prefix(prefix.as_bytes()) {
            // Tags are named by the commit they peel to: the primary's walk is over commits.
            haves.push(r.peeled.unwrap_or(r.oid));
        }
    }
    let mut known = std::collections::HashSet::new();
    haves.retain(|oid| known.insert(*oid));
    // Of a stack that lost its upper layers the refs do not say what it holds.
    let named = haves.len();
    haves.retain(|oid| below.stack.lookup(oid).is_some());
    if haves.len() < named {
        haves.extend(heads(&below.stack, MAX_HAVES).into_iter().filter(|oid| known.insert(*oid)));
    }
    haves.truncate(MAX_HAVES);
    haves
}
