//! Layers: the same keys as given by one place: the file, the environment, the flags.
//!
//! A layer holds only keys of the table; collecting one fails on any other, with the nearest key named.

use std::collections::BTreeMap;
use std::path::Path;

use strsim::levenshtein;
use toml::{Table, Value};

use super::error::{ConfigError, Origin, UnknownKey};
use super::keys::{ENV_FILE, ENV_PREFIX, KEYS, Key, Kind, find};

/// A value and where it came from.
#[derive(Clone)]
pub struct Given {
    /// The value as the TOML file would hold it.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// What one place gives. No `Debug`: values may be secret.
#[derive(Clone, Default)]
pub struct Layer(pub BTreeMap<&'static str, Given>);

impl Layer {
    fn set(&mut self, key: &'static Key, value: Value, origin: Origin) {
        self.0.insert(key.name, Given { value, origin });
    }

    /// Sets a key from text, as the environment and flags give it.
    pub fn set_text(&mut self, key: &'static Key, text: &str, origin: Origin) -> Result<(), ConfigError> {
        match key.kind.value(text) {
            Ok(value) => {
                self.set(key, value, origin);
                Ok(())
            }
            Err(why) => Err(ConfigError::Bad { key: key.name, origin, why, write: key.kind.example() }),
        }
    }

    /// Collects a settings file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        let table: Table = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes().iter().take(start).filter(|byte| **byte == b'\n').count();
            ConfigError::Syntax { path: path.to_owned(), line, why: error.message().to_owned() }
        })?;
        let (mut layer, mut unknown) = (Self::default(), Vec::new());
        layer.walk("", table, &Origin::File(path.to_owned()), &mut unknown);
        if unknown.is_empty() { Ok(layer) } else { Err(ConfigError::Unknown(unknown)) }
    }

    fn walk(&mut self, prefix: &str, table: Table, origin: &Origin, unknown: &mut Vec<UnknownKey>) {
        for (member, value) in table {
            let name = format!("{prefix}{member}");
            let inner = format!("{name}.");
            match (find(&name), value) {
                (Some(key), value) => self.set(key, value, origin.clone()),
                (None, Value::Table(table)) if KEYS.iter().any(|key| key.name.starts_with(&inner)) => {
                    self.walk(&inner, table, origin, unknown);
                }
                (None, _) => {
                    let nearest = nearest(&name).map(|key| format!("\"{}\"", key.name));
                    unknown.push(UnknownKey { name, origin: origin.clone(), nearest });
                }
            }
        }
    }

    /// Collects the `PACKMIRROR__…` variables. An empty value counts as not set.
    pub fn from_env(env: &[(String, String)]) -> Result<Self, ConfigError> {
        let (mut layer, mut unknown) = (Self::default(), Vec::new());
        for (variable, text) in env {
            let upper = variable.to_ascii_uppercase();
            let Some(rest) = upper.strip_prefix(ENV_PREFIX) else { continue };
            if upper == ENV_FILE || text.is_empty() {
                continue;
            }
            let name = rest.to_ascii_lowercase().replace("__", ".");
            let origin = Origin::Env(variable.clone());
            match find(&name) {
                Some(key) => layer.set_text(key, text, origin)?,
                None => {
                    unknown.push(UnknownKey {
                        name: variable.clone(),
                        origin,
                        nearest: nearest(&name).map(Key::env),
                    });
                }
            }
        }
        if unknown.is_empty() { Ok(layer) } else { Err(ConfigError::Unknown(unknown)) }
    }

    /// Collects what other tools' variables say, so that `packmirror config` shows it as well.
    pub fn from_ambient(env: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (variable, name) in AMBIENT {
            let Some((_, text)) = env.iter().find(|(given, text)| given == variable && !text.is_empty())
            else {
                continue;
            };
            let Some(key) = find(name) else { continue };
            layer.set_text(key, text, Origin::Ambient(variable))?;
            if *variable == "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
                && let Some(Given { value: Value::Boolean(flag), .. }) = layer.0.get_mut(name)
            {
                *flag = !*flag;
            }
        }
        Ok(layer)
    }

    /// Collects flags: name of the setting and the texts given for it.
    pub fn from_flags(flags: &[(&'static str, Vec<String>)]) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (name, texts) in flags {
            let Some(key) = find(name) else { continue };
            let origin = Origin::Flag(format!("--{}", key.flag().unwrap_or_default()));
            if matches!(key.kind, Kind::Globs | Kind::Networks) {
                // A comma may be part of a glob.
                let list = texts.iter().flat_map(|text| match key.kind {
                    Kind::Globs => vec![text.as_str()],
                    _ => text.split(',').map(str::trim).collect(),
                });
                let list = list.map(|text| Value::String(text.to_owned())).collect();
                layer.set(key, Value::Array(list), origin);
            } else if let Some(text) = texts.last() {
                layer.set_text(key, text, origin)?;
            }
        }
        Ok(layer)
    }
}

/// Variables of other tools that we honour below everything that was said to packmirror itself; of two for
/// one key the later wins.
const AMBIENT: &[(&str, &str)] = &[
    ("AWS_ENDPOINT", "s3.endpoint"),
    ("AWS_ENDPOINT_URL", "s3.endpoint"),
    ("AWS_ENDPOINT_URL_S3", "s3.endpoint"),
    ("AWS_DEFAULT_REGION", "s3.region"),
    ("AWS_REGION", "s3.region"),
    ("AWS_ALLOW_HTTP", "s3.allow_http"),
    ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "s3.path_style"),
    ("RUST_LOG", "log_level"),
];

/// Finds the key that is nearest to a misspelt one, if any is near: by whole name or by its last part.
fn nearest(name: &str) -> Option<&'static Key> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let name = plain(name);
    let last = name.rsplit('.').next().unwrap_or_default().to_owned();
    KEYS.iter()
        .map(|key| {
            let tail = key.name.rsplit('.').next().unwrap_or_default();
            (levenshtein(&name, key.name).min(levenshtein(&last, tail).saturating_add(1)), key)
        })
        .min_by_key(|(far, _)| *far)
        .filter(|(far, _)| *far <= (name.len() / 3).max(2))
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_its_key() {
        for (wrong, right) in [
            ("max_ages", Some("max_age")),
            ("cache-dir", Some("cache_dir")),
            ("listne", Some("listen")),
            ("endpoint", Some("s3.endpoint")),
            ("s3.pathstyle", Some("s3.path_style")),
            ("store.region", Some("s3.region")),
            ("frobnicate_everything", None),
        ] {
            assert_eq!(nearest(wrong).map(|key| key.name), right, "{wrong}");
        }
    }
}
