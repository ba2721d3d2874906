//! Tables of repositories for `ls` and `status`: text for people, JSON for scripts.
//!
//! Pure: takes rows and the time, gives text. Names come from elsewhere and are made safe for terminals.

use std::time::{Duration, SystemTime};

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};

pub use crate::text::safe;
use crate::text::{is_obeyed, line as one_line};

/// The widest column that all rows are aligned to; a longer name stands out of line.
const WIDEST: usize = 80;

/// How a repository stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Known, but nothing is published yet.
    New,
    /// A sync is running.
    Syncing,
    /// Equal to the primary when last compared.
    Current,
    /// The primary has something newer.
    Behind,
    /// The last sync failed; it is tried again.
    Failing,
}

impl State {
    /// The word in tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Syncing => "syncing",
            Self::Current => "current",
            Self::Behind => "behind",
            Self::Failing => "failing",
        }
    }
}

/// One repository. In JSON times are RFC 3339 and durations seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoStatus {
    /// Canonical path.
    pub repo: String,
    /// How it stands.
    pub state: State,
    /// Newest generation, if any is published.
    pub generation: Option<u64>,
    /// Number of refs.
    pub refs: u64,
    /// Bytes in the bucket.
    pub bytes: u64,
    /// Number of objects in its layers.
    pub objects: u64,
    /// When it was last found equal to the primary.
    #[serde(with = "humantime_serde::option")]
    pub last_compared: Option<SystemTime>,
    /// How old what is served may be.
    #[serde(rename = "lag_seconds", with = "seconds")]
    pub lag: Option<Duration>,
    /// When a failed sync is tried again.
    #[serde(with = "humantime_serde::option")]
    pub next_try: Option<SystemTime>,
    /// Refs of the primary that are not mirrored: the first, and how many more.
    #[serde(default)]
    pub left_out: Option<String>,
    /// Why the last sync failed.
    pub error: Option<String>,
}

mod seconds {
    use super::{Deserialize, Duration};

    pub fn serialize<S: serde::Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => serializer.serialize_some(&duration.as_secs()),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_secs))
    }
}

/// Which columns a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// What lies in the bucket (`ls`).
    Stored,
    /// Also how it stands against the primary (`status`).
    Standing,
}

/// Writes rows as a table with a line of totals. `bold` marks the heading, for terminals.
pub fn table(rows: &[RepoStatus], columns: Columns, now: SystemTime, bold: bool) -> String {
    if rows.is_empty() {
        return "No repositories yet. The first clone through the mirror, or `packmirror sync REPO`, brings one.\n".into();
    }
    let standing = columns == Columns::Standing;
    let mut head = vec!["REPOSITORY", "GENERATION", "REFS", "OBJECTS", "SIZE"];
    if standing {
        head.insert(1, "STATE");
        head.extend(["COMPARED", "LAG", "NEXT TRY"]);
    }
    let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, standing, now)).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let widest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            widest.min(WIDEST).max(head[column].chars().count())
        })
        .collect();
    // Numbers stand to the right, words to the left.
    let right = |column: usize| matches!(head[column], "GENERATION" | "REFS" | "OBJECTS" | "SIZE");
    let line = |texts: &[String]| {
        let padded = texts.iter().enumerate().map(|(column, text)| {
            let pad = " ".repeat(widths[column].saturating_sub(text.chars().count()));
            if right(column) { format!("{pad}{text}") } else { format!("{text}{pad}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let heading = line(&head.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    let mut out = if bold { format!("\u{1b}[1m{heading}\u{1b}[0m\n") } else { format!("{heading}\n") };
    for (row, texts) in rows.iter().zip(&cells) {
        out.push_str(&line(texts));
        out.push('\n');
        for words in row.error.iter().chain(&row.left_out).filter(|_| standing) {
            out.push_str(&format!("  {}\n", safe(&one_line(words))));
        }
    }
    let bytes = rows.iter().map(|row| row.bytes).fold(0, u64::saturating_add);
    let word = if rows.len() == 1 { "repository" } else { "repositories" };
    out.push_str(&format!("{} {word}, {}\n", rows.len(), HumanBytes(bytes)));
    out
}

fn cells(row: &RepoStatus, standing: bool, now: SystemTime) -> Vec<String> {
    let mut cells = vec![
        safe(&row.repo),
        row.generation.map_or_else(|| "-".into(), |number| number.to_string()),
        row.refs.to_string(),
        row.objects.to_string(),
        HumanBytes(row.bytes).to_string(),
    ];
    if standing {
        cells.insert(1, row.state.word().to_owned());
        cells.extend([
            row.last_compared.map_or_else(|| "never".into(), |then| ago(then, now)),
            row.lag.map_or_else(|| "-".into(), short),
            row.next_try.map_or_else(|| "-".into(), |then| ahead(then, now)),
        ]);
    }
    cells
}

/// Writes rows as a JSON array. What a terminal might obey is escaped, since people look at it too.
pub fn json(rows: &[RepoStatus]) -> Result<String, serde_json::Error> {
    Ok(escaped(&serde_json::to_string_pretty(rows)?) + "\n")
}

/// Escapes in a JSON text what a terminal might obey.
pub fn escaped(text: &str) -> String {
    // Outside strings JSON has no such character but line feeds, which strings do not have.
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            c if is_obeyed(c) => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")))
            }
            c => out.push(c),
        }
    }
    out
}

/// Writes a duration with its two largest units: `3d 4h`, `2m 5s`, `0s`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units =
        [("d", seconds / 86400), ("h", seconds / 3600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let first = units.iter().position(|(_, n)| *n > 0).unwrap_or(units.len() - 1);
    let shown = units[first..].iter().take(2).enumerate().filter(|(at, (_, n))| *at == 0 || *n > 0);
    shown.map(|(_, (unit, n))| format!("{n}{unit}")).collect::<Vec<_>>().join(" ")
}

/// Writes a time that has passed. Clocks of nodes differ: a time slightly ahead is now.
pub fn ago(then: SystemTime, now: SystemTime) -> String {
    match now.duration_since(then) {
        Ok(past) if past.as_secs() > 0 => format!("{} ago", short(past)),
        _ => "just now".into(),
    }
}

/// Writes a time to come.
pub fn ahead(then: SystemTime, now: SystemTime) -> String {
    match then.duration_since(now) {
        Ok(left) if left.as_secs() > 0 => format!("in {}", short(left)),
        _ => "now".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW
    }

    fn rows() -> Vec<RepoStatus> {
        vec![
            RepoStatus {
                repo: "team/app.git".into(),
                state: State::Current,
                generation: Some(12),
                refs: 1234,
                bytes: 3 << 30,
                objects: 845_012,
                last_compared: Some(now() - Duration::from_secs(125)),
                lag: Some(Duration::from_secs(125)),
                next_try: None,
                left_out: Some("left out: refs/heads/a: it names no object".into()),
                error: None,
            },
            RepoStatus {
                repo: "evil\u{1b}[2J\u{202e}name".into(),
                state: State::Failing,
                generation: None,
                refs: 0,
                bytes: 0,
                objects: 0,
                last_compared: None,
                lag: None,
                next_try: Some(now() + Duration::from_secs(30)),
                left_out: None,
                error: Some("the primary said\r\n500".into()),
            },
        ]
    }

    #[test]
    fn status_is_aligned_and_safe() {
        let want = "\
REPOSITORY                 STATE    GENERATION  REFS  OBJECTS      SIZE  COMPARED   LAG    NEXT TRY
team/app.git               current          12  1234   845012  3.00 GiB  2m 5s ago  2m 5s  -
  left out: refs/heads/a: it names no object
evil\\u{1b}[2J\\u{202e}name  failing           -     0        0       0 B  never      -      in 30s
  the primary said 500
2 repositories, 3.00 GiB
";
        let got = table(&rows(), Columns::Standing, now(), false);
        assert_eq!(got, want, "\n{got}");
    }

    #[test]
    fn ls_shows_what_is_stored() {
        let want = "\
REPOSITORY    GENERATION  REFS  OBJECTS      SIZE
team/app.git          12  1234   845012  3.00 GiB
1 repository, 3.00 GiB
";
        assert_eq!(table(&rows()[..1], Columns::Stored, now(), false), want);
        assert!(table(&rows(), Columns::Stored, now(), true).starts_with("\u{1b}[1mREPOSITORY"));
        assert!(table(&[], Columns::Stored, now(), false).starts_with("No repositories yet"));
    }

    #[test]
    fn json_holds_plain_values_and_reads_back() {
        let text = json(&rows()).unwrap();
        assert!(!text.contains(['\u{1b}', '\u{202e}']) && text.contains("\\u202e"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[0]["state"], "current");
        assert_eq!(value[0]["lag_seconds"], 125);
        assert_eq!(value[0]["last_compared"], "2027-01-15T07:57:55Z");
        assert_eq!(value[1]["generation"], serde_json::Value::Null);
        assert_eq!(serde_json::from_str::<Vec<RepoStatus>>(&text).unwrap(), rows());
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, want) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (125, "2m 5s"),
            (3600, "1h"),
            (3605, "1h"),
            (90_061, "1d 1h"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), want);
        }
        assert_eq!(ago(now() + Duration::from_secs(5), now()), "just now");
        assert_eq!(ahead(now() - Duration::from_secs(5), now()), "now");
    }
}
