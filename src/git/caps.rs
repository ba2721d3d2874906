//! Capabilities of protocol v2: what a server offers before it is asked anything.
//!
//! The format is that of `protocol_v2_advertise_capabilities` in git's `serve.c`, read as `connect.c` does.
//! Relies on: a complete body. Elsewhere: v0 and v1, and telling the versions apart (`advert`).

use super::line;
use super::pkt::{self, Packet, Packets};
use super::reply::BadReply;
use bstr::{BString, ByteSlice};
use gix_hash::Kind as HashKind;

/// The capabilities of a v2 server in the order it named them, each with its value if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct V2Caps(pub Vec<(BString, Option<BString>)>);

impl V2Caps {
    /// Reads the body of an `info/refs` answer, with or without the `# service` line before it.
    ///
    /// A server that answers in v0 or v1 gives [`BadReply::NotV2`].
    pub fn parse(body: &[u8]) -> Result<Self, BadReply> {
        let mut packets = Packets::new(body);
        let mut first = packets.expect()?;
        if matches!(first, Packet::Data(payload) if payload.starts_with(b"# service=")) {
            if packets.expect()? != Packet::Flush {
                return Err(BadReply::Protocol("expected flush after the service line".into()));
            }
            first = packets.expect()?;
        }
        let Packet::Data(payload) = first else { return Err(BadReply::NotV2) };
        BadReply::refuse_error(payload)?;
        let is_ref = |hash| line::oid(payload, hash).is_some_and(|(_, rest)| rest.starts_with(b" "));
        match line::text(payload) {
            b"version 2" => Self::read(&mut packets),
            b"version 1" => Err(BadReply::NotV2),
            _ if is_ref(HashKind::Sha1) || is_ref(HashKind::Sha256) => Err(BadReply::NotV2),
            text => Err(BadReply::Protocol(format!("protocol error: unexpected '{}'", text.as_bstr()))),
        }
    }

    /// Reads the packets behind `version 2`.
    fn read(packets: &mut Packets<'_>) -> Result<Self, BadReply> {
        let mut caps = Vec::new();
        loop {
            match packets.expect()? {
                Packet::Data(payload) => {
                    let text = BadReply::refuse_error(payload).map(|()| line::text(payload))?;
                    let (key, value) = match text.split_once_str("=") {
                        Some((key, value)) => (key, Some(value.into())),
                        None => (text, None),
                    };
                    caps.push((key.into(), value));
                }
                Packet::Flush => return Ok(Self(caps)),
                Packet::Delim | Packet::ResponseEnd => {
                    return Err(BadReply::Protocol("expected flush after capabilities".into()));
                }
            }
        }
    }

    /// Writes the advertisement as git does, without a `# service` line.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        pkt::text(&mut out, "version 2");
        for (key, value) in &self.0 {
            pkt::with(&mut out, |out| {
                out.extend_from_slice(key);
                if let Some(value) = value {
                    out.push(b'=');
                    out.extend_from_slice(value);
                }
                out.push(b'\n');
            });
        }
        out.extend_from_slice(pkt::FLUSH);
        out
    }

    /// Says whether the server names a capability or command, with or without a value.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    /// Gives the value of a capability, the first one if it stands there twice.
    pub fn value(&self, key: &str) -> Option<&BString> {
        self.0.iter().find_map(|(name, value)| value.as_ref().filter(|_| name == key))
    }

    /// Sets a capability, in its place if it is there and at the end otherwise.
    pub fn set(&mut self, key: &str, value: Option<&str>) {
        let value = value.map(BString::from);
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// Says whether a command has a feature, such as `filter` of `fetch` or `unborn` of `ls-refs`.
    pub fn has_feature(&self, command: &str, feature: &str) -> bool {
        self.value(command).is_some_and(|list| line::has_feature(list, feature))
    }

    /// Lists the features of `fetch`.
    pub fn fetch_features(&self) -> impl Iterator<Item = &[u8]> {
        line::features(self.value("fetch").map_or(&b""[..], |list| list.as_slice()))
    }

    /// Gives the hash of the repository: SHA-1 if the server names none, `None` if it names one we do not know.
    pub fn object_format(&self) -> Option<HashKind> {
        self.value("object-format").map_or(Some(HashKind::Sha1), |name| hash_by_name(name))
    }
}

/// Finds a hash by the name git gives it in `object-format`.
pub fn hash_by_name(name: &[u8]) -> Option<HashKind> {
    match name {
        b"sha1" => Some(HashKind::Sha1),
        b"sha256" => Some(HashKind::Sha256),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIT: &[u8] = b"000eversion 2\n0015agent=git/2.47.3\n0013ls-refs=unborn\n0027fetch=shallow wait-for-done filter\n0012server-option\n0017object-format=sha1\n0000";

    #[test]
    fn reads_and_writes_what_git_offers() {
        let caps = V2Caps::parse(GIT).unwrap();
        assert!(caps.has("fetch") && caps.has("server-option") && !caps.has("object-info"));
        assert!(caps.has_feature("fetch", "filter") && !caps.has_feature("fetch", "sideband-all"));
        assert!(caps.has_feature("ls-refs", "unborn"));
        assert_eq!(caps.fetch_features().collect::<Vec<_>>(), [&b"shallow"[..], b"wait-for-done", b"filter"]);
        assert_eq!(caps.object_format(), Some(HashKind::Sha1));
        assert_eq!(caps.encode(), GIT);
        let hub = [&b"001e# service=git-upload-pack\n0000"[..], GIT].concat();
        assert_eq!(V2Caps::parse(&hub).unwrap(), caps);
    }

    #[test]
    fn can_be_changed() {
        let mut caps = V2Caps::parse(GIT).unwrap();
        caps.set("fetch", Some("shallow"));
        caps.set("object-info", None);
        caps.set("object-format", Some("sha512"));
        assert!(!caps.has_feature("fetch", "filter") && caps.has("object-info"));
        assert_eq!(caps.object_format(), None);
        assert_eq!(V2Caps::default().object_format(), Some(HashKind::Sha1));
    }

    #[test]
    fn says_why_it_is_no_v2_server() {
        type Check = fn(&BadReply) -> bool;
        let cases: [(&[u8], Check); 8] = [
            (b"", |e| matches!(e, BadReply::Packet(_))),
            (b"0000", |e| matches!(e, BadReply::NotV2)),
            (b"000eversion 1\n0000", |e| matches!(e, BadReply::NotV2)),
            (b"001e# service=git-upload-pack\n000eversion 2\n0000", |e| matches!(e, BadReply::Protocol(_))),
            (b"0010ERR go away\n", |e| matches!(e, BadReply::Remote(text) if text == "go away")),
            (b"000eversion 2\n", |e| matches!(e, BadReply::Packet(_))),
            (b"000eversion 2\n0001", |e| matches!(e, BadReply::Protocol(_))),
            (b"<html>", |e| matches!(e, BadReply::Packet(_))),
        ];
        for (body, want) in cases {
            let error = V2Caps::parse(body).unwrap_err();
            assert!(want(&error), "{}: {error:?}", body.escape_ascii());
        }
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn any_caps_come_back(list in proptest::collection::vec(("[a-z-]{1,9}", proptest::option::of("[ -~]{0,20}")), 0..8)) {
            let caps = V2Caps(list.into_iter().map(|(key, value)| (key.into(), value.map(BString::from))).collect());
            prop_assert_eq!(V2Caps::parse(&caps.encode()).unwrap(), caps);
        }

        #[test]
        fn any_body_is_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..120), head in "(000eversion [12]\n|0000){0,2}") {
            let _ = V2Caps::parse(&[head.as_bytes(), &body].concat());
        }
    }
}
