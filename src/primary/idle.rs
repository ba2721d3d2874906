//! Silence: gives up an exchange in which no byte has moved in either direction for too long.
//!
//! Only time in which we wait for the other end counts: a client that reads slowly does not make the
//! primary look dead. Relies on: tokio's clock. Elsewhere: slowness of packs (`pack_stream`).

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};

use super::{Body, Pieces, PrimaryError};

/// Watches one exchange. Clones share the clock of its last byte.
#[derive(Clone)]
pub(super) struct Watch {
    limit: Duration,
    last: Arc<Mutex<Instant>>,
}

impl Watch {
    /// Starts now; `limit` is how long silence may last.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, last: Arc::new(Mutex::new(Instant::now())) }
    }

    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn deadline(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) + self.limit
    }

    fn silence(&self) -> PrimaryError {
        PrimaryError::Timeout(format!("not one byte in {} s", self.limit.as_secs_f32()))
    }

    /// Counts each piece of a request's body that the primary takes.
    pub(super) fn over_request(&self, body: Body) -> Body {
        let Body::Stream { pieces, length } = body else { return body };
        let watch = self.clone();
        Body::Stream { pieces: Box::pin(pieces.inspect(move |_| watch.touch())), length }
    }

    /// Waits for an answer's head as long as the request still moves.
    pub(super) async fn over_head<T>(&self, head: impl Future<Output = T>) -> Result<T, PrimaryError> {
        let mut head = std::pin::pin!(head);
        loop {
            match tokio::time::timeout_at(self.deadline(), &mut head).await {
                Ok(answer) => {
                    self.touch();
                    return Ok(answer);
                }
                Err(_) if self.deadline() <= Instant::now() => return Err(self.silence()),
                Err(_) => {}
            }
        }
    }

    /// Ends an answer's body with an error when it falls silent.
    pub(super) fn over_answer(&self, pieces: Pieces) -> Pieces {
        Box::pin(Watched { watch: self.clone(), pieces: Some(pieces), waiting: None })
    }
}

/// A body under watch; the body itself is dropped, and the request aborted, at its end.
struct Watched {
    watch: Watch,
    pieces: Option<Pieces>,
    /// Runs while we wait for the next piece.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Stream for Watched {
    type Item = Result<Bytes, PrimaryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(pieces) = &mut this.pieces else { return Poll::Ready(None) };
        if let Poll::Ready(piece) = pieces.poll_next_unpin(cx) {
            this.watch.touch();
            this.waiting = None;
            if !matches!(piece, Some(Ok(_))) {
                this.pieces = None;
            }
            return Poll::Ready(piece);
        }
        let watch = &this.watch;
        let waiting = this.waiting.get_or_insert_with(|| {
            watch.touch();
            Box::pin(tokio::time::sleep_until(watch.deadline()))
        });
        loop {
            ready!(waiting.as_mut().poll(cx));
            let deadline = watch.deadline();
            if deadline <= Instant::now() {
                break;
            }
            waiting.as_mut().reset(deadline);
        }
        this.pieces = None;
        Poll::Ready(Some(Err(this.watch.silence())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);

    /// Pieces that come after the given pauses, then silence for ever if `hang`.
    fn pieces(pauses: &[u64], hang: bool) -> Pieces {
        let pauses = pauses.to_vec();
        let paced = stream::iter(pauses).then(|pause| async move {
            sleep(pause as u32 * SECOND).await;
            Ok(Bytes::from_static(b"x"))
        });
        if hang { Box::pin(paced.chain(stream::pending())) } else { Box::pin(paced) }
    }

    #[tokio::test(start_paused = true)]
    async fn only_silence_ends_an_answer() {
        let watch = Watch::new(10 * SECOND);
        let mut calm = watch.over_answer(pieces(&[9, 9, 9, 9], false));
        let mut count = 0;
        while let Some(piece) = calm.next().await {
            piece.unwrap();
            count += 1;
            sleep(100 * SECOND).await; // a slow reader is nobody's silence
        }
        assert_eq!(count, 4);

        let mut dead = watch.over_answer(pieces(&[1], true));
        dead.next().await.unwrap().unwrap();
        let before = Instant::now();
        let error = dead.next().await.unwrap().unwrap_err();
        assert!(matches!(error, PrimaryError::Timeout(_)));
        assert!((10 * SECOND..11 * SECOND).contains(&before.elapsed()));
        assert!(dead.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_still_moves_keeps_the_exchange_alive() {
        let watch = Watch::new(10 * SECOND);
        let body = pieces(&[8; 5], false).map(|piece| piece.map_err(std::io::Error::other));
        let Body::Stream { mut pieces, .. } =
            watch.over_request(Body::Stream { pieces: Box::pin(body), length: None })
        else {
            panic!()
        };
        let head = watch.over_head(async move {
            while pieces.next().await.is_some() {}
            sleep(9 * SECOND).await;
        });
        head.await.unwrap();

        let before = Instant::now();
        watch.over_head(std::future::pending::<()>()).await.unwrap_err();
        assert!((10 * SECOND..11 * SECOND).contains(&before.elapsed()));
    }
}
