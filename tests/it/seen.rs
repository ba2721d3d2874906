//! A node that can be seen: how it ends, what it says of requests and of syncs.

use std::time::{Duration, Instant};

use crate::front::free_port;
use crate::git::{clean, finish};
use crate::mirror_only;
use crate::node::Node;
use crate::primary::{Primary, Seen, Wrong};
use crate::shapes;
use crate::wire;
use crate::world::{World, eventually};

/// One request with another connection each.
fn status(address: &str, path: &str) -> Option<u16> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    wire::raw(address, head.as_bytes()).ok().map(|reply| reply.status)
}

/// What `/status` of an administrators' listener says.
fn rows(admin: &str) -> serde_json::Value {
    let head = b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    serde_json::from_slice(&wire::raw(admin, head).expect("an answer").body).expect("JSON")
}

/// Between the signal and the closing of the port load balancers learn of it, and nobody is refused.
#[test]
fn a_node_says_that_it_stops_before_it_refuses_anybody() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let admin = format!("127.0.0.1:{}", free_port());
    let setup = world.setup(&primary).set("drain_delay = \"3s\"");
    let mut node = setup.set(&format!("admin_listen = \"{admin}\"")).start();
    let refs = "/r.git/info/refs?service=git-upload-pack";
    // A connection from before the signal, kept alive.
    let mut kept = std::net::TcpStream::connect(node.address()).unwrap();
    let ask = |stream: &mut std::net::TcpStream| {
        use std::io::Write;
        stream.write_all(format!("GET {refs} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        wire::read_reply(stream, false).unwrap()
    };
    assert_eq!(ask(&mut kept).header("connection"), None);
    let signalled = Instant::now();
    node.signal("TERM");
    eventually("/readyz to say no", || (status(node.address(), "/readyz") == Some(503)).then_some(()));
    assert_eq!(status(node.address(), "/livez"), Some(200));
    let last = ask(&mut kept);
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    // As usual to the end of the delay.
    crate::git::git(world.path()).run(&format!(
        "clone -q {} {}",
        node.repo(&repo.path),
        world.unused("clone").display()
    ));
    while signalled.elapsed() < Duration::from_millis(2500) {
        assert_eq!(status(node.address(), refs), Some(200), "after {:?}", signalled.elapsed());
        assert_eq!(status(&admin, "/livez"), Some(200));
        assert_eq!(status(&admin, "/readyz"), Some(503));
    }
    assert!(node.ended().success());
    assert!(signalled.elapsed() >= Duration::from_secs(3), "{:?}", signalled.elapsed());
    assert!(node.log().contains("drained"), "{}", node.log());
}

/// While requests in flight end, the port is closed; administration still answers.
#[test]
fn a_draining_node_is_alive_for_its_administrators() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::big_blob);
    let admin = format!("127.0.0.1:{}", free_port());
    let mut node = world.setup(&primary).set(&format!("admin_listen = \"{admin}\"")).start();
    crate::git::git(world.path()).run(&format!("ls-remote -q {}", node.repo(&repo.path)));
    eventually("a mirrored repository", || (rows(&admin)[0]["state"] == "current").then_some(()));
    let mut client = slow_clone(&node, &repo.oid("refs/heads/main"));
    node.signal("TERM");
    eventually("a closed port", || std::net::TcpStream::connect(node.address()).is_err().then_some(()));
    assert_eq!(status(&admin, "/livez"), Some(200));
    assert_eq!(status(&admin, "/readyz"), Some(503));
    assert_eq!(status(&admin, "/metrics"), Some(200));
    let rows = rows(&admin);
    assert_eq!((&rows[0]["repo"], &rows[0]["generation"]), (&"r.git".into(), &1.into()));
    std::io::copy(&mut client, &mut std::io::sink()).unwrap();
    assert!(node.ended().success());
    node.logged(&["drained", "ended=1", "cut=0"]);
}

/// Metrics are for administrators alone once they have a listener.
#[test]
fn metrics_move_to_the_listener_of_administration() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let admin = format!("127.0.0.1:{}", free_port());
    let node = world.setup(&primary).set(&format!("admin_listen = \"{admin}\"")).start();
    // These are paths like any other now, and such go to the primary.
    assert_eq!(status(node.address(), "/metrics"), Some(307));
    assert_eq!(status(node.address(), "/readyz"), Some(200));
    assert_eq!(status(node.address(), "/status"), Some(307));
    assert_eq!(status(&admin, "/metrics"), Some(200));
    assert_eq!(
        status(&admin, "/r.git/info/refs?service=git-upload-pack"),
        Some(404),
        "no repositories there"
    );
}

/// A second signal, or Ctrl-C, waits for no load balancer.
#[test]
fn a_second_signal_ends_the_delay() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    for signals in [&["TERM", "TERM"][..], &["TERM", "INT"], &["INT"]] {
        let mut node = world.setup(&primary).set("drain_delay = \"1h\"").start();
        for (n, signal) in signals.iter().enumerate() {
            if n > 0 {
                eventually("the first signal", || {
                    (status(node.address(), "/readyz") == Some(503)).then_some(())
                });
            }
            node.signal(signal);
        }
        assert!(node.ended().success(), "{signals:?}");
    }
}

/// A fetch under way whose client has read its first bytes.
fn slow_clone(node: &Node, want: &str) -> std::net::TcpStream {
    use std::io::{Read, Write};
    let want = format!("want {want}");
    let body = wire::command("fetch", &["object-format=sha1"], &[&want, "no-progress", "done"]);
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    let head = format!(
        "POST /r.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nConnection: close\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    stream
}

/// Lets packs come slowly: some seconds for the shape that has most bytes.
fn trickles(primary: &Primary) {
    primary.fault(Wrong::Trickle(Duration::from_millis(6)), |seen: &Seen| seen.is("fetch"));
}

/// A sync is in the bucket's words of its node, and in the node's metrics, as soon as it has begun: `status` says from
/// anywhere what it does, how much of it, and since when.
#[test]
fn a_sync_is_seen_while_it_runs() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::big_blob);
    trickles(&primary);
    let admin = format!("127.0.0.1:{}", free_port());
    let node = world.setup(&primary).set(&format!("admin_listen = \"{admin}\"")).start();
    crate::git::git(world.path()).run(&format!("ls-remote -q {}", node.repo(&repo.path)));
    eventually("the fetch of a sync", || primary.log().iter().any(|seen| seen.is("fetch")).then_some(()));
    let begun = Instant::now();
    let sync = eventually("the sync in the words of its node", || {
        let rows: serde_json::Value =
            serde_json::from_str(&node.command(&["status", "--json"]).must().text()).unwrap();
        assert_ne!(rows[0]["state"], "current", "it ended unseen");
        Some(rows[0]["sync"].clone()).filter(|sync| sync["phase"] == "fetching")
    });
    // Far below the 30 seconds of an idle node's pace, on a machine under load.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(sync["begun"].is_string() && sync["since"].is_string(), "{sync}");
    let here = eventually("objects that were received", || {
        let sync = rows(&admin)[0]["sync"].clone();
        sync["received_bytes"].as_u64().filter(|bytes| *bytes > 0).map(|_| sync)
    });
    assert!(here["total"].as_u64() > Some(0), "the pack says how many objects it has: {here}");
    let metrics =
        wire::raw(&admin, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert!(metrics.text().contains("packmirror_repos{state=\"syncing\"} 1"), "{}", metrics.text());
    let table = node.command(&["status"]).must().text();
    assert!(table.contains("syncing") && table.contains("the sync began"), "{table}");
    eventually("its end in the words of its node", || {
        node.command(&["status"]).must().text().contains("current").then_some(())
    });
}

/// On a terminal `sync` shows each phase with per cent and a rate, above which the log's lines stay whole; elsewhere nothing.
#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    primary.repo("r.git", shapes::big_blob);
    trickles(&primary);
    // A directory: the shell of `script` has no keys of an S3 server.
    let setup = world.setup(&primary).store(&world.on_side("terminal"));
    let plain = setup.clone().store(&world.on_side("plain")).command(&["sync", "r.git"]).must();
    assert!(!plain.stderr.contains(['\u{1b}', '\r', '%']), "{}", plain.stderr);
    let cache = world.folder("cache");
    let command = setup.line(&["sync", "r.git"], &cache);
    let mut script = std::process::Command::new("script");
    clean(&mut script);
    script.env("TERM", "xterm").current_dir(world.path()).args(["-qec", &command, "/dev/null"]);
    let out = finish(script, b"", Duration::from_secs(60)).must();
    // Without the terminal's codes.
    let mut text = String::new();
    for (n, piece) in out.text().split('\u{1b}').enumerate() {
        let from =
            if n == 0 { 0 } else { piece.find(|c: char| c.is_ascii_alphabetic()).map_or(0, |at| at + 1) };
        text.push_str(&piece[from..]);
    }
    assert!(text.contains("fetching: ") && text.contains(" %  "), "{text}");
    assert!(text.contains("MiB/s") || text.contains("KiB/s"), "{text}");
    let alone = text.split(['\r', '\n']).any(|line| line.starts_with("r.git: generation"));
    assert!(alone, "the result has a line of its own: {text}");
    let logged: Vec<&str> = text.split(['\r', '\n']).filter(|line| line.contains("packmirror::")).collect();
    assert!(!logged.is_empty() && logged.iter().all(|line| line.starts_with("20")), "{logged:#?}");
}

/// The last line of the log about an answered request that has all of `words`.
#[track_caller]
fn line(node: &Node, words: &[&str]) -> String {
    let all: Vec<&str> = std::iter::once(" answered ").chain(words.iter().copied()).collect();
    node.logged(&all)
}

/// Each request has one line: which repository, what it was, who answered and why, how much and how fast; never a secret.
#[test]
fn each_request_has_one_line() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    primary.account("alice", "s3cret-word");
    let repo = primary.repo("team/app.git", shapes::town);
    primary.private("team/app.git", &["alice"]);
    let node =
        world.setup(&primary).set("credential = \"alice:s3cret-word\"").set("log_level = \"info\"").start();
    crate::oracle::mirrored_at(&world, &node, &node.repo_as("alice", "s3cret-word", &repo.path), &repo);
    line(
        &node,
        &["kind=\"refs\"", "source=\"primary\"", "reason=\"live\"", "status=401", "repo=\"team/app.git\""],
    );
    line(&node, &["kind=\"ls-refs\"", "source=\"primary\"", "reason=\"live\"", "status=200"]);
    let url = node.repo_as("alice", "s3cret-word", &repo.path);
    let git = crate::git::git(world.path()).config("http.extraHeader", "X-Gitaly-Correlation-ID: job-4711");
    let dir = world.unused("clone");
    crate::oracle::from_bucket(&node, || git.run(&format!("clone -q --mirror {url} {}", dir.display())));
    let clone = line(
        &node,
        &["id=\"job-4711\"", "kind=\"clone\"", "source=\"bucket\"", "reason=\"fetch\"", "ended=\"whole\""],
    );
    let number = |name: &str| -> u64 {
        let found = clone.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("{name}: {clone}")).1;
        found.split(' ').next().unwrap().parse().unwrap()
    };
    let objects = crate::git::git(&dir).run("rev-list --objects --all --count").line();
    assert_eq!(number("objects").to_string(), objects);
    assert!(number("bytes") > 1000 && number("total_ms") >= number("first_ms"), "{clone}");
    repo.commit("main", "new", "1\n");
    crate::git::git(&dir).run("fetch -q origin");
    line(&node, &["kind=\"fetch\"", "repo=\"team/app.git\"", "status=200"]);
    let told = |id: &str| {
        let head = format!(
            "GET /team/app.git/HEAD?token=s3cret-word HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n"
        );
        wire::raw(node.address(), head.as_bytes()).unwrap().header("x-request-id").map(str::to_owned)
    };
    assert_eq!(told("from-a-balancer").as_deref(), Some("from-a-balancer"));
    line(&node, &["id=\"from-a-balancer\"", "kind=\"file\"", "reason=\"other-endpoint\"", "status=401"]);
    assert_eq!(told("not \"sane\""), None, "git's answers have no such header");
    assert_eq!(status(node.address(), "/readyz"), Some(200));
    let log = node.log();
    assert!(!log.contains("s3cret") && !log.contains("readyz") && !log.contains("token="), "{log}");
    let metrics = node.get("/metrics").text();
    for name in [
        "packmirror_answer_first_byte_seconds_bucket{kind=\"clone\",source=\"bucket\",le=\"3600\"}",
        "packmirror_answer_duration_seconds_count{kind=\"clone\",source=\"bucket\"}",
        "packmirror_answer_bytes_total{source=\"primary\"}",
        "packmirror_store_requests_total{op=\"create\",outcome=\"ok\"}",
        "packmirror_store_request_duration_seconds_count{op=\"get\",outcome=\"ok\"}",
        "packmirror_primary_requests_total{op=\"upload-pack\",outcome=\"ok\"}",
        "packmirror_primary_up 1",
        "packmirror_staleness_seconds ",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name} is missing in\n{metrics}");
    }
}

/// A primary that is away is told once for all requests and repositories, and so is its return.
#[test]
fn trouble_with_the_primary_is_told_once() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repos: Vec<_> = (0..4).map(|n| primary.repo(&format!("r{n}.git"), shapes::linear)).collect();
    let node = world.setup(&primary).set("compare_every = \"1s\"").set("log_level = \"info\"").start();
    for repo in &repos {
        crate::oracle::mirrored(&world, &node, repo);
    }
    primary.down();
    for repo in repos.iter().chain(&repos) {
        crate::git::git(world.path())
            .try_run(&format!("ls-remote -q {}", node.repo(&repo.path)))
            .must_fail(&[]);
    }
    eventually("each repository to fail", || {
        (node.metric("packmirror_backoff_repos", &[]) >= 4.0).then_some(())
    });
    assert_eq!(node.metric("packmirror_primary_up", &[]), 0.0);
    primary.up();
    node.logged(&["the primary answers again"]);
    eventually("the primary to be up", || (node.metric("packmirror_primary_up", &[]) == 1.0).then_some(()));
    let log = node.log();
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains(" WARN ") && !line.contains("again")).collect();
    // Two failures in a row are trouble; until then a repository may have told its own.
    assert!(told.len() <= 4, "{told:#?}");
    assert_eq!(
        told.iter().filter(|line| line.contains("the primary does not answer")).count(),
        1,
        "{told:#?}"
    );
}

/// The repositories of which a node knows that a generation is published.
fn states(node: &Node) -> String {
    node.command(&["status"]).must().text()
}

/// A repository that was taken out is served by no node, also not after a restart, until a client asks for it again; then the
/// numbers of its generations go on.
#[test]
fn a_repository_is_taken_out_until_a_client_asks_again() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let (repo, other) =
        (primary.repo("team/app.git", shapes::linear), primary.repo("other.git", shapes::linear));
    let quick = || world.setup(&primary).set("compare_every = \"1s\"").start();
    let (mut one, two) = (quick(), quick());
    for repo in [&repo, &other] {
        crate::oracle::mirrored(&world, &one, repo);
        crate::oracle::from_bucket(&two, || {
            eventually("both nodes to have it", || {
                let before = two.answered_from_bucket();
                world.clone_of(&two.repo(&repo.path), "--mirror");
                (two.answered_from_bucket() > before).then_some(())
            })
        });
    }
    one.kill();
    two.command(&["rm", "absent.git"]).must_fail(&["no repository"]);
    two.command(&["rm", "team/app.git"]).must();
    two.command(&["rm", "team/app.git"]).must_fail(&["no repository"]);
    assert!(!two.command(&["ls"]).must().text().contains("team/app.git "), "ls does not show it");
    two.command(&["export", "team/app.git", "out"]).must_fail(&[]);
    two.logged(&["taken out of the mirror", "team/app.git"]);
    // A node that mirrored it before it was stopped does not bring it back by itself.
    one.restart();
    one.logged(&["taken out of the mirror", "team/app.git"]);
    eventually("the words of both nodes", || {
        let states = states(&two);
        (!states.contains("team/app.git ") && states.contains("other.git")).then_some(())
    });
    let newest = world.store.newest(&repo.path).expect("a record");
    assert_eq!((&newest["removed"], &newest["number"]), (&true.into(), &2.into()));
    crate::oracle::from_bucket(&two, || world.clone_of(&two.repo(&other.path), "--mirror"));
    // The first client gets it from the primary and brings it back, exactly.
    let before = two.answered_from_bucket();
    world.clone_of(&two.repo(&repo.path), "--mirror");
    assert_eq!(two.answered_from_bucket(), before, "not from the bucket");
    crate::oracle::in_bucket(&world, &two, &repo);
    assert_eq!(world.store.newest(&repo.path).expect("a record")["number"], 3);
    eventually("the bucket to answer", || {
        let before = two.answered_from_bucket();
        world.clone_of(&two.repo(&repo.path), "--mirror");
        (two.answered_from_bucket() > before).then_some(())
    });
    crate::oracle::same(&world, &primary, &two, &repo.path);
}

/// A repository that the primary has no more is told once, shown as gone, and served to nobody; what was published stays.
#[test]
fn a_repository_that_is_gone_is_told_once() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let node = world.setup(&primary).set("compare_every = \"1s\"").set("log_level = \"info\"").start();
    crate::oracle::mirrored(&world, &node, &repo);
    let aside = repo.dir.with_extension("aside");
    std::fs::rename(&repo.dir, &aside).unwrap();
    node.logged(&["gone: the primary does not have it", "r.git"]);
    eventually("its state", || states(&node).contains("gone").then_some(()));
    assert_eq!(node.metric("packmirror_repos", &["state=\"gone\""]), 1.0);
    let failed = || node.metric("packmirror_sync_runs_total", &["failed"]);
    let before = failed();
    eventually("another look", || (failed() > before).then_some(()));
    let log = node.log();
    assert_eq!(log.matches("gone: ").count(), 1, "{log}");
    assert!(!log.contains(" WARN "), "{log}");
    std::fs::rename(&aside, &repo.dir).unwrap();
    crate::git::git(world.path()).run(&format!("ls-remote -q {}", node.repo(&repo.path)));
    repo.commit("main", "again", "1\n");
    crate::oracle::mirrored(&world, &node, &repo);
    eventually("its state", || states(&node).contains("current").then_some(()));
}
