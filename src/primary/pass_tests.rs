//! Passing through: real git clients with the mirror's `Primary` between them and the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ::http::Method;
use axum::body::Body as AxumBody;
use bytes::Bytes;
use futures::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::answer::RESULT;
use super::testing::*;
use super::*;
use crate::git::path::Service;

const ALICE: &str = "Basic YWxpY2U6Y2FuYXJ5"; // alice:canary

fn info_refs() -> Endpoint {
    Endpoint::InfoRefs(Some(Service::UploadPack))
}

/// Clones, fetches and pushes with git through `url` and compares with the repository in `root`.
async fn a_days_work(world: &World, url: &str, repo: &RepoPath, versions: &[&str], config: &[&str]) {
    let origin = world.root().join(repo.as_str());
    for version in versions {
        let copy = world.path(&format!("copy-{version}-{}", repo.as_str().replace('/', "-")));
        let protocol = format!("protocol.version={version}");
        let with = |args: &[&str]| -> Vec<String> {
            let all = [&["-c", &protocol][..], config, args].concat();
            all.into_iter().map(str::to_owned).collect()
        };
        let run = async |cwd: &std::path::Path, args: &[&str]| {
            let args = with(args);
            git(cwd, &args.iter().map(String::as_str).collect::<Vec<_>>()).await
        };
        run(&world.root(), &["clone", "-q", &format!("{url}/{repo}"), text(&copy)]).await;
        git(&copy, &["fsck", "--strict"]).await;
        // Bigger than http.postBuffer (1 MiB), so that git probes with `0000` and then sends chunks.
        let mut big = vec![0; 3 << 20];
        StdRng::seed_from_u64(crate::seed::seed()).fill(&mut big[..]);
        std::fs::write(copy.join(format!("big-{version}")), big).unwrap();
        world.commit(&copy, "small", version).await;
        run(&copy, &["push", "-q", "origin", "HEAD:refs/heads/main", "HEAD:refs/heads/new"]).await;
        assert_eq!(git(&origin, &["rev-parse", "main"]).await, git(&copy, &["rev-parse", "HEAD"]).await);
        git(&origin, &["fsck", "--strict"]).await;
        git(&origin, &["update-ref", "refs/heads/other", "topic"]).await;
        run(&copy, &["fetch", "-q", "--prune", "origin"]).await;
        run(&copy, &["push", "-q", "origin", ":refs/heads/new", ":refs/heads/other"]).await;
        run(
            &world.root(),
            &["clone", "-q", "--depth=1", &format!("{url}/{repo}"), &format!("{}-shallow", text(&copy))],
        )
        .await;
    }
}

#[tokio::test]
async fn git_works_through_it_with_an_http_primary() {
    let world = World::new();
    let repo = world.repo("team/app.git", "sha1").await;
    let root = world.root();
    let host = Server::start(move |request| guarded(root.clone(), vec![ALICE], request)).await;
    // The service credential is there, and must never help a client.
    let primary = host.primary_with(|settings| settings.credential = credential("alice:canary")).await;
    let mirror = Server::start(move |request| pass(primary.clone(), request)).await;

    let header = format!("http.extraHeader=Authorization: {ALICE}");
    a_days_work(&world, &mirror.url, &repo, &["2", "0"], &["-c", &header]).await;

    let (ok, _, said) = try_git(&world.root(), &["ls-remote", &format!("{}/{repo}", mirror.url)]).await;
    assert!(!ok && said.contains("could not read Username"), "{said}");
    let seen = host.seen();
    assert!(seen.iter().all(|seen| seen.header("authorization").is_none_or(|value| value == ALICE)));
    assert!(seen.iter().any(|seen| seen.header("authorization").is_none()), "no header in, no header out");
    assert!(seen.iter().all(|seen| !seen.header("host").unwrap().contains(&mirror.url["http://".len()..])));
}

#[tokio::test]
async fn git_works_through_it_with_a_directory() {
    let world = World::new();
    let settings =
        PrimarySettings { allow_push: true, ..PrimarySettings::new(Location::Directory(world.root())) };
    let primary = Primary::open(settings).await.unwrap();
    let mirror = Server::start(move |request| pass(primary.clone(), request)).await;
    for (format, version) in [("sha1", "1"), ("sha256", "2")] {
        let repo = world.repo(&format!("{format}.git"), format).await;
        a_days_work(&world, &mirror.url, &repo, &[version], &[]).await;
    }
}

#[tokio::test]
async fn challenges_come_back_unchanged() {
    let host = Server::start(|_| async { challenge() }).await;
    let primary = host.primary().await;
    let repo = RepoPath::parse("r").unwrap();
    let response =
        primary.send(request(Method::GET, &repo, info_refs(), ClientHeaders::none())).await.unwrap();
    assert_eq!(response.status, 401);
    let challenges: Vec<_> = response.headers.get_all("www-authenticate").iter().cloned().collect();
    assert_eq!(challenges, ["Basic realm=\"the host\"", "Bearer"]);
    assert_eq!(collected(response).await.unwrap(), "who are you?");
}

#[tokio::test]
async fn every_status_is_the_clients_and_redirects_are_not_followed() {
    let elsewhere = Server::start(|_| async { answer(200, &[], "") }).await;
    let repo = RepoPath::parse("r").unwrap();
    for status in [200, 206, 301, 302, 307, 308, 304, 400, 403, 404, 418, 429, 500, 503] {
        let to = format!("{}/r", elsewhere.url);
        let host = Server::start(move |_| {
            let to = to.clone();
            async move { answer(status, &[("Location", &to), ("Retry-After", "3")], "") }
        })
        .await;
        let sent = request(Method::GET, &repo, info_refs(), client(&[("Authorization", ALICE)]));
        let response = host.primary().await.send(sent).await.unwrap();
        assert_eq!(response.status, status);
        assert_eq!(response.headers["retry-after"], "3");
        assert_eq!(response.headers["location"], format!("{}/r", elsewhere.url));
        assert_eq!(host.seen().len(), 1, "asked once");
        let reached =
            host.primary_with(|settings| settings.credential = credential("a:b")).await.reach().await;
        assert_eq!(reached.is_ok(), status < 500);
        let seen = host.seen().pop().unwrap();
        assert_eq!((seen.target.as_str(), seen.header("authorization")), ("/", None));
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn bodies_and_encodings_are_not_touched() {
    let host = Server::start(|request: axum::extract::Request| async {
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        answer(200, &[("Content-Encoding", "gzip"), ("X-Length", &body.len().to_string())], body)
    })
    .await;
    let primary = host.primary().await;
    let repo = RepoPath::parse("r").unwrap();
    let bytes = Bytes::from_static(b"\x1f\x8b not really gzip");
    let cases = [
        (Body::Whole(bytes.clone()), true),
        (Body::Stream { pieces: Box::pin(stream::iter([Ok(bytes.clone())])), length: None }, false),
        (Body::Stream { pieces: Box::pin(stream::iter([Ok(bytes.clone())])), length: Some(18) }, true),
    ];
    for (body, length) in cases {
        let headers = client(&[("Accept-Encoding", "gzip, br"), ("Content-Encoding", "gzip")]);
        let sent = Request { body, ..request(Method::POST, &repo, Endpoint::ReceivePack, headers) };
        let response = primary.send(sent).await.unwrap();
        assert_eq!(response.headers["content-encoding"], "gzip");
        assert_eq!(collected(response).await.unwrap(), bytes);
        let seen = host.seen().pop().unwrap();
        assert_eq!(seen.header("accept-encoding"), Some("gzip, br"));
        let found = (seen.header("content-length"), seen.header("transfer-encoding"));
        assert_eq!(found, if length { (Some("18"), None) } else { (None, Some("chunked")) });
    }
}

#[tokio::test]
async fn a_request_that_breaks_off_never_looks_whole() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let whole = Arc::new(AtomicBool::new(false));
    let flag = whole.clone();
    let host = Server::start(move |request: axum::extract::Request| {
        let flag = flag.clone();
        async move {
            let body = axum::body::to_bytes(request.into_body(), usize::MAX).await;
            flag.store(body.is_ok(), Ordering::SeqCst);
            answer(200, &[], "")
        }
    })
    .await;
    let http = host.primary().await;
    let settings =
        PrimarySettings { allow_push: true, ..PrimarySettings::new(Location::Directory(world.root())) };
    let directory = Primary::open(settings).await.unwrap();
    for primary in [http, directory] {
        for length in [None, Some(1000)] {
            let broken = || std::io::Error::other("the client went away");
            let pieces = Box::pin(stream::iter([Ok(Bytes::from_static(b"0000")), Err(broken())]));
            let headers = client(&[("Content-Type", "application/x-git-receive-pack-request")]);
            let sent = Request {
                body: Body::Stream { pieces, length },
                ..request(Method::POST, &repo, Endpoint::ReceivePack, headers)
            };
            // An answer may begin before the break, but it cannot end well.
            let outcome = match primary.send(sent).await {
                Ok(response) => collected(response).await.map(drop),
                Err(error) => Err(error),
            };
            assert!(outcome.is_err(), "length {length:?}");
            assert!(!whole.load(Ordering::SeqCst));
        }
    }
}

/// Tells when it is dropped.
struct Dropped(Arc<tokio::sync::Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn dropping_the_answer_aborts_the_request() {
    let gone = Arc::new(tokio::sync::Notify::new());
    let guard = gone.clone();
    let host = Server::start(move |request: axum::extract::Request| {
        let guard = Dropped(guard.clone());
        async move {
            let hangs = request.uri().path().starts_with("/hangs");
            let endless = stream::repeat_with(move || {
                let _ = &guard;
                Ok::<_, std::io::Error>(Bytes::from_static(&[0; 4096]))
            });
            if hangs {
                let _keep = endless;
                std::future::pending::<()>().await;
                unreachable!()
            }
            answer(200, &[("Content-Type", RESULT)], AxumBody::from_stream(endless))
        }
    })
    .await;
    let primary = host.primary().await;
    let asks = |repo: &str| {
        request(Method::GET, &RepoPath::parse(repo).unwrap(), info_refs(), ClientHeaders::none())
    };
    let mut response = primary.send(asks("r")).await.unwrap();
    response.body.next().await.unwrap().unwrap();
    drop(response);
    soon(gone.notified()).await;

    let waiting = tokio::spawn({
        let (primary, asks) = (primary.clone(), asks("hangs"));
        async move { primary.send(asks).await.map(drop) }
    });
    until(|| host.seen().len() == 2).await;
    waiting.abort();
    soon(gone.notified()).await;
}

/// Processes whose environment names `root`: git's for this directory, and their children.
#[cfg(target_os = "linux")]
fn processes_of(root: &std::path::Path) -> usize {
    let environments = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("environ")).ok());
    let wanted = format!("GIT_PROJECT_ROOT={}", text(&root.canonicalize().unwrap()));
    environments
        .filter(|environment| environment.split(|byte| *byte == 0).any(|v| v == wanted.as_bytes()))
        .count()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn dropping_the_answer_ends_the_processes_behind_it() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let work = world.path("work-r.git");
    world.commit(&work, "big", &noise(9, 1_000_000)).await;
    git(&work, &["push", "-q", text(&world.root().join("r.git")), "HEAD:main"]).await;
    let primary = Primary::open(PrimarySettings::new(Location::Directory(world.root()))).await.unwrap();
    let wants = primary.refs(&repo, Auth::Service).await.unwrap().tips();
    until(|| processes_of(&world.root()) == 0).await;
    let spec = FetchSpec { wants, haves: vec![], hash: gix_hash::Kind::Sha1 };
    let mut pack = primary.fetch(&repo, &spec, None).await.unwrap();
    tokio::io::AsyncReadExt::read_exact(&mut pack, &mut [0; 4]).await.unwrap();
    assert!(processes_of(&world.root()) > 0, "the pack is bigger than all pipes");
    drop(pack);
    until(|| processes_of(&world.root()) == 0).await;
}

#[tokio::test]
async fn an_answer_that_falls_silent_ends_with_an_error() {
    let host = Server::start(|_| async {
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"first"))]);
        answer(200, &[], AxumBody::from_stream(first.chain(stream::pending())))
    })
    .await;
    let primary = host.primary_with(|settings| settings.timeouts.idle = Duration::from_secs(1)).await;
    let repo = RepoPath::parse("r").unwrap();
    let mut response =
        primary.send(request(Method::GET, &repo, info_refs(), ClientHeaders::none())).await.unwrap();
    assert_eq!(response.body.next().await.unwrap().unwrap(), "first");
    assert!(matches!(response.body.next().await.unwrap(), Err(PrimaryError::Timeout(_))));
    assert!(response.body.next().await.is_none());
}

#[tokio::test]
async fn a_directory_answers_as_a_host_would() {
    let world = World::new();
    world.repo("team/app.git", "sha1").await;
    std::os::unix::fs::symlink(world.path("work-team-app.git"), world.root().join("leak")).unwrap();
    let primary = Primary::open(PrimarySettings::new(Location::Directory(world.root()))).await.unwrap();
    let get = async |method: Method, repo: &str, endpoint: Endpoint| {
        let repo = RepoPath::parse(repo).unwrap();
        let response = primary.send(request(method, &repo, endpoint, ClientHeaders::none())).await.unwrap();
        (response.status.as_u16(), collected(response).await.unwrap())
    };
    let plain = |text: &str| Endpoint::Plain(text.into());
    assert_eq!(get(Method::GET, "team/app", plain("HEAD")).await, (200, "ref: refs/heads/main\n".into()));
    assert_eq!(get(Method::HEAD, "team/app", plain("HEAD")).await, (200, "".into()));
    let (status, refs) = get(Method::GET, "team/app.git", Endpoint::InfoRefs(None)).await;
    assert!(status == 200 && refs.ends_with(b"refs/tags/light\n"), "the dumb protocol");
    for (repo, endpoint) in [("leak", info_refs()), ("missing", info_refs()), ("team", info_refs())] {
        assert_eq!(get(Method::GET, repo, endpoint).await.0, 404, "{repo}");
    }
    assert_eq!(get(Method::GET, "team/app", plain("config")).await.0, 404);
    assert_eq!(get(Method::GET, "team/app", Endpoint::UploadPack).await.0, 405);
    assert_eq!(get(Method::POST, "team/app", Endpoint::UploadPack).await.0, 415);

    let (status, words) = get(Method::GET, "team/app", Endpoint::InfoRefs(Some(Service::ReceivePack))).await;
    assert!(status == 403 && String::from_utf8_lossy(&words).contains("allow_push"), "{words:?}");
    assert_eq!(get(Method::POST, "team/app", Endpoint::ReceivePack).await.0, 403);
}

/// Who may push to a directory: nobody, unless the repository or the operator says so, and nobody where it says no.
#[tokio::test]
async fn a_directory_takes_pushes_where_that_was_said() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let root = world.root().join(repo.as_str());
    for (allow_push, own, status) in [
        (false, None, 403),
        (true, None, 200),
        (false, Some("true"), 200),
        (true, Some("false"), 403),
        (false, Some("false"), 403),
    ] {
        match own {
            Some(word) => drop(git(&root, &["config", "http.receivepack", word]).await),
            None => drop(try_git(&root, &["config", "--unset", "http.receivepack"]).await),
        };
        let settings =
            PrimarySettings { allow_push, ..PrimarySettings::new(Location::Directory(world.root())) };
        let primary = Primary::open(settings).await.unwrap();
        let asked = request(
            Method::GET,
            &repo,
            Endpoint::InfoRefs(Some(Service::ReceivePack)),
            ClientHeaders::none(),
        );
        let response = primary.send(asked).await.unwrap();
        assert_eq!(response.status.as_u16(), status, "allow_push {allow_push}, http.receivepack {own:?}");
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_explained() {
    let open = async |location: Location, ca_file: Option<std::path::PathBuf>| {
        let settings = PrimarySettings { ca_file, ..PrimarySettings::new(location) };
        Primary::open(settings).await.unwrap_err().to_string()
    };
    let world = World::new();
    let root = world.root();
    let directory = Primary::open(PrimarySettings::new(Location::Directory(root.clone()))).await.unwrap();
    directory.reach().await.unwrap();
    std::fs::remove_dir(root).unwrap();
    assert!(directory.reach().await.unwrap_err().is_transient());
    let missing = world.path("missing");
    assert!(open(Location::Directory(missing.clone()), None).await.contains("missing"));
    let file = world.path("file");
    std::fs::write(&file, "no certificate").unwrap();
    assert!(open(Location::Directory(file.clone()), None).await.contains("not a directory"));
    let host = Location::parse("https://git.example.com", false).unwrap();
    assert!(open(host.clone(), Some(missing)).await.contains("certificate file"));
    assert!(open(host, Some(file)).await.contains("holds no PEM certificate"));
}

#[tokio::test]
async fn no_more_is_in_flight_than_the_other_end_takes() {
    const PIECE: usize = 64 << 10;
    const MOST: usize = 24 << 20; // sockets and windows, far below what is offered
    fn endless(
        taken: &Arc<AtomicUsize>,
    ) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        let taken = taken.clone();
        stream::repeat_with(move || {
            taken.fetch_add(PIECE, Ordering::SeqCst);
            Ok(Bytes::from_static(&[0; PIECE]))
        })
        .take(1 << 14)
    }
    let (down, up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let offered = down.clone();
    let host = Server::start(move |request: axum::extract::Request| {
        let body = AxumBody::from_stream(endless(&offered));
        async move {
            if request.method() == Method::POST {
                let _unread = request;
                std::future::pending::<()>().await;
            }
            answer(200, &[], body)
        }
    })
    .await;
    let primary = host.primary_with(|settings| settings.timeouts.idle = Duration::from_millis(500)).await;
    let repo = RepoPath::parse("r").unwrap();
    let pieces = Box::pin(endless(&up));
    let push = Request {
        body: Body::Stream { pieces, length: None },
        ..request(Method::POST, &repo, Endpoint::ReceivePack, ClientHeaders::none())
    };
    assert!(matches!(primary.send(push).await, Err(PrimaryError::Timeout(_))));
    let taken = up.load(Ordering::SeqCst);
    assert!((1..MOST).contains(&taken), "{taken} bytes were taken from the client");

    let get = request(Method::GET, &repo, info_refs(), ClientHeaders::none());
    let mut response = host.primary().await.send(get).await.unwrap();
    response.body.next().await.unwrap().unwrap();
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    let taken = down.load(Ordering::SeqCst);
    assert!((1..MOST).contains(&taken), "{taken} bytes were taken from the host");
}

/// What is logged, by everybody, at every level.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_credential_is_ever_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::level_filters::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let root = world.root();
    let host = Server::start(move |request| guarded(root.clone(), vec![ALICE], request)).await;
    for service in ["alice:canary", "mallory:canary", "canary"] {
        let primary = host.primary_with(|settings| settings.credential = credential(service)).await;
        let grants = Grants::new(primary.clone(), Duration::from_secs(1));
        for pair in
            [("Authorization", ALICE), ("Authorization", "Bearer canary"), ("Private-Token", "canary")]
        {
            let client = client(&[pair]);
            let sent = request(Method::GET, &repo, info_refs(), client.clone());
            tracing::info!(?sent, ?client, ?primary, "sending");
            let response = grants.observe(primary.send(sent).await.unwrap());
            tracing::info!(?response, "sent");
            let outcome = grants.check(&repo, &client, gix_hash::Kind::Sha1).await;
            tracing::info!(?outcome, "asked");
        }
        let outcome = primary.refs(&repo, Auth::Service).await;
        tracing::info!(?outcome, "listed");
        drop(host.primary().await.refs(&repo, Auth::Service).await);
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("listed") && text.contains("authorization"), "names are shown");
    for secret in ["canary", "YWxpY2U6Y2FuYXJ5", "bWFsbG9yeTpjYW5hcnk"] {
        assert!(!text.contains(secret), "{secret}");
    }
}

/// Answers that nobody reads hold all processes for what is passed on; grants and syncs have their own.
#[tokio::test]
async fn slow_readers_of_a_directory_hold_up_no_grant_and_no_sync() {
    let world = World::new();
    let repo = world.repo("r.git", "sha1").await;
    let bare = world.root().join("r.git");
    let oid = git(&bare, &["rev-parse", "main"]).await;
    let refs: String = (0..5_000).map(|n| format!("{oid} refs/heads/many/{n:040}\n")).collect();
    std::fs::write(
        bare.join("packed-refs"),
        format!("# pack-refs with: peeled fully-peeled sorted \n{refs}"),
    )
    .unwrap();
    let settings = PrimarySettings::new(Location::Directory(world.root()));
    let primary = Primary::open(settings).await.unwrap();
    let asks = || request(Method::GET, &repo, info_refs(), ClientHeaders::none());
    let unread = futures::future::join_all((0..64).map(|_| primary.send(asks()))).await;
    assert!(unread.iter().all(Result::is_ok));
    let waits = tokio::time::timeout(Duration::from_millis(300), primary.send(asks())).await;
    assert!(waits.is_err(), "all places are held");

    let grants = Grants::new(primary.clone(), Duration::ZERO);
    soon(grants.check(&repo, &ClientHeaders::none(), gix_hash::Kind::Sha1)).await.unwrap();
    soon(primary.refs(&repo, Auth::Service)).await.unwrap();
    drop(unread);
    soon(primary.send(asks())).await.unwrap();
}
