//! CI systems: what their agents run on a machine that was set up once, with no change to a pipeline.
//!
//! The systems themselves need a service to run against, so their command lines are played from their public source, which
//! each test names. actions/checkout runs itself, where `PACKMIRROR_TEST_CHECKOUT_ACTION` names its `dist/index.js`.

use std::path::Path;
use std::time::Duration;

use base64::Engine;

use super::page::recipe;
use super::{Scene, USER, head, script};
use crate::git::finish;
use crate::mirror_only;
use crate::primary::Repo;
use crate::shapes;
use crate::world::cannot;

/// The token of a job.
const TOKEN: &str = "job-token-123";

/// A scene whose client is a CI machine with a job's token that the primary knows.
fn machine() -> Scene {
    let scene = Scene::new();
    scene.primary.token(USER, TOKEN);
    scene
}

/// A repository at `path` with a submodule for each of the addresses, all of `team/lib`.
#[track_caller]
fn with_submodules(scene: &Scene, path: &str, addresses: &[String]) -> (Repo, String) {
    let lib = scene.another("team/lib", shapes::linear);
    let tip = lib.oid("refs/heads/main");
    let mut modules = String::new();
    let mut links = String::new();
    for (n, address) in addresses.iter().enumerate() {
        modules.push_str(&format!("[submodule \"s{n}\"]\n\tpath = s{n}\n\turl = {address}\n"));
        links.push_str(&format!("M 160000 {tip} s{n}\n"));
    }
    let script = format!(
        "commit refs/heads/main\ncommitter T <t@example.com> 1800000000 +0000\ndata 1\ns\
         M 100644 inline .gitmodules\ndata {}\n{modules}\n{links}\n",
        modules.len()
    );
    let repo = scene.another(path, |dir| {
        shapes::linear(dir);
        let at = crate::git::git(dir).run("rev-parse refs/heads/main").line();
        let script = script.replacen("data 1\ns", &format!("data 1\nsfrom {at}\n"), 1);
        crate::git::git(dir).with_input(&["fast-import", "--quiet"], script.as_bytes()).must();
    });
    (repo, tip)
}

/// What actions/checkout runs for a push with `submodules: recursive`: src/git-source-provider.ts, git-command-manager.ts and
/// git-auth-helper.ts of v7.0.1 (3d3c42e), which keeps the token in a file that the repository's configuration includes.
fn checkout_7(url: &str, server: &str, sha: &str, dir: &Path, temp: &Path) -> String {
    let (dir, temp) = (dir.display(), temp.display());
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{TOKEN}"));
    format!(
        r#"
        mkdir -p {temp}/home; printf '[http "{server}/"]\n\textraheader = AUTHORIZATION: basic {basic}\n' >{temp}/git-credentials-1.config
        HOME={temp}/home; export HOME; touch {temp}/home/.gitconfig
        git config --global --add safe.directory {dir}
        git init {dir}; cd {dir}; git remote add origin {url}; git config --local gc.auto 0
        git config --local includeIf.gitdir:{dir}/.git.path {temp}/git-credentials-1.config
        git -c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --depth=1 origin +{sha}:refs/remotes/origin/main
        git sparse-checkout disable; git checkout --progress --force -B main refs/remotes/origin/main
        git config --global include.path {temp}/git-credentials-1.config
        git config --global --add url.{server}/.insteadOf git@git.example.com:
        git submodule sync --recursive
        git -c protocol.version=2 submodule update --init --force --depth=1 --recursive
        "#
    )
}

/// The same for v4 (11d5960), which has the token in the repository's own configuration.
fn checkout_4(url: &str, server: &str, sha: &str, dir: &Path, temp: &Path) -> String {
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{TOKEN}"));
    checkout_7(url, server, sha, dir, temp)
        .replace(
            &format!(
                "includeIf.gitdir:{}/.git.path {}/git-credentials-1.config",
                dir.display(),
                temp.display()
            ),
            &format!("http.{server}/.extraheader 'AUTHORIZATION: basic {basic}'"),
        )
        .replace(
            &format!("git config --global include.path {}/git-credentials-1.config", temp.display()),
            &format!("git config --global http.{server}/.extraheader 'AUTHORIZATION: basic {basic}'"),
        )
}

#[test]
fn actions_checkout_uses_the_runners_configuration() {
    mirror_only!();
    let scene = machine();
    let addresses = ["../lib".to_owned(), scene.url("team/lib"), "git@git.example.com:team/lib".to_owned()];
    let (repo, lib) = with_submodules(&scene, "team/job", &addresses);
    let run = |version: fn(&str, &str, &str, &Path, &Path) -> String| {
        let dir = scene.world.unused("workspace");
        let temp = scene.world.folder("temp");
        let sha = repo.oid("refs/heads/main");
        let lines = version(&scene.url(&repo.path), &scene.primary.url, &sha, &dir, &temp);
        (scene.client.shell(&lines), dir)
    };
    // The address alone is not enough: the token is for another host.
    scene
        .client
        .follow("git config --system url.https://mirror.eu.example.com/.insteadOf https://git.example.com/");
    run(checkout_7).0.must_fail(&["could not read Username"]);
    for name in ["packmirror", "shell"] {
        std::fs::write(scene.client.system(), "").unwrap();
        scene.client.follow(match name {
            "packmirror" => recipe("runner"),
            _ => recipe("runner-without-packmirror"),
        });
        for version in [checkout_4, checkout_7] {
            let (out, dir) = scene.by_the_mirror(|| run(version));
            out.must();
            assert_eq!(head(&dir), repo.oid("refs/heads/main"), "{name}");
            for n in 0..addresses.len() {
                assert_eq!(head(&dir.join(format!("s{n}"))), lib, "{name}");
            }
        }
    }
    assert!(!scene.client.remembered().contains(TOKEN));
}

#[test]
fn actions_checkout_itself() {
    mirror_only!();
    let Some(program) = std::env::var_os("PACKMIRROR_TEST_CHECKOUT_ACTION") else {
        return cannot(
            "since no registry has actions/checkout: PACKMIRROR_TEST_CHECKOUT_ACTION may name its dist/index.js",
        );
    };
    let scene = machine();
    let addresses = ["../lib".to_owned(), scene.url("team/lib"), "git@127.0.0.1:team/lib".to_owned()];
    let (repo, lib) = with_submodules(&scene, "team/job", &addresses);
    scene.client.follow(&recipe("runner").replace("git@git.example.com:", "git@127.0.0.1:"));
    let dir = scene.world.folder("workspace");
    let temp = scene.world.folder("temp");
    let sha = repo.oid("refs/heads/main");
    let mut command = scene.client.command("node");
    command
        .arg(program)
        .current_dir(&dir)
        .env("GITHUB_WORKSPACE", &dir)
        .env("RUNNER_TEMP", &temp)
        .env("GITHUB_SERVER_URL", &scene.primary.url)
        .env("GITHUB_API_URL", format!("{}/api/v3", scene.primary.url))
        .envs([("GITHUB_REPOSITORY", "team/job"), ("GITHUB_REF", "refs/heads/main"), ("GITHUB_SHA", &sha)])
        .envs([("INPUT_REPOSITORY", "team/job"), ("INPUT_TOKEN", TOKEN), ("INPUT_FETCH-DEPTH", "1")])
        .envs([("INPUT_SUBMODULES", "recursive"), ("INPUT_PERSIST-CREDENTIALS", "true")])
        .envs([("INPUT_CLEAN", "true"), ("INPUT_SET-SAFE-DIRECTORY", "true"), ("INPUT_SSH-STRICT", "true")]);
    scene.by_the_mirror(|| finish(command, b"", Duration::from_secs(120)).must());
    assert_eq!(head(&dir), sha);
    for n in 0..addresses.len() {
        assert_eq!(head(&dir.join(format!("s{n}"))), lib);
    }
}

/// What GitLab Runner 19.4 runs (shells/abstract.go and helpers/url/gitauth.go at d79f3e7), by its configuration file.
fn gitlab_runner(scene: &Scene, config: &str, path: &str, sha: &str, dir: &Path) -> String {
    let config: toml::Table = scene.client.here(config).parse().expect("TOML");
    let runner = &config["runners"][0];
    let text = |key: &str| runner.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let api = text("url").expect("an address");
    let base = text("clone_url").unwrap_or_else(|| api.clone());
    let flag = runner.get("feature_flags").and_then(|flags| flags.get("FF_GIT_URLS_WITHOUT_TOKENS"));
    let without_tokens = flag.and_then(toml::Value::as_bool).unwrap_or_default();
    let with_token = |url: &str| url.replacen("://", &format!("://gitlab-ci-token:{TOKEN}@"), 1);
    let mut lines = Vec::new();
    for entry in runner.get("environment").and_then(toml::Value::as_array).into_iter().flatten() {
        let (key, value) = entry.as_str().and_then(|entry| entry.split_once('=')).expect("KEY=VALUE");
        lines.push(format!("export {key}='{value}'"));
    }
    let (ext, template) = (dir.with_extension("ext.conf"), dir.with_extension("template"));
    let (ext, template) = (ext.display(), template.display());
    lines.push(format!(
        "export CI_JOB_TOKEN={TOKEN} GIT_TERMINAL_PROMPT=0 GLR_EXT_GIT_CONFIG_PATH={ext}; mkdir {template}"
    ));
    for setting in [
        "init.defaultBranch none",
        "fetch.recurseSubmodules false",
        "credential.interactive never",
        "gc.autoDetach false",
    ] {
        lines.push(format!("git config -f {template}/config {setting}"));
    }
    let remote = format!("{base}/{path}");
    if without_tokens {
        let helper = r#"!f(){ if [ "$1" = "get" ] ; then echo "password=${CI_JOB_TOKEN}" ; fi ; } ; f"#;
        lines.push(format!("git config -f {ext} --replace-all credential.{base}.helper ''"));
        lines.push(format!("git config -f {ext} --add credential.{base}.helper '{helper}'"));
        lines.push(format!("git config -f {ext} credential.{base}.username gitlab-ci-token"));
    } else {
        for url in [&remote, &base, &api] {
            lines.push(format!(
                "git config --file {ext} --replace-all url.{}.insteadOf {url} '^{url}$'",
                with_token(url)
            ));
        }
    }
    lines.push(format!("git config --file {template}/config --replace-all include.path {ext} 'ext.conf$'"));
    let dir = dir.display();
    lines.push(format!(
        r#"git init {dir} --template {template}; cd {dir}; git remote add origin {remote}
        git -c 'http.userAgent=gitlab-runner 19.4.0 linux/amd64' fetch origin --no-recurse-submodules +{sha}:refs/pipelines/7 +refs/heads/main:refs/remotes/origin/main --depth 20 --prune --quiet
        git -c submodule.recurse=false checkout -f -q {sha}; git clean -ffdx
        git submodule init; git submodule sync --recursive
        git -c include.path="$GLR_EXT_GIT_CONFIG_PATH" submodule update --init --recursive --depth 20
        git submodule sync --recursive"#
    ));
    lines.join("\n")
}

#[test]
fn gitlab_runner_clones_from_its_clone_url() {
    mirror_only!();
    let scene = machine();
    let addresses = ["../lib".to_owned(), scene.url("team/lib")];
    let (repo, lib) = with_submodules(&scene, "team/job.git", &addresses);
    let sha = repo.oid("refs/heads/main");
    let dir = scene.world.unused("build");
    let lines = gitlab_runner(&scene, recipe("gitlab-runner"), &repo.path, &sha, &dir);
    scene.by_the_mirror(|| scene.client.shell(&lines).must());
    assert_eq!(head(&dir), sha);
    for n in 0..addresses.len() {
        assert_eq!(head(&dir.join(format!("s{n}"))), lib);
    }
}

/// The runner has a rule of its own for the whole address, with a token in it, which is longer than any other. For
/// submodules it is one letter shorter.
#[test]
fn gitlab_runner_passes_by_a_mirror_that_only_git_knows_of() {
    mirror_only!();
    let scene = machine();
    let repo = scene.another("team/job.git", shapes::linear);
    scene.client.follow(recipe("runner"));
    let config = "[[runners]]\nurl = \"https://git.example.com\"\n";
    let run = |repo: &Repo| {
        let lines = gitlab_runner(
            &scene,
            config,
            &repo.path,
            &repo.oid("refs/heads/main"),
            &scene.world.unused("build"),
        );
        scene.client.shell(&lines)
    };
    let (packs, answers) = (scene.packs_of_the_primary(), scene.node.answered_from_bucket());
    run(&repo).must();
    assert!(scene.packs_of_the_primary() > packs);
    assert_eq!(scene.node.answered_from_bucket(), answers);
    let (whole, _) = with_submodules(&scene, "team/whole.git", &["../lib".to_owned()]);
    run(&whole).must_fail(&["could not read Username"]);
}

/// Where the primary's own name leads to the mirror, the same lines work on a machine without any setting.
#[test]
fn nothing_changes_where_the_mirror_has_the_primarys_name() {
    mirror_only!();
    let mut scene = machine();
    let name = scene.node.url.clone();
    scene.client.primary = name.clone();
    let (repo, lib) =
        with_submodules(&scene, "team/job.git", &["../lib".to_owned(), format!("{name}/team/lib")]);
    let sha = repo.oid("refs/heads/main");
    let runner = "[[runners]]\nurl = \"https://git.example.com\"\n";
    let lines = |dir: &Path| {
        let temp = scene.world.folder("temp");
        let url = scene.node.repo(&repo.path);
        [checkout_7(&url, &name, &sha, dir, &temp), gitlab_runner(&scene, runner, &repo.path, &sha, dir)]
    };
    for which in 0..2 {
        let dir = scene.world.unused("build");
        let lines = &lines(&dir)[which];
        scene.by_the_mirror(|| scene.client.shell(lines).must());
        assert_eq!(
            (head(&dir), head(&dir.join("s0")), head(&dir.join("s1"))),
            (sha.clone(), lib.clone(), lib.clone())
        );
    }
}

/// What Jenkins runs (git-client-plugin, CliGitAPIImpl.java at 0f4ff57): a program gives user and password, whoever asks.
#[test]
fn jenkins_gives_its_credential_to_whoever_asks() {
    mirror_only!();
    let mut scene = machine();
    let (repo, lib) = with_submodules(&scene, "team/job.git", &["../lib".to_owned(), scene.url("team/lib")]);
    let askpass = script(
        &scene.client.home.join("pass.sh"),
        &format!("#!/bin/sh\ncase \"$1\" in\nUsername*) echo {USER} ;;\nPassword*) echo {TOKEN} ;;\nesac\n"),
    );
    for name in ["GIT_ASKPASS", "SSH_ASKPASS"] {
        scene.client.set(name, &askpass.display().to_string());
    }
    scene.client.set("GIT_TERMINAL_PROMPT", "false");
    let (url, sha) = (scene.url(&repo.path), repo.oid("refs/heads/main"));
    let run = |recipe: &str| {
        let _ = std::fs::write(scene.client.system(), "");
        scene.client.follow(recipe);
        let dir = scene.world.unused("workspace");
        let lines = format!(
            r#"git ls-remote -h -- {url}
            git init {0}; cd {0}
            git fetch --tags --force --progress -- {url} +refs/heads/*:refs/remotes/origin/*
            git config remote.origin.url {url}; git config --add remote.origin.fetch +refs/heads/*:refs/remotes/origin/*
            git rev-parse refs/remotes/origin/main^{{commit}}
            git config core.sparsecheckout false; git checkout -f {sha}
            git submodule init; git submodule sync; git config --get remote.origin.url
            git submodule update --init --recursive s0; git submodule update --init --recursive s1"#,
            dir.display()
        );
        scene.by_the_mirror(|| scene.client.shell(&lines).must());
        assert_eq!(
            (head(&dir), head(&dir.join("s0")), head(&dir.join("s1"))),
            (sha.clone(), lib.clone(), lib.clone())
        );
    };
    run(recipe("jenkins"));
    // It does no harm where the helper of other tools is set up as well.
    run(recipe("runner"));
}

/// What Buildkite's agent runs for a job (internal/job/checkout.go and git.go at 5c21980) with its usual flags.
#[test]
fn buildkite_uses_the_agents_configuration() {
    mirror_only!();
    let scene = machine();
    scene.client.remember(TOKEN);
    scene.client.follow(recipe("runner"));
    let (url, sha) = (scene.url(&scene.repo.path), scene.repo.oid("refs/heads/main"));
    let (dir, shared) = (scene.world.folder("build"), scene.world.unused("git-mirrors"));
    let (at, shared) = (dir.display(), shared.display());
    let first = format!(
        "cd {at}; git clone -v -- {url} .; git clean -ffxdq; git fetch -v --prune -- origin {sha}; git checkout -f {sha}"
    );
    scene.by_the_mirror(|| scene.client.shell(&first).must());
    assert_eq!(head(&dir), sha);
    // With git-mirrors-path: a bare clone that the jobs of a machine share.
    let with_shared = format!(
        "git clone --mirror -v -- {url} {shared}; git --git-dir {shared} fetch -v --prune -- origin main"
    );
    scene.by_the_mirror(|| scene.client.shell(&with_shared).must());
    let next = scene.repo.commit("main", "next", "1\n");
    scene.take_in(&scene.repo);
    let again = format!(
        "cd {at}; git remote set-url origin {url}; git fetch -v --prune -- origin {next}; git checkout -f {next}"
    );
    scene.by_the_mirror(|| scene.client.shell(&again).must());
    assert_eq!(head(&dir), next);
}
