//! Clients that read slowly, held open while others are timed.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Result;
use crate::client::{Request, ask, page, written};
use crate::crowd::{Found, crowd, quantile};
use crate::requests::Row;
use crate::servers::{Subject, counter};

/// What a slow client reads in a second.
const RATE: usize = 10_000;
/// How often it reads.
const TICK: Duration = Duration::from_millis(100);
/// Before others are timed, each slow client has read so much: it is known to be slow by then.
const SETTLED: u64 = 5 * RATE as u64;
/// How long that may take, and how long what they held may stay.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients beside the slow ones, and how often each asks.
const NORMAL: (usize, usize) = (2, 150);

/// Slow clients, as long as they read.
#[derive(Default)]
struct Readers {
    stop: AtomicBool,
    /// What the slowest of them has read.
    least: AtomicU64,
    /// How many were cut off, or came to the end of their answer.
    ended: AtomicUsize,
}

/// Prints what `slow` slow readers of the first row change for clients that are not slow, of each of `rows`.
pub fn table(rows: &[&Row], server: &Subject, slow: usize) -> Result<()> {
    // Not all systems let a process have so many files without being asked.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let requests: Vec<Request> = rows.iter().filter_map(|row| row.requests(false).pop()).collect();
    let held = requests.first().ok_or("no row has such a name")?;
    for request in &requests {
        ask(&server.address, request, None)?;
    }
    let time = |what: &str| -> Vec<(Found, u64)> {
        let (clients, each) = NORMAL;
        let each_row = rows.iter().zip(&requests).map(|(row, request)| {
            eprintln!("{} {what}", row.name);
            server.procs.peak(|| crowd(request, server, clients, each))
        });
        each_row.collect()
    };
    let without = time("without slow readers");
    let before = Held::look(server)?;
    let readers = Readers::default();
    let (beside, among) = std::thread::scope(|scope| {
        // They end however this ends.
        let _end = AtEnd(&readers.stop);
        let streams = (0..slow).map(|_| open(&server.address, held)).collect::<Result<Vec<_>>>()?;
        scope.spawn(|| readers.read(streams));
        let end = Instant::now() + PATIENCE;
        while readers.least.load(Ordering::Relaxed) < SETTLED {
            if Instant::now() > end || readers.ended.load(Ordering::Relaxed) > 0 {
                return Err(readers.fault("the slow readers did not all begin").into());
            }
            std::thread::sleep(TICK);
        }
        let among = Held::look(server)?;
        let beside = time("beside slow readers");
        if readers.ended.load(Ordering::Relaxed) > 0 {
            return Err(readers.fault("slow readers did not last; give a larger repository").into());
        }
        Ok::<_, crate::Error>((beside, among))
    })?;
    let left = Instant::now();
    let after = loop {
        let after = Held::look(server)?;
        if after.requests <= before.requests || left.elapsed() > PATIENCE {
            break after;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let freed = left.elapsed();
    println!(
        "| row | slow readers | first ms, median | p99 | total ms, median | p99 | p99 to p99 without | anon MB | failed |"
    );
    println!("|---|--:|{}", "--:|".repeat(7));
    for (row, (without, beside)) in rows.iter().zip(without.iter().zip(&beside)) {
        let p99 = quantile(&without.0.total, 0.99);
        for (readers, (found, anonymous)) in [(0, without), (slow, beside)] {
            let line = [0.5, 0.99].map(|part| quantile(&found.first, part));
            let total = [0.5, 0.99].map(|part| quantile(&found.total, part));
            println!(
                "| {} | {readers} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
                row.name,
                line[0],
                line[1],
                total[0],
                total[1],
                total[1] / p99,
                anonymous >> 20,
                found.failed.len()
            );
            if let Some(why) = found.failed.first() {
                eprintln!("{why}");
            }
        }
    }
    let each = |more: u64| more as f64 / 1024.0 / slow.max(1) as f64;
    println!(
        "\n{slow} slow readers: {:.0} KiB of anonymous memory each, {:.0} KiB in sockets each (both ends), {} threads more; \
         {} requests in flight with them, {} {} ms after they left.",
        each(among.anonymous.saturating_sub(before.anonymous)),
        each(among.sockets.saturating_sub(before.sockets)),
        among.threads.saturating_sub(before.threads),
        among.requests,
        after.requests,
        freed.as_millis(),
    );
    Ok(())
}

/// Sends a request and reads nothing of the answer.
fn open(address: &str, request: &Request) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&written(address, request))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

impl Readers {
    /// Reads from all of them at their rate, until told to stop; then they leave.
    fn read(&self, mut streams: Vec<TcpStream>) {
        let mut read = vec![0_u64; streams.len()];
        let mut piece = vec![0; RATE * TICK.as_millis() as usize / 1000];
        while !self.stop.load(Ordering::Relaxed) {
            let tick = Instant::now();
            for (stream, read) in streams.iter_mut().zip(&mut read) {
                match stream.read(&mut piece) {
                    Ok(n) if n > 0 => *read += n as u64,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    _ => _ = self.ended.fetch_add(1, Ordering::Relaxed),
                }
            }
            self.least.store(read.iter().copied().min().unwrap_or(u64::MAX), Ordering::Relaxed);
            std::thread::sleep(TICK.saturating_sub(tick.elapsed()));
        }
    }

    fn fault(&self, what: &str) -> String {
        let (least, ended) = (self.least.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
        format!("{what}: the slowest has {least} bytes, {ended} reads found an end")
    }
}

struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a node holds at a moment.
struct Held {
    anonymous: u64,
    /// Memory of all TCP sockets of the machine.
    sockets: u64,
    threads: u64,
    requests: u64,
}

impl Held {
    fn look(server: &Subject) -> Result<Self> {
        let ((), anonymous) = server.procs.peak(|| ());
        let text = std::fs::read_to_string("/proc/net/sockstat")?;
        let pages =
            text.lines().find(|line| line.starts_with("TCP:")).and_then(|line| line.rsplit(' ').next());
        let metrics = page(&server.address, "/metrics")?;
        let value = |name: &str| counter(&metrics, name, &[]) as u64;
        Ok(Self {
            anonymous,
            sockets: pages.and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096,
            threads: value("process_threads"),
            requests: value("packmirror_inflight"),
        })
    }
}
