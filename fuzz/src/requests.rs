//! Requests of clients, in v2 and v0, and what the pure code answers to those that parse.
use crate::git::ls_refs::{self, parse_answer};
use crate::git::negotiate::{Next, Questions, answer_v0, answer_v2};
use crate::git::request::{Command, RequestLimits, parse_v2};
use crate::git::v0::{RoundEnd, Wire, parse_v0};
use crate::git::{HashKind, Head, Ref, Refs, V2Caps};
use crate::{byte, hash, must_be_packets};
use gix_hash::ObjectId;

/// Low, so that the fuzzer reaches them.
const LIMITS: RequestLimits =
    RequestLimits { max_wants: 8, max_haves: 8, max_shallow: 8, max_oids: 8, max_names: 4 };

/// One target: the first byte chooses the hash and the protocol, the rest is the body.
pub fn run(mut data: &[u8]) {
    let Some(choice) = byte(&mut data) else { return };
    if choice & 2 == 0 { v2(data, hash(choice)) } else { v0(data, hash(choice)) }
}

fn v2(body: &[u8], hash: HashKind) {
    let Ok(Some(request)) = parse_v2(body, &LIMITS, hash) else { return };
    assert_eq!(
        parse_v2(&request.encode(), &LIMITS, hash),
        Ok(Some(request.clone())),
        "what is written is read back"
    );
    let mut out = Vec::new();
    match &request.command {
        Command::LsRefs(ask) => {
            let refs = refs(hash);
            ls_refs::answer(ask, &refs, &mut out);
            for line in parse_answer(&out, hash).expect("an answer") {
                assert!(line.name == "HEAD" || refs.find(&line.name).is_some());
                assert!(ask.prefixes.is_empty() || ask.prefixes.iter().any(|p| line.name.starts_with(p)));
                assert!(ask.peel || line.peeled.is_none());
                assert!(ask.symrefs || line.symref_target.is_none());
            }
        }
        Command::Fetch(ask) => {
            assert!(ask.wants.len() <= LIMITS.max_wants && ask.haves.len() <= LIMITS.max_haves);
            let _ = ask.unoffered(&V2Caps::default());
            let mut common = Questions::new(|id: &ObjectId| id.as_slice()[0] & 1 == 0, || true);
            let next = answer_v2(ask, &mut common, &mut out);
            assert!(!ask.done || ask.wants.is_empty() || next == Next::Pack, "done means: send it");
        }
        Command::ObjectInfo(ask) => ask.answer(|id| Some(u64::from(id.as_slice()[0])), &mut out),
        Command::BundleUri | Command::Other(_) => {}
    }
    must_be_packets(&out);
}

fn v0(body: &[u8], hash: HashKind) {
    let Ok(request) = parse_v0(body, &LIMITS, hash) else { return };
    let Wire::V0(v0) = request.wire.clone() else { panic!("a v0 request is one of v0") };
    assert_eq!(request.done, v0.end == RoundEnd::Done);
    assert!(request.wants.len() <= LIMITS.max_wants && request.haves.len() <= LIMITS.max_haves);
    let mut common = Questions::new(|id: &ObjectId| id.as_slice()[0] & 1 == 0, || true);
    let mut out = Vec::new();
    let next = answer_v0(&request, &v0, &mut common, &mut out);
    assert!(next == Next::Stop || !request.wants.is_empty(), "no pack for no wants");
    assert!(!request.done || next == Next::Pack);
    must_be_packets(&out);
}

fn refs(hash: HashKind) -> Refs {
    let id = |fill: u8| ObjectId::try_from(&vec![fill; hash.len_in_bytes()][..]).expect("an id");
    let make = |name: &str, fill, peeled: Option<u8>| Ref {
        name: name.into(),
        oid: id(fill),
        peeled: peeled.map(id),
    };
    let list = vec![
        make("refs/heads/main", 1, None),
        make("refs/heads/side", 2, None),
        make("refs/remotes/o/HEAD", 2, None),
        make("refs/tags/v1", 3, Some(1)),
    ];
    let symrefs = vec![("refs/remotes/o/HEAD".into(), "refs/heads/side".into())];
    Refs::new(hash, Head::Symbolic { target: "refs/heads/main".into() }, list, symrefs).expect("refs")
}
