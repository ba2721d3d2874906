//! Tests of v2 requests.

use super::*;
use crate::git::ObjectId;
use crate::git::V2Caps;
use crate::git::filter::Filter;
use crate::git::filter::tests::any_filter;
use crate::git::refs::tests::oid;
use proptest::prelude::*;

/// Builds a body: `"|"` is a delimiter, `"."` a flush, anything else a line.
pub(crate) fn body(lines: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines {
        match *line {
            "|" => out.extend_from_slice(pkt::DELIM),
            "." => out.extend_from_slice(pkt::FLUSH),
            line => pkt::text(&mut out, line),
        }
    }
    out
}

fn parse(lines: &[&str]) -> Result<Option<CommandRequest>, BadRequest> {
    parse_v2(&body(lines), &RequestLimits::default(), HashKind::Sha1)
}

fn fetch(args: &[&str]) -> Result<FetchRequest, BadRequest> {
    let lines = [&["command=fetch", "|"], args, &["."]].concat();
    match parse(&lines)?.unwrap().command {
        Command::Fetch(request) => Ok(*request),
        other => panic!("{other:?}"),
    }
}

const A: &str = "0101010101010101010101010101010101010101";
const B: &str = "0202020202020202020202020202020202020202";

#[test]
fn reads_a_clone_request_of_git() {
    let request = parse(&[
        "command=fetch",
        "agent=git/2.47.3",
        "object-format=sha1",
        "|",
        "thin-pack",
        "no-progress",
        "include-tag",
        "ofs-delta",
        &format!("want {A}"),
        &format!("want {B}"),
        &format!("want {A}"),
        "done",
        ".",
    ]);
    let request = request.unwrap().unwrap();
    assert_eq!(request.agent.unwrap(), "git/2.47.3");
    assert_eq!(request.object_format, Some(HashKind::Sha1));
    let Command::Fetch(fetch) = request.command else { panic!("fetch") };
    let want = FetchRequest {
        wants: vec![oid(1), oid(2)],
        done: true,
        thin_pack: true,
        no_progress: true,
        include_tag: true,
        ofs_delta: true,
        ..FetchRequest::default()
    };
    assert_eq!(*fetch, want);
}

#[test]
fn reads_every_argument() {
    let request = fetch(&[
        "wait-for-done",
        "sideband-all",
        &format!("shallow {A}"),
        &format!("shallow {A}"),
        "deepen 0x10",
        "deepen-relative",
        "filter blob:limit=1k",
        "packfile-uris https,http",
        "want-ref refs/heads/main",
        &format!("have {B}"),
        "new-thing 1",
    ]);
    let want = FetchRequest {
        wait_for_done: true,
        sideband_all: true,
        shallow: vec![oid(1)],
        deepen: Some(16),
        deepen_relative: true,
        filter: Some(Filter::BlobLimit(1024)),
        packfile_uris: vec!["https".into(), "http".into()],
        want_refs: vec!["refs/heads/main".into()],
        haves: vec![oid(2)],
        unknown: vec!["new-thing 1".into()],
        ..FetchRequest::default()
    };
    assert_eq!(request.unwrap(), want);
    let request = fetch(&["deepen-since 1700000000", "deepen-not main", "deepen-not refs/tags/v1"]).unwrap();
    assert_eq!(request.deepen_since, Some(1_700_000_000));
    assert_eq!(request.deepen_not, ["main", "refs/tags/v1"]);
    assert!(request.deepens() && request.deepens_by_list());
}

#[test]
fn refuses_arguments_in_gits_words() {
    let cases = [
        ("want 123", "git upload-pack: protocol error, expected to get oid, not 'want 123'"),
        ("have xyz", "git upload-pack: expected SHA1 object, got 'xyz'"),
        ("shallow 1", "invalid shallow line: shallow 1"),
        ("deepen 0", "Invalid deepen: deepen 0"),
        ("deepen -1", "Invalid deepen: deepen -1"),
        ("deepen 1x", "Invalid deepen: deepen 1x"),
        ("deepen-since tomorrow", "Invalid deepen-since: deepen-since tomorrow"),
        ("deepen-since -1", "Invalid deepen-since: deepen-since -1"),
        ("filter foo", "invalid filter-spec 'foo'"),
    ];
    for (line, want) in cases {
        assert_eq!(fetch(&[line]).unwrap_err().to_string(), want);
    }
    let twice: [(&[&str], &str); 4] = [
        (&["filter tree:0", "filter tree:0"], "multiple filter-specs cannot be combined"),
        (&["want-ref a", "want-ref a"], "duplicate want-ref a"),
        (&["packfile-uris a", "packfile-uris b"], "multiple packfile-uris lines forbidden"),
        (
            &["deepen 1", "deepen-not a"],
            "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together",
        ),
    ];
    for (lines, want) in twice {
        assert_eq!(fetch(lines).unwrap_err().to_string(), want);
    }
}

#[test]
fn reads_the_frame_as_git_does() {
    let refused: [(&[&str], &str); 9] = [
        (&["agent=x", "."], "no command requested"),
        (
            &["command=fetch", "command=ls-refs", "."],
            "command 'ls-refs' requested after already requesting command 'fetch'",
        ),
        (&["command=fetch", "object-format", "."], "object-format capability requires an argument"),
        (&["command=fetch", "object-format=md5", "."], "unknown object format 'md5'"),
        (
            &["command=fetch", "object-format=sha256", "."],
            "mismatched object format: server sha1; client sha256",
        ),
        (&["command=fetch", "|", "done", "|"], "expected flush after fetch arguments"),
        (&["command=ls-refs", "|", "|"], "expected flush after ls-refs arguments"),
        (&["command=bundle-uri", "|", "x", "."], "bundle-uri: unexpected argument: 'x'"),
        (&["command=fetch", "|", "done"], "the remote end hung up unexpectedly"),
    ];
    for (lines, want) in refused {
        assert_eq!(parse(lines).unwrap_err().to_string(), want, "{lines:?}");
    }
    assert_eq!(parse(&[]), Ok(None));
    assert_eq!(parse(&["."]), Ok(None));
    let request =
        parse(&["command=new", "promisor-remote=a;b", "server-option=x=y", "session-id=s", "|", "junk", "."]);
    let want = CommandRequest {
        session_id: Some("s".into()),
        server_options: vec!["x=y".into()],
        unknown: vec!["promisor-remote=a;b".into()],
        ..CommandRequest::new(Command::Other("new".into()))
    };
    assert_eq!(request.unwrap().unwrap(), want);
    let sha256 = parse_v2(&body(&["command=ls-refs", "."]), &RequestLimits::default(), HashKind::Sha256);
    assert_eq!(sha256.unwrap_err().to_string(), "mismatched object format: server sha256; client sha1");
}

#[test]
fn limits_hold_and_duplicates_count_once() {
    let limits = RequestLimits { max_wants: 1, max_haves: 1, max_shallow: 1, max_oids: 1, max_names: 1 };
    let try_args = |args: &[&str]| {
        let lines = [&["command=fetch", "|"], args, &["."]].concat();
        parse_v2(&body(&lines), &limits, HashKind::Sha1).map(|_| ())
    };
    for word in ["want", "have", "shallow"] {
        let (a, b) = (format!("{word} {A}"), format!("{word} {B}"));
        assert_eq!(try_args(&[&a, &a, &a]), Ok(()));
        assert_eq!(try_args(&[&a, &b]), Err(BadRequest::TooMany { what: word, limit: 1 }));
    }
    for args in [["want-ref a", "want-ref b"], ["deepen-not a", "deepen-not a"], ["what", "what"]] {
        assert!(matches!(try_args(&args), Err(BadRequest::TooMany { .. })), "{args:?}");
    }
}

#[test]
fn tells_what_was_not_offered() {
    let caps = |fetch: &str| V2Caps(vec![("fetch".into(), Some(fetch.into()))]);
    let all = caps("shallow filter ref-in-want sideband-all packfile-uris");
    let request = fetch(&["filter tree:1", "want-ref a", "sideband-all", "packfile-uris a,b"]).unwrap();
    assert_eq!(request.unoffered(&all), None);
    assert_eq!(request.unoffered(&caps("shallow")).unwrap(), "unexpected line: 'filter tree:1'");
    assert_eq!(
        request.unoffered(&caps("filter sideband-all packfile-uris")).unwrap(),
        "unexpected line: 'want-ref a'"
    );
    assert_eq!(
        request.unoffered(&caps("filter ref-in-want sideband-all")).unwrap(),
        "unexpected line: 'packfile-uris a,b'"
    );
    assert_eq!(fetch(&["x"]).unwrap().unoffered(&all).unwrap(), "unexpected line: 'x'");
}

prop_compose! {
    /// Lists of things without repetition.
    fn oids()(fills in proptest::collection::btree_set(any::<u8>(), 0..5)) -> Vec<ObjectId> {
        fills.into_iter().map(oid).collect()
    }
}

fn names() -> impl Strategy<Value = Vec<BString>> {
    let names = proptest::collection::btree_set("[a-z/]{1,8}", 0..3);
    names.prop_map(|names| names.into_iter().map(BString::from).collect())
}

/// How deep, in the ways that go together: `(deepen, deepen_since, deepen_not)`.
fn depths() -> impl Strategy<Value = (Option<u32>, Option<u64>, Vec<BString>)> {
    prop_oneof![
        (1..=i32::MAX as u32).prop_map(|depth| (Some(depth), None, Vec::new())),
        (proptest::option::of(0..u64::MAX), names()).prop_map(|(since, not)| (None, since, not)),
    ]
}

prop_compose! {
    /// Any fetch request that both versions can say; v2-only fields are left empty.
    pub(crate) fn any_fetch()(
        (wants, haves, shallow) in (oids(), oids(), oids()),
        (deepen, deepen_since, deepen_not) in depths(),
        flags in any::<[bool; 6]>(),
        filter in proptest::option::of(any_filter()),
    ) -> FetchRequest {
        let [done, thin_pack, no_progress, include_tag, ofs_delta, deepen_relative] = flags;
        FetchRequest {
            wants, haves, shallow, deepen, deepen_since, deepen_not, filter,
            done, thin_pack, no_progress, include_tag, ofs_delta, deepen_relative,
            ..FetchRequest::default()
        }
    }
}

proptest! {
    #![proptest_config(crate::seed::cases(256))]

    #[test]
    fn fetch_requests_come_back(
        request in any_fetch(), want_refs in names(), packfile_uris in names(), wait_for_done: bool, sideband_all: bool,
        agent in proptest::option::of("[!-~]{0,9}"), sha256: bool, server_options in names(),
    ) {
        let fetch = FetchRequest { want_refs, packfile_uris, wait_for_done, sideband_all, ..request };
        let request = CommandRequest {
            agent: agent.map(BString::from),
            object_format: (!sha256).then_some(HashKind::Sha1),
            server_options,
            ..CommandRequest::new(Command::Fetch(Box::new(fetch)))
        };
        let body = request.encode();
        prop_assert_eq!(parse_v2(&body, &RequestLimits::default(), HashKind::Sha1).unwrap().unwrap(), request);
    }

    #[test]
    fn any_body_is_read_without_panic(
        lines in proptest::collection::vec(
            "(command=(fetch|ls-refs|object-info)|want |have |shallow |deepen |deepen-since |filter |oid |size|object-format=)?[ -~]{0,44}", 0..6),
        cut in 0usize..200, tail in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut out = body(&["command=fetch"]);
        for (at, line) in lines.iter().enumerate() {
            pkt::data(&mut out, line.as_bytes());
            if at == 2 {
                out.extend_from_slice(pkt::DELIM);
            }
        }
        out.truncate(cut);
        out.extend(tail);
        for hash in [HashKind::Sha1, HashKind::Sha256] {
            let _ = parse_v2(&out, &RequestLimits::default(), hash);
        }
    }
}
