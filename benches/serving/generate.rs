//! A repository with the shape of a hosted project, the same one each time: one main branch, tags, and many refs of
//! pull requests, most of them merged.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use crate::Result;
use crate::shell::{feed, git};

/// How large it becomes.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub commits: u32,
    pub files: u32,
    pub lines: u32,
    pub pulls: u32,
}

/// Makes the bare repository `path`.
pub fn generate(path: &Path, size: Size) -> Result<()> {
    std::fs::create_dir_all(path)?;
    git(path, &["init", "-q", "--bare", "."])?;
    git(path, &["symbolic-ref", "HEAD", "refs/heads/main"])?;
    feed(path, &["fast-import", "--quiet", "--force"], &mut |out| {
        let (files, most) = (Vec::new(), 2 * (20 + size.lines as usize));
        let mut history = History { out, random: Random(1), mark: 0, clock: 1_600_000_000, files, most };
        history.tell(size)
    })?;
    Ok(())
}

/// Gives `path` this many refs, all to commits that it has.
pub fn many_refs(path: &Path, refs: usize) -> Result<()> {
    let commits = git(path, &["rev-list", "--all"])?;
    let mut names: Vec<String> =
        (1..=refs.saturating_sub(1)).map(|n| format!("refs/pull/{n}/head")).collect();
    names.push("refs/heads/main".into());
    names.sort();
    let main = git(path, &["rev-parse", "refs/heads/main"])?;
    let mut text = String::from("# pack-refs with: peeled fully-peeled sorted \n");
    for (name, oid) in names.iter().zip(commits.lines().cycle()) {
        let oid = if name == "refs/heads/main" { main.trim() } else { oid };
        writeln!(text, "{oid} {name}")?;
    }
    git(path, &["pack-refs", "--all", "--prune"])?;
    Ok(std::fs::write(path.join("packed-refs"), text)?)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream for `git fast-import`.
struct History<'a> {
    out: &'a mut dyn Write,
    random: Random,
    mark: u32,
    clock: u64,
    /// Each line of each file as a number that stands for its text.
    files: Vec<Vec<u64>>,
    /// The most lines of a file.
    most: usize,
}

impl History<'_> {
    fn tell(&mut self, size: Size) -> io::Result<()> {
        for _ in 0..size.files.max(1) {
            let lines = 20 + self.random.below(size.lines as usize);
            let file = (0..lines).map(|_| self.random.next()).collect();
            self.files.push(file);
        }
        let all: Vec<usize> = (0..self.files.len()).collect();
        let mut main = self.commit("refs/heads/main", &[], &all)?;
        let (mut pulls, mut old) = (0u32, vec![main]);
        for n in 1..size.commits.max(1) {
            while u64::from(pulls) * u64::from(size.commits) < u64::from(n) * u64::from(size.pulls) {
                pulls += 1;
                let mut tip = old[old.len().saturating_sub(1 + self.random.below(20))];
                let kept = self.files.clone();
                let changed = self.edit(1);
                for _ in 0..1 + self.random.below(3) {
                    self.edit_file(changed[0]);
                    tip = self.commit(&format!("refs/pull/{pulls}/head"), &[tip], &changed)?;
                }
                if self.random.below(10) < 6 {
                    main = self.commit("refs/heads/main", &[main, tip], &changed)?;
                } else {
                    self.files = kept;
                }
            }
            let files = 1 + self.random.below(3);
            let changed = self.edit(files);
            main = self.commit("refs/heads/main", &[main], &changed)?;
            old.push(main);
            if n % 50 == 0 {
                let message = format!("Release {n}\n");
                write!(self.out, "tag v{n}\nfrom :{main}\n")?;
                writeln!(self.out, "tagger A U Thor <author@example.com> {} +0000", self.clock)?;
                write!(self.out, "data {}\n{message}\n", message.len())?;
            }
        }
        self.out.write_all(b"done\n")
    }

    /// Changes some files and says which.
    fn edit(&mut self, files: usize) -> Vec<usize> {
        // Some files change more often than others.
        let count = self.files.len();
        let mut changed: Vec<usize> =
            (0..files).map(|_| self.random.below(count).min(self.random.below(count))).collect();
        changed.sort_unstable();
        changed.dedup();
        changed.iter().for_each(|file| self.edit_file(*file));
        changed
    }

    fn edit_file(&mut self, file: usize) {
        let at = self.random.below(self.files[file].len());
        let lines: Vec<u64> = (0..1 + self.random.below(6)).map(|_| self.random.next()).collect();
        let end = (at + self.random.below(6)).min(self.files[file].len());
        self.files[file].splice(at..end, lines);
        // A long history is one of more versions, not of larger ones.
        self.files[file].truncate(self.most);
    }

    fn commit(&mut self, name: &str, parents: &[u32], files: &[usize]) -> io::Result<u32> {
        self.mark += 1;
        self.clock += 600;
        let message = format!("Change {} files\n\n{}\n", files.len(), line(self.random.next()));
        write!(self.out, "commit {name}\nmark :{}\n", self.mark)?;
        writeln!(self.out, "committer A U Thor <author@example.com> {} +0000", self.clock)?;
        write!(self.out, "data {}\n{message}\n", message.len())?;
        for (n, parent) in parents.iter().enumerate() {
            writeln!(self.out, "{} :{parent}", if n == 0 { "from" } else { "merge" })?;
        }
        for file in files {
            let text: String = self.files[*file].iter().map(|number| line(*number) + "\n").collect();
            writeln!(self.out, "M 100644 inline part{}/piece{}/file{file}.txt", file % 20, file % 7)?;
            write!(self.out, "data {}\n{text}\n", text.len())?;
        }
        Ok(self.mark)
    }
}

/// The text of a line: words, and a number so that lines differ.
fn line(number: u64) -> String {
    const WORDS: [&str; 16] = [
        "return", "if", "the", "value", "of", "index", "else", "count", "buffer", "length", "for", "each",
        "object", "is", "not", "state",
    ];
    let mut text = String::new();
    for n in 0..4 + number % 6 {
        text += WORDS[(mix(number ^ n) % 16) as usize];
        text.push(' ');
    }
    text + &format!("{:x}", number % 0xffff_ffff)
}
