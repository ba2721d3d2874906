//! People at their machines: git with `insteadOf` and the credentials that they have for the primary.

use std::time::Duration;

use super::page::recipe;
use super::{PASSWORD, Scene, USER, head, script};
use crate::front::{Front, Kind};
use crate::git::finish;
use crate::mirror_only;
use crate::oracle::State;
use crate::shapes;
use base64::Engine;

/// Clones, and compares with the primary.
#[track_caller]
fn clones(scene: &Scene) {
    let want = State::of(
        &scene.world.clone_of(&scene.primary.repo_as("service", "servicepw", &scene.repo.path), "--mirror"),
    );
    let dir = scene.world.unused("clone");
    scene.by_the_mirror(|| {
        scene
            .client
            .git(&format!("clone -q --mirror {} {}", scene.url(&scene.repo.path), dir.display()))
            .must()
    });
    assert_eq!(want.differences(&State::of(&dir), true), "");
}

#[test]
fn a_developer_uses_what_the_primarys_helper_knows() {
    mirror_only!();
    let mut scene = Scene::new();
    scene.client.remember_the_password();
    let kept = scene.client.remembered();
    let dir = scene.client.work.join("app");
    let url = scene.url(&scene.repo.path);
    // The lines that were in the README before: no helper has anything for the mirror's name.
    scene
        .client
        .follow("git config --global url.https://mirror.eu.example.com/.insteadOf https://git.example.com/");
    scene.client.git(&format!("ls-remote {url}")).must_fail(&["could not read Username"]);
    std::fs::write(scene.client.home.join(".gitconfig"), "[credential]\n\thelper = store\n").unwrap();

    scene.client.follow(recipe("developer"));
    // The lines can be run again.
    scene.client.follow(recipe("developer-ssh"));
    scene.client.follow(recipe("developer"));
    let trace = scene.client.home.join("trace");
    scene.client.set("GIT_TRACE", &trace.display().to_string());
    scene.by_the_mirror(|| scene.client.git(&format!("clone -q {url} {}", dir.display())).must());
    assert_eq!(
        scene.client.git(&format!("-C {} remote get-url origin", dir.display())).line(),
        scene.node.repo(&scene.repo.path)
    );
    // A push is the primary's, and the next fetch sees it.
    let commit = format!("-C {} commit -q --allow-empty -m pushed", dir.display());
    scene.client.git(&commit).must();
    scene.client.git(&format!("-C {} push -q origin HEAD", dir.display())).must();
    assert_eq!(scene.repo.oid("refs/heads/main"), head(&dir));
    let next = scene.repo.commit("main", "next", "1\n");
    scene.take_in(&scene.repo);
    scene.by_the_mirror(|| scene.client.git(&format!("-C {} pull -q", dir.display())).must());
    assert_eq!(head(&dir), next);
    // Nothing was learned about the mirror's host, and no command line had the password.
    assert_eq!(scene.client.remembered(), kept);
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(trace.contains("git-credential") && !trace.contains("s3cret"), "{trace}");
    assert!(!scene.node.log().contains("s3cret"));
}

#[test]
fn a_wrong_password_is_forgotten_by_the_primarys_helper() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember("wrong");
    scene.client.follow(recipe("developer"));
    assert!(scene.client.remembered().contains("wrong"));
    let asked = format!("ls-remote {}", scene.url(&scene.repo.path));
    scene.client.git(&asked).must_fail(&["Authentication failed"]);
    assert_eq!(scene.client.remembered().trim(), "");
    scene.client.git(&asked).must_fail(&["could not read Username"]);
    scene.client.remember_the_password();
    scene.client.git(&asked).must();
}

#[test]
fn every_place_that_has_a_credential_for_the_primary_will_do() {
    mirror_only!();
    let scene = Scene::new();
    let client = &scene.client;
    let plain = |name: &str, lines: &str| {
        let _ = std::fs::remove_file(client.home.join(".gitconfig"));
        client.follow(lines);
        client.follow(recipe("developer"));
        clones(&scene);
        eprintln!("{name} will do");
    };
    // A helper such as Git Credential Manager, which asks for what it does not have and keeps it.
    let log = client.home.join("asked");
    let helper = script(
        &client.home.join("manager"),
        &format!(
            "#!/bin/sh\necho \"$1\" >>{0}; cat >>{0}\n[ \"$1\" != get ] || printf 'protocol=http\\nhost={1}\\nusername={USER}\\npassword=%s\\n' \"s3cret:%2f'=&x\"\n",
            log.display(),
            scene.primary.address()
        ),
    );
    plain("a manager", &format!("git config --global credential.helper {}", helper.display()));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.starts_with("get\n") && said.contains("\nstore\n"), "{said}");
    assert!(
        said.contains(&format!("host={}\n", scene.primary.address())) && !said.contains(scene.node.address()),
        "{said}"
    );

    let quoted = PASSWORD.replace('\'', "'\\''");
    let socket = client.home.join("cache/socket");
    plain(
        "the cache",
        &format!(
            "mkdir -m 700 {1}\ngit config --global credential.helper 'cache --socket {0}'\nprintf 'url=https://git.example.com\\nusername={USER}\\npassword=%s\\n\\n' '{quoted}' | git credential approve",
            socket.display(),
            client.home.join("cache").display()
        ),
    );
    client.git(&format!("credential-cache --socket {} exit", socket.display())).must();

    let netrc = client.home.join(".netrc");
    std::fs::write(&netrc, format!("machine 127.0.0.1 login {USER} password \"{PASSWORD}\"\n")).unwrap();
    plain("netrc", "");
    std::fs::remove_file(&netrc).unwrap();

    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    plain(
        "a header",
        &format!(
            "git config --global http.https://git.example.com/.extraheader 'AUTHORIZATION: basic {basic}'"
        ),
    );

    let askpass = script(
        &client.home.join("askpass"),
        &format!("#!/bin/sh\ncase $1 in Username*) echo {USER} ;; *) echo '{quoted}' ;; esac\n"),
    );
    plain("a program that asks", &format!("git config --global core.askPass {}", askpass.display()));
}

/// A Basic header is a user and a password; any other a helper can pass on only to a git that asks for it.
#[test]
fn a_header_of_another_kind_takes_a_newer_git() {
    mirror_only!();
    let scene = Scene::new();
    scene.primary.token(USER, "bearer-token");
    scene.client.follow(recipe("developer"));
    scene.client.follow(
        "git config --global http.https://git.example.com/.extraheader 'Authorization: Bearer bearer-token'",
    );
    let version = scene.client.git("version").must().line();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok()).expect("a version");
    if minor >= 46 {
        clones(&scene);
    } else {
        let out = scene.client.git(&format!("ls-remote {}", scene.url(&scene.repo.path)));
        let out = out.must_fail(&["git 2.46"]);
        assert!(!out.stderr.contains("bearer-token"), "{}", out.stderr);
    }
}

#[test]
fn a_machine_without_packmirror_needs_a_line_of_shell() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("without-packmirror"));
    let kept = scene.client.remembered();
    clones(&scene);
    assert_eq!(scene.client.remembered(), kept);
    scene.client.remember("wrong");
    scene
        .client
        .git(&format!("ls-remote {}", scene.url(&scene.repo.path)))
        .must_fail(&["Authentication failed"]);
    assert_eq!(scene.client.remembered().trim(), "");
}

#[test]
fn addresses_for_ssh_lead_to_the_mirror() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    scene.client.follow(recipe("developer-ssh"));
    for url in ["git@git.example.com:team/app.git", "ssh://git@git.example.com/team/app.git"] {
        let dir = scene.world.unused("clone");
        scene.by_the_mirror(|| scene.client.git(&format!("clone -q {url} {}", dir.display())).must());
        assert_eq!(head(&dir), scene.repo.oid("refs/heads/main"));
    }
}

#[test]
fn pushes_can_go_straight_to_the_primary() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    scene.client.follow(recipe("developer-push"));
    let dir = scene.client.work.join("app");
    scene.by_the_mirror(|| {
        scene.client.git(&format!("clone -q {} {}", scene.url(&scene.repo.path), dir.display())).must()
    });
    scene.client.git(&format!("-C {} commit -q --allow-empty -m pushed", dir.display())).must();
    let before = scene.node.metric("packmirror_answers_total", &["reason=\"push\""]);
    scene.client.git(&format!("-C {} push -q origin HEAD", dir.display())).must();
    assert_eq!(scene.node.metric("packmirror_answers_total", &["reason=\"push\""]), before);
    assert_eq!(scene.repo.oid("refs/heads/main"), head(&dir));
}

#[test]
fn submodules_come_by_the_mirror_whatever_their_address() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    scene.client.follow(recipe("developer-ssh"));
    let lib = scene.another("team/lib.git", shapes::linear);
    let tip = lib.oid("refs/heads/main");
    let absolute = scene.url("team/lib.git");
    let modules = format!(
        "[submodule \"a\"]\n\tpath = a\n\turl = ../lib.git\n[submodule \"b\"]\n\tpath = b\n\turl = {absolute}\n[submodule \"c\"]\n\tpath = c\n\turl = git@git.example.com:team/lib.git\n"
    );
    let links = ["a", "b", "c"].map(|path| format!("M 160000 {tip} {path}\n")).concat();
    let script = format!(
        "commit refs/heads/main\ncommitter T <t@example.com> 1800000000 +0000\ndata 1\nsM 100644 inline .gitmodules\ndata {}\n{modules}\n{links}\n",
        modules.len()
    );
    let whole = scene.primary.repo("team/whole.git", |dir| {
        crate::git::git(dir).with_input(&["fast-import", "--quiet"], script.as_bytes()).must();
    });
    scene.take_in(&whole);
    let dir = scene.client.work.join("whole");
    scene.by_the_mirror(|| {
        scene
            .client
            .git(&format!("clone -q --recurse-submodules {} {}", scene.url(&whole.path), dir.display()))
            .must()
    });
    for path in ["a", "b", "c"] {
        assert_eq!(head(&dir.join(path)), tip);
    }
}

#[test]
fn missing_blobs_of_a_partial_clone_come_by_the_mirror() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    let town = scene.another("team/town.git", shapes::town);
    let dir = scene.client.work.join("town");
    let at = dir.display();
    scene.by_the_mirror(|| {
        scene
            .client
            .git(&format!("clone -q --filter=blob:none --sparse {} {at}", scene.url(&town.path)))
            .must()
    });
    scene.by_the_mirror(|| scene.client.git(&format!("-C {at} sparse-checkout set src/lib")).must());
    assert!(dir.join("src/lib/deep/one.c").exists() && !dir.join("docs").exists());
    scene.by_the_mirror(|| scene.client.git(&format!("-C {at} cat-file -p HEAD:docs/big.txt")).must());
}

/// Behind nginx as it is shipped, with a certificate of an authority that no system knows.
#[test]
fn a_private_authority_is_named_for_the_mirror() {
    mirror_only!();
    let mut scene = Scene::new();
    let Some(front) = Front::start(&scene.world, Kind::Nginx, &[scene.node.address()]) else { return };
    scene.client.mirror = front.url.clone();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    scene.client.git(&format!("ls-remote {}", scene.url(&scene.repo.path))).must_fail(&["certificate"]);
    let found = super::doctor::doctor(&scene, &scene.url(&scene.repo.path), &[]);
    assert_eq!(super::doctor::codes(&found), ["address-ok", "certificate", "credential-ok", "git-ok"]);
    let ca = front.ca.display().to_string();
    scene.client.follow(&recipe("authority").replace("/etc/ssl/certs/example-authority.pem", &ca));
    clones(&scene);
    assert!(super::doctor::doctor(&scene, &scene.url(&scene.repo.path), &[]).0);
}

#[test]
fn the_helper_answers_for_its_mirror_alone() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    let asks = |about: &str, action: &str| {
        let mut command = scene.client.command("packmirror");
        command.args(["git-credential", "--for", &scene.node.url, "--primary", &scene.primary.url, action]);
        finish(command, about.as_bytes(), Duration::from_secs(20))
    };
    let about = |host: &str| format!("protocol=http\nhost={host}\n\n");
    let answer = asks(&about(scene.node.address()), "get").must().text();
    assert_eq!(answer, format!("username={USER}\npassword={PASSWORD}\n\n"));
    for host in ["127.0.0.1", "localhost", scene.primary.address(), "evil.example.com"] {
        assert_eq!(asks(&about(host), "get").must().text(), "", "{host}");
    }
    assert_eq!(asks(&about(scene.node.address()), "from-a-newer-git").must().text(), "");
    asks("no message\n", "get").must_fail(&["without ="]);
    // A helper for all hosts is asked by way of itself, and ends.
    scene.client.follow("git config --global --replace-all credential.helper '!packmirror git-credential --for https://mirror.eu.example.com --primary https://git.example.com'");
    let asked = asks(&about(scene.node.address()), "get").must();
    assert_eq!(asked.line(), "");
    assert!(asked.stderr.contains("could not read Username"), "{}", asked.stderr);
}
