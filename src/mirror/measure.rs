//! What is measured rather than counted, whenever somebody looks.

use crate::mirror::Mirror;
use crate::mirror::health::RepoHealth;
use crate::mirror::repo::Phase;
use crate::telemetry::metrics as names;

/// Sets the gauges of a node's repositories and cache.
pub fn measure(mirror: &Mirror) {
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
