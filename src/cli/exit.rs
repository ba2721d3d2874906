//! How a command ends: an exit code that scripts can rely on, and a message for people.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use crate::config::ConfigError;
use crate::store::StoreError;
use crate::text::chain;

/// Exit codes. They are part of the command line's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It failed.
    Failed = 1,
    /// Wrong arguments or settings; clap uses the same code.
    Usage = 2,
    /// Bucket or primary did not answer; trying again later can help.
    Unavailable = 3,
    /// There is no such repository in the mirror.
    NoRepository = 4,
    /// `vet` found that a repository differs from the primary, or that stored data is damaged.
    Wrong = 5,
    /// Ended by a signal from the terminal.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// Ends with `exit` and a message or an error.
    pub fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit, error: error.into() }
    }

    /// It failed.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Failed, error)
    }

    /// Wrong arguments or settings.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Usage, error)
    }

    /// The bucket's error: trying again can help, or not.
    pub fn store(error: StoreError) -> Self {
        if error.is_transient() { Self::unavailable(error) } else { Self::failed(error) }
    }

    /// Bucket or primary did not answer.
    pub fn unavailable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Exit::Unavailable, error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

impl fmt::Display for Failure {
    /// The error with its causes, each once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(&*self.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the store refused")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_failure_tells_its_causes() {
        let failure = Failure::failed(Outer(std::io::Error::other("403 Forbidden")));
        assert_eq!(failure.to_string(), "the store refused: 403 Forbidden");
        assert_eq!(Failure::from(ConfigError::NoPrimary).exit, Exit::Usage);
    }
}
