//! The hot paths of the pure rooms, one at a time, for counting their instructions: `run.sh` runs this under callgrind.
//!
//! `packmirror-instructions REPOSITORY PATH`: the repository is bare and has one pack; what is prepared for a path is not
//! counted, only what [`counted`] runs. `packmirror-instructions --list` names the paths.
#![allow(dead_code, reason = "the rooms are compiled from their sources, and not all of them is used")]
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark fails by panics")]

#[path = "../../../src/git/mod.rs"]
pub mod git;
#[path = "../../../src/pack/mod.rs"]
pub mod pack;

use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bstr::BStr;
use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};

use git::filter::Filter;
use git::ls_refs::{Listing, LsRefs};
use git::negotiate::{Questions, answer_v2};
use git::refs::{Head, Ref, Refs};
use git::request::{CommandRequest, FetchRequest, RequestLimits, parse_v2};
use pack::filter::rules::{BadRules, Rules, SparseBlobs};
use pack::filter::trees::TreeError;
use pack::history::negotiate::Negotiation;
use pack::history::shallow::{Deepen, deepen};
use pack::index::receive::receive;
use pack::index::resolve::{Keep, Resolve, resolve};
use pack::layer::graph::{self, BuildInput};
use pack::meter::Unlimited;
use pack::plan::select::SelectLimits;
use pack::write::send::{Sender, Step};
use pack::{Gid, Layer, Plan, PlanOptions, Query, Scratch, Source, Stack};

/// A path, and what runs it.
type Counted = (&'static str, fn(&World));

/// What is counted, by name.
const PATHS: &[Counted] = &[
    ("request: parse one with 256 haves", parse),
    ("refs: list 2,000 of a prefix", list),
    ("refs: read 2,000 as packed-refs", read_refs),
    ("negotiation: 256 haves, half of them known", negotiate),
    ("increment of 1 commit: select and plan", |world| increment(world, 1)),
    ("increment of 10 commits: select and plan", |world| increment(world, 10)),
    ("increment of 200 commits: select and plan", |world| increment(world, 200)),
    ("clone: select and plan", |world| fresh(world, None, None)),
    ("clone without blobs: select and plan", |world| fresh(world, None, Some("blob:none"))),
    ("depth 1: select and plan", |world| fresh(world, Some(1), None)),
    ("depth 20: select and plan", |world| fresh(world, Some(20), None)),
    ("clone: write", |world| write(world, None)),
    ("depth 1: write", |world| write(world, Some(1))),
    ("clone: send again", send_again),
    ("layer: open", open_again),
    ("pack: receive and index", index),
    ("pack: build its graph", build_graph),
];

/// What is between its beginning and its end is counted: callgrind looks for this name.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

/// A repository of one pack, opened.
struct World {
    pack: Bytes,
    idx: Bytes,
    graph: Bytes,
    stack: Stack,
    /// Of all refs.
    tips: Vec<ObjectId>,
    /// HEAD and its first parents, the youngest first.
    line: Vec<ObjectId>,
}

impl Source for World {
    fn read(&self, _: usize, range: Range<u64>) -> std::io::Result<Bytes> {
        Ok(self.pack.slice(range.start as usize..range.end as usize))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [list] if list == "--list" => PATHS.iter().for_each(|(name, _)| println!("{name}")),
        [repo, path] => {
            let (_, run) = PATHS.iter().find(|(name, _)| name == path).expect("one of --list");
            run(&World::open(Path::new(repo)));
        }
        _ => panic!("REPOSITORY PATH, or --list"),
    }
}

impl World {
    fn open(repo: &Path) -> Self {
        let packs = std::fs::read_dir(repo.join("objects/pack")).expect("a bare repository");
        let pack = packs
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "pack"));
        let pack = pack.expect("a pack");
        let (idx, pack) = (read(&pack.with_extension("idx")), read(&pack));
        let tips = ids(repo, &["for-each-ref", "--format=%(objectname)"]);
        let line = ids(repo, &["rev-list", "--first-parent", "HEAD"]);
        let graph = built(&pack, &idx, &tips);
        let stack = opened(&idx, &graph);
        Self { pack, idx, graph, stack, tips, line }
    }

    fn gids(&self, ids: &[ObjectId]) -> Vec<Gid> {
        ids.iter().map(|id| self.stack.lookup(id).expect("it is in the pack")).collect()
    }

    /// What a clone, or a shallow one, is made with.
    fn fresh(&self, depth: Option<u32>, filter: Option<&Rules>) -> Arc<Plan> {
        let wants = if depth.is_some() { self.gids(&self.line[..1]) } else { self.gids(&self.tips) };
        let deepen =
            |depth| deepen(&self.stack, &wants, &[], Deepen::Depth(depth), |_| true, &Unlimited).unwrap();
        let shallow = depth.map(deepen);
        self.plan(Query { wants: &wants, shallow: shallow.as_ref(), filter, ..NOTHING })
    }

    fn plan(&self, query: Query<'_>) -> Arc<Plan> {
        let options = PlanOptions { ofs_delta: true, thin: true };
        let mut selection =
            pack::select(&self.stack, self, &query, &SelectLimits::default(), &Unlimited).unwrap();
        Arc::new(pack::plan::plan(&self.stack, &mut selection, options, &Unlimited).unwrap())
    }

    fn write(&self, plan: &Arc<Plan>) -> Vec<u8> {
        let mut out = Vec::with_capacity(plan.known_len as usize);
        let mut scratch = Scratch::new(64 << 20, 1 << 30);
        pack::write::write(plan, &self.stack, self, &mut scratch, &Unlimited, &mut out).unwrap();
        out
    }
}

const NOTHING: Query<'static> =
    Query { wants: &[], haves: &[], client_shallow: &[], shallow: None, filter: None, tags: &[] };

fn read(path: &Path) -> Bytes {
    std::fs::read(path).expect("a file of the repository").into()
}

fn ids(repo: &Path, args: &[&str]) -> Vec<ObjectId> {
    let output = Command::new("git").arg("-C").arg(repo).args(args).output().expect("git");
    assert!(output.status.success(), "git {args:?}");
    output.stdout.split(|&byte| byte == b'\n').filter_map(|line| ObjectId::from_hex(line).ok()).collect()
}

fn opened(idx: &Bytes, graph: &Bytes) -> Stack {
    let layer = Layer::open(idx.clone(), graph.clone(), HashKind::Sha1).unwrap();
    Stack::open(vec![Arc::new(layer)]).unwrap()
}

/// By one thread: how often threads wait for each other differs.
fn built(pack: &Bytes, idx: &Bytes, tips: &[ObjectId]) -> Bytes {
    let input = BuildInput {
        pack,
        idx: idx.clone(),
        below: None,
        hash: HashKind::Sha1,
        tips,
        facts: None,
        cache_bytes: graph::build::DEFAULT_CACHE,
        threads: 1,
        meter: &Unlimited,
        progress: &|_, _| {},
        stop: &AtomicBool::new(false),
    };
    graph::build(input).unwrap().to_bytes().into()
}

/// Ids that no object has.
fn made_up(n: u32) -> ObjectId {
    let mut bytes = [0xa5; 20];
    bytes[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_be_bytes());
    bytes.into()
}

/// The request of a client that has 256 commits, half of which the mirror has too.
fn fetch(world: &World) -> CommandRequest {
    let known = world.line.iter().skip(50).take(128).copied();
    let haves = known.zip((0..).map(made_up)).flat_map(|(one, other)| [one, other]).collect();
    let fetch =
        FetchRequest { wants: vec![world.line[0]], haves, ofs_delta: true, ..FetchRequest::default() };
    CommandRequest::new(git::request::Command::Fetch(Box::new(fetch)))
}

fn parse(world: &World) {
    let body = fetch(world).encode();
    counted(&mut || {
        black_box(parse_v2(&body, &RequestLimits::default(), HashKind::Sha1).unwrap());
    });
}

fn negotiate(world: &World) {
    let git::request::Command::Fetch(request) = fetch(world).command else { panic!("it is a fetch") };
    let wants = world.gids(&request.wants);
    counted(&mut || {
        let known = std::cell::RefCell::new(Negotiation::new(&world.stack));
        let got = |oid: &ObjectId| {
            world.stack.lookup(oid).inspect(|gid| _ = known.borrow_mut().got(*gid)).is_some()
        };
        let mut common = Questions::new(got, || known.borrow().ready(&wants, &Unlimited).unwrap());
        let mut out = Vec::new();
        black_box(answer_v2(&request, &mut common, &mut out));
        black_box(out);
    });
}

/// 4,000 refs, half of them branches.
fn many_refs() -> Refs {
    let name =
        |n: u32| if n.is_multiple_of(2) { format!("refs/heads/b{n}") } else { format!("refs/pull/{n}/head") };
    let one = |n| Ref { name: name(n).into(), oid: made_up(n), peeled: None };
    let head = Head::Symbolic { target: "refs/heads/b0".into() };
    Refs::new(HashKind::Sha1, head, (0..4000).map(one).collect(), Vec::new()).unwrap()
}

fn list(_: &World) {
    let refs = many_refs();
    let request =
        LsRefs { peel: true, symrefs: true, prefixes: vec!["refs/heads/".into()], ..LsRefs::default() };
    counted(&mut || {
        let listing = Listing::of(&refs);
        black_box(listing.answer(&request, &refs));
    });
}

fn read_refs(_: &World) {
    let text = many_refs().packed_refs();
    counted(&mut || {
        black_box(Refs::parse_packed_refs(&text, HashKind::Sha1).unwrap());
    });
}

fn increment(world: &World, commits: usize) {
    let (wants, haves) = (world.gids(&world.line[..1]), world.gids(&world.line[commits..=commits]));
    counted(&mut || {
        black_box(world.plan(Query { wants: &wants, haves: &haves, ..NOTHING }));
    });
}

/// No filter that is counted names blobs.
struct NoBlobs;

impl SparseBlobs for NoBlobs {
    fn find(&mut self, _: &BStr) -> Result<Option<Gid>, TreeError> {
        Ok(None)
    }

    fn read(&mut self, _: Gid) -> Result<Bytes, BadRules> {
        Ok(Bytes::new())
    }
}

fn fresh(world: &World, depth: Option<u32>, filter: Option<&str>) {
    counted(&mut || {
        let compile = |spec: &str| {
            Rules::compile(&Filter::parse(spec.as_bytes()).unwrap(), &mut NoBlobs, &Unlimited).unwrap()
        };
        let rules = filter.map(compile);
        black_box(world.fresh(depth, rules.as_ref()));
    });
}

fn write(world: &World, depth: Option<u32>) {
    let plan = world.fresh(depth, None);
    counted(&mut || {
        black_box(world.write(&plan));
    });
}

/// A plan that was sent before, whose trailer is known.
fn send_again(world: &World) {
    let plan = world.fresh(None, None);
    let sent = world.write(&plan);
    let trailer = ObjectId::from_bytes_or_panic(&sent[sent.len() - 20..]);
    let mut out = Vec::with_capacity(sent.len());
    counted(&mut || {
        let mut sender = Sender::new(plan.clone(), 256 << 10).ending(trailer);
        loop {
            match sender.step().unwrap() {
                Step::NeedRange { range, .. } => {
                    sender.feed(world.pack.slice(range.start as usize..range.end as usize)).unwrap()
                }
                Step::NeedAnew { .. } => panic!("a clone is copied"),
                Step::Bytes(bytes) => out.extend_from_slice(&bytes),
                Step::Done(_) => break,
            }
        }
    });
    assert!(out == sent, "the same plan, the same pack");
}

fn open_again(world: &World) {
    counted(&mut || {
        black_box(opened(&world.idx, &world.graph));
    });
}

/// No object here is large.
struct NoFiles;

impl Keep for NoFiles {
    fn keep(
        &self,
        _: u64,
        _: &mut dyn FnMut(&mut dyn std::io::Write) -> std::io::Result<()>,
    ) -> std::io::Result<Bytes> {
        panic!("a large object")
    }
}

fn index(world: &World) {
    counted(&mut || {
        let (hash, largest) = (HashKind::Sha1, 1 << 30);
        let mut copy = Vec::with_capacity(world.pack.len());
        let entries = receive(&mut &world.pack[..], &mut copy, hash, largest, &Unlimited).unwrap();
        let job = Resolve {
            pack: &world.pack,
            entries: &entries,
            hash,
            largest,
            keep: &NoFiles,
            keep_from: u64::MAX,
            meter: &Unlimited,
            threads: 1,
        };
        let ids = resolve(&job).unwrap();
        let mut idx = Vec::new();
        let trailer = &world.pack[world.pack.len() - 20..];
        pack::index::write::write(&entries, &ids, trailer, hash, &mut idx).unwrap();
        assert!(idx == world.idx[..], "git's index");
    });
}

fn build_graph(world: &World) {
    counted(&mut || {
        black_box(built(&world.pack, &world.idx, &world.tips));
    });
}
