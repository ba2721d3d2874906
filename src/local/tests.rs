//! The local side on a store that breaks, a disk that breaks, and both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::entries::Name;
use super::*;
use crate::sim::mutants::found;
use crate::store::faulty::{Fault, Faulty, Op, at_once};
use crate::store::{BlobId, BlobKind, StoreError};

const BLOCK: u64 = 64 << 10;

/// A node: a bucket that can break, a cache directory, a pack of twenty blocks and a bit.
struct Node {
    bucket: Bucket,
    faulty: Arc<Faulty>,
    dir: TempDir,
    options: LocalOptions,
    pack: PackBlob,
    bytes: Bytes,
}

impl Node {
    async fn new() -> Self {
        let faulty = Faulty::over(InMemory::new());
        let bucket = Bucket::over(faulty.clone(), "farm").with_policy(at_once(1));
        let bytes: Bytes = (0..20 * BLOCK as u32 / 4 + 100)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
            .collect();
        let blob = bucket.put_blob(BlobKind::Pack, bytes.clone()).await.unwrap();
        let hashes: Vec<[u8; 32]> = bytes.chunks(BLOCK as usize).map(|block| BlobId::of(block).0).collect();
        let pack = PackBlob { blob, block_size: BLOCK, hashes: Arc::new(hashes) };
        faulty.reset();
        Self {
            bucket,
            faulty,
            dir: tempfile::tempdir().unwrap(),
            options: LocalOptions::default(),
            pack,
            bytes,
        }
    }

    fn open(&self) -> Local {
        Local::open(self.dir.path(), &self.options, self.bucket.clone()).unwrap()
    }

    fn wanted(&self, n: u64) -> Bytes {
        let start = (n * BLOCK) as usize;
        self.bytes.slice(start..(start + BLOCK as usize).min(self.bytes.len()))
    }

    /// Reads blocks and compares; how many requests that took.
    async fn check(&self, local: &Local, blocks: impl IntoIterator<Item = u64>) -> usize {
        let before = self.faulty.total();
        for n in blocks {
            assert!(local.block(&self.pack, n).await.unwrap() == self.wanted(n), "block {n}");
        }
        self.faulty.total() - before
    }

    /// The cached files with their lengths.
    fn cached(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.dir.path().join("cache")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.metadata().unwrap() {
                    meta if meta.is_dir() => folders.push(entry.path()),
                    meta => drop(found.insert(entry.path(), meta.len())),
                }
            }
        }
        found
    }

    fn file(&self, rest: &str) -> PathBuf {
        let ending = format!(".{rest}");
        self.cached().into_keys().find(|path| path.to_str().unwrap().ends_with(&ending)).unwrap()
    }
}

/// Makes every write of a cache fail: its folder of temporary files becomes a file. Works for root as well.
fn break_disk(dir: &Path) {
    let folder = dir.join("cache/tmp");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(folder, "").unwrap();
}

/// Lets tasks run until `done`, on a runtime of one thread.
async fn until(mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed().as_secs() < 20, "never happened");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_block_is_fetched_once_and_outlives_the_process() {
    let node = Node::new().await;
    let local = node.open();
    assert_eq!(node.pack.blocks(), 21);
    assert_eq!(node.check(&local, 0..21).await, 21);
    assert_eq!(node.check(&local, 0..21).await, 0);
    drop(local);
    let local = node.open();
    assert_eq!(node.check(&local, 0..21).await, 0);
    assert_eq!((local.stats().hits, local.stats().misses), (21, 0));
    assert!(local.block(&node.pack, 21).await.is_err(), "there is no such block");
}

#[tokio::test]
async fn many_readers_share_one_download() {
    let node = Node::new().await;
    let local = node.open();
    let gate = Arc::new(Semaphore::new(0));
    node.faulty.always(Op::Range, Fault::Gate(gate.clone()));
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..64 {
        let (local, pack) = (local.clone(), node.pack.clone());
        readers.spawn(async move { (reader % 3, local.block(&pack, reader % 3).await) });
    }
    until(|| node.faulty.counts().get(&Op::Range) == Some(&3)).await;
    gate.add_permits(100);
    for (n, bytes) in readers.join_all().await {
        assert!(bytes.unwrap() == node.wanted(n));
    }
    assert_eq!(node.faulty.total(), 3);
}

#[tokio::test]
async fn a_reader_that_goes_away_disturbs_nobody() {
    let node = Node::new().await;
    let local = node.open();
    let gate = Arc::new(Semaphore::new(0));
    node.faulty.on(Op::Range, 1, Fault::Gate(gate.clone()));
    let first = tokio::spawn({
        let (local, pack) = (local.clone(), node.pack.clone());
        async move { local.block(&pack, 0).await }
    });
    until(|| node.faulty.total() == 1).await;
    let second = tokio::spawn({
        let (local, pack) = (local.clone(), node.pack.clone());
        async move { local.block(&pack, 0).await }
    });
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    assert!(second.await.unwrap().unwrap() == node.wanted(0));
    assert_eq!(node.faulty.total(), 1);
}

#[tokio::test]
async fn what_is_purged_is_not_kept_until_it_is_allowed_again() {
    let node = Node::new().await;
    let local = node.open();
    node.check(&local, 0..4).await;
    let gate = Arc::new(Semaphore::new(0));
    node.faulty.on(Op::Range, 5, Fault::Gate(gate.clone()));
    let late = tokio::spawn({
        let (local, pack) = (local.clone(), node.pack.clone());
        async move { local.block(&pack, 4).await }
    });
    until(|| node.faulty.total() == 5).await;
    let other = (BlobId::of(b"x"), BlobKind::Idx);
    assert_eq!(local.purge(&[other].into()).unwrap(), 0);
    assert_eq!(node.cached().len(), 4);
    assert_eq!(local.purge(&[node.pack.blob.name()].into()).unwrap(), 4);
    assert_eq!(node.cached().len(), 0);
    gate.add_permits(1);
    assert!(late.await.unwrap().unwrap() == node.wanted(4), "who has asked gets it");
    node.check(&local, 0..6).await;
    assert_eq!(
        (node.cached().len(), local.stats().bytes, local.stats().refused),
        (0, 0, 0),
        "nothing is kept"
    );
    local.allow([node.pack.blob]);
    node.check(&local, 0..6).await;
    assert_eq!(node.cached().len(), 6);
    assert_eq!(local.purge_all().unwrap(), 6);
    assert_eq!(node.cached().len(), 0);
    node.check(&local, 0..2).await;
    assert_eq!(node.cached().len(), 2, "it is kept again");
}

#[tokio::test]
async fn a_damaged_cached_block_is_fetched_again() {
    let node = Node::new().await;
    let mut local = node.open();
    node.check(&local, 0..4).await;
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("a flipped bit", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[12_345] ^= 4;
            std::fs::write(path, bytes).unwrap();
        }),
        ("cut", |path| drop(std::fs::File::options().write(true).open(path).unwrap().set_len(100))),
        ("emptied", |path| std::fs::write(path, "").unwrap()),
        ("grown", |path| std::fs::write(path, vec![0; BLOCK as usize + 1]).unwrap()),
        ("removed", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (what, damage) in damages {
        for restart in [false, true] {
            damage(&node.file("2"));
            if restart {
                drop(local);
                local = node.open();
            }
            assert_eq!(node.check(&local, 0..4).await, 1, "{what}, restart: {restart}");
            assert_eq!(node.check(&local, 0..4).await, 0, "{what}, restart: {restart}");
            let held: u64 = node.cached().values().sum();
            assert_eq!(local.stats().bytes, held, "{what}, restart: {restart}");
        }
    }
}

#[tokio::test]
async fn wrong_bytes_from_the_bucket_are_never_handed_out_or_kept() {
    let node = Node::new().await;
    let local = node.open();
    for fault in [Fault::CorruptByte, Fault::ShortBody] {
        node.faulty.reset();
        node.faulty.on(Op::Range, 1, fault.clone());
        let n = if matches!(fault, Fault::CorruptByte) { 1 } else { 2 };
        assert_eq!(node.check(&local, [n]).await, 2, "once more: {fault:?}");
        node.faulty.reset();
        node.faulty.always(Op::Range, fault);
        let error = local.block(&node.pack, 7).await.map(drop).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert_eq!(node.cached().len(), n as usize);
        // The same through a read ahead.
        local.read_ahead(&node.pack, 9..10);
        let error = local.block(&node.pack, 9).await.map(drop).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert_eq!(node.cached().len(), n as usize);
    }
    node.faulty.reset();
    node.check(&local, 0..21).await;
}

#[tokio::test]
async fn errors_of_the_bucket_come_through_and_pass() {
    let node = Node::new().await;
    let local = node.open();
    node.faulty.always(Op::Range, Fault::Unavailable);
    assert!(local.block(&node.pack, 0).await.map(drop).unwrap_err().is_transient());
    node.faulty.heal();
    node.faulty.always(Op::Range, Fault::Missing);
    assert!(matches!(local.block(&node.pack, 0).await, Err(StoreError::NotFound { .. })));
    node.faulty.heal();
    node.check(&local, [0]).await;
    // What is cached is served while the bucket is down.
    node.faulty.down(Fault::Unavailable);
    node.check(&local, [0]).await;
    // A read ahead that failed does not take its readers along.
    node.faulty.reset();
    let gate = Arc::new(Semaphore::new(0));
    node.faulty.on(Op::Range, 1, Fault::Unavailable);
    node.faulty.on(Op::Range, 2, Fault::Gate(gate.clone()));
    local.read_ahead(&node.pack, 3..6);
    let read = node.check(&local, 3..6);
    gate.add_permits(1);
    read.await;
}

#[tokio::test]
async fn read_ahead_asks_for_neighbours_together_and_only_for_what_is_absent() {
    let node = Node::new().await;
    let local = node.open();
    local.read_ahead(&node.pack, 0..5);
    assert_eq!(node.check(&local, 0..5).await, 1);
    node.check(&local, [8]).await;
    node.faulty.reset();
    local.read_ahead(&node.pack, 3..100);
    node.check(&local, 0..21).await;
    assert_eq!(node.faulty.counts(), [(Op::Range, 2)].into(), "5 to 7, and 9 to the end");
    local.read_ahead(&node.pack, 0..21);
    local.read_ahead(&node.pack, 30..40);
    node.check(&local, 0..21).await;
    assert_eq!(node.faulty.total(), 2);
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let mut node = Node::new().await;
    node.options = LocalOptions { fetches: 3, fetches_ahead: 2, ..LocalOptions::default() };
    // Blocks of 5 MiB: one to a request ahead.
    let bytes = Bytes::from(vec![5; 60 << 20]);
    let blob = node.bucket.put_blob(BlobKind::Pack, bytes.clone()).await.unwrap();
    let hash = BlobId::of(&bytes[..5 << 20]).0;
    let pack = PackBlob { blob, block_size: 5 << 20, hashes: Arc::new(vec![hash; 12]) };
    let local = node.open();
    let gate = Arc::new(Semaphore::new(0));
    node.faulty.reset();
    node.faulty.always(Op::Range, Fault::Gate(gate.clone()));
    local.read_ahead(&pack, 0..12);
    local.read_ahead(&pack, 0..12);
    until(|| node.faulty.total() == 2).await;
    let mut readers = tokio::task::JoinSet::new();
    for n in 0..12 {
        let (local, pack) = (local.clone(), pack.clone());
        readers.spawn(async move { local.block(&pack, n).await.unwrap().len() });
    }
    until(|| node.faulty.total() == 5).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.faulty.total(), 5, "three wanted, two ahead");
    gate.add_permits(100);
    assert_eq!(readers.join_all().await, [5 << 20; 12]);
    assert_eq!(node.faulty.total(), 12);
}

#[tokio::test]
async fn the_cache_stays_inside_its_bound_and_keeps_what_is_used() {
    let mut node = Node::new().await;
    node.options.max_bytes = 5 * BLOCK;
    let local = node.open();
    node.check(&local, 0..5).await;
    for n in 5..20 {
        assert_eq!(node.check(&local, [0]).await, 0, "block 0 is used all the time");
        node.check(&local, [n]).await;
        let held: u64 = node.cached().values().sum();
        assert!(held <= node.options.max_bytes && held == local.stats().bytes, "{held}");
    }
    assert_eq!(node.check(&local, [1]).await, 1, "block 1 had to go");
    drop(local);
    // A smaller bound at the next start.
    node.options.max_bytes = 2 * BLOCK;
    let local = node.open();
    assert_eq!(node.cached().len(), 2);
    node.check(&local, 0..21).await;
    drop(local);
    // No room at all: slow, but right.
    node.options.max_bytes = BLOCK - 1;
    let local = node.open();
    assert_eq!(node.check(&local, [3, 3]).await, 2);
    node.check(&local, 0..20).await;
    assert!(local.stats().bytes < BLOCK);
}

#[tokio::test]
async fn a_disk_that_takes_no_more_slows_the_node_but_stops_nothing() {
    let node = Node::new().await;
    let refs = framed(&node, BlobKind::Refs, b"refs").await;
    let idx = node.bucket.put_blob(BlobKind::Idx, "index".into()).await.unwrap();
    let local = node.open();
    node.check(&local, [0]).await;
    break_disk(node.dir.path());
    assert_eq!(node.check(&local, [1, 1]).await, 2, "fetched each time");
    assert_eq!(node.check(&local, [0]).await, 0, "what was kept is still good");
    assert_eq!(local.mapped(&refs).await.unwrap(), "refs");
    assert_eq!(local.mapped(&idx).await.unwrap(), "index");
    assert_eq!(local.stats().refused, 4);
    assert_eq!(local.stats().bytes, BLOCK);
    // No read ahead into nowhere.
    node.faulty.reset();
    local.read_ahead(&node.pack, 5..9);
    tokio::task::yield_now().await;
    assert_eq!(node.faulty.total(), 0);
    // A file that packmirror did not put there: the node does not start over it, and does not remove it.
    drop(local);
    let error = Local::open(node.dir.path(), &node.options, node.bucket.clone()).unwrap_err();
    assert!(matches!(error, LocalError::Foreign { .. }), "{error}");
    std::fs::remove_file(node.dir.path().join("cache/tmp")).unwrap();
    let local = node.open();
    assert_eq!(node.check(&local, [5, 5]).await, 1);
}

/// Needs the right to mount: says so and passes without.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_serves_on_and_recovers() {
    let node = Node::new().await;
    let mount = |dir: &Path| {
        let args = ["-t", "tmpfs", "-o", "size=2m", "tmpfs"];
        let mount = std::process::Command::new("mount").args(args).arg(dir).output();
        mount.is_ok_and(|output| output.status.success())
    };
    if !mount(node.dir.path()) {
        eprintln!("skipped: mounting a small tmpfs needs rights that this user has not");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(node.dir.path().to_owned());
    let refs = framed(&node, BlobKind::Refs, b"refs").await;
    let local = node.open();
    node.check(&local, 0..6).await;
    // Somebody else fills the disk.
    let hog = node.dir.path().join("hog");
    let mut len = 2 << 20;
    while std::fs::write(&hog, vec![1; len]).is_err() {
        len -= 4096;
    }
    node.check(&local, 0..21).await;
    node.check(&local, 0..21).await;
    assert_eq!(local.mapped(&refs).await.unwrap(), "refs");
    assert!(node.cached().keys().all(|path| !path.to_str().unwrap().contains("cache/tmp")), "no half files");
    std::fs::remove_file(&hog).unwrap();
    node.check(&local, 6..9).await;
    assert_eq!(node.check(&local, 6..9).await, 0, "kept again");
    drop(local);
}

#[tokio::test]
async fn what_was_used_lately_outlives_a_restart() {
    let mut node = Node::new().await;
    let local = node.open();
    node.check(&local, 0..6).await;
    // Written first, used last.
    assert_eq!(node.check(&local, 0..2).await, 0);
    local.remember_order();
    drop(local);
    node.options.max_bytes = 3 * BLOCK;
    let local = node.open();
    assert_eq!(node.check(&local, 0..2).await, 0, "they are still there");
}

#[tokio::test]
async fn a_wiped_cache_is_filled_again() {
    let node = Node::new().await;
    let refs = framed(&node, BlobKind::Refs, b"refs").await;
    let local = node.open();
    local.index().put("t", "k", &1);
    node.check(&local, 0..21).await;
    // While the node runs: not promised, but it must not serve wrong or stop.
    std::fs::remove_dir_all(node.dir.path()).unwrap();
    assert_eq!(node.check(&local, 0..21).await, 21);
    assert_eq!(node.check(&local, 0..21).await, 0);
    assert_eq!(local.mapped(&refs).await.unwrap(), "refs");
    assert!(local.scratch().unwrap().path().is_dir());
    drop(local);
    std::fs::remove_dir_all(node.dir.path()).unwrap();
    let local = node.open();
    assert_eq!(local.index().get::<u32>("t", "k"), None);
    assert_eq!(node.check(&local, 0..21).await, 21);
}

/// All files below a directory with their content; links as what they lead to.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.symlink_metadata().unwrap() {
                meta if meta.is_dir() => folders.push(path),
                meta if meta.is_file() => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
                _ => drop(found.insert(
                    path.clone(),
                    std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                )),
            }
        }
    }
    found
}

/// A directory of another make is refused, and everything in it is as before.
#[tokio::test]
async fn what_is_not_packmirrors_is_refused_and_untouched() {
    let mut node = Node::new().await;
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, at).unwrap();
    let file = |at: &str| {
        std::fs::create_dir_all(Path::new(at).parent().unwrap()).unwrap();
        std::fs::write(at, "precious").unwrap();
    };
    let id = "ab".repeat(32);
    let block = format!("cache/ab/{id}.0");
    type Make<'a> = Box<dyn Fn(&str) + 'a>;
    let cases: Vec<(&str, Make<'_>)> = vec![
        ("other", Box::new(|dir| file(&format!("{dir}/other")))),
        (".hidden", Box::new(|dir| file(&format!("{dir}/.hidden")))),
        ("cache", Box::new(|dir| file(&format!("{dir}/cache/projects/thesis")))),
        ("cache", Box::new(|dir| file(&format!("{dir}/cache/ab/thesis")))),
        ("cache", Box::new(|dir| file(&format!("{dir}/cache/tmp/thesis")))),
        ("cache", Box::new(|dir| file(&format!("{dir}/cache/{id}.0")))),
        ("cache", Box::new(|dir| file(&format!("{dir}/cache")))),
        ("scratch", Box::new(|dir| file(&format!("{dir}/scratch/notes")))),
        ("scratch", Box::new(|dir| file(&format!("{dir}/scratch/work-1")))),
        ("index", Box::new(|dir| file(&format!("{dir}/index/words")))),
        ("lock", Box::new(|dir| file(&format!("{dir}/lock")))),
        ("CACHEDIR.TAG", Box::new(|dir| file(&format!("{dir}/CACHEDIR.TAG")))),
        ("cache", Box::new(|dir| link("/etc", &format!("{dir}/cache")))),
        (
            "cache",
            Box::new(|dir| {
                file(&format!("{dir}/{block}"));
                link("/etc", &format!("{dir}/cache/ac"));
            }),
        ),
        ("scratch", Box::new(|dir| link("/etc", &format!("{dir}/scratch")))),
        ("index", Box::new(|dir| link("/etc", &format!("{dir}/index")))),
        ("lock", Box::new(|dir| link("/etc/hostname", &format!("{dir}/lock")))),
        ("CACHEDIR.TAG", Box::new(|dir| link("/etc/hostname", &format!("{dir}/CACHEDIR.TAG")))),
    ];
    for (n, (entry, make)) in cases.into_iter().enumerate() {
        node.dir = tempfile::tempdir().unwrap();
        make(node.dir.path().to_str().unwrap());
        let before = contents(node.dir.path());
        let error = Local::open(node.dir.path(), &node.options, node.bucket.clone()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, LocalError::NotOurs { .. }), "case {n}: {text}");
        assert!(text.contains(&format!("`{entry}`")) && text.contains("--cache-dir"), "case {n}: {text}");
        assert_eq!(contents(node.dir.path()), before, "case {n}");
    }
}

fn block_on(scenario: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scenario);
}

/// A node starts in somebody's folder, whose files may have names as packmirror's have; a broken build does not look for its mark.
async fn starts_elsewhere(is_broken: bool) {
    let node = Node::new().await;
    let at = |name: &str| node.dir.path().join(name);
    for name in ["letters/1", "cache/tmp/1", "scratch/work-1/notes"] {
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        std::fs::write(at(name), "precious").unwrap();
    }
    let before = contents(node.dir.path());
    if is_broken {
        let ours = Node::new().await;
        drop(ours.open());
        std::fs::copy(ours.dir.path().join("CACHEDIR.TAG"), at("CACHEDIR.TAG")).unwrap();
    }
    let opened = Local::open(node.dir.path(), &node.options, node.bucket.clone());
    let after = contents(node.dir.path());
    for (path, bytes) in &before {
        assert!(after.get(path) == Some(bytes), "{} was somebody's and is gone", path.display());
    }
    assert!(matches!(opened, Err(LocalError::NotOurs { .. })));
}

#[test]
fn a_node_that_deletes_what_is_not_its_own_is_found() {
    block_on(starts_elsewhere(false));
    found("was somebody's and is gone", || block_on(starts_elsewhere(true)));
}

/// In a directory of ours too, only what is ours goes.
#[tokio::test]
async fn foreign_files_among_ours_stay_and_links_are_not_followed() {
    let node = Node::new().await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("thesis"), "precious").unwrap();
    let at = |name: &str| node.dir.path().join(name);
    let local = node.open();
    node.check(&local, 0..21).await;
    let work = local.scratch().unwrap().keep();
    std::fs::create_dir(work.join("sub")).unwrap();
    std::os::unix::fs::symlink(outside.path(), work.join("link")).unwrap();
    drop(local);
    let block = node.file("1");
    std::fs::remove_file(&block).unwrap();
    std::os::unix::fs::symlink(outside.path().join("thesis"), &block).unwrap();
    let other = node.file("2");
    std::fs::remove_file(&other).unwrap();
    std::fs::create_dir(&other).unwrap();
    for name in
        ["cache/stray", "cache/zz/abc.1", "cache/00/abc.1", "cache/tmp/thesis", "scratch/notes", "other"]
    {
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        std::fs::write(at(name), "precious").unwrap();
    }
    std::fs::write(at("cache/tmp/7"), "half a file").unwrap();
    std::os::unix::fs::symlink(outside.path(), at("cache/tmp/8")).unwrap();
    let local = node.open();
    assert!(!work.exists() && !at("cache/tmp/7").exists(), "what an earlier start left goes");
    assert_eq!(local.stats().bytes, node.bytes.len() as u64 - 2 * BLOCK);
    assert_eq!(node.check(&local, [1, 2]).await, 2, "neither is taken for a block");
    assert!(block.is_symlink() && other.is_dir());
    assert_eq!(local.stats().damaged, 0);
    // What has to go to make room is ours too.
    drop(local);
    let small = LocalOptions { max_bytes: 2 * BLOCK, ..node.options.clone() };
    drop(Local::open(node.dir.path(), &small, node.bucket.clone()).unwrap());
    for name in
        ["cache/stray", "cache/zz/abc.1", "cache/00/abc.1", "cache/tmp/thesis", "scratch/notes", "other"]
    {
        assert_eq!(std::fs::read(at(name)).unwrap(), b"precious", "{name}");
    }
    assert_eq!(contents(outside.path()).len(), 1);
    // A folder of ours that became a link: the node does not start, and says what to do.
    for name in ["scratch", "cache", "index", "lock"] {
        let node = Node::new().await;
        drop(node.open());
        let path = node.dir.path().join(name);
        std::fs::rename(&path, node.dir.path().join("away")).unwrap();
        let target = if name == "lock" { outside.path().join("thesis") } else { outside.path().to_owned() };
        std::os::unix::fs::symlink(target, &path).unwrap();
        let error = Local::open(node.dir.path(), &node.options, node.bucket.clone()).unwrap_err();
        assert!(matches!(error, LocalError::Foreign { .. }), "{name}: {error}");
        assert_eq!(std::fs::read(outside.path().join("thesis")).unwrap(), b"precious");
    }
}

#[tokio::test]
async fn a_cache_of_an_earlier_version_is_taken_over() {
    let node = Node::new().await;
    let local = node.open();
    node.check(&local, 0..21).await;
    local.index().put("t", "k", &1);
    local.index().flush();
    let _work = local.scratch().unwrap().keep();
    drop(local);
    let mark = node.dir.path().join("CACHEDIR.TAG");
    let text = std::fs::read_to_string(&mark).unwrap();
    assert!(text.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"), "{text}");
    let mut flipped = text.clone().into_bytes();
    flipped[60] ^= 1;
    for left in [None, Some(&b""[..]), Some(&text.as_bytes()[..70]), Some(&flipped)] {
        std::fs::remove_file(&mark).unwrap();
        left.into_iter().for_each(|text| std::fs::write(&mark, text).unwrap());
        std::fs::create_dir_all(node.dir.path().join("lost+found")).unwrap();
        let local = node.open();
        assert_eq!(node.check(&local, 0..21).await, 0);
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), text);
        drop(local);
    }
    std::fs::write(&mark, text.replace("version 1:", "version 2:")).unwrap();
    let error = Local::open(node.dir.path(), &node.options, node.bucket.clone()).unwrap_err();
    assert!(matches!(error, LocalError::Newer { .. }), "{error}");
}

#[tokio::test]
async fn the_cache_belongs_to_its_user_whoever_made_the_folder() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new().await;
    let local = node.open();
    node.check(&local, 0..3).await;
    drop(local);
    let loosen = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let shard = node.file("1").parent().unwrap().to_owned();
    loosen(&node.file("1"), 0o644);
    for folder in [node.dir.path(), &node.dir.path().join("cache"), &shard, &node.dir.path().join("scratch")]
    {
        loosen(folder, 0o777);
    }
    let local = node.open();
    node.check(&local, 3..6).await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    for name in ["", "cache", "cache/tmp", "scratch", "index"] {
        assert_eq!(mode(&node.dir.path().join(name)) & 0o077, 0, "{name}");
    }
    for file in node.cached().into_keys() {
        assert_eq!(mode(&file) & 0o077, 0, "{}", file.display());
        assert_eq!(mode(file.parent().unwrap()) & 0o077, 0, "{}", file.display());
    }
}

/// More mappings than a process may have are not made: files are read, and nothing is taken for damaged.
#[tokio::test]
async fn what_cannot_be_mapped_is_read() {
    let mut node = Node::new().await;
    node.options.mappings = 3;
    let refs = framed(&node, BlobKind::Refs, b"refs").await;
    let graph = framed(&node, BlobKind::Graph, b"graph").await;
    let local = node.open();
    node.check(&local, 0..21).await;
    let held: Vec<_> = (0..21).filter_map(|n| local.cached_block(&node.pack, n)).collect();
    assert_eq!(held.len(), 3);
    assert_eq!(local.mapped(&refs).await.unwrap(), "refs");
    assert_eq!(local.mapped(&graph).await.unwrap(), "graph");
    assert_eq!(node.check(&local, 0..21).await, 0, "read, not fetched");
    let stats = local.stats();
    assert_eq!((stats.damaged, stats.refused), (0, 0));
    assert!(stats.unusable >= 18, "{stats:?}");
    drop(held);
    assert!((0..21).all(|n| local.cached_block(&node.pack, n).is_some()), "one after the other");
    assert_eq!(node.cached().len(), 23);
}

/// A disk that does not answer is no damage: what it holds stays, the bucket answers, and the log is not flooded.
#[tokio::test]
async fn what_cannot_be_opened_is_fetched_and_stays() {
    let node = Node::new().await;
    let refs = framed(&node, BlobKind::Refs, b"refs").await;
    let local = node.open();
    node.check(&local, 0..21).await;
    drop(local.mapped(&refs).await.unwrap());
    let before = contents(&node.dir.path().join("cache"));
    for errno in [
        rustix::io::Errno::MFILE,
        rustix::io::Errno::NFILE,
        rustix::io::Errno::NOMEM,
        rustix::io::Errno::IO,
        rustix::io::Errno::ACCESS,
    ] {
        local.inner.disk.fail_with(Some(errno.raw_os_error()));
        let asked = local.stats().unusable;
        assert_eq!(node.check(&local, 0..21).await, 21, "{errno}");
        assert!(local.cached_block(&node.pack, 0).is_none());
        assert_eq!(local.mapped(&refs).await.unwrap(), "refs", "{errno}");
        assert!(local.stats().unusable >= asked + 21);
        local.inner.disk.fail_with(None);
        assert_eq!(node.check(&local, 0..21).await, 0, "all is still there");
    }
    assert_eq!((local.stats().damaged, local.stats().refused), (0, 0));
    assert_eq!(contents(&node.dir.path().join("cache")), before);
}

/// The process has no more files to open for a while; a broken build takes what it cannot open for damaged.
async fn lacks_files(is_broken: bool) {
    let node = Node::new().await;
    let local = node.open();
    node.check(&local, 0..21).await;
    local.inner.disk.fail_with(Some(rustix::io::Errno::MFILE.raw_os_error()));
    for n in 0..21 {
        node.check(&local, [n]).await;
        if is_broken {
            local.inner.disk.forget(Name::Block(node.pack.blob.id, n as u32));
        }
    }
    local.inner.disk.fail_with(None);
    let fetched = node.check(&local, 0..21).await;
    assert_eq!(fetched, 0, "what could not be opened for a while is fetched again");
}

#[test]
fn a_lack_that_is_taken_for_damage_is_found() {
    block_on(lacks_files(false));
    found("what could not be opened for a while is fetched again", || block_on(lacks_files(true)));
}

#[tokio::test]
async fn one_process_has_the_directory() {
    let node = Node::new().await;
    let local = node.open();
    let error = Local::open(node.dir.path(), &node.options, node.bucket.clone()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, LocalError::InUse { .. }), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())) && text.contains("--cache-dir"), "{text}");
    drop(local);
    node.open();
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Local::open(file.path(), &node.options, node.bucket.clone()).unwrap_err();
    assert!(matches!(error, LocalError::Unusable { .. }), "{error}");
}

async fn framed(node: &Node, kind: BlobKind, content: &[u8]) -> BlobRef {
    let frame = zstd::encode_all(content, 1).unwrap();
    let blob = node.bucket.put_blob(kind, frame.into()).await.unwrap();
    node.faulty.reset();
    blob
}

#[tokio::test]
async fn whole_blobs_are_mapped_once_unpacked_and_kept() {
    let node = Node::new().await;
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    let graph = framed(&node, BlobKind::Graph, &content).await;
    let empty = framed(&node, BlobKind::Refs, b"").await;
    let idx = node.bucket.put_blob(BlobKind::Idx, content.clone().into()).await.unwrap();
    node.faulty.reset();
    let mut local = node.open();
    for restart in [false, true] {
        if restart {
            drop(local);
            local = node.open();
        }
        let first = local.mapped(&graph).await.unwrap();
        let again = local.mapped(&graph).await.unwrap();
        assert!(first == content && first.as_ptr() == again.as_ptr(), "one mapping for all");
        assert!(local.mapped(&idx).await.unwrap() == content);
        assert_eq!(local.mapped(&empty).await.unwrap(), "");
        assert_eq!(node.faulty.total(), 3, "one request each, none after a restart");
    }
    let held: u64 = node.cached().values().sum();
    assert_eq!(local.stats().bytes, held);
}

#[tokio::test]
async fn a_damaged_mapped_file_is_fetched_again() {
    let node = Node::new().await;
    let content: Vec<u8> = (0..50_000u32).map(|n| (n / 3) as u8).collect();
    let graph = framed(&node, BlobKind::Graph, &content).await;
    let mut local = node.open();
    for cut in [None, Some(0), Some(31), Some(32), Some(40_000), Some(50_031)] {
        for restart in [false, true] {
            assert!(local.mapped(&graph).await.unwrap() == content);
            let path = node.file("graph");
            let mut bytes = std::fs::read(&path).unwrap();
            match cut {
                None => bytes[777] ^= 1,
                Some(len) => bytes.truncate(len),
            }
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            if restart {
                drop(local);
                local = node.open();
            }
            node.faulty.reset();
            assert!(local.mapped(&graph).await.unwrap() == content, "{cut:?}");
            assert_eq!(node.faulty.total(), 1, "{cut:?}");
        }
    }
}

#[tokio::test]
async fn a_frame_that_is_none_or_a_bomb_is_damage() {
    let node = Node::new().await;
    let bomb = framed(&node, BlobKind::Refs, &vec![0; 300 << 20]).await;
    let plain = node.bucket.put_blob(BlobKind::Graph, "no frame at all".into()).await.unwrap();
    let local = node.open();
    for blob in [bomb, plain] {
        let error = local.mapped(&blob).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
    assert!(node.cached().is_empty(), "{:?}", node.cached());
}

#[tokio::test]
async fn mapped_files_in_use_are_not_thrown_out() {
    let mut node = Node::new().await;
    node.options.max_bytes = 3 * BLOCK;
    let content = node.bytes.slice(..2 * BLOCK as usize);
    let idx = node.bucket.put_blob(BlobKind::Idx, content.clone()).await.unwrap();
    let local = node.open();
    let mapped = local.mapped(&idx).await.unwrap();
    node.check(&local, 0..21).await;
    assert!(node.file("idx").exists() && mapped == content);
    drop(mapped);
    node.check(&local, 0..21).await;
    assert_eq!(node.cached().len(), 3, "now it went: {:?}", node.cached());
    assert!(local.mapped(&idx).await.unwrap() == content);
}

/// Readers, faults and too little room, all at once: every answer is right or an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_wrong_is_ever_served() {
    let mut node = Node::new().await;
    node.options.max_bytes = 9 * BLOCK;
    let idx = node.bucket.put_blob(BlobKind::Idx, node.bytes.slice(..BLOCK as usize)).await.unwrap();
    let local = node.open();
    node.faulty.reset();
    let faults = [Fault::Unavailable, Fault::ShortBody, Fault::CorruptByte, Fault::Missing, Fault::Refused];
    for n in 0..2000 {
        node.faulty.nth(n * 3, faults[n % faults.len()].clone());
    }
    let node = Arc::new(node);
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..16u64 {
        let (local, node) = (local.clone(), node.clone());
        readers.spawn(async move {
            let (mut good, mut bad) = (0, 0);
            for step in 0..150 {
                let n = (reader * 7 + step * step) % 21;
                if step % 5 == 0 {
                    local.read_ahead(&node.pack, n..n + 4);
                }
                match local.block(&node.pack, n).await {
                    Ok(bytes) => {
                        assert!(bytes == node.wanted(n), "block {n}");
                        good += 1;
                    }
                    Err(_) => bad += 1,
                }
                if let Ok(bytes) = local.mapped(&idx).await {
                    assert!(bytes == node.wanted(0));
                }
            }
            (good, bad)
        });
    }
    let (good, bad) =
        readers.join_all().await.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(good > bad && bad > 0, "{good} good, {bad} bad");
    // What was read ahead may still be on its way.
    until(|| node.cached().values().sum::<u64>() == local.stats().bytes).await;
    assert!(local.stats().bytes <= node.options.max_bytes, "{:?}", local.stats());
}

#[tokio::test(start_paused = true)]
async fn a_first_block_that_was_fetched_ahead_is_proven_when_it_is_wanted() {
    let node = Node::new().await;
    let graph = BlobRef::of(BlobKind::Graph, b"not here");
    for is_spoilt in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::open(dir.path(), &node.options, node.bucket.clone()).unwrap();
        node.faulty.reset();
        if is_spoilt {
            node.faulty.on(Op::Range, 1, Fault::CorruptByte);
        }
        local.expect([(node.pack.blob, graph)], BLOCK);
        until(|| node.faulty.total() == 1).await;
        assert!(!local.has_block(&node.pack, 0), "nothing is kept without proof");
        assert_eq!(node.check(&local, [0, 0]).await, usize::from(is_spoilt));
        assert!(local.has_block(&node.pack, 0));
        assert_eq!(local.has_just_come(&node.pack), !is_spoilt, "what was spoilt says nothing of the pack");
        tokio::time::sleep(std::time::Duration::from_secs(11)).await;
        assert!(!local.has_just_come(&node.pack), "it is some time ago");
        // What is here is not fetched ahead.
        local.expect([(node.pack.blob, graph)], BLOCK);
        assert_eq!(node.check(&local, [0]).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_ahead_and_nobody_wants_goes() {
    let node = Node::new().await;
    let local = node.open();
    let graph = BlobRef::of(BlobKind::Graph, b"not here");
    local.expect([(node.pack.blob, graph)], BLOCK);
    until(|| node.faulty.total() == 1).await;
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert_eq!(node.check(&local, [0]).await, 1, "it is fetched when it is wanted");
    // Of another length than the block turns out to have it is of no use.
    let dir = tempfile::tempdir().unwrap();
    let other = Local::open(dir.path(), &node.options, node.bucket.clone()).unwrap();
    other.expect([(node.pack.blob, graph)], BLOCK / 2);
    assert_eq!(node.check(&other, [0]).await, 2);
    // Where the graph is here, there is nothing to wait for.
    let frame = zstd::bulk::compress(b"a graph", 3).unwrap();
    let graph = node.bucket.put_blob(BlobKind::Graph, frame.into()).await.unwrap();
    local.mapped(&graph).await.unwrap();
    let before = node.faulty.total();
    local.expect([(BlobRef { id: BlobId::of(b"another"), ..node.pack.blob }, graph)], BLOCK);
    tokio::task::yield_now().await;
    assert_eq!(node.faulty.total(), before);
}
