//! What a collection did, or would do, in numbers and in words.

use std::time::Duration;

use indicatif::HumanBytes;
use serde::Serialize;

/// Objects and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    /// Adds one object.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What a collection did, or with `dry_run` would do.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Repositories whose records were read.
    pub repositories: usize,
    /// Blobs that a kept record names.
    pub named: Amount,
    /// Blobs that were deleted.
    pub blobs: Amount,
    /// Records that were deleted.
    pub records: Amount,
    /// Other things that were deleted: heartbeats, notes and marks of the dead, what probes left.
    pub other: Amount,
    /// Repositories that were taken out since the primary has not had them for long.
    pub gone: u64,
    /// Blobs that nobody names now, and that are marked since this time.
    pub marked: Amount,
    /// Blobs that were marked before and whose time has not come.
    pub waiting: Amount,
    /// In how many seconds the first of those that are marked may be deleted.
    pub next_in_seconds: Option<u64>,
}

impl Report {
    /// One line for the log.
    pub fn line(&self) -> String {
        let Self { blobs, records, other, marked, waiting, .. } = self;
        format!(
            "{} blobs ({}), {} records and {} other objects deleted; {} blobs ({}) marked, {} ({}) wait",
            blobs.objects,
            HumanBytes(blobs.bytes),
            records.objects,
            other.objects,
            marked.objects,
            HumanBytes(marked.bytes),
            waiting.objects,
            HumanBytes(waiting.bytes)
        )
    }

    /// Some lines for people.
    pub fn text(&self) -> String {
        let (deleted, marked) =
            if self.dry_run { ("would be deleted", "would be marked") } else { ("deleted", "marked") };
        let mut out = String::new();
        let mut row = |what: &str, amount: &Amount, done: &str| {
            out.push_str(&format!("{:>9} {what} {done}, {}\n", amount.objects, HumanBytes(amount.bytes)));
        };
        row("blobs", &self.blobs, deleted);
        row("old records", &self.records, deleted);
        row("other leftovers", &self.other, deleted);
        row("blobs that nobody names any more", &self.marked, marked);
        row("blobs marked before", &self.waiting, "wait for their time");
        row("blobs", &self.named, "are in use");
        if self.gone > 0 {
            let taken = if self.dry_run { "would be taken out" } else { "taken out" };
            out.push_str(&format!(
                "{:>9} repositories that the primary does not have any more {taken}\n",
                self.gone
            ));
        }
        if let Some(seconds) = self.next_in_seconds {
            let when = humantime::format_duration(Duration::from_secs(seconds));
            out.push_str(&format!(
                "What is marked can be deleted in {when}, by the next collection after that.\n"
            ));
        }
        out
    }
}
