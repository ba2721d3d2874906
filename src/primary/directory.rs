//! A directory of bare repositories: which folder a repository path means.
//!
//! The names are tried as git's `enter_repo` does (path.c). Whatever the names and symbolic links in the
//! directory say, only what lies inside it, with all links followed, is a repository of this primary.
//! Relies on: blocking file calls, made off the async threads by the caller. Elsewhere: serving it (`cgi`).

use std::path::{Path, PathBuf};

use crate::git::path::RepoPath;

/// Entries looked at for a first repository.
const MOST_LOOKED_AT: usize = 100_000;

/// Finds a repository below `root` (itself without links): its folder relative to `root`, without links.
/// `None` if there is none, or it lies outside.
pub(super) fn find(root: &Path, repo: &RepoPath) -> Option<PathBuf> {
    candidates(root, repo).into_iter().find_map(|candidate| {
        let real = candidate.canonicalize().ok()?;
        let inside = real.strip_prefix(root).ok()?;
        (!inside.as_os_str().is_empty() && is_repository(&real)).then(|| inside.to_owned())
    })
}

/// Says whether the name is that of a repository outside `root`, by a link on the way to it.
pub(super) fn leads_out(root: &Path, repo: &RepoPath) -> bool {
    let Ok(root) = root.canonicalize() else { return false };
    candidates(&root, repo).into_iter().any(|candidate| {
        candidate.canonicalize().is_ok_and(|real| !real.starts_with(&root) && is_repository(&real))
    })
}

/// Says whether there is any repository below `root`: looks at so many folders at most, those nearer to it first, and
/// says yes where that is not enough to tell. No link is followed.
pub(super) fn has_any(root: &Path) -> std::io::Result<bool> {
    let mut folders = std::collections::VecDeque::from([root.to_owned()]);
    let mut seen = 0;
    while let Some(folder) = folders.pop_front() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if folder == root => return Err(error),
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(std::fs::FileType::is_symlink) {
                let real = path.canonicalize().unwrap_or_default();
                if real.starts_with(root) && is_repository(&real) {
                    return Ok(true);
                }
            } else if kind.is_ok_and(|kind| kind.is_dir()) {
                if is_repository(&path) {
                    return Ok(true);
                }
                folders.push_back(path);
            }
            seen += 1;
            if seen > MOST_LOOKED_AT {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The folders that a name may mean, in git's order.
fn candidates(root: &Path, repo: &RepoPath) -> [PathBuf; 3] {
    let named = root.join(repo.as_str());
    let with_suffix = |suffix: &str| {
        let mut path = named.clone().into_os_string();
        path.push(suffix);
        PathBuf::from(path)
    };
    let (inner, suffixed) = (with_suffix("/.git"), with_suffix(".git"));
    [named, inner, suffixed]
}

/// What git's `is_git_directory` (setup.c) looks for.
fn is_repository(path: &Path) -> bool {
    path.join("HEAD").symlink_metadata().is_ok()
        && path.join("objects").is_dir()
        && path.join("refs").is_dir()
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn make(path: &Path) {
        fs::create_dir_all(path.join("objects")).unwrap();
        fs::create_dir_all(path.join("refs")).unwrap();
        fs::write(path.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    }

    #[test]
    fn finds_what_git_would_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let root = base.join("root");
        make(&root.join("team/app.git"));
        make(&root.join("plain"));
        make(&root.join("work/.git"));
        make(&base.join("secret.git"));
        fs::create_dir_all(root.join("empty")).unwrap();
        symlink(base.join("secret.git"), root.join("leak.git")).unwrap();
        symlink(&base, root.join("up")).unwrap();
        symlink("team/app.git", root.join("alias")).unwrap();
        symlink(".", root.join("self")).unwrap();

        let cases = [
            ("team/app.git", Some("team/app.git")),
            ("team/app", Some("team/app.git")),
            ("plain", Some("plain")),
            ("work", Some("work/.git")),
            ("work/.git", Some("work/.git")),
            ("alias", Some("team/app.git")),
            ("self/plain", Some("plain")),
            ("leak", None),
            ("leak.git", None),
            ("up/secret.git", None),
            ("up/root/plain", Some("plain")),
            ("empty", None),
            ("plain/objects", None),
            ("missing", None),
            ("team", None),
        ];
        for (name, found) in cases {
            let repo = RepoPath::parse(name).unwrap();
            assert_eq!(find(&root, &repo), found.map(PathBuf::from), "{name}");
            let out = ["leak", "leak.git", "up/secret.git"].contains(&name);
            assert_eq!(leads_out(&root, &repo), out, "{name}");
        }
    }

    #[test]
    fn a_directory_without_repositories_is_told_from_one_with() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside.git"));
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("HEAD"), "").unwrap();
        make(&outside);
        symlink(&outside, root.join("leak.git")).unwrap();
        symlink(".", root.join("self")).unwrap();
        assert!(!has_any(&root).unwrap());
        assert!(has_any(&base).unwrap());
        make(&root.join("a/b/c/app.git"));
        assert!(has_any(&root).unwrap());
        assert!(has_any(&root.join("missing")).is_err());
    }
}
