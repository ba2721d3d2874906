//! A pack on its way from the primary: side bands sorted out, slowness and breaks noticed.
//!
//! Relies on: pieces that end with an error when the connection breaks. A pack has ended well only after the flush
//! packet behind it. Elsewhere: checking what the pack holds (`pack::index`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use gix_hash::Kind as HashKind;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use crate::git::pkt::{self, OwnedPacket};
use crate::git::reply::{Event, FetchReply};

use super::body::drain;
use super::error::{LONGEST_TEXT, plain};
use super::{Pieces, PrimaryError, Timeouts};

/// Below this many bytes a second over [`super::Timeouts::slow`] a pack is given up.
const LEAST_BYTES_PER_SECOND: u64 = 1000;
/// The most bytes of an answer that are no bytes of the pack: progress, keep-alives, acknowledgments.
const MOST_WORDS: usize = 16 << 20;

/// Takes the primary's progress, line by line, without control characters.
pub type Progress = Box<dyn FnMut(&str) + Send>;

/// Packets of an answer as they arrive.
pub(super) struct Packets {
    pieces: Pieces,
    reader: pkt::Reader,
    ended: bool,
}

impl Packets {
    /// Reads an answer's body.
    pub(super) fn over(pieces: Pieces) -> Self {
        Self { pieces, reader: pkt::Reader::new(), ended: false }
    }

    /// The next packet; `None` at an end between packets.
    fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<OwnedPacket>, PrimaryError>> {
        loop {
            match self.reader.packet()? {
                Some(packet) => return Poll::Ready(Ok(Some(packet))),
                None if self.ended => {
                    self.reader.finish()?;
                    return Poll::Ready(Ok(None));
                }
                None => {}
            }
            match ready!(self.pieces.poll_next_unpin(cx)) {
                Some(Ok(piece)) => self.reader.feed(&piece),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => self.ended = true,
            }
        }
    }

    /// Reads what is left behind the last packet of interest.
    pub(super) async fn drain(mut self) {
        drain(&mut self.pieces).await;
    }

    /// The next packet of an answer that has not ended; the primary's `ERR` is an error.
    pub(super) async fn expect(&mut self) -> Result<OwnedPacket, PrimaryError> {
        let packet =
            std::future::poll_fn(|cx| self.poll_packet(cx)).await?.ok_or_else(PrimaryError::broke_off)?;
        match &packet {
            OwnedPacket::Data(payload) => match pkt::remote_error(payload) {
                Some(text) => Err(PrimaryError::Remote(plain(text, LONGEST_TEXT))),
                None => Ok(packet),
            },
            _ => Ok(packet),
        }
    }
}

/// The bytes of a pack, side bands removed; ends only if the primary said that it was all.
///
/// An error of reading holds a [`PrimaryError`], see [`Pack::error`]. Dropping it aborts the fetch.
pub struct Pack {
    packets: Packets,
    reply: FetchReply,
    current: Bytes,
    progress: Option<Progress>,
    line: Vec<u8>,
    pace: Pace,
    state: State,
    /// When the answer began, and how long its first byte of a pack may take.
    begun: Instant,
    first_byte: Duration,
    /// Bytes that were none of the pack.
    words: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was said yet: the primary may still refuse.
    Before,
    Coming,
    /// All is here; what follows is only the end of the connection's part.
    Whole,
    Ended,
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pack").finish_non_exhaustive()
    }
}

impl Pack {
    /// Reads an answer up to where its pack, or the progress before it, begins.
    pub(super) async fn open(
        packets: Packets,
        hash: HashKind,
        progress: Option<Progress>,
        timeouts: Timeouts,
    ) -> Result<Self, PrimaryError> {
        let pace = Pace::new(timeouts.slow, "of a pack");
        let mut pack = Self {
            packets,
            reply: FetchReply::new(hash),
            current: Bytes::new(),
            progress,
            line: Vec::new(),
            pace,
            state: State::Before,
            begun: Instant::now(),
            first_byte: timeouts.first_byte,
            words: 0,
        };
        std::future::poll_fn(|cx| {
            while pack.state == State::Before {
                ready!(pack.poll_packet(cx))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
        .map(|()| pack)
    }

    /// Waits for the first byte of the pack, or for its end.
    pub async fn begun(&mut self) -> Result<(), PrimaryError> {
        std::future::poll_fn(|cx| {
            while self.current.is_empty() && matches!(self.state, State::Before | State::Coming) {
                ready!(self.poll_packet(cx))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// The primary's error inside an error of reading from a pack.
    pub fn error(error: &io::Error) -> Option<&PrimaryError> {
        error.get_ref()?.downcast_ref()
    }

    /// Takes one packet.
    fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PrimaryError>> {
        let Poll::Ready(packet) = self.packets.poll_packet(cx) else {
            self.pace.pending();
            return Poll::Pending;
        };
        self.pace.ready()?;
        let packet = packet?.ok_or_else(PrimaryError::broke_off)?;
        self.count(&packet)?;
        if let Some(event) = self.reply.read(packet).map_err(PrimaryError::from)? {
            self.take(event)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Bounds what an answer says beside its pack, in bytes and in time.
    fn count(&mut self, packet: &OwnedPacket) -> Result<(), PrimaryError> {
        let bytes = match packet {
            OwnedPacket::Data(payload) if self.reply.is_pack() && payload.first() == Some(&1) => {
                return Ok(());
            }
            OwnedPacket::Data(payload) => payload.len() + 4,
            _ => 4,
        };
        self.words += bytes;
        if self.words > MOST_WORDS {
            return Err(PrimaryError::Protocol(format!(
                "more than {} MiB of progress, and the pack has not ended",
                MOST_WORDS >> 20
            )));
        }
        if self.pace.bytes.is_none() && self.begun.elapsed() > self.first_byte {
            return Err(PrimaryError::Timeout(format!(
                "no byte of a pack in {} s, only progress",
                self.first_byte.as_secs()
            )));
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), PrimaryError> {
        match event {
            Event::Pack(bytes) => {
                self.pace.bytes(bytes.len());
                self.current = bytes;
                self.state = State::Coming;
            }
            Event::Progress(text) => {
                self.say(&text);
                self.state = State::Coming;
            }
            Event::End { pack: true } => {
                self.end_line();
                self.state = State::Whole;
            }
            Event::End { pack: false } => return Err(PrimaryError::Protocol("it sent no pack".into())),
            Event::Shallow(_) | Event::Unshallow(_) => return Err(PrimaryError::Shallow),
            Event::Ack(_) | Event::Nak | Event::Ready | Event::WantedRef { .. } => {}
        }
        Ok(())
    }

    /// Waits for the end of the answer behind a whole pack, so that the connection can be used again. One that
    /// breaks only now has broken nothing.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PrimaryError>> {
        match ready!(self.packets.poll_packet(cx)) {
            Ok(None) => {}
            Err(error) if error.is_transient() => {}
            Ok(Some(_)) | Err(_) => {
                return Poll::Ready(Err(PrimaryError::Protocol("something follows the pack".into())));
            }
        }
        self.state = State::Ended;
        Poll::Ready(Ok(()))
    }

    /// Collects progress into lines: they end with CR or LF and come in any pieces.
    fn say(&mut self, text: &[u8]) {
        for byte in text {
            match byte {
                b'\r' | b'\n' => self.end_line(),
                _ if self.line.len() < LONGEST_TEXT => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = plain(&std::mem::take(&mut self.line), LONGEST_TEXT);
        if let (false, Some(progress)) = (line.is_empty(), &mut self.progress) {
            progress(&line);
        }
    }
}

impl AsyncRead for Pack {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() && self.state != State::Ended {
            let step = match self.state {
                State::Before | State::Coming => self.poll_packet(cx),
                State::Whole | State::Ended => self.poll_end(cx),
            };
            ready!(step).map_err(io::Error::other)?;
        }
        let n = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current.split_to(n));
        Poll::Ready(Ok(()))
    }
}

/// Measures how fast a pack comes, from its first byte on, counting only time in which we waited for it.
pub(super) struct Pace {
    limit: Duration,
    what: &'static str,
    waiting: Option<Instant>,
    waited: Duration,
    /// Since the last look; `None` before the first byte.
    bytes: Option<u64>,
}

impl Pace {
    /// Expects 1,000 bytes a second over `limit`; `what` says of what.
    pub(super) fn new(limit: Duration, what: &'static str) -> Self {
        Self { limit, what, waiting: None, waited: Duration::ZERO, bytes: None }
    }

    pub(super) fn pending(&mut self) {
        self.waiting.get_or_insert_with(Instant::now);
    }

    pub(super) fn bytes(&mut self, n: usize) {
        *self.bytes.get_or_insert(0) += n as u64;
    }

    pub(super) fn ready(&mut self) -> Result<(), PrimaryError> {
        let (Some(since), Some(bytes)) = (self.waiting.take(), self.bytes) else { return Ok(()) };
        self.waited += since.elapsed();
        if self.waited < self.limit {
            return Ok(());
        }
        if bytes < LEAST_BYTES_PER_SECOND.saturating_mul(self.waited.as_secs()) {
            return Err(PrimaryError::Timeout(format!(
                "{bytes} bytes {} in {} s",
                self.what,
                self.waited.as_secs()
            )));
        }
        (self.waited, self.bytes) = (Duration::ZERO, Some(0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use std::sync::{Arc, Mutex};
    use tokio::io::AsyncReadExt;

    const SLOW: Duration = Duration::from_secs(60);

    fn pieces(body: Vec<u8>, size: usize) -> Pieces {
        let pieces: Vec<_> = body.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Box::pin(stream::iter(pieces))
    }

    /// Opens a pack whose answer begins with the `packfile` line that all of them have.
    async fn open(pieces: Pieces, progress: Option<Progress>) -> Result<Pack, PrimaryError> {
        let head = stream::iter([Ok(Bytes::from_static(b"000dpackfile\n"))]);
        let timeouts = Timeouts { slow: SLOW, ..Timeouts::default() };
        Pack::open(Packets::over(Box::pin(head.chain(pieces))), HashKind::Sha1, progress, timeouts).await
    }

    async fn read(pieces: Pieces) -> (Vec<u8>, Result<(), PrimaryError>, Vec<String>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = lines.clone();
        let progress: Progress = Box::new(move |line| seen.lock().unwrap().push(line.to_owned()));
        let mut bytes = Vec::new();
        let result = match open(pieces, Some(progress)).await {
            Ok(mut pack) => {
                let result = pack.read_to_end(&mut bytes).await;
                result.map(drop).map_err(|error| Pack::error(&error).unwrap().clone())
            }
            Err(error) => Err(error),
        };
        let lines = lines.lock().unwrap().clone();
        (bytes, result, lines)
    }

    fn whole() -> Vec<u8> {
        let mut body = Vec::new();
        pkt::band(&mut body, 2, b"Counting: 1\rCount", pkt::MAX_BAND);
        pkt::band(&mut body, 1, b"PACK", pkt::MAX_BAND);
        pkt::band(&mut body, 1, b"", pkt::MAX_BAND);
        body.extend_from_slice(b"0005\x01");
        pkt::band(&mut body, 2, b"ing: 2\ndone\x1b[1m", pkt::MAX_BAND);
        pkt::band(&mut body, 1, &[7; 3000], 995);
        body.extend_from_slice(pkt::FLUSH);
        body
    }

    #[tokio::test]
    async fn bands_are_sorted_however_they_are_cut() {
        let expected = [&b"PACK"[..], &[7; 3000]].concat();
        for size in [1, 2, 3, 7, 100, 100_000] {
            let (bytes, result, lines) = read(pieces(whole(), size)).await;
            assert_eq!(result, Ok(()));
            assert_eq!(bytes, expected);
            assert_eq!(lines, ["Counting: 1", "Counting: 2", "done [1m"]);
        }
    }

    #[tokio::test]
    async fn only_a_flush_is_an_end() {
        let body = whole();
        for cut in 0..body.len() {
            let (_, result, _) = read(pieces(body[..cut].to_vec(), 1000)).await;
            assert!(matches!(result, Err(PrimaryError::Unreachable(_))), "cut at {cut}: {result:?}");
        }
        let lost = || Err(PrimaryError::Unreachable("reset".into()));
        let (bytes, result, _) = read(Box::pin(stream::iter([Ok(Bytes::from(body.clone())), lost()]))).await;
        assert!(result.is_ok() && bytes.len() == 3004, "a break behind the end breaks nothing");
        let (_, result, _) =
            read(Box::pin(stream::iter([Ok(Bytes::from_static(b"0005\x01")), lost()]))).await;
        assert_eq!(result, Err(PrimaryError::Unreachable("reset".into())));
        let (_, result, _) = read(pieces([&body[..], b"0005x"].concat(), 10)).await;
        assert!(matches!(result, Err(PrimaryError::Protocol(_))));
    }

    #[tokio::test]
    async fn the_primarys_words_and_nonsense_are_errors() {
        let mut dying = Vec::new();
        pkt::band(&mut dying, 1, b"PACK", pkt::MAX_BAND);
        pkt::band(&mut dying, 3, b"aborting due to possible repository corruption\n", pkt::MAX_BAND);
        let (bytes, result, _) = read(pieces(dying, 10)).await;
        assert_eq!(bytes, b"PACK");
        assert_eq!(
            result,
            Err(PrimaryError::Remote("aborting due to possible repository corruption".into()))
        );
        for nonsense in ["0006\x04x", "0004", "zzzz", "0001", "0002", "<html>"] {
            let (_, result, _) = read(pieces(nonsense.into(), 10)).await;
            assert!(matches!(result, Err(PrimaryError::Protocol(_))), "{nonsense}: {result:?}");
        }
    }

    /// One band packet of `size` bytes each `pause`, `count` of them.
    fn paced(size: usize, pause: Duration, count: usize) -> Pieces {
        let mut packet = Vec::new();
        pkt::band(&mut packet, 1, &vec![1; size], pkt::MAX_BAND);
        let packets = (0..count).map(move |_| Ok(Bytes::from(packet.clone())));
        let end = stream::iter([Ok(Bytes::from_static(pkt::FLUSH))]);
        let paced = stream::iter(packets).then(move |packet| async move {
            tokio::time::sleep(pause).await;
            packet
        });
        Box::pin(paced.chain(end))
    }

    #[tokio::test(start_paused = true)]
    async fn a_pack_that_trickles_is_given_up() {
        let second = Duration::from_secs(1);
        let (bytes, result, _) = read(paced(100, second, 1000)).await;
        assert!(matches!(result, Err(PrimaryError::Timeout(_))));
        assert!((5_000..7_000).contains(&bytes.len()), "after a minute, not before: {}", bytes.len());
        let (_, result, _) = read(paced(1100, second, 1000)).await;
        assert_eq!(result, Ok(()));

        // Thinking time before the pack, with keep-alive packets on the progress band, is not slowness.
        let thinking = stream::iter(0..600).then(|_| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(Bytes::from_static(b"0005\x02"))
        });
        let (_, result, _) = read(Box::pin(thinking.chain(paced(2000, second, 100)))).await;
        assert_eq!(result, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_bounded_in_bytes_and_in_time() {
        let forever = |pause: u64, line: &'static [u8]| -> Pieces {
            Box::pin(stream::iter(0..).then(move |_: u32| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                Ok(Bytes::from_static(line))
            }))
        };
        let (_, result, _) = read(forever(5, b"0009\x02abc\n")).await;
        assert!(
            matches!(&result, Err(PrimaryError::Timeout(words)) if words.contains("only progress")),
            "{result:?}"
        );
        let (_, result, _) = read(forever(0, b"0009\x02abc\n")).await;
        assert!(
            matches!(&result, Err(PrimaryError::Protocol(words)) if words.contains("16 MiB")),
            "{result:?}"
        );
        // Words between the bytes of a pack count as well.
        let mixed = forever(0, b"0006\x01P0009\x02abc\n");
        assert!(matches!(read(mixed).await.1, Err(PrimaryError::Protocol(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_not_the_primarys_fault() {
        let mut pack = open(paced(100, Duration::from_millis(10), 500), None).await.unwrap();
        let mut buf = [0; 100];
        let mut all = 0;
        loop {
            match pack.read(&mut buf).await.unwrap() {
                0 => break,
                n => all += n,
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        assert_eq!(all, 50_000);
    }
}
