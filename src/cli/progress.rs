//! Progress of long work: bars on a terminal, a plain line now and then elsewhere; always on stderr.
//!
//! Relies on: indicatif for bars. Colours only on a terminal and never with `NO_COLOR`.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use super::table::safe;

/// How often a plain line appears where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Objects, steps, repositories.
    Things,
}

/// Several pieces of work shown together.
pub struct Board {
    bars: Option<MultiProgress>,
}

/// One piece of work.
pub struct Task {
    name: String,
    bar: Option<ProgressBar>,
    plain: Mutex<Plain>,
}

struct Plain {
    phase: String,
    unit: Unit,
    last: Option<Instant>,
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
    /// Makes a board for this process: bars on a terminal, plain lines elsewhere.
    pub fn new() -> Self {
        Self { bars: fancy().then(MultiProgress::new) }
    }

    /// Adds a piece of work, such as the sync of one repository.
    pub fn task(&self, name: &str) -> Task {
        let bar = self.bars.as_ref().map(|bars| bars.add(ProgressBar::no_length()));
        let plain = Plain { phase: "starts".into(), unit: Unit::Things, last: None };
        let task = Task { name: safe(name), bar, plain: Mutex::new(plain) };
        task.phase("starts", Unit::Things, None);
        task
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Task {
    /// Begins a phase with what it counts and, where known, how much there is.
    pub fn phase(&self, phase: &str, unit: Unit, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            bar.reset();
            match total {
                Some(total) => bar.set_length(total),
                None => bar.unset_length(),
            }
            bar.set_style(style(unit, total.is_some()));
            bar.set_prefix(self.name.clone());
            bar.set_message(phase.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        *plain = Plain { phase: phase.to_owned(), unit, last: plain.last };
    }

    /// Says how much is done. Cheap enough to be called often.
    pub fn set(&self, done: u64, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            if let Some(total) = total.filter(|total| bar.length() != Some(*total)) {
                bar.set_length(total);
            }
            bar.set_position(done);
            return;
        }
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if plain.last.is_none_or(|last| last.elapsed() >= PLAIN_EVERY) {
            plain.last = Some(Instant::now());
            say(&line(&self.name, &plain.phase, plain.unit, done, total));
        }
    }

    /// Ends the work with a last word, which stays on the screen.
    pub fn finish(&self, word: &str) {
        let text = format!("{}: {}", self.name, safe(word));
        match &self.bar {
            Some(bar) => {
                bar.set_style(
                    ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
                bar.finish_with_message(text);
            }
            None => say(&text),
        }
    }
}

fn say(text: &str) {
    // Progress is a courtesy: a closed stderr must not stop the work.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn line(name: &str, phase: &str, unit: Unit, done: u64, total: Option<u64>) -> String {
    let amount = |n: u64| match unit {
        Unit::Bytes => HumanBytes(n).to_string(),
        Unit::Things => HumanCount(n).to_string(),
    };
    match total.filter(|total| *total > 0) {
        Some(total) => format!(
            "{name}: {phase}: {} of {} ({} %)",
            amount(done),
            amount(total),
            u128::from(done) * 100 / u128::from(total)
        ),
        None => format!("{name}: {phase}: {}", amount(done)),
    }
}

fn style(unit: Unit, bounded: bool) -> ProgressStyle {
    let bar = if colours() { "{wide_bar:.cyan}" } else { "{wide_bar}" };
    let template = match (unit, bounded) {
        (Unit::Bytes, true) => {
            format!("{{prefix}}  {{msg}}  {bar}  {{bytes}}/{{total_bytes}}  {{bytes_per_sec}}  {{eta}}")
        }
        (Unit::Bytes, false) => "{spinner} {prefix}  {msg}  {bytes}  {bytes_per_sec}".into(),
        (Unit::Things, true) => format!("{{prefix}}  {{msg}}  {bar}  {{human_pos}}/{{human_len}}  {{eta}}"),
        (Unit::Things, false) => "{spinner} {prefix}  {msg}  {human_pos}".into(),
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_how_far_it_is() {
        assert_eq!(line("team/app", "receives", Unit::Bytes, 3 << 20, None), "team/app: receives: 3.00 MiB");
        assert_eq!(line("r", "indexes", Unit::Things, 1500, Some(3000)), "r: indexes: 1,500 of 3,000 (50 %)");
        assert_eq!(line("r", "p", Unit::Things, 1, Some(0)), "r: p: 1");
    }

    #[test]
    fn templates_parse() {
        for unit in [Unit::Bytes, Unit::Things] {
            for bounded in [true, false] {
                style(unit, bounded);
            }
        }
    }

    #[test]
    fn a_task_without_a_terminal_does_not_mind_being_used() {
        let board = Board { bars: None };
        let task = board.task("team/app\u{7}");
        task.phase("receives", Unit::Bytes, None);
        task.set(10, Some(20));
        task.set(20, Some(20));
        task.finish("done");
        assert_eq!(task.name, "team/app\\u{7}");
    }
}
