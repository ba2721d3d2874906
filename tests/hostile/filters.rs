//! Filters and patterns made to take all stack, memory or time. Where git answers, the mirror answers the same; where a
//! bound is reached it says so; and the node goes on, within its memory.

use std::collections::BTreeSet;

use crate::git::Git;
use crate::mirror_only;
use crate::oracle::{mirrored, same};
use crate::primary::{Primary, Repo};
use crate::wire::{self, Fetched};
use crate::world::{World, eventually};

/// Private memory of the node, most of it address space that its threads and its cache set aside.
const MEMORY: u64 = 1 << 30;

/// A repository whose objects are named in filters.
struct Objects {
    git: Git,
    entries: Vec<(String, &'static str, String)>,
}

impl Objects {
    fn blob(&self, bytes: &[u8]) -> String {
        self.git.with_input(&["hash-object", "-w", "--stdin"], bytes).must().line()
    }

    /// A tree of one entry, with any name.
    fn tree(&self, mode: &str, name: &[u8], oid: &str) -> String {
        let raw = [mode.as_bytes(), b" ", name, b"\0", &hex::decode(oid).unwrap()].concat();
        self.git
            .with_input(&["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &raw)
            .must()
            .line()
    }

    /// Puts an object into the root tree, so that it is published, and gives its id.
    fn publish(&mut self, name: &str, kind: &'static str, oid: String) -> String {
        self.entries.push((name.into(), kind, oid.clone()));
        oid
    }

    /// Publishes a blob of patterns.
    fn patterns(&mut self, bytes: &[u8]) -> String {
        let name = format!("patterns-{:03}", self.entries.len());
        let oid = self.blob(bytes);
        self.publish(&name, "blob", oid)
    }

    fn commit(self) -> String {
        let line = |(name, kind, oid): &(String, &str, String)| {
            format!("{} {kind} {oid}\t{name}\n", if *kind == "tree" { "040000" } else { "100644" })
        };
        let lines: String = self.entries.iter().map(line).collect();
        let tree = self.git.with_input(&["mktree"], lines.as_bytes()).must().line();
        let commit = self.git.args(&["commit-tree", "-m", "one", &tree]).must().line();
        self.git.run(&format!("update-ref refs/heads/main {commit}"));
        commit
    }
}

fn objects(repo: &Repo) -> Objects {
    repo.configure("[uploadpack]\n\tallowFilter = true\n\tallowAnySHA1InWant = true\n");
    Objects { git: repo.git(), entries: Vec::new() }
}

/// What is right.
enum Right {
    /// What git answers, refusals included.
    AsGit,
    /// These words.
    Refused(&'static str),
    /// Everything but blobs, and these: where git takes too long, or leaves out trees since two filters show them.
    NoBlobsBut(Vec<String>),
}

fn ask(address: &str, repo: &Repo, want: &str, filter: &str) -> Fetched {
    let lines = ["no-progress", &format!("filter {filter}"), &format!("want {want}"), "done"];
    let body = wire::command("fetch", &[], &lines);
    let path = format!("/{}/git-upload-pack", repo.path);
    let reply = wire::post(address, &path, &[wire::V2], &body).expect("an answer");
    assert!(reply.complete, "{}: cut off", &filter[..filter.len().min(80)]);
    let mut fetched = wire::fetched(&reply.body, true);
    if reply.status != 200 {
        fetched.error = format!("{} {}", reply.status, reply.text());
    }
    fetched
}

/// The objects of an answer; none if it is a refusal.
fn sent(world: &World, fetched: &Fetched) -> Option<BTreeSet<String>> {
    if fetched.pack.is_empty() {
        return None;
    }
    let (git, _) = world.client("sent");
    git.run("init -q --bare .");
    git.with_input(&["index-pack", "--stdin"], &fetched.pack).must();
    let all = git.run("cat-file --batch-all-objects --unordered --batch-check=%(objectname)");
    Some(all.lines().into_iter().collect())
}

#[track_caller]
fn same_objects(name: &str, got: Option<BTreeSet<String>>, want: Option<BTreeSet<String>>) {
    if let (Some(got), Some(want)) = (&got, &want) {
        let less: Vec<_> = want.difference(got).take(3).collect();
        let more: Vec<_> = got.difference(want).take(3).collect();
        assert!(less.is_empty() && more.is_empty(), "{name}: without {less:?}, but with {more:?}");
    }
    assert_eq!(got.is_some(), want.is_some(), "{name}: who refuses it?");
}

/// Asks one node everything, each question as if it were the last.
fn examine(set_up: impl FnOnce(&mut Objects) -> Vec<(&'static str, String, Right)>) {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", |_| {});
    let mut made = objects(&repo);
    let questions = set_up(&mut made);
    let want = made.commit();
    let node = world.setup(&primary).memory(MEMORY).start();
    mirrored(&world, &node, &repo);
    eventually("an answer from the bucket", || {
        ask(node.address(), &repo, &want, "tree:0");
        (node.answered_from_bucket() > 0.0).then_some(())
    });
    let no_blobs = repo.git().run("rev-list --objects --no-object-names --filter=blob:none --all").lines();
    for (name, filter, right) in questions {
        let begun = std::time::Instant::now();
        let ours = ask(node.address(), &repo, &want, &filter);
        let took = begun.elapsed();
        let got = sent(&world, &ours);
        match right {
            Right::AsGit => {
                let theirs = ask(primary.address(), &repo, &want, &filter);
                same_objects(name, got, sent(&world, &theirs));
            }
            Right::Refused(words) => {
                let said = format!("{:?} {}", ours.lines, ours.error);
                assert!(got.is_none() && said.contains(words), "{name}: {said}");
            }
            Right::NoBlobsBut(blobs) => {
                let want = no_blobs.iter().cloned().chain(blobs).collect();
                same_objects(name, got, Some(want));
            }
        }
        eprintln!("{name}: {took:?} of {:?}", begun.elapsed());
        assert_eq!(node.get("/livez").status, 200, "{name}");
    }
    assert_eq!(
        node.metric("packmirror_answers_total", &["reason=\"bucket-down\""]),
        0.0,
        "nothing was passed on"
    );
    let most = node.status("VmHWM");
    assert!(most < MEMORY / 2, "{most} bytes at the most");
    same(&world, &primary, &node, &repo.path);
}

#[test]
fn patterns_of_many_wildcards_are_judged_as_by_git() {
    examine(|made| {
        let file = made.blob(b"x\n");
        let long = made.tree("100644", &[b'a'; 200_000], &file);
        made.publish("d", "tree", long);
        let mut deep = made.tree("100644", b"f", &file);
        for _ in 0..400 {
            deep = made.tree("40000", b"a", &deep);
        }
        made.publish("deep", "tree", deep);
        let mut sparse = |patterns: Vec<u8>| format!("sparse:oid={}", made.patterns(&patterns));
        let bracket = |class: &str, times: usize| [b"*", class.repeat(times).as_bytes()].concat();
        use Right::*;
        vec![
            ("stars, no match", sparse([&b"*a".repeat(40_000)[..], b"b"].concat()), AsGit),
            ("stars, a match", sparse(b"*a".repeat(40_000)), AsGit),
            ("stars in a path", sparse([b"/d/", &b"*a".repeat(40_000)[..]].concat()), AsGit),
            ("question marks", sparse(b"?".repeat(200_000)), AsGit),
            ("one question mark too many", sparse(b"?".repeat(200_001)), AsGit),
            ("stars and question marks", sparse(b"*?".repeat(20_000)), AsGit),
            ("a class that never ends", sparse(bracket("[[:", 5_000)), AsGit),
            ("a class in a class", sparse(bracket("[[:alpha:]", 300)), AsGit),
            ("classes", sparse(bracket("[a-c]*", 5_000)), AsGit),
            // git's own function does not end with these.
            (
                "stars over directories",
                sparse([&b"**/".repeat(10_000)[..], b"b"].concat()),
                NoBlobsBut(vec![]),
            ),
            (
                "stars that nearly match",
                sparse([&b"**/a/".repeat(200)[..], b"b"].concat()),
                NoBlobsBut(vec![]),
            ),
        ]
    });
}

#[test]
fn filters_of_many_parts_are_bounded() {
    examine(|made| {
        let patterns = made.patterns(&b"zz\n".repeat(64 * 1024 / 3));
        let known = made.patterns(b"*-001\n!/patterns-000\n");
        let one = format!("sparse:oid={patterns}");
        let all = |part: &str, times: usize| format!("combine:{}", vec![part; times].join("+"));
        let names = |times: usize| {
            let name = |n: usize| format!("sparse:oid=main:{}patterns-000", "x/../".repeat(n));
            format!("combine:{}", (0..times).map(name).collect::<Vec<_>>().join("+"))
        };
        let escaped = |inner: &str| inner.replace('%', "%25").replace('+', "%2b");
        let nested = |depth: usize| {
            (0..depth).fold("tree:3".into(), |inner: String, _| format!("combine:{}", escaped(&inner)))
        };
        let many = made.patterns(&b"a\n".repeat(1_000_001));
        let large = made.patterns(&[b'b'; (16 << 20) + 1]);
        use Right::*;
        let mut questions = vec![
            ("one blob many times", all(&one, 1250), NoBlobsBut(vec![])),
            ("two blobs many times", all(&format!("{one}+sparse:oid={known}"), 600), NoBlobsBut(vec![])),
            (
                "by name and by id",
                format!("combine:sparse:oid=main:patterns-001+sparse:oid={known}"),
                NoBlobsBut(vec![known.clone()]),
            ),
            ("parts without end", all("tree:1", 9000), Refused("more than 2048 parts")),
            ("names that mean nothing", names(100), Refused("unable to access sparse blob")),
            (
                "a long name",
                format!("sparse:oid={}", "a".repeat(60_000)),
                Refused("unable to access sparse blob"),
            ),
            (
                "a long path",
                format!("sparse:oid=main:{}", "a/".repeat(30_000)),
                Refused("unable to access sparse blob"),
            ),
            ("nested", format!("combine:combine:sparse:oid={known}%2btree:3+blob:limit=1m"), AsGit),
            ("nested ten deep", nested(10), AsGit),
            ("nested too deep", nested(20), Refused("invalid filter-spec")),
            (
                "escapes of escapes",
                format!("combine:sparse:oid={}", "%25".repeat(20_000)),
                Refused("unable to access sparse blob"),
            ),
            ("the deepest tree", "tree:18446744073709551615".into(), AsGit),
            ("deeper than numbers go", "tree:99999999999999999999999".into(), AsGit),
            ("the largest blob", "blob:limit=18446744073709551615".into(), AsGit),
            ("larger than numbers go", "blob:limit=18014398509481984k".into(), AsGit),
            ("too many patterns", format!("sparse:oid={many}"), Refused("more than 1000000 sparse patterns")),
            ("too large a pattern", format!("sparse:oid={large}"), Refused("16777216 bytes of them")),
        ];
        let blobs: Vec<String> =
            (0..65).map(|n| format!("sparse:oid={}", made.patterns(format!("/{n}\n").as_bytes()))).collect();
        questions.push(("64 blobs", format!("combine:{}", blobs[..64].join("+")), NoBlobsBut(vec![])));
        questions.push(("65 blobs", format!("combine:{}", blobs.join("+")), Refused("more than 64 blobs")));
        if super::full() {
            let most = made.patterns(&[b'a'; (100 << 20) + 1]);
            questions.push((
                "more than git reads",
                format!("sparse:oid={most}"),
                Refused("unable to parse sparse filter data"),
            ));
        }
        questions
    });
}
