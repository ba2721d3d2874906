//! Bodies of requests and answers: streams with a bounded amount in flight.
//!
//! Relies on: the sender of a body polling it only as fast as the other end takes it.
//! Elsewhere: silence (`idle`), what is in a body (`client`, `pack_stream`).

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};

use super::PrimaryError;

/// The pieces of an answer as they arrive. A break in the middle is an error, never an end.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, PrimaryError>> + Send>>;

/// The pieces of a request's body; an error means that the client broke off.
pub type RequestPieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A request's body.
#[derive(Default)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// The whole body, in memory.
    Whole(Bytes),
    /// To be read as the primary takes it. If the stream ends with an error, or before `length`, the primary
    /// sees a broken request, never a short one.
    Stream {
        /// The pieces.
        pieces: RequestPieces,
        /// How many bytes, if the client said so.
        length: Option<u64>,
    },
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::Stream { length, .. } => write!(f, "Stream({length:?})"),
        }
    }
}

impl Body {
    /// The number of bytes, if it is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Stream { length, .. } => *length,
        }
    }

    /// The pieces; where a length was promised they end with an error unless they keep it.
    pub(super) fn into_pieces(self) -> RequestPieces {
        match self {
            Self::Empty => Box::pin(stream::empty()),
            Self::Whole(bytes) => Box::pin(stream::iter([Ok(bytes)])),
            Self::Stream { pieces, length: None } => pieces,
            Self::Stream { pieces, length: Some(length) } => exactly(pieces, length),
        }
    }
}

fn exactly(pieces: RequestPieces, length: u64) -> RequestPieces {
    let broken =
        || io::Error::new(io::ErrorKind::UnexpectedEof, "the body has not the length that was promised");
    Box::pin(stream::try_unfold((pieces, length), move |(mut pieces, left)| async move {
        match pieces.next().await {
            Some(piece) => {
                let piece = piece?;
                let left = left.checked_sub(piece.len() as u64).ok_or_else(broken)?;
                Ok(Some((piece, (pieces, left))))
            }
            None if left == 0 => Ok(None),
            None => Err(broken()),
        }
    }))
}

/// Reads a small answer whole; `None` if it is longer than `most` bytes (the rest is not read).
pub(super) async fn collect(mut pieces: Pieces, most: usize) -> Result<Option<Bytes>, PrimaryError> {
    let mut whole = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        if whole.len() + piece.len() > most {
            return Ok(None);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Some(whole.freeze()))
}

/// Reads what is left of an answer that has already said everything, so that its connection can be used again;
/// not for long, and not much.
pub(super) async fn drain(pieces: &mut Pieces) {
    let mut left: usize = 64 * 1024;
    let rest = async {
        while let Some(Ok(piece)) = pieces.next().await {
            match left.checked_sub(piece.len()) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // When the time is over the connection is closed, as when there are too many bytes.
    let _ = tokio::time::timeout(Duration::from_millis(200), rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(pieces: &[&'static str], length: Option<u64>) -> io::Result<Vec<u8>> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        let mut all = Vec::new();
        let mut pieces = Body::Stream { pieces: Box::pin(stream::iter(pieces)), length }.into_pieces();
        while let Some(piece) = pieces.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_promised_length_is_kept_or_the_body_breaks() {
        assert_eq!(sent(&["ab", "c"], None).await.unwrap(), b"abc");
        assert_eq!(sent(&["ab", "c"], Some(3)).await.unwrap(), b"abc");
        assert_eq!(sent(&[], Some(0)).await.unwrap(), b"");
        assert!(sent(&["ab"], Some(3)).await.is_err());
        assert!(sent(&["ab", "cd"], Some(3)).await.is_err());
    }

    #[tokio::test]
    async fn only_small_answers_are_held() {
        let pieces =
            |n| -> Pieces { Box::pin(stream::iter((0..n).map(|_| Ok(Bytes::from_static(b"1234"))))) };
        assert_eq!(collect(pieces(2), 8).await.unwrap().unwrap(), "12341234");
        assert_eq!(collect(pieces(3), 8).await.unwrap(), None);
        let broken: Pieces =
            Box::pin(stream::iter([Ok(Bytes::new()), Err(PrimaryError::Timeout(String::new()))]));
        assert!(collect(broken, 8).await.is_err());
    }
}
