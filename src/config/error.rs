//! What can be wrong with settings; each message says what to write instead.
//!
//! No message ever carries the value of a secret, nor a line of the settings file.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was set.
    Default,
    /// A well-known variable of other tools, such as `AWS_REGION`.
    Ambient(&'static str),
    /// The settings file.
    File(PathBuf),
    /// A `PACKMIRROR__…` variable.
    Env(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Ambient(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A key that is no setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// The key or variable as it was written.
    pub name: String,
    /// Where it stands.
    pub origin: Origin,
    /// The nearest key, written as it would be there.
    pub nearest: Option<String>,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File(path) => write!(f, "unknown key \"{}\" in {}", self.name, path.display())?,
            _ => write!(f, "unknown setting {}", self.name)?,
        }
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => f.write_str("; `packmirror config` lists all of them"),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file cannot be read.
    #[error("the settings file {} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The settings file is not TOML. The line itself is not shown: it may hold a secret.
    #[error("the settings file {} is not TOML: line {line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What the parser said.
        why: String,
    },
    /// Keys that are no settings, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Unknown(Vec<UnknownKey>),
    /// A value that does not fit.
    #[error("setting {key} ({origin}): {why}; write {write}")]
    Bad {
        /// The key.
        key: &'static str,
        /// Where the value came from.
        origin: Origin,
        /// What is wrong.
        why: String,
        /// What to write instead.
        write: String,
    },
    /// Two settings that exclude each other were set in one place.
    #[error("{one} and {other} are both set ({origin}); keep one of them")]
    Both {
        /// One key.
        one: &'static str,
        /// The other.
        other: &'static str,
        /// Where the second came from.
        origin: Origin,
    },
    /// A command needs the primary and none is set.
    #[error(
        "no primary is set; say --primary https://git.example.com or --primary /srv/git, \
         or set PACKMIRROR__PRIMARY, or primary = \"…\" in a file given with --config"
    )]
    NoPrimary,
    /// No directory can be derived for a computed default.
    #[error("no home directory is known, so {key} has no default; set it with --{flag}")]
    NoHome {
        /// The key.
        key: &'static str,
        /// Its flag.
        flag: String,
    },
    /// A glob of `mirror` does not parse.
    #[error("the glob \"{glob}\" of mirror does not parse: {why}")]
    Glob {
        /// The glob.
        glob: String,
        /// What is wrong with it.
        why: String,
    },
}
