//! What each node last said of itself, one small object a node: for `packmirror status`, and for the nodes that divide the
//! comparisons. What is published never depends on it.

use std::collections::HashMap;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::{Bucket, StoreError};

/// Nodes read at once.
const READS: usize = 4;

/// The most nodes that are listened to.
const MOST_NODES: usize = 10_000;

/// Names looked at for them.
const MOST_NAMES: usize = 100_000;

/// The most bytes that one node says: some 40,000 repositories.
const MOST_WORDS: u64 = 16 << 20;

/// The most bytes that all nodes say together.
const MOST_IN_ALL: u64 = 128 << 20;

/// A node, and what it said if that is news.
#[derive(Debug)]
pub struct NodeWords {
    /// Its name.
    pub name: String,
    /// What tells its words from the next ones.
    pub tag: String,
    /// When it said them, by the store's clock.
    pub modified: SystemTime,
    /// Its words, if they are not those that were known.
    pub words: Option<Bytes>,
}

fn key(node: &str) -> Path {
    Path::from_iter(["nodes", node])
}

impl Bucket {
    /// Writes what `node` says of itself, over what it said before.
    pub async fn put_node(&self, node: &str, words: Bytes) -> Result<(), StoreError> {
        self.overwrite(&key(node), words).await
    }

    /// Forgets a node.
    pub async fn remove_node(&self, node: &str) -> Result<(), StoreError> {
        self.remove(&key(node)).await
    }

    /// What all nodes last said of themselves, by name: the latest words first, as far as they are of a reasonable length
    /// and number. What is no node's is passed over.
    pub async fn nodes(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        let nodes = self.nodes_beside(&HashMap::new()).await?;
        Ok(nodes.into_iter().filter_map(|node| Some((node.name, node.words?))).collect())
    }

    /// All nodes, with the words of those that have said something since their tags were `known`: one listing, and one read
    /// for each that has.
    pub async fn nodes_beside(&self, known: &HashMap<String, String>) -> Result<Vec<NodeWords>, StoreError> {
        let folder = Path::from("nodes");
        let mut listing = self.inner.store.list(Some(&self.at(&folder)));
        let (mut listed, mut seen) = (Vec::new(), 0);
        while let Some(object) = listing.try_next().await.map_err(|e| self.sort("list", &folder, e))? {
            seen += 1;
            let at = self.below(&object.location);
            if let Some(at) = at.filter(|at| at.parts_count() == 2)
                && let Some(name) = at.filename().filter(|name| is_node(name)).map(str::to_owned)
                && object.size <= MOST_WORDS
            {
                let tag = format!("{:?} {} {}", object.e_tag, object.last_modified, object.size);
                let modified = object.last_modified.into();
                let node = NodeWords { name, tag, modified, words: None };
                listed.push((object.last_modified, object.size, at, node));
            }
            if seen >= MOST_NAMES {
                break;
            }
        }
        listed.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
        let mut room = MOST_IN_ALL;
        let mut nodes = Vec::new();
        for (_, size, at, node) in listed.into_iter().take(MOST_NODES) {
            let Some(left) = room.checked_sub(size) else { break };
            room = left;
            let is_news = known.get(&node.name).is_none_or(|tag| *tag != node.tag);
            nodes.push(async move {
                let words = if is_news { self.words_of(&at).await? } else { None };
                Ok::<_, StoreError>(NodeWords { words, ..node })
            });
        }
        if nodes.len() < seen {
            let passed_over = seen - nodes.len();
            tracing::warn!(passed_over, "`nodes` holds what is no node's, or more than is read");
        }
        futures::stream::iter(nodes).buffered(READS).try_collect().await
    }

    async fn words_of(&self, at: &Path) -> Result<Option<Bytes>, StoreError> {
        match self.read(at).await {
            Ok(words) => Ok(Some(words)),
            // Gone between listing and reading.
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Says whether a name is one that a node gives itself.
fn is_node(name: &str) -> bool {
    name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    #[tokio::test]
    async fn nodes_speak_over_themselves_and_are_forgotten() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "some/prefix");
        assert!(bucket.nodes().await.unwrap().is_empty());
        bucket.put_node("a", "old".into()).await.unwrap();
        bucket.put_node("a", "new".into()).await.unwrap();
        bucket.put_node("b", "other".into()).await.unwrap();
        let mut nodes = bucket.nodes().await.unwrap();
        nodes.sort();
        assert_eq!(nodes, [("a".to_owned(), Bytes::from("new")), ("b".to_owned(), Bytes::from("other"))]);
        bucket.remove_node("a").await.unwrap();
        assert_eq!(bucket.nodes().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn words_without_end_are_not_read() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "");
        for (name, len) in [("a", 10), ("b", MOST_WORDS as usize + 1), ("c/d", 10), ("e\u{1b}", 10)] {
            bucket.overwrite(&Path::from(format!("nodes/{name}")), vec![b'x'; len].into()).await.unwrap();
        }
        let names: Vec<_> = bucket.nodes().await.unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a"]);
    }
}
