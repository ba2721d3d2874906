//! Reading counters from `/metrics`, to say where answers came from.

use std::collections::BTreeMap;

use crate::telemetry::metrics::{ANSWERS, SYNC_RUNS, label};

/// The counters the demo looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packs made from the bucket.
    pub bucket: u64,
    /// Packs of the primary that were passed through, by reason.
    pub primary: BTreeMap<String, u64>,
    /// Syncs by result.
    pub syncs: BTreeMap<String, u64>,
}

impl Counters {
    /// Reads Prometheus' text format; what it does not understand it skips.
    pub fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines() {
            let Some((name, labels, value)) = sample(line) else { continue };
            let get = |key: &str| labels.get(key).cloned().unwrap_or_default();
            match name {
                // Refs and pushes are answers too, but no packs.
                ANSWERS if [label::LIVE, label::REFS, label::PUSH].contains(&get("reason").as_str()) => {}
                ANSWERS if get("source") == label::BUCKET => counters.bucket += value,
                ANSWERS => *counters.primary.entry(get("reason")).or_default() += value,
                SYNC_RUNS => *counters.syncs.entry(get("result")).or_default() += value,
                _ => {}
            }
        }
        counters
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            let rest = now.iter().map(|(key, n)| (key.clone(), n - then.get(key).unwrap_or(&0).min(n)));
            rest.filter(|(_, n)| *n > 0).collect()
        };
        Self {
            bucket: self.bucket.saturating_sub(before.bucket),
            primary: less(&self.primary, &before.primary),
            syncs: less(&self.syncs, &before.syncs),
        }
    }

    /// Says where packs came from, in words.
    pub fn words(&self) -> String {
        let passed: u64 = self.primary.values().sum();
        let reasons =
            self.primary.keys().map(|reason| reason.replace(['_', '-'], " ")).collect::<Vec<_>>().join(", ");
        match (self.bucket, passed) {
            (0, 0) => "none was needed".into(),
            (n, 0) => format!("{n} from the bucket, none from the primary"),
            (0, m) => format!("none from the bucket, {m} from the primary ({reasons})"),
            (n, m) => format!("{n} from the bucket, {m} from the primary ({reasons})"),
        }
    }
}

/// Splits `name{key="value",…} number`.
fn sample(line: &str) -> Option<(&str, BTreeMap<String, String>, u64)> {
    let (series, number) = line.rsplit_once(' ')?;
    let value: f64 = number.parse().ok()?;
    let (name, labels) =
        series.split_once('{').map_or((series, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
    let mut map = BTreeMap::new();
    let mut rest = labels;
    while let Some((key, quoted)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    c => text.push(c),
                },
                (_, c) => text.push(c),
            }
        };
        map.insert(key.to_owned(), text);
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    Some((name, map, value as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_recorder_writes() {
        let text = "\
# HELP packmirror_answers_total Answers
# TYPE packmirror_answers_total counter
packmirror_answers_total{source=\"bucket\",reason=\"clone\"} 4
packmirror_answers_total{source=\"bucket\",reason=\"refs\"} 9
packmirror_answers_total{source=\"primary\",reason=\"live\"} 9
packmirror_answers_total{source=\"primary\",reason=\"push\"} 2
packmirror_answers_total{source=\"primary\",reason=\"shallow\"} 1
packmirror_answers_total{reason=\"not-yet-mirrored\",source=\"primary\"} 2
packmirror_sync_runs_total{trigger=\"first\",result=\"published\"} 1
packmirror_sync_runs_total{trigger=\"push\",result=\"published\"} 1
packmirror_repos{state=\"a\\\"b,c}\"} 1
nonsense
";
        let counters = Counters::parse(text);
        assert_eq!(counters.bucket, 4);
        assert_eq!(counters.primary, [("not-yet-mirrored".into(), 2), ("shallow".into(), 1)].into());
        assert_eq!(counters.syncs, [("published".into(), 2)].into());
        let before =
            Counters { bucket: 3, primary: [("not-yet-mirrored".into(), 2)].into(), ..Counters::default() };
        assert_eq!(counters.since(&before).words(), "1 from the bucket, 1 from the primary (shallow)");
        let nothing = Counters { bucket: 4, primary: BTreeMap::new(), ..Counters::default() };
        assert_eq!(
            counters.since(&nothing).words(),
            "none from the bucket, 3 from the primary (not yet mirrored, shallow)"
        );
        assert_eq!(counters.since(&counters).words(), "none was needed");
    }
}
