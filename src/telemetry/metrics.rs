//! Metrics: every name, its kind, its labels and its meaning, and the recorder that renders them.
//!
//! Rules: one prefix, base units, `_total` for counters; no label ever holds a repository, a ref, a client or
//! anything else without a small fixed set of values. Rooms record with the facade's macros and these names:
//! `counter!(metrics::ANSWERS, "source" => label::BUCKET, "reason" => label::REFS).increment(1)`.
//! Relies on: `metrics-exporter-prometheus` without its listener; `metrics-process` for what the system knows of this process. Elsewhere: `/metrics` itself (`serve`).

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Answers to clients, by where they came from: `source` is [`label::BUCKET`] or [`label::PRIMARY`], `reason` says
/// what was answered from the bucket, or why the primary was asked.
pub const ANSWERS: &str = "packmirror_answers_total";
/// Labels: `version`. Always 1.
pub const BUILD_INFO: &str = "packmirror_build_info";
/// Labels: `service` (refs, fetch, push, plain, health), `code`.
pub const HTTP_REQUESTS: &str = "packmirror_http_requests_total";
/// Labels: `service`. Requests that are being answered.
pub const INFLIGHT: &str = "packmirror_inflight";
/// No labels. Requests turned away because of a limit.
pub const SHED: &str = "packmirror_shed_total";
/// Labels: `phase` (plan: until it is known what to send; send: until the last byte).
pub const FETCH_SECONDS: &str = "packmirror_fetch_duration_seconds";
/// Labels: `source` (bucket, primary, node: its own refusals). Bytes of all answers' bodies but those to health and metrics.
pub const ANSWER_BYTES: &str = "packmirror_answer_bytes_total";
/// Labels: `kind` (refs, ls-refs, clone, fetch, push-refs, push, lfs, archive, file, other), `source`. From a request's head to
/// the first byte of its answer's body.
pub const FIRST_BYTE_SECONDS: &str = "packmirror_answer_first_byte_seconds";
/// Labels: `kind`, `source`. From a request's head to the end of its answer, of those that were sent whole.
pub const ANSWER_SECONDS: &str = "packmirror_answer_duration_seconds";
/// Labels: `op` (refs, upload-pack, push, lfs, other), `outcome` (ok, 4xx, 429, 5xx, timeout, unreachable, unusable).
pub const PRIMARY_REQUESTS: &str = "packmirror_primary_requests_total";
/// Labels: the same. Until the head of the answer.
pub const PRIMARY_SECONDS: &str = "packmirror_primary_request_duration_seconds";
/// No labels. 1 while the primary answers, 0 while it does not; absent before it was asked.
pub const PRIMARY_UP: &str = "packmirror_primary_up";
/// Labels: `op` (get, range, head, list, put, create, upload, part, complete, abort, delete, copy), `outcome` (ok, not-found,
/// exists, denied, error). Attempts: what is repeated counts again.
pub const STORE_REQUESTS: &str = "packmirror_store_requests_total";
/// Labels: the same. Until the first byte of the answer.
pub const STORE_SECONDS: &str = "packmirror_store_request_duration_seconds";
/// No labels. How old the state of the mirrored repository is that was not confirmed for longest; repositories that are gone
/// at the primary are left out.
pub const STALENESS: &str = "packmirror_staleness_seconds";
/// Labels: `phase`. Syncs that run now, by what they do.
pub const SYNCS: &str = "packmirror_syncs";
/// Labels: `result` (hit, miss, damaged, unusable: there, but not to be opened or mapped). Lookups of blocks and files in this node's cache.
pub const CACHE_REQUESTS: &str = "packmirror_pack_cache_requests_total";
/// No labels. Bytes of blocks on this node's disk.
pub const CACHE_BYTES: &str = "packmirror_pack_cache_bytes";
/// Labels: `result` ([`label::PUBLISHED`], [`label::UNCHANGED`], [`label::FOLLOWED`], [`label::FAILED`]).
pub const SYNC_RUNS: &str = "packmirror_sync_runs_total";
/// No labels. From the first question to the primary to the end, whatever it was.
pub const SYNC_SECONDS: &str = "packmirror_sync_duration_seconds";
/// No labels. Pack bytes received from the primary.
pub const SYNC_BYTES: &str = "packmirror_sync_bytes_total";
/// No labels. Refs that the primary shows and that are empty, dangling or misnamed, counted when that is seen first.
pub const REFS_LEFT_OUT: &str = "packmirror_refs_left_out_total";
/// Labels: `kind` (pack, idx, graph, refs, record). What was found to be missing or damaged when it was looked at in rotation.
pub const FLAWS: &str = "packmirror_vet_flaws_total";
/// No labels. Stored bytes that were read and hashed in rotation.
pub const VET_BYTES: &str = "packmirror_vet_bytes_total";
/// Labels: `kind` (pack, idx, graph, refs), `source` (cache, pack, primary). Damaged or missing blobs that were stored again.
pub const BLOBS_MENDED: &str = "packmirror_blobs_mended_total";
/// No labels. Repositories mended after damaged or missing data was found.
pub const REPAIRS: &str = "packmirror_repairs_total";
/// No labels. Differences from the primary that comparisons found, each counted once until both were equal again.
pub const DIFFERENCES: &str = "packmirror_differences_total";
/// No labels. From the comparison that found a difference to the moment at which both were equal again.
pub const DIFFERENCE_SECONDS: &str = "packmirror_difference_seconds";
/// No labels. Age of the last comparison that found a repository equal, seen at each comparison.
pub const REPO_LAG: &str = "packmirror_repo_lag_seconds";
/// Labels: `state`. Repositories this node knows.
pub const REPOS: &str = "packmirror_repos";
/// No labels. Repositories that wait after failures.
pub const BACKOFF_REPOS: &str = "packmirror_backoff_repos";
/// Labels: `reason` (max_new_per_minute, max_repositories). Repositories that were not taken up.
pub const NEW_REFUSED: &str = "packmirror_new_repos_refused_total";
/// No labels. Workers that panicked and were started again.
pub const WORKER_PANICS: &str = "packmirror_worker_panics_total";
/// No labels. Generations that another writer published first.
pub const CAS_CONFLICTS: &str = "packmirror_cas_conflicts_total";

/// No labels. Repositories that this node compares; the other live nodes compare the rest.
pub const OWNED: &str = "packmirror_owned_repos";
/// No labels. Nodes whose heartbeats change, this one included.
pub const LIVE_NODES: &str = "packmirror_live_nodes";
/// No labels. Times that a node waited for another one's work instead of doing the same.
pub const LEASE_WAITS: &str = "packmirror_lease_waits_total";
/// No labels. Leases that were taken over from nodes that had died.
pub const LEASES_TAKEN_OVER: &str = "packmirror_leases_taken_over_total";
/// Labels: `result` (made, elsewhere, no-room, failed). Answers that were to be kept for further clients.
pub const KEPT_ANSWERS: &str = "packmirror_kept_answers_total";
/// No labels. Fetches that were answered out of one of them.
pub const KEPT_ANSWERS_USED: &str = "packmirror_kept_answers_used_total";
/// No labels. How long making one of them took.
pub const KEPT_ANSWER_SECONDS: &str = "packmirror_kept_answer_duration_seconds";
/// Labels: `result` (merged, elsewhere, overtaken, no-scratch, failed, unsealed). Merges of a repository's layers.
pub const COMPACTIONS: &str = "packmirror_compactions_total";
/// No labels. How long they took.
pub const COMPACTION_SECONDS: &str = "packmirror_compaction_duration_seconds";
/// No labels. Bytes of packs that were merged.
pub const COMPACTION_READ: &str = "packmirror_compaction_read_bytes_total";
/// No labels. Bytes of packs that merges made.
pub const COMPACTION_WRITTEN: &str = "packmirror_compaction_written_bytes_total";
/// Collections. Label `result`: done, stopped, failed.
pub const COLLECTIONS: &str = "packmirror_collections_total";
/// Objects that collections deleted. Label `kind`.
pub const COLLECTED_OBJECTS: &str = "packmirror_collected_objects_total";
/// Bytes that collections deleted.
pub const COLLECTED_BYTES: &str = "packmirror_collected_bytes_total";
/// No labels. Orders of `packmirror purge` that this node obeyed.
pub const ORDERS_OBEYED: &str = "packmirror_purges_obeyed_total";
/// Label `share` (strangers, readers, work). Memory that is held for clients; together `limits.memory` at most.
pub const MEMORY_HELD: &str = "packmirror_memory_held_bytes";
/// No labels. Layers of the repository that has most.
pub const LAYERS: &str = "packmirror_layers";

/// Label values that more than one place relies on.
pub mod label {
    /// `source`: the answer was made from the bucket.
    pub const BUCKET: &str = "bucket";
    /// `source`: the answer was the primary's, passed through.
    pub const PRIMARY: &str = "primary";
    /// `reason`: the advertisement of refs, from the primary because only it knows what is live.
    pub const LIVE: &str = "live";
    /// `reason`: the advertisement of refs, from the bucket.
    pub const REFS: &str = "refs";
    /// `reason`: a push, which belongs to the primary.
    pub const PUSH: &str = "push";
    /// `result` of a sync: a new generation was published.
    pub const PUBLISHED: &str = "published";
    /// `result` of a sync: nothing differed.
    pub const UNCHANGED: &str = "unchanged";
    /// `result` of a sync: another node published first.
    pub const FOLLOWED: &str = "followed";
    /// `result` of a sync: it failed.
    pub const FAILED: &str = "failed";
}

/// What kind of metric a name is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter(Unit),
    Gauge(Unit),
    Histogram(&'static [f64]),
}

/// Seconds of requests: the bounds of OpenTelemetry's HTTP convention, and long ones for packs.
const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0,
    900.0, 3600.0,
];
/// Seconds of lag: around the pace of comparisons.
const LAG: &[f64] =
    &[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 240.0, 360.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0];

const TABLE: &[(&str, Kind, &str)] = &[
    (BUILD_INFO, Kind::Gauge(Unit::Count), "Version of this process; always 1"),
    (ANSWERS, Kind::Counter(Unit::Count), "Answers to clients, by source and reason"),
    (HTTP_REQUESTS, Kind::Counter(Unit::Count), "HTTP requests answered, by service and status code"),
    (INFLIGHT, Kind::Gauge(Unit::Count), "Requests being answered, by service"),
    (SHED, Kind::Counter(Unit::Count), "Requests turned away because of a limit"),
    (MEMORY_HELD, Kind::Gauge(Unit::Bytes), "Memory held for clients, by share"),
    (FETCH_SECONDS, Kind::Histogram(SECONDS), "Duration of fetches, by phase"),
    (ANSWER_BYTES, Kind::Counter(Unit::Bytes), "Bytes of answers sent to clients, by source"),
    (FIRST_BYTE_SECONDS, Kind::Histogram(SECONDS), "Time to the first byte of an answer, by kind and source"),
    (ANSWER_SECONDS, Kind::Histogram(SECONDS), "Time to the end of an answer, by kind and source"),
    (PRIMARY_REQUESTS, Kind::Counter(Unit::Count), "Requests to the primary, by operation and outcome"),
    (PRIMARY_SECONDS, Kind::Histogram(SECONDS), "Time to the head of the primary's answer"),
    (PRIMARY_UP, Kind::Gauge(Unit::Count), "Whether the primary answers"),
    (STORE_REQUESTS, Kind::Counter(Unit::Count), "Requests to the store, by operation and outcome"),
    (STORE_SECONDS, Kind::Histogram(SECONDS), "Time to the first byte of the store's answer"),
    (STALENESS, Kind::Gauge(Unit::Seconds), "Age of the oldest state that is served as confirmed"),
    (SYNCS, Kind::Gauge(Unit::Count), "Syncs that run now, by phase"),
    (CACHE_REQUESTS, Kind::Counter(Unit::Count), "Lookups of pack blocks in the cache, by result"),
    (CACHE_BYTES, Kind::Gauge(Unit::Bytes), "Bytes of pack blocks in the cache"),
    (SYNC_RUNS, Kind::Counter(Unit::Count), "Syncs of a repository, by result"),
    (SYNC_SECONDS, Kind::Histogram(SECONDS), "Duration of syncs"),
    (SYNC_BYTES, Kind::Counter(Unit::Bytes), "Pack bytes received from the primary"),
    (
        REFS_LEFT_OUT,
        Kind::Counter(Unit::Count),
        "Refs of the primary that cannot be mirrored, when first seen",
    ),
    (
        FLAWS,
        Kind::Counter(Unit::Count),
        "Stored objects that were found missing or damaged in rotation, by kind",
    ),
    (VET_BYTES, Kind::Counter(Unit::Bytes), "Stored bytes that were read and hashed in rotation"),
    (
        BLOBS_MENDED,
        Kind::Counter(Unit::Count),
        "Damaged or missing blobs that were stored again, by kind and source",
    ),
    (REPAIRS, Kind::Counter(Unit::Count), "Repositories mended after damage was found"),
    (DIFFERENCES, Kind::Counter(Unit::Count), "Differences from the primary that comparisons found"),
    (DIFFERENCE_SECONDS, Kind::Histogram(LAG), "Time from finding a difference to being equal again"),
    (
        REPO_LAG,
        Kind::Histogram(LAG),
        "Age of the last comparison that found a repository equal to the primary",
    ),
    (REPOS, Kind::Gauge(Unit::Count), "Repositories this node knows, by state"),
    (BACKOFF_REPOS, Kind::Gauge(Unit::Count), "Repositories that wait after failures"),
    (NEW_REFUSED, Kind::Counter(Unit::Count), "Times that a repository was not taken up, by reason"),
    (
        WORKER_PANICS,
        Kind::Counter(Unit::Count),
        "Workers of repositories that panicked and were started again",
    ),
    (CAS_CONFLICTS, Kind::Counter(Unit::Count), "Generations that another writer published first"),
    (OWNED, Kind::Gauge(Unit::Count), "Repositories that this node compares"),
    (LIVE_NODES, Kind::Gauge(Unit::Count), "Nodes that divide the comparisons, this one included"),
    (LEASE_WAITS, Kind::Counter(Unit::Count), "Times that a node waited for the work of another one"),
    (LEASES_TAKEN_OVER, Kind::Counter(Unit::Count), "Leases taken over from nodes that had died"),
    (KEPT_ANSWERS, Kind::Counter(Unit::Count), "Answers that were to be kept for further clients, by result"),
    (
        KEPT_ANSWERS_USED,
        Kind::Counter(Unit::Count),
        "Fetches that were answered out of an answer that is kept",
    ),
    (KEPT_ANSWER_SECONDS, Kind::Histogram(SECONDS), "Duration of making an answer that is kept"),
    (COMPACTIONS, Kind::Counter(Unit::Count), "Merges of a repository's layers, by result"),
    (COMPACTION_SECONDS, Kind::Histogram(SECONDS), "Duration of merges of layers"),
    (COMPACTION_READ, Kind::Counter(Unit::Bytes), "Bytes of packs that were merged"),
    (COMPACTION_WRITTEN, Kind::Counter(Unit::Bytes), "Bytes of packs that merges made"),
    (COLLECTIONS, Kind::Counter(Unit::Count), "Collections of what nobody names any more, by result"),
    (COLLECTED_OBJECTS, Kind::Counter(Unit::Count), "Objects that collections deleted, by kind"),
    (COLLECTED_BYTES, Kind::Counter(Unit::Bytes), "Bytes that collections deleted"),
    (ORDERS_OBEYED, Kind::Counter(Unit::Count), "Orders of `packmirror purge` that this node obeyed"),
    (LAYERS, Kind::Gauge(Unit::Count), "Layers of the repository that has most"),
];

/// How often [`Recorder::upkeep`] folds recorded samples together.
const UPKEEP: Duration = Duration::from_secs(5);

/// The recorder of this process.
#[derive(Clone)]
pub struct Recorder(PrometheusHandle);

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub enum BadRecorder {
    /// A histogram has no bounds.
    #[error("the metrics recorder cannot be built: {0}")]
    Build(#[from] BuildError),
    /// Another library has installed its own.
    #[error("another metrics recorder is installed already")]
    Taken,
}

impl Recorder {
    /// Installs the recorder of this process; later calls give the same one.
    pub fn install() -> Result<Self, BadRecorder> {
        static INSTALLED: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let mut builder = PrometheusBuilder::new();
        for (name, kind, _) in TABLE {
            if let Kind::Histogram(bounds) = kind {
                builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)?;
            }
        }
        let handle = INSTALLED.get_or_init(|| {
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).ok()?;
            describe();
            metrics_process::Collector::default().describe();
            gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            Some(handle)
        });
        handle.clone().map(Self).ok_or(BadRecorder::Taken)
    }

    /// Renders all metrics in Prometheus' text format (`text/plain; version=0.0.4`).
    pub fn render(&self) -> String {
        metrics_process::Collector::default().collect();
        self.0.run_upkeep();
        self.0.render()
    }

    /// Keeps histograms small between scrapes; run it beside the server, for as long as it lives.
    pub async fn upkeep(&self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.0.run_upkeep();
        }
    }
}

fn describe() {
    for (name, kind, help) in TABLE {
        match kind {
            Kind::Counter(unit) => describe_counter!(*name, *unit, *help),
            Kind::Gauge(unit) => describe_gauge!(*name, *unit, *help),
            Kind::Histogram(_) => describe_histogram!(*name, Unit::Seconds, *help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::{counter, histogram};

    #[test]
    fn names_follow_the_rules() {
        for (name, kind, help) in TABLE {
            assert!(name.starts_with("packmirror_"), "{name}");
            assert!(!help.is_empty() && !help.ends_with('.'), "{name}");
            match kind {
                Kind::Counter(unit) => {
                    assert!(name.ends_with("_total"), "{name}");
                    assert_eq!(name.ends_with("_bytes_total"), *unit == Unit::Bytes, "{name}");
                }
                Kind::Gauge(_) => assert!(!name.ends_with("_total"), "{name}"),
                Kind::Histogram(bounds) => {
                    assert!(name.ends_with("_seconds"), "{name}");
                    assert!(bounds.is_sorted(), "{name}");
                }
            }
        }
    }

    #[test]
    fn the_documentation_has_each_metric() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
        let text = std::fs::read_to_string(page).unwrap();
        let rows: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `packmirror_")).collect();
        let rows: Vec<&str> = rows.iter().filter_map(|row| Some(row.split_once('`')?.0)).collect();
        let mut names: Vec<&str> =
            TABLE.iter().filter_map(|(name, ..)| name.strip_prefix("packmirror_")).collect();
        let mut said = rows;
        names.sort_unstable();
        said.sort_unstable();
        assert_eq!(names, said, "docs/operations.md and the table of metrics name the same");
    }

    #[test]
    fn what_is_recorded_is_rendered_with_help_and_buckets() {
        let recorder = Recorder::install().unwrap();
        counter!(ANSWERS, "source" => label::BUCKET, "reason" => "test of the recorder").increment(3);
        histogram!(FETCH_SECONDS, "phase" => "test").record(0.06);
        let text = Recorder::install().unwrap().render();
        assert_eq!(recorder.render().is_empty(), text.is_empty());
        for line in [
            "# HELP packmirror_answers_total Answers to clients, by source and reason",
            "# TYPE packmirror_answers_total counter",
            "packmirror_answers_total{source=\"bucket\",reason=\"test of the recorder\"} 3",
            "packmirror_fetch_duration_seconds_bucket{phase=\"test\",le=\"0.05\"} 0",
            "packmirror_fetch_duration_seconds_bucket{phase=\"test\",le=\"0.075\"} 1",
            "packmirror_build_info{version=\"0.1.0\"} 1",
            "# TYPE process_cpu_seconds_total counter",
            "# TYPE process_resident_memory_bytes gauge",
            "# TYPE process_open_fds gauge",
            "# TYPE process_start_time_seconds gauge",
        ] {
            assert!(text.lines().any(|given| given == line), "{line:?} is missing in\n{text}");
        }
    }
}
