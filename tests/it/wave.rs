//! A thousand clients at once, right after a push: what CI does. They cost one fetch, one computation, and few requests to the bucket.

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::mirror_only;
use crate::node::Node;
use crate::oracle::mirrored;
use crate::primary::Primary;
use crate::shapes::{Change, History, prose};
use crate::wire;
use crate::world::{World, eventually};

const CLIENTS: usize = 1000;
/// Requests to the store that two nodes make for themselves while a wave lasts: heartbeats, looking for news, the sync, opening. They are more on a
/// slow machine, and far fewer than clients.
const OTHERWISE: f64 = 400.0;

/// Has all clients ask for one commit at the same moment, half of them each node, and gives the packs that they got.
fn wave(nodes: &[&Node], path: &str, body: &[u8]) -> Vec<Vec<u8>> {
    let (packs, start) = (Mutex::new(Vec::new()), Arc::new(Barrier::new(CLIENTS)));
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            let (node, start, packs) = (nodes[n % nodes.len()], Arc::clone(&start), &packs);
            let client = std::thread::Builder::new().stack_size(256 << 10);
            let ask = move || {
                start.wait();
                let reply = wire::post(node.address(), path, &[wire::V2], body).unwrap();
                assert!(
                    reply.status == 200 && reply.complete,
                    "client {n}: {}: {}",
                    reply.status,
                    reply.text()
                );
                let fetched = wire::fetched(&reply.body, true);
                let is_broken = fetched.lines.iter().any(|line| line.starts_with("!broken"));
                assert!(
                    !is_broken && fetched.error.is_empty(),
                    "client {n}: {:?} {}",
                    fetched.lines,
                    fetched.error
                );
                packs.lock().unwrap_or_else(PoisonError::into_inner).push(fetched.pack);
            };
            client.spawn_scoped(scope, ask).unwrap();
        }
    });
    packs.into_inner().unwrap()
}

fn asked_of_store(nodes: &[&Node]) -> f64 {
    nodes.iter().map(|node| node.metric("packmirror_store_requests_total", &[])).sum()
}

#[test]
fn a_wave_after_a_push_costs_what_one_client_costs() {
    mirror_only!();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", |dir| {
        let mut history = History::new();
        let texts: Vec<(String, String)> =
            (0..40).map(|n| (format!("src/f{n}.txt"), prose(n, 100))).collect();
        let changes: Vec<Change> = texts.iter().map(|(name, text)| Change::File(name, text)).collect();
        history.commit("refs/heads/main", &[], &changes);
        history.import(dir);
    });
    let warm = world.node(&primary);
    mirrored(&world, &warm, &repo);
    // Its cache is empty, and it has heard of nothing.
    let cold = world.node(&primary);

    let pushed = repo.commit("main", "src/f1.txt", &prose(1000, 100));
    primary.forget_log();
    let nodes = [&warm, &cold];
    let before = asked_of_store(&nodes);
    let want = format!("want {pushed}");
    let body = wire::command(
        "fetch",
        &["object-format=sha1"],
        &[&want, "deepen 1", "no-progress", "ofs-delta", "done"],
    );
    let packs = wave(&nodes, &format!("/{}/git-upload-pack", repo.path), &body);

    assert_eq!(packs.len(), CLIENTS);
    let objects = |pack: &Vec<u8>| u32::from_be_bytes(pack[8..12].try_into().unwrap());
    assert!(
        packs.iter().all(|pack| pack.starts_with(b"PACK") && objects(pack) == 43),
        "a commit, two trees, forty files"
    );
    let fetched = primary.count(|seen| seen.is("fetch"));
    assert!(fetched <= 2, "{fetched} fetches from the primary: each node may find the push first");
    // Who may read is asked of the primary, and what is new; neither by each client.
    let asked = primary.log().len();
    assert!(asked <= 40, "{asked} requests to the primary for {CLIENTS} clients");
    let stored = asked_of_store(&nodes) - before;
    assert!(stored <= OTHERWISE, "{stored} requests to the store");
    nodes.iter().for_each(|node| assert_eq!(node.passed(), 0.0, "{}", node.answers_text()));
    eventually("all to be done", || {
        nodes
            .iter()
            .all(|node| node.metric("packmirror_inflight", &["service=\"fetch\""]) == 0.0)
            .then_some(())
    });
}
