//! The bucket: blobs named by their content, generations created once, and the probe that decides whether a store may
//! be used at all.
//!
//! The bucket is the only state that nodes share and create-if-absent is the only lock: blobs go up first, then the
//! generation record that names them is created under a number that exactly one writer wins. Keys:
//!
//! ```text
//! <prefix>/format                           layout version, created once
//! <prefix>/owner                            the primary whose mirror it is
//! <prefix>/blobs/<aa>/<sha256>.<kind>       pack | idx | graph | refs
//! <prefix>/repos/<repo>/gen/<number>        generation records, newest first in a listing
//! <prefix>/repos/<repo>/{fetch,repair,…}    notes of nodes to each other about their work
//! <prefix>/removed/<repo>                  marks of repositories that were taken out
//! <prefix>/damaged/<repo>                  marks of repositories of which a node has lost blobs
//! <prefix>/tombs/<sha256>.<kind>/…          marks of blobs that nobody names
//! <prefix>/purges/<number>                  orders to forget, created once
//! <prefix>/gc/{clock,round,running}         of collections: the store's clock, the last one, the present one
//! <prefix>/uploads/<nonce>                  uploads in parts under way
//! <prefix>/nodes/<node>                     what each node last said of itself
//! <prefix>/.probe/<nonce>…                  what a probe leaves when it is cut short
//! ```
//!
//! Relies on: a store with create-if-absent (checked by [`Bucket::probe`]). Elsewhere: what is inside packs and graphs
//! ([`crate::pack`]), keeping bytes on this node ([`crate::local`]), when to publish ([`crate::mirror`]).

mod aws;
mod blob;
mod blobs;
mod bucket;
mod cause;
mod credentials;
mod directory;
mod error;
#[doc(hidden)]
pub mod faulty;
pub(crate) mod frame;
mod generation;
mod generations;
mod listed;
mod metered;
mod nodes;
mod nonce;
mod notes;
mod numbered;
mod open;
mod orders;
mod owner;
mod probe;
mod retained;
mod tombs;
mod upload;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod suite;

pub use blob::{BadBlobId, BlobId, BlobKind, BlobRef, Name};
pub use blobs::WINDOW;
pub use bucket::{Bucket, LAYOUT};
pub use cause::Cause;
pub use error::StoreError;
#[cfg(test)]
pub(crate) use generation::tests::sample as generation_for_tests;
pub use generation::{AnswerRef, Generation, LayerRef, VERSION};
pub use generations::{Publish, RECORDS_KEPT};
pub use listed::{LastRound, Listed};
pub use nonce::nonce;
pub use notes::{Note, NoteKey};
pub use open::{ASSUMED_REGION, StoreOptions};
pub use orders::{MOST_BLOBS, ORDERS, Order};
pub use owner::Owner;
pub use probe::{Probe, ProbeFailed, Step};
pub use tombs::{FRESH_FOR, MARK_HOLDS, MARK_IS_VOID, Tomb};
