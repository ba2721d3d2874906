//! Requests of protocol v2: what a client asks, and what we ask of the primary.
//!
//! Parsing accepts and refuses what git's `serve.c` `process_request` and `upload-pack.c` `process_args` do,
//! in git's own words. Commands, capabilities and arguments we do not know are kept, so that the caller can
//! pass the whole request through instead of failing it. Encoding follows `fetch-pack.c`.
//! Relies on: a complete, inflated body. Elsewhere: v0 (`v0`), what the answer is (`negotiate`, `response`),
//! whether an object may be wanted (`mirror`).

pub use super::fetch::FetchRequest;
use super::fetch::{encode_fetch, parse_fetch};
use super::ls_refs::LsRefs;
use super::object_info::ObjectInfo;
use super::pkt::{self, BadPacket, Packet, Packets};
use super::{V2Caps, caps, line};
use bstr::{BString, ByteSlice};
use gix_hash::Kind as HashKind;
use std::collections::HashSet;
use std::hash::Hash;

/// How much one request may hold. Duplicates of one object id count once, but for the haves of v0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
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

impl Default for Limits {
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

impl Limits {
    /// Gives the limits for a repository with `refs` refs: an honest client wants little more than all of them.
    pub fn for_refs(refs: usize) -> Self {
        let all = Self::default();
        Self { max_wants: refs.saturating_mul(2).saturating_add(1_000).min(all.max_wants), ..all }
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

/// What a v2 request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `ls-refs`
    LsRefs(LsRefs),
    /// `fetch`
    Fetch(Box<FetchRequest>),
    /// `object-info`
    ObjectInfo(ObjectInfo),
    /// `bundle-uri`
    BundleUri,
    /// A command we do not know; its arguments are not read.
    Other(BString),
}

/// A whole v2 request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRequest {
    /// What it asks for.
    pub command: Command,
    /// The client's name and version.
    pub agent: Option<BString>,
    /// The client's id for this session.
    pub session_id: Option<BString>,
    /// The hash the client named; git means SHA-1 if it named none.
    pub object_format: Option<HashKind>,
    /// Options for the server, which git's own server ignores.
    pub server_options: Vec<BString>,
    /// Capabilities we do not know; git refuses those that it did not offer.
    pub unknown: Vec<BString>,
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

/// Reads a v2 request to a repository of kind `hash`. `None`: the client said good-bye with an empty request.
///
/// What stands behind the end of the request is not read, as git does not in stateless mode.
pub fn parse_v2(body: &[u8], limits: &Limits, hash: HashKind) -> Result<Option<CommandRequest>, BadRequest> {
    let mut packets = Packets::new(body);
    if body.is_empty() {
        return Ok(None);
    }
    let mut command: Option<&[u8]> = None;
    let mut request = CommandRequest::new(Command::BundleUri);
    let mut seen_any = false;
    let has_args = loop {
        let text = match packets.expect()? {
            Packet::Data(payload) => line::text(payload),
            Packet::Flush if !seen_any => return Ok(None),
            Packet::Flush => break false,
            Packet::Delim => break true,
            Packet::ResponseEnd => return Err(BadRequest::protocol("unexpected response end packet")),
        };
        seen_any = true;
        match text.strip_prefix(b"command=") {
            Some(name) => {
                if let Some(first) = command.replace(name) {
                    return Err(BadRequest::Protocol(format!(
                        "command '{}' requested after already requesting command '{}'",
                        name.as_bstr(),
                        first.as_bstr()
                    )));
                }
            }
            None => request.take_capability(text, limits)?,
        }
    };
    let Some(command) = command else { return Err(BadRequest::protocol("no command requested")) };
    let is_ours = matches!(command, b"ls-refs" | b"fetch" | b"object-info" | b"bundle-uri");
    let client = request.object_format.unwrap_or(HashKind::Sha1);
    if is_ours && client != hash {
        return Err(BadRequest::Protocol(format!(
            "mismatched object format: server {hash}; client {client}"
        )));
    }
    let mut args = Args { packets, ended: !has_args };
    request.command = match command {
        b"ls-refs" => Command::LsRefs(LsRefs::parse(args.collect("ls-refs")?)?),
        b"fetch" => Command::Fetch(Box::new(parse_fetch(&mut args, limits, hash)?)),
        b"object-info" => Command::ObjectInfo(ObjectInfo::parse(args.collect("object-info")?, limits, hash)?),
        b"bundle-uri" => match args.next()? {
            None => Command::BundleUri,
            Some(arg) => {
                let words = format!("bundle-uri: unexpected argument: '{}'", arg.as_bstr());
                return Err(BadRequest::Protocol(words));
            }
        },
        other => Command::Other(other.into()),
    };
    Ok(Some(request))
}

/// The argument lines of a command, up to the flush that ends them.
pub(super) struct Args<'a> {
    packets: Packets<'a>,
    ended: bool,
}

impl<'a> Args<'a> {
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

    fn collect(&mut self, command: &str) -> Result<Vec<&'a [u8]>, BadRequest> {
        let mut lines = Vec::new();
        while let Some(line) = self.next_of(command)? {
            lines.push(line);
        }
        Ok(lines)
    }
}

impl CommandRequest {
    /// Makes a request that says nothing about the client.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            agent: None,
            session_id: None,
            object_format: None,
            server_options: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Makes a request to a server that offers `caps`: what it did not offer is left out.
    pub fn to_server(command: Command, caps: &V2Caps, agent: &str, hash: HashKind) -> Self {
        Self {
            agent: caps.has("agent").then(|| agent.into()),
            object_format: caps.has("object-format").then_some(hash),
            ..Self::new(command)
        }
    }

    fn take_capability(&mut self, text: &[u8], limits: &Limits) -> Result<(), BadRequest> {
        let (key, value) = text.split_once_str("=").map_or((text, None), |(key, value)| (key, Some(value)));
        let text_value = || BString::from(value.unwrap_or_default());
        match key {
            b"agent" => self.agent = Some(text_value()),
            b"session-id" => self.session_id = Some(text_value()),
            b"server-option" => {
                push(&mut self.server_options, text_value(), "server-option", limits.max_names)?;
            }
            b"object-format" => {
                let missing = || BadRequest::protocol("object-format capability requires an argument");
                let name = value.ok_or_else(missing)?;
                let unknown = || BadRequest::Protocol(format!("unknown object format '{}'", name.as_bstr()));
                self.object_format = Some(caps::hash_by_name(name).ok_or_else(unknown)?);
            }
            _ => push(&mut self.unknown, text.into(), "capability", limits.max_names)?,
        }
        Ok(())
    }

    /// Writes the request as git's client does.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let name: &[u8] = match &self.command {
            Command::LsRefs(_) => b"ls-refs",
            Command::Fetch(_) => b"fetch",
            Command::ObjectInfo(_) => b"object-info",
            Command::BundleUri => b"bundle-uri",
            Command::Other(name) => name,
        };
        let put =
            |out: &mut Vec<u8>, key: &str, value: &[u8]| pkt::text(out, [key.as_bytes(), value].concat());
        put(&mut out, "command=", name);
        for (key, value) in [("agent=", &self.agent), ("session-id=", &self.session_id)] {
            if let Some(value) = value {
                put(&mut out, key, value);
            }
        }
        for option in &self.server_options {
            put(&mut out, "server-option=", option);
        }
        if let Some(hash) = self.object_format {
            put(&mut out, "object-format=", hash.to_string().as_bytes());
        }
        for capability in &self.unknown {
            put(&mut out, "", capability);
        }
        out.extend_from_slice(pkt::DELIM);
        match &self.command {
            Command::LsRefs(request) => request.encode(&mut out),
            Command::Fetch(request) => encode_fetch(request, &mut out),
            Command::ObjectInfo(request) => request.encode(&mut out),
            Command::BundleUri | Command::Other(_) => {}
        }
        out.extend_from_slice(pkt::FLUSH);
        out
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
pub(crate) mod tests;
