//! Many small repositories: each with commits, branches and a tag of its own. On the primary's disk they share one pack, which
//! no client can tell.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::client::Request;
use crate::shell::{feed, git};

/// The first of them.
pub const FIRST: &str = "team-000/00000.git";
/// Commits of each.
const COMMITS: usize = 3;
/// Files of each.
const FILES: usize = 8;
/// Repositories of one group.
const GROUP: usize = 100;

pub struct Repos {
    pub root: PathBuf,
    pub count: usize,
    /// The newest commit of each.
    heads: Vec<String>,
}

impl Repos {
    /// Makes them below `root`, or finds them there from an earlier run.
    pub fn prepare(root: &Path, count: usize) -> Result<Self> {
        let shared = root.join("shared");
        if !root.join("whole").exists() {
            eprintln!("making {count} repositories");
            std::fs::create_dir_all(root)?;
            git(root, &["init", "-q", "--bare", "shared"])?;
            feed(&shared, &["fast-import", "--quiet"], &mut |to| (0..count).try_for_each(|n| tell(to, n)))?;
        }
        let text = git(&shared, &["for-each-ref", "--format=%(refname) %(objectname)", "refs/heads"])?;
        let mut refs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        refs.sort();
        let heads: Vec<String> = refs.iter().map(|(_, id)| (*id).to_owned()).collect();
        if heads.len() != count {
            return Err(format!("{} holds {} repositories", root.display(), heads.len()).into());
        }
        if !root.join("whole").exists() {
            for (n, head) in heads.iter().enumerate() {
                make(&root.join(name(n)), &shared, head)?;
            }
            std::fs::write(root.join("whole"), "")?;
        }
        Ok(Self { root: root.to_owned(), count, heads })
    }

    /// A clone of one.
    pub fn clone_of(&self, n: usize) -> Request {
        let lines = ["ofs-delta".to_owned(), format!("want {}", self.heads[n]), "done".into()];
        command(n, "fetch", &lines)
    }

    /// A look at the refs of one.
    pub fn refs_of(&self, n: usize) -> Request {
        Request { path: format!("/{}/info/refs?service=git-upload-pack", name(n)), body: None }
    }
}

fn name(n: usize) -> String {
    format!("team-{:03}/{n:05}.git", n / GROUP)
}

/// One repository in the words of fast-import.
fn tell(to: &mut dyn Write, n: usize) -> std::io::Result<()> {
    for commit in 0..COMMITS {
        writeln!(to, "commit refs/heads/r{n:05}")?;
        writeln!(to, "committer Bench <bench@example.com> {} +0000", 1_700_000_000 + n * COMMITS + commit)?;
        writeln!(to, "data 8\nchanges\n")?;
        for file in 0..if commit == 0 { FILES } else { 1 } {
            let text = format!("repository {n}, commit {commit}, file {file}\n").repeat(20);
            writeln!(to, "M 100644 inline src/file-{file}\ndata {}\n{text}", text.len())?;
        }
    }
    Ok(())
}

fn make(path: &Path, shared: &Path, head: &str) -> Result<()> {
    std::fs::create_dir_all(path.join("refs"))?;
    std::fs::create_dir_all(path.join("objects/info"))?;
    std::fs::write(path.join("objects/info/alternates"), format!("{}\n", shared.join("objects").display()))?;
    std::fs::write(path.join("config"), "[core]\n\trepositoryformatversion = 0\n\tbare = true\n")?;
    std::fs::write(path.join("HEAD"), "ref: refs/heads/main\n")?;
    let refs = ["refs/heads/main", "refs/heads/work", "refs/tags/v1"].map(|name| format!("{head} {name}\n"));
    std::fs::write(path.join("packed-refs"), refs.concat())?;
    Ok(())
}

fn command(n: usize, command: &str, lines: &[String]) -> Request {
    let line = |text: &str| format!("{:04x}{text}\n", text.len() + 5);
    let mut body = line(&format!("command={command}"));
    body += &line("object-format=sha1");
    body += "0001";
    lines.iter().for_each(|text| body += &line(text));
    body += "0000";
    Request { path: format!("/{}/git-upload-pack", name(n)), body: Some(body.into_bytes()) }
}
