//! Real repositories for tests of packs: random histories made by git, their layers as packmirror
//! would hold them, and clients that git checks.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use packmirror::pack::entry::{self, Header};
use packmirror::pack::layer::encode;
use packmirror::pack::layer::graph::{self, BuildInput};
use packmirror::pack::{Gid, Layer, Source, Stack};

#[path = "../seed/mod.rs"]
pub mod seed;

pub use gix_hash::{Kind as HashKind, ObjectId};

/// Runs git in `dir` and gives what it prints; fails the test if git fails.
pub fn git(dir: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    try_git(dir, args, input).unwrap_or_else(|error| panic!("git {args:?} in {dir:?}: {error}"))
}

/// Runs git in `dir`; gives what it prints or, if it fails, what it complains about.
pub fn try_git(dir: &Path, args: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_PROTOCOL", "version=2").env_remove("GIT_DIR");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("git is there");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || _ = stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The ids at the start of each line of `text`.
pub fn ids(text: &[u8]) -> Vec<ObjectId> {
    let words = text.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').next());
    words.filter_map(|word| ObjectId::from_hex(word).ok()).collect()
}

pub fn lines(ids: impl IntoIterator<Item = ObjectId>) -> String {
    ids.into_iter().fold(String::new(), |mut text, id| {
        writeln!(text, "{id}").unwrap();
        text
    })
}

/// Small reproducible random numbers (SplitMix64): tests print the seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }
    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
    /// Up to `n` different members of `list`.
    pub fn some<T: Clone + Ord>(&mut self, list: &[T], n: usize) -> Vec<T> {
        let mut set = BTreeSet::new();
        for _ in 0..n.min(list.len()) {
            set.insert(self.pick(list));
        }
        let mut set: Vec<T> = set.into_iter().collect();
        for i in (1..set.len()).rev() {
            set.swap(i, self.below(i + 1));
        }
        set
    }
}

/// Paths with their modes and numbers of contents.
type Files = BTreeMap<String, (&'static str, usize)>;

const CONTENTS: usize = 64;
const BLOB_MARKS: usize = 100_000;

/// The files of a new commit: its parents' mixed, then edited, moved, or taken from an old commit.
fn changed(dice: &mut Dice, states: &[Files], parents: &[usize]) -> Files {
    let mut files = parents.first().map(|&parent| states[parent].clone()).unwrap_or_default();
    for &parent in parents.iter().skip(1) {
        for (path, file) in &states[parent] {
            if dice.chance(50) || !files.contains_key(path) {
                files.insert(path.clone(), *file);
            }
        }
    }
    if dice.chance(8) {
        files = dice.pick(states);
    }
    let path = |dice: &mut Dice| format!("{}f{}", DIRS[dice.below(DIRS.len())], dice.below(4));
    let edits = if files.is_empty() { 5 } else { dice.below(4) };
    for _ in 0..edits {
        match dice.below(14) {
            0 | 1 => _ = files.remove(&path(dice)),
            2 => {
                // A directory moves, or is copied.
                let (from, to) = (DIRS[1 + dice.below(DIRS.len() - 1)], DIRS[1 + dice.below(DIRS.len() - 1)]);
                let moved: Files = files
                    .iter()
                    .filter_map(|(path, file)| {
                        Some((format!("{to}{}", path.strip_prefix(from)?.rsplit('/').next()?), *file))
                    })
                    .collect();
                if dice.chance(70) {
                    files.retain(|path, _| !path.starts_with(from));
                }
                files.extend(moved);
            }
            3 => _ = files.insert(format!("sub{}", dice.below(2)), ("160000", 0)),
            _ => {
                let mode = if dice.chance(5) { "100755" } else { "100644" };
                files.insert(path(dice), (mode, dice.below(CONTENTS)));
            }
        }
    }
    files
}

/// A random history in a bare repository.
pub struct History {
    pub dir: PathBuf,
    pub hash: HashKind,
    /// Commits, parents before children.
    pub commits: Vec<ObjectId>,
    /// Tag objects; some nested, some on trees and blobs.
    pub tags: Vec<ObjectId>,
    _temp: tempfile::TempDir,
}

const DIRS: &[&str] = &["", "src/", "src/deep/", "src/deep/er/", "docs/", "docs/api/", "x/"];

/// A text that is mostly like its neighbours, so that git makes deltas.
fn content(n: usize) -> String {
    let mut text = String::new();
    let file = n / 16;
    for line in 0..30 + file * 7 {
        let version = if line % 16 < n % 16 { n } else { file };
        writeln!(
            text,
            "line {line} of file {file} in version {version}: {}",
            line * 7919 + version * 104_729
        )
        .unwrap();
    }
    text
}

impl History {
    pub fn random(dice: &mut Dice, hash: HashKind, commits: usize) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("source.git");
        std::fs::create_dir(&dir).unwrap();
        git(&dir, &["init", "-q", "--bare", &format!("--object-format={hash}"), "."], b"");
        for (key, value) in [
            ("allowFilter", "true"),
            ("allowAnySHA1InWant", "true"),
            ("allowRefInWant", "true"),
            ("keepAlive", "0"),
        ] {
            git(&dir, &["config", &format!("uploadpack.{key}"), value], b"");
        }
        let mut stream = String::new();
        for n in 0..CONTENTS {
            let text = content(n);
            writeln!(stream, "blob\nmark :{}\ndata {}\n{text}", BLOB_MARKS + n, text.len()).unwrap();
        }
        let mut now = 1_700_000_000i64;
        let mut states: Vec<Files> = vec![Files::new()];
        for n in 1..=commits {
            now += dice.below(1000) as i64;
            // Some clocks are wrong.
            let date = if dice.chance(10) { now - 5_000_000 + dice.below(9_000_000) as i64 } else { now };
            let mut parents: Vec<usize> = Vec::new();
            let count =
                if n == 1 || dice.chance(4) { 0 } else { [1, 1, 1, 1, 1, 1, 2, 2, 2, 3][dice.below(10)] };
            for _ in 0..count {
                let back = if dice.chance(80) { 1 + dice.below(4) } else { 1 + dice.below(n) };
                let parent = n.saturating_sub(back).max(1);
                if !parents.contains(&parent) && parent < n {
                    parents.push(parent);
                }
            }
            let files = changed(dice, &states, &parents);
            writeln!(
                stream,
                "commit refs/heads/c{n}\nmark :{n}\ncommitter A <a@b> {date} +0000\ndata 4\nc{n:03}"
            )
            .unwrap();
            for (index, parent) in parents.iter().enumerate() {
                writeln!(stream, "{} :{parent}", if index == 0 { "from" } else { "merge" }).unwrap();
            }
            writeln!(stream, "deleteall").unwrap();
            for (path, &(mode, number)) in &files {
                match mode {
                    "160000" => writeln!(
                        stream,
                        "M {mode} {} {path}",
                        &lines([ObjectId::null(hash)]).trim().replace('0', "a")
                    ),
                    _ => writeln!(stream, "M {mode} :{} {path}", BLOB_MARKS + number),
                }
                .unwrap();
            }
            stream.push('\n');
            states.push(files);
        }
        git(&dir, &["fast-import", "--quiet", "--force", "--export-marks=marks"], stream.as_bytes());
        let marks = std::fs::read_to_string(dir.join("marks")).unwrap();
        let mut list: Vec<(usize, ObjectId)> = marks
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split_once(' '))
            .map(|(mark, id)| (mark.parse().unwrap(), ObjectId::from_hex(id.as_bytes()).unwrap()))
            .filter(|&(mark, _)| mark < BLOB_MARKS)
            .collect();
        list.sort();
        let commits: Vec<ObjectId> = list.into_iter().map(|(_, id)| id).collect();
        let mut history = Self { dir, hash, commits, tags: Vec::new(), _temp: temp };
        history.make_tags(dice);
        history
    }

    fn make_tags(&mut self, dice: &mut Dice) {
        let mut targets: Vec<(ObjectId, &str)> = self.commits.iter().map(|&id| (id, "commit")).collect();
        let tree = ids(&git(&self.dir, &["rev-parse", &format!("{}^{{tree}}", self.commits[0])], b""))[0];
        let blob = ids(&git(&self.dir, &["hash-object", "-w", "--stdin"], b"only a tag leads here\n"))[0];
        targets.extend([(tree, "tree"), (blob, "blob")]);
        for n in 0..4 {
            let (target, kind) =
                if n == 3 { targets[dice.below(2) + self.commits.len()] } else { dice.pick(&targets) };
            let text =
                format!("object {target}\ntype {kind}\ntag t{n}\ntagger A <a@b> 1700000000 +0000\n\nt{n}\n");
            let tag = ids(&git(&self.dir, &["mktag"], text.as_bytes()))[0];
            git(&self.dir, &["update-ref", &format!("refs/tags/t{n}"), &tag.to_string()], b"");
            self.tags.push(tag);
            targets.push((tag, "tag"));
        }
    }

    /// `rev-list --objects` over what the arguments on stdin select.
    pub fn objects(&self, spec: &str) -> BTreeSet<ObjectId> {
        ids(&git(&self.dir, &["rev-list", "--objects", "--stdin"], spec.as_bytes())).into_iter().collect()
    }
}

/// Packs in memory.
#[derive(Default)]
pub struct Packs(pub Vec<Bytes>);

impl Source for Packs {
    fn read(&self, layer: usize, range: std::ops::Range<u64>) -> std::io::Result<Bytes> {
        Ok(self.0[layer].slice(range.start as usize..range.end as usize))
    }
}

/// The layers of a repository, made one after the other as syncs would.
pub struct Mirror {
    pub hash: HashKind,
    pub layers: Vec<Arc<Layer>>,
    pub packs: Packs,
    dir: tempfile::TempDir,
    known: Vec<ObjectId>,
}

impl Mirror {
    pub fn new(hash: HashKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "--bare", &format!("--object-format={hash}"), "."], b"");
        Self { hash, layers: Vec::new(), packs: Packs::default(), dir, known: Vec::new() }
    }

    /// Adds a layer with what `tips` reach and earlier tips do not, from the repository at `source`.
    pub fn sync(&mut self, source: &Path, tips: &[ObjectId], ofs_delta: bool) {
        let mut args = vec!["pack-objects", "--revs", "--stdout", "--thin", "-q", "--no-reuse-delta"];
        if ofs_delta {
            args.push("--delta-base-offset");
        }
        let spec = format!("{}--not\n{}", lines(tips.iter().copied()), lines(self.known.iter().copied()));
        let thin = git(source, &args, spec.as_bytes());
        let printed = git(self.dir.path(), &["index-pack", "--stdin", "--fix-thin"], &thin);
        let name = String::from_utf8(printed).unwrap();
        let name = name.trim().rsplit('\t').next().unwrap().to_owned();
        let path = self.dir.path().join(format!("objects/pack/pack-{name}"));
        let pack = Bytes::from(std::fs::read(path.with_extension("pack")).unwrap());
        let idx = Bytes::from(std::fs::read(path.with_extension("idx")).unwrap());
        self.push(pack, idx, tips);
        self.known.extend(tips);
    }

    /// Adds a layer from the bytes of a complete pack and its `.idx`.
    pub fn push(&mut self, pack: Bytes, idx: Bytes, tips: &[ObjectId]) {
        let below = self.stack();
        let graph = graph::build(BuildInput {
            pack: &pack,
            idx: idx.clone(),
            below: (!self.layers.is_empty()).then_some((&below, &self.packs as &dyn Source)),
            hash: self.hash,
            tips,
            facts: None,
            cache_bytes: 64 << 20,
            threads: 2,
            meter: &packmirror::pack::meter::Unlimited,
            progress: &|_, _| {},
            stop: &AtomicBool::new(false),
        });
        let graph = Bytes::from(graph.unwrap().to_bytes());
        self.layers.push(Arc::new(Layer::open(idx, graph, self.hash).unwrap()));
        self.packs.0.push(pack);
    }

    pub fn stack(&self) -> Stack {
        Stack::open(self.layers.clone()).unwrap()
    }
}

/// Finds gids; all ids must be there.
pub fn gids(stack: &Stack, ids: &[ObjectId]) -> Vec<Gid> {
    ids.iter().map(|id| stack.lookup(id).unwrap_or_else(|| panic!("{id} is not in the stack"))).collect()
}

/// A client's repository.
pub struct Client {
    pub dir: PathBuf,
    pub shallow: BTreeSet<ObjectId>,
    _temp: tempfile::TempDir,
}

impl Client {
    pub fn new(hash: HashKind) -> Self {
        let temp = tempfile::tempdir().unwrap();
        git(temp.path(), &["init", "-q", "--bare", &format!("--object-format={hash}"), "."], b"");
        Self { dir: temp.path().to_owned(), shallow: BTreeSet::new(), _temp: temp }
    }

    /// A copy, with objects shared by hard links where possible.
    pub fn fork(&self) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let status = Command::new("cp").arg("-r").arg(self.dir.join(".")).arg(temp.path()).status().unwrap();
        assert!(status.success());
        Self { dir: temp.path().to_owned(), shallow: self.shallow.clone(), _temp: temp }
    }

    /// Takes a pack as `fetch` does; gives the ids in it (bases that completed it included).
    ///
    /// `ofs_delta` is what the client said: then no base in the pack may be named by id.
    pub fn take(&self, pack: &[u8], thin: bool, ofs_delta: bool) -> Result<BTreeSet<ObjectId>, String> {
        self.index(pack, thin, ofs_delta, true)
    }

    /// Takes a pack whose objects need not have all they lead to, as a partial clone does.
    pub fn take_filtered(&self, pack: &[u8], ofs_delta: bool) -> Result<BTreeSet<ObjectId>, String> {
        self.index(pack, true, ofs_delta, false)
    }

    fn index(
        &self,
        pack: &[u8],
        thin: bool,
        ofs_delta: bool,
        strict: bool,
    ) -> Result<BTreeSet<ObjectId>, String> {
        let mut args = vec!["index-pack", "--stdin"];
        if strict {
            args.push("--strict");
        }
        if thin {
            args.push("--fix-thin");
        }
        let printed = try_git(&self.dir, &args, pack)?;
        let name = String::from_utf8(printed).unwrap();
        let name = name.trim().rsplit('\t').next().unwrap().to_owned();
        let path = self.dir.join(format!("objects/pack/pack-{name}"));
        let shown = git(&self.dir, &["show-index"], &std::fs::read(path.with_extension("idx")).unwrap());
        let places: BTreeMap<ObjectId, usize> = String::from_utf8(shown)
            .unwrap()
            .lines()
            .map(|line| {
                let mut words = line.split(' ');
                let offset = words.next().unwrap().parse().unwrap();
                (ObjectId::from_hex(words.next().unwrap().as_bytes()).unwrap(), offset)
            })
            .collect();
        check_order(&std::fs::read(path.with_extension("pack")).unwrap(), pack.len(), ofs_delta, &places);
        Ok(places.into_keys().collect())
    }

    /// Everything in the repository.
    pub fn objects(&self) -> BTreeSet<ObjectId> {
        let args = ["cat-file", "--batch-all-objects", "--batch-check=%(objectname)", "--unordered"];
        ids(&git(&self.dir, &args, b"")).into_iter().collect()
    }

    pub fn set_shallow(&mut self, shallow: &[ObjectId], unshallow: &[ObjectId]) {
        self.shallow.extend(shallow);
        unshallow.iter().for_each(|id| _ = self.shallow.remove(id));
        let file = self.dir.join("shallow");
        if self.shallow.is_empty() {
            let _ = std::fs::remove_file(file);
        } else {
            std::fs::write(file, lines(self.shallow.iter().copied())).unwrap();
        }
    }

    pub fn set_ref(&self, id: ObjectId) {
        git(&self.dir, &["update-ref", &format!("refs/got/{id}"), &id.to_string()], b"");
    }

    /// Checks that everything the refs reach is there and sound.
    pub fn check(&self) -> Result<(), String> {
        try_git(&self.dir, &["rev-list", "--objects", "--all", "--quiet"], b"")?;
        try_git(&self.dir, &["fsck", "--strict", "--no-dangling", "--no-progress"], b"").map(drop)
    }
}

/// Checks that each base stands before what leans on it, as clients that index in one pass need, and that who said
/// `ofs-delta` is named no base of the pack by id.
fn check_order(pack: &[u8], sent: usize, ofs_delta: bool, places: &BTreeMap<ObjectId, usize>) {
    for (id, &offset) in places {
        let hash = id.kind();
        if let Header::RefDelta { base } = entry::decode(&pack[offset..], hash).unwrap().header {
            let base = places[&base];
            let completed = base >= sent - hash.len_in_bytes();
            assert!(base < offset || completed, "{id} at {offset} stands before its base at {base}");
            assert!(completed || !ofs_delta, "{id} at {offset} names its base at {base} by id");
        }
    }
}

/// Packs made entry by entry, as no git makes them.
pub struct Forge {
    hash: HashKind,
    bytes: Vec<u8>,
    offsets: Vec<usize>,
}

impl Forge {
    pub fn new(hash: HashKind, objects: u32) -> Self {
        Self { hash, bytes: entry::pack_header(objects).to_vec(), offsets: Vec::new() }
    }

    pub fn whole(&mut self, kind: gix_object::Kind, object: &[u8]) -> &mut Self {
        self.offsets.push(self.bytes.len());
        self.bytes.extend(encode::whole(kind, object));
        self
    }

    /// A delta by distance on the entry number `base`.
    pub fn ofs_delta(&mut self, base: usize, base_len: usize, object: &[u8]) -> &mut Self {
        let distance = (self.bytes.len() - self.offsets[base]) as u64;
        self.delta(&Header::OfsDelta { distance }, base_len, object)
    }

    /// A delta by id.
    pub fn ref_delta(&mut self, base: ObjectId, base_len: usize, object: &[u8]) -> &mut Self {
        self.delta(&Header::RefDelta { base }, base_len, object)
    }

    /// A delta that only inserts.
    fn delta(&mut self, header: &Header, base_len: usize, object: &[u8]) -> &mut Self {
        let mut delta = Vec::new();
        for mut len in [base_len, object.len()] {
            while len >= 0x80 {
                delta.push(len as u8 | 0x80);
                len >>= 7;
            }
            delta.push(len as u8);
        }
        for part in object.chunks(127) {
            delta.push(part.len() as u8);
            delta.extend_from_slice(part);
        }
        self.offsets.push(self.bytes.len());
        entry::encode(header, delta.len() as u64, &mut self.bytes);
        encode::deflate(&delta, &mut self.bytes);
        self
    }

    /// The pack and its `.idx`, indexed by git.
    pub fn finish(&mut self) -> (Bytes, Bytes) {
        let mut hasher = gix_hash::hasher(self.hash);
        hasher.update(&self.bytes);
        let mut pack = self.bytes.clone();
        pack.extend_from_slice(hasher.try_finalize().unwrap().as_slice());
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "--bare", &format!("--object-format={}", self.hash), "."], b"");
        std::fs::write(dir.path().join("p.pack"), &pack).unwrap();
        git(dir.path(), &["index-pack", "p.pack"], b"");
        (pack.into(), std::fs::read(dir.path().join("p.idx")).unwrap().into())
    }
}

/// What git's own upload-pack answers to a protocol v2 fetch.
pub struct Reference {
    pub shallow: Vec<ObjectId>,
    pub unshallow: Vec<ObjectId>,
    pub pack: Vec<u8>,
    pub error: Option<String>,
}

/// Asks git's upload-pack with the given argument lines; `done` is added.
pub fn upload_pack(dir: &Path, hash: HashKind, arguments: &[String]) -> Reference {
    let mut request = Vec::new();
    let packet =
        |text: &str, out: &mut Vec<u8>| out.extend(format!("{:04x}{text}\n", text.len() + 5).into_bytes());
    packet("command=fetch", &mut request);
    packet(&format!("object-format={hash}"), &mut request);
    request.extend(b"0001");
    arguments.iter().for_each(|line| packet(line, &mut request));
    packet("done", &mut request);
    request.extend(b"0000");
    let mut answer = Reference { shallow: vec![], unshallow: vec![], pack: vec![], error: None };
    let bytes = match try_git(dir, &["upload-pack", "--stateless-rpc", "."], &request) {
        Ok(bytes) => bytes,
        Err(error) => return Reference { error: Some(error), ..answer },
    };
    let mut rest = &bytes[..];
    let mut in_pack = false;
    while rest.len() >= 4 {
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..4]).unwrap(), 16).unwrap();
        if len < 4 {
            rest = &rest[4..];
            continue;
        }
        let (packet, after) = rest[4..].split_at(len - 4);
        rest = after;
        if in_pack {
            if packet[0] == 1 {
                answer.pack.extend(&packet[1..]);
            }
            continue;
        }
        let line = std::str::from_utf8(packet).unwrap().trim_end();
        in_pack = line == "packfile";
        let id = |text: &str| ObjectId::from_hex(text.as_bytes()).unwrap();
        if let Some(text) = line.strip_prefix("shallow ") {
            answer.shallow.push(id(text));
        } else if let Some(text) = line.strip_prefix("unshallow ") {
            answer.unshallow.push(id(text));
        } else if let Some(text) = line.strip_prefix("ERR ") {
            answer.error = Some(text.to_owned());
        }
    }
    answer
}
