//! What each node last said of itself, one small object a node: for `packmirror status`, never for decisions.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::{Bucket, StoreError};

/// Nodes read at once.
const READS: usize = 16;

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

    /// What all nodes last said of themselves, by name.
    pub async fn nodes(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        let folder = Path::from("nodes");
        let listed: Vec<_> = self
            .inner
            .store
            .list(Some(&self.at(&folder)))
            .try_collect()
            .await
            .map_err(|e| self.sort("list", &folder, e))?;
        let names: Vec<Path> = listed.iter().filter_map(|object| self.below(&object.location)).collect();
        let reads: Vec<_> = names.into_iter().map(|at| self.words_of(at)).collect();
        let read: Vec<Option<_>> = futures::stream::iter(reads).buffer_unordered(READS).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    async fn words_of(&self, at: Path) -> Result<Option<(String, Bytes)>, StoreError> {
        match self.read(&at).await {
            Ok(words) => Ok(at.filename().map(|name| (name.to_owned(), words))),
            // Gone between listing and reading.
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
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
}
