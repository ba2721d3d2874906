//! Wishes: what clients ask for again and again, and what costs much each time, is asked of `work` once.
//!
//! Elsewhere: when something is wished for (`answer`), how it is fulfilled (`work::answers`).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use roaring::RoaringBitmap;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::mirror::Mirror;
use crate::mirror::answers::Answer;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Snapshot;
use crate::pack::plan::Plan;

/// At most so many wishes wait.
const MOST: usize = 64;

/// What is wished for.
pub enum Wish {
    /// An answer that is asked for again and again.
    Asked(Wished),
    /// That to a clone of depth 1 of HEAD, if it costs much, since something was published.
    Head(Arc<Repo>),
}

/// An answer that is to be made.
pub struct Wished {
    /// Of which repository.
    pub repo: Arc<Repo>,
    /// The state that the plan is made of.
    pub snapshot: Arc<Snapshot>,
    /// What is sent without it.
    pub plan: Arc<Plan>,
    /// What it holds, as the stack of that state numbers it.
    pub objects: Arc<RoaringBitmap>,
    /// The answer from which the plan copies.
    pub answer: Option<Arc<Answer>>,
    /// What was asked for, in words.
    pub kind: String,
    /// Dropped when the answer is published, or is not made.
    pub done: DropGuard,
}

/// How often one plan was asked for, and what became of the wish for an answer that serves all.
#[derive(Debug, Default)]
pub struct Asked {
    asked: AtomicU32,
    made: OnceLock<CancellationToken>,
}

impl Asked {
    /// Counts one more request, and gives how many there were before.
    pub fn again(&self) -> u32 {
        self.asked.fetch_add(1, Ordering::Relaxed)
    }

    /// Wishes for it, once. Gives what is cancelled when it is fulfilled, or is not going to be.
    pub fn once(&self, wish: impl FnOnce(DropGuard)) -> &CancellationToken {
        self.made.get_or_init(|| {
            let made = CancellationToken::new();
            wish(made.clone().drop_guard());
            made
        })
    }
}

/// The way of wishes to `work`.
pub(super) struct Wishes {
    to: mpsc::Sender<Wish>,
    from: Mutex<Option<mpsc::Receiver<Wish>>>,
}

impl Default for Wishes {
    fn default() -> Self {
        let (to, from) = mpsc::channel(MOST);
        Self { to, from: Mutex::new(Some(from)) }
    }
}

impl Mirror {
    /// The wishes as they come, for `work`; `None` if they were taken already.
    pub fn wished(&self) -> Option<mpsc::Receiver<Wish>> {
        self.wishes.from.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Wishes for an answer. Where nobody fulfils wishes, or too many wait, it is dropped.
    pub fn wish(&self, wish: Wish) {
        let is_taken = self.wishes.from.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if is_taken {
            let _ = self.wishes.to.try_send(wish);
        }
    }
}
