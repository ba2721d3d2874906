//! Clones of every shape of repository: through the mirror they equal clones from the primary, before the
//! repository is mirrored (passed through) and after (from the bucket).

use crate::git::git;
use crate::mirror_only;
use crate::oracle::{State, compare, from_bucket, mirrored, same};
use crate::primary::Primary;
use crate::shapes::{self, Shape};
use crate::world::{World, eventually};

/// First clone, wait for the sync behind it, clone again from the bucket; all equal.
fn equal(shape: Shape, format: &str) {
    let (name, make) = shape;
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo_with("team/app.git", format, make);
    let node = world.node(&primary);
    if let Err(found) = compare(&world, &primary.repo_url(&repo.path), &node.repo(&repo.path)) {
        panic!("{name}: the first clone, passed through, differs:\n{found}");
    }
    mirrored(&world, &node, &repo);
    let empty = name.starts_with("empty");
    let clone = || {
        if let Err(found) = compare(&world, &primary.repo_url(&repo.path), &node.repo(&repo.path)) {
            panic!("{name}: the clone from the bucket differs:\n{found}");
        }
    };
    // Of an empty repository a client only ever asks for the refs, and these the primary gives.
    if empty { clone() } else { from_bucket(&node, clone) }
}

macro_rules! shapes {
    ($($test:ident: $shape:ident;)*) => {
        $(#[test]
        fn $test() {
            equal((stringify!($shape), shapes::$shape), "sha1");
        })*

        #[test]
        fn every_shape_has_its_test() {
            assert_eq!([$(stringify!($shape)),*].len(), shapes::ALL.len());
        }
    };
}

shapes! {
    a_linear_history: linear;
    merges: merges;
    an_octopus_merge: octopus;
    criss_cross_merges: criss_cross;
    several_roots: several_roots;
    renames_and_reverts: renames;
    chains_of_deltas: deltas;
    thousands_of_refs: many_refs;
    tags_of_every_kind: tags;
    links_to_submodules: submodules;
    an_empty_repository: empty;
    an_empty_repository_with_another_branch_name: empty_trunk;
    a_detached_head: detached;
    an_unborn_head: unborn;
    a_head_that_is_not_main: other_head;
    a_big_blob: big_blob;
    weird_ref_names: weird_refs;
    pull_requests_and_notes: hosted;
    a_bit_of_everything: town;
}

#[test]
fn sha256_repositories() {
    equal(("town", shapes::town), "sha256");
}

#[test]
fn an_empty_sha256_repository() {
    equal(("empty", shapes::empty), "sha256");
}

/// Every way to clone, each compared with the same clone from the primary.
#[test]
fn branches_tags_and_bundles_of_options() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    for options in [
        "",
        "--bare",
        "--single-branch",
        "--no-tags",
        "--single-branch --no-tags",
        "-b topic/1",
        "-b release --single-branch",
        "-b v1",
        "-b v1 --single-branch",
        "--no-checkout",
        "--mirror",
    ] {
        let clone = |url: &str| State::of(&world.clone_of(url, options));
        let ours = clone(&primary.repo_url(&repo.path));
        let theirs = from_bucket(&node, || clone(&node.repo(&repo.path)));
        let found = ours.differences(&theirs, true);
        assert!(found.is_empty(), "clone {options} differs:\n{found}");
    }
}

/// A client that wants one branch gets no object of the others: the answer holds what the wants reach, no more.
#[test]
fn only_what_was_asked_for() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let (client, dir) = world.client("one-branch");
    client.run("init -q --bare .");
    client.run(&format!("fetch -q --no-tags {} release:release", node.repo(&repo.path)));
    let state = State::of(&dir);
    let surplus: Vec<_> = state.stored.difference(&state.objects).collect();
    assert!(surplus.is_empty(), "objects came that the branch does not reach: {surplus:?}");
}

/// However many ask for a new repository at once, one sync fetches it.
#[test]
fn many_first_clones_cause_one_sync() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let node = world.node(&primary);
    let url = node.repo(&repo.path);
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| world.clone_of(&url, "--mirror"));
        }
    });
    mirrored(&world, &node, &repo);
    assert_eq!(world.store.blobs("pack").len(), 1, "{:?}", world.store.list(""));
    assert_eq!(world.store.generations(&repo.path).len(), 1);
    // Of the fetches at the primary at most one was the sync's, the others were the clients' own.
    let fetches = primary.count(|s| s.is("fetch"));
    assert!(fetches <= 9, "{fetches} fetches for 8 clones and a sync");
    same(&world, &primary, &node, &repo.path);
}

#[test]
fn several_clients_clone_at_once_from_the_bucket() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::deltas);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let want = State::of(&world.clone_of(&primary.repo_url(&repo.path), "--mirror"));
    from_bucket(&node, || {
        std::thread::scope(|s| {
            for _ in 0..10 {
                s.spawn(|| {
                    let got = State::of(&world.clone_of(&node.repo(&repo.path), "--mirror"));
                    assert_eq!(want.differences(&got, true), "");
                });
            }
        });
    });
}

/// Repository paths as people have them.
#[test]
fn paths_with_and_without_everything() {
    let (world, primary) = (World::new(), Primary::start());
    let node = world.node(&primary);
    for path in [
        "a",
        "a.b/c.git",
        "group/sub/deeper/name.git",
        "~user/x y.git",
        "\u{fc}ml\u{e4}ut/+plus@at.git",
        "per%cent.git",
        "100%/x.git",
        "back\\slash.git",
    ] {
        let repo = primary.repo(path, shapes::linear);
        let encoded = path.replace('%', "%25").replace(' ', "%20").replace('\\', "%5C");
        let repo_there = crate::primary::Repo { dir: repo.dir.clone(), path: path.into() };
        git(world.path()).args(&["ls-remote", "-q", &node.repo(&encoded)]).must();
        crate::oracle::in_bucket(&world, &node, &repo_there);
        if let Err(found) = compare(&world, &primary.repo_url(&encoded), &node.repo(&encoded)) {
            panic!("{path} differs:\n{found}");
        }
    }
}

/// A path that has one reading is one repository however it is spelled: at the primary, in the bucket, in the answers.
#[test]
fn every_spelling_of_a_path_is_one_repository() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    crate::oracle::mirrored(&world, &node, &repo);
    primary.forget_log();
    for spelling in
        ["/team/app.git", "///team/app.git", "team/app%2Egit", "%74eam/%61pp.git", "/team%2fapp.git"]
    {
        let url = node.repo(spelling);
        let run = git(world.path()).args(&["ls-remote", "-q", &url]);
        if spelling.contains("%2f") {
            run.must_fail(&["400"]);
            continue;
        }
        run.must();
        from_bucket(&node, || {
            assert_eq!(
                State::of(&world.clone_of(&url, "--mirror")).refs,
                State::of(&repo.dir).refs,
                "{spelling}"
            );
        });
    }
    assert!(primary.log().iter().all(|seen| seen.path.starts_with("/team/app.git/")));
}

/// What is not selected is passed through and never mirrored, or refused.
#[test]
fn the_selection_decides_what_is_mirrored() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let mirror = primary.repo("team/app.git", shapes::linear);
    let secret = primary.repo("team/secret.git", shapes::linear);
    let other = primary.repo("else/app.git", shapes::linear);
    let globs = "mirror = [\"team/*\", \"!team/secret*\"]";
    let node = world.setup(&primary).set(globs).start();
    for repo in [&secret, &other] {
        same(&world, &primary, &node, &repo.path);
    }
    mirrored(&world, &node, &mirror);
    same(&world, &primary, &node, &mirror.path);
    // The last sync has ended and it was of the selected one: the others were asked for before it.
    assert_eq!(world.store.generations(&secret.path).len() + world.store.generations(&other.path).len(), 0);

    let strict = world.setup(&primary).set(globs).set("unselected = \"refuse\"").start();
    primary.forget_log();
    let out = git(world.path()).args(&["ls-remote", &strict.repo(&other.path)]);
    out.must_fail(&["not found", "404", "403"]);
    assert_eq!(primary.log().len(), 0, "a refused repository is not asked for at the primary");
}

/// A bare directory of repositories can be the primary.
#[test]
fn a_directory_as_the_primary() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let node = crate::node::Setup::new(&world, primary.root().to_str().unwrap()).start();
    same(&world, &primary, &node, &repo.path);
    mirrored(&world, &node, &repo);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    repo.commit("main", "new", "1");
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
}

/// HEAD moves without any ref moving: the next clone has the new one.
#[test]
fn head_moves_alone() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::merges);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    repo.git().run("symbolic-ref HEAD refs/heads/topic3");
    same(&world, &primary, &node, &repo.path);
    let dir = world.clone_of(&node.repo(&repo.path), "");
    assert_eq!(git(&dir).run("symbolic-ref HEAD").line(), "refs/heads/topic3");
}

/// An empty repository gets its first commit.
#[test]
fn the_first_commit_of_an_empty_repository() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::empty);
    let node = world.setup(&primary).set("compare_every = \"1s\"").start();
    same(&world, &primary, &node, &repo.path);
    repo.commit("main", "first", "1");
    mirrored(&world, &node, &repo);
    from_bucket(&node, || same(&world, &primary, &node, &repo.path));
    repo.delete_ref("refs/heads/main");
    mirrored(&world, &node, &repo);
    same(&world, &primary, &node, &repo.path);
}

/// The comparison with the primary runs unattended and finds what nobody asked for.
#[test]
fn changes_are_found_without_any_request() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let node = world.setup(&primary).set("compare_every = \"1s\"").start();
    mirrored(&world, &node, &repo);
    repo.commit("main", "new", "1");
    crate::oracle::in_bucket(&world, &node, &repo);
    repo.delete_ref("refs/heads/main");
    crate::oracle::in_bucket(&world, &node, &repo);
}

/// The answer streams: the client hears progress while it waits, and `git clone` shows it.
#[test]
fn progress_reaches_the_client() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let dir = world.unused("clone");
    let line = format!("clone --progress --mirror {} {}", node.repo(&repo.path), dir.display());
    let out = git(world.path()).run(&line);
    assert!(out.stderr.contains("remote: "), "{}", out.stderr);
    let quiet = world.unused("clone");
    let line = format!("clone -q --mirror {} {}", node.repo(&repo.path), quiet.display());
    assert!(!git(world.path()).run(&line).stderr.contains("remote: "), "--quiet asked for no progress");
}

/// SIGTERM: not ready at once, the clone under way ends well, then the process ends with 0.
#[test]
fn a_node_drains() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::big_blob);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    // A client that reads slowly: the request is under way when the signal comes.
    let body = crate::wire::command(
        "fetch",
        &["object-format=sha1"],
        &[&format!("want {}", repo.oid("refs/heads/main")), "no-progress", "done"],
    );
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    let head = format!(
        "POST /r.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nConnection: close\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    use std::io::{Read, Write};
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let mut first = [0u8; 4096];
    assert!(stream.read(&mut first).unwrap() > 0);
    node.signal("TERM");
    eventually("the node to be not ready", || match node.try_get("/readyz") {
        Ok(reply) if reply.status == 200 => None,
        _ => Some(()),
    });
    let mut total = first.len();
    let mut chunk = vec![0u8; 1 << 16];
    let mut tail = Vec::new();
    loop {
        match stream.read(&mut chunk).expect("the clone under way must not be cut") {
            0 => break,
            n => {
                total += n;
                tail.extend_from_slice(&chunk[..n]);
                let keep = tail.len().saturating_sub(16);
                tail.drain(..keep);
            }
        }
    }
    assert!(total > 8 << 20, "only {total} bytes came");
    assert!(tail.ends_with(b"0000\r\n0\r\n\r\n") || tail.ends_with(b"0000"), "{}", tail.escape_ascii());
    assert!(node.ended().success());
}
