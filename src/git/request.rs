//! Requests of protocol v2: what a client asks, and what we ask of the primary.
//!
//! Parsing accepts and refuses what git's `serve.c` `process_request` and `upload-pack.c` `process_args` do,
//! in git's own words. Commands, capabilities and arguments we do not know are kept, so that the caller can
//! pass the whole request through instead of failing it. Encoding follows `fetch-pack.c`.
//! Relies on: a complete, inflated body. Elsewhere: v0 (`v0`), what the answer is (`negotiate`, `response`),
//! whether an object may be wanted (`mirror`).

use super::args::{Args, push};
pub use super::args::{BadRequest, RequestLimits};
pub use super::fetch::{FetchRequest, Wire};
use super::fetch::{encode_fetch, parse_fetch};
use super::ls_refs::LsRefs;
use super::object_info::ObjectInfo;
use super::pkt::{self, Packet, Packets};
use super::{caps, line};
use bstr::{BString, ByteSlice};
use gix_hash::Kind as HashKind;

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

/// Reads a v2 request to a repository of kind `hash`. `None`: the client said good-bye with an empty request.
///
/// What stands behind the end of the request is not read, as git does not in stateless mode.
pub fn parse_v2(
    body: &[u8],
    limits: &RequestLimits,
    hash: HashKind,
) -> Result<Option<CommandRequest>, BadRequest> {
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
    let mut args = Args::new(packets, has_args);
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

    fn take_capability(&mut self, text: &[u8], limits: &RequestLimits) -> Result<(), BadRequest> {
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
