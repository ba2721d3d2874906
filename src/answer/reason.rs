//! Why the primary answers a request, and not the bucket.

/// Why the bucket does not answer. The names are labels of the counter and are explained in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The live advertisement: only the primary knows it (strict freshness).
    Live,
    /// Pushes belong to the primary.
    Push,
    /// LFS, dumb HTTP files: not mirrored.
    OtherEndpoint,
    /// It is not for Git, and the settings pass that on.
    NotGit,
    /// The settings exclude the repository.
    NotSelected,
    /// Nothing was published yet.
    NotYetMirrored,
    /// The bucket has it, and this node is still opening it.
    Opening,
    /// A wanted object is not reachable from the published refs, also after a sync.
    UnknownWant,
    /// The refs that are wanted by name could not be compared with the primary within `sync_wait`.
    NotConfirmed,
    /// The request uses something that this mirror leaves to the primary.
    NotOurs,
    /// The primary does not offer what the request asks for: its refusal is the answer.
    NotOffered,
    /// The bucket did not give what was needed.
    BucketDown,
    /// The answer takes more memory or work than one request may have.
    TooCostly,
    /// This node has no place or memory free for it.
    Busy,
    /// This node made a mistake, which is in its log.
    Failed,
}

impl Reason {
    /// The label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Push => "push",
            Self::OtherEndpoint => "other-endpoint",
            Self::NotGit => "not-git",
            Self::NotSelected => "not-selected",
            Self::NotYetMirrored => "not-yet-mirrored",
            Self::Opening => "opening",
            Self::UnknownWant => "unknown-want",
            Self::NotConfirmed => "not-confirmed",
            Self::NotOurs => "not-ours",
            Self::NotOffered => "not-offered",
            Self::BucketDown => "bucket-down",
            Self::TooCostly => "too-costly",
            Self::Busy => "busy",
            Self::Failed => "failed",
        }
    }
}
