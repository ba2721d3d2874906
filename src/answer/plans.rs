//! Plans that are kept: equal requests share one, whether they come together or one after the other.
//!
//! A CI fleet asks for the same clone hundreds of times; only the first computes what to send. The key is the request
//! without what does not change the answer (who asks, with which program), and as much of the published state as the answer
//! depends on: a push to another branch leaves a plan as good as it was, since layers are only added on top and an object
//! keeps its number. Nobody gets a plan without a grant of their own, and without wants that are published now: keys are
//! looked up after that.

use std::fmt::{self, Write};
use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use sha2::{Digest, Sha256};

use crate::answer::numbers::Numbers;
use crate::answer::prepare::{Prepared, needs_reach};
use crate::git::request::FetchRequest;
use crate::mirror::snapshot::Snapshot;
use crate::store::{Generation, LayerRef};

/// About how many plans there are.
const USUAL: usize = 256;
/// What a plan takes beside its own bytes.
const OVERHEAD: u64 = 512;

/// A normalised request and what of the published state its answer depends on, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of `request`, whose objects are `numbers`, for what `snapshot` publishes.
    pub fn of(snapshot: &Snapshot, request: &FetchRequest, numbers: &Numbers) -> Self {
        let mut normal = request.clone();
        normal.wants.sort_unstable();
        normal.want_refs.sort_unstable();
        let mut shallow: Vec<_> = request.shallow.iter().zip(&numbers.shallow).collect();
        shallow.sort_unstable();
        normal.shallow = shallow.iter().map(|(oid, _)| **oid).collect();
        normal.wire.forget_client();
        let generation = &snapshot.generation;
        let mut hasher = Hasher(Sha256::new());
        // Writing into a hasher does not fail.
        let _ = write!(hasher, "{}\0{normal:?}\0", generation.repo);
        // Objects that the client names and that come with a later layer change the answer.
        let numbers = numbers.haves.iter().chain(shallow.into_iter().map(|(_, number)| number));
        hasher.0.update(numbers.map(|number| u8::from(number.is_some())).collect::<Vec<_>>());
        if request.include_tag {
            hasher.0.update(snapshot.tags_digest());
        }
        if needs_reach(request) || !request.want_refs.is_empty() || !request.deepen_not.is_empty() {
            let _ = write!(hasher, "\0{}\0{}", generation.number, generation.writer);
        }
        Self(hasher.0.finalize().into())
    }
}

/// Takes text without keeping it: a request may have a quarter of a million ids.
struct Hasher(Sha256);

impl fmt::Write for Hasher {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

/// The layers that a plan was made for; it is good where others lie on top of them, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Base {
    layers: usize,
    digest: [u8; 32],
}

impl Base {
    /// Takes note of `layers`.
    fn of(layers: &[LayerRef]) -> Self {
        let mut hasher = Sha256::new();
        layers.iter().for_each(|layer| hasher.update(layer.pack.id.as_bytes()));
        Self { layers: layers.len(), digest: hasher.finalize().into() }
    }

    /// Says whether these are the lowest of `layers`.
    fn is_below(&self, layers: &[LayerRef]) -> bool {
        layers.get(..self.layers).is_some_and(|lowest| Self::of(lowest) == *self)
    }
}

/// A plan and what it is good for.
#[derive(Clone)]
struct Kept {
    prepared: Arc<Prepared>,
    base: Base,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Kept> for Bytes {
    fn weight(&self, _: &Key, kept: &Kept) -> u64 {
        kept.prepared.size() as u64 + OVERHEAD
    }
}

/// The plans of a node. Those that were asked for once go first.
pub struct Plans {
    cache: Cache<Key, Kept, Bytes>,
}

impl Plans {
    /// Keeps plans of at most `most` bytes together.
    pub fn new(most: u64) -> Self {
        let (hash, end) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        let mut options = OptionsBuilder::new();
        // One shard: the plan of a clone may be as large as many others together.
        let options = options.shards(1).estimated_items_capacity(USUAL).weight_capacity(most.max(1)).build();
        let cache = match options {
            Ok(options) => Cache::with_options(options, Bytes, hash, end),
            // All that is needed was given; nothing is lost without it but room for rows.
            Err(_) => Cache::with(USUAL, most.max(1), Bytes, hash, end),
        };
        Self { cache }
    }

    /// The plan under `key` that is good for `generation`, made by `make` if it is not there. An error is given to the one who
    /// met it; the next one tries anew. What is no pack but a round of a negotiation is not kept.
    pub async fn get<E, F>(&self, key: Key, generation: &Generation, make: F) -> Result<Arc<Prepared>, E>
    where
        F: Future<Output = Result<Prepared, E>>,
    {
        let layers = &generation.layers;
        let is_good =
            |kept: &Kept| kept.base.is_below(layers) && kept.prepared.is_good_beside(&generation.answers);
        let good = |_: &Key, kept: &mut Kept| match is_good(kept) {
            true => EntryAction::Retain(Arc::clone(&kept.prepared)),
            false => EntryAction::ReplaceWithGuard,
        };
        let place = match self.cache.entry_async(&key, good).await {
            EntryResult::Retained(prepared) => return Ok(prepared),
            EntryResult::Vacant(place) | EntryResult::Replaced(place, _) => place,
            EntryResult::Removed(..) | EntryResult::Timeout => return make.await.map(Arc::new),
        };
        let prepared = Arc::new(make.await?);
        if prepared.plan.is_some() {
            // Refused only where somebody has put another one there meanwhile.
            let _ = place.insert(Kept { prepared: Arc::clone(&prepared), base: Base::of(layers) });
        }
        Ok(prepared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{AnswerRef, BlobId, BlobKind, BlobRef, generation_for_tests};
    use std::sync::atomic::{AtomicU32, Ordering};

    const MOST: u64 = 64 << 20;

    fn layers(ids: &[u8]) -> Generation {
        let blob = |kind, id: u8| BlobRef { id: BlobId([id; 32]), kind, len: 1 };
        let layer = |&id| LayerRef {
            pack: blob(BlobKind::Pack, id),
            idx: blob(BlobKind::Idx, id),
            graph: blob(BlobKind::Graph, id),
            objects: 1,
        };
        Generation { layers: ids.iter().map(layer).collect(), ..generation_for_tests() }
    }

    fn key(n: u64) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        Key(key)
    }

    #[tokio::test]
    async fn equal_requests_share_one_and_errors_are_not_kept() {
        let (plans, layers) = (Plans::new(MOST), layers(&[1]));
        let made = AtomicU32::new(0);
        let make = async || {
            made.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok::<_, ()>(Prepared::with_plan(1))
        };
        assert!(plans.get(key(1), &layers, async { Err(()) }).await.is_err());
        let (a, b) = tokio::join!(plans.get(key(1), &layers, make()), plans.get(key(1), &layers, make()));
        assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_plan_is_good_while_its_layers_are_the_lowest() {
        let plans = Plans::new(MOST);
        let make = async || Ok::<_, ()>(Prepared::with_plan(1));
        let first = plans.get(key(1), &layers(&[1, 2]), make()).await.unwrap();
        let pushed = plans.get(key(1), &layers(&[1, 2, 3]), make()).await.unwrap();
        assert!(Arc::ptr_eq(&first, &pushed), "a push leaves it");
        let merged = plans.get(key(1), &layers(&[4, 3]), make()).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &merged));
        let again = plans.get(key(1), &layers(&[4, 3]), make()).await.unwrap();
        assert!(Arc::ptr_eq(&merged, &again), "it was replaced");
        let shorter = plans.get(key(1), &layers(&[4]), make()).await.unwrap();
        assert!(!Arc::ptr_eq(&merged, &shorter), "it may name what is not there");
    }

    #[tokio::test]
    async fn a_costly_plan_gives_way_to_a_stored_answer_and_no_other_does() {
        let plans = Plans::new(MOST);
        let before = layers(&[1]);
        let layer = layers(&[9]).layers[0];
        let stored =
            Generation { answers: vec![AnswerRef { layer, kind: "depth 1".into() }], ..layers(&[1]) };
        for (cost, goes) in [(1 << 20, true), (1 << 10, false)] {
            let make = async || Ok::<_, ()>(Prepared::with_anew(cost));
            let first = plans.get(key(cost), &before, make()).await.unwrap();
            let then = plans.get(key(cost), &stored, make()).await.unwrap();
            assert_eq!(Arc::ptr_eq(&first, &then), !goes, "{cost} bytes packed anew");
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_again_stays() {
        let (plans, layers) = (Plans::new(MOST), layers(&[1]));
        let ask = async |n, bytes| {
            plans.get(key(n), &layers, async { Ok::<_, ()>(Prepared::with_plan(bytes)) }).await.unwrap()
        };
        let clone = ask(0, 4 << 20).await;
        for n in 1..1000 {
            ask(n, 1 << 20).await;
            assert!(Arc::ptr_eq(&clone, &ask(0, 4 << 20).await), "after {n} others");
            // Rounds of a negotiation, which nobody asks for again.
            plans
                .get(key(n << 32), &layers, async { Ok::<_, ()>(Prepared::of_size(1 << 20)) })
                .await
                .unwrap();
        }
        assert!(plans.cache.weight() <= MOST);
    }
}
