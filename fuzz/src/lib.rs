//! Fuzz targets for everything that reads bytes from outside: one function each, which `fuzz_targets/` hands to libFuzzer.
//!
//! The pure rooms are compiled into this crate from their sources, so that all their code is instrumented and nothing
//! of the server is built. The targets ask for more than "no panic": what is written must be read back, what is
//! promised must be kept, and what several modules say of the same bytes must agree.
//!
//! `run.sh` builds and runs all targets for a short while, on stable Rust and without `cargo-fuzz`; with it,
//! `cargo fuzz run --sanitizer none TARGET` does the same for one.
#![allow(dead_code)]

#[path = "../../src/git/mod.rs"]
pub mod git;
#[path = "../../src/pack/mod.rs"]
pub mod pack;

pub mod bodies;
pub mod bound;
pub mod filters;
pub mod layers;
pub mod names;
pub mod packs;
pub mod patterns;
pub mod records;
pub mod replies;
pub mod requests;
pub mod store;
pub mod text;

/// Takes a byte off the front: small decisions of a target.
fn byte(data: &mut &[u8]) -> Option<u8> {
    let (first, rest) = data.split_first()?;
    *data = rest;
    Some(*first)
}

/// SHA-1 or SHA-256, by one bit.
fn hash(bit: u8) -> gix_hash::Kind {
    if bit & 1 == 0 { gix_hash::Kind::Sha1 } else { gix_hash::Kind::Sha256 }
}

/// Panics unless `bytes` are whole packets.
fn must_be_packets(bytes: &[u8]) {
    for packet in git::pkt::Packets::new(bytes) {
        assert!(packet.is_ok(), "{packet:?} in {}", bytes.escape_ascii());
    }
}
