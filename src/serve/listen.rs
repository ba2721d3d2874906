//! Connections: accepting them, speaking HTTP on them, and letting them end in peace.
//!
//! On the stop signal the node says that it is not ready, takes no new connection, lets requests in flight finish for at
//! most the drain timeout, and cuts what is left.
//! Elsewhere: who may stay how long (`places`, `connection`), what a request may look like (`framing`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::primary::MOST_HEADER_BYTES;
use crate::serve::app::App;
use crate::serve::origin::Peer;
use crate::serve::places::{Place, Places, REQUEST_TIMEOUT};
use crate::serve::wire::Wire;
use crate::serve::{connection, count, files, git, health};

/// After a failed accept (no file descriptors left), others get time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// A lack that lasts is told so often.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// What is read ahead of a request, or waits to be written, in HTTP/1.
const BUFFER: usize = 64 << 10;
/// Requests at the same time on one connection, in HTTP/2.
const STREAMS: u32 = 64;
/// What a client may send in HTTP/2 before it is read: of one body, and of all on one connection.
const WINDOW: u32 = 1 << 20;
/// A client that does not answer a ping in HTTP/2 is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// All routes: three of ours, everything else is Git.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(git::handle)
        .layer(axum::middleware::from_fn(connection::watch))
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
    let limits = &app.terms.limits;
    let most = files::room_for(limits.connections);
    let places = Places::new(most, limits.client_timeout, stop.clone());
    let watching = Arc::clone(&places);
    let _watching = AbortOnDropHandle::new(tokio::spawn(async move { watching.watch().await }));
    let router = router(app.clone());
    let open = TaskTracker::new();
    let mut lack = Lack::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((socket, _)) => {
                open.spawn(speak(socket, places.take(), router.clone()));
            }
            Err(error) => {
                // An idle connection holds what is missing: it is closed.
                if lack.is_lack(&error) {
                    places.give_way();
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    app.ready.store(false, Ordering::SeqCst);
    tracing::info!(connections = open.len(), "draining");
    open.close();
    if tokio::time::timeout(drain, open.wait()).await.is_err() {
        tracing::warn!("requests were still in flight at the end of the drain timeout; they are cut");
    }
    Ok(())
}

/// Connections that could not be accepted, told without a storm of lines.
#[derive(Default)]
struct Lack {
    told: Option<Instant>,
    since: u64,
}

impl Lack {
    /// Whether the system lacks something that a closed connection would give back.
    fn is_lack(&mut self, error: &io::Error) -> bool {
        self.since += 1;
        if self.told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            tracing::warn!(%error, times = self.since,
                "connections could not be accepted; idle ones are closed. Raise the limit on open files (LimitNOFILE, ulimit -n) or lower limits.connections");
            (self.told, self.since) = (Some(Instant::now()), 0);
        }
        let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        error.raw_os_error().is_some_and(|code| lacks.iter().any(|lack| lack.raw_os_error() == code))
    }
}

/// Serves one connection to its end.
async fn speak(socket: TcpStream, place: Place, router: Router) {
    // Small packets matter more than full ones: a negotiation is many short answers.
    let _ = socket.set_nodelay(true);
    let connection = Arc::clone(&place.connection);
    let peer = socket.peer_addr().ok().map(Peer);
    let opened = tokio::select! {
        opened = Wire::open(socket, Arc::clone(&connection)) => opened,
        () = connection.leave.cancelled() => return,
        () = connection.cut.cancelled() => return,
    };
    let Ok((wire, modern)) = opened else { return };
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Arc::clone(&connection));
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        service.call(request)
    });
    // One connection holds at most: a head and `BUFFER` twice in HTTP/1; a window, a table of headers and one piece of each
    // answer in HTTP/2. Pieces are bounded where they are made.
    if modern {
        place.connection.speaks_http2();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buf_size(BUFFER)
            .max_header_list_size(MOST_HEADER_BYTES as u32)
            .max_local_error_reset_streams(Some(STREAMS as usize))
            .keep_alive_interval(REQUEST_TIMEOUT)
            .keep_alive_timeout(PING_TIMEOUT);
        drive(
            builder.serve_connection(TokioIo::new(wire), service),
            http2::Connection::graceful_shutdown,
            &place,
        )
        .await;
    } else {
        let mut builder = http1::Builder::new();
        // Heads have a deadline in `places`.
        builder.header_read_timeout(None).max_buf_size(BUFFER);
        let connection = builder.serve_connection(TokioIo::new(wire), service).with_upgrades();
        drive(connection, http1::UpgradeableConnection::graceful_shutdown, &place).await;
        carry(&place).await;
    }
}

/// Serves the tunnel that a connection has become, if it has.
async fn carry(place: &Place) {
    let connection = &place.connection;
    let Some((tunnel, in_flight)) = connection.take_tunnel() else { return };
    tokio::select! {
        ended = tunnel.run(connection.patience()) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel ended early");
            }
        }
        () = connection.cut.cancelled() => {}
        () = connection.leave.cancelled() => {}
    }
    in_flight.ends();
}

/// Runs a connection until it ends, or is ended.
async fn drive<C, E>(connection: C, end: fn(Pin<&mut C>), place: &Place)
where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let (leave, cut) = (place.connection.leave.clone(), place.connection.cut.clone());
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = cut.cancelled() => return,
        () = leave.cancelled() => {
            end(connection.as_mut());
            tokio::select! {
                ended = &mut connection => ended,
                () = cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lack_is_told_once_in_a_while() {
        let mut lack = Lack::default();
        assert!(lack.is_lack(&io::Error::from_raw_os_error(Errno::MFILE.raw_os_error())));
        let told = lack.told;
        assert!(told.is_some());
        assert!(!lack.is_lack(&io::ErrorKind::ConnectionAborted.into()), "no lack, but a client that left");
        assert_eq!((lack.told, lack.since), (told, 1));
        tokio::time::advance(TELL_AGAIN).await;
        lack.is_lack(&io::Error::from_raw_os_error(Errno::NFILE.raw_os_error()));
        assert_ne!((lack.told, lack.since), (told, 2));
    }
}
