//! Settings: one typed value, made from defaults, a TOML file, the environment and flags.
//!
//! Later wins: defaults < well-known variables (`AWS_REGION`, `RUST_LOG`, …) < TOML file < `PACKMIRROR__…`
//! < flags. One table ([`keys::KEYS`]) names every setting with its default and meaning; flags, environment
//! names, `packmirror config`, and the README's table all come from it. A key that is not in it is an error.
//! Relies on: toml for the file and for typed extraction. Reads no process state itself: the caller passes
//! file, environment and flags in ([`load::Inputs`]), so tests need no global variables.
//! Elsewhere: what a setting does (the room that takes it), the flags' place in the command line (`cli::flags`).

pub mod check;
pub mod error;
pub mod keys;
pub mod layers;
pub mod load;
pub mod select;
pub mod show;
pub mod size;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use load::{Inputs, Loaded, load};
pub use select::Selection;

/// The longest a cached yes of the primary may live, whatever the settings say.
pub const GRANT_TTL_MAX: Duration = Duration::from_secs(300);

/// Every effective setting, checked. Field names are the keys of the TOML file; their meaning and default
/// stand in [`keys::KEYS`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the primary Git host, or an absolute directory of bare repositories. Not every command needs it:
    /// see [`Settings::primary`].
    #[serde(default)]
    pub primary: Option<String>,
    /// Allows plain HTTP to a primary that is not on this machine.
    pub insecure_primary: bool,
    /// The service credential as given; see [`Settings::credential`]. Never serialised, never printed.
    #[serde(default, skip_serializing)]
    credential: Option<SecretString>,
    /// File that holds the service credential; read anew at each use.
    #[serde(default)]
    pub credential_file: Option<PathBuf>,
    /// PEM file with further certificate authorities for the primary.
    #[serde(default)]
    pub primary_ca_file: Option<PathBuf>,
    /// Where to connect for the primary, if not where its name leads.
    #[serde(default)]
    pub primary_address: Option<SocketAddr>,
    /// How long a connection to the primary may take to open.
    #[serde(with = "humantime_serde")]
    pub primary_connect_timeout: Duration,
    /// How long the primary may be silent within an answer.
    #[serde(with = "humantime_serde")]
    pub primary_read_timeout: Duration,
    /// Lets everybody push to a primary that is a directory.
    pub allow_push: bool,
    /// The bucket: an absolute directory, `file:///…`, `s3://bucket/prefix` or `memory:///`.
    pub store: String,
    /// How the S3 server is reached; only used with `s3://`.
    pub s3: S3,
    /// Directory of this node's cache; owned by one process.
    pub cache_dir: PathBuf,
    /// Bound of the block cache on disk, in bytes.
    #[serde(with = "size")]
    pub cache_max: u64,
    /// Address and port that `serve` listens on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Globs of the repositories to mirror; see [`Settings::selection`].
    pub mirror: Vec<String>,
    /// What happens to a repository that is not selected.
    pub unselected: Unselected,
    /// What happens to what is not Git.
    pub other_paths: OtherPaths,
    /// Proxies in front whose word about clients counts; see [`Settings::trusted_proxies`].
    #[serde(default)]
    trusted_proxies: Vec<String>,
    /// Whether each answer asks the primary.
    pub freshness: Freshness,
    /// How old the last comparison may be in `bounded` mode.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// How long a yes of the primary is remembered; at most [`GRANT_TTL_MAX`], zero asks every time.
    #[serde(with = "humantime_serde")]
    pub grant_ttl: Duration,
    /// What happens while the primary does not answer.
    pub on_primary_down: OnPrimaryDown,
    /// Pace of the comparison of each mirrored repository with the primary.
    #[serde(with = "humantime_serde")]
    pub compare_every: Duration,
    /// How long a fetch waits for a sync that brings what it wants, before it is passed through.
    #[serde(with = "humantime_serde")]
    pub sync_wait: Duration,
    /// First syncs that run at the same time on this node, and increments beside them.
    pub max_syncs: usize,
    /// Repositories that this node takes up a minute because clients ask for them.
    pub max_new_per_minute: usize,
    /// Repositories up to which this node takes up new ones.
    pub max_repositories: usize,
    /// Where metrics, status and health are answered besides; unset: metrics and health on `listen`.
    #[serde(default)]
    pub admin_listen: Option<SocketAddr>,
    /// How long a node that got SIGTERM says that it is not ready, and serves as usual, before it refuses connections.
    #[serde(with = "humantime_serde")]
    pub drain_delay: Duration,
    /// How long requests in flight may go on after that.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// When what nobody names any more is deleted.
    pub gc: Gc,
    /// Answers that are kept.
    pub answers: StoredAnswers,
    /// Bounds against oversized input.
    pub limits: Limits,
    /// Looking in rotation whether what is stored is whole.
    pub vet: Vet,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Log level or a `tracing` filter.
    pub log_level: String,
}

/// How the S3 server behind `s3://` is reached. Credentials are not settings: they come from the chain that
/// every AWS tool uses (variables, profiles, SSO, web identity, instance roles).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// URL of the S3 server; unset means AWS.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Region; unset leaves it to the AWS chain.
    #[serde(default)]
    pub region: Option<String>,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
    /// Allows plain HTTP to an endpoint that is not on this machine.
    pub allow_http: bool,
}

/// When what nobody names any more is deleted from the bucket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// How often one node of the farm does it; zero: none does by itself.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// How long data stays after it was named last.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long a repository stays that the primary does not have any more; zero: for ever.
    #[serde(with = "humantime_serde")]
    pub gone_after: Duration,
}

/// Answers that are kept because they are asked for again and again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAnswers {
    /// How much they may take of the bucket, in percent of their repository's packs; zero: none are made.
    pub share: usize,
    /// Make the answer to `--depth=1` of HEAD's branch before anybody asks for it.
    pub depth1: bool,
}

/// Bounds against oversized or slow input.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest request body the mirror reads itself, in bytes after decompression.
    #[serde(with = "size")]
    pub request: u64,
    /// Memory for all that is held for clients, in bytes.
    #[serde(with = "size")]
    pub memory: u64,
    /// Largest single object a sync accepts, in bytes.
    #[serde(with = "size")]
    pub object: u64,
    /// Memory that all syncs may hold together, in bytes.
    #[serde(with = "size")]
    pub sync_memory: u64,
    /// Open client connections.
    pub connections: usize,
    /// A client that neither sends nor reads for this long is cut off.
    #[serde(with = "humantime_serde")]
    pub client_timeout: Duration,
    /// The longest stream of one pack to a client.
    #[serde(with = "humantime_serde")]
    pub transfer: Duration,
}

/// How often it is looked whether what is stored is whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vet {
    /// How often it is looked whether every blob is there with its length; zero never.
    #[serde(with = "humantime_serde")]
    pub exists_every: Duration,
    /// How often every byte is read again and hashed; zero never.
    #[serde(with = "humantime_serde")]
    pub hash_every: Duration,
    /// Bytes a second that are read for that.
    #[serde(with = "size")]
    pub rate: u64,
}

/// What happens to a repository that `mirror` does not select.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unselected {
    /// Passed through to the primary, never stored.
    Pass,
    /// Refused with 404.
    Refuse,
}

/// What happens to a request that is not for a Git repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherPaths {
    /// The client is sent to the primary.
    Redirect,
    /// Passed through to the primary.
    Pass,
    /// Refused with 404.
    Refuse,
}

/// How fresh an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freshness {
    /// What a client sees is the primary's own live answer.
    Strict,
    /// What a client sees was equal to the primary at most `max_age` ago.
    Bounded,
}

/// What happens while the primary does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPrimaryDown {
    /// Nothing is served: 503.
    Deny,
    /// Clients whose grant is still alive are served the last verified state.
    ServeVerified,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One readable line an event.
    Text,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// Gives the primary, or an error that tells how to name one.
    pub fn primary(&self) -> Result<&str, ConfigError> {
        self.primary.as_deref().ok_or(ConfigError::NoPrimary)
    }

    /// Gives the service credential (`user:password`, or a bare token) if it is set directly. `primary` reads it from
    /// [`Settings::credential_file`] otherwise.
    pub fn credential(&self) -> Option<&SecretString> {
        self.credential.as_ref()
    }

    /// The networks of the proxies in front. They were checked at load, so none is left out for loaded settings.
    pub fn trusted_proxies(&self) -> Vec<IpNet> {
        self.trusted_proxies.iter().filter_map(|text| keys::network(text)).collect()
    }

    /// Compiles the globs of `mirror`. They were checked at load, so this does not fail for loaded settings.
    pub fn selection(&self) -> Result<Selection, ConfigError> {
        Selection::new(&self.mirror).map_err(|bad| ConfigError::Glob { glob: bad.glob, why: bad.why })
    }
}

/// The defaults of the table, for tests of other rooms; store and cache are directories that nobody has.
#[cfg(test)]
impl Default for Settings {
    fn default() -> Self {
        let nowhere = || Some(PathBuf::from("/nonexistent"));
        let inputs =
            Inputs { here: "/".into(), data_dir: nowhere(), cache_dir: nowhere(), ..Inputs::default() };
        load(&inputs).unwrap().settings
    }
}

#[cfg(test)]
mod tests;
