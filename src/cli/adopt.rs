//! `packmirror adopt --from OLD`: the primary has another address now, and its store is to go on under that.
//!
//! Nothing is synced anew: records that name the old address count on. Before the store changes its owner, repositories
//! are compared with what the new address shows. Nodes of the old address see the change within half a minute and end.

use std::collections::HashMap;

use super::exit::Failure;
use super::table::safe;
use super::{print, repository};
use crate::config::{Loaded, Settings};
use crate::git::path::RepoPath;
use crate::mirror::export::refs;
use crate::node;
use crate::primary::{Auth, Location, Primary};
use crate::store::{Bucket, Generation};
use crate::text::chain;

/// Repositories that are compared where none is named.
const COMPARED: usize = 3;

const EXAMPLES: &str = "\
Examples:
  packmirror adopt --from https://git.old.example --primary https://git.new.example --store s3://bucket/prefix
  packmirror adopt --from /srv/git --config /etc/packmirror/packmirror.toml team/app.git team/lib.git

Compares repositories of the store with the new address first, the named ones or a few, and refuses where
they have nothing in common. Change the setting `primary` of all nodes and start them anew: nodes of the old
address end within half a minute, and do not start again. Saying it twice does no harm.";

/// Arguments of `adopt`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The address that the primary had, as `packmirror doctor` shows it
    #[arg(long, value_name = "URL_OR_DIRECTORY")]
    pub from: String,
    /// Adopt the store although no repository could be compared
    #[arg(long)]
    pub unverified: bool,
    /// Repositories to compare; without any, a few of the store
    #[arg(value_name = "REPO")]
    pub repos: Vec<String>,
}

/// How a repository compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Same {
    /// All refs are equal, or some are: the primary has moved on since the last sync.
    Yes,
    /// Both have refs, and none in common.
    No,
    /// There is nothing to compare.
    Unknown,
}

/// Changes the owner.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    settings.primary()?;
    // It is not asked, so that it may be plain HTTP does not matter.
    let from = Location::parse(&args.from, true)
        .map_err(|bad| Failure::usage(format!("--from: {bad}")))?
        .to_string();
    let named: Vec<RepoPath> = args.repos.iter().map(|repo| repository(repo)).collect::<Result<_, _>>()?;
    let bucket = node::existing_bucket(settings).await.map_err(Failure::store)?;
    let primary = node::primary(settings).await.map_err(Failure::failed)?;
    let to = primary.name();
    if from == to {
        return Err(Failure::usage(format!(
            "--from and --primary are both {to}: name the new address as --primary"
        )));
    }
    if !bucket.check_format().await.map_err(Failure::store)? {
        return Err(Failure::failed(
            "there is no store yet, so nothing is to be adopted; `packmirror serve` makes it",
        ));
    }
    let owner = bucket.owner().await.map_err(Failure::store)?;
    match owner.as_ref().map(|owner| owner.primary.as_str()) {
        Some(now) if now == to => {}
        Some(now) if now == from => compare_all(settings, &bucket, &primary, named, args.unverified).await?,
        Some(now) => {
            return Err(Failure::failed(format!(
                "this store is the mirror of {now}, not of {from}: say --from {now}"
            )));
        }
        None => {
            return Err(Failure::failed(
                "this store holds nothing yet, so nothing is to be adopted; `packmirror serve` takes it",
            ));
        }
    }
    let owner = bucket.adopt(&from, &to).await.map_err(Failure::store)?;
    print(&format!(
        "the store is the mirror of {} now, before of {}; set `primary` of all nodes, and start them anew\n",
        owner.primary,
        owner.former.last().map_or("nobody", String::as_str)
    ))
}

/// Compares repositories of the store with the primary; an error if one is another, or none could be compared.
async fn compare_all(
    settings: &Settings,
    bucket: &Bucket,
    primary: &Primary,
    named: Vec<RepoPath>,
    unverified: bool,
) -> Result<(), Failure> {
    let mut records = Vec::new();
    if named.is_empty() {
        let mut all = bucket.current().await.map_err(Failure::store)?;
        all.sort_by(|a, b| a.repo.cmp(&b.repo));
        let selection = settings.selection()?;
        all.retain(|record| selection.selects(record.repo.as_str()));
        records = all;
    }
    for repo in named {
        let record = bucket.newest(&repo).await.map_err(Failure::store)?;
        let missing = || Failure::new(super::exit::Exit::NoRepository, format!("{repo} is not in the store"));
        records.push(record.ok_or_else(missing)?);
    }
    let (mut compared, empty) = (0, records.is_empty());
    for record in records {
        let name = safe(record.repo.as_str());
        match compare(bucket, primary, &record).await {
            Ok(Same::Yes) => {
                print(&format!("{name}: the same at the new address\n"))?;
                compared += 1;
            }
            Ok(Same::No) => {
                return Err(Failure::failed(format!(
                    "{name}: the new address has another repository of this name; nothing was changed. If that repository was \
                     made anew, name others to compare"
                )));
            }
            Ok(Same::Unknown) => print(&format!("{name}: nothing to compare\n"))?,
            Err(why) => print(&format!("{name}: could not be compared: {}\n", safe(&why)))?,
        }
        if compared == COMPARED {
            break;
        }
    }
    if compared == 0 && !empty && !unverified {
        return Err(Failure::failed(
            "no repository could be compared with the new address; nothing was changed. Name one that can be read there, or \
             say --unverified",
        ));
    }
    Ok(())
}

async fn compare(bucket: &Bucket, primary: &Primary, record: &Generation) -> Result<Same, String> {
    let seen = primary.seen(&record.repo, Auth::Service).await;
    let seen = seen.map_err(|error| chain(&error))?.refs;
    if seen.refs.is_empty() || record.ref_count == 0 {
        return Ok(Same::Unknown);
    }
    if hex::encode(seen.digest()) == record.manifest_digest {
        return Ok(Same::Yes);
    }
    let stored = refs(bucket, record).await.map_err(|error| chain(&error))?;
    let stored: HashMap<_, _> = stored.refs.iter().map(|known| (&known.name, known.oid)).collect();
    let common = seen.refs.iter().any(|now| stored.get(&now.name) == Some(&now.oid));
    Ok(if common { Same::Yes } else { Same::No })
}
