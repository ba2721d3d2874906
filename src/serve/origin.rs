//! Where a client is, as the primary is told: `X-Forwarded-For`, and what a trusted proxy in front says of it.
//!
//! The client's address is that of its connection. What a request says itself counts only where the connection comes from one of
//! `trusted_proxies`: anybody else could name an address that the primary lets in. All that is asked on behalf of a client bears
//! it, questions for grants too: the primary may go by it, so clients at different addresses share no grant. A host and a scheme
//! are never made up: the primary knows by which of its own names we reach it, and we do not know how the client came.
//! Elsewhere: which of a client's own headers go on (`primary`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::primary::{BadHeaders, ClientHeaders};
use crate::serve::app::App;

/// The header with the addresses that a request came through.
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme by which a client came, where a trusted proxy says so.
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The same for the host that it asked for.
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What a trusted proxy may say beside addresses.
const OTHERS: [HeaderName; 3] = [PROTO, HOST, HeaderName::from_static("x-forwarded-port")];

/// The other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A client's headers as they may go to the primary, with where it is.
pub fn client(app: &App, parts: &Parts) -> Result<ClientHeaders, BadHeaders> {
    let client = ClientHeaders::of(&parts.headers)?;
    let Some(Peer(peer)) = parts.extensions.get() else { return Ok(client) };
    Ok(client.from_there(origin(&parts.headers, peer.ip(), &app.terms.trusted_proxies)))
}

/// The address that a request counts for: of those that it came through, the last one that is no trusted proxy's.
pub fn address(app: &App, parts: &Parts) -> IpAddr {
    let peer = parts.extensions.get().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Peer(peer)| peer.ip());
    nearest(&parts.headers, peer, &app.terms.trusted_proxies)
}

fn nearest(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut nearest = canonical(peer);
    let values: Vec<_> = headers.get_all(FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    for said in values.iter().rev().flat_map(|value| value.rsplit(',')) {
        if !is_trusted(nearest, trusted) {
            break;
        }
        // What is no address was said by a trusted proxy all the same, and ends what it tells.
        let Ok(address) = said.trim().parse() else { break };
        nearest = canonical(address);
    }
    nearest
}

/// The same address, in the one form that counts.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    let (plain, mapped) = (canonical(peer), peer);
    trusted.iter().any(|net| net.contains(&plain) || net.contains(&mapped))
}

/// What the primary is told of a client at `peer` that says `headers`.
fn origin(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> HeaderMap {
    let mut told = HeaderMap::new();
    let mut addresses = Vec::new();
    if is_trusted(peer, trusted) {
        for value in headers.get_all(FOR) {
            addresses.extend_from_slice(value.as_bytes());
            addresses.extend_from_slice(b", ");
        }
        for name in OTHERS {
            if let Some(value) = headers.get(&name) {
                told.insert(name, value.clone());
            }
        }
    }
    addresses.extend_from_slice(canonical(peer).to_string().as_bytes());
    // It is made of values and an address, so it is a value.
    if let Ok(value) = HeaderValue::from_bytes(&addresses) {
        told.insert(FOR, value);
    }
    told
}

/// The scheme by which a client came, if a trusted proxy says so.
pub fn scheme<'p>(app: &App, parts: &'p Parts) -> Option<&'p str> {
    said(app, parts, &PROTO).filter(|scheme| matches!(*scheme, "http" | "https"))
}

/// The host that a client asked for, with its port.
pub fn host<'p>(app: &App, parts: &'p Parts) -> Option<&'p str> {
    let named = || parts.uri.authority().map(|authority| authority.as_str());
    let in_head = || parts.headers.get(http::header::HOST)?.to_str().ok();
    said(app, parts, &HOST).or_else(named).or_else(in_head)
}

/// What a trusted proxy says of a request, if it came through one.
fn said<'p>(app: &App, parts: &'p Parts, name: &HeaderName) -> Option<&'p str> {
    let Peer(peer) = parts.extensions.get()?;
    parts.headers.get(name).filter(|_| is_trusted(peer.ip(), &app.terms.trusted_proxies))?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::network;

    fn told(peer: &str, trusted: &[&str]) -> (String, Option<String>) {
        let mut headers = HeaderMap::new();
        headers.append(FOR, HeaderValue::from_static("198.51.100.1"));
        headers.append(FOR, HeaderValue::from_static("2001:db8::7, unknown"));
        headers.insert(PROTO, HeaderValue::from_static("https"));
        let trusted: Vec<_> = trusted.iter().map(|net| network(net).unwrap()).collect();
        let told = origin(&headers, peer.parse().unwrap(), &trusted);
        let text = |name| told.get(name).map(|value: &HeaderValue| value.to_str().unwrap().to_owned());
        (text(FOR).unwrap(), text(PROTO))
    }

    #[test]
    fn a_request_counts_for_the_last_address_that_is_no_proxys() {
        let headers = |chain: &[&'static str]| {
            let mut headers = HeaderMap::new();
            chain.iter().for_each(|value| _ = headers.append(FOR, HeaderValue::from_static(value)));
            headers
        };
        let trusted: Vec<_> = ["10.0.0.0/8"].iter().map(|net| network(net).unwrap()).collect();
        for (chain, peer, want) in [
            (&[][..], "198.51.100.1", "198.51.100.1"),
            // What others say does not count.
            (&["192.0.2.1"], "198.51.100.1", "198.51.100.1"),
            (&["192.0.2.1"], "10.0.0.1", "192.0.2.1"),
            (&["192.0.2.66, 192.0.2.1", "10.0.0.2"], "::ffff:10.0.0.1", "192.0.2.1"),
            (&["192.0.2.66, unknown"], "10.0.0.1", "10.0.0.1"),
        ] {
            let nearest = nearest(&headers(chain), peer.parse().unwrap(), &trusted);
            assert_eq!(nearest, want.parse::<IpAddr>().unwrap(), "{chain:?} {peer}");
        }
    }

    #[test]
    fn only_trusted_proxies_speak_for_clients() {
        let chain =
            |last: &str| (format!("198.51.100.1, 2001:db8::7, unknown, {last}"), Some("https".to_owned()));
        let alone = |last: &str| (last.to_owned(), None);
        for (peer, trusted, want) in [
            ("192.0.2.1", &[][..], alone("192.0.2.1")),
            ("192.0.2.1", &["192.0.2.0/25"], chain("192.0.2.1")),
            ("192.0.2.200", &["192.0.2.0/25"], alone("192.0.2.200")),
            ("::ffff:192.0.2.1", &[], alone("192.0.2.1")),
            ("::ffff:192.0.2.1", &["192.0.2.1"], chain("192.0.2.1")),
            ("::ffff:192.0.2.1", &["::ffff:192.0.2.1"], chain("192.0.2.1")),
            ("192.0.2.1", &["::ffff:192.0.2.1"], chain("192.0.2.1")),
            ("2001:db8::1", &["192.0.2.0/24", "2001:db8::/64"], chain("2001:db8::1")),
            ("2001:db8:0:1::1", &["2001:db8::/64"], alone("2001:db8:0:1::1")),
            ("::1", &["127.0.0.1"], alone("::1")),
        ] {
            assert_eq!(told(peer, trusted), want, "{peer} {trusted:?}");
        }
    }
}
