//! `packmirror config`: the effective settings, and where each came from.

use super::exit::Failure;
use crate::config::{Loaded, show};
use crate::node;

const EXAMPLES: &str = "\
Examples:
  packmirror config                                  what holds without any flag
  packmirror config --config packmirror.toml         what a settings file makes of it
  packmirror config > packmirror.toml                a file to start from; it holds no secret";

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// Prints the settings as TOML; fails like every command would if they cannot be used.
pub async fn run(_: &Args, loaded: &Loaded) -> Result<(), Failure> {
    node::credential(&loaded.settings).await.map_err(Failure::usage)?;
    super::print(&show::show(loaded).map_err(Failure::failed)?)
}
