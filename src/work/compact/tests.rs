//! Layers of histories that real git packed are merged, and real git looks at the result.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};

use super::merge::{all, lay_out};
use super::seal::{Broken, check};
use crate::pack::filter::trees::TreeLimits;
use crate::pack::layer::Layer;
use crate::pack::meter::Unlimited;
use crate::pack::plan::depth::too_deep;
use crate::pack::testing::{Packed, Packs, Repo, id, random_history, stack};
use crate::pack::write::reader::PackReader;
use crate::pack::{Reach, Scratch, Stack};

/// A history in layers, as pushes bring it: each a thin pack that was completed, on top of those before.
fn layered(hash: HashKind, seed: u64, commits: usize, pushes: usize) -> (Repo, Vec<Packed>) {
    let repo = Repo::new(hash);
    random_history(&repo, seed, commits);
    let tips: Vec<String> = (1..=commits).map(|n| repo.git(&["rev-parse", &format!("m{n}")])).collect();
    let each = commits.div_ceil(pushes);
    let packs = (0..pushes).map(|push| {
        let wanted = &tips[push * each..commits.min((push + 1) * each)];
        let known = tips[..push * each].iter().map(|tip| format!("^{tip}\n")).collect::<String>();
        let wanted = wanted.iter().map(|tip| format!("{tip}\n")).collect::<String>();
        if push == 0 {
            repo.pack(&["--revs", "--delta-base-offset"], &wanted)
        } else {
            repo.completed_thin_pack(&(wanted + &known))
        }
    });
    let packs = packs.collect();
    (repo, packs)
}

/// Merges the layers from `from` on, and gives the pack with git's own index of it.
fn merged(packs: &[Packed], whole: &Stack, from: usize) -> Packed {
    merged_but(packs, whole, from, None)
}

/// The same with what is in `keep` alone.
fn merged_but(packs: &[Packed], whole: &Stack, from: usize, keep: Option<&Reach>) -> Packed {
    let part = Stack::open_part(whole.layers()[from..].to_vec()).unwrap();
    let plan = Arc::new(lay_out(&part, keep.map(Reach::objects), &Unlimited).unwrap());
    let source = Packs(packs[from..].to_vec());
    let deep = too_deep(&part, &all(&part), &Unlimited).unwrap();
    assert!(plan.anew as usize == deep.len() || keep.is_some(), "all other deltas are copied");
    let mut reader = PackReader::new(plan, &part, &source, Scratch::new(1 << 20, u64::MAX), &Unlimited);
    let mut pack = Vec::new();
    reader.read_to_end(&mut pack).unwrap();
    // In an empty repository what leans on an object outside is refused, and strictly what leads to one.
    let empty = Repo::new(whole.hash());
    let path = empty.path().join("merged.pack");
    std::fs::write(&path, &pack).unwrap();
    let strict: &[&str] = if from == 0 { &["--strict"] } else { &[] };
    empty.git(&[&["index-pack"], strict, &["merged.pack"]].concat());
    empty.git(&["verify-pack", "merged.pack"]);
    let idx = std::fs::read(path.with_extension("idx")).unwrap();
    Packed { pack: pack.into(), idx: idx.into() }
}

fn ids(layers: &[Arc<Layer>]) -> BTreeSet<ObjectId> {
    let ids = |layer: &Arc<Layer>| (0..layer.graph.len()).filter_map(|n| layer.oid(n)).collect::<Vec<_>>();
    layers.iter().flat_map(ids).collect()
}

/// The layer that a merged pack makes on `below`.
fn layer(packed: &Packed, below: &[Packed], whole: &Stack, tips: &[ObjectId]) -> Layer {
    let layers = whole.layers()[..below.len()].to_vec();
    let (stack, source) = (Stack::open(layers).unwrap(), Packs(below.to_vec()));
    let draft = packed.draft(whole.hash(), Some((&stack, &source)), tips).unwrap();
    Layer::open(packed.idx.clone(), Bytes::from(draft.to_bytes()), whole.hash()).unwrap()
}

#[test]
fn a_merged_layer_holds_what_its_inputs_hold_once_and_needs_no_other() {
    for (hash, seed) in [(HashKind::Sha1, 1), (HashKind::Sha1, 2), (HashKind::Sha256, 3)] {
        let (repo, packs) = layered(hash, seed, 60, 8);
        let (whole, _) = stack(&packs, hash);
        let tips: Vec<ObjectId> =
            repo.git(&["for-each-ref", "--format=%(objectname)", "refs/heads"]).lines().map(id).collect();
        for from in [0, 3, 6] {
            let packed = merged(&packs, &whole, from);
            let made = Arc::new(layer(&packed, &packs[..from], &whole, &tips));
            let inputs = &whole.layers()[from..];
            assert_eq!(ids(std::slice::from_ref(&made)), ids(inputs));
            assert_eq!(made.graph.len() as usize, ids(inputs).len(), "each object once");
            check(inputs, &made, &whole.layers()[..from], &tips, |_| true).unwrap();
            let entries: usize = packs[from..].iter().map(|packed| packed.pack.len()).sum();
            assert!(packed.pack.len() <= entries, "{} of {entries} bytes", packed.pack.len());
            // What lies above finds what it leans on.
            let layers = [&whole.layers()[..from], &[Arc::clone(&made)]].concat();
            Stack::open(layers).unwrap();
        }
        // A later push lies on the merged layer as it lay on its inputs.
        let packed = merged(&packs[..5], &stack(&packs[..5], hash).0, 2);
        let made = Arc::new(layer(&packed, &packs[..2], &whole, &[]));
        let layers = [&whole.layers()[..2], &[made], &whole.layers()[5..]].concat();
        assert_eq!(ids(&layers), ids(whole.layers()));
        Stack::open(layers).unwrap();
    }
}

/// The longest chain of deltas of a pack, as git counts it.
fn longest_chain(packed: &Packed) -> u32 {
    let repo = Repo::new(HashKind::Sha1);
    std::fs::write(repo.path().join("a.pack"), &packed.pack).unwrap();
    repo.git(&["index-pack", "a.pack"]);
    let said = repo.git(&["verify-pack", "-v", "a.pack"]);
    let chains =
        said.lines().filter_map(|line| line.strip_prefix("chain length = ")?.split(':').next()?.parse().ok());
    chains.max().unwrap_or(0)
}

#[test]
fn chains_of_deltas_do_not_grow_with_each_push() {
    const PUSHES: usize = 130;
    let repo = Repo::new(HashKind::Sha1);
    let mut lines: Vec<String> =
        (0..200u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let (mut tip, mut packs) = (None, Vec::new());
    for push in 0..PUSHES {
        lines[push % 200] = format!("changed by push {push}");
        let blob = repo.store("blob", lines.join("\n").as_bytes());
        let commit = repo.commit(repo.tree(&[("100644", "f", blob)]), tip.as_slice());
        packs.push(match tip.replace(commit) {
            None => repo.pack(&["--revs"], &format!("{commit}\n")),
            Some(before) => repo.completed_thin_pack(&format!("{commit}\n^{before}\n")),
        });
    }
    // As it happens: a few of the highest at a time, and now and then all.
    let mut stored: Vec<Packed> = Vec::new();
    let mut anew = 0;
    for packed in packs {
        stored.push(packed);
        if stored.len() == 14 {
            let part = stack(&stored, HashKind::Sha1).0;
            anew += lay_out(&part, None, &Unlimited).unwrap().anew;
            stored = vec![merged(&stored, &part, 0)];
        }
    }
    let part = stack(&stored, HashKind::Sha1).0;
    let packed = merged(&stored, &part, 0);
    let longest = longest_chain(&packed);
    assert!((30..=50).contains(&longest), "{longest}");
    assert!((1..20).contains(&anew), "{anew} of {PUSHES} versions are whole");
    assert_eq!(ids(&[Arc::new(layer(&packed, &[], &part, &[tip.unwrap()]))]).len(), 3 * PUSHES);
}

#[test]
fn the_seal_finds_what_a_merge_lost_or_made_up() {
    let (repo, packs) = layered(HashKind::Sha1, 4, 30, 3);
    let (whole, _) = stack(&packs, repo.hash);
    let (below, inputs) = whole.layers().split_at(1);
    let packed = merged(&packs, &whole, 1);
    let all: Vec<ObjectId> = ids(inputs).into_iter().collect();
    let made = layer(&packed, &packs[..1], &whole, &[]);
    let tip = id(&repo.git(&["rev-parse", "m30"]));
    check(inputs, &made, below, &[tip], |_| true).unwrap();

    // A blob that nothing in the merged layers needs is left out: the graph does not miss it.
    let spare = repo.store("blob", b"spare");
    let with = layer(&repo.pack_objects(&[&all[..], &[spare]].concat()), &packs[..1], &whole, &[]);
    let with = [Arc::new(with)];
    assert_eq!(check(&with, &made, below, &[], |_| true), Err(Broken::Lost(spare)));
    check(&with, &made, below, &[], |oid| *oid != spare).unwrap();
    let kept = made.oid(0).unwrap();
    assert_eq!(check(inputs, &made, below, &[], |oid| *oid != kept), Err(Broken::Kept(kept)));
    assert_eq!(check(inputs, &with[0], below, &[], |_| true), Err(Broken::Foreign(spare)));
    assert_eq!(check(inputs, &made, below, &[spare], |_| true), Err(Broken::Tip(spare)));
}

#[test]
fn what_is_reachable_is_the_same_in_the_merged_stack() {
    let (repo, packs) = layered(HashKind::Sha1, 5, 40, 5);
    let (whole, source) = stack(&packs, repo.hash);
    let reach = |stack: &Stack, packs: &Packs, tip: &str| {
        let tip = stack.lookup(&id(&repo.git(&["rev-parse", tip]))).unwrap();
        Reach::new(stack, packs, &[tip], &TreeLimits::default(), &Unlimited).unwrap()
    };
    let packed = merged(&packs, &whole, 2);
    let made = Arc::new(layer(&packed, &packs[..2], &whole, &[]));
    let after = Stack::open([&whole.layers()[..2], &[made]].concat()).unwrap();
    let after_source = Packs([&packs[..2], &[packed]].concat());
    let old = reach(&whole, &source, "m35");
    let first = whole.first_gid(2);
    let moved = old.moved(first, &after, |gid| after.lookup(&whole.oid(gid))).unwrap();
    assert_eq!(moved, reach(&after, &after_source, "m35"));
    let lost = whole.oid(old.objects().max().unwrap());
    let to = |gid| after.lookup(&whole.oid(gid)).filter(|_| whole.oid(gid) != lost);
    assert_eq!(old.moved(first, &after, to), None, "not all of it is there");
}

#[test]
fn what_nobody_reaches_is_left_out_and_what_leaned_on_it_is_whole() {
    let mut anew = 0;
    for seed in 6..12 {
        let (repo, packs) = layered(HashKind::Sha1, seed, 40, 4);
        let (whole, source) = stack(&packs, repo.hash);
        let tips = ["m20", "m31"].map(|tip| id(&repo.git(&["rev-parse", tip])));
        let gids = tips.map(|tip| whole.lookup(&tip).unwrap());
        let reach = Reach::new(&whole, &source, &gids, &TreeLimits::default(), &Unlimited).unwrap();
        let plan = lay_out(&whole, Some(reach.objects()), &Unlimited).unwrap();
        anew += plan.anew;
        let packed = merged_but(&packs, &whole, 0, Some(&reach));
        let made = layer(&packed, &[], &whole, &tips);
        let is_kept = |oid: &ObjectId| whole.lookup(oid).is_some_and(|gid| reach.contains(gid));
        check(whole.layers(), &made, &[], &tips, is_kept).unwrap();
        let listed = repo.ids(&["rev-list", "--objects", "m20", "m31"]).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(ids(&[Arc::new(made)]), listed, "as git lists what is reachable");
    }
    assert!(anew > 0, "something leaned on what was left out");
}
