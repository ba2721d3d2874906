//! What a purge did, or would do, in numbers and in words.

use std::collections::HashSet;

use gix_hash::ObjectId;
use indicatif::HumanBytes;
use serde::Serialize;

pub use super::nodes::{Answer, Node};
use crate::work::collect::purge::{Purged, Survey};
use crate::work::collect::report::Amount;

/// What a purge did, or with `dry_run` would do.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The repository.
    pub repository: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The newest generation: what nodes serve from now on, or what they serve now in a dry run.
    pub generation: u64,
    /// Whether that is what the primary shows.
    pub is_synced: bool,
    /// Objects that were stored and that no ref reaches.
    pub unreachable_objects: u64,
    /// Of the objects that were asked for, those that were not stored.
    pub not_stored: Vec<String>,
    /// Older records, and what only they name.
    pub records: Amount,
    /// Blobs that only older records name.
    pub blobs: Amount,
    /// Blobs that older records name and another repository too: they stay.
    pub shared: Amount,
    /// Blobs that no record names, whosever they were.
    pub unnamed: Amount,
    /// The number of the order that nodes were given.
    pub order: Option<u64>,
    /// The nodes, and whether they have obeyed.
    pub nodes: Vec<Node>,
    /// What was deleted.
    pub deleted: Deleted,
    /// Blobs that are to go and are still there.
    pub left: Amount,
    /// Of the objects that were asked for, those that the newest generation held.
    #[serde(skip)]
    pub(super) found: HashSet<ObjectId>,
}

/// What was deleted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Blobs.
    pub blobs: Amount,
    /// Records.
    pub records: Amount,
}

impl Report {
    /// Live nodes that have not obeyed.
    pub fn unanswered(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.answer == Answer::NotYet)
    }

    /// Whether all is gone and no live node may still have it.
    pub fn is_whole(&self) -> bool {
        self.left.objects == 0 && self.unanswered().next().is_none()
    }

    pub(super) fn survey(&mut self, found: &Survey) {
        found.records.iter().for_each(|record| self.records.add(record.size));
        (self.blobs, self.shared, self.unnamed) = (found.there, found.shared, found.unnamed);
    }

    pub(super) fn purged(&mut self, purged: &Purged) {
        self.deleted = Deleted { blobs: purged.done.blobs, records: purged.done.records };
        self.left = purged.left;
    }

    /// Some lines for people.
    pub fn text(&self) -> String {
        let mut out = format!("{}: generation {}\n", self.repository, self.generation);
        let mut row = |count: u64, words: String| out.push_str(&format!("{count:>9} {words}\n"));
        for oid in &self.not_stored {
            row(0, format!("objects {oid}: not stored, nothing to purge of it"));
        }
        let verb = if self.dry_run { "would become unreadable" } else { "are unreadable now" };
        row(self.unreachable_objects, format!("objects that no ref reaches {verb}"));
        if self.dry_run {
            row(self.blobs.objects, format!("blobs would be deleted, {}", HumanBytes(self.blobs.bytes)));
            row(self.records.objects, "older records would be deleted".to_owned());
            row(
                self.unnamed.objects,
                format!("blobs that no record names too, {}", HumanBytes(self.unnamed.bytes)),
            );
        } else {
            let Deleted { blobs, records } = &self.deleted;
            row(blobs.objects, format!("blobs deleted, {}", HumanBytes(blobs.bytes)));
            row(records.objects, "older records deleted".to_owned());
        }
        if self.shared.objects > 0 {
            row(
                self.shared.objects,
                "blobs stay, since another repository names them too: purge that one as well".to_owned(),
            );
        }
        if self.left.objects > 0 {
            row(self.left.objects, "blobs stay for now, since a node may be about to use them".to_owned());
        }
        let obeyed = self.nodes.iter().filter(|node| node.answer == Answer::Obeyed).count() as u64;
        if !self.dry_run && self.order.is_some() {
            row(obeyed, "nodes have forgotten it".to_owned());
        }
        for node in self.nodes.iter().filter(|node| node.answer == Answer::Silent) {
            out.push_str(&format!(
                "Node {} has been silent for {} s: it forgets when it starts again; if it still runs, stop it.\n",
                node.node, node.heartbeat_seconds
            ));
        }
        if self.dry_run && !self.is_synced {
            out.push_str("The primary shows other refs than the newest generation: a purge syncs first.\n");
        }
        out
    }
}
