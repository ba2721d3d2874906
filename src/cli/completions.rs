//! `packmirror completions SHELL`: a completion script, made from the definition of the command line.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use super::exit::Failure;
use super::flags::fitted;

const EXAMPLES: &str = "\
Examples:
  packmirror completions bash > ~/.local/share/bash-completion/completions/packmirror
  packmirror completions zsh > \"${fpath[1]}/_packmirror\"
  packmirror completions fish > ~/.config/fish/completions/packmirror.fish";

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut fitted(Cli::command()), "packmirror", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
