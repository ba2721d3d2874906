//! Which repository and which part of it a request is for.
//!
//! The path is decoded exactly once, here, and refused when another reader of the same bytes could take it for another
//! path, since the same text later names a repository at the primary, in the bucket and in grants. What has one reading is
//! served: a name may hold `%` or `\`, letters may be escaped, and slashes in front count as one, as at git's own server.
//! Relies on: the raw request target as the client sent it. Elsewhere: which repositories exist
//! (`mirror`), what the primary says to the path (`primary`).

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// The longest raw request path in bytes.
pub const MAX_PATH: usize = 4096;

/// What must be escaped when a repository path goes into a URL.
const IN_URL: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'\\')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'|')
    .add(b'^')
    .add(b'[')
    .add(b']');

/// The path of a repository at the primary: decoded, without leading slash, in its only spelling.
///
/// `team/app` and `team/app.git` are two paths: whether they are one repository depends on the host (`mirror`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoPath(Arc<str>);

/// The part of a repository that a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `info/refs`, with the smart service that the query asks for (none: the dumb protocol).
    InfoRefs(Option<Service>),
    /// `git-upload-pack`: clone and fetch.
    UploadPack,
    /// `git-receive-pack`: push.
    ReceivePack,
    /// Anything else that belongs to a repository (`HEAD`, `objects/…`, `info/lfs/…`, `git-upload-archive`), decoded, without
    /// leading slash; it is passed through.
    Plain(String),
}

/// A smart service of Git over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Clone and fetch.
    UploadPack,
    /// Push.
    ReceivePack,
    /// `git archive --remote`.
    UploadArchive,
}

impl Service {
    /// Gives the name used in URLs and content types, such as `git-upload-pack`.
    pub fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
            Self::UploadArchive => "git-upload-archive",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A path that we do not pass on, with a reason that may be shown to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// The path is longer than [`MAX_PATH`]: 414.
    #[error("path is too long")]
    TooLong,
    /// The path could be read in two ways, or is no path at all: 400.
    #[error("refused path: {0}")]
    Refused(&'static str),
    /// The query asks for a service that git does not know: 403, in git's words.
    #[error("Unsupported service: '{0}'")]
    Service(String),
    /// A clean path, but of nothing that belongs to a Git repository: 404.
    #[error("not a path of a git repository")]
    NotGit,
}

impl RepoPath {
    /// Takes a decoded path, as an operator or a stored record writes it.
    pub fn parse(path: &str) -> Result<Self, BadPath> {
        if path.len() > MAX_PATH {
            return Err(BadPath::TooLong);
        }
        check_decoded(path)?;
        Ok(Self(path.into()))
    }

    /// Gives the decoded path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Gives the path escaped for a URL, without leading slash.
    pub fn to_url(&self) -> String {
        to_url(&self.0)
    }

    /// Gives the SHA-256 of the path in hex: the name of the repository in bucket keys.
    pub fn key(&self) -> String {
        hex::encode(Sha256::digest(self.0.as_bytes()))
    }
}

impl Endpoint {
    /// Gives the endpoint's part of the URL behind the repository path, escaped, without the query.
    pub fn to_url(&self) -> String {
        match self {
            Self::InfoRefs(_) => "info/refs".into(),
            Self::UploadPack => Service::UploadPack.name().into(),
            Self::ReceivePack => Service::ReceivePack.name().into(),
            Self::Plain(rest) => to_url(rest),
        }
    }
}

fn to_url(path: &str) -> String {
    utf8_percent_encode(path, IN_URL).to_string()
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl TryFrom<String> for RepoPath {
    type Error = BadPath;

    fn try_from(path: String) -> Result<Self, BadPath> {
        Self::parse(&path)
    }
}

impl From<RepoPath> for String {
    fn from(path: RepoPath) -> Self {
        path.as_str().into()
    }
}

impl std::str::FromStr for RepoPath {
    type Err = BadPath;

    fn from_str(path: &str) -> Result<Self, BadPath> {
        Self::parse(path)
    }
}

/// Splits a raw (still escaped) request path and its query into repository and endpoint.
///
/// Refused are: paths that do not start with a slash (absolute-form, user info), empty segments except in front, `.` and
/// `..` however they are escaped, escaped slashes, raw backslashes, control bytes, broken escapes, text that is not UTF-8,
/// and names that are another path to who decodes twice. Everything else is free: unicode, spaces, `~`, `+`, `%25`, `%5C`,
/// `.git` in the middle.
pub fn split(path: &str, query: Option<&str>) -> Result<(RepoPath, Endpoint), BadPath> {
    if path.len() > MAX_PATH {
        return Err(BadPath::TooLong);
    }
    let raw = path.strip_prefix('/').ok_or(BadPath::Refused("it does not start with a slash"))?;
    let raw = raw.trim_start_matches('/');
    if raw.contains('\\') {
        return Err(BadPath::Refused("it has a backslash that is not escaped"));
    }
    check_escapes(raw)?;
    let decoded = percent_decode_str(raw).decode_utf8().map_err(|_| BadPath::Refused("it is not UTF-8"))?;
    check_decoded(&decoded)?;
    let (repo, endpoint) = cut(&decoded, query)?;
    Ok((RepoPath(repo.into()), endpoint))
}

/// Refuses escapes that are none, and the escaped slash: some readers split before they decode, others after.
fn check_escapes(raw: &str) -> Result<(), BadPath> {
    for part in raw.split('%').skip(1) {
        match escaped(part) {
            Some(b'/') => return Err(BadPath::Refused("it has an escaped slash")),
            Some(_) => {}
            None => return Err(BadPath::Refused("it has a broken escape")),
        }
    }
    Ok(())
}

/// Reads the two hexadecimal digits behind a percent sign.
fn escaped(rest: &str) -> Option<u8> {
    let digits = rest.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u8::from_str_radix(digits, 16).ok()
}

/// Refuses a decoded path that another reader could take for another one.
fn check_decoded(path: &str) -> Result<(), BadPath> {
    if path.chars().any(char::is_control) {
        return Err(BadPath::Refused("it has a control character"));
    }
    if decodes_again(path) {
        return Err(BadPath::Refused("it is escaped twice"));
    }
    // To some hosts a backslash separates: what they would then see must not lead elsewhere either.
    for segment in path.split(['/', '\\']) {
        match segment {
            "" => return Err(BadPath::Refused("it has an empty segment")),
            "." | ".." => return Err(BadPath::Refused("it has a dot segment")),
            _ => {}
        }
    }
    Ok(())
}

/// Says whether a decoded text is another text to who decodes it once more: then the name has two readings.
///
/// A percent sign with no two digits behind it stays what it is, and bytes that make no UTF-8 are no path to anybody,
/// unless one of them is an ASCII character, which a reader of bytes would act on.
fn decodes_again(path: &str) -> bool {
    let mut escapes = path.split('%').skip(1).filter_map(escaped).peekable();
    escapes.peek().is_some()
        && (escapes.any(|byte| byte.is_ascii()) || percent_decode_str(path).decode_utf8().is_ok())
}

/// Cuts a decoded path where the repository ends (the service table of git's `http-backend.c`, and LFS).
pub(super) fn cut<'a>(path: &'a str, query: Option<&str>) -> Result<(&'a str, Endpoint), BadPath> {
    if let Some(repo) = path.strip_suffix("/info/refs") {
        return Ok((repo, Endpoint::InfoRefs(service(query)?)));
    }
    if let Some(repo) = path.strip_suffix("/git-upload-pack") {
        return Ok((repo, Endpoint::UploadPack));
    }
    if let Some(repo) = path.strip_suffix("/git-receive-pack") {
        return Ok((repo, Endpoint::ReceivePack));
    }
    for place in ["HEAD", "git-upload-archive"] {
        if let Some(repo) = path.strip_suffix(place).and_then(|path| path.strip_suffix('/')) {
            return Ok((repo, Endpoint::Plain(place.into())));
        }
    }
    let plain = |at: usize| (&path[..at], Endpoint::Plain(path[at + 1..].into()));
    let objects = path.rfind("/objects/").filter(|at| is_dumb_object(&path[at + "/objects/".len()..]));
    let lfs = path.rfind("/info/lfs/");
    objects.or(lfs).filter(|at| *at > 0).map(plain).ok_or(BadPath::NotGit)
}

/// Says whether `rest` behind `objects/` is a file of the dumb protocol.
fn is_dumb_object(rest: &str) -> bool {
    let id =
        |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if matches!(rest, "info/alternates" | "info/http-alternates" | "info/packs") {
        return true;
    }
    if let Some(name) = rest.strip_prefix("pack/pack-") {
        let name = name.strip_suffix(".pack").or(name.strip_suffix(".idx"));
        return name.is_some_and(|name| id(name, 40) || id(name, 64));
    }
    rest.split_once('/').is_some_and(|(fan, name)| id(fan, 2) && (id(name, 38) || id(name, 62)))
}

/// Reads the `service` parameter; twice or unknown is refused, since two servers may read it differently.
fn service(query: Option<&str>) -> Result<Option<Service>, BadPath> {
    let value = |pair: &str| -> Option<String> {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        (decode(key) == "service").then(|| decode(value))
    };
    let mut values = query.unwrap_or_default().split('&').filter_map(value);
    let Some(name) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadPath::Refused("its query names the service twice"));
    }
    match name.as_str() {
        "git-upload-pack" => Ok(Some(Service::UploadPack)),
        "git-receive-pack" => Ok(Some(Service::ReceivePack)),
        "git-upload-archive" => Ok(Some(Service::UploadArchive)),
        _ => Err(BadPath::Service(name.chars().filter(|c| !c.is_control()).take(100).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repo(path: &str) -> RepoPath {
        RepoPath::parse(path).unwrap()
    }

    #[test]
    fn splits_what_git_clients_ask_for() {
        let plain = |rest: &str| Endpoint::Plain(rest.into());
        let cases = [
            (
                "/a/info/refs",
                Some("service=git-upload-pack"),
                "a",
                Endpoint::InfoRefs(Some(Service::UploadPack)),
            ),
            (
                "/a.git/info/refs",
                Some("service=git-receive-pack"),
                "a.git",
                Endpoint::InfoRefs(Some(Service::ReceivePack)),
            ),
            (
                "/a/info/refs",
                Some("x=1&service=git%2Dupload-pack"),
                "a",
                Endpoint::InfoRefs(Some(Service::UploadPack)),
            ),
            ("/a/info/refs", None, "a", Endpoint::InfoRefs(None)),
            ("/team/sub/a.git/git-upload-pack", None, "team/sub/a.git", Endpoint::UploadPack),
            ("/a/git-receive-pack", None, "a", Endpoint::ReceivePack),
            ("/a/HEAD", None, "a", plain("HEAD")),
            ("/a/objects/info/packs", None, "a", plain("objects/info/packs")),
            (
                "/a/objects/01/23456789012345678901234567890123456789",
                None,
                "a",
                plain("objects/01/23456789012345678901234567890123456789"),
            ),
            ("/a.git/info/lfs/objects/batch", None, "a.git", plain("info/lfs/objects/batch")),
            ("/a.git/b+c/~d/%20e%c3%a9/git-upload-pack", None, "a.git/b+c/~d/ e\u{e9}", Endpoint::UploadPack),
            ("/info/refs/info/refs", None, "info/refs", Endpoint::InfoRefs(None)),
            ("//a/info/refs", None, "a", Endpoint::InfoRefs(None)),
            ("///a/b/git-upload-pack", None, "a/b", Endpoint::UploadPack),
            ("/x%2Egit/git-upload-pack", None, "x.git", Endpoint::UploadPack),
            ("/%2e%2e%2e/%2ea/git-upload-pack", None, ".../.a", Endpoint::UploadPack),
            ("/%61/info/%72efs", None, "a", Endpoint::InfoRefs(None)),
            ("/per%25cent.git/git-upload-pack", None, "per%cent.git", Endpoint::UploadPack),
            ("/100%25/git-upload-pack", None, "100%", Endpoint::UploadPack),
            ("/a%25zz/git-upload-pack", None, "a%zz", Endpoint::UploadPack),
            ("/back%5Cslash.git/git-upload-pack", None, r"back\slash.git", Endpoint::UploadPack),
        ];
        for (path, query, want, endpoint) in cases {
            assert_eq!(split(path, query), Ok((repo(want), endpoint)), "{path}");
        }
    }

    #[test]
    fn refuses_what_could_be_read_in_two_ways() {
        let refused = [
            "",
            "a/info/refs",
            "/",
            "//",
            "/a//info/refs",
            "//a//b/info/refs",
            "/a/../b/info/refs",
            "/./a/info/refs",
            "/a/%2e%2e/b/info/refs",
            "/a%2fb/info/refs",
            "/a%2Fb/info/refs",
            "/a\\b/info/refs",
            "/a%5c..%5cb/info/refs",
            "/..%5cb/info/refs",
            "/a%5c%2e/info/refs",
            "/a%5c%5cb/info/refs",
            "/%5ca/info/refs",
            "/a/%5cb/info/refs",
            "/a%5c/info/refs",
            "/a%00/info/refs",
            "/a%252e/info/refs",
            "/%252e%252e/a/info/refs",
            "/a%252fb/info/refs",
            "/a%255cb/info/refs",
            "/a%2500/info/refs",
            "/a%252541/info/refs",
            "/a%2541/info/refs",
            "/a%25c3%25a9/info/refs",
            "/a%25ce%252fb/info/refs",
            "/a%/info/refs",
            "/a%g1/info/refs",
            "/a%0a/info/refs",
            "/a%7f/info/refs",
            "/a%ff/info/refs",
            "/a%c2%85/info/refs",
            "http://host/a/info/refs",
            "http://user@host/a/info/refs",
            "/a/info/refs/",
            "/info/refs/..",
            "/%2e/info/refs",
        ];
        for path in refused {
            assert!(matches!(split(path, None), Err(BadPath::Refused(_))), "{path}: {:?}", split(path, None));
        }
        for path in [
            "/info/refs",
            "/git-upload-pack",
            "/a",
            "/",
            "/a/objects/zz",
            "/a/config",
            "/info/lfs/x",
            "/HEAD",
        ] {
            assert!(split(path, None).is_err(), "{path}");
        }
        assert_eq!(split(&format!("/{}/info/refs", "a".repeat(MAX_PATH)), None), Err(BadPath::TooLong));
        assert_eq!(split("/a/info/refs", Some("service=git-x")), Err(BadPath::Service("git-x".into())));
        let twice = Some("service=git-upload-pack&service=git-receive-pack");
        assert!(matches!(split("/a/info/refs", twice), Err(BadPath::Refused(_))));
    }

    #[test]
    fn paths_are_kept_as_they_are() {
        assert!(
            RepoPath::parse("a%2fb").is_err()
                && RepoPath::parse("/a").is_err()
                && RepoPath::parse("").is_err()
        );
        assert_eq!(repo("team/a b?#\u{e9}").to_url(), "team/a%20b%3F%23%C3%A9");
        assert_eq!(repo("per%cent/back\\slash").to_url(), "per%25cent/back%5Cslash");
        assert_eq!(serde_json::to_string(&repo("a/b")).unwrap(), "\"a/b\"");
        assert!(serde_json::from_str::<RepoPath>("\"../b\"").is_err());
        assert_eq!(repo("a").key(), "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb");
        assert_eq!(Endpoint::Plain("objects/a b".into()).to_url(), "objects/a%20b");
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn one_spelling_comes_back(path in "[a-zA-Z0-9 ._~+?#@:%\\\\\u{e9}/-]{1,40}") {
            if let Ok(repo) = RepoPath::parse(&path) {
                let url = format!("/{}/git-upload-pack", repo.to_url());
                prop_assert_eq!(split(&url, None), Ok((repo, Endpoint::UploadPack)));
            }
        }

        #[test]
        fn any_text_is_split_without_panic_and_safely(path in "[/.%a-z0-9\\\\\u{e9}]{0,40}", query in ".{0,40}") {
            if let Ok((repo, _)) = split(&path, Some(&query)) {
                // However often it is decoded, and whatever separates, no segment leads elsewhere.
                let again = percent_decode_str(repo.as_str()).decode_utf8_lossy().into_owned();
                for text in [repo.as_str(), &again] {
                    prop_assert!(text.split(['/', '\\']).all(|part| !matches!(part, "" | "." | "..")));
                }
                prop_assert_eq!(RepoPath::parse(repo.as_str()), Ok(repo.clone()));
            }
        }
    }
}
