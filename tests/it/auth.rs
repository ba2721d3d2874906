//! The primary decides who reads: not one byte of a repository without its yes to this credential, and no credential
//! anywhere but on the way to the primary.

use base64::Engine;

use crate::git::git;
use crate::node::Node;
use crate::oracle::{from_bucket, mirrored_at, same_as};
use crate::primary::{Primary, Repo, Wrong};
use crate::wire::{self, Reply};
use crate::world::{World, eventually};
use crate::{mirror_only, shapes};

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A raw v2 fetch of the tip: what a client without manners would send first.
fn fetch(node: &Node, repo: &Repo, headers: &[(&str, &str)]) -> Reply {
    fetch_oid(node, &repo.path, &repo.oid("refs/heads/main"), headers)
}

fn fetch_oid(node: &Node, path: &str, oid: &str, headers: &[(&str, &str)]) -> Reply {
    let want = format!("want {oid}");
    let body = wire::command("fetch", &["object-format=sha1"], &[&want, "no-progress", "done"]);
    let all = [&[wire::V2], headers].concat();
    wire::post(node.address(), &format!("/{path}/git-upload-pack"), &all, &body).expect("an answer")
}

#[track_caller]
fn no_pack(reply: &Reply) {
    let found = reply.body.windows(4).any(|w| w == b"PACK");
    assert!(!found, "{} with a pack: {} bytes", reply.status, reply.body.len());
}

/// A world with alice, bob, a service account, and a mirrored private repository that alice and the service may read.
struct Private {
    world: World,
    primary: Primary,
    repo: Repo,
    node: Node,
}

impl Private {
    fn new(settings: &[&str]) -> Self {
        let (world, primary) = (World::new(), Primary::start());
        for user in ["alice", "bob", "service"] {
            primary.account(user, &format!("{user}pw"));
        }
        let repo = primary.repo("team/private.git", shapes::town);
        primary.private(&repo.path, &["alice", "service"]);
        let mut setup = world.setup(&primary).set("credential = \"service:servicepw\"");
        for line in settings {
            setup = setup.set(line);
        }
        let node = setup.start();
        mirrored_at(&world, &node, &node.repo_as("alice", "alicepw", &repo.path), &repo);
        Private { world, primary, repo, node }
    }
}

#[test]
fn who_may_read_reads_from_the_bucket() {
    let p = Private::new(&[]);
    from_bucket(&p.node, || same_as(&p.world, &p.primary, &p.node, "alice", "alicepw", &p.repo.path));
    p.repo.commit("main", "new", "1");
    same_as(&p.world, &p.primary, &p.node, "alice", "alicepw", &p.repo.path);
}

#[test]
fn tokens_and_bearer_headers() {
    let p = Private::new(&[]);
    p.primary.token("alice", "glpat-canary");
    same_as(&p.world, &p.primary, &p.node, "x-access-token", "glpat-canary", &p.repo.path);
    let dir = p.world.unused("clone");
    let g = git(p.world.path()).config("http.extraHeader", "Authorization: Bearer glpat-canary");
    let line = format!("clone -q --mirror {} {}", p.node.repo(&p.repo.path), dir.display());
    from_bucket(&p.node, || g.run(&line));
}

/// Refusals and challenges are the primary's own.
#[test]
fn who_may_not_read_gets_the_primarys_answer() {
    let p = Private::new(&[]);
    let (bob, wrong) = (basic("bob", "bobpw"), basic("alice", "wrong"));
    for header in [None, Some(&bob), Some(&wrong), Some(&"Bearer nonsense".to_owned())] {
        let headers: Vec<(&str, &str)> = header.iter().map(|h| ("Authorization", h.as_str())).collect();
        let path = format!("/{}/info/refs?service=git-upload-pack", p.repo.path);
        let all = [&[wire::V2], &headers[..]].concat();
        let ours = wire::get(p.primary.address(), &path, &all).unwrap();
        let theirs = wire::get(p.node.address(), &path, &all).unwrap();
        assert_eq!(theirs.status, ours.status, "{header:?}");
        assert!([401, 404].contains(&theirs.status));
        assert_eq!(theirs.header("www-authenticate"), ours.header("www-authenticate"));
        assert_eq!(theirs.body, ours.body);

        let reply = fetch(&p.node, &p.repo, &headers);
        assert_eq!(reply.status, ours.status, "{header:?}");
        assert_eq!(reply.header("www-authenticate"), ours.header("www-authenticate"));
        no_pack(&reply);
    }
    // The same through git, which asks for a password it does not get.
    let ask = |url: &str| git(p.world.path()).args(&["ls-remote", url]);
    ask(&p.node.repo(&p.repo.path)).must_fail(&["could not read Username"]);
    ask(&p.node.repo_as("alice", "wrong", &p.repo.path)).must_fail(&["Authentication failed"]);
    ask(&p.node.repo_as("bob", "bobpw", &p.repo.path)).must_fail(&["not found"]);
}

#[test]
fn forbidden_stays_forbidden() {
    let p = Private::new(&[]);
    p.primary.refuse_with(&p.repo.path, 403);
    let bob = basic("bob", "bobpw");
    let reply = fetch(&p.node, &p.repo, &[("Authorization", &bob)]);
    assert_eq!(reply.status, 403);
    no_pack(&reply);
    git(p.world.path())
        .args(&["ls-remote", &p.node.repo_as("bob", "bobpw", &p.repo.path)])
        .must_fail(&["403"]);
}

/// The service credential opens nothing to clients.
#[test]
fn the_service_credential_stays_with_the_sync() {
    mirror_only!();
    let p = Private::new(&[]);
    let service = basic("service", "servicepw");
    p.primary.forget_log();
    no_pack(&fetch(&p.node, &p.repo, &[]));
    git(p.world.path()).args(&["ls-remote", &p.node.repo(&p.repo.path)]).must_fail(&[]);
    let asked = p.primary.log();
    assert!(!asked.is_empty(), "the primary must be asked");
    for seen in asked {
        // A comparison may run meanwhile, by its own name.
        let ours = seen.header("user-agent").is_some_and(|a| a.contains("packmirror"));
        let client = !ours || seen.body.windows(21).any(|w| w == b"refs/packmirror/none/");
        let with_service = seen.header("authorization") == Some(service.as_str());
        assert!(!(client && with_service), "{} {}", seen.method, seen.path);
    }
}

#[test]
fn a_revoked_token_ends() {
    let p = Private::new(&["grant_ttl = \"1s\""]);
    p.primary.token("alice", "short-lived");
    let header = "Bearer short-lived";
    let ask = || fetch(&p.node, &p.repo, &[("Authorization", header)]);
    assert_eq!(ask().status, 200);
    p.primary.revoke("short-lived");
    let reply = eventually("the refusal of a revoked token", || Some(ask()).filter(|r| r.status != 200));
    assert_eq!(reply.status, 401);
    no_pack(&reply);
}

#[test]
fn a_public_repository_becomes_private() {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::town);
    primary.account("alice", "alicepw");
    let node = world.setup(&primary).set("grant_ttl = \"1s\"").start();
    mirrored_at(&world, &node, &node.repo(&repo.path), &repo);
    assert_eq!(fetch(&node, &repo, &[]).status, 200);
    primary.private(&repo.path, &["alice"]);
    let reply =
        eventually("the refusal of nobody", || Some(fetch(&node, &repo, &[])).filter(|r| r.status != 200));
    assert_eq!(reply.status, 401);
    same_as(&world, &primary, &node, "alice", "alicepw", &repo.path);
}

/// Some hosts show `info/refs` to everybody and ask only at the POST.
#[test]
fn a_primary_that_asks_only_at_the_post() {
    let p = Private::new(&[]);
    p.primary.open_front(&p.repo.path);
    let reply = fetch(&p.node, &p.repo, &[]);
    assert_eq!(reply.status, 401);
    no_pack(&reply);
    same_as(&p.world, &p.primary, &p.node, "alice", "alicepw", &p.repo.path);
    git(p.world.path())
        .args(&["ls-remote", &p.node.repo(&p.repo.path)])
        .must_fail(&["could not read Username"]);
}

/// Whatever else than a clear yes the primary says to the question, no pack leaves.
#[test]
fn errors_deny() {
    mirror_only!();
    let p = Private::new(&["grant_ttl = \"1s\""]);
    let wrongs = [
        Wrong::Status(500, vec![]),
        Wrong::Status(502, vec![]),
        Wrong::Status(503, vec![("retry-after", "1".into())]),
        Wrong::Status(429, vec![("retry-after", "1".into())]),
        Wrong::Status(204, vec![]),
        Wrong::Status(206, vec![("content-type", "application/x-git-upload-pack-result".into())]),
        Wrong::Status(304, vec![]),
        Wrong::Status(400, vec![]),
        Wrong::Status(410, vec![]),
        Wrong::Redirect(302, "http://127.0.0.1:1".into()),
        Wrong::Page,
        Wrong::Garbage(b"not a pkt-line".to_vec()),
        Wrong::Garbage(Vec::new()),
        Wrong::Garbage(b"0011ERR go away\n0000".to_vec()),
        Wrong::Cut(3),
        Wrong::Cut(0),
    ];
    for (n, wrong) in wrongs.into_iter().enumerate() {
        // A credential that was never seen: no grant can be remembered.
        p.primary.token("alice", &format!("fresh-{n}"));
        p.primary.fault(wrong.clone(), |_| true);
        let header = format!("Bearer fresh-{n}");
        let reply = fetch(&p.node, &p.repo, &[("Authorization", &header)]);
        no_pack(&reply);
        assert_ne!(reply.status, 0, "{wrong:?}: the connection was dropped without an answer");
        if !matches!(wrong, Wrong::Garbage(_) | Wrong::Cut(_)) {
            assert_ne!(reply.status, 200, "{wrong:?}");
        }
        p.primary.heal();
        let reply = fetch(&p.node, &p.repo, &[("Authorization", &header)]);
        assert_eq!(reply.status, 200, "after {wrong:?} the yes must be heard again");
    }
}

/// A redirect does not carry a credential, nor anything else, to another host.
#[test]
fn redirects_are_not_followed() {
    mirror_only!();
    let p = Private::new(&["grant_ttl = \"0s\""]);
    let elsewhere = Primary::start();
    elsewhere.account("alice", "alicepw");
    elsewhere.repo(&p.repo.path, shapes::linear);
    for status in [301, 302, 303, 307, 308] {
        p.primary.heal();
        p.primary.fault(Wrong::Redirect(status, elsewhere.url.clone()), |_| true);
        let alice = basic("alice", "alicepw");
        let headers = [wire::V2, ("Authorization", alice.as_str())];
        let path = format!("/{}/info/refs?service=git-upload-pack", p.repo.path);
        let reply = wire::get(p.node.address(), &path, &headers).unwrap();
        assert_ne!(reply.status, 200, "{status}");
        no_pack(&fetch(&p.node, &p.repo, &headers[1..]));
        let push = format!("/{}/git-receive-pack", p.repo.path);
        let reply = wire::post(p.node.address(), &push, &headers[1..], b"0000").unwrap();
        assert_ne!(reply.status, 200, "{status}");
    }
    let followed: Vec<_> = elsewhere.log().into_iter().map(|s| format!("{} {}", s.method, s.path)).collect();
    assert!(followed.is_empty(), "the mirror followed a redirect: {followed:?}");
}

/// An object of one repository is not to be had through another, by whatever kind of want.
#[test]
fn objects_stay_in_their_repository() {
    let p = Private::new(&[]);
    let open = p.primary.repo("open.git", shapes::linear);
    mirrored_at(&p.world, &p.node, &p.node.repo(&open.path), &open);
    for name in ["refs/heads/main", "refs/heads/main^{tree}", "refs/heads/main:README", "refs/tags/v1"] {
        let oid = p.repo.oid(name);
        let reply = fetch_oid(&p.node, &open.path, &oid, &[]);
        no_pack(&reply);
        assert!(reply.text().contains("not our ref"), "{} {}", reply.status, reply.text());
        // As a have it is not acknowledged either.
        let body = wire::command(
            "fetch",
            &["object-format=sha1"],
            &[&format!("want {}", open.oid("refs/heads/main")), &format!("have {oid}")],
        );
        let reply = wire::post(p.node.address(), "/open.git/git-upload-pack", &[wire::V2], &body).unwrap();
        assert!(!reply.text().contains("ACK"), "{}", reply.text());
    }
}

/// Two users at once through one node, each with other rights.
#[test]
fn grants_are_not_mixed_up() {
    let p = Private::new(&[]);
    let bobs = p.primary.repo("bob/own.git", shapes::merges);
    p.primary.private(&bobs.path, &["bob", "service"]);
    mirrored_at(&p.world, &p.node, &p.node.repo_as("bob", "bobpw", &bobs.path), &bobs);
    let (alice, bob) = (basic("alice", "alicepw"), basic("bob", "bobpw"));
    std::thread::scope(|s| {
        for _ in 0..4 {
            for (repo, who, right) in
                [(&p.repo, &alice, true), (&p.repo, &bob, false), (&bobs, &alice, false), (&bobs, &bob, true)]
            {
                let node = &p.node;
                s.spawn(move || {
                    let reply = fetch(node, repo, &[("Authorization", who)]);
                    assert_eq!(reply.status == 200, right, "{} for {}", reply.status, repo.path);
                    if !right {
                        no_pack(&reply);
                    }
                });
            }
        }
    });
}

/// Headers that two servers could read differently do not open a door.
#[test]
fn ambiguous_credentials() {
    mirror_only!();
    let p = Private::new(&[]);
    let (alice, bob) = (basic("alice", "alicepw"), basic("bob", "bobpw"));
    assert_eq!(fetch(&p.node, &p.repo, &[("Authorization", &alice)]).status, 200);
    for headers in [
        vec![("Authorization", bob.as_str()), ("Authorization", alice.as_str())],
        vec![("Authorization", alice.as_str()), ("Authorization", bob.as_str())],
    ] {
        let reply = fetch(&p.node, &p.repo, &headers);
        assert!(reply.status == 400 || reply.status == 401, "{}", reply.status);
        no_pack(&reply);
    }
    // What says who one is may be spelled otherwise than in `Authorization`: never somebody else's grant.
    for header in ["Basic", "Basic ", "basic YWxpY2U6", "Bearer", ""] {
        no_pack(&fetch(&p.node, &p.repo, &[("Authorization", header)]));
    }
    let cookie = fetch(&p.node, &p.repo, &[("Authorization", &bob), ("Cookie", &alice)]);
    no_pack(&cookie);
}

/// One question to the primary serves many equal requests.
#[test]
fn grants_are_remembered_for_their_time() {
    mirror_only!();
    let p = Private::new(&["grant_ttl = \"60s\""]);
    let alice = basic("alice", "alicepw");
    assert_eq!(fetch(&p.node, &p.repo, &[("Authorization", &alice)]).status, 200);
    p.primary.forget_log();
    std::thread::scope(|s| {
        for _ in 0..12 {
            s.spawn(|| assert_eq!(fetch(&p.node, &p.repo, &[("Authorization", &alice)]).status, 200));
        }
    });
    let by_alice = p.primary.count(|s| s.header("authorization") == Some(alice.as_str()));
    assert!(by_alice <= 1, "{by_alice} questions for one credential within its grant");
}

/// No credential is in any log, in the bucket, in the cache, or in what commands print.
#[test]
fn no_credential_is_kept_anywhere() {
    mirror_only!();
    let (user, password, token) = ("canaryuser", "canary-pw-8c1f", "canary-token-77aa");
    let (world, primary) = (World::new(), Primary::start());
    primary.account(user, password);
    primary.account("service", "canary-service-51");
    primary.token(user, token);
    let repo = primary.repo("team/private.git", shapes::town);
    primary.private(&repo.path, &[user, "service"]);
    let mut node = world
        .setup(&primary)
        .set("credential = \"service:canary-service-51\"")
        .set("log_level = \"trace\"")
        .start();
    let url = node.repo_as(user, password, &repo.path);
    mirrored_at(&world, &node, &url, &repo);
    same_as(&world, &primary, &node, user, password, &repo.path);
    same_as(&world, &primary, &node, user, token, &repo.path);
    let dir = world.clone_of(&url, "");
    git(&dir).run("commit -q --allow-empty -m pushed");
    git(&dir).run("push -q origin main");
    // Failures are where secrets slip into logs.
    fetch(&node, &repo, &[("Authorization", &basic(user, "canary-wrong"))]);
    fetch(&node, &repo, &[("Authorization", "Bearer canary-bearer")]);
    primary.fault(Wrong::Status(500, vec![]), |_| true);
    fetch(&node, &repo, &[("Authorization", &basic(user, password))]);
    wire::get(
        node.address(),
        &format!("/{}/info/refs?service=git-upload-pack&token={token}", repo.path),
        &[],
    )
    .unwrap();
    primary.heal();
    primary.down();
    fetch(&node, &repo, &[("Authorization", &basic(user, token))]);
    primary.up();

    let mut secrets: Vec<String> = Vec::new();
    for (user, secret) in
        [(user, password), (user, token), ("service", "canary-service-51"), (user, "canary-wrong")]
    {
        secrets.push(secret.to_owned());
        secrets.push(basic(user, secret)["Basic ".len()..].trim_end_matches('=').to_owned());
    }
    secrets.push("canary-bearer".into());
    let check = |what: &str, bytes: &[u8]| {
        for secret in &secrets {
            let at = bytes.windows(secret.len()).position(|w| w == secret.as_bytes());
            assert!(at.is_none(), "{what} holds {secret} at {at:?}");
        }
    };
    check("/metrics", &node.get("/metrics").body);
    for args in [&["status", "--json"][..], &["config"], &["doctor"], &["ls"]] {
        let out = node.command(args);
        check(&format!("packmirror {args:?}"), &[&out.stdout[..], out.stderr.as_bytes()].concat());
    }
    let arguments = std::fs::read(format!("/proc/{}/cmdline", node.pid())).unwrap_or_default();
    check("the command line", &arguments);
    node.kill();
    check("the log", node.log().as_bytes());
    for name in world.store.list("") {
        check(&name, &world.store.get(&name));
    }
    let mut folders = vec![node.cache().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => check(
                    &entry.path().display().to_string(),
                    &std::fs::read(entry.path()).unwrap_or_default(),
                ),
            }
        }
    }
}

/// The service credential may lie in a file, and may change while the node runs.
#[test]
fn the_service_credential_from_a_file() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    primary.account("service", "servicepw");
    let repo = primary.repo("r.git", shapes::linear);
    primary.private(&repo.path, &["service"]);
    let file = world.unused("secret");
    std::fs::write(&file, "service:servicepw\n").unwrap();
    let setup = world.setup(&primary).set(&format!("credential_file = {:?}", file.display().to_string()));
    let node = setup.start();
    node.command(&["sync", &repo.path]).must();
    assert_eq!(world.store.newest(&repo.path).unwrap()["manifest_digest"], repo.digest());
}
