//! What must be true of a farm in fair weather: of the bucket, as the walker reads it, and of each node, as a client sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;

use super::client::{Outcome, clone, fetch};
use super::primary::{Host, Universe};
use super::store::Shared;
use super::walker::{self, Dump, Record};
use super::world::Node;
use crate::serve::listen::router;

/// All nodes have read a new generation after so long, also one that changes no refs.
const FOLLOWED: Duration = Duration::from_secs(360);

/// What lies below the farm's prefix.
pub fn unprefixed(shared: &Arc<Shared>) -> Dump {
    let strip = |(key, bytes): (String, bytes::Bytes)| Some((key.strip_prefix("farm/")?.to_owned(), bytes));
    shared.dump().into_iter().filter_map(strip).collect()
}

/// The records whose blobs must be there: the newest, and those whose successor is younger than the grace, if time says
/// anything of them.
fn kept<'r>(shared: &Shared, records: &'r [Record], grace: Option<Duration>) -> Vec<&'r Record> {
    let is_young = |record: &Record| {
        let at = shared.modified(&format!("farm/{}", record.key));
        at.zip(grace).is_some_and(|(at, grace)| shared.now().duration_since(at).unwrap_or_default() < grace)
    };
    let successors = records.windows(2).filter(|pair| is_young(&pair[0])).map(|pair| &pair[1]);
    records.first().into_iter().chain(successors).collect()
}

/// Checks what is published of a repository; `grace` is how long what was replaced must stay.
pub fn bucket(shared: &Arc<Shared>, host: &Host, repo: &str, grace: Option<Duration>) {
    let universe = Universe::get();
    let dump = unprefixed(shared);
    let records = walker::records(&dump, repo);
    let rewritten = shared.rewritten();
    assert!(rewritten.is_empty(), "{rewritten:?} was written over");
    walker::check_owner(&dump);
    let ever: Vec<_> = host.ever(repo).into_iter().map(|n| (n, &universe.states[n])).collect();
    for record in kept(shared, &records, grace) {
        walker::check_blobs(&dump, &record.value);
        if record.value["removed"] != true {
            walker::state_of(&dump, &record.value, &ever);
        }
    }
    let Some(current) = host.state(repo) else { return walker::check_chain(&records, grace.is_none()) };
    let newest = records.first().unwrap_or_else(|| panic!("{repo} was never published"));
    assert_ne!(newest.value["removed"], true, "{repo} is taken out, and clients ask for it");
    assert_eq!(
        walker::state_of(&dump, &newest.value, &ever),
        current,
        "{repo}: what is published is not the primary's state"
    );
    walker::check_closure(&dump, &newest.value);
    walker::check_chain(&records, grace.is_none());
}

/// Checks that a node has a generation of a repository open that was the newest a short while ago, knows of no damage, and that a clone is the primary's state.
pub async fn node(shared: &Arc<Shared>, host: &Host, repo: &str, node: &Node) {
    let records = walker::records(&unprefixed(shared), repo);
    let is_settled = |record: &&Record| {
        let at = shared.modified(&format!("farm/{}", record.key)).expect("it is there");
        shared.now().duration_since(at).unwrap_or_default() > FOLLOWED
    };
    let least = records.iter().find(is_settled).map(|record| record.number);
    let known = node.app.mirror.repos().into_iter().find(|known| known.path.as_str() == repo);
    let health = known.as_ref().map(|known| known.health().clone());
    assert!(
        known.as_ref().is_none_or(|known| !known.damage().is_known()),
        "{repo}: damage that nobody mended: {:?}; {health:?}",
        known.as_ref().map(|known| known.damage().reported())
    );
    let known = known.and_then(|known| known.known()).map(|known| known.number);
    let now = tokio::time::Instant::now();
    assert!(
        known.is_some() && known >= least,
        "{repo}: a node knows {known:?} of {least:?}; {health:?} at {now:?}"
    );
    current(&router(node.app.clone()), host, repo).await;
}

/// Checks that a clone of a repository is the state that the primary shows under this name.
pub async fn current(router: &Router, host: &Host, repo: &str) {
    let state = host.state(repo).unwrap();
    match clone(router, repo).await {
        Outcome::Whole(refs) => {
            let refs: BTreeMap<_, _> = refs.into_iter().collect();
            assert_eq!(refs, Universe::get().states[state].refs, "{repo}: a clone has other refs");
        }
        other => panic!("{repo}: a clone in fair weather: {other:?}"),
    }
}

/// Checks that a client who asks a repository for an object that is not its to read gets nothing.
pub async fn refused(router: &Router, repo: &str, oid: &str, why: &str) {
    if let Ok(pack) = fetch(router, repo, &[oid.to_owned()]).await {
        panic!("{repo}: a client gets {} bytes of a pack with {oid}, {why}", pack.len());
    }
}

/// Checks that a client gets nothing of a repository that the primary shows to nobody.
pub async fn absent(host: &Host, repo: &str, node: &Node) {
    let router = router(node.app.clone());
    assert_eq!(clone(&router, repo).await, Outcome::Missing, "{repo}: the primary does not show it");
    for state in host.ever(repo) {
        let tip = &Universe::get().states[state].refs["refs/heads/main"];
        refused(&router, repo, tip, "which the primary does not show").await;
    }
}

/// Checks that the bucket has nothing of a repository that it reached only before the last purge that said it was whole: when it
/// showed the state that is `since`th of all.
pub fn purged(shared: &Arc<Shared>, host: &Host, repo: &str, since: usize) {
    let (dump, ever) = (unprefixed(shared), host.ever(repo));
    let of = |states: &[usize]| -> BTreeSet<&String> {
        states.iter().flat_map(|state| &Universe::get().reached[*state]).collect()
    };
    let (before, still) = (of(&ever[..since]), of(&ever[since..]));
    for record in walker::records(&dump, repo) {
        let stored = walker::objects(&dump, &record.value);
        let left = before.difference(&still).find(|oid| stored.contains(**oid));
        assert_eq!(left, None, "generation {} of {repo} holds what was purged", record.number);
    }
}

/// Checks that nodes that have had the time to obey all orders to forget keep nothing of what these name.
pub fn forgotten<'n>(shared: &Shared, nodes: impl IntoIterator<Item = &'n Node>) {
    let forgotten = walker::forgotten(&shared.told());
    for file in nodes.into_iter().flat_map(Node::cached) {
        let blob = file.split('.').next().unwrap();
        assert!(!forgotten.contains(blob), "a node keeps {file}, which was purged");
    }
}
