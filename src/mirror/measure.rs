//! What is measured rather than counted, whenever somebody looks.

use std::time::SystemTime;

use crate::mirror::Mirror;
use crate::mirror::health::RepoHealth;
use crate::mirror::progress::Step;
use crate::mirror::repo::Phase;
use crate::mirror::standing::RepoStatus;
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
    let running: Vec<Step> = mirror.syncs().into_iter().map(|(_, sync)| sync.phase).collect();
    for step in Step::ALL {
        let n = running.iter().filter(|running| **running == step).count();
        metrics::gauge!(names::SYNCS, "phase" => step.word()).set(n as f64);
    }
    let now = SystemTime::now();
    let ages = mirror.repos().into_iter().filter(|repo| repo.health().phase != Phase::Gone);
    let ages = ages.filter_map(|repo| RepoStatus::of(&repo, now).lag);
    metrics::gauge!(names::STALENESS).set(ages.max().unwrap_or_default().as_secs_f64());
    let waiting = health.iter().filter(|repo| repo.error.is_some()).count();
    metrics::gauge!(names::BACKOFF_REPOS).set(waiting as f64);
}
