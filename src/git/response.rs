//! Answers to fetch requests: the lines around a pack, byte for byte as git writes them.
//!
//! Follows `send_acks`, `send_wanted_ref_info`, `send_shallow_info` and `receive_needs` in git's
//! `upload-pack.c`, and `packet_writer_error` in `pkt-line.c`.
//! Relies on: nothing. Elsewhere: what to say (`negotiate`, `pack::history::shallow`), the pack itself (`pack::plan`).

use super::pkt;
use bstr::BStr;
use gix_hash::{ObjectId, oid};

/// Writes the sections of a v2 answer; with `sideband-all` every line goes on band 1, every error on band 3.
pub struct Sections<'a> {
    out: &'a mut Vec<u8>,
    sideband_all: bool,
}

impl<'a> Sections<'a> {
    /// Writes to the end of `out`.
    pub fn new(out: &'a mut Vec<u8>, sideband_all: bool) -> Self {
        Self { out, sideband_all }
    }

    fn data(&mut self, payload: &[u8]) {
        if self.sideband_all {
            pkt::band(self.out, 1, payload, pkt::MAX_BAND);
        } else {
            pkt::data(self.out, payload);
        }
    }

    /// Writes the acknowledgments and how they end: with `ready` more sections follow, otherwise it is over.
    pub fn acknowledgments(&mut self, common: &[ObjectId], ready: bool) {
        self.data(b"acknowledgments\n");
        if common.is_empty() {
            self.data(b"NAK\n");
        }
        for oid in common {
            self.data(format!("ACK {oid}\n").as_bytes());
        }
        if ready {
            self.data(b"ready\n");
        }
        self.out.extend_from_slice(if ready { pkt::DELIM } else { pkt::FLUSH });
    }

    /// Writes what the refs wanted by name point to; nothing if there are none.
    pub fn wanted_refs<'r>(&mut self, refs: impl IntoIterator<Item = (&'r BStr, ObjectId)>) {
        let mut refs = refs.into_iter().peekable();
        if refs.peek().is_none() {
            return;
        }
        self.data(b"wanted-refs\n");
        for (name, oid) in refs {
            self.data(&[oid.to_string().as_bytes(), b" ", name, b"\n"].concat());
        }
        self.out.extend_from_slice(pkt::DELIM);
    }

    /// Writes how the client's shallow boundary changes. git writes this section, even empty, whenever the
    /// request deepens or names a boundary commit that we have, and not otherwise.
    pub fn shallow_info(&mut self, shallow: &[ObjectId], unshallow: &[ObjectId]) {
        self.data(b"shallow-info\n");
        for (word, oids) in [("shallow", shallow), ("unshallow", unshallow)] {
            for oid in oids {
                self.data(format!("{word} {oid}").as_bytes());
            }
        }
        self.out.extend_from_slice(pkt::DELIM);
    }

    /// Writes the header of the last section; the pack follows on side bands, then a flush.
    pub fn packfile(&mut self) {
        self.data(b"packfile\n");
    }

    /// Writes an error, with which the answer ends.
    pub fn error(&mut self, words: &str) {
        if self.sideband_all {
            put_band_error(self.out, words, pkt::MAX_BAND);
        } else {
            put_error(self.out, words);
        }
    }
}

/// Appends an error packet (`ERR …`), the way to refuse before a pack has begun. Long text is cut.
pub fn put_error(out: &mut Vec<u8>, words: &str) {
    pkt::data(out, [b"ERR ", words.as_bytes()].concat().as_slice());
}

/// Appends an error on band 3, the way to give up inside a pack. Long text is cut to one packet.
pub fn put_band_error(out: &mut Vec<u8>, words: &str, max: usize) {
    pkt::band(out, 3, &words.as_bytes()[..words.len().min(max)], max);
}

/// Appends a v0 acknowledgment; `status` is `None` for the final one.
pub fn put_ack(out: &mut Vec<u8>, oid: &oid, status: Option<AckStatus>) {
    pkt::with(out, |out| {
        out.extend_from_slice(b"ACK ");
        super::line::put_oid(out, oid);
        out.extend_from_slice(match status {
            None => b"\n",
            Some(AckStatus::Continue) => b" continue\n",
            Some(AckStatus::Common) => b" common\n",
            Some(AckStatus::Ready) => b" ready\n",
        });
    });
}

/// What a v0 acknowledgment says beside the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckStatus {
    /// `multi_ack`: go on.
    Continue,
    /// `multi_ack_detailed`: we have it too.
    Common,
    /// `multi_ack_detailed`: we know enough for a pack.
    Ready,
}

/// Appends a v0 `NAK`.
pub fn put_nak(out: &mut Vec<u8>) {
    pkt::text(out, "NAK");
}

/// Appends the shallow lines of a v0 answer and their flush. git writes them, even none, whenever the
/// request deepens, before any acknowledgment, and not otherwise.
pub fn put_v0_shallow(out: &mut Vec<u8>, shallow: &[ObjectId], unshallow: &[ObjectId]) {
    for (word, oids) in [("shallow", shallow), ("unshallow", unshallow)] {
        for oid in oids {
            pkt::data(out, format!("{word} {oid}").as_bytes());
        }
    }
    out.extend_from_slice(pkt::FLUSH);
}

/// Gives git's words for a want that is not in the repository, or may not be had. CI agents match them.
pub fn not_our_ref(oid: &oid) -> String {
    format!("upload-pack: not our ref {oid}")
}

/// Gives git's words for a `want-ref` that names no ref.
pub fn unknown_ref(name: &BStr) -> String {
    format!("unknown ref {name}")
}

/// Gives git's words for a `deepen-not` that names no ref, or several.
pub fn ambiguous_deepen_not(name: &BStr) -> String {
    format!("git upload-pack: ambiguous deepen-not: deepen-not {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::pkt::{Packet, Packets};
    use crate::git::refs::tests::oid;
    use bstr::ByteSlice;

    fn lines(out: &[u8]) -> Vec<String> {
        let show = |packet| match packet {
            Ok(Packet::Data(payload)) => {
                payload.to_str_lossy().replace(&oid(1).to_string(), "1").replace(&oid(2).to_string(), "2")
            }
            other => format!("{other:?}"),
        };
        Packets::new(out).map(show).collect()
    }

    fn sections(sideband_all: bool, write: impl FnOnce(&mut Sections<'_>)) -> Vec<String> {
        let mut out = Vec::new();
        write(&mut Sections::new(&mut out, sideband_all));
        lines(&out)
    }

    #[test]
    fn writes_every_section() {
        let got = sections(false, |s| {
            s.acknowledgments(&[oid(1), oid(2)], true);
            s.wanted_refs([(b"refs/heads/a".as_bstr(), oid(1))]);
            s.wanted_refs([]);
            s.shallow_info(&[oid(1)], &[oid(2)]);
            s.packfile();
        });
        let want = [
            "acknowledgments\n",
            "ACK 1\n",
            "ACK 2\n",
            "ready\n",
            "Ok(Delim)",
            "wanted-refs\n",
            "1 refs/heads/a\n",
            "Ok(Delim)",
            "shallow-info\n",
            "shallow 1",
            "unshallow 2",
            "Ok(Delim)",
            "packfile\n",
        ];
        assert_eq!(got, want);
        assert_eq!(
            sections(false, |s| s.acknowledgments(&[], false)),
            ["acknowledgments\n", "NAK\n", "Ok(Flush)"]
        );
    }

    #[test]
    fn sideband_all_puts_lines_on_bands() {
        let got = sections(true, |s| {
            s.acknowledgments(&[], true);
            s.error("no");
        });
        assert_eq!(got, ["\x01acknowledgments\n", "\x01NAK\n", "\x01ready\n", "Ok(Delim)", "\x03no"]);
    }

    #[test]
    fn errors_fit_into_one_packet() {
        assert_eq!(sections(false, |s| s.error(&not_our_ref(&oid(1)))), ["ERR upload-pack: not our ref 1"]);
        let long = "x".repeat(pkt::MAX_PACKET * 2);
        for sideband_all in [false, true] {
            assert_eq!(sections(sideband_all, |s| s.error(&long)).len(), 1);
        }
        let mut out = Vec::new();
        put_band_error(&mut out, &long, pkt::MAX_SMALL_BAND);
        assert_eq!(out.len(), 1000);
    }

    #[test]
    fn writes_v0_lines() {
        let mut out = Vec::new();
        put_v0_shallow(&mut out, &[oid(1)], &[oid(2)]);
        for status in [None, Some(AckStatus::Continue), Some(AckStatus::Common), Some(AckStatus::Ready)] {
            put_ack(&mut out, &oid(1), status);
        }
        put_nak(&mut out);
        let want = [
            "shallow 1",
            "unshallow 2",
            "Ok(Flush)",
            "ACK 1\n",
            "ACK 1 continue\n",
            "ACK 1 common\n",
            "ACK 1 ready\n",
            "NAK\n",
        ];
        assert_eq!(lines(&out), want);
    }
}
