//! A plain bare repository out of the bucket alone: the way out, and the disaster plan.
//!
//! Works with the primary gone. Packs and indexes are standard files, so nothing is converted: they are copied beside
//! each other, with the manifest as `packed-refs`. `docs/formats.md` shows the same with stock tools.

use std::io;
use std::path::{Path, PathBuf};

use bstr::ByteSlice;
use tokio::fs;

use crate::git::path::RepoPath;
use crate::git::refs::Head;
use crate::store::{Bucket, Generation, StoreError};

/// Why there is no exported repository. What was written so far stays in a folder named `….part` beside the target.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nothing was published under this path.
    #[error("the bucket holds no repository `{0}`; `packmirror ls` shows what it holds")]
    Unknown(RepoPath),
    /// The target is there already.
    #[error("`{}` is there already; name a folder that does not exist", .0.display())]
    Exists(PathBuf),
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
    if fs::try_exists(dir).await.map_err(at(dir))? {
        return Err(ExportError::Exists(dir.to_owned()));
    }
    let generation = bucket.newest(repo).await?.ok_or_else(|| ExportError::Unknown(repo.clone()))?;
    let mut part = dir.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    if fs::try_exists(&part).await.map_err(at(&part))? {
        fs::remove_dir_all(&part).await.map_err(at(&part))?;
    }
    let packs = part.join("objects/pack");
    for folder in [&packs, &part.join("refs/heads"), &part.join("refs/tags")] {
        fs::create_dir_all(folder).await.map_err(at(folder))?;
    }
    let total = generation.layers.iter().map(|layer| layer.pack.len + layer.idx.len).sum();
    let mut so_far = 0;
    done(so_far, total);
    for layer in &generation.layers {
        let name = packs.join(format!("pack-{}", layer.pack.id));
        // The pack first: an index without its pack is what git complains about.
        for (blob, ending) in [(&layer.pack, "pack"), (&layer.idx, "idx")] {
            bucket.download(blob, &name.with_extension(ending)).await?;
            so_far += blob.len;
            done(so_far, total);
        }
    }
    let refs = bucket.get_blob(&generation.refs).await?;
    let refs_path = part.join("packed-refs");
    let text = zstd::decode_all(&refs[..]).map_err(at(&refs_path))?;
    fs::write(&refs_path, text).await.map_err(at(&refs_path))?;
    for (name, target) in &generation.symrefs {
        let path = part.join(name.to_path_lossy());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).await.map_err(at(folder))?;
        }
        fs::write(&path, format!("ref: {target}\n")).await.map_err(at(&path))?;
    }
    write(&part.join("config"), config(&generation.object_format)).await?;
    write(&part.join("HEAD"), head(&generation.head)).await?;
    fs::rename(&part, dir).await.map_err(at(dir))?;
    Ok(generation)
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
