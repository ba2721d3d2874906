//! Tables of repositories for `ls` and `status`: text for people. JSON for scripts is made elsewhere (`mirror::standing`).
//!
//! Pure: takes rows and the time, gives text. Names come from elsewhere and are made safe for terminals.

use std::time::{Duration, SystemTime};

use indicatif::HumanBytes;

use crate::mirror::evidence::Finding;
use crate::mirror::progress::{Step, Sync};
pub use crate::mirror::standing::{RepoStatus, State, escaped, json};
use crate::text::line as one_line;
pub use crate::text::safe;

/// The widest column that all rows are aligned to; a longer name stands out of line.
const WIDEST: usize = 80;

/// So many letters of a node's name are shown.
const NODE: usize = 8;

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
        head.extend(["COMPARED", "LAG", "NEXT TRY", "BY"]);
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
        let sync = row.sync.as_ref().map(|sync| running(sync, now));
        let merge = row.merge.as_ref().map(|merge| running(merge, now));
        let unmerged = row.unmerged.as_ref().map(|words| format!("layers not merged: {words}"));
        let damage = row.damage.as_ref().map(|words| format!("damaged: {words}"));
        let mended = row.mended.as_ref().map(|m| format!("mended {}: {}", ago(m.at, now), m.what));
        let differed = row.differences.first().map(|finding| difference(finding, now));
        for words in sync
            .iter()
            .chain(&merge)
            .chain(&row.error)
            .chain(&unmerged)
            .chain(&row.left_out)
            .chain(&damage)
            .chain(&mended)
            .chain(&differed)
            .filter(|_| standing)
        {
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
            row.compared_by
                .as_ref()
                .map_or_else(|| "-".into(), |node| safe(node).chars().take(NODE).collect()),
        ]);
    }
    cells
}

/// Says what a sync does, how far it is, and since when.
fn running(sync: &Sync, now: SystemTime) -> String {
    let percent = sync.percent().map(|percent| format!(" {percent} %")).unwrap_or_default();
    let received = match sync.received_bytes {
        0 => String::new(),
        bytes => format!(", {} received", HumanBytes(bytes)),
    };
    let since = |then: SystemTime| short(now.duration_since(then).unwrap_or_default());
    let words = if sync.words.is_empty() { String::new() } else { format!(" ({})", sync.words) };
    let (phase, so_far) = (sync.phase.words(), since(sync.since));
    if sync.phase == Step::Compacting {
        return format!("{phase}{percent}{words}, for {so_far}");
    }
    format!("{phase}{percent}{words}{received}, for {so_far}; the sync began {} ago", since(sync.begun))
}

/// Says what differed from the primary, since when, and what became of it.
pub fn difference(finding: &Finding, now: SystemTime) -> String {
    let named = finding.refs.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
    let more = if finding.refs_count > finding.refs.len() as u64 { ", …" } else { "" };
    let (count, word) = (finding.refs_count, if finding.refs_count == 1 { "ref" } else { "refs" });
    let refs =
        if named.is_empty() { format!("{count} {word}") } else { format!("{count} {word} ({named}{more})") };
    let done = match finding.done.is_empty() {
        true => String::new(),
        false => format!(": {}", finding.done.join(", ")),
    };
    match finding.equal_again {
        None => format!("differs from the primary since {}: {refs}{done}", ago(finding.since, now)),
        Some(at) => format!(
            "differed from the primary {}: {refs}; equal again after {}{done}",
            ago(finding.since, now),
            short(at.duration_since(finding.since).unwrap_or_default())
        ),
    }
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
    use crate::mirror::evidence::RefChange;
    use crate::mirror::health::Mended;

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
                answers: Vec::new(),
                last_compared: Some(now() - Duration::from_secs(125)),
                lag: Some(Duration::from_secs(125)),
                next_try: None,
                compared_by: Some("0123456789abcdef".into()),
                left_out: Some("left out: refs/heads/a: it names no object".into()),
                error: None,
                sync: Some(Sync {
                    phase: Step::Fetching,
                    since: now() - Duration::from_secs(4),
                    begun: now() - Duration::from_secs(65),
                    done: 10,
                    total: 40,
                    received_bytes: 3 << 20,
                    words: String::new(),
                }),
                merge: None,
                unmerged: Some("the disk is too small".into()),
                damage: None,
                mended: None,
                differences: vec![Finding {
                    since: now() - Duration::from_secs(60),
                    equal_before: None,
                    refs_count: 12,
                    refs: vec![RefChange {
                        name: "refs/heads/a\u{1b}".into(),
                        old: None,
                        new: Some("12".into()),
                    }],
                    done: vec!["fetched 3 objects".into(), "published generation 12".into()],
                    equal_again: Some(now() - Duration::from_secs(58)),
                }],
            },
            RepoStatus {
                repo: "evil\u{1b}[2J\u{202e}name".into(),
                state: State::Failing,
                generation: None,
                refs: 0,
                bytes: 0,
                objects: 0,
                answers: Vec::new(),
                last_compared: None,
                lag: None,
                next_try: Some(now() + Duration::from_secs(30)),
                left_out: None,
                compared_by: None,
                error: Some("the primary said\r\n500".into()),
                sync: None,
                merge: Some(Sync {
                    phase: Step::Compacting,
                    since: now() - Duration::from_secs(7),
                    begun: now() - Duration::from_secs(7),
                    done: 1,
                    total: 2,
                    received_bytes: 0,
                    words: String::new(),
                }),
                unmerged: None,
                damage: Some("a.pack is missing or damaged".into()),
                mended: Some(Mended {
                    at: now() - Duration::from_secs(9),
                    what: "b.idx from its pack".into(),
                }),
                differences: vec![],
            },
        ]
    }

    #[test]
    fn status_is_aligned_and_safe() {
        let want = "\
REPOSITORY                 STATE    GENERATION  REFS  OBJECTS      SIZE  COMPARED   LAG    NEXT TRY  BY
team/app.git               current          12  1234   845012  3.00 GiB  2m 5s ago  2m 5s  -         01234567
  fetching 25 %, 3.00 MiB received, for 4s; the sync began 1m 5s ago
  layers not merged: the disk is too small
  left out: refs/heads/a: it names no object
  differed from the primary 1m ago: 12 refs (refs/heads/a\\u{1b}, …); equal again after 2s: fetched 3 objects, published generation 12
evil\\u{1b}[2J\\u{202e}name  failing           -     0        0       0 B  never      -      in 30s    -
  merging layers 50 %, for 7s
  the primary said 500
  damaged: a.pack is missing or damaged
  mended 9s ago: b.idx from its pack
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
        assert_eq!(value[0]["sync"]["phase"], "fetching");
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
