//! Plans that are kept: equal requests share one, whether they come together or one after the other.
//!
//! A CI fleet asks for the same clone hundreds of times; only the first computes what to send. The key is the
//! published state and the request without what does not change the answer (who asks, with which program). Nobody gets a
//! plan without a grant of their own: keys are looked up after that.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::git::request::FetchRequest;
use crate::mirror::snapshot::Snapshot;
use crate::serve::prepare::Prepared;

/// How many plans are kept.
const MOST: usize = 256;

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
        let mut hasher = Hasher(Sha256::new());
        let (repo, number, writer) = (&generation.repo, generation.number, &generation.writer);
        // Writing into a hasher does not fail.
        let _ = write!(hasher, "{repo}\0{number}\0{writer}\0{normal:?}");
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

type Cell = Arc<OnceCell<Arc<Prepared>>>;

/// The plans of a node, the oldest going first.
pub struct Plans {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// How many bytes they may have together. That of a whole clone of a large repository has a few million.
    most: usize,
    cells: HashMap<Key, (Cell, usize)>,
    /// Oldest first.
    order: VecDeque<Key>,
    /// Sum of the sizes of all that are made.
    bytes: usize,
}

impl Kept {
    fn remove(&mut self, key: &Key) {
        if let Some((_, size)) = self.cells.remove(key) {
            self.bytes -= size;
            self.order.retain(|other| other != key);
        }
    }

    /// Notes how large a plan turned out, and makes room for it.
    fn made(&mut self, key: &Key, size: usize) {
        // One of so many is shared by those who ask while it is made, and not kept.
        if size > self.most / 4 {
            return self.remove(key);
        }
        if let Some((_, noted)) = self.cells.get_mut(key) {
            self.bytes = self.bytes - *noted + size;
            *noted = size;
        }
        while self.bytes > self.most
            && let Some(oldest) = self.order.front().copied()
        {
            self.remove(&oldest);
        }
    }
}

impl Plans {
    /// Keeps plans of at most `most` bytes together.
    pub fn new(most: usize) -> Self {
        Self { kept: Mutex::new(Kept { most, ..Kept::default() }) }
    }

    /// The plan under `key`, made by `make` if it is not there. An error is given to the one who met it; the next one
    /// tries anew.
    pub async fn get<E, F>(&self, key: Key, make: F) -> Result<Arc<Prepared>, E>
    where
        F: Future<Output = Result<Prepared, E>>,
    {
        let cell = self.cell(key);
        let prepared = cell.get_or_try_init(async || Ok(Arc::new(make.await?))).await.cloned();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match &prepared {
            Ok(prepared) => kept.made(&key, prepared.size()),
            Err(_) => kept.remove(&key),
        }
        prepared
    }

    fn cell(&self, key: Key) -> Cell {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cell, _)) = kept.cells.get(&key) {
            return Arc::clone(cell);
        }
        if kept.order.len() >= MOST
            && let Some(oldest) = kept.order.front().copied()
        {
            kept.remove(&oldest);
        }
        kept.order.push_back(key);
        Arc::clone(&kept.cells.entry(key).or_default().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const MOST_BYTES: usize = 64 << 20;
    const LARGEST: usize = MOST_BYTES / 4;

    fn prepared(bytes: usize) -> Prepared {
        Prepared::of_size(bytes)
    }

    #[tokio::test]
    async fn equal_requests_share_one_and_errors_are_not_kept() {
        let plans = Plans::new(MOST_BYTES);
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
        let plans = Plans::new(MOST_BYTES);
        for n in 0..=MOST as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            plans.get(Key(key), async { Ok::<_, ()>(prepared(1)) }).await.unwrap();
        }
        let kept = plans.kept.lock().unwrap();
        assert_eq!((kept.cells.len(), kept.order.len(), kept.bytes), (MOST, MOST, MOST));
    }

    #[tokio::test]
    async fn their_bytes_are_bounded() {
        let plans = Plans::new(MOST_BYTES);
        for n in 0..9 {
            plans.get(Key([n; 32]), async { Ok::<_, ()>(prepared(LARGEST)) }).await.unwrap();
        }
        let kept = plans.kept.lock().unwrap();
        assert_eq!((kept.cells.len(), kept.order.len(), kept.bytes), (4, 4, MOST_BYTES));
        assert!(kept.cells.contains_key(&Key([8; 32])), "the newest stays");
    }
}
