//! One node from start to end: opens bucket, cache and primary, listens, keeps repositories true, drains.
//!
//! The store is probed before anything is believed of it. While it cannot be reached the node is not ready and passes
//! requests on; a store that fails the probe (it ignores create-if-absent, say) ends the node with an explanation.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::local::{Local, LocalOptions};
use crate::mirror::Mirror;
use crate::mirror::health::RepoHealth;
use crate::mirror::repo::Phase;
use crate::primary::{BadCredential, Credential, Grants, Location, Primary, PrimarySettings};
use crate::serve::app::App;
use crate::serve::listen;
use crate::store::{Bucket, StoreOptions};
use crate::telemetry::metrics::{self as names, Recorder};

/// How long workers get to reach a safe point after the last request.
const LAST_WORK: Duration = Duration::from_secs(5);
/// How often the order in which the cache is used is remembered; also when the node ends.
const REMEMBER_EVERY: Duration = Duration::from_secs(600);
/// How often a store that does not answer is tried again at start.
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// Opens the bucket that the settings name.
pub async fn bucket(settings: &Settings) -> anyhow::Result<Bucket> {
    let options = StoreOptions {
        endpoint: settings.s3.endpoint.clone(),
        region: settings.s3.region.clone(),
        path_style: settings.s3.path_style.then_some(true),
        allow_http: settings.s3.allow_http,
        ..StoreOptions::default()
    };
    Bucket::open(&settings.store, &options)
        .await
        .with_context(|| format!("opening the store {}", settings.store))
}

/// Takes the service credential that the settings hold or name, if any; it is checked now.
pub async fn credential(settings: &Settings) -> Result<Option<Credential>, BadCredential> {
    match (settings.credential(), &settings.credential_file) {
        (Some(secret), _) => Credential::fixed(secret.clone()).map(Some),
        (None, Some(path)) => Credential::file(path).await.map(Some),
        (None, None) => Ok(None),
    }
}

/// Opens the primary that the settings name, with the service credential.
pub async fn primary(settings: &Settings) -> anyhow::Result<Primary> {
    let location = Location::parse(settings.primary()?, settings.insecure_primary)?;
    let mut to = PrimarySettings::new(location);
    to.credential = credential(settings).await?;
    to.ca_file = settings.primary_ca_file.clone();
    to.allow_push = settings.allow_push;
    to.timeouts.connect = settings.primary_connect_timeout;
    to.timeouts.idle = settings.primary_read_timeout;
    Ok(Primary::open(to).await?)
}

/// Opens this node's cache in `dir`.
pub async fn local(settings: &Settings, dir: &Path, bucket: &Bucket) -> anyhow::Result<Local> {
    let options = LocalOptions { max_bytes: settings.cache_max, ..LocalOptions::default() };
    let (dir, bucket) = (dir.to_owned(), bucket.clone());
    // It lists the directory and may replay an index.
    Ok(tokio::task::spawn_blocking(move || Local::open(&dir, &options, bucket)).await??)
}

/// Runs a node until `stop`; `bound` is told the address once it listens.
pub async fn run(
    settings: Settings,
    recorder: Recorder,
    stop: CancellationToken,
    bound: impl FnOnce(SocketAddr) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let bucket = bucket(&settings).await?;
    let primary = primary(&settings).await?;
    let local = local(&settings, &settings.cache_dir, &bucket).await?;
    let grants = Grants::new(primary.clone(), settings.grant_ttl);
    let (listen, drain) = (settings.listen, settings.drain_timeout);
    // Workers outlive the last request: a push that was just answered is still to be synced.
    let work = CancellationToken::new();
    let mirror = Mirror::new(settings, bucket, local, primary, work.clone())?;
    let recorder = Arc::new(recorder);
    let app = App::new(Arc::clone(&mirror), grants, Arc::clone(&recorder));

    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}; choose another address with --listen ADDR:PORT"))?;
    let address = listener.local_addr()?;
    let sound = probe(&app).await?;
    let upkeep = tokio::spawn(async move { recorder.upkeep().await });
    let keeping = tokio::spawn(keep(app.clone(), sound, stop.clone()));
    bound(address).context("telling the port")?;
    tracing::info!(
        primary = mirror.primary.name(),
        store = mirror.bucket.name(),
        "listening on http://{address}"
    );
    listen::serve(listener, app, stop.clone(), drain).await?;

    work.cancel();
    if tokio::time::timeout(LAST_WORK, mirror.ended()).await.is_err() {
        tracing::warn!(
            "a sync did not reach a safe point in time; what it left is garbage that harms nobody"
        );
    }
    upkeep.abort();
    let local = mirror.local.clone();
    let _ = tokio::task::spawn_blocking(move || local.remember_order()).await;
    keeping.await?
}

/// Tries the store's promises once. False: it does not answer. An error: it answers wrong and must not be used.
async fn probe(app: &App) -> anyhow::Result<bool> {
    let bucket = &app.mirror.bucket;
    match bucket.probe().await {
        Ok(_) => {}
        Err(failed) if failed.is_transient() => {
            tracing::warn!(error = %failed, "the store does not answer; requests are passed on to the primary");
            return Ok(false);
        }
        Err(failed) => return Err(failed).context("the store cannot be used"),
    }
    bucket.ensure_format().await?;
    app.mirror.store_is_sound();
    app.ready.store(true, Ordering::SeqCst);
    tracing::info!("ready");
    Ok(true)
}

/// Probes the store until it answers, then takes up what the bucket holds, now and at every interval.
///
/// A store that answers wrong stops the node.
async fn keep(app: App, mut sound: bool, stop: CancellationToken) -> anyhow::Result<()> {
    let mirror = &app.mirror;
    while !sound {
        if stop.run_until_cancelled(tokio::time::sleep(STORE_PAUSE)).await.is_none() {
            return Ok(());
        }
        sound = probe(&app).await.inspect_err(|_| stop.cancel())?;
    }
    let known = mirror.recall();
    if known > 0 {
        tracing::info!(repositories = known, "goes on with what was mirrored before");
    }
    let mut told = Instant::now();
    loop {
        match mirror.take_up_all().await {
            Ok(0) => {}
            Ok(n) => tracing::info!(repositories = n, "took up what the bucket holds"),
            Err(e) => tracing::warn!(error = %e, "the bucket could not be listed"),
        }
        mirror.close_idle();
        measure(mirror);
        if told.elapsed() > REMEMBER_EVERY {
            told = Instant::now();
            let local = mirror.local.clone();
            let _ = tokio::task::spawn_blocking(move || local.remember_order()).await;
        }
        if let Err(e) = mirror.tell_health().await {
            tracing::debug!(error = %e, "this node's health could not be written");
        }
        let pause = tokio::time::sleep(mirror.settings.compare_every.min(HEARTBEAT));
        if stop.run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
    }
}

/// Sets what is measured rather than counted.
fn measure(mirror: &Mirror) {
    let cache = mirror.local.stats();
    metrics::gauge!(names::CACHE_BYTES).set(cache.bytes as f64);
    let unusable = ("unusable", cache.unusable);
    for (result, n) in [("hit", cache.hits), ("miss", cache.misses), ("damaged", cache.damaged), unusable] {
        metrics::counter!(names::CACHE_REQUESTS, "result" => result).absolute(n);
    }
    let health: Vec<RepoHealth> = mirror.repos().iter().map(|repo| RepoHealth::of(repo)).collect();
    for (state, phase) in [
        ("new", Phase::New),
        ("syncing", Phase::Syncing),
        ("current", Phase::Current),
        ("failing", Phase::Failing),
        ("gone", Phase::Gone),
    ] {
        let n = health.iter().filter(|repo| repo.phase == phase).count();
        metrics::gauge!(names::REPOS, "state" => state).set(n as f64);
    }
    let waiting = health.iter().filter(|repo| repo.error.is_some()).count();
    metrics::gauge!(names::BACKOFF_REPOS).set(waiting as f64);
}

/// How often a node writes its health into the bucket, for `packmirror status`.
const HEARTBEAT: Duration = Duration::from_secs(30);
