//! Our client against real git, and against hosts that misbehave.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body as AxumBody;
use bytes::Bytes;
use futures::{StreamExt, stream};
use gix_hash::{Kind as HashKind, ObjectId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::answer::{ADVERTISEMENT, RESULT};
use super::testing::*;
use super::*;
use crate::git::refs::{Head, Refs};

const SECRET: &str = "Basic c3luYzpjYW5hcnk="; // sync:canary

/// What git itself says of a repository's refs, in the words of `Refs`.
async fn as_git_says(world: &World, repo: &RepoPath, hash: HashKind) -> (Vec<String>, Head) {
    let dir = world.root().join(repo.as_str());
    let format = "--format=%(objectname) %(refname) %(*objectname)";
    let refs = git(&dir, &["for-each-ref", format]).await;
    let head = match try_git(&dir, &["symbolic-ref", "-q", "HEAD"]).await {
        (true, target, _) => Head::Symbolic { target: target.into() },
        _ => Head::Detached(ObjectId::from_hex(git(&dir, &["rev-parse", "HEAD"]).await.as_bytes()).unwrap()),
    };
    assert_eq!(git(&dir, &["rev-parse", "--show-object-format"]).await, hash.to_string());
    (refs.lines().map(|line| line.trim_end().to_owned()).collect(), head)
}

fn in_gits_words(refs: &Refs) -> Vec<String> {
    let line = |r: &crate::git::refs::Ref| match r.peeled {
        Some(peeled) => format!("{} {} {peeled}", r.oid, r.name),
        None => format!("{} {}", r.oid, r.name),
    };
    refs.refs.iter().map(line).collect()
}

async fn read(mut pack: Pack) -> Result<Vec<u8>, PrimaryError> {
    let mut bytes = Vec::new();
    match pack.read_to_end(&mut bytes).await {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Pack::error(&error).unwrap().clone()),
    }
}

/// Puts a pack into a repository and checks that everything the wants reach is there.
async fn take(dir: &std::path::Path, pack: &[u8], wants: &[ObjectId]) {
    let (ok, said) = git_with(dir, &["index-pack", "--stdin", "--fix-thin", "--strict"], pack).await;
    assert!(ok, "{said}");
    for want in wants {
        git(dir, &["rev-list", "--objects", "--quiet", &want.to_string()]).await;
    }
}

async fn both(world: &World) -> (Server, [Primary; 2]) {
    let root = world.root();
    let server = Server::start(move |request| guarded(root.clone(), vec![SECRET], request)).await;
    let http = server.primary_with(|settings| settings.credential = credential("sync:canary")).await;
    let location = Location::Directory(world.root());
    let directory = Primary::open(PrimarySettings::new(location)).await.unwrap();
    (server, [http, directory])
}

#[tokio::test]
async fn refs_are_what_git_says() {
    let world = World::new();
    let repos = [
        (world.repo("plain.git", "sha1").await, HashKind::Sha1),
        (world.repo("team/new.git", "sha256").await, HashKind::Sha256),
        (world.repo("detached.git", "sha1").await, HashKind::Sha1),
        (RepoPath::parse("empty.git").unwrap(), HashKind::Sha1),
    ];
    let detached = world.root().join("detached.git");
    git(&detached, &["update-ref", "--no-deref", "HEAD", "topic"]).await;
    git(&detached, &["symbolic-ref", "refs/heads/alias", "refs/heads/main"]).await;
    git(&world.root(), &["init", "-q", "--bare", "-b", "later", "empty.git"]).await;

    let (_server, primaries) = both(&world).await;
    for primary in &primaries {
        for (repo, hash) in &repos {
            let refs = primary.refs(repo, Auth::Service).await.unwrap();
            let (lines, head) = as_git_says(&world, repo, *hash).await;
            assert_eq!((in_gits_words(&refs), refs.head.clone(), refs.hash), (lines, head, *hash), "{repo}");
        }
        let refs = primary.refs(&repos[2].0, Auth::Service).await.unwrap();
        assert_eq!(refs.symrefs, [("refs/heads/alias".into(), "refs/heads/main".into())]);
    }
}

#[tokio::test]
async fn packs_hold_what_is_wanted_and_not_what_is_there() {
    let world = World::new();
    let (_server, primaries) = both(&world).await;
    for (format, hash) in [("sha1", HashKind::Sha1), ("sha256", HashKind::Sha256)] {
        let repo = world.repo(&format!("{format}.git"), format).await;
        let work = world.path(&format!("work-{format}.git"));
        for (n, primary) in primaries.iter().enumerate() {
            let ours = world.path(&format!("ours-{format}-{n}"));
            git(&world.root(), &["init", "-q", "--bare", &format!("--object-format={format}"), text(&ours)])
                .await;
            let old = primary.refs(&repo, Auth::Service).await.unwrap();
            let lines = Arc::new(Mutex::new(Vec::new()));
            let seen = lines.clone();
            let progress: Progress = Box::new(move |line| seen.lock().unwrap().push(line.to_owned()));
            let spec = FetchSpec { wants: old.tips(), haves: vec![], hash };
            let whole = read(primary.fetch(&repo, &spec, Some(progress)).await.unwrap()).await.unwrap();
            take(&ours, &whole, &spec.wants).await;
            assert!(lines.lock().unwrap().iter().any(|line| line.contains("objects")), "progress arrives");

            // A small change to a big file: the increment is thin.
            let changed = format!("{}one more line {n}\n", noise(0, 4000));
            world.commit(&work, "file0", &changed).await;
            let push = ["push", "-q", text(&world.root().join(repo.as_str())), "main"].map(str::to_owned);
            git(&work, &push.each_ref().map(String::as_str)).await;
            let new = primary.refs(&repo, Auth::Service).await.unwrap();
            let changed = new.refs.iter().filter(|r| old.find(&r.name) != Some(*r));
            assert_eq!(changed.map(|r| r.name.to_string()).collect::<Vec<_>>(), ["refs/heads/main"]);
            let spec = FetchSpec { wants: new.tips(), haves: old.tips(), hash };
            let more = read(primary.fetch(&repo, &spec, None).await.unwrap()).await.unwrap();
            assert!(more.len() < 2000 && more.len() < whole.len() / 10, "{} of {}", more.len(), whole.len());
            take(&ours, &more, &spec.wants).await;
        }
    }
}

#[tokio::test]
async fn long_requests_are_compressed_and_understood() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let (server, primaries) = both(&world).await;
    let unknown = (0..5000u32).map(|n| {
        let mut bytes = [7; 20];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        ObjectId::from(bytes)
    });
    for primary in &primaries {
        let refs = primary.refs(&repo, Auth::Service).await.unwrap();
        let haves = unknown.clone().chain(refs.tips()).collect();
        let spec = FetchSpec { wants: refs.tips(), haves, hash: HashKind::Sha1 };
        let pack = read(primary.fetch(&repo, &spec, None).await.unwrap()).await.unwrap();
        assert_eq!(&pack[..12], b"PACK\0\0\0\x02\0\0\0\0", "nothing is missing, so the pack is empty");
    }
    let seen = server.seen();
    let last = seen.last().unwrap();
    assert_eq!(
        (last.header("content-encoding"), last.header("git-protocol")),
        (Some("gzip"), Some("version=2"))
    );
    assert!(
        seen.iter().filter(|seen| seen.method == "GET").all(|seen| seen.target.ends_with("=git-upload-pack"))
    );
}

#[tokio::test]
async fn the_credential_opens_and_its_lack_is_said() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let root = world.root();
    let server = Server::start(move |request| guarded(root.clone(), vec![SECRET], request)).await;
    for wrong in [None, credential("sync:wrong-canary"), credential("canary")] {
        let status = 401;
        let expected = match &wrong {
            Some(_) => PrimaryError::Denied { status },
            None => PrimaryError::NeedsCredential { status },
        };
        let primary = server.primary_with(|settings| settings.credential = wrong).await;
        let error = primary.refs(&repo, Auth::Service).await.unwrap_err();
        assert_eq!(error, expected);
        assert!(!format!("{error} {error:?} {primary:?}").contains("canary"));
    }
    let primary = server.primary_with(|settings| settings.credential = credential("sync:canary")).await;
    assert!(primary.refs(&repo, Auth::Service).await.is_ok());
    let nobody = ClientHeaders::none();
    assert!(primary.refs(&repo, Auth::Client(&nobody)).await.is_err(), "a client's question is the client's");
    assert!(primary.refs(&repo, Auth::Client(&client(&[("Authorization", SECRET)]))).await.is_ok());
    let missing = RepoPath::parse("missing").unwrap();
    assert_eq!(primary.refs(&missing, Auth::Service).await.unwrap_err(), PrimaryError::NotFound);
}

#[tokio::test]
async fn redirects_are_reported_and_never_followed() {
    let elsewhere = Server::start(|_| async { answer(200, &[("Content-Type", ADVERTISEMENT)], "") }).await;
    for status in [301, 302, 303, 307, 308] {
        let to = format!("{}/r.git/info/refs?secret=canary", elsewhere.url);
        let server = Server::start(move |_| {
            let to = to.clone();
            async move { answer(status, &[("Location", &to)], "") }
        })
        .await;
        let primary = server.primary_with(|settings| settings.credential = credential("sync:canary")).await;
        let repo = RepoPath::parse("r.git").unwrap();
        let expected = PrimaryError::Moved { to: format!("{}/r.git/info/refs", elsewhere.url) };
        assert_eq!(primary.refs(&repo, Auth::Service).await.unwrap_err(), expected);
        let spec = FetchSpec { wants: vec![HashKind::Sha1.null()], haves: vec![], hash: HashKind::Sha1 };
        assert_eq!(primary.fetch(&repo, &spec, None).await.unwrap_err(), expected);
    }
    assert!(elsewhere.seen().is_empty(), "{:?}", elsewhere.seen());
}

/// A host that answers every request alike.
async fn always(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static [u8],
) -> PrimaryError {
    let server = Server::start(move |_| async move { answer(status, headers, body) }).await;
    let primary = server.primary().await;
    primary.refs(&RepoPath::parse("r").unwrap(), Auth::Service).await.unwrap_err()
}

#[tokio::test]
async fn every_bad_answer_is_an_error_of_its_kind() {
    const TYPE: (&str, &str) = ("Content-Type", ADVERTISEMENT);
    let error = always(503, &[("Retry-After", "17")], b"").await;
    assert_eq!(error.retry_after(), Some(Duration::from_secs(17)));
    assert!(error.is_transient());
    assert!(matches!(
        always(429, &[("Retry-After", "9")], b"").await,
        PrimaryError::ServerError { status: 429, .. }
    ));
    assert!(matches!(
        always(500, &[], b"").await,
        PrimaryError::ServerError { status: 500, retry_after: None }
    ));

    let page = always(200, &[("Content-Type", "text/html")], b"<html>log in</html>").await;
    assert!(matches!(&page, PrimaryError::NotGit(text) if text.contains("text/html")), "{page}");
    let files = b"95dcfa3633004da0049d3d0fa03f80589cbcaf31\trefs/heads/main\n";
    assert_eq!(always(200, &[("Content-Type", "text/plain")], files).await, PrimaryError::Dumb);
    for garbage in [&b"<html>"[..], b"0003", b"000eversion 2\n0001", b"000ahello\n", b"ffff"] {
        let error = always(200, &[TYPE], garbage).await;
        assert!(matches!(error, PrimaryError::Protocol(_)), "{}: {error}", garbage.escape_ascii());
    }
    for cut in [&b""[..], b"000eversion 2\n", b"00"] {
        let error = always(200, &[TYPE], cut).await;
        assert!(matches!(error, PrimaryError::Unreachable(_)), "{}: {error}", cut.escape_ascii());
    }
    let said = always(200, &[TYPE], b"000fERR go\x1baway").await;
    assert_eq!(said, PrimaryError::Remote("go away".into()));

    // An old server answers in v0, with or without refs; a long list is not read to its end.
    let v0 = b"001e# service=git-upload-pack\n0000004595dcfa3633004da0049d3d0fa03f80589cbcaf31 refs/heads/main\0agent=x\n0000";
    assert_eq!(always(200, &[TYPE], v0).await, PrimaryError::NoV2);
    let long: &'static [u8] = vec![b'x'; 1 << 20].leak();
    assert_eq!(always(200, &[TYPE], long).await, PrimaryError::NoV2);
}

#[tokio::test]
async fn silence_garbage_and_closed_doors_are_told_apart() {
    let repo = RepoPath::parse("r").unwrap();
    let short = |settings: &mut PrimarySettings| {
        settings.timeouts.question = Duration::from_millis(200);
        settings.timeouts.idle = Duration::from_millis(300);
    };
    let silent = Server::start(|_| std::future::pending()).await;
    let primary = silent.primary_with(short).await;
    assert!(matches!(primary.refs(&repo, Auth::Service).await.unwrap_err(), PrimaryError::Timeout(_)));
    let spec = FetchSpec { wants: vec![HashKind::Sha1.null()], haves: vec![], hash: HashKind::Sha1 };
    assert!(matches!(primary.fetch(&repo, &spec, None).await.unwrap_err(), PrimaryError::Timeout(_)));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let settings = PrimarySettings::new(Location::parse(&address, false).unwrap());
    let primary = Primary::open(settings).await.unwrap();
    let garbage = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 1024]).await;
        let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
    });
    let error = primary.refs(&repo, Auth::Service).await.unwrap_err();
    assert!(matches!(error, PrimaryError::Protocol(_)), "{error:?}");
    garbage.await.unwrap();
    let error = primary.refs(&repo, Auth::Service).await.unwrap_err();
    assert!(matches!(error, PrimaryError::Unreachable(_)), "nobody listens any more: {error:?}");
    assert!(!error.to_string().contains("http://"), "the cause is said, not the address again: {error}");
}

/// A host whose POST answers with `body` and then ends as usual, or breaks.
async fn fetching(body: &'static [u8], breaks: bool) -> Result<Vec<u8>, PrimaryError> {
    let server = Server::start(move |_| async move {
        let end = breaks.then(|| Err(std::io::Error::other("broken")));
        let pieces = stream::iter([Ok(Bytes::from_static(body))]).chain(stream::iter(end));
        answer(200, &[("Content-Type", RESULT)], AxumBody::from_stream(pieces))
    })
    .await;
    let primary = server.primary().await;
    let spec = FetchSpec { wants: vec![HashKind::Sha1.null()], haves: vec![], hash: HashKind::Sha1 };
    read(primary.fetch(&RepoPath::parse("r").unwrap(), &spec, None).await?).await
}

#[tokio::test]
async fn a_pack_that_stops_in_the_middle_is_not_a_pack() {
    let whole: &[u8] = b"000dpackfile\n0009\x01PACK0006\x02x0000";
    assert_eq!(fetching(whole, false).await.unwrap(), b"PACK");
    for cut in [0, 3, 13, 17, 22, 25, whole.len() - 1] {
        for breaks in [false, true] {
            let error = fetching(&whole[..cut], breaks).await.unwrap_err();
            assert!(matches!(error, PrimaryError::Unreachable(_)), "cut at {cut}: {error:?}");
        }
    }
    let shallow: &[u8] = b"0011shallow-info\n0034shallow 95dcfa3633004da0049d3d0fa03f80589cbcaf310001000dpackfile\n0009\x01PACK0000";
    assert_eq!(fetching(shallow, false).await.unwrap_err(), PrimaryError::Shallow);
    assert!(matches!(fetching(b"0000", false).await.unwrap_err(), PrimaryError::Protocol(_)));
    let dies: &[u8] = b"000dpackfile\n0009\x01PACK000a\x03ouch\n";
    assert_eq!(fetching(dies, false).await.unwrap_err(), PrimaryError::Remote("ouch".into()));
}

#[tokio::test]
async fn the_primarys_own_words_arrive() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let (_server, primaries) = both(&world).await;
    let wants = vec![ObjectId::from([9; 20])];
    for primary in &primaries {
        let spec = FetchSpec { wants: wants.clone(), haves: vec![], hash: HashKind::Sha1 };
        let error = primary.fetch(&repo, &spec, None).await.unwrap_err();
        let expected = PrimaryError::Remote(format!("upload-pack: not our ref {}", wants[0]));
        assert_eq!(error, expected);
        let nothing = FetchSpec { wants: vec![], haves: vec![], hash: HashKind::Sha1 };
        assert!(primary.fetch(&repo, &nothing, None).await.is_err());
    }
}
