//! Gitea as the primary: accounts, passwords, tokens and private repositories of a real host.
//!
//! `PACKMIRROR_TEST_GITEA_ENV` names the file that the recipe in `infra/` leaves: `GITEA_URL`, and for `ALICE`, `BOB`
//! and `SITEADMIN` a password and a token. Each test makes repositories of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;

use crate::git::git;
use crate::hostile::access::{Private, many};
use crate::mirror_only;
use crate::node::{Node, Setup};
use crate::oracle::{State, compare, from_bucket};
use crate::wire;
use crate::world::{World, block_on, eventually, skip};

pub struct Gitea {
    env: HashMap<String, String>,
}

impl Gitea {
    pub fn here() -> Option<Gitea> {
        let Some(file) = std::env::var_os("PACKMIRROR_TEST_GITEA_ENV") else {
            skip("a Gitea, named by PACKMIRROR_TEST_GITEA_ENV");
            return None;
        };
        let text = std::fs::read_to_string(&file).expect("PACKMIRROR_TEST_GITEA_ENV names a file");
        let pair =
            |l: &str| l.trim().split_once('=').map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned()));
        Some(Gitea { env: text.lines().filter_map(pair).collect() })
    }

    fn get(&self, key: &str) -> &str {
        self.env.get(key).unwrap_or_else(|| panic!("the Gitea file lacks {key}"))
    }

    pub fn url(&self) -> &str {
        self.get("GITEA_URL").trim_end_matches('/')
    }

    pub fn password(&self, user: &str) -> &str {
        self.get(&format!("GITEA_{}_PASSWORD", user.to_uppercase()))
    }

    pub fn token(&self, user: &str) -> &str {
        self.get(&format!("GITEA_{}_TOKEN", user.to_uppercase()))
    }

    pub fn api(
        &self,
        method: &str,
        path: &str,
        user: &str,
        body: serde_json::Value,
    ) -> (u16, serde_json::Value) {
        let basic = format!("{user}:{}", self.password(user));
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(basic));
        block_on(async {
            packmirror::tls::provide();
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
            let request = client
                .request(method, format!("{}/api/v1{path}", self.url()))
                .header("authorization", basic)
                .header("content-type", "application/json")
                .body(body.to_string());
            let reply = request.send().await.expect("Gitea answers");
            let status = reply.status().as_u16();
            let text = reply.text().await.unwrap_or_default();
            (status, serde_json::from_str(&text).unwrap_or_default())
        })
    }

    /// Makes a repository of alice's and fills it; gives its path.
    pub fn repo(&self, world: &World, private: bool, format: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let asked = serde_json::json!({"name": name, "private": private, "object_format_name": format});
        let (status, said) = self.api("POST", "/user/repos", "alice", asked);
        assert_eq!(status, 201, "{said}");
        let path = format!("alice/{name}.git");
        let (g, dir) = world.client("seed");
        g.run(&format!("init -q --bare --object-format={format} ."));
        crate::shapes::town(&dir);
        // Gitea keeps refs/pull for itself.
        g.run(&format!(
            "push -q {} refs/heads/*:refs/heads/* refs/tags/*:refs/tags/*",
            self.as_user("alice", &path)
        ));
        path
    }

    pub fn at(base: &str, user: &str, secret: &str, path: &str) -> String {
        format!("{}/{path}", base.replacen("://", &format!("://{user}:{secret}@"), 1))
    }

    pub fn as_user(&self, user: &str, path: &str) -> String {
        Self::at(self.url(), user, self.password(user), path)
    }

    pub fn node(&self, world: &World) -> Node {
        let service = format!("credential = \"siteadmin:{}\"", self.password("siteadmin"));
        Setup::new(world, self.url()).set(&service).set("grant_ttl = \"1s\"").start()
    }
}

/// Waits until a clone of `url` through the node comes from the bucket, and has compared it with Gitea's.
pub fn mirrored(world: &World, gitea: &Gitea, node: &Node, path: &str) {
    let password = gitea.password("alice");
    let ours = gitea.as_user("alice", path);
    let theirs = Gitea::at(&node.url, "alice", password, path);
    git(world.path()).args(&["ls-remote", "-q", &theirs]).must();
    eventually("the first generation", || world.store.newest(path));
    from_bucket(node, || assert_eq!(compare(world, &ours, &theirs), Ok(())));
}

#[test]
fn private_repositories_by_password_and_token() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let path = gitea.repo(&world, true, "sha1");
    let node = gitea.node(&world);
    mirrored(&world, &gitea, &node, &path);
    let want = State::of(&world.clone_of(&gitea.as_user("alice", &path), "--mirror"));
    for (user, secret) in [("alice", gitea.password("alice")), ("alice", gitea.token("alice"))] {
        let dir =
            from_bucket(&node, || world.clone_of(&Gitea::at(&node.url, user, secret, &path), "--mirror"));
        assert_eq!(want.differences(&State::of(&dir), true), "");
    }
    let dir = world.unused("bearer");
    let header = format!("Authorization: token {}", gitea.token("alice"));
    let line = format!("clone -q --mirror {} {}", node.repo(&path), dir.display());
    git(world.path()).config("http.extraHeader", &header).run(&line);
    assert_eq!(want.differences(&State::of(&dir), true), "");
}

#[test]
fn who_may_not_read_is_told_by_gitea() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let path = gitea.repo(&world, true, "sha1");
    let node = gitea.node(&world);
    mirrored(&world, &gitea, &node, &path);
    let address = gitea.url().trim_start_matches("http://").to_owned();
    let tip = git(world.path())
        .args(&["ls-remote", &gitea.as_user("alice", &path), "refs/heads/main"])
        .must()
        .line();
    let want = format!("want {}", &tip[..40]);
    for (user, secret) in [
        ("alice", "wrong"),
        ("bob", gitea.password("bob")),
        ("bob", gitea.token("bob")),
        ("nobody", "x"),
        ("", ""),
    ] {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}"));
        let authorization = format!("Basic {basic}");
        let mut headers = vec![wire::V2];
        if !user.is_empty() {
            headers.push(("Authorization", &authorization));
        }
        let refs = format!("/{path}/info/refs?service=git-upload-pack");
        let (ours, theirs) = (
            wire::get(&address, &refs, &headers).unwrap(),
            wire::get(node.address(), &refs, &headers).unwrap(),
        );
        assert_eq!(theirs.status, ours.status, "{user}");
        assert_ne!(theirs.status, 200, "{user}");
        assert_eq!(theirs.header("www-authenticate"), ours.header("www-authenticate"), "{user}");
        let body = wire::command("fetch", &["object-format=sha1"], &[&want, "done"]);
        let post = format!("/{path}/git-upload-pack");
        let (ours, theirs) = (
            wire::post(&address, &post, &headers, &body).unwrap(),
            wire::post(node.address(), &post, &headers, &body).unwrap(),
        );
        assert_eq!(theirs.status, ours.status, "{user}");
        assert!(!theirs.body.windows(4).any(|w| w == b"PACK"), "{user}");
    }
}

#[test]
fn a_token_of_gitea_is_revoked() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let path = gitea.repo(&world, true, "sha1");
    let node = gitea.node(&world);
    mirrored(&world, &gitea, &node, &path);
    let name = format!("revoke-{path}").replace('/', "-");
    let asked = serde_json::json!({"name": name, "scopes": ["read:repository"]});
    let (status, made) = gitea.api("POST", "/users/alice/tokens", "alice", asked);
    assert_eq!(status, 201, "{made}");
    let token = made["sha1"].as_str().expect("a token").to_owned();
    let url = Gitea::at(&node.url, "alice", &token, &path);
    world.clone_of(&url, "--mirror");
    let (status, said) =
        gitea.api("DELETE", &format!("/users/alice/tokens/{name}"), "alice", serde_json::json!({}));
    assert_eq!(status, 204, "{said}");
    eventually("the revoked token to be refused", || {
        (!git(world.path()).args(&["ls-remote", &url]).ok()).then_some(())
    });
    // Also straight at the objects, once the grant is over.
    eventually("the revoked token to get no pack", || {
        let tip =
            git(world.path()).args(&["ls-remote", &gitea.as_user("alice", &path), "HEAD"]).must().line();
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("alice:{token}"));
        let body =
            wire::command("fetch", &["object-format=sha1"], &[&format!("want {}", &tip[..40]), "done"]);
        let headers = [wire::V2, ("Authorization", &*format!("Basic {basic}"))];
        let reply = wire::post(node.address(), &format!("/{path}/git-upload-pack"), &headers, &body).unwrap();
        (reply.status == 401).then_some(())
    });
}

#[test]
fn pushes_and_public_repositories() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let path = gitea.repo(&world, false, "sha1");
    let (one, two) = (gitea.node(&world), gitea.node(&world));
    mirrored(&world, &gitea, &one, &path);
    // Public: nobody needs a name to read, and cannot push without.
    assert_eq!(compare(&world, &format!("{}/{path}", gitea.url()), &two.repo(&path)), Ok(()));
    let dir = world.clone_of(&one.repo(&path), "");
    let g = git(&dir);
    g.run("commit -q --allow-empty -m pushed");
    g.try_run("push -q origin main").must_fail(&["could not read Username", "Authentication failed"]);
    g.run(&format!("push -q {} main", Gitea::at(&one.url, "alice", gitea.password("alice"), &path)));
    let tip = g.run("rev-parse HEAD").line();
    for node in [&one, &two] {
        let seen = git(world.path()).args(&["ls-remote", &node.repo(&path), "refs/heads/main"]).must().line();
        assert!(seen.starts_with(&tip), "{seen}");
        assert_eq!(compare(&world, &format!("{}/{path}", gitea.url()), &node.repo(&path)), Ok(()));
    }
}

#[test]
fn public_becomes_private_on_gitea() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let path = gitea.repo(&world, false, "sha1");
    let node = gitea.node(&world);
    mirrored(&world, &gitea, &node, &path);
    world.clone_of(&node.repo(&path), "--mirror");
    let repo = path.trim_end_matches(".git");
    let (status, said) =
        gitea.api("PATCH", &format!("/repos/{repo}"), "alice", serde_json::json!({"private": true}));
    assert_eq!(status, 200, "{said}");
    git(world.path()).args(&["ls-remote", &node.repo(&path)]).must_fail(&[]);
    mirrored(&world, &gitea, &node, &path);
}

/// Gitea needs git 2.42 for these; an older one says so when the repository is made.
#[test]
fn sha256_on_gitea() {
    let Some(gitea) = Gitea::here() else { return };
    mirror_only!();
    let world = World::new();
    let probe =
        serde_json::json!({"name": format!("probe{}", std::process::id()), "object_format_name": "sha256"});
    let (status, _) = gitea.api("POST", "/user/repos", "alice", probe);
    if status != 201 {
        return skip("a Gitea on git 2.42 or newer");
    }
    let path = gitea.repo(&world, true, "sha256");
    let node = gitea.node(&world);
    mirrored(&world, &gitea, &node, &path);
}

/// Questions by dice, of which none may give a private repository away.
#[test]
fn who_may_not_read_gets_nothing() {
    mirror_only!();
    let Some(gitea) = Gitea::here() else { return };
    let world = World::new();
    let (path, public) = (gitea.repo(&world, true, "sha1"), gitea.repo(&world, false, "sha1"));
    let node = gitea.node(&world);
    mirrored(&world, &gitea, &node, &path);
    mirrored(&world, &gitea, &node, &public);
    let tip = git(world.path())
        .args(&["ls-remote", &gitea.as_user("alice", &path), "refs/heads/main"])
        .must()
        .line();
    let (alice, bob) = (gitea.password("alice"), gitea.password("bob"));
    let private = Private {
        world: &world,
        node: &node,
        path: &path,
        public: &public,
        tip: tip.split_whitespace().next().expect("an id"),
        reader: &format!("alice:{alice}"),
        others: &[&format!("bob:{bob}"), "alice:wrong", "nobody:nothing"],
    };
    private.questions(1, many());
}
