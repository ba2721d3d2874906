//! Tests that hold this room against the `git` binary: same bytes, same refusals.

use super::negotiate::{Common, Have, Next, answer_v0, answer_v2};
use super::request::parse_v2;
use super::v0::{Ack, Band, RoundEnd, V0, Wire, parse_v0};
use super::*;
use crate::git::advert::{V0Offer, write_v0};
use crate::git::object_info::ObjectInfo;
use crate::git::pkt::{OwnedPacket, Packet, Packets, Reader};
use crate::git::reply::{Event, FetchReply};
use crate::git::request::tests::body;
use bstr::{BString, ByteSlice};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command as Process, Output, Stdio};

const AGENT: &str = "git/oracle";

struct Repo {
    dir: tempfile::TempDir,
    hash: HashKind,
}

fn run(dir: &Path, args: &[&str], envs: &[(&str, &str)], input: &[u8]) -> Output {
    let mut child = Process::new("git")
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .envs([
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_USER_AGENT", AGENT),
            ("LC_ALL", "C"),
            ("HOME", "/nonexistent"),
        ])
        .envs(envs.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // git may refuse and leave before it has read everything.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    })
}

/// The version of the `git` at hand: details of its answers have changed over time.
fn git_version() -> (u32, u32) {
    let out = run(Path::new("/"), &["version"], &[], b"").stdout;
    let mut numbers = out.split(|byte| !byte.is_ascii_digit()).filter(|part| !part.is_empty());
    let mut next = || numbers.next().unwrap().to_str().unwrap().parse().unwrap();
    (next(), next())
}

impl Repo {
    fn empty(hash: HashKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let format = format!("--object-format={hash}");
        let out = run(dir.path(), &["init", "-q", "--bare", "-b", "main", &format], &[], b"");
        assert!(out.status.success(), "{}", out.stderr.as_bstr());
        Self { dir, hash }
    }

    /// A history with a merge, side branches, all kinds of tags and symbolic refs: commits 11 to 16 on `main` (16 merges side), 21 and 22 on `side` from 13, 31 alone on `other`.
    fn with_history(hash: HashKind) -> Self {
        let repo = Self::empty(hash);
        let big = "x".repeat(3000);
        let mut stream = format!("blob\nmark :1\ndata 3\none\nblob\nmark :2\ndata 3000\n{big}\n");
        let mut commit = |branch: &str, mark: u32, parents: &[u32]| {
            let (who, when) = ("A <a@b> ", 1_700_000_000 + u64::from(mark) * 60);
            stream += &format!(
                "commit refs/heads/{branch}\nmark :{mark}\ncommitter {who}{when} +0000\ndata 1\nm\n"
            );
            for (at, parent) in parents.iter().enumerate() {
                stream += &format!("{} :{parent}\n", if at == 0 { "from" } else { "merge" });
            }
            stream += &format!("M 100644 :1 f{mark}\nM 100644 :2 big\n\n");
        };
        for (branch, mark, parents) in [
            ("main", 11, &[][..]),
            ("main", 12, &[11]),
            ("main", 13, &[12]),
            ("side", 21, &[13]),
            ("side", 22, &[21]),
            ("main", 14, &[13]),
            ("main", 15, &[14]),
            ("main", 16, &[15, 22]),
            ("other", 31, &[]),
            ("a/b", 41, &[16]),
            ("a-b", 42, &[16]),
        ] {
            commit(branch, mark, parents);
        }
        for (name, mark, from) in [("v1", 51, 14), ("nested", 52, 51), ("blob", 53, 1)] {
            stream += &format!(
                "tag {name}\nmark :{mark}\nfrom :{from}\ntagger A <a@b> 1700009999 +0000\ndata 1\nt\n"
            );
        }
        let out =
            run(repo.dir.path(), &["fast-import", "--quiet", "--export-marks=marks"], &[], stream.as_bytes());
        assert!(out.status.success(), "{}", out.stderr.as_bstr());
        repo.git(&["update-ref", "refs/tags/light", "main"]);
        repo.git(&["update-ref", "refs/pull/1/head", "other"]);
        repo.git(&["symbolic-ref", "refs/remotes/o/HEAD", "refs/heads/side"]);
        repo.git(&["symbolic-ref", "refs/heads/dangling", "refs/heads/none"]);
        repo
    }

    fn git(&self, args: &[&str]) -> String {
        let out = run(self.dir.path(), args, &[], b"");
        assert!(out.status.success(), "git {args:?}: {}", out.stderr.as_bstr());
        String::from_utf8(out.stdout).unwrap()
    }

    fn mark(&self, mark: u32) -> ObjectId {
        let marks = std::fs::read_to_string(self.dir.path().join("marks")).unwrap();
        let prefix = format!(":{mark} ");
        let hex = marks.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
        ObjectId::from_hex(hex.as_bytes()).unwrap()
    }

    /// Reads the refs with `show-ref` and `symbolic-ref`, not with anything under test.
    fn refs(&self) -> Refs {
        let shown = run(self.dir.path(), &["show-ref", "-d"], &[], b"").stdout;
        let mut refs: Vec<Ref> = Vec::new();
        for line in shown.lines() {
            let (hex, name) = line.split_once_str(" ").unwrap();
            let oid = ObjectId::from_hex(hex).unwrap();
            if name.ends_with(b"^{}") {
                refs.last_mut().unwrap().peeled = Some(oid);
            } else {
                refs.push(Ref { name: name.into(), oid, peeled: None });
            }
        }
        let symbolic = |name: &str| {
            let out = run(self.dir.path(), &["symbolic-ref", "-q", name], &[], b"");
            out.status.success().then(|| BString::from(out.stdout.trim_end()))
        };
        let head = match symbolic("HEAD") {
            Some(target) => Head::Symbolic { target },
            None => Head::Detached(
                ObjectId::from_hex(self.git(&["rev-parse", "HEAD"]).trim().as_bytes()).unwrap(),
            ),
        };
        let names = refs.iter().map(|r| r.name.clone());
        let symrefs = names.filter_map(|name| Some((name.clone(), symbolic(&name.to_string())?))).collect();
        Refs::new(self.hash, head, refs, symrefs).unwrap()
    }

    fn upload_pack(&self, args: &[&str], version: u8, input: &[u8]) -> Output {
        let text = format!("version={version}");
        let envs = [("GIT_PROTOCOL", text.as_str())];
        let envs = if version == 0 { &[][..] } else { &envs[..] };
        let args = [&["upload-pack", "--stateless-rpc"], args, &["."]].concat();
        run(self.dir.path(), &args, envs, input)
    }

    fn advertised(&self, version: u8) -> Vec<u8> {
        self.upload_pack(&["--advertise-refs"], version, b"").stdout
    }

    /// Asks git itself; it must not refuse.
    fn answer(&self, version: u8, input: &[u8]) -> Vec<u8> {
        let out = self.upload_pack(&[], version, input);
        assert!(out.status.success(), "{}\n{}", input.escape_ascii(), out.stderr.as_bstr());
        out.stdout
    }
}

/// Repositories of every shape.
fn shapes() -> Vec<(&'static str, Repo)> {
    let detached = Repo::with_history(HashKind::Sha1);
    detached.git(&["update-ref", "--no-deref", "HEAD", "refs/heads/side"]);
    let unborn = Repo::with_history(HashKind::Sha1);
    unborn.git(&["symbolic-ref", "HEAD", "refs/heads/not-there"]);
    let packed = Repo::with_history(HashKind::Sha1);
    packed.git(&["pack-refs", "--all"]);
    vec![
        ("sha1", Repo::with_history(HashKind::Sha1)),
        ("sha256", Repo::with_history(HashKind::Sha256)),
        ("detached", detached),
        ("unborn", unborn),
        ("packed", packed),
        ("empty", Repo::empty(HashKind::Sha1)),
        ("empty sha256", Repo::empty(HashKind::Sha256)),
    ]
}

#[track_caller]
fn assert_same(ours: &[u8], git: &[u8], what: &str) {
    assert!(ours == git, "{what}\nours: {}\n git: {}", ours.escape_ascii(), git.escape_ascii());
}

#[test]
fn v0_and_v1_advertisements_are_gits() {
    for (shape, repo) in shapes() {
        for (tip, reachable, filter) in [(false, false, false), (true, true, true), (false, true, false)] {
            repo.git(&["config", "uploadpack.allowTipSHA1InWant", &tip.to_string()]);
            repo.git(&["config", "uploadpack.allowReachableSHA1InWant", &reachable.to_string()]);
            repo.git(&["config", "uploadpack.allowFilter", &filter.to_string()]);
            for version in [0, 1] {
                let offer = V0Offer {
                    version1: version == 1,
                    allow_tip: tip,
                    allow_reachable: reachable,
                    filter,
                    agent: AGENT.into(),
                    ..V0Offer::default()
                };
                let mut out = Vec::new();
                write_v0(&repo.refs(), &offer, &mut out);
                let git = repo.advertised(version);
                if repo.refs().refs.is_empty() && git_version() < (2, 41) {
                    continue; // It shows no capabilities of an empty repository.
                }
                assert_same(&out, &git, shape);
            }
        }
    }
}

#[test]
fn v2_capabilities_of_git_come_back() {
    for (shape, repo) in shapes() {
        repo.git(&["config", "uploadpack.allowFilter", "true"]);
        repo.git(&["config", "transfer.advertiseObjectInfo", "true"]);
        let git = repo.advertised(2);
        let caps = V2Caps::parse(&git).unwrap();
        assert_same(&caps.encode(), &git, shape);
        assert_eq!(caps.object_format(), Some(repo.hash));
        assert!(
            caps.has_feature("fetch", "filter")
                && caps.has("object-info")
                && caps.has_feature("ls-refs", "unborn")
        );
    }
}

#[test]
fn ls_refs_answers_are_gits() {
    let lists: [&[&str]; 11] = [
        &[],
        &["HEAD"],
        &["refs/heads/"],
        &["refs/heads/a"],
        &["refs/tags/", "refs/heads/", "HEAD", "refs/heads/main"],
        &["refs/heads/*"],
        &["main", "refs/", "refs/heads/main"],
        &["", "HEAD"],
        &["nothing"],
        &["refs/remotes/o/HEAD", "refs/pull/"],
        &["refs/heads/main", "refs/heads/main", "refs/heads/mai", "refs/tags/v1"],
    ];
    for (shape, repo) in shapes() {
        let refs = repo.refs();
        for prefixes in lists {
            for bits in 0..8 {
                let [peel, symrefs, unborn] = [1, 2, 4].map(|bit| bits & bit != 0);
                let prefixes = prefixes.iter().map(|prefix| BString::from(*prefix)).collect();
                let request = LsRefs { peel, symrefs, unborn, prefixes };
                let mut out = Vec::new();
                ls_refs::answer(&request, &refs, &mut out);
                let frame = CommandRequest {
                    object_format: Some(repo.hash),
                    ..CommandRequest::new(Command::LsRefs(request.clone()))
                };
                let git = repo.answer(2, &frame.encode());
                assert_same(&out, &git, &format!("{shape} {request:?}"));
                if peel && symrefs && unborn && request.prefixes.is_empty() {
                    let lines = ls_refs::parse_answer(&git, repo.hash).unwrap();
                    assert_eq!(ls_refs::to_refs(lines, repo.hash).unwrap().0, refs);
                }
            }
        }
    }
}

#[test]
fn too_many_prefixes_are_gits() {
    let repo = Repo::with_history(HashKind::Sha1);
    let refs = repo.refs();
    for count in [ls_refs::TOO_MANY_PREFIXES - 1, ls_refs::TOO_MANY_PREFIXES, ls_refs::TOO_MANY_PREFIXES + 1]
    {
        let mut request = vec!["command=ls-refs", "|"];
        request.extend(std::iter::repeat_n("ref-prefix refs/tags/", count));
        request.push(".");
        let request = body(&request);
        let parsed = parse_v2(&request, &RequestLimits::default(), repo.hash).unwrap().unwrap();
        let Command::LsRefs(ls_refs) = parsed.command else { panic!("ls-refs") };
        let mut out = Vec::new();
        ls_refs::answer(&ls_refs, &refs, &mut out);
        assert_same(&out, &repo.answer(2, &request), &count.to_string());
    }
}

#[test]
fn packed_refs_are_gits() {
    let repo = Repo::with_history(HashKind::Sha1);
    let refs = repo.refs();
    repo.git(&["symbolic-ref", "-d", "refs/remotes/o/HEAD"]);
    repo.git(&["symbolic-ref", "-d", "refs/heads/dangling"]);
    repo.git(&["pack-refs", "--all"]);
    let git = std::fs::read(repo.dir.path().join("packed-refs")).unwrap();
    let plain: Vec<_> = refs.refs.into_iter().filter(|r| r.name != "refs/remotes/o/HEAD").collect();
    assert_eq!(Refs::parse_packed_refs(&git, HashKind::Sha1).unwrap(), plain);
    let refs = Refs::new(HashKind::Sha1, Head::Missing, plain, Vec::new()).unwrap();
    assert_same(&refs.packed_refs(), &git, "packed-refs");
    // The manifest is what anyone can make of `git ls-remote`.
    let listed = repo.git(&["ls-remote", "--refs", "."]).replace('\t', " ");
    assert_same(&refs.manifest(), listed.as_bytes(), "manifest");
}

/// A straightforward port of `do_got_oid` and `can_all_from_reach_with_flag`.
struct Model {
    /// Date and parents of each commit.
    commits: HashMap<ObjectId, (u64, Vec<ObjectId>)>,
    others: HashSet<ObjectId>,
    wants: Vec<ObjectId>,
    they_have: HashSet<ObjectId>,
    oldest: u64,
}

impl Model {
    fn new(repo: &Repo, wants: &[ObjectId]) -> Self {
        let oid = |hex: &str| ObjectId::from_hex(hex.as_bytes()).unwrap();
        let mut commits = HashMap::new();
        for line in repo.git(&["log", "--all", "--format=%H %ct %P"]).lines() {
            let mut fields = line.split(' ').filter(|field| !field.is_empty());
            let (id, date) = (oid(fields.next().unwrap()), fields.next().unwrap().parse().unwrap());
            commits.insert(id, (date, fields.map(oid).collect()));
        }
        let others = HashSet::from([repo.mark(51), repo.mark(53), repo.mark(1)]);
        Self { commits, others, wants: wants.to_vec(), they_have: HashSet::new(), oldest: u64::MAX }
    }

    fn reaches(&self, id: &ObjectId) -> bool {
        let old_enough = |id: &ObjectId| self.commits[id].0 >= self.oldest;
        self.they_have.contains(id)
            || self.commits[id]
                .1
                .iter()
                .any(|parent| self.they_have.contains(parent) || (old_enough(parent) && self.reaches(parent)))
    }
}

impl Common for Model {
    fn have(&mut self, oid: &ObjectId) -> Have {
        let Some((date, parents)) = self.commits.get(oid) else {
            return if self.others.contains(oid) { Have::New } else { Have::Unknown };
        };
        self.oldest = self.oldest.min(*date);
        let new = self.they_have.insert(*oid);
        self.they_have.extend(parents);
        if new { Have::New } else { Have::Implied }
    }

    fn ready(&mut self) -> bool {
        self.wants.iter().all(|want| self.reaches(want))
    }
}

/// git from 2.45 on acknowledges in v2 only what is news, and we all that is common.
struct Newer(Model);

impl Common for Newer {
    fn have(&mut self, oid: &ObjectId) -> Have {
        match self.0.have(oid) {
            Have::Implied => Have::Unknown,
            have => have,
        }
    }

    fn ready(&mut self) -> bool {
        self.0.ready()
    }
}

/// Have lists: all short ones that matter, and some longer ones.
fn have_lists(repo: &Repo) -> Vec<Vec<ObjectId>> {
    let unknown = |fill: u8| ObjectId::try_from(&vec![fill; repo.hash.len_in_bytes()][..]).unwrap();
    let marks = [11, 13, 15, 16, 21, 22, 31, 51, 1].map(|mark| repo.mark(mark));
    let pool = [&marks[..], &[unknown(0xee), unknown(0xdd)]].concat();
    let mut lists: Vec<Vec<ObjectId>> = vec![Vec::new()];
    lists.extend(pool.iter().map(|one| vec![*one]));
    let mut seed = 7usize;
    for at in 0..22 {
        let length = 2 + at % 4;
        let draw = (0..length).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            pool[(seed >> 33) % pool.len()]
        });
        lists.push(draw.collect());
    }
    lists
}

/// Checks what follows our bytes in git's answer: the pack, or nothing.
#[track_caller]
fn assert_continues(ours: &[u8], next: Next, git: &[u8], what: &str) {
    if next == Next::Stop {
        return assert_same(ours, git, what);
    }
    let rest = git.strip_prefix(ours);
    let rest =
        rest.unwrap_or_else(|| panic!("{what}\nours: {}\n git: {}", ours.escape_ascii(), git.escape_ascii()));
    let mut pack = Vec::new();
    for packet in Packets::new(rest) {
        match packet.unwrap() {
            Packet::Data([1, piece @ ..]) => pack.extend_from_slice(piece),
            Packet::Data([2, ..]) | Packet::Flush => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    assert!(pack.starts_with(b"PACK"), "{what}: {}", rest.escape_ascii());
}

#[test]
fn v0_negotiation_is_gits() {
    let repo = Repo::with_history(HashKind::Sha1);
    for (at, haves) in have_lists(&repo).into_iter().enumerate() {
        let wants = if at % 3 == 0 { vec![repo.mark(16), repo.mark(31)] } else { vec![repo.mark(16)] };
        for ack in [Ack::None, Ack::Multi, Ack::MultiDetailed] {
            for (no_done, end) in [(false, RoundEnd::Flush), (true, RoundEnd::Flush), (false, RoundEnd::Done)]
            {
                let v0 = V0 { ack, no_done, end, band: Band::Large, ..V0::default() };
                let request = FetchRequest {
                    wants: wants.clone(),
                    haves: haves.clone(),
                    no_progress: true,
                    done: end == RoundEnd::Done,
                    wire: Wire::V0(v0.clone()),
                    ..FetchRequest::default()
                };
                let body = v0::tests::encode(&request);
                assert_eq!(parse_v0(&body, &RequestLimits::default(), repo.hash).unwrap(), request);
                let mut out = Vec::new();
                let next = answer_v0(&request, &v0, &mut Model::new(&repo, &wants), &mut out);
                assert_continues(&out, next, &repo.answer(0, &body), &format!("{v0:?} {haves:?}"));
            }
        }
    }
}

#[test]
fn v2_negotiation_is_gits() {
    let repo = Repo::with_history(HashKind::Sha256);
    for (at, mut haves) in have_lists(&repo).into_iter().enumerate() {
        // Our parser lets only the first of equal haves through; git acknowledges a repeated tag again.
        let mut seen = HashSet::new();
        haves.retain(|oid| seen.insert(*oid));
        let wants = if at % 3 == 0 { vec![repo.mark(16), repo.mark(31)] } else { vec![repo.mark(16)] };
        for (done, wait_for_done) in [(false, false), (true, false), (false, true)] {
            let fetch = FetchRequest {
                wants: if wait_for_done && at % 2 == 0 { Vec::new() } else { wants.clone() },
                haves: haves.clone(),
                no_progress: true,
                done,
                wait_for_done,
                ..FetchRequest::default()
            };
            let frame = CommandRequest {
                object_format: Some(repo.hash),
                ..CommandRequest::new(Command::Fetch(Box::new(fetch.clone())))
            };
            let mut out = Vec::new();
            let model = Model::new(&repo, &fetch.wants);
            let next = match git_version() >= (2, 45) {
                true => answer_v2(&fetch, &mut Newer(model), &mut out),
                false => answer_v2(&fetch, &mut { model }, &mut out),
            };
            if next == Next::Pack {
                response::Sections::new(&mut out, false).packfile();
            }
            assert_continues(&out, next, &repo.answer(2, &frame.encode()), &format!("{fetch:?}"));
        }
    }
}

#[test]
fn shallow_lines_are_gits() {
    let repo = Repo::with_history(HashKind::Sha1);
    let (tip, parent) = (repo.mark(15), repo.mark(14));
    repo.git(&["update-ref", "refs/heads/tip", &tip.to_string()]);
    let request = FetchRequest {
        wants: vec![tip],
        shallow: vec![tip],
        deepen: Some(2),
        no_progress: true,
        ..FetchRequest::default()
    };
    let v0_request = FetchRequest { wire: Wire::V0(V0::default()), ..request.clone() };
    let mut out = Vec::new();
    response::put_v0_shallow(&mut out, &[parent], &[tip]);
    assert_same(&out, &repo.answer(0, &v0::tests::encode(&v0_request)), "v0");

    let mut out = Vec::new();
    let mut sections = response::Sections::new(&mut out, false);
    sections.shallow_info(&[parent], &[tip]);
    sections.packfile();
    let frame = CommandRequest::new(Command::Fetch(Box::new(FetchRequest { done: true, ..request })));
    assert_continues(&out, Next::Pack, &repo.answer(2, &frame.encode()), "v2");
}

#[test]
fn wanted_refs_and_sideband_all_are_gits() {
    let repo = Repo::with_history(HashKind::Sha1);
    repo.git(&["config", "uploadpack.allowRefInWant", "true"]);
    repo.git(&["config", "uploadpack.allowSidebandAll", "true"]);
    for sideband_all in [false, true] {
        let fetch = FetchRequest {
            want_refs: vec!["refs/heads/side".into()],
            haves: vec![repo.mark(21)],
            no_progress: true,
            sideband_all,
            ..FetchRequest::default()
        };
        let mut out = Vec::new();
        assert_eq!(answer_v2(&fetch, &mut Model::new(&repo, &[repo.mark(22)]), &mut out), Next::Pack);
        let mut sections = response::Sections::new(&mut out, sideband_all);
        sections.wanted_refs([(fetch.want_refs[0].as_bstr(), repo.mark(22))]);
        sections.packfile();
        let frame = CommandRequest::new(Command::Fetch(Box::new(fetch)));
        assert_continues(
            &out,
            Next::Pack,
            &repo.answer(2, &frame.encode()),
            &format!("sideband-all {sideband_all}"),
        );

        let fetch =
            FetchRequest { want_refs: vec!["refs/heads/no".into()], sideband_all, ..FetchRequest::default() };
        let frame = CommandRequest::new(Command::Fetch(Box::new(fetch)));
        let mut out = Vec::new();
        response::Sections::new(&mut out, sideband_all)
            .error(&response::unknown_ref(b"refs/heads/no".as_bstr()));
        // git says `sideband-all` before `want-ref`, so the error is on a band.
        assert_same(&out, &repo.upload_pack(&[], 2, &frame.encode()).stdout, "unknown ref");
    }
}

#[test]
fn a_want_that_is_not_ours_is_refused_in_gits_words() {
    let repo = Repo::with_history(HashKind::Sha1);
    let absent = ObjectId::from([0xee; 20]);
    let mut words = Vec::new();
    response::put_error(&mut words, &response::not_our_ref(&absent));
    let request = FetchRequest { wants: vec![absent], done: true, ..FetchRequest::default() };
    let frame = CommandRequest::new(Command::Fetch(Box::new(request.clone())));
    assert_same(&words, &repo.upload_pack(&[], 2, &frame.encode()).stdout, "v2");
    let v0 = V0 { end: RoundEnd::Done, ..V0::default() };
    let request = FetchRequest { wire: Wire::V0(v0), ..request };
    assert_same(&words, &repo.upload_pack(&[], 0, &v0::tests::encode(&request)).stdout, "v0");
}

#[test]
fn object_info_is_gits() {
    let repo = Repo::with_history(HashKind::Sha1);
    repo.git(&["config", "transfer.advertiseObjectInfo", "true"]);
    let absent = ObjectId::from([0xee; 20]);
    for oids in [vec![], vec![repo.mark(1), absent, repo.mark(16), repo.mark(1), repo.mark(51)]] {
        let request = ObjectInfo { size: true, oids };
        let size = |id: &ObjectId| {
            let id = id.to_string();
            let out = run(repo.dir.path(), &["cat-file", "-s", &id], &[], b"");
            out.stdout.trim().to_str().unwrap().parse().ok()
        };
        let mut out = Vec::new();
        request.answer(size, &mut out);
        let frame = CommandRequest::new(Command::ObjectInfo(request));
        assert_same(&out, &repo.answer(2, &frame.encode()), "object-info");
    }
}

#[test]
fn git_understands_our_fetch_and_we_its_answer() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let (repo, target) = (Repo::with_history(hash), Repo::empty(hash));
        let caps = V2Caps::parse(&repo.advertised(2)).unwrap();
        let refs = repo.refs();
        let mut haves = Vec::new();
        // First the history up to a tag, then everything else on top of it as a thin pack.
        for wants in [vec![repo.mark(51)], refs.tips()] {
            let fetch = FetchRequest {
                wants: wants.clone(),
                haves: std::mem::replace(&mut haves, wants),
                done: true,
                thin_pack: true,
                ofs_delta: true,
                ..FetchRequest::default()
            };
            let request = CommandRequest {
                agent: caps.has("agent").then(|| "packmirror/0".into()),
                object_format: caps.has("object-format").then_some(hash),
                ..CommandRequest::new(Command::Fetch(Box::new(fetch)))
            };
            let answer = repo.answer(2, &request.encode());
            let (mut reader, mut reply) = (Reader::new(), FetchReply::new(hash));
            let (mut pack, mut progress) = (Vec::new(), 0);
            for piece in answer.chunks(1000) {
                reader.feed(piece);
                while let Some(packet) = reader.packet().unwrap() {
                    assert!(!reply.is_over() && packet != OwnedPacket::ResponseEnd);
                    match reply.read(packet).unwrap() {
                        Some(Event::Pack(bytes)) => pack.extend_from_slice(&bytes),
                        Some(Event::Progress(_)) => progress += 1,
                        None | Some(Event::End { pack: true }) => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert!(reply.is_over() && progress > 0);
            let out =
                run(target.dir.path(), &["index-pack", "--stdin", "--fix-thin", "--strict"], &[], &pack);
            assert!(out.status.success(), "{}", out.stderr.as_bstr());
        }
        for tip in refs.tips() {
            target.git(&["rev-list", "--objects", &tip.to_string()]);
        }
    }
}

#[test]
fn we_refuse_what_git_refuses_in_its_words() {
    let repo = Repo::with_history(HashKind::Sha1);
    repo.git(&["config", "uploadpack.allowFilter", "true"]);
    let (want, have) = (format!("want {}", repo.mark(16)), format!("have {}", repo.mark(11)));
    let v2: Vec<Vec<&str>> = vec![
        vec!["agent=x", "."],
        vec!["command=fetch", "command=ls-refs", "."],
        vec!["command=fetch", "object-format", "."],
        vec!["command=fetch", "object-format=md5", "."],
        vec!["command=fetch", "object-format=sha256", "."],
        vec!["command=fetch", "|", "want 12", "."],
        vec!["command=fetch", "|", &want, "have 12", "."],
        vec!["command=fetch", "|", &want, "shallow 12", "."],
        vec!["command=fetch", "|", &want, "deepen 0", "."],
        vec!["command=fetch", "|", &want, "deepen 1z", "."],
        vec!["command=fetch", "|", &want, "deepen ", "."],
        vec!["command=fetch", "|", &want, "deepen 99999999999999999999", "."],
        vec!["command=fetch", "|", &want, "deepen-since x", "."],
        vec!["command=fetch", "|", &want, "deepen-since -1", "."],
        vec!["command=fetch", "|", &want, "deepen 1", "deepen-since 12", "done", "."],
        vec!["command=fetch", "|", &want, "filter foo", "."],
        vec!["command=fetch", "|", &want, "filter tree:x", "."],
        vec!["command=fetch", "|", &want, "filter tree:0", "filter tree:0", "."],
        vec!["command=fetch", "|", &want, "done", "|"],
        vec!["command=fetch", "|", &want, "done"],
        vec!["command=fetch", "|"],
        vec!["command=ls-refs", "|", "peel", "|"],
        vec!["command=ls-refs", "|", "what", "."],
        vec!["command=ls-refs", "|", "peel x", "."],
    ];
    let v0: Vec<Vec<&str>> = vec![
        vec![],
        vec![&want],
        vec!["want 12", "."],
        vec!["nonsense", "."],
        vec![&want, "filter tree:0", "."],
        vec![&want, "deepen x", "."],
        vec![&want, "deepen 1", "deepen-since 12", "."],
        vec![&want, ".", "have 12", "."],
        vec![&want, ".", "want 12", "."],
        vec![&want, ".", &have],
    ];
    let check = |version: u8, lines: &[&str], words: String| {
        let out = repo.upload_pack(&[], version, &body(lines));
        assert!(!out.status.success(), "git takes {lines:?}");
        let said = out.stderr.to_str_lossy();
        assert!(said.contains(&format!("fatal: {words}\n")), "{lines:?}\nours: {words}\n git: {said}");
    };
    for lines in v2 {
        let error = parse_v2(&body(&lines), &RequestLimits::default(), repo.hash).unwrap_err();
        check(2, &lines, error.to_string());
    }
    for lines in v0 {
        let error = parse_v0(&body(&lines), &RequestLimits::default(), repo.hash).unwrap_err();
        check(0, &lines, error.to_string());
    }
    for raw in ["0003", "zzzz", "00", "000", "fffffff", "0009ab"] {
        let error = parse_v2(raw.as_bytes(), &RequestLimits::default(), repo.hash).unwrap_err().to_string();
        let out = repo.upload_pack(&[], 2, raw.as_bytes());
        // git shows a first packet that is cut short as a good-bye.
        let said = out.stderr.to_str_lossy();
        assert!(said.contains(&error) || out.status.success(), "{raw}\nours: {error}\n git: {said}");
    }
}

#[test]
fn we_take_what_git_takes() {
    let repo = Repo::with_history(HashKind::Sha1);
    repo.git(&["config", "uploadpack.allowFilter", "true"]);
    repo.git(&["config", "transfer.advertiseSID", "true"]);
    let tip = repo.mark(16);
    let want = format!("want {tip}");
    let (upper, behind) = (want.to_uppercase().replace("WANT", "want"), format!("{want}zzz"));
    let nul = format!("{want}\0zzz");
    for args in [
        vec![want.as_str()],
        vec![&upper],
        vec![&behind],
        vec![&nul],
        vec![&want, "deepen  0x2"],
        vec![&want, "deepen 4294967297"],
        vec![&want, "deepen-since "],
        vec![&want, "deepen-since -5"],
        vec![&want, "filter blob:limit= 0x10k"],
        vec![&want, "filter combine:tree:3+combine:blob:none%2bobject:type=tree"],
        vec![&want, "shallow eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"],
    ] {
        let frame =
            [&["command=fetch", "server-option", "session-id", "agent=", "|"], &args[..], &["done", "."]]
                .concat();
        let request = body(&frame);
        let parsed = parse_v2(&request, &RequestLimits::default(), repo.hash).unwrap().unwrap();
        let Command::Fetch(fetch) = parsed.command else { panic!("fetch") };
        assert_eq!(fetch.wants, [tip], "{args:?}");
        repo.upload_pack(&[], 2, &request);
        let out = repo.upload_pack(&[], 2, &request);
        let said = out.stderr.to_str_lossy();
        // Some of these cut all history away, which git refuses later and in other words.
        assert!(out.status.success() || said.contains("no commits selected"), "{args:?}: {said}");
    }
}

#[test]
fn filters_are_read_as_git_reads_them() {
    let repo = Repo::with_history(HashKind::Sha1);
    for spec in [
        "blob:none",
        "blob:none ",
        "blob:limit=0",
        "blob:limit=1k",
        "blob:limit=1kk",
        "blob:limit=",
        "blob:limit=-1",
        "blob:limit=1 ",
        "blob:limit=18446744073709551615",
        "blob:limit=18446744073709551616",
        "blob:limit=17179869184g",
        "tree:0",
        "tree:010",
        "tree:08",
        "tree:",
        "tree:1m",
        "object:type=tag",
        "object:type=",
        "object:type=Blob",
        "sparse:path=x",
        "sparse:oid=main:f11",
        "combine:",
        "combine:blob:none",
        "combine:blob:none+tree:1",
        "combine:blob:none+",
        "combine:+blob:none",
        "combine:tree%3a1",
        "combine:tree:1%2",
        "combine:blob%3anone+combine%3atree%3a1%2btree%3a2",
        "combine:tree:1,tree:2",
        "combine:tree:(1",
        "foo",
        "",
    ] {
        let out =
            run(repo.dir.path(), &["rev-list", "--objects", &format!("--filter={spec}"), "main"], &[], b"");
        let said = out.stderr.to_str_lossy().into_owned();
        match Filter::parse(spec.as_bytes()) {
            Ok(filter) => {
                assert!(out.status.success(), "{spec}: {said}");
                let canonical = format!("--filter={}", filter.spec());
                let again = run(repo.dir.path(), &["rev-list", "--objects", &canonical, "main"], &[], b"");
                assert_same(&again.stdout, &out.stdout, &canonical);
            }
            Err(error) => assert_eq!(said.trim_end(), format!("fatal: {error}"), "{spec}"),
        }
    }
}

#[test]
fn ref_names_are_judged_as_git_judges_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "refs/heads/a",
        "HEAD",
        "@",
        "refs/@",
        "refs/heads/a.lock",
        "refs/a.lock/b",
        "refs/.a",
        "refs/a.",
        "refs/a..b",
        "refs/a@{b",
        "refs/a~b",
        "refs/a^",
        "refs/a:b",
        "refs/a?b",
        "refs/a*b",
        "refs/a[b",
        "refs/a]b",
        "refs/a\\b",
        "refs/a b",
        "refs/a\tb",
        "refs/a\u{7f}b",
        "refs//a",
        "/refs/a",
        "refs/a/",
        "refs/\u{e9}",
        "refs/a{b}",
        "refs/-a",
        "refs/a.lockb",
        ".lock",
        "a.lock",
        "refs/lock",
        "refs/a./b",
        "refs/a/.b",
        "{",
        "@{",
        "@a",
        "a@",
        "refs/heads/@{u}",
        "",
    ] {
        let git = run(dir.path(), &["check-ref-format", "--allow-onelevel", name], &[], b"").status.success();
        assert_eq!(refname::is_well_formed(name.as_bytes()), git, "{name:?}");
    }
}
