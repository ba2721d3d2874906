//! Bodies of requests with the limits that a server has: what is parsed takes no more than a few times the body.
use crate::bound::within;
use crate::git::request::{Command, RequestLimits, parse_v2};
use crate::git::v0::parse_v0;
use crate::{byte, hash};

/// Bytes that may be taken for each byte of a body: the set that finds what was said twice grows by doubling.
const FOR_A_BYTE: usize = 16;

/// The target: the first byte chooses the hash, the protocol, and how often the rest of the head is repeated; the second
/// says how long that head is.
pub fn run(mut data: &[u8]) {
    let (Some(choice), Some(length)) = (byte(&mut data), byte(&mut data)) else { return };
    let (head, rest) = data.split_at(usize::from(length).min(data.len()));
    let body = [&head.repeat(1 + usize::from(choice >> 4) * 16)[..], rest].concat();
    let (limits, room) = (RequestLimits::default(), 4096 + FOR_A_BYTE * body.len());
    if choice & 2 != 0 {
        if let Ok(request) = within(room, || parse_v0(&body, &limits, hash(choice))) {
            assert!(request.wants.len() * 40 <= body.len() && request.haves.len() * 40 <= body.len());
        }
        return;
    }
    let Ok(Some(request)) = within(room, || parse_v2(&body, &limits, hash(choice))) else { return };
    if let Command::ObjectInfo(ask) = &request.command {
        let mut out = Vec::new();
        within(4096 + 4 * body.len(), || ask.answer(|_| Some(u64::MAX), &mut out));
        crate::must_be_packets(&out);
    }
    within(4096 + 4 * body.len(), || request.encode());
}
