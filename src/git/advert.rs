//! Our ref advertisements of protocol v0 and v1.
//!
//! Written as `upload_pack` and `write_v0_ref` in git's `upload-pack.c` do. v1 is v0 behind one `version 1` line.
//! A primary must speak v2, so none is read. Relies on: [`Refs`] being sorted. Elsewhere: v2 capabilities (`caps`), v0
//! requests (`v0`).

use super::pkt;
use super::{Head, Refs, Service, line};
use bstr::BString;
use gix_hash::ObjectId;

/// What git always offers in v0, in its order.
const ALWAYS: &str = "multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not deepen-relative \
                      no-progress include-tag multi_ack_detailed";

/// What our own v0 advertisement offers beside what git always does.
#[derive(Debug, Clone, Default)]
pub struct V0Offer {
    /// Says `version 1` first.
    pub version1: bool,
    /// `allow-tip-sha1-in-want`
    pub allow_tip: bool,
    /// `allow-reachable-sha1-in-want`
    pub allow_reachable: bool,
    /// `filter`
    pub filter: bool,
    /// `session-id=…`
    pub session_id: Option<BString>,
    /// `agent=…`, without white space.
    pub agent: BString,
    /// The shallow boundary of the repository, if it has one.
    pub shallow: Vec<ObjectId>,
}

/// Writes a v0 or v1 advertisement of `refs`, byte for byte as git's `upload-pack --advertise-refs` would.
pub fn write_v0(refs: &Refs, offer: &V0Offer, out: &mut Vec<u8>) {
    if offer.version1 {
        pkt::text(out, "version 1");
    }
    let mut first_caps = Some(v0_caps(refs, offer));
    let mut put = |out: &mut Vec<u8>, oid: &ObjectId, name: &[u8], peeled: Option<ObjectId>| {
        pkt::with(out, |out| {
            line::put_oid(out, oid);
            out.push(b' ');
            out.extend_from_slice(name);
            if let Some(caps) = first_caps.take() {
                out.push(0);
                out.extend_from_slice(&caps);
            }
            out.push(b'\n');
        });
        if let Some(peeled) = peeled {
            pkt::with(out, |out| {
                line::put_oid(out, &peeled);
                out.push(b' ');
                out.extend_from_slice(name);
                out.extend_from_slice(b"^{}\n");
            });
        }
    };
    let head = refs.head();
    if let Some((oid, peeled)) = head {
        put(out, &oid, b"HEAD", peeled);
    }
    for r in &refs.refs {
        put(out, &r.oid, &r.name, r.peeled);
    }
    if head.is_none() && refs.refs.is_empty() {
        put(out, &refs.hash.null(), b"capabilities^{}", None);
    }
    for oid in &offer.shallow {
        pkt::text(out, format!("shallow {oid}"));
    }
    out.extend_from_slice(pkt::FLUSH);
}

/// Writes the line and flush that Git over HTTP puts before a v0 or v1 advertisement (`http-backend.c`).
pub fn write_service_line(service: Service, out: &mut Vec<u8>) {
    pkt::text(out, format!("# service={}", service.name()));
    out.extend_from_slice(pkt::FLUSH);
}

fn v0_caps(refs: &Refs, offer: &V0Offer) -> Vec<u8> {
    let mut caps = ALWAYS.as_bytes().to_vec();
    let optional = [
        (offer.allow_tip, " allow-tip-sha1-in-want"),
        (offer.allow_reachable, " allow-reachable-sha1-in-want"),
        (true, " no-done"),
    ];
    caps.extend(optional.iter().filter(|(on, _)| *on).flat_map(|(_, cap)| cap.bytes()));
    if let (Head::Symbolic { target }, Some(_)) = (&refs.head, refs.head()) {
        caps.extend_from_slice(b" symref=HEAD:");
        caps.extend_from_slice(target);
    }
    if offer.filter {
        caps.extend_from_slice(b" filter");
    }
    if let Some(id) = &offer.session_id {
        caps.extend_from_slice(b" session-id=");
        caps.extend_from_slice(id);
    }
    caps.extend_from_slice(format!(" object-format={} agent=", refs.hash).as_bytes());
    caps.extend_from_slice(&offer.agent);
    caps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::pkt::{Packet, Packets};
    use crate::git::refs::tests::{oid, sample};
    use gix_hash::Kind as HashKind;

    fn offer() -> V0Offer {
        V0Offer { agent: "git/x".into(), ..V0Offer::default() }
    }

    fn lines(out: &[u8]) -> Vec<String> {
        let show = |packet| match packet {
            Ok(Packet::Data(payload)) => payload.escape_ascii().to_string(),
            other => format!("{other:?}"),
        };
        Packets::new(out).map(show).collect()
    }

    #[test]
    fn writes_head_first_and_peeled_lines() {
        let mut out = Vec::new();
        write_v0(&sample(), &V0Offer { version1: true, allow_tip: true, filter: true, ..offer() }, &mut out);
        let lines = lines(&out);
        assert_eq!(lines[0], "version 1\\n");
        let want = format!(
            "{} HEAD\\x00{ALWAYS} allow-tip-sha1-in-want no-done symref=HEAD:refs/heads/main filter object-format=sha1 agent=git/x\\n",
            oid(1)
        );
        assert_eq!(lines[1], want);
        assert_eq!(lines[5], format!("{} refs/tags/v1\\n", oid(3)));
        assert_eq!(lines[6], format!("{} refs/tags/v1^{{}}\\n", oid(1)));
        assert_eq!(lines.last().unwrap(), "Ok(Flush)");
    }

    #[test]
    fn an_empty_repository_advertises_capabilities() {
        let refs = Refs::empty(HashKind::Sha1, Head::Symbolic { target: "refs/heads/main".into() });
        let mut out = Vec::new();
        write_v0(&refs, &V0Offer { shallow: vec![oid(4)], ..offer() }, &mut out);
        let lines = lines(&out);
        assert!(lines[0].starts_with(&format!("{} capabilities^{{}}\\x00multi_ack", HashKind::Sha1.null())));
        assert!(!lines[0].contains("symref"));
        assert_eq!(lines[1], format!("shallow {}\\n", oid(4)));
    }
}
