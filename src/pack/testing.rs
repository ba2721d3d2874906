//! Repositories made by real git, for the tests of this room.
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};

use super::layer::graph::{BuildError, BuildInput, Draft, build};
use super::meter::{Halt, Meter};
use super::{Layer, Source, Stack};

/// A bare repository in a directory that goes away with it.
pub struct Repo {
    dir: tempfile::TempDir,
    pub hash: HashKind,
}

/// A pack with its `.idx`.
#[derive(Clone)]
pub struct Packed {
    pub pack: Bytes,
    pub idx: Bytes,
}

/// Packs in memory, one per layer.
pub struct Packs(pub Vec<Packed>);

impl Source for Packs {
    fn read(&self, layer: usize, range: std::ops::Range<u64>) -> std::io::Result<Bytes> {
        Ok(self.0[layer].pack.slice(range.start as usize..range.end as usize))
    }
}

impl Repo {
    pub fn new(hash: HashKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repo = Self { dir, hash };
        repo.git(&["init", "-q", "--bare", &format!("--object-format={hash}"), "."]);
        repo
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn git(&self, args: &[&str]) -> String {
        String::from_utf8(self.git_with(args, b"")).unwrap().trim_end().to_owned()
    }

    /// Runs git with `input` on stdin and gives its stdout; anything but success fails the test.
    pub fn git_with(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("git")
            .args(args)
            .current_dir(self.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs([
                ("GIT_AUTHOR_NAME", "A"),
                ("GIT_AUTHOR_EMAIL", "a@x"),
                ("GIT_AUTHOR_DATE", "1000000000 +0000"),
            ])
            .envs([("GIT_COMMITTER_NAME", "C"), ("GIT_COMMITTER_EMAIL", "c@x")])
            .env("GIT_COMMITTER_DATE", "1000000000 +0000")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input));
            child.wait_with_output().unwrap()
        });
        assert!(output.status.success(), "git {args:?}");
        output.stdout
    }

    /// Stores an object as it is, however odd.
    pub fn store(&self, kind: &str, bytes: &[u8]) -> ObjectId {
        let id = self.git_with(&["hash-object", "-t", kind, "-w", "--literally", "--stdin"], bytes);
        ObjectId::from_hex(id.trim_ascii_end()).unwrap()
    }

    /// Stores a tree of entries in the order given.
    pub fn tree(&self, entries: &[(&str, &str, ObjectId)]) -> ObjectId {
        let mut bytes = Vec::new();
        for (mode, name, oid) in entries {
            bytes.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            bytes.extend_from_slice(oid.as_slice());
        }
        self.store("tree", &bytes)
    }

    pub fn commit(&self, tree: ObjectId, parents: &[ObjectId]) -> ObjectId {
        self.commit_at(tree, parents, "1000000000")
    }

    pub fn commit_at(&self, tree: ObjectId, parents: &[ObjectId], date: &str) -> ObjectId {
        let parents: String = parents.iter().map(|parent| format!("parent {parent}\n")).collect();
        let who = format!("X <x@x> {date} +0000");
        self.store("commit", format!("tree {tree}\n{parents}author {who}\ncommitter {who}\n\nx\n").as_bytes())
    }

    pub fn tag(&self, target: ObjectId, kind: &str) -> ObjectId {
        let text = format!("object {target}\ntype {kind}\ntag t\ntagger X <x@x> 1000000000 +0000\n\nx\n");
        self.store("tag", text.as_bytes())
    }

    /// Packs exactly these objects.
    pub fn pack_objects(&self, objects: &[ObjectId]) -> Packed {
        let list: String = objects.iter().map(|oid| format!("{oid}\n")).collect();
        self.pack(&[], &list)
    }

    /// Packs what `git pack-objects` makes of `args` and `input`.
    pub fn pack(&self, args: &[&str], input: &str) -> Packed {
        let out = tempfile::tempdir().unwrap();
        let base = out.path().join("p");
        let args = [&["pack-objects", "-q"], args, &[base.to_str().unwrap()]].concat();
        let name = self.git_with(&args, input.as_bytes());
        let name = String::from_utf8(name).unwrap();
        Packed::read(&out.path().join(format!("p-{}.pack", name.trim_end())))
    }

    /// Makes a thin pack of `revs` and lets git complete it.
    pub fn completed_thin_pack(&self, revs: &str) -> Packed {
        let args = ["pack-objects", "-q", "--revs", "--thin", "--stdout", "--delta-base-offset"];
        let thin = self.git_with(&args, revs.as_bytes());
        let said = self.git_with(&["index-pack", "--stdin", "--fix-thin"], &thin);
        let said = String::from_utf8(said).unwrap();
        let name = said.trim_end().rsplit('\t').next().unwrap();
        Packed::read(&self.path().join(format!("objects/pack/pack-{name}.pack")))
    }

    /// What `git cat-file --batch` says: id, type, bytes of each.
    pub fn contents(&self, objects: &[ObjectId]) -> Vec<(String, Vec<u8>)> {
        let list: String = objects.iter().map(|oid| format!("{oid}\n")).collect();
        let said = self.git_with(&["cat-file", "--batch"], list.as_bytes());
        let mut rest = said.as_slice();
        let mut contents = Vec::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|&byte| byte == b'\n').unwrap();
            let line = std::str::from_utf8(&rest[..end]).unwrap();
            let mut words = line.split(' ').skip(1);
            let (kind, size) =
                (words.next().unwrap().to_owned(), words.next().unwrap().parse::<usize>().unwrap());
            contents.push((kind, rest[end + 1..][..size].to_vec()));
            rest = &rest[end + 1 + size + 1..];
        }
        contents
    }

    pub fn ids(&self, args: &[&str]) -> Vec<ObjectId> {
        let said = self.git(args);
        said.lines().map(|line| id(line.split(' ').next().unwrap())).collect()
    }
}

pub fn id(hex: &str) -> ObjectId {
    ObjectId::from_hex(hex.as_bytes()).unwrap()
}

impl Packed {
    fn read(path: &Path) -> Self {
        let read = |path: PathBuf| Bytes::from(std::fs::read(path).unwrap());
        Self { pack: read(path.to_owned()), idx: read(path.with_extension("idx")) }
    }

    pub fn draft(
        &self,
        hash: HashKind,
        below: Option<(&Stack, &dyn Source)>,
        tips: &[ObjectId],
    ) -> Result<Draft, BuildError> {
        self.draft_by(2, hash, below, tips)
    }

    pub fn draft_by(
        &self,
        threads: usize,
        hash: HashKind,
        below: Option<(&Stack, &dyn Source)>,
        tips: &[ObjectId],
    ) -> Result<Draft, BuildError> {
        build(BuildInput {
            pack: &self.pack,
            idx: self.idx.clone(),
            below,
            hash,
            tips,
            facts: None,
            cache_bytes: 1 << 20,
            threads,
            meter: &crate::pack::meter::Unlimited,
            progress: &|_, _| {},
            stop: &AtomicBool::new(false),
        })
    }
}

/// Builds the graphs of packs that lie on each other.
pub fn stack(packs: &[Packed], hash: HashKind) -> (Stack, Packs) {
    let source = Packs(packs.to_vec());
    let mut layers: Vec<Arc<Layer>> = Vec::new();
    for packed in packs {
        let below = Stack::open(layers.clone()).unwrap();
        let draft = packed.draft(hash, Some((&below, &source)), &[]).unwrap();
        let layer = Layer::open(packed.idx.clone(), draft.to_bytes().into(), hash).unwrap();
        layers.push(Arc::new(layer));
    }
    (Stack::open(layers).unwrap(), source)
}

/// A small generator of numbers: the same seed gives the same history.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// Makes `commits` commits with roots, merges, octopuses, renames, reverts, equal trees, submodule
/// links and tags; each commit `i` (from 1) is `refs/heads/m<i>`.
pub fn random_history(repo: &Repo, seed: u64, commits: usize) {
    let mut random = Random::new(seed);
    let mut trees: Vec<BTreeMap<String, usize>> = Vec::new();
    let mut stream = Vec::new();
    for mark in 1..=commits {
        let parents = match random.below(20) {
            _ if trees.is_empty() => 0,
            0 => 0,
            1..4 => 2,
            4 => 3,
            _ => 1,
        };
        // Mostly something recent, at times anything.
        let pick = |random: &mut Random| match random.below(4) {
            0 => random.below(trees.len()),
            _ => trees.len() - 1 - random.below(trees.len().min(5)),
        };
        let mut parents: Vec<usize> = (0..parents).map(|_| pick(&mut random)).collect();
        parents.dedup();
        let mut files = BTreeMap::new();
        for &parent in parents.iter().rev() {
            files.extend(trees[parent].clone());
        }
        for _ in 0..random.below(4) {
            let path = |random: &mut Random| match random.below(3) {
                0 => format!("f{}", random.below(4)),
                1 => format!("d{}/f{}", random.below(3), random.below(4)),
                _ => format!("d{}/e{}/f{}", random.below(3), random.below(2), random.below(5)),
            };
            match random.below(10) {
                0 if !trees.is_empty() => files = trees[random.below(trees.len())].clone(),
                1 => drop(files.remove(&path(&mut random))),
                2 => {
                    let (from, to) = (format!("d{}/", random.below(3)), format!("d{}/", random.below(3)));
                    files = files
                        .into_iter()
                        .map(|(path, content)| (path.replace(&from, &to), content))
                        .collect();
                }
                3 => drop(files.insert(format!("d{}/sub", random.below(3)), 1000 + random.below(3))),
                _ => drop(files.insert(path(&mut random), random.below(12))),
            }
        }
        let when = 1_000_000_000 + random.below(100_000);
        let mut line = |text: String| stream.extend_from_slice(text.as_bytes());
        line(format!("commit refs/heads/m{mark}\nmark :{mark}\ncommitter C <c@x> {when} +0000\ndata 1\nx\n"));
        for (index, parent) in parents.iter().enumerate() {
            line(format!("{} :{}\n", if index == 0 { "from" } else { "merge" }, parent + 1));
        }
        line("deleteall\n".into());
        for (path, &content) in &files {
            if content >= 1000 {
                let link = format!("{content:0width$}", width = repo.hash.len_in_hex());
                line(format!("M 160000 {link} {path}\n"));
            } else {
                let text: String =
                    (0..40).map(|n| format!("line {}\n", if n == content { n * 7 } else { n })).collect();
                line(format!("M 100644 inline {path}\ndata {}\n{text}\n", text.len()));
            }
        }
        if random.below(6) == 0 {
            line(format!("tag t{mark}\nfrom :{mark}\ntagger C <c@x> {when} +0000\ndata 1\nt\n"));
        }
        trees.push(files);
    }
    repo.git_with(&["fast-import", "--quiet"], &stream);
}

/// A meter that allows so many steps and so many bytes at a time.
pub struct Allowed {
    steps: AtomicU64,
    bytes: AtomicU64,
}

impl Allowed {
    pub fn new(steps: u64, bytes: u64) -> Self {
        Self { steps: steps.into(), bytes: bytes.into() }
    }

    /// Bytes that are left.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Meter for Allowed {
    fn step(&self, n: u64) -> Result<(), Halt> {
        let left = self.steps.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(n));
        left.map(|_| ()).map_err(|most| Halt::TooLong { most })
    }

    fn hold(&self, bytes: u64) -> Result<(), Halt> {
        let left = self.bytes.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes));
        left.map(|_| ()).map_err(|most| Halt::TooMuch { bytes, most, setting: "none" })
    }

    fn release(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }
}
