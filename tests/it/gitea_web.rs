//! Gitea under its own name through a node with `other_paths = "pass"`: what people and programs do with a Git host beside Git.
//!
//! Requests go to the node and bear Gitea's own name as `Host`, as where that name leads to the mirror.

use std::path::Path;

use futures::StreamExt;

use crate::git::{Output, finish, git};
use crate::gitea::{Gitea, mirrored};
use crate::mirror_only;
use crate::node::{Node, Setup};
use crate::oracle::from_bucket;
use crate::world::{SOON, World, block_on, eventually, skip};

fn node(world: &World, gitea: &Gitea) -> Node {
    let service = format!("credential = \"siteadmin:{}\"", gitea.password("siteadmin"));
    Setup::new(world, gitea.url()).set(&service).set("other_paths = \"pass\"").start()
}

/// A browser: it keeps cookies, follows nothing, and goes to `at` whatever the name.
struct Browser<'t> {
    at: &'t str,
    name: &'t str,
    cookies: Vec<(String, String)>,
}

struct Page {
    status: u16,
    location: String,
    body: Vec<u8>,
}

impl Page {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl<'t> Browser<'t> {
    fn new(at: &'t str, gitea: &'t Gitea) -> Self {
        Self { at, name: gitea.url().trim_start_matches("http://"), cookies: Vec::new() }
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let redirect = reqwest::redirect::Policy::none();
        packmirror::tls::provide();
        let client = reqwest::Client::builder().no_proxy().redirect(redirect).build().expect("a client");
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let request = client.request(method, format!("{}{path}", self.at)).header("host", self.name);
        if cookies.is_empty() { request } else { request.header("cookie", cookies.join("; ")) }
    }

    fn send(&mut self, request: reqwest::RequestBuilder) -> Page {
        block_on(async {
            let reply = request.timeout(SOON).send().await.expect("an answer");
            for set in reply.headers().get_all("set-cookie") {
                let set = set.to_str().expect("a cookie").split(';').next().unwrap_or_default();
                let (name, value) = set.split_once('=').expect("a cookie");
                self.cookies.retain(|(known, _)| known != name);
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
            let location = reply
                .headers()
                .get("location")
                .and_then(|to| to.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            Page {
                status: reply.status().as_u16(),
                location,
                body: reply.bytes().await.expect("a body").to_vec(),
            }
        })
    }

    fn get(&mut self, path: &str) -> Page {
        let request = self.request("GET", path);
        self.send(request)
    }

    /// Sends a form from a page of `origin`.
    fn form(&mut self, path: &str, origin: &str, fields: &str) -> Page {
        let kind = "application/x-www-form-urlencoded";
        let request = self.request("POST", path).header("content-type", kind).header("origin", origin);
        self.send(request.body(fields.to_owned()))
    }
}

#[test]
fn people_use_gitea_under_its_own_name() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let path = gitea.repo(&world, true, "sha1");
    let web = path.trim_end_matches(".git");
    let node = node(&world, &gitea);
    let mut there = Browser::new(gitea.url(), &gitea);
    let mut here = Browser::new(&node.url, &gitea);
    // Nobody in particular.
    for path in
        ["/", "/user/login", "/explore/repos", &format!("/{web}"), "/no/such/page", "/assets/css/index.css"]
    {
        assert_eq!(here.get(path).status, there.get(path).status, "{path}");
    }
    assert_eq!(here.get(&format!("/{web}")).status, 404, "it is private");
    // The form, which Gitea takes from pages of its own name alone.
    let fields = format!("user_name=alice&password={}", gitea.password("alice"));
    for browser in [&mut there, &mut here] {
        let page = browser.form("/user/login", gitea.url(), &fields);
        assert_eq!((page.status, page.location.as_str()), (303, "/"), "{}", page.text());
    }
    // Gitea needs a moment to see that the repository is not empty any more, and redirects to the same page until then.
    eventually("the page", || (there.get(&format!("/{web}")).status == 200).then_some(()));
    let page = here.get(&format!("/{web}"));
    assert_eq!(page.status, 200, "{}", page.location);
    assert!(page.text().contains(web), "{}", page.text());
    let forged = here.form("/repo/create", "http://evil.example", "repo_name=forged&uid=2");
    assert_eq!(forged.status, 403, "{}", forged.text());
    let made = here.form(&format!("/{web}/issues/new"), gitea.url(), "title=from+a+form&content=x");
    assert!(matches!(made.status, 200 | 303), "{} {}", made.status, made.text());
    assert!(here.get(&format!("/{web}/issues")).text().contains("from a form"));
    for page in [
        format!("/{web}/raw/branch/main/README"),
        format!("/{web}?go-get=1"),
        format!("/{web}/src/branch/main/src"),
    ] {
        let (ours, theirs) = (here.get(&page), there.get(&page));
        assert_eq!((ours.status, theirs.status), (200, 200), "{page}");
        let same = ours.body == theirs.body || page.contains("/src/branch/");
        assert!(same, "{page}: {}", ours.text());
    }
    // Gitea makes an archive at the first question.
    let archive = format!("/{web}/archive/main.tar.gz");
    let theirs = eventually("an archive", || Some(there.get(&archive)).filter(|page| page.status == 200));
    let ours = here.get(&archive);
    assert!(ours.status == 200 && ours.body == theirs.body && ours.body.starts_with(b"\x1f\x8b"));
    // Events come while the request lasts.
    let events = here.request("GET", "/user/events");
    let mut events = block_on(async {
        let reply = events.send().await.expect("an answer");
        assert_eq!(reply.headers()["content-type"], "text/event-stream");
        reply.bytes_stream()
    });
    let gone = here.get("/user/logout");
    assert_eq!(gone.status, 303, "{}", gone.text());
    let seen = block_on(async {
        let mut seen = String::new();
        while !seen.contains("event: logout") {
            let piece = tokio::time::timeout(SOON, events.next()).await.expect("an event in time");
            seen.push_str(&String::from_utf8_lossy(&piece.expect("more").expect("no error")));
        }
        seen
    });
    assert!(seen.contains("data: here"), "{seen}");
    assert_eq!(here.get(&format!("/{web}")).status, 404, "signed out");
}

#[test]
fn programs_use_gitea_under_its_own_name() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let path = gitea.repo(&world, true, "sha1");
    let web = path.trim_end_matches(".git").to_owned();
    let node = node(&world, &gitea);
    let mut program = Browser::new(&node.url, &gitea);
    let mut api = |method: &str, path: &str, body: &str| {
        let request = program.request(method, &format!("/api/v1{path}"));
        let request = request.header("authorization", format!("token {}", gitea.token("alice")));
        let page = program.send(request.header("content-type", "application/json").body(body.to_owned()));
        (page.status, serde_json::from_slice::<serde_json::Value>(&page.body).unwrap_or_default())
    };
    let (status, made) = api("POST", &format!("/repos/{web}/issues"), r#"{"title":"by a program"}"#);
    assert_eq!(status, 201, "{made}");
    let number = &made["number"];
    let (status, edited) = api("PATCH", &format!("/repos/{web}/issues/{number}"), r#"{"state":"closed"}"#);
    assert_eq!((status, edited["state"].as_str()), (201, Some("closed")), "{edited}");
    assert_eq!(api("GET", &format!("/repos/{web}"), "").1["full_name"].as_str(), Some(&*web));
    let content = r#"{"content":"aGVsbG8K","message":"by the interface"}"#;
    assert_eq!(api("POST", &format!("/repos/{web}/contents/a%20b/c"), content).0, 201);
    assert_eq!(api("DELETE", &format!("/repos/{web}/issues/{number}"), "").0, 204);

    // Git beside it: both spellings are one repository, kept once, and what was pushed is on the page.
    mirrored(&world, &gitea, &node, &path);
    let bare = world.store.newest(&web);
    assert!(bare.is_none(), "nothing is kept under the other spelling");
    let url = |path: &str| Gitea::at(&node.url, "alice", gitea.password("alice"), path);
    let dir = from_bucket(&node, || world.clone_of(&url(&web), ""));
    let g = git(&dir);
    g.run("commit -q --allow-empty -m pushed-through");
    g.run("push -q origin main");
    let tip = g.run("rev-parse HEAD").line();
    let (_, seen) = api("GET", &format!("/repos/{web}/branches/main"), "");
    assert_eq!(seen["commit"]["id"].as_str(), Some(&*tip));
    let second = world.clone_of(&url(&path), "");
    assert_eq!(git(&second).run("rev-parse HEAD").line(), tip);
    assert!(world.store.newest(&web).is_none());
}

/// git that finds git-lfs, whose program is `lfs`.
fn with_lfs(dir: &Path, lfs: &str, line: &str) -> Output {
    let filter = |key: &str, what: &str| (format!("filter.lfs.{key}"), what.to_owned());
    let filters = [
        filter("process", "git-lfs filter-process"),
        filter("smudge", "git-lfs smudge -- %f"),
        filter("clean", "git-lfs clean -- %f"),
        filter("required", "true"),
    ];
    let git = filters.iter().fold(git(dir), |git, (key, value)| git.config(key, value));
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = git.command(&words);
    let folder = Path::new(lfs).parent().expect("a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path))).expect("a path");
    command.env("PATH", path);
    finish(command, b"", SOON * 3).must()
}

#[test]
fn large_files_pass() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let Some(lfs) = std::env::var("PACKMIRROR_TEST_LFS").ok() else {
        return skip("git-lfs, named by PACKMIRROR_TEST_LFS");
    };
    let world = World::new();
    let path = gitea.repo(&world, true, "sha1");
    let node = node(&world, &gitea);
    let url = Gitea::at(&node.url, "alice", gitea.password("alice"), &path);
    let dir = world.clone_of(&url, "");
    let run = |line: &str| with_lfs(&dir, &lfs, line);
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(dir.join(".gitattributes"), "*.bin filter=lfs diff=lfs merge=lfs -text\n").unwrap();
    std::fs::write(dir.join("large.bin"), &large).unwrap();
    run("lfs install --local");
    run("add .");
    run("commit -q -m large");
    run("push -q origin main");
    run("lfs lock large.bin");
    assert!(run("lfs locks").text().contains("large.bin"));
    run("lfs unlock large.bin");
    let copy = world.unused("copy");
    with_lfs(world.path(), &lfs, &format!("clone -q {url} {}", copy.display()));
    assert!(std::fs::read(copy.join("large.bin")).unwrap() == large);
    assert!(
        node.metric("packmirror_answers_total", &["reason=\"other-endpoint\""]) >= 4.0,
        "{}",
        node.answers_text()
    );
}
