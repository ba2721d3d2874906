//! `packmirror rm REPO…`: takes repositories out of the mirror; needs no primary.

use super::exit::{Exit, Failure};
use super::table::safe;
use super::{print, repository};
use crate::config::Loaded;
use crate::git::path::RepoPath;
use crate::mirror::names::not_there;
use crate::mirror::remove::remove;
use crate::node;

const EXAMPLES: &str = "\
Examples:
  packmirror rm --store s3://bucket/prefix team/old.git

Within half a minute no node serves it from the bucket any more, and none compares it. It comes back with the first client
that asks for it through the mirror, or with `packmirror sync REPO`; to keep it out for good, leave it out of the setting
`mirror` (--mirror '**' --mirror '!team/old.git'). What it takes in the bucket is deleted
when it has been unnamed for gc.grace: by the nodes, or by two runs of `packmirror gc` with the grace between them.";

/// Arguments of `rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Repositories, named as in their URLs without the leading slash
    #[arg(value_name = "REPO", required = true)]
    pub repos: Vec<String>,
}

/// Takes them out, one after the other, and stops at the first that is not there.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let named: Vec<RepoPath> = args.repos.iter().map(|repo| repository(repo)).collect::<Result<_, _>>()?;
    let bucket = node::existing_bucket(&loaded.settings).await.map_err(Failure::store)?;
    for repo in named {
        let name = safe(repo.as_str());
        match remove(&bucket, &repo).await.map_err(Failure::store)? {
            Some(last) => print(&format!(
                "{name}: taken out with generation {}; nodes follow within half a minute\n",
                last.number
            ))?,
            None => return Err(Failure::new(Exit::NoRepository, not_there(&bucket, &repo).await)),
        }
    }
    Ok(())
}
