//! `packmirror export REPO DIR`: a plain bare repository from the bucket alone; works with the primary gone.

use std::path::PathBuf;

use super::exit::Failure;
use crate::config::Loaded;

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
    /// Directory to make; it must not exist or be empty
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// Writes the repository.
pub async fn run(_args: &Args, _loaded: &Loaded) -> Result<(), Failure> {
    Err(Failure::failed("export is not part of this build"))
}
