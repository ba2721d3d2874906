//! What can go wrong with the bucket, sorted by what the caller can do about it.
//!
//! Every error of `object_store` is sorted here and nowhere else. Errors are cheap to clone, because one download
//! may answer many waiting readers.

use std::error::Error as StdError;
use std::sync::Arc;

use object_store::Error as Foreign;
use object_store::client::HttpError;

use super::cause::{Cause, Said};
use crate::retry::Retryable;
use crate::text::chain;

/// Why an operation on the bucket did not give what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store, or the way to it, did not answer in time. Whether a write took effect is unknown: repeating the same
    /// call settles it.
    #[error("the store did not answer: {context}")]
    Unavailable {
        /// What was asked of the store, and for which key.
        context: String,
        /// The answer of the layer below.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The store answered no (credentials, permissions, settings). An operator has to act.
    #[error("the store refused: {context}")]
    Refused {
        /// What was asked of the store, and for which key.
        context: String,
        /// The answer of the layer below.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// There is nothing under this key. For a blob that a generation names: repair it from the primary.
    #[error("not in the store: {key}")]
    NotFound {
        /// The key, below the prefix.
        key: String,
    },
    /// What lies under this key is not what its name or its reader expects, also when read a second time. Quarantine
    /// it and repair it from the primary.
    #[error("damaged in the store: {key}: {what}")]
    Damaged {
        /// The key, below the prefix.
        key: String,
        /// Expected and found, in words.
        what: String,
    },
    /// Written by a newer version of packmirror than this one: upgrade this node.
    #[error("{key} was written by a newer packmirror (format {found}, this one knows {known})")]
    Newer {
        /// The key, below the prefix.
        key: String,
        /// The version found.
        found: u32,
        /// The newest version that this program understands.
        known: u32,
    },
    /// The store is the mirror of another primary. Nothing in it was changed.
    #[error(
        "this store is the mirror of {owner}, not of {asked}: give each primary a prefix of its own (--store …/PREFIX); if \
         it is the same host under a new address, run `packmirror adopt --from {owner}`"
    )]
    OtherPrimary {
        /// The primary whose store it is.
        owner: String,
        /// The primary that is set.
        asked: String,
    },
    /// The local file that was to be uploaded or filled failed (disk full, file gone).
    #[error("local file {path}: {source}")]
    Local {
        /// The file on this machine.
        path: String,
        /// The system's reason.
        #[source]
        source: Arc<std::io::Error>,
    },
}

impl StoreError {
    /// Says whether repeating the same call later can succeed without anybody acting.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Says whether the blob itself is lost or spoilt in the bucket, so that only the primary can bring it back.
    pub fn is_loss(&self) -> bool {
        self.lost().is_some()
    }

    /// The key of what is lost or spoilt, if that is what it says.
    pub fn lost(&self) -> Option<&str> {
        match self {
            Self::NotFound { key } | Self::Damaged { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Wraps a failure of a local file.
    pub(crate) fn local(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Local { path: path.display().to_string(), source: Arc::new(source) }
    }

    pub(crate) fn damaged(key: impl std::fmt::Display, what: impl Into<String>) -> Self {
        Self::Damaged { key: key.to_string(), what: what.into() }
    }

    /// Reports a settings or credentials problem in our own words.
    pub(crate) fn refused(context: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { context: context.into(), source: Arc::new(Said { words: why.into(), cause: None }) }
    }

    /// Reports a refusal of a known cause in our own words; what to do is added.
    pub(crate) fn refused_for(cause: Cause, context: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused {
            context: context.into(),
            source: Arc::new(Said { words: why.into(), cause: Some(cause) }),
        }
    }

    /// Why the store refused, where somebody can act on it.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Refused { source, .. } => {
                (&**source as &(dyn StdError + 'static)).downcast_ref::<Said>()?.cause
            }
            _ => None,
        }
    }

    /// Reports a passing failure in our own words.
    pub(crate) fn unavailable(context: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unavailable {
            context: context.into(),
            source: Arc::new(Said { words: why.into(), cause: None }),
        }
    }

    /// Sorts an error of `object_store` that `verb` met at `key`.
    pub(crate) fn from_store(verb: &str, key: &object_store::path::Path, error: Foreign) -> Self {
        let context = format!("{verb} {key}");
        let said = Arc::new(Said::of(&error));
        match error {
            // A write that finds nothing to write into, or a read that says so, is about the bucket and not the key.
            Foreign::NotFound { .. } if WRITES.contains(&verb) || says(&error, &["NoSuchBucket"]) => {
                Self::Refused { context, source: said }
            }
            Foreign::NotFound { .. } => Self::NotFound { key: key.to_string() },
            error if said.cause.is_some() || lasting(&error) => Self::Refused { context, source: said },
            _ => Self::Unavailable { context, source: said },
        }
    }

    /// The whole chain of reasons as one line, for logs and operators.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

impl Retryable for StoreError {
    fn is_transient(&self) -> bool {
        self.is_transient()
    }
}

/// Verbs of requests that need nothing to be there but the bucket.
const WRITES: [&str; 4] = ["create", "put", "upload", "list"];

/// Says whether an error will be the same next time. `Generic` covers nearly everything in `object_store`, so its chain
/// is searched: a transport error or a 5xx passes, another status does not.
fn lasting(error: &Foreign) -> bool {
    match error {
        Foreign::Generic { source, .. } => lasting_chain(source.as_ref()),
        Foreign::JoinError { .. } => false,
        // A condition that the caller did not expect to meet: it may look different on the next try.
        Foreign::AlreadyExists { .. } | Foreign::Precondition { .. } | Foreign::NotModified { .. } => false,
        _ => true,
    }
}

fn lasting_chain(first: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(first);
    while let Some(error) = next {
        if error.is::<HttpError>() {
            return false;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::*;
            return matches!(io.kind(), PermissionDenied | ReadOnlyFilesystem | NotADirectory | Unsupported);
        }
        if let Some(status) = status_in(&error.to_string()) {
            // S3 says 400 RequestTimeout to a slow upload; 408, 425, 429 and 5xx pass as well.
            let slow = error.to_string().contains("<Code>RequestTimeout</Code>");
            return !slow && status < 500 && !matches!(status, 408 | 425 | 429) && status >= 300;
        }
        next = error.source();
    }
    false
}

/// Finds the status that `object_store` names in its text: the type that carries it is not public.
pub(super) fn status_in(text: &str) -> Option<u16> {
    let rest = &text[text.find("status code: ")? + "status code: ".len()..];
    rest.get(..3)?.parse().ok()
}

/// Says whether the store turned down credentials that were good before: fresh ones may help.
/// S3 answers 400 `ExpiredToken`, or 403 with one of the other codes.
pub(crate) fn is_expired_token(error: &Foreign) -> bool {
    says(error, &["ExpiredToken", "TokenRefreshRequired", "InvalidToken"])
}

/// Says whether S3's answer, somewhere in the chain, has one of these codes.
fn says(error: &Foreign, codes: &[&str]) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if codes.iter().any(|code| text.contains(&format!("<Code>{code}</Code>"))) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Foreign {
        Foreign::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn a_status_decides_whether_to_try_again() {
        let cases = [
            ("Server returned non-2xx status code: 503 Service Unavailable: slow down", true),
            ("Server returned non-2xx status code: 429 Too Many Requests: ", true),
            ("Server returned non-2xx status code: 400 Bad Request: <Code>RequestTimeout</Code>", true),
            ("Server returned non-2xx status code: 400 Bad Request: <Code>InvalidRequest</Code>", false),
            ("Server returned non-2xx status code: 301 Moved Permanently: ", false),
            ("something nobody knows", true),
        ];
        for (text, transient) in cases {
            let sorted = StoreError::from_store("get", &"a/b".into(), generic(text));
            assert_eq!(sorted.is_transient(), transient, "{text}");
        }
    }

    #[test]
    fn missing_and_forbidden_are_not_transient() {
        let source = || Box::<dyn StdError + Send + Sync>::from("x");
        let missing = Foreign::NotFound { path: "k".into(), source: source() };
        let missing = StoreError::from_store("get", &"k".into(), missing);
        assert!(matches!(&missing, StoreError::NotFound { key } if key == "k"));
        assert!(missing.is_loss() && !missing.is_transient());
        let gone = || Foreign::NotFound { path: "k".into(), source: "<Code>NoSuchBucket</Code>".into() };
        for verb in ["get", "put"] {
            let sorted = StoreError::from_store(verb, &"k".into(), gone());
            assert!(matches!(sorted, StoreError::Refused { .. }), "no bucket is no lost blob");
        }
        let denied = Foreign::PermissionDenied { path: "k".into(), source: source() };
        assert!(matches!(StoreError::from_store("get", &"k".into(), denied), StoreError::Refused { .. }));
    }

    #[test]
    fn the_chain_names_every_reason_once() {
        let error = StoreError::from_store("put", &"k".into(), generic("disk on fire"));
        let text = error.chain();
        assert!(text.starts_with("the store did not answer: put k"), "{text}");
        assert_eq!(text.matches("disk on fire").count(), 1, "{text}");
    }
}
