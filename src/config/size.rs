//! Sizes as people write them: `20GiB`, `512MiB`, `1.5GB`, or plain bytes.
//!
//! Powers of 1024 are `KiB`, `MiB`, `GiB`, `TiB` (or `K`, `M`, `G`, `T` as git has them), powers of 1000 are
//! `KB`, `MB`, `GB`, `TB`. Used as `#[serde(with = "size")]` on a `u64` of bytes.

use serde::de::{self, Visitor};
use serde::{Deserializer, Serializer};

/// Units with their number of bytes, the preferred spelling of each power of 1024 first.
const UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("B", 1),
    ("", 1),
];

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    /// No number in front.
    #[error("no number of bytes in it")]
    NoNumber,
    /// A unit we do not know.
    #[error("\"{0}\" is not a unit of size")]
    Unit(String),
    /// More than a `u64` of bytes.
    #[error("it is too large")]
    TooLarge,
}

/// Reads a size in bytes. Fractions are allowed with a unit and rounded down to whole bytes.
pub fn parse(text: &str) -> Result<u64, BadSize> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim();
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return Err(BadSize::NoNumber);
    }
    let (_, scale) = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .ok_or_else(|| BadSize::Unit(unit.to_owned()))?;
    let whole: u64 = whole.parse().map_err(|_| BadSize::TooLarge)?;
    let mut bytes = u128::from(whole) * u128::from(*scale);
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().map_err(|_| BadSize::NoNumber)?;
        bytes += digits * u128::from(*scale) / 10u128.pow(fraction.len() as u32);
    }
    u64::try_from(bytes).map_err(|_| BadSize::TooLarge)
}

/// Writes a size so that [`parse`] gives the same number: the largest binary unit that divides it.
pub fn format(bytes: u64) -> String {
    match UNITS[..4].iter().find(|(_, scale)| bytes != 0 && bytes.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{}{unit}", bytes / scale),
        None => bytes.to_string(),
    }
}

/// Serialises a number of bytes as text with a unit.
pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*bytes))
}

/// Takes text with a unit, or an integer of bytes.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Size;
    impl Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a size")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            parse(text).map_err(E::custom)
        }

        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<u64, E> {
            Ok(bytes)
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::custom("a size is not negative"))
        }
    }
    deserializer.deserialize_any(Size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, want) in [
            ("20GiB", Ok(20 << 30)),
            ("20 gib", Ok(20 << 30)),
            ("1.5K", Ok(1536)),
            ("10MB", Ok(10_000_000)),
            ("4096", Ok(4096)),
            ("1_000B", Ok(1000)),
            ("0", Ok(0)),
            ("", Err(BadSize::NoNumber)),
            ("GiB", Err(BadSize::NoNumber)),
            ("1.2.3G", Err(BadSize::NoNumber)),
            ("-1G", Err(BadSize::NoNumber)),
            ("20 bananas", Err(BadSize::Unit("bananas".into()))),
            ("99999999TiB", Err(BadSize::TooLarge)),
            ("99999999999999999999", Err(BadSize::TooLarge)),
        ] {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn what_is_written_is_read_back(bytes: u64) {
            prop_assert_eq!(parse(&format(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = parse(&text);
        }
    }
}
