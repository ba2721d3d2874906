//! Rows for `ls` and `status`: what the bucket holds, joined with what the nodes last said.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::table::{RepoStatus, State};
use crate::mirror::health::{RepoHealth, nodes};
use crate::mirror::repo::Phase;
use crate::store::{Bucket, Generation, StoreError};

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
        .map(|generation| row(generation, said.remove(generation.repo.as_str()), now))
        .collect();
    rows.extend(said.into_values().map(|health| unpublished(&health)));
    rows.sort_by(|a, b| a.repo.cmp(&b.repo));
    Ok(rows)
}

fn row(generation: &Generation, health: Option<RepoHealth>, now: SystemTime) -> RepoStatus {
    let published = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(generation.verified_at));
    let published = published.unwrap_or(SystemTime::UNIX_EPOCH);
    let compared =
        health.as_ref().and_then(|health| health.compared).map_or(published, |at| at.max(published));
    let behind =
        health.as_ref().is_some_and(|health| health.generation.is_some_and(|n| n > generation.number));
    RepoStatus {
        repo: generation.repo.to_string(),
        state: match &health {
            _ if behind => State::Behind,
            Some(health) => state(health.phase),
            None => State::Current,
        },
        generation: Some(generation.number),
        refs: generation.ref_count,
        bytes: generation.blobs().map(|blob| blob.len).fold(0, u64::saturating_add),
        objects: generation.layers.iter().map(|layer| u64::from(layer.objects)).sum(),
        last_compared: Some(compared),
        lag: Some(now.duration_since(compared).unwrap_or_default()),
        next_try: health.as_ref().and_then(|health| health.next),
        left_out: health.as_ref().and_then(|health| health.left_out.clone()),
        error: health.and_then(|health| told(&health)),
    }
}

fn unpublished(health: &RepoHealth) -> RepoStatus {
    RepoStatus {
        repo: health.repo.clone(),
        state: state(health.phase),
        generation: None,
        refs: 0,
        bytes: 0,
        objects: 0,
        last_compared: None,
        lag: None,
        next_try: health.next,
        left_out: health.left_out.clone(),
        error: told(health),
    }
}

fn state(phase: Phase) -> State {
    match phase {
        Phase::New => State::New,
        Phase::Syncing => State::Syncing,
        Phase::Current => State::Current,
        Phase::Failing | Phase::Gone => State::Failing,
    }
}

/// The last failure, or how far a sync is.
fn told(health: &RepoHealth) -> Option<String> {
    let progress = || match health.stage.as_str() {
        "" => None,
        stage if health.received > 0 => {
            Some(format!("{stage} ({} received)", indicatif::HumanBytes(health.received)))
        }
        stage => Some(stage.to_owned()),
    };
    health.error.clone().or_else(progress)
}
