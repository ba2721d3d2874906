//! The generation record: one published state of one repository.
//!
//! Written once, never changed, as two lines of JSON: the record, then the SHA-256 of the first line (with its line feed)
//! as a string. `head -n 1 | sha256sum` checks it, `jq` reads it. Its bytes name its parent's bytes, so the generations
//! of a repository form one chain; its `writer` tells an own record from another's when a reply was lost. Elsewhere: how
//! records are created and found ([`super::generations`]), what is inside the blobs.

use std::collections::HashSet;

use bstr::{BString, ByteSlice};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::{BlobId, BlobKind, BlobRef, StoreError};
use crate::git::path::RepoPath;
use crate::git::refname;
use crate::git::refs::Head;

/// The version written into new records. A reader refuses a higher one; within a version, fields are only added.
pub const VERSION: u32 = 1;

/// The highest number of a generation, so that every number has a successor and is exact in any reader of JSON.
pub const MOST_NUMBER: u64 = 1 << 53;

/// The most layers of one record. What a repository of so many needs is to be merged, not to be opened.
pub const MOST_LAYERS: usize = 65_536;

/// The most answers of one record.
const MOST_ANSWERS: usize = 64;

/// The most bytes of one blob, so that no sum over a record overflows. S3 stores 5 TiB.
const MOST_BLOB: u64 = 1 << 44;

/// The most symbolic refs beside HEAD.
const MOST_SYMREFS: usize = 65_536;

/// The last second that has a date of four digits for its year.
const LAST_SECOND: u64 = 253_402_300_799;

/// One published state of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// [`VERSION`] of the record's form.
    pub version: u32,
    /// The repository, by its path as clients ask for it.
    pub repo: RepoPath,
    /// 1 for the first generation of a repository, then one more each time.
    pub number: u64,
    /// SHA-256 of the parent record's bytes ([`Generation::id`]); none in generation 1.
    pub parent: Option<BlobId>,
    /// A nonce of the writing attempt ([`super::nonce`]): equal bytes mean the same attempt.
    pub writer: String,
    /// The primary that the state was taken from, without credentials.
    pub primary: String,
    /// `sha1` or `sha256`, as in Git's `object-format`.
    pub object_format: String,
    /// What HEAD was.
    pub head: Head,
    /// Other symbolic refs, name and target.
    #[serde(default, with = "names")]
    pub symrefs: Vec<(BString, BString)>,
    /// SHA-256 of the manifest (`<oid> SP <refname> LF` lines), in hex.
    pub manifest_digest: String,
    /// The refs as Git's `packed-refs` text in a zstd frame.
    pub refs: BlobRef,
    /// How many refs there are.
    pub ref_count: u64,
    /// The packs, lowest first. A pack may lean only on layers below it for what its refs reach, never for its deltas.
    pub layers: Vec<LayerRef>,
    /// Answers that were made before, the oldest first. They are derived: without one of them its objects are packed anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerRef>,
    /// When this record was made, Unix seconds, by the writer's clock. For people; nothing depends on it.
    pub created_at: u64,
    /// When the primary was asked for the refs, Unix seconds, by the writer's clock. For people.
    pub verified_at: u64,
    /// The repository is taken out of the mirror: this state is not to be served, and names no layers.
    #[serde(default, skip_serializing_if = "is_false")]
    pub removed: bool,
    /// The primary does not have it any more, as was believed at this time, Unix seconds: this state is kept and served to
    /// nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<u64>,
    /// SHA-256 of the bytes as read from the bucket; none in a record that was not read.
    #[serde(skip)]
    pub stored: Option<BlobId>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// One layer of a repository: a pack, its index and its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// The pack.
    pub pack: BlobRef,
    /// Its `.idx`.
    pub idx: BlobRef,
    /// Its graph, in a zstd frame.
    pub graph: BlobRef,
    /// Number of objects in the pack.
    pub objects: u32,
}

/// An answer that was made before: a pack of objects of the layers as clients get them, with its index and its graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRef {
    /// Its files.
    #[serde(flatten)]
    pub layer: LayerRef,
    /// What was asked for, in words, for people.
    pub kind: String,
}

impl LayerRef {
    /// Its blobs.
    pub fn blobs(&self) -> [BlobRef; 3] {
        [self.pack, self.idx, self.graph]
    }
}

impl Generation {
    /// Every blob that this record names.
    pub fn blobs(&self) -> impl Iterator<Item = BlobRef> + '_ {
        self.needed().chain(self.answers.iter().flat_map(|answer| answer.layer.blobs()))
    }

    /// The blobs without which the state cannot be served: all but those of answers.
    pub fn needed(&self) -> impl Iterator<Item = BlobRef> + '_ {
        std::iter::once(self.refs).chain(self.layers.iter().flat_map(LayerRef::blobs))
    }

    /// The SHA-256 of the record's bytes: what a child gives as its `parent`.
    pub fn id(&self) -> BlobId {
        self.stored.unwrap_or_else(|| BlobId::of(&self.encode()))
    }

    /// The record's bytes: two lines, as the module says.
    pub fn encode(&self) -> Vec<u8> {
        // A struct of strings, numbers and lists without maps: serialising it to memory cannot fail.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        let sum = BlobId::of(&bytes);
        bytes.extend_from_slice(format!("\"{sum}\"\n").as_bytes());
        bytes
    }

    /// Reads the record found at `key`, which must be this repository's with this number.
    pub(crate) fn decode(key: &Path, bytes: &[u8], repo_key: &str, number: u64) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bad = |what: String| StoreError::damaged(key, what);
        let end = bytes.iter().position(|&b| b == b'\n').ok_or_else(|| bad("record is cut short".into()))?;
        let (line, sum) = bytes.split_at(end + 1);
        // The version alone first: a newer record need not have today's fields.
        let Version { version } =
            serde_json::from_slice(line).map_err(|e| bad(format!("not a record: {e}")))?;
        if version > VERSION {
            return Err(StoreError::Newer { key: key.to_string(), found: version, known: VERSION });
        }
        let sum: BlobId = serde_json::from_slice(sum).map_err(|e| bad(format!("no checksum: {e}")))?;
        if sum != BlobId::of(line) {
            return Err(bad("checksum differs".into()));
        }
        let mut record: Self = serde_json::from_slice(line).map_err(|e| bad(format!("not a record: {e}")))?;
        if record.number != number || record.repo.key() != repo_key {
            return Err(bad(format!("holds generation {} of {}", record.number, record.repo)));
        }
        if (record.number == 1) != record.parent.is_none() || record.number == 0 {
            return Err(bad("its parent does not fit its number".into()));
        }
        record.check().map_err(bad)?;
        record.stored = Some(BlobId::of(bytes));
        Ok(record)
    }
}

impl Generation {
    /// Says what in a record cannot be, whoever wrote it: its readers compute with these numbers and write these names.
    fn check(&self) -> Result<(), String> {
        if self.number > MOST_NUMBER {
            return Err(format!("{} is no number of a generation", self.number));
        }
        if self.layers.len() > MOST_LAYERS || self.symrefs.len() > MOST_SYMREFS {
            return Err("it has more layers or symbolic refs than any repository".into());
        }
        if let Some(blob) = self.blobs().find(|blob| blob.len > MOST_BLOB) {
            return Err(format!("{blob} cannot have {} bytes", blob.len));
        }
        if self.answers.len() > MOST_ANSWERS {
            return Err("it has more answers than any repository".into());
        }
        let layers = self.layers.iter().chain(self.answers.iter().map(|answer| &answer.layer));
        let kinds = layers.map(|layer| (layer.pack.kind, layer.idx.kind, layer.graph.kind));
        let as_named = (BlobKind::Pack, BlobKind::Idx, BlobKind::Graph);
        if self.refs.kind != BlobKind::Refs || kinds.into_iter().any(|kinds| kinds != as_named) {
            return Err("a blob is not of the kind that its place needs".into());
        }
        let mut packs = HashSet::new();
        if !self.layers.iter().all(|layer| packs.insert(layer.pack.id)) {
            return Err("a pack stands in it twice".into());
        }
        if !matches!(self.object_format.as_str(), "sha1" | "sha256") {
            return Err("its object format is not known".into());
        }
        if self.created_at.max(self.verified_at).max(self.gone.unwrap_or(0)) > LAST_SECOND {
            return Err("its times cannot be".into());
        }
        let is_name = |name: &BString| refname::is_ref(name);
        if let Some((name, _)) = self
            .symrefs
            .iter()
            .find(|(name, target)| !is_name(name) || !(is_name(target) || target == "HEAD"))
        {
            return Err(format!("`{}` is no symbolic ref", refname::to_text(name.as_bstr())));
        }
        Ok(())
    }
}

/// Pairs of ref names in JSON, as [`refname::to_text`] writes them.
mod names {
    use super::*;
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(pairs: &[(BString, BString)], serializer: S) -> Result<S::Ok, S::Error> {
        let text = |name: &BString| refname::to_text(name.as_bstr());
        serializer.collect_seq(pairs.iter().map(|(name, target)| (text(name), text(target))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(BString, BString)>, D::Error> {
        let name = |text: String| refname::from_text(&text).ok_or_else(|| D::Error::custom("not a ref name"));
        let pairs = Vec::<(String, String)>::deserialize(deserializer)?;
        pairs.into_iter().map(|(from, to)| Ok((name(from)?, name(to)?))).collect()
    }
}

/// Where the generations of a repository lie: `repos/<repo>/gen`.
pub(crate) fn folder(repo_key: &str) -> Path {
    Path::from_iter(["repos", repo_key, "gen"])
}

/// The key of one generation. The number is written as `u64::MAX - number` in 20 digits, so that a listing, which
/// is in order of keys, shows the newest first.
pub(crate) fn key(repo_key: &str, number: u64) -> Path {
    folder(repo_key).join(format!("{:020}", u64::MAX - number))
}

/// The number in the last part of a key, if it is one that a generation may have.
pub(crate) fn number_of(key: &Path) -> Option<u64> {
    let digits = key.filename()?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = u64::MAX - digits.parse::<u64>().ok()?;
    (1..=MOST_NUMBER).contains(&number).then_some(number)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::nonce;

    /// A record with every field filled.
    pub(crate) fn sample() -> Generation {
        let blob = |kind, text: &str| BlobRef::of(kind, text.as_bytes());
        Generation {
            version: VERSION,
            repo: RepoPath::parse("team/app.git").unwrap(),
            number: 1,
            parent: None,
            writer: nonce(),
            primary: "https://git.example.com".into(),
            object_format: "sha1".into(),
            head: Head::Symbolic { target: "refs/heads/main".into() },
            symrefs: vec![("refs/remotes/o/HEAD".into(), b"refs/heads/\xff".as_slice().into())],
            manifest_digest: "00".repeat(32),
            refs: blob(BlobKind::Refs, "refs"),
            ref_count: 1,
            layers: vec![LayerRef {
                pack: blob(BlobKind::Pack, "pack"),
                idx: blob(BlobKind::Idx, "idx"),
                graph: blob(BlobKind::Graph, "graph"),
                objects: 3,
            }],
            answers: Vec::new(),
            created_at: 1,
            verified_at: 2,
            removed: false,
            gone: None,
            stored: None,
        }
    }

    fn read(bytes: &[u8], record: &Generation) -> Result<Generation, StoreError> {
        Generation::decode(&"k".into(), bytes, &record.repo.key(), record.number)
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let record = sample();
        let bytes = record.encode();
        let back = read(&bytes, &record).unwrap();
        assert_eq!(back.stored, Some(BlobId::of(&bytes)));
        assert_eq!(back.id(), record.id());
        assert_eq!(Generation { stored: None, ..back }, record);
        assert_eq!(record.blobs().count(), 4);
        assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), 2);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let record = sample();
        let bytes = record.encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                // White space around the checksum is all that may change unnoticed: it says nothing.
                if let Ok(back) = read(&bad, &record) {
                    assert_eq!(Generation { stored: None, ..back }, record, "byte {at} bit {bit}");
                }
            }
            if at + 1 < bytes.len() {
                assert!(read(&bytes[..at], &record).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn another_place_or_a_newer_version_is_refused() {
        let record = sample();
        let bytes = record.encode();
        let moved = Generation::decode(&"k".into(), &bytes, &record.repo.key(), 2);
        assert!(matches!(moved, Err(StoreError::Damaged { .. })));
        let other = RepoPath::parse("team/other.git").unwrap();
        assert!(Generation::decode(&"k".into(), &bytes, &other.key(), 1).is_err());
        let newer = b"{\"version\": 2, \"nothing\": \"known\"}\n";
        assert!(matches!(read(newer, &record), Err(StoreError::Newer { found: 2, .. })));
        let orphan = Generation { number: 2, ..record.clone() };
        assert!(read(&orphan.encode(), &orphan).is_err(), "generation 2 needs a parent");
    }

    #[test]
    fn what_no_writer_of_ours_would_write_is_damage() {
        let with = |change: &dyn Fn(&mut Generation)| {
            let mut record = sample();
            change(&mut record);
            record
        };
        let symref = |name: &str, target: &str| vec![(name.into(), target.into())];
        let wrong: [&dyn Fn(&mut Generation); 16] = [
            &|r| (r.number, r.parent) = (u64::MAX, Some(BlobId([0; 32]))),
            &|r| (r.number, r.parent) = (MOST_NUMBER + 1, Some(BlobId([0; 32]))),
            &|r| r.refs.len = u64::MAX,
            &|r| r.layers[0].pack.len = u64::MAX,
            &|r| r.refs.kind = BlobKind::Pack,
            &|r| r.layers[0].graph.kind = BlobKind::Refs,
            &|r| r.layers = vec![r.layers[0]; 2],
            &|r| r.object_format = "md5".into(),
            &|r| r.verified_at = u64::MAX,
            &|r| r.created_at = u64::MAX,
            &|r| r.symrefs = symref("/etc/cron.d/x", "refs/heads/a"),
            &|r| r.symrefs = symref("objects/pack/x", "refs/heads/a"),
            &|r| r.symrefs = symref("refs/../config", "refs/heads/a"),
            &|r| r.symrefs = symref("refs/a", "config"),
            &|r| r.head = Head::Symbolic { target: "config".into() },
            &|r| r.head = Head::Symbolic { target: "refs/heads/a\n[core]".into() },
        ];
        for (n, change) in wrong.into_iter().enumerate() {
            let record = with(change);
            assert!(matches!(read(&record.encode(), &record), Err(StoreError::Damaged { .. })), "case {n}");
        }
        let last = with(&|r| (r.number, r.parent) = (MOST_NUMBER, Some(BlobId([0; 32]))));
        assert!(read(&last.encode(), &last).is_ok());
        let mut many = sample();
        let one = many.layers[0];
        many.layers = (0..=MOST_LAYERS as u64)
            .map(|n| LayerRef { pack: BlobRef::of(BlobKind::Pack, &n.to_le_bytes()), ..one })
            .collect();
        assert!(read(&many.encode(), &many).is_err());
    }

    #[test]
    fn json_of_any_depth_is_an_error_and_no_overflow() {
        let deep = |open: &str, close: &str| open.repeat(200_000) + &close.repeat(200_000);
        for line in [
            deep("[", "]"),
            deep("{\"a\":", ""),
            format!("{{\"version\":1,\"unknown\":{}}}", deep("[", "]")),
            format!("{{\"version\":1,\"layers\":{}}}", deep("[", "]")),
        ] {
            let mut bytes = (line + "\n").into_bytes();
            let sum = BlobId::of(&bytes);
            bytes.extend_from_slice(format!("\"{sum}\"\n").as_bytes());
            assert!(read(&bytes, &sample()).is_err());
        }
    }

    #[test]
    fn keys_list_the_newest_first() {
        let mut keys: Vec<_> = [1, 2, 10, 999, MOST_NUMBER].map(|n| (key("r", n).to_string(), n)).into();
        keys.sort();
        assert_eq!(keys.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [MOST_NUMBER, 999, 10, 2, 1]);
        for (text, n) in keys {
            assert_eq!(number_of(&text.as_str().into()), Some(n));
        }
        for text in ["repos/r/gen/123".to_owned(), key("r", 0).to_string(), key("r", u64::MAX).to_string()] {
            assert_eq!(number_of(&text.as_str().into()), None, "{text}");
        }
    }
}
