//! What runs in clusters and by timers: the command lines of each, played from the public source that its test names.

use super::page::recipe;
use super::{PASSWORD, Scene, USER, head, script};
use crate::mirror_only;
use crate::shapes;

/// Argo CD's repo-server (util/git/client.go and creds.go at 0017d06): no home, a program that answers whoever asks, and the
/// environment of its container.
#[test]
fn argo_cd_takes_its_rule_from_the_environment() {
    mirror_only!();
    let mut scene = Scene::new();
    let quoted = PASSWORD.replace('\'', "'\\''");
    let askpass = script(
        &scene.client.home.join("git-ask-pass.sh"),
        &format!(
            "#!/bin/sh\ncase \"$1\" in\nUsername*) echo {USER} ;;\nPassword*) echo '{quoted}' ;;\nesac\n"
        ),
    );
    for line in scene.client.here(recipe("argo-cd")).lines().skip(1) {
        let (name, value) = line.split_once("value: ").expect("a name and a value");
        let name = name.rsplit("name: ").next().expect("a name").trim_end_matches([',', ' ']).to_owned();
        let value = value.trim_end_matches('}').trim().trim_matches('"').to_owned();
        scene.client.set(&name, &value);
    }
    for (name, value) in [
        ("HOME", "/dev/null"),
        ("GIT_ASKPASS", &*askpass.display().to_string()),
        ("GIT_TERMINAL_PROMPT", "false"),
    ] {
        scene.client.set(name, value);
    }
    let (dir, url) = (scene.world.folder("source"), scene.url(&scene.repo.path));
    let sha = scene.repo.oid("refs/heads/main");
    let lines = format!(
        "cd {}; git init -q; git remote add origin {url}\n\
         git fetch origin {sha} --tags --force --prune; git checkout --force {sha}; git clean -ffdx",
        dir.display()
    );
    scene.by_the_mirror(|| scene.client.shell(&lines).must());
    assert_eq!(head(&dir), sha);
}

/// Tekton's git-clone (image/git-init/git/git.go at 6b47eb5), with the home directory of its workspace `basic-auth`.
#[test]
fn tekton_takes_its_rule_from_the_secret() {
    mirror_only!();
    let scene = Scene::new();
    std::fs::write(scene.client.home.join(".gitconfig"), scene.client.here(recipe("tekton"))).unwrap();
    let user = percent_encoding::utf8_percent_encode(PASSWORD, percent_encoding::NON_ALPHANUMERIC);
    let known = scene.client.here(recipe("tekton-credentials"));
    let known = known.replacen("USER:TOKEN", &format!("{USER}:{user}"), 2).replacen("https://", "http://", 2);
    let at = |url: &str| url.trim_start_matches("http://").to_owned();
    let known = known
        .replace("@git.example.com", &format!("@{}", at(&scene.primary.url)))
        .replace("@mirror.eu.example.com", &format!("@{}", at(&scene.node.url)));
    std::fs::write(scene.client.home.join(".git-credentials"), known).unwrap();
    let (dir, url) = (scene.world.unused("output"), scene.url(&scene.repo.path));
    let lines = format!(
        "git init {0}; cd {0}; git config --add --global safe.directory {0}; git remote; git remote add origin {url}\n\
         git config http.sslVerify true; git fetch --recurse-submodules=yes --depth=1 origin --update-head-ok --force main\n\
         git checkout -f FETCH_HEAD; git submodule update --recursive --init --force --depth=1",
        dir.display()
    );
    scene.by_the_mirror(|| scene.client.shell(&lines).must());
    assert_eq!(head(&dir), scene.repo.oid("refs/heads/main"));
}

/// What Nix runs for `builtins.fetchGit` and inputs of the kind `git+https` (src/libfetchers/git-utils.cc at 017327e).
#[test]
fn nix_runs_git() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    let (dir, url) = (scene.world.folder("cache"), scene.url(&scene.repo.path));
    let lines = format!(
        "git init -q --bare {0}; git ls-remote --symref {url}\n\
         git -C {0} --git-dir . fetch --progress --force -- {url} refs/heads/main:refs/heads/main",
        dir.display()
    );
    scene.by_the_mirror(|| scene.client.shell(&lines).must());
    assert_eq!(
        crate::git::git(&dir).run("rev-parse refs/heads/main").line(),
        scene.repo.oid("refs/heads/main")
    );
}

/// Renovate clones from an address with a token in it, and gives git a rule with the token for all else
/// (lib/util/git/auth.ts at 04a7eb0). The one misses a rule of the system, the other loses against it.
#[test]
fn renovate_passes_by_a_mirror_that_only_git_knows_of() {
    mirror_only!();
    let mut scene = Scene::new();
    scene.primary.token(USER, "renovate-token");
    scene.another("team/lib", shapes::linear);
    scene.client.follow(recipe("runner"));
    let with_token = scene.primary.url.replacen("://", "://x-access-token:renovate-token@", 1);
    let (packs, answers) = (scene.packs_of_the_primary(), scene.node.answered_from_bucket());
    let url = format!("{with_token}/{}", scene.repo.path);
    scene.client.git(&format!("clone -q --filter=blob:none {url} app")).must();
    assert!(scene.packs_of_the_primary() > packs);
    assert_eq!(scene.node.answered_from_bucket(), answers);
    scene.client.set("GIT_CONFIG_COUNT", "1");
    scene.client.set("GIT_CONFIG_KEY_0", &format!("url.{with_token}/.insteadOf"));
    scene.client.set("GIT_CONFIG_VALUE_0", &format!("{}/", scene.primary.url));
    let lib = format!("ls-remote {}", scene.url("team/lib"));
    scene.client.git(&lib).must_fail(&["could not read Username"]);
}
