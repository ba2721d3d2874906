//! `/livez`, `/readyz` and `/metrics`.
//!
//! Live says that the process answers. Ready says that the store was probed and the node is not draining; the
//! primary's health is left out, since no other node would do better.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use crate::serve::app::App;

/// Whether a path is one of the three.
pub fn is_health(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/metrics")
}

/// Answers as long as the process can.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// 200 when requests may be sent here, 503 otherwise.
pub async fn readyz(State(app): State<App>) -> Response {
    if app.ready.load(Ordering::SeqCst) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n").into_response()
    }
}

/// The metrics in Prometheus' text form.
pub async fn metrics(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.recorder.render())
        .into_response()
}
