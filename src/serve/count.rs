//! Follows every request from its head to the end of its answer's body: counts it, and tells of it when it has ended (`told`).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};
use hyper::body::{Frame, SizeHint};

use crate::serve::health;
use crate::serve::told::{ID, Told, Watch};
use crate::telemetry::metrics as names;

/// Wraps a route: counts the answer by service and status, names it, and holds the request in flight until its body ended.
pub async fn count(request: Request, next: Next) -> Response {
    let service = service(request.uri().path());
    let in_flight = InFlight::begin(service);
    let (told, bodiless) = (Told::of(request.headers()), request.method() == Method::HEAD);
    let mut watch = Watch::begin(Arc::clone(&told), service == "health");
    let mut response = told.during(next.run(request)).await;
    let status = response.status();
    metrics::counter!(names::HTTP_REQUESTS, "service" => service, "code" => status.as_str().to_owned())
        .increment(1);
    if let Some(id) = told.id() {
        response.headers_mut().insert(ID, id);
    }
    watch.head(status.as_u16());
    let length = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let bodiless = bodiless || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    response.map(|body| {
        if bodiless || body.is_end_stream() {
            watch.whole();
        }
        Body::new(Counted { body, watch, length, _in_flight: in_flight })
    })
}

/// The kind of request, by the end of its path; a label, so one of few.
fn service(path: &str) -> &'static str {
    match path {
        _ if health::is_health(path) => "health",
        _ if path.ends_with("/info/refs") => "refs",
        _ if path.ends_with("/git-upload-pack") => "fetch",
        _ if path.ends_with("/git-receive-pack") => "push",
        _ => "plain",
    }
}

struct InFlight(&'static str);

impl InFlight {
    fn begin(service: &'static str) -> Self {
        metrics::gauge!(names::INFLIGHT, "service" => service).increment(1.0);
        Self(service)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        metrics::gauge!(names::INFLIGHT, "service" => self.0).decrement(1.0);
    }
}

/// A body that counts as in flight until it is dropped: sent, or given up.
struct Counted {
    body: Body,
    watch: Watch,
    /// What its head says that it has: nobody asks for its end once that is sent.
    length: Option<u64>,
    _in_flight: InFlight,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.watch.bytes(data.len());
        }
        let sent = Some(self.watch.sent());
        let is_error = matches!(polled, Poll::Ready(Some(Err(_))));
        if matches!(polled, Poll::Ready(None))
            || !is_error && (self.body.is_end_stream() || sent == self.length)
        {
            self.watch.whole();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_tells_the_service() {
        for (path, want) in [
            ("/metrics", "health"),
            ("/team/app.git/info/refs", "refs"),
            ("/team/app.git/git-upload-pack", "fetch"),
            ("/team/app.git/git-receive-pack", "push"),
            ("/team/app.git/HEAD", "plain"),
            ("/team/metrics", "plain"),
        ] {
            assert_eq!(service(path), want, "{path}");
        }
    }
}
