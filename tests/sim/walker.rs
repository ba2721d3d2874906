//! The walker: what lies in the bucket, read by the page of stored bytes alone (docs/formats.md) and judged by stock git.
//!
//! It shares no code with what writes: JSON as JSON, hashes by name, packs by `git fsck`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::primary::{State, git, run};
use super::world::{Verdict, scratch};

/// The bucket's objects below its prefix, by key.
pub type Dump = BTreeMap<String, Bytes>;

/// A generation as the bucket has it.
#[derive(Debug)]
pub struct Record {
    pub number: u64,
    pub key: String,
    pub value: Value,
    pub sum: String,
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// All records of a repository, the newest first.
pub fn records(dump: &Dump, repo: &str) -> Vec<Record> {
    let folder = format!("repos/{}/gen/", sha256(repo.as_bytes()));
    let of = |(key, bytes): (&String, &Bytes)| {
        let number = u64::MAX - key.strip_prefix(&folder)?.parse::<u64>().ok()?;
        let text = std::str::from_utf8(bytes).expect("a record is text");
        let (first, second) = text.split_once('\n').expect("a record has two lines");
        let line = format!("{first}\n");
        assert_eq!(second.trim(), format!("\"{}\"", sha256(line.as_bytes())), "{key}: its checksum");
        let value: Value = serde_json::from_str(first).expect("JSON");
        assert_eq!(value["number"], number, "{key}");
        assert_eq!(value["repo"], repo, "{key}");
        Some(Record { number, key: key.clone(), value, sum: sha256(bytes) })
    };
    dump.iter().filter_map(of).collect()
}

/// The blobs that a record names: key and length.
pub fn named(record: &Value) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut add = |blob: &Value| {
        if let (Some(id), Some(kind), Some(len)) =
            (blob["id"].as_str(), blob["kind"].as_str(), blob["len"].as_u64())
        {
            found.push((format!("blobs/{}/{id}.{kind}", &id[..2]), len));
        }
    };
    if record["removed"] == true {
        return found;
    }
    add(&record["refs"]);
    for layer in layers(record) {
        for part in ["pack", "idx", "graph"] {
            add(&layer[part]);
        }
    }
    found
}

/// The layers of a record, and the answers that it keeps.
fn layers(record: &Value) -> impl Iterator<Item = &Value> {
    ["layers", "answers"].into_iter().flat_map(|list| record[list].as_array().into_iter().flatten())
}

/// Checks that what a record names is there, whole, and is what its name says (I1, I12).
pub fn check_blobs(dump: &Dump, record: &Value) {
    for (key, len) in named(record) {
        let number = &record["number"];
        let bytes =
            dump.get(&key).unwrap_or_else(|| panic!("generation {number} names {key}, which is not there"));
        assert_eq!(bytes.len() as u64, len, "{key}: its length");
        let name = key.rsplit('/').next().and_then(|name| name.split('.').next());
        assert_eq!(name, Some(sha256(bytes).as_str()), "{key}: its bytes");
    }
}

/// The refs of a record.
pub fn refs(dump: &Dump, record: &Value) -> BTreeMap<String, String> {
    let (key, _) = named(record).remove(0);
    let text = zstd::decode_all(&dump[&key][..]).expect("a zstd frame");
    let text = String::from_utf8(text).expect("refs are text");
    let pairs = text.lines().filter(|line| !line.starts_with(['#', '^']));
    pairs
        .filter_map(|line| line.split_once(' '))
        .map(|(oid, name)| (name.to_owned(), oid.to_owned()))
        .collect()
}

/// Checks that every object that the refs reach is there, by stock git on the exported files (I2; the same bytes once), and gives the bytes of packs.
pub fn check_closure(dump: &Dump, record: &Value) -> u64 {
    let layers = record["layers"].as_array().unwrap();
    let bytes = layers.iter().map(|layer| layer["pack"]["len"].as_u64().unwrap()).sum();
    let files: Vec<_> = layers
        .iter()
        .enumerate()
        .flat_map(|(n, layer)| ["pack", "idx"].map(|kind| (n, kind, layer[kind]["id"].as_str().unwrap())))
        .map(|(n, kind, id)| {
            (format!("pack-{n:040x}.{kind}"), &dump[&format!("blobs/{}/{id}.{kind}", &id[..2])])
        })
        .collect();
    let packed: String = refs(dump, record).iter().map(|(name, oid)| format!("{oid} {name}\n")).collect();
    let verdict = Verdict::of(files.iter().map(|(_, bytes)| &bytes[..]).chain([packed.as_bytes()]));
    if verdict.is_known() {
        return bytes;
    }
    let dir = scratch();
    run(git(dir.path()).args(["init", "-q", "--bare", "."]), b"");
    for (name, bytes) in files {
        std::fs::write(dir.path().join("objects/pack").join(name), bytes).unwrap();
    }
    std::fs::write(dir.path().join("packed-refs"), packed).unwrap();
    run(git(dir.path()).args(["fsck", "--full", "--strict", "--no-dangling", "--no-progress"]), b"");
    verdict.note_good();
    bytes
}

/// Checks the chain of a repository (I3): numbers follow each other, each record names the one before as its parent. A purge that did not
/// end has deleted some of the older ones.
pub fn check_chain(records: &[Record], is_purged: bool) {
    for pair in records.windows(2) {
        let [newer, older] = pair else { continue };
        if is_purged && newer.number > older.number + 1 {
            continue;
        }
        assert_eq!(newer.number, older.number + 1, "a number is missing between two that are there");
        assert_eq!(
            newer.value["parent"].as_str(),
            Some(older.sum.as_str()),
            "generation {}: its parent",
            newer.number
        );
    }
}

/// Checks that all that is published is of the one primary whose mirror the store says that it is.
pub fn check_owner(dump: &Dump) {
    let Some(owner) = dump.get("owner") else { return };
    let owner: Value = serde_json::from_slice(owner).expect("JSON");
    for (key, bytes) in dump.iter().filter(|(key, _)| key.contains("/gen/")) {
        let record = first_line(bytes);
        assert_eq!(record["primary"], owner["primary"], "{key} is of another primary than the store");
    }
}

/// The names of blobs that orders to forget name and that no repository has had since, out of all records and orders as they were
/// written.
pub fn forgotten(told: &[(String, Bytes)]) -> BTreeSet<String> {
    let mut forgotten = BTreeSet::new();
    for (at, (_, order)) in told.iter().enumerate().filter(|(_, (key, _))| key.contains("/purges/")) {
        let order = zstd::decode_all(&order[..]).expect("a zstd frame");
        let order: Value = serde_json::from_slice(&order).expect("JSON");
        // The newest record of each repository then, and all that came later.
        let mut newest = BTreeMap::new();
        let records = |range: &'_ [(String, Bytes)]| {
            let of = |(key, bytes): &(String, Bytes)| key.contains("/gen/").then(|| first_line(bytes));
            range.iter().filter_map(of).collect::<Vec<_>>()
        };
        newest.extend(records(&told[..at]).into_iter().map(|record| (record["repo"].to_string(), record)));
        let since = newest.into_values().chain(records(&told[at..]));
        let named: BTreeSet<String> = since.flat_map(|record| named(&record)).map(|(key, _)| key).collect();
        let blobs = order["blobs"].as_array().unwrap().iter().map(|blob| blob.as_str().unwrap());
        let gone = blobs.filter(|blob| !named.contains(&format!("blobs/{}/{blob}", &blob[..2])));
        forgotten.extend(gone.map(|blob| blob.split('.').next().unwrap().to_owned()));
    }
    forgotten
}

/// The ids of the objects that a record's layers and answers hold, as far as these are there.
pub fn objects(dump: &Dump, record: &Value) -> BTreeSet<String> {
    let ids = layers(record).map(|layer| layer["idx"]["id"].as_str().unwrap());
    let all = ids.filter_map(|id| dump.get(&format!("blobs/{}/{id}.idx", &id[..2])));
    all.flat_map(|idx| {
        // Version 2 (gitformat-pack(5)): eight bytes, 256 counts, the last of which is that of the ids that follow.
        let (head, rest) = idx.split_at(8 + 256 * 4);
        let count = u32::from_be_bytes(*head.last_chunk().unwrap()) as usize;
        rest.chunks(20).take(count).map(hex::encode)
    })
    .collect()
}

/// The first line of a record.
fn first_line(record: &[u8]) -> Value {
    serde_json::from_slice(record.split(|byte| *byte == b'\n').next().unwrap()).expect("JSON")
}

/// Checks that what a record publishes is one of `states` (I4, I7), and gives which.
pub fn state_of(dump: &Dump, record: &Value, states: &[(usize, &State)]) -> usize {
    let refs = refs(dump, record);
    let found = states.iter().find(|(_, state)| state.refs == refs);
    found
        .unwrap_or_else(|| {
            panic!("generation {} is a state that the primary never had: {refs:?}", record["number"])
        })
        .0
}
