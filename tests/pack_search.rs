//! The search for deltas: what it finds makes packs that git takes, in no more bytes than git's own.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panics")]
mod pack_support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pack_support::*;
use packmirror::pack::history::shallow::{Deepen, deepen};
use packmirror::pack::meter::{Halt, Meter, Unlimited};
use packmirror::pack::plan::search::{Found, search};
use packmirror::pack::plan::select::SelectLimits;
use packmirror::pack::plan::stored::Stored;
use packmirror::pack::plan::{Hint, Plan, plan, plan_with};
use packmirror::pack::write::reader::PackReader;
use packmirror::pack::{self, PlanOptions, Query, Scratch, Selection, Stack};

const OPTIONS: PlanOptions = PlanOptions { ofs_delta: true, thin: false };

/// The pack of a plan, as it is stored.
fn stored(stack: &Stack, packs: &Packs, plan: &Plan) -> Vec<u8> {
    let scratch = Scratch::new(1 << 20, 1 << 30);
    let mut out = Vec::new();
    PackReader::new(Arc::new(plan.clone()), stack, packs, scratch, &Unlimited).read_to_end(&mut out).unwrap();
    out
}

/// Packs objects with what a search among them finds.
fn searched(stack: &Stack, packs: &Packs, mut selection: Selection<'_>) -> (Found, Plan, Vec<u8>) {
    let found = search(stack, packs, &selection.objects, &Unlimited).unwrap();
    let plan = plan_with(stack, &mut selection, Hint::Found(&found), OPTIONS, &Unlimited).unwrap();
    let pack = stored(stack, packs, &plan);
    (found, plan, pack)
}

/// A branch with another one merged into it now and then; each commit changes lines of some files.
fn merging(dir: &Path, commits: usize) {
    git(dir, &["init", "-q", "--bare", "."], b"");
    let mut dice = Dice(3);
    let files = 16;
    let mut texts: Vec<Vec<String>> =
        (0..files).map(|_| (0..80).map(|_| format!("{:016x}\n", dice.roll())).collect()).collect();
    let mut feed = String::new();
    for n in 1..=commits {
        let from = match n {
            1 => String::new(),
            _ if n % 7 == 0 => format!("from :{}\nmerge :{}\n", n - 3, n - 1),
            _ if n % 7 == 5 => format!("from :{}\n", n - 2),
            _ => format!("from :{}\n", n - 1),
        };
        let date = 1_000_000_000 + n;
        let head = format!("commit refs/heads/main\nmark :{n}\ncommitter A <a@example.com> {date} +0000");
        write!(feed, "{head}\ndata 1\nx\n{from}").unwrap();
        for _ in 0..4 {
            let file = dice.below(files);
            let line = dice.below(texts[file].len());
            texts[file][line] = format!("{:016x}{:016x}\n", dice.roll(), dice.roll());
            if dice.chance(30) {
                texts[file].push(format!("{:08x}\n", dice.roll()));
            }
            let text = texts[file].concat();
            write!(feed, "M 100644 inline src/{}/f{file}\ndata {}\n{text}\n", file % 4, text.len()).unwrap();
        }
    }
    git(dir, &["fast-import", "--quiet", "--force"], feed.as_bytes());
    git(dir, &["repack", "-adfq"], b"");
}

#[test]
fn a_fresh_shallow_clone_has_no_more_bytes_than_gits() {
    let dir = tempfile::tempdir().unwrap();
    merging(dir.path(), 240);
    let head = ids(&git(dir.path(), &["rev-parse", "main"], b""));
    let mut mirror = Mirror::new(HashKind::Sha1);
    for tip in ["main~60", "main~20", "main"] {
        mirror.sync(dir.path(), &ids(&git(dir.path(), &["rev-parse", tip], b"")), true);
    }
    let stack = mirror.stack();
    for depth in [1, 5, 20, 50] {
        let wants = gids(&stack, &head);
        let cut = deepen(&stack, &wants, &[], Deepen::Depth(depth), |_| true, &Unlimited).unwrap();
        let query = Query { wants: &wants, shallow: Some(&cut), ..Query::default() };
        let select =
            || pack::select(&stack, &mirror.packs, &query, &SelectLimits::default(), &Unlimited).unwrap();
        let plain = plan(&stack, &mut select(), OPTIONS, &Unlimited).unwrap();
        let plain = stored(&stack, &mirror.packs, &plain).len();
        let (_, _, ours) = searched(&stack, &mirror.packs, select());

        let mut spec = String::new();
        let boundary: Vec<ObjectId> = cut.shallow.iter().map(|gid| stack.oid(*gid)).collect();
        boundary.iter().for_each(|id| writeln!(spec, "--shallow {id}").unwrap());
        writeln!(spec, "{}", head[0]).unwrap();
        let args = ["pack-objects", "--revs", "--shallow", "--stdout", "--delta-base-offset", "-q"];
        let theirs = git(dir.path(), &args, spec.as_bytes());
        let bytes =
            format!("depth {depth}: {} bytes, git's {}, without a search {plain}", ours.len(), theirs.len());
        assert!(ours.len() * 10 <= theirs.len() * 11, "{bytes}");
        assert!(depth < 20 || ours.len() * 10 < plain * 9, "{bytes}");

        let mut client = Client::new(HashKind::Sha1);
        client.set_shallow(&boundary, &[]);
        client.take(&ours, false, true).unwrap();
        client.set_ref(head[0]);
        client.check().unwrap();
    }
}

#[test]
fn any_objects_are_packed_on_what_a_search_finds() {
    let mut dice = Dice(17);
    let mut all_found = 0;
    for hash in [HashKind::Sha1, HashKind::Sha256, HashKind::Sha1] {
        let history = History::random(&mut dice, hash, 40);
        let mut mirror = Mirror::new(hash);
        for n in [10, 25, history.commits.len()] {
            mirror.sync(&history.dir, &history.commits[..n], n != 25);
        }
        let stack = mirror.stack();
        let all: Vec<ObjectId> =
            history.objects(&lines(history.commits.iter().copied())).into_iter().collect();
        for part in [1, 2, 3, 5] {
            let ids: BTreeSet<ObjectId> = dice.some(&all, all.len() / part).into_iter().collect();
            let list: Vec<ObjectId> = ids.iter().copied().collect();
            let selection = Selection::of(gids(&stack, &list).into_iter().collect());
            let (found, _, pack) = searched(&stack, &mirror.packs, selection);
            let client = Client::new(hash);
            assert_eq!(client.take_filtered(&pack, true).as_ref(), Ok(&ids));
            all_found += found.len();

            // Kept, it is copied from its first entry to its last.
            let index = std::fs::read(idx(&client)).unwrap();
            mirror.push(pack.into(), index.into(), &[]);
            let kept = Stored::beside(mirror.layers.pop().unwrap(), &stack);
            mirror.packs.0.pop();
            let mut selection = Selection::of(gids(&stack, &list).into_iter().collect());
            let again = plan_with(&stack, &mut selection, Hint::Stored(&kept), OPTIONS, &Unlimited).unwrap();
            assert!(again.segments.len() == 2 && again.trailer.is_some(), "{again:?}");
        }
    }
    assert!(all_found > 0);
}

/// The index of the one pack of a client.
fn idx(client: &Client) -> PathBuf {
    let files = std::fs::read_dir(client.dir.join("objects/pack")).unwrap();
    let mut paths = files.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "idx")).unwrap()
}

/// As the checkout of a partial clone asks for them: without trees, which alone tell names.
#[test]
fn versions_without_names_lean_on_each_other_in_chains_of_fifty_at_most() {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "--bare", "."], b"");
    let mut dice = Dice(29);
    let mut lines: Vec<String> =
        (0..40).map(|_| format!("{:016x}{:016x}\n", dice.roll(), dice.roll())).collect();
    let mut feed = String::new();
    let versions = 260;
    for n in 0..versions {
        let line = dice.below(lines.len());
        lines[line] = format!("{:016x}{:016x}\n", dice.roll(), dice.roll());
        let text = lines.concat();
        let head = format!("commit refs/heads/main\ncommitter A <a@example.com> {} +0000", 1_000_000_000 + n);
        writeln!(feed, "{head}\ndata 1\nx\nM 100644 inline file\ndata {}\n{text}", text.len()).unwrap();
    }
    git(dir.path(), &["fast-import", "--quiet"], feed.as_bytes());
    let tip = ids(&git(dir.path(), &["rev-parse", "main"], b""));
    let mut mirror = Mirror::new(HashKind::Sha1);
    mirror.sync(dir.path(), &tip, true);
    let stack = mirror.stack();
    let listed = git(dir.path(), &["rev-list", "--objects", "--in-commit-order", "main"], b"");
    let text = String::from_utf8(listed).unwrap();
    let blobs: Vec<&str> = text.lines().filter(|line| line.ends_with(" file")).collect();
    let blobs: Vec<ObjectId> = ids(blobs.join("\n").as_bytes()).into_iter().step_by(2).collect();
    let selection = Selection::of(gids(&stack, &blobs).into_iter().collect());
    let (_, _, pack) = searched(&stack, &mirror.packs, selection);
    let client = Client::new(HashKind::Sha1);
    client.take_filtered(&pack, true).unwrap();
    let shown = git(&client.dir, &["verify-pack", "-v", idx(&client).to_str().unwrap()], b"");
    let shown = String::from_utf8(shown).unwrap();
    // Id, type, size, size in the pack, offset, and of deltas the depth and the base.
    let depths = shown.lines().filter_map(|line| line.split_whitespace().nth(5)?.parse::<u32>().ok());
    let depths: Vec<u32> = depths.collect();
    assert!(depths.len() * 10 > blobs.len() * 9, "{} of {} are deltas", depths.len(), blobs.len());
    let deepest = depths.iter().copied().max().unwrap();
    assert!((10..=50).contains(&deepest), "{depths:?}");
}

/// Stops a job after some steps, or gives it no memory.
struct Short(std::sync::atomic::AtomicU64);

impl Meter for Short {
    fn step(&self, n: u64) -> Result<(), Halt> {
        use std::sync::atomic::Ordering::Relaxed;
        let left = self.0.load(Relaxed).checked_sub(n).ok_or(Halt::Stopped)?;
        self.0.store(left, Relaxed);
        Ok(())
    }

    fn hold(&self, _: u64) -> Result<(), Halt> {
        Ok(())
    }

    fn release(&self, _: u64) {}
}

#[test]
fn a_search_ends_when_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    merging(dir.path(), 40);
    let mut mirror = Mirror::new(HashKind::Sha1);
    mirror.sync(dir.path(), &ids(&git(dir.path(), &["rev-parse", "main"], b"")), true);
    let stack = mirror.stack();
    let all = (0..stack.len()).collect();
    let takes = |steps: u64| {
        let result = search(&stack, &mirror.packs, &all, &Short(steps.into()));
        matches!(result, Err(packmirror::pack::filter::trees::TreeError::Halt(Halt::Stopped)))
    };
    assert!([0, 10, 100, 300].into_iter().all(takes));
    assert!(!takes(u64::MAX));
}
