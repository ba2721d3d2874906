//! A node out of settings, from start to end: opens bucket, cache and primary, listens, keeps repositories true, drains.
//!
//! The store is probed before anything is believed of it. While it cannot be reached the node is not ready and passes
//! requests on; a store that fails the probe (it ignores create-if-absent, say) ends the node with an explanation.
//!
//! - `parts`: bucket, cache and primary.

mod parts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Settings;
use crate::mirror::Mirror;
use crate::primary::Grants;
use crate::serve::app::App;
use crate::serve::drain::Pace;
use crate::serve::listen;
use crate::store::StoreError;
use crate::telemetry::metrics::Recorder;
use crate::work::Work;

pub use crate::serve::drain::Stop;
pub use parts::{bucket, credential, existing_bucket, local, primary};

/// How long workers get to end after the last request.
const LAST_WORK: Duration = Duration::from_secs(5);
/// How often the order in which the cache is used is remembered; also when the node ends.
const REMEMBER_EVERY: Duration = Duration::from_secs(600);
/// How often a node writes its health into the bucket while a sync runs.
const HEARTBEAT_SYNCING: Duration = Duration::from_secs(5);
/// The shortest time between two of them, where something happens.
const HEARTBEAT_NEWS: Duration = Duration::from_secs(1);
/// How often a store that does not answer is tried again at start.
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// Runs a node until `stop`; `bound` is told the address once it listens, and what it mirrors.
pub async fn run(
    settings: Settings,
    recorder: Recorder,
    stop: Stop,
    bound: impl FnOnce(SocketAddr, &Arc<Mirror>) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let bucket = bucket(&settings).await?;
    let primary = primary(&settings).await?;
    let local = local(&settings, &settings.cache_dir, &bucket).await?;
    let grants = Grants::new(primary.clone(), settings.grant_ttl);
    let listen = settings.listen;
    let ending = Pace { delay: settings.drain_delay, timeout: settings.drain_timeout };
    let pace = settings.compare_every;
    // Workers are stopped after the last request has ended: until then clients may wait for their syncs.
    let last = CancellationToken::new();
    let mirror = Mirror::new(&settings, bucket, local, primary, last.clone())?;
    let work = Work::new(Arc::clone(&mirror), &settings);
    let recorder = Arc::new(recorder);
    let app = App::new(&settings, Arc::clone(&mirror), grants, Arc::clone(&recorder), stop.clone());

    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}; choose another address with --listen ADDR:PORT"))?;
    let address = listener.local_addr()?;
    // To the very end: how a drain goes is seen there.
    let _administering = match settings.admin_listen {
        None => None,
        Some(at) => {
            let admin = TcpListener::bind(at).await.with_context(|| {
                format!("listening on {at}; choose another address with --admin-listen ADDR:PORT")
            })?;
            tracing::info!("administration: listening on http://{}", admin.local_addr()?);
            Some(AbortOnDropHandle::new(tokio::spawn(listen::administer(admin, app.clone()))))
        }
    };
    let sound = probe(&app, &work).await?;
    let working = tokio::spawn(Arc::clone(&work).run(last.clone()));
    let upkeep = tokio::spawn(async move { recorder.upkeep().await });
    let keeping = tokio::spawn(keep(app.clone(), Arc::clone(&work), pace, sound, stop.asked.clone()));
    bound(address, &mirror).context("telling the port")?;
    tracing::info!(
        primary = mirror.primary.name(),
        store = mirror.bucket.name(),
        "listening on http://{address}"
    );
    listen::serve(listener, app, ending).await;

    last.cancel();
    let ended = async {
        let _ = working.await;
        tokio::join!(work.ended(), mirror.ended());
    };
    if tokio::time::timeout(LAST_WORK, ended).await.is_err() {
        tracing::warn!(
            "a sync did not reach a safe point in time; what it left is garbage that harms nobody"
        );
    }
    upkeep.abort();
    let local = mirror.local.clone();
    let _ = crate::threads::spawn_blocking(move || local.remember_order()).await;
    keeping.await?
}

/// Tries the store's promises once. False: it does not answer. An error: it answers wrong and must not be used.
pub(crate) async fn probe(app: &App, work: &Work) -> anyhow::Result<bool> {
    let bucket = &app.mirror.bucket;
    let probed = match bucket.probe().await {
        // One answer that was spoilt on its way is no broken promise.
        Err(failed) if !failed.is_transient() => bucket.probe().await,
        probed => probed,
    };
    match probed {
        Ok(_) => {}
        Err(failed) if failed.is_transient() => {
            tracing::warn!(error = %failed, "the store does not answer; requests are passed on to the primary");
            return Ok(false);
        }
        Err(failed) => return Err(failed.into()),
    }
    bucket.take(&app.mirror.primary.name()).await?;
    work.store_is_sound();
    app.ready.store(true, Ordering::SeqCst);
    tracing::info!("ready");
    Ok(true)
}

/// Probes the store until it answers, then takes up what the bucket holds, now and every `pace`, and exchanges heartbeats
/// with the other nodes.
///
/// A store that answers wrong stops the node.
pub(crate) async fn keep(
    app: App,
    work: Arc<Work>,
    pace: Duration,
    mut sound: bool,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mirror = &app.mirror;
    while !sound {
        if stop.run_until_cancelled(tokio::time::sleep(STORE_PAUSE)).await.is_none() {
            return Ok(());
        }
        sound = probe(&app, &work).await.inspect_err(|_| stop.cancel())?;
    }
    // Before this node goes on with what it has cached.
    obey(mirror).await;
    let known = mirror.recall();
    if known > 0 {
        tracing::info!(repositories = known, "goes on with what was mirrored before");
    }
    let (mut remembered, mut listed, mut looked) = (Instant::now(), None::<Instant>, None::<Instant>);
    let beat = mirror.beat_every();
    loop {
        // New repositories come with the other nodes' heartbeats, so all are listed less often.
        if listed.is_none_or(|listed| listed.elapsed() >= pace) {
            listed = Some(Instant::now());
            match mirror.take_up_all().await {
                Ok(0) => {}
                Ok(n) => tracing::info!(repositories = n, "took up what the bucket holds"),
                Err(e) => tracing::warn!(error = %e, "the bucket could not be listed"),
            }
        }
        if looked.is_none_or(|looked| looked.elapsed() >= beat) {
            looked = Some(Instant::now());
            still_ours(mirror).await.inspect_err(|_| stop.cancel())?;
            obey(mirror).await;
            // Before this node tells what it has heard.
            if let Err(e) = mirror.listen().await {
                tracing::warn!(error = e.chain(), "what the other nodes say could not be read");
            }
            if let Err(e) = mirror.take_out_removed().await {
                tracing::warn!(error = %e, "it could not be looked up what was taken out of the mirror");
            }
            mirror.close_idle();
        }
        if remembered.elapsed() > REMEMBER_EVERY {
            remembered = Instant::now();
            let local = mirror.local.clone();
            let _ = crate::threads::spawn_blocking(move || local.remember_order()).await;
        }
        if let Err(e) = mirror.tell_health().await {
            tracing::debug!(error = %e, "this node's health could not be written");
        }
        if stop.run_until_cancelled(pause(mirror, beat)).await.is_none() {
            return Ok(());
        }
    }
}

/// Obeys orders to forget. What could not be obeyed is tried again at the next heartbeat, and the order waits for it.
async fn obey(mirror: &Mirror) {
    if let Err(e) = mirror.obey().await {
        tracing::warn!(error = e.chain(), "orders of `packmirror purge` could not be obeyed yet");
    }
}

/// Waits until the next heartbeat is due: after `pace`; a second after the last one where a sync began, went a step on or
/// ended; a little later while one runs.
async fn pause(mirror: &Mirror, pace: Duration) {
    let begun = Instant::now();
    let longest = if mirror.is_idle() { pace } else { pace.min(HEARTBEAT_SYNCING) };
    if tokio::time::timeout(longest, mirror.news()).await.is_ok() {
        tokio::time::sleep_until(begun + HEARTBEAT_NEWS).await;
    }
}

/// Ends a node whose store has been adopted by another address of the primary meanwhile: until then it finds records that it
/// does not take for its primary's, and passes their repositories on.
async fn still_ours(mirror: &Mirror) -> anyhow::Result<()> {
    // A bucket that was emptied while the node ran gets its marks again.
    match mirror.bucket.take(&mirror.primary.name()).await {
        Err(error @ StoreError::OtherPrimary { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(error = error.chain(), "whose mirror the store is could not be read");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
