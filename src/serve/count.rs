//! Counts every request, from its head to the end of its answer's body.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use crate::serve::health;
use crate::telemetry::metrics as names;

/// Wraps a route: counts the answer by service and status, and holds the request in flight until its body ended.
pub async fn count(request: Request, next: Next) -> Response {
    let service = service(request.uri().path());
    let in_flight = InFlight::begin(service);
    let response = next.run(request).await;
    let code = response.status().as_str().to_owned();
    metrics::counter!(names::HTTP_REQUESTS, "service" => service, "code" => code).increment(1);
    response.map(|body| Body::new(Counted { body, _in_flight: in_flight }))
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
    _in_flight: InFlight,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
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
