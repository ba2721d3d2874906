//! Answers that were made before, as a snapshot has them at hand: each is opened when it may be of use.
//!
//! They are derived. One that cannot be opened or read is not used, and nothing else happens: what it holds is packed anew, and
//! somebody makes another one some day.
//! Relies on: `local` for mapped files and for verified blocks of its pack. Elsewhere: which is used (`answer::prepare`), how they
//! are made (`work::answers`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use tokio::sync::OnceCell;

use crate::git::HashKind;
use crate::local::{Local, PackBlob};
use crate::mirror::snapshot::{belongs, pack_blob};
use crate::pack::layer::Layer;
use crate::pack::layer::stack::Stack;
use crate::pack::plan::stored::Stored;
use crate::store::{BlobId, Generation, LayerRef};

/// An answer of more objects is neither made nor opened: each takes twelve bytes of memory while it is open.
pub const MOST_OBJECTS: u32 = 2_000_000;

/// However small a repository is, its answers may take so many bytes.
const LEAST_ROOM: u64 = 4 << 20;

/// How many bytes the packs of a repository's answers may have, where they may take `share` percent of its packs.
pub fn room(generation: &Generation, share: u64) -> u64 {
    let all: u64 = generation.layers.iter().map(|layer| layer.pack.len).sum();
    (all / 100).saturating_mul(share).max(LEAST_ROOM)
}

/// An answer, open.
pub struct Answer {
    /// Its pack.
    pub pack: PackBlob,
    /// What it holds of the stack.
    pub stored: Stored,
    /// Its bytes cannot be had.
    is_lost: AtomicBool,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({})", self.pack.blob)
    }
}

impl Answer {
    /// Says which one it is.
    pub fn id(&self) -> BlobId {
        self.pack.blob.id
    }

    /// Takes note that its bytes cannot be had: it is not used any more.
    pub fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// Whether its bytes could not be had.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }
}

/// One that a record names.
#[derive(Debug)]
struct Slot {
    layer: LayerRef,
    open: OnceCell<Option<Arc<Answer>>>,
}

impl Slot {
    fn is_lost(&self) -> bool {
        self.open.get().is_some_and(|open| open.as_ref().is_none_or(|answer| answer.is_lost()))
    }
}

/// The answers of one snapshot.
#[derive(Debug, Default)]
pub struct Answers(Vec<Arc<Slot>>);

impl Answers {
    /// Those that a record names; `older` ones are taken over, if they lie beside the same objects.
    pub(super) fn of(generation: &Generation, older: Option<&Self>) -> Self {
        let small = generation.answers.iter().filter(|answer| answer.layer.objects <= MOST_OBJECTS);
        let slot = |layer: LayerRef| {
            let known =
                older.iter().flat_map(|older| &older.0).find(|slot| slot.layer == layer && !slot.is_lost());
            known.cloned().unwrap_or_else(|| Arc::new(Slot { layer, open: OnceCell::new() }))
        };
        Self(small.map(|answer| slot(answer.layer)).collect())
    }

    /// Opens all that can be opened.
    pub(super) async fn open(&self, local: &Local, stack: &Arc<Stack>) -> Vec<Arc<Answer>> {
        let opened = self.0.iter().map(|slot| slot.open.get_or_init(|| open(local, stack, slot.layer)));
        let opened = join_all(opened).await.into_iter().flatten();
        opened.filter(|answer| !answer.is_lost()).cloned().collect()
    }
}

async fn open(local: &Local, stack: &Arc<Stack>, named: LayerRef) -> Option<Arc<Answer>> {
    let failed = |error: &dyn fmt::Display| {
        tracing::info!(answer = %named.pack, %error, "a stored answer cannot be opened; it is not used");
    };
    let files = tokio::try_join!(local.mapped(&named.idx), local.mapped(&named.graph));
    let (idx, graph) = files.inspect_err(|e| failed(e)).ok()?;
    let (stack, hash): (Arc<Stack>, HashKind) = (Arc::clone(stack), stack.hash());
    let opening = crate::threads::spawn_blocking(move || {
        let layer = Arc::new(Layer::open(idx, graph, hash)?);
        belongs(&named, &layer)?;
        let pack = pack_blob(&named.pack, &layer);
        let stored = Stored::beside(layer, &stack);
        Ok::<_, crate::pack::Damaged>(Arc::new(Answer { pack, stored, is_lost: AtomicBool::new(false) }))
    });
    match opening.await {
        Ok(opened) => opened.inspect_err(|e| failed(e)).ok(),
        Err(e) => {
            failed(&e);
            None
        }
    }
}
