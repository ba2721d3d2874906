//! A purge whose requests fail one after the other: nothing that is reachable is lost, and another purge ends it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gix_hash::ObjectId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::checks::{self, unprefixed};
use super::client::clone;
use super::nth::every_call;
use super::primary::{Host, Line, Universe, git, run};
use super::schedules::in_paused_time;
use super::store::{Fate, Hold, Kept, Shared, Store, View};
use super::turns::note;
use super::walker::{self, Dump};
use super::world::{Node, scratch, settings};
use crate::answer::kept::of_head;
use crate::git::path::RepoPath;
use crate::local::{Local, LocalOptions};
use crate::mirror::Mirror;
use crate::mirror::remove::remove;
use crate::mirror::repo::Repo;
use crate::mirror::wishes::{Wish as Asked, Wished};
use crate::pack::meter::Unlimited;
use crate::primary::{Location, Primary, PrimarySettings};
use crate::retry::plan;
use crate::serve::listen::router;
use crate::store::faulty::at_once;
use crate::store::{Bucket, Generation, StoreError};
use crate::work::Work;
use crate::work::collect::round::{Terms, round};
use crate::work::purge::report::Report;
use crate::work::purge::{PurgeError, Wish, purge};
use crate::work::sync::sync;

const REPO: &str = "team/app.git";
const OTHER: &str = "team/other.git";
/// After that no mark of a purge that failed counts any more, and nothing is fresh.
const LATER: Duration = Duration::from_secs(7200);
/// A purge that has not ended by then is dead.
const PATIENCE: Duration = Duration::from_secs(1800);

/// One run of the program.
pub struct Process {
    work: Arc<Work>,
    pub view: Arc<View>,
    _dir: tempfile::TempDir,
}

impl Process {
    pub fn start(shared: &Arc<Shared>, host: &Arc<Host>, tries: u32) -> Self {
        Self::start_as(shared, host, tries, 1)
    }

    pub fn start_as(shared: &Arc<Shared>, host: &Arc<Host>, tries: u32, seed: u64) -> Self {
        let view = View::of(shared, seed);
        let bucket = Bucket::over(Arc::new(Store(view.clone())), "farm").with_policy(at_once(tries));
        let dir = scratch();
        let options = LocalOptions { max_bytes: 64 << 20, ..Default::default() };
        let local = Local::open(dir.path(), &options, bucket.clone()).unwrap();
        let location = Location::Directory(host.address.into());
        let primary = Primary::played(PrimarySettings::new(location), Arc::new(Line::new(host, seed)));
        let mirror = Mirror::new(&settings(), bucket, local, primary, CancellationToken::new()).unwrap();
        let work = Work::new(mirror, &settings());
        work.store_is_sound();
        Self { work, view, _dir: dir }
    }

    async fn purge(&self) -> Result<Report, PurgeError> {
        self.purge_of(REPO).await
    }

    pub async fn purge_of(&self, repo: &str) -> Result<Report, PurgeError> {
        self.purge_with(repo, Vec::new()).await
    }

    /// Purges a repository, and refuses to where one of `oids` is reachable.
    pub async fn purge_with(&self, repo: &str, oids: Vec<ObjectId>) -> Result<Report, PurgeError> {
        let path = RepoPath::parse(repo).unwrap();
        let wish = Wish { repo: path.clone(), oids, dry_run: false, wait: Duration::from_secs(60) };
        purge(&self.work, &Arc::new(Repo::new(path)), &wish, &|_, _, _| {}).await
    }
}

impl Process {
    /// Takes a repository out of the mirror.
    pub async fn remove(&self, repo: &str) -> Result<Option<Generation>, StoreError> {
        remove(&self.work.mirror.bucket, &RepoPath::parse(repo).unwrap()).await
    }
}

/// A host that has gone back behind what was pushed to a repository, and that has another one.
fn host() -> Arc<Host> {
    let host = Host::new(1);
    host.set(REPO, Some(1));
    host.set(OTHER, Some(5));
    host
}

/// A bucket with all that was pushed.
fn before() -> Kept {
    plan(1);
    let mut kept = None;
    in_paused_time(async {
        let (shared, host) = (Shared::new(), host());
        let process = Process::start(&shared, &host, 3);
        for (name, state) in [(REPO, 0), (REPO, 1), (REPO, 2), (REPO, 3), (OTHER, 5)] {
            host.set(name, Some(state));
            let repo = Arc::new(Repo::new(RepoPath::parse(name).unwrap()));
            sync(&process.work, &repo, true).await.unwrap();
        }
        process.work.ended().await;
        kept = Some(shared.keep());
    });
    kept.unwrap()
}

/// What the newest records name is there, and what their refs reach.
fn check(dump: &Dump) {
    for repo in [REPO, OTHER] {
        let newest = walker::records(dump, repo).swap_remove(0);
        walker::check_blobs(dump, &newest.value);
        walker::check_closure(dump, &newest.value);
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

/// A purge meets `fate` with its `n`th call, and another purge ends it. Says whether it makes so many.
fn once(kept: &Kept, n: u64, fate: Fate) -> bool {
    plan(n);
    let mut met = false;
    in_paused_time(async {
        let (shared, host, context) = (Shared::of(kept), host(), format!("call {n}: {fate:?}"));
        let first = Process::start(&shared, &host, 1);
        *first.view.nth.lock().unwrap() = Some((n, fate));
        note(|| context.clone());
        let purged = tokio::time::timeout(PATIENCE, first.purge()).await;
        // Its leases are given up, unless it is dead.
        let _ = tokio::time::timeout(PATIENCE, first.work.ended()).await;
        met = first.view.calls() >= n;
        check(&unprefixed(&shared));
        if !met {
            assert!(purged.unwrap().unwrap().is_whole(), "{context}");
            return check_purged(&unprefixed(&shared), &context);
        }
        first.view.kill();
        tokio::time::sleep(LATER).await;
        let second = Process::start(&shared, &host, 3);
        let report = second.purge().await.unwrap();
        assert!(report.is_whole(), "{context}: {report:?}");
        // A collection takes away the marks that the one that failed has left.
        let terms = Terms { grace: settings().gc.grace, gone_after: Duration::ZERO, dry_run: false };
        round(&second.work.mirror.bucket, &terms, &|_, _, _| {}).await.unwrap();
        second.work.ended().await;
        check(&unprefixed(&shared));
        check_purged(&unprefixed(&shared), &context);
    });
    met
}

#[test]
fn a_purge_that_fails_or_ends_at_any_call_loses_nothing_and_another_one_ends_it() {
    let kept = before();
    every_call(|n, fate| once(&kept, n, fate));
}

/// A node that serves the repository in a state, which is published.
async fn serving(shared: &Arc<Shared>, host: &Arc<Host>, state: usize) -> Node {
    let node = Node::start(shared, host, 1, &settings()).await;
    host.set(REPO, Some(state));
    let _ = clone(&router(node.app.clone()), REPO).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(newest(shared), 1);
    node
}

fn newest(shared: &Arc<Shared>) -> u64 {
    walker::records(&unprefixed(shared), REPO).first().map_or(0, |newest| newest.number)
}

/// Nothing is left of what was there only before the state that the primary shows now.
async fn is_forgotten(shared: &Arc<Shared>, host: &Host, node: Node) {
    tokio::time::sleep(settings().compare_every * 3).await;
    checks::purged(shared, host, REPO, host.ever(REPO).len() - 1);
    checks::bucket(shared, host, REPO, None);
    checks::node(shared, host, REPO, &node).await;
    node.kill();
}

#[test]
fn what_a_node_is_about_to_publish_does_not_come_back_after_a_purge() {
    plan(1);
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, 1).await;
        let (arrived, go) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        *node.view.hold.lock().unwrap() = Some(Hold { after: 0, arrived: arrived.clone(), go: go.clone() });
        host.set(REPO, Some(3));
        let app = node.app.clone();
        let cloning = tokio::spawn(async move { clone(&router(app), REPO).await });
        tokio::time::timeout(PATIENCE, arrived.notified()).await.unwrap();
        host.set(REPO, Some(1));
        let report = Process::start(&shared, &host, 3).purge_of(REPO).await.unwrap();
        assert!(report.is_whole(), "{report:?}");
        go.notify_one();
        let _ = cloning.await;
        is_forgotten(&shared, &host, node).await;
    });
}

#[test]
fn what_a_node_publishes_while_a_purge_runs_is_purged_too() {
    plan(1);
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, 1).await;
        let process = Process::start(&shared, &host, 3);
        let meanwhile = async {
            while newest(&shared) < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Its generation is there, and no order yet.
            process.view.freeze(true);
            host.set(REPO, Some(3));
            while newest(&shared) < 3 {
                let _ = clone(&router(node.app.clone()), REPO).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            host.set(REPO, Some(1));
            process.view.freeze(false);
        };
        let purging = async { tokio::join!(process.purge_of(REPO), meanwhile).0 };
        let report = tokio::time::timeout(PATIENCE, purging).await.unwrap().unwrap();
        assert!(report.is_whole(), "{report:?}");
        checks::purged(&shared, &host, REPO, host.ever(REPO).len() - 1);
        is_forgotten(&shared, &host, node).await;
    });
}

#[test]
fn what_a_node_has_begun_to_fetch_does_not_come_back_after_a_purge() {
    plan(1);
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, 1).await;
        // It has looked at the primary, and not into the bucket.
        node.view.freeze(true);
        host.set(REPO, Some(3));
        let app = node.app.clone();
        let cloning = tokio::spawn(async move { clone(&router(app), REPO).await });
        tokio::time::sleep(Duration::from_secs(5)).await;
        host.set(REPO, Some(1));
        let process = Process::start(&shared, &host, 3);
        let meanwhile = async {
            while !shared.dump().keys().any(|key| key.starts_with("farm/purges/")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Its fetch begins upon what the purge has published, and takes long.
            node.line.runs.send_replace(false);
            node.view.freeze(false);
        };
        let report = tokio::join!(process.purge_of(REPO), meanwhile).0.unwrap();
        assert!(report.is_whole(), "{report:?}");
        node.line.runs.send_replace(true);
        let _ = cloning.await;
        is_forgotten(&shared, &host, node).await;
    });
}

#[test]
fn an_answer_that_a_node_is_about_to_keep_does_not_come_back_after_a_purge() {
    plan(1);
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, 3).await;
        let mirror = node.app.mirror.clone();
        let repo = mirror.repo(&RepoPath::parse(REPO).unwrap()).unwrap();
        let snapshot = repo.snapshot().unwrap();
        let open = snapshot.clone();
        let planned = crate::threads::spawn_blocking(move || {
            of_head(&open, &open.blocks_for_work().reader(), &[], &Unlimited).unwrap().unwrap()
        });
        let planned = planned.await.unwrap().plan;
        // It is too small to be costly.
        let objects = Arc::new((0..snapshot.stack.len()).collect());
        host.set(REPO, Some(1));
        let _ = clone(&router(node.app.clone()), REPO).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(newest(&shared), 2);
        let (arrived, go) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        *node.view.hold.lock().unwrap() = Some(Hold { after: 0, arrived: arrived.clone(), go: go.clone() });
        mirror.wish(Asked::Asked(Wished {
            repo,
            snapshot,
            objects,
            plan: Arc::new(planned),
            answer: None,
            kind: "depth 1".into(),
            done: CancellationToken::new().drop_guard(),
        }));
        tokio::time::timeout(PATIENCE, arrived.notified()).await.unwrap();
        let report = Process::start(&shared, &host, 3).purge_of(REPO).await.unwrap();
        assert!(report.is_whole(), "{report:?}");
        go.notify_one();
        is_forgotten(&shared, &host, node).await;
    });
}
