//! Graphs of real repositories, compared with what git says.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gix_hash::{Kind as HashKind, ObjectId};
use proptest::prelude::*;

use super::*;
use crate::pack::Layer;
use crate::pack::entry::RawKind;
use crate::pack::layer::decode;
use crate::pack::meter::Unlimited;
use crate::pack::testing::{Packed, Packs, Random, Repo, id, random_history, stack};

/// What git says about every commit of a repository.
struct Oracle {
    parents: HashMap<ObjectId, Vec<ObjectId>>,
    /// Root tree and everything in it, submodule links left out.
    trees: HashMap<ObjectId, BTreeSet<ObjectId>>,
    /// What differs from all parents at its path, by `diff-tree -c`, and the root tree if it does.
    changed: HashMap<ObjectId, BTreeSet<ObjectId>>,
    /// Commits, parents first.
    order: Vec<ObjectId>,
}

impl Oracle {
    fn ask(repo: &Repo) -> Self {
        let mut parents: HashMap<ObjectId, Vec<ObjectId>> = HashMap::new();
        let mut order = Vec::new();
        for line in repo.git(&["rev-list", "--all", "--parents", "--topo-order", "--reverse"]).lines() {
            let mut ids = line.split(' ').map(id);
            let commit = ids.next().unwrap();
            parents.insert(commit, ids.collect());
            order.push(commit);
        }
        let mut trees = HashMap::new();
        let mut roots = HashMap::new();
        for commit in &order {
            let root = repo.git(&["rev-parse", &format!("{commit}^{{tree}}")]);
            let mut objects = BTreeSet::from([id(&root)]);
            for line in repo.git(&["ls-tree", "-r", "-t", &root]).lines() {
                let words: Vec<&str> = line.split([' ', '\t']).collect();
                objects.extend((words[0] != "160000").then(|| id(words[2])));
            }
            roots.insert(*commit, id(&root));
            trees.insert(*commit, objects);
        }
        let list: String = order.iter().map(|commit| format!("{commit}\n")).collect();
        let args = ["diff-tree", "--stdin", "-r", "-t", "-c", "--root", "--no-renames", "--no-abbrev"];
        let said = String::from_utf8(repo.git_with(&args, list.as_bytes())).unwrap();
        let mut changed: HashMap<ObjectId, BTreeSet<ObjectId>> = HashMap::new();
        for commit in &order {
            let root = roots[commit];
            let same = parents[commit].iter().any(|parent| roots[parent] == root);
            changed.insert(*commit, if same { BTreeSet::new() } else { BTreeSet::from([root]) });
        }
        let mut commit = None;
        for line in said.lines() {
            match line.strip_prefix(':') {
                None => commit = Some(id(line)),
                Some(row) => {
                    let sides = 1 + row.bytes().take_while(|&byte| byte == b':').count();
                    let words: Vec<&str> = row.trim_start_matches(':').split([' ', '\t']).collect();
                    let (mode, oid) = (words[sides], words[2 * sides + 1]);
                    if mode != "160000" && mode != "000000" {
                        changed.get_mut(&commit.unwrap()).unwrap().insert(id(oid));
                    }
                }
            }
        }
        Self { parents, trees, changed, order }
    }

    fn ancestors(&self, commit: &ObjectId) -> BTreeSet<ObjectId> {
        let mut found = BTreeSet::new();
        let mut work = vec![*commit];
        while let Some(commit) = work.pop() {
            work.extend(self.parents[&commit].iter().filter(|parent| found.insert(**parent)).copied());
        }
        found
    }

    /// Checks everything a stack says about commits and introductions.
    fn check(&self, stack: &Stack) {
        let mut introduced: HashMap<ObjectId, BTreeSet<ObjectId>> = HashMap::new();
        let mut generations: HashMap<ObjectId, u32> = HashMap::new();
        for oid in &self.order {
            let commit = stack.commit(stack.lookup(oid).unwrap()).unwrap();
            let parents: Vec<ObjectId> = commit.parents().map(|gid| stack.oid(gid)).collect();
            assert_eq!(parents, self.parents[oid]);
            let generation = 1 + parents.iter().map(|parent| generations[parent]).max().unwrap_or(0);
            assert_eq!(commit.generation(), generation);
            generations.insert(*oid, generation);
            assert!(self.trees[oid].contains(&stack.oid(commit.tree())));

            let ids = |gids: Vec<Gid>| -> BTreeSet<ObjectId> {
                let ids: BTreeSet<ObjectId> = gids.iter().map(|&gid| stack.oid(gid)).collect();
                assert_eq!(ids.len(), gids.len(), "nothing twice");
                ids
            };
            let (first, again) = (ids(commit.first().collect()), ids(commit.again().collect()));
            assert!(first.is_disjoint(&again));
            let all: BTreeSet<ObjectId> = first.union(&again).copied().collect();
            let mut new = self.trees[oid].clone();
            for parent in &self.parents[oid] {
                new = new.difference(&self.trees[parent]).copied().collect();
            }
            assert!(all.is_superset(&new), "{oid} introduces what no parent has");
            assert!(all.is_subset(&self.changed[oid]), "{oid} introduces nothing but what changed");
            let ancestors = self.ancestors(oid);
            for object in &again {
                let known = ancestors.iter().any(|ancestor| introduced[ancestor].contains(object));
                assert!(known, "{object} again in {oid}");
            }
            introduced.insert(*oid, all);
            let reached: BTreeSet<ObjectId> = ancestors
                .iter()
                .chain([oid])
                .flat_map(|ancestor| stack.commit(stack.lookup(ancestor).unwrap()).unwrap().first())
                .map(|gid| stack.oid(gid))
                .collect();
            let wanted: BTreeSet<ObjectId> =
                ancestors.iter().chain([oid]).flat_map(|ancestor| self.trees[ancestor].clone()).collect();
            assert_eq!(reached, wanted, "first introductions alone make the history of {oid}");
        }
        // What a fetch needs is the exact difference, by way of the introducers.
        let with = |commit: &ObjectId| {
            let mut history = self.ancestors(commit);
            history.insert(*commit);
            history
        };
        let objects = |history: &BTreeSet<ObjectId>| -> BTreeSet<ObjectId> {
            history.iter().flat_map(|commit| self.trees[commit].iter().copied()).collect()
        };
        for (want, have) in self.order.iter().zip(self.order.iter().cycle().skip(self.order.len() / 2)) {
            let (wanted, had) = (with(want), with(have));
            let gid = |oid: &ObjectId| stack.lookup(oid).unwrap();
            let sent: BTreeSet<ObjectId> = wanted
                .difference(&had)
                .flat_map(|commit| stack.commit(gid(commit)).unwrap().first())
                .filter(|&object| !stack.introducers(object).any(|commit| had.contains(&stack.oid(commit))))
                .map(|gid| stack.oid(gid))
                .collect();
            let difference = objects(&wanted).difference(&objects(&had)).copied().collect::<BTreeSet<_>>();
            assert_eq!(sent, difference, "{want} --not {have}");
        }
        // Who introduced an object is told in full, by the object and by the commits.
        let mut by_object: BTreeMap<ObjectId, BTreeSet<ObjectId>> = BTreeMap::new();
        for oid in &self.order {
            for gid in stack.commit(stack.lookup(oid).unwrap()).unwrap().first() {
                by_object.entry(stack.oid(gid)).or_default().insert(*oid);
            }
        }
        for (object, commits) in &by_object {
            let gid = stack.lookup(object).unwrap();
            let told: Vec<ObjectId> = stack.introducers(gid).map(|commit| stack.oid(commit)).collect();
            assert_eq!(told.len(), commits.len());
            assert_eq!(&told.into_iter().collect::<BTreeSet<_>>(), commits);
            assert!(stack.introducer(gid).is_none_or(|commit| commits.contains(&stack.oid(commit))));
        }
    }
}

/// Checks the object columns of each layer against `verify-pack`, all objects against `cat-file`.
fn check_objects(repo: &Repo, stack: &Stack, source: &Packs) {
    let mut scratch = crate::pack::Scratch::new(1 << 16, 1 << 20);
    for (number, layer) in stack.layers().iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.pack");
        std::fs::write(&path, &source.0[number].pack).unwrap();
        std::fs::write(path.with_extension("idx"), &source.0[number].idx).unwrap();
        let format = format!("--object-format={}", repo.hash);
        let said = repo.git(&["verify-pack", "-v", &format, path.to_str().unwrap()]);
        let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
        let rows: Vec<&Vec<&str>> =
            rows.iter().filter(|row| row[0].len() == repo.hash.len_in_hex()).collect();
        assert_eq!(rows.len(), layer.graph.len() as usize);
        for row in rows {
            let oid = id(row[0]);
            let position = layer.lookup(&oid).unwrap();
            assert_eq!(layer.oid(position), Some(oid));
            assert_eq!(layer.graph.kind(position).unwrap().to_string(), row[1]);
            let entry = layer.graph.entry(position).unwrap();
            assert_eq!(entry.entry_size.to_string(), row[2]);
            assert_eq!((entry.end - entry.offset).to_string(), row[3]);
            assert_eq!(entry.offset.to_string(), row[4]);
            assert_eq!(layer.graph.position_at(entry.offset), Some(position));
            assert_eq!(entry.raw.is_delta(), row.len() > 5);
            let base = entry.base.map(|base| layer.oid(base).unwrap());
            assert_eq!(base, row.get(6).map(|hex| id(hex)));
            let gid = stack.canonical(number, position);
            assert_eq!(Some(gid), stack.lookup(&oid));
            if gid == stack.first_gid(number) + position {
                assert_eq!(stack.layer_of(gid), (number, position));
                let seen = stack.entry(gid);
                assert_eq!((seen.offset, seen.base_local), (entry.offset, entry.base));
                assert_eq!(seen.base.map(|base| stack.oid(base)), base);
            }
        }
        let pack = &source.0[number].pack;
        assert_eq!(layer.graph.pack_len(), pack.len() as u64);
        assert_eq!(layer.graph.block_hash(0), Some(PackFacts::of(pack).blocks[0]));
    }
    let all = repo.ids(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]);
    let all: Vec<ObjectId> = all.into_iter().filter(|oid| stack.lookup(oid).is_some()).collect();
    assert!(!all.is_empty());
    for (oid, (kind, bytes)) in all.iter().zip(repo.contents(&all)) {
        let gid = stack.lookup(oid).unwrap();
        assert_eq!(stack.oid(gid), *oid);
        assert_eq!(stack.size(gid), bytes.len() as u64);
        let (have_kind, have) = decode::object(stack, source, gid, &mut scratch, &Unlimited).unwrap();
        assert_eq!((have_kind.to_string(), have.to_vec()), (kind, bytes));
        assert_eq!(stack.kind(gid), have_kind);
    }
}

proptest! {
    #![proptest_config(crate::seed::cases(6))]

    #[test]
    fn random_histories_are_as_git_says(seed in any::<u64>(), sha256 in any::<bool>(), ofs in any::<bool>()) {
        let repo = Repo::new(if sha256 { HashKind::Sha256 } else { HashKind::Sha1 });
        random_history(&repo, seed, 40);
        let args: &[&str] = if ofs { &["--all", "--delta-base-offset"] } else { &["--all", "--no-reuse-delta"] };
        let (stack, source) = stack(&[repo.pack(args, "")], repo.hash);
        Oracle::ask(&repo).check(&stack);
        check_objects(&repo, &stack, &source);
        let raws: BTreeSet<u8> = (0..stack.len()).map(|gid| stack.entry(gid).raw as u8).collect();
        let delta = if ofs { RawKind::OfsDelta } else { RawKind::RefDelta };
        prop_assert!(raws.contains(&(delta as u8)));
    }

    #[test]
    fn layers_on_layers_are_as_git_says(seed in any::<u64>(), sha256 in any::<bool>()) {
        let repo = Repo::new(if sha256 { HashKind::Sha256 } else { HashKind::Sha1 });
        random_history(&repo, seed, 45);
        repo.git(&["repack", "-adfq"]);
        let mut random = Random::new(seed);
        let cuts = [random.below(10) + 3, random.below(20) + 15, 45];
        let mut packs = vec![];
        let mut had = String::new();
        for cut in cuts {
            let tips: String = (1..=cut).map(|n| format!("m{n}\n")).collect();
            let revs = format!("{tips}--not\n{had}");
            packs.push(if had.is_empty() {
                repo.pack(&["--revs", "--delta-base-offset"], &tips)
            } else {
                repo.completed_thin_pack(&revs)
            });
            had = tips;
        }
        let (stack, source) = stack(&packs, repo.hash);
        Oracle::ask(&repo).check(&stack);
        check_objects(&repo, &stack, &source);
        // Objects that completed a thin pack are known by their gid below, and below only.
        let dups: usize = stack.layers().iter().map(|layer| layer.graph.dups().len()).sum();
        let distinct: BTreeSet<Gid> = (0..packs.len())
            .flat_map(|layer| (0..stack.layers()[layer].graph.len()).map(move |position| (layer, position)))
            .map(|(layer, position)| stack.canonical(layer, position))
            .collect();
        prop_assert_eq!(distinct.len() + dups, stack.len() as usize);
    }
}

/// A repository with one of everything odd, and its pack.
fn odd(hash: HashKind) -> (Repo, Packed, BTreeMap<&'static str, ObjectId>) {
    let repo = Repo::new(hash);
    let mut ids = BTreeMap::new();
    let blob = repo.store("blob", b"");
    let other = repo.store("blob", b"other");
    let link = id(&"12".repeat(hash.len_in_bytes()));
    let empty = repo.tree(&[]);
    let sub = repo.tree(&[("100644", "a", blob), ("100755", "b", other)]);
    // Twice the same name, not sorted, the same tree twice, a mode with a leading zero, a submodule.
    let tree = repo.tree(&[
        ("100644", "z", blob),
        ("100644", "a", other),
        ("100644", "a", blob),
        ("40000", "d", sub),
        ("040000", "e", sub),
        ("160000", "sub", link),
        ("120000", "link", other),
    ]);
    let root = repo.commit(empty, &[]);
    let same = repo.commit(empty, &[root, root]);
    let full = repo.commit_at(tree, &[same], "12garbage");
    let back = repo.commit_at(empty, &[full], "99999999999999999999999");
    let tagged_blob = repo.store("blob", b"only a tag leads here");
    let tagged_tree = repo.tree(&[("40000", "sub", sub), ("100644", "x", tagged_blob)]);
    let tag_blob = repo.tag(tagged_blob, "blob");
    let tag_tree = repo.tag(tagged_tree, "tree");
    let tag_tag = repo.tag(repo.tag(back, "commit"), "tag");
    ids.extend([
        ("blob", blob),
        ("other", other),
        ("empty", empty),
        ("sub", sub),
        ("tree", tree),
        ("root", root),
    ]);
    ids.extend([("same", same), ("full", full), ("back", back), ("tagged_tree", tagged_tree)]);
    ids.extend([
        ("tagged_blob", tagged_blob),
        ("tag_blob", tag_blob),
        ("tag_tree", tag_tree),
        ("tag_tag", tag_tag),
    ]);
    repo.store("blob", b"nobody leads here");
    let all = repo.ids(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]);
    let packed = repo.pack_objects(&all);
    (repo, packed, ids)
}

#[test]
fn odd_objects_are_taken_as_git_takes_them() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let (repo, packed, ids) = odd(hash);
        let tips = ["tag_blob", "tag_tree", "tag_tag", "tagged_tree", "blob"].map(|name| ids[name]);
        let draft = packed.draft(hash, None, &tips).unwrap();
        let layer = Layer::open(packed.idx.clone(), draft.to_bytes().into(), hash).unwrap();
        let stack = Stack::open(vec![layer.into()]).unwrap();
        let gid = |name: &str| stack.lookup(&ids[name]).unwrap();
        let introduced = |name: &str| {
            let commit = stack.commit(gid(name)).unwrap();
            let sorted = |gids: &mut dyn Iterator<Item = Gid>| gids.collect::<BTreeSet<Gid>>();
            (sorted(&mut commit.first()), sorted(&mut commit.again()))
        };
        let set = |names: &[&str]| names.iter().map(|name| gid(name)).collect::<BTreeSet<Gid>>();
        assert_eq!(introduced("root"), (set(&["empty"]), set(&[])));
        assert_eq!(introduced("same"), (set(&[]), set(&[])));
        assert_eq!(introduced("full"), (set(&["tree", "sub", "blob", "other"]), set(&[])));
        assert_eq!(introduced("back"), (set(&[]), set(&["empty"])));
        assert_eq!(stack.commit(gid("same")).unwrap().parents().len(), 2);
        assert_eq!(stack.commit(gid("same")).unwrap().generation(), 2);
        assert_eq!(stack.commit(gid("root")).unwrap().date(), 1_000_000_000);
        let dates = ["full", "back"].map(|name| stack.commit(gid(name)).unwrap().date());
        assert_eq!(dates, [12, u64::MAX]);
        assert_eq!(stack.tag_target(gid("tag_tree")), Some(gid("tagged_tree")));
        assert_eq!(stack.peel(gid("tag_tag")), gid("back"));
        assert_eq!(stack.peel(gid("tag_blob")), gid("tagged_blob"));
        assert_eq!((stack.introducer(gid("tagged_tree")), stack.introducer(gid("back"))), (None, None));
        assert!(stack.commit(gid("blob")).is_none() && stack.tag_target(gid("back")).is_none());
        check_objects(&repo, &stack, &Packs(vec![packed]));
    }
}

#[test]
fn whatever_is_missing_is_named() {
    let (repo, _, ids) = odd(HashKind::Sha1);
    let all = repo.ids(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]);
    let without = |names: &[&str], tips: &[ObjectId]| {
        let kept: Vec<ObjectId> =
            all.iter().filter(|oid| !names.iter().any(|name| ids[name] == **oid)).copied().collect();
        repo.pack_objects(&kept).draft(HashKind::Sha1, None, tips)
    };
    let cases = [
        ("same", "full", Link::Parent),
        ("empty", "root", Link::RootTree),
        ("tree", "full", Link::RootTree),
        ("sub", "tree", Link::Entry),
        ("tagged_blob", "tag_blob", Link::Target),
        ("tagged_tree", "tag_tree", Link::Target),
    ];
    for (gone, needs, as_what) in cases {
        match without(&[gone], &[]) {
            Err(BuildError::Missing { oid, needed_by, link }) => {
                // Several objects may need it; which one is found first is not promised.
                assert_eq!((oid, link), (ids[gone], as_what));
                assert!(needed_by == ids[needs] || gone == "empty" || gone == "sub", "{gone}");
            }
            other => panic!("{gone}: {:?}", other.map(|_| ())),
        }
    }
    let error = without(&["same"], &[]).unwrap_err().to_string();
    assert!(error.contains("shallow"), "{error}");
    assert!(matches!(without(&["tagged_blob", "tag_blob"], &[]), Err(BuildError::Missing { .. })));
    // Only the tip leads to the tree now: without the tip nobody needs its blob.
    assert!(without(&["tagged_blob", "tag_blob", "tag_tree"], &[]).is_ok());
    let tip = without(&["tagged_blob", "tag_blob", "tag_tree"], &[ids["tagged_tree"]]);
    assert!(matches!(tip, Err(BuildError::Missing { oid, .. }) if oid == ids["tagged_blob"]));
    let tip = without(&["tag_tag"], &[ids["tag_tag"]]);
    assert!(matches!(tip, Err(BuildError::MissingTip { oid }) if oid == ids["tag_tag"]));
}

#[test]
fn what_git_could_not_walk_is_refused() {
    let repo = Repo::new(HashKind::Sha1);
    let blob = repo.store("blob", b"x");
    let tree = repo.tree(&[("100644", "x", blob)]);
    let commit = repo.commit(tree, &[]);
    let build = |objects: &[ObjectId]| repo.pack_objects(objects).draft(HashKind::Sha1, None, &[]);
    let good = [blob, tree, commit];
    assert!(build(&good).is_ok());
    for (kind, bytes) in [
        ("commit", format!("tree {tree}")),
        ("commit", format!("tree {tree}\nparent x\n")),
        ("commit", "author".to_owned()),
        ("tag", format!("object {tree}\ntype thing\n")),
        ("tag", "tag x".to_owned()),
    ] {
        let odd = repo.store(kind, bytes.as_bytes());
        let result = build(&[&good[..], &[odd]].concat());
        assert!(matches!(result, Err(BuildError::Malformed { oid, .. }) if oid == odd), "{bytes}");
    }
    let broken = repo.store("tree", b"100644 x\0short");
    let bad = repo.commit(broken, &[]);
    assert!(matches!(build(&[broken, bad]), Err(BuildError::Malformed { oid, .. }) if oid == broken));
    // A tree said to be a blob, a blob said to be a tree, a parent that is no commit, a tag that lies.
    let wrong = [
        repo.commit(repo.tree(&[("100644", "x", tree)]), &[]),
        repo.commit(repo.tree(&[("40000", "x", blob)]), &[]),
        repo.commit(tree, &[tree]),
        repo.commit(blob, &[]),
        repo.tag(blob, "commit"),
    ];
    let all = repo.ids(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype)"]);
    for odd in wrong {
        let trees = all
            .iter()
            .filter(|oid| **oid != broken && repo.git(&["cat-file", "-t", &oid.to_string()]) == "tree");
        let objects: Vec<ObjectId> = trees.chain([&blob, &odd]).copied().collect();
        assert!(matches!(build(&objects), Err(BuildError::WrongKind { .. })), "{odd}");
    }
}

#[test]
fn a_submodule_link_proves_nothing() {
    let repo = Repo::new(HashKind::Sha1);
    let blob = repo.store("blob", b"x");
    let link = repo.tree(&[("160000", "x", blob)]);
    let file = repo.tree(&[("100644", "x", blob)]);
    let before = repo.commit(link, &[]);
    let after = repo.commit(file, &[before]);
    let objects = [link, file, before, after];
    let packed = repo.pack_objects(&objects);
    let missing = packed.draft(HashKind::Sha1, None, &[]);
    assert!(matches!(missing, Err(BuildError::Missing { oid, .. }) if oid == blob));
    let (stack, _) = stack(&[repo.pack_objects(&[&objects[..], &[blob]].concat())], HashKind::Sha1);
    let after = stack.commit(stack.lookup(&after).unwrap()).unwrap();
    assert!(after.first().any(|gid| stack.oid(gid) == blob));
}

#[test]
fn a_pack_may_hold_almost_nothing_new() {
    let (repo, packed, ids) = odd(HashKind::Sha1);
    let all = repo.ids(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]);
    let newer = repo.commit(ids["sub"], &[ids["back"], ids["root"]]);
    let second = repo.pack_objects(&[&all[..], &[newer]].concat());
    let (stack, source) = stack(&[packed, second], HashKind::Sha1);
    assert_eq!(stack.layers()[1].graph.dups().len(), all.len());
    let gid = stack.lookup(&newer).unwrap();
    let commit = stack.commit(gid).unwrap();
    assert_eq!(commit.generation(), 5);
    assert_eq!(commit.tree(), stack.lookup(&ids["sub"]).unwrap());
    let again: BTreeSet<ObjectId> = commit.again().map(|gid| stack.oid(gid)).collect();
    assert_eq!(again, ["sub", "blob", "other"].map(|name| ids[name]).into());
    assert_eq!(commit.first().len(), 0);
    check_objects(&repo, &stack, &source);
    // Asked by the gid of a copy, the answer is that of the object below.
    for gid in stack.first_gid(1)..stack.len() {
        let (layer, position) = stack.layer_of(gid);
        let below = stack.canonical(layer, position);
        assert_eq!(
            stack.commit(gid).map(|commit| commit.date()),
            stack.commit(below).map(|commit| commit.date())
        );
        assert_eq!(stack.tag_target(gid), stack.tag_target(below));
        assert_eq!(stack.introducer(gid), stack.introducer(below));
        assert_eq!((stack.oid(gid), stack.size(gid)), (stack.oid(below), stack.size(below)));
    }
}

#[test]
fn an_empty_pack_is_a_layer_too() {
    let repo = Repo::new(HashKind::Sha1);
    let packed = repo.pack(&[], "");
    let draft = packed.draft(HashKind::Sha1, None, &[]).unwrap();
    let layer = Layer::open(packed.idx, draft.to_bytes().into(), HashKind::Sha1).unwrap();
    let stack = Stack::open(vec![layer.into()]).unwrap();
    assert!(stack.is_empty() && stack.lookup(&ObjectId::null(HashKind::Sha1)).is_none());
    assert!(stack.commit(0).is_none() && stack.oid(0).is_null());
}

#[test]
fn a_graph_does_not_depend_on_how_many_threads_build_it() {
    let repo = Repo::new(HashKind::Sha1);
    random_history(&repo, 7, 900);
    let lower: String = (1..=500).map(|n| format!("m{n}\n")).collect();
    let upper: String = (501..=900).map(|n| format!("m{n}\n")).collect();
    let packs = [
        repo.pack(&["--revs", "--delta-base-offset"], &lower),
        repo.completed_thin_pack(&format!("{upper}--not\n{lower}")),
    ];
    let (below, source) = stack(&packs[..1], HashKind::Sha1);
    for (packed, below) in [(&packs[0], None), (&packs[1], Some((&below, &source as &dyn Source)))] {
        let build = |threads| packed.draft_by(threads, HashKind::Sha1, below, &[]).unwrap();
        let alone = build(1);
        assert!(alone.commits.positions.len() > 4 * PIECE, "several pieces for each thread");
        for threads in [2, 3, 8] {
            assert!(build(threads).to_bytes() == alone.to_bytes(), "{threads} threads");
        }
    }
}

#[test]
fn a_build_can_be_watched_and_stopped() {
    let (_, packed, _) = odd(HashKind::Sha1);
    let last = AtomicU64::new(0);
    let build_with = |stop: &AtomicBool| {
        last.store(0, Ordering::Relaxed);
        build(BuildInput {
            pack: &packed.pack,
            idx: packed.idx.clone(),
            below: None,
            hash: HashKind::Sha1,
            tips: &[],
            facts: Some(PackFacts::of(&packed.pack)),
            cache_bytes: DEFAULT_CACHE,
            threads: 1,
            meter: &crate::pack::meter::Unlimited,
            progress: &|done, total| {
                assert!(done <= total && done >= last.load(Ordering::Relaxed));
                last.store(done, Ordering::Relaxed);
            },
            stop,
        })
    };
    let draft = build_with(&AtomicBool::new(false)).unwrap();
    assert_eq!(last.load(Ordering::Relaxed), 2 * draft.kinds.len() as u64);
    assert!(matches!(build_with(&AtomicBool::new(true)), Err(BuildError::Stopped)));
}

#[test]
fn packs_that_are_not_what_they_seem_are_refused() {
    let (repo, packed, _) = odd(HashKind::Sha1);
    let other = repo.pack_objects(&[repo.store("blob", b"x")]);
    let crossed = Packed { pack: packed.pack.clone(), idx: other.idx.clone() };
    assert!(matches!(crossed.draft(HashKind::Sha1, None, &[]), Err(BuildError::Pack(_))));
    assert!(
        Packed { pack: packed.pack.clone(), idx: packed.pack.clone() }
            .draft(HashKind::Sha1, None, &[])
            .is_err()
    );
    // The trailer stays, so that every byte before it is looked at by the builder alone.
    for at in 0..packed.pack.len() - 20 {
        let mut pack = packed.pack.to_vec();
        pack[at] ^= 0x55;
        let _ = Packed { pack: pack.into(), idx: packed.idx.clone() }.draft(HashKind::Sha1, None, &[]);
    }
    let draft = packed.draft(HashKind::Sha1, None, &[]).unwrap();
    let file = Bytes::from(draft.to_bytes());
    assert!(matches!(Layer::open(other.idx, file.clone(), HashKind::Sha1), Err(Damaged::Mismatch(_))));
    let gone = repo.pack_objects(&[repo.store("blob", b"y")]);
    assert!(matches!(Layer::open(gone.idx, file, HashKind::Sha1), Err(Damaged::Mismatch(_))));
}
