//! Repositories of every shape that matters, made by `git fast-import` in milliseconds and the same every time.

use std::path::Path;

use crate::git::git;

/// A place in a history under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u32);

/// A fast-import script under construction. Commits are a minute apart.
pub struct History {
    script: Vec<u8>,
    marks: u32,
    clock: u64,
}

/// The id of a commit that exists nowhere, as a repository of this format would write it.
fn foreign(dir: &Path, digit: &str) -> String {
    let format = git(dir).run("rev-parse --show-object-format").line();
    digit.repeat(if format == "sha256" { 64 } else { 40 })
}

/// What a commit does to its first parent's files.
pub enum Change<'a> {
    File(&'a str, &'a str),
    Remove(&'a str),
    Rename(&'a str, &'a str),
    /// A link to a commit of another repository.
    Link(&'a str, &'a str),
}
use Change::{File, Link, Remove, Rename};

pub const START: u64 = 1_700_000_000;

impl History {
    pub fn new() -> Self {
        History { script: Vec::new(), marks: 0, clock: START }
    }

    fn line(&mut self, text: &str) {
        self.script.extend_from_slice(text.as_bytes());
        self.script.push(b'\n');
    }

    fn data(&mut self, bytes: &[u8]) {
        self.line(&format!("data {}", bytes.len()));
        self.script.extend_from_slice(bytes);
        self.script.push(b'\n');
    }

    fn mark(&mut self) -> Mark {
        self.marks += 1;
        Mark(self.marks)
    }

    pub fn blob(&mut self, bytes: &[u8]) -> Mark {
        let mark = self.mark();
        self.line(&format!("blob\nmark :{}", mark.0));
        self.data(bytes);
        mark
    }

    /// A commit, to which `name` points until the next one for that name.
    pub fn commit(&mut self, name: &str, parents: &[Mark], changes: &[Change]) -> Mark {
        let mark = self.mark();
        self.clock += 60;
        let who = format!("T <t@example.com> {} +0000", self.clock);
        // Without this a commit without parents would follow the name's last commit.
        self.line(&format!("reset {name}\n"));
        self.line(&format!("commit {name}\nmark :{}\nauthor {who}\ncommitter {who}", mark.0));
        self.data(format!("commit {}\n", mark.0).as_bytes());
        if let Some((first, others)) = parents.split_first() {
            self.line(&format!("from :{}", first.0));
            for other in others {
                self.line(&format!("merge :{}", other.0));
            }
        }
        for change in changes {
            match change {
                File(path, text) => {
                    self.line(&format!("M 100644 inline {path}"));
                    self.data(text.as_bytes());
                }
                Remove(path) => self.line(&format!("D {path}")),
                Rename(from, to) => self.line(&format!("R {from} {to}")),
                Link(path, oid) => self.line(&format!("M 160000 {oid} {path}")),
            }
        }
        mark
    }

    /// A commit with one file that is named and filled after the commit's number.
    pub fn step(&mut self, name: &str, parents: &[Mark]) -> Mark {
        let n = self.marks + 1;
        let text = format!("{n}\n");
        self.commit(name, parents, &[File(&format!("dir{}/file{n}", n % 3), &text), File("log", &text)])
    }

    pub fn steps(&mut self, name: &str, mut from: Vec<Mark>, count: u32) -> Mark {
        for _ in 0..count {
            from = vec![self.step(name, &from)];
        }
        from[0]
    }

    pub fn point(&mut self, name: &str, at: Mark) {
        self.line(&format!("reset {name}\nfrom :{}\n", at.0));
    }

    /// An annotated tag of whatever `at` is.
    pub fn tag(&mut self, name: &str, at: Mark) {
        self.clock += 60;
        let who = format!("T <t@example.com> {} +0000", self.clock);
        self.line(&format!("tag {name}\nfrom :{}\ntagger {who}", at.0));
        self.data(format!("tag {name}\n").as_bytes());
    }

    #[track_caller]
    pub fn import(self, dir: &Path) {
        // The histories of long runs are large.
        let patient = git(dir).within(std::time::Duration::from_secs(600));
        patient.with_input(&["fast-import", "--quiet", "--force"], &self.script).must();
    }
}

/// Bytes without pattern, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Text of `lines` lines that do not compress to nothing.
pub fn prose(seed: u64, lines: usize) -> String {
    noise(seed, lines * 12).chunks(12).map(|c| hex::encode(c) + "\n").collect()
}

const MAIN: &str = "refs/heads/main";

pub fn linear(dir: &Path) {
    let mut h = History::new();
    h.steps(MAIN, vec![], 12);
    h.import(dir);
}

pub fn merges(dir: &Path) {
    let mut h = History::new();
    let mut main = h.steps(MAIN, vec![], 3);
    for n in 0..5 {
        let topic = h.steps(&format!("refs/heads/topic{n}"), vec![main], 2);
        let other = h.step(MAIN, &[main]);
        main = h.commit(MAIN, &[other, topic], &[File("merged", &format!("{n}\n"))]);
    }
    h.import(dir);
}

pub fn octopus(dir: &Path) {
    let mut h = History::new();
    let base = h.steps(MAIN, vec![], 2);
    let arms: Vec<Mark> = (0..5).map(|n| h.steps(&format!("refs/heads/arm{n}"), vec![base], 2)).collect();
    let main = h.commit(MAIN, &arms, &[File("all", "of them\n")]);
    h.step(MAIN, &[main]);
    h.import(dir);
}

pub fn criss_cross(dir: &Path) {
    let mut h = History::new();
    let base = h.step(MAIN, &[]);
    let (mut a, mut b) = (h.step(MAIN, &[base]), h.step("refs/heads/other", &[base]));
    for _ in 0..4 {
        let (x, y) = (h.step(MAIN, &[a, b]), h.step("refs/heads/other", &[b, a]));
        (a, b) = (x, y);
    }
    h.import(dir);
}

pub fn several_roots(dir: &Path) {
    let mut h = History::new();
    let one = h.steps(MAIN, vec![], 3);
    let two = h.steps("refs/heads/second", vec![], 3);
    h.steps("refs/heads/alone", vec![], 2);
    let main = h.commit(MAIN, &[one, two], &[File("joined", "yes\n")]);
    h.step(MAIN, &[main]);
    h.import(dir);
}

/// Renames of files and whole directories, reverts to old trees, content that goes and comes back.
pub fn renames(dir: &Path) {
    let mut h = History::new();
    let (long, other) = (prose(1, 200), prose(2, 200));
    let mut at = h.commit(MAIN, &[], &[File("a/x", &long), File("a/deep/er/y", &other), File("top", "1\n")]);
    at = h.commit(MAIN, &[at], &[Rename("a", "b")]);
    at = h.commit(MAIN, &[at], &[File("top", "2\n")]);
    at = h.commit(MAIN, &[at], &[Rename("b", "a")]);
    at = h.commit(MAIN, &[at], &[File("top", "1\n")]);
    at = h.commit(MAIN, &[at], &[Remove("a")]);
    let side = h.commit("refs/heads/side", &[at], &[File("a/x", &long)]);
    at = h.commit(MAIN, &[at], &[File("copy/x", &long), File("a/deep/er/y", &other)]);
    at = h.commit(MAIN, &[at, side], &[File("a/x", &long)]);
    h.commit(MAIN, &[at], &[Rename("a/deep", "a/deeper")]);
    h.import(dir);
}

/// Many versions of a few long files, packed: long chains of deltas.
pub fn deltas(dir: &Path) {
    let mut h = History::new();
    let mut text: Vec<String> = prose(3, 300).lines().map(str::to_owned).collect();
    let mut at = vec![];
    for n in 0..60 {
        text[(n * 37) % 300] = format!("changed in {n}");
        let other = format!("{n}\n{}", prose(4, 60));
        let changes = [File("long", &text.join("\n")), File(&format!("sub/dir/{}", n % 7), &other)];
        at = vec![h.commit(MAIN, &at, &changes)];
    }
    h.import(dir);
    git(dir).run("repack -adfq --depth=20");
}

pub fn many_refs(dir: &Path) {
    let mut h = History::new();
    h.steps(MAIN, vec![], 30);
    h.import(dir);
    let commits = git(dir).run("rev-list --reverse main").lines();
    let mut lines = vec![format!("{} refs/heads/main", commits[29])];
    for n in 0..3000 {
        let folder = ["heads/topic", "tags/build", "pull"][n % 3];
        let end = if n % 3 == 2 { "/head" } else { "" };
        lines.push(format!("{} refs/{folder}/{n}{end}", commits[n % 30]));
    }
    lines.sort_by_key(|l| l.split(' ').nth(1).map(str::to_owned));
    git(dir).run("update-ref -d refs/heads/main");
    // The file git itself would write; thousands of loose refs would take seconds.
    let text = format!("# pack-refs with: peeled fully-peeled sorted \n{}\n", lines.join("\n"));
    std::fs::write(dir.join("packed-refs"), text).expect("packed-refs");
}

/// Light, annotated and nested tags; tags of blobs and trees; refs straight to blobs and trees.
pub fn tags(dir: &Path) {
    let mut h = History::new();
    let first = h.steps(MAIN, vec![], 3);
    let loose = h.blob(b"a blob that only a tag holds\n");
    h.tag("annotated", first);
    h.tag("of-blob", loose);
    h.point("refs/tags/light", first);
    let second = h.steps(MAIN, vec![first], 2);
    h.tag("v1", second);
    let lost = h.step("refs/heads/gone", &[second]);
    h.tag("beside", lost);
    h.import(dir);
    let g = git(dir);
    g.run("update-ref -d refs/heads/gone");
    g.args(&["update-ref", "refs/tags/light-blob", &g.run("rev-parse of-blob^{blob}").line()]).must();
    g.run("tag -a -m nested nested annotated");
    g.run("tag -a -m deeper deeper nested");
    g.args(&["tag", "-a", "-m", "of tree", "of-tree", "main^{tree}"]).must();
    g.args(&["update-ref", "refs/tags/light-tree", &g.run("rev-parse main~1^{tree}").line()]).must();
    g.run("update-ref refs/other/tag-object refs/tags/nested");
}

pub fn submodules(dir: &Path) {
    let mut h = History::new();
    let text = "[submodule \"sub\"]\n\tpath = sub\n\turl = https://example.com/sub.git\n";
    let (a, b) = (&foreign(dir, "1"), &foreign(dir, "2"));
    let mut at = h.commit(MAIN, &[], &[File(".gitmodules", text), Link("sub", a), File("f", "1\n")]);
    at = h.commit(MAIN, &[at], &[Link("sub", b), Link("deep/er/sub", a)]);
    h.commit(MAIN, &[at], &[File("f", "2\n")]);
    h.import(dir);
}

pub fn empty(_: &Path) {}

/// HEAD is a commit that no ref names.
pub fn detached(dir: &Path) {
    let mut h = History::new();
    let main = h.steps(MAIN, vec![], 4);
    h.step("refs/heads/gone", &[main]);
    h.import(dir);
    let oid = git(dir).run("rev-parse refs/heads/gone").line();
    git(dir).run("update-ref -d refs/heads/gone");
    std::fs::write(dir.join("HEAD"), oid + "\n").expect("HEAD");
}

/// HEAD names a branch that does not exist, others do.
pub fn unborn(dir: &Path) {
    linear(dir);
    std::fs::write(dir.join("HEAD"), "ref: refs/heads/trunk\n").expect("HEAD");
}

/// Nothing yet, and the first branch will not be called main.
pub fn empty_trunk(dir: &Path) {
    std::fs::write(dir.join("HEAD"), "ref: refs/heads/trunk\n").expect("HEAD");
}

pub fn other_head(dir: &Path) {
    merges(dir);
    std::fs::write(dir.join("HEAD"), "ref: refs/heads/topic2\n").expect("HEAD");
}

pub fn big_blob(dir: &Path) {
    let mut h = History::new();
    let at = h.step(MAIN, &[]);
    let blob = h.blob(&noise(7, 8 << 20));
    h.line(&format!(
        "commit {MAIN}\ncommitter T <t@example.com> {START} +0000\ndata 4\nbig\n\nfrom :{}",
        at.0
    ));
    h.line(&format!("M 100644 :{} big", blob.0));
    h.line("");
    h.import(dir);
}

pub const WEIRD: &[&str] = &[
    "refs/heads/feature/\u{fc}n\u{ef}c\u{f6}d\u{e9}/\u{1F980}",
    "refs/heads/it's\"quoted\"",
    "refs/heads/100%25",
    "refs/heads/a,b;c&d=e+f",
    "refs/heads/-dash",
    "refs/heads/x.y.z",
    "refs/heads/@",
    "refs/heads/{braces}",
    "refs/heads/HEAD",
    "refs/heads/refs/heads/main",
    "refs/heads/<script>",
    "refs/heads/$(id)`id`",
    "refs/heads/a/very/deep/name/that/goes/on/and/on/and/on/and/on/and/on/for/quite/a/while",
    "refs/tags/main",
    "refs/remotes/origin/main",
    "refs/changes/01/1/1",
    "refs/keep-around/x",
    "refs/stash-like",
];

pub fn weird_refs(dir: &Path) {
    let mut h = History::new();
    h.steps(MAIN, vec![], 5);
    h.import(dir);
    let g = git(dir);
    let tips = g.run("rev-list main").lines();
    let mut input = String::new();
    for (n, name) in WEIRD.iter().enumerate() {
        input.push_str(&format!("create {name} {}\n", tips[n % tips.len()]));
    }
    // A name that is not UTF-8.
    let mut input = input.into_bytes();
    input.extend_from_slice(b"create refs/heads/latin-\xe9 ");
    input.extend_from_slice(format!("{}\n", tips[0]).as_bytes());
    g.with_input(&["update-ref", "--stdin"], &input).must();
    g.run("symbolic-ref refs/heads/alias refs/heads/main");
}

/// A hosted repository: pull requests with their merges, notes.
pub fn hosted(dir: &Path) {
    let mut h = History::new();
    let mut main = h.steps(MAIN, vec![], 4);
    for n in 1..=6 {
        let head = h.steps(&format!("refs/pull/{n}/head"), vec![main], 2);
        h.commit(&format!("refs/pull/{n}/merge"), &[main, head], &[File("pr", &format!("{n}\n"))]);
        main = if n % 2 == 0 { h.step(MAIN, &[main, head]) } else { h.step(MAIN, &[main]) };
    }
    h.tag("v1.0", main);
    h.import(dir);
    let g = git(dir);
    for commit in g.run("rev-list -3 main").lines() {
        g.args(&["notes", "add", "-m", "reviewed", &commit]).must();
    }
}

/// A bit of everything in one history, packed with deltas: what the table of client operations runs on.
pub fn town(dir: &Path) {
    let mut h = History::new();
    let (text, more) = (prose(10, 80), prose(11, 200));
    let big = prose(12, 900);
    let mut main = h.commit(
        MAIN,
        &[],
        &[
            File("README", "town\n"),
            File("spec", "/src/\n!/src/lib/\n"),
            File("src/lib/deep/one.c", &text),
            File("src/main.c", &more),
            File("docs/big.txt", &big),
            File(".gitmodules", "[submodule \"s\"]\n\tpath = s\n\turl = https://example.com/s\n"),
            Link("s", &foreign(dir, "1")),
        ],
    );
    for n in 0..8 {
        main = h.commit(
            MAIN,
            &[main],
            &[
                File("src/main.c", &format!("{n}\n{more}")),
                File(&format!("src/lib/deep/f{n}.c"), &format!("{n}\n{text}")),
            ],
        );
    }
    let old = main;
    h.tag("v1", main);
    let mut arms = vec![];
    for n in 0..3 {
        let name = format!("refs/heads/topic/{n}");
        let arm = h.commit(
            &name,
            &[main],
            &[File(&format!("topic{n}/a"), &prose(20 + n, 30)), File("README", &format!("{n}\n"))],
        );
        arms.push(h.step(&name, &[arm]));
    }
    main = h.commit(MAIN, &[&[main], &arms[..]].concat(), &[File("README", "town again\n")]);
    main = h.commit(MAIN, &[main], &[Rename("src/lib", "lib")]);
    main = h.commit(MAIN, &[main], &[Rename("lib", "src/lib")]);
    let island = h.steps("refs/heads/island", vec![], 3);
    main = h.commit(MAIN, &[main, island], &[File("island", "joined\n")]);
    h.tag("v2", main);
    for n in 0..6 {
        main = h.commit(
            MAIN,
            &[main],
            &[File("docs/big.txt", &format!("{big}{n}\n")), File(&format!("tests/{n}"), &prose(40 + n, 10))],
        );
    }
    h.steps("refs/heads/release", vec![old], 4);
    let pull = h.steps("refs/pull/1/head", vec![main], 2);
    h.commit("refs/pull/1/merge", &[main, pull], &[File("pr", "1\n")]);
    let side = h.blob(b"only a tag holds this\n");
    h.point("refs/tags/light", old);
    h.tag("of-blob", side);
    h.import(dir);
    let g = git(dir);
    g.run("tag -a -m nested nested v1");
    g.run("repack -adfq --depth=10");
}

/// A shape and the name under which messages know it.
pub type Shape = (&'static str, fn(&Path));

/// All shapes, for tests that hold for each.
pub const ALL: &[Shape] = &[
    ("linear", linear),
    ("merges", merges),
    ("octopus", octopus),
    ("criss-cross", criss_cross),
    ("several-roots", several_roots),
    ("renames", renames),
    ("deltas", deltas),
    ("many-refs", many_refs),
    ("tags", tags),
    ("submodules", submodules),
    ("empty", empty),
    ("empty-trunk", empty_trunk),
    ("detached", detached),
    ("unborn", unborn),
    ("other-head", other_head),
    ("big-blob", big_blob),
    ("weird-refs", weird_refs),
    ("hosted", hosted),
    ("town", town),
];
