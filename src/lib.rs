//! packmirror: a Git mirror whose disk is a bucket.
//!
//! The rooms, from the outside in; each uses only rooms below it:
//!
//! - [`cli`]: one file per command. [`config`]: the settings. [`telemetry`]: log and metrics.
//!   [`budget`]: bounds on memory. [`fair`]: places for work, by turns. [`text`]: foreign text, made safe to print. [`folder`]: a directory held open.
//!   [`umask`]: permissions of new files. [`tls`]: its cryptography. [`boot`]: a clock that does not stand still. [`threads`]: jobs
//!   beside the async threads.
//! - [`node`]: a node out of settings, from start to end.
//! - [`serve`]: Git over HTTP for clients, health, metrics.
//! - [`answer`]: from a request to a decision: send this, refuse, leave it to the primary.
//! - [`work`]: what changes the bucket: syncs, repairs.
//! - [`mirror`]: the heart: repositories, what is known of them, open snapshots, export.
//! - [`primary`], [`local`], [`store`]: the other end, this node's memory, the bucket.
//! - [`pack`], [`git`]: what is inside a pack; Git's protocol. Pure: bytes in, values out.
pub mod answer;
pub mod boot;
pub mod budget;
pub mod cli;
pub mod config;
pub mod fair;
pub mod folder;
pub mod git;
pub mod local;
pub mod mirror;
pub mod node;
pub mod pack;
pub mod primary;
pub mod retry;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod threads;
pub mod tls;
pub mod umask;
pub mod work;

#[cfg(test)]
#[path = "../tests/seed/mod.rs"]
mod seed;

#[cfg(test)]
#[path = "../tests/sim/mod.rs"]
mod sim;
