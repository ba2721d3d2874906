//! Ref advertisements of protocol v0 and v1, and which version a server speaks.
//!
//! Written as `upload_pack` and `write_v0_ref` in git's `upload-pack.c` do, read as `get_remote_heads`
//! in `connect.c` does. v1 is v0 behind one `version 1` line.
//! Relies on: a complete body. Elsewhere: v2 capabilities (`caps`), v0 requests (`v0`).

use super::ls_refs::RefLine;
use super::pkt::{self, Packet, Packets};
use super::reply::BadReply;
use super::{Head, Refs, Service, V2Caps, caps, line};
use bstr::{BString, ByteSlice};
use gix_hash::{Kind as HashKind, ObjectId};

/// What git always offers in v0, in its order.
const ALWAYS: &str = "multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not deepen-relative \
                      no-progress include-tag multi_ack_detailed";

/// The body of an `info/refs` answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advertisement {
    /// Protocol v2: capabilities only.
    V2(V2Caps),
    /// Protocol v0 or v1: the refs themselves.
    V0(V0Advertisement),
}

/// What a v0 or v1 server advertises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V0Advertisement {
    /// Whether it said `version 1`.
    pub version1: bool,
    /// The hash of its object ids.
    pub hash: HashKind,
    /// HEAD, if it shows one, and the refs, in its order.
    pub refs: Vec<RefLine>,
    /// The capabilities of the first line, each with its value.
    pub caps: Vec<BString>,
    /// The shallow boundary of the server's own repository.
    pub shallow: Vec<ObjectId>,
}

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

impl Advertisement {
    /// Reads the body of an `info/refs` answer, with or without the `# service` line before it.
    pub fn parse(body: &[u8]) -> Result<Self, BadReply> {
        let mut packets = Packets::new(body);
        let mut first = packets.expect()?;
        if matches!(first, Packet::Data(payload) if payload.starts_with(b"# service=")) {
            if packets.expect()? != Packet::Flush {
                return Err(BadReply::Protocol("expected flush after the service line".into()));
            }
            first = packets.expect()?;
        }
        let text = match first {
            Packet::Data(payload) => BadReply::refuse_error(payload).map(|()| line::text(payload))?,
            Packet::Flush | Packet::Delim | Packet::ResponseEnd => b"",
        };
        match text {
            b"version 2" => V2Caps::read(&mut packets).map(Self::V2),
            b"version 1" => {
                let first = packets.expect()?;
                V0Advertisement::read(first, &mut packets, true).map(Self::V0)
            }
            _ => V0Advertisement::read(first, &mut packets, false).map(Self::V0),
        }
    }
}

impl V0Advertisement {
    fn read(first: Packet<'_>, packets: &mut Packets<'_>, version1: bool) -> Result<Self, BadReply> {
        let mut advert =
            Self { version1, hash: HashKind::Sha1, refs: Vec::new(), caps: Vec::new(), shallow: Vec::new() };
        let mut packet = first;
        let mut is_first = true;
        loop {
            let payload = match packet {
                Packet::Data(payload) => payload,
                Packet::Flush => break,
                Packet::Delim | Packet::ResponseEnd => {
                    return Err(BadReply::Protocol("invalid packet".into()));
                }
            };
            BadReply::refuse_error(payload)?;
            if is_first {
                advert.take_caps(payload)?;
                is_first = false;
            }
            advert.take_line(line::text(payload))?;
            packet = packets.expect()?;
        }
        advert.annotate_symrefs();
        Ok(advert)
    }

    fn take_caps(&mut self, payload: &[u8]) -> Result<(), BadReply> {
        let Some(nul) = payload.find_byte(0) else { return Ok(()) };
        let list = payload[nul + 1..].strip_suffix(b"\n").unwrap_or(&payload[nul + 1..]);
        self.caps = line::features(list).map(BString::from).collect();
        if let Some(name) = line::feature_value(list, "object-format") {
            let unknown = || BadReply::Protocol(format!("unknown object format '{}'", name.as_bstr()));
            self.hash = caps::hash_by_name(name).ok_or_else(unknown)?;
        }
        Ok(())
    }

    fn take_line(&mut self, text: &[u8]) -> Result<(), BadReply> {
        let unexpected = || BadReply::Protocol(format!("protocol error: unexpected '{}'", text.as_bstr()));
        if let Some(hex) = text.strip_prefix(b"shallow ") {
            let (oid, _) = line::oid(hex, self.hash).ok_or_else(unexpected)?;
            self.shallow.push(oid);
            return Ok(());
        }
        let (oid, rest) = line::oid(text, self.hash).ok_or_else(unexpected)?;
        let name = rest.strip_prefix(b" ").ok_or_else(unexpected)?;
        if name == b".have" || (name == b"capabilities^{}" && oid.is_null() && self.refs.is_empty()) {
            return Ok(());
        }
        if let Some(name) = name.strip_suffix(b"^{}") {
            let last = self.refs.last_mut().filter(|last| last.name == name).ok_or_else(unexpected)?;
            last.peeled = Some(oid);
            return Ok(());
        }
        self.refs.push(RefLine { name: name.into(), oid: Some(oid), symref_target: None, peeled: None });
        Ok(())
    }

    /// Puts the targets of `symref=<name>:<target>` capabilities to their refs.
    fn annotate_symrefs(&mut self) {
        let pairs = self.caps.iter().filter_map(|cap| cap.strip_prefix(b"symref=")?.split_once_str(":"));
        let targets: std::collections::BTreeMap<_, _> = pairs.collect();
        for line in &mut self.refs {
            line.symref_target = targets.get(line.name.as_slice()).map(|target| BString::from(*target));
        }
    }
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
    use crate::git::ls_refs::to_refs;
    use crate::git::refs::tests::{any_refs, oid, sample};
    use proptest::prelude::*;

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
        let Ok(Advertisement::V0(advert)) = Advertisement::parse(&out) else { panic!("v0") };
        assert_eq!((advert.refs.len(), advert.shallow), (0, vec![oid(4)]));
    }

    #[test]
    fn refuses_nonsense() {
        let id = oid(1);
        let line = |text: String| {
            let mut out = Vec::new();
            pkt::text(&mut out, text);
            out.extend_from_slice(pkt::FLUSH);
            out
        };
        for text in [
            format!("{id}refs/a"),
            "hello".into(),
            format!("{id} refs/a^{{}}"),
            "shallow x".into(),
            "ERR no".into(),
        ] {
            assert!(Advertisement::parse(&line(text.clone())).is_err(), "{text}");
        }
        assert!(Advertisement::parse(b"").is_err());
        assert!(Advertisement::parse(&line(format!("{id} HEAD\0object-format=md5"))).is_err());
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn what_was_advertised_is_read(refs in any_refs(), version1: bool, service: bool) {
            let mut out = Vec::new();
            if service {
                write_service_line(Service::UploadPack, &mut out);
            }
            write_v0(&refs, &V0Offer { version1, ..offer() }, &mut out);
            let Ok(Advertisement::V0(advert)) = Advertisement::parse(&out) else { panic!("v0") };
            prop_assert_eq!(advert.version1, version1);
            let (read, _) = to_refs(advert.refs, HashKind::Sha1).unwrap();
            prop_assert_eq!(read.head_oid(), refs.head_oid());
            prop_assert_eq!(read.refs, refs.refs);
        }

        #[test]
        fn any_body_is_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..120), head in "(000eversion [12]\n|0000){0,2}") {
            let _ = Advertisement::parse(&[head.as_bytes(), &body].concat());
        }
    }
}
