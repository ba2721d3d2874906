//! `/livez`, `/readyz`, `/metrics` and `/status`.
//!
//! Live says that the process answers. Ready says that the store was probed and the node is not draining; the
//! primary's health is left out, since no other node would do better.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use crate::mirror::measure::measure;
use crate::mirror::standing::{RepoStatus, json};
use crate::serve::app::App;

/// Whether a path is one of these.
pub fn is_health(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/metrics" | "/status")
}

/// Answers as long as the process can.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// 200 when requests may be sent here, 503 otherwise.
pub async fn readyz(State(app): State<App>) -> Response {
    let no = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    if app.stop.asked.is_cancelled() {
        no("not ready: stopping\n")
    } else if !app.ready.load(Ordering::SeqCst) {
        no("not ready: the store has not answered yet\n")
    } else {
        "ready\n".into_response()
    }
}

/// The metrics in Prometheus' text form.
pub async fn metrics(State(app): State<App>) -> Response {
    measure(&app.mirror);
    app.memory.measure();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.recorder.render())
        .into_response()
}

/// How this node's repositories stand: JSON as `packmirror status --json` prints it for all nodes.
pub async fn status(State(app): State<App>) -> Response {
    let now = SystemTime::now();
    match json(&RepoStatus::of_all(&app.mirror, now)) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
