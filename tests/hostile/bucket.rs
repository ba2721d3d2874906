//! Who may write to the bucket: records, blobs and names that no mirror would have written. Nobody gets what another
//! repository holds, nothing outside is read or written, memory stays bounded, and mirroring goes on.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::git::git;
use crate::oracle::{mirrored, same};
use crate::primary::{Primary, Repo};
use crate::world::{World, eventually};
use crate::{hostile, mirror_only, shapes};

const MIB: u64 = 1 << 20;

/// The key of a repository's generation.
fn key(repo: &str, number: u64) -> String {
    format!("repos/{}/gen/{:020}", hex::encode(Sha256::digest(repo.as_bytes())), u64::MAX - number)
}

/// A record as a writer of the bucket would make it: with the right checksum.
fn sealed(record: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(record).unwrap();
    bytes.push(b'\n');
    let sum = hex::encode(Sha256::digest(&bytes));
    bytes.extend_from_slice(format!("\"{sum}\"\n").as_bytes());
    bytes
}

/// Stores bytes as a blob of this kind, as a record names it.
fn blob(world: &World, kind: &str, bytes: Vec<u8>) -> Value {
    let id = hex::encode(Sha256::digest(&bytes));
    let named = json!({ "id": id, "kind": kind, "len": bytes.len() });
    world.store.put(&format!("blobs/{}/{id}.{kind}", &id[..2]), bytes);
    named
}

/// Puts the newest record, changed, under the number after it.
fn forge(world: &World, repo: &str, change: impl FnOnce(&mut Value)) {
    let mut record = records(world, repo).swap_remove(0);
    let parent = world.store.get(&key(repo, record["number"].as_u64().unwrap()));
    let parent = hex::encode(Sha256::digest(parent));
    let number = record["number"].as_u64().unwrap() + 1;
    (record["number"], record["parent"]) = (json!(number), json!(parent));
    change(&mut record);
    world.store.put(&key(repo, number), sealed(&record));
}

fn set_up() -> (World, Primary, Repo) {
    let (world, primary) = (World::on_disk(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    world.setup(&primary).command(&["sync", &repo.path]).must();
    (world, primary, repo)
}

/// Whatever lies in the repository's folder, a node serves what the primary has and publishes again.
#[test]
fn no_record_keeps_a_repository_from_being_served_and_published() {
    mirror_only!();
    type Attack = Box<dyn Fn(&World, &str)>;
    let names = |n: usize| -> Attack {
        Box::new(move |world, repo| {
            let folder = key(repo, 1).rsplit_once('/').unwrap().0.to_owned();
            (0..n).for_each(|name| world.store.put(&format!("{folder}/{name}"), b"x".to_vec()));
        })
    };
    let forged = |change: fn(&mut Value)| -> Attack { Box::new(move |w, repo| forge(w, repo, change)) };
    let put = |bytes: Vec<u8>| -> Attack {
        Box::new(move |world, repo| world.store.put(&key(repo, newest(world, repo) + 1), bytes.clone()))
    };
    let at_the_end = |number: u64| -> Attack {
        Box::new(move |world, repo| {
            let mut record = records(world, repo).swap_remove(0);
            (record["number"], record["parent"]) = (json!(number), json!("00".repeat(32)));
            world.store.put(&key(repo, number), sealed(&record));
        })
    };
    let cases: Vec<(&str, Attack)> = vec![
        ("garbage", put(b"garbage".to_vec())),
        ("nothing", put(Vec::new())),
        ("many MiB", put(vec![b' '; 33 << 20])),
        ("depth", put(sealed_text(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))))),
        (
            "several",
            Box::new(|w, repo| {
                let known = newest(w, repo);
                (1..12).for_each(|n| w.store.put(&key(repo, known + n), b"x".to_vec()));
            }),
        ),
        ("the last number", at_the_end(u64::MAX)),
        ("the last number but one", at_the_end(u64::MAX - 1)),
        ("a huge number", at_the_end(1 << 60)),
        ("number nought", Box::new(|w, repo| w.store.put(&key(repo, 0), b"x".to_vec()))),
        ("strange names", names(500)),
        ("lengths", forged(|r| r["layers"][0]["pack"]["len"] = json!(u64::MAX))),
        ("lengths that are not so", forged(|r| r["layers"][0]["pack"]["len"] = json!(1u64 << 40))),
        ("lengths of refs", forged(|r| r["refs"]["len"] = json!(u64::MAX))),
        ("times", forged(|r| r["verified_at"] = json!(u64::MAX))),
        ("the same layer", forged(|r| r["layers"] = json!(vec![r["layers"][0].clone(); 60_000]))),
        ("kinds", forged(|r| r["layers"][0]["graph"] = r["refs"].clone())),
        ("objects", forged(|r| r["layers"][0]["objects"] = json!(u32::MAX))),
        ("HEAD", forged(|r| r["head"] = json!({"symbolic": "config"}))),
        ("symrefs", forged(|r| r["symrefs"] = json!([["/etc/x", "refs/heads/main"]]))),
        ("a digest", forged(|r| r["manifest_digest"] = json!("00".repeat(32)))),
    ];
    let (world, primary, repo) = set_up();
    let setup = world.setup(&primary);
    let mut node = setup.clone().start();
    for (n, (name, attack)) in cases.into_iter().enumerate() {
        attack(&world, &repo.path);
        let ls = setup.command(&["ls"]).must();
        assert!(ls.text().contains("team/app.git"), "{name}: {}", ls.text());
        // In turns a node that knows what was there before, and one that does not.
        if n % 2 == 0 {
            node.restart();
        }
        same(&world, &primary, &node, &repo.path);
        repo.commit("main", "more", name);
        same(&world, &primary, &node, &repo.path);
        let digest = repo.digest();
        eventually(&format!("{name}: a generation of what was pushed"), || {
            records(&world, &repo.path).into_iter().any(|r| r["manifest_digest"] == *digest).then_some(())
        });
    }
    eventually("a clone out of the bucket", || {
        let before = node.answered_from_bucket();
        same(&world, &primary, &node, &repo.path);
        (node.answered_from_bucket() > before).then_some(())
    });
    setup.command(&["status"]).must();
    let out = world.unused("export");
    setup.command(&["export", &repo.path, out.to_str().unwrap()]).must();
    git(&out).run("fsck --strict");
    assert_eq!(git(&out).run("rev-parse main").line(), repo.oid("refs/heads/main"));
}

/// The records of a repository that are some, newest first.
fn records(world: &World, repo: &str) -> Vec<Value> {
    let whole = |bytes: Vec<u8>| {
        let line = bytes.split(|byte| *byte == b'\n').next()?;
        let record: Value = serde_json::from_slice(line).ok()?;
        let known = record["number"].as_u64().is_some_and(|number| number < 1 << 53);
        (known && record["repo"] == repo).then_some(record)
    };
    world.store.generations(repo).iter().filter_map(|name| whole(world.store.get(name))).collect()
}

/// The number of the newest record.
fn newest(world: &World, repo: &str) -> u64 {
    records(world, repo)[0]["number"].as_u64().unwrap()
}

fn sealed_text(line: &str) -> Vec<u8> {
    let line = format!("{line}\n");
    let sum = hex::encode(Sha256::digest(line.as_bytes()));
    format!("{line}\"{sum}\"\n").into_bytes()
}

/// A record of another repository under this one's key names that repository's objects: it is not believed.
#[test]
fn a_record_of_another_repository_is_not_believed() {
    mirror_only!();
    let (world, primary, repo) = set_up();
    let secret = primary.repo("team/secret.git", shapes::town);
    world.setup(&primary).command(&["sync", &secret.path]).must();
    let copied = world.store.get(&world.store.generations(&secret.path)[0]);
    for number in [1, 2, 3] {
        world.store.put(&key(&repo.path, number), copied.clone());
    }
    let node = world.setup(&primary).set("freshness = \"bounded\"").start();
    same(&world, &primary, &node, &repo.path);
    let listed = world.setup(&primary).command(&["ls", "--json"]).must().text();
    assert_eq!(listed.matches("team/secret.git").count(), 1, "{listed}");
    // Under the key of a repository that the primary does not have.
    world.store.put(&key("team/no.git", 1), copied);
    git(world.path()).try_run(&format!("ls-remote {}", node.repo("team/no.git"))).must_fail(&[]);
}

/// Small frames that unpack to gigabytes: neither a node nor a command takes the memory or the disk for them.
#[test]
fn bombs_of_zstd_are_refused() {
    mirror_only!();
    let size = if hostile::full() { 64 << 30 } else { 600 * MIB };
    let bomb = |pledged: bool| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_pledged_src_size(pledged.then_some(size)).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size), &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let bombs = [bomb(true), bomb(false)];
    for (kind, bomb) in [("refs", &bombs[0]), ("refs", &bombs[1]), ("graph", &bombs[0]), ("graph", &bombs[1])]
    {
        let (world, primary, repo) = set_up();
        let bomb = blob(&world, kind, bomb.clone());
        forge(&world, &repo.path, |record| match kind {
            "refs" => record["refs"] = bomb,
            _ => record["layers"][0]["graph"] = bomb,
        });
        let setup = world.setup(&primary).memory(400 * MIB);
        let out = world.unused("export");
        if kind == "refs" {
            setup.command(&["export", &repo.path, out.to_str().unwrap()]).must_fail(&["beyond reason"]);
            assert!(!out.exists());
        }
        setup.command(&["status"]).must();
        let node = setup.start();
        same(&world, &primary, &node, &repo.path);
        eventually("it is published anew", || (world.store.generations(&repo.path).len() >= 3).then_some(()));
        same(&world, &primary, &node, &repo.path);
        assert!(node.status("VmHWM") < 400 * MIB, "{kind}: {}", node.status("VmHWM"));
    }
}

/// Links in a directory store lead nowhere: not to be read, not to be written.
#[test]
fn links_in_a_directory_store_are_not_followed() {
    mirror_only!();
    let (world, primary, repo) = set_up();
    let store = world.store.dir.clone().unwrap();
    let victim = world.folder("victim");
    std::fs::write(victim.join("file"), "root:x:0:0\n").unwrap();
    let pack = world.store.blobs("pack").swap_remove(0);
    std::fs::remove_file(store.join(&pack)).unwrap();
    symlink(victim.join("file"), store.join(&pack)).unwrap();
    symlink(&victim, store.join("repos").join("ab".repeat(32))).unwrap();
    let _ = std::fs::remove_dir_all(store.join("nodes"));
    symlink(&victim, store.join("nodes")).unwrap();
    let second = primary.repo("team/second.git", shapes::merges);
    let folder = store.join(key(&second.path, 1));
    let folder = folder.parent().unwrap().parent().unwrap();
    symlink(&victim, folder).unwrap();
    let node = world.setup(&primary).start();
    same(&world, &primary, &node, &repo.path);
    same(&world, &primary, &node, &second.path);
    world.setup(&primary).command(&["ls"]);
    let out = world.unused("export");
    world
        .setup(&primary)
        .command(&["export", &repo.path, out.to_str().unwrap()])
        .must_fail(&["does not follow"]);
    drop(node);
    let left: Vec<_> = std::fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["file"]);
    assert_eq!(std::fs::read_to_string(victim.join("file")).unwrap(), "root:x:0:0\n");
    assert!(store.join(&pack).is_symlink() && store.join("nodes").is_symlink());
}

/// What nodes say of themselves is for people to read: it must not take the memory, nor the terminal.
#[test]
fn words_of_nodes_are_bounded_and_safe_to_print() {
    mirror_only!();
    let (world, primary, repo) = set_up();
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let said = |repo: &str, error: &str| {
        json!({ "at": now, "version": "0", "repos": [{ "repo": repo, "phase": "failing", "generation": null,
            "compared": null, "next": null, "error": error, "stage": "", "received": 0 }] })
    };
    let evil = "\u{1b}]0;title\u{7}\u{9b}2J\u{202e}";
    let words = [
        said("team/evil.git", evil),
        said(&format!("team/{evil}.git"), "x"),
        said("../../etc/passwd", "x"),
        said("team/long.git", &"long ".repeat(1 << 20)),
        json!([[[[]]]]),
    ];
    for (n, words) in words.iter().enumerate() {
        world.store.put(&format!("nodes/{n:032x}"), serde_json::to_vec(words).unwrap());
    }
    world.store.put("nodes/not a node \u{1b}[2J", b"{}".to_vec());
    world.store.put("nodes/a/b/c", b"{}".to_vec());
    let long = if hostile::full() { 1 << 30 } else { 64 << 20 };
    world.store.put(&format!("nodes/{:032x}", 99), vec![b'['; long]);
    (100..1100).for_each(|n| world.store.put(&format!("nodes/{n:032x}"), b"{}".to_vec()));
    let setup = world.setup(&primary).memory(300 * MIB);
    for command in [&["status"][..], &["status", "--json"], &["ls"], &["ls", "--json"]] {
        let out = setup.command(command).must();
        let text = out.text() + &out.stderr;
        assert!(text.contains(&repo.path), "{text}");
        let obeyed = |c: &char| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c);
        assert!(text.chars().find(obeyed).is_none(), "{command:?}: {}", text.escape_debug());
        assert!(text.len() < 1 << 20 && !text.contains("etc/passwd"), "{} bytes", text.len());
    }
    let node = setup.start();
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
}

/// Names that are no repositories' among the repositories.
#[test]
fn a_bucket_full_of_names_is_listed() {
    mirror_only!();
    let (world, primary, repo) = set_up();
    let most = if hostile::full() { 100_000 } else { 2_000 };
    for n in 0..most {
        world.store.put(&format!("repos/{n}/gen/{n:020}"), b"x".to_vec());
    }
    world.store.put(&format!("repos/{}/gen/x", "0".repeat(64)), b"x".to_vec());
    let setup = world.setup(&primary).memory(300 * MIB);
    let out = setup.command(&["ls"]).must();
    assert!(out.text().contains("1 repository,"), "{}", out.text());
    let node = setup.start();
    same(&world, &primary, &node, &repo.path);
}
