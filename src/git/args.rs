//! What the requests of all commands and versions have in common: limits, refusals, and lists of lines.
//!
//! Relies on: packets. Elsewhere: what the lines say (`fetch`, `ls_refs`, `object_info`, `v0`), the frame around them
//! (`request`).

use super::line;
use super::pkt::{BadPacket, Packet, Packets};
use bstr::ByteSlice;
use std::collections::HashSet;
use std::hash::Hash;

/// How much one request may hold. Duplicates of one object id count once, but for the haves of v0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// `want` lines.
    pub max_wants: usize,
    /// `have` lines.
    pub max_haves: usize,
    /// `shallow` lines.
    pub max_shallow: usize,
    /// `oid` lines of `object-info`.
    pub max_oids: usize,
    /// Lines of free text: `want-ref`, `deepen-not`, `server-option`, and lines we do not know, each.
    pub max_names: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_wants: 250_000,
            max_haves: 256_000,
            max_shallow: 250_000,
            max_oids: 250_000,
            max_names: 20_000,
        }
    }
}

/// A request that is refused. The text is git's own, for an `ERR` packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The body is not made of packets, or ends too early.
    #[error(transparent)]
    Packet(#[from] BadPacket),
    /// The packets are no request.
    #[error("{0}")]
    Protocol(String),
    /// More lines than the limits allow.
    #[error("too many {what} lines, at most {limit} are allowed")]
    TooMany {
        /// Which lines.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

impl BadRequest {
    /// Wraps git's words.
    pub(super) fn protocol(words: impl Into<String>) -> Self {
        Self::Protocol(words.into())
    }

    pub(super) fn unexpected_line(line: &[u8]) -> Self {
        Self::Protocol(format!("unexpected line: '{}'", line.as_bstr()))
    }
}

/// A list of things that count once each, up to a limit.
pub(super) struct Unique<T> {
    what: &'static str,
    limit: usize,
    seen: HashSet<T>,
}

impl<T: Eq + Hash + Clone> Unique<T> {
    pub(super) fn new(what: &'static str, limit: usize) -> Self {
        Self { what, limit, seen: HashSet::new() }
    }

    /// Adds `value` to `list` unless it is there already; says whether it was new.
    pub(super) fn push(&mut self, list: &mut Vec<T>, value: T) -> Result<bool, BadRequest> {
        if !self.seen.insert(value.clone()) {
            return Ok(false);
        }
        push(list, value, self.what, self.limit)?;
        Ok(true)
    }
}

/// Adds `value` to `list` unless the limit is reached.
pub(super) fn push<T>(
    list: &mut Vec<T>,
    value: T,
    what: &'static str,
    limit: usize,
) -> Result<(), BadRequest> {
    if list.len() >= limit {
        return Err(BadRequest::TooMany { what, limit });
    }
    list.push(value);
    Ok(())
}

/// The argument lines of a command, up to the flush that ends them.
pub(super) struct Args<'a> {
    packets: Packets<'a>,
    ended: bool,
}

impl<'a> Args<'a> {
    /// Reads them from `packets`, if there are any.
    pub(super) fn new(packets: Packets<'a>, any: bool) -> Self {
        Self { packets, ended: !any }
    }

    /// Gives the next argument of a `fetch`, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<&'a [u8]>, BadRequest> {
        self.next_of("fetch")
    }

    fn next_of(&mut self, command: &str) -> Result<Option<&'a [u8]>, BadRequest> {
        if self.ended {
            return Ok(None);
        }
        match self.packets.expect()? {
            Packet::Data(payload) => Ok(Some(line::text(payload))),
            Packet::Flush => {
                self.ended = true;
                Ok(None)
            }
            Packet::Delim | Packet::ResponseEnd => Err(BadRequest::Protocol(match command {
                "object-info" => "object-info: expected flush after arguments".into(),
                _ => format!("expected flush after {command} arguments"),
            })),
        }
    }

    /// Gives all arguments of a command.
    pub(super) fn collect(&mut self, command: &str) -> Result<Vec<&'a [u8]>, BadRequest> {
        let mut lines = Vec::new();
        while let Some(line) = self.next_of(command)? {
            lines.push(line);
        }
        Ok(lines)
    }
}
