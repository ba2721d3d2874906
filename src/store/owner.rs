//! The owner of a store: the one primary whose mirror it is, and the addresses that this primary had before.
//!
//! Paths alone do not tell the repositories of two hosts apart, so a store serves one primary. The first node claims it by
//! create-if-absent; a store of an earlier version, which bears no such mark, is its records' primary's. Only an operator changes
//! it ([`Bucket::adopt`]), when the host has moved to another address: records that name a former address count on.
//! Elsewhere: who asks for it (`node`, `cli`), what the records say ([`super::generation`]).

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::bucket::Created;
use super::{Bucket, StoreError};

/// The key of the mark.
const KEY: &str = "owner";

/// How many repositories are asked whose a store without the mark is.
const SAMPLE: usize = 16;

/// The most former addresses that are kept.
const MOST_FORMER: usize = 100;

/// Whose mirror a store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The primary's address, as records name it.
    pub primary: String,
    /// Addresses that it had before, the oldest first.
    #[serde(default)]
    pub former: Vec<String>,
}

impl Owner {
    fn encode(&self) -> Bytes {
        // A string and a list of strings: serialising them to memory cannot fail.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let owner: Self = serde_json::from_slice(bytes).map_err(|error| {
            StoreError::damaged(KEY, format!("it does not say whose store it is: {error}"))
        })?;
        if owner.former.len() > MOST_FORMER {
            return Err(StoreError::damaged(KEY, "more former addresses than anybody had"));
        }
        Ok(owner)
    }
}

impl Bucket {
    /// Whose mirror the store is; none if nobody has claimed it and it holds no records. Writes nothing.
    pub async fn owner(&self) -> Result<Option<Owner>, StoreError> {
        match self.read(&Path::from(KEY)).await {
            Ok(found) => Owner::decode(&found).map(Some),
            Err(StoreError::NotFound { .. }) => {
                // With thousands of repositories, reading them all would hold up the first start of this version.
                let taken = AtomicUsize::new(0);
                let records = self.current_of(|_| taken.fetch_add(1, Ordering::Relaxed) < SAMPLE).await?;
                // Records of two primaries under one prefix are what an earlier version could leave: the one with
                // most of them has it, and the other's are never served.
                let count = |name: &str| records.iter().filter(|record| record.primary == name).count();
                let first = records
                    .iter()
                    .map(|record| record.primary.as_str())
                    .max_by_key(|name| (count(name), *name));
                Ok(first.map(|primary| Owner { primary: primary.to_owned(), former: Vec::new() }))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the store `primary`'s if it is nobody's yet. An error if it is another's.
    pub async fn claim(&self, primary: &str) -> Result<(), StoreError> {
        let mark = Path::from(KEY);
        let owner = match self.read(&mark).await {
            Ok(found) => match Owner::decode(&found) {
                Ok(owner) if owner.primary == primary => owner,
                // It bears no checksum: what the way may have spoilt is read once more before a node ends because of it.
                _ => Owner::decode(&self.read(&mark).await?)?,
            },
            Err(StoreError::NotFound { .. }) => {
                let unmarked = self.owner().await?;
                let ours =
                    unmarked.unwrap_or_else(|| Owner { primary: primary.to_owned(), former: Vec::new() });
                match self.create(&mark, ours.encode()).await? {
                    Created::Ours => ours,
                    Created::Other(found) => Owner::decode(&found)?,
                }
            }
            Err(error) => return Err(error),
        };
        if owner.primary != primary {
            return Err(StoreError::OtherPrimary { owner: owner.primary, asked: primary.to_owned() });
        }
        self.remember_former(owner.former);
        Ok(())
    }

    /// Makes sure that the layout of the store is known and that it is `primary`'s; an empty store gets both marks, the layout first.
    pub async fn take(&self, primary: &str) -> Result<(), StoreError> {
        self.ensure_format().await?;
        self.claim(primary).await
    }

    /// Makes the store of `from` that of `to`; the same again changes nothing. What it was and is comes back.
    ///
    /// Two operators who do this at once with different addresses leave one of them; the other's nodes then refuse to start.
    pub async fn adopt(&self, from: &str, to: &str) -> Result<Owner, StoreError> {
        let Some(owner) = self.owner().await? else {
            return Err(StoreError::refused(
                "adopt the store",
                "it holds nothing yet, so it needs no new owner",
            ));
        };
        let changed = match &owner.primary {
            now if now == to => owner,
            now if now == from => {
                let mut former = owner.former;
                former.retain(|known| known != to && known != from);
                former.push(from.to_owned());
                let excess = former.len().saturating_sub(MOST_FORMER);
                former.drain(..excess);
                Owner { primary: to.to_owned(), former }
            }
            now => return Err(StoreError::OtherPrimary { owner: now.clone(), asked: from.to_owned() }),
        };
        self.overwrite(&Path::from(KEY), changed.encode()).await?;
        self.remember_former(changed.former.clone());
        Ok(changed)
    }

    /// Says whether a record that names `found` as its primary is one of `primary`'s. Former addresses are known after
    /// [`Bucket::claim`].
    pub fn is_record_of(&self, found: &str, primary: &str) -> bool {
        found == primary || self.former().iter().any(|former| former == found)
    }

    fn remember_former(&self, former: Vec<String>) {
        *self.former() = former;
    }

    fn former(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.inner.former.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::{Fault, Faulty, Op, at_once};
    use crate::store::generation_for_tests as sample;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    const OLD: &str = "https://old.example.com";
    const NEW: &str = "https://new.example.com";

    fn bucket() -> (Bucket, Arc<Faulty>) {
        let faulty = Faulty::over(InMemory::new());
        (Bucket::over(faulty.clone(), "farm").with_policy(at_once(3)), faulty)
    }

    #[tokio::test]
    async fn the_first_primary_has_the_store_and_another_is_refused() {
        let (bucket, faulty) = bucket();
        assert_eq!(bucket.owner().await.unwrap(), None);
        faulty.on(Op::Create, 1, Fault::ReplyLost);
        bucket.claim(OLD).await.unwrap();
        bucket.claim(OLD).await.unwrap();
        let refused = bucket.claim(NEW).await.unwrap_err();
        assert!(matches!(&refused, StoreError::OtherPrimary { owner, .. } if owner == OLD), "{refused}");
        assert!(refused.to_string().contains("packmirror adopt --from https://old.example.com"), "{refused}");
        assert!(!refused.is_transient());
    }

    #[tokio::test]
    async fn a_name_that_the_way_spoils_is_read_once_more() {
        let (bucket, faulty) = bucket();
        bucket.claim(OLD).await.unwrap();
        faulty.reset();
        faulty.on(Op::Get, 1, Fault::CorruptByte);
        bucket.claim(OLD).await.unwrap();
        assert_eq!(faulty.counts()[&Op::Get], 2);
    }

    #[tokio::test]
    async fn a_store_without_the_mark_is_its_records_primarys() {
        let (bucket, _) = bucket();
        let record = sample();
        bucket.publish(&record).await.unwrap();
        let named = record.primary.as_str();
        assert!(
            matches!(bucket.claim(NEW).await, Err(StoreError::OtherPrimary { owner, .. }) if owner == named)
        );
        bucket.claim(named).await.unwrap();
    }

    #[tokio::test]
    async fn a_change_of_address_keeps_the_records_and_can_be_said_twice() {
        let (bucket, _) = bucket();
        assert!(bucket.adopt(OLD, NEW).await.is_err(), "there is nothing to adopt");
        bucket.claim(OLD).await.unwrap();
        assert!(bucket.adopt("https://third.example.com", NEW).await.is_err());
        for _ in 0..2 {
            let owner = bucket.adopt(OLD, NEW).await.unwrap();
            assert_eq!(owner, Owner { primary: NEW.into(), former: vec![OLD.into()] });
        }
        let (again, other) = (bucket.with_policy(at_once(3)), "https://third.example.com");
        assert!(!again.is_record_of(OLD, NEW), "before the claim nothing is known");
        again.claim(NEW).await.unwrap();
        assert!(
            again.is_record_of(OLD, NEW) && again.is_record_of(NEW, NEW) && !again.is_record_of(other, NEW)
        );
        assert!(again.claim(OLD).await.is_err());
        // And back.
        let owner = bucket.adopt(NEW, OLD).await.unwrap();
        assert_eq!(owner, Owner { primary: OLD.into(), former: vec![NEW.into()] });
    }

    #[tokio::test]
    async fn a_damaged_mark_is_nobodys() {
        let (bucket, _) = bucket();
        bucket.overwrite(&Path::from(KEY), "{}".into()).await.unwrap();
        assert!(matches!(bucket.claim(OLD).await, Err(StoreError::Damaged { .. })));
    }
}
