//! Requests nobody should send: paths, bodies and HTTP made to confuse. Each gets a clear refusal, reaches no other
//! host and nothing outside the repositories, and the node goes on.

use std::io::Write;
use std::net::TcpStream;

use crate::git::git;
use crate::node::Node;
use crate::oracle::{mirrored, same};
use crate::primary::{Primary, Repo, gzip};
use crate::wire::{self, Reply, pkt};
use crate::world::World;
use crate::{mirror_only, shapes};

fn set_up() -> (World, Primary, Repo, Node) {
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    (world, primary, repo, node)
}

/// Sends a request line as it is.
fn line(node: &Node, line: &str) -> Reply {
    let text =
        format!("{line}\r\nHost: {}\r\nConnection: close\r\nGit-Protocol: version=2\r\n\r\n", node.address());
    wire::raw(node.address(), text.as_bytes()).unwrap_or_else(|e| panic!("{line}: {e}"))
}

#[test]
fn hostile_paths_are_refused_and_go_nowhere() {
    mirror_only!();
    let (world, primary, repo, node) = set_up();
    mirrored(&world, &node, &repo);
    std::fs::write(primary.root().join("secret"), "secret\n").unwrap();
    primary.forget_log();
    let end = "/info/refs?service=git-upload-pack";
    for path in [
        "/../team/app.git",
        "/team/../team/app.git",
        "/team/./app.git",
        "/./team/app.git",
        "/team/app.git/..",
        "/team//app.git",
        "//team//app.git",
        "/team/app.git/",
        "/%2e%2e/team/app.git",
        "/team/%2e%2e/team/app.git",
        "/team/%2E/app.git",
        "/team/.%2e/app.git",
        "/team%2fapp.git",
        "/team%2Fapp.git",
        "/team%5c..%5capp.git",
        "/..%5c..%5cteam/app.git",
        "/team%5c%5capp.git",
        "/team\\app.git",
        "/team/app.git%00",
        "/team/app%00.git",
        "/team/app.git%0a",
        "/team/app.git%0d%0aX-Injected:%20yes",
        "/team/%252e%252e/app.git",
        "/team/app%252egit",
        "/team%252fapp.git",
        "/team%255capp.git",
        "/team/app%2500.git",
        "/team/app%2",
        "/team/app%zz.git",
        "/team/%ff%fe.git",
        "/team/%c0%ae%c0%ae/app.git",
        "/@evil.example/app.git",
        "/",
        "",
    ] {
        // A name that starts with @ is only a name, as long as it stays a path.
        let reply = line(&node, &format!("GET {path}{end} HTTP/1.1"));
        let fine = path.starts_with("/@") && reply.status == 404;
        assert!(fine || (400..500).contains(&reply.status), "{path}: {}", reply.status);
        assert!(!reply.text().contains("secret"), "{path}");
    }
    for odd in [
        format!("GET /team/{}/app.git{end} HTTP/1.1", "a".repeat(5000)),
        format!("GET /{}{end} HTTP/1.1", "a/".repeat(3000)),
        "GET /team/app.git/info/refs?service=git-evil HTTP/1.1".into(),
        "GET /team/app.git/info/refs?service=git-upload-pack%00 HTTP/1.1".into(),
        "GET /team/app.git/objects/../../../secret HTTP/1.1".into(),
        "GET /team/app.git/objects/%2e%2e/%2e%2e/%2e%2e/secret HTTP/1.1".into(),
        "GET /team/app.git/../../secret HTTP/1.1".into(),
        "CONNECT evil.example:443 HTTP/1.1".into(),
        "DELETE /team/app.git/info/refs HTTP/1.1".into(),
        "PUT /team/app.git/git-upload-pack HTTP/1.1".into(),
        "GET /team/app.git/git-upload-pack HTTP/1.1".into(),
        "TRACE / HTTP/1.1".into(),
        "OPTIONS * HTTP/1.1".into(),
    ] {
        let reply = line(&node, &odd);
        let shown = &odd[..odd.len().min(80)];
        assert!((400..500).contains(&reply.status), "{shown}: {} {}", reply.status, reply.text());
        assert!(!reply.text().contains("secret\n"), "{shown}");
    }
    for seen in primary.log() {
        let path = percent_encoding::percent_decode_str(&seen.path).decode_utf8_lossy().into_owned();
        let plain =
            !path.contains("..") && !path.contains("//") && !path.contains('\\') && !path.contains("/./");
        assert!(plain && !path.contains('\0'), "the primary was asked for {:?}", seen.path);
    }
    same(&world, &primary, &node, &repo.path);
}

/// Wherever a request says it wants to go, it goes to the configured primary or nowhere.
#[test]
fn other_hosts_are_never_contacted() {
    mirror_only!();
    let (_world, primary, repo, node) = set_up();
    let evil = Primary::start();
    evil.repo(&repo.path, shapes::linear);
    let to = evil.address();
    for request in [
        format!("GET http://{to}/team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: {to}"),
        format!("GET http://{to}/team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x"),
        format!("GET //{to}/team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x"),
        format!("GET /@{to}/team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x"),
        format!("GET @{to}/team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x"),
        format!("GET /http://{to}/team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x"),
        format!("GET /http:%2f%2f{to}/team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x"),
        format!("CONNECT {to} HTTP/1.1\r\nHost: {to}"),
        format!(
            "GET /team/app.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: {to}\r\nX-Forwarded-Host: {to}"
        ),
        format!(
            "POST http://{to}/team/app.git/git-upload-pack HTTP/1.1\r\nHost: {to}\r\nContent-Length: 4\r\n\r\n0000"
        ),
    ] {
        let text = format!("{request}\r\nConnection: close\r\n\r\n");
        let reply = wire::raw(node.address(), text.as_bytes());
        let absolute =
            request.contains("GET http") || request.contains("CONNECT") || request.contains("POST http");
        if let Ok(reply) = reply {
            assert!(!absolute || (400..500).contains(&reply.status), "{request}: {}", reply.status);
        }
    }
    let asked: Vec<_> = evil.log().into_iter().map(|s| format!("{} {}", s.method, s.path)).collect();
    assert!(asked.is_empty(), "the node contacted another host: {asked:?}");
    for seen in primary.log() {
        assert_ne!(seen.header("host"), Some(to), "another host's name was sent to the primary");
    }
}

#[test]
fn unknown_repositories_are_the_primarys_to_judge() {
    let (world, primary, _, node) = set_up();
    let ask = |url: String| git(world.path()).args(&["ls-remote", &url]);
    let ours = ask(primary.repo_url("no/such.git")).must_fail(&[]);
    let theirs = ask(node.repo("no/such.git")).must_fail(&[]);
    assert_eq!(ours.stderr.replace(&primary.url, ""), theirs.stderr.replace(&node.url, ""));
    for path in ["/no/such.git/info/refs?service=git-upload-pack", "/no/such.git/HEAD"] {
        let (ours, theirs) =
            (wire::get(primary.address(), path, &[]).unwrap(), wire::get(node.address(), path, &[]).unwrap());
        assert_eq!(ours.status, theirs.status, "{path}");
    }
    assert!(world.store.list("repos").is_empty() || world.store.generations("no/such.git").is_empty());
}

/// The old file-by-file protocol still works, passed through.
#[test]
fn dumb_paths_are_passed_through() {
    let (_world, primary, repo, node) = set_up();
    repo.git().run("update-server-info");
    repo.git().run("repack -adq");
    for path in ["HEAD", "info/refs", "objects/info/packs"] {
        let path = format!("/{}/{path}", repo.path);
        let ours = wire::get(primary.address(), &path, &[]).unwrap();
        let theirs = wire::get(node.address(), &path, &[]).unwrap();
        assert_eq!((theirs.status, &theirs.body), (ours.status, &ours.body), "{path}");
        assert_eq!(theirs.header("content-type"), ours.header("content-type"), "{path}");
    }
}

/// Bodies that are no git: an error in git's form or a 4xx, no pack, no crash, the same before and after mirroring.
#[test]
fn malformed_bodies() {
    mirror_only!();
    let (world, primary, repo, node) = set_up();
    mirrored(&world, &node, &repo);
    let tip = repo.oid("refs/heads/main");
    let fetch = |arguments: &[&str]| wire::command("fetch", &["object-format=sha1"], arguments);
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"0".to_vec(),
        b"000".to_vec(),
        b"0003".to_vec(),
        b"0004".to_vec(),
        b"zzzz".to_vec(),
        b"-001".to_vec(),
        b"+00a".to_vec(),
        b"ffff".to_vec(),
        b"fff1command=fetch".to_vec(),
        b"0014command=ls-refs\n".to_vec(),
        b"0001".to_vec(),
        b"0002".to_vec(),
        b"00010000".to_vec(),
        [&b"\x1f\x8b"[..], &[0; 30]].concat(),
        noise(),
        wire::command("evil", &[], &[]),
        wire::command("", &[], &[]),
        wire::command("fetch", &["object-format=sha512"], &["done"]),
        wire::command("fetch", &["object-format=sha256"], &["done"]),
        fetch(&["want"]),
        fetch(&["want nonsense"]),
        fetch(&[&format!("want {tip}{tip}")]),
        fetch(&[&format!("want {}", &tip[..39])]),
        fetch(&[&format!("want {}", tip.to_uppercase()), "done"]),
        fetch(&[&format!("want {tip}"), "have zzz", "done"]),
        fetch(&[&format!("want {tip}"), "deepen -1", "done"]),
        fetch(&[&format!("want {tip}"), "deepen 99999999999999999999", "done"]),
        fetch(&[&format!("want {tip}"), "deepen 1", "deepen-since 5", "done"]),
        fetch(&[&format!("want {tip}"), "filter nonsense", "done"]),
        fetch(&[&format!("want {tip}"), "filter combine:", "done"]),
        fetch(&[&format!("want {tip}"), "filter sparse:path=/etc/passwd", "done"]),
        fetch(&[&format!("want {tip}"), "shallow 123", "done"]),
        fetch(&[&format!("want {tip}"), "evil-argument", "done"]),
        fetch(&["want-ref refs/heads/none", "done"]),
        fetch(&["done"]),
        fetch(&[]),
        format!("{}0000", pkt("want 0000000000000000000000000000000000000000 multi_ack\n")).into_bytes(),
        format!("{}0000{}", pkt(&format!("want {tip} nonsense\n")), pkt("done\n")).into_bytes(),
        format!("{}0000{}", pkt(&format!("want {tip}\n")), pkt("have x\n")).into_bytes(),
    ];
    for body in bodies {
        for protocol in [Some(wire::V2), None] {
            let headers: Vec<_> = protocol.into_iter().collect();
            let path = format!("/{}/git-upload-pack", repo.path);
            let shown = body[..body.len().min(120)].escape_ascii().to_string();
            let ours =
                wire::post(primary.address(), &path, &headers, &body).expect("an answer of the primary");
            let reply = wire::post(node.address(), &path, &headers, &body)
                .unwrap_or_else(|e| panic!("{shown} ({protocol:?}): {e}"));
            assert_ne!(reply.status, 0, "{shown} ({protocol:?}): the connection was dropped");
            assert!(reply.status < 500, "{shown} ({protocol:?}): {} {}", reply.status, reply.text());
            let pack = |r: &Reply| r.body.windows(4).any(|w| w == b"PACK");
            assert!(!pack(&reply) || pack(&ours), "{shown} ({protocol:?}): a pack, where git gives none");
            if pack(&ours) {
                assert!(
                    pack(&reply),
                    "{shown} ({protocol:?}): no pack where git gives one: {}",
                    reply.text()
                );
            }
        }
    }
    assert!(!node.log().contains("panicked"), "something panicked");
    same(&world, &primary, &node, &repo.path);
}

fn noise() -> Vec<u8> {
    shapes::noise(99, 5000)
}

/// Peak of the process's resident memory in KiB.
fn peak(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn gzip_bombs_and_broken_gzip() {
    mirror_only!();
    let (world, primary, repo, node) = set_up();
    mirrored(&world, &node, &repo);
    let path = format!("/{}/git-upload-pack", repo.path);
    let gz = ("Content-Encoding", "gzip");
    let before = peak(&node);
    let bomb = gzip(&vec![b'0'; 200 << 20]);
    assert!(bomb.len() < 1 << 20);
    let real = wire::command("fetch", &[], &["done"]);
    let cut = gzip(&shapes::noise(1, 4000));
    for (what, headers, body) in [
        ("a bomb", vec![wire::V2, gz], bomb.clone()),
        ("a bomb in v0", vec![gz], bomb),
        ("cut", vec![wire::V2, gz], cut[..cut.len() / 2].to_vec()),
        ("no gzip", vec![wire::V2, gz], real.clone()),
        ("a wrong checksum", vec![wire::V2, gz], {
            let mut body = gzip(&real);
            let at = body.len() - 6;
            body[at] ^= 0xff;
            body
        }),
        ("an unknown coding", vec![wire::V2, ("Content-Encoding", "br")], real.clone()),
        ("two codings", vec![wire::V2, ("Content-Encoding", "gzip, gzip")], gzip(&gzip(&real))),
    ] {
        let reply = wire::post(node.address(), &path, &headers, &body).expect(what);
        assert!((400..500).contains(&reply.status), "{what}: {} {}", reply.status, reply.text());
    }
    let grown = peak(&node).saturating_sub(before);
    assert!(grown < 100 << 10, "{grown} KiB for gzip bombs");
    same(&world, &primary, &node, &repo.path);
}

/// What real clients gzip is understood.
#[test]
fn gzip_that_is_meant_well() {
    let (world, primary, repo, node) = set_up();
    mirrored(&world, &node, &repo);
    let body = wire::command(
        "fetch",
        &["object-format=sha1"],
        &[&format!("want {}", repo.oid("refs/heads/main")), "no-progress", "done"],
    );
    let path = format!("/{}/git-upload-pack", repo.path);
    let headers = [wire::V2, ("Content-Encoding", "gzip")];
    for address in [primary.address(), node.address()] {
        let reply = wire::post(address, &path, &headers, &gzip(&body)).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(wire::fetched(&reply.body, true).pack.starts_with(b"PACK"));
    }
}

#[test]
fn oversized_requests() {
    mirror_only!();
    let (world, primary, repo, node) = set_up();
    mirrored(&world, &node, &repo);
    // Before the node itself has opened it, a long body would be the primary's.
    same(&world, &primary, &node, &repo.path);
    let before = peak(&node);
    let path = format!("/{}/git-upload-pack", repo.path);
    // A promise of far too much: refused by its length alone, or after a bounded part of it.
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nConnection: close\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: 99999999999\r\n\r\n"
    );
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let _ = stream.write_all(head.as_bytes());
    let block = pkt(&format!("have {}\n", "1".repeat(40))).repeat(20_000);
    for _ in 0..100 {
        if stream.write_all(block.as_bytes()).is_err() {
            break;
        }
    }
    let reply = wire::read_reply(&mut stream, false).expect("an answer");
    assert!(reply.status == 413 || reply.status == 400 || reply.status == 0, "{}", reply.status);

    // A flood of haves in a body of allowed size: served or refused, but bounded.
    let tip = repo.oid("refs/heads/main");
    let mut haves: Vec<String> = (0..60_000).map(|n| format!("have {n:040x}")).collect();
    haves.insert(0, format!("want {tip}"));
    haves.push("done".into());
    let haves: Vec<&str> = haves.iter().map(String::as_str).collect();
    let body = wire::command("fetch", &["object-format=sha1"], &haves);
    let reply = wire::post(node.address(), &path, &[wire::V2], &body).unwrap();
    assert!(reply.status == 200 || (400..500).contains(&reply.status), "{}", reply.status);

    let long = "x".repeat(100 << 10);
    let reply = wire::get(node.address(), "/team/app.git/info/refs", &[("X-Long", &long)]).unwrap();
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    let many: Vec<(&str, &str)> = (0..500).map(|_| ("X-Many", "1")).collect();
    let reply = wire::get(node.address(), "/team/app.git/info/refs", &many).unwrap();
    assert!((400..500).contains(&reply.status), "{}", reply.status);

    let grown = peak(&node).saturating_sub(before);
    assert!(grown < 150 << 10, "{grown} KiB for oversized requests");
    same(&world, &primary, &node, &repo.path);
}

/// Requests that two servers in a row could cut differently.
#[test]
fn no_request_is_smuggled() {
    mirror_only!();
    let (world, primary, repo, node) = set_up();
    mirrored(&world, &node, &repo);
    primary.forget_log();
    let path = format!("/{}/git-receive-pack", repo.path);
    let hidden = "GET /smuggled.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n";
    for head in [
        format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content-Length: 0\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("Transfer-Encoding: identity, chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"),
        format!("X: a\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("Content-Length: +0\r\n\r\n{hidden}"),
    ] {
        let text = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}");
        let _ = wire::raw(node.address(), text.as_bytes());
    }
    let found = primary.count(|s| s.path.contains("smuggled"));
    assert_eq!(found, 0, "a request within a request reached the primary");
    same(&world, &primary, &node, &repo.path);
}

/// Headers for the connection, and what a client claims about itself, are not handed on as truth.
#[test]
fn hop_by_hop_headers_end_here() {
    mirror_only!();
    let (_world, primary, repo, node) = set_up();
    let path = format!("/{}/info/refs?service=git-upload-pack", repo.path);
    let headers = [
        ("Connection", "X-Private"),
        ("X-Private", "mine"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Proxy-Authorization", "Basic cHJveHk6cHc="),
    ];
    wire::get(node.address(), &path, &headers).unwrap();
    for seen in primary.log() {
        for name in ["x-private", "keep-alive", "te", "upgrade", "proxy-authorization"] {
            assert_eq!(seen.header(name), None, "{name} went on to the primary");
        }
    }
}

/// Clients that say little, slowly, or leave in the middle cost nothing lasting.
#[test]
fn clients_that_leave() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::big_blob);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    let path = format!("/{}/git-upload-pack", repo.path);
    let want = format!("want {}", repo.oid("refs/heads/main"));
    let body = wire::command("fetch", &["object-format=sha1"], &[&want, "done"]);
    for n in 0..40 {
        let mut stream = TcpStream::connect(node.address()).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let text = [head.as_bytes(), &body].concat();
        let upto = if n % 4 == 0 { text.len() } else { text.len() * (n % 4) / 4 };
        stream.write_all(&text[..upto]).unwrap();
    }
    same(&world, &primary, &node, &repo.path);
    crate::world::eventually("requests of clients that left to end", || {
        (node.metric("packmirror_inflight", &["service=\"fetch\""]) == 0.0).then_some(())
    });
}
