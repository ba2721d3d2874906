//! What serving costs: packmirror beside `git http-backend` behind nginx, on the same repository, in the same run.
//!
//! `cargo bench --bench serving -- [PATH-OF-A-BARE-REPOSITORY] [options]`; `--help` names them. Without a path a
//! repository is generated. Needs nginx and fcgiwrap. See `docs/benchmarks.md` for what the columns mean.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark fails by panics")]

mod check;
mod client;
mod cold;
mod crowd;
mod generate;
mod measure;
mod procs;
mod repo;
mod requests;
mod servers;
mod shell;
mod slow;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use generate::Size;
use measure::{Cost, Effort, measure};
use requests::{Ask, Repository, Row};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// What serving costs: packmirror beside `git http-backend` behind nginx.
#[derive(Debug, Parser)]
struct Options {
    /// A bare repository; it is copied [default: one is generated]
    path: Option<PathBuf>,
    /// Where copies, bucket and caches are kept for the next run [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Rows to measure, all whose names begin with one of these
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    only: Vec<String>,
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// One short round: to see that everything works
    #[arg(long)]
    quick: bool,
    /// Have git index every pack strictly
    #[arg(long)]
    check: bool,
    /// Time crowds of so many clients instead of one request at a time; of the row `clone` if none is chosen
    #[arg(long, value_delimiter = ',', value_name = "CLIENTS,…")]
    concurrency: Vec<usize>,
    /// Time clients beside so many that read 10 KB a second; of the row `clone` if none is chosen
    #[arg(long, value_name = "READERS")]
    slow: Option<usize>,
    /// Time the first answer of nodes with an empty cache and a MinIO as store, with so many milliseconds of delay between; of the row
    /// `clone` if none is chosen
    #[arg(long, value_delimiter = ',', value_name = "DELAY,…", num_args = 0..=1, default_missing_value = "0,50")]
    cold: Vec<u64>,
    /// Another build of packmirror than the one made for this bench
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Commits on the generated repository's main branch
    #[arg(long, default_value_t = 2000)]
    commits: u32,
    /// Files in the generated repository
    #[arg(long, default_value_t = 400)]
    files: u32,
    /// Lines by which its files differ in length, at most
    #[arg(long, default_value_t = 300)]
    lines: u32,
    /// Refs of pull requests in the generated repository
    #[arg(long, default_value_t = 1000)]
    pulls: u32,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    shell::bench("serving", options.bench, options.work.as_deref(), |work| run(&options, work))
}

fn run(options: &Options, work: &Path) -> Result<()> {
    let Options { commits, files, lines, pulls, .. } = *options;
    let size = Size { commits, files, lines, pulls };
    let root = work.join("repos");
    let (primary, many) = repo::prepare(&root, options.path.as_deref(), size)?;
    let (primary, many) = (Repository::open(&primary, repo::PRIMARY)?, Repository::open(&many, repo::MANY)?);
    let rows: Vec<Row> = requests::rows(&primary, &many)?;
    let crowds = !options.concurrency.is_empty() || options.slow.is_some() || !options.cold.is_empty();
    let chosen = |row: &&Row| match &options.only[..] {
        [] => !crowds || row.name == "clone",
        only => only.iter().any(|only| row.name.starts_with(only.as_str())),
    };
    let rows: Vec<&Row> = rows.iter().filter(chosen).collect();
    if rows.is_empty() {
        return Err("no row has such a name".into());
    }

    // A build that comes meanwhile must not change what is measured.
    let run = tempfile::tempdir()?;
    let binary = run.path().join("packmirror");
    let built = options.binary.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_packmirror").into());
    std::fs::copy(built, &binary)?;
    let mut servers = vec![servers::start_git(&root, run.path(), servers::primary_port(work)?)?];
    if !options.cold.is_empty() {
        return cold::table(&rows, &servers[0], &binary, run.path(), &options.cold, options.rounds);
    }
    let modes: &[&'static str] = if crowds { &["bounded"] } else { &["strict", "bounded"] };
    for &freshness in modes {
        let mirrored = [&primary, &many];
        servers.push(servers::start_mirror(freshness, &binary, &servers[0], work, run.path(), &mirrored)?);
    }

    if !options.concurrency.is_empty() {
        crowd::table(&rows, &servers, &options.concurrency, options.rounds.max(1))?;
    }
    if let (Some(readers), Some(mirror)) = (options.slow, servers.last()) {
        slow::table(&rows, mirror, readers)?;
    }
    if crowds {
        return Ok(());
    }

    let effort = match options.quick {
        true => {
            Effort { rounds: 1, cpu: Duration::from_millis(50), wall: Duration::from_secs(1), repeats: 20 }
        }
        false => Effort {
            rounds: options.rounds.max(1),
            cpu: Duration::from_millis(300),
            wall: Duration::from_secs(3),
            repeats: 400,
        },
    };
    print_head(&root)?;
    let mut notes = Vec::new();
    for row in rows {
        let ways: &[bool] = if matches!(row.ask, Ask::Fetch { .. }) { &[true, false] } else { &[false] };
        for &new in ways {
            eprintln!("{}{}", row.name, if new { ", new requests" } else { "" });
            let costs = measure(row, new, &servers, effort, options.check.then_some(work))?;
            let (git, mirrors) = costs.split_first().ok_or("no server")?;
            for (server, cost) in servers[1..].iter().zip(mirrors) {
                print_line(row, server.name, new, git, cost);
                notes.extend(remarks(row, server.name, git, cost));
            }
        }
    }
    notes.iter().for_each(|note| println!("\n{note}"));
    Ok(())
}

fn print_head(root: &Path) -> Result<()> {
    println!("Beside {}:\n", shell::git(root, &["--version"])?.trim());
    println!(
        "| row | mode | request | git CPU ms | CPU ms | ratio | git first ms | first ms | git total ms | total ms \
         | git anon MB | anon MB | git bytes | bytes | ratio | git objects | objects |"
    );
    println!("|---|---|---|{}", "--:|".repeat(14));
    Ok(())
}

fn print_line(row: &Row, mode: &str, new: bool, git: &Cost, ours: &Cost) {
    let request = match row.ask {
        Ask::Refs(_) => "",
        Ask::Fetch { .. } if new => "new",
        Ask::Fetch { .. } => "again",
    };
    let bytes = |cost: &Cost| if cost.objects.is_some() { cost.pack_bytes } else { cost.bytes };
    let objects = |cost: &Cost| cost.objects.map(|n| n.to_string()).unwrap_or_default();
    println!(
        "| {} | {mode} | {request} | {} | {} | {:.3} | {} | {} | {} | {} | {} | {} | {} | {} | {:.3} | {} | {} |",
        row.name,
        ms(git.cpu),
        ms(ours.cpu),
        ours.cpu / git.cpu,
        ms(git.first),
        ms(ours.first),
        ms(git.total),
        ms(ours.total),
        git.anonymous >> 20,
        ours.anonymous >> 20,
        bytes(git),
        bytes(ours),
        bytes(ours) as f64 / bytes(git) as f64,
        objects(git),
        objects(ours),
    );
}

/// What makes a line not comparable.
fn remarks(row: &Row, mode: &str, git: &Cost, ours: &Cost) -> Vec<String> {
    let mut remarks = Vec::new();
    if matches!(row.ask, Ask::Fetch { .. }) && ours.passed > 0.0 {
        remarks.push(format!("{} ({mode}): {} requests were passed to the primary.", row.name, ours.passed));
    }
    if matches!(row.ask, Ask::Refs(_)) && git.lines != ours.lines {
        remarks.push(format!("{} ({mode}): {} lines, git has {}.", row.name, ours.lines, git.lines));
    }
    remarks
}

fn ms(value: f64) -> String {
    format!("{value:.*}", if value < 10.0 { 2 } else { 1 })
}
