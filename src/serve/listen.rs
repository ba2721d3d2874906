//! Connections: accepting them, bounding them, and letting them end in peace.
//!
//! On the stop signal the node says that it is not ready, takes no new connection, lets requests in flight finish for at
//! most the drain timeout, and cuts what is left.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::serve::app::App;
use crate::serve::{count, git, health};

/// A client that has not sent its request's head by then is cut.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept (no file descriptors left), others get time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All routes: three of ours, everything else is Git.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(git::handle)
        .layer(axum::middleware::from_fn(count::count))
        .with_state(app)
}

/// Serves until `stop`, then drains for at most `drain`.
pub async fn serve(
    listener: TcpListener,
    app: App,
    stop: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    let service = TowerToHyperService::new(router(app.clone()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(64);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(app.mirror.settings.limits.connections.max(1)));
    loop {
        // Beyond the limit connections wait in the system's queue.
        let accepting = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepting => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Small packets matter more than full ones: a negotiation is many short answers.
        let _ = stream.set_nodelay(true);
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(stream), service.clone()).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a connection ended early");
            }
        });
    }
    drop(listener);
    app.ready.store(false, Ordering::SeqCst);
    tracing::info!(in_flight = graceful.count(), "draining");
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight at the end of the drain timeout; they are cut");
    }
    Ok(())
}
