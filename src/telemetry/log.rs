//! The log: text for people, JSON for machines, always on stderr.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// A level that is neither a level nor a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither a log level nor a filter")]
pub struct BadLevel(String);

/// The levels, loudest last.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Reads a level (`info`) or a filter (`packmirror=debug,warn`).
///
/// A level is meant for packmirror; of the libraries below it only warnings are logged, since what they say at
/// `debug` would bury it. A single word that is no level would be a filter for a module of that name, which
/// silences everything; that is surely a slip and is refused.
pub fn filter(level: &str) -> Result<EnvFilter, BadLevel> {
    let bad = || BadLevel(level.to_owned());
    let word = level.trim().to_ascii_lowercase();
    let directives = match LEVELS.iter().position(|known| *known == word) {
        Some(0..=1) => word,
        // h2 warns of what any client can send as often as it likes; aws_config of each place that has no credentials.
        Some(_) => format!("warn,h2=error,aws_config=error,packmirror={word}"),
        None if word.contains(['=', ',', '[']) => level.trim().to_owned(),
        None => return Err(bad()),
    };
    EnvFilter::builder().parse(directives).map_err(|_| bad())
}

type Writes = Box<dyn Fn(&[u8]) + Send + Sync>;

/// What writes the log instead of this module.
static THROUGH: OnceLock<Writes> = OnceLock::new();

/// Has every line of the log written by `write` from now on, which knows what else is on the terminal. Only the first
/// call in a process counts.
pub fn write_through(write: impl Fn(&[u8]) + Send + Sync + 'static) {
    let _ = THROUGH.set(Box::new(write));
}

/// stderr, or what stands before it. The log writes each line in one piece.
struct Out;

impl std::io::Write for Out {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match THROUGH.get() {
            Some(write) => write(line),
            None => std::io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Starts the log of this process. `json` chooses the form: `None` is text on a terminal and JSON otherwise.
/// A second call changes nothing.
pub fn start(level: &str, json: Option<bool>) -> Result<(), BadLevel> {
    let filter = filter(level)?;
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Out);
    // Only the first start in a process can succeed; tests may come here more than once.
    let _ = if json.unwrap_or(!terminal) {
        log.json().flatten_event(true).with_current_span(true).with_span_list(false).finish().try_init()
    } else {
        log.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).finish().try_init()
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_no_filter() {
        for good in
            ["info", "WARN", "off", "packmirror=debug,warn", "hyper=off", "info,packmirror::serve=trace"]
        {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "", "5x", "packmirror=loud", "packmirror"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        assert_eq!(
            filter(" Debug ").map(|filter| filter.to_string()),
            Ok("packmirror=debug,aws_config=error,h2=error,warn".into())
        );
        assert_eq!(filter("error").map(|filter| filter.to_string()), Ok("error".into()));
    }
}
