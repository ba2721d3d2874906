//! Why a comparison or a sync failed, and what the caller can do about it.

use std::io;
use std::time::Duration;

use crate::mirror::newest::NotFound;
use crate::mirror::snapshot::OpenError;
use crate::pack::meter::Halt;
use crate::primary::PrimaryError;
use crate::store::StoreError;
use crate::work::ingest::IngestError;

/// Why a comparison or sync did not end with the primary and the bucket equal.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The primary did not answer as it should.
    #[error("the primary: {0}")]
    Primary(#[from] PrimaryError),
    /// The bucket did not answer as it should.
    #[error("the bucket: {0}")]
    Store(#[from] StoreError),
    /// The published generation cannot be found or opened just now.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// What the primary sent was not taken in.
    #[error("{0}")]
    Ingest(#[from] IngestError),
    /// This node's disk.
    #[error("scratch space of this node: {0}")]
    Scratch(#[from] io::Error),
    /// There is no memory for a sync to begin.
    #[error("it could not begin: {0}")]
    Halted(#[from] Halt),
    /// The primary kept the sync waiting, and others needed its place.
    #[error(
        "the primary let us wait, and too many repositories wait already: it is tried again when they have ended"
    )]
    Aside,
    /// Another writer or a push came first in every round.
    #[error("the repository moved faster than it could be followed")]
    Moving,
    /// What the primary shows cannot be taken in, and another try would end the same way.
    #[error(
        "{words} (it is tried again at {until}; sooner if the primary shows something else, a limit is changed, or `packmirror sync` asks)"
    )]
    Stuck {
        /// What went wrong.
        words: String,
        /// When the next try is due.
        until: String,
        /// Whether it was known, so that nothing was fetched.
        known: bool,
    },
    /// It was taken out of the mirror.
    #[error("it was taken out of the mirror")]
    Removed,
    /// The node is shutting down.
    #[error("stopped")]
    Stopped,
}

impl From<OpenError> for SyncError {
    fn from(error: OpenError) -> Self {
        NotFound::from(error).into()
    }
}

impl SyncError {
    /// How long the other side asked us to stay away.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Primary(e) => e.retry_after(),
            _ => None,
        }
    }

    /// Whether nothing is wrong with the repository: other syncs hold the memory at the moment.
    pub fn is_busy(&self) -> bool {
        let halt = match self {
            Self::Halted(halt) | Self::Primary(PrimaryError::Costs(halt)) => Some(halt),
            Self::Ingest(error) => error.halt(),
            _ => None,
        };
        halt == Some(&Halt::Busy)
    }
}
