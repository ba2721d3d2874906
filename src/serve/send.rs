//! The stream of one `packfile` section: a blocking thread lays the pack out, the client reads it at its own pace.
//!
//! The thread and the connection are joined by a short queue of fixed pieces, so a slow reader holds a few hundred
//! kilobytes and one thread, whatever the repository's size. While the thread thinks or waits for the bucket, the
//! stream sends keep-alive packets.

use std::convert::Infallible;
use std::io::{self, Write};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::budget::Room;
use crate::git::pkt;
use crate::text::chain;

/// What is handed over at a time: four full side-band packets.
const PIECE: usize = 256 << 10;
/// Pieces between the thread and the connection.
const QUEUE: usize = 4;
/// A stream that has been silent for so long says that it is alive (git's `uploadpack.keepAlive` has the same).
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// An empty packet on band 1: clients skip it (pack-protocol: keep-alive).
const EMPTY_BAND: &[u8] = b"0005\x01";

/// How pack bytes are framed for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Side-band packets of at most so many payload bytes.
    Band(usize),
    /// The bare pack, as clients without side-band want it.
    Bare,
}

/// The write end: frames what is written and queues it.
pub struct Pipe {
    runtime: Handle,
    patience: Duration,
    queue: mpsc::Sender<io::Result<Bytes>>,
    stopped: CancellationToken,
    piece: Vec<u8>,
    /// Where the last packet of pack bytes starts in `piece`, if more of them belong to it.
    open: Option<usize>,
    framing: Framing,
    /// Pack bytes that went through.
    pub sent: u64,
}

impl Pipe {
    /// Cancelled when the client has left.
    pub fn stopped(&self) -> CancellationToken {
        self.stopped.clone()
    }

    /// A line for the client's user, on band 2.
    pub fn progress(&mut self, line: &str) -> io::Result<()> {
        if let Framing::Band(max) = self.framing {
            self.open = None;
            pkt::band(&mut self.piece, 2, line.as_bytes(), max);
        }
        Ok(())
    }

    /// Bytes outside the framing: section headers before the pack, the flush after it.
    pub fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open = None;
        self.piece.extend_from_slice(bytes);
        self.spill(PIECE)
    }

    fn spill(&mut self, at_least: usize) -> io::Result<()> {
        if self.piece.len() < at_least || self.piece.is_empty() {
            return Ok(());
        }
        self.open = None;
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE + (PIECE >> 2)));
        // A client that takes nothing for so long has gone without saying so, or holds a thread for no good.
        let sent = self.queue.send_timeout(Ok(piece.into()), self.patience);
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone");
        self.runtime.block_on(sent).map_err(gone)
    }

    fn fail(mut self, error: io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return;
        }
        tracing::error!(error = chain(&error), "a pack could not be sent to its end; the client was told");
        if let Framing::Band(max) = self.framing {
            pkt::band(
                &mut self.piece,
                3,
                b"packmirror: the pack could not be read to its end; try again\n",
                max,
            );
        }
        let _ = self.spill(1);
        // The missing last chunk is what tells clients without a side band.
        let _ = self.queue.blocking_send(Err(error));
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.framing {
            Framing::Band(max) => pkt::extend_band(&mut self.piece, &mut self.open, 1, bytes, max),
            Framing::Bare => self.piece.extend_from_slice(bytes),
        }
        self.sent += bytes.len() as u64;
        self.spill(PIECE)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spill(1)
    }
}

/// Runs `job` on a blocking thread and streams what it writes. An error of the job ends the stream without its end.
///
/// A client that takes nothing for `patience` is cut off.
pub fn stream(
    framing: Framing,
    patience: Duration,
    job: impl FnOnce(&mut Pipe) -> io::Result<()> + Send + 'static,
) -> Body {
    let (queue, pieces) = mpsc::channel(QUEUE);
    let runtime = Handle::current();
    let stopped = CancellationToken::new();
    // Dropped with the body, which is dropped when the client leaves.
    let left = stopped.clone().drop_guard();
    tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe {
            runtime,
            patience,
            queue,
            stopped,
            piece: Vec::with_capacity(64 << 10),
            open: None,
            framing,
            sent: 0,
        };
        match job(&mut pipe).and_then(|()| pipe.flush()) {
            Ok(()) => {}
            Err(error) => pipe.fail(error),
        }
    });
    Body::from_stream(alive(pieces, framing).inspect(move |_| _ = &left))
}

/// The pieces, with keep-alive packets where nothing came for a while.
fn alive(
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    framing: Framing,
) -> impl Stream<Item = io::Result<Bytes>> {
    futures::stream::unfold((pieces, false), move |(mut pieces, begun)| async move {
        loop {
            match tokio::time::timeout(KEEP_ALIVE, pieces.recv()).await {
                Ok(piece) => return piece.map(|piece| (piece, (pieces, true))),
                // Before the first piece no section is open yet, and a bare pack has no room for other bytes.
                Err(_) if begun && framing != Framing::Bare => {
                    return Some((Ok(Bytes::from_static(EMPTY_BAND)), (pieces, begun)));
                }
                Err(_) => {}
            }
        }
    })
}

/// A body that keeps its room until it is sent.
pub fn holding(bytes: Vec<u8>, room: Room) -> Body {
    let once = futures::stream::once(async move { Ok::<_, Infallible>(Bytes::from(bytes)) });
    Body::from_stream(once.inspect(move |_| _ = &room))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(body: Body) -> Result<Vec<u8>, axum::Error> {
        let mut all = Vec::new();
        let mut stream = body.into_data_stream();
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn pack_bytes_are_framed_and_sections_are_not() {
        let body = stream(Framing::Band(999), Duration::from_secs(60), |pipe| {
            pipe.plain(b"000dpackfile\n")?;
            pipe.write_all(b"PACK")?;
            pipe.plain(b"0000")
        });
        assert_eq!(collect(body).await.unwrap(), b"000dpackfile\n0009\x01PACK0000");
    }

    #[tokio::test]
    async fn a_failed_pack_does_not_end_like_a_whole_one() {
        let body = stream(Framing::Bare, Duration::from_secs(60), |pipe| {
            pipe.write_all(b"PACK")?;
            Err(io::Error::other("no such block"))
        });
        assert!(collect(body).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_keep_alives() {
        let (queue, pieces) = mpsc::channel(1);
        queue.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        let mut stream = Box::pin(alive(pieces, Framing::Band(999)));
        assert_eq!(stream.next().await.unwrap().unwrap(), "x");
        assert_eq!(stream.next().await.unwrap().unwrap(), EMPTY_BAND);
        drop(queue);
        assert!(stream.next().await.is_none());
    }
}
