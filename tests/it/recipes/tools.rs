//! Package managers and agents that run git for themselves.
//!
//! `PACKMIRROR_TEST_TOOLS` names the folder that `infra/parts/install.sh tools` prints. go, cargo, pip and npm are the
//! machine's own, and work on packages that need nothing from a registry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::page::recipe;
use super::{Scene, head};
use crate::git::{Output, finish, git};
use crate::mirror_only;
use crate::primary::Repo;
use crate::world::skip;

/// A scene whose primary has its name of the page, and a client that is set up for it.
fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.client.by_name();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    scene
}

/// A private repository with these files, tagged v1.0.0, that the mirror has.
#[track_caller]
fn package(scene: &Scene, path: &str, files: &[(&str, &str)]) -> Repo {
    scene.another(path, |dir| {
        let mut script =
            "commit refs/heads/main\ncommitter T <t@example.com> 1700000000 +0000\ndata 1\np".to_owned();
        for (name, text) in files {
            script.push_str(&format!("M 100644 inline {name}\ndata {}\n{text}\n", text.len()));
        }
        git(dir).with_input(&["fast-import", "--quiet"], script.as_bytes()).must();
        git(dir).run("tag v1.0.0 main");
    })
}

fn run(mut command: Command, line: &str) -> Output {
    command.args(line.split_whitespace());
    finish(command, b"", Duration::from_secs(180))
}

/// The program that a name stands for on this machine: some are scripts that look into the home directory of their user.
fn real(name: &str, asked: &[&str]) -> Option<PathBuf> {
    let out = Command::new(name).args(asked).output().ok().filter(|out| out.status.success());
    let Some(out) = out else {
        skip(&format!("{name} (infra/parts/install.sh tools)"));
        return None;
    };
    Some(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
}

#[test]
fn go_modules() {
    mirror_only!();
    let Some(root) = real("go", &["env", "GOROOT"]) else { return };
    let scene = scene();
    package(
        &scene,
        "team/lib",
        &[("go.mod", "module git.example.com/team/lib.git\n\ngo 1.20\n"), ("lib.go", "package lib\n")],
    );
    scene
        .client
        .follow(&recipe("go").replace("go env -w", &format!("{} env -w", root.join("bin/go").display())));
    let mut go = scene.client.command(&root.join("bin/go").display().to_string());
    // Its cache cannot be deleted otherwise.
    go.envs([("GOFLAGS", "-modcacherw"), ("GOTOOLCHAIN", "local")]);
    let out =
        scene.by_the_mirror(|| run(go, "mod download -json git.example.com/team/lib.git@v1.0.0").must());
    let said: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
    assert!(Path::new(said["Dir"].as_str().unwrap()).join("lib.go").exists());
}

#[test]
fn cargo_with_git_and_with_its_own() {
    mirror_only!();
    let mut scene = scene();
    package(
        &scene,
        "team/lib.git",
        &[
            ("Cargo.toml", "[package]\nname = \"lib\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"),
            ("src/lib.rs", "\n"),
        ],
    );
    let fetch = |scene: &Scene, name: &str, config: &str| {
        let dir = scene.world.folder(name);
        std::fs::create_dir_all(dir.join("src")).unwrap();
        std::fs::create_dir_all(dir.join(".cargo")).unwrap();
        std::fs::write(dir.join("src/lib.rs"), "").unwrap();
        std::fs::write(dir.join(".cargo/config.toml"), scene.client.here(config)).unwrap();
        let manifest = "[package]\nname = \"app\"\nversion = \"1.0.0\"\nedition = \"2021\"\n\
                        [dependencies]\nlib = { git = \"https://git.example.com/team/lib.git\", tag = \"v1.0.0\" }\n";
        std::fs::write(dir.join("Cargo.toml"), manifest).unwrap();
        let mut cargo = scene.client.command(env!("CARGO"));
        cargo.current_dir(&dir).env("CARGO_HOME", scene.world.folder("cargo"));
        cargo.env("RUSTC", Path::new(env!("CARGO")).with_file_name("rustc"));
        scene.by_the_mirror(|| run(cargo, "fetch").must());
        let lock = std::fs::read_to_string(dir.join("Cargo.lock")).unwrap();
        assert!(lock.contains("git+https://git.example.com/team/lib.git?tag=v1.0.0#"), "{lock}");
    };
    fetch(&scene, "with-git", recipe("cargo"));
    // Its library asks no helper for a host that is a number, and finds none by a port, which a mirror in the field has not.
    scene.client.mirror = scene.node.url.replace("127.0.0.1", "localhost");
    let lines = recipe("developer")
        .replace("credential.https://mirror.eu.example.com.", "credential.http://localhost.");
    scene.client.follow(&format!("rm \"$HOME/.gitconfig\"\n{lines}"));
    scene.client.remember_the_password();
    fetch(&scene, "with-its-own", "");
}

/// A package whose way of being built stands in the package, so that nothing has to come from an index.
const WHEEL: &str = r#"
import os, zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    info = "lib-1.0.0.dist-info"
    with zipfile.ZipFile(os.path.join(directory, "lib-1.0.0-py3-none-any.whl"), "w") as wheel:
        wheel.write("lib.py")
        wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\nName: lib\nVersion: 1.0.0\n")
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "/RECORD", "")
    return "lib-1.0.0-py3-none-any.whl"
"#;

#[test]
fn pip_from_git() {
    mirror_only!();
    let Some(python) = real("python3", &["-c", "import pip, sys; print(sys.executable)"]) else { return };
    let scene = scene();
    let project = "[project]\nname = \"lib\"\nversion = \"1.0.0\"\n[build-system]\nrequires = []\nbuild-backend = \"wheel_\"\nbackend-path = [\".\"]\n";
    package(
        &scene,
        "team/lib.git",
        &[("pyproject.toml", project), ("wheel_.py", WHEEL), ("lib.py", "x = 1\n")],
    );
    let target = scene.world.unused("target");
    let command = scene.client.command(&python.display().to_string());
    let line = format!(
        "-m pip install --no-index --no-cache-dir --disable-pip-version-check --target {} git+https://git.example.com/team/lib.git@v1.0.0",
        target.display()
    );
    scene.by_the_mirror(|| run(command, &line).must());
    assert!(target.join("lib.py").exists());
}

#[test]
fn npm_from_git() {
    mirror_only!();
    if real("npm", &["--version"]).is_none() {
        return;
    }
    let scene = scene();
    let project = "{\"name\": \"lib\", \"version\": \"1.0.0\"}";
    package(&scene, "team/lib.git", &[("package.json", project), ("index.js", "\n")]);
    let dir = scene.world.folder("app");
    let mut command = scene.client.command("npm");
    command.current_dir(&dir);
    let line = "install --no-audit --no-fund --offline git+https://git.example.com/team/lib.git#v1.0.0";
    scene.by_the_mirror(|| run(command, line).must());
    assert!(dir.join("node_modules/lib/index.js").exists());
    let lock = std::fs::read_to_string(dir.join("package-lock.json")).unwrap();
    assert!(lock.contains("git.example.com") && !lock.contains(&scene.node.url), "{lock}");
}

#[test]
fn buildkites_agent() {
    mirror_only!();
    let Some(folder) = std::env::var_os("PACKMIRROR_TEST_TOOLS") else {
        return skip("Buildkite's agent, in the folder that PACKMIRROR_TEST_TOOLS names");
    };
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("runner"));
    let builds = scene.world.folder("builds");
    let shared = scene.world.folder("git-mirrors");
    let job = |commit: &str, more: &[(&str, &str)]| {
        let mut command =
            scene.client.command(&Path::new(&folder).join("buildkite-agent").display().to_string());
        let (builds, empty) =
            (builds.display().to_string(), scene.world.folder("empty").display().to_string());
        let folder = folder.to_string_lossy().into_owned();
        command
            .args(["bootstrap", "--phases", "checkout", "--ssh-keyscan=false", "--command", "true"])
            .args(["--repository", &scene.url(&scene.repo.path), "--commit", commit, "--branch", "main"])
            .args(["--job", "7", "--agent", "agent", "--organization", "org", "--pipeline", "app"])
            .args(["--pullrequest", "false", "--build-path", &builds, "--bin-path", &folder])
            .args(["--hooks-path", &empty, "--plugins-path", &empty, "--sockets-path", &empty])
            .args(["--pipeline-provider", "git"])
            .envs(more.iter().copied());
        finish(command, b"", Duration::from_secs(60)).must()
    };
    let dir = builds.join("agent/org/app");
    let first = scene.repo.oid("refs/heads/main");
    scene.by_the_mirror(|| job(&first, &[]));
    assert_eq!(head(&dir), first);
    let next = scene.repo.commit("main", "next", "1\n");
    scene.take_in(&scene.repo);
    scene.by_the_mirror(|| job(&next, &[]));
    assert_eq!(head(&dir), next);
    // Jobs of a machine share a clone.
    std::fs::remove_dir_all(&dir).unwrap();
    let shared = shared.display().to_string();
    let more =
        [("BUILDKITE_GIT_MIRRORS_PATH", shared.as_str()), ("BUILDKITE_AGENT_EXPERIMENT", "git-mirrors")];
    scene.by_the_mirror(|| job(&next, &more));
    assert_eq!(head(&dir), next);
}
