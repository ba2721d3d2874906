//! Primaries that answer badly: the sync ends and says why, the node lives, and other repositories notice nothing.

use super::fake::Fake;
use crate::node::Setup;
use crate::primary::Repo;
use crate::world::World;
use crate::{mirror_only, shapes, wire};

fn honest_repo(world: &World) -> Repo {
    let repo = Repo::create(&world.folder("honest"), "x.git", "sha1");
    shapes::linear(&repo.dir);
    repo
}

/// Makes the node take up a repository: by its advertisement, or by its refs where that is what is bad.
fn take_up(address: &str, path: &str, by_refs: bool) -> u16 {
    let version = ("Git-Protocol", "version=2");
    let reply = if by_refs {
        let body = wire::command("ls-refs", &[], &[]);
        wire::post(address, &format!("/{path}/git-upload-pack"), &[version], &body)
    } else {
        wire::get(address, &format!("/{path}/info/refs?service=git-upload-pack"), &[version])
    };
    reply.expect("an answer").status
}

#[test]
fn every_bad_answer_ends_its_sync_and_is_named() {
    mirror_only!();
    let world = World::new();
    let repo = honest_repo(&world);
    let fake = Fake::start(&repo.dir);
    let node = Setup::new(&world, &fake.url).set("limits.sync_memory = \"256MiB\"").memory(1 << 30).start();
    let ways: [(&str, bool, &[&str]); 16] = [
        ("control", false, &["left out", "its name"]),
        ("dots", false, &["left out", "its name"]),
        ("longname", false, &["left out", "nnn"]),
        ("newline", false, &["left out", "its name"]),
        // What HEAD names is no ref; the object is taken.
        ("symref", false, &["published"]),
        ("missing", false, &["sync failed", "not our ref"]),
        ("endlessrefs", false, &["sync failed", "limits.sync_memory"]),
        ("close", false, &["sync failed", "broke off"]),
        ("progress", false, &["sync failed", "16 MiB of progress"]),
        ("trailer", false, &["sync failed", "trailer"]),
        ("trunc", false, &["sync failed", "broke off"]),
        ("extra", false, &["sync failed"]),
        ("gzipadv", true, &["sync failed", "compressed"]),
        ("bighead", true, &["sync failed"]),
        ("endlessadv", true, &["sync failed"]),
        ("honest", false, &["published"]),
    ];
    for (way, by_refs, _) in ways {
        assert_eq!(take_up(node.address(), &format!("{way}/x.git"), by_refs), 200, "{way}");
    }
    for (way, _, words) in ways {
        let path = format!("{way}/x.git");
        let words: Vec<&str> = [path.as_str()].into_iter().chain(words.iter().copied()).collect();
        node.logged(&words);
    }
    // What was held is given back.
    crate::world::eventually("memory given back", || (node.status("RssAnon") < 400 << 20).then_some(()));
}

/// Primaries that say nothing, and such as tell their progress for ever: healthy repositories are synced all the same.
#[test]
fn broken_repositories_do_not_hold_up_healthy_ones() {
    mirror_only!();
    let world = World::new();
    let repo = honest_repo(&world);
    let fake = Fake::start(&repo.dir);
    let count = if super::full() { 100 } else { 40 };
    let settings = format!("max_new_per_minute = {}", 3 * count);
    let node = Setup::new(&world, &fake.url).set("max_syncs = 1").set(&settings).start();
    for n in 0..count {
        for way in ["silentrefs", "silentpack"] {
            assert_eq!(take_up(node.address(), &format!("{way}/{n}.git"), false), 200);
        }
    }
    for n in 0..3 {
        let path = format!("honest/{n}.git");
        assert_eq!(take_up(node.address(), &path, false), 200);
        node.logged(&[&path, "published"]);
    }
}
