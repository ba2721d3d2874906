//! Requests that come back: where the primary's name leads to the mirror itself, each would be passed on to the mirror again.
//!
//! What a node sends to the primary bears the node's token, behind the tokens of the mirrors that it came through. A node that
//! finds its own ends it. Nodes on one S3 store have one token, so that a farm behind one name ends it at the first turn.
//! A client may send tokens, too: it gets the refusal itself, for requests of its own, and shares no question for a grant with
//! others (they are part of its key).
//! Relies on: nobody in between taking the header away. Elsewhere: the refusal (`serve`).

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

/// The header with the tokens. Not `Via`, for which many servers answer in another way, uncompressed for example.
pub(super) const HOPS: HeaderName = HeaderName::from_static("packmirror-hops");
/// So many mirrors in a row are a loop, too.
const MOST: usize = 8;

/// The token of a process on its own.
pub(super) fn token() -> String {
    hex::encode(rand::random::<[u8; 8]>())
}

/// The token that all nodes with the same `parts` have.
pub fn farm_token(parts: &[&str]) -> String {
    let mut hash = Sha256::new_with_prefix("packmirror hops");
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

/// Says whether a request with these headers has been at a node with `token`, or at too many.
pub(super) fn came_back(headers: &HeaderMap, token: &str) -> bool {
    let mut count = 0;
    let own =
        headers.get_all(HOPS).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).any(
            |hop| {
                count += 1;
                hop.trim_ascii() == token.as_bytes()
            },
        );
    own || count >= MOST
}

/// Adds `token` behind those that are there.
pub(super) fn add(headers: &mut HeaderMap, token: &str) {
    let mut hops: Vec<u8> =
        headers.get_all(HOPS).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
    if !hops.is_empty() {
        hops.extend_from_slice(b", ");
    }
    hops.extend_from_slice(token.as_bytes());
    // It is made of values and a token, so it is a value.
    if let Ok(value) = HeaderValue::from_bytes(&hops) {
        headers.insert(HOPS, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_knows_its_own_token_among_others_and_ends_long_rows() {
        let mut headers = HeaderMap::new();
        for n in 0..MOST {
            assert!(!came_back(&headers, "mine"), "{n}");
            add(&mut headers, &format!("other{n}"));
        }
        assert!(came_back(&headers, "mine"), "a row of {MOST}");
        let mut headers = HeaderMap::new();
        headers.append(HOPS, HeaderValue::from_static("a,b"));
        headers.append(HOPS, HeaderValue::from_static("\u{9}mine "));
        assert!(came_back(&headers, "mine") && came_back(&headers, "b") && !came_back(&headers, "min"));
        add(&mut headers, "last");
        assert_eq!(headers.get_all(HOPS).iter().count(), 1);
        assert!(came_back(&headers, "last") && came_back(&headers, "a"));
    }

    #[test]
    fn a_farm_has_one_token_and_other_farms_others() {
        let tokens =
            [farm_token(&["p", "s"]), farm_token(&["ps", ""]), farm_token(&["p", "t"]), token(), token()];
        assert_eq!(farm_token(&["p", "s"]), tokens[0]);
        for (n, one) in tokens.iter().enumerate() {
            assert!(!tokens[..n].contains(one) && one.len() == 16, "{one}");
        }
    }
}
