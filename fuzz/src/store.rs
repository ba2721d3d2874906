//! The stored records, without the bucket around them.
#[path = "../../src/store/blob.rs"]
mod blob;
#[path = "../../src/store/generation.rs"]
mod generation;

pub use blob::{BlobId, BlobKind, BlobRef};
pub use generation::Generation;

/// What reading a record can say; the program's own has more, for what a store can do.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum StoreError {
    Damaged { key: String, what: String },
    Newer { key: String, found: u32, known: u32 },
}

impl StoreError {
    pub(crate) fn damaged(key: &object_store::path::Path, what: impl Into<String>) -> Self {
        Self::Damaged { key: key.to_string(), what: what.into() }
    }
}

/// Reads a record as the bucket does.
pub fn read(bytes: &[u8], repo_key: &str, number: u64) -> Result<Generation, StoreError> {
    Generation::decode(&"k".into(), bytes, repo_key, number)
}
