//! A client's connection that has changed its protocol (WebSocket), and the primary's behind it: bytes in both directions.
//!
//! It begins only once the primary has agreed, on a connection that nothing else uses, and takes the client's connection with
//! it: the task that served requests on it serves the tunnel, in the same place. It ends with the primary's side, after
//! `limits.client_timeout` without a byte in either direction, and at once where the node drains.
//! Relies on: `wire`, which lets bytes pass unread once the connection says so. Elsewhere: asking the primary (`primary`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderValue, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::primary;
use crate::serve::connection::Connection;

/// Both ends, until the client's connection is free for it.
pub struct Tunnel {
    near: OnUpgrade,
    far: Box<dyn primary::Duplex>,
    /// Its place among what is not Git, until its end.
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tunnel")
    }
}

/// Whether a request's connection can change its protocol.
pub fn is_possible(parts: &Parts) -> bool {
    parts.version == Version::HTTP_11
        && parts.extensions.get::<OnUpgrade>().is_some()
        && parts.extensions.get::<Arc<Connection>>().is_some()
}

/// Answers that the protocol changes; the tunnel begins once that answer has gone out.
pub fn begin(
    parts: &mut Parts,
    answer: primary::Response,
    far: Box<dyn primary::Duplex>,
    place: OwnedSemaphorePermit,
) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let connection = parts.extensions.get::<Arc<Connection>>().cloned();
    if let (Some(connection), Some(near)) = (connection, parts.extensions.remove::<OnUpgrade>()) {
        connection.becomes(Tunnel { near, far, _place: place });
    }
    response
}

impl Tunnel {
    /// Carries bytes until the primary ends, or nothing moves for `patience`. Where the client ends, the primary may still send.
    pub async fn run(self, patience: Duration) -> io::Result<()> {
        let near = self.near.await.map_err(io::Error::other)?;
        let (moved, mut moves) = watch::channel(());
        let near = Noted { inner: TokioIo::new(near), moved };
        let (mut from_client, mut to_client) = tokio::io::split(near);
        let (mut from_primary, mut to_primary) = tokio::io::split(self.far);
        let up = async {
            tokio::io::copy(&mut from_client, &mut to_primary).await?;
            to_primary.shutdown().await?;
            std::future::pending::<io::Result<()>>().await
        };
        let down = async {
            tokio::io::copy(&mut from_primary, &mut to_client).await?;
            to_client.shutdown().await
        };
        let silence = async {
            // Each byte begins the wait anew.
            while tokio::time::timeout(patience, moves.changed()).await.is_ok_and(|moved| moved.is_ok()) {}
        };
        tokio::select! {
            ended = up => ended,
            ended = down => ended,
            () = silence => Ok(()),
        }
    }
}

/// The client's side, which tells when bytes pass it, in either direction.
struct Noted<S> {
    inner: S,
    moved: watch::Sender<()>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, into);
        if into.filled().len() > before {
            self.moved.send_replace(());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if written.is_ready() {
            self.moved.send_replace(());
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_noted_and_silence_is_not() {
        let (near, mut client) = tokio::io::duplex(64);
        let (moved, moves) = watch::channel(());
        let mut noted = Noted { inner: near, moved };
        assert!(!moves.has_changed().unwrap());
        client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        tokio::io::AsyncReadExt::read_exact(&mut noted, &mut byte).await.unwrap();
        assert!(moves.has_changed().unwrap());
    }
}
