//! The demo's story: its steps in order, each told in plain words with its time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::DemoError;
use super::counters::Counters;
use super::git::Git;
use super::node::{Node, Plan};
use super::proof::prove;
use crate::cli::table::safe;

/// How long the first sync of the small primary may take.
const PATIENCE_SMALL: Duration = Duration::from_secs(60);
/// How long the first sync of a real repository may take.
const PATIENCE_REAL: Duration = Duration::from_secs(6 * 3600);

/// Everything the story needs.
pub struct Story {
    /// How nodes are started.
    pub plan: Plan,
    /// How git is run.
    pub git: Git,
    /// The repository's path on the primary.
    pub repo: String,
    /// The repository's own address, without the mirror.
    pub direct: String,
    /// Whether the primary is ours, so that we may push to it.
    pub ours: bool,
    /// Where everything is put.
    pub dir: PathBuf,
    /// Number of the next step.
    step: usize,
}

impl Story {
    /// Begins a story that works in `dir`.
    pub fn new(plan: Plan, git: Git, repo: String, direct: String, ours: bool, dir: PathBuf) -> Self {
        Self { plan, git, repo, direct, ours, dir, step: 1 }
    }

    /// Tells a step and how long it took.
    pub fn tell(&mut self, begun: Instant, text: &str) {
        for (number, line) in text.lines().enumerate() {
            match number {
                0 => println!("{:>2}.  {:>7}  {line}", self.step, time(begun.elapsed())),
                _ => println!("              {line}"),
            }
        }
        self.step += 1;
    }

    /// Runs all steps. `node` always holds the running node, so that the caller can stop it however this ends.
    pub async fn run(&mut self, node: &mut Option<Node>) -> Result<(), DemoError> {
        let begun = Instant::now();
        let url = self.start(node, "node-1").await?;
        self.tell(
            begun,
            &format!("A mirror runs at {url}. Its bucket is a directory:\n{}", self.plan.store.display()),
        );

        let (begun, before) = (Instant::now(), counters(node).await?);
        self.clone_to(&url, "first").await?;
        let from = counters(node).await?.since(&before).words();
        self.tell(begun, &format!(
            "First clone through the mirror. It had never heard of {}, so what the primary\nanswers is passed through, \
             while the mirror begins to fetch its own copy.\nPacks: {from}.",
            safe(&self.repo)
        ));

        let begun = Instant::now();
        if let Some(node) = node {
            node.synced(if self.ours { PATIENCE_SMALL } else { PATIENCE_REAL }).await?;
        }
        self.tell(begun, "The mirror's own copy is complete and published in the bucket.");

        let (begun, before) = (Instant::now(), counters(node).await?);
        self.clone_to(&url, "second").await?;
        let from = counters(node).await?.since(&before);
        self.tell(
            begun,
            &format!(
                "Second clone. The primary was asked what it shows and whether this client may read;\n\
             the pack came from the bucket.\nPacks: {}.",
                from.words()
            ),
        );
        if from.bucket == 0 {
            return Err(DemoError::NotMirrored { answers: from.words() });
        }

        self.prove("proof-1", &url, "Proof").await?;
        if self.ours {
            self.push_and_fetch(node, &url).await?;
        }
        self.another_node(node).await
    }

    async fn start(&mut self, node: &mut Option<Node>, name: &str) -> Result<String, DemoError> {
        let started = Node::start(&self.plan, &self.dir.join(name)).await?;
        let url = started.url.clone();
        self.git.show_to(&url);
        *node = Some(started);
        Ok(url)
    }

    async fn clone_to(&self, url: &str, name: &str) -> Result<(), DemoError> {
        let address = self.through(url);
        self.git.run(&self.dir, &["clone", "-q", "--origin", "origin", &address, name]).await?;
        Ok(())
    }

    /// The repository's address through the mirror.
    fn through(&self, url: &str) -> String {
        format!("{url}/{}", self.repo)
    }

    async fn prove(&mut self, name: &str, url: &str, title: &str) -> Result<(), DemoError> {
        let begun = Instant::now();
        let scratch = self.dir.join(name);
        std::fs::create_dir_all(&scratch)?;
        let proof = prove(&self.git, &self.direct, &self.through(url), &scratch).await?;
        std::fs::remove_dir_all(&scratch)?;
        let check = if proof.remarks { "remarks on both sides alike" } else { "nothing to complain about" };
        self.tell(begun, &format!(
            "{title}, by git alone: the mirror gives exactly what the primary gives.\n\
             ls-remote: the same {} refs. rev-list --objects --all: the same {} objects.\nfsck --strict: {check}.",
            proof.refs, proof.objects
        ));
        Ok(())
    }

    /// Pushes from the first clone through the mirror and fetches in the second.
    async fn push_and_fetch(&mut self, node: &mut Option<Node>, url: &str) -> Result<(), DemoError> {
        let (first, second) = (self.dir.join("first"), self.dir.join("second"));
        let begun = Instant::now();
        std::fs::write(first.join("hello.txt"), "Hello through the mirror\n")?;
        self.git.run(&first, &["add", "hello.txt"]).await?;
        self.git.run(&first, &["commit", "-q", "-m", "Say hello"]).await?;
        self.git.run(&first, &["push", "-q", "origin", "HEAD:main", "HEAD:refs/heads/hello"]).await?;
        let pushed = self.git.run(&first, &["rev-parse", "HEAD"]).await?;
        let primary = self.git.run(&self.dir, &["ls-remote", &self.direct, "refs/heads/hello"]).await?;
        if primary.split_whitespace().next() != Some(pushed.trim()) {
            return Err(DemoError::Differs { what: "push", first: "the primary does not have it".into() });
        }
        self.tell(begun, "A commit was pushed through the mirror, as a stream: the primary has it.");

        let (begun, before) = (Instant::now(), counters(node).await?);
        self.git.run(&second, &["fetch", "-q", "origin"]).await?;
        let fetched = self.git.run(&second, &["rev-parse", "origin/main"]).await?;
        if fetched != pushed {
            return Err(DemoError::Differs {
                what: "fetch after the push",
                first: "it did not bring the commit".into(),
            });
        }
        let from = counters(node).await?.since(&before).words();
        self.tell(begun, &format!("The other clone fetched at once and has the new commit.\nPacks: {from}."));
        self.prove("proof-2", url, "Proof after the push").await
    }

    /// Kills the node and serves from a new one with an empty disk.
    async fn another_node(&mut self, node: &mut Option<Node>) -> Result<(), DemoError> {
        if let Some(lost) = node.take() {
            lost.kill().await?;
        }
        let begun = Instant::now();
        let url = self.start(node, "node-2").await?;
        self.clone_to(&url, "third").await?;
        let from = counters(node).await?;
        let heads = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/remotes/origin"];
        let third = self.git.run(&self.dir.join("third"), &heads).await?;
        let second = self.git.run(&self.dir.join("second"), &heads).await?;
        if self.ours && third != second {
            return Err(DemoError::Differs {
                what: "clone from the new node",
                first: "its refs are others".into(),
            });
        }
        self.tell(begun, &format!(
            "That node was killed. A new one with an empty disk took over the bucket, and a clone through it\nis complete. \
             Packs: {}.",
            from.words()
        ));
        if from.bucket == 0 {
            return Err(DemoError::NotMirrored { answers: from.words() });
        }
        Ok(())
    }
}

async fn counters(node: &Option<Node>) -> Result<Counters, DemoError> {
    match node {
        Some(node) => node.counters().await,
        None => Ok(Counters::default()),
    }
}

/// Writes a time as people say it.
fn time(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{} ms", duration.as_millis()),
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        _ => crate::cli::table::short(duration),
    }
}

/// The address of `repo` on a primary, as git takes it.
pub fn direct_address(primary: &str, repo: &str) -> String {
    if primary.contains("://") {
        return format!("{}/{repo}", primary.trim_end_matches('/'));
    }
    let path = Path::new(primary).join(repo);
    let with_git = PathBuf::from(format!("{}.git", path.display()));
    if !path.exists() && with_git.exists() {
        with_git.display().to_string()
    } else {
        path.display().to_string()
    }
}
