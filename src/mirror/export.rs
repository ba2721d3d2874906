//! A plain bare repository out of the bucket alone: the way out, and the disaster plan.
//!
//! Works with the primary gone. Packs and indexes are standard files, so nothing is converted: they are copied beside
//! each other, with the manifest as `packed-refs`. `docs/formats.md` shows the same with stock tools.

use std::io;
use std::path::{Path, PathBuf};

use bstr::ByteSlice;
use tokio::fs;

use crate::folder::Folder;
use crate::git::path::RepoPath;
use crate::git::refs::{Head, MOST_PACKED_REFS, Refs};
use crate::mirror::names::not_there;
use crate::mirror::snapshot::{OpenError, object_format, refs_of};
use crate::store::{Bucket, Generation, StoreError, frame};

/// The file that marks an unfinished export as ours, so that another try may delete it.
const MARK: &str = "packmirror-export";

/// Why there is no exported repository. What was written so far stays in a folder named `….part` beside the target, which
/// the next try removes.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nothing was published under this path.
    #[error("{0}")]
    Unknown(String),
    /// The target is there already.
    #[error("`{}` is there already; name a folder that does not exist", .0.display())]
    Exists(PathBuf),
    /// Something that no export left is where this one is to be made.
    #[error("`{}` is in the way and was not made by an export; move it away", .0.display())]
    InTheWay(PathBuf),
    /// The data in the bucket do not make a repository.
    #[error("this repository in the bucket cannot be used")]
    Unusable(#[from] OpenError),
    /// The bucket.
    #[error("the bucket")]
    Store(#[from] StoreError),
    /// The disk.
    #[error("`{}`", .path.display())]
    Disk {
        /// What was being written.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Writes the newest generation of `repo` to `dir`, which must not exist; `done` is told of bytes and total.
pub async fn export(
    bucket: &Bucket,
    repo: &RepoPath,
    dir: &Path,
    done: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Generation, ExportError> {
    if fs::symlink_metadata(dir).await.is_ok() {
        return Err(ExportError::Exists(dir.to_owned()));
    }
    let Some(generation) = bucket.newest(repo).await?.filter(|newest| !newest.removed) else {
        return Err(ExportError::Unknown(not_there(bucket, repo).await));
    };
    let mut part = dir.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    begin(&part).await?;
    let packs = part.join("objects/pack");
    for folder in [&packs, &part.join("refs/heads"), &part.join("refs/tags")] {
        fs::create_dir_all(folder).await.map_err(at(folder))?;
    }
    let lengths = generation.layers.iter().flat_map(|layer| [layer.pack.len, layer.idx.len]);
    let total = lengths.fold(0, u64::saturating_add);
    let mut so_far = 0;
    done(so_far, total);
    for layer in &generation.layers {
        let name = packs.join(format!("pack-{}", layer.pack.id));
        // The pack first: git complains about an index without its pack.
        for (blob, ending) in [(&layer.pack, "pack"), (&layer.idx, "idx")] {
            let told = |bytes| done(so_far + bytes, total);
            bucket.download_telling(blob, &name.with_extension(ending), &told).await?;
            so_far += blob.len;
            done(so_far, total);
        }
    }
    let refs_path = part.join("packed-refs");
    let refs = refs(bucket, &generation).await?;
    fs::write(&refs_path, refs.packed_refs()).await.map_err(at(&refs_path))?;
    for (name, target) in &refs.symrefs {
        let path = part.join(name.to_path_lossy());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).await.map_err(at(folder))?;
        }
        fs::write(&path, format!("ref: {target}\n")).await.map_err(at(&path))?;
    }
    write(&part.join("config"), config(&generation.object_format)).await?;
    write(&part.join("HEAD"), head(&generation.head)).await?;
    let mark = part.join(MARK);
    fs::remove_file(&mark).await.map_err(at(&mark))?;
    fs::rename(&part, dir).await.map_err(at(dir))?;
    Ok(generation)
}

/// Makes the folder that an export is made in. What an earlier export left there goes, and nothing else.
async fn begin(part: &Path) -> Result<(), ExportError> {
    match fs::create_dir(part).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove_left(part).map_err(at(part))?.ok_or_else(|| ExportError::InTheWay(part.to_owned()))?;
            fs::create_dir(part).await.map_err(at(part))?;
        }
        made => made.map_err(at(part))?,
    }
    write(&part.join(MARK), "an export that is not finished; `packmirror export` may delete it\n".into())
        .await
}

/// Removes what an export left; none if something else has its name.
fn remove_left(part: &Path) -> io::Result<Option<()>> {
    let Some(name) = part.file_name() else { return Ok(None) };
    let above = part.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let above = Folder::at(above)?;
    let ours = above.folder(name).and_then(|part| part.file(MARK));
    if ours.is_err() {
        return Ok(None);
    }
    above.remove_tree(name).map(Some)
}

/// The refs of a generation, unpacked within bounds and checked as a node checks them: their names become file names.
pub async fn refs(bucket: &Bucket, generation: &Generation) -> Result<Refs, ExportError> {
    let hash = object_format(generation)?;
    let blob = generation.refs;
    if blob.len > MOST_PACKED_REFS {
        return Err(StoreError::damaged(blob, "more refs than packmirror keeps for one repository").into());
    }
    let frame = bucket.get_blob(&blob).await?;
    let mut text = Vec::new();
    let unpacked = frame::unpack(&frame[..], &blob, MOST_PACKED_REFS, &mut text);
    unpacked.map_err(|error| StoreError::damaged(blob, format!("not a zstd frame: {error}")))?;
    Ok(refs_of(generation, hash, &text)?)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ExportError {
    let path = path.to_owned();
    move |source| ExportError::Disk { path, source }
}

async fn write(path: &Path, text: String) -> Result<(), ExportError> {
    fs::write(path, text).await.map_err(at(path))
}

fn config(object_format: &str) -> String {
    match object_format {
        "sha256" => {
            "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n"
                .into()
        }
        _ => "[core]\n\trepositoryformatversion = 0\n\tbare = true\n".into(),
    }
}

fn head(head: &Head) -> String {
    match head {
        Head::Symbolic { target } => format!("ref: {target}\n"),
        Head::Detached(oid) => format!("{oid}\n"),
        // Without a HEAD git sees no repository; this is what `git init` writes.
        Head::Missing => "ref: refs/heads/main\n".into(),
    }
}
