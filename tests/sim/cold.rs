//! Nodes with an empty cache: how many requests to the store stand one behind the other before the first byte of a pack, how much is
//! read, and how soon a node is of use.
//!
//! Each request takes [`TRIP`] and nothing else takes time, so the simulated time until the first byte, divided by it, is the number of
//! requests that waited for each other.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use futures::future::join_all;
use http::{Request, StatusCode};
use tokio::time::Instant;
use tower_service::Service;

use super::layered::{Mirrored, REPO};
use super::primary::Host;
use super::schedules::in_paused_time;
use super::store::{Shared, Store, View};
use super::world::{Node, settings};
use crate::config::Settings;
use crate::git::path::RepoPath;
use crate::serve::listen::router;
use crate::store::{Bucket, Generation, Publish};

/// What each request to the store takes.
pub const TRIP: Duration = Duration::from_millis(50);

/// One layer of several blocks.
pub fn one() -> &'static Mirrored {
    static ONE: OnceLock<Mirrored> = OnceLock::new();
    ONE.get_or_init(|| Mirrored::of(200, 1, true))
}

/// A layer of several blocks, and 19 of one commit each.
pub fn twenty() -> &'static Mirrored {
    static TWENTY: OnceLock<Mirrored> = OnceLock::new();
    TWENTY.get_or_init(|| Mirrored::of(200, 20, true))
}

/// As many as nobody should have.
fn many() -> &'static Mirrored {
    static MANY: OnceLock<Mirrored> = OnceLock::new();
    MANY.get_or_init(|| Mirrored::of(245, 240, true))
}

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
pub enum Asking {
    Clone,
    /// It has the commit before the last one.
    Fetch,
    DepthOne,
}

impl Asking {
    fn request(self, mirrored: &Mirrored) -> Request<Body> {
        let packet = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let want = format!("want {}\n", mirrored.tip());
        let have = format!("have {}\n", mirrored.commits[mirrored.commits.len() - 2]);
        let asked = match self {
            Self::Clone => vec![want.as_str()],
            Self::Fetch => vec!["thin-pack\n", &want, &have],
            Self::DepthOne => vec![&want, "deepen 1\n"],
        };
        let mut body = packet("command=fetch") + "0001" + &packet("ofs-delta\n") + &packet("no-progress\n");
        asked.into_iter().for_each(|line| body += &packet(line));
        Request::post(format!("/{REPO}/git-upload-pack"))
            .header("git-protocol", "version=2")
            .header("content-type", "application/x-git-upload-pack-request")
            .body(Body::from(body + &packet("done\n") + "0000"))
            .unwrap()
    }
}

/// Reads the whole answer; says when the first byte of its pack came, in trips.
pub async fn ask(node: &Node, mirrored: &Mirrored, asking: Asking) -> f64 {
    let begun = Instant::now();
    let trips = || begun.elapsed().as_secs_f64() / TRIP.as_secs_f64();
    let Ok(response) = router(node.app.clone()).call(asking.request(mirrored)).await;
    assert_eq!(response.status(), StatusCode::OK, "{asking:?}");
    let (mut whole, mut first) = (Vec::new(), None);
    let mut body = response.into_body().into_data_stream();
    while let Some(piece) = body.next().await {
        whole.extend_from_slice(&piece.unwrap());
        if first.is_none() && whole.windows(5).any(|five| five == b"\x01PACK") {
            first = Some(trips());
        }
    }
    first.expect("a pack")
}

/// Settings under which nothing runs beside what is asked for.
pub fn quiet() -> Settings {
    let mut settings = settings();
    (settings.vet.exists_every, settings.vet.hash_every) = (Duration::ZERO, Duration::ZERO);
    settings.gc.every = Duration::ZERO;
    settings
}

/// A node that has run for a while, and a repository that another node has published just now.
pub async fn cold(mirrored: &Mirrored) -> (Node, Arc<Shared>) {
    let (shared, host) = (Shared::new(), Host::new(1));
    host.is_prompt.store(true, Ordering::Relaxed);
    let node = Node::start(&shared, &host, 1, &quiet()).await;
    node.view.set_pace(TRIP);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(node.app.ready.load(Ordering::SeqCst));
    mirrored.publish(&shared, &host, &node).await;
    node.view.listen();
    (node, shared)
}

#[test]
fn the_first_byte_of_a_pack_waits_for_three_requests_however_many_layers_there_are() {
    for (name, mirrored) in [("one", one()), ("twenty", twenty()), ("many", many())] {
        for asking in [Asking::Clone, Asking::Fetch, Asking::DepthOne] {
            in_paused_time(async {
                let (node, _) = cold(mirrored).await;
                // The listing, the record, and all that the record names.
                let trips = ask(&node, mirrored, asking).await;
                assert!((2.9..3.1).contains(&trips), "{asking:?} of {name} layers: {trips}");
                let opened = node.app.mirror.repo(&RepoPath::parse(REPO).unwrap());
                assert!(opened.is_some_and(|repo| repo.snapshot().is_some()), "the primary answered");
            });
        }
    }
}

#[test]
fn a_large_pack_is_read_in_few_requests_and_several_at_a_time() {
    let large = Mirrored::of(1000, 1, false);
    let blocks = large.generation.layers[0].pack.len.div_ceil(1 << 20) as usize;
    assert!(blocks > 32, "{blocks} blocks");
    in_paused_time(async {
        let (node, _) = cold(&large).await;
        let begun = Instant::now();
        ask(&node, &large, Asking::Clone).await;
        let trips = begun.elapsed().as_secs_f64() / TRIP.as_secs_f64();
        // The first three, the first 32 blocks together, and the rest.
        assert!(trips < 5.1, "{trips} requests one after the other for {blocks} blocks");
        let reads = node.view.heard().iter().filter(|call| call.key.ends_with(".pack")).count();
        assert!(reads <= 2 + blocks.div_ceil(4), "{reads} reads of {blocks} blocks");
    });
}

#[test]
fn a_crowd_on_an_empty_cache_reads_everything_once() {
    for mirrored in [one(), twenty()] {
        in_paused_time(async {
            let (node, _) = cold(mirrored).await;
            join_all((0..32).map(|_| ask(&node, mirrored, Asking::Clone))).await;
            let read: u64 = node.view.heard().iter().map(|call| call.bytes).sum();
            let needed = mirrored.needed();
            assert!(read >= needed && read <= needed + needed / 20, "{read} bytes were read of {needed}");
        });
    }
}

#[test]
fn a_node_is_of_use_at_once_however_many_repositories_and_layers_the_bucket_has() {
    const REPOS: usize = 10_000;
    let mut calls = Vec::new();
    for repos in [0, REPOS] {
        in_paused_time(async {
            let (shared, host) = (Shared::new(), Host::new(1));
            host.is_prompt.store(true, Ordering::Relaxed);
            let first = Node::start(&shared, &host, 1, &quiet()).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            many().publish(&shared, &host, &first).await;
            fill(&shared, &first, repos).await;
            first.kill();
            let view = View::of(&shared, 2);
            view.set_pace(TRIP);
            view.listen();
            let begun = Instant::now();
            let node = Node::start_at_once(view, &host, &quiet()).await;
            assert!(node.app.ready.load(Ordering::SeqCst));
            let ready = node.view.calls();
            ask(&node, many(), Asking::Clone).await;
            let took = begun.elapsed();
            assert!(took <= Duration::from_secs(1), "the first clone had to wait for {took:?}");
            calls.push(ready);
        });
    }
    assert_eq!(
        calls[0], calls[1],
        "what a start asks for does not depend on how many repositories there are"
    );
}

/// Publishes so many more repositories.
async fn fill(shared: &Arc<Shared>, node: &Node, repos: usize) {
    let view = View::of(shared, 78);
    view.set_pace(Duration::ZERO);
    let bucket = Bucket::over(Arc::new(Store(view)), "farm");
    for n in 0..repos {
        let repo = RepoPath::parse(&format!("team/{n:05}.git")).unwrap();
        let primary = node.app.mirror.primary.name();
        let generation = Generation { repo, primary, ..one().generation.clone() };
        assert_eq!(bucket.publish(&generation).await.unwrap(), Publish::Won);
    }
}
