//! Vetting and healing: what is lost or spoilt in the bucket is found, told, and made whole; what differs from the
//! primary is told with its evidence.

use crate::node::Node;
use crate::oracle::{from_bucket, mirrored, same};
use crate::primary::{Primary, Repo};
use crate::world::{World, eventually};
use crate::{mirror_only, shapes};

/// A mirrored repository of two layers, the node that made it gone.
fn two_layers() -> (World, Primary, Repo) {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    repo.commit("main", "more", "a line");
    mirrored(&world, &node, &repo);
    drop(node);
    assert_eq!(layers(&world, &repo).len(), 2);
    (world, primary, repo)
}

/// The layers of the newest generation, lowest first.
fn layers(world: &World, repo: &Repo) -> Vec<serde_json::Value> {
    let newest = world.store.newest(&repo.path).expect("a generation");
    newest["layers"].as_array().expect("layers").clone()
}

/// The key of a blob that a record names.
fn key(blob: &serde_json::Value) -> String {
    let (id, kind) = (blob["id"].as_str().expect("an id"), blob["kind"].as_str().expect("a kind"));
    format!("blobs/{}/{id}.{kind}", &id[..2])
}

/// Waits until the bucket is whole, and the node serves from it what the primary has.
#[track_caller]
fn healed(world: &World, primary: &Primary, node: &Node, repo: &Repo) {
    eventually("a repair", || (node.metric("packmirror_repairs_total", &[]) > 0.0).then_some(()));
    mirrored(world, node, repo);
    from_bucket(node, || same(world, primary, node, &repo.path));
}

/// One of the packs that a clone reads is lost, and the others are not: the client notices nothing, since it is found out
/// before the first byte.
#[test]
fn a_lost_pack_breaks_no_clone() {
    mirror_only!();
    for (layer, kind) in [(0, "pack"), (1, "pack"), (1, "idx"), (0, "graph")] {
        let (world, primary, repo) = two_layers();
        world.store.delete(&key(&layers(&world, &repo)[layer][kind]));
        let cold = world.node(&primary);
        same(&world, &primary, &cold, &repo.path);
        healed(&world, &primary, &cold, &repo);
    }
}
