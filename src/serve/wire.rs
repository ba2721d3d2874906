//! The bytes of one connection on their way from the client to hyper and back.
//!
//! Towards hyper, HTTP/1 requests are read by [`Framing`] first, and a head is handed over only when it is whole and
//! sound. Towards the client, it is noted when the client takes nothing, so that others can decide how long that goes on.
//! Relies on: hyper reading only as far as it can use what it reads. Elsewhere: who waits how long (`connection`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::serve::connection::Connection;
use crate::serve::framing::{Framing, Step};

/// What HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much is read at a time where bytes are looked at.
const PIECE: usize = 8 << 10;

/// A client's socket as hyper reads and writes it.
pub struct Wire {
    socket: TcpStream,
    connection: Arc<Connection>,
    /// Read but not yet handed over.
    held: BytesMut,
    /// How many of those are fine.
    fine: usize,
    /// `None` in HTTP/2, whose framing hyper reads strictly enough.
    framing: Option<Framing>,
    /// Set once a request was refused: nothing after it is read.
    refused: bool,
    /// The client does not take what was written.
    blocked: bool,
}

impl Wire {
    /// Reads as much as tells the version apart; true: HTTP/2. An end before that is an error.
    pub async fn open(mut socket: TcpStream, connection: Arc<Connection>) -> io::Result<(Self, bool)> {
        let mut held = BytesMut::with_capacity(PIECE);
        let modern = loop {
            let n = held.len().min(PREFACE.len());
            if held[..n] != PREFACE[..n] {
                break false;
            }
            if n == PREFACE.len() {
                break true;
            }
            if socket.read_buf(&mut held).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let fine = if modern { held.len() } else { 0 };
        let framing = (!modern).then(Framing::default);
        Ok((Self { socket, connection, held, fine, framing, refused: false, blocked: false }, modern))
    }

    /// Notes whether the client takes what is written.
    fn note<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if self.blocked != written.is_pending() {
            self.blocked = written.is_pending();
            self.connection.blocked(self.blocked);
        }
        written
    }

    /// Looks at the bytes that are held, until some are fine or none are left that say more.
    fn look(&mut self) -> io::Result<()> {
        let Some(framing) = &mut self.framing else {
            self.fine = self.held.len();
            return Ok(());
        };
        while self.fine == 0 {
            let in_head = framing.is_in_head();
            match framing.step(&self.held) {
                Ok(Step::Pass(n)) => self.fine = n,
                Ok(Step::Skip(n)) => self.held.advance(n),
                Ok(Step::More) => return Ok(()),
                Err(bad) => {
                    tracing::debug!(why = %bad, "a request was refused before it was read");
                    self.refused = true;
                    self.held.clear();
                    if !in_head {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, bad));
                    }
                    self.held.extend_from_slice(&bad.stand_in());
                    self.fine = self.held.len();
                }
            }
        }
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.framing.is_some() && this.connection.is_tunnel() {
            // What was held back as the beginning of a request goes on as it is.
            this.framing = None;
        }
        loop {
            if this.fine == 0 && !this.held.is_empty() && !this.refused {
                this.look()?;
            }
            if this.fine > 0 {
                let n = this.fine.min(into.remaining());
                into.put_slice(&this.held[..n]);
                this.held.advance(n);
                this.fine -= n;
                return Poll::Ready(Ok(()));
            }
            // Behind a refused request nothing counts. The client's end still does, but for that its bytes have to go.
            if this.refused {
                this.held.resize(PIECE, 0);
                let mut waste = ReadBuf::new(&mut this.held);
                let read = Pin::new(&mut this.socket).poll_read(cx, &mut waste);
                let n = waste.filled().len();
                this.held.clear();
                ready!(read)?;
                if n == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            // A body goes straight through, as far as it is known to go.
            let unseen = this.framing.as_ref().map_or(u64::MAX, Framing::unseen);
            if this.held.is_empty() && unseen > 0 {
                let before = into.filled().len();
                let most = usize::try_from(unseen).unwrap_or(usize::MAX);
                if most >= into.remaining() {
                    ready!(Pin::new(&mut this.socket).poll_read(cx, into))?;
                } else {
                    let mut limited = ReadBuf::new(into.initialize_unfilled_to(most));
                    ready!(Pin::new(&mut this.socket).poll_read(cx, &mut limited))?;
                    let n = limited.filled().len();
                    into.advance(n);
                }
                let n = into.filled().len() - before;
                if let Some(framing) = &mut this.framing {
                    framing.passed(n as u64);
                }
                return Poll::Ready(Ok(()));
            }
            let before = this.held.len();
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.socket).poll_read(cx, &mut piece))?;
            this.held.extend_from_slice(piece.filled());
            if this.held.len() == before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, pieces);
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
