//! Clones and fetches with gix; ../README.md has the command line.

use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use gix::remote::Direction::Fetch;
use gix::remote::fetch::{Shallow, Tags};
use gix::remote::ref_map;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gix: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                eprintln!("gix: {inner}");
                cause = inner.source();
            }
            ExitCode::from(1)
        }
    }
}

fn option<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|a| a == name)?;
    args.get(at + 1).map(String::as_str)
}

fn unfiltered() -> ref_map::Options {
    ref_map::Options { prefix_from_spec_as_filter_on_remote: false, ..Default::default() }
}

fn run(args: &[String]) -> Result<()> {
    let shallow = if args.iter().any(|a| a == "--unshallow") {
        Shallow::undo()
    } else if let Some(more) = option(args, "--deepen") {
        Shallow::Deepen(more.parse()?)
    } else if let Some(depth) = option(args, "--depth") {
        Shallow::DepthAtRemote(depth.parse::<NonZeroU32>()?)
    } else {
        Shallow::NoChange
    };
    let version = option(args, "--protocol").unwrap_or("2");
    let settings = gix::open::Options::isolated().config_overrides([
        format!("protocol.version={version}"),
        "user.name=Tester".to_owned(),
        "user.email=tester@example.com".to_owned(),
    ]);
    let never = AtomicBool::new(false);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["clone", url, dir, ..] => {
            let kind = gix::create::Kind::WithWorktree;
            let mut clone = gix::clone::PrepareFetch::new(url, dir, kind, Default::default(), settings)?;
            clone = clone.with_shallow(shallow);
            if let Some(branch) = option(args, "--branch") {
                let spec = format!("+refs/heads/{branch}:refs/remotes/origin/{branch}");
                clone = clone.with_ref_name(Some(branch))?.configure_remote(move |remote| {
                    let mut remote = remote.with_fetch_tags(Tags::Included);
                    remote.replace_refspecs(Some(spec.as_str()), Fetch)?;
                    Ok(remote)
                });
            }
            clone.fetch_only(gix::progress::Discard, &never)?;
        }
        ["mirror", url, dir, ..] => {
            let kind = gix::create::Kind::Bare;
            let clone = gix::clone::PrepareFetch::new(url, dir, kind, Default::default(), settings)?;
            // Its filter for this is `refs/*`, and no ref's name begins with that.
            let clone = clone.with_fetch_options(unfiltered());
            let mut clone = clone.configure_remote(|remote| {
                let mut remote = remote.with_fetch_tags(Tags::None);
                remote.replace_refspecs(Some("+refs/*:refs/*"), Fetch)?;
                Ok(remote)
            });
            clone.fetch_only(gix::progress::Discard, &never)?;
        }
        ["fetch", dir, ..] => {
            let repo = gix::open_opts(dir, settings)?;
            let remote = repo.find_remote("origin")?;
            let connection = remote.connect(Fetch)?;
            let fetch = connection.prepare_fetch(gix::progress::Discard, unfiltered())?;
            fetch.with_shallow(shallow).receive(gix::progress::Discard, &never)?;
        }
        _ => return Err("clone, mirror or fetch?".into()),
    }
    Ok(())
}
