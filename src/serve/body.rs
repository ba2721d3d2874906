//! The body of an upload-pack request: a beginning read for anybody, the rest for those who may read the repository.
//!
//! Clients compress bodies over 1 KiB, so gzip has to be understood; a small compressed body must not become a large plain one.
//! Nearly all requests fit into the beginning. What does not is read only with the primary's yes in hand, or goes on to
//! the primary as it comes. The bytes are kept as sent so that they can be passed on unchanged, and every byte that is held
//! is part of a budget. Relies on: `listen` for clients that stop in the middle.

use std::io::Cursor;
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, header};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::compute::blocking;
use crate::answer::turns::LONGEST_QUEUE;
use crate::budget::{Budget, Room};
use crate::config::Limits;
use crate::primary;
use crate::serve::error::Failure;

/// What is read for anybody, as sent and inflated each.
const BEGINNING: usize = 64 << 10;
/// How long the beginning may take to come.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// As sent, at most: git's own http-backend takes the same (`GIT_HTTP_MAX_REQUEST_BUFFER`).
const MAX_SENT: usize = 10 << 20;
/// What a request takes once it is parsed, in bytes for each byte of its text.
const PARSED: u64 = 4;

/// A request body in both forms.
#[derive(Debug)]
pub struct Sent {
    /// The bytes as they came, for the primary.
    pub raw: Bytes,
    /// The request.
    pub plain: Bytes,
    /// What it holds of a budget, with what is made of it.
    _room: Room,
}

impl Sent {
    /// Says whether parsing it takes so long that it is not to be done on an async thread.
    pub fn is_long(&self) -> bool {
        self.plain.len() > BEGINNING
    }
}

/// As much of a body as anybody may send.
pub enum Begun {
    /// It was all.
    Whole(Sent),
    /// There is more, or it inflates to more.
    More(Beginning),
}

/// The beginning of a longer body.
pub struct Beginning {
    raw: BytesMut,
    rest: Option<BodyDataStream>,
    is_gzip: bool,
    length: Option<u64>,
    _room: Room,
}

/// Reads the beginning of a body, inflated where `headers` say so.
pub async fn begin(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    strangers: &Budget,
) -> Result<Begun, Failure> {
    let is_gzip = match headers.get(header::CONTENT_ENCODING).map(|v| v.as_bytes()) {
        None | Some(b"identity") => false,
        Some(b"gzip" | b"x-gzip") => true,
        Some(_) => {
            return Err(Failure::Malformed("this Content-Encoding is not known; send gzip or none".into()));
        }
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let room = strangers.try_take(1)?;
    let (raw, rest) = (BytesMut::new(), Some(body.into_data_stream()));
    let mut begun = Beginning { raw, rest, is_gzip, length, _room: room };
    let ends = Instant::now() + BEGINS_WITHIN;
    while begun.rest.is_some() && begun.raw.len() <= BEGINNING {
        let next = timeout_at(ends, begun.next(limits));
        next.await.map_err(|_| Failure::Malformed("the rest of the body did not come".into()))??;
        begun._room.grow_to(begun.raw.len() as u64)?;
    }
    if begun.rest.is_some() {
        return Ok(Begun::More(begun));
    }
    let raw = begun.raw.split().freeze();
    let plain = match is_gzip {
        false => Some(raw.clone()),
        true => {
            begun._room.grow_to((raw.len() + BEGINNING) as u64)?;
            inflate(&raw, BEGINNING as u64).await?
        }
    };
    let Some(plain) = plain else {
        begun.raw = raw.into();
        return Ok(Begun::More(begun));
    };
    begun._room.grow_to(raw.len() as u64 + PARSED * plain.len() as u64)?;
    Ok(Begun::Whole(Sent { raw, plain, _room: begun._room }))
}

impl Beginning {
    /// Reads one more piece; a client that sends nothing for too long is cut off.
    async fn next(&mut self, limits: &Limits) -> Result<(), Failure> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        match timeout(limits.client_timeout, rest.next()).await {
            Ok(Some(Ok(piece))) => self.raw.extend_from_slice(&piece),
            Ok(Some(Err(_))) => return Err(Failure::Malformed("the body ended early".into())),
            Ok(None) => self.rest = None,
            Err(_) => return Err(Failure::Malformed("the rest of the body did not come".into())),
        }
        Ok(())
    }

    /// The body for the primary: what was read, and the rest as it comes.
    pub fn into_body(self) -> primary::Body {
        let Self { raw, rest, length, _room: room, .. } = self;
        let Some(rest) = rest else { return primary::Body::Whole(raw.freeze()) };
        let first = futures::stream::once(async move {
            // Held until the primary takes it.
            let _room = room;
            Ok(raw.freeze())
        });
        let pieces = first.chain(rest.map_err(std::io::Error::other));
        primary::Body::Stream { pieces: Box::pin(pieces), length }
    }

    /// Reads and inflates the rest, within the limits and the budget of those who may read.
    pub async fn whole(mut self, limits: &Limits, readers: &Budget) -> Result<Sent, Failure> {
        let room = timeout(LONGEST_QUEUE, readers.take(2 * BEGINNING as u64));
        let mut room = room.await.map_err(|_| Failure::Busy)??;
        while self.rest.is_some() {
            self.next(limits).await?;
            if self.raw.len() > MAX_SENT {
                return Err(Failure::TooLarge("more than 10 MiB"));
            }
            // Room grows by halves, as the buffer does.
            room.grow_to(self.raw.capacity() as u64)?;
        }
        let (raw, is_gzip, most) = (self.raw.split().freeze(), self.is_gzip, limits.request);
        if !is_gzip {
            room.grow_to(raw.len() as u64 * (1 + PARSED))?;
            return Ok(Sent { plain: raw.clone(), raw, _room: room });
        }
        // A gzip file ends with the inflated length. If that is over the limit, nothing is inflated.
        let stated = raw.last_chunk().map_or(0, |length| u64::from(u32::from_le_bytes(*length)));
        let too_large = || Failure::TooLarge("when inflated it is above the setting limits.request");
        if stated > most {
            return Err(too_large());
        }
        let runtime = Handle::current();
        blocking(move || {
            // Deflate shrinks at most about a thousandfold, so a stated length that is too large takes little room.
            let most = most.min(stated).min(raw.len() as u64 * 1032);
            room.grow_to(raw.len() as u64 + (1 + PARSED) * most)?;
            let plain = runtime.block_on(inflate(&raw, most))?.ok_or_else(too_large)?;
            Ok(Sent { raw, plain, _room: room })
        })
        .await?
    }
}

/// Inflates at most `most` bytes; `None` if there are more.
async fn inflate(raw: &[u8], most: u64) -> Result<Option<Bytes>, Failure> {
    let mut plain = Vec::new();
    let mut decoder = GzipDecoder::new(Cursor::new(raw)).take(most + 1);
    let read = decoder.read_to_end(&mut plain).await;
    read.map_err(|_| Failure::Malformed("the body is not the gzip that its header says".into()))?;
    Ok((plain.len() as u64 <= most).then(|| plain.into()))
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

    fn budget() -> Budget {
        Budget::new(64 << 20, "limits.memory")
    }

    /// A body of one who may read.
    async fn read(headers: &HeaderMap, sent: impl Into<Body>) -> Result<Sent, Failure> {
        let budget = budget();
        let sent = match begin(headers, sent.into(), &limits(), &budget).await? {
            Begun::Whole(sent) => sent,
            Begun::More(more) => more.whole(&limits(), &budget).await?,
        };
        assert!(budget.most() - budget.free() >= (sent.raw.len() + sent.plain.len()) as u64, "it is counted");
        Ok(sent)
    }

    #[tokio::test]
    async fn both_forms_are_kept() {
        for plain in [&b"0000"[..], &vec![7; 500_000]] {
            let sent = gzip(plain).await;
            let body = read(&headers("gzip"), sent.clone()).await.unwrap();
            assert!(body.raw == sent && body.plain == plain);
            let body = read(&HeaderMap::new(), plain.to_vec()).await.unwrap();
            assert!(body.raw == plain && body.plain == plain);
        }
    }

    #[tokio::test]
    async fn a_bomb_is_refused_also_with_a_lie_about_its_length() {
        let mut sent = gzip(&vec![0; (1 << 20) + 1]).await;
        assert!(sent.len() < 100_000);
        let error = read(&headers("gzip"), sent.clone()).await.unwrap_err();
        assert!(matches!(error, Failure::TooLarge(_)), "{error}");
        let at = sent.len() - 4;
        sent[at..].copy_from_slice(&5u32.to_le_bytes());
        assert!(read(&headers("gzip"), sent).await.is_err());
    }

    #[tokio::test]
    async fn oversized_and_broken_bodies_are_told_apart() {
        let error = read(&HeaderMap::new(), vec![0; MAX_SENT + 1]).await.unwrap_err();
        assert!(matches!(error, Failure::TooLarge(_)), "{error}");
        let error = read(&headers("gzip"), "plain").await.unwrap_err();
        assert!(matches!(error, Failure::Malformed(_)), "{error}");
        let error = read(&headers("br"), "plain").await.unwrap_err();
        assert!(matches!(error, Failure::Malformed(_)), "{error}");
    }

    #[tokio::test]
    async fn a_stranger_holds_little_and_all_strangers_hold_their_share() {
        let strangers = Budget::new(1 << 20, "limits.memory");
        let sent = gzip(&vec![0; 32 << 20]).await;
        let begun = begin(&headers("gzip"), sent.into(), &limits(), &strangers).await.unwrap();
        assert!(matches!(begun, Begun::More(_)), "not inflated for a stranger");
        let mut crowd = Vec::new();
        let busy = loop {
            match begin(&HeaderMap::new(), vec![0; 60_000].into(), &limits(), &strangers).await {
                Ok(sent) => crowd.push(sent),
                Err(error) => break error,
            }
        };
        assert!(matches!(busy, Failure::Busy) && crowd.len() < 5, "{busy}: {}", crowd.len());
        drop((crowd, begun));
        assert_eq!(strangers.free(), strangers.most());
    }

    #[tokio::test]
    async fn what_is_passed_on_is_what_came() {
        let all: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let pieces: Vec<_> =
            all.chunks(10_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let Begun::More(more) = begin(&HeaderMap::new(), body, &limits(), &budget()).await.unwrap() else {
            panic!("it is longer than a beginning")
        };
        let primary::Body::Stream { pieces, length: None } = more.into_body() else { panic!() };
        let got: Vec<u8> = pieces.map(|piece| piece.unwrap().to_vec()).concat().await;
        assert!(got == all);
    }
}
