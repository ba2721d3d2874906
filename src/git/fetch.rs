//! What to fetch: the `fetch` command of v2, and the part of it that v0 shares.
//!
//! Arguments are read as `process_args` in git's `upload-pack.c` reads them and written as `fetch-pack.c`
//! writes them.
//! Relies on: lines as `line::text` gives them. Elsewhere: the frame of a v2 request (`request`), v0 (`v0`),
//! whether an object may be wanted (`mirror`).

use super::args::{Args, BadRequest, RequestLimits, Unique, push};
use super::filter::Filter;
use super::{V2Caps, line, pkt};
use bstr::{BString, ByteSlice};
use gix_hash::{Kind as HashKind, ObjectId};

/// The depth that means "everything" (git's `INFINITE_DEPTH`, what `--unshallow` sends).
pub const INFINITE_DEPTH: u32 = 0x7fff_ffff;

/// What to fetch: the `fetch` command of v2, or a v0 request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchRequest {
    /// Objects wanted, once each, in order.
    pub wants: Vec<ObjectId>,
    /// Refs wanted by name (`ref-in-want`).
    pub want_refs: Vec<BString>,
    /// Objects the client has, in order; in v2 once each, in v0 as they came.
    pub haves: Vec<ObjectId>,
    /// The client ends the negotiation: send the pack.
    pub done: bool,
    /// Do not send the pack before `done`, even if enough is known.
    pub wait_for_done: bool,
    /// Deltas may have bases that only the client has.
    pub thin_pack: bool,
    /// No progress text.
    pub no_progress: bool,
    /// Send tags that point to objects being sent.
    pub include_tag: bool,
    /// Deltas may name their base by offset.
    pub ofs_delta: bool,
    /// The whole answer is on side bands.
    pub sideband_all: bool,
    /// Where the client's own history is cut, once each.
    pub shallow: Vec<ObjectId>,
    /// Cut the history at this many commits, at least 1; [`INFINITE_DEPTH`] is no cut.
    pub deepen: Option<u32>,
    /// Count `deepen` from the client's present boundary.
    pub deepen_relative: bool,
    /// Cut the history at this time (seconds since 1970).
    pub deepen_since: Option<u64>,
    /// Cut the history at what these refs reach.
    pub deepen_not: Vec<BString>,
    /// Leave objects out.
    pub filter: Option<Filter>,
    /// Protocols by which the client would fetch parts of the pack elsewhere.
    pub packfile_uris: Vec<BString>,
    /// Argument lines we do not know; git refuses them.
    pub unknown: Vec<BString>,
    /// The version of the protocol that the client speaks.
    pub wire: Wire,
}

impl FetchRequest {
    /// What kind of objects it asks for, in a few words for people.
    pub fn kind(&self) -> String {
        let depth =
            self.deepen.filter(|depth| *depth != INFINITE_DEPTH).map(|depth| format!("depth {depth}"));
        let cut = self.deepens_by_list().then(|| "shallow".to_owned());
        let filter = self.filter.as_ref().map(|filter| format!("filter {filter}"));
        let words: Vec<String> = depth.into_iter().chain(cut).chain(filter).collect();
        if words.is_empty() { "as wanted".into() } else { words.join(", ") }
    }
}

/// In which version of the protocol a fetch is asked for and answered, with what only that version says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wire {
    /// v2: the answer has sections, and the pack is on the large side band.
    #[default]
    V2,
    /// v0, or v1, which is the same behind the advertisement.
    V0(V0),
}

impl Wire {
    /// Gives the side band of the pack.
    pub fn band(&self) -> Band {
        match self {
            Self::V2 => Band::Large,
            Self::V0(v0) => v0.band,
        }
    }

    /// Forgets with which program the client asks, and in which session: no answer depends on it.
    pub fn forget_client(&mut self) {
        if let Self::V0(v0) = self {
            v0.agent = None;
            v0.session_id = None;
        }
    }
}

/// What only a v0 request says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct V0 {
    /// How common objects are acknowledged.
    pub ack: Ack,
    /// The pack may follow a `ready` at once.
    pub no_done: bool,
    /// On which side band the pack is sent.
    pub band: Band,
    /// How the round of haves ended.
    pub end: RoundEnd,
    /// The client's name and version.
    pub agent: Option<BString>,
    /// The client's id for this session.
    pub session_id: Option<BString>,
}

/// How common objects are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// Only the first one.
    #[default]
    None,
    /// Each, with `continue` (`multi_ack`).
    Multi,
    /// Each, with `common` or `ready` (`multi_ack_detailed`).
    MultiDetailed,
}

/// On which side band the pack is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Band {
    /// On none: the raw pack follows the last packet.
    #[default]
    None,
    /// In packets of at most 1,000 bytes (`side-band`).
    Small,
    /// In packets of at most 65,520 bytes (`side-band-64k`).
    Large,
}

impl Band {
    /// Gives the longest payload of one packet in bytes; `None` without side band.
    pub fn max(self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Small => Some(pkt::MAX_SMALL_BAND),
            Self::Large => Some(pkt::MAX_BAND),
        }
    }
}

/// How the round of haves ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoundEnd {
    /// There was none: the client only wants the shallow lines, or nothing at all.
    #[default]
    NoRound,
    /// With a flush: the client waits for acknowledgments.
    Flush,
    /// With `done`: the client waits for the pack.
    Done,
}

impl FetchRequest {
    /// Says whether the client asks for another shallow boundary than it has.
    pub fn deepens(&self) -> bool {
        self.deepen.is_some() || self.deepens_by_list()
    }

    /// Says whether history is cut by time or by refs.
    pub fn deepens_by_list(&self) -> bool {
        self.deepen_since.is_some() || !self.deepen_not.is_empty()
    }

    /// Finds the first thing a v2 request uses that `caps` do not offer, in git's words for it. What is offered in v0 stands
    /// in another advertisement.
    pub fn unoffered(&self, caps: &V2Caps) -> Option<String> {
        if self.wire != Wire::V2 {
            return None;
        }
        let filter = self.filter.as_ref().map(|filter| format!("filter {}", filter.spec()));
        let want_ref = self.want_refs.first().map(|name| format!("want-ref {name}"));
        let sideband_all = self.sideband_all.then(|| "sideband-all".to_string());
        let uris = (!self.packfile_uris.is_empty())
            .then(|| format!("packfile-uris {}", bstr::join(",", &self.packfile_uris).as_bstr()));
        let used = [
            ("filter", filter),
            ("ref-in-want", want_ref),
            ("sideband-all", sideband_all),
            ("packfile-uris", uris),
        ];
        let unknown = self.unknown.first().map(ToString::to_string);
        let unoffered =
            used.into_iter().find(|(feature, line)| line.is_some() && !caps.has_feature("fetch", feature));
        unoffered.and_then(|(_, line)| line).or(unknown).map(|line| format!("unexpected line: '{line}'"))
    }

    /// Refuses what cannot be asked for together.
    pub(super) fn check(&self) -> Result<(), BadRequest> {
        if self.deepen.is_some() && self.deepens_by_list() {
            let words = "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together";
            return Err(BadRequest::protocol(words));
        }
        Ok(())
    }
}

/// Reads the arguments of a v2 `fetch`.
pub(super) fn parse_fetch(
    args: &mut Args<'_>,
    limits: &RequestLimits,
    hash: HashKind,
) -> Result<FetchRequest, BadRequest> {
    let mut request = FetchRequest::default();
    let mut wants = Unique::new("want", limits.max_wants);
    let mut haves = Unique::new("have", limits.max_haves);
    let mut shallow = Unique::new("shallow", limits.max_shallow);
    let mut want_refs = Unique::new("want-ref", limits.max_names);
    while let Some(arg) = args.next()? {
        if let Some(hex) = arg.strip_prefix(b"want ") {
            let bad = || {
                let words = "git upload-pack: protocol error, expected to get oid, not";
                BadRequest::Protocol(format!("{words} '{}'", arg.as_bstr()))
            };
            let (oid, _) = line::oid(hex, hash).ok_or_else(bad)?;
            wants.push(&mut request.wants, oid)?;
        } else if let Some(hex) = arg.strip_prefix(b"have ") {
            haves.push(&mut request.haves, have_oid(hex, hash)?)?;
        } else if let Some(name) = arg.strip_prefix(b"want-ref ") {
            if !want_refs.push(&mut request.want_refs, name.into())? {
                return Err(BadRequest::Protocol(format!("duplicate want-ref {}", name.as_bstr())));
            }
        } else if let Some(protocols) = arg.strip_prefix(b"packfile-uris ") {
            if !request.packfile_uris.is_empty() {
                return Err(BadRequest::protocol("multiple packfile-uris lines forbidden"));
            }
            request.packfile_uris = protocols.split_str(",").map(BString::from).collect();
        } else if let Some(flag) = flag(&mut request, arg) {
            *flag = true;
        } else if !take_depth(&mut request, &mut shallow, arg, limits, hash)?
            && !take_filter(&mut request, arg)?
        {
            push(&mut request.unknown, arg.into(), "argument", limits.max_names)?;
        }
    }
    request.check()?;
    Ok(request)
}

/// Finds the flag that an argument sets.
fn flag<'r>(request: &'r mut FetchRequest, arg: &[u8]) -> Option<&'r mut bool> {
    Some(match arg {
        b"thin-pack" => &mut request.thin_pack,
        b"ofs-delta" => &mut request.ofs_delta,
        b"no-progress" => &mut request.no_progress,
        b"include-tag" => &mut request.include_tag,
        b"done" => &mut request.done,
        b"wait-for-done" => &mut request.wait_for_done,
        b"deepen-relative" => &mut request.deepen_relative,
        b"sideband-all" => &mut request.sideband_all,
        _ => return None,
    })
}

/// Reads the object id of a `have` line.
pub(super) fn have_oid(hex: &[u8], hash: HashKind) -> Result<ObjectId, BadRequest> {
    let bad =
        || BadRequest::Protocol(format!("git upload-pack: expected SHA1 object, got '{}'", hex.as_bstr()));
    line::oid(hex, hash).map(|(oid, _)| oid).ok_or_else(bad)
}

/// Takes a `shallow`, `deepen`, `deepen-since` or `deepen-not` line; says whether it was one.
pub(super) fn take_depth(
    request: &mut FetchRequest,
    shallow: &mut Unique<ObjectId>,
    text: &[u8],
    limits: &RequestLimits,
    hash: HashKind,
) -> Result<bool, BadRequest> {
    let bad = |words: &str| BadRequest::Protocol(format!("{words}: {}", text.as_bstr()));
    if let Some(hex) = text.strip_prefix(b"shallow ") {
        let (oid, _) = line::oid(hex, hash).ok_or_else(|| bad("invalid shallow line"))?;
        shallow.push(&mut request.shallow, oid)?;
    } else if let Some(depth) = text.strip_prefix(b"deepen ") {
        let depth = line::int(depth).and_then(|depth| u32::try_from(depth).ok()).filter(|depth| *depth > 0);
        request.deepen = Some(depth.ok_or_else(|| bad("Invalid deepen"))?);
    } else if let Some(time) = text.strip_prefix(b"deepen-since ") {
        let time = line::timestamp(time).filter(|time| *time != u64::MAX);
        request.deepen_since = Some(time.ok_or_else(|| bad("Invalid deepen-since"))?);
    } else if let Some(name) = text.strip_prefix(b"deepen-not ") {
        push(&mut request.deepen_not, name.into(), "deepen-not", limits.max_names)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Takes a `filter` line; says whether it was one.
pub(super) fn take_filter(request: &mut FetchRequest, text: &[u8]) -> Result<bool, BadRequest> {
    let Some(spec) = text.strip_prefix(b"filter ") else { return Ok(false) };
    if request.filter.is_some() {
        return Err(BadRequest::protocol("multiple filter-specs cannot be combined"));
    }
    request.filter = Some(Filter::parse(spec).map_err(|error| BadRequest::Protocol(error.0))?);
    Ok(true)
}

/// Appends the argument lines of a v2 `fetch`.
pub(super) fn encode_fetch(request: &FetchRequest, out: &mut Vec<u8>) {
    let flags = [
        (request.wait_for_done, "wait-for-done"),
        (request.thin_pack, "thin-pack"),
        (request.no_progress, "no-progress"),
        (request.include_tag, "include-tag"),
        (request.ofs_delta, "ofs-delta"),
        (request.sideband_all, "sideband-all"),
    ];
    for (_, line) in flags.iter().filter(|(on, _)| *on) {
        pkt::text(out, line);
    }
    for line in depth_lines(request) {
        pkt::text(out, line);
    }
    if request.deepen_relative {
        pkt::text(out, "deepen-relative");
    }
    if let Some(filter) = &request.filter {
        pkt::text(out, [b"filter ", filter.spec().as_slice()].concat());
    }
    if !request.packfile_uris.is_empty() {
        pkt::text(out, [b"packfile-uris ", bstr::join(",", &request.packfile_uris).as_slice()].concat());
    }
    for name in &request.want_refs {
        pkt::text(out, [b"want-ref ", name.as_slice()].concat());
    }
    for (word, oids) in [("want", &request.wants), ("have", &request.haves)] {
        for oid in oids {
            pkt::text(out, format!("{word} {oid}"));
        }
    }
    for line in &request.unknown {
        pkt::text(out, line);
    }
    if request.done {
        pkt::text(out, "done");
    }
}

/// Gives the lines about shallow history, which v0 and v2 share.
pub(super) fn depth_lines(request: &FetchRequest) -> Vec<Vec<u8>> {
    let shallow = request.shallow.iter().map(|oid| format!("shallow {oid}").into_bytes());
    let depth = request.deepen.map(|depth| format!("deepen {depth}").into_bytes());
    let since = request.deepen_since.map(|time| format!("deepen-since {time}").into_bytes());
    let not = request.deepen_not.iter().map(|name| [b"deepen-not ", name.as_slice()].concat());
    shallow.chain(depth).chain(since).chain(not).collect()
}
