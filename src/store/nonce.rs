//! Values that tell one attempt, node or collector from every other.

use crate::retry::Dice;

/// A fresh value for [`super::Generation::writer`]: 128 random bits in hex.
pub fn nonce() -> String {
    hex::encode(Dice::random().bytes::<16>())
}
