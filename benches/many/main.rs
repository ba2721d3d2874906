//! What it costs to hold many repositories: one node in front of `git http-backend` behind nginx, with N small repositories.
//!
//! `cargo bench --bench many -- [--repositories N] [--every SECONDS] [--work DIR]`. Needs nginx and fcgiwrap. The figures go
//! to standard output as a table, progress to standard error. See `docs/benchmarks.md` for what they mean.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark fails by panics")]

#[path = "../serving/client.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod client;
mod node;
#[path = "../serving/procs.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod procs;
mod repos;
#[path = "../serving/servers.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod servers;
#[path = "../serving/shell.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod shell;

/// The name under which the primary is looked for at its start.
mod repo {
    pub const PRIMARY: &str = super::repos::FIRST;
}

/// What `servers` needs of the other bench.
#[allow(dead_code, reason = "shared with the other bench")]
#[path = "../serving/requests.rs"]
mod requests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use client::ask;
use node::{Node, Usage};
use repos::Repos;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// How many clients ask at once where all repositories are asked for.
const CLIENTS: usize = 8;
/// First syncs that may be under way before further ones are asked for.
const AHEAD: usize = 400;
/// Repositories whose first request is timed.
const TIMED: usize = 200;

/// What it costs to hold many repositories.
#[derive(Debug, Parser)]
struct Options {
    /// How many repositories
    #[arg(long, default_value_t = 10_000)]
    repositories: usize,
    /// The setting compare_every, in seconds
    #[arg(long, default_value_t = 180)]
    every: u64,
    /// Where repositories, bucket and cache are kept for the next run [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Further arguments of the node, such as --s3-endpoint
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    with: Vec<String>,
    /// The store [default: a directory]
    #[arg(long)]
    store: Option<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    shell::bench("many", options.bench, options.work.as_deref(), |work| run(&options, work))
}

fn run(options: &Options, work: &Path) -> Result<()> {
    let count = options.repositories.max(1);
    let repos = Repos::prepare(&work.join(format!("repos-{count}")), count)?;
    let run = tempfile::tempdir()?;
    let binary = run.path().join("packmirror");
    std::fs::copy(env!("CARGO_BIN_EXE_packmirror"), &binary)?;
    let primary = servers::start_git(&repos.root, run.path(), servers::primary_port(work)?)?;
    let every = Duration::from_secs(options.every.max(1));
    let start = |name: &str, store: Option<&String>| {
        let directory = work.join(format!("{name}-{count}"));
        let store = store.cloned().unwrap_or_else(|| directory.join("store").display().to_string());
        std::fs::create_dir_all(&directory)?;
        Node::start(
            &binary,
            &primary.address,
            &store,
            &directory.join("cache"),
            run.path(),
            every,
            &options.with,
        )
    };
    println!("| | {count} repositories |\n|---|--:|");

    let empty = start("empty", None)?;
    std::thread::sleep(Duration::from_secs(5));
    let none = empty.usage()?;
    empty.end()?;

    eprintln!("first syncs");
    let node = start("node", options.store.as_ref())?;
    let begun = Instant::now();
    first_syncs(&node, &repos)?;
    row("first syncs, one node", format!("{:.0} s", begun.elapsed().as_secs_f64()));
    row("RSS after them, anonymous / of files", mib(&node.usage()?));
    node.end()?;

    eprintln!("a restart");
    let node = start("node", options.store.as_ref())?;
    row("a restart: until ready", ms(node.ready_after));
    let first = repos.clone_of(count / 2);
    let asked = Instant::now();
    ask(&node.address, &first, None)?;
    row("until the first clone was answered", ms(node.ready_after + asked.elapsed()));
    node.until(Duration::from_secs(600), |node| Ok(node.known()? >= count as f64))?;
    row("until all repositories are known", ms(node.age()));

    eprintln!("the first round of comparisons");
    let compared = |rounds: usize| {
        node.until(every * 20, |node| {
            Ok(node.metric("packmirror_sync_runs_total", &[])? >= (rounds * count) as f64)
        })
    };
    let before = Snapshot::of(&node, &primary)?;
    compared(1)?;
    rounds("the first round", &before, &Snapshot::of(&node, &primary)?, count);
    compared(2)?;
    let before = Snapshot::of(&node, &primary)?;
    eprintln!("another round");
    compared(3)?;
    rounds("a round", &before, &Snapshot::of(&node, &primary)?, count);
    let idle = node.usage()?;
    row("RSS with nothing open, anonymous / of files", mib(&idle));
    let each = (idle.anonymous.saturating_sub(none.anonymous)) as f64 / count as f64 / 1024.0;
    row("anonymous memory for each repository, (RSS(N) − RSS(0)) / N", format!("{each:.1} KiB"));
    let scraped = Instant::now();
    node.metrics()?;
    row("a scrape of /metrics", ms(scraped.elapsed()));

    eprintln!("opening {TIMED} repositories");
    let timed: Vec<usize> = (0..count).step_by((count / TIMED).max(1)).take(TIMED).collect();
    let mut times = [Vec::new(), Vec::new()];
    for n in &timed {
        // The primary's yes for the client is had before: what is timed is the node.
        ask(&node.address, &repos.refs_of(*n), None)?;
        for times in &mut times {
            times.push(ask(&node.address, &repos.clone_of(*n), None)?.first);
        }
    }
    let [cold, warm] = times;
    row("first byte of a clone, closed before: median / 95th percentile", spread(cold));
    row("the same, open", spread(warm));

    eprintln!("a clone of each");
    let begun = Instant::now();
    each_of(count, |n| ask(&node.address, &repos.clone_of(n), None).map(drop))?;
    row("a clone of each, 8 clients", format!("{:.0} s", begun.elapsed().as_secs_f64()));
    row("answered by the primary", format!("{:.0}", servers::passed_on(&node.address)?));
    let all = node.usage()?;
    row("mappings of the process (/proc/PID/maps) after it", all.mappings.to_string());
    row("RSS after it, anonymous / of files", mib(&all));
    node.end()
}

/// Asks for each repository through the node, and waits until all are mirrored.
fn first_syncs(node: &Node, repos: &Repos) -> Result<()> {
    let mirrored = |least: usize| {
        node.until(Duration::from_secs(1800), |node| {
            Ok(node.metric("packmirror_repos", &["state=\"current\""])? >= least as f64)
        })
    };
    for n in 0..repos.count {
        if n % 50 == 0 {
            mirrored(n.saturating_sub(AHEAD))?;
        }
        ask(&node.address, &repos.refs_of(n), None)?;
    }
    mirrored(repos.count)
}

/// Does something for each number, a few at once.
fn each_of(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        match next.fetch_add(1, Ordering::Relaxed) {
                            n if n < count => work(n)?,
                            _ => return Ok(()),
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a client panicked")?)
    })
}

/// What was counted until a moment.
struct Snapshot {
    at: Instant,
    runs: f64,
    store: f64,
    primary: f64,
    cpu: f64,
    primary_cpu: f64,
}

impl Snapshot {
    fn of(node: &Node, primary: &servers::Subject) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            runs: node.metric("packmirror_sync_runs_total", &[])?,
            store: node.metric("packmirror_store_requests_total", &[])?,
            primary: node.metric("packmirror_primary_requests_total", &[])?,
            cpu: node.usage()?.cpu,
            primary_cpu: primary.procs.cpu_so_far()?,
        })
    }
}

fn rounds(what: &str, before: &Snapshot, after: &Snapshot, count: usize) {
    let runs = (after.runs - before.runs).max(1.0);
    let scaled = |amount: f64| amount / runs * count as f64;
    let took = (after.at - before.at).as_secs_f64();
    row(&format!("{what}: time for {runs:.0} comparisons"), format!("{took:.0} s"));
    row(&format!("{what}: CPU of the node"), format!("{:.1} s", scaled(after.cpu - before.cpu)));
    row(
        &format!("{what}: CPU of the primary"),
        format!("{:.1} s", scaled(after.primary_cpu - before.primary_cpu)),
    );
    row(&format!("{what}: requests to the store"), format!("{:.0}", after.store - before.store));
    row(
        &format!("{what}: requests to the primary for each comparison"),
        format!("{:.2}", (after.primary - before.primary) / runs),
    );
}

fn row(what: &str, figure: String) {
    println!("| {what} | {figure} |");
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

fn mib(usage: &Usage) -> String {
    format!("{} / {} MiB", usage.anonymous >> 20, usage.files >> 20)
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    format!("{:.1} / {:.1} ms", at(0.5), at(0.95))
}
