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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::framing::REFUSED;
    use crate::serve::places::{Ends, Places};
    use crate::sim::mutants::found;
    use http_body_util::{BodyExt, Empty};
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    /// Sends bytes over one connection, and counts the requests that hyper finds in them behind a wire, or where a broken build has
    /// none.
    async fn requests(bytes: &[u8], is_broken: bool) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let count = AtomicUsize::new(0);
        let service = service_fn(async |request: http::Request<Incoming>| {
            let is_one = request.method().as_str() != REFUSED;
            count.fetch_add(usize::from(is_one), Ordering::Relaxed);
            let _ = request.into_body().collect().await;
            Ok::<_, io::Error>(http::Response::new(Empty::<Bytes>::new()))
        });
        let http = http1::Builder::new();
        // What hyper says of the end of a connection is not what is counted.
        if is_broken {
            let _ = http.serve_connection(TokioIo::new(socket), &service).await;
        } else {
            let places = Places::new(8, Duration::from_secs(60), Ends::default());
            let place = places.take();
            let (wire, _) = Wire::open(socket, Arc::clone(&place.connection)).await.unwrap();
            let _ = http.serve_connection(TokioIo::new(wire), &service).await;
        }
        count.into_inner()
    }

    /// What is one request to somebody in front for whom a line ends with both of its characters is no more than one here.
    fn cut_as_in_front(is_broken: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let whole = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
            assert_eq!(requests(whole, is_broken).await, 1);
            let bytes = b"GET /a HTTP/1.1\r\nHost: x\r\nX: y\n\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n";
            let found = requests(bytes, is_broken).await;
            assert!(found <= 1, "what is one request in front is {found} here");
        });
    }

    #[test]
    fn a_request_within_another_is_found() {
        cut_as_in_front(false);
        found("what is one request in front is 2 here", || cut_as_in_front(true));
    }
}
