//! The effective settings as TOML: secrets left out, each line with the place it came from.
//!
//! The output can be saved and loaded again: what is secret or not set is a comment.

use toml::Value;

use super::error::Origin;
use super::keys::{Group, KEYS, Kind, Standard};
use super::load::Loaded;

/// Writes the settings.
pub fn show(loaded: &Loaded) -> Result<String, toml::ser::Error> {
    let all = Value::try_from(&loaded.settings)?;
    let mut out =
        String::from("# Effective settings of packmirror; each comment names where the value came from.\n");
    out.push_str(
        "# Later wins: default, other tools' variables, settings file, PACKMIRROR__… variables, flags.\n",
    );
    let (mut table, mut group) = ("", None::<Group>);
    for key in KEYS {
        let (in_table, member) = key.name.split_once('.').unwrap_or(("", key.name));
        if group.replace(key.group) != Some(key.group) {
            out.push_str(&format!("\n# {}\n", key.group.title()));
        }
        if in_table != table {
            out.push_str(&format!("[{in_table}]\n"));
            table = in_table;
        }
        let origin = loaded.origins.get(key.name);
        let line = match (key.kind, lookup(&all, key.name), origin) {
            (Kind::Secret, _, Some(origin)) => format!("# {member} is set and not shown (from {origin})"),
            (_, Some(value), origin) => {
                let from = origin.unwrap_or(&Origin::Default);
                format!("{:<44} # {}", format!("{member} = {}", inline(value)), printable(&from.to_string()))
            }
            (_, None, _) => {
                let means = match key.default {
                    Standard::Unset(means) => means,
                    Standard::Is(_) | Standard::Computed(_) => "none",
                };
                format!("# {member} is not set: {means}")
            }
        };
        out.push_str(&line);
        out.push('\n');
    }
    Ok(out)
}

/// Finds a dotted key in nested tables.
fn lookup<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(value, |value, part| value.get(part))
}

/// Writes a value on one line.
fn inline(value: &Value) -> String {
    value.to_string().replace('\n', " ")
}

fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}
