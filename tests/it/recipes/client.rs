//! A client's machine: a home, a system's configuration, packmirror in the path, and nothing of this machine's own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{PASSWORD, USER, bare};
use crate::git::{Output, finish};
use crate::node::Node;
use crate::primary::Primary;
use crate::world::World;

/// A machine on which somebody uses git.
pub struct Client {
    /// The home directory.
    pub home: PathBuf,
    /// Where commands run.
    pub work: PathBuf,
    /// What stands for `https://git.example.com`.
    pub primary: String,
    /// What stands for `https://mirror.eu.example.com`.
    pub mirror: String,
    path: OsString,
    env: Vec<(String, String)>,
}

impl Client {
    pub fn new(world: &World, primary: &Primary, node: &Node) -> Self {
        Self::at(world, &primary.url, &node.url)
    }

    /// A client of the primary and the mirror at these addresses.
    pub fn at(world: &World, primary: &str, mirror: &str) -> Self {
        let own = Path::new(env!("CARGO_BIN_EXE_packmirror")).parent().expect("a folder").to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let chosen = std::env::var_os("PACKMIRROR_TEST_GIT");
        let chosen = chosen.and_then(|git| Some(Path::new(&git).parent()?.to_owned()));
        let path = std::env::join_paths([own].into_iter().chain(chosen).chain(std::env::split_paths(&path)))
            .expect("a path");
        let client = Client {
            home: world.folder("home"),
            work: world.folder("work"),
            primary: primary.to_owned(),
            mirror: mirror.to_owned(),
            path,
            env: Vec::new(),
        };
        let user = format!("[user]\n\tname = {USER}\n\temail = {USER}@example.com\n");
        std::fs::write(client.system(), user).expect("a configuration");
        client
    }

    /// The file that `git config --system` writes.
    pub fn system(&self) -> PathBuf {
        self.home.join("system")
    }

    /// Finds programs in another folder too.
    pub fn find(&mut self, folder: &Path) {
        let all = std::env::split_paths(&self.path).chain([folder.to_owned()]).collect::<Vec<_>>();
        self.path = std::env::join_paths(all).expect("a path");
    }

    /// Sets a variable for all that is run from now on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.env.push((key.into(), value.into()));
    }

    /// Takes the primary by the name that it has in the page: for tools whose names of things have no port in them.
    pub fn by_name(&mut self) {
        self.primary = "https://git.example.com".into();
    }

    /// A program as it runs here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = bare(program);
        command
            .current_dir(&self.work)
            .env_remove("GIT_CONFIG_NOSYSTEM")
            .env_remove("GIT_CONFIG_GLOBAL")
            .env("GIT_CONFIG_SYSTEM", self.system())
            .env("HOME", &self.home)
            .env("PATH", &self.path)
            .envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// A text of the page with the hosts of this test in it.
    pub fn here(&self, text: &str) -> String {
        text.replace("https://git.example.com", &self.primary)
            .replace("https://mirror.eu.example.com", &self.mirror)
    }

    /// Runs lines of the page in a shell that ends at the first error.
    #[track_caller]
    pub fn follow(&self, recipe: &str) -> Output {
        self.shell(&self.here(recipe)).must()
    }

    /// Runs a script in a shell that ends at the first error.
    pub fn shell(&self, script: &str) -> Output {
        let mut command = self.command("sh");
        command.args(["-e", "-c", script]);
        finish(command, b"", Duration::from_secs(120))
    }

    /// Runs `git <line>`, split at spaces.
    pub fn git(&self, line: &str) -> Output {
        let mut command = self.command("git");
        command.args(line.split_whitespace());
        finish(command, b"", Duration::from_secs(60))
    }

    /// Keeps the password for the primary where git's helper `store` looks, and lets git use that.
    pub fn remember_the_password(&self) {
        self.remember(PASSWORD);
    }

    /// The same with another password.
    pub fn remember(&self, password: &str) {
        self.remember_for(USER, password);
    }

    /// The same for another user.
    pub fn remember_for(&self, user: &str, password: &str) {
        let lines = format!("url={}\nusername={user}\npassword={password}\n\n", self.primary);
        self.git("config --global credential.helper store").must();
        let mut command = self.command("git");
        command.args(["credential", "approve"]);
        finish(command, lines.as_bytes(), Duration::from_secs(20)).must();
    }

    /// What git's helper `store` keeps.
    pub fn remembered(&self) -> String {
        std::fs::read_to_string(self.home.join(".git-credentials")).unwrap_or_default()
    }
}
