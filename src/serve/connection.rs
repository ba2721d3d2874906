//! One client's connection: what it owes us, and since when.
//!
//! A connection is *quiet* while nothing can go on but by its client: it has asked nothing, keeps back the rest of a body,
//! or does not read. Quiet connections have deadlines, and give their place to others when places run out ([`Places`]).
//! Every request passes through [`watch`], which knows when it waits for the client; the socket ([`Wire`]) knows
//! when the client does not read. In HTTP/2 a client may also read its connection and not one of its streams: the
//! body of such an answer is dropped, and with it all that stands behind it.
//! Elsewhere: deadlines and places (`places`), the bytes themselves (`wire`).
//!
//! [`Places`]: crate::serve::places::Places
//! [`Wire`]: crate::serve::wire::Wire

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, Version, header};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::serve::error::Failure;
use crate::serve::framing::{Bad, REFUSED};
use crate::serve::health;
use crate::serve::places::Ends;
use crate::serve::tunnel::Tunnel;

/// So many more requests given up than answered, and the connection is closed: a flood of resets (CVE-2023-44487).
const MOST_GIVEN_UP: u64 = 256;
/// How long a connection that was just opened may take to ask, when the node ends.
const MOMENT: Duration = Duration::from_secs(1);

/// How many requests are in flight on all connections: in HTTP/2 one connection has many.
#[derive(Debug)]
pub struct Load {
    /// Requests in flight.
    pub now: AtomicUsize,
    /// Requests that are not in flight any more.
    pub ended: AtomicU64,
    /// Beyond this, further ones are told to come back.
    pub most: usize,
}

/// A connection, shared by its socket, its requests and the list of places.
#[derive(Debug)]
pub struct Connection {
    /// Its number in the list of places.
    pub number: u64,
    /// It got one of the places that are kept for health: nothing else is answered on it.
    pub spare: bool,
    /// Asks for its end once what is in flight is done.
    pub leave: CancellationToken,
    /// Ends it at once.
    pub cut: CancellationToken,
    /// The node stops: an answer in HTTP/1 is the last one.
    last: CancellationToken,
    /// A request has come.
    asked: CancellationToken,
    /// How long a request waits for its client.
    patience: Duration,
    load: Arc<Load>,
    modern: AtomicBool,
    /// What it becomes once its last answer has gone out, and whether it has become that.
    tunnel: Mutex<Option<(Tunnel, InFlight)>>,
    changed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Requests between their head and the end of their answer.
    in_flight: usize,
    /// Of those, how many wait for more of their body.
    awaiting: usize,
    /// Since when nothing is in flight, or everything waits.
    since: Instant,
    /// Since when the client takes nothing.
    blocked: Option<Instant>,
    /// Requests given up by the client, less those answered.
    given_up: u64,
    /// Answers in HTTP/2.
    answers: Vec<Weak<Mutex<Held>>>,
}

/// What a quiet connection's client owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owes {
    /// A request, its whole head.
    Request,
    /// More of a body.
    Body,
    /// To read.
    Reading,
}

impl Connection {
    /// A connection just accepted.
    pub fn new(number: u64, spare: bool, patience: Duration, load: Arc<Load>, ends: &Ends) -> Self {
        let state = State {
            in_flight: 0,
            awaiting: 0,
            since: Instant::now(),
            blocked: None,
            given_up: 0,
            answers: Vec::new(),
        };
        Self {
            number,
            spare,
            leave: ends.now.child_token(),
            cut: CancellationToken::new(),
            last: ends.soon.clone(),
            asked: CancellationToken::new(),
            patience,
            load,
            modern: AtomicBool::new(false),
            tunnel: Mutex::default(),
            changed: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    /// Waits until it is to take no further request. A client that has just connected is about to ask: it gets a moment.
    pub async fn leaves(&self) {
        self.leave.cancelled().await;
        let _ = self.asked.run_until_cancelled(tokio::time::sleep(MOMENT)).await;
    }

    /// Notes that it speaks HTTP/2.
    pub fn speaks_http2(&self) {
        self.modern.store(true, Ordering::Relaxed);
    }

    /// Whether it speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.modern.load(Ordering::Relaxed)
    }

    /// Makes it a tunnel: what comes now is no request. It counts as a request in flight until the tunnel's end.
    pub fn becomes(self: &Arc<Self>, tunnel: Tunnel) {
        let in_flight = self.begin();
        *lock(&self.tunnel) = Some((tunnel, in_flight));
        self.changed.store(true, Ordering::Release);
    }

    /// Whether it has become a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// The tunnel that it has become, for whoever serves it, with what counts it as in flight.
    pub fn take_tunnel(&self) -> Option<(Tunnel, InFlight)> {
        lock(&self.tunnel).take()
    }

    /// How long a request waits for its client.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// What the client owes, and since when; `None` while we owe something.
    pub fn quiet(&self) -> Option<(Owes, Instant)> {
        let state = self.state();
        match state.blocked {
            Some(since) => Some((Owes::Reading, since)),
            None if state.in_flight == 0 => Some((Owes::Request, state.since)),
            None if state.awaiting >= state.in_flight => Some((Owes::Body, state.since)),
            None => None,
        }
    }

    /// Drops the bodies of answers that the client has not taken for `patience`; whether nothing else is in flight.
    pub fn drop_stalled(&self, now: Instant) -> bool {
        let (answers, in_flight) = {
            let mut state = self.state();
            state.answers.retain(|answer| answer.strong_count() > 0);
            (state.answers.clone(), state.in_flight)
        };
        let mut dead = 0;
        for answer in answers.iter().filter_map(Weak::upgrade) {
            let mut held = lock(&answer);
            if held.given.is_some_and(|at| at + self.patience <= now) {
                let body = held.body.take();
                drop(held);
                drop(body);
                dead += 1;
            }
        }
        dead > 0 && dead == in_flight
    }

    /// Notes whether the client reads.
    pub fn blocked(&self, blocked: bool) {
        let mut state = self.state();
        let now = Instant::now();
        state.blocked = blocked.then_some(now);
        // What was answered has only now left.
        state.since = now;
    }

    fn awaits(&self, more: bool) {
        let mut state = self.state();
        state.since = Instant::now();
        state.awaiting = if more { state.awaiting + 1 } else { state.awaiting.saturating_sub(1) };
    }

    fn begin(self: &Arc<Self>) -> InFlight {
        self.state().in_flight += 1;
        self.asked.cancel();
        self.load.now.fetch_add(1, Ordering::Relaxed);
        InFlight { connection: Arc::clone(self), ended: false }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request, from its head to the end of its answer or of its client.
#[derive(Debug)]
pub struct InFlight {
    connection: Arc<Connection>,
    ended: bool,
}

impl InFlight {
    /// Takes note that it has come to its end, and was not given up.
    pub fn ends(mut self) {
        self.ended = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.load.now.fetch_sub(1, Ordering::Relaxed);
        self.connection.load.ended.fetch_add(1, Ordering::Relaxed);
        let mut state = self.connection.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.since = Instant::now();
        state.given_up = if self.ended { state.given_up.saturating_sub(1) } else { state.given_up + 1 };
        if state.given_up > MOST_GIVEN_UP {
            self.connection.cut.cancel();
        }
    }
}

/// Lets a request through as far as its connection may have it answered, and notes what its client owes.
pub async fn watch(request: Request, next: Next) -> Response {
    let Some(connection) = request.extensions().get::<Arc<Connection>>().cloned() else {
        return next.run(request).await;
    };
    let mut in_flight = connection.begin();
    let (refused, version) = (refusal(&request, &connection), request.version());
    let mut response = match refused {
        Some(refused) => refused,
        None => {
            let request = request.map(|body| {
                Body::new(Patient { body, connection: Arc::clone(&connection), timer: None, waits: false })
            });
            next.run(request).await
        }
    };
    if connection.spare || (connection.last.is_cancelled() && version < Version::HTTP_2) {
        close(&mut response, &connection, version);
    }
    // HTTP/2 has no way to say that nobody knows whether an answer is whole.
    let unframed = version >= Version::HTTP_2 && response.version() < Version::HTTP_11;
    response.map(|body| {
        in_flight.ended = body.is_end_stream();
        let held = Arc::new(Mutex::new(Held { body: Some(body), given: None, unframed }));
        if version >= Version::HTTP_2 {
            connection.state().answers.push(Arc::downgrade(&held));
        }
        Body::new(Answer { held, in_flight })
    })
}

/// The answer to a request that is not let through.
fn refusal(request: &Request, connection: &Arc<Connection>) -> Option<Response> {
    let mut response = if request.method().as_str() == REFUSED && request.version() < Version::HTTP_2 {
        let bad = Bad::of_stand_in(request.uri().path());
        let mut response = Failure::Malformed(bad.to_string()).into_response();
        *response.status_mut() = StatusCode::from_u16(bad.status()).unwrap_or(StatusCode::BAD_REQUEST);
        response
    } else if health::is_health(request.uri().path()) {
        return None;
    } else if connection.spare {
        busy()
    } else if connection.load.now.load(Ordering::Relaxed) > connection.load.most {
        return Some(busy());
    } else {
        return None;
    };
    close(&mut response, connection, request.version());
    Some(response)
}

fn busy() -> Response {
    metrics::counter!(crate::telemetry::metrics::SHED).increment(1);
    Failure::Busy.into_response()
}

/// Ends the connection after this answer.
fn close(response: &mut Response, connection: &Connection, version: Version) {
    if version >= Version::HTTP_2 {
        connection.leave.cancel();
    } else {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// A request's body that ends with an error when the client does not send it.
struct Patient {
    body: Body,
    connection: Arc<Connection>,
    timer: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl Patient {
    fn waits(&mut self, waits: bool) {
        if self.waits != waits {
            self.waits = waits;
            self.connection.awaits(waits);
        }
    }
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.waits(false);
            return Poll::Ready(frame);
        }
        let deadline = Instant::now() + this.connection.patience;
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !this.waits {
            timer.as_mut().reset(deadline);
        }
        let late = timer.as_mut().poll(cx);
        this.waits(true);
        ready!(late);
        Poll::Ready(Some(Err(axum::Error::new("the client sent nothing for too long"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        self.waits(false);
    }
}

/// An answer's body, which may be taken away when the client does not come for it.
#[derive(Debug)]
struct Held {
    body: Option<Body>,
    /// When the client got something and did not come for more yet.
    given: Option<Instant>,
    /// Its end says nothing.
    unframed: bool,
}

/// An answer's body that counts as in flight until it is dropped.
struct Answer {
    held: Arc<Mutex<Held>>,
    in_flight: InFlight,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let (polled, ended) = {
            let mut held = lock(&self.held);
            let Some(body) = &mut held.body else {
                return Poll::Ready(Some(Err(axum::Error::new("the client read nothing for too long"))));
            };
            let polled = Pin::new(&mut *body).poll_frame(cx);
            let ended = matches!(polled, Poll::Ready(None)) || body.is_end_stream();
            if held.unframed && matches!(polled, Poll::Ready(None)) {
                return Poll::Ready(Some(Err(axum::Error::new("the primary's answer has no end"))));
            }
            held.given = matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now);
            (polled, ended)
        };
        self.in_flight.ended |= ended;
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.held).body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.held).body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}
