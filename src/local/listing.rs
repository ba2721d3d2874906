//! What a start finds in the cache: files of ours, and others that are left alone.
//!
//! Elsewhere: whether the directory is ours at all (`home`).

use std::io::{self, ErrorKind};

use super::entries::Name;
use super::home::{is_shard_name, is_temp, keep_private};
use crate::folder::{Folder, Kind, make_file_private};

/// What a listing of the cache found.
#[derive(Default)]
pub(super) struct Listed {
    /// When each was last written, its name, its length.
    pub files: Vec<((i64, u64), Name, u64)>,
    /// How many entries are not ours.
    pub foreign: usize,
}

/// Lists the files that are ours.
pub(super) fn list(cache: &Folder) -> io::Result<Listed> {
    let mut listed = Listed::default();
    for entry in cache.entries()? {
        let (shard, kind) = entry?;
        match (shard.to_str(), kind) {
            (Some("tmp"), _) => {}
            (Some(shard), Kind::Folder) if is_shard_name(shard) => {
                list_shard(&cache.folder(shard)?, shard, &mut listed)?;
            }
            _ => listed.foreign += 1,
        }
    }
    Ok(listed)
}

fn list_shard(folder: &Folder, shard: &str, listed: &mut Listed) -> io::Result<()> {
    keep_private(folder);
    for entry in folder.entries()? {
        let (file, _) = entry?;
        let name = file.to_str().and_then(Name::parse).filter(|name| name.folder() == shard);
        match (name, folder.look(&file)) {
            (Some(name), Ok(facts)) if facts.is_own_file() => {
                if facts.is_open_to_others() {
                    folder.file(&file).and_then(|(file, _)| make_file_private(&file))?;
                }
                listed.files.push((facts.modified, name, facts.len));
            }
            (_, Err(error)) if error.kind() == ErrorKind::NotFound => {}
            _ => listed.foreign += 1,
        }
    }
    Ok(())
}

/// Removes the files in the making that an earlier process left; how many others there are.
pub(super) fn empty_temp(temp: &Folder) -> io::Result<usize> {
    let mut foreign = 0;
    let entries: Vec<_> = temp.entries()?.collect::<io::Result<_>>()?;
    for (name, kind) in entries {
        match name.to_str() {
            Some(text) if kind == Kind::File && is_temp(text) => temp.remove(&name)?,
            _ => foreign += 1,
        }
    }
    Ok(foreign)
}
