//! A directory of bare repositories: which folder a repository path means.
//!
//! The names are tried as git's `enter_repo` does (path.c). Whatever the names and symbolic links in the
//! directory say, only what lies inside it, with all links followed, is a repository of this primary.
//! Relies on: blocking file calls, made off the async threads by the caller. Elsewhere: serving it (`cgi`).

use std::path::{Path, PathBuf};

use crate::git::path::RepoPath;

/// Finds a repository below `root` (itself without links): its folder relative to `root`, without links.
/// `None` if there is none, or it lies outside.
pub(super) fn find(root: &Path, repo: &RepoPath) -> Option<PathBuf> {
    let named = root.join(repo.as_str());
    let with_suffix = |suffix: &str| {
        let mut path = named.clone().into_os_string();
        path.push(suffix);
        PathBuf::from(path)
    };
    [named.clone(), with_suffix("/.git"), with_suffix(".git")].into_iter().find_map(|candidate| {
        let real = candidate.canonicalize().ok()?;
        let inside = real.strip_prefix(root).ok()?;
        (!inside.as_os_str().is_empty() && is_repository(&real)).then(|| inside.to_owned())
    })
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
        }
    }
}
