//! The repositories that are served, kept as a host that cares keeps them: one pack, bitmaps, a commit-graph.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::generate::{Size, generate, many_refs};
use crate::shell::git;

/// The repository that most rows ask for.
pub const PRIMARY: &str = "primary.git";
/// The repository with very many refs.
pub const MANY: &str = "many.git";
/// How many those are.
const MANY_REFS: usize = 100_000;

/// Makes both repositories in `root`, or finds them there from an earlier run. Gives their paths.
pub fn prepare(root: &Path, given: Option<&Path>, size: Size) -> Result<(PathBuf, PathBuf)> {
    std::fs::create_dir_all(root)?;
    let source = match given {
        Some(path) => std::fs::canonicalize(path)?.display().to_string(),
        None => format!("generated: {size:?}"),
    };
    let primary = make(root, PRIMARY, &source, &|path| match given {
        Some(given) => copy(given, path),
        None => generate(path, size),
    })?;
    let small = Size { commits: 1000, files: 50, lines: 300, pulls: 0 };
    let many = make(root, MANY, &format!("{MANY_REFS} refs"), &|path| {
        generate(path, small)?;
        many_refs(path, MANY_REFS)
    })?;
    Ok((primary, many))
}

/// One repository; under its name only once it is whole.
fn make(root: &Path, name: &str, source: &str, fill: &dyn Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let (path, note) = (root.join(name), root.join(format!("{name}.source")));
    if path.exists() {
        if std::fs::read_to_string(&note)?.trim() != source {
            return Err(format!("{} holds another repository; give another --work", root.display()).into());
        }
    } else {
        eprintln!("making {name} ({source})");
        let part = root.join(format!("{name}.part"));
        if part.exists() {
            std::fs::remove_dir_all(&part)?;
        }
        fill(&part)?;
        std::fs::write(&note, source)?;
        std::fs::rename(&part, &path)?;
    }
    keep_well(&path)?;
    Ok(path)
}

/// Copies a repository with all refs; packs are linked where that is possible, and never written.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let from = std::fs::canonicalize(from)?;
    let (from, to_text) = (from.to_str().ok_or("a path that is no text")?, to.to_str().ok_or("no text")?);
    git(Path::new("/"), &["clone", "-q", "--mirror", "--local", from, to_text])?;
    // Says that a partial clone made the pack; this copy is to be a whole repository.
    for entry in std::fs::read_dir(to.join("objects/pack"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "promisor") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn keep_well(path: &Path) -> Result<()> {
    let mut packs = Vec::new();
    for entry in std::fs::read_dir(path.join("objects/pack"))? {
        packs.extend(Some(entry?.path()).filter(|file| file.extension().is_some_and(|name| name == "pack")));
    }
    if !matches!(&packs[..], [pack] if pack.with_extension("bitmap").exists()) {
        eprintln!("packing {} with bitmaps", path.display());
        git(path, &["repack", "-a", "-d", "-q", "--write-bitmap-index"])?;
    }
    if !path.join("objects/info/commit-graph").exists() {
        git(path, &["commit-graph", "write", "--reachable"])?;
    }
    git(path, &["config", "uploadpack.allowFilter", "true"])?;
    git(path, &["config", "uploadpack.allowAnySHA1InWant", "true"])?;
    Ok(())
}
