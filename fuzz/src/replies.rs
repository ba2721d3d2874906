//! What a primary answers: advertisements, capabilities, refs, and the packets around a pack.
use crate::git::ls_refs::{answer, parse_answer, to_refs};
use crate::git::pkt::Reader;
use crate::git::reply::{Event, FetchReply};
use crate::git::{HashKind, LsRefs, Refs, V2Caps};
use crate::{byte, hash};

/// One target: the first byte chooses the hash and what the rest is.
pub fn run(mut data: &[u8]) {
    let Some(choice) = byte(&mut data) else { return };
    let hash = hash(choice);
    match choice >> 1 & 3 {
        0 => advertisement(data),
        1 => {
            let Some((refs, _)) = parse_answer(data, hash).ok().and_then(|lines| to_refs(lines, hash).ok())
            else {
                return;
            };
            shown_and_stored(&refs);
        }
        2 => fetch_reply(data, hash),
        _ => packed_refs(data, hash),
    }
}

fn advertisement(body: &[u8]) {
    let Ok(caps) = V2Caps::parse(body) else { return };
    assert_eq!(V2Caps::parse(&caps.encode()), Ok(caps.clone()), "what is written is read back");
    let _ = (caps.object_format(), caps.fetch_features().count());
}

/// Refs that were taken from somebody come back from a client's view and from the bucket.
fn shown_and_stored(refs: &Refs) {
    let all = LsRefs { peel: true, symrefs: true, unborn: true, prefixes: Vec::new() };
    let mut out = Vec::new();
    answer(&all, refs, &mut out);
    let shown = to_refs(parse_answer(&out, refs.hash).expect("our own words"), refs.hash);
    assert_eq!(shown.map(|(shown, left_out)| (shown, left_out.count)), Ok((refs.clone(), 0)));
    assert_eq!(Refs::parse_packed_refs(&refs.packed_refs(), refs.hash).as_ref(), Ok(&refs.refs));
    for r in &refs.refs {
        assert_eq!(refs.find(&r.name), Some(r));
        assert!(refs.with_prefix(&r.name).contains(r));
    }
}

fn packed_refs(text: &[u8], hash: HashKind) {
    let Ok(list) = Refs::parse_packed_refs(text, hash) else { return };
    let refs =
        Refs::new(hash, Default::default(), list.clone(), Vec::new()).expect("what is stored is sound");
    assert_eq!(refs.refs, list, "sorted, each once");
    shown_and_stored(&refs);
}

/// How a stream is cut into pieces says nothing.
fn fetch_reply(mut data: &[u8], hash: HashKind) {
    let step = usize::from(byte(&mut data).unwrap_or(0)) + 1;
    let whole = events(&[data], hash);
    let pieces: Vec<&[u8]> = data.chunks(step).collect();
    assert_eq!(whole, events(&pieces, hash));
    let ends = whole.0.iter().position(|event| matches!(event, Event::End { .. }));
    assert!(ends.is_none_or(|at| at + 1 == whole.0.len()), "nothing follows the end");
    assert!(!whole.0.contains(&Event::Pack(bytes::Bytes::new())), "no empty piece of a pack");
}

fn events(pieces: &[&[u8]], hash: HashKind) -> (Vec<Event>, Option<String>) {
    let (mut reader, mut reply) = (Reader::new(), FetchReply::new(hash));
    let mut events = Vec::new();
    for piece in pieces {
        reader.feed(piece);
        loop {
            match reader.packet() {
                Ok(None) => break,
                Ok(Some(packet)) => match reply.read(packet) {
                    Ok(event) => events.extend(event),
                    Err(error) => return (events, Some(error.to_string())),
                },
                Err(error) => return (events, Some(error.to_string())),
            }
        }
    }
    (events, reader.finish().err().map(|error| error.to_string()))
}
