//! Rows for `ls` and `status`: what the bucket holds, joined with what the nodes last said.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::mirror::health::{RepoHealth, nodes};
use crate::mirror::progress::Step;
use crate::mirror::standing::{RepoStatus, State};
use crate::store::{Bucket, StoreError};

/// One row a repository that the bucket holds or a node knows, by name.
pub async fn rows(bucket: &Bucket) -> Result<Vec<RepoStatus>, StoreError> {
    let (mut said, mut syncs) = (HashMap::<String, RepoHealth>::new(), HashMap::new());
    let (mut merges, mut unmerged) = (HashMap::new(), HashMap::new());
    let mut by = HashMap::<String, String>::new();
    // Nodes come newest first: of two that know a repository the one that compared it last counts.
    let nodes = nodes(bucket).await?.into_iter();
    for (node, repo) in
        nodes.flat_map(|node| node.repos.into_iter().map(move |repo| (node.node.clone(), repo)))
    {
        // Of two that take it for theirs for a while, the one that said so last.
        if repo.ours {
            by.entry(repo.repo.clone()).or_insert(node);
        }
        // Another node may sync what this one has just compared.
        if let Some(sync) = repo.sync.clone().filter(|sync| sync.phase > Step::Asking) {
            syncs.entry(repo.repo.clone()).or_insert(sync);
        }
        // The same with merges.
        if let Some(merge) = repo.merge.clone() {
            merges.entry(repo.repo.clone()).or_insert(merge);
        }
        if let Some(words) = repo.unmerged.clone() {
            unmerged.entry(repo.repo.clone()).or_insert(words);
        }
        let known = said.get(&repo.repo);
        if known.is_none_or(|known| known.compared < repo.compared) {
            said.insert(repo.repo.clone(), repo);
        }
    }
    // Read behind the nodes' words: what they knew to be published is there, or was taken out.
    let generations = bucket.current().await?;
    let now = SystemTime::now();
    let mut rows: Vec<RepoStatus> = generations
        .iter()
        .map(|generation| RepoStatus::published(generation, said.remove(generation.repo.as_str()), now))
        .collect();
    let unpublished = said.into_values().filter(|health| health.generation.is_none());
    rows.extend(unpublished.map(RepoStatus::unpublished));
    for row in &mut rows {
        row.compared_by = by.remove(&row.repo);
        if let Some(sync) = syncs.remove(&row.repo) {
            (row.state, row.sync) = (State::Syncing, Some(sync));
        }
        (row.merge, row.unmerged) = (merges.remove(&row.repo), unmerged.remove(&row.repo));
    }
    rows.sort_by(|a, b| a.repo.cmp(&b.repo));
    Ok(rows)
}
