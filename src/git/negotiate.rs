//! Negotiation: what to answer to a client's haves.
//!
//! Ports `process_haves_and_send_acks` (v2) and `get_common_commits` (v0, stateless) of git's
//! `upload-pack.c`. What is common, and whether that is enough, is asked of a [`Common`].
//! In v2 every have that is common is acknowledged, as gitprotocol-v2(5) says and git before 2.45 does. Newer git leaves out
//! those whose child was named before, and `fetch --negotiate-only` then names fewer commits than both sides have.
//! Relies on: haves in the order the client sent them. Elsewhere: the commit walk behind `Common`
//! (`pack::history::negotiate`), the sections behind the acknowledgments (`response`).

use super::fetch::{Ack, FetchRequest, RoundEnd, V0};
use super::response::{AckStatus, Sections, put_ack, put_nak};
use gix_hash::ObjectId;
use std::collections::HashSet;

/// What a have line tells us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Have {
    /// We do not have the object.
    Unknown,
    /// We have it, and it is news that the client does.
    New,
    /// We have it, and knew that the client does: it was named before, or is a parent of a commit that was
    /// (git's `THEY_HAVE`; only direct parents count).
    Implied,
}

/// Knows the repository; git's `got_oid` and `ok_to_give_up`.
pub trait Common {
    /// Notes that the client has `oid`. Asked once for each have of the request, in its order.
    fn have(&mut self, oid: &ObjectId) -> Have;

    /// Says whether every want reaches something the client has, as far as noted. Asked only after a
    /// [`Have::New`], and possibly often: once for each unknown have in v0.
    fn ready(&mut self) -> bool;
}

/// What follows the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the answer is complete.
    Stop,
    /// The pack, in v2 after `wanted-refs`, `shallow-info` and the `packfile` header.
    Pack,
}

/// A [`Common`] made of two questions; objects named twice are implied, parents are not looked at.
pub struct Questions<I, R> {
    is_common: I,
    ready: R,
    named: HashSet<ObjectId>,
}

impl<I: FnMut(&ObjectId) -> bool, R: FnMut() -> bool> Questions<I, R> {
    /// Asks `is_common` once for each object named, `ready` when it matters.
    pub fn new(is_common: I, ready: R) -> Self {
        Self { is_common, ready, named: HashSet::new() }
    }
}

impl<I: FnMut(&ObjectId) -> bool, R: FnMut() -> bool> Common for Questions<I, R> {
    fn have(&mut self, oid: &ObjectId) -> Have {
        if self.named.contains(oid) {
            return Have::Implied;
        }
        if !(self.is_common)(oid) {
            return Have::Unknown;
        }
        self.named.insert(*oid);
        Have::New
    }

    fn ready(&mut self) -> bool {
        (self.ready)()
    }
}

/// Notes the haves of a v2 request and appends the acknowledgments section if there is one.
///
/// [`Next::Stop`] without any bytes means that the client wanted nothing.
pub fn answer_v2(request: &FetchRequest, common: &mut dyn Common, out: &mut Vec<u8>) -> Next {
    let acks: Vec<ObjectId> =
        request.haves.iter().copied().filter(|oid| common.have(oid) != Have::Unknown).collect();
    if request.wants.is_empty() && request.want_refs.is_empty() && !request.wait_for_done {
        return Next::Stop;
    }
    if request.haves.is_empty() || request.done {
        return Next::Pack;
    }
    let ready = !request.wait_for_done && !acks.is_empty() && common.ready();
    Sections::new(out, request.sideband_all).acknowledgments(&acks, ready);
    if ready { Next::Pack } else { Next::Stop }
}

/// Notes the haves of a v0 request and appends exactly what git answers between the shallow lines and the pack.
pub fn answer_v0(request: &FetchRequest, v0: &V0, common: &mut dyn Common, out: &mut Vec<u8>) -> Next {
    if request.wants.is_empty() || v0.end == RoundEnd::NoRound {
        return Next::Stop;
    }
    let mut round = Round { ack: v0.ack, news: 0, last: None, other: false, sent_ready: false };
    for oid in &request.haves {
        round.have(oid, common, out);
    }
    round.end(v0, common, out)
}

/// The state of one round of haves.
struct Round {
    ack: Ack,
    /// How many objects are known to be common (git's `have_obj.nr`).
    news: usize,
    /// The last have that we have too.
    last: Option<ObjectId>,
    /// Whether the client has something that we have not.
    other: bool,
    sent_ready: bool,
}

impl Round {
    fn enough(&self, common: &mut dyn Common) -> bool {
        self.news > 0 && common.ready()
    }

    fn have(&mut self, oid: &ObjectId, common: &mut dyn Common, out: &mut Vec<u8>) {
        match common.have(oid) {
            Have::Unknown => {
                self.other = true;
                // Say it of this object too, so that the client stops walking down a branch of its own.
                if self.ack != Ack::None && self.enough(common) {
                    let detailed = self.ack == Ack::MultiDetailed;
                    self.sent_ready |= detailed;
                    let status = if detailed { AckStatus::Ready } else { AckStatus::Continue };
                    put_ack(out, oid, Some(status));
                }
                return;
            }
            Have::New => self.news += 1,
            Have::Implied => {}
        }
        self.last = Some(*oid);
        match self.ack {
            Ack::MultiDetailed => put_ack(out, oid, Some(AckStatus::Common)),
            Ack::Multi => put_ack(out, oid, Some(AckStatus::Continue)),
            Ack::None if self.news == 1 => put_ack(out, oid, None),
            Ack::None => {}
        }
    }

    fn end(mut self, v0: &V0, common: &mut dyn Common, out: &mut Vec<u8>) -> Next {
        if v0.end == RoundEnd::Done {
            match self.last {
                Some(last) if self.ack != Ack::None => put_ack(out, &last, None),
                Some(_) => {}
                None => put_nak(out),
            }
            return Next::Pack;
        }
        if let Some(last) = self.last.filter(|_| self.ack == Ack::MultiDetailed && !self.other)
            && self.enough(common)
        {
            self.sent_ready = true;
            put_ack(out, &last, Some(AckStatus::Ready));
        }
        if self.news == 0 || self.ack != Ack::None {
            put_nak(out);
        }
        match self.last {
            Some(last) if v0.no_done && self.sent_ready => {
                put_ack(out, &last, None);
                Next::Pack
            }
            _ => Next::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::pkt::{Packet, Packets};
    use crate::git::refs::tests::oid;
    use bstr::ByteSlice;
    use proptest::prelude::*;

    fn lines(out: &[u8]) -> Vec<String> {
        let show = |packet| match packet {
            Ok(Packet::Data(payload)) => {
                let text = payload.trim_end().to_str_lossy().into_owned();
                (1..10).fold(text, |text, fill| text.replace(&oid(fill).to_string(), &fill.to_string()))
            }
            other => format!("{other:?}"),
        };
        Packets::new(out).map(show).collect()
    }

    /// Objects below 5 are ours; `ready` as given.
    fn common(ready: bool) -> impl Common {
        Questions::new(|id: &ObjectId| *id < oid(5), move || ready)
    }

    fn request(haves: &[u8]) -> FetchRequest {
        FetchRequest {
            wants: vec![oid(1)],
            haves: haves.iter().map(|fill| oid(*fill)).collect(),
            ..FetchRequest::default()
        }
    }

    fn v2(request: &FetchRequest, ready: bool) -> (Vec<String>, Next) {
        let mut out = Vec::new();
        let next = answer_v2(request, &mut common(ready), &mut out);
        (lines(&out), next)
    }

    fn v0(ack: Ack, no_done: bool, end: RoundEnd, haves: &[u8], ready: bool) -> (Vec<String>, Next) {
        let mut out = Vec::new();
        let v0 = V0 { ack, no_done, end, ..V0::default() };
        let next = answer_v0(&request(haves), &v0, &mut common(ready), &mut out);
        (lines(&out), next)
    }

    #[test]
    fn v2_acknowledges_what_is_common() {
        let (lines, next) = v2(&request(&[2, 7, 3]), false);
        assert_eq!(
            (lines.as_slice(), next),
            (&["acknowledgments", "ACK 2", "ACK 3", "Ok(Flush)"].map(String::from)[..], Next::Stop)
        );
        let (lines, next) = v2(&request(&[2]), true);
        assert_eq!(
            (lines.as_slice(), next),
            (&["acknowledgments", "ACK 2", "ready", "Ok(Delim)"].map(String::from)[..], Next::Pack)
        );
        let (lines, next) = v2(&request(&[7]), true);
        assert_eq!(
            (lines.as_slice(), next),
            (&["acknowledgments", "NAK", "Ok(Flush)"].map(String::from)[..], Next::Stop)
        );
    }

    /// Knows 1 to 4 from the start, as parents of what was named before.
    struct AllImplied;

    impl Common for AllImplied {
        fn have(&mut self, id: &ObjectId) -> Have {
            if *id < oid(5) { Have::Implied } else { Have::Unknown }
        }

        fn ready(&mut self) -> bool {
            false
        }
    }

    #[test]
    fn v2_acknowledges_what_was_known_before() {
        for wait_for_done in [false, true] {
            let mut out = Vec::new();
            let request = FetchRequest { wait_for_done, ..request(&[2, 7, 3]) };
            assert_eq!(answer_v2(&request, &mut AllImplied, &mut out), Next::Stop);
            assert_eq!(lines(&out), ["acknowledgments", "ACK 2", "ACK 3", "Ok(Flush)"]);
        }
    }

    #[test]
    fn v2_knows_when_not_to_acknowledge() {
        assert_eq!(v2(&request(&[]), false), (vec![], Next::Pack));
        assert_eq!(v2(&FetchRequest { done: true, ..request(&[2]) }, false), (vec![], Next::Pack));
        assert_eq!(v2(&FetchRequest { wants: vec![], ..request(&[2]) }, true), (vec![], Next::Stop));
        let waiting = FetchRequest { wants: vec![], wait_for_done: true, ..request(&[2]) };
        assert_eq!(v2(&waiting, true).0, ["acknowledgments", "ACK 2", "Ok(Flush)"]);
        let by_name = FetchRequest { wants: vec![], want_refs: vec!["refs/heads/a".into()], ..request(&[]) };
        assert_eq!(v2(&by_name, true), (vec![], Next::Pack));
    }

    #[test]
    fn v0_answers_in_each_mode() {
        use Ack::*;
        use Next::*;
        use RoundEnd::*;
        type Case = (Ack, bool, RoundEnd, &'static [u8], bool, &'static [&'static str], Next);
        let cases: [Case; 16] = [
            (None, false, Done, &[], false, &["NAK"], Pack),
            (None, false, Flush, &[], false, &["NAK"], Stop),
            (None, false, NoRound, &[], false, &[], Stop),
            (None, false, Flush, &[7, 2, 3], true, &["ACK 2"], Stop),
            (None, false, Done, &[2, 3], true, &["ACK 2"], Pack),
            (None, false, Flush, &[7], true, &["NAK"], Stop),
            (Multi, false, Flush, &[2, 3], true, &["ACK 2 continue", "ACK 3 continue", "NAK"], Stop),
            (Multi, false, Flush, &[2, 7], true, &["ACK 2 continue", "ACK 7 continue", "NAK"], Stop),
            (Multi, false, Done, &[2, 3], true, &["ACK 2 continue", "ACK 3 continue", "ACK 3"], Pack),
            (MultiDetailed, false, Flush, &[2], false, &["ACK 2 common", "NAK"], Stop),
            (MultiDetailed, false, Flush, &[2], true, &["ACK 2 common", "ACK 2 ready", "NAK"], Stop),
            (MultiDetailed, true, Flush, &[2], true, &["ACK 2 common", "ACK 2 ready", "NAK", "ACK 2"], Pack),
            (
                MultiDetailed,
                true,
                Flush,
                &[2, 7],
                true,
                &["ACK 2 common", "ACK 7 ready", "NAK", "ACK 2"],
                Pack,
            ),
            (MultiDetailed, true, Flush, &[2, 7], false, &["ACK 2 common", "NAK"], Stop),
            (MultiDetailed, true, Flush, &[7, 2], true, &["ACK 2 common", "NAK"], Stop),
            (MultiDetailed, true, Done, &[7], true, &["NAK"], Pack),
        ];
        for (ack, no_done, end, haves, ready, want, next) in cases {
            let want = (want.iter().map(ToString::to_string).collect::<Vec<_>>(), next);
            assert_eq!(v0(ack, no_done, end, haves, ready), want, "{ack:?} {end:?} {haves:?}");
        }
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn a_pack_never_follows_an_open_v2_round(haves in proptest::collection::vec(1u8..10, 0..8), flags: [bool; 4]) {
            let [ready, done, wait_for_done, wants] = flags;
            let mut request = FetchRequest { done, wait_for_done, ..request(&haves) };
            request.wants.retain(|_| wants);
            let (lines, next) = v2(&request, ready);
            match lines.last().map(String::as_str) {
                None => prop_assert!(next == Next::Pack || !wants),
                Some("Ok(Delim)") => prop_assert_eq!(next, Next::Pack),
                last => prop_assert_eq!((last, next), (Some("Ok(Flush)"), Next::Stop)),
            }
        }
    }
}
