//! Fetches into a repository that has something already: after pushes, force-pushes, deletions; near, far and
//! diverged clients; one round of negotiation and many.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::git::{Git, git};
use crate::node::Node;
use crate::oracle::{State, from_bucket, in_bucket, mirrored, same};
use crate::primary::{Primary, Repo, Wrong};
use crate::seed::rounds;
use crate::wire;
use crate::world::World;
use crate::{mirror_only, shapes};

/// A mirrored repository with two clones of it, one from the primary and one through the mirror.
struct Pair {
    world: World,
    primary: Primary,
    repo: Repo,
    node: Node,
    ours: PathBuf,
    theirs: PathBuf,
}

impl Pair {
    fn new(shape: impl FnOnce(&Path), options: &str) -> Pair {
        let (world, primary) = (World::new(), Primary::start());
        let repo = primary.repo("team/app.git", shape);
        // Some tests change what no client then asks for: the comparison finds it.
        let node = world.setup(&primary).set("compare_every = \"1s\"").start();
        mirrored(&world, &node, &repo);
        let ours = world.clone_of(&primary.repo_url(&repo.path), options);
        let theirs = world.clone_of(&node.repo(&repo.path), options);
        Pair { world, primary, repo, node, ours, theirs }
    }

    /// Runs the same command in both clones and compares what they have then.
    #[track_caller]
    fn both(&self, line: &str) {
        self.both_with(line, |g| g);
    }

    #[track_caller]
    fn both_with(&self, line: &str, with: impl Fn(Git) -> Git) {
        let ours = with(git(&self.ours)).try_run(line);
        let theirs = with(git(&self.theirs)).try_run(line);
        assert_eq!(ours.status, theirs.status, "git {line}: {} | mirror: {}", ours.stderr, theirs.stderr);
        let found = State::of(&self.ours).differences(&State::of(&self.theirs), false);
        assert!(found.is_empty(), "after git {line}:\n{found}");
    }

    /// The same command; its answer must come from the bucket.
    #[track_caller]
    fn both_from_bucket(&self, line: &str) {
        in_bucket(&self.world, &self.node, &self.repo);
        from_bucket(&self.node, || self.both(line));
    }
}

#[test]
fn a_push_is_seen_by_the_next_fetch() {
    let p = Pair::new(shapes::linear, "");
    for n in 0..3 {
        p.repo.commit("main", &format!("new{n}"), "text");
        // No waiting for the sync: what the primary shows now, the fetch must bring.
        p.both("fetch -q origin");
    }
    p.repo.commit("main", "more", "text");
    p.both_from_bucket("fetch -q origin");
    p.both("pull -q --ff-only");
}

#[test]
fn a_fetch_waits_for_the_sync_it_caused() {
    let p = Pair::new(shapes::linear, "");
    p.repo.commit("main", "new", "text");
    from_bucket(&p.node, || p.both("fetch -q origin"));
}

#[test]
fn nothing_new() {
    let p = Pair::new(shapes::town, "");
    p.both("fetch -q origin");
    p.both("fetch -q --prune --tags origin");
}

#[test]
fn force_pushes_and_deletions() {
    let p = Pair::new(shapes::merges, "--mirror");
    let lost = p.repo.oid("refs/heads/main");
    p.repo.set_ref("refs/heads/main", "refs/heads/main~2");
    p.repo.commit("main", "another", "way");
    p.both_from_bucket("fetch -q --prune origin");
    p.repo.delete_ref("refs/heads/topic1");
    p.repo.delete_ref("refs/heads/topic2");
    p.both("fetch -q --prune origin");
    p.repo.set_ref("refs/heads/topic1", &lost);
    p.both("fetch -q --prune origin");
    in_bucket(&p.world, &p.node, &p.repo);
    same(&p.world, &p.primary, &p.node, &p.repo.path);
}

#[test]
fn a_branch_becomes_a_folder() {
    let p = Pair::new(shapes::merges, "--mirror");
    p.repo.delete_ref("refs/heads/topic1");
    p.repo.commit("topic1/deeper", "f", "1");
    p.both_from_bucket("fetch -q --prune origin");
    same(&p.world, &p.primary, &p.node, &p.repo.path);
}

#[test]
fn deleted_and_made_again_under_its_name() {
    let p = Pair::new(shapes::linear, "--mirror");
    std::fs::remove_dir_all(&p.repo.dir).unwrap();
    let out = git(p.world.path()).try_run(&format!("ls-remote {}", p.node.repo(&p.repo.path)));
    out.must_fail(&["not found", "404"]);
    let again = p.primary.repo(&p.repo.path, |dir| {
        // Not one object in common.
        let mut h = shapes::History::new();
        let a = h.commit("refs/heads/fresh", &[], &[shapes::Change::File("else", "entirely\n")]);
        h.commit("refs/heads/main", &[a], &[shapes::Change::File("else", "still\n")]);
        h.import(dir);
    });
    same(&p.world, &p.primary, &p.node, &again.path);
    mirrored(&p.world, &p.node, &again);
    from_bucket(&p.node, || same(&p.world, &p.primary, &p.node, &again.path));
    p.both("fetch -q --prune origin");
}

#[test]
fn deleted_and_made_again_with_another_hash() {
    let p = Pair::new(shapes::linear, "--mirror");
    std::fs::remove_dir_all(&p.repo.dir).unwrap();
    let again = p.primary.repo_with(&p.repo.path, "sha256", shapes::merges);
    same(&p.world, &p.primary, &p.node, &again.path);
    mirrored(&p.world, &p.node, &again);
    same(&p.world, &p.primary, &p.node, &again.path);
}

#[test]
fn new_tags_come_along() {
    let p = Pair::new(shapes::linear, "");
    p.repo.commit("main", "new", "text");
    let g = p.repo.git();
    g.run("tag -a -m one annotated main");
    g.run("tag light main~1");
    g.run("tag -a -m nested nested annotated");
    p.both_from_bucket("fetch -q origin");
    g.run("tag -a -m late late main~3");
    p.both("fetch -q origin");
    g.run("tag -d annotated");
    g.run("tag -a -m moved annotated main~2");
    p.both("fetch -q --tags origin");
    p.both("fetch -q --tags --force --prune --prune-tags origin");
}

#[test]
fn a_new_branch_on_old_history() {
    let p = Pair::new(shapes::town, "");
    p.repo.set_ref("refs/heads/again", "refs/heads/main~3");
    p.both("fetch -q origin");
    p.repo.commit("again", "x", "1");
    p.both_from_bucket("fetch -q origin");
}

#[test]
fn one_branch_at_a_time() {
    let p = Pair::new(shapes::town, "--single-branch --no-tags -b release");
    for line in [
        "fetch -q --no-tags origin topic/0:refs/remotes/origin/t0",
        "fetch -q origin topic/1",
        "fetch -q --tags origin main:refs/remotes/origin/main",
        "fetch -q origin +refs/pull/*:refs/pull/*",
    ] {
        p.both_from_bucket(line);
    }
}

/// A client with hundreds of commits of its own: several rounds until common ground is found.
#[test]
fn a_client_far_ahead() {
    for (name, value) in [("", ""), ("fetch.negotiationAlgorithm", "skipping")] {
        let p = Pair::new(shapes::linear, "");
        for dir in [&p.ours, &p.theirs] {
            local_commits(dir, 700);
        }
        for n in 0..5 {
            p.repo.commit("main", &format!("theirs{n}"), "1");
        }
        in_bucket(&p.world, &p.node, &p.repo);
        from_bucket(&p.node, || {
            p.both_with("fetch -q origin", |g| if name.is_empty() { g } else { g.config(name, value) });
        });
    }
}

/// The primary's history was thrown away and begun anew; the client has the old one.
#[test]
fn a_client_with_nothing_in_common() {
    let p = Pair::new(shapes::linear, "");
    for dir in [&p.ours, &p.theirs] {
        let g = git(dir);
        g.run("checkout -q --orphan mine");
        g.run("commit -q -m root");
        local_commits(dir, 300);
        g.run("update-ref -d refs/remotes/origin/main");
        g.run("update-ref -d refs/heads/main");
        g.run("remote set-head origin -d");
        g.run("reflog expire --expire=all --all");
        g.run("repack -adq");
        g.run("prune --expire=now");
    }
    p.both_from_bucket("fetch -q origin");
}

/// In v0 and v1 the rounds look different (`multi_ack_detailed`, `no-done`): the outcome must not.
#[test]
fn the_same_in_older_protocols() {
    for version in [0, 1] {
        let p = Pair::new(shapes::merges, "");
        p.both_with("fetch -q origin", |g| g.protocol(version));
        for dir in [&p.ours, &p.theirs] {
            local_commits(dir, 300);
        }
        for n in 0..3 {
            p.repo.commit("main", &format!("theirs{n}"), "1");
            p.repo.git().args(&["tag", "-a", "-m", "t", &format!("tag{n}"), "main"]).must();
            p.both_with("fetch -q origin", |g| g.protocol(version));
        }
    }
}

#[test]
fn only_the_negotiation() {
    let p = Pair::new(shapes::merges, "");
    for dir in [&p.ours, &p.theirs] {
        local_commits(dir, 40);
    }
    p.repo.commit("main", "theirs", "1");
    in_bucket(&p.world, &p.node, &p.repo);
    let ask = |dir: &PathBuf| git(dir).run("fetch -q --negotiate-only --negotiation-tip=HEAD origin").line();
    // wait-for-done: the server must tell what is common and send nothing. Older servers also acknowledge what
    // follows from a commit acknowledged before.
    let tips = |dir: &PathBuf| {
        let common = ask(dir);
        git(dir).run(&format!("merge-base --independent {}", common.replace('\n', " "))).line()
    };
    let (ours, theirs) = (tips(&p.ours), tips(&p.theirs));
    assert_eq!(ours, theirs);
    assert!(!ours.is_empty());
}

/// An increment is an increment: a commit more costs a few objects, not the repository.
#[test]
fn increments_are_small() {
    let p = Pair::new(shapes::deltas, "--bare -c fetch.unpackLimit=1");
    let size = |dir: &PathBuf| {
        let line = git(dir).run("count-objects -v").text();
        let field = |name: &str| {
            line.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0").trim().parse::<u64>().unwrap()
        };
        field("in-pack:")
    };
    let before = size(&p.theirs);
    p.repo.commit("main", "one/more", "1");
    p.both_from_bucket("fetch -q origin +refs/heads/*:refs/heads/*");
    let came = size(&p.theirs) - before;
    // The commit, two trees, the blob, and the bases that complete a thin pack.
    assert!(came <= 8, "{came} objects came for one commit");
}

#[test]
fn random_histories_stay_equal() {
    for seed in rounds(1) {
        random_history(seed);
    }
}

fn random_history(seed: u64) {
    let p = Pair::new(shapes::merges, "--mirror");
    let mut dice = shapes::noise(seed, 4096).into_iter();
    let mut roll = |sides: u8| dice.next().unwrap() % sides;
    for step in 0..25 {
        let branches = p.repo.git().run("for-each-ref --format=%(refname:short) refs/heads").lines();
        let any = branches[usize::from(roll(200)) % branches.len()].clone();
        match roll(8) {
            0..=2 => drop(p.repo.commit(&any, &format!("f{}", roll(9)), &format!("{step} {}", roll(99)))),
            3 => p.repo.set_ref(&format!("refs/heads/b{step}"), &format!("refs/heads/{any}")),
            4 if branches.len() > 2 && any != "main" => p.repo.delete_ref(&format!("refs/heads/{any}")),
            5 => {
                let back = p.repo.git().try_run(&format!("rev-parse -q --verify {any}~{}", 1 + roll(3)));
                if back.ok() {
                    p.repo.set_ref(&format!("refs/heads/{any}"), &back.line());
                }
            }
            6 => drop(
                p.repo.git().args(&["tag", "-f", "-a", "-m", "t", &format!("t{}", roll(4)), &any]).must(),
            ),
            _ => {
                let other = &branches[usize::from(roll(200)) % branches.len()];
                let tree = p.repo.oid(&format!("{any}^{{tree}}"));
                let (a, b) = (p.repo.oid(&any), p.repo.oid(other));
                let merge = ["commit-tree", "-m", "merge", "-p", &a, "-p", &b, &tree];
                let oid = p.repo.git().args(&merge).must().line();
                p.repo.set_ref(&format!("refs/heads/{any}"), &oid);
            }
        }
        if roll(3) == 0 {
            eprintln!("seed {seed}, step {step}");
            p.both("fetch -q --prune origin");
        }
    }
    in_bucket(&p.world, &p.node, &p.repo);
    eprintln!("seed {seed}, at the end");
    same(&p.world, &p.primary, &p.node, &p.repo.path);
    p.both("fetch -q --prune origin");
}

/// Commits on the checked-out branch that nobody else has; the same ones whenever called.
fn local_commits(dir: &Path, count: usize) {
    let branch = git(dir).run("symbolic-ref HEAD").line();
    let mut script = String::new();
    for n in 0..count {
        script.push_str(&format!(
            "commit {branch}\ncommitter Me <me@example.com> {} +0000\ndata 5\nlocal\n{}M 100644 inline mine\ndata {}\n{n}\n",
            1_900_000_000 + n,
            if n == 0 { format!("from {branch}^0\n") } else { String::new() },
            n.to_string().len(),
        ));
    }
    git(dir).with_input(&["fast-import", "--quiet"], script.as_bytes()).must();
}

/// What `acknowledgments` answers to these haves, where no pack is wanted.
fn acknowledged(address: &str, path: &str, haves: &[String]) -> Vec<String> {
    let haves: Vec<String> = haves.iter().map(|id| format!("have {id}")).collect();
    let lines: Vec<&str> = ["wait-for-done"].into_iter().chain(haves.iter().map(String::as_str)).collect();
    let body = wire::command("fetch", &["object-format=sha1"], &lines);
    let reply = wire::post(address, &format!("/{path}/git-upload-pack"), &[wire::V2], &body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let acks = wire::fetched(&reply.body, true).lines.into_iter();
    acks.filter_map(|line| line.trim().strip_prefix("ACK ").map(str::to_owned)).collect()
}

/// `fetch --negotiate-only` names what both sides have, whatever the history, the batches and the client's own commits.
#[test]
fn what_is_common_is_acknowledged() {
    for shape in [shapes::linear, shapes::merges, shapes::criss_cross, shapes::several_roots, shapes::town] {
        let pair = Pair::new(shape, "");
        let client = git(&pair.theirs);
        let path = &pair.repo.path;
        let tip = client.run("rev-parse HEAD").line();
        let own = client.run("commit-tree HEAD^{tree} -p HEAD -m own").line();
        let all = client.run("rev-list --all").lines();
        // git from 2.45 on names only those whose child it was not told of before.
        let mut names_all = true;
        for size in [1, 2, 3, 7, 16, 64] {
            for batch in all.chunks(size) {
                let sent = [std::slice::from_ref(&own), batch].concat();
                let acks = from_bucket(&pair.node, || acknowledged(pair.node.address(), path, &sent));
                assert_eq!(acks, batch, "in batches of {size}");
                let gits = acknowledged(pair.primary.address(), path, &sent);
                assert!(gits.iter().all(|id| acks.contains(id)), "git acknowledges {gits:?}");
                names_all &= gits == acks;
            }
        }
        for (from, algorithm) in [(&tip, "consecutive"), (&own, "consecutive"), (&own, "skipping")] {
            let common = |url: &str| {
                let client = client.clone().config("fetch.negotiationAlgorithm", algorithm);
                let tip = format!("--negotiation-tip={from}");
                client.args(&["fetch", "--negotiate-only", &tip, url]).must().lines()
            };
            let gits = common(&pair.primary.repo_url(path));
            let ours = from_bucket(&pair.node, || common(&pair.node.repo(path)));
            assert!(gits.iter().all(|id| ours.contains(id)), "{ours:?} lacks some of {gits:?}");
            assert!(!names_all || ours == gits, "{from} {algorithm}: {ours:?} for {gits:?}");
        }
    }
}

/// A long first sync, whose pack comes steadily, delays no comparison, no increment and no waiting client of another
/// repository.
#[test]
fn a_long_first_sync_delays_nobody_else() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let app = primary.repo("app.git", shapes::linear);
    let slow = primary.repo("slow.git", shapes::big_blob);
    let node = world.setup(&primary).set("max_syncs = 1").set("compare_every = \"1h\"").start();
    mirrored(&world, &node, &app);
    primary.fault(Wrong::Trickle(Duration::from_millis(500)), |s| {
        s.path.contains("slow")
            && s.is("fetch")
            && s.header("user-agent").is_some_and(|a| a.contains("packmirror"))
    });
    git(world.path()).run(&format!("ls-remote -q {}", node.repo(&slow.path)));
    node.logged(&["fetching from the primary", &slow.path]);
    for n in 0..3 {
        app.commit("main", &format!("f{n}"), "1");
        from_bucket(&node, || same(&world, &primary, &node, &app.path));
    }
    assert!(world.store.generations(&slow.path).is_empty(), "the first sync was not long");
}
