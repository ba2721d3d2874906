//! The seal: the last look at a merged layer before it replaces what it was made from.
//!
//! It compares ids, as the `.idx` files have them, and uses nothing of what selected, laid out or wrote the objects: an
//! error there cannot hide itself. Nothing is published without it.

use std::sync::Arc;

use gix_hash::ObjectId;

use crate::pack::layer::Layer;

/// Why a merged layer may not replace its inputs. Nothing was published; please report it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An object of an input that is to be kept.
    #[error("object {0} of a merged layer is not in the result")]
    Lost(ObjectId),
    /// An object that no input holds, or one that the result holds twice.
    #[error("object {0} of the result is in no merged layer, or stands there twice")]
    Foreign(ObjectId),
    /// An object that was to be left out.
    #[error("object {0} of the result was to be left out")]
    Kept(ObjectId),
    /// What a ref names.
    #[error("object {0}, which a ref names, is neither in the result nor below it")]
    Tip(ObjectId),
}

/// Checks that `output` holds what the `inputs` hold, each object once, and that with what lies `below` it covers all `tips`.
/// Where objects were left out on purpose, `is_kept` says which are not; no other one is in it.
pub fn check(
    inputs: &[Arc<Layer>],
    output: &Layer,
    below: &[Arc<Layer>],
    tips: &[ObjectId],
    is_kept: impl Fn(&ObjectId) -> bool,
) -> Result<(), Broken> {
    for layer in inputs {
        for rank in 0..layer.idx.num_objects() {
            let id = layer.idx.oid_at_index(rank);
            if output.idx.lookup(id).is_none() && is_kept(&id.to_owned()) {
                return Err(Broken::Lost(id.to_owned()));
            }
        }
    }
    let mut last = None;
    for rank in 0..output.idx.num_objects() {
        let id = output.idx.oid_at_index(rank);
        let is_new = last.is_none_or(|last| last < id);
        if !is_new || !inputs.iter().any(|layer| layer.idx.lookup(id).is_some()) {
            return Err(Broken::Foreign(id.to_owned()));
        }
        if !is_kept(&id.to_owned()) {
            return Err(Broken::Kept(id.to_owned()));
        }
        last = Some(id);
    }
    let covers = |tip: &ObjectId| {
        output.idx.lookup(tip).is_some() || below.iter().any(|layer| layer.idx.lookup(tip).is_some())
    };
    match tips.iter().find(|tip| !covers(tip)) {
        Some(tip) => Err(Broken::Tip(*tip)),
        None => Ok(()),
    }
}
