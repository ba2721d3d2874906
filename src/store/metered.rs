//! A store that counts what it is asked, by operation and outcome, and how long it takes. It changes nothing.
//!
//! It stands around the store itself: each attempt counts, also those that our policy repeats. Of a read it measures the
//! time to the first byte; the body is a stream. Elsewhere: what is repeated (`bucket`).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

use crate::telemetry::metrics as names;

/// The store around which it stands.
#[derive(Debug)]
pub(super) struct Metered(Arc<dyn ObjectStore>);

impl Metered {
    /// Stands around `store`.
    pub(super) fn around(store: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Self(store))
    }
}

/// Counts one answer.
fn count<T>(op: &'static str, begun: Instant, answer: &Result<T>) {
    let outcome = match answer {
        Ok(_) => "ok",
        Err(Error::NotFound { .. }) => "not-found",
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => "exists",
        Err(Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => "denied",
        Err(_) => "error",
    };
    metrics::counter!(names::STORE_REQUESTS, "op" => op, "outcome" => outcome).increment(1);
    metrics::histogram!(names::STORE_SECONDS, "op" => op, "outcome" => outcome)
        .record(begun.elapsed().as_secs_f64());
}

/// Waits for an answer and counts it.
pub(super) async fn counted<T>(op: &'static str, asking: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let answer = asking.await;
    count(op, begun, &answer);
    answer
}

/// Counts a listing when its first entry, its end or an error comes.
fn listed(listing: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
    let begun = Instant::now();
    // An empty listing has ended with its first answer, and must not be asked again.
    let mut listing = listing.fuse();
    futures::stream::once(async move {
        let first = listing.next().await;
        match &first {
            None => count("list", begun, &Ok(())),
            Some(answer) => count("list", begun, answer),
        }
        futures::stream::iter(first).chain(listing)
    })
    .flatten()
    .boxed()
}

impl fmt::Display for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[async_trait]
impl ObjectStore for Metered {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let op = if options.mode == PutMode::Create { "create" } else { "put" };
        counted(op, self.0.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = counted("upload", self.0.put_multipart_opts(path, options)).await?;
        Ok(Box::new(MeteredUpload(upload)))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let op = match &options {
            options if options.head => "head",
            options if options.range.is_some() => "range",
            _ => "get",
        };
        counted(op, self.0.get_opts(path, options)).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        counted("range", self.0.get_ranges(path, ranges)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let begun = Instant::now();
        self.0.delete_stream(paths).inspect(move |answer| count("delete", begun, answer)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        listed(self.0.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        listed(self.0.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        counted("list", self.0.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        counted("copy", self.0.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        counted("copy", self.0.rename_opts(from, to, options)).await
    }
}

/// An upload in parts that is counted.
#[derive(Debug)]
pub(super) struct MeteredUpload(pub(super) Box<dyn MultipartUpload>);

#[async_trait]
impl MultipartUpload for MeteredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        Box::pin(counted("part", self.0.put_part(data)))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        counted("complete", self.0.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        counted("abort", self.0.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    #[tokio::test]
    async fn a_listing_that_has_ended_is_not_asked_again() {
        // Panics when it is polled after its end, as the listings of S3 do.
        let strict = |n: u32| {
            futures::stream::unfold(n, |left| async move {
                let meta = ObjectMeta {
                    location: Path::from("a"),
                    last_modified: Default::default(),
                    size: 0,
                    e_tag: None,
                    version: None,
                };
                (left > 0).then(|| (Ok(meta), left - 1))
            })
        };
        for n in 0..3 {
            let all: Vec<_> = listed(strict(n).boxed()).try_collect().await.unwrap();
            assert_eq!(all.len(), n as usize);
        }
    }
}
