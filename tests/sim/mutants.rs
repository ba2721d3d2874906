//! Builds that break an invariant, and that each check finds the one that it is for (docs/invariants.md).
//!
//! What a build does wrong is done at its border: to what it writes to the store, reads of it, or gives to a client. So the build
//! that is tested stays what it is, and the checks see what they would see of the broken one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::PutMode;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::checks;
use super::client::{Outcome, clone, clone_of};
use super::primary::{Host, Universe};
use super::schedules::in_paused_time;
use super::store::Shared;
use super::walker;
use super::world::{Node, settings};
use crate::config::Settings;
use crate::retry::plan;
use crate::serve::listen::router;

const REPO: &str = "team/app.git";
const OTHER: &str = "team/lib.git";

/// The address of another primary, as long as that of the usual one.
pub const ANOTHER: &str = "/another";

/// What a build does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Records are published before what they name is stored.
    NamesWhatIsNotThere,
    /// Packs are not what their names say.
    StoresOtherBytes,
    /// A record leaves out the lowest layer.
    ForgetsALayer,
    /// A record has the refs of the one before.
    PublishesOldRefs,
    /// A record has refs that the primary never showed.
    MixesRefs,
    /// What was published is not there.
    PublishesNothing,
    /// A record does not name the one before.
    ForgetsTheParent,
    /// Numbers and leases are taken whether they are free or not.
    TakesWhatIsTaken,
    /// The collector does not see the records of a repository.
    CollectsWhatIsNamed,
    /// Each store is taken for its own primary's.
    OwnsWhatIsOwned,
    /// It says that it has obeyed all orders to forget, and sees none.
    KeepsWhatIsPurged,
}

fn record(key: &str, bytes: &Bytes) -> Option<Value> {
    let line = key.contains("/gen/").then(|| bytes.split(|byte| *byte == b'\n').next()).flatten()?;
    serde_json::from_slice(line).ok()
}

impl Mutant {
    /// Changes what is written.
    pub fn puts(self, shared: &Shared, key: &str, bytes: &mut Bytes, mode: &mut PutMode) {
        if self == Self::TakesWhatIsTaken && (key.contains("/gen/") || key.ends_with("/fetch")) {
            *mode = PutMode::Overwrite;
        }
        if self == Self::StoresOtherBytes && key.ends_with(".pack") {
            let mut other = bytes.to_vec();
            let middle = other.len() / 2;
            other[middle] ^= 1;
            *bytes = other.into();
        }
        if self == Self::KeepsWhatIsPurged && key.contains("/nodes/") {
            let mut beat: Value = serde_json::from_slice(bytes).expect("a short heartbeat is plain JSON");
            beat["obeyed"] = u64::MAX.into();
            *bytes = beat.to_string().into();
        }
        let Some(mut value) = record(key, bytes) else { return };
        let dump = shared.dump();
        let (folder, _) = key.rsplit_once('/').unwrap();
        let before = dump.range(format!("{folder}/")..).next().and_then(|(key, bytes)| record(key, bytes));
        match self {
            Self::ForgetsALayer => {
                let layers = value["layers"].as_array_mut().unwrap();
                if layers.len() > 1 {
                    layers.remove(0);
                }
            }
            Self::PublishesOldRefs => {
                if let Some(before) = before {
                    value["refs"] = before["refs"].clone();
                }
            }
            Self::MixesRefs => {
                let other = dump.iter().find(|(key, _)| key.contains("/gen/") && !key.starts_with(folder));
                if let Some(other) = other.and_then(|(key, bytes)| record(key, bytes)) {
                    value["refs"] = other["refs"].clone();
                }
            }
            Self::ForgetsTheParent => value["parent"] = Value::Null,
            _ => return,
        }
        let line = format!("{value}\n");
        let sum = hex::encode(Sha256::digest(&line));
        *bytes = format!("{line}\"{sum}\"\n").into();
    }

    /// Changes what is there after a write.
    pub fn has_put(self, shared: &Shared, key: &str) {
        let Some(value) = shared.dump().get(key).and_then(|bytes| record(key, bytes)) else { return };
        match self {
            Self::NamesWhatIsNotThere => {
                let (blob, _) = walker::named(&value).swap_remove(1);
                shared.lose(&format!("farm/{blob}"));
            }
            Self::PublishesNothing => shared.lose(key),
            _ => {}
        }
    }

    /// Changes what is read.
    pub fn gets(self, key: &str, bytes: &mut Bytes) {
        if self == Self::OwnsWhatIsOwned && key == "farm/owner" {
            *bytes = String::from_utf8(bytes.to_vec()).unwrap().replace("/primary", ANOTHER).into();
        }
    }

    /// Says whether a listing of `prefix` shows a key.
    pub fn shows(self, prefix: &str, key: &str) -> bool {
        if self == Self::KeepsWhatIsPurged && key.contains("/purges/") {
            return false;
        }
        let hidden = hex::encode(Sha256::digest(OTHER));
        self != Self::CollectsWhatIsNamed || prefix != "farm/repos" || !key.contains(&hidden)
    }
}

/// A farm of two nodes of that build sees three pushes and collects twice; all checks are made before that and after it.
async fn farm(mutant: Option<Mutant>) {
    let (shared, host) = (Shared::new(), Host::new(1));
    let settings = {
        let mut settings: Settings = settings();
        settings.gc.every = Duration::from_secs(600);
        settings.gc.grace = Duration::from_secs(1800);
        settings
    };
    let mut nodes = Vec::new();
    host.set(OTHER, Some(8));
    for n in 0..2 {
        let node = Node::start(&shared, &host, n, &settings).await;
        *node.view.mutant.lock().unwrap() = mutant;
        nodes.push(node);
    }
    for state in [0, 3, 6] {
        host.set(REPO, Some(state));
        for repo in [OTHER, REPO] {
            let routers = [0, 1].map(|n: usize| router(nodes[n].app.clone()));
            for _ in 0..2 {
                let _ = tokio::join!(clone(&routers[0], repo), clone(&routers[1], repo));
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        }
    }
    // At once: some of it the nodes of a whole build would find and mend.
    for repo in [REPO, OTHER] {
        checks::bucket(&shared, &host, repo, Some(settings.gc.grace));
    }
    tokio::time::sleep(settings.gc.grace * 2 + settings.gc.every * 3).await;
    for repo in [REPO, OTHER] {
        checks::bucket(&shared, &host, repo, Some(settings.gc.grace));
        for node in &nodes {
            checks::node(&shared, &host, repo, node).await;
        }
    }
    for node in nodes {
        node.kill();
    }
}

/// Panics unless a run of a build fails, with these words.
#[track_caller]
pub fn found(expected: &str, run: impl FnOnce()) {
    let words = fails(run).unwrap_or_else(|| panic!("no check finds it"));
    assert!(words.contains(expected), "it is found by another check: {words}");
}

/// The words with which a run fails.
fn fails(run: impl FnOnce()) -> Option<String> {
    let why = catch_unwind(AssertUnwindSafe(run)).err()?;
    let words = why.downcast_ref::<String>().cloned();
    Some(words.or_else(|| why.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
}

#[track_caller]
fn caught(mutant: Mutant, expected: &str) {
    plan(1);
    let words = fails(|| in_paused_time(farm(Some(mutant))));
    let words = words.unwrap_or_else(|| panic!("{mutant:?}: no check finds it"));
    assert!(words.contains(expected), "{mutant:?} is found by another check: {words}");
}

#[test]
fn a_build_that_breaks_nothing_is_not_found() {
    plan(1);
    in_paused_time(farm(None));
}

#[test]
fn a_record_that_names_what_is_not_there_is_found() {
    caught(Mutant::NamesWhatIsNotThere, "which is not there");
}

#[test]
fn a_blob_that_is_not_what_its_name_says_is_found() {
    caught(Mutant::StoresOtherBytes, "its bytes");
}

#[test]
fn a_stack_that_lacks_a_layer_is_found() {
    caught(Mutant::ForgetsALayer, "fsck");
}

#[test]
fn a_state_of_yesterday_is_found() {
    caught(Mutant::PublishesOldRefs, "what is published is not the primary's state");
}

#[test]
fn a_state_that_the_primary_never_had_is_found() {
    caught(Mutant::MixesRefs, "is a state that the primary never had");
}

#[test]
fn a_publication_that_has_no_effect_is_found() {
    caught(Mutant::PublishesNothing, "was never published");
}

#[test]
fn a_chain_that_is_broken_is_found() {
    caught(Mutant::ForgetsTheParent, "its parent");
}

#[test]
fn two_winners_of_a_number_are_found() {
    caught(Mutant::TakesWhatIsTaken, "was written over");
}

#[test]
fn a_collector_that_deletes_what_is_named_is_found() {
    caught(Mutant::CollectsWhatIsNamed, "which is not there");
}

/// Clones a state, changes the answer, and has it judged.
async fn answer(change: impl FnOnce(&mut Vec<u8>)) {
    let (shared, host): (Arc<Shared>, _) = (Shared::new(), Host::new(1));
    host.set(REPO, Some(3));
    let node = Node::start(&shared, &host, 1, &settings()).await;
    let outcome = clone_of(&router(node.app.clone()), REPO, change).await;
    assert!(matches!(outcome, Outcome::Whole(_)), "{outcome:?}");
    node.kill();
}

#[test]
fn an_answer_that_is_spoilt_or_lacks_an_object_is_found() {
    plan(1);
    in_paused_time(answer(|_| {}));
    let spoilt = fails(|| {
        in_paused_time(answer(|pack| {
            let middle = pack.len() / 2;
            pack[middle] ^= 1;
        }))
    });
    assert!(spoilt.is_some_and(|words| words.contains("index-pack")));
    // A whole pack of another state.
    let other = fails(|| in_paused_time(answer(|pack| *pack = Universe::get().pack(1))));
    assert!(other.is_some_and(|words| words.contains("lacks what was wanted")));
}
