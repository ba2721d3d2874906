//! Connections: accepting them, speaking HTTP on them, and letting them end in peace.
//!
//! Elsewhere: who may stay how long (`places`, `connection`), what a request may look like (`framing`), how it all ends
//! (`drain`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures::FutureExt;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::primary::MOST_HEADER_BYTES;
use crate::serve::app::App;
use crate::serve::drain::{Pace, drain};
use crate::serve::origin::Peer;
use crate::serve::places::{Ends, Place, Places, REQUEST_TIMEOUT};
use crate::serve::wire::Wire;
use crate::serve::{connection, count, files, git, health};

/// After a failed accept (no file descriptors left), others get time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// A lack that lasts is told so often.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// What the system takes of an answer before its client has taken what came earlier. Without a bound it takes some
/// megabytes of each, and all connections of the machine stop where its memory for sockets ends.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 << 10;
/// What is read ahead of a request, or waits to be written, in HTTP/1.
pub(super) const BUFFER: usize = 64 << 10;
/// Requests at the same time on one connection, in HTTP/2.
const STREAMS: u32 = 64;
/// What a client may send in HTTP/2 before it is read: of one body, and of all on one connection.
const WINDOW: u32 = 1 << 20;
/// A client that does not answer a ping in HTTP/2 is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Who connects for administration: a scraper, probes, a person. Others wait for a place.
const ADMINISTRATORS: usize = 32;

/// All routes of clients: a few of ours, everything else is Git.
pub fn router(app: App) -> Router {
    let mut routes = Router::new().route("/livez", get(health::livez)).route("/readyz", get(health::readyz));
    if app.terms.public_metrics {
        routes = routes.route("/metrics", get(health::metrics));
    }
    layered(routes.fallback(git::handle), app)
}

/// All routes of `admin_listen`.
fn admin_router(app: App) -> Router {
    let routes = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/status", get(health::status));
    layered(routes, app)
}

fn layered(routes: Router<App>, app: App) -> Router {
    routes
        .layer(axum::middleware::from_fn(connection::watch))
        .layer(axum::middleware::from_fn(count::count))
        .with_state(app)
}

/// Serves administration, until the future is dropped.
pub async fn administer(listener: TcpListener, app: App) {
    let places = Places::new(ADMINISTRATORS, app.terms.limits.client_timeout, Ends::default());
    let _watching = watched(&places);
    accept(&listener, &places, &admin_router(app), &TaskTracker::new()).await;
}

/// Serves until the node is asked to stop, then ends at that `pace`.
pub async fn serve(listener: TcpListener, app: App, pace: Pace) {
    let (limits, stop) = (&app.terms.limits, app.stop.clone());
    let most = files::room_for(limits.connections);
    let ends = Ends { soon: stop.asked.clone(), ..Ends::default() };
    let places = Places::new(most, limits.client_timeout, ends.clone());
    let _watching = watched(&places);
    let open = TaskTracker::new();
    let router = router(app);
    {
        let accepting = accept(&listener, &places, &router, &open);
        tokio::select! {
            () = accepting => {}
            () = stop.delayed(pace.delay) => {}
        }
    }
    // Who is connected as far as the system knows is still served.
    while let Some(Ok((socket, _))) = listener.accept().now_or_never() {
        open.spawn(speak(socket, places.take(), router.clone()));
    }
    drop(listener);
    ends.now.cancel();
    open.close();
    drain(&places, open.wait(), pace.timeout).await;
}

/// Holds connections to their deadlines, also while they drain.
fn watched(places: &Arc<Places>) -> AbortOnDropHandle<()> {
    let places = Arc::clone(places);
    AbortOnDropHandle::new(tokio::spawn(async move { places.watch().await }))
}

/// Accepts connections and serves `router` on them, until the future is dropped.
async fn accept(listener: &TcpListener, places: &Arc<Places>, router: &Router, open: &TaskTracker) {
    let mut lack = Lack::default();
    loop {
        match listener.accept().await {
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
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT);
    let connection = Arc::clone(&place.connection);
    let peer = socket.peer_addr().ok().map(Peer);
    let opened = tokio::select! {
        opened = Wire::open(socket, Arc::clone(&connection)) => opened,
        () = connection.leaves() => return,
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
    let cut = place.connection.cut.clone();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = cut.cancelled() => return,
        () = place.connection.leaves() => {
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
