//! Progress of long work: bars on a terminal, nothing elsewhere; always on stderr.
//!
//! Lines of the log appear above the bars and never within one ([`Board`]).
//! Relies on: indicatif for bars. Colours only on a terminal and never with `NO_COLOR`.

use std::collections::{HashMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use super::table::safe;
use crate::mirror::Mirror;
use crate::mirror::progress::{Step, Sync};
use crate::telemetry::log;

/// How often progress is looked at.
pub const SHOW_EVERY: Duration = Duration::from_millis(200);
/// Over how long a rate is measured.
const RATE_OVER: Duration = Duration::from_secs(3);
/// Bars of a node at the same time; a terminal has few lines.
const MOST_BARS: usize = 8;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Objects,
}

/// How far a piece of work is.
struct View<'a> {
    phase: &'a str,
    unit: Unit,
    done: u64,
    /// Of how much; 0: not known.
    total: u64,
    /// Bytes that came with what is counted.
    bytes: Option<u64>,
    words: &'a str,
}

/// Several pieces of work shown together.
pub struct Board {
    bars: Option<MultiProgress>,
}

/// One piece of work.
pub struct Task {
    bar: Option<ProgressBar>,
    name: String,
    rate: Mutex<Rate>,
}

/// Says whether stderr may get colours and bars.
pub fn fancy() -> bool {
    std::io::stderr().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb")
}

/// Says whether colours are wanted on a terminal.
pub fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Board {
    /// Makes the board of this process: bars on a terminal, nothing elsewhere. From now on the log is written above the bars.
    pub fn new() -> Self {
        let bars = fancy().then(MultiProgress::new);
        if let Some(bars) = bars.clone() {
            log::write_through(move |line| {
                bars.suspend(|| {
                    // A closed stderr must not stop the work.
                    let _ = std::io::stderr().write_all(line);
                });
            });
        }
        Self { bars }
    }

    /// Adds a piece of work, such as the sync of one repository.
    pub fn task(&self, name: &str) -> Task {
        let bar = self.bars.as_ref().map(|bars| bars.add(ProgressBar::no_length()));
        let task = Task { bar, name: safe(name), rate: Mutex::default() };
        task.show(&View { phase: "begins", unit: Unit::Bytes, done: 0, total: 0, bytes: None, words: "" });
        task
    }

    /// Shows the syncs of a node as they come and go, until the future is dropped.
    pub async fn follow(&self, mirror: Arc<Mirror>) {
        let mut shown: HashMap<String, Task> = HashMap::new();
        while self.bars.is_some() {
            let running: HashMap<String, Sync> = mirror.syncs().into_iter().collect();
            shown.retain(|repo, task| {
                let stays = running.contains_key(repo);
                if !stays {
                    task.clear();
                }
                stays
            });
            for (repo, sync) in &running {
                if shown.len() < MOST_BARS || shown.contains_key(repo) {
                    shown.entry(repo.clone()).or_insert_with(|| self.task(repo)).sync(sync);
                }
            }
            tokio::time::sleep(SHOW_EVERY).await;
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Task {
    /// Shows how far a sync is.
    pub fn sync(&self, sync: &Sync) {
        let is_bytes = sync.phase == Step::Uploading;
        self.show(&View {
            phase: sync.phase.words(),
            unit: if is_bytes { Unit::Bytes } else { Unit::Objects },
            done: sync.done,
            total: sync.total,
            bytes: (sync.phase == Step::Fetching && sync.received_bytes > 0).then_some(sync.received_bytes),
            words: &sync.words,
        });
    }

    /// Shows how many of how many bytes a phase has done.
    pub fn bytes(&self, phase: &str, done: u64, total: u64) {
        self.show(&View { phase, unit: Unit::Bytes, done, total, bytes: None, words: "" });
    }

    /// Shows how many of how many objects a phase has done.
    pub fn objects(&self, phase: &str, done: u64, total: u64) {
        self.show(&View { phase, unit: Unit::Objects, done, total, bytes: None, words: "" });
    }

    fn show(&self, view: &View<'_>) {
        let Some(bar) = &self.bar else { return };
        let per_second = {
            let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
            rate.note(view.phase, view.bytes.unwrap_or(view.done), Instant::now())
        };
        match view.total {
            0 => bar.unset_length(),
            total => bar.set_length(total),
        }
        bar.set_style(style(view.total > 0));
        bar.set_position(view.done);
        bar.set_prefix(self.name.clone());
        bar.set_message(line(view, per_second));
        bar.enable_steady_tick(SHOW_EVERY);
    }

    /// Takes the work off the screen; what came of it is printed as a line.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What was done lately in one phase.
#[derive(Debug, Default)]
struct Rate {
    phase: String,
    seen: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Notes how much is done, and gives how much a second that was over the last few.
    fn note(&mut self, phase: &str, done: u64, now: Instant) -> Option<u64> {
        if self.phase != phase {
            *self = Self { phase: phase.to_owned(), seen: VecDeque::new() };
        }
        self.seen.push_back((now, done));
        while self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER) {
            self.seen.pop_front();
        }
        let (since, before) = *self.seen.front()?;
        let seconds = now.duration_since(since).as_secs_f64();
        (seconds >= 0.5).then(|| (done.saturating_sub(before) as f64 / seconds) as u64)
    }
}

fn line(view: &View<'_>, per_second: Option<u64>) -> String {
    let amount = |n: u64| match view.unit {
        Unit::Bytes => HumanBytes(n).to_string(),
        Unit::Objects => HumanCount(n).to_string(),
    };
    // With bytes beside them there is no room for the word.
    let objects = if view.unit == Unit::Objects && view.bytes.is_none() { " objects" } else { "" };
    let mut line = view.phase.to_owned();
    match (view.done, view.total) {
        (0, 0) => {}
        (done, 0) => line.push_str(&format!(": {}{objects}", amount(done))),
        (done, total) => line.push_str(&format!(": {} of {}{objects}", amount(done), amount(total))),
    }
    if let Some(bytes) = view.bytes {
        line.push_str(&format!(", {}", HumanBytes(bytes)));
    }
    match per_second {
        Some(n) if view.unit == Unit::Bytes || view.bytes.is_some() => {
            line.push_str(&format!(", {}/s", HumanBytes(n)));
        }
        Some(n) if view.total > 0 => line.push_str(&format!(", {}{objects}/s", HumanCount(n))),
        _ => {}
    }
    // What the primary says while it counts and compresses; later there is more to show.
    if view.total == 0 && !view.words.is_empty() {
        line.push_str(&format!(" ({})", safe(view.words)));
    }
    line
}

fn style(bounded: bool) -> ProgressStyle {
    let bar = if colours() { "{bar:12.cyan}" } else { "{bar:12}" };
    let template = match bounded {
        true => format!("{{prefix}}  {bar} {{percent:>3}} %  {{wide_msg}}"),
        false => "{prefix}  {spinner} {wide_msg}".to_owned(),
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(unit: Unit, done: u64, total: u64) -> View<'static> {
        View { phase: "works", unit, done, total, bytes: None, words: "" }
    }

    #[test]
    fn lines_say_how_far_it_is_and_how_fast() {
        for (view, rate, want) in [
            (view(Unit::Bytes, 3 << 20, 0), None, "works: 3.00 MiB"),
            (view(Unit::Bytes, 3 << 20, 6 << 20), Some(1 << 20), "works: 3.00 MiB of 6.00 MiB, 1.00 MiB/s"),
            (view(Unit::Objects, 1500, 3000), Some(10), "works: 1,500 of 3,000 objects, 10 objects/s"),
            (
                View { bytes: Some(2 << 20), ..view(Unit::Objects, 1, 3) },
                Some(1 << 20),
                "works: 1 of 3, 2.00 MiB, 1.00 MiB/s",
            ),
            (
                View { words: "Counting objects: 3%\u{7}", ..view(Unit::Objects, 0, 0) },
                Some(0),
                "works (Counting objects: 3%\\u{7})",
            ),
        ] {
            assert_eq!(line(&view, rate), want);
        }
    }

    #[test]
    fn a_rate_is_of_the_last_seconds_and_of_one_phase() {
        let (mut rate, begin) = (Rate::default(), Instant::now());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        assert_eq!(rate.note("a", 100, at(0)), None);
        assert_eq!(rate.note("a", 300, at(1)), Some(200));
        for second in 2..20 {
            rate.note("a", 300, at(second));
        }
        assert_eq!(rate.note("a", 300, at(20)), Some(0), "it stands still");
        assert_eq!(rate.note("b", 5, at(21)), None, "another phase");
        assert_eq!(rate.note("b", 15, at(22)), Some(10));
    }

    #[test]
    fn a_task_without_a_terminal_does_not_mind_being_used() {
        for bounded in [true, false] {
            style(bounded);
        }
        let task = Board { bars: None }.task("team/app\u{7}");
        task.bytes("receives", 10, 20);
        task.clear();
        assert_eq!(task.name, "team/app\\u{7}");
    }
}
