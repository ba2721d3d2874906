//! Histories and client operations that nobody thought of: a repository grows by dice and is synced again and again;
//! clients made at any point, and left behind, then do whatever the dice say, each against the primary and the mirror.
//!
//! Elsewhere: where the dice start, and how long runs play others ([`crate::seed`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::town::{allow_all, said, told_better};
use crate::git::{Git, git};
use crate::node::Node;
use crate::oracle::{State, mirrored};
use crate::primary::{Primary, Repo};
use crate::seed::rounds;
use crate::shapes::prose;
use crate::world::{World, passthrough};

/// Syncs in one game.
const STEPS: usize = 8;

#[test]
fn games() {
    for seed in rounds(2) {
        eprintln!("seed {seed}");
        Game::new(seed).play();
    }
}

const FILTERS: &[&str] = &["blob:none", "blob:limit=2k", "tree:0", "tree:1", "tree:2", "tree:3"];

/// A small generator of numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n.max(1)
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    fn one<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

struct Game {
    seed: u64,
    dice: Dice,
    world: World,
    primary: Primary,
    repo: Repo,
    node: Node,
    clients: Vec<Client>,
    clock: u64,
    commits: usize,
}

/// The same client twice, and what it did so far.
struct Client {
    ours: PathBuf,
    theirs: PathBuf,
    version: u8,
    filter: Option<&'static str>,
    did: Vec<String>,
}

impl Game {
    fn new(seed: u64) -> Game {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let (world, primary) = (World::new(), Primary::start());
        let format = dice.pick(&["sha1", "sha1", "sha1", "sha256"]);
        let repo = primary.repo_with("team/app.git", format, |_| {});
        allow_all(&repo);
        // Refs that only went away are found by comparing, not by what clients are shown.
        let node = world.setup(&primary).set("compare_every = \"2s\"").start();
        let clock = 1_700_000_000;
        Game { seed, dice, world, primary, repo, node, clients: Vec::new(), clock, commits: 0 }
    }

    fn play(mut self) {
        for step in 0..STEPS {
            for _ in 0..2 + self.dice.below(6) {
                self.grow();
            }
            // What a hosting service does now and then: other packs, other deltas.
            if self.dice.below(4) == 0 {
                self.repo.git().run("repack -adfq --depth=8");
            }
            mirrored(&self.world, &self.node, &self.repo);
            self.new_client(step);
            for _ in 0..3 {
                self.old_client(step);
            }
        }
        if !passthrough() {
            let newest = self.world.store.newest(&self.repo.path).expect("a generation");
            let layers = newest["layers"].as_array().expect("layers").len();
            assert!(layers >= 3, "only {layers} layers, seed {}", self.seed);
        }
    }

    // --- the repository ---

    fn names(&self, under: &str) -> Vec<String> {
        self.repo.git().args(&["for-each-ref", "--format=%(refname)", under]).must().lines()
    }

    fn any_commit(&mut self) -> String {
        self.dice.one(&self.repo.git().run("rev-list --all").lines())
    }

    /// One push.
    fn grow(&mut self) {
        let branches = self.names("refs/heads");
        if branches.is_empty() {
            let changes = self.changes();
            return drop(self.commit("refs/heads/main", &[], &changes));
        }
        let branch = self.dice.one(&branches);
        let tip = self.repo.oid(&branch);
        let fresh = format!("refs/heads/b{}", self.commits);
        match self.dice.below(16) {
            0..=3 => {
                let changes = self.changes();
                self.commit(&branch, &[tip], &changes);
            }
            4 | 5 => {
                // A merge, of up to four.
                let mut parents = vec![tip];
                for _ in 0..1 + self.dice.below(3) {
                    parents.push(self.repo.oid(&self.dice.one(&branches)));
                }
                let mut seen = BTreeSet::new();
                parents.retain(|parent| seen.insert(parent.clone()));
                let changes = if self.dice.below(2) == 0 { String::new() } else { self.changes() };
                self.commit(&branch, &parents, &changes);
            }
            6 => {
                // Two branches that merge each other.
                let other = self.dice.one(&branches);
                let there = self.repo.oid(&other);
                if there != tip {
                    self.commit(&branch, &[tip.clone(), there.clone()], "");
                    self.commit(&other, &[there, tip], "");
                }
            }
            7 => {
                // Back to an old tree.
                let old = self.any_commit();
                let tree = self.repo.oid(&format!("{old}^{{tree}}"));
                self.commit(&branch, &[tip], &format!("M 040000 {tree} \"\"\n"));
            }
            8 => {
                // A folder goes elsewhere.
                let from = self.dice.pick(&["src", "docs", "src/lib", "moved"]);
                let there = self.repo.git().args(&["rev-parse", "-q", "--verify", &format!("{tip}:{from}")]);
                if there.ok() {
                    let to = self.dice.pick(&["moved", "docs/in", "lib"]);
                    self.commit(&branch, &[tip], &format!("D {from}\nM 040000 {} {to}\n", there.line()));
                }
            }
            9 => {
                let changes = self.changes();
                self.commit(&fresh, &[], &changes);
            }
            10 => {
                let at = self.any_commit();
                let changes = self.changes();
                self.commit(&fresh, &[at], &changes);
            }
            11 if branches.len() > 2 && branch != "refs/heads/main" => self.repo.delete_ref(&branch),
            11 | 12 => {
                // A force-push.
                let back = format!("{tip}~{}", 1 + self.dice.below(3));
                let found = self.repo.git().args(&["rev-parse", "-q", "--verify", &back]);
                if found.ok() {
                    let changes = self.changes();
                    self.commit(&branch, &[found.line()], &changes);
                }
            }
            13 | 14 => self.tag(),
            _ => {
                let changes = self.changes();
                let name = format!("refs/pull/{}/head", self.dice.below(4));
                self.commit(&name, &[tip], &changes);
            }
        }
    }

    fn commit(&mut self, name: &str, parents: &[String], changes: &str) -> String {
        self.commits += 1;
        // Clocks are not always right, nor do commits take time.
        self.clock += 60 * self.dice.below(3) as u64;
        let when = self.clock - if self.dice.below(8) == 0 { 600 } else { 0 };
        let n = self.commits;
        let mut script = format!("reset {name}\n\ncommit {name}\ncommitter T <t@example.com> {when} +0000\n");
        script.push_str(&format!("data <<E\ncommit {n}\nE\n"));
        for (at, parent) in parents.iter().enumerate() {
            script.push_str(&format!("{} {parent}\n", if at == 0 { "from" } else { "merge" }));
        }
        script.push_str(changes);
        self.repo.git().with_input(&["fast-import", "--quiet", "--force"], script.as_bytes()).must();
        self.repo.oid(name)
    }

    fn changes(&mut self) -> String {
        let paths = ["README", "src/main.c", "src/lib/a.c", "src/lib/b.c", "docs/big.txt", "docs/x/y/z"];
        let mut out = String::new();
        for _ in 0..1 + self.dice.below(3) {
            let at = self.dice.below(paths.len());
            if self.dice.below(8) == 0 {
                out.push_str(&format!("D {}\n", paths[at]));
                continue;
            }
            let mut lines: Vec<String> =
                prose(at as u64 + 1, 60 * (at + 1)).lines().map(str::to_owned).collect();
            let line = self.dice.below(lines.len());
            lines[line] = format!("changed {}", self.dice.below(9));
            let text = lines.join("\n");
            out.push_str(&format!("M 100644 inline {}\ndata {}\n{text}\n", paths[at], text.len()));
        }
        out
    }

    fn tag(&mut self) {
        let (tags, at) = (self.names("refs/tags"), self.any_commit());
        let name = format!("t{}", self.dice.below(5));
        let g = self.repo.git();
        match self.dice.below(7) {
            0 => drop(g.args(&["tag", "-f", &name, &at]).must()),
            1 | 2 => drop(g.args(&["tag", "-f", "-a", "-m", &name, &name, &at]).must()),
            3 if !tags.is_empty() => {
                let inner = self.dice.one(&tags);
                drop(g.args(&["tag", "-f", "-a", "-m", "nested", &format!("nested-{name}"), &inner]).must());
            }
            4 => {
                // A commit's own tree is not filtered like one that only a tag leads to.
                let path = if self.dice.below(2) == 0 { "^{tree}" } else { ":src" };
                let tree = g.args(&["rev-parse", "-q", "--verify", &format!("{at}{path}")]);
                if tree.ok() {
                    g.args(&["tag", "-f", "-a", "-m", "tree", "of-tree", &tree.line()]).must();
                }
            }
            5 if !tags.is_empty() => self.repo.delete_ref(&self.dice.one(&tags)),
            _ => self.repo.set_ref(&format!("refs/tags/light-{name}"), &at),
        }
    }

    // --- the clients ---

    fn date(&mut self) -> u64 {
        1_700_000_000 + self.dice.below((self.clock - 1_700_000_000) as usize + 60) as u64
    }

    /// How a history is cut, or not.
    fn cut(&mut self) -> String {
        let n = 1 + self.dice.below(5);
        match self.dice.below(4) {
            0 | 1 => format!("--depth={n}"),
            2 => format!("--shallow-since={}", self.date()),
            _ => {
                let names = [self.names("refs/heads"), self.names("refs/tags")].concat();
                let name = self.dice.one(&names);
                let short = name.strip_prefix("refs/heads/").or(name.strip_prefix("refs/tags/"));
                format!("--shallow-exclude={}", short.unwrap_or(&name))
            }
        }
    }

    fn new_client(&mut self, step: usize) {
        let (mut line, mut filter) = ("clone -q".to_owned(), None);
        let mut add = |word: &str| {
            line.push(' ');
            line.push_str(word);
        };
        add(self.dice.pick(&["", "--bare", "--mirror", "--no-checkout"]));
        if self.dice.below(3) == 0 {
            add(self.dice.pick(&["--no-tags", "--single-branch", "--no-single-branch"]));
        }
        if self.dice.below(3) == 0 {
            add(&self.cut());
        }
        if self.dice.below(3) == 0 {
            filter = Some(self.dice.pick(FILTERS));
        }
        if let Some(filter) = filter {
            add(&format!("--filter={filter}"));
        }
        if self.dice.below(4) == 0 {
            let branch = self.dice.one(&self.names("refs/heads"));
            add(&format!("-b {}", branch.trim_start_matches("refs/heads/")));
        }
        add("{url} .");
        let version = [2, 2, 2, 1, 0][self.dice.below(5)];
        let (_, ours) = self.world.client("ours");
        let (_, theirs) = self.world.client("theirs");
        let mut client = Client { ours, theirs, version, filter, did: Vec::new() };
        let cloned = self.run(step, &mut client, &line, true);
        if cloned {
            self.clients.push(client);
        }
    }

    fn old_client(&mut self, step: usize) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.dice.below(self.clients.len());
        let mut client = self.clients.swap_remove(at);
        for _ in 0..1 + self.dice.below(2) {
            let line = self.operation();
            self.run(step, &mut client, &line, false);
        }
        self.clients.push(client);
    }

    fn operation(&mut self) -> String {
        let n = 1 + self.dice.below(4);
        match self.dice.below(16) {
            0 | 1 => "fetch -q origin".into(),
            2 => "fetch -q --prune origin".into(),
            3 => "fetch -q --tags --force origin".into(),
            4 => "fetch -q --no-tags origin +refs/heads/*:refs/remotes/origin/*".into(),
            5 => format!("fetch -q {} origin", self.cut()),
            6 => format!("fetch -q --deepen={n} origin"),
            7 => "fetch -q --unshallow origin".into(),
            8 => "-c fetch.unpackLimit=1 fetch -q origin +refs/*:refs/remotes/all/*".into(),
            9 => format!("fetch -q origin +{}:refs/heads/got{n}", self.dice.one(&self.names("refs/heads"))),
            10 => format!("fetch -q origin {}", self.any_commit()),
            11 => "fetch -q --refetch origin".into(),
            12 => "-c fetch.negotiationAlgorithm=skipping fetch -q origin".into(),
            13 => format!("checkout -q -f --detach {}", self.any_commit()),
            14 => "commit -q --allow-empty -m mine".into(),
            _ => format!("fetch -q {} origin {}", self.cut(), self.any_commit()),
        }
    }

    /// Runs one command in both places and compares; says whether it did what was asked.
    fn run(&mut self, step: usize, client: &mut Client, line: &str, first: bool) -> bool {
        client.did.push(format!("step {step}: git {line}"));
        let (primary, mirror) = (self.primary.repo_url(&self.repo.path), self.node.repo(&self.repo.path));
        let version = client.version;
        let go = |dir: &PathBuf, url: &str| -> (bool, String, Option<State>) {
            let with: Git = git(dir).protocol(version);
            let out = with.try_run(&line.replace("{url}", url));
            let there = dir.join(".git").exists() || dir.join("HEAD").exists();
            (out.ok(), said(&out, url), there.then(|| State::of(dir)))
        };
        let ours = go(&client.ours, &primary);
        let passed = self.node.passed();
        let theirs = go(&client.theirs, &mirror);
        let passed = self.node.passed() - passed;
        let mut wrong = String::new();
        if ours.1 != theirs.1 && !told_better(&ours.1, &theirs.1) {
            wrong.push_str(&format!("  primary: {}\n  mirror:  {}\n", ours.1, theirs.1));
        }
        match (&ours.2, &theirs.2) {
            // git forgets that a tree was asked for where it is also the root of a commit and its filter drops roots: the
            // clone then lacks what its own ref names. The mirror sends it.
            (Some(a), Some(b))
                if client.filter.is_some() && first && lacks_its_refs(a) && !lacks_its_refs(b) =>
            {
                wrong.push_str(&without_objects(a).differences(&without_objects(b), false));
                let lost: Vec<_> = a.stored.difference(&b.stored).collect();
                if !lost.is_empty() || b.stored.len() > a.stored.len() + b.refs.len() {
                    let (a, b) = (a.stored.len(), b.stored.len());
                    wrong.push_str(&format!(
                        "  {a} objects from the primary, {b} through the mirror, without {lost:?}\n"
                    ));
                }
            }
            (Some(a), Some(b)) => match client.filter.filter(|_| !first) {
                None => wrong.push_str(&a.differences(b, first)),
                Some(filter) => {
                    wrong.push_str(&without_objects(a).differences(&without_objects(b), false));
                    let (ours, theirs) = (lacks(&client.ours, filter), lacks(&client.theirs, filter));
                    let lost: Vec<_> = theirs.difference(&ours).collect();
                    if !lost.is_empty() {
                        wrong.push_str(&format!("  should have come through the mirror: {lost:?}\n"));
                    }
                    if b.stored.len() > a.stored.len() + a.stored.len() / 4 + 20 {
                        let (a, b) = (a.stored.len(), b.stored.len());
                        wrong.push_str(&format!("  {a} objects from the primary, {b} through the mirror\n"));
                    }
                }
            },
            (None, None) => {}
            _ => wrong.push_str("  only one of them left a repository\n"),
        }
        if version == 2 && passed > 0.0 && !passthrough() {
            wrong.push_str(&format!("  passed through: {}\n", self.node.answers_text()));
        }
        let did = client.did.join("\n  ");
        assert!(wrong.is_empty(), "seed {}, v{version}\n  {did}\n{wrong}", self.seed);
        ours.0
    }
}

/// Whether an object that a ref names is not there.
fn lacks_its_refs(state: &State) -> bool {
    state.objects.iter().any(|line| line.contains("rev-list failed: fatal: bad object"))
}

/// A filtered increment may bring more than its filter keeps: git's client fetches the bases of deltas that it lacks.
/// So what is compared there is what it should have brought.
fn without_objects(state: &State) -> State {
    State { objects: BTreeSet::new(), stored: BTreeSet::new(), ..state.clone() }
}

/// What the filter keeps of all that hangs on a client's refs, and is not there.
fn lacks(dir: &Path, filter: &str) -> BTreeSet<String> {
    let filter = format!("--filter={filter}");
    let listed = git(dir).args(&["rev-list", "--objects", "--missing=print", "--all", &filter]).must();
    listed.lines().into_iter().filter(|line| line.starts_with('?')).collect()
}
