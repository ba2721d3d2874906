//! Rows for `ls` and `status`: what the bucket holds, joined with what the nodes last said.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::mirror::health::{RepoHealth, nodes};
use crate::mirror::standing::RepoStatus;
use crate::store::{Bucket, StoreError};

/// One row a repository that the bucket holds or a node knows, by name.
pub async fn rows(bucket: &Bucket) -> Result<Vec<RepoStatus>, StoreError> {
    let generations = bucket.current().await?;
    let mut said: HashMap<String, RepoHealth> = HashMap::new();
    // Nodes come newest first: of two that know a repository the one that compared it last counts.
    for repo in nodes(bucket).await?.into_iter().flat_map(|node| node.repos) {
        let known = said.get(&repo.repo);
        if known.is_none_or(|known| known.compared < repo.compared) {
            said.insert(repo.repo.clone(), repo);
        }
    }
    let now = SystemTime::now();
    let mut rows: Vec<RepoStatus> = generations
        .iter()
        .map(|generation| RepoStatus::published(generation, said.remove(generation.repo.as_str()), now))
        .collect();
    rows.extend(said.into_values().map(|health| RepoStatus::unpublished(health)));
    rows.sort_by(|a, b| a.repo.cmp(&b.repo));
    Ok(rows)
}
