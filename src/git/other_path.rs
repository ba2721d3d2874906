//! A request's path that is no repository's: a web page, an archive, an interface of the host.
//!
//! It goes on as the client wrote it, since only the host knows what it means: escaped slashes, empty segments and bytes that
//! are no text are all in use there. What could be read as a Git request is none of these: it is read by [`split`] or refused.
//! Relies on: the raw request target. Elsewhere: where it goes (`serve`), the address it becomes part of (`primary`).
//!
//! [`split`]: super::path::split

use percent_encoding::percent_decode;
use std::fmt;

use super::path::{BadPath, cut};

/// The longest path with its query, in bytes.
const MOST: usize = 16 << 10;
/// So many times a reader in a row may decode.
const READINGS: usize = 3;

/// A path and query as they came, without dot segments or control characters in any reading.
#[derive(Clone, PartialEq, Eq)]
pub struct OtherPath {
    path: String,
    query: Option<String>,
}

impl OtherPath {
    /// Takes a raw path with its query; an error is the client's fault.
    pub fn read(path: &str, query: Option<&str>) -> Result<Self, BadPath> {
        if path.len() + query.map_or(0, str::len) > MOST {
            return Err(BadPath::TooLong);
        }
        if !path.starts_with('/') {
            return Err(BadPath::Refused("it does not start with a slash"));
        }
        for read in readings(path) {
            if read.iter().any(u8::is_ascii_control) {
                return Err(BadPath::Refused("it has a control character"));
            }
            if read.split(|byte| matches!(byte, b'/' | b'\\')).any(|one| matches!(one, b"." | b"..")) {
                return Err(BadPath::Refused("it has a dot segment"));
            }
        }
        Ok(Self { path: path.to_owned(), query: query.map(str::to_owned) })
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }
}

/// Without the query, which may hold a token.
impl fmt::Debug for OtherPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.path)
    }
}

/// Says whether a raw path could be a Git request's to anybody who reads it, however often he decodes it.
pub fn may_be_gits(path: &str) -> bool {
    readings(path).any(|read| {
        let read = String::from_utf8_lossy(&read).replace('\\', "/");
        // Also of a repository without a name.
        cut(&format!("x/{}", read.trim_start_matches('/')), None).is_ok()
    })
}

/// The path as it is, decoded once, and so on.
fn readings(path: &str) -> impl Iterator<Item = Vec<u8>> {
    std::iter::successors(Some(path.as_bytes().to_vec()), |read| Some(percent_decode(read).collect()))
        .take(READINGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_use_goes_on_as_it_is() {
        for path in [
            "/",
            "//",
            "/user/login",
            "/team/app/",
            "/api/v4/projects/team%2Fapp/repository/archive.tar.gz",
            "/team/app/raw/branch/main/a%20b%E9.txt",
            "/team/app/src/branch/main/%25252F",
            "/team/app.git",
            "/a;b=c/@x:y/~z",
            "/team/app/raw/branch/main/...",
        ] {
            let other = OtherPath::read(path, Some("token=canary")).unwrap();
            assert_eq!((other.path(), other.query()), (path, Some("token=canary")));
            assert!(!format!("{other:?}").contains("canary"));
            assert!(!may_be_gits(path), "{path}");
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for path in [
            "",
            "*",
            "x",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/%2e%2E/b",
            "/a/%252e%252e/b",
            "/a\\..\\b",
            "/a/..%2fb",
            "/a%5c..%5cb",
            "/a%00",
            "/a%0d%0ab",
            "/a%250ab",
        ] {
            assert!(matches!(OtherPath::read(path, None), Err(BadPath::Refused(_))), "{path}");
        }
        assert_eq!(OtherPath::read("/a", Some(&"q".repeat(MOST))), Err(BadPath::TooLong));
    }

    #[test]
    fn what_could_be_gits_in_any_reading_is_told() {
        for path in [
            "/a/info/refs",
            "//a//info/refs",
            "/info/refs",
            "//info/refs",
            "/a%2finfo%2frefs",
            "/a%252finfo%252frefs",
            "/a\\info\\refs",
            "/a/../b/git-upload-pack",
            "/a%ff/git-receive-pack",
            "/a/%67it-upload-pack",
            "/a/info/lfs/locks",
        ] {
            assert!(may_be_gits(path), "{path}");
        }
    }
}
