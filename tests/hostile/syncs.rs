//! What people who may push to the primary can make a sync do: packs that are small on the way and large in memory. The
//! sync takes little, or refuses the repository by name; its neighbours notice nothing.

use std::io::Write;

use gix_hash::{Kind as HashKind, ObjectId};
use gix_object::Kind;
use packmirror::pack::{delta, entry};

use crate::git::git;
use crate::node::{Node, Setup};
use crate::oracle::{in_bucket, mirrored, same};
use crate::primary::{Primary, Repo};
use crate::world::{World, eventually};
use crate::{mirror_only, shapes};

/// A pack made by hand, for the primary to take as it takes a push.
struct Pack {
    bytes: Vec<u8>,
    count: u32,
}

impl Pack {
    fn new() -> Self {
        Self { bytes: entry::pack_header(0).to_vec(), count: 0 }
    }

    fn entry(&mut self, header: entry::Header, data: &[u8]) {
        entry::encode(&header, data.len() as u64, &mut self.bytes);
        let at = std::mem::take(&mut self.bytes);
        let mut zipped = gix_zlib::stream::deflate::Write::new(at, gix_zlib::Compression::BEST_SPEED);
        zipped.write_all(data).unwrap();
        zipped.flush().unwrap();
        self.bytes = zipped.into_inner();
        self.count += 1;
    }

    fn whole(&mut self, kind: Kind, data: &[u8]) -> ObjectId {
        self.entry(entry::Header::Whole(kind), data);
        id(kind, data)
    }

    /// Adds `data` behind all of a base, as a delta; the base is named.
    fn longer(&mut self, kind: Kind, base: (ObjectId, &[u8]), tail: &[u8]) -> ObjectId {
        let len = base.1.len();
        let mut made = Vec::new();
        delta::put_size(len as u64, &mut made);
        delta::put_size((len + tail.len()) as u64, &mut made);
        for at in (0..len).step_by(0x10000) {
            delta::put_copy(at as u32, (len - at).min(0x10000) as u32, &mut made);
        }
        made.push(tail.len() as u8);
        made.extend_from_slice(tail);
        self.entry(entry::Header::RefDelta { base: base.0 }, &made);
        id(kind, &[base.1, tail].concat())
    }

    fn commit(&mut self, tree: ObjectId, parents: &[ObjectId]) -> ObjectId {
        let parents: String = parents.iter().map(|parent| format!("parent {parent}\n")).collect();
        let text = format!(
            "tree {tree}\n{parents}author a <a> 1700000000 +0000\ncommitter c <c> 1700000000 +0000\n\nm\n"
        );
        self.whole(Kind::Commit, text.as_bytes())
    }

    /// Makes a repository of it whose branch is `tip`.
    fn push(self, primary: &Primary, path: &str, tip: ObjectId) -> Repo {
        let repo = primary.repo(path, shapes::empty);
        self.push_to(&repo, tip);
        repo
    }

    /// Pushes it to the branch of a repository.
    fn push_to(mut self, repo: &Repo, tip: ObjectId) {
        self.bytes[8..12].copy_from_slice(&self.count.to_be_bytes());
        let mut hasher = gix_hash::hasher(HashKind::Sha1);
        hasher.update(&self.bytes);
        self.bytes.extend_from_slice(hasher.try_finalize().unwrap().as_slice());
        git(&repo.dir).with_input(&["index-pack", "--stdin"], &self.bytes).must();
        repo.set_ref("refs/heads/main", &tip.to_string());
    }
}

fn id(kind: Kind, data: &[u8]) -> ObjectId {
    gix_object::compute_hash(HashKind::Sha1, kind, data).unwrap()
}

fn tree_entry(mode: &str, name: &str, id: ObjectId) -> Vec<u8> {
    [format!("{mode} {name}\0").as_bytes(), id.as_slice()].concat()
}

/// A tree of so many bytes that names one blob many times.
fn large_tree(blob: ObjectId, bytes: usize) -> Vec<u8> {
    (0..bytes / 60).flat_map(|n| tree_entry("100644", &format!("f{n:032}"), blob)).collect()
}

/// Makes the node mirror a repository, and waits for it longer than a healthy one would take on a busy machine.
fn mirrored_in_time(world: &World, node: &Node, repo: &Repo) {
    let published =
        || node.log().lines().filter(|l| l.contains(&repo.path) && l.contains("published")).count();
    let before = published();
    git(world.path()).args(&["ls-remote", "-q", &node.repo(&repo.path)]).must();
    for _ in 0..if super::full() { 3000 } else { 1000 } {
        if published() > before {
            break;
        }
        assert!(!node.log().contains("sync failed"), "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    in_bucket(world, node, repo);
}

/// A node whose syncs may hold 64 MiB, and that ends where it takes more than half a GiB.
fn small_node(world: &World, primary: &Primary) -> Node {
    let setup: Setup = world.setup(primary).set("limits.sync_memory = \"64MiB\"").memory(700 << 20);
    setup.start()
}

/// One commit with many parents, each with a large tree that is a small delta.
#[test]
fn a_commit_with_many_parents_takes_little() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let (count, bytes) = if super::full() { (1000, 10 << 20) } else { (150, 4 << 20) };
    let mut pack = Pack::new();
    let blob = pack.whole(Kind::Blob, b"x\n");
    let base = large_tree(blob, bytes);
    let base_id = pack.whole(Kind::Tree, &base);
    let parents: Vec<ObjectId> = (0..count)
        .map(|n| {
            let other = pack.whole(Kind::Blob, format!("{n:04}").as_bytes());
            let tail = tree_entry("100644", &format!("z{n:04}"), other);
            let tree = pack.longer(Kind::Tree, (base_id, &base), &tail);
            pack.commit(tree, &[])
        })
        .collect();
    let tree = pack.longer(Kind::Tree, (base_id, &base), &tree_entry("100644", "zz", blob));
    let tip = pack.commit(tree, &parents);
    let repo = pack.push(&primary, "parents.git", tip);
    let node = small_node(&world, &primary);
    mirrored_in_time(&world, &node, &repo);
}

/// Blobs of which each has a delta that nothing leans on and one that all the rest leans on.
#[test]
fn deltas_on_deltas_of_large_objects_take_little() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let (teeth, size) = if super::full() { (45, 64 << 20) } else { (45, 12 << 20) };
    let mut pack = Pack::new();
    let mut bytes = vec![0; size];
    let mut base = pack.whole(Kind::Blob, &bytes);
    let mut entries = vec![tree_entry("100644", "a", base)];
    for n in 0..teeth {
        let leaf = pack.longer(Kind::Blob, (base, &bytes), format!("leaf{n:04}").as_bytes());
        let tail = format!("next{n:04}");
        let next = pack.longer(Kind::Blob, (base, &bytes), tail.as_bytes());
        bytes.extend_from_slice(tail.as_bytes());
        entries.push(tree_entry("100644", &format!("b{n:04}"), leaf));
        entries.push(tree_entry("100644", &format!("c{n:04}"), next));
        base = next;
    }
    // Names in a tree are sorted.
    let mut tree: Vec<Vec<u8>> = entries;
    tree.sort();
    let tree = pack.whole(Kind::Tree, &tree.concat());
    let tip = pack.commit(tree, &[]);
    let repo = pack.push(&primary, "comb.git", tip);
    let node = small_node(&world, &primary);
    mirrored_in_time(&world, &node, &repo);
}

/// A blob larger than all the memory there is for syncs, and one that is a delta on it and comes later.
#[test]
fn a_large_blob_takes_little_and_so_does_a_delta_on_it() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let size = if super::full() { 1 << 30 } else { 100 << 20 };
    let bytes = vec![0; size];
    let mut pack = Pack::new();
    let blob = pack.whole(Kind::Blob, &bytes);
    let tree = pack.whole(Kind::Tree, &tree_entry("100644", "base", blob));
    let tip = pack.commit(tree, &[]);
    let repo = pack.push(&primary, "leaning.git", tip);
    repo.configure("[core]\n\tbigFileThreshold = 2g\n");
    let node = small_node(&world, &primary);
    mirrored_in_time(&world, &node, &repo);
    let mut pack = Pack::new();
    // The primary keeps it as a delta on a base that this pack brings along.
    pack.whole(Kind::Blob, &bytes);
    let longer = pack.longer(Kind::Blob, (blob, &bytes), b"12345678");
    let tree = pack.whole(Kind::Tree, &tree_entry("100644", "longer", longer));
    let tip = pack.commit(tree, &[tip]);
    pack.push_to(&repo, tip);
    mirrored_in_time(&world, &node, &repo);
}

/// A tree that is larger than what all syncs may hold: the repository is refused by name, and the memory is given back.
#[test]
fn what_needs_more_memory_than_there_is_is_refused_by_name() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let mut pack = Pack::new();
    let blob = pack.whole(Kind::Blob, b"x\n");
    let tree = pack.whole(Kind::Tree, &large_tree(blob, 80 << 20));
    let tip = pack.commit(tree, &[]);
    let repo = pack.push(&primary, "large.git", tip);
    let healthy = primary.repo("healthy.git", shapes::linear);
    let node = small_node(&world, &primary);
    git(world.path()).args(&["ls-remote", "-q", &node.repo(&repo.path)]).must();
    node.logged(&["large.git", "sync failed", "limits.sync_memory"]);
    mirrored(&world, &node, &healthy);
    same(&world, &primary, &node, &healthy.path);
    eventually("the memory back", || (node.status("RssAnon") < 300 << 20).then_some(()));
    // Its clients are served by the primary meanwhile.
    let copy = world.clone_of(&node.repo(&repo.path), "--bare");
    assert_eq!(git(&copy).run("rev-parse HEAD").line(), tip.to_string());
}
