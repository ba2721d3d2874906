//! The commands beside `serve`, as people run them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::git::{clean, finish, git};
use crate::mirror_only;
use crate::oracle::{State, mirrored, same};
use crate::primary::Primary;
use crate::shapes;
use crate::world::World;

/// packmirror with nothing but what is given.
fn plain(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> crate::git::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packmirror"));
    clean(&mut command);
    command.current_dir(dir).args(args).envs(env.iter().copied());
    finish(command, b"", Duration::from_secs(60))
}

#[test]
fn the_demo_proves_itself_and_cleans_up() {
    mirror_only!();
    let world = World::new();
    let tmp = world.folder("tmp");
    let out = plain(world.path(), &["demo"], &[("TMPDIR", tmp.to_str().unwrap())]).must();
    let text = out.text() + &out.stderr;
    for word in ["clone", "push", "insteadOf", "packmirror serve"] {
        assert!(text.contains(word), "the demo does not mention {word}:\n{text}");
    }
    let left: Vec<_> = std::fs::read_dir(&tmp).unwrap().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "the demo left {left:?}");
}

#[test]
fn the_demo_on_ones_own_primary() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let before = repo.digest();
    let args = ["demo", "--primary", &primary.url, "--repo", "team/app.git"];
    plain(world.path(), &args, &[]).must();
    assert_eq!(repo.digest(), before, "nothing is pushed to a real primary");
}

#[test]
fn the_demo_on_a_private_repository() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    primary.repo("team/app.git", shapes::town);
    primary.account("alice", "s3cret:of alice");
    primary.private("team/app.git", &["alice"]);
    let args = ["demo", "--primary", &primary.url, "--repo", "team/app.git"];
    // Nobody is at a terminal, and no helper knows anything: the primary's refusal is what git says.
    let out = plain(world.path(), &args, &[]);
    assert!(!out.ok() && out.stderr.contains("could not read Username"), "{}", out.stderr);

    // The service credential is enough.
    let out = plain(world.path(), &args, &[("PACKMIRROR__CREDENTIAL", "alice:s3cret:of alice")]).must();
    assert!(!(out.text() + &out.stderr).contains("s3cret"));

    // So is what git's helper has for the primary.
    let helper = "!f() { test \"$1\" = get && echo username=alice && echo 'password=s3cret:of alice'; }; f";
    let config = world.folder("home").join("config");
    std::fs::write(&config, format!("[credential]\n\thelper = {helper:?}\n")).unwrap();
    let env = [("GIT_CONFIG_GLOBAL", config.to_str().unwrap())];
    plain(world.path(), &args, &env).must();
}

#[test]
fn sync_ls_and_status() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let (one, two) =
        (primary.repo("team/one.git", shapes::town), primary.repo("team/two.git", shapes::linear));
    let setup = world.setup(&primary);
    assert_eq!(json(&setup.command(&["ls", "--json"]).must().stdout), serde_json::json!([]));
    setup.command(&["sync", &one.path, &two.path]).must();
    for repo in [&one, &two] {
        assert_eq!(world.store.newest(&repo.path).unwrap()["manifest_digest"], repo.digest());
    }
    let text = setup.command(&["ls"]).must().text();
    assert!(text.contains("team/one.git") && text.contains("team/two.git"), "{text}");
    let listed = json(&setup.command(&["ls", "--json"]).must().stdout);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|r| r["repo"].as_str().unwrap()).collect();
    assert_eq!(names, ["team/one.git", "team/two.git"]);

    // Without names: all that the bucket has; nothing new means no new generation.
    two.commit("main", "new", "1");
    setup.command(&["sync"]).must();
    assert_eq!(world.store.generations(&one.path).len(), 1);
    assert_eq!(world.store.generations(&two.path).len(), 2);

    let status = json(&setup.command(&["status", "--json"]).must().stdout);
    let row = &status.as_array().unwrap()[1];
    assert_eq!(row["repo"], "team/two.git");
    assert_eq!(row["generation"], 2);
    assert_eq!(row["refs"], two.git().run("for-each-ref").lines().len());
    assert!(row["bytes"].as_u64().unwrap() > 0 && row["objects"].as_u64().unwrap() > 0, "{row}");
    assert_eq!(row["state"], "current", "{row}");
    assert!(row["last_compared"].is_string(), "{row}");
    assert!(setup.command(&["status"]).must().text().contains("team/two.git"));

    // A failure is a failure, and the others are done all the same.
    two.commit("main", "newer", "1");
    let out = setup.command(&["sync", "no/such.git", &two.path]);
    assert!(!out.ok(), "{}", out.stderr);
    assert!(out.stderr.contains("no/such.git"), "{}", out.stderr);
    assert_eq!(world.store.newest(&two.path).unwrap()["manifest_digest"], two.digest());
    world.store.audit();
}

/// The state of a running node's mirror, seen from a command beside it.
#[test]
fn status_tells_what_fails() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = world.node(&primary);
    mirrored(&world, &node, &repo);
    primary.down();
    let out = node.command(&["sync", &repo.path]);
    assert!(!out.ok());
    assert!(out.stderr.contains("primary") || out.stderr.contains(&primary.url), "{}", out.stderr);
    // Needs no primary.
    node.command(&["ls"]).must();
    primary.up();
}

/// A repository out of the bucket alone, with primary and cache gone, equals the primary's.
#[test]
fn export_works_without_the_primary() {
    mirror_only!();
    for (name, shape) in
        [("town", shapes::town as fn(&Path)), ("tags", shapes::tags), ("detached", shapes::detached)]
    {
        for format in ["sha1", "sha256"] {
            let (world, primary) = (World::new(), Primary::start());
            let repo = primary.repo_with("team/app.git", format, shape);
            let setup = world.setup(&primary);
            setup.command(&["sync", &repo.path]).must();
            repo.commit("main", "second/layer", "1");
            setup.command(&["sync", &repo.path]).must();
            let want = State::of(&world.clone_of(&primary.repo_url(&repo.path), "--mirror"));
            primary.down();
            let dir = world.unused("export");
            setup.command(&["export", &repo.path, dir.to_str().unwrap()]).must();
            let got = State::of(&dir);
            assert_eq!(want.differences(&got, true), "", "{name} {format}");
            assert_eq!(git(&dir).run("rev-parse --is-bare-repository").line(), "true");
            world.clone_of(dir.to_str().unwrap(), "");
            // Never over something that is there.
            setup.command(&["export", &repo.path, dir.to_str().unwrap()]).must_fail(&["exist", "empty"]);
            setup
                .command(&["export", "no/such.git", world.unused("x").to_str().unwrap()])
                .must_fail(&["no/such.git"]);
            let other = repo.path.strip_suffix(".git").unwrap();
            let x = world.unused("x");
            setup
                .command(&["export", other, x.to_str().unwrap()])
                .must_fail(&[&format!("but `{}`", repo.path)]);
            primary.up();
        }
    }
}

/// The escape hatch: packs, indexes and refs as they lie in the bucket are a repository to git.
#[test]
fn the_bucket_is_a_repository_for_stock_git() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::town);
    let setup = world.setup(&primary);
    setup.command(&["sync", &repo.path]).must();
    repo.commit("main", "second/layer", "1");
    setup.command(&["sync", &repo.path]).must();
    let record = world.store.newest(&repo.path).unwrap();
    let (g, dir) = world.client("by-hand");
    g.run("init -q --bare .");
    let blob = |blob: &serde_json::Value, kind: &str| {
        let id = blob["id"].as_str().unwrap();
        let name = world.store.blobs(kind).into_iter().find(|n| n.contains(id)).expect("the blob");
        world.store.get(&name)
    };
    for (n, layer) in record["layers"].as_array().unwrap().iter().enumerate() {
        for kind in ["pack", "idx"] {
            let file = dir.join(format!("objects/pack/pack-{n:040x}.{kind}"));
            std::fs::write(file, blob(&layer[kind], kind)).unwrap();
        }
    }
    let refs = zstd::decode_all(&blob(&record["refs"], "refs")[..]).unwrap();
    std::fs::write(dir.join("packed-refs"), refs).unwrap();
    let want = State::of(&world.clone_of(&primary.repo_url(&repo.path), "--mirror"));
    assert_eq!(want.differences(&State::of(&dir), true), "");
    g.run("fsck --strict --full");
}

#[test]
fn the_doctor() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    primary.repo("team/app.git", shapes::linear);
    let setup = world.setup(&primary);
    let out = setup.command(&["doctor"]).must();
    assert!(out.text().contains("store") && out.text().contains("primary"), "{}", out.text());
    assert!(world.store.list("repos").is_empty());
    primary.down();
    let out = setup.command(&["doctor"]);
    assert!(!out.ok());
    assert!(out.text().contains("primary"), "{} {}", out.text(), out.stderr);
    let file = world.unused("file");
    std::fs::write(&file, "").unwrap();
    let out = setup.clone().store(file.to_str().unwrap()).command(&["doctor"]);
    assert!(!out.ok() && !out.stderr.contains("panicked"), "{}", out.stderr);
}

#[test]
fn settings_have_one_order_and_no_unknown_keys() {
    mirror_only!();
    let world = World::new();
    let dir = world.folder("config");
    let file = dir.join("packmirror.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let config = |args: &[&str], env: &[(&str, &str)]| {
        plain(&dir, &[&["config", "--config", file.to_str().unwrap()], args].concat(), env)
    };
    write("primary = \"https://file.example\"\nmax_age = \"11s\"\ncredential = \"me:canary\"\n");
    let out = config(&[], &[]).must();
    assert!(out.text().contains("https://file.example") && out.text().contains("11s"), "{}", out.text());
    assert!(!(out.text() + &out.stderr).contains("canary"), "a secret was printed");
    let env = [("PACKMIRROR__PRIMARY", "https://env.example")];
    assert!(config(&[], &env).must().text().contains("https://env.example"));
    let flag = config(&["--primary", "https://flag.example"], &env).must().text();
    assert!(flag.contains("https://flag.example") && !flag.contains("env.example"), "{flag}");

    // The output is itself a settings file.
    let again = dir.join("again.toml");
    write("primary = \"https://file.example\"\nmax_age = \"11s\"\n");
    let first = config(&[], &[]).must().text();
    std::fs::write(&again, &first).unwrap();
    let second = plain(&dir, &["config", "--config", again.to_str().unwrap()], &[]).must().text();
    let values = |text: &str| text.parse::<toml::Table>().expect("TOML");
    assert_eq!(values(&first), values(&second));

    write("primry = \"https://file.example\"\n");
    let out = config(&[], &[]);
    assert!(!out.ok() && out.stderr.contains("primry"), "{}", out.stderr);
    write("");
    let out = config(&[], &[("PACKMIRROR__PRIMRY", "x")]);
    assert!(!out.ok() && out.stderr.to_lowercase().contains("primry"), "{}", out.stderr);
    write("max_age = \"soon\"\n");
    assert!(!config(&[], &[]).ok());
    assert!(!plain(&dir, &["config", "--no-such-flag"], &[]).ok());
    assert!(!plain(&dir, &["config", "--config", "/no/such/file"], &[]).ok());
}

#[test]
fn help_version_and_completions() {
    mirror_only!();
    let world = World::new();
    let run = |args: &[&str]| plain(world.path(), args, &[]);
    assert!(run(&["--version"]).must().text().starts_with("packmirror "));
    let help = run(&["--help"]).must().text();
    for command in
        ["serve", "demo", "sync", "ls", "status", "vet", "export", "doctor", "adopt", "config", "completions"]
    {
        assert!(help.contains(command), "--help lacks {command}");
        run(&[command, "--help"]).must();
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).must().text().contains("packmirror"));
    }
    assert_eq!(run(&["no-such-command"]).status.code(), Some(2));
    assert!(!run(&["serve"]).ok(), "serve needs a primary");
}

/// Health and metrics are where probes look for them.
#[test]
fn health_and_metrics() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("r.git", shapes::linear);
    let node = world.setup(&primary).set("log_format = \"json\"").start();
    same(&world, &primary, &node, &repo.path);
    assert_eq!(node.get("/livez").status, 200);
    assert_eq!(node.get("/readyz").status, 200);
    let metrics = node.get("/metrics");
    assert!(metrics.header("content-type").unwrap_or_default().starts_with("text/plain"));
    for name in ["packmirror_answers_total", "packmirror_build_info", "packmirror_http_requests_total"] {
        assert!(metrics.text().contains(&format!("# TYPE {name}")), "{name} is missing:\n{}", metrics.text());
    }
    for line in node.log().lines().filter(|l| !l.is_empty()) {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}

/// A terminal's Ctrl-C ends a node as SIGTERM does.
#[test]
fn signals_end_a_node_well() {
    mirror_only!();
    for signal in ["TERM", "INT"] {
        let (world, primary) = (World::new(), Primary::start());
        let repo = primary.repo("r.git", shapes::linear);
        let mut node = world.node(&primary);
        mirrored(&world, &node, &repo);
        node.signal(signal);
        let status = node.ended();
        assert!(status.success(), "{signal}: {status}");
        node.restart();
        same(&world, &primary, &node, &repo.path);
    }
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)))
}
