//! The oracle: what a client has after a command, and whether the mirror gave the same as the primary.

use std::collections::BTreeSet;
use std::path::Path;

use crate::git::{Output, git};
use crate::node::Node;
use crate::primary::{Primary, Repo};
use crate::world::{World, eventually, passthrough};

/// Everything that can be compared about a client's repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `name oid symref-target`, sorted.
    pub refs: Vec<String>,
    pub head: String,
    /// Ids reachable from the refs; `?id` for those a partial clone lacks.
    pub objects: BTreeSet<String>,
    /// Every object in the repository, reachable or not.
    pub stored: BTreeSet<String>,
    pub shallow: BTreeSet<String>,
    /// `FETCH_HEAD` without addresses.
    pub fetched: Vec<String>,
    /// What `fsck --strict` says, and whether it is content.
    pub fsck: String,
}

impl State {
    pub fn of(dir: &Path) -> State {
        let g = git(dir);
        let sorted = |out: &Output| out.lines().into_iter().collect::<BTreeSet<_>>();
        let refs = g.args(&["for-each-ref", "--format=%(refname) %(objectname) %(symref)"]);
        let head = g.try_run("symbolic-ref -q HEAD");
        let head = if head.ok() { head.line() } else { g.try_run("rev-parse -q --verify HEAD").line() };
        // FETCH_HEAD counts as a tip here: it is all that some fetches leave.
        let git_dir = g.run("rev-parse --absolute-git-dir").line();
        let file = |name: &str| std::fs::read_to_string(Path::new(&git_dir).join(name)).unwrap_or_default();
        let fetched: Vec<String> = file("FETCH_HEAD")
            .lines()
            .map(|l| {
                l.split(" of ")
                    .next()
                    .and_then(|l| l.split("http:").next())
                    .unwrap_or_default()
                    .replace('\t', " ")
            })
            .collect();
        let tips: String =
            fetched.iter().filter_map(|l| l.split(' ').next()).map(|o| format!("{o}\n")).collect();
        let listed = g.with_input(
            &["rev-list", "--objects", "--missing=print", "--all", "--ignore-missing", "--stdin"],
            tips.as_bytes(),
        );
        let mut objects: BTreeSet<String> =
            listed.lines().iter().filter_map(|l| l.split(' ').next()).map(str::to_owned).collect();
        if !listed.ok() {
            objects.insert(format!("rev-list failed: {}", listed.stderr));
        }
        let stored = sorted(&g.run("cat-file --batch-all-objects --unordered --batch-check=%(objectname)"));
        let fsck = g.try_run("fsck --strict --no-dangling --no-progress");
        State {
            refs: refs.lines(),
            head,
            objects,
            stored,
            shallow: file("shallow").lines().map(str::to_owned).collect(),
            fetched,
            fsck: format!("{} {}{}", fsck.ok(), fsck.text(), fsck.stderr),
        }
    }

    /// Says in a few lines in what `self` (from the primary) and `other` (through the mirror) differ; empty if in
    /// nothing. `exact`: also the objects beside the reachable ones must be the same.
    pub fn differences(&self, other: &State, exact: bool) -> String {
        let mut out = String::new();
        let mut both = |what: &str, a: &BTreeSet<String>, b: &BTreeSet<String>| {
            let few = |s: BTreeSet<&String>| {
                let shown: Vec<_> = s.iter().take(4).map(|x| x.as_str()).collect();
                format!("{} such as {}", s.len(), shown.join(", "))
            };
            let (lost, more) =
                (a.difference(b).collect::<BTreeSet<_>>(), b.difference(a).collect::<BTreeSet<_>>());
            if !lost.is_empty() {
                out.push_str(&format!("  {what} only from the primary: {}\n", few(lost)));
            }
            if !more.is_empty() {
                out.push_str(&format!("  {what} only through the mirror: {}\n", few(more)));
            }
        };
        let set = |v: &Vec<String>| v.iter().cloned().collect::<BTreeSet<_>>();
        both("refs", &set(&self.refs), &set(&other.refs));
        both("objects", &self.objects, &other.objects);
        both("shallow", &self.shallow, &other.shallow);
        both("FETCH_HEAD", &set(&self.fetched), &set(&other.fetched));
        if exact {
            both("stored objects", &self.stored, &other.stored);
        }
        if self.head != other.head {
            out.push_str(&format!(
                "  HEAD: {:?} from the primary, {:?} through the mirror\n",
                self.head, other.head
            ));
        }
        if self.fsck != other.fsck {
            out.push_str(&format!("  fsck: {:?} from the primary, {:?} mirror\n", self.fsck, other.fsck));
        }
        out
    }
}

/// Clones both completely and says in what they differ.
pub fn compare(world: &World, primary: &str, mirror: &str) -> Result<(), String> {
    let clone = |url: &str| {
        let dir = world.unused("oracle");
        let out = git(world.path()).try_run(&format!("clone -q --mirror {url} {}", dir.display()));
        let state = out.ok().then(|| State::of(&dir));
        let _ = std::fs::remove_dir_all(&dir);
        state.ok_or_else(|| format!("  clone --mirror {url}: {}", out.stderr))
    };
    let (ours, theirs) = (clone(primary)?, clone(mirror)?);
    let found = ours.differences(&theirs, true);
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Fails the test unless a complete clone through the mirror equals one from the primary.
#[track_caller]
pub fn same(world: &World, primary: &Primary, node: &Node, repo: &str) {
    if let Err(found) = compare(world, &primary.repo_url(repo), &node.repo(repo)) {
        panic!("{repo} differs:\n{found}");
    }
}

/// The same with credentials.
#[track_caller]
pub fn same_as(world: &World, primary: &Primary, node: &Node, user: &str, password: &str, repo: &str) {
    let urls = (primary.repo_as(user, password, repo), node.repo_as(user, password, repo));
    if let Err(found) = compare(world, &urls.0, &urls.1) {
        panic!("{repo} differs for {user}:\n{found}");
    }
}

/// Asks through the node once, so that it starts to mirror, and waits until the bucket has what the primary has and
/// the node serves it.
#[track_caller]
pub fn mirrored(world: &World, node: &Node, repo: &Repo) {
    mirrored_at(world, node, &node.repo(&repo.path), repo);
}

/// The same for an address with credentials in it.
#[track_caller]
pub fn mirrored_at(world: &World, node: &Node, url: &str, repo: &Repo) {
    let runs = || {
        node.metric("packmirror_sync_runs_total", &[])
            - node.metric("packmirror_sync_runs_total", &["failed"])
    };
    let (known, before) = (is_in_bucket(world, repo), runs());
    git(world.path()).args(&["ls-remote", "-q", url]).must();
    in_bucket(world, node, repo);
    if !known && !passthrough() {
        // A node opens what it has published before the sync is counted.
        eventually("the end of a sync", || (runs() > before).then_some(()));
    }
}

/// Asks through the node once, and waits until the bucket has what the primary has, whichever of several nodes brings it.
#[track_caller]
pub fn published(world: &World, node: &Node, repo: &Repo) {
    git(world.path()).args(&["ls-remote", "-q", &node.repo(&repo.path)]).must();
    in_bucket(world, node, repo);
}

/// Waits until the newest generation in the bucket is what the primary has now.
#[track_caller]
pub fn in_bucket(world: &World, node: &Node, repo: &Repo) {
    if passthrough() {
        return;
    }
    eventually(&format!("a generation of {} with manifest {}", repo.path, repo.digest()), || {
        assert!(!node.url.is_empty());
        is_in_bucket(world, repo).then_some(())
    });
}

fn is_in_bucket(world: &World, repo: &Repo) -> bool {
    let newest = world.store.newest(&repo.path);
    newest.is_some_and(|newest| newest["manifest_digest"].as_str() == Some(&repo.digest()))
}

/// Runs `body` and fails unless answers came from the bucket meanwhile and none from the primary.
#[track_caller]
pub fn from_bucket<T>(node: &Node, body: impl FnOnce() -> T) -> T {
    let before = (node.answered_from_bucket(), node.passed());
    let result = body();
    if passthrough() {
        return result;
    }
    let after = (node.answered_from_bucket(), node.passed());
    assert!(after.0 > before.0, "no answer came from the bucket:\n{}", node.answers_text());
    assert_eq!(after.1, before.1, "something was passed through:\n{}", node.answers_text());
    result
}

mod tests {
    //! The oracle itself must see what is wrong: a mirror that is stale, short, or too generous.
    use super::*;
    use crate::shapes;

    fn pair(change: impl FnOnce(&Repo)) -> Result<(), String> {
        let (world, primary) = (World::new(), Primary::start());
        primary.repo("true.git", shapes::town);
        let wrong = primary.repo("wrong.git", shapes::town);
        change(&wrong);
        compare(&world, &primary.repo_url("true.git"), &primary.repo_url("wrong.git"))
    }

    #[test]
    fn the_oracle_accepts_what_is_equal() {
        assert_eq!(pair(|_| {}), Ok(()));
    }

    #[test]
    fn the_oracle_sees_a_stale_branch() {
        let found = pair(|r| r.set_ref("refs/heads/release", "refs/heads/release~1")).unwrap_err();
        assert!(found.contains("refs only") && found.contains("objects only from the primary"), "{found}");
    }

    #[test]
    fn the_oracle_sees_a_missing_tag() {
        assert!(pair(|r| r.delete_ref("refs/tags/v1")).unwrap_err().contains("refs only from the primary"));
    }

    #[test]
    fn the_oracle_sees_another_head() {
        let found = pair(|r| drop(r.git().run("symbolic-ref HEAD refs/heads/release"))).unwrap_err();
        assert!(found.contains("HEAD"), "{found}");
    }

    #[test]
    fn the_oracle_sees_an_object_too_many() {
        let world = World::new();
        let primary = Primary::start();
        let repo = primary.repo("r.git", shapes::linear);
        let dir = world.clone_of(&primary.repo_url("r.git"), "--mirror");
        let before = State::of(&dir);
        git(&dir).with_input(&["hash-object", "-w", "--stdin"], b"surplus").must();
        let after = State::of(&dir);
        assert!(before.differences(&after, true).contains("stored objects only through the mirror"));
        assert_eq!(before.differences(&after, false), "");
        drop(repo);
    }

    #[test]
    fn the_oracle_sees_a_damaged_repository() {
        let world = World::new();
        let primary = Primary::start();
        primary.repo("r.git", shapes::linear);
        let dir = world.clone_of(&primary.repo_url("r.git"), "--mirror -c fetch.unpackLimit=1000");
        git(&dir).run("repack -adq");
        let before = State::of(&dir);
        let packs = std::fs::read_dir(dir.join("objects/pack")).unwrap().map(|e| e.unwrap().path());
        let pack = packs.into_iter().find(|p| p.extension().is_some_and(|e| e == "pack")).unwrap();
        let mut bytes = std::fs::read(&pack).unwrap();
        let at = bytes.len() - 30;
        bytes[at] ^= 1;
        std::fs::remove_file(&pack).unwrap();
        std::fs::write(&pack, bytes).unwrap();
        assert!(before.differences(&State::of(&dir), true).contains("fsck"), "a flipped bit went unseen");
    }
}
