//! Many clients at once: each asks again as soon as it has its answer, and all are timed.

use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;
use crate::client::{Answer, Request, ask};
use crate::requests::Row;
use crate::servers::{Subject, passed_on};

/// So many answers are timed at least, however few clients there are: fewer have no 99th percentile.
const LEAST: usize = 100;

/// What a crowd found.
#[derive(Debug, Default)]
pub struct Found {
    /// Of each answer, sorted.
    pub first: Vec<Duration>,
    pub total: Vec<Duration>,
    pub wall: Duration,
    pub bytes: u64,
    /// Why answers were none.
    pub failed: Vec<String>,
}

/// Has `clients` ask `server` at the same moment, each `each` times in turn.
pub fn crowd(request: &Request, server: &Subject, clients: usize, each: usize) -> Found {
    let (found, start) = (Mutex::new(Found::default()), Barrier::new(clients + 1));
    let begun = std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                start.wait();
                for _ in 0..each {
                    let answer = ask(&server.address, request, None);
                    found.lock().unwrap_or_else(PoisonError::into_inner).note(answer);
                }
            });
        }
        start.wait();
        Instant::now()
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.wall = begun.elapsed();
    found.first.sort_unstable();
    found.total.sort_unstable();
    found
}

impl Found {
    fn note(&mut self, answer: Result<Answer>) {
        match answer {
            Ok(answer) => {
                self.first.push(answer.first);
                self.total.push(answer.total);
                self.bytes += answer.bytes;
            }
            Err(error) => self.failed.push(error.to_string()),
        }
    }
}

/// The value below which so much of `sorted` lies, in milliseconds.
pub fn quantile(sorted: &[Duration], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).map_or(f64::NAN, |value| value.as_secs_f64() * 1000.0)
}

/// Prints a table of `rows` asked for by each number of clients.
pub fn table(rows: &[&Row], servers: &[Subject], crowds: &[usize], rounds: usize) -> Result<()> {
    println!(
        "| row | clients | server | answers/s | MB/s | CPU ms | first ms, median | p99 | total ms, median | p99 | anon MB | answers | failed |"
    );
    println!("|---|--:|---|{}", "--:|".repeat(10));
    let mut notes = Vec::new();
    for row in rows {
        let request = row.requests(false).into_iter().next_back().ok_or("a row without a request")?;
        for server in servers {
            ask(&server.address, &request, None)?;
        }
        for clients in crowds.iter().map(|clients| (*clients).max(1)) {
            for server in servers {
                eprintln!("{}, {clients} clients of {}", row.name, server.name);
                let passed = || if server.mirror { passed_on(&server.address) } else { Ok(0.0) };
                let (before, cpu) = (passed()?, server.procs.cpu()?);
                let each = rounds.max(LEAST.div_ceil(clients));
                let (found, anonymous) = server.procs.peak(|| crowd(&request, server, clients, each));
                let cpu = server.procs.cpu()? - cpu;
                let (answers, wall) = (found.total.len(), found.wall.as_secs_f64());
                println!(
                    "| {} | {clients} | {} | {:.1} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {answers} | {} |",
                    row.name,
                    server.name,
                    answers as f64 / wall,
                    found.bytes as f64 / wall / 1e6,
                    cpu * 1000.0 / answers as f64,
                    quantile(&found.first, 0.5),
                    quantile(&found.first, 0.99),
                    quantile(&found.total, 0.5),
                    quantile(&found.total, 0.99),
                    anonymous >> 20,
                    found.failed.len(),
                );
                let passed = passed()? - before;
                if passed > 0.0 {
                    notes.push(format!(
                        "{} ({clients} clients): {passed} requests were passed to the primary.",
                        row.name
                    ));
                }
                if let Some(why) = found.failed.first() {
                    notes.push(format!("{} ({clients} clients of {}): {why}", row.name, server.name));
                }
            }
        }
    }
    notes.iter().for_each(|note| println!("\n{note}"));
    Ok(())
}
