//! One row measured: rounds in which every server gets the same requests in turn, and their medians.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;
use crate::check::check;
use crate::client::{Answer, ask};
use crate::requests::{Ask, Row};
use crate::servers::{Subject, passed_on};

/// How much a round measures: until one of the first two is reached, or the third.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    /// CPU of the server in one round. A tick is 10 ms.
    pub cpu: Duration,
    pub wall: Duration,
    pub repeats: u32,
}

/// What one operation cost a server: times in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    pub cpu: f64,
    pub first: f64,
    pub total: f64,
    /// Most anonymous memory of all processes, in bytes.
    pub anonymous: u64,
    pub bytes: u64,
    pub pack_bytes: u64,
    pub objects: Option<u32>,
    pub lines: u64,
    /// Requests of this row that the mirror passed to its primary.
    pub passed: f64,
}

/// Measures a row on all servers; the costs come in their order.
pub fn measure(
    row: &Row,
    new: bool,
    servers: &[Subject],
    effort: Effort,
    checks: Option<&Path>,
) -> Result<Vec<Cost>> {
    let passed = |server: &Subject| if server.mirror { passed_on(&server.address) } else { Ok(0.0) };
    let mut costs: Vec<Cost> = Vec::new();
    for server in servers {
        let before = passed(server)?;
        let mut cost = warm(row, new, server, checks).map_err(|error| at(row, server, &error))?;
        cost.passed = -before;
        costs.push(cost);
    }
    let mut rounds: Vec<Vec<Cost>> = vec![Vec::new(); servers.len()];
    for _ in 0..effort.rounds {
        for (server, costs) in servers.iter().zip(&mut rounds) {
            costs.push(round(row, new, server, effort).map_err(|error| at(row, server, &error))?);
        }
    }
    for ((cost, rounds), server) in costs.iter_mut().zip(&rounds).zip(servers) {
        cost.cpu = median(rounds, |cost| cost.cpu);
        cost.first = median(rounds, |cost| cost.first);
        cost.total = median(rounds, |cost| cost.total);
        cost.passed += passed(server)?;
    }
    Ok(costs)
}

fn at(row: &Row, server: &Subject, error: &crate::Error) -> String {
    format!("{} from {}: {error}", row.name, server.name)
}

/// Fills caches, and looks at what is not measured in rounds: memory, bytes, and whether the answer is right.
fn warm(row: &Row, new: bool, server: &Subject, checks: Option<&Path>) -> Result<Cost> {
    let (answer, anonymous) = server.procs.peak(|| {
        let begin = Instant::now();
        let mut answer = operation(row, new, server, None)?;
        // Short answers again, or no look at the memory falls into one.
        while begin.elapsed() < Duration::from_millis(200) {
            answer = operation(row, new, server, None)?;
        }
        Ok::<_, crate::Error>(answer)
    });
    let answer = answer?;
    if matches!(row.ask, Ask::Fetch { .. }) && answer.objects.is_none() {
        return Err("there is no pack".into());
    }
    if let Some(dir) = checks {
        let mut pack = Vec::new();
        let answer = operation(row, new, server, Some(&mut pack))?;
        check(row, &answer, &pack, dir)?;
    }
    Ok(Cost {
        anonymous,
        bytes: answer.bytes,
        pack_bytes: answer.pack_bytes,
        objects: answer.objects,
        lines: answer.lines,
        ..Cost::default()
    })
}

fn round(row: &Row, new: bool, server: &Subject, effort: Effort) -> Result<Cost> {
    let start = server.procs.cpu()?;
    let (mut first, mut total, mut repeats, mut cpu) = (Duration::ZERO, Duration::ZERO, 0, 0.0);
    while cpu < effort.cpu.as_secs_f64() && total < effort.wall && repeats < effort.repeats {
        let answer = operation(row, new, server, None)?;
        first += answer.first;
        total += answer.total;
        repeats += 1;
        cpu = server.procs.cpu()? - start;
    }
    let each = |seconds: f64| seconds * 1000.0 / f64::from(repeats);
    Ok(Cost {
        cpu: each(cpu),
        first: each(first.as_secs_f64()),
        total: each(total.as_secs_f64()),
        ..Cost::default()
    })
}

/// All requests of a row; the first byte counts in the last of them.
fn operation(row: &Row, new: bool, server: &Subject, mut keep: Option<&mut Vec<u8>>) -> Result<Answer> {
    let mut sum = Answer::default();
    for request in row.requests(new) {
        let answer = ask(&server.address, &request, keep.as_deref_mut())?;
        sum = Answer {
            first: sum.total + answer.first,
            total: sum.total + answer.total,
            bytes: sum.bytes + answer.bytes,
            lines: sum.lines + answer.lines,
            ..answer
        };
    }
    Ok(sum)
}

fn median(rounds: &[Cost], value: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}
