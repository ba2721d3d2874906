//! Selects, plans and writes the answers to common fetches of a repository, beside `git pack-objects`.
//!
//! `cargo bench --bench selection -- PATH-OF-A-BARE-REPOSITORY [--graph FILE] [--check] [--only WORD]`. The
//! repository should be one well-packed pack (`git repack -ad`). `--graph` keeps the graph in a file
//! between runs; `--check` has git index every answer strictly; `--only` takes the rows whose names have that word. Without a path there is nothing to do.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark fails by panics")]
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bstr::BStr;
use bytes::Bytes;
use gix_hash::ObjectId;
use packmirror::git::filter::Filter;
use packmirror::pack::filter::rules::{BadRules, Rules, SparseBlobs};
use packmirror::pack::filter::trees::TreeError;
use packmirror::pack::history::shallow::{Deepen, deepen};
use packmirror::pack::layer::graph::{self, BuildInput};
use packmirror::pack::meter::Unlimited;
use packmirror::pack::plan::select::SelectLimits;
use packmirror::pack::{self, Gid, Layer, PlanOptions, Query, Scratch, Source, Stack};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Fetch {
    name: String,
    wants: Vec<ObjectId>,
    haves: Vec<ObjectId>,
    depth: Option<u32>,
    filter: Option<&'static str>,
}

struct OnePack(Bytes);

impl Source for OnePack {
    fn read(&self, _: usize, range: std::ops::Range<u64>) -> std::io::Result<Bytes> {
        Ok(self.0.slice(range.start as usize..range.end as usize))
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut repo, mut graph, mut check, mut only) = (None, None, false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--graph" => graph = arguments.next().map(PathBuf::from),
            "--check" => check = true,
            "--only" => only = arguments.next(),
            _ => repo = Some(PathBuf::from(argument)),
        }
    }
    let Some(repo) = repo else {
        println!("give the path of a bare repository");
        return Ok(());
    };
    let (stack, source) = open(&repo, graph.as_deref())?;
    println!("{} objects\n", stack.len());
    println!(
        "{:<28}{:>9}{:>9}{:>8}{:>8} | {:>8}{:>8}{:>8} | {:>9}{:>9} | {:>10}{:>10}{:>7}",
        "fetch",
        "objects",
        "git's",
        "segments",
        "anew",
        "select",
        "plan",
        "write",
        "ours",
        "git",
        "bytes",
        "git's",
        "ratio"
    );
    let wanted = |fetch: &Fetch| only.as_ref().is_none_or(|word| fetch.name.contains(word.as_str()));
    for fetch in fetches(&repo)?.into_iter().filter(wanted) {
        measure(&repo, &stack, &source, &fetch, check)?;
    }
    Ok(())
}

/// What people and machines ask for.
fn fetches(repo: &Path) -> Result<Vec<Fetch>> {
    let head = rev(repo, "HEAD")?;
    let refs = |pattern: &[&str]| -> Result<Vec<ObjectId>> {
        let args = [&["for-each-ref", "--format=%(objectname)"][..], pattern].concat();
        let mut ids = ids(&git(repo, &args, "")?.0);
        ids.sort();
        ids.dedup();
        Ok(ids)
    };
    let clone = refs(&["refs/heads", "refs/tags"])?;
    let fetch = |name: &str, wants: &[ObjectId], haves: Vec<ObjectId>| Fetch {
        name: name.to_owned(),
        wants: wants.to_vec(),
        haves,
        depth: None,
        filter: None,
    };
    let mut fetches = vec![
        fetch("clone", &clone, vec![]),
        fetch("clone of all refs", &refs(&[])?, vec![]),
        fetch("clone of HEAD", &[head], vec![]),
        Fetch { filter: Some("blob:none"), ..fetch("clone, blob:none", &clone, vec![]) },
        Fetch { filter: Some("tree:0"), ..fetch("clone, tree:0", &clone, vec![]) },
        Fetch { depth: Some(1), ..fetch("depth 1", &[head], vec![]) },
        Fetch { depth: Some(50), ..fetch("depth 50", &[head], vec![]) },
    ];
    for n in [1, 10, 100, 1000, 5000] {
        let Ok(have) = rev(repo, &format!("HEAD~{n}")) else { continue };
        fetches.push(fetch(&format!("HEAD~{n}..HEAD"), &[head], vec![have]));
        if n == 10 {
            fetches.push(Fetch { depth: Some(1), ..fetch("depth 1, had HEAD~10", &[head], vec![have]) });
        }
    }
    Ok(fetches)
}

/// No filter that is measured names blobs.
struct NoBlobs;

impl SparseBlobs for NoBlobs {
    fn find(&mut self, _: &BStr) -> std::result::Result<Option<Gid>, TreeError> {
        Ok(None)
    }

    fn read(&mut self, _: Gid) -> std::result::Result<Bytes, BadRules> {
        Ok(Bytes::new())
    }
}

fn measure(repo: &Path, stack: &Stack, source: &OnePack, fetch: &Fetch, check: bool) -> Result<()> {
    let find = |ids: &[ObjectId]| -> Vec<Gid> { ids.iter().filter_map(|id| stack.lookup(id)).collect() };
    let (wants, haves) = (find(&fetch.wants), find(&fetch.haves));
    let filter = match fetch.filter {
        Some(spec) => Some(Rules::compile(&Filter::parse(spec.as_bytes())?, &mut NoBlobs, &Unlimited)?),
        None => None,
    };
    let options = PlanOptions { ofs_delta: true, thin: true };
    type Best = (Duration, [Duration; 3], Arc<pack::Plan>, Vec<u8>);
    let mut best: Option<Best> = None;
    for _ in 0..3 {
        let start = Instant::now();
        let cut: Vec<Gid> = if fetch.depth.is_some() { haves.clone() } else { Vec::new() };
        let shallow = fetch
            .depth
            .map(|depth| deepen(stack, &wants, &cut, Deepen::Depth(depth), |_| true, &Unlimited))
            .transpose()?;
        let query = Query {
            wants: &wants,
            haves: &haves,
            client_shallow: &cut,
            shallow: shallow.as_ref(),
            filter: filter.as_ref(),
            tags: &[],
        };
        let mut selection = pack::select(stack, source, &query, &SelectLimits::default(), &Unlimited)?;
        let selected = start.elapsed();
        let plan = Arc::new(pack::plan::plan(stack, &mut selection, options, &Unlimited).unwrap());
        let planned = start.elapsed();
        let mut out = Vec::with_capacity(plan.known_len as usize);
        let mut scratch = Scratch::new(64 << 20, 1 << 30);
        pack::write::write(&plan, stack, source, &mut scratch, &Unlimited, &mut out)?;
        let written = start.elapsed();
        if best.as_ref().is_none_or(|best| written < best.0) {
            best = Some((written, [selected, planned - selected, written - planned], plan, out));
        }
    }
    let Some((all, [selected, planned, written], plan, out)) = best else { return Ok(()) };
    let (theirs, time) = git_pack(repo, fetch)?;
    let count =
        theirs.get(8..12).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes));
    println!(
        "{:<28}{:>9}{:>9}{:>8}{:>8} | {:>8}{:>8}{:>8} | {:>9}{:>9} | {:>10}{:>10}{:>7.3}",
        fetch.name,
        plan.objects,
        count,
        plan.segments.len(),
        plan.anew,
        ms(selected),
        ms(planned),
        ms(written),
        ms(all),
        ms(time),
        out.len(),
        theirs.len(),
        out.len() as f64 / theirs.len().max(1) as f64,
    );
    if check {
        check_pack(repo, fetch, &out)?;
    }
    Ok(())
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// What git itself would send, and how long it takes (the better of two).
fn git_pack(repo: &Path, fetch: &Fetch) -> Result<(Vec<u8>, Duration)> {
    let mut args = vec!["pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "-q"];
    let filter = fetch.filter.map(|filter| format!("--filter={filter}"));
    args.extend(filter.as_deref());
    let mut spec = String::new();
    if let Some(depth) = fetch.depth {
        args.push("--shallow");
        for id in boundary(repo, fetch, depth)? {
            spec += &format!("--shallow {id}\n");
        }
    }
    fetch.wants.iter().for_each(|id| spec += &format!("{id}\n"));
    spec += "--not\n";
    fetch.haves.iter().for_each(|id| spec += &format!("{id}\n"));
    let first = git(repo, &args, &spec)?;
    let second = git(repo, &args, &spec)?;
    Ok((first.0, first.1.min(second.1)))
}

/// The boundary as git's upload-pack computes it: the commits at that distance.
fn boundary(repo: &Path, fetch: &Fetch, depth: u32) -> Result<Vec<ObjectId>> {
    let mut level = fetch.wants.clone();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 1..depth {
        let mut args = vec!["rev-parse".to_owned()];
        level.iter().for_each(|id| args.push(format!("{id}^@")));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        level = ids(&git(repo, &args, "")?.0).into_iter().filter(|id| seen.insert(*id)).collect();
    }
    level.extend(&fetch.haves);
    Ok(level)
}

/// Has git index an answer as a client would.
fn check_pack(repo: &Path, fetch: &Fetch, pack: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    git(dir.path(), &["init", "-q", "--bare", "."], "")?;
    if !fetch.haves.is_empty() {
        let alternates = dir.path().join("objects/info/alternates");
        std::fs::write(alternates, format!("{}\n", std::fs::canonicalize(repo)?.join("objects").display()))?;
    }
    if let Some(depth) = fetch.depth {
        let cut: String = boundary(repo, fetch, depth)?.iter().map(|id| format!("{id}\n")).collect();
        std::fs::write(dir.path().join("shallow"), cut)?;
    }
    let mut args = vec!["index-pack", "--stdin", "--fix-thin"];
    if fetch.filter.is_none() {
        args.push("--strict");
    }
    run(dir.path(), &args, pack)?;
    Ok(())
}

fn open(repo: &Path, kept: Option<&Path>) -> Result<(Stack, OnePack)> {
    let mut packs: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(repo.join("objects/pack"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pack") {
            packs.push((path.metadata()?.len(), path));
        }
    }
    packs.sort();
    let (_, path) = packs.last().ok_or("no pack in this repository")?;
    let (pack, idx) = (map(path)?, Bytes::from(std::fs::read(path.with_extension("idx"))?));
    let hash = rev(repo, "HEAD")?.kind();
    let tips = ids(&git(repo, &["for-each-ref", "--format=%(objectname)"], "")?.0);
    let graph = match kept.and_then(|file| std::fs::read(file).ok()) {
        Some(graph) => graph,
        None => {
            let start = Instant::now();
            let graph = graph::build(BuildInput {
                pack: &pack,
                idx: idx.clone(),
                below: None,
                hash,
                tips: &tips,
                facts: None,
                cache_bytes: graph::build::DEFAULT_CACHE,
                threads: 2,
                meter: &packmirror::pack::meter::Unlimited,
                progress: &|_, _| {},
                stop: &AtomicBool::new(false),
            })?
            .to_bytes();
            println!("built the graph in {:?}", start.elapsed());
            if let Some(file) = kept {
                std::fs::write(file, &graph)?;
            }
            graph
        }
    };
    let layer = Layer::open(idx, Bytes::from(graph), hash)?;
    Ok((Stack::open(vec![Arc::new(layer)])?, OnePack(pack)))
}

fn map(path: &Path) -> Result<Bytes> {
    // SAFETY: a pack of the repository under test; nothing writes to packs.
    #[allow(unsafe_code, reason = "a bench reads packs as the product does, mapped")]
    let map = unsafe { memmap2::Mmap::map(&std::fs::File::open(path)?)? };
    Ok(Bytes::from_owner(map))
}

fn rev(repo: &Path, name: &str) -> Result<ObjectId> {
    let printed = git(repo, &["rev-parse", "--verify", "-q", name], "")?.0;
    ids(&printed).first().copied().ok_or_else(|| "no such commit".into())
}

fn ids(text: &[u8]) -> Vec<ObjectId> {
    text.split(|&byte| byte == b'\n').filter_map(|line| ObjectId::from_hex(line).ok()).collect()
}

fn git(dir: &Path, args: &[&str], input: &str) -> Result<(Vec<u8>, Duration)> {
    let start = Instant::now();
    Ok((run(dir, args, input.as_bytes())?, start.elapsed()))
}

fn run(dir: &Path, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        return Err(format!("git {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}
