//! Making the bucket equal to the primary: compare, fetch what is missing, prove it, upload it, publish it.
//!
//! Doing it twice equals doing it once (I11); at every point a crash leaves the old generation or the new one plus
//! garbage (I10). Two nodes may sync one repository at once: blobs are named by content, and of two publishers of the
//! same number one wins and the other starts over from what the winner published (I3).
//! Relies on: `primary` for one coherent answer (I4), `ingest` for the proof of closure (I2), `store` for
//! create-if-absent.

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
use crate::mirror::Mirror;
use crate::mirror::claim::claim;
use crate::mirror::cost::Cost;
use crate::mirror::damage::stands;
use crate::mirror::ingest::{Expected, IngestError, NewLayer, ingest};
use crate::mirror::lanes::Place;
use crate::mirror::publish::{Draft, Published, publish, seconds, store_layer};
use crate::mirror::regraph::regraph;
use crate::mirror::repo::{Moment, Repo};
use crate::mirror::snapshot::{OpenError, Snapshot, publishes};
use crate::mirror::trouble::Known;
use crate::pack::index::IndexError;
use crate::pack::meter::Halt;
use crate::primary::{Auth, FetchSpec, Pack, PrimaryError};
use crate::store::{LayerRef, StoreError};
use crate::telemetry::metrics as names;

/// More tips than this are not named as haves: the primary finds the common history from fewer.
const MAX_HAVES: usize = 8_192;
/// How often a lost race or a primary that moved is followed up before it is left to the next round.
const MAX_ROUNDS: usize = 5;
/// How long a comparison may take, and the first byte of a pack, before it makes room for others.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a pack that has begun may stand still before its sync makes room for others.
const STILL: Duration = Duration::from_secs(2);
/// How often it is looked whether anything was received.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a comparison or sync did not end with the primary and the bucket equal.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The primary did not answer as it should.
    #[error("the primary: {0}")]
    Primary(#[from] PrimaryError),
    /// The bucket did not.
    #[error("the bucket: {0}")]
    Store(#[from] StoreError),
    /// The published generation cannot be opened just now.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What the primary sent was not taken in.
    #[error("{0}")]
    Ingest(#[from] IngestError),
    /// This node's disk.
    #[error("scratch space of this node: {0}")]
    Scratch(#[from] io::Error),
    /// The store's prefix belongs to the mirror of another host: paths alone do not tell their repositories apart.
    #[error(
        "this store holds the mirror of {found}: give each primary a prefix of its own (--store …/PREFIX)"
    )]
    OtherPrimary {
        /// The primary whose state is published there.
        found: String,
    },
    /// There is no memory for a sync to begin.
    #[error("it could not begin: {0}")]
    Halted(#[from] Halt),
    /// The primary made us wait while others waited for the place.
    #[error(
        "the primary let us wait, and too many repositories wait already: it is tried again when they have ended"
    )]
    Aside,
    /// Other writers, or pushes, were always faster.
    #[error("the repository moved faster than it could be followed")]
    Moving,
    /// What the primary shows cannot be taken in, and another try would end the same way.
    #[error(
        "{words} (it is tried again at {until}; sooner if the primary shows something else, a limit is changed, or `packmirror sync` asks)"
    )]
    Stuck {
        /// What went wrong.
        words: String,
        /// When the next try is due.
        until: String,
        /// Whether it was known, so that nothing was fetched.
        known: bool,
    },
    /// The node is shutting down.
    #[error("stopped")]
    Stopped,
}

impl SyncError {
    /// How long the other side asked us to stay away.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Primary(e) => e.retry_after(),
            _ => None,
        }
    }

    /// Whether nothing is wrong with the repository: other syncs hold the memory at the moment.
    pub fn is_busy(&self) -> bool {
        let halt = match self {
            Self::Halted(halt) | Self::Primary(PrimaryError::Costs(halt)) => Some(halt),
            Self::Ingest(error) => error.halt(),
            _ => None,
        };
        halt == Some(&Halt::Busy)
    }
}

/// How a sync ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// The published generation was the primary's state already.
    Unchanged,
    /// A generation was published, with or without new objects.
    Published {
        /// Its number.
        number: u64,
        /// Objects in the layer that came with it.
        new_objects: u32,
    },
    /// Another node published the state that the primary showed.
    Followed,
}

/// Compares one repository with the primary and makes the bucket equal to it. What could not be taken in before is fetched
/// again when it is due, or if somebody `insists`.
///
/// Dropping the future ends it at its next safe point.
pub async fn sync(mirror: &Mirror, repo: &Arc<Repo>, insists: bool) -> Result<Synced, SyncError> {
    let (mut seen_elsewhere, mut repair) = (false, None);
    let mut last = SyncError::Moving;
    for _ in 0..MAX_ROUNDS {
        // Each round counts anew: what the last one saw is forgotten.
        let cost = Arc::new(Cost::begin(&mirror.sync_memory).await?);
        let _end = StopOnDrop(Arc::clone(&cost));
        let mut comparing = mirror.lanes.compare(repo).await.ok_or(SyncError::Stopped)?;
        let asked = Moment::now();
        repo.health().stage = "comparing".into();
        let looking = async { Ok(mirror.primary.look(&repo.path, Auth::Service, &*cost).await?) };
        let seen =
            beside_others(repo, &mut comparing, looking, || asked.instant.elapsed() > PATIENCE).await?;
        repo.health().capabilities = Some(Arc::new(seen.capabilities));
        let seen = seen.refs;
        let equal = |open: &Option<Arc<Snapshot>>| open.as_ref().is_some_and(|open| open.equals(&seen));
        // Another node may have been faster: only a difference, or damage, costs a look into the bucket.
        let known = repo.known();
        if !repo.damage().is_known() && known.is_some_and(|known| publishes(&known, &seen)) {
            confirmed(repo, asked);
            return Ok(if seen_elsewhere { Synced::Followed } else { Synced::Unchanged });
        }
        let (base, known) = tokio::join!(mirror.newest(repo), Known::read(mirror, repo));
        let base = base?;
        let opened = match &base {
            Some(record) => mirror.open(repo, record.clone()).await.map(Some),
            None => Ok(None),
        };
        let repairing = stands(mirror, repo, base.as_ref()).await?;
        let below = match opened {
            _ if repairing => None,
            Ok(open) => open,
            Err(OpenError::Older { .. }) => {
                // An error says that there is nothing to be built again.
                let Some(old) = &base else { continue };
                drop(comparing);
                let _place = mirror.lanes.first(repo).await.ok_or(SyncError::Stopped)?;
                regraph(mirror, repo, old, &cost).await?;
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if !repairing && equal(&below) {
            confirmed(repo, asked);
            return Ok(if seen_elsewhere { Synced::Followed } else { Synced::Unchanged });
        }
        if repairing && repair.is_none() {
            // Then it is looked once more: another node may just have made it anew.
            drop(comparing);
            repo.health().stage = "waiting for another node's repair".into();
            repair = claim(mirror, &repo.path, base.as_ref().map_or(0, |base| base.number)).await?;
            continue;
        }
        // The record that is open may have been published meanwhile.
        let base = below.as_ref().map(|open| open.generation.clone()).or(base);
        let below = below.filter(|open| open.refs.hash == seen.hash);
        if repairing {
            tracing::warn!(repo = %repo.path, "what is stored is damaged; it is made anew from the primary");
        }
        let digest = hex::encode(seen.digest());
        let made = match missing_tips(below.as_deref(), &seen) {
            wants if wants.is_empty() => None,
            _ if let Some(stuck) = known.forbids(mirror, &digest).filter(|_| !insists) => return Err(stuck),
            wants => match receive(mirror, repo, below.clone(), wants, &seen, &cost, comparing).await {
                Ok(made) => Some(made),
                // A tip vanished between the answer and the fetch: ask again.
                Err(SyncError::Primary(PrimaryError::Remote(words))) if words.contains("not our ref") => {
                    last = SyncError::Primary(PrimaryError::Remote(words));
                    continue;
                }
                // A layer below cannot be read: it is made anew.
                Err(e) if below.as_ref().is_some_and(|b| repo.report_damage(&b.generation, &e)) => {
                    last = e;
                    continue;
                }
                Err(e) => return Err(known.failed(mirror, repo, &digest, e).await),
            },
        };
        let (made, _place) = made.unzip();
        repo.health().stage = "uploading".into();
        let made = made.flatten();
        let new_objects = made.as_ref().map_or(0, |(new, _)| new.layer.graph.len());
        let layers = layers(mirror, below.as_deref(), made.as_ref().map(|(new, _)| new), &seen, repairing);
        let draft = Draft {
            base: base.as_ref(),
            layers: layers.await?,
            refs: &seen,
            asked: seconds(asked.time),
            repairing,
        };
        match publish(mirror, repo, draft).await? {
            Published::Won(snapshot) => {
                if repairing {
                    metrics::counter!(names::REPAIRS).increment(1);
                    repo.damage().repaired(&snapshot.generation);
                }
                confirmed(repo, asked);
                known.over(mirror, repo).await;
                return Ok(Synced::Published { number: snapshot.generation.number, new_objects });
            }
            Published::Lost(winner) => {
                if winner.primary == mirror.primary.name() {
                    // If it cannot be opened, the next round finds out what is to be done.
                    let _ = mirror.open(repo, *winner).await;
                }
                seen_elsewhere = true;
                last = SyncError::Moving;
            }
        }
    }
    Err(last)
}

/// The layers of the next generation, the new one stored. A history that shares nothing with what was there (a repository
/// made again under its name) replaces it.
async fn layers(
    mirror: &Mirror,
    below: Option<&Snapshot>,
    made: Option<&NewLayer>,
    seen: &Refs,
    repairing: bool,
) -> Result<Vec<LayerRef>, StoreError> {
    let stands_alone = made.is_some_and(|new| {
        let layer = &new.layer;
        layer.graph.externals().len() == 0 && seen.tips().iter().all(|tip| layer.lookup(tip).is_some())
    });
    let mut layers = match below {
        Some(below) if !stands_alone => below.generation.layers.clone(),
        _ => Vec::new(),
    };
    if let Some(new) = made {
        layers.push(store_layer(mirror, new, repairing).await?);
    }
    Ok(layers)
}

/// Takes note that what is published is what the primary showed when it was asked at `asked`.
fn confirmed(repo: &Repo, asked: Moment) {
    let before = repo.health().asked.replace(asked);
    if let Some(before) = before {
        let lag = asked.instant.saturating_duration_since(before.instant);
        metrics::histogram!(names::REPO_LAG).record(lag.as_secs_f64());
    }
}

/// Ends what still computes for a sync that is over.
struct StopOnDrop(Arc<Cost>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs `work`; once `waits_long` says so it gives its place of the well lane to others and goes on beside them, or ends
/// where too many do so already.
async fn beside_others<T>(
    repo: &Repo,
    place: &mut Place,
    work: impl Future<Output = Result<T, SyncError>>,
    mut waits_long: impl FnMut() -> bool,
) -> Result<T, SyncError> {
    tokio::pin!(work);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = looks.tick() => {}
        }
        if place.is_well() && waits_long() {
            repo.set_well(false);
            place.step_aside().map_err(|_| SyncError::Aside)?;
        }
    }
}

fn missing_tips(below: Option<&Snapshot>, seen: &Refs) -> Vec<ObjectId> {
    let mut tips = seen.tips();
    if let Some(below) = below {
        tips.retain(|tip| below.stack.lookup(tip).is_none());
    }
    tips
}

/// Fetches the missing history and makes a layer of it.
async fn receive(
    mirror: &Mirror,
    repo: &Arc<Repo>,
    below: Option<Arc<Snapshot>>,
    wants: Vec<ObjectId>,
    seen: &Refs,
    cost: &Arc<Cost>,
    comparing: Place,
) -> Result<(Option<(NewLayer, tempfile::TempDir)>, Place), SyncError> {
    let haves = below.as_ref().map(|below| haves(below)).unwrap_or_default();
    tracing::info!(repo = %repo.path, wants = wants.len(), haves = haves.len(), "fetching from the primary");
    repo.health().stage = "fetching".into();
    repo.received().store(0, Ordering::Relaxed);
    let scratch = mirror.local.scratch()?;
    let spec = FetchSpec { wants, haves, hash: seen.hash };
    let teller = Arc::clone(repo);
    let on_progress = move |line: &str| teller.health().stage = format!("fetching: {line}");
    // First syncs wait for each other and for nobody else, also those whose pack has begun to come.
    let is_first = below.is_none();
    let mut waiting = comparing;
    if is_first {
        drop(waiting);
        waiting = mirror.lanes.start(repo).await.ok_or(SyncError::Stopped)?;
    }
    let asked = Instant::now();
    let beginning = async {
        let mut pack = mirror.primary.fetch(&repo.path, &spec, Some(Box::new(on_progress))).await?;
        pack.begun().await?;
        Ok(pack)
    };
    let pack = beside_others(repo, &mut waiting, beginning, || asked.elapsed() > PATIENCE).await?;
    // A place to work is taken once there is something to work on.
    let place = if is_first { mirror.lanes.first(repo).await } else { mirror.lanes.increment(repo).await };
    let mut place = place.ok_or(SyncError::Stopped)?;
    drop(waiting);
    let flow = Arc::new(Flow::default());
    let _cut = flow.cut.clone().drop_guard();
    let work = take_in(repo, pack, below, seen, scratch, mirror.settings.limits.object, (cost, &flow));
    let mut since = (Instant::now(), 0);
    let waits_long = || {
        let received = repo.received().load(Ordering::Relaxed);
        if received != since.1 || flow.whole.load(Ordering::Relaxed) {
            since = (Instant::now(), received);
        }
        since.0.elapsed() > STILL
    };
    let made = beside_others(repo, &mut place, work, waits_long).await?;
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
    let expected = Expected { tips: seen.tips(), hash: seen.hash, largest_object };
    let (cost, teller) = (Arc::clone(cost), Arc::clone(repo));
    let made = tokio::task::spawn_blocking(move || {
        let reader = std::io::BufReader::with_capacity(256 << 10, bridge);
        let stage = |what: &str| teller.health().stage = what.to_owned();
        ingest(reader, scratch.path(), below.as_deref(), &expected, &cost, &stage)
            .map(|made| made.map(|layer| (layer, scratch)))
    });
    match made.await {
        Ok(Err(IngestError::Index(IndexError::Io(error)))) => {
            // What broke the stream says more than that it ended.
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
        self.repo.received().fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

/// What we have, for the primary to leave out: branches first, as these meet most of what is new.
fn haves(below: &Snapshot) -> Vec<ObjectId> {
    let mut haves = Vec::new();
    for prefix in ["refs/heads/", "refs/tags/", "refs/"] {
        for r in below.refs.with_prefix(prefix.as_bytes()) {
            // Tags are named by what they peel to: the walk on the other side is about commits.
            haves.push(r.peeled.unwrap_or(r.oid));
        }
    }
    let mut known = std::collections::HashSet::new();
    haves.retain(|oid| known.insert(*oid));
    haves.truncate(MAX_HAVES);
    haves
}
