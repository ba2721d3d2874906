//! A small primary for the demo: a directory with one bare repository, the same bytes each time.
//!
//! It has what repositories have: merges, an octopus, branches, both kinds of tags, a pull-request ref, a big
//! file, an executable, a symbolic link, a name that is not ASCII.

use std::path::{Path, PathBuf};

use super::DemoError;
use super::git::Git;

/// The repository's path on the primary.
pub const REPO: &str = "demo/project.git";
/// Commits on the main branch, without merges.
const COMMITS: usize = 320;
/// Files that commits change.
const FILES: usize = 36;
/// A side branch starts at every commit that this divides, and is merged a few commits later.
const BRANCH_EVERY: usize = 40;
/// Bytes of the one big file.
const BIG: usize = 1 << 20;

/// What was made.
pub struct Made {
    /// The primary: a directory of repositories.
    pub dir: PathBuf,
    /// Number of commits on all refs.
    pub commits: usize,
    /// Number of branches.
    pub branches: usize,
    /// Number of tags.
    pub tags: usize,
}

/// Makes the primary in `dir`.
pub async fn make(git: &Git, dir: &Path) -> Result<Made, DemoError> {
    let repo = dir.join(REPO);
    std::fs::create_dir_all(&repo)?;
    git.run(&repo, &["init", "-q", "--bare"]).await?;
    git.run(&repo, &["symbolic-ref", "HEAD", "refs/heads/main"]).await?;
    git.feed(&repo, &["fast-import", "--quiet"], history()).await?;
    git.run(&repo, &["repack", "-a", "-d", "-q"]).await?;
    // Served by git's own HTTP back end: readable by all, and pushes without a login are allowed here.
    git.run(&repo, &["config", "http.receivepack", "true"]).await?;
    std::fs::write(repo.join("git-daemon-export-ok"), b"")?;
    let count = async |args: &[&str]| git.run(&repo, args).await.map(|text| text.lines().count());
    Ok(Made {
        dir: dir.to_owned(),
        commits: count(&["rev-list", "--all"]).await?,
        branches: count(&["for-each-ref", "refs/heads"]).await?,
        tags: count(&["for-each-ref", "refs/tags"]).await?,
    })
}

/// A stream for `git fast-import`.
struct Stream {
    out: Vec<u8>,
    mark: usize,
    clock: u64,
    dice: u64,
}

/// A side branch that is not merged yet.
struct Side {
    name: String,
    tip: usize,
}

fn history() -> Vec<u8> {
    let mut stream = Stream { out: Vec::new(), mark: 0, clock: 1_700_000_000, dice: 0x9e37_79b9_7f4a_7c15 };
    let mut files: Vec<Vec<String>> =
        (0..FILES).map(|_| (0..60).map(|_| stream.sentence()).collect()).collect();
    let mut sides: Vec<Side> = Vec::new();

    let mut tip = stream.commit("refs/heads/main", "Begin", None, &[]);
    for (number, lines) in files.iter().enumerate() {
        stream.file("100644", &path(number), lines.join("\n").as_bytes());
    }
    let big: Vec<u8> = (0..BIG).map(|_| (stream.next() >> 33) as u8).collect();
    stream.file("100644", "assets/picture.bin", &big);
    stream.file("100755", "build.sh", b"#!/bin/sh\necho built\n");
    stream.file("120000", "latest", b"notes/0.txt");
    stream.file("100644", "\"notes/\\303\\274bersicht.txt\"", "Übersicht\n".as_bytes());

    for number in 1..COMMITS {
        let before = tip;
        tip = stream.commit("refs/heads/main", &format!("Change {number}"), Some(before), &[]);
        for _ in 0..1 + stream.below(3) {
            let file = stream.below(FILES);
            let line = stream.below(files[file].len());
            files[file][line] = stream.sentence();
            stream.file("100644", &path(file), files[file].join("\n").as_bytes());
        }
        if number.is_multiple_of(BRANCH_EVERY) {
            let name = format!("topic-{}", number / BRANCH_EVERY);
            let start =
                stream.commit(&format!("refs/heads/{name}"), &format!("Start {name}"), Some(tip), &[]);
            stream.file("100644", &format!("topics/{name}.txt"), stream_text(number).as_bytes());
            sides.push(Side { name, tip: start });
            stream.tag(&format!("v0.{}", number / BRANCH_EVERY), tip);
        }
        // The last two side branches stay open; two of them are merged at once, as an octopus.
        let due = if number == COMMITS - 10 {
            2
        } else {
            usize::from(number % BRANCH_EVERY == 7 && sides.len() > 3)
        };
        if due > 0 {
            let merged: Vec<Side> = sides.drain(..due.min(sides.len())).collect();
            let names = merged.iter().map(|side| side.name.as_str()).collect::<Vec<_>>().join(", ");
            let others: Vec<usize> = merged.iter().map(|side| side.tip).collect();
            tip = stream.commit("refs/heads/main", &format!("Merge {names}"), Some(tip), &others);
            for side in &merged {
                let at: usize = side.name.trim_start_matches("topic-").parse().unwrap_or_default();
                stream.file(
                    "100644",
                    &format!("topics/{}.txt", side.name),
                    stream_text(at * BRANCH_EVERY).as_bytes(),
                );
            }
        }
    }
    let review = stream.commit("refs/pull/1/head", "Propose a change", Some(tip), &[]);
    stream.file("100644", "proposal.txt", b"What if\n");
    stream.reset("refs/tags/nightly", tip);
    stream.reset("refs/heads/release/0.7", review - 3);
    stream.out
}

fn path(number: usize) -> String {
    format!("notes/{}.txt", number)
}

fn stream_text(number: usize) -> String {
    format!("A topic that began at change {number}\n")
}

impl Stream {
    /// Deterministic dice (xorshift): the demo shows the same history each time.
    fn next(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn sentence(&mut self) -> String {
        const WORDS: &[&str] = &[
            "bucket", "pack", "layer", "clone", "region", "mirror", "branch", "fetches", "holds", "the", "a",
            "far",
        ];
        (0..9).map(|_| WORDS[self.below(WORDS.len())]).collect::<Vec<_>>().join(" ")
    }

    fn who(&mut self) -> String {
        self.clock += 600 + self.next() % 86_400;
        let name = ["Ada", "Grace", "Zoë"][self.below(3)];
        format!("{name} <{}@example.com> {} +0100", name.to_ascii_lowercase().replace('ë', "e"), self.clock)
    }

    /// Opens a commit; files follow.
    fn commit(&mut self, name: &str, message: &str, from: Option<usize>, merged: &[usize]) -> usize {
        self.mark += 1;
        let who = self.who();
        let from = from.map(|mark| format!("from :{mark}\n")).unwrap_or_default();
        let merged: String = merged.iter().map(|mark| format!("merge :{mark}\n")).collect();
        let text = format!(
            "commit {name}\nmark :{}\ncommitter {who}\ndata {}\n{message}\n{from}{merged}",
            self.mark,
            message.len()
        );
        self.out.extend_from_slice(text.as_bytes());
        self.mark
    }

    fn file(&mut self, mode: &str, path: &str, content: &[u8]) {
        self.out.extend_from_slice(format!("M {mode} inline {path}\ndata {}\n", content.len()).as_bytes());
        self.out.extend_from_slice(content);
        self.out.push(b'\n');
    }

    fn tag(&mut self, name: &str, mark: usize) {
        let who = self.who();
        let text =
            format!("tag {name}\nfrom :{mark}\ntagger {who}\ndata {}\nRelease {name}\n", name.len() + 8);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn reset(&mut self, name: &str, mark: usize) {
        self.out.extend_from_slice(format!("reset {name}\nfrom :{mark}\n\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_small_primary_is_sound_and_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::plain(dir.path());
        let made = make(&git, &dir.path().join("one")).await.unwrap();
        let again = make(&git, &dir.path().join("two")).await.unwrap();
        assert!(made.commits > 300 && made.branches >= 5 && made.tags >= 5, "{} commits", made.commits);
        let repo = made.dir.join(REPO);
        git.run(&repo, &["fsck", "--strict", "--full"]).await.unwrap();
        let refs = git.run(&repo, &["for-each-ref"]).await.unwrap();
        assert_eq!(refs, git.run(&again.dir.join(REPO), &["for-each-ref"]).await.unwrap());
        for name in [
            "refs/heads/main",
            "refs/tags/v0.1",
            "refs/tags/nightly",
            "refs/pull/1/head",
            "refs/heads/release/0.7",
        ] {
            assert!(refs.contains(name), "{name} is missing in\n{refs}");
        }
        let merges = git.run(&repo, &["rev-list", "--min-parents=2", "main"]).await.unwrap();
        let octopus = git.run(&repo, &["rev-list", "--min-parents=3", "main"]).await.unwrap();
        assert!(merges.lines().count() >= 2 && octopus.lines().count() == 1);
    }
}
