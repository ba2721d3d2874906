//! Where the primary is and how patient we are with it. Plain data, checked when it is read.
//!
//! Relies on: the address being an origin fixed by the operator: no request ever leaves it.
//! Elsewhere: how settings are read from files and flags (`config`), what they do (`http`, `cgi`, `grants`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::{Host, Url};

use super::credential::Credential;
use super::hops;

/// The primary: a Git host over HTTP(S), or a directory of bare repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// The address in front of repository paths: no userinfo, query or fragment, no slash at the end of its path.
    Http(Url),
    /// An absolute path.
    Directory(PathBuf),
}

impl Location {
    /// Reads `https://host[:port][/prefix]`, `http://…` (see `insecure`), `file:///path`, or a path.
    ///
    /// Plain HTTP sends credentials and repositories in the clear, so it is taken only for a loopback host
    /// or if `insecure` (the setting `insecure_primary`) says so.
    pub fn parse(text: &str, insecure: bool) -> Result<Self, BadLocation> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            None => Self::directory(Path::new(text)),
            Some("file") => {
                let url = Url::parse(text).map_err(|_| BadLocation::NotAUrl)?;
                Self::directory(&url.to_file_path().map_err(|()| BadLocation::NotAUrl)?)
            }
            Some("http" | "https") => Self::http(text, insecure),
            Some(_) => Err(BadLocation::Scheme),
        }
    }

    fn directory(path: &Path) -> Result<Self, BadLocation> {
        if path.as_os_str().is_empty() {
            return Err(BadLocation::Empty);
        }
        let path = std::path::absolute(path).map_err(|_| BadLocation::Empty)?;
        Ok(Self::Directory(path))
    }

    fn http(text: &str, insecure: bool) -> Result<Self, BadLocation> {
        let mut url = Url::parse(text).map_err(|_| BadLocation::NotAUrl)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadLocation::Userinfo);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(BadLocation::Query);
        }
        if url.scheme() == "http" && !insecure && !is_loopback(&url) {
            return Err(BadLocation::PlainHttp);
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self::Http(url))
    }

    /// Whether connections can be made to another address than its name's: there is a name, and no port beside it, which
    /// would count more.
    pub fn may_be_elsewhere(&self) -> bool {
        matches!(self, Self::Http(url) if url.port().is_none() && matches!(url.host(), Some(Host::Domain(_))))
    }

    /// Whether the primary is on this very machine.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Http(url) => is_loopback(url),
            Self::Directory(_) => true,
        }
    }
}

/// The address as it is written into generation records and logs; it holds no secret.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// An address that cannot be the primary's; the address itself is not repeated, it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLocation {
    /// Nothing was given.
    #[error(
        "the primary is missing: give the https:// address of a Git host or a directory of bare repositories"
    )]
    Empty,
    /// It looks like a URL but is none.
    #[error("the primary's address is not a valid URL")]
    NotAUrl,
    /// ssh, git and other schemes.
    #[error("a primary is reached over https:// (or is a directory); other schemes are not supported")]
    Scheme,
    /// `https://user:password@…`.
    #[error("the primary's address must not hold a user or password: put them into credential_file")]
    Userinfo,
    /// `?…` or `#…`.
    #[error("the primary's address must not have a query or a fragment")]
    Query,
    /// Credentials would travel in the clear.
    #[error(
        "the primary's address is plain http, so everybody on the way could read credentials: use https, or set insecure_primary if the network is trusted"
    )]
    PlainHttp,
}

/// How long is waited for the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the whole of a small question: a grant, a capability advertisement.
    pub question: Duration,
    /// Without one byte in either direction of a stream. Servers are silent while they count objects.
    pub idle: Duration,
    /// For the whole of a list of refs. Besides, it must not come slower than 1,000 bytes a second over a minute.
    pub refs: Duration,
    /// For the first byte of a pack, while the primary tells its progress.
    pub first_byte: Duration,
    /// A pack that comes slower than 1,000 bytes a second over this long (counting only time in which we
    /// waited for it) is given up, like git's `http.lowSpeedLimit` and `http.lowSpeedTime`.
    pub slow: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            question: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            refs: Duration::from_secs(15 * 60),
            first_byte: Duration::from_secs(60 * 60),
            slow: Duration::from_secs(300),
        }
    }
}

/// Everything [`super::Primary::open`] needs.
#[derive(Clone, Debug)]
pub struct PrimarySettings {
    /// Where the primary is.
    pub location: Location,
    /// What sync shows it; `None`: only what anybody may read is mirrored.
    pub credential: Option<Credential>,
    /// A PEM file of further certificate authorities to believe, for hosts with a private one.
    pub ca_file: Option<PathBuf>,
    /// Where to connect, if not where its name leads.
    pub address: Option<SocketAddr>,
    /// What requests of ours are known by when they come back ([`super::Hops`]).
    pub token: String,
    /// How long we wait.
    pub timeouts: Timeouts,
    /// Whether everybody may push to a directory, also where a repository does not say so itself.
    pub allow_push: bool,
}

impl PrimarySettings {
    /// The defaults for a primary: no credential, the system's certificate authorities.
    pub fn new(location: Location) -> Self {
        Self {
            location,
            credential: None,
            ca_file: None,
            address: None,
            token: hops::token(),
            timeouts: Timeouts::default(),
            allow_push: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_in_one_way() {
        let cases = [
            ("https://git.example.com", "https://git.example.com"),
            ("https://GIT.example.com:443/", "https://git.example.com"),
            ("https://git.example.com:8443/scm//", "https://git.example.com:8443/scm"),
            ("http://127.0.0.1:3000/", "http://127.0.0.1:3000"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://localhost/git", "http://localhost/git"),
            ("/srv/git", "file:///srv/git"),
            ("file:///srv/git", "file:///srv/git"),
        ];
        for (text, shown) in cases {
            assert_eq!(Location::parse(text, false).unwrap().to_string(), shown, "{text}");
        }
        let Location::Directory(path) = Location::parse("repos", false).unwrap() else { panic!() };
        assert!(path.is_absolute());
    }

    #[test]
    fn what_would_leak_or_cannot_work_is_refused() {
        let cases = [
            ("", BadLocation::Empty),
            ("https://", BadLocation::NotAUrl),
            ("ssh://git@example.com/x", BadLocation::Scheme),
            ("https://alice:canary@example.com", BadLocation::Userinfo),
            ("https://alice@example.com", BadLocation::Userinfo),
            ("https://example.com/?token=canary", BadLocation::Query),
            ("http://git.example.com", BadLocation::PlainHttp),
            ("http://10.0.0.1", BadLocation::PlainHttp),
            ("http://127.0.0.1.example.com", BadLocation::PlainHttp),
            ("http://localhost.example.com", BadLocation::PlainHttp),
        ];
        for (text, error) in cases {
            let found = Location::parse(text, false).unwrap_err();
            assert_eq!(found, error, "{text}");
            assert!(!format!("{found}{found:?}").contains("canary"));
        }
        assert!(Location::parse("http://git.example.com", true).is_ok());
    }
}
