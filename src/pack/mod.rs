//! Inside a pack: entries, the graph, the stack of layers, and what is made from them.
//!
//! Everything here is pure: bytes in, values out; no socket, clock or file. Bytes of packs are
//! read through [`Source`], which the caller implements over files, a cache or a bucket.
//!
//! - [`write`](mod@write): a plan becomes the bytes of a pack.
//! - [`plan`]: which objects a request gets, and how they lie in its pack.
//! - [`history`]: questions about history, answered by the graph.
//! - [`filter`]: filters, and the walks over trees that some requests cannot do without.
//! - [`index`]: a pack that comes in is checked, completed and gets its `.idx`.
//! - [`layer`]: a pack as seen through its `.idx` and its graph; the layers of one repository; their objects' bytes.
//! - [`entry`], [`delta`], [`copies`], [`object`]: the bytes of packs, deltas and objects, as git defines them.
//! - [`meter`], `tally`: what a job may cost in steps and memory. [`set`]: sets of objects. `lru`: a bounded cache.
//!
//! Each uses only those below it; `tests/rooms.rs` holds that no way leads back.
//!
//! Elsewhere: what is asked and answered on the wire (`git`), where packs are kept (`store`, `local`).
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod copies;
pub mod delta;
pub mod entry;
pub mod filter;
pub mod history;
pub mod index;
pub mod layer;
mod lru;
pub mod meter;
pub mod object;
pub mod plan;
pub mod set;
mod tally;
#[cfg(test)]
pub(crate) mod testing;
pub mod write;

pub use history::reach::Reach;
pub use layer::Layer;
pub use layer::decode::{DecodeError, Scratch};
pub use layer::graph::{Damaged, Graph};
pub use layer::stack::Stack;
pub use plan::select::{Query, Selection, select};
pub use plan::{Plan, PlanOptions};
pub use write::send::{Sender, Step};

/// An object of a [`Stack`]: first gid of its layer + position of its entry in that layer's pack.
///
/// Canonical gids (what [`Stack::lookup`] gives) name each object once, in the lowest layer that
/// holds it. A gid means nothing outside the stack it came from.
pub type Gid = u32;

/// Where bytes of packs come from. Blocking; called off the async threads.
pub trait Source: Send + Sync {
    /// Reads exactly the bytes `range` of the pack of `layer` (an index into [`Stack::layers`]).
    fn read(&self, layer: usize, range: std::ops::Range<u64>) -> std::io::Result<bytes::Bytes>;
}
