//! A purge whose requests fail one after the other: nothing that is reachable is lost, and another purge ends it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::primary::{Host, Line, Universe, git, run};
use super::schedules::{in_paused_time, unprefixed};
use super::store::{Shared, Store, View};
use super::walker::{self, Dump};
use super::world::settings;
use crate::git::path::RepoPath;
use crate::local::{Local, LocalOptions};
use crate::mirror::Mirror;
use crate::mirror::repo::Repo;
use crate::primary::{Location, Primary, PrimarySettings};
use crate::store::Bucket;
use crate::store::faulty::at_once;
use crate::work::Work;
use crate::work::collect::round::{Terms, round};
use crate::work::purge::report::Report;
use crate::work::purge::{PurgeError, Wish, purge};
use crate::work::sync::sync;

const REPO: &str = "team/app.git";
const OTHER: &str = "team/other.git";
/// After that no mark of a purge that failed counts any more, and nothing is fresh.
const LATER: Duration = Duration::from_secs(7200);

/// One run of the program.
struct Process {
    work: Arc<Work>,
    view: Arc<View>,
    _dir: tempfile::TempDir,
}

impl Process {
    fn start(shared: &Arc<Shared>, host: &Arc<Host>, tries: u32) -> Self {
        let view = View::of(shared, 1);
        let bucket = Bucket::over(Arc::new(Store(view.clone())), "farm").with_policy(at_once(tries));
        let dir = tempfile::tempdir().unwrap();
        let options = LocalOptions { max_bytes: 64 << 20, ..Default::default() };
        let local = Local::open(dir.path(), &options, bucket.clone()).unwrap();
        let line = Arc::new(Line { host: host.clone(), runs: tokio::sync::watch::Sender::new(true) });
        let primary =
            Primary::played(PrimarySettings::new(Location::Directory("/primary".into())), Arc::new(line));
        let mirror = Mirror::new(&settings(), bucket, local, primary, CancellationToken::new()).unwrap();
        let work = Work::new(mirror, &settings());
        work.store_is_sound();
        Self { work, view, _dir: dir }
    }

    async fn purge(&self) -> Result<Report, PurgeError> {
        let path = RepoPath::parse(REPO).unwrap();
        let wish =
            Wish { repo: path.clone(), oids: Vec::new(), dry_run: false, wait: Duration::from_secs(60) };
        purge(&self.work, &Arc::new(Repo::new(path)), &wish, &|_, _, _| {}).await
    }
}

/// A repository with a history of pushes that the primary has gone back behind, and another one.
async fn farm() -> (Arc<Shared>, Arc<Host>) {
    let (shared, host) = (Shared::new(), Host::new(1));
    let process = Process::start(&shared, &host, 3);
    for (name, state) in [(REPO, 0), (REPO, 1), (REPO, 2), (REPO, 3), (OTHER, 5)] {
        host.set(name, Some(state));
        let repo = Arc::new(Repo::new(RepoPath::parse(name).unwrap()));
        sync(&process.work, &repo, true).await.unwrap();
    }
    process.work.ended().await;
    host.set(REPO, Some(1));
    (shared, host)
}

/// What the newest records name is there, and what their refs reach; records that were looked at before are not looked at again.
fn check(dump: &Dump, seen: &mut BTreeSet<String>) {
    for repo in [REPO, OTHER] {
        let newest = walker::records(dump, repo).swap_remove(0);
        walker::check_blobs(dump, &newest.value);
        let named = format!("{:?}", walker::named(&newest.value));
        if seen.insert(named) {
            walker::check_closure(dump, &newest.value);
        }
    }
}

/// Only what the refs of the primary reach is left.
fn check_purged(dump: &Dump, context: &str) {
    let records = walker::records(dump, REPO);
    assert_eq!(records.len(), 1, "{context}: older records");
    assert_eq!(walker::refs(dump, &records[0].value), Universe::get().states[1].refs, "{context}");
    let others = walker::records(dump, OTHER);
    let named = [&records[0], &others[0]].map(|record| walker::named(&record.value));
    let named: BTreeSet<String> = named.into_iter().flatten().map(|(key, _)| key).collect();
    let stored: BTreeSet<String> = dump.keys().filter(|key| key.starts_with("blobs/")).cloned().collect();
    assert_eq!(stored, named, "{context}: blobs");
    let left: Vec<&String> = dump.keys().filter(|key| key.starts_with("tombs/")).collect();
    assert!(left.is_empty(), "{context}: {left:?}");
    let objects: u64 =
        records[0].value["layers"].as_array().unwrap().iter().map(|l| l["objects"].as_u64().unwrap()).sum();
    let listed = run(git(&Universe::get().repo(1)).args(["rev-list", "--objects", "--all"]), b"");
    assert_eq!(objects, listed.iter().filter(|byte| **byte == b'\n').count() as u64, "{context}: objects");
}

/// Lets call number `n` of a purge fail, and another purge end it. False: it makes fewer calls.
async fn failing_at(
    n: u64,
    after: bool,
    base: &Shared,
    host: &Arc<Host>,
    seen: &mut BTreeSet<String>,
) -> bool {
    let shared = base.fork();
    let failing = Process::start(&shared, host, 1);
    *failing.view.nth.lock().unwrap() = Some((n, after));
    let failed = failing.purge().await;
    // Its leases are given up, whether it failed or not.
    failing.work.ended().await;
    let context = format!("call {n}, after its effect: {after}");
    check(&unprefixed(&shared), seen);
    if failing.view.calls() < n {
        assert!(failed.unwrap().is_whole(), "{context}");
        check_purged(&unprefixed(&shared), &context);
        return false;
    }
    tokio::time::advance(LATER).await;
    let process = Process::start(&shared, host, 3);
    let report = process.purge().await.unwrap();
    assert!(report.is_whole(), "{context}: {report:?}");
    // A collection takes away the marks that the one that failed has left.
    let terms = Terms { grace: settings().gc.grace, gone_after: Duration::ZERO, dry_run: false };
    round(&process.work.mirror.bucket, &terms, &|_, _, _| {}).await.unwrap();
    check(&unprefixed(&shared), seen);
    check_purged(&unprefixed(&shared), &context);
    true
}

#[test]
fn a_purge_that_fails_anywhere_loses_nothing_and_another_one_ends_it() {
    in_paused_time(async {
        let ((base, host), mut seen) = (farm().await, BTreeSet::new());
        for after in [false, true] {
            let mut n = 1;
            while failing_at(n, after, &base, &host, &mut seen).await {
                n += 1;
            }
            assert!(n > 50, "{n} calls");
        }
    });
}
