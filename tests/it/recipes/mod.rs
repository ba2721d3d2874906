//! The recipes of docs/clients.md, each run with the real tool: a private repository, a mirror under another name, and a
//! client that is set up by the very lines of the page.
//!
//! [`page`] reads the lines out of the page, [`client`] is the machine they are run on. A recipe has worked when the tool
//! got what the primary has, and the bucket gave it.

mod client;
mod page;

mod ci;
mod developers;
mod doctor;
mod lfs;
mod tools;

use std::path::{Path, PathBuf};

use crate::git::{clean, git};
use crate::node::Node;
use crate::oracle::{in_bucket, mirrored_at};
use crate::primary::{Primary, Repo};
use crate::shapes;
use crate::world::World;

use client::Client;

/// Who may read and write everything here, and the password.
pub const USER: &str = "alice";
/// A password with letters that URLs, shells and header lines would have to quote.
pub const PASSWORD: &str = "s3cret:%2f'=&x";

/// A primary with a private repository, a mirror that has it, and a client of nobody yet.
pub struct Scene {
    pub world: World,
    pub primary: Primary,
    pub node: Node,
    pub client: Client,
    pub repo: Repo,
}

impl Scene {
    /// A scene whose repository is `team/app.git`.
    #[track_caller]
    pub fn new() -> Self {
        let (world, primary) = (World::new(), Primary::start());
        primary.account(USER, PASSWORD);
        primary.account("service", "servicepw");
        let node = world.setup(&primary).set("credential = \"service:servicepw\"").start();
        let client = Client::new(&world, &primary, &node);
        let repo = primary.repo("team/app.git", shapes::deltas);
        let scene = Scene { world, primary, node, client, repo };
        scene.take_in(&scene.repo);
        scene
    }

    /// Another private repository that the mirror has.
    #[track_caller]
    pub fn another(&self, path: &str, shape: impl FnOnce(&Path)) -> Repo {
        let repo = self.primary.repo(path, shape);
        self.take_in(&repo);
        repo
    }

    /// Makes a repository private and waits until the bucket has it as it is now.
    #[track_caller]
    pub fn take_in(&self, repo: &Repo) {
        self.primary.private(&repo.path, &[USER, "service"]);
        mirrored_at(&self.world, &self.node, &self.node.repo_as("service", "servicepw", &repo.path), repo);
        in_bucket(&self.world, &self.node, repo);
    }

    /// The address that people know: the primary's.
    pub fn url(&self, path: &str) -> String {
        self.primary.repo_url(path)
    }

    /// How often the primary was asked for a pack.
    pub fn packs_of_the_primary(&self) -> usize {
        self.primary.count(|seen| seen.is("fetch"))
    }

    /// Runs `body`, in which the client must get packs from the bucket and none from the primary.
    #[track_caller]
    pub fn by_the_mirror<T>(&self, body: impl FnOnce() -> T) -> T {
        let before = self.packs_of_the_primary();
        let result = crate::oracle::from_bucket(&self.node, body);
        assert_eq!(self.packs_of_the_primary(), before, "the primary was asked for a pack");
        result
    }
}

/// The id of a clone's HEAD.
#[track_caller]
pub fn head(dir: &Path) -> String {
    git(dir).run("rev-parse HEAD").line()
}

/// A file of these tests that a tool runs.
#[track_caller]
pub fn script(path: &Path, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("a script");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a script");
    path.to_owned()
}

/// Marks a command as one of a machine without any settings.
pub fn bare(program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    clean(&mut command);
    command
}
