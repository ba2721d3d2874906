//! Other clients: libraries that have a Git of their own, each through a small program of `tests/clients`. Most speak v0
//! or v1, some without side band, without thin packs, or with one round of negotiation: requests that git itself no
//! longer sends.
//!
//! `PACKMIRROR_TEST_CLIENTS` names the folder that `infra/parts/install.sh clients` prints. Every step is done against the
//! primary and against the mirror, and stock git compares what lies there then. What a library makes of an answer is its
//! business, as long as it makes the same of both; where it asks for all refs, it must have all that git has.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::git::{Output, clean, finish};
use crate::node::Node;
use crate::oracle::{State, mirrored};
use crate::primary::{Primary, Repo};
use crate::shapes;
use crate::world::{World, passthrough, skip};

/// What a library can do, beside cloning and fetching.
#[derive(Default)]
struct Library {
    name: &'static str,
    /// The versions to which it can be set; empty where it has only one.
    versions: &'static [u8],
    /// Takes all refs, under their own names.
    mirrors: bool,
    /// Takes ref names as they come, also those that are not UTF-8.
    any_name: bool,
    /// Takes one branch alone.
    single: bool,
    /// Takes a number of commits, and goes on from there, with a repository of this shape.
    shallow: Option<fn(&Path)>,
    /// Takes a number of commits more than it has; if it has several versions, in v2.
    deepens: bool,
    /// Forgets its shallow boundary when all that lies behind it has come.
    unshallows: bool,
    /// Writes a HEAD of the remote of its own, in a repository without commits one that leads to none.
    odd_head: bool,
}

#[test]
fn dulwich() {
    check(&Library {
        name: "dulwich",
        versions: &[2, 0],
        mirrors: true,
        // It takes annotated tags for commits when it fetches into a shallow repository.
        shallow: Some(shapes::merges),
        unshallows: true,
        ..Library::default()
    });
}

#[test]
fn libgit2() {
    check(&Library {
        name: "pygit2",
        mirrors: true,
        any_name: true,
        single: true,
        shallow: Some(shapes::town),
        unshallows: true,
        ..Library::default()
    });
}

#[test]
fn go_git() {
    check(&Library {
        name: "go-git",
        mirrors: true,
        single: true,
        shallow: Some(shapes::town),
        ..Library::default()
    });
}

#[test]
fn jgit() {
    check(&Library {
        name: "jgit",
        versions: &[2, 0],
        mirrors: true,
        single: true,
        shallow: Some(shapes::town),
        unshallows: true,
        ..Library::default()
    });
}

#[test]
fn isomorphic_git() {
    check(&Library {
        name: "isomorphic-git",
        single: true,
        shallow: Some(shapes::town),
        deepens: true,
        unshallows: true,
        ..Library::default()
    });
}

#[test]
fn gitoxide() {
    check(&gix("gix"));
}

/// It cannot read a delta by id whose base is in the same pack.
#[test]
fn older_gitoxide() {
    // Its fetches in v0 do not end with git's own server either.
    check(&Library { versions: &[2], odd_head: true, ..gix("gix-older") });
}

fn gix(name: &'static str) -> Library {
    Library {
        name,
        versions: &[2, 0],
        mirrors: true,
        any_name: true,
        single: true,
        shallow: Some(shapes::town),
        deepens: true,
        unshallows: true,
        odd_head: false,
    }
}

/// The repositories that are cloned whole.
const SHAPES: &[shapes::Shape] = &[
    ("merges", shapes::merges),
    ("several-roots", shapes::several_roots),
    ("deltas", shapes::deltas),
    ("tags", shapes::tags),
    ("submodules", shapes::submodules),
    ("hosted", shapes::hosted),
    ("weird-refs", shapes::weird_refs),
    ("other-head", shapes::other_head),
    ("empty", shapes::empty),
];

/// Does everything that the library can.
fn check(library: &Library) {
    let Some(folder) = std::env::var_os("PACKMIRROR_TEST_CLIENTS") else {
        return skip("other clients, in the folder that PACKMIRROR_TEST_CLIENTS names");
    };
    let program = Path::new(&folder).join("bin").join(library.name);
    assert!(program.exists(), "PACKMIRROR_TEST_CLIENTS names a folder without bin/{}", library.name);
    let (world, primary) = (World::new(), Primary::start());
    let node = world.node(&primary);
    let mut versions: Vec<Option<u8>> = library.versions.iter().copied().map(Some).collect();
    if versions.is_empty() {
        versions.push(None);
    }
    let mut wrong = String::new();
    for version in versions {
        let scene =
            Scene { library, program: &program, version, world: &world, primary: &primary, node: &node };
        let mut note = |what: &str, found: Result<(), String>| {
            if let Err(found) = found {
                wrong.push_str(&format!("{} {version:?}: {what}\n{found}", library.name));
            }
        };
        for (name, shape) in SHAPES {
            note(name, scene.whole(name, shape));
        }
        note("pushes", scene.pushes());
        if library.single {
            note("a single branch", scene.single());
        }
        if let Some(shape) = library.shallow {
            note("shallow", scene.shallow(shape));
        }
        note("what is not there", scene.absent());
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// One library in one protocol version, a primary and a mirror of it.
struct Scene<'a> {
    library: &'a Library,
    program: &'a Path,
    version: Option<u8>,
    world: &'a World,
    primary: &'a Primary,
    node: &'a Node,
}

/// The same made twice: from the primary and through the mirror.
struct Pair<'a> {
    scene: &'a Scene<'a>,
    repo: Repo,
    ours: PathBuf,
    theirs: PathBuf,
}

/// What a step must come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    /// The objects come from the bucket, and no others than from the primary.
    Exactly,
    /// They come from the bucket; ones that nothing reaches may differ.
    FromBucket,
    /// There is nothing to fetch, or it fails at both in the same words.
    Nothing,
}

impl Scene<'_> {
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(self.program);
        clean(&mut command);
        command.current_dir(self.world.path()).args(args);
        if let Some(version) = self.version {
            command.args(["--protocol", &version.to_string()]);
        }
        finish(command, b"", Duration::from_secs(60))
    }

    /// A mirrored repository, and two places for a clone of it.
    fn pair(&self, name: &str, shape: impl FnOnce(&Path)) -> Pair<'_> {
        let version = self.version.map_or("only".to_owned(), |v| v.to_string());
        let repo = self.primary.repo(&format!("v{version}/{name}.git"), shape);
        mirrored(self.world, self.node, &repo);
        Pair { scene: self, repo, ours: self.world.unused("ours"), theirs: self.world.unused("theirs") }
    }

    /// Clones everything, in the ways that the library has.
    fn whole(&self, name: &str, shape: &fn(&Path)) -> Result<(), String> {
        let want = if name == "empty" { Want::Nothing } else { Want::Exactly };
        if self.library.odd_head && want == Want::Nothing {
            return Ok(());
        }
        let pair = self.pair(name, shape);
        pair.step(want, "clone {url} {dir}")?;
        if !self.library.mirrors || name == "weird-refs" && !self.library.any_name {
            return Ok(());
        }
        let pair = pair.afresh();
        pair.step(want, "mirror {url} {dir}")?;
        if want == Want::Nothing || self.library.odd_head { Ok(()) } else { pair.all_of_it() }
    }

    /// Fetches after new branches and tags, after a force-push and a deletion, and when there is nothing new.
    fn pushes(&self) -> Result<(), String> {
        let clones = self.pair("pushes", shapes::town);
        let mirrors = clones.afresh();
        clones.step(Want::Exactly, "clone {url} {dir}")?;
        if self.library.mirrors {
            mirrors.step(Want::Exactly, "mirror {url} {dir}")?;
        }
        let repo = &clones.repo;
        let both = |want: Want| {
            mirrored(self.world, self.node, repo);
            clones.step(want, "fetch {dir}")?;
            if self.library.mirrors {
                mirrors.step(want, "fetch {dir}")?;
            }
            Ok::<(), String>(())
        };
        both(Want::Nothing)?;
        for n in 0..3 {
            repo.commit("main", &format!("src/new{n}"), "more\n");
        }
        repo.commit("fresh/branch", "alone", "no parent\n");
        repo.git().run("tag -a -m next next main");
        both(Want::FromBucket)?;
        let lost = repo.oid("refs/heads/main");
        repo.set_ref("refs/heads/main", "refs/heads/main~5");
        repo.commit("main", "src/other", "way\n");
        repo.delete_ref("refs/heads/topic/1");
        repo.set_ref("refs/heads/kept", &lost);
        both(Want::FromBucket)?;
        // No waiting: the fetch itself starts the sync that brings what it wants.
        repo.commit("main", "src/last", "one\n");
        clones.step(Want::FromBucket, "fetch {dir}")
    }

    fn single(&self) -> Result<(), String> {
        let pair = self.pair("single", shapes::town);
        pair.step(Want::Exactly, "clone {url} {dir} --branch release")?;
        pair.repo.commit("release", "fix", "1\n");
        pair.repo.commit("main", "src/else", "1\n");
        mirrored(self.world, self.node, &pair.repo);
        pair.step(Want::FromBucket, "fetch {dir}")
    }

    /// Starts with a commit, then fetches a new one, more of the past, and in the end all of it.
    fn shallow(&self, shape: fn(&Path)) -> Result<(), String> {
        let pair = self.pair("shallow", shape);
        pair.step(Want::Exactly, "clone {url} {dir} --depth 1")?;
        pair.repo.commit("main", "src/new", "1\n");
        mirrored(self.world, self.node, &pair.repo);
        pair.step(Want::FromBucket, "fetch {dir}")?;
        pair.step(Want::FromBucket, "fetch {dir} --depth 4")?;
        if self.library.deepens && self.version != Some(0) {
            pair.step(Want::FromBucket, "fetch {dir} --deepen 2")?;
        }
        pair.step(Want::FromBucket, "fetch {dir} --unshallow")?;
        let left = State::of(&pair.theirs).shallow;
        if self.library.unshallows && !left.is_empty() {
            return Err(format!("  still shallow at {left:?}\n"));
        }
        let pair = pair.afresh();
        pair.step(Want::Exactly, "clone {url} {dir} --depth 3")
    }

    fn absent(&self) -> Result<(), String> {
        let mut pair = self.pair("absent", shapes::linear);
        if self.library.single {
            pair.step(Want::Nothing, "clone {url} {dir} --branch nowhere")?;
        }
        pair = pair.afresh();
        pair.repo.path = "no/such.git".into();
        pair.step(Want::Nothing, "clone {url} {dir}")
    }
}

impl Pair<'_> {
    /// Two more places for clones of the same repository.
    fn afresh(&self) -> Self {
        let world = self.scene.world;
        Pair {
            scene: self.scene,
            repo: self.repo.clone(),
            ours: world.unused("ours"),
            theirs: world.unused("theirs"),
        }
    }

    /// Runs the library with `line` for both and compares; `{url}` and `{dir}` stand for the repository's and its place.
    fn step(&self, want: Want, line: &str) -> Result<(), String> {
        let node = self.scene.node;
        let run = |url: &str, dir: &Path| {
            let filled = line.replace("{url}", url).replace("{dir}", &dir.display().to_string());
            let out = self.scene.run(&filled.split(' ').collect::<Vec<_>>());
            let said = out.stderr.replace(url, "{url}").replace(&dir.display().to_string(), "{dir}");
            (out.status.code(), said)
        };
        let ours = run(&self.scene.primary.repo_url(&self.repo.path), &self.ours);
        let before = (node.answered_from_bucket(), node.passed());
        let theirs = run(&node.repo(&self.repo.path), &self.theirs);
        let after = (node.answered_from_bucket(), node.passed());
        let mut wrong = String::new();
        if ours.0 != theirs.0 || (ours.0 != Some(0) && ours.1 != theirs.1) {
            wrong.push_str(&format!(
                "  primary: {:?} {}\n  mirror: {:?} {}\n",
                ours.0, ours.1, theirs.0, theirs.1
            ));
        }
        if want != Want::Nothing && ours.0 != Some(0) {
            wrong.push_str(&format!("  the library fails: {}\n", ours.1));
        }
        if !passthrough() {
            if want != Want::Nothing && after.0 <= before.0 {
                wrong.push_str("  nothing came from the bucket\n");
            }
            if after.1 != before.1 && theirs.0 == Some(0) {
                wrong.push_str(&format!("  passed through:\n{}\n", node.answers_text()));
            }
        }
        if ours.0 == Some(0) && theirs.0 == Some(0) {
            let (a, b) = (State::of(&self.ours), State::of(&self.theirs));
            wrong.push_str(&a.differences(&b, want == Want::Exactly));
            if !b.fsck.starts_with("true") {
                wrong.push_str(&format!("  fsck: {}\n", b.fsck));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("  {line}:\n{wrong}")) }
    }

    /// Compares what came through the mirror with what git itself has of the primary.
    fn all_of_it(&self) -> Result<(), String> {
        let url = self.scene.primary.repo_url(&self.repo.path);
        let (git, theirs) =
            (State::of(&self.scene.world.clone_of(&url, "--mirror")), State::of(&self.theirs));
        let same = git.refs == theirs.refs && git.objects == theirs.objects;
        if same { Ok(()) } else { Err(format!("  beside git:\n{}", git.differences(&theirs, true))) }
    }
}
