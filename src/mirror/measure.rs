//! What is measured rather than counted, whenever somebody looks.

use crate::boot::time_of_day;
use crate::mirror::Mirror;
use crate::mirror::progress::Step;
use crate::mirror::standing::{RepoStatus, State};
use crate::telemetry::metrics as names;

/// Sets the gauges of a node's repositories and cache.
pub fn measure(mirror: &Mirror) {
    let cache = mirror.local.stats();
    metrics::gauge!(names::CACHE_BYTES).set(cache.bytes as f64);
    let unusable = ("unusable", cache.unusable);
    for (result, n) in [("hit", cache.hits), ("miss", cache.misses), ("damaged", cache.damaged), unusable] {
        metrics::counter!(names::CACHE_REQUESTS, "result" => result).absolute(n);
    }
    let (now, repos) = (time_of_day(), mirror.repos());
    let rows: Vec<RepoStatus> = repos.iter().map(|repo| RepoStatus::of(repo, now)).collect();
    let division = mirror.division();
    let owned = repos.iter().filter(|repo| division.is_ours(repo.path.as_str())).count();
    metrics::gauge!(names::OWNED).set(owned as f64);
    metrics::gauge!(names::LIVE_NODES).set(mirror.live_nodes() as f64);
    for state in [State::New, State::Syncing, State::Current, State::Failing, State::Damaged, State::Gone] {
        let n = rows.iter().filter(|row| row.state == state).count();
        metrics::gauge!(names::REPOS, "state" => state.word()).set(n as f64);
    }
    let mut running: Vec<Step> = mirror.syncs().into_iter().map(|(_, sync)| sync.phase).collect();
    running.extend(repos.iter().filter_map(|repo| repo.compaction().shown()).map(|merge| merge.phase));
    for step in Step::ALL {
        let n = running.iter().filter(|running| **running == step).count();
        metrics::gauge!(names::SYNCS, "phase" => step.word()).set(n as f64);
    }
    let layers = repos.iter().filter_map(|repo| Some(repo.known()?.layers.len())).max();
    metrics::gauge!(names::LAYERS).set(layers.unwrap_or(0) as f64);
    let ages = rows.iter().filter(|row| row.state != State::Gone).filter_map(|row| row.lag);
    metrics::gauge!(names::STALENESS).set(ages.max().unwrap_or_default().as_secs_f64());
    let waiting = rows.iter().filter(|row| row.error.is_some()).count();
    metrics::gauge!(names::BACKOFF_REPOS).set(waiting as f64);
}
