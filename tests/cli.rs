//! The command line as a process: exit codes, streams, secrets, completions. Needs no server.

use std::path::Path;
use std::process::{Command, Output, Stdio};

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
        (&["config", "--credential-file", "absent"], None, "absent cannot be used"),
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
    for command in ["serve", "demo", "sync", "ls", "status", "export", "doctor", "config", "completions"] {
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
        for word in ["serve", "completions", "cache-dir", "s3-endpoint", "serve-verified", "port-file"] {
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
