//! The command line as a process: exit codes, streams, secrets, completions. Needs no server.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A secret that must appear nowhere.
const CANARY: &str = "canary-91c7";

fn packmirror(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packmirror"));
    command.args(args).current_dir(dir).stdin(Stdio::null()).env_clear().env("HOME", dir);
    for name in ["PATH", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(env.iter().copied()).output().expect("packmirror runs")
}

/// Starts the demo with its own directory for temporary files.
fn demo(dir: &Path, args: &[&str]) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packmirror"));
    command.arg("demo").args(args).env("TMPDIR", dir).stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().expect("packmirror runs")
}

/// What is left in a directory.
fn left(dir: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn config_shows_what_holds_and_no_secret() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("packmirror.toml"), "grant_ttl = '7s'\nsync_wait = '7s'\n")
        .expect("a file");
    let env = [("PACKMIRROR__CREDENTIAL", CANARY), ("PACKMIRROR__SYNC_WAIT", "8s"), ("RUST_LOG", "trace")];
    let out = packmirror(dir.path(), &["config", "--config", "packmirror.toml", "--max-age", "9s"], &env);
    let (shown, said) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{said}");
    for (line, from) in [
        ("grant_ttl = \"7s\"", "packmirror.toml"),
        ("sync_wait = \"8s\"", "PACKMIRROR__SYNC_WAIT"),
        ("max_age = \"9s\"", "--max-age"),
        ("compare_every = \"3m\"", "default"),
        ("log_level = \"trace\"", "RUST_LOG"),
    ] {
        let found = shown.lines().find(|given| given.starts_with(line));
        assert!(
            found.is_some_and(|found| found.ends_with(&format!("# {from}"))),
            "{line} from {from}:\n{shown}"
        );
    }
    assert!(shown.contains("credential is set and not shown (from PACKMIRROR__CREDENTIAL)"), "{shown}");
    assert!(!shown.contains(CANARY) && !said.contains(CANARY), "{shown}{said}");
    shown.parse::<toml::Table>().expect("the output is TOML");
}

#[test]
fn wrong_settings_and_arguments_end_with_2() {
    let dir = tempfile::tempdir().expect("a directory");
    for (args, env, part) in [
        (["config", "--max-age=30"].as_slice(), None, "write a duration such as"),
        (&["config"], Some(("PACKMIRROR__CACHE_DIRS", "/x")), "did you mean PACKMIRROR__CACHE_DIR?"),
        (&["config", "--config", "absent.toml"], None, "absent.toml cannot be read"),
        (&["config", "--credential-file", "absent"], None, "cannot read the credential file"),
        (&["serve"], None, "--primary https://git.example.com"),
        (&["sync"], None, "--primary https://git.example.com"),
        (&["demo", "--repo", "x"], None, "--primary URL_OR_DIRECTORY"),
        (&["demo", "--store", "/x"], None, "leave --store away"),
        (&["config", "--credential", CANARY], None, "unexpected argument '--credential'"),
        (&["frobnicate"], None, "unrecognized subcommand"),
        (&[], None, "Usage: packmirror"),
    ] {
        let out = packmirror(dir.path(), args, env.as_slice());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {part:?} is not in:\n{said}");
        assert!(out.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = packmirror(dir.path(), &["--help"], &[]);
    let help = text(&out.stdout);
    assert!(out.status.success() && help.contains("Exit codes:") && help.contains("insteadOf"), "{help}");
    let out = packmirror(dir.path(), &["--version"], &[]);
    assert_eq!(text(&out.stdout), format!("packmirror {}\n", env!("CARGO_PKG_VERSION")));
    for command in [
        "serve",
        "demo",
        "sync",
        "ls",
        "status",
        "vet",
        "purge",
        "export",
        "doctor",
        "adopt",
        "config",
        "completions",
    ] {
        let out = packmirror(dir.path(), &["help", command], &[]);
        let help = text(&out.stdout);
        assert!(out.status.success() && help.contains("Examples:"), "{command}: {help}");
    }
}

#[test]
fn completions_are_scripts_that_know_commands_and_flags() {
    let dir = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = packmirror(dir.path(), &["completions", shell], &[]);
        let script = text(&out.stdout);
        assert!(out.status.success(), "{shell}");
        for word in ["serve", "completions", "cache-dir", "s3-endpoint", "port-file"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        if shell == "bash" {
            complete_in_bash(dir.path(), &script);
        }
    }
    let out = packmirror(dir.path(), &["completions", "cobol"], &[]);
    assert_eq!(out.status.code(), Some(2));
}

/// Lets a real bash complete with the script, where there is one.
fn complete_in_bash(dir: &Path, script: &str) {
    std::fs::write(dir.join("completion.bash"), script).expect("a file");
    let ask = r#"
        source completion.bash || exit 1
        complete_line() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _packmirror packmirror "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
            echo "${COMPREPLY[*]}"
        }
        complete_line packmirror st
        complete_line packmirror serve --cache-
        complete_line packmirror serve --freshness b
    "#;
    let mut bash = Command::new("bash");
    let out = match bash.args(["--norc", "-c", ask]).current_dir(dir).output() {
        Ok(out) => out,
        Err(_) => return eprintln!("SKIPPED: completing in bash: there is no bash"),
    };
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "status\n--cache-dir --cache-max\nbounded\n", "{}", text(&out.stderr));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_packmirror"));
    command
        .arg("completions")
        .arg("zsh")
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("packmirror runs");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = demo(dir.path(), &[]);
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mirror = lines
        .find(|line| line.as_ref().is_ok_and(|line| line.contains("A mirror runs at")))
        .expect("a mirror");
    let mirror = mirror.expect("text");
    let asked = Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &child.id().to_string()]).status();
    assert!(asked.expect("sh runs").success());
    lines.for_each(drop);
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(130), "{}", text(&out.stderr));
    assert!(left(dir.path()).is_empty(), "the demo left {:?}", left(dir.path()));
    let address = mirror.split("http://").nth(1).expect("an address");
    let address = address.split(". ").next().expect("an address");
    assert!(TcpStream::connect(address).is_err(), "the mirror is still there: {mirror}");
}

#[test]
fn a_demo_that_fails_says_why_and_cleans_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let (primary, scratch) = (dir.path().join("primary"), dir.path().join("scratch"));
    for path in [&primary, &scratch] {
        std::fs::create_dir(path).expect("a directory");
    }
    let primary = primary.to_str().expect("text");
    let out =
        demo(&scratch, &["--primary", primary, "--repo", "absent.git"]).wait_with_output().expect("it ends");
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("git clone") && said.contains("absent.git"), "{said}");
    assert!(left(&scratch).is_empty(), "the demo left {:?}", left(&scratch));
}
