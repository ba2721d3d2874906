//! Vetting and healing: what is lost or spoilt in the bucket is found, told, and made whole; what differs from the
//! primary is told with its evidence.

use sha2::{Digest, Sha256};

use crate::git::git;
use crate::node::Node;
use crate::oracle::{from_bucket, mirrored, same};
use crate::primary::{Primary, Repo, Seen, Wrong};
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

/// A fetch of a sync, and not of a client.
fn by_sync(seen: &Seen) -> bool {
    seen.is("fetch") && seen.header("user-agent").is_some_and(|agent| agent.contains("packmirror"))
}

/// What the fetches of syncs said.
fn fetches(primary: &Primary) -> Vec<String> {
    let log = primary.log();
    log.iter()
        .filter(|seen| by_sync(seen))
        .map(|seen| String::from_utf8_lossy(&seen.body).into_owned())
        .collect()
}

/// An index, a graph or the refs: all that is needed to make them again is there, so the primary is asked for no object.
#[test]
fn what_is_derived_is_made_again_without_a_fetch() {
    mirror_only!();
    for (layer, kind) in [(0, "idx"), (1, "idx"), (0, "graph"), (1, "graph"), (0, "refs")] {
        let (world, primary, repo) = two_layers();
        let before = layers(&world, &repo);
        let newest = world.store.newest(&repo.path).unwrap();
        world.store.damage(&key(if kind == "refs" { &newest["refs"] } else { &before[layer][kind] }));
        primary.forget_log();
        let cold = world.node(&primary);
        same(&world, &primary, &cold, &repo.path);
        healed(&world, &primary, &cold, &repo);
        assert_eq!(fetches(&primary), [""; 0], "{kind} of layer {layer}");
        let source = if kind == "refs" { "source=\"primary\"" } else { "source=\"pack\"" };
        let labels = [&format!("kind=\"{kind}\""), source];
        assert_eq!(cold.metric("packmirror_blobs_mended_total", &labels), 1.0, "{kind} of layer {layer}");
        assert_eq!(layers(&world, &repo).len(), 2);
        assert_eq!(vet(&world, &primary, &["--deep"]).0, Some(0));
        // The sync that mended may have been followed by another one.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(40);
        let row = loop {
            let row = status(&cold);
            if row["state"] == "current" {
                break row;
            }
            assert!(std::time::Instant::now() < end, "it is not current again: {row}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        assert!(row["mended"]["what"].as_str().is_some_and(|what| what.contains(kind)), "{row}");
    }
}

/// The pack of an upper layer is lost: the layers below it are kept and named to the primary.
#[test]
fn a_lost_pack_is_fetched_on_top_of_the_layers_below() {
    mirror_only!();
    let (world, primary, repo) = two_layers();
    let before = layers(&world, &repo);
    world.store.damage(&key(&before[1]["pack"]));
    primary.forget_log();
    let cold = world.node(&primary);
    // The damaged block is found before the first byte.
    same(&world, &primary, &cold, &repo.path);
    healed(&world, &primary, &cold, &repo);
    let [fetch] = &fetches(&primary)[..] else { panic!("{:?}", fetches(&primary)) };
    assert!(fetch.contains("have "), "{fetch}");
    let after = layers(&world, &repo);
    assert_eq!((after.len(), &after[0]), (2, &before[0]));
    assert_eq!(vet(&world, &primary, &["--deep"]).0, Some(0));
}

/// The keys of all blobs of the newest generation.
fn blobs(world: &World, repo: &Repo) -> Vec<String> {
    let newest = world.store.newest(&repo.path).expect("a generation");
    let layers = newest["layers"].as_array().expect("layers").iter();
    let named = layers.flat_map(|layer| [&layer["pack"], &layer["idx"], &layer["graph"]]);
    named.chain([&newest["refs"]]).map(key).collect()
}

/// Looked at in rotation, and stored again out of the cache: nobody has to ask for it, and the primary gives nothing.
#[test]
fn what_a_cache_has_whole_is_stored_again() {
    mirror_only!();
    for (setting, flips) in [("vet.exists_every = \"1s\"", false), ("vet.hash_every = \"1s\"", true)] {
        let (world, primary, repo) = two_layers();
        let node = world.setup(&primary).set(setting).start();
        from_bucket(&node, || same(&world, &primary, &node, &repo.path));
        primary.forget_log();
        for key in blobs(&world, &repo) {
            let bytes = world.store.get(&key);
            if flips {
                world.store.damage(&key)
            } else {
                world.store.delete(&key)
            }
            eventually(&format!("{key} again"), || {
                (world.store.try_get(&key).as_ref() == Some(&bytes)).then_some(())
            });
        }
        eventually("all to be counted", || {
            let mended = node.metric("packmirror_blobs_mended_total", &["source=\"cache\""]);
            (mended == 7.0 && status(&node)["damage"].is_null()).then_some(())
        });
        assert_eq!(fetches(&primary), [""; 0]);
        assert_eq!(world.store.generations(&repo.path).len(), 2, "nothing had to be published");
        from_bucket(&node, || same(&world, &primary, &node, &repo.path));
        assert_eq!(vet(&world, &primary, &["--deep"]).0, Some(0));
        world.store.audit();
    }
}

/// The same while the primary does not answer, and of two nodes the one has lost what the other has.
#[test]
fn a_primary_that_is_down_is_not_needed_for_what_caches_have() {
    mirror_only!();
    let (world, primary, repo) = two_layers();
    let warm = world.node(&primary);
    from_bucket(&warm, || same(&world, &primary, &warm, &repo.path));
    let looks = "vet.exists_every = \"1s\"";
    let cold = world.setup(&primary).set(looks).set("compare_every = \"2s\"").start();
    eventually("both to know the repository", || status(&cold)["compared_by"].is_string().then_some(()));
    primary.down();
    primary.forget_log();
    for key in blobs(&world, &repo) {
        let bytes = world.store.get(&key);
        world.store.delete(&key);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
        while world.store.try_get(&key).as_ref() != Some(&bytes) {
            assert!(std::time::Instant::now() < end, "{key}\n{}\n\n{}", cold.log(), warm.log());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
    primary.up();
    mirrored(&world, &cold, &repo);
    from_bucket(&cold, || same(&world, &primary, &cold, &repo.path));
    assert_eq!(fetches(&primary), [""; 0]);
    assert_eq!(vet(&world, &primary, &["--deep"]).0, Some(0));
    world.store.audit();
}

/// A record that is spoilt is published again under the next number, with the layers that are there.
#[test]
fn a_spoilt_record_is_published_again() {
    mirror_only!();
    let (world, primary, repo) = two_layers();
    let record = world.store.generations(&repo.path).remove(0);
    let folder = record.rsplit_once('/').unwrap().0.to_owned();
    // While no node runs: the command finds it, and the record before it is taken for the newest.
    let bytes = world.store.get(&record);
    world.store.put(&record, bytes[..bytes.len() / 2].to_vec());
    let (code, found) = vet(&world, &primary, &[]);
    assert_eq!((code, &found[0]["wrong"][0]["blob"]), (Some(5), &record.clone().into()), "{found}");
    assert_eq!(vet(&world, &primary, &["--repair"]).0, Some(0));
    assert_eq!(world.store.newest(&repo.path).unwrap()["number"], 3);
    // While one runs that knows it: nobody else could.
    let node = world.setup(&primary).set("vet.exists_every = \"1s\"").start();
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    let before = layers(&world, &repo);
    primary.forget_log();
    world.store.put(&world.store.generations(&repo.path)[0], b"spoilt".to_vec());
    let fourth = format!("{folder}/{}", u64::MAX - 4);
    eventually("another record", || world.store.try_get(&fourth));
    assert_eq!(layers(&world, &repo), before);
    assert_eq!(fetches(&primary), [""; 0]);
    assert_eq!(node.metric("packmirror_vet_flaws_total", &["kind=\"record\""]), 1.0);
    eventually("it to be told", || {
        let row = status(&node);
        (row["state"] == "current" && row["mended"]["what"].is_string()).then_some(())
    });
}

/// A stored pack that has the hash that names it and is no pack: it is found when its layer is to be made again, and what it
/// held is fetched.
#[test]
fn a_pack_that_does_not_index_is_fetched_again() {
    mirror_only!();
    let (world, primary, repo) = two_layers();
    let sum = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let mut record = world.store.newest(&repo.path).unwrap();
    let mut pack = world.store.get(&key(&record["layers"][1]["pack"]));
    let middle = pack.len() / 2;
    pack[middle] ^= 1;
    record["layers"][1]["pack"]["id"] = sum(&pack).into();
    world.store.put(&key(&record["layers"][1]["pack"]), pack);
    let line = format!("{record}\n");
    let text = format!("{line}\"{}\"\n", sum(line.as_bytes()));
    world.store.put(&world.store.generations(&repo.path)[0], text.into_bytes());
    let before = layers(&world, &repo);
    primary.forget_log();
    let cold = world.node(&primary);
    same(&world, &primary, &cold, &repo.path);
    healed(&world, &primary, &cold, &repo);
    cold.logged(&["WARN", "a stored pack cannot be indexed"]);
    assert!(fetches(&primary).iter().all(|fetch| fetch.contains("have ")), "{:?}", fetches(&primary));
    assert_eq!(layers(&world, &repo)[0], before[0]);
    assert_eq!(vet(&world, &primary, &["--deep"]).0, Some(0));
}

/// One repository is damaged, and the others neither wait nor notice.
#[test]
fn damage_of_one_repository_is_its_own() {
    mirror_only!();
    let (world, primary, repo) = two_layers();
    let other = primary.repo("team/lib.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &other);
    drop(node);
    for layer in layers(&world, &repo) {
        world.store.delete(&key(&layer["pack"]));
    }
    // The repair cannot end: the primary gives syncs no pack of it.
    primary.fault(Wrong::Status(503, vec![]), |seen| by_sync(seen) && seen.path.contains("app.git"));
    let cold = world.setup(&primary).set("compare_every = \"1s\"").start();
    same(&world, &primary, &cold, &repo.path);
    eventually("the damage to be told", || {
        let rows = cold.command(&["status", "--json"]).must().text();
        let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["repo"] == repo.path.as_str()).cloned()?;
        row["damage"].as_str().filter(|words| words.contains(".pack is missing or damaged")).map(|_| ())
    });
    from_bucket(&cold, || same(&world, &primary, &cold, &other.path));
    other.commit("main", "more", "a line");
    mirrored(&world, &cold, &other);
    primary.heal();
    healed(&world, &primary, &cold, &repo);
}

/// A node without a cache finds a large pack lost, and another one has it: the primary gives nothing.
#[test]
fn what_another_nodes_cache_has_whole_is_waited_for() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", |dir| {
        shapes::linear(dir);
        let noise = dir.join("noise");
        std::fs::write(&noise, shapes::noise(5, 17 << 20)).unwrap();
        let oid = git(dir).run("hash-object -w noise").line();
        git(dir).run(&format!("tag noise {oid}"));
        std::fs::remove_file(noise).unwrap();
    });
    let warm = world.node(&primary);
    mirrored(&world, &warm, &repo);
    from_bucket(&warm, || same(&world, &primary, &warm, &repo.path));
    let pack = key(&layers(&world, &repo)[0]["pack"]);
    let bytes = world.store.get(&pack);
    world.store.delete(&pack);
    let cold = world.node(&primary);
    primary.forget_log();
    same(&world, &primary, &cold, &repo.path);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while world.store.try_get(&pack).as_ref() != Some(&bytes) && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(warm.metric("packmirror_blobs_mended_total", &["kind=\"pack\"", "source=\"cache\""]), 1.0);
    eventually("the cold node to be whole", || status(&cold)["damage"].is_null().then_some(()));
    mirrored(&world, &cold, &repo);
    from_bucket(&cold, || same(&world, &primary, &cold, &repo.path));
    assert_eq!(fetches(&primary), [""; 0]);
    assert!(world.store.list("damaged").is_empty());
}
