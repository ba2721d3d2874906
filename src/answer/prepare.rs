//! From a fetch request to the bytes before the pack and the plan of the pack. Pure computation over mapped data, apart
//! from tree walks; runs on a blocking thread.
//!
//! Follows the order of git's `upload-pack.c`: negotiation, shallow boundary, then what to send.
//! Relies on: wants that were found reachable already. Elsewhere: grants, waiting and passing on (`fetch`), sending
//! (`serve::send`).

use std::sync::{Arc, Mutex, PoisonError};

use bstr::ByteSlice;
use gix_hash::{ObjectId, oid};
use gix_object::Kind;
use roaring::RoaringBitmap;

use crate::answer::kept::{LaidOut, laid_out};
use crate::answer::meter::hold_sets;
use crate::answer::named::{Named, by_short_name};
use crate::answer::numbers::Numbers;
use crate::budget::Room;
use crate::git::filter::Filter;
use crate::git::negotiate::{Common, Have, Next, answer_v0, answer_v2};
use crate::git::request::{FetchRequest, Wire};
use crate::git::response::{Sections, ambiguous_deepen_not, put_v0_shallow};
use crate::mirror::answers::Answer;
use crate::mirror::snapshot::Granted;
use crate::mirror::wishes::Asked;
use crate::pack::Gid;
use crate::pack::filter::rules::{BadRules, Rules};
use crate::pack::filter::trees::TreeError;
use crate::pack::history::negotiate::Negotiation;
use crate::pack::history::shallow::{Deepen, NoBoundary, Shallow, deepen};
use crate::pack::layer::stack::Stack;
use crate::pack::meter::{Halt, Meter};
use crate::pack::plan::select::{Query, SelectLimits, select};
use crate::pack::plan::{Plan, PlanOptions};
use crate::store::{AnswerRef, BlobId};

/// What is sent.
pub struct Prepared {
    /// Everything before the pack.
    pub head: Vec<u8>,
    /// The pack; none where the negotiation goes on.
    pub plan: Option<Arc<Plan>>,
    /// The answer that was made before from which the plan copies.
    pub answer: Option<Arc<Answer>>,
    /// The objects, if sending them takes much more than copying as many bytes would.
    pub costly: Option<Arc<RoaringBitmap>>,
    /// Those that were looked at.
    beside: Vec<BlobId>,
    /// How often it was asked for.
    pub asked: Asked,
    ends: Ends,
    /// What it holds of a budget.
    room: Option<Room>,
}

/// What the pack ended with when it was sent before.
#[derive(Default)]
struct Ends(Mutex<Option<(ObjectId, bool)>>);

impl Prepared {
    fn new(head: Vec<u8>, plan: Option<Plan>) -> Self {
        let ends =
            Ends(Mutex::new(plan.as_ref().and_then(|plan| plan.trailer).map(|trailer| (trailer, true))));
        let (plan, asked) = (plan.map(Arc::new), Asked::default());
        Self { head, plan, answer: None, costly: None, beside: Vec::new(), asked, ends, room: None }
    }

    /// Says whether it is still what would be prepared where `answers` are published.
    pub fn is_good_beside(&self, answers: &[AnswerRef]) -> bool {
        let is_there = |id: BlobId| answers.iter().any(|named| named.layer.pack.id == id);
        let is_readable =
            self.answer.as_ref().is_none_or(|answer| !answer.is_lost() && is_there(answer.id()));
        let is_news = |named: &AnswerRef| !self.beside.contains(&named.layer.pack.id);
        is_readable && !(self.costly.is_some() && answers.iter().any(is_news))
    }

    /// Keeps `room` for as long as the plan is kept.
    pub fn hold(&mut self, room: Room) {
        self.room = Some(room);
    }

    /// The trailer of the pack, once it was computed twice and the same: bytes that were spoilt on their way out then do
    /// not spoil it for those who come later.
    pub fn trailer(&self) -> Option<ObjectId> {
        let ends = self.ends.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.and_then(|(trailer, sure)| sure.then_some(trailer))
    }

    /// Takes the trailer that a send has computed.
    pub fn ended(&self, trailer: ObjectId) {
        let mut ends = self.ends.0.lock().unwrap_or_else(PoisonError::into_inner);
        *ends = Some((trailer, ends.is_some_and(|(before, _)| before == trailer)));
    }

    /// About how many bytes it holds.
    pub fn size(&self) -> usize {
        let objects = self.costly.as_ref().map_or(0, |objects| objects.serialized_size());
        self.head.len() + self.plan.as_ref().map_or(0, |plan| plan.bytes() as usize) + objects
    }
}

/// Why nothing was prepared.
#[derive(Debug, thiserror::Error)]
pub enum NoPlan {
    /// The client is told in git's own words.
    #[error("{0}")]
    Refuse(String),
    /// The primary answers instead: pack bytes could not be read, or the walk is larger than the limits.
    #[error("a tree could not be walked")]
    Trees(#[from] TreeError),
}

impl From<Halt> for NoPlan {
    fn from(halt: Halt) -> Self {
        Self::Trees(halt.into())
    }
}

impl From<BadRules> for NoPlan {
    fn from(bad: BadRules) -> Self {
        match bad {
            BadRules::Trees(e) => Self::Trees(e),
            other => Self::Refuse(other.to_string()),
        }
    }
}

/// Says whether the answer to a request for `numbers` may be taken from one that was made before: the client has nothing of it yet.
pub fn is_fresh(numbers: &Numbers) -> bool {
    numbers.haves.iter().chain(&numbers.shallow).all(Option::is_none)
}

/// Says whether [`prepare`] has to know all that is published: for a boundary that moves by so many commits, and for
/// filters that name a blob.
pub fn needs_reach(request: &FetchRequest) -> bool {
    let moves = request.deepen_relative && request.deepen.is_some();
    moves || request.filter.as_ref().is_some_and(Filter::names_a_blob)
}

/// Prepares the answer to `request`, whose objects are `numbers`.
///
/// Of `answers` that were made before, the one that differs least is copied from. The work counts on `meter`, and what is held
/// until it is done. Where [`needs_reach`] says so, the set of what is published has been made before.
pub fn prepare(
    granted: &Granted,
    request: &FetchRequest,
    numbers: &Numbers,
    answers: &[Arc<Answer>],
    meter: &dyn Meter,
) -> Result<Prepared, NoPlan> {
    let stack = &*granted.stack;
    hold_sets(stack, meter)?;
    let wants = &numbers.wants;
    let client_shallow: Vec<Gid> =
        numbers.shallow.iter().flatten().copied().filter(|gid| stack.kind(*gid) == Kind::Commit).collect();
    let mut head = Vec::new();
    let negotiation = Negotiation::new(stack);
    let haves = numbers.haves.iter();
    let mut talk = Talk { wants, haves, negotiation, meter, told: None, halted: None };

    // v0 states the boundary before the negotiation, v2 after it.
    let (shallow, next) = match &request.wire {
        Wire::V0(v0) => {
            let shallow = boundary(granted, request, wants, &client_shallow, meter)?;
            if let Some(shallow) = &shallow {
                put_v0_shallow(&mut head, &oids(stack, &shallow.shallow), &oids(stack, &shallow.unshallow));
            }
            (shallow, answer_v0(request, v0, &mut talk, &mut head))
        }
        Wire::V2 => match answer_v2(request, &mut talk, &mut head) {
            Next::Stop => (None, Next::Stop),
            Next::Pack => {
                let shallow = boundary(granted, request, wants, &client_shallow, meter)?;
                put_sections(stack, request, &numbers.want_refs, shallow.as_ref(), &mut head);
                (shallow, Next::Pack)
            }
        },
    };
    if let Some(halt) = talk.halted {
        return Err(halt.into());
    }
    if next == Next::Stop {
        return Ok(Prepared::new(head, None));
    }
    let rules = compile(granted, request, meter)?;
    let tags = if request.include_tag { tags_of(granted) } else { Vec::new() };
    let query = Query {
        wants,
        haves: talk.negotiation.common(),
        client_shallow: &client_shallow,
        shallow: shallow.as_ref(),
        filter: rules.as_ref(),
        tags: &tags,
    };
    let mut selection = select(stack, &granted.source().reader(), &query, &SelectLimits::default(), meter)?;
    let options = PlanOptions { ofs_delta: request.ofs_delta, thin: request.thin_pack };
    let LaidOut { plan, answer, costly } = laid_out(stack, &mut selection, answers, options, meter)?;
    let beside = granted.generation.answers.iter().map(|named| named.layer.pack.id).collect();
    Ok(Prepared { answer, costly, beside, ..Prepared::new(head, Some(plan)) })
}

/// The negotiation's questions, answered by the commit graph.
struct Talk<'a> {
    wants: &'a [Gid],
    /// Of the haves that were not asked about yet.
    haves: std::slice::Iter<'a, Option<Gid>>,
    negotiation: Negotiation<'a, Stack>,
    meter: &'a dyn Meter,
    /// With how many common haves it was asked last whether they are enough, and whether they were.
    told: Option<(usize, bool)>,
    halted: Option<Halt>,
}

impl Common for Talk<'_> {
    fn have(&mut self, _: &ObjectId) -> Have {
        match self.haves.next().copied().flatten() {
            None => Have::Unknown,
            Some(gid) if self.negotiation.got(gid) => Have::New,
            Some(_) => Have::Implied,
        }
    }

    fn ready(&mut self) -> bool {
        // v0 asks once for each have that is not known here, and nothing has changed since.
        let common = self.negotiation.common().len();
        if let Some((_, ready)) = self.told.filter(|(told, _)| *told == common) {
            return ready;
        }
        if self.halted.is_some() {
            return false;
        }
        let ready = self.negotiation.ready(self.wants, self.meter).unwrap_or_else(|halt| {
            self.halted = Some(halt);
            false
        });
        self.told = Some((common, ready));
        ready
    }
}

/// Writes the sections of v2 that stand between the acknowledgments and the pack.
fn put_sections(
    stack: &Stack,
    request: &FetchRequest,
    want_refs: &[ObjectId],
    shallow: Option<&Shallow>,
    head: &mut Vec<u8>,
) {
    let mut sections = Sections::new(head, request.sideband_all);
    sections.wanted_refs(request.want_refs.iter().map(|name| name.as_bstr()).zip(want_refs.iter().copied()));
    if shallow.is_some() || !request.shallow.is_empty() {
        let unchanged = Shallow::default();
        let change = shallow.unwrap_or(&unchanged);
        sections.shallow_info(&oids(stack, &change.shallow), &oids(stack, &change.unshallow));
    }
    sections.packfile();
}

fn oids(stack: &Stack, gids: &[Gid]) -> Vec<ObjectId> {
    gids.iter().map(|gid| stack.oid(*gid)).collect()
}

/// How the client's boundary changes; `None` if it did not ask for a change.
fn boundary(
    granted: &Granted,
    request: &FetchRequest,
    wants: &[Gid],
    client: &[Gid],
    meter: &dyn Meter,
) -> Result<Option<Shallow>, NoPlan> {
    let mut not = Vec::new();
    for name in &request.deepen_not {
        let oid = by_short_name(granted, name.as_ref())
            .ok_or_else(|| NoPlan::Refuse(ambiguous_deepen_not(name.as_ref())))?;
        not.extend(granted.stack.lookup(&oid));
    }
    let how = match request.deepen {
        Some(depth) if request.deepen_relative => Deepen::Relative(depth),
        Some(depth) => Deepen::Depth(depth),
        None if request.deepens_by_list() => Deepen::RevList { since: request.deepen_since, not: &not },
        None => return Ok(None),
    };
    let reach = granted.reach().get();
    let is_published = |gid| reach.is_some_and(|reach| reach.contains(gid));
    match deepen(&*granted.stack, wants, client, how, is_published, meter) {
        Ok(change) => Ok(Some(change)),
        Err(NoBoundary::Halt(halt)) => Err(halt.into()),
        Err(nothing) => Err(NoPlan::Refuse(nothing.to_string())),
    }
}

/// Annotated tags, which `include-tag` sends along with what they lead to.
fn tags_of(granted: &Granted) -> Vec<(Gid, Gid)> {
    let stack = &granted.stack;
    let lookup = |oid: &oid| stack.lookup(oid);
    let tags = granted.refs.with_prefix(b"refs/tags/").iter();
    tags.filter_map(|r| Some((lookup(&r.oid)?, lookup(r.peeled.as_ref()?)?))).collect()
}

/// The rules of the request's filter.
fn compile<'m>(
    granted: &Granted,
    request: &FetchRequest,
    meter: &'m dyn Meter,
) -> Result<Option<Rules<'m>>, NoPlan> {
    let Some(filter) = &request.filter else { return Ok(None) };
    Ok(Some(Rules::compile(filter, &mut Named::new(granted, meter), meter)?))
}

#[cfg(test)]
impl Prepared {
    /// An answer of so many bytes and no pack.
    pub fn of_size(bytes: usize) -> Self {
        Self::new(vec![0; bytes], None)
    }

    /// An answer with so many bytes packed anew.
    pub fn with_anew(bytes: u64) -> Self {
        let plan = Plan { anew: 1, anew_bytes: bytes, ..Plan::empty(crate::git::HashKind::Sha1) };
        let costly = crate::answer::kept::is_costly(&plan).then(Arc::default);
        Self { costly, ..Self::new(Vec::new(), Some(plan)) }
    }

    /// An answer of so many bytes and an empty pack.
    pub fn with_plan(bytes: usize) -> Self {
        let (segments, literals, joins) = (vec![], vec![], vec![]);
        let hash = crate::git::HashKind::Sha1;
        let plan = Plan { segments, literals, joins, ..Plan::empty(hash) };
        Self::new(vec![0; bytes], Some(plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_is_believed_when_it_came_twice() {
        let prepared = Prepared::of_size(0);
        let [good, bad] = [1, 2].map(|byte| ObjectId::from([byte; 20]));
        assert_eq!(prepared.trailer(), None);
        prepared.ended(bad);
        prepared.ended(good);
        assert_eq!(prepared.trailer(), None, "one of them is wrong");
        prepared.ended(good);
        assert_eq!(prepared.trailer(), Some(good));
    }
}
