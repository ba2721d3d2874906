//! Names of blobs: what a reference to stored bytes is made of.
//!
//! A blob is immutable and named by the SHA-256 of its stored bytes, so two writers of the same bytes write the same
//! object and a reader can prove what it got. Elsewhere: reading and writing them ([`super::blobs`]).

use std::fmt;
use std::str::FromStr;

use object_store::path::Path;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The SHA-256 of a blob's stored bytes; written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 32]);

impl BlobId {
    /// Names `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Takes the name from a finished hash.
    pub fn from_hasher(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({self})")
    }
}

/// The text is not 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 in lower-case hex")]
pub struct BadBlobId;

impl FromStr for BlobId {
    type Err = BadBlobId;

    fn from_str(text: &str) -> Result<Self, BadBlobId> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(BadBlobId);
        }
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).map_err(|_| BadBlobId)?;
        Ok(Self(id))
    }
}

impl Serialize for BlobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a blob holds; the ending of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    /// A self-contained Git pack, as it is.
    Pack,
    /// The version 2 index of a pack, as it is.
    Idx,
    /// A layer's graph in one zstd frame.
    Graph,
    /// The refs of a generation as Git's `packed-refs` text, in one zstd frame.
    Refs,
}

impl BlobKind {
    /// The ending of keys and file names.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Idx => "idx",
            Self::Graph => "graph",
            Self::Refs => "refs",
        }
    }

    /// Says whether the stored bytes are a zstd frame around what readers use.
    pub fn is_framed(self) -> bool {
        matches!(self, Self::Graph | Self::Refs)
    }

    /// The kind with this ending.
    pub fn from_ending(ending: &str) -> Option<Self> {
        [Self::Pack, Self::Idx, Self::Graph, Self::Refs].into_iter().find(|kind| kind.ending() == ending)
    }
}

/// Everything needed to fetch a blob and to prove that it is the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// SHA-256 of the stored bytes.
    pub id: BlobId,
    /// What the bytes are.
    pub kind: BlobKind,
    /// Number of stored bytes.
    pub len: u64,
}

/// What tells a blob from every other one, whatever its length is said to be.
pub type Name = (BlobId, BlobKind);

impl BlobRef {
    /// What tells it from every other blob.
    pub fn name(&self) -> Name {
        (self.id, self.kind)
    }

    /// The blob that a key below `blobs/` holds, if it is one, with its length.
    pub(crate) fn at(key: &Path, len: u64) -> Option<Self> {
        let (id, ending) = key.filename()?.split_once('.')?;
        let blob = Self { id: id.parse().ok()?, kind: BlobKind::from_ending(ending)?, len };
        (blob.key() == *key).then_some(blob)
    }

    /// Names `bytes` without storing them.
    pub fn of(kind: BlobKind, bytes: &[u8]) -> Self {
        Self { id: BlobId::of(bytes), kind, len: bytes.len() as u64 }
    }

    /// The key below the bucket's prefix: `blobs/<first two digits>/<sha256>.<kind>`. The hash stands first so that
    /// load spreads over a store's partitions.
    pub(crate) fn key(&self) -> Path {
        let id = self.id.to_string();
        Path::from_iter(["blobs", &id[..2], &format!("{id}.{}", self.kind.ending())])
    }
}

impl fmt::Display for BlobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.kind.ending())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_named_by_its_bytes() {
        let blob = BlobRef::of(BlobKind::Pack, b"abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(blob.id.to_string(), hex);
        assert_eq!(blob.key().to_string(), format!("blobs/ba/{hex}.pack"));
        assert_eq!(hex.parse::<BlobId>(), Ok(blob.id));
        let json = serde_json::to_string(&blob).unwrap();
        assert_eq!(json, format!(r#"{{"id":"{hex}","kind":"pack","len":3}}"#));
        assert_eq!(serde_json::from_str::<BlobRef>(&json).unwrap(), blob);
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "ba", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert_eq!(text.parse::<BlobId>(), Err(BadBlobId), "{text}");
        }
    }
}
