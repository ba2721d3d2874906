//! What the processes of a server cost, from `/proc`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Result;

/// How often memory is looked at.
const EVERY: Duration = Duration::from_millis(5);
/// How long processes of a request may outlive its answer.
const LINGER: Duration = Duration::from_secs(30);

/// The process groups of a server and the processes that are always there.
#[derive(Debug)]
pub struct Procs {
    groups: Vec<u32>,
    standing: BTreeSet<u32>,
    /// Seconds of processes that nobody waited for, written by themselves: user and system time in each line.
    log: Option<PathBuf>,
    ticks_a_second: f64,
}

struct Stat {
    group: u32,
    /// Ticks, with those of children that were waited for.
    ticks: u64,
}

impl Procs {
    /// Waits until exactly `count` processes run in these groups: those are always there.
    pub fn new(groups: Vec<u32>, count: usize, log: Option<PathBuf>) -> Result<Self> {
        let end = Instant::now() + LINGER;
        loop {
            let standing = members(&groups);
            if standing.len() == count {
                return Ok(Self { groups, standing, log, ticks_a_second: ticks_a_second()? });
            }
            if Instant::now() > end {
                return Err(format!("a server has {} processes instead of {count}", standing.len()).into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// CPU seconds so far, once every process of past requests has ended: only then its time is known.
    pub fn cpu(&self) -> Result<f64> {
        let end = Instant::now() + LINGER;
        // Where one process does everything there is nothing to wait for.
        while self.standing.len() > 1 && members(&self.groups) != self.standing {
            if Instant::now() > end {
                return Err("processes of a request do not end, or a server process has ended".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.cpu_so_far()
    }

    /// The same while requests go on: without the processes that have not ended.
    pub fn cpu_so_far(&self) -> Result<f64> {
        let ticks = |pid: &u32| stat(*pid).map(|stat| stat.ticks).ok_or("a server process has ended");
        let ticks = self.standing.iter().map(ticks).sum::<std::result::Result<u64, _>>()?;
        let text = match &self.log {
            Some(log) => std::fs::read_to_string(log)?,
            None => String::new(),
        };
        let logged: f64 = text.split_whitespace().filter_map(|number| number.parse::<f64>().ok()).sum();
        Ok(ticks as f64 / self.ticks_a_second + logged)
    }

    /// Runs `work` and gives the most anonymous memory that all processes together had meanwhile, in bytes.
    pub fn peak<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
        let look = || {
            let sum = members(&self.groups).iter().filter_map(|pid| anonymous(*pid)).sum();
            peak.fetch_max(sum, Ordering::Relaxed);
        };
        let out = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    look();
                    std::thread::sleep(EVERY);
                }
                look();
            });
            let out = work();
            done.store(true, Ordering::Relaxed);
            out
        });
        (out, peak.into_inner())
    }
}

/// The processes of these groups, also those that have ended and were not waited for.
fn members(groups: &[u32]) -> BTreeSet<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| groups.contains(&stat.group))).collect()
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name may hold anything; what follows it starts with the state, field 3.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { group: number(5)? as u32, ticks: (14..=17).map(number).sum::<Option<u64>>()? })
}

fn anonymous(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().split(' ').next()?.parse::<u64>().ok()? << 10)
}

/// How many ticks a second has.
fn ticks_a_second() -> Result<f64> {
    let out = std::process::Command::new("getconf").arg("CLK_TCK").output()?;
    Ok(String::from_utf8(out.stdout)?.trim().parse()?)
}
