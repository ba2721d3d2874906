//! The body of an upload-pack request: read whole within limits, and kept as sent so that it can be passed on unchanged.
//!
//! Clients compress bodies over 1 KiB, so gzip is a must; a small compressed body must not become a large plain one.

use std::io::Cursor;

use async_compression::tokio::bufread::GzipDecoder;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, header};
use tokio::io::AsyncReadExt;

use crate::config::Limits;
use crate::serve::error::Failure;

/// As sent, at most: git's own http-backend takes the same (`GIT_HTTP_MAX_REQUEST_BUFFER`).
const MAX_SENT: usize = 10 << 20;

/// A request body in both forms.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The bytes as they came, for the primary.
    pub raw: Bytes,
    /// The request.
    pub plain: Bytes,
}

/// Reads the body and inflates it where `headers` say so, within the limits.
pub async fn read(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Sent, Failure> {
    let raw = whole(body, limits).await?;
    let encoding = headers.get(header::CONTENT_ENCODING).map(|v| v.as_bytes());
    let plain = match encoding {
        None | Some(b"identity") => raw.clone(),
        Some(b"gzip" | b"x-gzip") => inflate(&raw, limits.request).await?,
        Some(_) => {
            return Err(Failure::Malformed("this Content-Encoding is not known; send gzip or none".into()));
        }
    };
    Ok(Sent { raw, plain })
}

/// The body as sent; a client that sends nothing for too long is cut off.
async fn whole(body: Body, limits: &Limits) -> Result<Bytes, Failure> {
    let mut pieces = body.into_data_stream();
    let mut raw = BytesMut::new();
    loop {
        let next = tokio::time::timeout(limits.client_timeout, pieces.next());
        match next.await.map_err(|_| Failure::Malformed("the rest of the body did not come".into()))? {
            Some(Ok(piece)) if raw.len() + piece.len() > MAX_SENT => {
                return Err(Failure::TooLarge("more than 10 MiB"));
            }
            Some(Ok(piece)) => raw.extend_from_slice(&piece),
            Some(Err(_)) => return Err(Failure::Malformed("the body ended early".into())),
            None => return Ok(raw.freeze()),
        }
    }
}

async fn inflate(raw: &Bytes, most: u64) -> Result<Bytes, Failure> {
    let too_large = Failure::TooLarge("when inflated it is above the setting limits.request");
    // A gzip file ends with the length of what it holds: room for that is made once, and an honest bomb ends here.
    let length = raw.last_chunk().filter(|_| raw.starts_with(&[0x1f, 0x8b]));
    let stated = length.map_or(0, |length| u64::from(u32::from_le_bytes(*length)));
    if stated > most {
        return Err(too_large);
    }
    // Deflate packs at most a thousand bytes into one, so a lie about the length makes little room.
    let room = stated.min(raw.len() as u64 * 1032) as usize;
    let (mut plain, mut piece) = (Vec::with_capacity(room), vec![0; 64 << 10]);
    let mut decoder = GzipDecoder::new(Cursor::new(raw));
    loop {
        let read = decoder.read(&mut piece).await;
        let n =
            read.map_err(|_| Failure::Malformed("the body is not the gzip that its header says".into()))?;
        // Looked at before it is taken, so that a bomb never makes room for more than the limit.
        match piece.get(..n) {
            None | Some([]) => return Ok(plain.into()),
            Some(more) if (plain.len() + more.len()) as u64 > most => {
                return Err(too_large);
            }
            Some(more) => plain.extend_from_slice(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::tokio::bufread::GzipEncoder;

    async fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        GzipEncoder::new(Cursor::new(plain)).read_to_end(&mut out).await.unwrap();
        out
    }

    fn headers(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_ENCODING, http::HeaderValue::from_static(encoding))])
    }

    fn limits() -> Limits {
        Limits { request: 1 << 20, ..crate::config::Settings::default().limits }
    }

    #[tokio::test]
    async fn both_forms_are_kept() {
        let sent = gzip(b"0000").await;
        let body = read(&headers("gzip"), Body::from(sent.clone()), &limits()).await.unwrap();
        assert_eq!((&body.raw[..], &body.plain[..]), (&sent[..], &b"0000"[..]));
    }

    #[tokio::test]
    async fn a_bomb_is_refused() {
        let sent = gzip(&vec![0; (1 << 20) + 1]).await;
        assert!(sent.len() < 100_000);
        let error = read(&headers("gzip"), Body::from(sent), &limits()).await.unwrap_err();
        assert!(matches!(error, Failure::TooLarge(_)), "{error}");
    }

    #[tokio::test]
    async fn oversized_and_broken_bodies_are_told_apart() {
        let error = read(&HeaderMap::new(), Body::from(vec![0; MAX_SENT + 1]), &limits()).await.unwrap_err();
        assert!(matches!(error, Failure::TooLarge(_)), "{error}");
        let error = read(&headers("gzip"), Body::from("plain"), &limits()).await.unwrap_err();
        assert!(matches!(error, Failure::Malformed(_)), "{error}");
        let error = read(&headers("br"), Body::from("plain"), &limits()).await.unwrap_err();
        assert!(matches!(error, Failure::Malformed(_)), "{error}");
    }
}
