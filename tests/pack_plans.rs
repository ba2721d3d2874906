//! Plans over packs that nobody makes by accident: deltas by id that stand before their base, layers
//! whose deltas lean on each other, a pack that holds an object twice.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panics")]
mod pack_support;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use gix_object::Kind;
use pack_support::*;
use packmirror::pack::history::shallow::{Deepen, deepen};
use packmirror::pack::meter::Unlimited;
use packmirror::pack::plan::select::SelectLimits;
use packmirror::pack::plan::stored::{STORED, Stored};
use packmirror::pack::plan::{Hint, Plan, Segment};
use packmirror::pack::{self, PlanOptions, Query, Scratch, Selection, Source, Stack};

fn id(hash: HashKind, object: &[u8]) -> ObjectId {
    gix_object::compute_hash(hash, Kind::Blob, object).unwrap()
}

/// Plans and writes `ids`, has git index the pack, and gives the plan.
fn send(stack: &Stack, packs: &Packs, ids: &[ObjectId], ofs_delta: bool) -> Arc<Plan> {
    let mut selection = Selection::of(gids(stack, ids).into_iter().collect());
    let options = PlanOptions { ofs_delta, thin: true };
    let plan = Arc::new(pack::plan::plan(stack, &mut selection, options, &Unlimited).unwrap());
    let mut out = Vec::new();
    pack::write::write(&plan, stack, packs, &mut Scratch::new(1 << 20, 1 << 30), &Unlimited, &mut out)
        .unwrap();
    let sent = Client::new(stack.hash()).take(&out, false, ofs_delta).unwrap();
    assert_eq!(sent, ids.iter().copied().collect::<BTreeSet<_>>());
    plan
}

fn subsets<T: Clone>(list: &[T]) -> impl Iterator<Item = Vec<T>> + '_ {
    (1..1usize << list.len())
        .map(|bits| (0..list.len()).filter(|i| bits >> i & 1 == 1).map(|i| list[i].clone()).collect())
}

#[test]
fn bases_come_first_however_they_are_stored() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let [a, b, c, d] = [&b"object a"[..], b"object b, longer", b"object c", b"object d"];
        let [a_id, b_id, c_id, d_id] = [a, b, c, d].map(|object| id(hash, object));
        let mut forge = Forge::new(hash, 4);
        forge
            .ref_delta(c_id, c.len(), a)
            .ofs_delta(0, a.len(), b)
            .ref_delta(d_id, d.len(), c)
            .whole(Kind::Blob, d);
        let (pack, idx) = forge.finish();
        let mut mirror = Mirror::new(hash);
        mirror.push(pack, idx, &[]);
        let stack = mirror.stack();
        for ids in subsets(&[a_id, b_id, c_id, d_id]) {
            for ofs_delta in [true, false] {
                let plan = send(&stack, &mirror.packs, &ids, ofs_delta);
                let with_base = [(a_id, c_id), (b_id, a_id), (c_id, d_id)];
                let lost =
                    with_base.iter().filter(|(id, base)| ids.contains(id) && !ids.contains(base)).count();
                assert_eq!(plan.anew as usize, lost, "only what lost its base is packed anew");
            }
        }
    }
}

#[test]
fn layers_that_lean_on_each_other_make_no_cycle() {
    let hash = HashKind::Sha1;
    let [x, y, z] = [&b"object x"[..], b"object y, longer", b"object z"];
    let [x_id, y_id, z_id] = [x, y, z].map(|object| id(hash, object));
    let mut mirror = Mirror::new(hash);
    // Below, x leans on y; above, y on x, and z, which is new, on both ways to store them.
    let (pack, idx) = Forge::new(hash, 2).whole(Kind::Blob, y).ref_delta(y_id, y.len(), x).finish();
    mirror.push(pack, idx, &[]);
    let mut forge = Forge::new(hash, 3);
    forge.whole(Kind::Blob, x).ofs_delta(0, x.len(), y).ofs_delta(1, y.len(), z);
    let (pack, idx) = forge.finish();
    mirror.push(pack, idx, &[]);
    let stack = mirror.stack();
    assert_eq!(stack.len(), 5);
    for ids in subsets(&[x_id, y_id, z_id]) {
        for ofs_delta in [true, false] {
            let plan = send(&stack, &mirror.packs, &ids, ofs_delta);
            assert_eq!(plan.objects as usize, ids.len(), "nothing twice");
        }
    }
    let plan = send(&stack, &mirror.packs, &[x_id, y_id, z_id], true);
    assert_eq!(plan.anew, 0, "both deltas are kept, across layers");
    assert!(plan.segments.iter().any(|segment| matches!(segment, Segment::Copy { layer: 1, .. })));
}

/// A pack with one object in it twice, once leaning on what leans on the other copy.
#[test]
fn an_object_that_leans_on_its_own_copy_is_packed_anew() {
    let hash = HashKind::Sha1;
    let [x, y] = [&b"object x"[..], b"object y, longer"];
    let [x_id, y_id] = [x, y].map(|object| id(hash, object));
    for x_first in [true, false] {
        let mut forge = Forge::new(hash, 3);
        if x_first {
            forge.whole(Kind::Blob, x).ofs_delta(0, x.len(), y).ref_delta(y_id, y.len(), x);
        } else {
            forge.ref_delta(y_id, y.len(), x).whole(Kind::Blob, x).ofs_delta(1, x.len(), y);
        }
        let (pack, idx) = forge.finish();
        let mut mirror = Mirror::new(hash);
        mirror.push(pack, idx, &[]);
        let stack = mirror.stack();
        for ids in subsets(&[x_id, y_id]) {
            for ofs_delta in [true, false] {
                send(&stack, &mirror.packs, &ids, ofs_delta);
            }
        }
    }
}

#[test]
fn distances_are_rewritten_only_where_something_is_left_out() {
    let hash = HashKind::Sha1;
    // A long chain: each leans on the one before; big enough that distances need two bytes.
    let objects: Vec<Vec<u8>> = (0..40u32)
        .map(|n| (0..90u32).flat_map(|k| (n * 7919 + k * k * 31).to_le_bytes()).collect())
        .collect();
    let mut forge = Forge::new(hash, 40);
    forge.whole(Kind::Blob, &objects[0]);
    for (n, object) in objects.iter().enumerate().skip(1) {
        forge.ofs_delta(if n % 5 == 0 { n / 2 } else { n - 1 }, 360, object);
    }
    let (pack, idx) = forge.finish();
    let len = pack.len() as u64;
    let mut mirror = Mirror::new(hash);
    mirror.push(pack, idx, &[]);
    let stack = mirror.stack();
    let ids: Vec<ObjectId> = objects.iter().map(|object| id(hash, object)).collect();
    let all = send(&stack, &mirror.packs, &ids, true);
    assert_eq!(all.segments.len(), 2, "header, and one copy of everything");
    assert_eq!(all.known_len, len);
    let mut dice = Dice(7);
    let (mut on_anew, mut across) = (0, 0);
    for _ in 0..20 {
        let left_out = 1 + dice.below(39);
        let rest: Vec<ObjectId> = ids.iter().copied().filter(|id| *id != ids[left_out]).collect();
        let plan = send(&stack, &mirror.packs, &rest, true);
        assert!(plan.segments.len() < 2 + 2 * 40, "{plan:?}");
        let plan = send(&stack, &mirror.packs, &dice.some(&ids, 20), true);
        on_anew += plan.segments.iter().filter(|s| matches!(s, Segment::OnAnew { .. })).count();
        across += plan.segments.iter().filter(|s| matches!(s, Segment::Across { .. })).count();
        send(&stack, &mirror.packs, &dice.some(&ids, 20), false);
    }
    assert!(on_anew > 0 && across > 0, "{on_anew} deltas on objects packed anew, {across} across such");
}

/// Distances that the plan does not know take one, two or three bytes, and what follows moves with them.
#[test]
fn deltas_on_what_is_packed_anew_name_it_by_distance() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let mut dice = Dice(3);
        for _ in 0..30 {
            let objects: Vec<Vec<u8>> = (0..24)
                .map(|_| {
                    let len = [5, 60, 200, 20_000][dice.below(4)] + dice.below(40);
                    (0..len).map(|_| dice.roll() as u8).collect()
                })
                .collect();
            let mut forge = Forge::new(hash, objects.len() as u32);
            let ids: Vec<ObjectId> = objects.iter().map(|object| id(hash, object)).collect();
            for (n, object) in objects.iter().enumerate() {
                let base = dice.below(n.max(1));
                match dice.below(5) {
                    _ if n == 0 => forge.whole(Kind::Blob, object),
                    0 => forge.whole(Kind::Blob, object),
                    1 => forge.ref_delta(ids[base], objects[base].len(), object),
                    _ => forge.ofs_delta(base, objects[base].len(), object),
                };
            }
            let (pack, idx) = forge.finish();
            let mut mirror = Mirror::new(hash);
            mirror.push(pack, idx, &[]);
            let stack = mirror.stack();
            let count = 1 + dice.below(24);
            send(&stack, &mirror.packs, &dice.some(&ids, count), true);
            send(&stack, &mirror.packs, &ids, true);
        }
    }
}

/// A file of lines that do not deflate, and its versions: in each, one line is another.
struct Versions {
    repo: tempfile::TempDir,
    commits: Vec<ObjectId>,
    blobs: Vec<ObjectId>,
}

impl Versions {
    fn new(hash: HashKind, count: usize) -> Self {
        let repo = tempfile::tempdir().unwrap();
        let format = format!("--object-format={hash}");
        git(repo.path(), &["init", "-q", "--bare", &format, "."], b"");
        let mut dice = Dice(11);
        let mut lines: Vec<String> =
            (0..300).map(|_| format!("{:016x}{:016x}\n", dice.roll(), dice.roll())).collect();
        let (mut commits, mut blobs) = (Vec::new(), Vec::new());
        let mut feed = Vec::new();
        for n in 0..count {
            lines[n * 7 % 300] = format!("{:016x}{:016x}\n", dice.roll(), dice.roll());
            let text = lines.concat();
            blobs.push(id(hash, text.as_bytes()));
            let from = if n == 0 { String::new() } else { format!("from :{n}\n") };
            let commit = format!(
                "commit refs/heads/main\nmark :{}\ncommitter A <a@example.com> {} +0000\ndata 1\nx\n{from}M 100644 inline file\ndata {}\n{text}\n",
                n + 1,
                1_000_000_000 + n,
                text.len(),
            );
            feed.extend_from_slice(commit.as_bytes());
        }
        git(repo.path(), &["fast-import", "--quiet"], &feed);
        let listed = git(repo.path(), &["rev-list", "--reverse", "main"], b"");
        commits.extend(self::ids(&listed));
        Self { repo, commits, blobs }
    }
}

fn fetch(
    stack: &Stack,
    packs: &Packs,
    wants: &[ObjectId],
    haves: &[ObjectId],
    depth: Option<u32>,
) -> (Arc<Plan>, Vec<u8>) {
    let (wants, haves) = (gids(stack, wants), gids(stack, haves));
    let cut = if depth.is_some() { haves.clone() } else { Vec::new() };
    let shallow =
        depth.map(|depth| deepen(stack, &wants, &cut, Deepen::Depth(depth), |_| true, &Unlimited).unwrap());
    let query = Query {
        wants: &wants,
        haves: &haves,
        client_shallow: &cut,
        shallow: shallow.as_ref(),
        ..Query::default()
    };
    let mut selection = pack::select(stack, packs, &query, &SelectLimits::default(), &Unlimited).unwrap();
    let plan = Arc::new(
        pack::plan::plan(stack, &mut selection, PlanOptions { ofs_delta: true, thin: true }, &Unlimited)
            .unwrap(),
    );
    let mut out = Vec::new();
    pack::write::write(&plan, stack, packs, &mut Scratch::new(1 << 20, 1 << 30), &Unlimited, &mut out)
        .unwrap();
    (plan, out)
}

/// git stores the newest version whole and the older ones as deltas: what every increment brings would go out whole.
#[test]
fn a_new_version_is_a_delta_on_the_one_that_the_client_has() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let versions = Versions::new(hash, 12);
        let mut mirror = Mirror::new(hash);
        mirror.sync(versions.repo.path(), &versions.commits[11..], true);
        let stack = mirror.stack();
        for (have, depth) in [(10, None), (3, None), (8, Some(1))] {
            let mut client = Client::new(hash);
            if depth.is_some() {
                client.set_shallow(&versions.commits[have..=have], &[]);
            }
            let (_, pack) = fetch(&stack, &mirror.packs, &versions.commits[have..=have], &[], depth);
            client.take(&pack, false, true).unwrap();
            let (plan, pack) =
                fetch(&stack, &mirror.packs, &versions.commits[11..], &versions.commits[have..=have], depth);
            let joined =
                plan.segments.iter().filter(|segment| matches!(segment, Segment::Anew { join: Some(_), .. }));
            assert!(joined.count() > 0, "have {have}: {plan:?}");
            assert!(
                pack.len() < 4_000,
                "have {have}: {} bytes, with one version alone having 5,000",
                pack.len()
            );
            if depth.is_some() {
                client.set_shallow(&versions.commits[11..], &[]);
            }
            let sent = client.take(&pack, true, true).unwrap();
            assert!(sent.contains(&versions.blobs[11]));
        }
    }
}

#[test]
fn objects_whose_base_is_left_out_lean_on_each_other() {
    let hash = HashKind::Sha1;
    let versions = Versions::new(hash, 12);
    let mut mirror = Mirror::new(hash);
    mirror.sync(versions.repo.path(), &versions.commits[11..], true);
    let stack = mirror.stack();
    // Every other version, without the one that all lean on in the end.
    let wanted: Vec<ObjectId> = versions.blobs.iter().copied().take(11).step_by(2).collect();
    let mut selection = Selection::of(gids(&stack, &wanted).into_iter().collect());
    let plan = Arc::new(
        pack::plan::plan(&stack, &mut selection, PlanOptions { ofs_delta: true, thin: false }, &Unlimited)
            .unwrap(),
    );
    assert!(plan.joins.len() + 1 >= wanted.len(), "{plan:?}");
    let mut out = Vec::new();
    pack::write::write(
        &plan,
        &stack,
        &mirror.packs,
        &mut Scratch::new(1 << 20, 1 << 30),
        &Unlimited,
        &mut out,
    )
    .unwrap();
    assert!(out.len() < 8_000, "{} bytes for {} versions of 5,000", out.len(), wanted.len());
    let sent = Client::new(hash).take(&out, false, true).unwrap();
    assert_eq!(sent, wanted.iter().copied().collect::<BTreeSet<_>>());
}

/// A client that is sent again what it has: a file that was moved, below a shallow boundary.
#[test]
fn what_is_sent_anyway_is_no_base_of_what_it_leans_on() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let repo = tempfile::tempdir().unwrap();
        let format = format!("--object-format={hash}");
        git(repo.path(), &["init", "-q", "--bare", &format, "."], b"");
        let mut dice = Dice(5);
        let mut noise = |lines: usize| -> String {
            (0..lines).map(|_| format!("{:016x}{:016x}\n", dice.roll(), dice.roll())).collect()
        };
        let old = noise(300);
        let new = old.clone() + &noise(30);
        let commit = |mark: usize, rest: String| {
            let by = format!("committer A <a@example.com> {} +0000", 1_000_000_000 + mark);
            format!("commit refs/heads/main\nmark :{mark}\n{by}\ndata 1\nx\n{rest}\n")
        };
        let file = |name: &str, text: &str| format!("M 100644 inline {name}\ndata {}\n{text}\n", text.len());
        // The client has the second commit alone, so that what it has came in with one that it has not.
        let feed = commit(1, file("old", &old))
            + &commit(2, format!("from :1\n{}", file("other", "x")))
            + &commit(3, format!("from :2\nD old\n{}{}", file("moved", &old), file("file", &new)));
        git(repo.path(), &["fast-import", "--quiet"], feed.as_bytes());
        let commits = ids(&git(repo.path(), &["rev-list", "--reverse", "main"], b""));
        let mut mirror = Mirror::new(hash);
        mirror.sync(repo.path(), &commits[2..], true);
        let stack = mirror.stack();
        let [old, new] = [old, new].map(|text| stack.lookup(&id(hash, text.as_bytes())).unwrap());
        assert_eq!(stack.entry(old).base, Some(new), "the older one leans on the newer");
        let mut client = Client::new(hash);
        client.set_shallow(&commits[1..2], &[]);
        client.take(&fetch(&stack, &mirror.packs, &commits[1..2], &[], Some(1)).1, false, true).unwrap();
        let (plan, pack) = fetch(&stack, &mirror.packs, &commits[2..], &commits[1..2], Some(1));
        client.set_shallow(&commits[2..], &[]);
        let sent = client.take(&pack, true, true).unwrap();
        assert!(sent.contains(&stack.oid(new)) && sent.contains(&stack.oid(old)), "{plan:?}");
        assert!(plan.joins.iter().all(|path| path.last() != Some(&old)), "{plan:?}");
    }
}

/// Packs of a stack, and that of a stored answer.
struct Beside<'a>(&'a Packs, &'a [u8]);

impl Source for Beside<'_> {
    fn read(&self, layer: usize, range: std::ops::Range<u64>) -> std::io::Result<Bytes> {
        if layer == STORED as usize {
            return Ok(Bytes::copy_from_slice(&self.1[range.start as usize..range.end as usize]));
        }
        self.0.read(layer, range)
    }
}

/// Plans and writes `ids` with a stored answer or without one, has git index the pack, and gives the plan and the pack.
fn send_with(
    (stack, packs): (&Stack, &Packs),
    ids: &BTreeSet<ObjectId>,
    stored: Option<(&Stored, &[u8])>,
    ofs_delta: bool,
) -> (Plan, Vec<u8>) {
    let list: Vec<ObjectId> = ids.iter().copied().collect();
    let mut selection = Selection::of(gids(stack, &list).into_iter().collect());
    let options = PlanOptions { ofs_delta, thin: false };
    let answer = stored.map(|(stored, _)| stored);
    let plan = pack::plan::plan_with(
        stack,
        &mut selection,
        answer.map_or(Hint::None, Hint::Stored),
        options,
        &Unlimited,
    )
    .unwrap();
    let source = Beside(packs, stored.map_or(&[], |(_, pack)| pack));
    let mut out = Vec::new();
    let mut scratch = Scratch::new(1 << 20, 1 << 30);
    pack::write::write(&Arc::new(plan.clone()), stack, &source, &mut scratch, &Unlimited, &mut out).unwrap();
    assert_eq!(Client::new(stack.hash()).take_filtered(&out, ofs_delta).as_ref(), Ok(ids));
    (plan, out)
}

#[test]
fn what_a_stored_answer_holds_is_copied_from_it() {
    let mut dice = Dice(11);
    for hash in [HashKind::Sha1, HashKind::Sha256, HashKind::Sha1] {
        let history = History::random(&mut dice, hash, 40);
        let mut mirror = Mirror::new(hash);
        for n in [10, 25, history.commits.len()] {
            mirror.sync(&history.dir, &history.commits[..n], true);
        }
        let stack = mirror.stack();
        let all: Vec<ObjectId> =
            history.objects(&lines(history.commits.iter().copied())).into_iter().collect();
        let mut fewer = 0;
        for _ in 0..4 {
            let held: BTreeSet<ObjectId> = dice.some(&all, all.len() / 3).into_iter().collect();
            let (made, answer) = send_with((&stack, &mirror.packs), &held, None, true);
            let idx = indexed(hash, &answer);
            mirror.push(answer.clone().into(), idx, &[]);
            let layer = mirror.layers.pop().unwrap();
            mirror.packs.0.pop();
            let stored = Stored::beside(layer, &stack);
            let with = Some((&stored, &answer[..]));

            let (again, same) = send_with((&stack, &mirror.packs), &held, with, true);
            assert!(same == answer && again.trailer == Some(trailer(&answer, hash)));
            assert_eq!((again.segments.len(), again.anew), (2, 0), "header, and one copy of everything");
            for ofs_delta in [true, false] {
                let other: BTreeSet<ObjectId> = dice.some(&all, all.len() / 2).into_iter().collect();
                let more: BTreeSet<ObjectId> = other.union(&held).copied().collect();
                let less: BTreeSet<ObjectId> = dice
                    .some(&held.iter().copied().collect::<Vec<_>>(), held.len() / 2)
                    .into_iter()
                    .collect();
                for ids in [other, more, less] {
                    let (plan, _) = send_with((&stack, &mirror.packs), &ids, with, ofs_delta);
                    let (plain, _) = send_with((&stack, &mirror.packs), &ids, None, ofs_delta);
                    assert!(plan.trailer.is_none() || ids == held);
                    fewer += i64::from(plain.anew) - i64::from(plan.anew);
                }
            }
            assert!(made.anew > 0, "the answer holds what is packed anew otherwise");
        }
        assert!(fewer > 0, "what is stored is not packed anew again");
    }
}

fn trailer(pack: &[u8], hash: HashKind) -> ObjectId {
    ObjectId::try_from(&pack[pack.len() - hash.len_in_bytes()..]).unwrap()
}

/// The `.idx` that git makes of a pack.
fn indexed(hash: HashKind, pack: &[u8]) -> Bytes {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "--bare", &format!("--object-format={hash}"), "."], b"");
    std::fs::write(dir.path().join("answer.pack"), pack).unwrap();
    git(dir.path(), &["index-pack", "answer.pack"], b"");
    std::fs::read(dir.path().join("answer.idx")).unwrap().into()
}
