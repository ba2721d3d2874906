//! The cryptography of TLS: one provider for primary, store and credentials.
//!
//! Elsewhere: which certificates count (`primary::http`, `store::open`).

use rustls::crypto::{CryptoProvider, ring};

/// Makes ring the provider of this process, unless it has one; to be called before a client is built.
pub fn provide() {
    if CryptoProvider::get_default().is_none() {
        // Another thread may have been faster: with the same provider.
        let _ = ring::default_provider().install_default();
    }
}
