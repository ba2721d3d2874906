//! Rows for `ls` and `status`: what the bucket holds, joined with what the nodes last said.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::mirror::health::{RepoHealth, nodes};
use crate::mirror::progress::Step;
use crate::mirror::standing::{RepoStatus, State};
use crate::store::{Bucket, StoreError};

/// A node in which something runs says so every 5 s: what it said longer ago, and not since, does not run any more.
const RUNS: Duration = Duration::from_secs(20);

/// One row a repository that the bucket holds or a node knows, by name.
pub async fn rows(bucket: &Bucket) -> Result<Vec<RepoStatus>, StoreError> {
    let (mut said, mut syncs) = (HashMap::<String, RepoHealth>::new(), HashMap::new());
    let (mut merges, mut unmerged) = (HashMap::new(), HashMap::new());
    let mut by = HashMap::<String, String>::new();
    // Nodes come newest first: of two that know a repository the one that compared it last counts.
    let now = SystemTime::now();
    let nodes = nodes(bucket).await?.into_iter().flat_map(|node| {
        let runs = now.duration_since(node.at).unwrap_or_default() < RUNS;
        node.repos.into_iter().map(move |repo| (node.node.clone(), if runs { repo } else { repo.ended() }))
    });
    for (node, repo) in nodes {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::generation_for_tests as sample;
    use object_store::memory::InMemory;
    use serde_json::json;
    use std::sync::Arc;

    #[tokio::test]
    async fn what_a_dead_node_was_at_is_over() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "");
        let record = sample();
        bucket.publish(&record).await.unwrap();
        let time = |ago| humantime::format_rfc3339(SystemTime::now() - Duration::from_secs(ago)).to_string();
        for (ago, state) in [(5, State::Syncing), (60, State::Current)] {
            let run = json!({"phase": "fetching", "since": time(ago), "begun": time(ago), "done": 0, "total": 0,
                "received_bytes": 0, "words": ""});
            let repo = json!({"repo": record.repo.as_str(), "phase": "syncing", "generation": 1,
                "compared": time(90), "next": null, "error": null, "sync": run, "merge": run});
            let node = json!({"at": time(ago), "version": "1", "node": "a", "beat": 1, "repos": [repo]});
            bucket.put_node("a", node.to_string().into_bytes().into()).await.unwrap();
            let row = rows(&bucket).await.unwrap().swap_remove(0);
            assert_eq!((row.state, row.merge.is_some()), (state, state == State::Syncing), "{ago} s ago");
        }
    }
}
