//! The rows: what clients ask for, with requests as git sends them.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::client::Request;
use crate::shell::git;

/// How many of its commits a client names at once.
const HAVES: &str = "16";

/// A repository as clients see it.
#[derive(Debug)]
pub struct Repository {
    pub name: &'static str,
    pub path: PathBuf,
    pub head: String,
    format: String,
}

impl Repository {
    pub fn open(path: &Path, name: &'static str) -> Result<Self> {
        let said = |args: &[&str]| Ok::<_, crate::Error>(git(path, args)?.trim().to_owned());
        let (head, format) = (said(&["rev-parse", "HEAD"])?, said(&["rev-parse", "--show-object-format"])?);
        Ok(Self { name, path: path.to_owned(), head, format })
    }

    /// An object id that no repository has.
    pub fn unknown(&self) -> String {
        let random: [u8; 32] = rand::random();
        hex::encode(random)[..self.head.len()].to_owned()
    }

    fn ids(&self, args: &[&str]) -> Result<Vec<String>> {
        let mut ids: Vec<String> = git(&self.path, args)?.lines().map(str::to_owned).collect();
        let mut seen = std::collections::HashSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        Ok(ids)
    }
}

/// One line of the table: what one client operation costs a server.
pub struct Row<'a> {
    pub name: String,
    pub repository: &'a Repository,
    pub ask: Ask,
}

pub enum Ask {
    /// A fetch; its request can be made one that nobody has sent before.
    Fetch { options: Vec<String>, wants: Vec<String>, haves: Vec<String> },
    /// Requests for refs, one after the other.
    Refs(Vec<Request>),
}

impl Row<'_> {
    /// The requests, in order. A `new` one names a commit that nobody has, so that no kept plan is for it.
    pub fn requests(&self, new: bool) -> Vec<Request> {
        match &self.ask {
            Ask::Refs(requests) => requests.clone(),
            Ask::Fetch { options, wants, haves } => {
                let mut haves = haves.clone();
                haves.extend(new.then(|| self.repository.unknown()));
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                vec![fetch(self.repository, &options, wants, &haves)]
            }
        }
    }
}

/// All rows of these repositories; those that a short history does not have are left out.
pub fn rows<'a>(primary: &'a Repository, many: &'a Repository) -> Result<Vec<Row<'a>>> {
    let oids = |patterns: &[&str]| {
        primary.ids(&[&["for-each-ref", "--format=%(objectname)"][..], patterns].concat())
    };
    let head = vec![primary.head.clone()];
    let clone = oids(&["refs/heads", "refs/tags"])?;
    let history = primary.ids(&["rev-list", "--first-parent", "HEAD"])?;
    let middle = vec![history[history.len() / 2].clone()];
    // Submodules are commits of other repositories.
    let tree = git(&primary.path, &["ls-tree", "-r", "HEAD"])?;
    let blob = |line: &str| Some(line.split_once(" blob ")?.1.split('\t').next()?.to_owned());
    let mut blobs: Vec<String> = tree.lines().filter_map(blob).collect();
    blobs.sort();
    blobs.dedup();
    let row = |name: &str, options: &[&str], wants: &[String], haves: Vec<String>| Row {
        name: name.to_owned(),
        repository: primary,
        ask: Ask::Fetch {
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            wants: wants.to_vec(),
            haves,
        },
    };
    let mut rows = vec![
        row("clone", &[], &clone, vec![]),
        row("single-branch", &["include-tag"], &head, vec![]),
        row("mirror", &[], &oids(&[])?, vec![]),
        row("depth1", &["deepen 1"], &head, vec![]),
        row("depth1-sha", &["deepen 1"], &middle, vec![]),
        row("blob-none", &["filter blob:none"], &clone, vec![]),
        row("lazy-blobs", &["filter blob:none"], &blobs, vec![]),
    ];
    for n in [1, 10, 100, 1000] {
        let Some(have) = history.get(n) else { continue };
        let haves = primary.ids(&["rev-list", "--max-count", HAVES, have])?;
        rows.push(row(&format!("increment-{n}"), &["include-tag"], &head, haves));
    }
    let haves = primary.ids(&["rev-list", "--max-count", HAVES, "HEAD"])?;
    rows.push(row("nothing-new", &["include-tag"], &head, haves));
    let refs = |name: &str, repository: &'a Repository, requests| Row {
        name: name.to_owned(),
        repository,
        ask: Ask::Refs(requests),
    };
    let info = |repository: &Repository| Request {
        path: format!("/{}/info/refs?service=git-upload-pack", repository.name),
        body: None,
    };
    let usual = ["HEAD", "refs/heads/", "refs/tags/"];
    rows.push(refs("no-op", primary, vec![info(primary), ls_refs(primary, &usual)]));
    rows.push(refs("ls-refs", primary, vec![ls_refs(primary, &[])]));
    rows.push(refs("ls-refs-100k", many, vec![ls_refs(many, &[])]));
    Ok(rows)
}

/// A `fetch` of protocol v2.
pub fn fetch(repository: &Repository, options: &[&str], wants: &[String], haves: &[String]) -> Request {
    let mut lines: Vec<String> = ["thin-pack", "no-progress", "ofs-delta"].map(str::to_owned).to_vec();
    lines.extend(options.iter().map(|option| (*option).to_owned()));
    lines.extend(wants.iter().map(|want| format!("want {want}")));
    lines.extend(haves.iter().map(|have| format!("have {have}")));
    lines.push("done".into());
    command(repository, "fetch", &lines)
}

/// An `ls-refs` of protocol v2.
pub fn ls_refs(repository: &Repository, prefixes: &[&str]) -> Request {
    let mut lines: Vec<String> = ["peel", "symrefs", "unborn"].map(str::to_owned).to_vec();
    lines.extend(prefixes.iter().map(|prefix| format!("ref-prefix {prefix}")));
    command(repository, "ls-refs", &lines)
}

fn command(repository: &Repository, name: &str, lines: &[String]) -> Request {
    let line = |text: &str| format!("{:04x}{text}\n", text.len() + 5);
    let mut body = line(&format!("command={name}"));
    body += &line("agent=git/2.47.3");
    body += &line(&format!("object-format={}", repository.format));
    body += "0001";
    lines.iter().for_each(|text| body += &line(text));
    body += "0000";
    Request { path: format!("/{}/git-upload-pack", repository.name), body: Some(body.into_bytes()) }
}
