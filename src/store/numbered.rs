//! Uploads in parts under way, noted in the store, so that those of the dead can be aborted.
//!
//! S3 keeps the parts of an upload that was begun and never ended, bills them and shows them in no listing of objects. So
//! before the first part goes up, a note under `uploads/` says which upload it is; it goes when the upload has ended. A node that
//! dies leaves its note, and a collection aborts what old notes tell. Only a death between the begin of an upload and its note leaves
//! an upload without a note, and no part of it.
//! Elsewhere: what goes up (`upload`), which notes are old (`work::collect`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use serde::{Deserialize, Serialize};

use super::metered::{MeteredUpload, counted};
use super::{Bucket, Listed, StoreError, nonce};

/// What a note says.
#[derive(Debug, Serialize, Deserialize)]
struct UnderWay {
    /// The key that is uploaded to, below the bucket's prefix.
    key: String,
    /// The store's name of the upload.
    upload: MultipartId,
}

/// An upload in parts whose name in the store is known.
struct Numbered {
    store: Arc<dyn MultipartStore>,
    at: Path,
    id: MultipartId,
    next: usize,
    done: Arc<Mutex<BTreeMap<usize, PartId>>>,
}

impl fmt::Debug for Numbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Numbered({})", self.at)
    }
}

#[async_trait]
impl MultipartUpload for Numbered {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let number = self.next;
        self.next += 1;
        let (store, at, id) = (Arc::clone(&self.store), self.at.clone(), self.id.clone());
        let done = Arc::clone(&self.done);
        Box::pin(async move {
            let part = store.put_part(&at, &id, number, data).await?;
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(number, part);
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let parts = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        self.store.complete_multipart(&self.at, &self.id, parts.into_values().collect()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.store.abort_multipart(&self.at, &self.id).await
    }
}

impl Bucket {
    /// Begins an upload in parts to `key`. Gives the note of it with those stores that keep what is never ended.
    pub(super) async fn begin_upload(
        &self,
        key: &Path,
    ) -> std::result::Result<(Box<dyn MultipartUpload>, Option<Path>), StoreError> {
        use object_store::ObjectStoreExt;
        let (at, sort) = (self.at(key), |error| self.sort("upload", key, error));
        let Some(store) = &self.inner.numbered else {
            return Ok((self.inner.uploads.put_multipart(&at).await.map_err(sort)?, None));
        };
        let id = counted("upload", store.create_multipart(&at)).await.map_err(sort)?;
        let words = UnderWay { key: key.to_string(), upload: id.clone() };
        let note = Path::from_iter(["uploads", &nonce()]);
        let upload = Numbered { store: Arc::clone(store), at, id, next: 0, done: Arc::default() };
        let mut upload: Box<dyn MultipartUpload> = Box::new(MeteredUpload(Box::new(upload)));
        // Two strings: serialising them cannot fail.
        let words = serde_json::to_vec(&words).unwrap_or_default();
        if let Err(error) = self.overwrite(&note, words.into()).await {
            let _ = upload.abort().await;
            return Err(error);
        }
        Ok((upload, Some(note)))
    }

    /// Aborts the upload of which a note tells, if it has not ended, and removes the note.
    pub async fn abort_noted(&self, note: &Listed) -> std::result::Result<(), StoreError> {
        let bytes = match self.read(&note.key).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        // A note that cannot be read tells of nothing.
        if let (Some(store), Ok(found)) = (&self.inner.numbered, serde_json::from_slice::<UnderWay>(&bytes)) {
            let key = Path::from(found.key);
            let aborted = counted("abort", store.abort_multipart(&self.at(&key), &found.upload)).await;
            match aborted.map_err(|error| self.sort("abort", &key, error)) {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.delete_listed(note).await
    }
}

#[cfg(test)]
mod tests {
    use crate::store::suite::stores;
    use bytes::Bytes;
    use object_store::path::Path;

    #[tokio::test]
    async fn an_upload_of_the_dead_is_aborted_by_its_note() {
        for case in stores().await {
            let (bucket, key) = (&case.bucket, Path::from("blobs/aa/big"));
            let (mut upload, note) = bucket.begin_upload(&key).await.unwrap();
            upload.put_part(Bytes::from(vec![1; 5 << 20]).into()).await.unwrap();
            let noted = bucket.list_all("uploads").await.unwrap();
            assert_eq!(noted.len(), usize::from(case.name != "directory"), "{}", case.name);
            assert_eq!(noted.first().map(|found| &found.key), note.as_ref());
            for found in &noted {
                bucket.abort_noted(found).await.unwrap();
                assert!(upload.put_part(Bytes::from_static(b"more").into()).await.is_err(), "{}", case.name);
                assert!(upload.complete().await.is_err());
                bucket.abort_noted(found).await.unwrap();
            }
            assert!(bucket.list_all("uploads").await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn an_upload_that_ended_leaves_no_note() {
        use crate::store::{BlobId, BlobKind};
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 17 << 20]).unwrap();
        for case in stores().await {
            let bucket = &case.bucket;
            let wrong = Some(BlobId::of(b"else"));
            bucket.put_blob_file(BlobKind::Pack, file.path(), wrong, &|_, _| {}).await.unwrap_err();
            let blob = bucket.put_blob_file(BlobKind::Pack, file.path(), None, &|_, _| {}).await.unwrap();
            bucket.verify(&blob).await.unwrap();
            assert!(bucket.list_all("uploads").await.unwrap().is_empty(), "{}", case.name);
        }
    }
}
