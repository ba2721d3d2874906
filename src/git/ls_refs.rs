//! The v2 command `ls-refs`: asking for refs, answering, and reading the answer.
//!
//! The order and shape of the answer are those of git's `ls-refs.c`: HEAD first, then the refs sorted by
//! name, each with its attributes; reading follows `process_ref_v2` in `connect.c`.
//! Relies on: [`Refs`] being sorted. Elsewhere: the frame of the request (`request`).

use super::args::BadRequest;
use super::pkt::{self, Packet, Packets};
use super::refname;
use super::reply::BadReply;
use super::{Head, Ref, Refs, line};
use bstr::{BString, ByteSlice};
use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};
use std::collections::HashSet;

/// With this many prefixes or more git stops looking at them and shows all refs.
pub const TOO_MANY_PREFIXES: usize = 65_536;

/// The arguments of `ls-refs`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LsRefs {
    /// Show what tags point to in the end.
    pub peel: bool,
    /// Show where symbolic refs point.
    pub symrefs: bool,
    /// Show HEAD even if the branch it points to does not exist yet.
    pub unborn: bool,
    /// Show only refs that start with one of these; all, if there are none.
    pub prefixes: Vec<BString>,
}

/// One line of an `ls-refs` answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefLine {
    /// The full name, or `HEAD`.
    pub name: BString,
    /// What it points to; `None` if it is unborn.
    pub oid: Option<ObjectId>,
    /// Where it points, if it is symbolic.
    pub symref_target: Option<BString>,
    /// What is left when all tags are peeled off, if it points to a tag.
    pub peeled: Option<ObjectId>,
}

impl LsRefs {
    /// Takes the argument lines of a request, as `line::text` gives them.
    pub fn parse<'a>(args: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, BadRequest> {
        let mut request = Self::default();
        for arg in args {
            match arg {
                b"peel" => request.peel = true,
                b"symrefs" => request.symrefs = true,
                b"unborn" => request.unborn = true,
                _ => match arg.strip_prefix(b"ref-prefix ") {
                    Some(prefix) if request.prefixes.len() < TOO_MANY_PREFIXES => {
                        request.prefixes.push(prefix.into());
                    }
                    Some(_) => {}
                    None => return Err(BadRequest::unexpected_line(arg)),
                },
            }
        }
        if request.prefixes.len() >= TOO_MANY_PREFIXES {
            request.prefixes.clear();
        }
        Ok(request)
    }

    /// Appends the argument lines.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for (on, arg) in [(self.peel, "peel"), (self.symrefs, "symrefs"), (self.unborn, "unborn")] {
            if on {
                pkt::text(out, arg);
            }
        }
        for prefix in &self.prefixes {
            pkt::text(out, [b"ref-prefix ", prefix.as_slice()].concat());
        }
    }

    fn shows(&self, name: &[u8]) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Gives prefixes that select the same refs, sorted, none of them being a prefix of another.
    fn disjoint_prefixes(&self) -> Vec<&[u8]> {
        let mut prefixes: Vec<&[u8]> = self.prefixes.iter().map(|prefix| prefix.as_slice()).collect();
        prefixes.sort_unstable();
        prefixes.dedup_by(|next, kept| next.starts_with(kept));
        if prefixes.is_empty() {
            prefixes.push(b"");
        }
        prefixes
    }
}

/// Why a ref that a server shows cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Its name is none that git allows, or longer than any that we keep. Git itself shows such a ref with no object.
    #[error("its name is none that git allows")]
    Name,
    /// It has no object: its file is empty, holds zeros, or holds no id.
    #[error("it names no object")]
    Empty,
    /// It is symbolic, and what it leads to does not exist.
    #[error("it is symbolic and leads to a ref that does not exist")]
    Dangling,
    /// It is symbolic and leads out of `refs/`, which git allows for none (`symbolic-ref`).
    #[error("it is symbolic and leads to what is no ref")]
    Target,
    /// Its server does not have the object. Git shows such a ref as any other.
    #[error("its object is not there")]
    Absent,
}

/// The refs that a server shows and that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: Vec<(BString, Unfit)>,
}

impl LeftOut {
    /// How many are named.
    const NAMED: usize = 10;

    fn push(&mut self, name: BString, why: Unfit) {
        self.count += 1;
        if self.first.len() < Self::NAMED {
            self.first.push((name, why));
        }
    }
}

impl RefLine {
    /// Says why the ref cannot be kept, if so. An unborn HEAD can.
    pub fn unfit(&self) -> Option<Unfit> {
        match (&self.oid, &self.symref_target) {
            _ if !refname::is_well_formed(&self.name) => Some(Unfit::Name),
            (_, Some(target)) if !refname::is_ref(target) => Some(Unfit::Target),
            (Some(oid), None) if oid.is_null() => Some(Unfit::Empty),
            (oid, _) if oid.is_none_or(|oid| oid.is_null()) && self.name != "HEAD" => Some(Unfit::Dangling),
            _ => None,
        }
    }

    /// Reads one line of an answer. Unknown attributes are skipped; whether the ref can be kept is [`RefLine::unfit`].
    pub fn parse(text: &[u8], hash: HashKind) -> Result<Self, BadReply> {
        let bad = || BadReply::Protocol(format!("invalid ls-refs response: {}", text.as_bstr()));
        let mut fields = text.split(|byte| *byte == b' ');
        let (id, name) = fields.next().zip(fields.next()).ok_or_else(bad)?;
        if name.is_empty() {
            return Err(bad());
        }
        let whole_oid =
            |hex: &[u8]| line::oid(hex, hash).filter(|(_, rest)| rest.is_empty()).map(|(oid, _)| oid);
        let oid = match id {
            b"unborn" => None,
            hex => Some(whole_oid(hex).ok_or_else(bad)?),
        };
        let mut line = Self { name: name.into(), oid, symref_target: None, peeled: None };
        for field in fields {
            if let Some(target) = field.strip_prefix(b"symref-target:") {
                line.symref_target = Some(target.into());
            } else if let Some(hex) = field.strip_prefix(b"peeled:") {
                line.peeled = Some(whole_oid(hex).ok_or_else(bad)?);
            }
        }
        Ok(line)
    }
}

/// Reads a whole answer to `ls-refs`.
pub fn parse_answer(body: &[u8], hash: HashKind) -> Result<Vec<RefLine>, BadReply> {
    let mut lines = Vec::new();
    let mut packets = Packets::new(body);
    loop {
        match packets.expect()? {
            Packet::Data(payload) => {
                BadReply::refuse_error(payload)?;
                lines.push(RefLine::parse(line::text(payload), hash)?);
            }
            Packet::Flush => return Ok(lines),
            Packet::Delim | Packet::ResponseEnd => {
                return Err(BadReply::Protocol("expected flush after ref listing".into()));
            }
        }
    }
}

/// Makes the refs of a repository of the lines that its server showed, and says which of them cannot be kept.
///
/// If HEAD is symbolic but its target was not shown (refs can be hidden), HEAD's own object id is kept.
/// Names outside `refs/`, which some servers show (`ORIG_HEAD`), are left out without a word.
pub fn to_refs(lines: Vec<RefLine>, hash: HashKind) -> Result<(Refs, LeftOut), BadReply> {
    to_refs_without(&HashSet::new(), lines, hash)
}

/// The same where the server is known not to have the objects of `absent`: refs that name one of them are left out.
pub fn to_refs_without(
    absent: &HashSet<ObjectId>,
    lines: Vec<RefLine>,
    hash: HashKind,
) -> Result<(Refs, LeftOut), BadReply> {
    let (mut head_line, mut refs, mut symrefs) = (None, Vec::new(), Vec::new());
    let mut left_out = LeftOut::default();
    for mut line in lines {
        let is_absent = line.oid.is_some_and(|oid| absent.contains(&oid));
        let unfit = line.unfit().or(is_absent.then_some(Unfit::Absent));
        if line.name == "HEAD" {
            // What it points to itself is good without the name, and no object is none.
            line.symref_target = line.symref_target.filter(|_| unfit != Some(Unfit::Target));
            line.oid = line.oid.filter(|oid| !oid.is_null() && !is_absent);
            head_line = Some(line);
        } else if let Some(unfit) = unfit {
            left_out.push(line.name, unfit);
        } else if let Some(oid) = line.oid.filter(|_| line.name.starts_with(b"refs/")) {
            symrefs.extend(line.symref_target.map(|target| (line.name.clone(), target)));
            refs.push(Ref { name: line.name, oid, peeled: line.peeled });
        }
    }
    let bad = |error: super::refs::BadRefs| BadReply::Protocol(error.to_string());
    let mut all = Refs::new(hash, Head::Missing, refs, symrefs).map_err(bad)?;
    let head = match head_line {
        None | Some(RefLine { oid: None, symref_target: None, .. }) => Head::Missing,
        Some(RefLine { oid: Some(oid), symref_target: None, .. }) => Head::Detached(oid),
        Some(RefLine { oid: Some(oid), symref_target: Some(target), .. }) if all.find(&target).is_none() => {
            Head::Detached(oid)
        }
        Some(RefLine { symref_target: Some(target), .. }) => Head::Symbolic { target },
    };
    all.head = head;
    Ok((Refs::new(all.hash, all.head, all.refs, all.symrefs).map_err(bad)?, left_out))
}

/// The lines of all refs of a repository, written once, with the attributes that git always asks for (`peel`, `symrefs`).
#[derive(Debug)]
pub struct Listing {
    lines: Bytes,
    /// Where the line of each ref ends.
    ends: Vec<usize>,
}

impl Listing {
    /// Writes the lines of `refs`.
    pub fn of(refs: &Refs) -> Self {
        let request = LsRefs { peel: true, symrefs: true, ..LsRefs::default() };
        let (mut lines, mut ends) = (Vec::new(), Vec::with_capacity(refs.refs.len()));
        for r in &refs.refs {
            put(&request, &mut lines, &r.oid, &r.name, refs.symref_target(&r.name), r.peeled);
            ends.push(lines.len());
        }
        Self { lines: lines.into(), ends }
    }

    /// Says whether `request` asks for the attributes that are written.
    pub fn serves(request: &LsRefs) -> bool {
        request.peel && request.symrefs
    }

    /// Gives git's answer, flush included, in pieces, to a request that this serves. `refs` are those that this was made of.
    pub fn answer(&self, request: &LsRefs, refs: &Refs) -> Vec<Bytes> {
        let mut head = Vec::new();
        put_head(request, refs, &mut head);
        let mut pieces = vec![Bytes::from(head)];
        for prefix in request.disjoint_prefixes() {
            let first = refs.refs.partition_point(|r| r.name.as_slice() < prefix);
            let count = refs.with_prefix(prefix).len();
            let end_of =
                |refs: usize| refs.checked_sub(1).and_then(|last| self.ends.get(last)).copied().unwrap_or(0);
            pieces.push(self.lines.slice(end_of(first)..end_of(first + count)));
        }
        pieces.push(Bytes::from_static(pkt::FLUSH));
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}

/// Appends git's answer to `request`, flush included.
pub fn answer(request: &LsRefs, refs: &Refs, out: &mut Vec<u8>) {
    put_head(request, refs, out);
    for prefix in request.disjoint_prefixes() {
        for r in refs.with_prefix(prefix) {
            put(request, out, &r.oid, &r.name, refs.symref_target(&r.name), r.peeled);
        }
    }
    out.extend_from_slice(pkt::FLUSH);
}

fn put_head(request: &LsRefs, refs: &Refs, out: &mut Vec<u8>) {
    if request.shows(b"HEAD") {
        let target = match &refs.head {
            Head::Symbolic { target } => Some(target),
            Head::Detached(_) | Head::Missing => None,
        };
        match refs.head() {
            Some((oid, peeled)) => put(request, out, &oid, b"HEAD", target, peeled),
            None if request.unborn && request.symrefs && target.is_some() => put_unborn(out, target),
            None => {}
        }
    }
}

fn put(
    request: &LsRefs,
    out: &mut Vec<u8>,
    oid: &ObjectId,
    name: &[u8],
    target: Option<&BString>,
    peeled: Option<ObjectId>,
) {
    pkt::with(out, |out| {
        line::put_oid(out, oid);
        out.push(b' ');
        out.extend_from_slice(name);
        if let Some(target) = target.filter(|_| request.symrefs) {
            out.extend_from_slice(b" symref-target:");
            out.extend_from_slice(target);
        }
        if let Some(peeled) = peeled.filter(|_| request.peel) {
            out.extend_from_slice(b" peeled:");
            line::put_oid(out, &peeled);
        }
        out.push(b'\n');
    });
}

fn put_unborn(out: &mut Vec<u8>, target: Option<&BString>) {
    pkt::with(out, |out| {
        out.extend_from_slice(b"unborn HEAD symref-target:");
        out.extend_from_slice(target.map_or(&b""[..], |target| target.as_slice()));
        out.push(b'\n');
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::refs::tests::{any_refs, oid, sample};
    use proptest::prelude::*;

    fn show(request: &LsRefs, refs: &Refs) -> Vec<String> {
        let mut out = Vec::new();
        answer(request, refs, &mut out);
        let show = |packet| match packet {
            Ok(Packet::Data(payload)) => line::text(payload).to_str_lossy().replace(&oid(1).to_string(), "1"),
            other => format!("{other:?}"),
        };
        Packets::new(&out).map(show).collect()
    }

    fn request(prefixes: &[&str]) -> LsRefs {
        LsRefs { prefixes: prefixes.iter().map(|prefix| (*prefix).into()).collect(), ..LsRefs::default() }
    }

    #[test]
    fn answers_head_first_with_attributes() {
        let all = LsRefs { peel: true, symrefs: true, unborn: true, prefixes: Vec::new() };
        let want = [
            "1 HEAD symref-target:refs/heads/main".to_string(),
            "1 refs/heads/main".into(),
            format!("{} refs/heads/side", oid(2)),
            format!("{} refs/remotes/o/HEAD symref-target:refs/heads/side", oid(2)),
            format!("{} refs/tags/v1 peeled:1", oid(3)),
            "Ok(Flush)".into(),
        ];
        assert_eq!(show(&all, &sample()), want);
        assert_eq!(show(&request(&[]), &sample())[0], "1 HEAD");
    }

    #[test]
    fn refs_of_absent_objects_are_left_out() {
        let line = |oid: ObjectId, rest: &str| {
            RefLine::parse(format!("{oid} {rest}").as_bytes(), HashKind::Sha1).unwrap()
        };
        let shown = || {
            let head = line(oid(7), "HEAD symref-target:refs/heads/lost");
            vec![
                head,
                line(oid(1), "refs/heads/a"),
                line(oid(7), "refs/heads/lost"),
                line(oid(8), "refs/tags/lost"),
            ]
        };
        let without = |absent: &[u8]| {
            let absent = absent.iter().map(|fill| oid(*fill)).collect();
            to_refs_without(&absent, shown(), HashKind::Sha1).unwrap()
        };
        let names = |refs: &Refs| refs.refs.iter().map(|r| r.name.to_string()).collect::<Vec<_>>();
        let (refs, left_out) = without(&[7, 8, 9]);
        assert_eq!(names(&refs), ["refs/heads/a"]);
        let unborn = Head::Symbolic { target: "refs/heads/lost".into() };
        assert_eq!((refs.head.clone(), refs.head_oid()), (unborn, None));
        let lost = |name: &str| (name.into(), Unfit::Absent);
        let first = vec![lost("refs/heads/lost"), lost("refs/tags/lost")];
        assert_eq!(left_out, LeftOut { count: 2, first });
        assert_eq!(names(&without(&[]).0).len(), 3);
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn a_listing_answers_as_line_by_line(
            refs in any_refs(), unborn in any::<bool>(), prefixes in proptest::collection::vec("(HEAD|refs/[a-z/]{0,6}|)", 0..4),
        ) {
            let prefixes = prefixes.iter().map(|prefix| prefix.as_str().into()).collect();
            let request = LsRefs { peel: true, symrefs: true, unborn, prefixes };
            let mut out = Vec::new();
            answer(&request, &refs, &mut out);
            prop_assert_eq!(Listing::of(&refs).answer(&request, &refs).concat(), out);
        }
    }

    #[test]
    fn prefixes_select_without_repeating() {
        let names = |prefixes: &[&str]| -> Vec<String> {
            let lines = show(&request(prefixes), &sample());
            lines.iter().filter_map(|line| line.split(' ').nth(1).map(String::from)).collect()
        };
        assert_eq!(names(&["HEAD"]), ["HEAD"]);
        assert_eq!(
            names(&["refs/tags/", "refs/heads/m", "refs/heads/", "refs/heads/"]),
            ["refs/heads/main", "refs/heads/side", "refs/tags/v1"]
        );
        assert_eq!(names(&["refs/heads/*", "nothing"]), Vec::<String>::new());
        assert_eq!(names(&[""]).len(), 5);
    }

    #[test]
    fn an_unborn_head_shows_only_when_asked_for() {
        let refs = Refs::empty(HashKind::Sha1, Head::Symbolic { target: "refs/heads/x".into() });
        let ask = |symrefs, unborn| show(&LsRefs { symrefs, unborn, ..LsRefs::default() }, &refs);
        assert_eq!(ask(true, true), ["unborn HEAD symref-target:refs/heads/x", "Ok(Flush)"]);
        assert_eq!(ask(false, true), ["Ok(Flush)"]);
        assert_eq!(ask(true, false), ["Ok(Flush)"]);
    }

    #[test]
    fn too_many_prefixes_are_none() {
        let args =
            |count: usize| LsRefs::parse(std::iter::repeat_n(&b"ref-prefix refs/x"[..], count)).unwrap();
        assert_eq!(args(TOO_MANY_PREFIXES - 1).prefixes.len(), TOO_MANY_PREFIXES - 1);
        assert_eq!(args(TOO_MANY_PREFIXES).prefixes.len(), 0);
        assert_eq!(args(TOO_MANY_PREFIXES + 9).prefixes.len(), 0);
        assert_eq!(LsRefs::parse([&b"peel "[..]]).unwrap_err().to_string(), "unexpected line: 'peel '");
    }

    #[test]
    fn refuses_lines_that_are_none() {
        let id = oid(1);
        for text in [
            "".into(),
            format!("{id}"),
            format!("{id} "),
            "12 refs/a".into(),
            format!("{id} refs/a peeled:12"),
            format!("{id}0 refs/a"),
        ] {
            assert!(RefLine::parse(text.as_bytes(), HashKind::Sha1).is_err(), "{text:?}");
        }
        let line = RefLine::parse(format!("{id} refs/a new:attr").as_bytes(), HashKind::Sha1).unwrap();
        assert_eq!((line.oid, line.peeled), (Some(id), None));
        assert!(parse_answer(b"0000", HashKind::Sha1).unwrap().is_empty());
        assert!(parse_answer(b"", HashKind::Sha1).is_err());
        assert!(matches!(parse_answer(b"000cERR gone0000", HashKind::Sha1), Err(BadReply::Remote(_))));
    }

    #[test]
    fn names_outside_refs_are_left_out() {
        let line =
            |name: &str| RefLine::parse(format!("{} {name}", oid(1)).as_bytes(), HashKind::Sha1).unwrap();
        let (refs, left_out) =
            to_refs(vec![line("ORIG_HEAD"), line("refs/heads/a")], HashKind::Sha1).unwrap();
        assert_eq!((refs.head, refs.refs.len(), left_out.count), (Head::Missing, 1, 0));
    }

    fn shown(lines: &[String]) -> (Refs, LeftOut) {
        let read = |line: &String| RefLine::parse(line.as_bytes(), HashKind::Sha1).unwrap();
        to_refs(lines.iter().map(read).collect(), HashKind::Sha1).unwrap()
    }

    #[test]
    fn a_ref_that_is_unfit_leaves_the_others_as_they_are() {
        let (id, null) = (oid(1), oid(0));
        let good = [format!("{id} HEAD symref-target:refs/heads/main"), format!("{id} refs/heads/main")];
        let (want, none) = shown(&good);
        assert_eq!((want.refs.len(), none), (1, LeftOut::default()));
        for (line, name, why) in [
            (format!("{null} refs/heads/a..b"), "refs/heads/a..b", Unfit::Name),
            (format!("{id} refs/heads/a..b"), "refs/heads/a..b", Unfit::Name),
            (format!("{id} refs/heads/a\u{1}b"), "refs/heads/a\u{1}b", Unfit::Name),
            (format!("{id} refs/a\nrefs/b"), "refs/a\nrefs/b", Unfit::Name),
            (format!("{id} ../../etc/passwd"), "../../etc/passwd", Unfit::Name),
            (format!("{null} refs/heads/zero"), "refs/heads/zero", Unfit::Empty),
            ("unborn refs/x symref-target:refs/y".into(), "refs/x", Unfit::Dangling),
            (format!("{null} refs/x symref-target:refs/y"), "refs/x", Unfit::Dangling),
            (format!("{id} refs/x symref-target:../../etc/passwd"), "refs/x", Unfit::Target),
            (format!("{id} refs/x symref-target:main"), "refs/x", Unfit::Target),
            (format!("{id} refs/x symref-target:refs/heads/a..b"), "refs/x", Unfit::Target),
        ] {
            let (refs, left_out) = shown(&[&good[..], std::slice::from_ref(&line)].concat());
            assert_eq!((refs.digest(), &refs), (want.digest(), &want), "{line}");
            assert_eq!(left_out, LeftOut { count: 1, first: vec![(name.into(), why)] }, "{line}");
        }
        let long = format!("{id} refs/heads/{}", "n".repeat(refname::MAX_NAME));
        assert_eq!(shown(&vec![long; 30]).1.count, 30);
    }

    #[test]
    fn head_keeps_what_is_good_of_it() {
        let (id, null) = (oid(1), oid(0));
        for (line, head) in [
            (format!("{id} HEAD symref-target:main"), Head::Detached(id)),
            (format!("{id} HEAD symref-target:../../etc/passwd"), Head::Detached(id)),
            (format!("{null} HEAD"), Head::Missing),
            ("unborn HEAD symref-target:a..b".into(), Head::Missing),
            (format!("{null} HEAD symref-target:refs/x"), Head::Symbolic { target: "refs/x".into() }),
        ] {
            assert_eq!(shown(&[line]).0.head, head);
        }
    }

    #[test]
    fn a_hidden_target_leaves_head_its_object() {
        let line = RefLine {
            name: "HEAD".into(),
            oid: Some(oid(7)),
            symref_target: Some("refs/heads/x".into()),
            peeled: None,
        };
        assert_eq!(to_refs(vec![line], HashKind::Sha1).unwrap().0.head, Head::Detached(oid(7)));
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn a_full_answer_gives_the_refs_back(refs in any_refs()) {
            let all = LsRefs { peel: true, symrefs: true, unborn: true, prefixes: Vec::new() };
            let mut out = Vec::new();
            answer(&all, &refs, &mut out);
            let (shown, left_out) = to_refs(parse_answer(&out, HashKind::Sha1).unwrap(), HashKind::Sha1).unwrap();
            prop_assert_eq!((shown, left_out.count), (refs, 0));
        }

        #[test]
        fn prefixes_show_what_matches(refs in any_refs(), prefixes in proptest::collection::vec("(refs/)?((heads|tags)/[a-c]?)?|HEAD", 1..5)) {
            let request = LsRefs { prefixes: prefixes.iter().map(|p| p.as_str().into()).collect(), ..LsRefs::default() };
            let mut out = Vec::new();
            answer(&request, &refs, &mut out);
            let names: Vec<_> = parse_answer(&out, HashKind::Sha1).unwrap().into_iter().map(|line| line.name).collect();
            let all = refs.head_oid().map(|_| BString::from("HEAD")).into_iter().chain(refs.refs.iter().map(|r| r.name.clone()));
            let want: Vec<_> = all.filter(|name| prefixes.iter().any(|p| name.starts_with_str(p))).collect();
            prop_assert_eq!(names, want);
        }

        #[test]
        fn arguments_come_back(peel: bool, symrefs: bool, unborn: bool, prefixes in proptest::collection::vec("[ -~]{0,12}", 0..4)) {
            let request = LsRefs { peel, symrefs, unborn, prefixes: prefixes.into_iter().map(BString::from).collect() };
            let mut out = Vec::new();
            request.encode(&mut out);
            let args = Packets::new(&out).map(|packet| match packet {
                Ok(Packet::Data(payload)) => line::text(payload),
                other => panic!("{other:?}"),
            });
            prop_assert_eq!(LsRefs::parse(args).unwrap(), request);
        }

        #[test]
        fn any_line_is_read_without_panic(text in proptest::collection::vec(any::<u8>(), 0..100), id in "([0-9a-f]{40} )?(refs/a )?(peeled:|symref-target:)?") {
            let _ = RefLine::parse(&[id.as_bytes(), &text].concat(), HashKind::Sha1);
            let _ = parse_answer(&text, HashKind::Sha256);
        }
    }
}
