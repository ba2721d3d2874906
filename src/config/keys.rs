//! The table of all settings: name, kind, default, meaning.
//!
//! It is the one source of flags, environment names, defaults, `packmirror config` and the README's table.
//! A test holds it against the fields of [`Settings`](super::Settings), another holds the README against it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use toml::Value;

use super::size;

/// The prefix of environment variables; `__` also separates the levels of a key.
pub const ENV_PREFIX: &str = "PACKMIRROR__";
/// The variable that names the settings file, as `--config` does.
pub const ENV_FILE: &str = "PACKMIRROR__CONFIG";

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// The key in the TOML file, with a dot for a table's member.
    pub name: &'static str,
    /// What a value looks like.
    pub kind: Kind,
    /// What holds when nothing is set.
    pub default: Standard,
    /// Heading in help and listings.
    pub group: Group,
    /// One sentence on what it does.
    pub help: &'static str,
}

/// What of packmirror a setting concerns: the commands that use that show it in their help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Every command.
    All,
    /// Whoever opens the store.
    Store,
    /// Whoever asks the primary with the service credential.
    Primary,
    /// Whoever syncs.
    Sync,
    /// Whoever writes records, or deletes what none names.
    Collect,
    /// A node alone.
    Node,
}

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Free text, here named for the help.
    Text(&'static str),
    /// A directory or file; relative to the settings file, or to the working directory for flags and environment.
    Path(&'static str),
    /// A URL or a directory.
    Place(&'static str),
    /// `ADDR:PORT`.
    Address,
    /// A duration.
    Duration,
    /// A size in bytes.
    Size,
    /// A whole number above zero.
    Count,
    /// True or false.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of globs.
    Globs,
    /// A list of IP addresses and networks.
    Networks,
    /// Text that must never be shown; it has no flag, since command lines are public on a machine.
    Secret,
}

/// What holds when nothing is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// This text, read like a value from the environment.
    Is(&'static str),
    /// Computed at start; the text describes it.
    Computed(&'static str),
    /// Nothing; the text says what that means.
    Unset(&'static str),
}

/// Heading a setting stands under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Primary, bucket, cache, address: what a first start needs.
    Basic,
    /// Reaching the primary.
    Primary,
    /// Freshness and grants.
    Freshness,
    /// Mirroring.
    Mirroring,
    /// Serving and its bounds.
    Serving,
    /// The log.
    Logging,
    /// Reaching the S3 server.
    S3,
    /// Deleting what nobody names any more.
    Collection,
    /// Bounds against oversized input.
    Limits,
    /// Looking whether what is stored is whole.
    Vetting,
}

impl Group {
    /// The heading as people read it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Basic => "Settings",
            Self::Primary => "Reaching the primary",
            Self::Freshness => "Freshness and grants",
            Self::Mirroring => "Mirroring",
            Self::Serving => "Serving",
            Self::Logging => "Logging",
            Self::S3 => "Reaching the S3 server",
            Self::Collection => "Collection",
            Self::Limits => "Limits",
            Self::Vetting => "Vetting",
        }
    }
}

/// All settings, in the order in which they are shown: top-level keys before those of tables.
#[rustfmt::skip] // two lines a setting, not seven
pub const KEYS: &[Key] = &[
    key("primary", Kind::Place("URL_OR_DIRECTORY"), Standard::Unset("none, and most commands need one"), Group::Basic,
        "The Git host to mirror, or a directory of bare repositories"),
    key("store", Kind::Place("URL_OR_DIRECTORY"), Standard::Computed("packmirror/store in the user's data directory"), Group::Basic,
        "The bucket: s3://BUCKET/PREFIX, or a directory, empty or new at first"),
    key("cache_dir", Kind::Path("DIR"), Standard::Computed("packmirror in the user's cache directory"), Group::Basic,
        "This node's cache: an empty or new directory; one process owns it, and it may be deleted while none runs"),
    key("listen", Kind::Address, Standard::Is("127.0.0.1:8080"), Group::Basic,
        "Where `serve` listens; port 0 takes a free port"),
    key("admin_listen", Kind::Address, Standard::Unset("none"), Group::Serving,
        "A listener of its own for /metrics, /status, /readyz and /livez, to the end of a drain; with it `listen` does not answer /metrics"),
    key("credential", Kind::Secret, Standard::Unset("none"), Group::Primary,
        "Service credential for syncs of private repositories: user:password, or a token; not a flag, since command lines can be read by others"),
    key("credential_file", Kind::Path("FILE"), Standard::Unset("none"), Group::Primary,
        "File with the service credential, read anew whenever it is needed"),
    key("insecure_primary", Kind::Switch, Standard::Is("false"), Group::Primary,
        "Allow plain HTTP to a primary that is not on this machine; credentials then travel in the clear"),
    key("primary_ca_file", Kind::Path("FILE"), Standard::Unset("the system's authorities alone"), Group::Primary,
        "PEM file with further certificate authorities for the primary"),
    key("primary_address", Kind::Address, Standard::Unset("where the name of the primary leads"), Group::Primary,
        "Where to connect for the primary, IP:PORT, if its own name leads to this mirror; TLS and Host stay the name's"),
    key("primary_connect_timeout", Kind::Duration, Standard::Is("10s"), Group::Primary,
        "How long a connection to the primary may take to open"),
    key("primary_read_timeout", Kind::Duration, Standard::Is("2m"), Group::Primary,
        "How long the primary may be silent within an answer"),
    key("allow_push", Kind::Switch, Standard::Is("false"), Group::Primary,
        "Let everybody who reaches this node push to a primary that is a directory; off, only where a repository has http.receivepack = true"),
    key("freshness", Kind::Choice(&["strict", "bounded"]), Standard::Is("strict"), Group::Freshness,
        "strict: refs are the primary's live answer; bounded: what was equal to the primary within max_age"),
    key("max_age", Kind::Duration, Standard::Is("30s"), Group::Freshness,
        "How old the last comparison may be with freshness = bounded"),
    key("grant_ttl", Kind::Duration, Standard::Is("30s"), Group::Freshness,
        "How long the primary's yes for a credential and a repository is remembered; 0s asks every time, at most 5m"),
    key("on_primary_down", Kind::Choice(&["deny", "serve-verified"]), Standard::Is("deny"), Group::Freshness,
        "While the primary does not answer: deny with 503, or serve the last verified state to live grants"),
    key("mirror", Kind::Globs, Standard::Is("**"), Group::Mirroring,
        "Repositories to mirror; * stays within a path segment, ** crosses them, ! takes out again, the last match decides"),
    key("unselected", Kind::Choice(&["pass", "refuse"]), Standard::Is("pass"), Group::Mirroring,
        "Repositories that are not selected are passed through to the primary, or refused"),
    key("compare_every", Kind::Duration, Standard::Is("3m"), Group::Mirroring,
        "How often each mirrored repository is compared with the primary"),
    key("sync_wait", Kind::Duration, Standard::Is("10s"), Group::Mirroring,
        "How long a fetch waits for a sync that brings what it wants before it is passed through"),
    key("max_syncs", Kind::Count, Standard::Is("4"), Group::Mirroring, "First syncs that run at the same time; as many increments run beside them, and as many more for waiting clients"),
    key("max_new_per_minute", Kind::Count, Standard::Is("60"), Group::Mirroring,
        "Repositories that a node takes up a minute because clients ask for them; the others are passed through until later"),
    key("max_repositories", Kind::Count, Standard::Is("10000"), Group::Mirroring,
        "Repositories up to which a node takes up new ones; further ones are passed through"),
    key("other_paths", Kind::Choice(&["redirect", "pass", "refuse"]), Standard::Is("redirect"), Group::Serving,
        "What is not Git (web pages, archives, interfaces): send the client to the primary, pass it on to the primary, or refuse it with 404"),
    key("trusted_proxies", Kind::Networks, Standard::Unset("none"), Group::Serving,
        "Addresses and networks of proxies in front, whose X-Forwarded-For, -Host and -Proto the primary gets to see"),
    key("cache_max", Kind::Size, Standard::Is("20GiB"), Group::Serving, "Bound of the cache on disk"),
    key("drain_delay", Kind::Duration, Standard::Is("5s"), Group::Serving,
        "How long after SIGTERM the node says on /readyz that it is not ready, and serves as usual, before it takes no new connections; SIGINT and a second signal end it"),
    key("drain_timeout", Kind::Duration, Standard::Is("60s"), Group::Serving,
        "How long requests in flight may go on after that"),
    key("log_format", Kind::Choice(&["auto", "text", "json"]), Standard::Is("auto"), Group::Logging,
        "Log as text or JSON; auto is text on a terminal and JSON otherwise"),
    key("log_level", Kind::Text("LEVEL"), Standard::Is("info"), Group::Logging,
        "off, error, warn, info, debug or trace for packmirror itself, or a filter such as packmirror=debug,hyper=info; RUST_LOG is used where this is not set"),
    key("s3.endpoint", Kind::Text("URL"), Standard::Unset("AWS, or AWS_ENDPOINT_URL"), Group::S3,
        "URL of the S3 server"),
    key("s3.region", Kind::Text("REGION"), Standard::Unset("the AWS configuration's"), Group::S3,
        "Region of the bucket"),
    key("s3.path_style", Kind::Switch, Standard::Computed("true where s3.endpoint is set"), Group::S3,
        "Put the bucket into the path, not into the host name"),
    key("s3.allow_http", Kind::Switch, Standard::Is("false"), Group::S3,
        "Allow plain HTTP to an S3 server that is not on this machine"),
    key("gc.every", Kind::Duration, Standard::Is("24h"), Group::Collection,
        "How often a node of the farm deletes from the bucket what nobody names any more; 0s leaves it to `packmirror gc`"),
    key("gc.grace", Kind::Duration, Standard::Is("24h"), Group::Collection,
        "How long data stays in the bucket after it was named last; the longest of all nodes counts, and it is not shorter than limits.transfer"),
    key("gc.gone_after", Kind::Duration, Standard::Is("7d"), Group::Collection,
        "How long a repository that the primary does not have any more is kept, served to nobody, in case it comes back; 0s keeps it for ever"),
    key("answers.share", Kind::Count, Standard::Is("50"), Group::Serving,
        "How much of the bucket answers that are asked for again and again may take, in percent of their repository's packs; 0: none are stored"),
    key("answers.depth1", Kind::Switch, Standard::Is("true"), Group::Serving,
        "Store the answer to a clone of depth 1 of HEAD before it is asked for, where it costs much"),
    key("limits.request", Kind::Size, Standard::Is("32MiB"), Group::Limits,
        "Largest fetch request after decompression"),
    key("limits.memory", Kind::Size, Standard::Is("512MiB"), Group::Limits,
        "Memory for all that is held for clients: requests, plans, streams, objects packed anew; what needs more is passed on or refused"),
    key("limits.object", Kind::Size, Standard::Is("4GiB"), Group::Limits,
        "Largest single object that a sync accepts"),
    key("limits.sync_memory", Kind::Size, Standard::Is("768MiB"), Group::Limits,
        "Memory that all syncs may hold together for what primaries send; a repository that needs more is not mirrored"),
    key("limits.connections", Kind::Count, Standard::Is("4096"), Group::Limits,
        "Open client connections; a further one takes the place of the one that is idle longest"),
    key("limits.client_timeout", Kind::Duration, Standard::Is("5m"), Group::Limits,
        "A client that neither sends nor reads for this long is cut off"),
    key("limits.transfer", Kind::Duration, Standard::Is("6h"), Group::Limits,
        "Longest stream of one pack to a client; what takes longer is cut off, since the data may be deleted under it"),
    key("vet.exists_every", Kind::Duration, Standard::Is("24h"), Group::Vetting,
        "How often it is looked whether every blob that is named is in the bucket with its length, by one node for all; 0s never"),
    key("vet.hash_every", Kind::Duration, Standard::Is("30d"), Group::Vetting,
        "How often every stored byte is read again and hashed, by one node for all; 0s never"),
    key("vet.rate", Kind::Size, Standard::Is("20MiB"), Group::Vetting,
        "Bytes a second that a node reads for that at most"),
];

const fn key(name: &'static str, kind: Kind, default: Standard, group: Group, help: &'static str) -> Key {
    Key { name, kind, default, group, help }
}

/// Finds a setting by its name in the TOML file.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    /// The environment variable: `s3.path_style` is `PACKMIRROR__S3__PATH_STYLE`.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.replace('.', "__").to_ascii_uppercase())
    }

    /// What the setting concerns.
    pub fn part(&self) -> Part {
        match self.name {
            "store" => Part::Store,
            "mirror" | "primary" => Part::Primary,
            "max_syncs" | "cache_max" | "limits.object" | "limits.sync_memory" => Part::Sync,
            "gc.grace" | "limits.transfer" => Part::Collect,
            "allow_push" => Part::Node,
            _ => match self.group {
                Group::Logging => Part::All,
                Group::S3 => Part::Store,
                Group::Primary => Part::Primary,
                Group::Basic
                | Group::Freshness
                | Group::Mirroring
                | Group::Serving
                | Group::Collection
                | Group::Limits
                | Group::Vetting => Part::Node,
            },
        }
    }

    /// The flag without its dashes: `s3.path_style` is `s3-path-style`. Secrets have none.
    pub fn flag(&self) -> Option<String> {
        (self.kind != Kind::Secret).then(|| self.name.replace(['.', '_'], "-"))
    }

    /// The default as help texts show it.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            Standard::Is(text) | Standard::Computed(text) | Standard::Unset(text) => text,
        }
    }
}

impl Kind {
    /// Says what to write, for error messages.
    pub fn example(self) -> String {
        match self {
            Self::Text(what) => format!("a text ({what})"),
            Self::Path(_) => "a path such as \"/var/lib/packmirror\"".into(),
            Self::Place(_) => {
                "a URL such as \"https://git.example.com\" or a directory such as \"/srv/git\"".into()
            }
            Self::Address => "an address and a port such as \"127.0.0.1:8080\" or \"0.0.0.0:80\"".into(),
            Self::Duration => "a duration such as \"30s\", \"3m\" or \"1h 30m\"".into(),
            Self::Size => "a size such as \"512MiB\" or \"20GiB\", or a number of bytes".into(),
            Self::Count => "a whole number above zero".into(),
            Self::Switch => "true or false".into(),
            Self::Choice(words) => {
                words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
            }
            Self::Globs => "a list of globs such as [\"team/*\", \"!team/secret\"]".into(),
            Self::Networks => {
                "a list of addresses and networks such as [\"10.0.0.0/8\", \"2001:db8::1\"]".into()
            }
            Self::Secret => "\"user:password\" or a token, as text".into(),
        }
    }

    /// The placeholder in a flag's help.
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Text(what) | Self::Path(what) | Self::Place(what) => what,
            Self::Address => "ADDR:PORT",
            Self::Duration => "DURATION",
            Self::Size => "SIZE",
            Self::Count => "NUMBER",
            Self::Switch => "true|false",
            Self::Choice(_) => "WORD",
            Self::Globs => "GLOB",
            Self::Networks => "NETWORK",
            Self::Secret => "SECRET",
        }
    }

    /// Says why `value` does not fit, if it does not. Whether it makes sense is looked at later (`check`).
    pub fn misfit(self, value: &Value) -> Option<String> {
        let fits = match (self, value) {
            (Self::Secret, value) => return (!value.is_str()).then(|| "its value is not text".to_owned()),
            (Self::Text(_) | Self::Path(_) | Self::Place(_), value) => value.is_str(),
            (Self::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (Self::Duration, Value::String(text)) => match humantime::parse_duration(text) {
                Ok(_) => true,
                Err(bad) => return Some(format!("{value} is no duration: {bad}")),
            },
            (Self::Size, Value::String(text)) => match size::parse(text) {
                Ok(_) => true,
                Err(bad) => return Some(format!("{value} is no size: {bad}")),
            },
            (Self::Size, Value::Integer(bytes)) => *bytes >= 0,
            (Self::Count, Value::Integer(number)) => usize::try_from(*number).is_ok(),
            (Self::Switch, Value::Boolean(_)) => true,
            (Self::Choice(words), Value::String(word)) => match words.contains(&word.as_str()) {
                true => true,
                false => return Some(format!("{value} is not one of its words")),
            },
            (Self::Globs, Value::Array(globs)) => globs.iter().all(Value::is_str),
            (Self::Networks, Value::Array(networks)) => {
                let parsed = networks.iter().map(|one| one.as_str().and_then(network));
                match parsed.zip(networks).find(|(parsed, _)| parsed.is_none()) {
                    None => true,
                    Some((_, bad)) => return Some(format!("{bad} is no address and no network")),
                }
            }
            _ => false,
        };
        (!fits).then(|| format!("{value} does not fit"))
    }

    /// Turns text from the environment or a flag into the value that the TOML file would hold.
    /// Only the form is looked at here; whether it fits when all layers are merged ([`Kind::misfit`]).
    pub fn value(self, text: &str) -> Result<Value, String> {
        Ok(match self {
            Self::Count => {
                Value::Integer(text.trim().parse().map_err(|_| format!("\"{text}\" is not a number"))?)
            }
            Self::Switch => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Value::Boolean(true),
                "false" | "0" | "no" | "off" => Value::Boolean(false),
                _ => return Err(format!("\"{text}\" is neither true nor false")),
            },
            Self::Globs | Self::Networks => {
                Value::Array(globs(text).into_iter().map(Value::String).collect())
            }
            Self::Size => Value::String(size::parse(text).map(size::format).map_err(|bad| bad.to_string())?),
            _ => Value::String(text.to_owned()),
        })
    }
}

/// Reads an address or a network; an IPv4 one in IPv6's clothes is what it is.
pub fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical().into()),
        Err(_) => text.parse().ok(),
    }
}

/// Splits a list of globs at commas, but not inside `{…}`. A TOML array is taken too.
fn globs(text: &str) -> Vec<String> {
    let list = text.trim();
    if list.starts_with('[')
        && let Ok(table) = format!("list = {list}").parse::<toml::Table>()
        && let Some(Value::Array(items)) = table.get("list")
        && let Some(globs) = items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    {
        return globs;
    }
    let (mut parts, mut part, mut depth) = (Vec::new(), String::new(), 0usize);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    parts.push(part);
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// The table of settings for the README, in Markdown.
pub fn markdown() -> String {
    let mut out = String::from("| key | default | meaning |\n|---|---|---|\n");
    for key in KEYS {
        let default = match key.default {
            Standard::Is(text) => format!("`{text}`"),
            Standard::Computed(text) | Standard::Unset(text) => text.to_owned(),
        };
        out.push_str(&format!("| `{}` | {default} | {} |\n", key.name, key.help.replace('|', "\\|")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_tables_come_last() {
        let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        let first_table = names.iter().position(|name| name.contains('.')).unwrap();
        assert!(names[first_table..].iter().all(|name| name.contains('.')));
    }

    #[test]
    fn the_readme_has_the_table() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
        assert!(readme.contains(&markdown()), "README.md should hold:\n{}", markdown());
    }

    #[test]
    fn a_list_of_globs_is_split_outside_braces() {
        assert_eq!(globs("team/*, !team/{a,b},,"), ["team/*", "!team/{a,b}"]);
        assert_eq!(globs(r#"["team/*", "!x"]"#), ["team/*", "!x"]);
        assert_eq!(globs("[ab]/*"), ["[ab]/*"]);
        assert!(globs("").is_empty());
    }

    #[test]
    fn names_follow_the_key() {
        let key = find("s3.path_style").unwrap();
        assert_eq!(key.env(), "PACKMIRROR__S3__PATH_STYLE");
        assert_eq!(key.flag().as_deref(), Some("s3-path-style"));
        assert_eq!(find("credential").unwrap().flag(), None);
    }
}
