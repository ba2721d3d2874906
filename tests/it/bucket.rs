//! Looks into a store from outside, by the documented layout, and damages it where a test says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};

use crate::world::block_on;

/// One bucket prefix of a test.
pub struct Store {
    /// What `--store` gets.
    pub url: String,
    /// The directory it lies in, when it is one.
    pub dir: Option<PathBuf>,
    objects: Arc<dyn ObjectStore>,
    prefix: String,
}

impl Store {
    /// A store nobody used before: a directory, or a prefix on the S3 server that the environment names.
    pub fn fresh(world: &Path) -> Self {
        match std::env::var("PACKMIRROR_TEST_S3_URL") {
            Ok(base) if !base.is_empty() => Self::on_s3(&base),
            _ => Self::directory(&world.join("store")),
        }
    }

    pub fn directory(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a store directory");
        let objects = LocalFileSystem::new_with_prefix(dir).expect("a local store");
        Store {
            url: format!("file://{}", dir.display()),
            dir: Some(dir.to_owned()),
            objects: Arc::new(objects),
            prefix: String::new(),
        }
    }

    fn on_s3(base: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let url = url::Url::parse(base).expect("PACKMIRROR_TEST_S3_URL is a URL");
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_nanos();
        let unique = format!("{}-{now:x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let prefix = format!("{}/{unique}", url.path().trim_matches('/')).trim_matches('/').to_owned();
        packmirror::tls::provide();
        let objects = object_store::aws::AmazonS3Builder::from_env()
            .with_bucket_name(url.host_str().expect("s3://bucket/…"))
            .with_allow_http(true)
            .build()
            .expect("an S3 client from AWS_*");
        let url = format!("{}/{unique}", base.trim_end_matches('/'));
        Store { url, dir: None, objects: Arc::new(objects), prefix }
    }

    fn key(&self, name: &str) -> Key {
        Key::from(format!("{}/{name}", self.prefix).trim_matches('/'))
    }

    /// Names of all objects under a folder of the prefix ("" for all), sorted.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let under = self.key(folder);
        let all = block_on(self.objects.list(Some(&under)).try_collect::<Vec<_>>()).unwrap_or_default();
        let strip = |key: &Key| {
            let text = key.as_ref();
            text.strip_prefix(&self.prefix).unwrap_or(text).trim_start_matches('/').to_owned()
        };
        let mut names: Vec<String> = all.iter().map(|meta| strip(&meta.location)).collect();
        names.sort();
        names
    }

    pub fn get(&self, name: &str) -> Vec<u8> {
        self.try_get(name).unwrap_or_else(|| panic!("no {name} in the store"))
    }

    pub fn try_get(&self, name: &str) -> Option<Vec<u8>> {
        let key = self.key(name);
        block_on(async { self.objects.get(&key).await?.bytes().await }).ok().map(|b| b.to_vec())
    }

    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        block_on(self.objects.put(&self.key(name), bytes.into())).expect("a put");
    }

    pub fn delete(&self, name: &str) {
        block_on(self.objects.delete(&self.key(name))).expect("a delete");
    }

    /// The blobs of one kind: `pack`, `idx`, `graph`, `refs`.
    pub fn blobs(&self, kind: &str) -> Vec<String> {
        let end = format!(".{kind}");
        self.list("blobs").into_iter().filter(|name| name.ends_with(&end)).collect()
    }

    /// Names of a repository's generation records, newest first (so are their names made).
    pub fn generations(&self, repo: &str) -> Vec<String> {
        let hash = hex::encode(Sha256::digest(repo.as_bytes()));
        self.list(&format!("repos/{hash}/gen"))
    }

    /// The newest generation record of a repository.
    pub fn newest(&self, repo: &str) -> Option<serde_json::Value> {
        let name = self.generations(repo).into_iter().next()?;
        Some(record(&self.try_get(&name)?))
    }

    /// Checks what must hold at any time, whatever happened: blobs are named by their bytes, every generation names
    /// only blobs that are there with their length (I1), and generations form one chain (I3).
    #[track_caller]
    pub fn audit(&self) {
        let mut lengths = BTreeMap::new();
        for name in self.list("blobs") {
            let bytes = self.get(&name);
            let id = name.rsplit('/').next().and_then(|f| f.split('.').next()).unwrap_or_default().to_owned();
            assert_eq!(hex::encode(Sha256::digest(&bytes)), id, "{name} is not what its name says");
            lengths.insert(id, bytes.len() as u64);
        }
        let mut folders: Vec<String> = self
            .list("repos")
            .iter()
            .filter_map(|n| n.split_once("/gen/").map(|(folder, _)| folder.to_owned()))
            .collect();
        folders.dedup();
        for folder in folders {
            let mut before: Option<(u64, String)> = None;
            for name in self.list(&format!("{folder}/gen")).iter().rev() {
                let bytes = self.get(name);
                let record = record(&bytes);
                let number = record["number"].as_u64().expect("a number");
                if let Some((last, hash)) = before {
                    assert_eq!(number, last + 1, "{name}: a number is missing");
                    assert_eq!(
                        record["parent"].as_str(),
                        Some(hash.as_str()),
                        "{name}: not the child of its parent"
                    );
                }
                before = Some((number, hex::encode(Sha256::digest(&bytes))));
                let mut named = vec![&record["refs"]];
                for layer in record["layers"].as_array().expect("layers") {
                    named.extend([&layer["pack"], &layer["idx"], &layer["graph"]]);
                }
                for blob in named {
                    let id = blob["id"].as_str().unwrap_or_else(|| panic!("{name}: {blob} has no id"));
                    assert_eq!(lengths.get(id).copied(), blob["len"].as_u64(), "{name} names {blob}");
                }
            }
        }
    }

    /// Flips one bit in the middle of an object, keeping its length.
    pub fn damage(&self, name: &str) {
        let mut bytes = self.get(name);
        let at = bytes.len() / 2;
        bytes[at] ^= 0x10;
        self.put(name, bytes);
    }
}

/// A generation record: the first line is the record, the second the hash of the first.
fn record(bytes: &[u8]) -> serde_json::Value {
    let end = bytes.iter().position(|b| *b == b'\n').expect("a line") + 1;
    let hash: String = serde_json::from_slice(&bytes[end..]).expect("a hash in the second line");
    assert_eq!(hex::encode(Sha256::digest(&bytes[..end])), hash, "a generation does not match its hash");
    serde_json::from_slice(&bytes[..end]).expect("a generation is JSON")
}
