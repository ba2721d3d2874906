//! Plans that are kept: equal requests share one, whether they come together or one after the other.
//!
//! A CI fleet asks for the same clone hundreds of times; only the first computes what to send. The key is the
//! published state and the request without what does not change the answer (who asks, with which program). Nobody gets a
//! plan without a grant of their own: keys are looked up after that.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::git::request::FetchRequest;
use crate::mirror::snapshot::Snapshot;
use crate::serve::prepare::Prepared;

/// How many plans are kept.
const MOST: usize = 256;
/// A plan of more bytes is shared by those who ask while it is made, and not kept.
const LARGEST: usize = 1 << 20;

/// A published state and a normalised request, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of `request` for what `snapshot` publishes.
    pub fn of(snapshot: &Snapshot, request: &FetchRequest) -> Self {
        let mut normal = request.clone();
        normal.wants.sort_unstable();
        normal.want_refs.sort_unstable();
        normal.shallow.sort_unstable();
        if let Some(v0) = &mut normal.v0 {
            v0.agent = None;
            v0.session_id = None;
        }
        let generation = &snapshot.generation;
        let state = format!("{}\0{}\0{}\0", generation.repo, generation.number, generation.writer);
        Self(Sha256::new().chain_update(state).chain_update(format!("{normal:?}")).finalize().into())
    }
}

type Cell = Arc<OnceCell<Arc<Prepared>>>;

/// The plans of a node, the oldest going first.
#[derive(Default)]
pub struct Plans {
    kept: Mutex<(HashMap<Key, Cell>, VecDeque<Key>)>,
}

impl Plans {
    /// The plan under `key`, made by `make` if it is not there. An error is given to the one who met it; the next one
    /// tries anew.
    pub async fn get<E, F>(&self, key: Key, make: F) -> Result<Arc<Prepared>, E>
    where
        F: Future<Output = Result<Prepared, E>>,
    {
        let cell = self.cell(key);
        let prepared = cell.get_or_try_init(async || Ok(Arc::new(make.await?))).await.cloned();
        if prepared.as_ref().map_or(true, |prepared| prepared.size() > LARGEST) {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.0.remove(&key);
            kept.1.retain(|other| *other != key);
        }
        prepared
    }

    fn cell(&self, key: Key) -> Cell {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (cells, order) = &mut *kept;
        if let Some(cell) = cells.get(&key) {
            return Arc::clone(cell);
        }
        order.push_back(key);
        if order.len() > MOST
            && let Some(oldest) = order.pop_front()
        {
            cells.remove(&oldest);
        }
        Arc::clone(cells.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn prepared(bytes: usize) -> Prepared {
        Prepared { head: vec![0; bytes], plan: None }
    }

    #[tokio::test]
    async fn equal_requests_share_one_and_errors_are_not_kept() {
        let plans = Plans::default();
        let made = AtomicU32::new(0);
        let make = async |bytes| {
            made.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok::<_, ()>(prepared(bytes))
        };
        let key = Key([1; 32]);
        assert!(plans.get(key, async { Err(()) }).await.is_err());
        let (a, b) = tokio::join!(plans.get(key, make(1)), plans.get(key, make(1)));
        assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
        assert_eq!(made.load(Ordering::SeqCst), 1);
        plans.get(Key([2; 32]), make(LARGEST + 1)).await.unwrap();
        plans.get(Key([2; 32]), make(LARGEST + 1)).await.unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 3, "too large to keep");
    }

    #[tokio::test]
    async fn the_number_kept_is_bounded() {
        let plans = Plans::default();
        for n in 0..=MOST as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            plans.get(Key(key), async { Ok::<_, ()>(prepared(1)) }).await.unwrap();
        }
        let kept = plans.kept.lock().unwrap();
        assert_eq!((kept.0.len(), kept.1.len()), (MOST, MOST));
    }
}
