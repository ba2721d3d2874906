//! Builds the graph of the largest pack of a repository and says what that cost.
//!
//! `cargo bench --bench graph_build -- PATH-OF-A-BARE-REPOSITORY`; well packed (`git repack -ad`)
//! it is one pack. Without a path there is nothing to do.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark fails by panics")]
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};
use packmirror::pack::layer::graph::{self, BuildInput, Graph};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(repo) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).map(PathBuf::from)
    else {
        println!("give the path of a bare repository");
        return Ok(());
    };
    let mut packs: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(repo.join("objects/pack"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pack") {
            packs.push((path.metadata()?.len(), path));
        }
    }
    packs.sort();
    let (len, path) = packs.last().ok_or("no pack in this repository")?;
    let (pack, idx) = (map(path)?, map(&path.with_extension("idx"))?);
    let hash = hash_of(&repo)?;
    let tips = tips(&repo)?;
    let stop = AtomicBool::new(false);
    let build = |threads: usize| {
        let start = Instant::now();
        let draft = graph::build(BuildInput {
            pack: &pack,
            idx: idx.clone(),
            below: None,
            hash,
            tips: &tips,
            facts: None,
            cache_bytes: graph::build::DEFAULT_CACHE,
            threads,
            meter: &packmirror::pack::meter::Unlimited,
            progress: &|_, _| {},
            stop: &stop,
        });
        draft.map(|draft| (draft, start.elapsed()))
    };
    let (draft, built) = build(2)?;
    let (alone, built_alone) = build(1)?;
    assert!(draft == alone, "the graph depends on the number of threads");
    drop(alone);
    let file = draft.to_bytes();
    let start = Instant::now();
    let packed = graph::compress(&file)?;
    let compressed = start.elapsed();
    let start = Instant::now();
    let graph = Graph::open(Bytes::from(file.clone()))?;
    let opened = start.elapsed();
    let commits = &draft.commits;
    println!(
        "pack {} MB, {} objects, {} commits, {} tips",
        len >> 20,
        graph.len(),
        graph.commits().len(),
        tips.len()
    );
    println!("introductions: {} first, {} again", commits.first.items.len(), commits.again.items.len());
    println!("graph: {} MB, {} MB as stored", file.len() >> 20, packed.len() >> 20);
    println!(
        "build {built:.1?} on two threads, {built_alone:.1?} on one; compress {compressed:.1?}, open {opened:.1?}"
    );
    for line in std::fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
        if line.starts_with("VmHWM") || line.starts_with("RssAnon") {
            println!("{line}");
        }
    }
    Ok(())
}

fn map(path: &Path) -> std::io::Result<Bytes> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the repository is the caller's and nothing rewrites a pack in place.
    #[allow(unsafe_code, reason = "a bench reads packs as the product does, mapped")]
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

fn git(repo: &Path, arguments: &[&str]) -> std::io::Result<String> {
    let output = Command::new("git").arg("-C").arg(repo).args(arguments).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn hash_of(repo: &Path) -> std::io::Result<HashKind> {
    let format = git(repo, &["rev-parse", "--show-object-format"])?;
    Ok(if format.trim() == "sha256" { HashKind::Sha256 } else { HashKind::Sha1 })
}

fn tips(repo: &Path) -> Result<Vec<ObjectId>, Box<dyn std::error::Error>> {
    let refs = git(repo, &["for-each-ref", "--format=%(objectname)"])?;
    let mut tips =
        refs.lines().map(|line| ObjectId::from_hex(line.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    tips.sort();
    tips.dedup();
    Ok(tips)
}
