//! Reading what the primary answers to a `fetch`, packet by packet.
//!
//! Follows git's client: `process_ack`, `receive_shallow_info`, `receive_wanted_refs` in `fetch-pack.c`
//! and the side bands of `sideband.c`. A pack of any size passes through; nothing is kept.
//! Relies on: packets in order (`pkt::Reader`). Elsewhere: the request (`request`), what is inside the
//! pack (`pack`).

use super::line;
use super::pkt::{self, BadPacket, OwnedPacket};
use bstr::{BString, ByteSlice};
use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};

/// An answer that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// The server says no, in its own words (an `ERR` packet or band 3).
    #[error("remote error: {0}")]
    Remote(String),
    /// The server speaks v0 or v1 only.
    #[error("the server does not speak protocol version 2")]
    NotV2,
    /// The answer is not what the protocol allows.
    #[error("{0}")]
    Protocol(String),
    /// The answer is not made of packets, or ends too early.
    #[error(transparent)]
    Packet(#[from] BadPacket),
}

impl BadReply {
    /// Fails if a payload is an `ERR` packet.
    pub(super) fn refuse_error(payload: &[u8]) -> Result<(), Self> {
        match pkt::remote_error(payload) {
            Some(words) => Err(Self::Remote(words.to_str_lossy().into_owned())),
            None => Ok(()),
        }
    }

    fn unexpected(what: &str, text: &[u8]) -> Self {
        Self::Protocol(format!("{what}: '{}'", text.as_bstr()))
    }
}

/// One thing that an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server has this object too.
    Ack(ObjectId),
    /// The server has none of the haves.
    Nak,
    /// The server knows enough: the pack follows.
    Ready,
    /// The history is cut here.
    Shallow(ObjectId),
    /// The history is no longer cut here.
    Unshallow(ObjectId),
    /// A ref that was wanted by name.
    WantedRef {
        /// Its full name.
        name: BString,
        /// What it points to.
        oid: ObjectId,
    },
    /// The next bytes of the pack, never empty.
    Pack(Bytes),
    /// Progress text of the server.
    Progress(Bytes),
    /// The answer is complete; `pack` says whether one was in it.
    End {
        /// Whether there was a pack.
        pack: bool,
    },
}

/// Reads one answer to a v2 `fetch` without `sideband-all`.
#[derive(Debug)]
pub struct FetchReply {
    hash: HashKind,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Acks { ready: bool },
    ShallowInfo,
    WantedRefs,
    Pack,
    Over,
}

impl FetchReply {
    /// Starts an answer of a server whose object ids are of kind `hash`.
    pub fn new(hash: HashKind) -> Self {
        Self { hash, state: State::Header }
    }

    /// Says whether [`Event::End`] was given.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Says whether packets are bands now, those of the pack among them.
    pub fn is_pack(&self) -> bool {
        self.state == State::Pack
    }

    /// Takes the next packet; `None` if it says nothing by itself (headers, delimiters, keep-alive).
    pub fn read(&mut self, packet: OwnedPacket) -> Result<Option<Event>, BadReply> {
        match packet {
            OwnedPacket::Data(payload) if self.state == State::Pack => Self::band(payload),
            OwnedPacket::Data(payload) => {
                BadReply::refuse_error(&payload)?;
                self.line(line::text(&payload))
            }
            OwnedPacket::Delim => self.delim().map(|()| None),
            OwnedPacket::Flush => self.flush().map(Some),
            OwnedPacket::ResponseEnd => Err(BadReply::Protocol("unexpected response end packet".into())),
        }
    }

    fn band(mut payload: Bytes) -> Result<Option<Event>, BadReply> {
        if payload.is_empty() {
            return Err(BadReply::Protocol("missing sideband designator".into()));
        }
        let rest = payload.split_off(1);
        match payload[0] {
            _ if rest.is_empty() => Ok(None),
            1 => Ok(Some(Event::Pack(rest))),
            2 => Ok(Some(Event::Progress(rest))),
            3 => Err(BadReply::Remote(rest.trim_end().to_str_lossy().into_owned())),
            other => Err(BadReply::Protocol(format!("bad band #{other}"))),
        }
    }

    fn line(&mut self, text: &[u8]) -> Result<Option<Event>, BadReply> {
        match self.state {
            State::Header => self.header(text).map(|()| None),
            State::Acks { .. } => self.ack(text).map(Some),
            State::ShallowInfo => {
                let bad = || BadReply::unexpected("expected shallow/unshallow", text);
                let event = match (text.strip_prefix(b"shallow "), text.strip_prefix(b"unshallow ")) {
                    (Some(hex), _) => Event::Shallow(self.oid(hex).ok_or_else(bad)?),
                    (_, Some(hex)) => Event::Unshallow(self.oid(hex).ok_or_else(bad)?),
                    (None, None) => return Err(bad()),
                };
                Ok(Some(event))
            }
            State::WantedRefs => {
                let bad = || BadReply::unexpected("expected wanted-ref", text);
                let (oid, rest) = line::oid(text, self.hash).ok_or_else(bad)?;
                let name = rest.strip_prefix(b" ").ok_or_else(bad)?.into();
                Ok(Some(Event::WantedRef { name, oid }))
            }
            State::Pack | State::Over => Err(BadReply::unexpected("unexpected line", text)),
        }
    }

    fn header(&mut self, text: &[u8]) -> Result<(), BadReply> {
        self.state = match text {
            b"acknowledgments" => State::Acks { ready: false },
            b"shallow-info" => State::ShallowInfo,
            b"wanted-refs" => State::WantedRefs,
            b"packfile" => State::Pack,
            other => return Err(BadReply::unexpected("expected 'packfile', received", other)),
        };
        Ok(())
    }

    fn ack(&mut self, text: &[u8]) -> Result<Event, BadReply> {
        let bad = || BadReply::unexpected("unexpected acknowledgment line", text);
        match text {
            b"NAK" => Ok(Event::Nak),
            b"ready" => {
                self.state = State::Acks { ready: true };
                Ok(Event::Ready)
            }
            _ => text.strip_prefix(b"ACK ").and_then(|hex| self.oid(hex)).map(Event::Ack).ok_or_else(bad),
        }
    }

    fn oid(&self, hex: &[u8]) -> Option<ObjectId> {
        line::oid(hex, self.hash).filter(|(_, rest)| rest.is_empty()).map(|(oid, _)| oid)
    }

    /// A delimiter ends a section that others follow: after acknowledgments that is so only with `ready`.
    fn delim(&mut self) -> Result<(), BadReply> {
        match self.state {
            State::Acks { ready: true } | State::ShallowInfo | State::WantedRefs => {
                self.state = State::Header
            }
            State::Acks { ready: false } => {
                return Err(BadReply::Protocol(
                    "expected no other sections to be sent after no 'ready'".into(),
                ));
            }
            State::Header | State::Pack | State::Over => {
                return Err(BadReply::Protocol("unexpected delimiter packet".into()));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<Event, BadReply> {
        let pack = match self.state {
            State::Pack => true,
            State::Acks { ready: false } => false,
            State::Acks { ready: true } => {
                return Err(BadReply::Protocol("expected packfile to be sent after 'ready'".into()));
            }
            State::Header | State::ShallowInfo | State::WantedRefs | State::Over => {
                return Err(BadReply::Protocol("unexpected flush packet".into()));
            }
        };
        self.state = State::Over;
        Ok(Event::End { pack })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::refs::tests::oid;
    use crate::git::response::Sections;
    use proptest::prelude::*;

    fn read(body: &[u8]) -> Result<Vec<Event>, BadReply> {
        let mut reader = pkt::Reader::new();
        reader.feed(body);
        let mut reply = FetchReply::new(HashKind::Sha1);
        let mut events = Vec::new();
        while let Some(packet) = reader.packet()? {
            events.extend(reply.read(packet)?);
        }
        reader.finish()?;
        Ok(events)
    }

    #[test]
    fn reads_every_section() {
        let mut out = Vec::new();
        let mut sections = Sections::new(&mut out, false);
        sections.acknowledgments(&[oid(1)], true);
        sections.shallow_info(&[oid(2)], &[oid(3)]);
        sections.wanted_refs([(b"refs/heads/a".as_bstr(), oid(4))]);
        sections.packfile();
        pkt::band(&mut out, 2, b"Counting", pkt::MAX_BAND);
        pkt::band_head(&mut out, 1, 0);
        pkt::band(&mut out, 1, b"PACK", pkt::MAX_BAND);
        out.extend_from_slice(pkt::FLUSH);
        let want = [
            Event::Ack(oid(1)),
            Event::Ready,
            Event::Shallow(oid(2)),
            Event::Unshallow(oid(3)),
            Event::WantedRef { name: "refs/heads/a".into(), oid: oid(4) },
            Event::Progress(Bytes::from_static(b"Counting")),
            Event::Pack(Bytes::from_static(b"PACK")),
            Event::End { pack: true },
        ];
        assert_eq!(read(&out).unwrap(), want);
    }

    #[test]
    fn acknowledgments_alone_end_with_flush() {
        let mut out = Vec::new();
        Sections::new(&mut out, false).acknowledgments(&[], false);
        assert_eq!(read(&out).unwrap(), [Event::Nak, Event::End { pack: false }]);
    }

    #[test]
    fn refuses_what_no_server_should_say() {
        let cases: [(&[u8], &str); 11] = [
            (b"000fERR sorry!\n", "remote error: sorry!"),
            (b"000dpackfile\n0009\x03oops", "remote error: oops"),
            (b"000dpackfile\n0006\x04x", "bad band #4"),
            (b"000dpackfile\n0004", "missing sideband designator"),
            (b"0000", "unexpected flush packet"),
            (b"0002", "unexpected response end packet"),
            (b"000ahello\n", "expected 'packfile', received: 'hello'"),
            (b"0014acknowledgments\n0008NAK\n0001", "expected no other sections to be sent after no 'ready'"),
            (b"0014acknowledgments\n000aready\n0000", "expected packfile to be sent after 'ready'"),
            (b"0014acknowledgments\n000bACK 12\n", "unexpected acknowledgment line: 'ACK 12'"),
            (b"000dpackfile\n000", "the remote end hung up unexpectedly"),
        ];
        for (body, want) in cases {
            assert_eq!(read(body).unwrap_err().to_string(), want, "{}", body.escape_ascii());
        }
        let mut reply = FetchReply::new(HashKind::Sha1);
        reply.read(OwnedPacket::Data(Bytes::from_static(b"packfile\n"))).unwrap();
        reply.read(OwnedPacket::Flush).unwrap();
        assert!(reply.is_over() && reply.read(OwnedPacket::Flush).is_err());
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn any_answer_is_read_without_panic(
            lines in proptest::collection::vec("(acknowledgments|shallow-info|wanted-refs|packfile|ACK |shallow |ready|\x01|\x02|\x03)?[ -~]{0,44}", 0..6),
            ends in proptest::collection::vec(0usize..4, 6),
        ) {
            let mut out = Vec::new();
            for (line, end) in lines.iter().zip(ends) {
                pkt::data(&mut out, line.as_bytes());
                out.extend_from_slice([&b""[..], pkt::FLUSH, pkt::DELIM, pkt::RESPONSE_END][end]);
            }
            let _ = read(&out);
        }
    }
}
