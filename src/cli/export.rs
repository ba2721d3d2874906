//! `packmirror export REPO DIR`: a plain bare repository from the bucket alone; works with the primary gone.

use std::path::PathBuf;

use super::exit::Exit;
use super::exit::Failure;
use super::progress::Board;
use super::table::safe;
use super::{print, repository};
use crate::config::Loaded;
use crate::mirror::export::{ExportError, export};
use crate::node;

const EXAMPLES: &str = "\
Examples:
  packmirror export --store s3://bucket/prefix team/app.git app.git
  git -C app.git fsck --strict && git clone app.git app";

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The repository, named as in its URL without the leading slash
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// Directory to make; it must not exist
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// Writes the repository.
pub async fn run(args: &Args, loaded: &Loaded) -> Result<(), Failure> {
    let repo = repository(&args.repo)?;
    let bucket = node::existing_bucket(&loaded.settings).await.map_err(Failure::store)?;
    let board = Board::new();
    let task = board.task(repo.as_str());
    let done = |so_far, total| task.bytes("downloading", so_far, total);
    let exported = export(&bucket, &repo, &args.dir, &done).await;
    task.clear();
    let generation = exported.map_err(|error| match error {
        ExportError::Unknown(_) => Failure::new(Exit::NoRepository, error),
        ExportError::Exists(_) | ExportError::InTheWay(_) => Failure::usage(error),
        ExportError::Unusable(_) => Failure::failed(error),
        ExportError::Store(error) => Failure::store(error),
        ExportError::Disk { .. } => Failure::failed(error),
    })?;
    print(&format!(
        "{}: generation {}, {} refs, from the bucket alone. Check it with: git -C {} fsck --strict\n",
        safe(&args.dir.display().to_string()),
        generation.number,
        generation.ref_count,
        safe(&args.dir.display().to_string()),
    ))
}
