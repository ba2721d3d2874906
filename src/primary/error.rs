//! What can go wrong with the primary, sorted by what the caller can do about it.
//!
//! Every text is made for an operator and for the answer to a client: it never holds a credential, a header
//! value or a query string. Relies on: [`Retryable`] as the one place that says what is worth repeating.

use std::time::Duration;

use crate::git::pkt::BadPacket;
use crate::git::reply::BadReply;
use crate::pack::meter::Halt;
use crate::retry::Retryable;

/// The longest text of the primary that is shown.
pub(super) const LONGEST_TEXT: usize = 500;

/// Why the primary gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrimaryError {
    /// No connection, or it broke before the answer was whole. Repeat later; deny meanwhile.
    #[error("the primary cannot be reached: {0}")]
    Unreachable(String),
    /// Connected, but nothing (or too little) came for too long. Repeat later; deny meanwhile.
    #[error("the primary did not answer in time: {0}")]
    Timeout(String),
    /// The primary itself is in trouble or sheds load (5xx, 408, 429). Repeat later; deny meanwhile.
    #[error("the primary answered {status}: it is down or overloaded")]
    ServerError {
        /// Its HTTP status.
        status: u16,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The primary knows no such repository, or hides it from this credential (many hosts answer 404 for both).
    #[error(
        "the primary shows no such repository: check its name, and that the service credential may read it"
    )]
    NotFound,
    /// The primary's directory has a link of this name that leads out of it, which is not followed. Move the repository
    /// into the directory.
    #[error(
        "the repository is a symbolic link that leads out of the primary's directory and is not followed: move it into \
         the directory, or set the primary to a directory above both"
    )]
    LeadsOut,
    /// The primary wants a credential and none is set. Set one.
    #[error("the primary wants a credential ({status}), and none is set: set credential_file")]
    NeedsCredential {
        /// 401 or 403.
        status: u16,
    },
    /// The primary refuses this credential. Check the service credential and its rights on the repository.
    #[error("the primary refused the credential ({status}): check the service credential and its rights")]
    Denied {
        /// 401 or 403.
        status: u16,
    },
    /// The primary sends us elsewhere, which we do not follow with credentials. Configure the new place.
    #[error(
        "the primary redirects this repository ({to}): use the new name, or set the primary to that address"
    )]
    Moved {
        /// Where to, without query and userinfo.
        to: String,
    },
    /// Its name leads to a mirror that has seen this request before. Nothing can be mirrored until that is put right.
    #[error(
        "the primary's name leads back to this mirror (508): set primary_address to where the primary itself is"
    )]
    Loops,
    /// The primary does not speak protocol v2. Nothing can be mirrored from it; requests can be passed through.
    #[error("the primary does not speak Git protocol v2: its repositories can only be passed through")]
    NoV2,
    /// The repository is shallow at the primary, so its history is not whole. It is passed through.
    #[error("its repository is shallow: only repositories with their whole history can be mirrored")]
    Shallow,
    /// The primary serves the repository's files, and does not speak Git. It is passed through.
    #[error(
        "the primary serves the repository's files only (dumb HTTP): a mirror needs git http-backend or another smart server"
    )]
    Dumb,
    /// Something answers, and it is no Git host.
    #[error(
        "no Git host answers at the primary's address ({0}): it is what stands before team/app.git in a clone's URL"
    )]
    NotGit(String),
    /// The answer is not what Git's protocol allows. Usually the address is not that of a Git host.
    #[error("the primary's answer makes no sense: {0}")]
    Protocol(String),
    /// The primary's own error message (an `ERR` packet or side-band 3).
    #[error("the primary says: {0}")]
    Remote(String),
    /// Its list of refs is more than this node may hold.
    #[error("its list of refs: {0}")]
    Costs(#[from] Halt),
    /// The file of further certificate authorities cannot be used.
    #[error("the setting primary_ca_file: {0}")]
    CaFile(String),
    /// The settings do not allow the request, or a local part (certificate, credential file, git) is missing.
    #[error("{0}")]
    Settings(String),
}

impl PrimaryError {
    /// Says whether repeating the same call later can succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Timeout(_) | Self::ServerError { .. })
    }

    /// The connection ended as usual, but the answer did not: the process behind it died.
    pub(super) fn broke_off() -> Self {
        Self::Unreachable("its answer broke off".into())
    }

    /// How long the primary asked us to stay away.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::ServerError { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Retryable for PrimaryError {
    fn is_transient(&self) -> bool {
        self.is_transient()
    }
    fn retry_after(&self) -> Option<Duration> {
        self.retry_after()
    }
}

/// Sorts what `git` finds in an answer; its texts may hold anything, so they are made plain.
impl From<BadReply> for PrimaryError {
    fn from(bad: BadReply) -> Self {
        match bad {
            BadReply::NotV2 => Self::NoV2,
            BadReply::Remote(words) => Self::Remote(plain(words.as_bytes(), LONGEST_TEXT)),
            BadReply::Packet(bad) => bad.into(),
            BadReply::Protocol(words) => Self::Protocol(plain(words.as_bytes(), LONGEST_TEXT)),
        }
    }
}

impl From<BadPacket> for PrimaryError {
    fn from(bad: BadPacket) -> Self {
        match bad {
            BadPacket::Truncated => Self::broke_off(),
            other => Self::Protocol(plain(other.to_string().as_bytes(), LONGEST_TEXT)),
        }
    }
}

/// Text from the other end as it may appear in a log or a terminal: one line, no control characters, bounded.
pub(super) fn plain(text: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let mut plain: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect();
    if text.trim().chars().nth(most).is_some() {
        plain.push('…');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trouble_that_passes_is_transient() {
        let after = Some(Duration::from_secs(7));
        let cases = [
            (PrimaryError::Unreachable(String::new()), true),
            (PrimaryError::Timeout(String::new()), true),
            (PrimaryError::ServerError { status: 503, retry_after: after }, true),
            (PrimaryError::NotFound, false),
            (PrimaryError::Denied { status: 401 }, false),
            (PrimaryError::Moved { to: String::new() }, false),
            (PrimaryError::NeedsCredential { status: 401 }, false),
            (PrimaryError::LeadsOut, false),
            (PrimaryError::Shallow, false),
            (PrimaryError::Dumb, false),
            (PrimaryError::NotGit(String::new()), false),
            (PrimaryError::CaFile(String::new()), false),
            (PrimaryError::NoV2, false),
            (PrimaryError::Protocol(String::new()), false),
            (PrimaryError::Remote(String::new()), false),
            (PrimaryError::Settings(String::new()), false),
        ];
        for (error, transient) in cases {
            assert_eq!(error.is_transient(), transient, "{error}");
            let expected = if matches!(error, PrimaryError::ServerError { .. }) { after } else { None };
            assert_eq!(error.retry_after(), expected);
        }
    }

    #[test]
    fn foreign_text_becomes_one_bounded_line() {
        assert_eq!(plain(b" not our\x1b[31m ref\r\nx\xff\n", 100), "not our [31m ref  x\u{fffd}");
        assert_eq!(plain(b"abcdef", 3), "abc…");
        assert_eq!(plain(b"abc", 3), "abc");
    }
}
