//! Git over HTTP for clients, health and metrics.
//!
//! - [`node`]: one node from start to end. [`listen`]: connections and draining. [`git`]: where a request goes. [`body`], [`error`]: what comes in, what goes wrong.
//! - [`advertise`]: refs from what is published (bounded mode). [`watch`]: reading along with the live ones.
//! - [`fetch`]: a fetch answered from the bucket. [`reaching`]: whether it may be. [`prepare`]: what it sends. [`plans`]: kept for the
//!   next one. [`send`]: its stream, in
//!   pieces ([`frame`]) and with little in hand ([`holding`]). [`pass`]: everything the primary answers.
//! - [`compute`], [`turns`], [`meter`]: what computing for a client may take.
//! - [`places`]: who may stay connected how long. [`connection`]: what one client owes. [`wire`]: its bytes. [`framing`]: where
//!   its requests begin and end. [`files`]: how many files may be open.
//! - [`health`]: `/livez`, `/readyz`, `/metrics`. [`count`]: every request counted.
//!
//! Relies on: `mirror` for repositories, `primary` for grants and passing on, `git` and `pack` for the protocol.

pub mod advertise;
pub mod app;
pub mod body;
pub mod compute;
pub mod connection;
pub mod count;
pub mod error;
pub mod fetch;
pub mod files;
pub mod frame;
mod framing;
pub mod git;
pub mod health;
pub mod holding;
pub mod listen;
pub mod meter;
mod named;
pub mod node;
pub mod pass;
pub mod places;
pub mod plans;
pub mod prepare;
pub mod reaching;
pub mod send;
pub mod turns;
pub mod watch;
pub mod wire;
