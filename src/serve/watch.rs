//! Reading along while the primary's ref advertisement streams to a client.
//!
//! A line that the published generation does not have is the earliest sign of a push: the sync starts then, long before
//! the client comes back with its `want`. Nothing is held back and nothing is changed.

use std::sync::Arc;

use axum::body::Body;
use futures::StreamExt;
use gix_hash::{Kind as HashKind, ObjectId};

use crate::git::line::text;
use crate::git::ls_refs::RefLine;
use crate::git::pkt::{OwnedPacket, Reader};
use crate::git::refname;
use crate::mirror::repo::Repo;
use crate::mirror::snapshot::Snapshot;

/// Which form the advertisement has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `ls-refs` of protocol v2.
    LsRefs,
    /// `info/refs` of protocol v0 or v1.
    V0,
}

/// Lets `body` through unchanged; asks for a sync of `repo` at the first ref that is news to it, and once more at the
/// first tag: a fetch with `include-tag` waits for tags that its client was shown.
pub fn watch(body: Body, repo: Arc<Repo>, form: Form) -> Body {
    let Some(known) = repo.snapshot() else { return body };
    let mut reader = Some(Reader::new());
    let mut asked = false;
    let mut next = 0;
    Body::from_stream(body.into_data_stream().inspect(move |piece| {
        let (Some(packets), Ok(piece)) = (&mut reader, piece) else { return };
        packets.feed(piece);
        loop {
            match packets.packet() {
                Ok(Some(OwnedPacket::Data(line))) if is_next(&line, &known, &mut next) => {}
                Ok(Some(OwnedPacket::Data(line))) => match ref_of(&line, &known, form) {
                    Some(seen) if is_news(&seen, &known) && !repo.is_absent(&seen.1) => {
                        if seen.0.starts_with(b"refs/tags/") {
                            repo.ask_for_tags();
                            break;
                        }
                        if !asked {
                            repo.ask();
                            asked = true;
                        }
                    }
                    _ => {}
                },
                Ok(Some(_)) => {}
                Ok(None) => return,
                // No advertisement after all, which is for the client to judge.
                Err(_) => break,
            }
        }
        reader = None;
    }))
}

/// Says whether a line shows the published ref at index `next`, and if so moves on to the one behind. Refs come in the
/// order in which they are published, so this settles nearly all of them by one comparison.
fn is_next(line: &[u8], known: &Snapshot, next: &mut usize) -> bool {
    let Some(expected) = known.refs.refs.get(*next) else { return false };
    let mut hex = [0; HashKind::longest().len_in_hex()];
    let hex = expected.oid.hex_to_buf(&mut hex).as_bytes();
    let rest = line.strip_prefix(hex).and_then(|rest| rest.strip_prefix(b" "));
    let rest = rest.and_then(|rest| rest.strip_prefix(expected.name.as_slice()));
    let shown = rest.and_then(|rest| rest.first()).is_none_or(|after| matches!(after, b' ' | b'\n'));
    let found = rest.is_some() && shown;
    *next += usize::from(found);
    found
}

fn ref_of(line: &[u8], known: &Snapshot, form: Form) -> Option<(Vec<u8>, ObjectId)> {
    match form {
        Form::LsRefs => {
            // What no sync takes in is no news.
            let line =
                RefLine::parse(text(line), known.refs.hash).ok().filter(|line| line.unfit().is_none())?;
            Some((line.name.into(), line.oid?))
        }
        Form::V0 => {
            let line = line.split(|b| *b == 0).next()?;
            let line = text(line);
            let at = line.iter().position(|b| *b == b' ')?;
            let oid = ObjectId::from_hex(&line[..at]).ok()?;
            let name = &line[at + 1..];
            (refname::is_well_formed(name) && !oid.is_null()).then(|| (name.to_vec(), oid))
        }
    }
}

fn is_news((name, oid): &(Vec<u8>, ObjectId), known: &Snapshot) -> bool {
    if name == b"HEAD" {
        return known.refs.head_oid().as_ref() != Some(oid);
    }
    known.refs.find(name).is_none_or(|r| r.oid != *oid)
}
