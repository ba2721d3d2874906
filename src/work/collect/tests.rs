//! Collections on a store with a clock of its own, among writers, other collectors and faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::CollectError;
use super::report::Report;
use super::round::{Terms, round};
use crate::git::path::RepoPath;
use crate::sim::store::{Fate, Shared, Store, View};
use crate::store::faulty::at_once;
use crate::store::{
    BlobId, BlobKind, BlobRef, Bucket, Generation, LayerRef, Publish, StoreError, generation_for_tests, nonce,
};

const GONE_AFTER: Duration = Duration::from_secs(7 * 86_400);
const GRACE: Duration = Duration::from_secs(7200);
const LATER: Duration = Duration::from_secs(7300);

/// One process with its own way to the store.
struct Process {
    view: Arc<View>,
    bucket: Bucket,
}

fn process(shared: &Arc<Shared>, seed: u64) -> Process {
    let view = View::of(shared, seed);
    let bucket = Bucket::over(Arc::new(Store(view.clone())), "farm").with_policy(at_once(3));
    Process { view, bucket }
}

async fn collect(bucket: &Bucket) -> Result<Report, CollectError> {
    round(bucket, &Terms { grace: GRACE, gone_after: GONE_AFTER, dry_run: false }, &|_, _, _| {}).await
}

fn layer_of(text: &str) -> (LayerRef, [(BlobKind, String); 3]) {
    let files = [
        (BlobKind::Pack, format!("pack {text}")),
        (BlobKind::Idx, format!("idx {text}")),
        (BlobKind::Graph, format!("graph {text}")),
    ];
    let [pack, idx, graph] = files.each_ref().map(|(kind, text)| BlobRef::of(*kind, text.as_bytes()));
    (LayerRef { pack, idx, graph, objects: 1 }, files)
}

/// Publishes a state of these layers, as `work::publish` does it; those of the base are not stored again.
async fn publish(bucket: &Bucket, repo: &str, layers: &[&str]) -> Result<(), StoreError> {
    let path = RepoPath::parse(repo).unwrap();
    let base = bucket.newest(&path).await?;
    let had: Vec<BlobRef> = base.iter().flat_map(|base| base.blobs()).collect();
    let made: Vec<_> = layers.iter().map(|text| layer_of(text)).collect();
    let texts: BTreeMap<BlobRef, String> = made
        .iter()
        .flat_map(|(_, files)| files.clone())
        .chain([(BlobKind::Refs, format!("refs {layers:?}"))])
        .map(|(kind, text)| (BlobRef::of(kind, text.as_bytes()), text))
        .collect();
    let new: Vec<BlobRef> = texts.keys().filter(|blob| !had.contains(blob)).copied().collect();
    let store = |blob: BlobRef| {
        let text = Bytes::from(texts[&blob].clone());
        async move { bucket.put_blob(blob.kind, text).await.map(drop) }
    };
    for blob in &new {
        store(*blob).await?;
    }
    let mut record = Generation {
        repo: path,
        number: base.as_ref().map_or(1, |base| base.number + 1),
        parent: base.as_ref().map(Generation::id),
        writer: nonce(),
        refs: *texts.keys().find(|blob| blob.kind == BlobKind::Refs).unwrap(),
        layers: made.iter().map(|(layer, _)| *layer).collect(),
        ..generation_for_tests()
    };
    bucket.hold(&new, GRACE, store).await?;
    if bucket.publish_next(&mut record).await? == Publish::Won {
        bucket.hold(&new, GRACE, store).await?;
    }
    Ok(())
}

fn blobs(shared: &Shared) -> Vec<String> {
    let keys = shared.dump().into_keys();
    keys.filter_map(|key| Some(key.strip_prefix("farm/blobs/")?.to_owned())).collect()
}

/// Everything that the newest record of each repository names is there, by a look that shares nothing with the collector.
#[track_caller]
fn nothing_is_lost(shared: &Shared, context: &str) {
    let dump = shared.dump();
    let mut newest = BTreeMap::new();
    for (key, bytes) in &dump {
        if let Some(rest) = key.strip_prefix("farm/repos/")
            && let Some((repo, _)) = rest.split_once("/gen/")
        {
            newest.entry(repo.to_owned()).or_insert(bytes);
        }
    }
    assert!(!newest.is_empty());
    for bytes in newest.values() {
        let line = bytes.split(|&b| b == b'\n').next().unwrap();
        let record: serde_json::Value = serde_json::from_slice(line).unwrap();
        let layers = record["layers"].as_array().unwrap();
        let named = layers.iter().flat_map(|l| [&l["pack"], &l["idx"], &l["graph"]]).chain([&record["refs"]]);
        for blob in named {
            let (id, kind) = (blob["id"].as_str().unwrap(), blob["kind"].as_str().unwrap());
            let key = format!("farm/blobs/{}/{id}.{kind}", &id[..2]);
            assert!(dump.contains_key(&key), "{context}: {key} is named and gone");
        }
    }
}

fn leftovers(shared: &Shared) -> Vec<String> {
    shared.dump().into_keys().filter(|key| key.starts_with("farm/tombs/")).collect()
}

/// A farm with `a`, whose first layer is no more in use, and `b`.
async fn farm() -> (Arc<Shared>, Process) {
    let shared = Shared::new();
    let one = process(&shared, 1);
    publish(&one.bucket, "a", &["old"]).await.unwrap();
    publish(&one.bucket, "b", &["other"]).await.unwrap();
    publish(&one.bucket, "a", &["new"]).await.unwrap();
    (shared, one)
}

#[tokio::test(start_paused = true)]
async fn what_nobody_names_goes_with_the_second_collection() {
    let (shared, one) = farm().await;
    let all = blobs(&shared).len();
    let first = collect(&one.bucket).await.unwrap();
    assert_eq!((first.blobs.objects, first.marked.objects, first.named.objects), (0, 4, 12));
    assert_eq!(first.next_in_seconds, Some(GRACE.as_secs() + 2));
    let second = collect(&one.bucket).await.unwrap();
    assert_eq!((second.blobs.objects, second.waiting.objects), (0, 4), "not before its time");
    tokio::time::advance(LATER).await;
    let would =
        round(&one.bucket, &Terms { grace: GRACE, gone_after: GONE_AFTER, dry_run: true }, &|_, _, _| {})
            .await
            .unwrap();
    assert_eq!((would.blobs.objects, blobs(&shared).len()), (4, all), "a dry run deletes nothing");
    let third = collect(&one.bucket).await.unwrap();
    assert_eq!(third.blobs, would.blobs);
    assert_eq!((third.records.objects, blobs(&shared).len()), (1, all - 4));
    nothing_is_lost(&shared, "after it");
    assert_eq!(leftovers(&shared), [""; 0]);
    let newest = one.bucket.newest(&RepoPath::parse("a").unwrap()).await.unwrap().unwrap();
    assert_eq!(newest.number, 2, "numbers go on");
}

#[tokio::test(start_paused = true)]
async fn the_longest_grace_of_all_nodes_counts() {
    let (_shared, one) = farm().await;
    let long = GRACE * 3;
    let now = humantime::format_rfc3339(std::time::SystemTime::now());
    let words = format!(
        "{{\"at\":\"{now}\",\"version\":\"9\",\"node\":\"x\",\"beat\":1,\"grace_s\":{},\"repos\":[]}}",
        long.as_secs()
    );
    one.bucket.put_node("x", words.into_bytes().into()).await.unwrap();
    collect(&one.bucket).await.unwrap();
    tokio::time::advance(LATER).await;
    assert_eq!(collect(&one.bucket).await.unwrap().blobs.objects, 0, "the other node keeps it for longer");
    tokio::time::advance(long).await;
    assert_eq!(collect(&one.bucket).await.unwrap().blobs.objects, 4);
}

#[tokio::test(start_paused = true)]
async fn what_is_named_again_lives() {
    let (shared, one) = farm().await;
    collect(&one.bucket).await.unwrap();
    tokio::time::advance(LATER).await;
    publish(&one.bucket, "b", &["other", "old"]).await.unwrap();
    let report = collect(&one.bucket).await.unwrap();
    assert_eq!(report.blobs.objects, 1, "the refs of `a` alone: its layer is in use again");
    nothing_is_lost(&shared, "named again");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_and_a_listing_that_is_cut_short_stop_it() {
    let (shared, one) = farm().await;
    collect(&one.bucket).await.unwrap();
    tokio::time::advance(LATER).await;
    let before = blobs(&shared);
    let keys = shared.dump().into_keys();
    let records: Vec<String> = keys.filter(|key| key.contains("/gen/")).collect();
    for (n, key) in records.iter().enumerate() {
        let newest = n == 0 || records[n - 1].rsplit_once('/').unwrap().0 != key.rsplit_once('/').unwrap().0;
        if !newest {
            continue;
        }
        shared.flip(key, 10);
        assert!(matches!(collect(&one.bucket).await, Err(CollectError::Unreadable { .. })), "{key}");
        shared.flip(key, 10);
    }
    assert_eq!(blobs(&shared), before);
    let b = RepoPath::parse("b").unwrap().key();
    shared.lose(records.iter().find(|key| key.contains(&b)).unwrap());
    assert!(matches!(collect(&one.bucket).await, Err(CollectError::CutShort { repo }) if repo == b));
    assert_eq!(blobs(&shared), before, "nothing was deleted");
}

/// Each call of a collection fails in turn, before its effect and after it.
#[tokio::test(start_paused = true)]
async fn a_collection_that_fails_anywhere_loses_nothing_and_the_next_ones_end_it() {
    for fate in [Fate::FailsBefore, Fate::FailsAfter] {
        for n in 1.. {
            let (shared, one) = farm().await;
            collect(&one.bucket).await.unwrap();
            tokio::time::advance(LATER).await;
            let two = process(&shared, n);
            // Each request once: nothing is mended by trying again.
            let bucket = two.bucket.with_policy(at_once(1));
            *two.view.nth.lock().unwrap() = Some((n, fate));
            let failed = collect(&bucket).await;
            let context = format!("call {n}, {fate:?}");
            nothing_is_lost(&shared, &context);
            if two.view.calls() < n {
                assert!(failed.is_ok(), "{context}: {failed:?}");
                break;
            }
            for _ in 0..4 {
                tokio::time::advance(LATER).await;
                collect(&one.bucket).await.unwrap();
            }
            nothing_is_lost(&shared, &context);
            assert_eq!((blobs(&shared).len(), leftovers(&shared).len()), (8, 0), "{context}");
        }
    }
}

/// Lets `doing` make `n` calls, stops it there while `meanwhile` runs, and lets it end. False: it makes fewer calls.
async fn stopped_at(
    n: u64,
    view: &View,
    doing: impl Future<Output = ()> + Send + 'static,
    meanwhile: impl AsyncFnOnce(),
) -> bool {
    let task = tokio::spawn(doing);
    while view.calls() < n && !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if task.is_finished() {
        task.await.unwrap();
        return false;
    }
    view.freeze(true);
    meanwhile().await;
    view.freeze(false);
    task.await.unwrap();
    true
}

/// A writer that uses again what nobody names is stopped at each of its calls, while collections come and go.
#[tokio::test(start_paused = true)]
async fn a_writer_that_sleeps_anywhere_publishes_nothing_that_is_gone() {
    for seed in 0..3 {
        for rounds in [1, 3] {
            for n in 1.. {
                let (shared, one) = farm().await;
                collect(&one.bucket).await.unwrap();
                tokio::time::advance(LATER).await;
                let writer = process(&shared, seed);
                let bucket = writer.bucket.clone();
                let writing = async move { publish(&bucket, "b", &["other", "old", "fresh"]).await.unwrap() };
                let more = stopped_at(n, &writer.view, writing, async || {
                    for _ in 0..rounds {
                        collect(&one.bucket).await.unwrap();
                        if rounds > 1 {
                            tokio::time::advance(LATER).await;
                        }
                    }
                })
                .await;
                nothing_is_lost(&shared, &format!("seed {seed}, {rounds} rounds, call {n}"));
                if !more {
                    break;
                }
            }
        }
    }
}

/// A collector is stopped at each of its calls, for as long as it takes a writer to use again what it is about to delete.
#[tokio::test(start_paused = true)]
async fn a_collector_that_sleeps_anywhere_deletes_nothing_that_is_named() {
    for long in [false, true] {
        for n in 1.. {
            let (shared, one) = farm().await;
            collect(&one.bucket).await.unwrap();
            tokio::time::advance(LATER).await;
            let collector = process(&shared, n);
            let bucket = collector.bucket.clone();
            let collecting = async move { drop(collect(&bucket).await) };
            let writer = process(&shared, n + 1000);
            let writing = async { publish(&writer.bucket, "b", &["other", "old"]).await.unwrap() };
            let more = stopped_at(n, &collector.view, collecting, async || {
                if long {
                    // It waits until the collector's marks are void.
                    writing.await;
                    nothing_is_lost(&shared, &format!("call {n}, asleep"));
                } else {
                    let _ = tokio::time::timeout(Duration::from_secs(60), writing).await;
                }
            })
            .await;
            publish(&writer.bucket, "b", &["other", "old"]).await.unwrap();
            nothing_is_lost(&shared, &format!("call {n}, long: {long}"));
            if !more {
                break;
            }
        }
    }
}

/// Two collectors and two writers at once, at whatever pace the store gives them.
#[tokio::test(start_paused = true)]
async fn two_collectors_and_writers_at_once_lose_nothing() {
    for seed in 0..60 {
        let (shared, one) = farm().await;
        let others: Vec<_> = (1..4).map(|n| process(&shared, seed * 10 + n)).collect();
        for day in 0..4 {
            tokio::time::advance(LATER).await;
            let name = ["old", "new", "x"][(seed as usize + day) % 3];
            let (a, b) = (["y", name], [name, "other"]);
            let states = (publish(&others[2].bucket, "a", &a), publish(&one.bucket, "b", &b));
            let (first, second, a, b) =
                tokio::join!(collect(&others[0].bucket), collect(&others[1].bucket), states.0, states.1);
            for outcome in [first, second] {
                assert!(
                    outcome.as_ref().is_ok() || outcome.as_ref().is_err_and(CollectError::is_transient),
                    "{outcome:?}"
                );
            }
            a.and(b).unwrap();
            nothing_is_lost(&shared, &format!("seed {seed}, day {day}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn leftovers_of_the_dead_go() {
    let (shared, one) = farm().await;
    let bucket = &one.bucket;
    bucket.put_node("dead", "x".into()).await.unwrap();
    let a = RepoPath::parse("a").unwrap();
    bucket.leave_note(&crate::store::Note::Repair.of(&a), "x".into()).await.unwrap();
    bucket.leave_note(&crate::store::Note::Fetch.of(&a), "x".into()).await.unwrap();
    bucket.leave_note(&crate::store::Note::Trouble.of(&a), "x".into()).await.unwrap();
    bucket.mark_removed(&a).await.unwrap();
    crate::mirror::remove::remove(bucket, &RepoPath::parse("b").unwrap()).await.unwrap();
    tokio::time::advance(LATER).await;
    bucket.put_node("live", "x".into()).await.unwrap();
    collect(bucket).await.unwrap();
    let keys: Vec<String> = shared.dump().into_keys().collect();
    let has = |end: &str| keys.iter().any(|key| key.ends_with(end));
    assert!(!has("nodes/dead") && has("nodes/live"));
    assert!(!has("/repair") && !has("/fetch") && has("/trouble"));
    assert!(!has(&format!("removed/{}", a.key())), "it came back");
    assert!(keys.iter().any(|key| key.contains("/removed/")), "nodes learn of `b` by it");
}

#[test]
fn names_of_blobs_are_read_from_their_keys() {
    let id = BlobId::of(b"x");
    let blob = BlobRef { id, kind: BlobKind::Idx, len: 7 };
    assert_eq!(BlobRef::at(&blob.key(), 7), Some(blob));
    for other in
        [format!("blobs/00/{id}.idx"), format!("blobs/{}/{id}.new", &id.to_string()[..2]), "blobs/x".into()]
    {
        assert_eq!(BlobRef::at(&other.as_str().into(), 7), None, "{other}: what is not known is left alone");
    }
}
