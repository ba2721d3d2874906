//! Orders to forget: what `packmirror purge` tells all nodes.
//!
//! An order names a repository, the generation from which on it may be served, and blobs that no node may keep. Orders are
//! numbered from 1 on, created once and never overwritten, so a node says with one number what it has obeyed, and sees by
//! a number that is missing that it has been away for longer than orders are kept.
//! Elsewhere: who gives orders (`work::purge`), who obeys them (`mirror::orders`), how long they are kept (`work::collect`).

use std::collections::HashSet;

use bytes::Bytes;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::bucket::Created;
use super::{BlobId, BlobKind, BlobRef, Bucket, Listed, Name, StoreError, nonce};
use crate::git::path::RepoPath;

/// The folder of orders.
pub const ORDERS: &str = "purges";

/// The version of an order's form.
const VERSION: u32 = 1;

/// The most blobs that one order names.
pub const MOST_BLOBS: usize = 200_000;

/// The most bytes of an order's text.
const MOST_TEXT: usize = 32 << 20;

/// The most orders that are looked at.
const MOST_ORDERS: usize = 100_000;

/// How many numbers that others take first are passed over.
const MOST_TRIES: u64 = 64;

/// One order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The repository.
    pub repo: RepoPath,
    /// The first generation that may be served.
    pub generation: u64,
    /// What no node may keep.
    pub blobs: HashSet<Name>,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    /// Tells an own order from another's when a reply was lost.
    writer: String,
    repo: RepoPath,
    generation: u64,
    /// `<sha256>.<kind>` each.
    blobs: Vec<String>,
}

fn key(number: u64) -> Path {
    Path::from_iter([ORDERS, &format!("{number:020}")])
}

/// The number of an order, by its key.
fn number_of(key: &Path) -> Option<u64> {
    let digits = key.filename().filter(|_| key.parts_count() == 2)?;
    let number = digits.parse().ok()?;
    (digits.len() == 20 && number > 0).then_some(number)
}

fn name_of(text: &str) -> Option<Name> {
    let (id, ending) = text.split_once('.')?;
    Some((id.parse::<BlobId>().ok()?, BlobKind::from_ending(ending)?))
}

impl Order {
    fn encode(&self) -> Result<Bytes, StoreError> {
        let mut blobs: Vec<String> = self
            .blobs
            .iter()
            .map(|(id, kind)| BlobRef { id: *id, kind: *kind, len: 0 }.to_string())
            .collect();
        blobs.sort_unstable();
        let text = Text {
            version: VERSION,
            writer: nonce(),
            repo: self.repo.clone(),
            generation: self.generation,
            blobs,
        };
        let bad = |why: String| StoreError::refused(format!("put {ORDERS}"), why);
        let text = serde_json::to_vec(&text).map_err(|e| bad(e.to_string()))?;
        if self.blobs.len() > MOST_BLOBS || text.len() > MOST_TEXT {
            return Err(bad(format!("{} blobs are too many for one order", self.blobs.len())));
        }
        Ok(zstd::bulk::compress(&text, 3).map_err(|e| bad(e.to_string()))?.into())
    }

    fn decode(key: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bad =
            |why: String| StoreError::damaged(key, format!("not an order of `packmirror purge`: {why}"));
        let text = zstd::bulk::decompress(bytes, MOST_TEXT).map_err(|e| bad(e.to_string()))?;
        let Version { version } = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if version > VERSION {
            return Err(StoreError::Newer { key: key.to_string(), found: version, known: VERSION });
        }
        let text: Text = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        let blobs = text.blobs.iter().map(|blob| name_of(blob).ok_or_else(|| bad(format!("`{blob}`"))));
        Ok(Self { repo: text.repo, generation: text.generation, blobs: blobs.collect::<Result<_, _>>()? })
    }
}

impl Listed {
    /// The number of an order, if it is one.
    pub fn order(&self) -> Option<u64> {
        number_of(&self.key)
    }
}

impl Bucket {
    /// Gives an order; its number.
    pub async fn give_order(&self, order: &Order) -> Result<u64, StoreError> {
        let bytes = order.encode()?;
        let first = self.orders().await?.last().map_or(1, |last| last + 1);
        for number in first..first + MOST_TRIES {
            if self.create(&key(number), bytes.clone()).await? == Created::Ours {
                return Ok(number);
            }
        }
        Err(StoreError::unavailable(format!("create {ORDERS}"), "others took every number first"))
    }

    /// The numbers of all orders, the oldest first: one listing.
    pub async fn orders(&self) -> Result<Vec<u64>, StoreError> {
        let listed = self.list_at_most(&Path::from(ORDERS), MOST_ORDERS).await?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(Listed::order).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads an order; none if it is not kept any more.
    pub async fn order(&self, number: u64) -> Result<Option<Order>, StoreError> {
        let key = key(number);
        match self.read(&key).await {
            Ok(bytes) => Order::decode(&key, &bytes).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::{Fault, Faulty, Op, at_once};
    use object_store::memory::InMemory;

    fn sample(n: u64) -> Order {
        let blobs = [(BlobId::of(b"x"), BlobKind::Pack), (BlobId::of(b"y"), BlobKind::Refs)];
        Order { repo: RepoPath::parse("team/app.git").unwrap(), generation: n, blobs: blobs.into() }
    }

    #[tokio::test]
    async fn orders_are_numbered_and_come_back_as_they_were_given() {
        let faulty = Faulty::over(InMemory::new());
        let bucket = Bucket::over(faulty.clone(), "some/prefix").with_policy(at_once(3));
        assert_eq!(bucket.orders().await.unwrap(), [0; 0]);
        assert_eq!(bucket.give_order(&sample(7)).await.unwrap(), 1);
        faulty.on(Op::Create, 2, Fault::ReplyLost);
        assert_eq!(bucket.give_order(&sample(8)).await.unwrap(), 2, "a lost reply does not give it twice");
        let order = sample(9);
        let (one, two) = tokio::join!(bucket.give_order(&order), bucket.give_order(&order));
        let mut both = [one.unwrap(), two.unwrap()];
        both.sort_unstable();
        assert_eq!(both, [3, 4]);
        assert_eq!(bucket.orders().await.unwrap(), [1, 2, 3, 4]);
        assert_eq!(bucket.order(2).await.unwrap(), Some(sample(8)));
        assert_eq!(bucket.order(5).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_order_is_said() {
        let bucket = Bucket::over(std::sync::Arc::new(InMemory::new()), "");
        let newer = zstd::bulk::compress(br#"{"version":2}"#, 3).unwrap();
        let huge = zstd::bulk::compress(&vec![b' '; MOST_TEXT + 1], 3).unwrap();
        for (number, bytes) in [(1, b"x".to_vec()), (2, newer), (3, huge)] {
            bucket.overwrite(&key(number), bytes.into()).await.unwrap();
        }
        bucket.overwrite(&Path::from("purges/what-is-it"), "x".into()).await.unwrap();
        assert_eq!(bucket.orders().await.unwrap(), [1, 2, 3]);
        assert!(matches!(bucket.order(1).await, Err(StoreError::Damaged { .. })));
        assert!(matches!(bucket.order(2).await, Err(StoreError::Newer { found: 2, .. })));
        assert!(matches!(bucket.order(3).await, Err(StoreError::Damaged { .. })), "it unpacks to too much");
    }
}
