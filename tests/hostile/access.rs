//! Questions of access by dice: who may not read gets nothing, whatever headers, spellings and bodies the question has.
//!
//! The oracle is the content itself: no answer to somebody who may not read holds the tip's id, and no pack holds the
//! tip. Between the questions one who may read reads, so that grants, plans and connections are warm.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;

use crate::git::git;
use crate::hostile::full;
use crate::mirror_only;
use crate::node::Node;
use crate::oracle::mirrored_at;
use crate::primary::{Primary, gzip};
use crate::seed::rounds;
use crate::shapes::{self, noise};
use crate::wire::{self, command};
use crate::world::World;

/// A private repository, mirrored, and how somebody who may read it says so.
pub struct Private<'a> {
    pub world: &'a World,
    pub node: &'a Node,
    /// `owner/name.git`
    pub path: &'a str,
    /// The path of a repository that everybody may read.
    pub public: &'a str,
    pub tip: &'a str,
    /// `user:password` of one who may read, and of some who may not.
    pub reader: &'a str,
    pub others: &'a [&'a str],
}

fn basic(pair: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// Bytes by dice, to choose by.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        usize::from(self.0.next().unwrap_or_default()) % n
    }

    fn one<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

impl Private<'_> {
    /// Ways to write the repository's path, most of them wrong.
    fn spelling(&self, dice: &mut Dice) -> String {
        let (owner, name) = self.path.split_once('/').expect("an owner");
        let stem = name.trim_end_matches(".git");
        let spellings = [
            self.path.to_owned(),
            self.path.to_owned(),
            format!("{owner}/{stem}"),
            format!("{owner}//{name}"),
            format!("/{owner}/{name}"),
            format!("./{owner}/{name}"),
            format!("{}/../{}", self.public, self.path),
            format!("{}/%2e%2e/%2e%2e/{}", self.public, self.path),
            format!("{owner}%2f{name}"),
            format!("{owner}/%{:02x}{}", name.as_bytes()[0], &name[1..]),
            self.path.to_uppercase(),
            format!("{}/{name}", owner.to_uppercase()),
            format!("{owner}/{stem}.GIT"),
            format!("{owner}/{name}/"),
            format!("{owner}/{name}."),
            format!("{owner}/{name};x=1"),
            format!("{owner}/{name}%00"),
            format!("{owner}\\{name}"),
        ];
        dice.one(&spellings)
    }

    fn headers(&self, dice: &mut Dice) -> String {
        let mut headers = String::from("Host: mirror.example\r\nConnection: close\r\n");
        let mut say = |line: String| headers.push_str(&(line + "\r\n"));
        let wrong = self.others[dice.below(self.others.len())];
        match dice.below(8) {
            0 => say(format!("Authorization: {}", basic(wrong))),
            1 => say(format!("Authorization: {}", basic(&format!("{}x", self.reader)))),
            2 => say(format!("authorization: Bearer {}", self.tip)),
            3 => {
                say(format!("Authorization: {}", basic(wrong)));
                say(format!("Authorization: {}", basic("nobody:nothing")));
            }
            4 => say(format!("Cookie: session={}", self.tip)),
            _ => {}
        }
        let user = self.reader.split(':').next().unwrap_or_default();
        let names = [
            format!("X-Forwarded-User: {user}"),
            format!("X-Remote-User: {user}"),
            format!("X-WEBAUTH-USER: {user}"),
            format!("X_Webauth_User: {user}"),
            format!("X-Original-URL: /{}/git-upload-pack", self.public),
            format!("X-Rewrite-URL: /{}/git-upload-pack", self.public),
            "X-HTTP-Method-Override: GET".into(),
            "X-Forwarded-Proto: https".into(),
            "X-Forwarded-For: 127.0.0.1".into(),
            "Forwarded: for=127.0.0.1;host=primary".into(),
            "Range: bytes=0-".into(),
            "If-None-Match: *".into(),
            "Accept-Encoding: gzip".into(),
            "Expect: 100-continue".into(),
            "Upgrade: h2c".into(),
            "Connection: Authorization".into(),
            "Git-Protocol: version=1".into(),
        ];
        for _ in 0..dice.below(4) {
            say(dice.one(&names));
        }
        if !dice.chance(4) {
            say("Git-Protocol: version=2".into());
        }
        headers
    }

    fn body(&self, dice: &mut Dice) -> Vec<u8> {
        let want = format!("want {}", self.tip);
        let fetch = command("fetch", &["object-format=sha1"], &[&want, "no-progress", "done"]);
        let v0 = format!("{}00000009done\n", wire::pkt(&format!("{want} ofs-delta\n"))).into_bytes();
        let refs = command("ls-refs", &[], &["symrefs", "peel"]);
        let info = command("object-info", &[], &["size", &format!("oid {}", self.tip)]);
        let named = command("fetch", &[], &["want-ref refs/heads/main", "done"]);
        let smuggled = format!(
            "POST /{}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            self.public,
            refs.len()
        );
        let both = [&fetch[..], smuggled.as_bytes(), &refs].concat();
        dice.one(&[fetch.clone(), fetch, v0, refs, info, named, both, Vec::new(), b"0000".to_vec()])
    }

    fn request(&self, dice: &mut Dice) -> Vec<u8> {
        let method = dice.one(&["POST", "POST", "POST", "GET", "HEAD", "PUT", "post"]);
        let end = dice.one(&[
            "git-upload-pack",
            "git-upload-pack",
            "git-upload-pack",
            "info/refs?service=git-upload-pack",
            "info/refs",
            "HEAD",
            "objects/info/packs",
            "git-receive-pack",
            "git-upload-archive",
            "info/lfs/objects/batch",
        ]);
        let path = self.spelling(dice);
        let mut head = format!("{method} /{path}/{end} HTTP/1.1\r\n{}", self.headers(dice));
        head.push_str("Content-Type: application/x-git-upload-pack-request\r\n");
        let mut body = self.body(dice);
        if dice.chance(4) {
            body = gzip(&body);
            head.push_str("Content-Encoding: gzip\r\n");
        }
        match dice.below(8) {
            0 => {
                let chunk = format!("{:x}\r\n", body.len());
                body = [chunk.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
                head.push_str("Transfer-Encoding: chunked\r\n");
            }
            1 => {
                let lengths = format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", body.len());
                head.push_str(&lengths);
            }
            2 => head.push_str(&format!("Content-Length: {}\r\n", body.len() / 2)),
            _ => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
        }
        [head.as_bytes(), b"\r\n", &body].concat()
    }

    /// Whether an answer gives away what only readers may have.
    fn leaks(&self, answer: &[u8]) -> bool {
        let found = |what: &[u8]| answer.windows(what.len()).position(|window| window == what);
        if found(self.tip.as_bytes()).is_some() {
            // Some refusals repeat what was asked for.
            return found(format!("{} refs/", self.tip).as_bytes()).is_some()
                || found(format!("{} HEAD", self.tip).as_bytes()).is_some();
        }
        let Some(at) = found(b"PACK") else { return false };
        let (g, _) = self.world.client("leak");
        g.run("init -q --bare .");
        // A pack of another repository may come, since others are public.
        let _ = g.with_input(&["unpack-objects", "-r", "-q"], &answer[at..]);
        g.try_run(&format!("cat-file -e {}", self.tip)).ok()
    }

    /// Asks `n` questions, of which the seed makes all.
    #[track_caller]
    pub fn questions(&self, seed: u64, n: usize) {
        for number in 0..n {
            if number % 20 == 0 {
                let url = self.node.repo_as("x", "y", self.path).replacen("x:y", self.reader, 1);
                git(self.world.path()).args(&["ls-remote", "-q", &url]).must();
            }
            let question = seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
            let mut dice = Dice(noise(question, 256).into_iter());
            let request = self.request(&mut dice);
            let answer = everything(self.node.address(), &request);
            assert!(
                !self.leaks(&answer),
                "question {number} of seed {seed} was answered:\n{}\n---\n{}",
                request.escape_ascii(),
                answer[..answer.len().min(2000)].escape_ascii()
            );
        }
    }
}

/// All that comes back until the node closes the connection, or nothing more comes.
fn everything(address: &str, request: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let _ = stream.write_all(request);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// How many questions each seed asks.
pub fn many() -> usize {
    if full() { 50_000 } else { 400 }
}

#[test]
fn who_may_not_read_gets_nothing() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    for user in ["alice", "mallory", "service"] {
        primary.account(user, &format!("{user}pw"));
    }
    let repo = primary.repo("team/private.git", shapes::linear);
    primary.private(&repo.path, &["alice", "service"]);
    let public = primary.repo("team/public.git", shapes::merges);
    let node = world.setup(&primary).set("credential = \"service:servicepw\"").start();
    mirrored_at(&world, &node, &node.repo_as("alice", "alicepw", &repo.path), &repo);
    mirrored_at(&world, &node, &node.repo(&public.path), &public);
    let tip = repo.oid("main");
    let private = Private {
        world: &world,
        node: &node,
        path: &repo.path,
        public: &public.path,
        tip: &tip,
        reader: "alice:alicepw",
        others: &["mallory:mallorypw", "alice:wrong", "service:", ":alicepw"],
    };
    // The test can fail: one who may read gets the pack.
    let body = command("fetch", &[], &[&format!("want {tip}"), "no-progress", "done"]);
    let reply = wire::post(
        node.address(),
        &format!("/{}/git-upload-pack", repo.path),
        &[wire::V2, ("Authorization", &basic("alice:alicepw"))],
        &body,
    );
    assert!(private.leaks(&strip_bands(&reply.expect("an answer").body)));
    for seed in rounds(1) {
        eprintln!("seed {seed}");
        private.questions(seed, many());
    }
}

/// The pack inside a side-banded answer.
fn strip_bands(body: &[u8]) -> Vec<u8> {
    wire::fetched(body, true).pack
}
