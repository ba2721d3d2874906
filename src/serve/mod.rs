//! Git over HTTP for clients, health and metrics.
//!
//! - [`listen`]: connections. [`git`]: where a request goes. [`asked`]: one that was read. [`body`], [`error`]: what comes in, what goes wrong.
//! - [`advertise`]: refs from what is published (bounded mode). [`watch`]: reading along with the live ones.
//! - [`fetch`]: a fetch on its way. [`grant`](mod@grant): who may have it. [`send`]: its stream, in pieces ([`frame`]) and with little in
//!   hand ([`holding`](mod@holding)). [`pass`](mod@pass): everything the primary answers. What a fetch gets is decided elsewhere (`answer`).
//! - [`other`]: what is not Git, with the [`page`](mod@page) at `/` and the [`tunnel`] of a WebSocket. [`origin`]: where a client is.
//! - [`places`]: who may stay connected how long. [`connection`]: what one client owes. [`wire`]: its bytes. [`framing`]: where
//!   its requests begin and end. [`files`]: how many files may be open.
//! - [`drain`](mod@drain): how it all ends. [`health`]: `/livez`, `/readyz`, `/metrics`. [`count`]: every request counted. [`told`]: what is told of it.
//!
//! Relies on: `mirror` for repositories, `primary` for grants and passing on, `git` and `pack` for the protocol.

pub mod advertise;
pub mod app;
pub mod asked;
pub mod body;
pub mod connection;
pub mod count;
pub mod drain;
pub mod error;
pub mod fetch;
pub mod files;
pub mod frame;
mod framing;
pub mod git;
pub mod grant;
pub mod health;
pub mod holding;
pub mod listen;
pub mod origin;
pub mod other;
pub mod page;
pub mod pass;
pub mod places;
pub mod send;
pub mod told;
pub mod tunnel;
pub mod watch;
pub mod wire;
