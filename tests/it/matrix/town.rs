//! A mirrored repository that cases are run against, and what is compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Case;
use super::Source::{Bucket, BucketV2};
use crate::git::{Git, Output, git};
use crate::node::Node;
use crate::oracle::{State, mirrored};
use crate::primary::{Primary, Repo};
use crate::world::{World, passthrough};

/// A mirrored repository with a past, and the names that cases use.
pub struct Town {
    pub world: World,
    pub primary: Primary,
    pub repo: Repo,
    pub node: Node,
    pub past: PathBuf,
    pub names: BTreeMap<&'static str, String>,
}

/// In how many syncs [`Town::in_layers`] takes its repository.
const SYNCS: usize = 4;

impl Town {
    /// The repository as one sync takes it.
    pub fn new(shape: impl FnOnce(&Path), format: &str) -> Town {
        let (world, primary) = (World::new(), Primary::start());
        let repo = primary.repo_with("team/app.git", format, shape);
        allow_all(&repo);
        let node = world.node(&primary);
        Town::of(world, primary, repo, node, format)
    }

    /// The same repository as it grew, synced again and again: a stack of layers, most of them from thin packs. On the
    /// way a branch was force-pushed, a tag moved, and both are gone.
    pub fn in_layers(shape: impl FnOnce(&Path), format: &str) -> Town {
        let (world, primary) = (World::new(), Primary::start());
        let whole = Repo::create(world.path(), "whole.git", format);
        shape(&whole.dir);
        whole.configure("[uploadpack]\n\tallowAnySHA1InWant = true\n");
        let repo = primary.repo_with("team/app.git", format, |_| {});
        allow_all(&repo);
        // Refs that only went away are found by comparing, not by what clients are shown.
        let node = world.setup(&primary).set("compare_every = \"2s\"").start();
        for step in 1..=SYNCS {
            grow(&whole, &repo, step);
            mirrored(&world, &node, &repo);
        }
        if !passthrough() {
            // As many layers, but where some were merged because a sync fell into the middle of a step.
            let newest = world.store.newest(&repo.path).expect("a generation");
            assert!(newest["number"].as_u64() >= Some(SYNCS as u64), "only {} syncs", newest["number"]);
        }
        assert_eq!(repo.digest(), whole.digest());
        Town::of(world, primary, repo, node, format)
    }

    fn of(world: World, primary: Primary, repo: Repo, node: Node, format: &str) -> Town {
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
        mirrored(&world, &node, &repo);
        Town { world, primary, repo, node, past, names }
    }

    pub fn fill(&self, line: &str, url: &str) -> String {
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
        let places = [dir.clone(), dir.join("checkout")];
        let state = places.iter().find(|dir| dir_is_repository(dir)).map(|dir| State::of(dir));
        let _ = std::fs::remove_dir_all(&dir);
        (said, state)
    }

    /// Runs one case against both; says whether the primary did all that was asked, or what is wrong.
    fn check(&self, case: &Case, version: u8) -> Result<bool, String> {
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
        let done = ours.0.iter().all(|said| said.starts_with("Some(0)"));
        if wrong.is_empty() { Ok(done) } else { Err(format!("v{version}: {}\n{wrong}", steps.join(" && "))) }
    }

    #[track_caller]
    pub fn all(&self, what: &str, cases: &[Case], version: u8) {
        let (mut wrong, mut asked, mut done) = (Vec::new(), 0, 0);
        for case in cases {
            let expected = u32::from(matches!(case.0, Bucket | BucketV2));
            match self.check(case, version) {
                Ok(did) => (asked, done) = (asked + expected, done + expected * u32::from(did)),
                Err(found) => wrong.push(found),
            }
        }
        // Two failures that are equal say little: a table that only has those compares nothing.
        assert!(done * 3 >= asked * 2, "{what}: the primary itself did only {done} of {asked} cases");
        assert!(
            wrong.is_empty(),
            "{what}: {} of {} cases differ\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }
}

/// Lets clients ask for ids and sizes. Not for refs by name (`allowRefInWant`): git's own server then sends two
/// sections in the wrong order, at which git's client gives up, so that nothing shallow would be compared.
pub fn allow_all(repo: &Repo) {
    repo.configure("[uploadpack]\n\tallowTipSHA1InWant = true\n\tallowReachableSHA1InWant = true\n[transfer]\n\tadvertiseObjectInfo = true\n");
}

/// Brings `repo` to where `whole` was after `step` of [`SYNCS`] parts of its commits; after the last, to what it is.
fn grow(whole: &Repo, repo: &Repo, step: usize) {
    let w = whole.git();
    let mut dates: Vec<u64> =
        w.run("log --all --format=%ct").lines().iter().map(|l| l.parse().expect("seconds")).collect();
    dates.sort_unstable();
    let until = dates[dates.len() * step / SYNCS - 1];
    let last = step == SYNCS;
    let mut refspecs = Vec::new();
    for line in w.args(&["for-each-ref", "--format=%(objectname) %(objecttype) %(refname)"]).must().lines() {
        let mut words = line.splitn(3, ' ');
        let (oid, kind, name) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let then = match kind {
            _ if last => oid.to_owned(),
            "commit" => w.args(&["rev-list", "-1", &format!("--min-age={until}"), oid]).must().line(),
            _ => continue,
        };
        if !then.is_empty() {
            refspecs.push(format!("+{then}:{name}"));
        }
    }
    let from = whole.dir.display().to_string();
    let fetch = ["fetch", "-q", "--no-tags", &from];
    let specs: Vec<&str> = refspecs.iter().map(String::as_str).collect();
    repo.git().args(&[&fetch[..], &specs].concat()).must();
    if last {
        for name in ["refs/heads/wip", "refs/tags/moving"] {
            repo.delete_ref(name);
        }
        std::fs::copy(whole.dir.join("HEAD"), repo.dir.join("HEAD")).expect("HEAD");
    } else {
        // What only these had lies in the layers for good, and may be what later deltas lean on.
        repo.set_ref("refs/heads/wip", refspecs[0][1..].split(':').next().unwrap());
        let text = format!("{step}\n{}", crate::shapes::prose(12, 900));
        repo.commit("wip", "docs/big.txt", &text);
        repo.git().run("tag -f -a -m moving moving refs/heads/wip");
    }
}

fn dir_is_repository(dir: &Path) -> bool {
    dir.join(".git").exists() || dir.join("HEAD").exists()
}

/// Exit status, output and errors of a command, without what may differ between two runs of the same.
pub fn said(out: &Output, url: &str) -> String {
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
pub fn told_better(primary: &str, mirror: &str) -> bool {
    let died = [
        "hung up unexpectedly",
        "expected 'packfile'",
        "early EOF",
        "bad pack header",
        "error processing shallow info",
    ];
    primary.starts_with("Some(128)")
        && mirror.starts_with("Some(128)")
        && mirror.contains("remote error: ")
        && died.iter().any(|d| primary.contains(d))
}
