//! `packmirror vet [REPO…]`: is what is published what the primary has, and is what is stored whole?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures::StreamExt;
use indicatif::HumanBytes;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::progress::{Board, Task};
use super::rows::rows;
use super::table::{difference, escaped, safe};
use super::{print, repository};
use crate::config::Loaded;
use crate::git::path::RepoPath;
use crate::mirror::Mirror;
use crate::mirror::names::not_there;
use crate::mirror::repo::Repo;
use crate::node;
use crate::text::{chain, line};
use crate::work::Work;
use crate::work::sync::sync;
use crate::work::vet::{Against, Vetted, vet};

const EXAMPLES: &str = "\
Examples:
  packmirror vet --primary https://git.example.com --store s3://bucket/prefix
  packmirror vet --deep team/app.git               reads and hashes every stored byte of it
  packmirror vet --json | jq '.[] | select(.wrong != [])'

Without --deep it is looked whether every blob is there with its length. Nothing is changed: a running node finds and
mends the same by itself, sooner or later. With --repair what is wrong is mended at once, as `packmirror sync` would do it,
and looked at once more. The exit status is 0 if all is equal and whole, and 5 if not.";

/// How many repositories are looked at side by side.
const AT_ONCE: usize = 4;

/// Arguments of `vet`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repositories; without any, all that the bucket has
    #[arg(value_name = "REPO")]
    pub repos: Vec<String>,
    /// Read and hash every stored byte
    #[arg(long)]
    pub deep: bool,
    /// Mend what is wrong
    #[arg(long)]
    pub repair: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Vets, with a progress bar on a terminal.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    settings.primary()?;
    let named: Vec<RepoPath> = args.repos.iter().map(|repo| repository(repo)).collect::<Result<_, _>>()?;
    let bucket = node::existing_bucket(settings).await.map_err(Failure::store)?;
    let primary = node::primary(settings).await.map_err(Failure::failed)?;
    let dir = tempfile::tempdir()?;
    let local = node::local(settings, dir.path(), &bucket).await.map_err(Failure::failed)?;
    let mirror = Mirror::new(settings, bucket, local, primary, CancellationToken::new())?;
    let mut repos =
        if named.is_empty() { mirror.bucket.repos().await.map_err(Failure::store)? } else { Vec::new() };
    for path in &named {
        repos.push(mirror.name_of(path).await.map_err(Failure::store)?);
    }
    let work = Work::new(Arc::clone(&mirror), settings);
    if args.repair {
        mirror.bucket.take(&mirror.primary.name()).await.map_err(Failure::store)?;
        work.store_is_sound();
    }
    let mut said: HashMap<_, _> = rows(&mirror.bucket)
        .await
        .map_err(Failure::store)?
        .into_iter()
        .map(|row| (row.repo, row.differences))
        .collect();
    let board = Board::new();
    let mut found: Vec<(RepoPath, Option<Vetted>)> = futures::stream::iter(repos)
        .map(|path| async {
            let task = board.task(path.as_str());
            let vetted = one(&work, &path, args, &task).await;
            task.clear();
            (path, vetted)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    found.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some((absent, _)) = found.iter().find(|(_, vetted)| vetted.is_none()) {
        return Err(Failure::new(Exit::NoRepository, not_there(&mirror.bucket, absent).await));
    }
    let mut found: Vec<Vetted> = found.into_iter().filter_map(|(_, vetted)| vetted).collect();
    for vetted in &mut found {
        vetted.differences = said.remove(&vetted.repo).unwrap_or_default();
    }
    print(&if args.json { json(&found)? } else { text(&found, SystemTime::now()) })?;
    let wrong = found.iter().filter(|vetted| vetted.is_wrong()).count();
    let unknown: Vec<&Vetted> = found.iter().filter(|vetted| !vetted.errors.is_empty()).collect();
    match (wrong, unknown.first()) {
        (0, None) => Ok(()),
        (0, Some(first)) if first.is_transient => {
            Err(Failure::unavailable(format!("{} of {} could not be vetted", unknown.len(), found.len())))
        }
        (0, Some(_)) => {
            Err(Failure::failed(format!("{} of {} could not be vetted", unknown.len(), found.len())))
        }
        _ => Err(Failure::new(Exit::Wrong, format!("{wrong} of {} are not as they should be", found.len()))),
    }
}

/// Vets one repository, mends it if that was asked for, and shows how far it is.
async fn one(work: &Work, path: &RepoPath, args: &Args, task: &Task) -> Option<Vetted> {
    let repo = Arc::new(Repo::new(path.clone()));
    let read = |done, total| task.bytes("reading", done, total);
    let vetted = vet(&work.mirror, &repo, args.deep, &read).await?;
    if !args.repair || !vetted.is_wrong() {
        return Some(vetted);
    }
    if let Err(error) = sync(work, &repo, true).await {
        eprintln!("{}: not mended: {}", safe(path.as_str()), safe(&line(&chain(&error))));
        return Some(vetted);
    }
    vet(&work.mirror, &Arc::new(Repo::new(path.clone())), args.deep, &read).await
}

fn json(found: &[Vetted]) -> Result<String, Failure> {
    Ok(escaped(&serde_json::to_string_pretty(found).map_err(Failure::failed)?) + "\n")
}

/// A line a repository, and one below it for each thing that is wrong.
fn text(found: &[Vetted], now: SystemTime) -> String {
    if found.is_empty() {
        return "Nothing to vet: the bucket has no repositories yet.\n".into();
    }
    let mut out = String::new();
    for vetted in found {
        let primary = match vetted.primary {
            Against::Equal => "equal to the primary".to_owned(),
            Against::Differs => match vetted.refs_count {
                0 => "differs from the primary".to_owned(),
                1 => "differs from the primary in 1 ref".to_owned(),
                n => format!("differs from the primary in {n} refs"),
            },
            Against::Gone => "the primary does not have it".to_owned(),
            Against::Unknown => "not compared with the primary".to_owned(),
        };
        let stored = match (vetted.wrong.len(), vetted.read_bytes) {
            (0, 0) => format!("{} blobs are there, {}", vetted.blobs, HumanBytes(vetted.bytes)),
            (0, read) => format!("{} blobs are whole, {} read", vetted.blobs, HumanBytes(read)),
            (wrong, _) => format!("{wrong} of {} blobs and records are damaged", vetted.blobs),
        };
        let number = vetted.generation.map_or_else(String::new, |number| format!(" (generation {number})"));
        out.push_str(&format!("{}: {primary}{number}; {stored}\n", safe(&vetted.repo)));
        for r in &vetted.refs {
            let of = |side: &Option<String>| side.as_deref().map_or_else(|| "-".to_owned(), safe);
            out.push_str(&format!("  {}: {} -> {}\n", safe(&r.name), of(&r.old), of(&r.new)));
        }
        if vetted.refs_count > vetted.refs.len() as u64 {
            out.push_str("  …\n");
        }
        for wrong in &vetted.wrong {
            out.push_str(&format!("  {}: {}\n", safe(&wrong.blob), safe(&line(&wrong.what))));
        }
        for words in &vetted.errors {
            out.push_str(&format!("  {}\n", safe(&line(words))));
        }
        for finding in &vetted.differences {
            out.push_str(&format!("  {}\n", safe(&line(&difference(finding, now)))));
        }
    }
    let (well, all) = (found.iter().filter(|vetted| vetted.is_well()).count(), found.len());
    out.push_str(&format!("{well} of {all} are equal to the primary and whole\n"));
    out
}
