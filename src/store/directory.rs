//! A directory as a store: the embedded default.
//!
//! Each key is a file, each part of a key but the last a folder. Unlike `object_store`'s own, it follows no symbolic link
//! below its directory, makes what it makes for this user alone, and uses no directory that is not packmirror's. Writes
//! reach the disk before they count, since the order "data, then its name" must survive a power cut. A file in the
//! making is called `NAME#…`; listings leave it out. Relies on: a local file system with hard links.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};

use super::{Cause, StoreError};
use crate::folder::{Facts, Folder, Kind, is_foreign};

/// What errors of this store are called.
const STORE: &str = "directory";

/// What is said of a link, or of a folder where a file should be.
const NOT_OURS: &str = "it is a link or something else that packmirror does not follow; move it away";

/// The file whose presence makes a directory a store of packmirror's.
const MARK: &str = "format";

/// Folders within each other below a listed one.
const DEEPEST: usize = 8;

/// Entries read for a listing by one visit to a blocking thread.
const BATCH: usize = 1024;

/// A listing by folders that is longer than this is refused.
const MOST_LISTED: usize = 1_000_000;

/// A directory store.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: Arc<Folder>,
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root.path().display())
    }
}

impl Directory {
    /// Opens a directory that holds a store, or an empty one, or with `make` a new one. Any other is refused and not touched.
    pub(super) fn open(path: &FilePath, make: bool) -> std::result::Result<Self, StoreError> {
        let local = |error| StoreError::local(path, error);
        let context = || format!("open the store {}", path.display());
        let root = match if make { Folder::at(path) } else { Folder::existing(path) } {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(StoreError::refused_for(
                    Cause::NoDirectory,
                    context(),
                    "there is no such directory",
                ));
            }
            opened => opened.map_err(local)?,
        };
        if let Some(entry) = foreign_entry(&root).map_err(local)? {
            return Err(StoreError::refused_for(
                Cause::Foreign,
                context(),
                format!(
                    "it holds `{entry}` and is no store of packmirror's (it has no file `{MARK}` that says so)"
                ),
            ));
        }
        if !make {
            return Ok(Self { root: Arc::new(root) });
        }
        if let Err(why) = root.make_private() {
            tracing::warn!(
                directory = %path.display(),
                why,
                "the store holds private repositories, and other users may reach it"
            );
        }
        // Behind the root, which is closed: whoever made them may have had another umask.
        for folder in ["blobs", "repos", "nodes"].iter().filter_map(|name| root.folder(name).ok()) {
            let _ = folder.make_private();
        }
        Ok(Self { root: Arc::new(root) })
    }

    /// Runs work on the disk off the async threads.
    async fn run<T: Send + 'static>(
        &self,
        at: &Path,
        work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        let done = crate::threads::spawn_blocking(move || work(&root)).await?;
        done.map_err(|error| sorted(error, at))
    }
}

/// An entry that tells that a directory is not ours; none if it is a store of ours or empty.
fn foreign_entry(root: &Folder) -> io::Result<Option<String>> {
    match root.file(MARK) {
        Ok((file, _)) => {
            let mut text = String::new();
            let read = file.take(4096).read_to_string(&mut text);
            let ours = read.is_ok()
                && serde_json::from_str::<serde_json::Value>(&text)
                    .is_ok_and(|format| format.get("packmirror").is_some_and(serde_json::Value::is_u64));
            return Ok((!ours).then(|| MARK.to_owned()));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if is_foreign(&error) => return Ok(Some(MARK.to_owned())),
        Err(error) => return Err(error),
    }
    for entry in root.entries()? {
        let (name, kind) = entry?;
        // The root of a file system of its own, and what a first start left that was cut short.
        let harmless = kind == Kind::Folder && (name == "lost+found" || name == ".probe")
            || kind == Kind::File && name.to_str().is_some_and(|name| name.starts_with("format#"));
        if !harmless {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Sorts what the system said about a key.
fn sorted(source: io::Error, at: &Path) -> Error {
    let path = at.to_string();
    match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path, source: source.into() },
        ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: source.into() },
        // A link, or something else that packmirror did not put there: nothing that another try would change.
        _ if is_foreign(&source) => Error::PermissionDenied { path, source: NOT_OURS.into() },
        _ => Error::Generic { store: STORE, source: source.into() },
    }
}

fn name_of(at: &Path) -> io::Result<String> {
    let name =
        at.filename().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a key without a name"))?;
    Ok(name.to_owned())
}

/// Opens the folder that a key's file lies in.
fn parent(root: &Folder, at: &Path) -> io::Result<Option<Folder>> {
    let parts: Vec<_> = at.parts().collect();
    let mut folder = None;
    for part in parts.iter().take(parts.len().saturating_sub(1)) {
        folder = Some(folder.as_ref().unwrap_or(root).folder(part.as_ref())?);
    }
    Ok(folder)
}

/// Opens the folder that a key's file is to lie in, made where it is missing.
fn make_parent(root: &Folder, at: &Path) -> io::Result<Option<Folder>> {
    let parts: Vec<_> = at.parts().collect();
    let mut folder: Option<Folder> = None;
    for part in parts.iter().take(parts.len().saturating_sub(1)) {
        let above = folder.as_ref().unwrap_or(root);
        let (below, made) = above.make_folder(part.as_ref())?;
        if made {
            above.sync()?;
        }
        folder = Some(below);
    }
    Ok(folder)
}

fn meta(location: Path, facts: &Facts) -> ObjectMeta {
    let (seconds, nanos) = facts.modified;
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let modified = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos as u32));
    ObjectMeta {
        location,
        last_modified: modified.unwrap_or(SystemTime::UNIX_EPOCH).into(),
        size: facts.len,
        e_tag: None,
        version: None,
    }
}

fn put_result() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

/// A file in the making, beside the place that it is for. It goes away unless it is published.
#[derive(Debug)]
struct Staged {
    folder: Option<Folder>,
    root: Arc<Folder>,
    file: File,
    staged: String,
    name: String,
    published: bool,
}

impl Staged {
    fn new(root: Arc<Folder>, at: &Path) -> io::Result<Self> {
        let folder = make_parent(&root, at)?;
        let name = name_of(at)?;
        // Digits behind the sign, as the object_store crate has it: other tools that list the directory pass over it.
        let staged = format!("{name}#{}", rand::random::<u64>());
        let file = folder.as_ref().unwrap_or(&root).create(&staged)?;
        Ok(Self { folder, root, file, staged, name, published: false })
    }

    fn folder(&self) -> &Folder {
        self.folder.as_ref().unwrap_or(&self.root)
    }

    /// Gives the file its name, over another file's only if told so.
    fn publish(&mut self, over: bool) -> io::Result<()> {
        self.file.sync_all()?;
        if !over {
            self.folder().link(&self.staged, &self.name)?;
        } else {
            match self.folder().look(&self.name) {
                Ok(facts) if facts.kind != Kind::File => {
                    return Err(io::Error::new(
                        ErrorKind::PermissionDenied,
                        "what has this name is a link or a folder; packmirror does not replace it",
                    ));
                }
                _ => self.folder().rename(&self.staged, self.folder(), &self.name)?,
            }
            self.published = true;
        }
        self.folder().sync()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // What stays is called NAME#… and harms nobody.
            let _ = self.folder().remove(&self.staged);
        }
    }
}

#[async_trait]
impl ObjectStore for Directory {
    async fn put_opts(&self, at: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let over = match opts.mode {
            PutMode::Create => false,
            PutMode::Overwrite => true,
            PutMode::Update(_) => return Err(not_here("an update")),
        };
        let (root, key) = (Arc::clone(&self.root), at.clone());
        self.run(at, move |_| {
            let mut staged = Staged::new(root, &key)?;
            payload.iter().try_for_each(|piece| staged.file.write_all(piece))?;
            staged.publish(over)
        })
        .await?;
        Ok(put_result())
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let (root, key) = (Arc::clone(&self.root), at.clone());
        let staged = self.run(at, move |_| Staged::new(root, &key)).await?;
        Ok(Box::new(Upload { at: at.clone(), staged: Arc::new(Mutex::new(Some(staged))), offset: 0 }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let key = at.clone();
        let (file, facts) = self
            .run(at, move |root| {
                let folder = parent(root, &key)?;
                folder.as_ref().unwrap_or(root).file(name_of(&key)?)
            })
            .await?;
        let meta = meta(at.clone(), &facts);
        options.check_preconditions(&meta)?;
        // A file that is shorter than somebody thinks gives less, as the other stores do: the reader measures.
        let range = match options.range {
            None => 0..meta.size,
            Some(GetRange::Bounded(range)) => range.start.min(meta.size)..range.end.min(meta.size),
            Some(GetRange::Offset(start)) => start.min(meta.size)..meta.size,
            Some(GetRange::Suffix(len)) => meta.size.saturating_sub(len)..meta.size,
        };
        let payload = GetResultPayload::File(file, PathBuf::from(at.as_ref()));
        Ok(GetResult {
            payload,
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        keys.then(move |key| {
            let this = this.clone();
            async move {
                let key = key?;
                let at = key.clone();
                this.run(&key, move |root| {
                    let folder = parent(root, &at)?;
                    let (folder, name) = (folder.as_ref().unwrap_or(root), name_of(&at)?);
                    match folder.look(&name)?.kind {
                        Kind::File => folder.remove(&name),
                        _ => {
                            Err(io::Error::new(ErrorKind::PermissionDenied, "it is no file of packmirror's"))
                        }
                    }
                })
                .await?;
                Ok(key)
            }
        })
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let walk = Walk { root: Arc::clone(&self.root), waiting: Vec::new(), begun: false };
        let prefix = prefix.cloned().unwrap_or_default();
        stream::try_unfold(Some((walk, prefix)), |state| async move {
            let Some((mut walk, prefix)) = state else { return Ok(None) };
            let at = prefix.clone();
            let step = crate::threads::spawn_blocking(move || {
                let batch = walk.batch(&prefix);
                (batch, walk, prefix)
            });
            let (batch, walk, prefix) = step.await?;
            let (found, more) = batch.map_err(|error| sorted(error, &at))?;
            Ok::<_, Error>(Some((stream::iter(found.into_iter().map(Ok)), more.then_some((walk, prefix)))))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let key = prefix.clone();
        let (common_prefixes, objects) = self
            .run(&prefix, move |root| {
                let (mut folders, mut objects) = (Vec::new(), Vec::new());
                let Some(opened) = open_prefix(root, &key)? else { return Ok((folders, objects)) };
                let folder = opened.as_ref().unwrap_or(root);
                for entry in folder.entries()? {
                    let (name, kind) = entry?;
                    let Some(location) = name.to_str().and_then(|name| location(&key, name)) else {
                        continue;
                    };
                    match kind {
                        Kind::Folder => folders.push(location),
                        Kind::File => match folder.look(&name) {
                            Ok(facts) => objects.push(meta(location, &facts)),
                            Err(error) if error.kind() == ErrorKind::NotFound => {}
                            Err(error) => return Err(error),
                        },
                        Kind::Other => {}
                    }
                    if folders.len() + objects.len() > MOST_LISTED {
                        return Err(io::Error::other(format!("more than {MOST_LISTED} entries")));
                    }
                }
                folders.sort();
                Ok((folders, objects))
            })
            .await?;
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(not_here("a copy"))
    }
}

fn not_here(what: &str) -> Error {
    Error::NotImplemented { operation: what.into(), implementer: STORE.into() }
}

/// The key of an entry; none if no key is written so, or it is in the making.
fn location(prefix: &Path, name: &str) -> Option<Path> {
    let location = prefix.clone().join(name);
    (location.filename() == Some(name) && !name.contains('#')).then_some(location)
}

/// Opens the folder of a prefix: none if it is not there, `Some(None)` for the root.
fn open_prefix(root: &Folder, prefix: &Path) -> io::Result<Option<Option<Folder>>> {
    let mut folder: Option<Folder> = None;
    for part in prefix.parts() {
        match folder.as_ref().unwrap_or(root).folder(part.as_ref()) {
            Ok(below) => folder = Some(below),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(folder))
}

/// A listing under way. Folders that wait are opened when their turn comes, so few are open at once.
struct Walk {
    root: Arc<Folder>,
    waiting: Vec<(Path, usize)>,
    begun: bool,
}

impl Walk {
    /// The files of the next folders, and whether there are more.
    fn batch(&mut self, prefix: &Path) -> io::Result<(Vec<ObjectMeta>, bool)> {
        if !std::mem::replace(&mut self.begun, true) {
            self.waiting.push((prefix.clone(), DEEPEST));
        }
        let mut found = Vec::new();
        while found.len() < BATCH
            && let Some((at, depth)) = self.waiting.pop()
        {
            let Some(opened) = open_prefix(&self.root, &at)? else { continue };
            let folder = opened.as_ref().unwrap_or(&self.root);
            for entry in folder.entries()? {
                let (name, kind) = entry?;
                let Some(location) = name.to_str().and_then(|name| location(&at, name)) else { continue };
                match kind {
                    Kind::Folder if depth > 0 => self.waiting.push((location, depth - 1)),
                    Kind::File => match folder.look(&name) {
                        Ok(facts) => found.push(meta(location, &facts)),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    },
                    Kind::Folder | Kind::Other => {}
                }
                if found.len() + self.waiting.len() > MOST_LISTED {
                    return Err(io::Error::other(format!("a folder has more than {MOST_LISTED} entries")));
                }
            }
        }
        Ok((found, !self.waiting.is_empty()))
    }
}

/// An upload in parts.
#[derive(Debug)]
struct Upload {
    at: Path,
    staged: Arc<Mutex<Option<Staged>>>,
    offset: u64,
}

impl Upload {
    fn run(
        &self,
        work: impl FnOnce(&mut Option<Staged>) -> io::Result<()> + Send + 'static,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let (staged, at) = (Arc::clone(&self.staged), self.at.clone());
        async move {
            let done = crate::threads::spawn_blocking(move || {
                work(&mut staged.lock().unwrap_or_else(PoisonError::into_inner))
            });
            done.await?.map_err(|error| sorted(error, &at))
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("this upload has ended")
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let offset = self.offset;
        self.offset += payload.content_length() as u64;
        self.run(move |staged| {
            let staged = staged.as_mut().ok_or_else(ended)?;
            staged.file.seek(SeekFrom::Start(offset))?;
            payload.iter().try_for_each(|piece| staged.file.write_all(piece))
        })
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.run(|staged| staged.take().ok_or_else(ended)?.publish(true)).await?;
        Ok(put_result())
    }

    async fn abort(&mut self) -> Result<()> {
        self.run(|staged| {
            drop(staged.take());
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BlobKind, Bucket, StoreOptions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    async fn open(path: &FilePath) -> std::result::Result<Bucket, StoreError> {
        Bucket::open(path.to_str().unwrap(), &StoreOptions::default()).await
    }

    #[tokio::test]
    async fn a_directory_of_another_make_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        for (n, (name, text)) in
            [("thesis", "x"), ("format", "A4"), ("format", "{\"other\": 1}"), ("blobs", "x")]
                .into_iter()
                .enumerate()
        {
            let path = dir.path().join(n.to_string());
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join(name), text).unwrap();
            let before = path.metadata().unwrap().permissions();
            let error = open(&path).await.unwrap_err().chain();
            assert!(error.contains(name) && error.contains("--store"), "{error}");
            assert_eq!(path.metadata().unwrap().permissions(), before);
        }
    }

    #[tokio::test]
    async fn a_link_in_the_store_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, outside) = (dir.path().join("store"), dir.path().join("outside"));
        std::fs::create_dir_all(outside.join("sub")).unwrap();
        let bucket = open(&path).await.unwrap();
        bucket.ensure_format().await.unwrap();
        let blob = bucket.put_blob(BlobKind::Pack, "content".into()).await.unwrap();
        let file = path.join(blob.key().as_ref());
        std::fs::rename(&file, outside.join("pack")).unwrap();
        symlink(outside.join("pack"), &file).unwrap();
        symlink(&outside, path.join("nodes")).unwrap();
        symlink(&outside, path.join("repos")).unwrap();
        for error in [
            bucket.get_blob(&blob).await.map(drop).unwrap_err(),
            bucket.head(&blob).await.unwrap_err(),
            bucket.remove_blob(&blob).await.unwrap_err(),
            bucket.restore_blob(BlobKind::Pack, "content".into()).await.map(drop).unwrap_err(),
            bucket.put_node("a", "words".into()).await.unwrap_err(),
            bucket.nodes().await.map(drop).unwrap_err(),
            bucket.current().await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        }
        assert_eq!(std::fs::read(outside.join("pack")).unwrap(), b"content");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 2, "nothing was written there");
    }

    #[tokio::test]
    async fn what_is_stored_belongs_to_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let bucket = open(&path).await.unwrap();
        bucket.ensure_format().await.unwrap();
        let blob = bucket.put_blob(BlobKind::Pack, "content".into()).await.unwrap();
        let mode = |path: &FilePath| path.metadata().unwrap().permissions().mode() & 0o777;
        let file = path.join(blob.key().as_ref());
        assert_eq!([&path, &path.join("blobs"), file.parent().unwrap()].map(mode), [0o700; 3]);
        assert_eq!([&file, &path.join("format")].map(|path| mode(path)), [0o600; 2]);
    }

    #[tokio::test]
    async fn files_in_the_making_are_not_listed_and_do_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::open(dir.path(), true).unwrap();
        let key = Path::from("a/b");
        let mut upload = store.put_multipart_opts(&key, PutMultipartOptions::default()).await.unwrap();
        upload.put_part("part".into()).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        assert_eq!(store.list(None).count().await, 0);
        drop(upload);
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
    }
}
