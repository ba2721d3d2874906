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

/// What `status --json` says of the only repository.
fn status(node: &Node) -> serde_json::Value {
    let out = node.command(&["status", "--json"]).must();
    let rows: serde_json::Value = serde_json::from_str(&out.text()).expect("JSON");
    rows[0].clone()
}

/// A push that the mirror did not bring about itself is told: which refs, since when, what was done, when it was over.
#[test]
fn a_difference_is_told_with_its_evidence() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let node = world.setup(&primary).set("compare_every = \"1s\"").start();
    mirrored(&world, &node, &repo);
    assert_eq!(status(&node)["differences"], serde_json::json!([]), "a first sync is no difference");
    let old = repo.oid("refs/heads/main");
    let new = repo.commit("main", "more", "a line");
    let found = eventually("a finding that is over", || {
        let found = status(&node)["differences"][0].clone();
        found["equal_again"].is_string().then_some(found)
    });
    assert_eq!(found["refs_count"], 1, "{found}");
    assert_eq!(found["refs"][0], serde_json::json!({ "name": "refs/heads/main", "old": old, "new": new }));
    assert!(found["equal_before"].is_string() && found["since"].is_string(), "{found}");
    let done =
        found["done"].as_array().expect("a list").iter().filter_map(|d| d.as_str()).collect::<Vec<_>>();
    assert_eq!(done, ["fetched 3 objects", "published generation 2"]);
    assert_eq!(node.metric("packmirror_differences_total", &[]), 1.0);
    assert_eq!(node.metric("packmirror_difference_seconds_count", &[]), 1.0);
    node.logged(&["differs from the primary", "refs=1", "refs/heads/main"]);
    node.logged(&["equal to the primary again", "published generation 2"]);
}

/// Runs `packmirror vet` without a node; gives the exit code and its JSON.
fn vet(world: &World, primary: &Primary, args: &[&str]) -> (Option<i32>, serde_json::Value) {
    let out = world.setup(primary).command(&[&["vet", "--json"], args].concat());
    (out.status.code(), serde_json::from_str(&out.text()).unwrap_or_default())
}

#[test]
fn vet_says_what_is_right_and_wrong_and_its_exit_status_tells() {
    mirror_only!();
    let (world, primary, repo) = two_layers();
    let (code, all) = vet(&world, &primary, &[]);
    assert_eq!((code, &all[0]["primary"], &all[0]["blobs"]), (Some(0), &"equal".into(), &7.into()), "{all}");
    let (code, deep) = vet(&world, &primary, &["--deep", &repo.path]);
    assert_eq!((code, &deep[0]["read_bytes"]), (Some(0), &all[0]["bytes"]), "{deep}");

    let old = repo.oid("refs/heads/main");
    let new = repo.commit("main", "again", "a line");
    let (code, found) = vet(&world, &primary, &[]);
    assert_eq!((code, &found[0]["primary"]), (Some(5), &"differs".into()), "{found}");
    assert_eq!(found[0]["refs"], serde_json::json!([{ "name": "refs/heads/main", "old": old, "new": new }]));
    let out = world.setup(&primary).command(&["vet"]);
    assert!(out.text().contains(&format!("refs/heads/main: {old} -> {new}")), "{}", out.text());
    assert_eq!(vet(&world, &primary, &["--repair"]).0, Some(0));

    let refused = world.setup(&primary).command(&["vet", "team/other.git"]);
    assert_eq!(refused.status.code(), Some(4), "{}", refused.stderr);
    primary.down();
    let (code, found) = vet(&world, &primary, &[]);
    assert_eq!((code, &found[0]["primary"]), (Some(3), &"unknown".into()), "{found}");
}

/// Every kind of blob, gone, cut short and with another bit; and a record.
#[test]
fn vet_finds_each_damage_and_repair_mends_it() {
    mirror_only!();
    let (world, primary, repo) = two_layers();
    for kind in ["pack", "idx", "graph", "refs"] {
        for how in ["gone", "short", "flipped"] {
            let newest = world.store.newest(&repo.path).unwrap();
            let blob = if kind == "refs" { &newest["refs"] } else { &newest["layers"][0][kind] };
            let key = key(blob);
            match how {
                "gone" => world.store.delete(&key),
                "short" => {
                    let bytes = world.store.get(&key);
                    world.store.put(&key, bytes[..bytes.len() / 2].to_vec());
                }
                _ => world.store.damage(&key),
            }
            let name = key.rsplit('/').next().unwrap();
            let shallow = vet(&world, &primary, &[]);
            assert_eq!(shallow.0, Some(if how == "flipped" { 0 } else { 5 }), "{kind} {how}: {}", shallow.1);
            let (code, found) = vet(&world, &primary, &["--deep"]);
            assert_eq!(
                (code, &found[0]["wrong"][0]["blob"]),
                (Some(5), &name.into()),
                "{kind} {how}: {found}"
            );
            assert_eq!(found[0]["wrong"].as_array().map(Vec::len), Some(1), "{kind} {how}: {found}");
            let (code, found) = vet(&world, &primary, &["--deep", "--repair"]);
            assert_eq!(code, Some(0), "{kind} {how}: {found}");
        }
    }
}
