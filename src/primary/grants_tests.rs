//! Grants against hosts that say yes, no, and neither.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ::http::Method;
use gix_hash::Kind as HashKind;
use tokio::sync::Semaphore;

use super::answer::RESULT;
use super::testing::*;
use super::*;
use crate::git::path::Service;

const SHA1: HashKind = HashKind::Sha1;
const ALICE: (&str, &str) = ("Authorization", "Basic YWxpY2U6Y2FuYXJ5"); // alice:canary
const BOB: (&str, &str) = ("Authorization", "Basic Ym9iOmNhbmFyeQ=="); // bob:canary
const TTL: Duration = Duration::from_secs(30);

fn yes() -> axum::response::Response {
    answer(200, &[("Content-Type", RESULT)], "0000")
}

fn repo(name: &str) -> RepoPath {
    RepoPath::parse(name).unwrap()
}

async fn grants(server: &Server, ttl: Duration) -> Grants {
    Grants::new(server.primary().await, ttl)
}

#[tokio::test]
async fn real_hosts_say_yes_and_no() {
    let world = World::new();
    let repos = [
        (world.repo("old.git", "sha1").await, SHA1),
        (world.repo("new.git", "sha256").await, HashKind::Sha256),
    ];
    let root = world.root();
    let server = Server::start(move |request| guarded(root.clone(), vec![ALICE.1], request)).await;
    let grants = grants(&server, TTL).await;
    for (repo, hash) in &repos {
        let grant = grants.check(repo, &client(&[ALICE]), *hash).await.unwrap();
        assert!(grant.is_live() && grant.repo() == repo);
        for nobody in [ClientHeaders::none(), client(&[BOB])] {
            let Err(Refusal::Answer(denial)) = grants.check(repo, &nobody, *hash).await else { panic!() };
            assert_eq!((denial.status.as_u16(), &denial.body[..]), (401, &b"who are you?"[..]));
            assert_eq!(
                denial.headers.get_all("www-authenticate").iter().count(),
                2,
                "the challenge is whole"
            );
        }
        let wrong_hash = if *hash == SHA1 { HashKind::Sha256 } else { SHA1 };
        let bob = client(&[ALICE, ("X-Other", "1")]);
        let refusal = grants.check(repo, &bob, wrong_hash).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Unavailable(_)), "git dies: no yes");
    }
    let missing = grants.check(&repo("missing"), &client(&[ALICE]), SHA1).await;
    assert!(matches!(missing, Err(Refusal::Answer(denial)) if denial.status == 404));

    let directory = Primary::open(PrimarySettings::new(Location::Directory(world.root()))).await.unwrap();
    let grants = Grants::new(directory, TTL);
    for (repo, hash) in &repos {
        grants.check(repo, &ClientHeaders::none(), *hash).await.unwrap();
    }
}

#[tokio::test]
async fn a_host_that_asks_only_for_the_post_is_asked_there() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let root = world.root();
    let server = Server::start(move |request: axum::extract::Request| {
        let allowed = vec![ALICE.1];
        let root = root.clone();
        async move {
            match *request.method() {
                Method::GET => backend(root, request).await,
                _ => guarded(root, allowed, request).await,
            }
        }
    })
    .await;
    let primary = server.primary().await;
    let info_refs = Endpoint::InfoRefs(Some(Service::UploadPack));
    let open = primary.send(request(Method::GET, &repo, info_refs, ClientHeaders::none())).await.unwrap();
    assert_eq!(open.status, 200);
    let grants = Grants::new(primary, TTL);
    let open = grants.observe(open);
    collected(open).await.unwrap();
    assert!(grants.live(&repo, &ClientHeaders::none()).is_none(), "an open info/refs grants nothing");
    let refusal = grants.check(&repo, &ClientHeaders::none(), SHA1).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Answer(denial) if denial.status == 401));
    grants.check(&repo, &client(&[ALICE]), SHA1).await.unwrap();
}

#[tokio::test]
async fn whatever_is_neither_yes_nor_no_denies() {
    const TYPE: (&str, &str) = ("Content-Type", RESULT);
    let elsewhere = Server::start(|_| async { yes() }).await;
    let moved = [("Location", elsewhere.url.clone().leak() as &str)];
    type Case<'a> = (u16, Vec<(&'a str, &'a str)>, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (200, vec![], "0000"),
        (200, vec![("Content-Type", "text/html")], "0000"),
        (200, vec![("Content-Type", "application/x-git-upload-pack-result; charset=utf-8")], "0000"),
        (200, vec![TYPE], ""),
        (200, vec![TYPE], "000"),
        (200, vec![TYPE], "0003"),
        (200, vec![TYPE], "+004"),
        (200, vec![TYPE], "<html>"),
        (200, vec![TYPE], "001cERR access denied, sorry"),
        (200, vec![TYPE], "000f"),
        (201, vec![TYPE], "0000"),
        (204, vec![TYPE], ""),
        (206, vec![TYPE], "0000"),
        (301, moved.to_vec(), ""),
        (302, moved.to_vec(), ""),
        (307, moved.to_vec(), ""),
        (308, moved.to_vec(), ""),
        (400, vec![], ""),
        (402, vec![], ""),
        (405, vec![], ""),
        (407, vec![("Proxy-Authenticate", "Basic")], ""),
        (410, vec![], ""),
        (415, vec![], ""),
        (429, vec![("Retry-After", "3")], ""),
        (451, vec![], ""),
        (500, vec![TYPE], "0000"),
        (502, vec![], ""),
        (503, vec![("Retry-After", "3")], ""),
    ];
    for (status, headers, body) in cases {
        let shown = format!("{status} {headers:?} {body}");
        let (headers, body): (Vec<_>, _) =
            (headers.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(), body.to_owned());
        let server = Server::start(move |_| {
            let (headers, body) = (headers.clone(), body.clone());
            async move {
                let headers: Vec<_> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
                answer(status, &headers, body)
            }
        })
        .await;
        let grants = grants(&server, TTL).await;
        let refusal = grants.check(&repo("r"), &client(&[ALICE]), SHA1).await.unwrap_err();
        let Refusal::Unavailable(error) = refusal else { panic!("{shown}") };
        assert!(!error.to_string().contains("canary"));
        if matches!(status, 429 | 503) {
            assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
        }
        assert!(grants.live(&repo("r"), &client(&[ALICE])).is_none(), "{shown}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn silence_and_closed_doors_deny() {
    let hanging = Server::start(|_| std::future::pending()).await;
    let short = |settings: &mut PrimarySettings| settings.timeouts.question = Duration::from_millis(200);
    let grants = Grants::new(hanging.primary_with(short).await, TTL);
    let refusal = grants.check(&repo("r"), &ClientHeaders::none(), SHA1).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Unavailable(PrimaryError::Timeout(_))));
    let primary = hanging.primary().await;
    drop(hanging);
    let refusal =
        Grants::new(primary, TTL).check(&repo("r"), &ClientHeaders::none(), SHA1).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Unavailable(PrimaryError::Unreachable(_))));
}

/// A host that answers yes once a place in `gate` is free.
async fn gated(gate: &Arc<Semaphore>) -> Server {
    let gate = gate.clone();
    Server::start(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            yes()
        }
    })
    .await
}

#[tokio::test]
async fn a_thousand_equal_questions_are_one() {
    let gate = Arc::new(Semaphore::new(0));
    let server = gated(&gate).await;
    let grants = grants(&server, TTL).await;
    let begun = Arc::new(AtomicUsize::new(0));
    let checks: Vec<_> = (0..1000)
        .map(|_| {
            let (grants, begun) = (grants.clone(), begun.clone());
            tokio::spawn(async move {
                begun.fetch_add(1, Ordering::SeqCst);
                grants.check(&repo("r"), &client(&[ALICE]), SHA1).await
            })
        })
        .collect();
    until(|| begun.load(Ordering::SeqCst) == 1000 && !server.seen().is_empty()).await;
    gate.add_permits(1000);
    for check in checks {
        check.await.unwrap().unwrap();
    }
    assert_eq!(server.seen().len(), 1);
    grants.check(&repo("r"), &client(&[ALICE]), SHA1).await.unwrap();
    assert_eq!(server.seen().len(), 1, "and it is remembered");
}

#[tokio::test]
async fn a_no_is_shared_by_those_who_wait_and_not_remembered() {
    let gate = Arc::new(Semaphore::new(0));
    let door = gate.clone();
    let server = Server::start(move |_| {
        let door = door.clone();
        async move {
            door.acquire().await.unwrap().forget();
            answer(401, &[("WWW-Authenticate", "Basic"), ("Set-Cookie", "session=1")], "no")
        }
    })
    .await;
    let grants = grants(&server, TTL).await;
    let check = || {
        let grants = grants.clone();
        tokio::spawn(async move { grants.check(&repo("r"), &ClientHeaders::none(), SHA1).await })
    };
    let checks = [check(), check(), check()];
    until(|| !server.seen().is_empty()).await;
    gate.add_permits(1);
    for check in checks {
        let Err(Refusal::Answer(denial)) = check.await.unwrap() else { panic!() };
        assert_eq!(denial.body, "no");
        assert!(!denial.headers.contains_key("set-cookie"), "a session is nobody else's");
    }
    assert_eq!(server.seen().len(), 1);
    gate.add_permits(1);
    assert!(check().await.unwrap().is_err());
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn who_goes_away_does_not_take_the_answer_along() {
    let gate = Arc::new(Semaphore::new(0));
    let server = gated(&gate).await;
    let grants = grants(&server, TTL).await;
    let check = || {
        let grants = grants.clone();
        tokio::spawn(async move { grants.check(&repo("r"), &client(&[ALICE]), SHA1).await })
    };
    let (first, second) = (check(), check());
    until(|| !server.seen().is_empty()).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    second.await.unwrap().unwrap();
    assert_eq!(server.seen().len(), 1);

    // When all of them are gone, so is the question; the next one asks anew.
    let last = tokio::spawn({
        let grants = grants.clone();
        async move { grants.check(&repo("other"), &client(&[ALICE]), SHA1).await }
    });
    until(|| server.seen().len() == 2).await;
    last.abort();
    let _ = last.await;
    gate.add_permits(2);
    grants.check(&repo("other"), &client(&[ALICE]), SHA1).await.unwrap();
    assert_eq!(server.seen().len(), 3);
}

/// Moves the clock; only while no answer is on its way, since waiting for one does not stop a paused clock.
async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_yes_is_believed_for_its_time_and_no_longer() {
    let server = Server::start(|_| async { yes() }).await;
    let alice = client(&[ALICE]);
    let grants = grants(&server, TTL).await;
    let grant = grants.check(&repo("r"), &alice, SHA1).await.unwrap();
    later(TTL - Duration::from_secs(10)).await;
    assert!(grant.is_live() && grants.live(&repo("r"), &alice).is_some());
    grants.check(&repo("r"), &alice, SHA1).await.unwrap();
    assert_eq!(server.seen().len(), 1);
    later(Duration::from_secs(10)).await;
    assert!(!grant.is_live() && grants.live(&repo("r"), &alice).is_none(), "using it does not prolong it");
    grants.check(&repo("r"), &alice, SHA1).await.unwrap();
    assert_eq!(server.seen().len(), 2);

    let grants = Grants::new(server.primary().await, Duration::MAX);
    grants.check(&repo("r"), &alice, SHA1).await.unwrap();
    later(grants::LONGEST_TTL).await;
    assert!(grants.live(&repo("r"), &alice).is_none(), "no setting makes it longer");

    let grants = Grants::new(server.primary().await, Duration::ZERO);
    let before = server.seen().len();
    for _ in 0..3 {
        grants.check(&repo("r"), &alice, SHA1).await.unwrap();
    }
    assert_eq!(server.seen().len(), before + 3, "zero asks each time");
}

#[tokio::test]
async fn grants_are_for_one_credential_and_one_repository() {
    let server = Server::start(|_| async { yes() }).await;
    let grants = grants(&server, TTL).await;
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("r", vec![]),
        ("r", vec![ALICE]),
        ("r", vec![BOB]),
        ("r", vec![("Authorization", "basic YWxpY2U6Y2FuYXJ5")]),
        ("r", vec![("Authorization", "Basic  YWxpY2U6Y2FuYXJ5")]),
        ("r", vec![("Authorization", "Basic YWxpY2U6Y2FuYXJ5=")]),
        ("r", vec![("Authorization", "Basic YWxpY2U6Y2FuYXJ")]),
        ("r", vec![("Authorization", "Bearer YWxpY2U6Y2FuYXJ5")]),
        ("r", vec![("Private-Token", "YWxpY2U6Y2FuYXJ5")]),
        ("r", vec![("Cookie", "s=1")]),
        ("r", vec![ALICE, ("Cookie", "s=1")]),
        ("r.git", vec![ALICE]),
        ("R", vec![ALICE]),
        ("r ", vec![ALICE]),
        ("team/r", vec![ALICE]),
    ];
    let ask = async |(name, pairs): &(&str, Vec<(&str, &str)>)| {
        grants.check(&repo(name), &client(pairs), SHA1).await.unwrap();
    };
    for (n, case) in cases.iter().enumerate() {
        ask(case).await;
        assert_eq!(server.seen().len(), n + 1, "{case:?} is one of its own");
    }
    for case in &cases {
        ask(case).await;
    }
    assert_eq!(server.seen().len(), cases.len(), "and each is remembered");
    // What the host saw is what the client sent.
    let seen: HashSet<_> =
        server.seen().iter().map(|s| s.header("authorization").map(str::to_owned)).collect();
    assert_eq!(seen.len(), 8);

    // Other agents of the same user share a grant.
    grants
        .check(&repo("r"), &client(&[ALICE, ("User-Agent", "JGit"), ("Accept", "*/*")]), SHA1)
        .await
        .unwrap();
    assert_eq!(server.seen().len(), cases.len());
    // A second process has another key.
    let others = Grants::new(server.primary().await, TTL);
    assert!(others.live(&repo("r"), &client(&[ALICE])).is_none());
}

#[tokio::test]
async fn the_question_holds_the_clients_headers_and_nothing_of_ours() {
    let server = Server::start(|_| async { yes() }).await;
    let primary = server.primary_with(|settings| settings.credential = credential("sync:canary")).await;
    let grants = Grants::new(primary, TTL);
    let sent = [
        ("Private-Token", "mine"),
        ("X-Original-URL", "/public.git/git-upload-pack"),
        ("X-Forwarded-Host", "public.example"),
        ("Content-Encoding", "gzip"),
        ("Git-Protocol", "version=0"),
        ("If-None-Match", "*"),
        ("Range", "bytes=0-0"),
    ];
    grants.check(&repo("team/secret.git"), &client(&sent), SHA1).await.unwrap();
    let seen = server.seen().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/team/secret.git/git-upload-pack"));
    let mut names: Vec<_> = seen.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "content-length",
        "content-type",
        "git-protocol",
        "host",
        "packmirror-hops",
        "private-token",
        "user-agent",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        (seen.header("git-protocol"), seen.header("private-token")),
        (Some("version=2"), Some("mine"))
    );
}

#[tokio::test]
async fn a_passed_through_fetch_is_a_yes_only_as_git_says_it() {
    let world = World::new();
    let real = world.repo("r.git", "sha1").await;
    let root = world.root();
    let err = Arc::new(AtomicBool::new(false));
    let denying = err.clone();
    let server = Server::start(move |request: axum::extract::Request| {
        let (root, denying) = (root.clone(), denying.load(Ordering::SeqCst));
        async move {
            if denying {
                return answer(200, &[("Content-Type", RESULT)], "0010ERR go away!");
            }
            guarded(root, vec![ALICE.1], request).await
        }
    })
    .await;
    let primary = server.primary().await;
    let grants = Grants::new(primary.clone(), TTL);
    let post = async |headers: &[(&str, &str)], endpoint: Endpoint| {
        let mut headers = headers.to_vec();
        headers.push(("Content-Type", "application/x-git-upload-pack-request"));
        headers.push(("Git-Protocol", "version=2"));
        let body = Body::Whole("0014command=ls-refs\n00010000".into());
        let sent = Request { body, ..request(Method::POST, &real, endpoint, client(&headers)) };
        let response = grants.observe(primary.send(sent).await.unwrap());
        collected(response).await.unwrap()
    };
    post(&[BOB], Endpoint::UploadPack).await;
    assert!(grants.live(&real, &client(&[BOB])).is_none(), "a 401 is no yes");
    err.store(true, Ordering::SeqCst);
    assert_eq!(post(&[ALICE], Endpoint::UploadPack).await, "0010ERR go away!");
    assert!(grants.live(&real, &client(&[ALICE])).is_none(), "nor is a 200 with an ERR");
    err.store(false, Ordering::SeqCst);
    let refs = post(&[ALICE], Endpoint::UploadPack).await;
    assert!(refs.ends_with(b"0000") && refs.len() > 100, "the bytes are passed on");
    let asked = server.seen().len();
    assert!(grants.live(&real, &client(&[ALICE])).is_some());
    grants.check(&real, &client(&[ALICE]), SHA1).await.unwrap();
    assert_eq!(server.seen().len(), asked, "no question is needed");
    assert!(grants.live(&repo("other"), &client(&[ALICE])).is_none());
    assert!(grants.live(&real, &client(&[BOB])).is_none());
    assert!(grants.live(&real, &ClientHeaders::none()).is_none());
}

#[tokio::test]
async fn withdrawing_takes_back_what_is_known_and_what_is_being_asked() {
    let gate = Arc::new(Semaphore::new(1));
    let server = gated(&gate).await;
    let grants = grants(&server, TTL).await;
    let alice = client(&[ALICE]);
    grants.check(&repo("r"), &alice, SHA1).await.unwrap();
    gate.add_permits(1);
    grants.check(&repo("s"), &alice, SHA1).await.unwrap();
    grants.invalidate(&repo("r"));
    assert!(grants.live(&repo("r"), &alice).is_none());
    assert!(grants.live(&repo("s"), &alice).is_some(), "another repository's grants stay");

    // Withdrawn while the host is thinking: its yes is too old, so it is asked again.
    let asked = server.seen().len();
    let check = tokio::spawn({
        let (grants, alice) = (grants.clone(), alice.clone());
        async move { grants.check(&repo("r"), &alice, SHA1).await }
    });
    until(|| server.seen().len() == asked + 1).await;
    grants.invalidate(&repo("r"));
    gate.add_permits(2);
    check.await.unwrap().unwrap();
    assert_eq!(server.seen().len(), asked + 2);
    assert!(grants.live(&repo("r"), &alice).is_some());

    // A yes of a passed-through request that was asked before is too old as well.
    let sent = Request {
        body: Body::Whole("0000".into()),
        ..request(Method::POST, &repo("r"), Endpoint::UploadPack, client(&[BOB]))
    };
    gate.add_permits(1);
    let response = grants.observe(server.primary().await.send(sent).await.unwrap());
    grants.invalidate(&repo("r"));
    collected(response).await.unwrap();
    assert!(grants.live(&repo("r"), &client(&[BOB])).is_none());
}

/// A host that answers twice what it was asked once: the second answer is nobody's.
#[tokio::test]
async fn an_answer_that_nobody_asked_for_closes_its_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let host = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                    if !seen.ends_with(b"0000") {
                        continue;
                    }
                    let yes =
                        format!("HTTP/1.1 200 OK\r\nContent-Type: {RESULT}\r\nContent-Length: 4\r\n\r\n0000");
                    let no = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned();
                    let public = seen.starts_with(b"POST /public");
                    let answer = if public { yes.clone() + &yes } else { no };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    seen.clear();
                }
            });
        }
    });
    let settings = PrimarySettings::new(Location::parse(&url, false).unwrap());
    let grants = Grants::new(Primary::open(settings).await.unwrap(), Duration::ZERO);
    let client = ClientHeaders::none();
    for n in 1..=30 {
        grants.check(&repo("public"), &client, HashKind::Sha1).await.unwrap();
        let refusal = grants.check(&repo("private"), &client, HashKind::Sha1).await.unwrap_err();
        assert!(!matches!(refusal, Refusal::Answer(ref denial) if denial.status != 404), "{refusal:?}");
        assert!(opened.load(Ordering::SeqCst) >= n, "a connection with an answer too many was used again");
    }
    host.abort();
}
