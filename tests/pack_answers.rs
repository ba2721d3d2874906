//! Answers to fetches against git's own: random histories, layers, clients and requests.
//!
//! Every answer is indexed strictly by git in a repository that holds what the client has, and must
//! leave it whole. What is sent beyond git's own answer is counted.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panics")]
mod pack_support;

use std::collections::BTreeSet;
use std::sync::Arc;

use bstr::BStr;
use bytes::Bytes;
use pack_support::*;
use packmirror::git::filter::Filter;
use packmirror::pack::filter::rules::{BadRules, Rules, SparseBlobs};
use packmirror::pack::filter::trees::TreeError;
use packmirror::pack::history::negotiate::Negotiation;
use packmirror::pack::history::shallow::{Deepen, Shallow, deepen};
use packmirror::pack::meter::Unlimited;
use packmirror::pack::plan::select::SelectLimits;
use packmirror::pack::{self, Gid, PlanOptions, Query, Reach, Scratch, Stack};

/// A fetch as a client would send it.
#[derive(Debug, Clone, Default)]
struct Request {
    wants: Vec<ObjectId>,
    haves: Vec<ObjectId>,
    shallow: Vec<ObjectId>,
    depth: Option<u32>,
    relative: bool,
    since: Option<u64>,
    not: Vec<(String, ObjectId)>,
    filter: Option<String>,
    include_tag: bool,
    thin: bool,
    ofs_delta: bool,
}

impl Request {
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let ids =
            |name: &str, ids: &[ObjectId]| ids.iter().map(|id| format!("{name} {id}")).collect::<Vec<_>>();
        lines.extend(ids("want", &self.wants));
        lines.extend(ids("have", &self.haves));
        lines.extend(ids("shallow", &self.shallow));
        lines.extend(self.depth.map(|depth| format!("deepen {depth}")));
        lines.extend(self.since.map(|since| format!("deepen-since {since}")));
        lines.extend(self.not.iter().map(|(name, _)| format!("deepen-not {name}")));
        lines.extend(self.filter.iter().map(|filter| format!("filter {filter}")));
        let flags = [
            (self.relative, "deepen-relative"),
            (self.include_tag, "include-tag"),
            (self.thin, "thin-pack"),
            (self.ofs_delta, "ofs-delta"),
            (true, "no-progress"),
        ];
        lines.extend(flags.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned()));
        lines
    }
}

struct Answer {
    shallow: Vec<ObjectId>,
    unshallow: Vec<ObjectId>,
    pack: Vec<u8>,
    objects: u64,
}

/// Blobs of patterns, named by their ids.
struct ById<'a> {
    stack: &'a Stack,
    packs: &'a Packs,
}

impl SparseBlobs for ById<'_> {
    fn find(&mut self, name: &BStr) -> Result<Option<Gid>, TreeError> {
        Ok(ObjectId::from_hex(name).ok().and_then(|oid| self.stack.lookup(&oid)))
    }

    fn read(&mut self, blob: Gid) -> Result<Bytes, BadRules> {
        let mut scratch = Scratch::new(1 << 20, 1 << 30);
        Ok(pack::layer::decode::object(self.stack, self.packs, blob, &mut scratch, &Unlimited)
            .map_err(TreeError::from)?
            .1)
    }
}

/// Does what the server will do; `Err` if nothing is selected for a shallow request.
fn answer(stack: &Stack, packs: &Packs, tags: &[ObjectId], request: &Request) -> Result<Answer, String> {
    let wants = gids(stack, &request.wants);
    let mut talk = Negotiation::new(stack);
    let known = request.haves.iter().filter_map(|id| stack.lookup(id));
    known.for_each(|gid| _ = talk.got(gid));
    let client: Vec<Gid> = request.shallow.iter().filter_map(|id| stack.lookup(id)).collect();
    let not: Vec<Gid> = request.not.iter().filter_map(|(_, id)| stack.lookup(id)).collect();
    let how = match request.depth {
        Some(depth) if request.relative => Some(Deepen::Relative(depth)),
        Some(depth) => Some(Deepen::Depth(depth)),
        None if request.since.is_some() || !not.is_empty() => {
            Some(Deepen::RevList { since: request.since, not: &not })
        }
        None => None,
    };
    let shallow = how
        .map(|how| deepen(stack, &wants, &client, how, |_| true, &Unlimited))
        .transpose()
        .map_err(|error| error.to_string())?;
    let rules = request.filter.as_ref().map(|spec| {
        let filter = Filter::parse(spec.as_bytes()).unwrap();
        Rules::compile(&filter, &mut ById { stack, packs }, &Unlimited).unwrap()
    });
    let tags: Vec<(Gid, Gid)> = gids(stack, tags).into_iter().map(|tag| (tag, stack.peel(tag))).collect();
    let query = Query {
        wants: &wants,
        haves: talk.common(),
        client_shallow: &client,
        shallow: shallow.as_ref(),
        filter: rules.as_ref(),
        tags: if request.include_tag { &tags } else { &[] },
    };
    let mut selection = pack::select(stack, packs, &query, &SelectLimits::default(), &Unlimited).unwrap();
    let options = PlanOptions { ofs_delta: request.ofs_delta, thin: request.thin };
    let plan = Arc::new(pack::plan::plan(stack, &mut selection, options, &Unlimited).unwrap());
    let mut pack = Vec::new();
    let mut scratch = Scratch::new(16 << 20, 1 << 30);
    let written = pack::write::write(&plan, stack, packs, &mut scratch, &Unlimited, &mut pack).unwrap();
    assert_eq!(written.bytes, pack.len() as u64);
    if plan.anew == 0 {
        assert_eq!(plan.known_len, written.bytes);
    }
    let Shallow { shallow, unshallow } = shallow.unwrap_or_default();
    let oids = |gids: Vec<Gid>| gids.into_iter().map(|gid| stack.oid(gid)).collect();
    Ok(Answer { shallow: oids(shallow), unshallow: oids(unshallow), pack, objects: selection.objects.len() })
}

/// Says which of the objects that git sends must be sent by us: not what the client has, and not a
/// tag that git takes along for what the client has, having looked at that as a base of deltas.
fn due<'a>(
    stack: &'a Stack,
    request: &'a Request,
    before: &'a BTreeSet<ObjectId>,
) -> impl Fn(&ObjectId) -> bool + 'a {
    move |id| {
        let peeled = stack.oid(stack.peel(stack.lookup(id).unwrap()));
        !before.contains(id) && (peeled == *id || request.wants.contains(id) || !before.contains(&peeled))
    }
}

/// A history with its layers.
fn world(dice: &mut Dice, hash: HashKind) -> (History, Mirror) {
    let commits = 8 + dice.below(40);
    let history = History::random(dice, hash, commits);
    let mut mirror = Mirror::new(hash);
    let layers = 1 + dice.below(4);
    let ofs_delta = dice.chance(80);
    let mut done = 0;
    for layer in 1..=layers {
        let upto = if layer == layers {
            history.commits.len()
        } else {
            done + dice.below(history.commits.len() - done)
        };
        let mut tips = history.commits[done..upto].to_vec();
        if layer == layers {
            tips.extend(&history.tags);
        }
        if !tips.is_empty() {
            mirror.sync(&history.dir, &tips, ofs_delta);
        }
        done = upto;
    }
    (history, mirror)
}

fn hash_for(seed: u64) -> HashKind {
    if seed.is_multiple_of(3) { HashKind::Sha256 } else { HashKind::Sha1 }
}

/// A client fetches again and again, sometimes shallow, and must stay whole.
#[test]
fn a_client_stays_whole() {
    for seed in seed::rounds(24) {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let (history, mirror) = world(&mut dice, hash_for(seed));
        let stack = mirror.stack();
        let mut client = Client::new(mirror.hash);
        let mut got: BTreeSet<ObjectId> = BTreeSet::new();
        let may_shallow = dice.chance(60);
        for _ in 0..4 {
            let mut request = Request {
                wants: dice.some(&history.commits, 3),
                haves: dice.some(&got.iter().copied().collect::<Vec<_>>(), 4),
                shallow: client.shallow.iter().copied().collect(),
                include_tag: dice.chance(30),
                thin: dice.chance(70),
                ofs_delta: dice.chance(80),
                ..Request::default()
            };
            if dice.chance(20) {
                request.wants.push(dice.pick(&history.tags));
            }
            if may_shallow {
                match dice.below(8) {
                    0..=2 => request.depth = Some(1 + dice.below(5) as u32),
                    3 => (request.depth, request.relative) = (Some(1 + dice.below(3) as u32), true),
                    4 => request.since = Some(1_700_000_000 + dice.below(history.commits.len() * 500) as u64),
                    5 => {
                        let n = dice.below(history.commits.len());
                        request.not = vec![(format!("refs/heads/c{}", n + 1), history.commits[n])];
                    }
                    6 => request.depth = Some(0x7fff_ffff),
                    _ => {}
                }
            }
            let context = || format!("seed {seed}: {:?}", request.lines());
            let reference = upload_pack(&history.dir, history.hash, &request.lines());
            let answer = match answer(&stack, &mirror.packs, &history.tags, &request) {
                Ok(answer) => answer,
                Err(error) => {
                    let theirs = reference.error.unwrap_or_else(|| panic!("{}: git answers", context()));
                    assert!(theirs.contains(&error), "{}: {error} but git says {theirs}", context());
                    continue;
                }
            };
            assert_eq!(reference.error, None, "{}", context());
            let set = |ids: &[ObjectId]| ids.iter().copied().collect::<BTreeSet<_>>();
            assert_eq!(set(&answer.shallow), set(&reference.shallow), "{}", context());
            assert_eq!(answer.unshallow, reference.unshallow, "{}", context());
            if !request.relative {
                assert_eq!(answer.shallow, reference.shallow, "order: {}", context());
            }
            let before = client.objects();
            let mut other = client.fork();
            other.set_shallow(&reference.shallow, &reference.unshallow);
            // git takes a client at its word that it has each boundary that is lifted; where that is not
            // so (see `select`) its own pack is not complete, and only the check below counts.
            let theirs = other.take_filtered(&reference.pack, false).unwrap_or_default();
            client.set_shallow(&answer.shallow, &answer.unshallow);
            let ours = client
                .take(&answer.pack, request.thin, request.ofs_delta)
                .unwrap_or_else(|e| panic!("{}: {e}", context()));
            let due = due(&stack, &request, &before);
            let missing: Vec<_> = theirs.iter().filter(|id| !ours.contains(*id) && due(id)).collect();
            assert!(missing.is_empty(), "{}: git sends also {missing:?}", context());
            for &want in &request.wants {
                client.set_ref(want);
                got.extend(history.commits.contains(&want).then_some(want));
            }
            client.check().unwrap_or_else(|error| panic!("{}: {error}", context()));
        }
    }
}

/// Filters: everything git sends is sent, little more, and what is filtered is not there.
#[test]
fn filters_keep_what_git_keeps() {
    let (mut ours_total, mut theirs_total) = (0, 0);
    for seed in seed::rounds(24) {
        println!("seed {seed}");
        let mut dice = Dice(seed ^ 0xf117e5);
        let (history, mut mirror) = world(&mut dice, hash_for(seed));
        let texts = [
            "/*\n!/src/\n",
            "src/\n!src/deep/\n",
            "*\n!f1\n",
            "docs/api/*\n/x/\n",
            "f[01]\n!/docs/f0\n**/deep/**\n",
        ];
        let patterns =
            ids(&git(&history.dir, &["hash-object", "-w", "--stdin"], dice.pick(&texts).as_bytes()))[0];
        mirror.sync(&history.dir, &[patterns], true);
        let stack = mirror.stack();
        let tree =
            ids(&git(&history.dir, &["rev-parse", &format!("{}^{{tree}}", history.commits[0])], b""))[0];
        for _ in 0..4 {
            let depth = dice.below(4);
            let simple = [
                "blob:none".into(),
                format!("blob:limit={}", dice.below(4000)),
                format!("tree:{depth}"),
                "object:type=commit".into(),
                "object:type=tree".into(),
                "object:type=blob".into(),
                "object:type=tag".into(),
                format!("sparse:oid={patterns}"),
            ];
            let filter = match dice.chance(25) {
                true => format!("combine:{}+{}", dice.pick(&simple), dice.pick(&simple)),
                false => dice.pick(&simple),
            };
            let mut request = Request {
                wants: dice.some(&history.commits, 2),
                filter: Some(filter.clone()),
                include_tag: dice.chance(30),
                thin: true,
                ofs_delta: true,
                ..Request::default()
            };
            if dice.chance(40) {
                request.haves = dice.some(&history.commits, 2);
            }
            if dice.chance(20) {
                request.wants.push(tree);
            }
            if dice.chance(20) {
                request.wants.push(dice.pick(&history.tags));
            }
            if dice.chance(25) {
                request.depth = Some(1 + dice.below(3) as u32);
            }
            let context = || format!("seed {seed}: {:?}", request.lines());
            let reference = upload_pack(&history.dir, history.hash, &request.lines());
            assert_eq!(reference.error, None, "{}", context());
            let answer = answer(&stack, &mirror.packs, &history.tags, &request).unwrap();
            // What the client has: everything below its haves.
            let client = Client::new(mirror.hash);
            if !request.haves.is_empty() {
                let spec = lines(request.haves.iter().copied());
                let all = git(&history.dir, &["pack-objects", "--revs", "--stdout", "-q"], spec.as_bytes());
                client.take(&all, false, false).unwrap();
            }
            let before = client.objects();
            let theirs = client.fork().take_filtered(&reference.pack, false).unwrap();
            let took = client.take_filtered(&answer.pack, request.ofs_delta);
            took.unwrap_or_else(|error| panic!("{}: {error}", context()));
            let after = client.objects();
            let due = due(&stack, &request, &before);
            let missing: Vec<_> = theirs.iter().filter(|id| !after.contains(*id) && due(id)).collect();
            assert!(missing.is_empty(), "{}: git sends also {missing:?}", context());
            // A want that another want leads to is not the user's own word to git.
            let extra = |id: &&ObjectId| !theirs.contains(*id) && !request.wants.contains(id);
            let extra = after.difference(&before).filter(extra).count();
            // Nor is a wanted tree that is a commit's tree as well: git counts its levels from the commit.
            let plain = !filter.starts_with("combine") && !request.include_tag;
            if plain
                && request.haves.is_empty()
                && request.wants.iter().all(|id| history.commits.contains(id))
            {
                assert_eq!(extra, 0, "{}: more than git sends", context());
            }
            ours_total += answer.objects;
            theirs_total += u64::from(u32::from_be_bytes(reference.pack[8..12].try_into().unwrap()));
        }
    }
    println!("filtered answers: {ours_total} objects, git's {theirs_total}");
    assert!(ours_total <= theirs_total * 12 / 10, "{ours_total} objects where git sends {theirs_total}");
}

/// Objects asked for by id come whatever the filter or the haves say.
#[test]
fn objects_asked_for_by_id_are_sent() {
    for seed in seed::rounds(6) {
        let mut dice = Dice(seed ^ 0xb10b);
        let (history, mirror) = world(&mut dice, hash_for(seed));
        let stack = mirror.stack();
        let everything: Vec<ObjectId> = history
            .objects(&lines(history.commits.iter().chain(&history.tags).copied()))
            .into_iter()
            .collect();
        for _ in 0..6 {
            let wants = dice.some(&everything, 5);
            let filter = dice.pick(&["blob:none", "tree:0", "object:type=tag", "blob:limit=1"]);
            let request =
                Request { wants, filter: Some(filter.into()), ofs_delta: true, ..Request::default() };
            let reference = upload_pack(&history.dir, history.hash, &request.lines());
            let answer = answer(&stack, &mirror.packs, &history.tags, &request).unwrap();
            let client = Client::new(mirror.hash);
            git(&client.dir, &["index-pack", "--stdin"], &answer.pack);
            let theirs = Client::new(mirror.hash);
            git(&theirs.dir, &["index-pack", "--stdin"], &reference.pack);
            let (ours, theirs) = (client.objects(), theirs.objects());
            assert!(request.wants.iter().all(|want| ours.contains(want)), "seed {seed}: {request:?}");
            assert!(
                ours.is_superset(&theirs),
                "seed {seed}: {request:?}: git sends also {:?}",
                theirs.difference(&ours)
            );
        }
    }
}

/// The surplus over `rev-list --objects want --not have`, in objects, and thin packs in use.
#[test]
fn little_more_than_the_difference_is_sent() {
    let (mut ours_total, mut exact_total) = (0, 0);
    for seed in seed::rounds(12) {
        let mut dice = Dice(seed ^ 0x5a5a);
        let (history, mirror) = world(&mut dice, hash_for(seed));
        let stack = mirror.stack();
        for _ in 0..6 {
            let (wants, haves) = (dice.some(&history.commits, 2), dice.some(&history.commits, 2));
            let request = Request { wants, haves, thin: true, ofs_delta: true, ..Request::default() };
            let listed = |ids: &[ObjectId]| history.objects(&lines(ids.iter().copied()));
            let exact = listed(&request.wants).difference(&listed(&request.haves)).count();
            let answer = answer(&stack, &mirror.packs, &[], &request).unwrap();
            ours_total += answer.objects as usize;
            exact_total += exact;
        }
    }
    println!("{ours_total} objects sent, {exact_total} needed");
    assert!(
        exact_total > 0 && ours_total * 100 <= exact_total * 102,
        "{ours_total} sent, {exact_total} needed"
    );
}

/// Reach is what `rev-list --objects` lists, and grows with the refs.
#[test]
fn reach_is_what_rev_list_lists() {
    for seed in seed::rounds(8) {
        let mut dice = Dice(seed ^ 0x4eac);
        let (history, mirror) = world(&mut dice, hash_for(seed));
        let stack = mirror.stack();
        let tips = |dice: &mut Dice| [dice.some(&history.commits, 3), dice.some(&history.tags, 2)].concat();
        let (first, then) = (tips(&mut dice), tips(&mut dice));
        let limits = Default::default();
        let reach = Reach::new(&stack, &mirror.packs, &gids(&stack, &first), &limits, &Unlimited).unwrap();
        let listed = |tips: &[ObjectId]| -> BTreeSet<Gid> {
            history.objects(&lines(tips.iter().copied())).iter().map(|id| stack.lookup(id).unwrap()).collect()
        };
        assert_eq!(reach.objects().iter().collect::<BTreeSet<_>>(), listed(&first), "seed {seed}");
        let again = Reach::new(&stack, &mirror.packs, &gids(&stack, &then), &limits, &Unlimited).unwrap();
        let covered = listed(&then).is_superset(&listed(&first));
        match reach.extend(&stack, &mirror.packs, &gids(&stack, &then), &limits, &Unlimited).unwrap() {
            Some(grown) => assert_eq!(grown, again, "seed {seed}"),
            None => assert!(!covered || first.iter().any(|id| history.tags.contains(id)), "seed {seed}"),
        }
        let both = [first, then].concat();
        let grown =
            reach.extend(&stack, &mirror.packs, &gids(&stack, &both), &limits, &Unlimited).unwrap().unwrap();
        assert_eq!(grown.objects().iter().collect::<BTreeSet<_>>(), listed(&both), "seed {seed}");
    }
}
