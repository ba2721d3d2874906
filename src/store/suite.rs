//! One suite for all stores: memory, a directory, and the S3 server that `PACKMIRROR_TEST_S3_URL` names.

use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::generation::tests::sample;
use super::*;
use crate::git::path::RepoPath;

/// A bucket of its own for one test.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bucket: Bucket,
    _directory: Option<TempDir>,
}

/// All stores that can be had here, each empty.
pub(crate) async fn stores() -> Vec<Case> {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("bucket");
    let options = StoreOptions::default();
    let mut cases = vec![
        Case {
            name: "memory",
            bucket: Bucket::open("memory:///some/prefix", &options).await.unwrap(),
            _directory: None,
        },
        Case {
            name: "directory",
            bucket: Bucket::open(at.to_str().unwrap(), &options).await.unwrap(),
            _directory: Some(directory),
        },
    ];
    match std::env::var("PACKMIRROR_TEST_S3_URL") {
        Ok(url) => {
            let url = format!("{}/{}", url.trim_end_matches('/'), nonce());
            let bucket = Bucket::open(&url, &options).await.unwrap();
            cases.push(Case { name: "s3", bucket, _directory: None });
        }
        Err(_) => eprintln!("skipped on S3: PACKMIRROR_TEST_S3_URL is not set"),
    }
    cases
}

/// Bytes that do not repeat.
fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// Stores four blobs and gives the record that names them; the blobs differ by `seed`.
pub(crate) async fn prepared(
    bucket: &Bucket,
    repo: &str,
    parent: Option<&Generation>,
    seed: u64,
) -> Result<Generation, StoreError> {
    let [pack, idx, graph, refs] =
        [(BlobKind::Pack, 4000), (BlobKind::Idx, 300), (BlobKind::Graph, 200), (BlobKind::Refs, 100)]
            .map(|(kind, len)| (kind, noise(len, seed * 4 + len as u64)));
    let pack = bucket.put_blob(pack.0, pack.1).await?;
    let idx = bucket.put_blob(idx.0, idx.1).await?;
    let graph = bucket.put_blob(graph.0, graph.1).await?;
    let refs = bucket.put_blob(refs.0, refs.1).await?;
    let layers = vec![LayerRef { pack, idx, graph, objects: 1 }];
    Ok(Generation {
        repo: RepoPath::parse(repo).unwrap(),
        number: parent.map_or(1, |parent| parent.number + 1),
        parent: parent.map(Generation::id),
        writer: nonce(),
        refs,
        layers,
        ..sample()
    })
}

fn silent(_: u64, _: u64) {}

#[tokio::test]
async fn every_store_passes_the_probe() {
    for Case { name, bucket, .. } in stores().await {
        let probe = bucket.probe().await.unwrap_or_else(|failed| panic!("{name}: {failed}"));
        assert_eq!(probe.steps.len(), 7, "{name}");
        bucket.ensure_format().await.unwrap();
        bucket.ensure_format().await.unwrap();
    }
}

#[tokio::test]
async fn blobs_come_back_whole_in_ranges_and_as_files() {
    for Case { name, bucket, .. } in stores().await {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        // Nothing, a byte, around one download window, and beyond what goes up in one piece.
        for len in [0, 1, 70_000, 8 << 20, (8 << 20) + 1, (16 << 20) + 12_345] {
            let bytes = noise(len, len as u64);
            std::fs::write(&file, &bytes).unwrap();
            let blob = if len < 100_000 {
                bucket.put_blob(BlobKind::Pack, bytes.clone()).await.unwrap()
            } else {
                bucket.put_blob_file(BlobKind::Pack, &file, None, &silent).await.unwrap()
            };
            assert_eq!(blob, BlobRef::of(BlobKind::Pack, &bytes), "{name} {len}");
            bucket.head(&blob).await.unwrap();
            bucket.verify(&blob).await.unwrap();
            assert_eq!(bucket.get_blob(&blob).await.unwrap(), bytes, "{name} {len}");
            let copy = directory.path().join("copy");
            bucket.download(&blob, &copy).await.unwrap();
            assert!(std::fs::read(&copy).unwrap() == bytes, "{name} {len}");
            let half = len as u64 / 2;
            for range in [0..half, half..len as u64, half..half] {
                let wanted = bytes.slice(range.start as usize..range.end as usize);
                assert_eq!(bucket.get_range(&blob, range).await.unwrap(), wanted, "{name} {len}");
            }
            assert!(bucket.get_range(&blob, 0..len as u64 + 1).await.is_err(), "{name} {len}");
            // Again, and by its known name: nothing changes.
            assert_eq!(
                bucket.put_blob_file(BlobKind::Pack, &file, Some(blob.id), &silent).await.unwrap(),
                blob
            );
        }
    }
}

#[tokio::test]
async fn missing_short_and_changed_blobs_are_told_apart() {
    for Case { name, bucket, .. } in stores().await {
        let bytes = noise(5000, 7);
        let blob = BlobRef::of(BlobKind::Idx, &bytes);
        assert!(matches!(bucket.head(&blob).await, Err(StoreError::NotFound { .. })), "{name}");
        assert!(matches!(bucket.get_blob(&blob).await, Err(StoreError::NotFound { .. })), "{name}");
        assert!(matches!(bucket.get_range(&blob, 0..9).await, Err(StoreError::NotFound { .. })), "{name}");

        bucket.overwrite(&blob.key(), bytes.slice(..4000)).await.unwrap();
        for result in [
            bucket.head(&blob).await,
            bucket.verify(&blob).await,
            bucket.get_blob(&blob).await.map(drop),
            bucket.get_range(&blob, 3000..5000).await.map(drop),
        ] {
            assert!(matches!(result, Err(StoreError::Damaged { .. })), "{name}: {result:?}");
        }
        // A blob of the wrong length does not count as stored.
        bucket.put_blob(BlobKind::Idx, bytes.clone()).await.unwrap();
        bucket.verify(&blob).await.unwrap();

        let mut changed = bytes.to_vec();
        changed[2500] ^= 1;
        bucket.overwrite(&blob.key(), changed.into()).await.unwrap();
        bucket.head(&blob).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        for result in [
            bucket.verify(&blob).await,
            bucket.get_blob(&blob).await.map(drop),
            bucket.download(&blob, file.path()).await,
        ] {
            assert!(matches!(result, Err(StoreError::Damaged { .. })), "{name}: {result:?}");
        }
        bucket.restore_blob(BlobKind::Idx, bytes.clone()).await.unwrap();
        assert_eq!(bucket.get_blob(&blob).await.unwrap(), bytes);
        bucket.remove_blob(&blob).await.unwrap();
        bucket.remove_blob(&blob).await.unwrap();
        assert!(matches!(bucket.head(&blob).await, Err(StoreError::NotFound { .. })), "{name}");
    }
}

/// The blobs of a generation that are not in the bucket with their recorded length.
async fn missing(bucket: &Bucket, generation: &Generation) -> Vec<BlobRef> {
    let mut missing = Vec::new();
    for blob in generation.blobs() {
        match bucket.head(&blob).await {
            Ok(()) => {}
            Err(error) if error.is_loss() => missing.push(blob),
            Err(error) => panic!("{error}"),
        }
    }
    missing
}

#[tokio::test]
async fn generations_form_a_chain_and_are_found() {
    for Case { name, bucket, .. } in stores().await {
        let repo = RepoPath::parse("team/app.git").unwrap();
        assert_eq!(bucket.newest(&repo).await.unwrap(), None, "{name}");
        assert_eq!(bucket.after(&repo, 0).await.unwrap(), None, "{name}");
        assert_eq!(bucket.repos().await.unwrap(), [], "{name}");
        let mut parent: Option<Generation> = None;
        for seed in 1..=12 {
            let next = prepared(&bucket, "team/app.git", parent.as_ref(), seed).await.unwrap();
            assert_eq!(bucket.publish(&next).await.unwrap(), Publish::Won, "{name}");
            // Twice is once.
            assert_eq!(bucket.publish(&next).await.unwrap(), Publish::Won, "{name}");
            let newest = bucket.newest(&repo).await.unwrap().unwrap();
            assert_eq!((newest.number, newest.id()), (seed, next.id()), "{name}");
            assert_eq!(bucket.after(&repo, seed).await.unwrap(), None, "{name}");
            assert_eq!(bucket.after(&repo, seed - 1).await.unwrap().as_ref(), Some(&newest), "{name}");
            assert_eq!(missing(&bucket, &newest).await, [], "{name}");
            parent = Some(newest);
        }
        assert_eq!(bucket.after(&repo, 0).await.unwrap(), parent, "{name}");
        assert_eq!(bucket.after(&repo, 1).await.unwrap(), parent, "{name}: further than it pays to step");
        for number in 2..=12 {
            let child = bucket.get(&repo, number).await.unwrap().unwrap();
            let above = bucket.get(&repo, number - 1).await.unwrap().unwrap();
            assert_eq!(child.parent, Some(above.id()), "{name}");
        }
        let other = prepared(&bucket, "ünï code/β", None, 99).await.unwrap();
        bucket.publish(&other).await.unwrap();
        let repos = bucket.repos().await.unwrap();
        assert_eq!(repos, [repo, other.repo.clone()], "{name}");
        bucket.remove_blob(&other.layers[0].idx).await.unwrap();
        assert_eq!(missing(&bucket, &other).await, [other.layers[0].idx], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_sixteen_publishers_exactly_one_wins() {
    for Case { name, bucket, .. } in stores().await {
        let repo = RepoPath::parse("race").unwrap();
        let mut parent = None;
        for round in 0..10 {
            let start = Arc::new(tokio::sync::Barrier::new(16));
            let mut racers = tokio::task::JoinSet::new();
            for racer in 0..16 {
                let record = prepared(&bucket, "race", parent.as_ref(), round * 16 + racer).await.unwrap();
                let (bucket, start) = (bucket.clone(), start.clone());
                racers.spawn(async move {
                    start.wait().await;
                    let outcome = bucket.publish(&record).await.unwrap();
                    (record, outcome)
                });
            }
            let outcomes = racers.join_all().await;
            let winners: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome == Publish::Won).collect();
            assert_eq!(winners.len(), 1, "{name} round {round}");
            let newest = bucket.newest(&repo).await.unwrap().unwrap();
            assert_eq!(newest.id(), winners[0].0.id(), "{name} round {round}");
            for (_, outcome) in &outcomes {
                match outcome {
                    Publish::Won => {}
                    Publish::Lost(winner) => assert_eq!(winner.id(), newest.id(), "{name} round {round}"),
                }
            }
            parent = Some(newest);
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_what_it_is_called_is_not_stored() {
    for Case { name, bucket, .. } in stores().await {
        let file = tempfile::NamedTempFile::new().unwrap();
        for len in [1000, (16 << 20) + 1] {
            std::fs::write(file.path(), noise(len, 3)).unwrap();
            let wrong = BlobId::of(b"something else");
            let put = bucket.put_blob_file(BlobKind::Pack, file.path(), Some(wrong), &silent).await;
            assert!(matches!(put, Err(StoreError::Damaged { .. })), "{name} {len}: {put:?}");
            let blob = BlobRef { id: wrong, kind: BlobKind::Pack, len: len as u64 };
            assert!(matches!(bucket.head(&blob).await, Err(StoreError::NotFound { .. })), "{name} {len}");
        }
        let gone = bucket.put_blob_file(BlobKind::Pack, "no/such/file".as_ref(), None, &silent).await;
        assert!(matches!(gone, Err(StoreError::Local { .. })), "{name}");
    }
}

#[tokio::test]
async fn a_cold_node_reads_from_every_store() {
    use crate::local::{Local, LocalOptions, PackBlob};
    for Case { name, bucket, .. } in stores().await {
        let bytes = noise((9 << 20) + 77, 5);
        let blob = bucket.put_blob(BlobKind::Pack, bytes.clone()).await.unwrap();
        let hashes: Vec<[u8; 32]> = bytes.chunks(1 << 20).map(|block| BlobId::of(block).0).collect();
        let pack = PackBlob { blob, block_size: 1 << 20, hashes: Arc::new(hashes) };
        let graph = zstd::encode_all(&bytes[..100_000], 1).unwrap();
        let graph = bucket.put_blob(BlobKind::Graph, graph.into()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let local = Local::open(dir.path(), &LocalOptions::default(), bucket).unwrap();
        local.read_ahead(&pack, 1..9);
        let mut read = Vec::new();
        for n in 0..pack.blocks() {
            read.extend_from_slice(&local.block(&pack, n).await.unwrap());
        }
        assert!(read == bytes, "{name}");
        assert!(local.mapped(&graph).await.unwrap() == bytes[..100_000], "{name}");
    }
}

#[tokio::test]
async fn an_s3_server_that_says_no_is_explained() {
    let Ok(url) = std::env::var("PACKMIRROR_TEST_S3_URL") else {
        eprintln!("skipped: PACKMIRROR_TEST_S3_URL is not set");
        return;
    };
    let retry = faulty::at_once(2);
    let options = StoreOptions { retry: retry.clone(), ..StoreOptions::default() };
    let bucket = Bucket::open("s3://packmirror-no-such-bucket/x", &options).await.unwrap();
    let failed = bucket.probe().await.unwrap_err();
    assert!(!failed.is_transient() && failed.to_string().contains("make the bucket"), "{failed}");
    let blob = BlobRef::of(BlobKind::Pack, b"x");
    assert!(!bucket.get_blob(&blob).await.unwrap_err().is_loss(), "no bucket is no lost blob");
    // A port where nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options =
        StoreOptions { endpoint: Some(format!("http://{nobody}")), retry, ..StoreOptions::default() };
    let failed = Bucket::open(&url, &options).await.unwrap().probe().await.unwrap_err();
    assert!(failed.is_transient() && failed.explanation.contains("reachable"), "{failed}");
}

/// Everything can run in a task of its own.
#[test]
fn all_calls_are_send() {
    fn send<T: Send>(_: T) {}
    fn calls(bucket: &Bucket, blob: &BlobRef, generation: &Generation, path: &std::path::Path) {
        send(bucket.probe());
        send(bucket.ensure_format());
        send(bucket.put_blob_file(BlobKind::Pack, path, None, &silent));
        send(bucket.download(blob, path));
        send(bucket.verify(blob));
        send(bucket.publish(generation));
        send(bucket.after(&generation.repo, 1));
        send(bucket.current());
        send(Bucket::open("", &StoreOptions::default()));
    }
    let _ = calls;
}
