//! Builds that break an invariant towards a client, towards the primary or in what they remember, and the checks that find them
//! (docs/invariants.md).
//!
//! As in [`super::mutants`], what such a build does wrong is done at its border: to the requests of its clients, to what it hears of
//! the primary, to what it knows. Each scenario runs twice, and a sound build passes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode, Uri};
use tower_service::Service;

use super::checks;
use super::client::{Outcome, clone};
use super::mutants::{ANOTHER, Mutant, found};
use super::primary::{Host, Mood, Universe};
use super::purge::Process;
use super::schedules::in_paused_time;
use super::store::Shared;
use super::walker;
use super::world::{Node, settings};
use crate::git::path::RepoPath;
use crate::mirror::damage::Damage;
use crate::retry::plan;
use crate::serve::listen::router;

const REPO: &str = "team/app.git";
const OTHER: &str = "team/lib.git";
/// The same name to a host that does not mind case.
const SHOUTED: &str = "Team/App.git";
/// What is not reached through the mirror only.
const SILENT: Mood = Mood { unreachable: 1000, errors: 0, slow: 0, cut: 0 };

/// Runs a scenario with a sound build and with a broken one, which is found with these words.
fn told_apart<F: Future<Output = ()>>(expected: &str, scenario: impl Fn(bool) -> F) {
    plan(1);
    in_paused_time(scenario(false));
    plan(1);
    found(expected, || in_paused_time(scenario(true)));
}

/// A node that has repositories open.
async fn serving(shared: &Arc<Shared>, host: &Arc<Host>, repos: &[(&str, usize)]) -> Node {
    let node = Node::start(shared, host, 1, &settings()).await;
    for (repo, state) in repos {
        host.set(repo, Some(*state));
        served(&node, repo).await;
    }
    node
}

/// Clones until the node has what it shows open itself.
async fn served(node: &Node, repo: &str) {
    let path = RepoPath::parse(repo).unwrap();
    let before =
        node.app.mirror.repo(&path).and_then(|repo| repo.snapshot()).map(|open| open.generation.number);
    for _ in 0..20 {
        assert!(matches!(clone(&router(node.app.clone()), repo).await, Outcome::Whole(_)));
        let open = node.app.mirror.repo(&path).and_then(|repo| repo.snapshot());
        if open.map(|open| open.generation.number) > before {
            return;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    panic!("{repo} is not opened");
}

/// A router in front of another, which sends requests for packs elsewhere: `also` gives the path that is tried where the first is
/// refused, and `path` the one that is asked instead.
fn rerouted(inner: Router, path: fn(&str) -> String, also: fn(&str) -> Option<String>) -> Router {
    Router::new().fallback(move |request: Request<Body>| {
        let mut inner = inner.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let asked = path(parts.uri.path_and_query().unwrap().as_str());
            let mut last = None;
            for path in [Some(asked.clone()), also(&asked)].into_iter().flatten() {
                parts.uri = path.parse::<Uri>().unwrap();
                let request = Request::from_parts(parts.clone(), Body::from(body.clone()));
                let Ok(answer) = inner.call(request).await;
                if answer.status() == StatusCode::OK {
                    return answer;
                }
                last = Some(answer);
            }
            last.unwrap()
        }
    })
}

fn tip(state: usize, name: &str) -> String {
    Universe::get().states[state].refs[&format!("refs/heads/{name}")].clone()
}

#[test]
fn a_yes_that_the_primary_never_gave_is_found() {
    told_apart("which the primary does not show", async |is_broken| {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, &[(REPO, 3)]).await;
        host.set(REPO, None);
        node.line.hears_yes.store(is_broken, Ordering::Relaxed);
        // The grant of the clone is over, and nobody believes yet that the repository is gone.
        tokio::time::sleep(settings().grant_ttl * 2).await;
        checks::refused(&router(node.app.clone()), REPO, &tip(3, "main"), "which the primary does not show")
            .await;
        node.kill();
    });
}

#[test]
fn an_object_of_another_repository_is_found() {
    fn same(path: &str) -> String {
        path.to_owned()
    }
    told_apart("of another repository", async |is_broken| {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, &[(OTHER, 5), (REPO, 8)]).await;
        let _ = clone(&router(node.app.clone()), OTHER).await;
        let _ = clone(&router(node.app.clone()), REPO).await;
        // All that comes now comes from the mirror; the grants are fresh.
        host.set_mood(SILENT);
        let also = if is_broken { |path: &str| Some(path.replace(REPO, OTHER)) } else { |_: &str| None };
        let router = rerouted(router(node.app.clone()), same, also);
        checks::refused(&router, REPO, &tip(5, "main"), "of another repository").await;
        node.kill();
    });
}

#[test]
fn two_repositories_that_are_taken_for_one_are_found() {
    told_apart("a clone has other refs", async |is_broken| {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, &[(REPO, 3), (SHOUTED, 8)]).await;
        let path =
            if is_broken { |path: &str| path.replace(SHOUTED, REPO) } else { |path: &str| path.to_owned() };
        let router = rerouted(router(node.app.clone()), path, |_| None);
        for repo in [REPO, SHOUTED] {
            checks::current(&router, &host, repo).await;
        }
        node.kill();
    });
}

#[test]
fn a_store_of_two_primaries_is_found() {
    told_apart("is of another primary than the store", async |is_broken| {
        let (shared, host, another) = (Shared::new(), Host::new(1), Host::at(ANOTHER, 2));
        let node = serving(&shared, &host, &[(REPO, 3)]).await;
        another.set(OTHER, Some(5));
        let stranger = Node::start(&shared, &another, 2, &settings()).await;
        *stranger.view.mutant.lock().unwrap() = is_broken.then_some(Mutant::OwnsWhatIsOwned);
        for _ in 0..3 {
            let _ = clone(&router(stranger.app.clone()), OTHER).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        checks::bucket(&shared, &host, REPO, None);
        assert!(stranger.has_ended(), "and says why");
        stranger.kill();
        node.kill();
    });
}

#[test]
fn a_node_that_goes_back_is_found() {
    told_apart("goes back", async |is_broken| {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, &[(REPO, 0), (REPO, 1), (REPO, 3)]).await;
        let path = RepoPath::parse(REPO).unwrap();
        let open = |node: &Node| node.app.mirror.repo(&path).and_then(|repo| repo.snapshot());
        let newest = open(&node).unwrap().generation.number;
        // The bucket is as it was two pushes ago, as one that somebody put back.
        for record in &walker::records(&checks::unprefixed(&shared), REPO)[..2] {
            shared.lose(&format!("farm/{}", record.key));
        }
        if is_broken {
            // It goes by what it reads last.
            node.app.mirror.forget(&node.app.mirror.repo(&path).unwrap());
        }
        for _ in 0..30 {
            let _ = clone(&router(node.app.clone()), REPO).await;
            if let Some(open) = open(&node) {
                let now = open.generation.number;
                assert!(now >= newest, "a node goes back from generation {newest} to {now}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        node.kill();
    });
}

#[test]
fn a_node_that_keeps_what_was_purged_is_found() {
    told_apart("which was purged", async |is_broken| {
        let (shared, host) = (Shared::new(), Host::new(1));
        let node = serving(&shared, &host, &[(REPO, 3)]).await;
        *node.view.mutant.lock().unwrap() = is_broken.then_some(Mutant::KeepsWhatIsPurged);
        let reader = node.app.mirror.repos()[0].snapshot().unwrap();
        host.set(REPO, Some(1));
        let report = Process::start(&shared, &host, 3).purge_of(REPO).await.unwrap();
        assert!(report.is_whole(), "{report:?}");
        checks::forgotten(&shared, [&node]);
        let read = reader.blocks_for_work().pack(0).unwrap().clone();
        assert!(node.app.mirror.local.cached_block(&read, 0).is_none());
        let _ = clone(&router(node.app.clone()), REPO).await;
        // All that comes now comes from the mirror.
        host.set_mood(SILENT);
        checks::refused(&router(node.app.clone()), REPO, &tip(3, "topic"), "which was purged").await;
        node.kill();
    });
}

#[test]
fn damage_that_is_forgotten_is_found() {
    told_apart("which is not there", async |is_broken| {
        let (shared, host) = (Shared::new(), Host::new(1));
        serving(&shared, &host, &[(REPO, 3)]).await.kill();
        let record = walker::records(&checks::unprefixed(&shared), REPO).swap_remove(0);
        let (pack, _) =
            walker::named(&record.value).into_iter().find(|(key, _)| key.ends_with(".pack")).unwrap();
        // Its cache is empty, so it meets what is lost.
        let node = Node::start(&shared, &host, 2, &settings()).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        shared.lose(&format!("farm/{pack}"));
        let _ = clone(&router(node.app.clone()), REPO).await;
        for _ in 0..60_000 {
            if is_broken {
                node.app.mirror.repos().iter().for_each(|repo| *repo.damage() = Damage::default());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        checks::bucket(&shared, &host, REPO, None);
        checks::node(&shared, &host, REPO, &node).await;
        node.kill();
    });
}
