//! pkt-lines: the framing of everything Git says over the wire.
//!
//! Strict where git's `pkt-line.c` is: lengths 3 and non-hex are refused, a packet has at most
//! 65,520 bytes, an early end is an error. An empty data packet (`0004`) is allowed, as git allows it.
//! Relies on: nothing. Elsewhere: what the lines mean (`request`, `v0`, `caps`, `reply`).

use bytes::{Bytes, BytesMut};

/// The longest packet in bytes, its four length digits included.
pub const MAX_PACKET: usize = 65_520;
/// The longest payload of one packet in bytes.
pub const MAX_DATA: usize = MAX_PACKET - 4;
/// The longest payload in bytes behind one band byte of `side-band-64k` and of protocol v2.
pub const MAX_BAND: usize = MAX_PACKET - 5;
/// The longest payload in bytes behind one band byte of the old `side-band`.
pub const MAX_SMALL_BAND: usize = 1000 - 5;

/// Ends a message.
pub const FLUSH: &[u8] = b"0000";
/// Separates the sections of a message (protocol v2).
pub const DELIM: &[u8] = b"0001";
/// Ends a response of a stateless connection between git's own processes.
pub const RESPONSE_END: &[u8] = b"0002";

/// One packet, borrowed from the bytes it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A payload, possibly empty.
    Data(&'a [u8]),
    /// `0000`
    Flush,
    /// `0001`
    Delim,
    /// `0002`
    ResponseEnd,
}

/// What the front of a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// A whole packet and how many bytes it took.
    Ready {
        /// The packet.
        packet: Packet<'a>,
        /// Its length in the buffer in bytes.
        used: usize,
    },
    /// At least this many more bytes are needed.
    NeedMore(usize),
}

/// Bytes that are no pkt-line. The text is git's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The four length digits are not hexadecimal.
    #[error("protocol error: bad line length character: {}", .0.escape_ascii())]
    LengthCharacter([u8; 4]),
    /// The length is 3, or the payload's length is above the limit.
    #[error("protocol error: bad line length {0}")]
    Length(usize),
    /// The bytes end inside a packet, or where one is due.
    #[error("the remote end hung up unexpectedly")]
    Truncated,
}

/// Reads one packet from the front of `buf`; on `NeedMore`, call again with that many more bytes.
pub fn parse(buf: &[u8]) -> Result<Step<'_>, BadPacket> {
    let Some(head) = buf.first_chunk::<4>() else { return Ok(Step::NeedMore(4 - buf.len())) };
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as usize);
    let length = head.iter().try_fold(0, |sum, byte| Some(sum << 4 | digit(*byte)?));
    let length = length.ok_or(BadPacket::LengthCharacter(*head))?;
    let packet = match length {
        0 => Packet::Flush,
        1 => Packet::Delim,
        2 => Packet::ResponseEnd,
        4..=MAX_PACKET => match buf.get(4..length) {
            Some(payload) => Packet::Data(payload),
            None => return Ok(Step::NeedMore(length - buf.len())),
        },
        3 => return Err(BadPacket::Length(3)),
        // git names the length of the payload here.
        _ => return Err(BadPacket::Length(length - 4)),
    };
    Ok(Step::Ready { packet, used: length.max(4) })
}

/// Walks the packets of a complete body; ends where the bytes end, and after the first error.
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    rest: &'a [u8],
}

impl<'a> Packets<'a> {
    /// Starts at the front of `body`.
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Gives the bytes that were not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads the next packet; the end of the bytes is an error here.
    pub fn expect(&mut self) -> Result<Packet<'a>, BadPacket> {
        self.next().unwrap_or(Err(BadPacket::Truncated))
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, BadPacket>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let outcome = match parse(self.rest) {
            Ok(Step::Ready { packet, used }) => {
                self.rest = &self.rest[used..];
                return Some(Ok(packet));
            }
            Ok(Step::NeedMore(_)) => BadPacket::Truncated,
            Err(error) => error,
        };
        self.rest = &[];
        Some(Err(outcome))
    }
}

/// One packet that owns its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnedPacket {
    /// A payload, possibly empty.
    Data(Bytes),
    /// `0000`
    Flush,
    /// `0001`
    Delim,
    /// `0002`
    ResponseEnd,
}

/// Reads packets from a stream that arrives in pieces; holds at most one packet and one piece.
#[derive(Debug, Default)]
pub struct Reader {
    buf: BytesMut,
}

impl Reader {
    /// Makes a reader that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece of the stream. Call [`Reader::packet`] until it gives `None` before the next.
    pub fn feed(&mut self, piece: &[u8]) {
        self.buf.extend_from_slice(piece);
    }

    /// Gives the next whole packet, or `None` if more bytes are needed.
    pub fn packet(&mut self) -> Result<Option<OwnedPacket>, BadPacket> {
        let (special, used) = match parse(&self.buf)? {
            Step::NeedMore(_) => return Ok(None),
            Step::Ready { packet: Packet::Data(_), used } => (None, used),
            Step::Ready { packet: Packet::Flush, used } => (Some(OwnedPacket::Flush), used),
            Step::Ready { packet: Packet::Delim, used } => (Some(OwnedPacket::Delim), used),
            Step::Ready { packet: Packet::ResponseEnd, used } => (Some(OwnedPacket::ResponseEnd), used),
        };
        let mut bytes = self.buf.split_to(used).freeze();
        Ok(Some(special.unwrap_or_else(|| OwnedPacket::Data(bytes.split_off(4)))))
    }

    /// Says that the stream has ended; an error if it ended inside a packet.
    pub fn finish(&self) -> Result<(), BadPacket> {
        if self.buf.is_empty() { Ok(()) } else { Err(BadPacket::Truncated) }
    }
}

/// Gives the text of a packet with which the other side gives up (`ERR …`).
pub fn remote_error(payload: &[u8]) -> Option<&[u8]> {
    Some(payload.strip_prefix(b"ERR ")?.trim_ascii_end())
}

/// Gives the four length digits of a packet with `payload` bytes (at most [`MAX_DATA`]).
fn length(payload: usize) -> [u8; 4] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let total = payload + 4;
    [12, 8, 4, 0].map(|shift| DIGITS[total >> shift & 15])
}

/// Appends one packet. A payload above [`MAX_DATA`] is cut: only the text of an error can get that long.
pub fn data(out: &mut Vec<u8>, payload: &[u8]) {
    let payload = &payload[..payload.len().min(MAX_DATA)];
    out.extend_from_slice(&length(payload.len()));
    out.extend_from_slice(payload);
}

/// Appends one packet with a line of text, LF added.
pub fn text(out: &mut Vec<u8>, line: impl AsRef<[u8]>) {
    let line = line.as_ref();
    let line = &line[..line.len().min(MAX_DATA - 1)];
    out.extend_from_slice(&length(line.len() + 1));
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// Appends one packet whose payload `fill` writes, without copying it twice.
pub fn with(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(FLUSH);
    fill(out);
    out.truncate(start + MAX_PACKET);
    let payload = out.len().saturating_sub(start + 4);
    out[start..start + 4].copy_from_slice(&length(payload));
}

/// Appends `payload` on a side band, split into packets of at most `max` payload bytes
/// ([`MAX_BAND`] or [`MAX_SMALL_BAND`]). Band 1 is data, 2 progress, 3 a fatal error.
pub fn band(out: &mut Vec<u8>, band: u8, payload: &[u8], max: usize) {
    for piece in payload.chunks(max.clamp(1, MAX_BAND)) {
        band_head(out, band, piece.len());
        out.extend_from_slice(piece);
    }
}

/// Appends `payload` on a side band to the packet that starts at `open` in `out`, as the last thing there, and begins new
/// ones as it fills up. However small the pieces are, the packets are full ones. For the next packet of another kind, or
/// when `out` goes away, `open` is to be emptied.
pub fn extend_band(out: &mut Vec<u8>, open: &mut Option<usize>, band: u8, mut payload: &[u8], max: usize) {
    let max = max.clamp(1, MAX_BAND);
    while !payload.is_empty() {
        let start = *open.get_or_insert_with(|| {
            band_head(out, band, 0);
            out.len() - 5
        });
        let room = max.saturating_sub(out.len() - start - 5);
        let (now, later) = payload.split_at(payload.len().min(room));
        out.extend_from_slice(now);
        payload = later;
        let len = length(out.len() - start - 4);
        out[start..start + 4].copy_from_slice(&len);
        if now.len() == room {
            *open = None;
        }
    }
}

/// Appends the five bytes before `payload` bytes (at most [`MAX_BAND`]) on a side band, for senders that
/// pass the payload itself on without copying. With 0 it is git's keep-alive packet (`0005\1`).
pub fn band_head(out: &mut Vec<u8>, band: u8, payload: usize) {
    out.extend_from_slice(&length(payload.min(MAX_BAND) + 1));
    out.push(band);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn small_pieces_make_full_packets(pieces in proptest::collection::vec(0usize..9, 0..30), max in 1usize..12) {
            let (mut out, mut open) = (Vec::new(), None);
            let whole: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|n| n as u8).collect();
            let mut rest = &whole[..];
            for len in pieces {
                let (now, later) = rest.split_at(len);
                extend_band(&mut out, &mut open, 1, now, max);
                rest = later;
            }
            let mut expected = Vec::new();
            band(&mut expected, 1, &whole, max);
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn reads_one_packet_or_says_why_not() {
        let ready = |packet, used| Ok(Step::Ready { packet, used });
        let cases: [(&[u8], Result<Step<'_>, BadPacket>); 13] = [
            (b"", Ok(Step::NeedMore(4))),
            (b"00", Ok(Step::NeedMore(2))),
            (b"0000rest", ready(Packet::Flush, 4)),
            (b"0001", ready(Packet::Delim, 4)),
            (b"0002", ready(Packet::ResponseEnd, 4)),
            (b"0003", Err(BadPacket::Length(3))),
            (b"0004", ready(Packet::Data(b""), 4)),
            (b"0006a\nx", ready(Packet::Data(b"a\n"), 6)),
            (b"000Ahello", Ok(Step::NeedMore(1))),
            (b"fff0", Ok(Step::NeedMore(MAX_DATA))),
            (b"fff1", Err(BadPacket::Length(65_517))),
            (b"-001", Err(BadPacket::LengthCharacter(*b"-001"))),
            (b"PACK", Err(BadPacket::LengthCharacter(*b"PACK"))),
        ];
        for (input, want) in cases {
            assert_eq!(parse(input), want, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_body_ends_cleanly_or_with_one_error() {
        let walk = |body: &'static [u8]| Packets::new(body).collect::<Vec<_>>();
        assert_eq!(walk(b"0005a0000"), [Ok(Packet::Data(b"a")), Ok(Packet::Flush)]);
        assert_eq!(walk(b"00000009ab"), [Ok(Packet::Flush), Err(BadPacket::Truncated)]);
        assert_eq!(walk(b"zzzz0000"), [Err(BadPacket::LengthCharacter(*b"zzzz"))]);
        assert_eq!(walk(b""), []);
        assert_eq!(Packets::new(b"").expect(), Err(BadPacket::Truncated));
    }

    #[test]
    fn writes_what_git_writes() {
        let mut out = Vec::new();
        text(&mut out, "want");
        data(&mut out, b"");
        band(&mut out, 2, b"hello", 3);
        band_head(&mut out, 1, 0);
        with(&mut out, |out| out.extend_from_slice(b"xy"));
        assert_eq!(out, b"0009want\n00040008\x02hel0007\x02lo0005\x010006xy");
    }

    #[test]
    fn cuts_what_no_packet_can_hold() {
        let long = vec![b'a'; MAX_PACKET * 2];
        for write in [
            data as fn(&mut Vec<u8>, &[u8]),
            |out, line| text(out, line),
            |out, line| with(out, |out| out.extend_from_slice(line)),
        ] {
            let mut out = Vec::new();
            write(&mut out, &long);
            assert_eq!(out.len(), MAX_PACKET);
            assert!(matches!(parse(&out), Ok(Step::Ready { used: MAX_PACKET, .. })));
        }
    }

    #[test]
    fn knows_an_error_packet() {
        assert_eq!(remote_error(b"ERR upload-pack: no\n"), Some(&b"upload-pack: no"[..]));
        assert_eq!(remote_error(b"ERRor"), None);
    }

    fn owned(packet: Packet<'_>) -> OwnedPacket {
        match packet {
            Packet::Data(payload) => OwnedPacket::Data(Bytes::copy_from_slice(payload)),
            Packet::Flush => OwnedPacket::Flush,
            Packet::Delim => OwnedPacket::Delim,
            Packet::ResponseEnd => OwnedPacket::ResponseEnd,
        }
    }

    fn read_in_pieces(bytes: &[u8], piece: usize) -> Result<Vec<OwnedPacket>, BadPacket> {
        let mut reader = Reader::new();
        let mut packets = Vec::new();
        for piece in bytes.chunks(piece) {
            reader.feed(piece);
            while let Some(packet) = reader.packet()? {
                packets.push(packet);
            }
        }
        reader.finish().map(|()| packets)
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn what_was_written_is_read(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            piece in 1usize..40,
        ) {
            let mut out = Vec::new();
            for payload in &payloads {
                data(&mut out, payload);
                out.extend_from_slice(DELIM);
            }
            let read: Result<Vec<_>, _> = Packets::new(&out).map(|packet| packet.map(owned)).collect();
            let read = read.unwrap();
            prop_assert_eq!(read.len(), payloads.len() * 2);
            for (payload, packet) in payloads.iter().zip(read.iter().step_by(2)) {
                prop_assert_eq!(packet, &OwnedPacket::Data(Bytes::copy_from_slice(payload)));
            }
            prop_assert_eq!(read_in_pieces(&out, piece).unwrap(), read);
        }

        #[test]
        fn any_bytes_are_read_without_panic_and_alike(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'0'), Just(b'1')], 0..200),
            piece in 1usize..9,
        ) {
            let whole: Result<Vec<_>, _> = Packets::new(&bytes).map(|packet| packet.map(owned)).collect();
            prop_assert_eq!(read_in_pieces(&bytes, piece), whole);
        }

        #[test]
        fn bands_carry_all_bytes(payload in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut out = Vec::new();
            band(&mut out, 1, &payload, MAX_SMALL_BAND);
            let mut joined = Vec::new();
            for packet in Packets::new(&out) {
                let Ok(Packet::Data(payload)) = packet else { panic!("not data") };
                prop_assert!(payload.len() <= MAX_SMALL_BAND + 1);
                prop_assert_eq!(payload[0], 1);
                joined.extend_from_slice(&payload[1..]);
            }
            prop_assert_eq!(joined, payload);
        }
    }
}
