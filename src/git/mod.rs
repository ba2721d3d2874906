//! Git's protocol and text formats: bytes in, values out.
//!
//! This room speaks both sides: what a client asks of us (protocol v2, v1 and v0 over stateless RPC)
//! and what we ask of the primary when syncing. The rules are those of git's `upload-pack.c`,
//! `serve.c`, `ls-refs.c`, `protocol-caps.c`, `list-objects-filter-options.c` and `connect.c`; each
//! module names the part it follows, and the tests hold it against the `git` binary.
//!
//! Relies on: whole request bodies within a size limit (the HTTP layer's), single packets of streams.
//! Elsewhere: sockets and bodies (`serve`, `primary`), which objects to send (`pack`), who may ask
//! (`primary::grants`). No clock, no randomness, no files here.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod advert;
mod args;
pub mod caps;
pub mod fetch;
pub mod filter;
pub mod line;
pub mod ls_refs;
pub mod negotiate;
pub mod object_info;
pub mod other_path;
pub mod path;
pub mod pkt;
pub mod refname;
pub mod refs;
pub mod reply;
pub mod request;
pub mod response;
pub mod v0;

#[cfg(test)]
mod oracle;

pub use gix_hash::{Kind as HashKind, ObjectId};

pub use caps::V2Caps;
pub use filter::Filter;
pub use ls_refs::{LsRefs, RefLine};
pub use path::{Endpoint, RepoPath, Service};
pub use refs::{Head, Ref, Refs};
pub use reply::BadReply;
pub use request::{BadRequest, Command, CommandRequest, FetchRequest, RequestLimits};
