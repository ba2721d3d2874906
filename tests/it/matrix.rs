//! The differential table: client operations × protocol versions × shapes of repositories. Each case is done against
//! the primary and against the mirror, and everything the client ends up with must be the same: exit status, error
//! text, refs, shallow file, objects present and missing.
//!
//! A case says where its answers must come from: `Bucket` for all that a mirrored repository has; `Any` where the primary
//! has a say, as in objects that no ref reaches. The requests that a decent client does not send, but others do, are the table in `wires`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::git::{Git, Output, git};
use crate::node::Node;
use crate::oracle::{State, from_bucket, mirrored};
use crate::primary::{Primary, Repo};
use crate::shapes;
use crate::wire;
use crate::world::{World, passthrough};

/// Where the answers of a case must come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// From the bucket, all of them.
    Bucket,
    /// From the bucket in v2; in v0 and v1 a want that is no commit is the primary's to judge.
    BucketV2,
    /// From either.
    Any,
    /// No objects are asked for.
    Nowhere,
}
use Source::{Any, Bucket, BucketV2, Nowhere};

/// A client operation: git command lines, one after the other in a new directory. In them stand `{url}` for the
/// repository, `{past}` for a local repository with its older state, and ids by name, see [`Town::names`].
type Case = (Source, &'static [&'static str]);

const CLONES: &[Case] = &[
    (Bucket, &["clone -q {url} ."]),
    (Bucket, &["clone -q --bare {url} ."]),
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q --single-branch {url} ."]),
    (Bucket, &["clone -q --single-branch -b release {url} ."]),
    (Bucket, &["clone -q --no-tags {url} ."]),
    (Bucket, &["clone -q -b v1 {url} ."]),
    (Bucket, &["clone -q -b nested --single-branch {url} ."]),
    (Nowhere, &["clone -q -b no-such-branch {url} ."]),
    (Bucket, &["init -q", "fetch -q {url} main"]),
    (Bucket, &["init -q", "fetch -q {url} +refs/*:refs/remotes/all/*"]),
    (Bucket, &["init -q", "fetch -q --tags {url} refs/heads/release"]),
    (Bucket, &["init -q", "fetch -q {url} refs/pull/1/head:refs/pull/1/head refs/tags/of-blob"]),
    (Nowhere, &["init -q", "fetch -q {url} refs/heads/nope"]),
];

const INCREMENTS: &[Case] = &[
    (Bucket, &["clone -q {past} .", "remote set-url origin {url}", "fetch -q origin"]),
    (Bucket, &["clone -q --mirror {past} .", "remote set-url origin {url}", "fetch -q --prune origin"]),
    (Bucket, &["clone -q {past} .", "fetch -q --no-tags {url} release:refs/heads/r"]),
    (
        Bucket,
        &["clone -q {past} .", "-c fetch.negotiationAlgorithm=skipping fetch -q {url} main:refs/heads/m"],
    ),
    (Bucket, &["clone -q {past} .", "-c fetch.negotiationAlgorithm=noop fetch -q {url} main:refs/heads/m"]),
    (Bucket, &["clone -q {past} .", "-c fetch.unpackLimit=1 fetch -q {url} +refs/heads/*:refs/remotes/o/*"]),
    (Bucket, &["clone -q {past} .", "fetch -q --negotiation-tip=HEAD~2 {url} main:refs/heads/m"]),
    (Bucket, &["clone -q {url} .", "fetch -q {url} refs/pull/1/merge:refs/heads/pr"]),
    (Bucket, &["clone -q {url} .", "fetch -q --refetch origin"]),
    (Bucket, &["clone -q --single-branch -b release {url} .", "fetch -q origin main:refs/heads/m"]),
];

const SHALLOW: &[Case] = &[
    (Bucket, &["clone -q --depth=1 {url} ."]),
    (Bucket, &["clone -q --depth=3 {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} ."]),
    (Bucket, &["clone -q --depth=2 --mirror --no-single-branch {url} ."]),
    (Bucket, &["clone -q --depth=1 -b v2 {url} ."]),
    (Bucket, &["clone -q --depth=1 -b nested {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-tags -b release {url} ."]),
    (Bucket, &["clone -q --depth=1000 {url} ."]),
    (Bucket, &["clone -q --shallow-since={date} {url} ."]),
    (Bucket, &["clone -q --shallow-since={date} --no-single-branch {url} ."]),
    (Bucket, &["clone -q --shallow-since=4000000000 {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=v1 {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=release {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=v1 --shallow-exclude=topic/1 --no-single-branch {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=no-such-ref {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=main {url} ."]),
    (Bucket, &["init -q", "fetch -q --depth=1 {url} {mid}"]),
    (Bucket, &["init -q", "fetch -q --depth=2 {url} {old}:refs/heads/o {tip}:refs/heads/t"]),
    (Bucket, &["init -q", "fetch -q --depth=1 {url} +refs/*:refs/remotes/all/*"]),
];

const DEEPEN: &[Case] = &[
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --depth=3"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --deepen=2"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q --deepen=1", "fetch -q --deepen=3"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --depth=3 {url} .", "fetch -q --depth=1"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --shallow-since={date}"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --shallow-exclude=v1"]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} .", "fetch -q --deepen=1"]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} .", "fetch -q --unshallow --tags"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q origin release"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q --tags origin"]),
    (
        Bucket,
        &["clone -q --depth=1 {url} .", "fetch -q --depth=1 origin +refs/heads/*:refs/remotes/origin/*"],
    ),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q"]),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q --depth=1"]),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q --deepen=1"]),
    (Bucket, &["clone -q {past} .", "remote set-url origin {url}", "fetch -q --depth=2"]),
    (Bucket, &["clone -q --shallow-since={date} {url} .", "fetch -q --unshallow"]),
];

const FILTERS: &[Case] = &[
    (Bucket, &["clone -q --no-checkout --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --bare --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --mirror --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=blob:limit=0 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=blob:limit=100 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=blob:limit=1k {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:0 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:1 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:2 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:4 {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=commit {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=tree {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=blob {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=tag {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=combine:blob:none+tree:2 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=combine:blob:limit=500+tree:3 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=sparse:oid=main:spec {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=sparse:oid=main:nope {url} ."]),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=tree:0 --no-tags {url} ."]),
    (Bucket, &["clone -q --no-checkout --single-branch -b release --filter=blob:limit=200 {url} ."]),
    (
        Bucket,
        &[
            "clone -q --no-checkout --filter=blob:none {past} .",
            "remote set-url origin {url}",
            "fetch -q origin",
        ],
    ),
    (
        Bucket,
        &[
            "clone -q --no-checkout --filter=tree:0 {past} .",
            "remote set-url origin {url}",
            "fetch -q origin",
        ],
    ),
    (Bucket, &["clone -q --no-checkout --filter=blob:none {url} .", "fetch -q --refetch origin"]),
    (
        Bucket,
        &["clone -q --no-checkout --filter=tree:0 {url} .", "fetch -q --refetch --filter=blob:none origin"],
    ),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=blob:none {url} .", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=blob:none {url} .", "fetch -q --deepen=2"]),
];

const LAZY: &[Case] = &[
    (BucketV2, &["clone -q --filter=blob:none {url} ."]),
    (BucketV2, &["clone -q --filter=blob:none {url} .", "checkout -q release", "checkout -q v1"]),
    (BucketV2, &["clone -q --filter=tree:0 {url} ."]),
    (BucketV2, &["clone -q --depth=1 --filter=tree:0 {url} ."]),
    (BucketV2, &["clone -q --filter=blob:limit=300 {url} .", "checkout -q topic/1"]),
    (
        BucketV2,
        &[
            "clone -q --bare --filter=blob:none {url} .",
            "cat-file blob {blob}",
            "cat-file blob main~5:src/main.c",
        ],
    ),
    (BucketV2, &["clone -q --bare --filter=tree:0 {url} .", "ls-tree -r main", "ls-tree -r release"]),
    (BucketV2, &["clone -q --bare --filter=tree:0 {url} .", "log --format=%H --name-only -5 main"]),
    (BucketV2, &["clone -q --bare --filter=blob:none {url} .", "diff --stat main~5 main"]),
    (
        BucketV2,
        &[
            "clone -q --sparse --filter=blob:none {url} .",
            "sparse-checkout set src docs",
            "sparse-checkout disable",
        ],
    ),
    (
        BucketV2,
        &[
            "clone -q --no-checkout --filter=blob:none {url} .",
            "sparse-checkout set --no-cone /tests/",
            "checkout -q main",
        ],
    ),
    (
        BucketV2,
        &["clone -q --bare --filter=object:type=commit {url} .", "cat-file -t {tree}", "cat-file -t {blob}"],
    ),
    (Any, &["clone -q --bare --filter=blob:none {url} .", "cat-file -t {nowhere}"]),
    (
        BucketV2,
        &["clone -q --bare --filter=tree:0 --depth=1 {url} .", "archive --format=tar -o out.tar HEAD"],
    ),
];

const BY_ID: &[Case] = &[
    (Bucket, &["init -q", "fetch -q {url} {tip}"]),
    (Bucket, &["init -q", "fetch -q {url} {mid}"]),
    (Bucket, &["init -q", "fetch -q {url} {old}:refs/heads/x {mid}:refs/heads/y"]),
    (Bucket, &["init -q", "fetch -q {url} {tag}:refs/tags/t"]),
    (BucketV2, &["init -q", "fetch -q {url} {tree}"]),
    (BucketV2, &["init -q", "fetch -q {url} {blob}"]),
    (Any, &["init -q", "fetch -q {url} {unreachable}"]),
    (Any, &["init -q", "fetch -q {url} {nowhere}"]),
    (Any, &["init -q", "fetch -q {url} {tip} {nowhere}"]),
    (Any, &["init -q", "fetch -q --depth=1 {url} {nowhere}"]),
    (Any, &["init -q", "fetch -q --depth=1 {url} {unreachable}"]),
    (Any, &["clone -q {past} .", "fetch -q {url} {unreachable}"]),
    (Bucket, &["clone -q {past} .", "fetch -q {url} {tip}"]),
    (Bucket, &["init -q", "fetch -q --filter=blob:none {url} {mid}"]),
];

const LISTS: &[Case] = &[
    (Nowhere, &["ls-remote {url}"]),
    (Nowhere, &["ls-remote --heads {url}"]),
    (Nowhere, &["ls-remote --tags {url}"]),
    (Nowhere, &["ls-remote -h -t {url}"]),
    (Nowhere, &["ls-remote --refs {url}"]),
    (Nowhere, &["ls-remote --symref {url}"]),
    (Nowhere, &["ls-remote --symref {url} HEAD"]),
    (Nowhere, &["ls-remote {url} HEAD"]),
    (Nowhere, &["ls-remote {url} main v1"]),
    (Nowhere, &["ls-remote {url} refs/pull/*"]),
    (Nowhere, &["ls-remote --exit-code {url} no-such-ref"]),
    (Nowhere, &["ls-remote --sort=-refname {url}"]),
];

/// The lines that CI tools send, as their sources have them.
const CI: &[Case] = &[
    // actions/checkout
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --progress --depth=1 origin +{tip}:refs/remotes/origin/main",
            "checkout --progress --force -B main refs/remotes/origin/main",
        ],
    ),
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --depth=1 origin +{merge}:refs/remotes/pull/1/merge",
            "checkout -q --force refs/remotes/pull/1/merge",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --depth=1 origin +{tip}:refs/remotes/origin/main",
            "-c protocol.version=2 fetch --prune --no-recurse-submodules --unshallow origin +refs/heads/*:refs/remotes/origin/* +refs/tags/*:refs/tags/*",
        ],
    ),
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules origin +refs/heads/*:refs/remotes/origin/* +refs/tags/*:refs/tags/*",
            "checkout -q --force -B main refs/remotes/origin/main",
        ],
    ),
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "sparse-checkout set src",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --filter=blob:none --depth=1 origin +{tip}:refs/remotes/origin/main",
            "checkout -q --force -B main refs/remotes/origin/main",
        ],
    ),
    // GitLab Runner: a job, then one of the next commit in the same directory
    (
        Bucket,
        &[
            "init -q",
            "remote add origin {url}",
            "-c http.userAgent=gitlab-runner fetch origin --no-recurse-submodules +{mid}:refs/pipelines/1 +refs/heads/main:refs/remotes/origin/main --depth 20 --prune --quiet",
            "checkout -f -q {mid}",
            "-c http.userAgent=gitlab-runner fetch origin --no-recurse-submodules +{tip}:refs/pipelines/2 +refs/heads/main:refs/remotes/origin/main --depth 20 --prune --quiet",
            "checkout -f -q {tip}",
            "-c http.userAgent=gitlab-runner fetch origin --no-recurse-submodules +{tip}:refs/pipelines/3 --unshallow --quiet",
        ],
    ),
    (
        Bucket,
        &[
            "init -q",
            "fetch --quiet --no-recurse-submodules --depth 2 {url} +refs/pull/1/head:refs/pipelines/1 --prune",
            "fetch --quiet --no-recurse-submodules --depth 2 {url} +{tip}:refs/pipelines/2 --prune",
        ],
    ),
    // Jenkins
    (
        Bucket,
        &["init -q", "fetch --tags --force --progress --prune -- {url} +refs/heads/*:refs/remotes/origin/*"],
    ),
    (
        Bucket,
        &[
            "init -q",
            "fetch --no-tags --force --progress --depth=1 -- {url} +refs/heads/*:refs/remotes/origin/*",
            "fetch --tags --force --progress --prune -- {url} +refs/heads/*:refs/remotes/origin/*",
        ],
    ),
    (Nowhere, &["ls-remote -h -t -- {url}", "ls-remote --symref -- {url}"]),
    // Buildkite
    (Bucket, &["clone -v -- {url} .", "fetch -v --prune -- origin {mid}", "checkout -q -f {mid}"]),
    (Bucket, &["clone -v --depth=1 -- {url} .", "fetch -v --prune --depth=1 -- origin refs/pull/1/head"]),
    (Bucket, &["clone -v --filter=blob:none --no-checkout -- {url} .", "fetch -v --prune -- origin {tip}"]),
    (Any, &["clone --mirror -v -- {url} .", "fetch -v --prune -- origin {nowhere}"]),
    // goproxy, cargo, npm and friends
    (Bucket, &["init -q --bare", "ls-remote -q {url}", "fetch -f --depth=1 {url} refs/tags/v1:refs/tags/v1"]),
    (
        Bucket,
        &["init -q --bare", "fetch --no-tags --force --update-head-ok {url} +HEAD:refs/remotes/origin/HEAD"],
    ),
    (Bucket, &["clone --depth=1 -q -b v2 {url} .", "rev-parse HEAD"]),
];

/// A mirrored repository with a past, and the names that cases use.
struct Town {
    world: World,
    primary: Primary,
    repo: Repo,
    node: Node,
    past: PathBuf,
    names: BTreeMap<&'static str, String>,
}

impl Town {
    fn new(shape: impl FnOnce(&Path), format: &str) -> Town {
        let (world, primary) = (World::new(), Primary::start());
        let repo = primary.repo_with("team/app.git", format, shape);
        repo.configure("[uploadpack]\n\tallowTipSHA1InWant = true\n\tallowReachableSHA1InWant = true\n\tallowRefInWant = true\n[transfer]\n\tadvertiseObjectInfo = true\n");
        let g = repo.git();
        let or_tip = |name: &str| {
            let found = g.args(&["rev-parse", "-q", "--verify", name]);
            if found.ok() { found.line() } else { g.try_run("rev-parse -q --verify HEAD").line() }
        };
        let tip = or_tip("refs/heads/main");
        let dates = g.try_run("log --format=%ct refs/heads/main").lines();
        let mut names = BTreeMap::from([
            ("{mid}", or_tip("refs/heads/main~4")),
            ("{old}", or_tip("refs/tags/v1^{commit}")),
            ("{tag}", or_tip("refs/tags/v1")),
            // Shown beside its tag, and what no commit has.
            ("{tagged}", or_tip("refs/tags/of-blob^{blob}")),
            ("{tree}", or_tip("refs/heads/main~2^{tree}")),
            ("{blob}", or_tip("refs/heads/main:README")),
            ("{merge}", or_tip("refs/pull/1/merge")),
            (
                "{nowhere}",
                "1234567890".repeat(if format == "sha256" { 6 } else { 4 })
                    + if format == "sha256" { "1234" } else { "" },
            ),
            ("{date}", dates.get(dates.len() / 2).cloned().unwrap_or("1700000500".into())),
        ]);
        // A commit that exists at the primary and hangs on nothing.
        let commit = ["commit-tree", "-m", "unreachable", "-p", &tip, &or_tip("refs/heads/main^{tree}")];
        names.insert("{unreachable}", g.args(&commit).line());
        names.insert("{tip}", tip);
        // The same repository some pushes ago.
        let past = world.unused("past.git");
        git(world.path()).run(&format!("clone -q --mirror {} {}", repo.dir.display(), past.display()));
        let p = git(&past);
        p.run("config uploadpack.allowFilter true");
        for name in p.run("for-each-ref --format=%(refname)").lines() {
            match name.as_str() {
                "refs/heads/main" => drop(p.try_run("update-ref refs/heads/main refs/heads/main~4")),
                "refs/heads/release" => drop(p.try_run("update-ref refs/heads/release refs/heads/release~2")),
                "refs/heads/topic/0" | "refs/tags/v1" => {}
                other => drop(p.args(&["update-ref", "-d", other])),
            }
        }
        let node = world.node(&primary);
        mirrored(&world, &node, &repo);
        Town { world, primary, repo, node, past, names }
    }

    fn fill(&self, line: &str, url: &str) -> String {
        let mut line =
            line.replace("{url}", url).replace("{past}", &format!("file://{}", self.past.display()));
        for (name, value) in &self.names {
            line = line.replace(name, value);
        }
        line
    }

    /// Runs the steps of a case in a new directory; gives what each said and what is there in the end.
    fn outcome(&self, steps: &[&str], url: &str, with: &impl Fn(Git) -> Git) -> (Vec<String>, Option<State>) {
        let (g, dir) = self.world.client("case");
        let g = with(g);
        let said = steps.iter().map(|step| said(&g.try_run(&self.fill(step, url)), url)).collect();
        // Looked at before anything else: looking itself must not fetch lazily.
        let state = dir_is_repository(&dir).then(|| State::of(&dir));
        let _ = std::fs::remove_dir_all(&dir);
        (said, state)
    }

    /// Runs one case against both; gives what is wrong with it.
    fn check(&self, case: &Case, version: u8) -> Result<(), String> {
        let (from, steps) = *case;
        let with = |g: Git| g.protocol(version);
        let ours = self.outcome(steps, &self.primary.repo_url(&self.repo.path), &with);
        let before = (self.node.answered_from_bucket(), self.node.passed());
        let theirs = self.outcome(steps, &self.node.repo(&self.repo.path), &with);
        let after = (self.node.answered_from_bucket(), self.node.passed());
        let mut wrong = String::new();
        for ((step, a), b) in steps.iter().zip(&ours.0).zip(&theirs.0) {
            if a != b && !told_better(a, b) {
                wrong.push_str(&format!("  git {step}\n    primary: {a}\n    mirror:  {b}\n"));
            }
        }
        // What came beside what was needed is a matter of economy in increments, of exactness in first fetches.
        let exact = !steps.iter().any(|s| s.contains("{past}")) && steps.len() <= 2;
        // git's combined filters forget a tree that one of them saw too deep and meets again higher up; we do not.
        let combined = steps.iter().any(|s| s.contains("=combine:"));
        match (&ours.1, &theirs.1) {
            (Some(a), Some(b)) if combined && a.stored.is_subset(&b.stored) && a.refs == b.refs => {}
            (Some(a), Some(b)) => wrong.push_str(&a.differences(b, exact)),
            (None, None) => {}
            _ => wrong.push_str("  only one of them left a repository\n"),
        }
        let came = (after.0 - before.0, after.1 - before.1);
        // Where the client is told that it cannot have what it asked for there may be nothing to count.
        let fine = theirs.0.iter().all(|said| said.starts_with("Some(0)"));
        let some = fine && !self.names["{tip}"].is_empty();
        // What a partial clone fetches behind the user's back need not be commits.
        let lazy = steps.len() > 1 && steps.iter().any(|s| s.contains("--filter"));
        let bucket = (from == Bucket && !(lazy && version < 2)) || (from == BucketV2 && version == 2);
        if !passthrough() && bucket && (came.1 > 0.0 || (some && came.0 == 0.0)) {
            wrong.push_str(&format!("  {} answers from the bucket, {} passed through\n", came.0, came.1));
        }
        if came.1 > 0.0 {
            eprintln!("passed through: v{version} {}", steps.join(" && "));
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("v{version}: {}\n{wrong}", steps.join(" && "))) }
    }

    #[track_caller]
    fn all(&self, what: &str, cases: &[Case], version: u8) {
        let wrong: Vec<String> = cases.iter().filter_map(|c| self.check(c, version).err()).collect();
        assert!(
            wrong.is_empty(),
            "{what}: {} of {} cases differ\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }
}

fn dir_is_repository(dir: &Path) -> bool {
    dir.join(".git").exists() || dir.join("HEAD").exists()
}

/// Exit status, output and errors of a command, without what may differ between two runs of the same.
fn said(out: &Output, url: &str) -> String {
    let noise = ["Cloning into", "From ", "POST git-upload-pack", "remote: Enumerating", "remote: Counting"];
    let more =
        ["remote: Compressing", "remote: Total", "Receiving objects", "Resolving deltas", "Updating files"];
    let rest: Vec<String> = out
        .stderr
        .split(['\n', '\r'])
        .map(|l| l.replace(url, "URL").trim_end().to_owned())
        .filter(|l| !l.is_empty() && !noise.iter().chain(&more).any(|n| l.starts_with(n)))
        .collect();
    let text = out.text().replace(url, "URL");
    format!("{:?} {:?} {}", out.status.code(), rest, text)
}

/// Where upload-pack of git dies the client sees a connection that ends; the mirror has an `ERR` packet for it, as newer
/// versions of git have.
fn told_better(primary: &str, mirror: &str) -> bool {
    let died = ["hung up unexpectedly", "expected 'packfile'", "early EOF", "bad pack header"];
    primary.starts_with("Some(128)")
        && mirror.starts_with("Some(128)")
        && mirror.contains("remote error: ")
        && died.iter().any(|d| primary.contains(d))
}

macro_rules! matrix {
    ($($test:ident: $cases:ident $version:literal;)*) => {
        $(#[test]
        fn $test() {
            Town::new(shapes::town, "sha1").all(stringify!($cases), $cases, $version);
        })*
    };
}

matrix! {
    clones_v2: CLONES 2;
    clones_v1: CLONES 1;
    clones_v0: CLONES 0;
    increments_v2: INCREMENTS 2;
    increments_v0: INCREMENTS 0;
    shallow_v2: SHALLOW 2;
    shallow_v0: SHALLOW 0;
    deepen_v2: DEEPEN 2;
    deepen_v0: DEEPEN 0;
    filters_v2: FILTERS 2;
    filters_v0: FILTERS 0;
    lazy_v2: LAZY 2;
    lazy_v0: LAZY 0;
    by_id_v2: BY_ID 2;
    by_id_v0: BY_ID 0;
    lists_v2: LISTS 2;
    lists_v1: LISTS 1;
    lists_v0: LISTS 0;
    ci_v2: CI 2;
    ci_v0: CI 0;
}

/// A selection of each group, for the other shapes.
const SAMPLE: &[Case] = &[
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q --single-branch {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} ."]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q --deepen=2", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --shallow-since={date} {url} ."]),
    (Bucket, &["clone -q --mirror --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:2 {url} ."]),
    (Bucket, &["clone -q --bare --filter=blob:limit=60 {url} ."]),
    (BucketV2, &["clone -q --filter=blob:none {url} ."]),
    (Bucket, &["init -q", "fetch -q --depth=1 {url} {mid}"]),
    (Nowhere, &["ls-remote --symref {url}"]),
];

/// What can be asked where HEAD points to no commit, or there is none at all.
const BARE: &[Case] = &[
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} ."]),
    (BucketV2, &["clone -q --filter=blob:none {url} ."]),
    (Nowhere, &["ls-remote --symref {url}"]),
    (Bucket, &["init -q", "fetch -q {url} +refs/*:refs/remotes/all/*"]),
];

/// Where each case takes its time.
const FEW: &[Case] = &[
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q --depth=1 {url} ."]),
    (Nowhere, &["ls-remote --symref {url}"]),
];

macro_rules! other_shapes {
    ($($test:ident: $cases:ident $shape:ident $format:literal;)*) => {
        $(#[test]
        fn $test() {
            let town = Town::new(shapes::$shape, $format);
            for version in [2, 0] {
                town.all(stringify!($shape), $cases, version);
            }
        })*
    };
}

other_shapes! {
    sample_merges: SAMPLE merges "sha1";
    sample_criss_cross: SAMPLE criss_cross "sha1";
    sample_octopus: SAMPLE octopus "sha1";
    sample_several_roots: SAMPLE several_roots "sha1";
    sample_renames: SAMPLE renames "sha1";
    sample_deltas: SAMPLE deltas "sha1";
    sample_tags: SAMPLE tags "sha1";
    sample_submodules: SAMPLE submodules "sha1";
    sample_hosted: SAMPLE hosted "sha1";
    sample_other_head: SAMPLE other_head "sha1";
    sample_sha256: SAMPLE town "sha256";
    bare_detached: BARE detached "sha1";
    bare_unborn: BARE unborn "sha1";
    bare_empty: BARE empty "sha1";
    bare_empty_trunk: BARE empty_trunk "sha1";
    bare_empty_sha256: BARE empty "sha256";
    bare_weird_refs: BARE weird_refs "sha1";
    few_many_refs: FEW many_refs "sha1";
}

/// All groups once on a SHA-256 repository.
#[test]
fn sha256_in_full() {
    let town = Town::new(shapes::town, "sha256");
    for (what, cases) in
        [("clones", CLONES), ("increments", INCREMENTS), ("shallow", SHALLOW), ("filters", FILTERS)]
    {
        town.all(what, cases, 2);
    }
}

/// A primary that offers no filters: the mirror offers none either, and git says so.
#[test]
fn filters_that_the_primary_does_not_offer() {
    let town = Town::new(shapes::town, "sha1");
    town.repo.git().run("config uploadpack.allowFilter false");
    town.repo.commit("main", "new", "1");
    mirrored(&town.world, &town.node, &town.repo);
    for version in [2, 0] {
        town.all("no filters", &FILTERS[..2], version);
    }
}

/// Without `allow*SHA1InWant` v0 refuses ids that are not advertised, by the client's own judgement.
#[test]
fn ids_that_the_primary_does_not_allow() {
    let town = Town::new(shapes::town, "sha1");
    for key in ["allowTipSHA1InWant", "allowReachableSHA1InWant"] {
        town.repo.git().run(&format!("config uploadpack.{key} false"));
    }
    for version in [2, 0] {
        town.all("by id", &[(Any, BY_ID[1].1), (Any, BY_ID[6].1), (Any, BY_ID[7].1)], version);
    }
}

mod wires {
    //! Requests as other clients send them, byte by byte: answers must be the same line by line, and packs hold the
    //! same objects.
    use super::*;

    /// The objects of a pack, in a repository that has those of `base`; or what is wrong with it.
    fn contents(town: &Town, pack: &[u8], thin: bool) -> Result<Vec<String>, String> {
        let (g, dir) = town.world.client("pack");
        let format = town.repo.git().run("rev-parse --show-object-format").line();
        g.run(&format!("init -q --bare --object-format={format} ."));
        if thin {
            std::fs::write(
                dir.join("objects/info/alternates"),
                town.past.join("objects").display().to_string(),
            )
            .unwrap();
        }
        let mut args = vec!["index-pack", "--stdin"];
        if thin {
            args.push("--fix-thin");
        }
        let done = g.with_input(&args, pack);
        if !done.ok() {
            return Err(done.stderr);
        }
        let idx = std::fs::read_dir(dir.join("objects/pack")).unwrap().flatten().map(|e| e.path());
        let idx = idx.into_iter().find(|p| p.extension().is_some_and(|e| e == "idx")).ok_or("no idx")?;
        let listed = g.with_input(&["show-index"], &std::fs::read(idx).unwrap());
        let mut ids: Vec<String> =
            listed.lines().iter().filter_map(|l| l.split(' ').nth(1).map(str::to_owned)).collect();
        ids.sort();
        Ok(ids)
    }

    /// What differs between the answers to one request. `surplus`: the mirror may send a little more.
    fn differ(town: &Town, headers: &[(&str, &str)], body: &[u8], banded: bool, thin: bool) -> String {
        let path = format!("/{}/git-upload-pack", town.repo.path);
        let ask = |address: &str| wire::post(address, &path, headers, body).expect("an answer");
        let (ours, theirs) = (ask(town.primary.address()), ask(town.node.address()));
        let mut out = String::new();
        if ours.status != theirs.status {
            out.push_str(&format!("  status {} / {} {}\n", ours.status, theirs.status, theirs.text()));
        }
        if ours.header("content-type") != theirs.header("content-type") {
            let kinds = (ours.header("content-type"), theirs.header("content-type"));
            out.push_str(&format!("  content type {kinds:?}\n"));
        }
        if !theirs.complete {
            out.push_str("  the answer is cut\n");
        }
        let (a, b) = (wire::fetched(&ours.body, banded), wire::fetched(&theirs.body, banded));
        let died = a.lines.is_empty() && a.pack.is_empty();
        let told = died && b.lines.len() == 1 && b.lines[0].starts_with("ERR ");
        // Newer versions of git acknowledge no have that follows from another; this one acknowledges all.
        let fewer = b.lines.iter().all(|l| a.lines.contains(l))
            && a.lines.iter().all(|l| b.lines.contains(l) || l.starts_with("ACK "))
            && a.lines.iter().any(|l| l.starts_with("ACK ")) == b.lines.iter().any(|l| l.starts_with("ACK "));
        if a.lines != b.lines && !told && !fewer {
            out.push_str(&format!("  primary says {:?}\n  mirror says  {:?}\n", a.lines, b.lines));
        }
        if a.error != b.error {
            out.push_str(&format!("  band 3: {:?} / {:?}\n", a.error, b.error));
        }
        if a.pack.is_empty() != b.pack.is_empty() {
            out.push_str(&format!("  packs of {} / {} bytes\n", a.pack.len(), b.pack.len()));
        } else if !a.pack.is_empty() {
            match (contents(town, &a.pack, thin), contents(town, &b.pack, thin)) {
                (Ok(a), Ok(b)) if thin => {
                    let lost: Vec<_> = a.iter().filter(|o| !b.contains(o)).collect();
                    let more = b.iter().filter(|o| !a.contains(o)).count();
                    // Bases that complete the pack may be others.
                    if more > a.len() / 4 + 20 {
                        out.push_str(&format!("  {more} objects more than {}\n", a.len()));
                    }
                    let missing: Vec<_> = lost
                        .into_iter()
                        .filter(|o| !git(&town.past).args(&["cat-file", "-e", o]).ok())
                        .collect();
                    if !missing.is_empty() {
                        out.push_str(&format!("  objects are missing: {missing:?}\n"));
                    }
                }
                (Ok(a), Ok(b)) => {
                    let only = |x: &[String], y: &[String]| x.iter().filter(|o| !y.contains(o)).count();
                    if a != b {
                        let counts = (only(&a, &b), only(&b, &a));
                        out.push_str(&format!(
                            "  {} objects only in the primary's pack, {} in ours\n",
                            counts.0, counts.1
                        ));
                    }
                }
                (Err(e), _) => out.push_str(&format!("  the primary's pack is bad: {e}\n")),
                (_, Err(e)) => out.push_str(&format!("  the mirror's pack is bad: {e}\n")),
            }
        }
        out
    }

    #[test]
    fn version_2() {
        let town = Town::new(shapes::town, "sha1");
        let past = git(&town.past).run("rev-parse refs/heads/main").line();
        let fetch: &[(&str, &[&str])] = &[
            ("a clone", &["want {tip}", "ofs-delta", "done"]),
            ("no ofs-delta", &["want {tip}", "done"]),
            ("no progress", &["want {tip}", "no-progress", "done"]),
            ("the same want twice", &["want {tip}", "want {tip}", "done"]),
            ("a tag and a branch", &["want {tag}", "want {mid}", "ofs-delta", "done"]),
            ("include-tag", &["want {mid}", "include-tag", "ofs-delta", "done"]),
            ("include-tag of nothing new", &["want {tip}", "have {tip}", "include-tag", "done"]),
            ("done with a have", &["want {tip}", "have {past}", "ofs-delta", "done"]),
            ("done with a thin pack", &["want {tip}", "have {past}", "thin-pack", "ofs-delta", "done"]),
            ("thin without ofs-delta", &["want {tip}", "have {past}", "thin-pack", "done"]),
            ("all that is wanted is there", &["want {past}", "have {past}", "done"]),
            ("a have nobody knows", &["want {tip}", "have {nowhere}", "done"]),
            ("a round: unknown", &["want {tip}", "have {nowhere}"]),
            ("a round: known", &["want {tip}", "have {past}", "ofs-delta"]),
            ("a round: both", &["want {tip}", "have {nowhere}", "have {past}", "have {old}", "ofs-delta"]),
            ("a round: not enough", &["want {tip}", "want {island}", "have {old}"]),
            ("a round: no haves", &["want {tip}"]),
            ("wait-for-done", &["want {tip}", "have {past}", "wait-for-done"]),
            ("wait-for-done, done", &["want {tip}", "have {past}", "wait-for-done", "done"]),
            ("no want, a have", &["have {past}", "wait-for-done"]),
            ("a ref", &["want-ref refs/heads/release", "done"]),
            ("a ref and an id", &["want-ref refs/heads/release", "want {tip}", "done"]),
            ("a ref that is not there", &["want-ref refs/heads/nope", "done"]),
            ("sideband-all", &["want {tip}", "sideband-all", "have {past}"]),
            ("depth 1", &["want {tip}", "deepen 1", "done"]),
            ("depth 3", &["want {tip}", "want {island}", "deepen 3", "done"]),
            ("depth 0", &["want {tip}", "deepen 0", "done"]),
            (
                "depth 2 from a shallow client",
                &["want {tip}", "shallow {past}", "have {past}", "deepen 2", "done"],
            ),
            (
                "relative",
                &["want {tip}", "shallow {past}", "have {past}", "deepen 2", "deepen-relative", "done"],
            ),
            ("a shallow client, no deepening", &["want {tip}", "shallow {past}", "have {past}", "done"]),
            ("unshallow", &["want {tip}", "shallow {past}", "have {past}", "deepen 2147483647", "done"]),
            ("since", &["want {tip}", "deepen-since {date}", "done"]),
            ("not", &["want {tip}", "deepen-not refs/tags/v1", "done"]),
            (
                "since and not",
                &["want {tip}", "deepen-since {date}", "deepen-not refs/heads/release", "done"],
            ),
            ("blob:none", &["want {tip}", "filter blob:none", "done"]),
            ("tree:1", &["want {tip}", "filter tree:1", "done"]),
            ("two filters", &["want {tip}", "filter blob:none", "filter tree:0", "done"]),
            ("a filter and a depth", &["want {tip}", "filter blob:limit=200", "deepen 2", "done"]),
            ("a blob", &["want {blob}", "done"]),
            ("a blob without blobs", &["want {blob}", "filter blob:none", "done"]),
            ("a tree without trees", &["want {tree}", "filter tree:0", "done"]),
            ("a tree and a have", &["want {tree}", "have {past}", "thin-pack", "ofs-delta", "done"]),
            ("nowhere", &["want {nowhere}", "done"]),
            ("a tip and nowhere", &["want {tip}", "want {nowhere}", "done"]),
        ];
        let mut wrong = String::new();
        let island = town.repo.oid("refs/heads/island");
        for (name, arguments) in fetch {
            let filled: Vec<String> = arguments
                .iter()
                .map(|a| town.fill(&a.replace("{past}", &past).replace("{island}", &island), ""))
                .collect();
            let lines: Vec<&str> = filled.iter().map(String::as_str).collect();
            let thin = arguments.contains(&"thin-pack") || arguments.iter().any(|a| a.starts_with("have"));
            let banded = !arguments.contains(&"sideband-all");
            let body = wire::command("fetch", &["agent=test/1", "object-format=sha1"], &lines);
            if !banded {
                continue;
            }
            let found = differ(&town, &[wire::V2], &body, banded, thin);
            if !found.is_empty() {
                wrong.push_str(&format!("fetch: {name}\n{found}"));
            }
        }
        let refs: &[(&str, &[&str])] = &[
            ("plain", &[]),
            ("peel", &["peel"]),
            ("symrefs", &["symrefs"]),
            ("all", &["peel", "symrefs", "unborn"]),
            ("one prefix", &["ref-prefix refs/heads/"]),
            ("several", &["peel", "ref-prefix refs/tags/", "ref-prefix HEAD", "ref-prefix refs/pull/1"]),
            ("of nothing", &["ref-prefix refs/nothing"]),
            ("an empty prefix", &["ref-prefix "]),
            ("unknown", &["evil"]),
        ];
        for (name, arguments) in refs {
            let body = wire::command("ls-refs", &["agent=test/1", "object-format=sha1"], arguments);
            let found = differ(&town, &[wire::V2], &body, true, false);
            if !found.is_empty() {
                wrong.push_str(&format!("ls-refs: {name}\n{found}"));
            }
        }
        let others: &[(&str, Vec<u8>)] = &[
            ("flush", b"0000".to_vec()),
            (
                "size",
                wire::command(
                    "object-info",
                    &["object-format=sha1"],
                    &["size", &format!("oid {}", town.names["{blob}"])],
                ),
            ),
            (
                "size of nothing",
                wire::command(
                    "object-info",
                    &["object-format=sha1"],
                    &["size", &format!("oid {}", town.names["{nowhere}"])],
                ),
            ),
            ("server options", wire::command("ls-refs", &["server-option=x", "object-format=sha1"], &[])),
            ("session id", wire::command("ls-refs", &["session-id=abc", "object-format=sha1"], &[])),
        ];
        for (name, body) in others {
            let found = differ(&town, &[wire::V2], body, true, false);
            if !found.is_empty() {
                wrong.push_str(&format!("{name}\n{found}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    #[test]
    fn version_0() {
        let town = Town::new(shapes::town, "sha1");
        let past = git(&town.past).run("rev-parse refs/heads/main").line();
        // Capabilities; wants' further lines up to the flush; rounds of haves, each ended by a flush; done?
        type Request<'a> = (&'a str, &'a [&'a str], &'a [&'a [&'a str]], bool);
        let requests: &[Request] = &[
            ("", &[], &[], true),
            ("ofs-delta", &[], &[], true),
            ("side-band ofs-delta", &[], &[], true),
            ("side-band-64k ofs-delta no-progress", &[], &[], true),
            ("multi_ack side-band-64k", &[], &[], true),
            ("multi_ack_detailed side-band-64k thin-pack ofs-delta", &[], &[&["have {past}"]], true),
            ("multi_ack side-band-64k thin-pack ofs-delta", &[], &[&["have {past}"]], true),
            ("side-band-64k thin-pack ofs-delta", &[], &[&["have {past}"]], true),
            ("thin-pack ofs-delta", &[], &[&["have {past}"]], true),
            (
                "multi_ack_detailed side-band-64k",
                &[],
                &[&["have {nowhere}", "have {past}", "have {old}"]],
                false,
            ),
            ("multi_ack_detailed side-band-64k", &[], &[&["have {nowhere}"]], false),
            ("multi_ack_detailed no-done side-band-64k ofs-delta", &[], &[&["have {past}"]], false),
            ("multi_ack side-band-64k", &[], &[&["have {nowhere}", "have {past}"]], false),
            ("side-band-64k", &[], &[&["have {nowhere}", "have {past}"]], false),
            ("multi_ack_detailed side-band-64k", &[], &[&["have {nowhere}"], &["have {past}"]], true),
            ("multi_ack side-band-64k", &[], &[&["have {nowhere}"], &["have {past}"]], true),
            ("include-tag side-band-64k ofs-delta", &[], &[], true),
            ("side-band-64k shallow", &["deepen 1"], &[], true),
            ("side-band-64k shallow", &["deepen 2"], &[], false),
            ("side-band-64k deepen-since", &["deepen-since {date}"], &[], true),
            ("side-band-64k deepen-not", &["deepen-not refs/tags/v1"], &[], true),
            (
                "side-band-64k shallow deepen-relative",
                &["shallow {past}", "deepen 2"],
                &[&["have {past}"]],
                true,
            ),
            ("side-band-64k", &["shallow {past}"], &[&["have {past}"]], true),
            ("side-band-64k filter", &["filter blob:none"], &[], true),
            ("side-band-64k filter", &["filter tree:1", "deepen 2"], &[], true),
            ("side-band-64k agent=JGit/6.0 ofs-delta", &[], &[], true),
        ];
        let mut wrong = String::new();
        for want in ["{tip}", "{mid}", "{tagged}", "{nowhere}"] {
            for (capabilities, lines, rounds, done) in requests {
                if want != "{tip}" && !capabilities.starts_with("side-band-64k") {
                    continue;
                }
                let fill = |text: &str| town.fill(&text.replace("{past}", &past), "");
                let space = if capabilities.is_empty() { "" } else { " " };
                let mut body = wire::pkt(&format!("want {}{space}{capabilities}\n", fill(want)));
                for line in *lines {
                    body.push_str(&wire::pkt(&format!("{}\n", fill(line))));
                }
                body.push_str("0000");
                for round in *rounds {
                    for line in *round {
                        body.push_str(&wire::pkt(&format!("{}\n", fill(line))));
                    }
                    if !(*done && rounds.len() == 1) {
                        body.push_str("0000");
                    }
                }
                if *done {
                    body.push_str(&wire::pkt("done\n"));
                }
                let thin = rounds.iter().any(|r| !r.is_empty());
                let banded = capabilities.contains("side-band");
                let found = differ(&town, &[], body.as_bytes(), banded, thin);
                if !found.is_empty() {
                    wrong.push_str(&format!(
                        "want {want} {capabilities:?} {lines:?} {rounds:?} done={done}\n{found}"
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    /// Clients of other makes want what the advertisement shows beside a tag.
    #[test]
    fn what_a_tag_leads_to_in_version_0() {
        let town = Town::new(shapes::town, "sha1");
        let want = wire::pkt(&town.fill("want {tagged} side-band-64k ofs-delta\n", ""));
        let body = format!("{want}0000{}", wire::pkt("done\n"));
        let found = from_bucket(&town.node, || differ(&town, &[], body.as_bytes(), true, false));
        assert!(found.is_empty(), "{found}");
    }

    /// What the servers say they can do: the mirror never less than the primary, never more than it can keep.
    #[test]
    fn capabilities() {
        for shape in [shapes::town as fn(&Path), shapes::empty, shapes::detached, shapes::unborn] {
            let town = Town::new(shape, "sha1");
            for protocol in [None, Some(("Git-Protocol", "version=1")), Some(wire::V2)] {
                let headers: Vec<_> = protocol.into_iter().collect();
                for service in ["git-upload-pack", "git-receive-pack"] {
                    let path = format!("/{}/info/refs?service={service}", town.repo.path);
                    let read = |address: &str| {
                        let reply = wire::get(address, &path, &headers).unwrap();
                        let kind = reply.header("content-type").unwrap_or_default().to_owned();
                        let (packets, rest) = wire::packets(&reply.body);
                        assert!(rest.is_empty(), "{path}: {}", rest.escape_ascii());
                        let lines: Vec<String> = packets
                            .iter()
                            .map(|p| match p {
                                wire::Packet::Data(d) => words(d),
                                other => format!("{other:?}"),
                            })
                            .collect();
                        (reply.status, kind, lines)
                    };
                    let (ours, theirs) = (read(town.primary.address()), read(town.node.address()));
                    assert_eq!(ours, theirs, "{service} {protocol:?}");
                }
            }
        }
    }

    /// A line with its capabilities sorted, without the one that names the software.
    fn words(line: &[u8]) -> String {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        if text.starts_with("agent=") {
            return "agent".into();
        }
        let Some((head, list)) = text.split_once('\0') else { return text };
        let mut all: Vec<&str> =
            list.split(' ').filter(|w| !w.is_empty() && !w.starts_with("agent=")).collect();
        all.sort_unstable();
        format!("{head}\\0{}", all.join(" "))
    }
}
