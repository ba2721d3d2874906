//! Loading: layers are merged, typed, completed and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, Origin};
use super::keys::{ENV_FILE, KEYS, Kind, Standard, find};
use super::layers::{Given, Layer};
use super::{Settings, check};

/// Everything that settings are made from; nothing else is read.
#[derive(Clone, Default)]
pub struct Inputs {
    /// The settings file, from `--config`; otherwise `PACKMIRROR__CONFIG` may name it.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// Flags: name of the setting and the texts given for it.
    pub flags: Vec<(&'static str, Vec<String>)>,
    /// Working directory: what relative paths of flags and environment are relative to.
    pub here: PathBuf,
    /// The user's data directory, for the default of `store`.
    pub data_dir: Option<PathBuf>,
    /// The user's cache directory, for the default of `cache_dir`.
    pub cache_dir: Option<PathBuf>,
}

impl Inputs {
    /// Takes environment and directories from the process.
    pub fn from_process(
        file: Option<PathBuf>,
        flags: Vec<(&'static str, Vec<String>)>,
    ) -> std::io::Result<Self> {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let here = std::env::current_dir()?;
        Ok(Self { file, env, flags, here, data_dir: dirs::data_dir(), cache_dir: dirs::cache_dir() })
    }
}

/// Settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Where each setting came from, by key; a key that is missing was not set and has no default.
    pub origins: BTreeMap<&'static str, Origin>,
    /// The settings file that was read.
    pub file: Option<PathBuf>,
}

/// Makes settings from `inputs`. All unknown keys of a place are reported at once; of bad values the first.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigError> {
    let file = inputs.file.clone().or_else(|| {
        let (_, name) = inputs.env.iter().find(|(name, value)| name == ENV_FILE && !value.is_empty())?;
        Some(PathBuf::from(name))
    });
    let from_file = file.as_deref().map(Layer::from_file).transpose()?.unwrap_or_default();
    let layers = [
        Layer::from_ambient(&inputs.env)?,
        from_file,
        Layer::from_env(&inputs.env)?,
        Layer::from_flags(&inputs.flags)?,
    ];
    let mut given: BTreeMap<&'static str, Given> = BTreeMap::new();
    for mut layer in layers {
        one_credential(&mut given, &layer)?;
        given.append(&mut layer.0);
    }
    for (name, one) in &mut given {
        settle_path(name, one, &inputs.here);
    }
    add_defaults(&mut given, inputs)?;

    for (name, one) in &given {
        fits(name, one)?;
    }
    let origins: BTreeMap<_, _> = given.iter().map(|(name, one)| (*name, one.origin.clone())).collect();
    // Only a key of the table that is no field, or the other way round, can fail here. Its error may show a value.
    let settings = table(given).try_into().map_err(|_| ConfigError::Bad {
        key: "settings",
        origin: Origin::Default,
        why: "a value has another type than its key".into(),
        write: "another value".into(),
    })?;
    check::check(&settings, &origins)?;
    Ok(Loaded { settings, origins, file })
}

/// `credential` and `credential_file` exclude each other: set in one place it is a mistake, otherwise the
/// stronger place wins.
fn one_credential(below: &mut BTreeMap<&'static str, Given>, layer: &Layer) -> Result<(), ConfigError> {
    let (one, other) = ("credential", "credential_file");
    match (layer.0.get(one), layer.0.get(other)) {
        (Some(_), Some(file)) => return Err(ConfigError::Both { one, other, origin: file.origin.clone() }),
        (Some(_), None) => drop(below.remove(other)),
        (None, Some(_)) => drop(below.remove(one)),
        (None, None) => {}
    }
    Ok(())
}

/// Makes a path absolute: relative to the settings file if it stands there, to the working directory otherwise.
/// What has a scheme, or is no text at all, stays.
fn settle_path(name: &str, one: &mut Given, here: &Path) {
    let kind = find(name).map(|key| key.kind);
    let (Value::String(text), Some(Kind::Path(_) | Kind::Place(_))) = (&mut one.value, kind) else { return };
    let path = Path::new(text.as_str());
    let is_place = matches!(kind, Some(Kind::Place(_)));
    if text.is_empty() || text.contains("://") || text.starts_with('~') || path.is_absolute() {
        return;
    }
    // A URL with a slip in it; a directory of such a name is written ./NAME.
    if is_place && check::has_scheme(text) {
        return;
    }
    let base = match &one.origin {
        Origin::File(file) => here.join(file).parent().map_or_else(|| here.to_owned(), Path::to_owned),
        _ => here.to_owned(),
    };
    // A bare name that is no directory is rather a host without its scheme: left as it is for the check.
    let bare = !text.starts_with('.') && is_place;
    let joined = base.join(path);
    if (name != "primary" || !bare || joined.exists())
        && let Some(joined) = joined.to_str()
    {
        *text = joined.to_owned();
    }
}

fn add_defaults(given: &mut BTreeMap<&'static str, Given>, inputs: &Inputs) -> Result<(), ConfigError> {
    let no_home = |key: &'static str| ConfigError::NoHome { key, flag: key.replace('_', "-") };
    for key in KEYS.iter().filter(|key| !matches!(key.default, Standard::Unset(_))) {
        if given.contains_key(key.name) {
            continue;
        }
        let value = match (key.name, key.default) {
            ("store", _) => {
                in_directory(&inputs.data_dir, "packmirror/store").ok_or_else(|| no_home("store"))?
            }
            ("cache_dir", _) => {
                in_directory(&inputs.cache_dir, "packmirror").ok_or_else(|| no_home("cache_dir"))?
            }
            ("s3.path_style", _) => Value::Boolean(given.contains_key("s3.endpoint")),
            (_, Standard::Is(text)) => key.kind.value(text).map_err(|why| ConfigError::Bad {
                key: key.name,
                origin: Origin::Default,
                why,
                write: key.kind.example(),
            })?,
            _ => continue,
        };
        given.insert(key.name, Given { value, origin: Origin::Default });
    }
    Ok(())
}

fn in_directory(dir: &Option<PathBuf>, name: &str) -> Option<Value> {
    Some(Value::String(dir.as_ref()?.join(name).to_str()?.to_owned()))
}

/// Checks that a value is of its key's kind.
fn fits(name: &str, one: &Given) -> Result<(), ConfigError> {
    let Some(key) = find(name) else { return Ok(()) };
    match key.kind.misfit(&one.value) {
        None => Ok(()),
        Some(why) => {
            let (origin, write) = (one.origin.clone(), key.kind.example());
            Err(ConfigError::Bad { key: key.name, origin, why, write })
        }
    }
}

/// The settings file that holds all of `given`.
fn table(given: BTreeMap<&'static str, Given>) -> Table {
    let mut whole = Table::new();
    for (name, one) in given {
        let (below, member) = match name.split_once('.') {
            None => (&mut whole, name),
            Some((table, member)) => {
                let inner = whole.entry(table).or_insert_with(|| Value::Table(Table::new()));
                let Value::Table(inner) = inner else { continue };
                (inner, member)
            }
        };
        below.insert(member.to_owned(), one.value);
    }
    whole
}
