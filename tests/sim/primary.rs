//! The primary of the simulation: real git's answers, kept, so that thousands of schedules cost a few hundred processes.
//!
//! A history is made once a process, with states that a repository goes through: pushes, a force-push, deleted branches, a
//! history made anew. Each state is a bare repository on the objects of all; what `git upload-pack` says to a request in a
//! state is remembered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, stream};
use http::StatusCode;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::turns::note;
use super::world::scratch;
use crate::git::path::Endpoint;
use crate::primary::PrimaryError;
use crate::primary::played::{Asked, Play, Said};

/// The prefix of refs that a question for a grant names, and no repository has.
const NO_REF: &[u8] = b"refs/packmirror/none/";
const RESULT: &str = "application/x-git-upload-pack-result";

/// A state: the refs, and where HEAD points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub refs: BTreeMap<String, String>,
    pub head: &'static str,
}

/// The history and its states.
pub struct Universe {
    dir: tempfile::TempDir,
    pub states: Vec<State>,
    /// The objects that each state reaches.
    pub reached: Vec<BTreeSet<String>>,
    said: Mutex<HashMap<(usize, bool, Bytes), Bytes>>,
}

/// Runs git without settings of this machine. It is called by its whole path: where a program has to be looked for in a `PATH` that
/// was set for it, all pages of this process are copied for each start.
pub fn git(dir: &Path) -> Command {
    static GIT: OnceLock<PathBuf> = OnceLock::new();
    let whole = GIT.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::env::split_paths(&path).map(|folder| folder.join("git")).find(|git| git.is_file());
        all.unwrap_or_else(|| "git".into())
    });
    let mut git = Command::new(whole);
    git.current_dir(dir).env_clear();
    git.envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null"), ("HOME", "/nonexistent")]);
    git
}

/// Runs it with input; it must succeed.
pub fn run(git: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(out.status.success(), "{git:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// Commits as fast-import reads them: branch, mark, parents, files that change.
fn commit(out: &mut Vec<u8>, chance: &mut StdRng, branch: &str, mark: u32, parents: &[u32]) {
    let text = format!("commit {mark} on {branch}");
    out.extend(format!("commit refs/heads/{branch}\nmark :{mark}\n").bytes());
    out.extend(format!("committer C <c@example.com> {} +0000\n", 1_700_000_000 + mark).bytes());
    out.extend(format!("data {}\n{text}\n", text.len()).bytes());
    for (n, parent) in parents.iter().enumerate() {
        out.extend(format!("{} :{parent}\n", if n == 0 { "from" } else { "merge" }).bytes());
    }
    for _ in 0..chance.random_range(1..4) {
        let file = format!("d{}/f{}", chance.random_range(0..3), chance.random_range(0..4));
        let content: String = (0..chance.random_range(5..60))
            .map(|line| format!("{} {line} {}\n", file, chance.random_range(0..5u32)))
            .collect();
        out.extend(format!("M 100644 inline {file}\ndata {}\n{content}\n", content.len()).bytes());
    }
}

impl Universe {
    /// The one of this process.
    pub fn get() -> &'static Self {
        static ONE: OnceLock<Universe> = OnceLock::new();
        ONE.get_or_init(Self::make)
    }

    fn make() -> Self {
        let dir = scratch();
        run(git(dir.path()).args(["init", "-q", "--bare", "all.git"]), b"");
        let all = dir.path().join("all.git");
        run(git(dir.path()).args(["init", "-q", "--bare", "empty.git"]), b"");
        let mut chance = StdRng::seed_from_u64(11);
        let mut input = Vec::new();
        for n in 1..=14 {
            let parents = if n == 1 { vec![] } else { vec![n - 1] };
            commit(&mut input, &mut chance, "main", n, &parents);
        }
        for n in 21..=25 {
            commit(&mut input, &mut chance, "topic", n, &[if n == 21 { 4 } else { n - 1 }]);
        }
        for n in 31..=34 {
            commit(&mut input, &mut chance, "rewritten", n, &[if n == 31 { 6 } else { n - 1 }]);
        }
        for n in 41..=43 {
            let parents = if n == 41 { vec![] } else { vec![n - 1] };
            commit(&mut input, &mut chance, "anew", n, &parents);
        }
        commit(&mut input, &mut chance, "merged", 51, &[12, 24]);
        for (tag, mark) in [("v1", 5), ("v2", 10)] {
            input.extend(
                format!(
                    "tag {tag}\nfrom :{mark}\ntagger C <c@example.com> 1700000000 +0000\ndata 3\n{tag}\n\n"
                )
                .bytes(),
            );
        }
        let marks = dir.path().join("marks");
        let export = format!("--export-marks={}", marks.display());
        run(git(&all).args(["fast-import", "--quiet", &export]), &input);
        let marks: HashMap<u32, String> = std::fs::read_to_string(marks)
            .unwrap()
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(mark, oid)| (mark[1..].parse().unwrap(), oid.to_owned()))
            .collect();
        let tag = |name: &str| {
            let out = run(git(&all).args(["rev-parse", &format!("refs/tags/{name}")]), b"");
            String::from_utf8(out).unwrap().trim().to_owned()
        };
        let (v1, v2) = (tag("v1"), tag("v2"));
        let state = |refs: &[(&str, u32)], tags: &[(&str, &String)]| State {
            refs: refs
                .iter()
                .map(|(name, mark)| (format!("refs/heads/{name}"), marks[mark].clone()))
                .chain(tags.iter().map(|(name, oid)| (format!("refs/tags/{name}"), (*oid).clone())))
                .collect(),
            head: "refs/heads/main",
        };
        let states = vec![
            state(&[("main", 2)], &[]),
            state(&[("main", 4)], &[]),
            state(&[("main", 6), ("topic", 22)], &[("v1", &v1)]),
            state(&[("main", 8), ("topic", 24)], &[("v1", &v1)]),
            state(&[("main", 32), ("topic", 24)], &[("v1", &v1)]),
            state(&[("main", 12), ("topic", 25)], &[("v1", &v1), ("v2", &v2)]),
            state(&[("main", 13), ("side", 41)], &[("v1", &v1), ("v2", &v2)]),
            state(&[("main", 51), ("topic", 24)], &[("v2", &v2)]),
            state(&[("main", 43)], &[]),
            state(&[("main", 34), ("topic", 21)], &[("v2", &v2)]),
            state(&[("main", 14), ("topic", 23), ("light", 9)], &[("v1", &v1), ("v2", &v2)]),
        ];
        let mut reached = Vec::new();
        for (n, state) in states.iter().enumerate() {
            run(git(dir.path()).args(["init", "-q", "--bare", "-b", "main", &format!("{n}.git")]), b"");
            let bare = dir.path().join(format!("{n}.git"));
            std::fs::write(
                bare.join("objects/info/alternates"),
                format!("{}\n", all.join("objects").display()),
            )
            .unwrap();
            let updates: String =
                state.refs.iter().map(|(name, oid)| format!("create {name} {oid}\n")).collect();
            run(git(&bare).args(["update-ref", "--stdin"]), updates.as_bytes());
            let listed = run(git(&bare).args(["rev-list", "--objects", "--all"]), b"");
            let listed = String::from_utf8(listed).unwrap();
            reached.push(listed.lines().map(|line| line[..40].to_owned()).collect());
        }
        Self { dir, states, reached, said: Mutex::default() }
    }

    /// The bare repository of a state.
    pub fn repo(&self, state: usize) -> PathBuf {
        self.dir.path().join(format!("{state}.git"))
    }

    /// A pack of all that a state reaches.
    pub fn pack(&self, state: usize) -> Vec<u8> {
        let mut git = git(&self.repo(state));
        run(git.args(["pack-objects", "--all", "--revs", "--stdout", "-q"]), b"")
    }

    /// An empty repository.
    pub fn empty(&self) -> PathBuf {
        self.dir.path().join("empty.git")
    }

    /// What git says to a request in a state. Blocks.
    fn says(&self, state: usize, advertises: bool, body: &Bytes) -> Bytes {
        let key = (state, advertises, body.clone());
        if let Some(said) = self.said.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return said.clone();
        }
        let said = says(&self.repo(state), advertises, body);
        self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(key, said.clone());
        said
    }
}

/// What git says to a request for a repository. Blocks.
fn says(repo: &Path, advertises: bool, body: &Bytes) -> Bytes {
    let mut git = git(repo);
    git.env("GIT_PROTOCOL", "version=2").args(["upload-pack", "--stateless-rpc"]);
    if advertises {
        git.arg("--http-backend-info-refs");
    }
    let out = run(git.arg(repo), body);
    Bytes::from(if advertises { [&b"001e# service=git-upload-pack\n0000"[..], &out].concat() } else { out })
}

/// What the primary does wrong, in thousandths of its answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mood {
    pub unreachable: u32,
    pub errors: u32,
    pub slow: u32,
    pub cut: u32,
}

#[derive(Debug)]
struct Shown {
    /// The state, and since when.
    state: Option<usize>,
    /// All states that it was in, with the time until which.
    past: Vec<(usize, Instant)>,
}

/// The host.
pub struct Host {
    /// Where it is.
    pub address: &'static str,
    repos: Mutex<HashMap<String, Shown>>,
    /// Repositories that are in none of the states: where they are.
    others: Mutex<HashMap<String, PathBuf>>,
    /// It answers at once.
    pub is_prompt: AtomicBool,
    mood: Mutex<Mood>,
    chance: Mutex<StdRng>,
    /// Bytes of packs that it sent, by repository.
    pub sent: Mutex<HashMap<String, u64>>,
    /// Requests that it got.
    pub asked: AtomicU64,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

impl Host {
    pub fn new(seed: u64) -> Arc<Self> {
        Self::at("/primary", seed)
    }

    /// A host at an address of its own.
    pub fn at(address: &'static str, seed: u64) -> Arc<Self> {
        let chance = Mutex::new(StdRng::seed_from_u64(seed));
        Arc::new(Self {
            address,
            repos: Mutex::default(),
            others: Mutex::default(),
            is_prompt: AtomicBool::new(false),
            mood: Mutex::default(),
            chance,
            sent: Mutex::default(),
            asked: AtomicU64::new(0),
        })
    }

    /// Puts a repository into a state; `None` deletes it.
    pub fn set(&self, repo: &str, state: Option<usize>) {
        let mut repos = self.repos.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = repos.entry(repo.to_owned()).or_insert(Shown { state: None, past: Vec::new() });
        if let Some(old) = shown.state {
            shown.past.push((old, Instant::now()));
        }
        shown.state = state;
    }

    /// Shows a repository that lies somewhere else.
    pub fn set_other(&self, repo: &str, path: &Path) {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).insert(repo.to_owned(), path.to_owned());
    }

    /// The state of a repository now.
    pub fn state(&self, repo: &str) -> Option<usize> {
        self.repos.lock().unwrap_or_else(PoisonError::into_inner).get(repo)?.state
    }

    /// Every state that a repository was ever in.
    pub fn ever(&self, repo: &str) -> Vec<usize> {
        let repos = self.repos.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shown) = repos.get(repo) else { return Vec::new() };
        shown.past.iter().map(|(state, _)| *state).chain(shown.state).collect()
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }
}

/// The host as one node reaches it.
pub struct Line {
    pub host: Arc<Host>,
    pub runs: tokio::sync::watch::Sender<bool>,
    /// Whose it is.
    pub name: u64,
    /// The node takes any answer to its question for a grant for a yes.
    pub hears_yes: AtomicBool,
}

impl Line {
    pub fn new(host: &Arc<Host>, name: u64) -> Arc<Self> {
        let runs = tokio::sync::watch::Sender::new(true);
        Arc::new(Self { host: host.clone(), runs, name, hears_yes: AtomicBool::new(false) })
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Play for Arc<Line> {
    fn answer(&self, asked: Asked) -> BoxFuture<'static, Result<Said, PrimaryError>> {
        let line = Arc::clone(self);
        async move {
            let host = &line.host;
            host.asked.fetch_add(1, Ordering::Relaxed);
            let _ = line.runs.subscribe().wait_for(|runs| *runs).await;
            let (wait, roll, at) = {
                let mut chance = host.chance.lock().unwrap_or_else(PoisonError::into_inner);
                (
                    chance.random_range(5..50u64),
                    chance.random_range(0..1000u32),
                    chance.random_range(0..1000usize),
                )
            };
            let mood = *host.mood.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = if at < mood.slow as usize { wait * 200 } else { wait };
            note(|| format!("{} {:?} of {}: {wait} {roll}", line.name, asked.endpoint, asked.repo));
            if !host.is_prompt.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            let _ = line.runs.subscribe().wait_for(|runs| *runs).await;
            // What a question for a grant asks for (`primary::grants`).
            let is_question = asked.body.windows(NO_REF.len()).any(|window| window == NO_REF);
            if is_question && line.hears_yes.load(Ordering::Relaxed) {
                return Ok(Said {
                    status: StatusCode::OK,
                    kind: RESULT,
                    body: Box::pin(stream::iter([Ok(Bytes::from_static(b"0000"))])),
                });
            }
            if roll < mood.unreachable {
                return Err(PrimaryError::Unreachable("the wire is cut".into()));
            }
            if roll < mood.unreachable + mood.errors {
                return Ok(Said {
                    status: StatusCode::BAD_GATEWAY,
                    kind: "text/html",
                    body: Box::pin(stream::empty()),
                });
            }
            let other =
                host.others.lock().unwrap_or_else(PoisonError::into_inner).get(asked.repo.as_str()).cloned();
            let state = host.state(asked.repo.as_str());
            if other.is_none() && state.is_none() {
                return Ok(Said {
                    status: StatusCode::NOT_FOUND,
                    kind: "text/plain",
                    body: Box::pin(stream::empty()),
                });
            }
            let (advertises, kind) = match asked.endpoint {
                Endpoint::InfoRefs(_) => (true, "application/x-git-upload-pack-advertisement"),
                _ => (false, RESULT),
            };
            let (repo, body) = (asked.repo.to_string(), asked.body.clone());
            let said = crate::threads::spawn_blocking(move || match (other, state) {
                (Some(path), _) => says(&path, advertises, &body),
                (None, state) => Universe::get().says(state.unwrap_or_default(), advertises, &body),
            })
            .await;
            let mut said = said.map_err(|error| PrimaryError::Unreachable(error.to_string()))?;
            if said.windows(4).any(|four| four == b"PACK") {
                *host.sent.lock().unwrap_or_else(PoisonError::into_inner).entry(repo).or_default() +=
                    said.len() as u64;
            }
            let mut pieces = Vec::new();
            let is_cut = roll < mood.unreachable + mood.errors + mood.cut;
            if is_cut {
                said.truncate(said.len() * at / 1000);
            }
            pieces.push(Ok(said));
            if is_cut {
                pieces.push(Err(PrimaryError::Unreachable("the answer broke".into())));
            }
            Ok(Said { status: StatusCode::OK, kind, body: Box::pin(stream::iter(pieces)) })
        }
        .boxed()
    }
}
