//! Requests of protocol v0 and v1 over stateless RPC.
//!
//! Parsing follows `receive_needs` and `get_common_commits` in git's `upload-pack.c`, run with
//! `--stateless-rpc`: wants, shallow, deepen and filter lines up to a flush, then haves up to the first
//! flush or `done`. git reads nothing behind that, so one request holds one round.
//! Relies on: a complete, inflated body. Elsewhere: the answer (`negotiate`), the advertisement (`advert`).

use super::args::{BadRequest, RequestLimits, Unique, push};
use super::fetch::{self, FetchRequest};
pub use super::fetch::{Ack, Band, RoundEnd, V0, Wire};
use super::line;
use super::pkt::{Packet, Packets};
use bstr::{BString, ByteSlice};
use gix_hash::Kind as HashKind;

/// Reads a v0 or v1 request to a repository of kind `hash`.
pub fn parse_v0(body: &[u8], limits: &RequestLimits, hash: HashKind) -> Result<FetchRequest, BadRequest> {
    let mut packets = Packets::new(body);
    let mut request = FetchRequest::default();
    let mut v0 = V0::default();
    let mut wants = Unique::new("want", limits.max_wants);
    let mut shallow = Unique::new("shallow", limits.max_shallow);
    let mut may_filter = false;
    while let Packet::Data(payload) = packets.expect()? {
        let text = line::text(payload);
        if fetch::take_depth(&mut request, &mut shallow, text, limits, hash)? {
            continue;
        }
        if text.starts_with(b"filter ") && !may_filter {
            return Err(BadRequest::protocol("git upload-pack: filtering capability not negotiated"));
        }
        if fetch::take_filter(&mut request, text)? {
            continue;
        }
        let bad = || {
            let words = "git upload-pack: protocol error, expected to get object ID, not";
            BadRequest::Protocol(format!("{words} '{}'", text.as_bstr()))
        };
        let want = text.strip_prefix(b"want ").and_then(|rest| line::oid(rest, hash));
        let (oid, features) = want.ok_or_else(bad)?;
        take_features(&mut request, &mut v0, features);
        may_filter |= line::has_feature(features, "filter");
        wants.push(&mut request.wants, oid)?;
    }
    request.check()?;
    if !request.wants.is_empty() && !packets.rest().is_empty() {
        v0.end = read_round(&mut packets, &mut request, limits, hash)?;
    }
    request.done = v0.end == RoundEnd::Done;
    request.wire = Wire::V0(v0);
    Ok(request)
}

fn take_features(request: &mut FetchRequest, v0: &mut V0, features: &[u8]) {
    let has = |feature| line::has_feature(features, feature);
    if has("multi_ack_detailed") {
        v0.ack = Ack::MultiDetailed;
    } else if has("multi_ack") {
        v0.ack = Ack::Multi;
    }
    if has("side-band-64k") {
        v0.band = Band::Large;
    } else if has("side-band") {
        v0.band = Band::Small;
    }
    v0.no_done |= has("no-done");
    request.deepen_relative |= has("deepen-relative");
    request.thin_pack |= has("thin-pack");
    request.ofs_delta |= has("ofs-delta");
    request.no_progress |= has("no-progress");
    request.include_tag |= has("include-tag");
    let text = |feature| line::feature_value(features, feature).map(BString::from);
    v0.agent = text("agent").or(v0.agent.take());
    v0.session_id = text("session-id").or(v0.session_id.take());
}

fn read_round(
    packets: &mut Packets<'_>,
    request: &mut FetchRequest,
    limits: &RequestLimits,
    hash: HashKind,
) -> Result<RoundEnd, BadRequest> {
    while let Packet::Data(payload) = packets.expect()? {
        let text = line::text(payload);
        if let Some(hex) = text.strip_prefix(b"have ") {
            // Each line gets its own answer, so repeated ones stay.
            push(&mut request.haves, fetch::have_oid(hex, hash)?, "have", limits.max_haves)?;
        } else if text == b"done" {
            return Ok(RoundEnd::Done);
        } else {
            let words = format!("git upload-pack: expected SHA1 list, got '{}'", text.as_bstr());
            return Err(BadRequest::Protocol(words));
        }
    }
    Ok(RoundEnd::Flush)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::git::pkt;
    use crate::git::refs::tests::oid;
    use crate::git::request::tests::{any_fetch, body};
    use proptest::prelude::*;

    const A: &str = "0101010101010101010101010101010101010101";
    const B: &str = "0202020202020202020202020202020202020202";

    fn v0_of(request: &FetchRequest) -> V0 {
        match &request.wire {
            Wire::V0(v0) => v0.clone(),
            Wire::V2 => V0::default(),
        }
    }

    /// Writes a request as git's client does (`fetch-pack.c` `find_common`).
    pub(crate) fn encode(request: &FetchRequest) -> Vec<u8> {
        let v0 = v0_of(request);
        let mut features = String::new();
        let flags = [
            (v0.ack == Ack::MultiDetailed, "multi_ack_detailed"),
            (v0.ack == Ack::Multi, "multi_ack"),
            (v0.no_done, "no-done"),
            (v0.band == Band::Large, "side-band-64k"),
            (v0.band == Band::Small, "side-band"),
            (request.deepen_relative, "deepen-relative"),
            (request.thin_pack, "thin-pack"),
            (request.no_progress, "no-progress"),
            (request.include_tag, "include-tag"),
            (request.ofs_delta, "ofs-delta"),
            (request.filter.is_some(), "filter"),
        ];
        for (_, feature) in flags.iter().filter(|(on, _)| *on) {
            features += " ";
            features += feature;
        }
        let mut out = Vec::new();
        for oid in &request.wants {
            pkt::text(&mut out, format!("want {oid}{}", std::mem::take(&mut features)));
        }
        for line in fetch::depth_lines(request) {
            pkt::text(&mut out, line);
        }
        if let Some(filter) = &request.filter {
            pkt::text(&mut out, [b"filter ", filter.spec().as_slice()].concat());
        }
        out.extend_from_slice(pkt::FLUSH);
        for oid in &request.haves {
            pkt::text(&mut out, format!("have {oid}"));
        }
        match v0.end {
            RoundEnd::NoRound => {}
            RoundEnd::Flush => out.extend_from_slice(pkt::FLUSH),
            RoundEnd::Done => pkt::text(&mut out, "done"),
        }
        out
    }

    fn parse(lines: &[&str]) -> Result<FetchRequest, BadRequest> {
        parse_v0(&body(lines), &RequestLimits::default(), HashKind::Sha1)
    }

    #[test]
    fn reads_a_fetch_request_of_git() {
        let first =
            format!("want {A} multi_ack_detailed no-done side-band-64k thin-pack ofs-delta agent=git/2.47.3");
        let have = format!("have {A}");
        let request = parse(&[&first, &format!("want {B}"), ".", &have, &have, ".", "junk"]).unwrap();
        assert_eq!(request.wants, [oid(1), oid(2)]);
        assert_eq!(request.haves, [oid(1), oid(1)]);
        assert!(request.thin_pack && request.ofs_delta && !request.no_progress && !request.done);
        let v0 = v0_of(&request);
        assert_eq!((v0.ack, v0.no_done, v0.band), (Ack::MultiDetailed, true, Band::Large));
        assert_eq!((v0.end, v0.agent), (RoundEnd::Flush, Some("git/2.47.3".into())));
    }

    #[test]
    fn knows_how_a_round_ends() {
        let want = format!("want {A}");
        let end = |lines: &[&str]| parse(lines).map(|request| v0_of(&request).end);
        assert_eq!(end(&["."]), Ok(RoundEnd::NoRound));
        assert_eq!(end(&[".", "junk"]), Ok(RoundEnd::NoRound));
        assert_eq!(end(&[&want, "deepen 1", "."]), Ok(RoundEnd::NoRound));
        assert_eq!(end(&[&want, ".", "done"]), Ok(RoundEnd::Done));
        assert_eq!(end(&[&want, ".", "."]), Ok(RoundEnd::Flush));
        assert!(end(&[&want, ".", &format!("have {A}")]).is_err());
        assert!(end(&[&want]).is_err());
        assert!(end(&[]).is_err());
    }

    #[test]
    fn refuses_in_gits_words() {
        let (want, filtered) = (format!("want {A}"), format!("want {A} filter"));
        let cases: [(&[&str], String); 7] = [
            (
                &["want 12", "."],
                "git upload-pack: protocol error, expected to get object ID, not 'want 12'".into(),
            ),
            (&["done"], "git upload-pack: protocol error, expected to get object ID, not 'done'".into()),
            (&[&want, "filter tree:0", "."], "git upload-pack: filtering capability not negotiated".into()),
            (&[&filtered, "filter x", "."], "invalid filter-spec 'x'".into()),
            (&[&want, ".", "have 12"], "git upload-pack: expected SHA1 object, got '12'".into()),
            (&[&want, ".", &want], format!("git upload-pack: expected SHA1 list, got '{want}'")),
            (
                &[&want, "deepen 1", "deepen-not a", "."],
                "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together".into(),
            ),
        ];
        for (lines, words) in cases {
            assert_eq!(parse(lines).unwrap_err().to_string(), words, "{lines:?}");
        }
        let limits = RequestLimits { max_wants: 1, max_haves: 1, ..RequestLimits::default() };
        let limited = |lines: &[&str]| parse_v0(&body(lines), &limits, HashKind::Sha1);
        assert!(matches!(
            limited(&[&want, &format!("want {B}"), "."]),
            Err(BadRequest::TooMany { what: "want", .. })
        ));
        let have = format!("have {A}");
        assert!(matches!(
            limited(&[&want, ".", &have, &have, "."]),
            Err(BadRequest::TooMany { what: "have", .. })
        ));
    }

    fn any_v0() -> impl Strategy<Value = V0> {
        let ack = prop_oneof![Just(Ack::None), Just(Ack::Multi), Just(Ack::MultiDetailed)];
        let band = prop_oneof![Just(Band::None), Just(Band::Small), Just(Band::Large)];
        let end = prop_oneof![Just(RoundEnd::NoRound), Just(RoundEnd::Flush), Just(RoundEnd::Done)];
        (ack, band, end, any::<bool>()).prop_map(|(ack, band, end, no_done)| V0 {
            ack,
            no_done,
            band,
            end,
            ..V0::default()
        })
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn v0_requests_come_back(mut request in any_fetch(), mut v0 in any_v0()) {
            // Without wants there are no features and no round.
            prop_assume!(!request.wants.is_empty());
            if v0.end == RoundEnd::NoRound && !request.haves.is_empty() {
                v0.end = RoundEnd::Flush;
            }
            request.done = v0.end == RoundEnd::Done;
            request.wire = Wire::V0(v0);
            prop_assert_eq!(parse_v0(&encode(&request), &RequestLimits::default(), HashKind::Sha1).unwrap(), request);
        }

        #[test]
        fn any_body_is_read_without_panic(
            lines in proptest::collection::vec("(want |have |shallow |deepen |filter )?([0-9a-f]{40})?[ -~]{0,20}", 0..6),
            cut in 0usize..300, tail in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut out = Vec::new();
            for (at, line) in lines.iter().enumerate() {
                pkt::data(&mut out, line.as_bytes());
                if at == 2 {
                    out.extend_from_slice(pkt::FLUSH);
                }
            }
            out.truncate(cut);
            out.extend(tail);
            let _ = parse_v0(&out, &RequestLimits::default(), HashKind::Sha1);
        }
    }
}
