//! From a request to a decision: send this pack, refuse with these words, or leave it to the primary.
//!
//! - [`fetch`]: the decision about a fetch, and about `object-info`. [`reaching`]: whether what is published reaches what is
//!   wanted.
//! - [`prepare`]: what a fetch gets. [`plans`]: kept for the next one. `named`: blobs that a filter names.
//!   `numbers`: the objects that a request names, looked up. [`kept`]: what an answer that was made before does for a plan.
//! - [`compute`], [`turns`], [`meter`]: what computing for a request may take.
//!
//! No HTTP here: whoever asks has a grant in hand, and passes on or sends himself. Relies on: `mirror` for repositories that
//! are open, `pack` for history and plans. Elsewhere: clients and streams (`serve`).

pub mod compute;
pub mod fetch;
pub mod kept;
pub mod meter;
mod named;
mod numbers;
pub mod plans;
pub mod prepare;
pub mod reaching;
pub mod reason;
pub mod turns;

use std::sync::Arc;
use std::time::Duration;

use crate::answer::plans::Plans;
use crate::answer::prepare::Prepared;
use crate::answer::reason::Reason;
use crate::answer::turns::Turns;
use crate::budget::Budget;
use crate::config::{Freshness, Settings};
use crate::fair::Flow;
use crate::git::request::FetchRequest;
use crate::mirror::Mirror;
use crate::mirror::snapshot::Granted;
use crate::pack::meter::Halt;

/// What is done about a fetch.
pub enum Decision {
    /// It gets this.
    Send(Box<Ready>),
    /// It is refused in git's own words.
    Refuse(String),
    /// The primary answers it.
    Pass(Reason),
}

/// An answer that can be sent.
pub struct Ready {
    /// The state it is taken from.
    pub granted: Granted,
    /// The request.
    pub request: Arc<FetchRequest>,
    /// What is sent.
    pub prepared: Arc<Prepared>,
}

/// This node could not do its work for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// Too much is under way.
    #[error("this node is busy")]
    Busy,
    /// The request takes more than one may have.
    #[error("it takes more memory or work than one request may have")]
    TooCostly,
    /// A fault of ours, logged with its cause.
    #[error("a job ended by itself")]
    Internal,
}

impl From<Halt> for Failed {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Busy | Halt::Stopped => Self::Busy,
            Halt::TooMuch { .. } | Halt::TooLong { .. } => Self::TooCostly,
        }
    }
}

impl From<Failed> for Decision {
    /// What this node cannot do the primary may.
    fn from(failed: Failed) -> Self {
        Self::Pass(match failed {
            Failed::Busy => Reason::Busy,
            Failed::TooCostly => Reason::TooCostly,
            Failed::Internal => Reason::Failed,
        })
    }
}

/// What decides for a node. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    mirror: Arc<Mirror>,
    freshness: Freshness,
    /// How long a client waits for a sync.
    sync_wait: Duration,
    plans: Arc<Plans>,
    turns: Arc<Turns>,
    /// How much of the bucket answers may take that are kept, in percent of the packs; zero: none are.
    answers_share: u64,
    /// For whom it decides.
    flow: Flow,
    /// For plans and answers that are held.
    readers: Budget,
    /// For what is computed.
    work: Budget,
}

impl Answers {
    /// Decides out of the repositories of `mirror`, as fresh as `settings` ask for, on so many cores.
    pub fn new(
        mirror: Arc<Mirror>,
        settings: &Settings,
        cores: usize,
        readers: Budget,
        work: Budget,
    ) -> Self {
        let plans = Arc::new(Plans::new(readers.most() / 4));
        // Selection and planning are pure computation: more at once than cores only makes all of them slower.
        let turns = Arc::new(Turns::new(cores.max(2)));
        let (freshness, sync_wait) = (settings.freshness, settings.sync_wait);
        let (answers_share, flow) = (settings.answers.share as u64, Flow::default());
        Self { mirror, freshness, sync_wait, plans, turns, answers_share, flow, readers, work }
    }

    /// The same for one client and one repository, which take turns with others.
    #[must_use]
    pub fn in_turns_of(&self, flow: Flow) -> Self {
        Self { flow, ..self.clone() }
    }
}
