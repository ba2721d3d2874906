//! A primary that a test plays, in memory: for simulations, where no socket and no process may wait for a clock.

use std::fmt::Debug;
use std::sync::Arc;

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use super::body::collect;
use super::{Backend, Inner, Outgoing, Pieces, Primary, PrimaryError, PrimarySettings, Response};
use crate::git::path::{Endpoint, RepoPath};

/// What the primary is asked.
pub(crate) struct Asked {
    pub repo: RepoPath,
    pub method: Method,
    pub endpoint: Endpoint,
    /// Inflated.
    pub body: Bytes,
}

/// What it says.
pub(crate) struct Said {
    pub status: StatusCode,
    pub kind: &'static str,
    pub body: Pieces,
}

/// Who plays it.
pub(crate) trait Play: Debug + Send + Sync {
    fn answer(&self, asked: Asked) -> BoxFuture<'static, Result<Said, PrimaryError>>;
}

impl Primary {
    /// A primary that `player` plays.
    pub(crate) fn played(settings: PrimarySettings, player: Arc<dyn Play>) -> Self {
        let (said, health) = Default::default();
        Self(Arc::new(Inner { settings, backend: Backend::Played(player), said, health }))
    }
}

pub(super) async fn send(player: &Arc<dyn Play>, outgoing: Outgoing) -> Result<Response, PrimaryError> {
    let zipped = outgoing.headers.contains_key(CONTENT_ENCODING);
    let pieces = futures::StreamExt::map(outgoing.body.into_pieces(), |piece| {
        piece.map_err(|error| PrimaryError::Protocol(error.to_string()))
    });
    let mut body = collect(Box::pin(pieces), usize::MAX).await?.unwrap_or_default();
    if zipped {
        let mut inflated = Vec::new();
        let read =
            tokio::io::AsyncReadExt::read_to_end(&mut GzipDecoder::new(&body[..]), &mut inflated).await;
        read.map_err(|error| PrimaryError::Protocol(error.to_string()))?;
        body = inflated.into();
    }
    let asked = Asked { repo: outgoing.repo, method: outgoing.method, endpoint: outgoing.endpoint, body };
    let said = player.answer(asked).await?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(said.kind));
    Ok(Response { status: said.status, headers, body: said.body, unframed: false, tunnel: None, asked: None })
}
