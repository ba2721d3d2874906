//! What must be true of a farm in fair weather: of the bucket, as the walker reads it, and of each node, as a client sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Outcome, clone};
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
    let current = host.state(repo).unwrap();
    let records = walker::records(&dump, repo);
    let rewritten = shared.rewritten();
    assert!(rewritten.is_empty(), "{rewritten:?} was written over");
    let ever: Vec<_> = host.ever(repo).into_iter().map(|n| (n, &universe.states[n])).collect();
    for record in kept(shared, &records, grace) {
        walker::check_blobs(&dump, &record.value);
        walker::state_of(&dump, &record.value, &ever);
    }
    let newest = records.first().unwrap_or_else(|| panic!("{repo} was never published"));
    assert_eq!(
        walker::state_of(&dump, &newest.value, &ever),
        current,
        "{repo}: what is published is not the primary's state"
    );
    walker::check_closure(&dump, &newest.value);
    walker::check_chain(&records);
}

/// Checks that a node has a generation of a repository open that was the newest a short while ago, knows of no damage, and that a clone is the primary's state.
pub async fn node(shared: &Arc<Shared>, host: &Host, repo: &str, node: &Node) {
    let records = walker::records(&unprefixed(shared), repo);
    let is_settled = |record: &&Record| {
        let at = shared.modified(&format!("farm/{}", record.key)).expect("it is there");
        shared.now().duration_since(at).unwrap_or_default() > FOLLOWED
    };
    let least = records.iter().find(is_settled).map(|record| record.number);
    let current = host.state(repo).unwrap();
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
    match clone(&router(node.app.clone()), repo).await {
        Outcome::Whole(refs) => {
            assert_eq!(refs.into_iter().collect::<BTreeMap<_, _>>(), Universe::get().states[current].refs);
        }
        other => panic!("{repo}: a clone in fair weather: {other:?}"),
    }
}
