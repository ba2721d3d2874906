//! Settings as flags, made from the table of settings: one flag a key, on every command.
//!
//! Every command takes every flag, so that a script can give all commands the same; help shows those that the command uses.
//! Values stay text here; they are read by `config` exactly like those of the environment, so that a bad value
//! gets the same message wherever it was written. Short help shows the basic ones, long help all.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};

use crate::config::keys::{ENV_FILE, Group, KEYS, Key, Kind, Part};

/// The flags that were given.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The settings file.
    pub config: Option<PathBuf>,
    /// Names of settings, and the texts given for each.
    pub given: Vec<(&'static str, Vec<String>)>,
}

impl Flags {
    /// The text given for a setting, the last if it was given more than once.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.given.iter().find(|(given, _)| *given == name)?.1.last().map(String::as_str)
    }

    /// The flags as arguments for another process of packmirror.
    pub fn arguments(&self) -> Vec<String> {
        let config = self.config.iter().map(|path| format!("--config={}", path.display()));
        let given = self.given.iter().flat_map(|(name, texts)| {
            let flag = name.replace(['.', '_'], "-");
            texts.iter().map(move |text| format!("--{flag}={text}"))
        });
        config.chain(given).collect()
    }
}

/// The flags' names live as long as the process: clap borrows them.
static NAMES: LazyLock<Vec<(&'static Key, String)>> =
    LazyLock::new(|| KEYS.iter().filter_map(|key| Some((key, key.flag()?))).collect());

fn flag(key: &'static Key, name: &'static str) -> Arg {
    let help = format!("{} [default: {}] [env: {}]", key.help, key.default_text(), key.env());
    let arg = Arg::new(key.name)
        .long(name)
        .value_name(key.kind.placeholder())
        .help(help)
        .help_heading(key.group.title())
        .hide_short_help(key.group != Group::Basic)
        .global(true)
        .action(ArgAction::Set);
    match key.kind {
        Kind::Choice(words) => arg.value_parser(PossibleValuesParser::new(words)).hide_possible_values(true),
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Globs | Kind::Networks => arg.action(ArgAction::Append),
        Kind::Path("DIR") => arg.value_hint(ValueHint::DirPath),
        Kind::Path(_) => arg.value_hint(ValueHint::FilePath),
        Kind::Place(_) => arg.value_hint(ValueHint::AnyPath),
        _ => arg,
    }
}

/// What the commands use beside what all do; a command that is not here uses every setting.
const USES: &[(&str, &[Part])] = &[
    ("sync", &[Part::Store, Part::Primary, Part::Sync, Part::Collect]),
    ("vet", &[Part::Store, Part::Primary, Part::Sync, Part::Collect]),
    ("purge", &[Part::Store, Part::Primary, Part::Sync, Part::Collect]),
    ("gc", &[Part::Store, Part::Collect]),
    ("adopt", &[Part::Store, Part::Primary]),
    ("ls", &[Part::Store]),
    ("status", &[Part::Store]),
    ("export", &[Part::Store]),
    ("rm", &[Part::Store]),
    ("completions", &[]),
];

/// Says whether a command uses a setting.
fn uses(command: &str, key: &Key) -> bool {
    if command == "git-credential" {
        return key.name == "primary";
    }
    let Some((_, parts)) = USES.iter().find(|(name, _)| *name == command) else {
        // The demo makes these itself.
        return command != "demo" || !matches!(key.name, "store" | "cache_dir" | "listen");
    };
    parts.contains(&key.part()) || key.part() == Part::All && !parts.is_empty()
}

/// The whole command line, ready to be parsed: each command's help shows the settings that it uses. The others are taken and
/// have no effect.
pub fn fitted(mut whole: Command) -> Command {
    let names: Vec<String> = whole.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for command in &names {
        whole = whole.mut_subcommand(command, |sub| {
            // What a command has already is not handed down to it.
            sub.args(
                NAMES
                    .iter()
                    .filter(|(key, _)| !uses(command, key))
                    .map(|(key, name)| flag(key, name).hide(true)),
            )
        });
    }
    whole.build();
    whole
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help(format!("Settings file in TOML [default: none] [env: {ENV_FILE}]"))
            .help_heading(Group::Basic.title())
            .value_parser(clap::value_parser!(PathBuf))
            .value_hint(ValueHint::FilePath)
            .global(true);
        command.arg(config).args(NAMES.iter().map(|(key, name)| flag(key, name)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let texts = |key: &Key| matches.get_many::<String>(key.name).map(|all| all.cloned().collect());
        Ok(Self {
            config: matches.get_one("config").cloned(),
            given: NAMES.iter().filter_map(|(key, _)| Some((key.name, texts(key)?))).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    #[test]
    fn arguments_parse_to_the_same_flags() {
        let line = [
            "packmirror",
            "ls",
            "--s3-endpoint",
            "https://x",
            "--mirror=!a",
            "--mirror=b",
            "--config",
            "/c d",
        ];
        let first = Cli::try_parse_from(line).unwrap().flags;
        let again = ["packmirror".to_owned()].into_iter().chain(first.arguments()).chain(["ls".to_owned()]);
        let second = Cli::try_parse_from(again).unwrap().flags;
        assert_eq!(first.given, second.given);
        assert_eq!(first.config, second.config);
        assert_eq!(first.get("mirror"), Some("b"));
        assert_eq!(first.get("store"), None);
    }
}
