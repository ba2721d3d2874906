//! What an answer that was made before does for a plan: where it is worth looking for one, and which one helps.
//!
//! Relies on: a selection, which knows nothing of kept answers. Elsewhere: copying from one (`pack::plan::stored`), what a request gets
//! (`prepare`), making them (`work::answers`).

use std::sync::Arc;

use gix_object::Kind;
use roaring::RoaringBitmap;

use crate::answer::meter::hold_sets;
use crate::mirror::answers::Answer;
use crate::mirror::snapshot::Snapshot;
use crate::pack::filter::trees::TreeError;
use crate::pack::history::shallow::{Deepen, NoBoundary, deepen};
use crate::pack::layer::stack::Stack;
use crate::pack::meter::{Halt, Meter};
use crate::pack::plan::select::{Query, SelectLimits, select};
use crate::pack::plan::{Hint, Plan, PlanOptions, plan, plan_with};
use crate::pack::{Selection, Source};

/// Bytes of objects from which on it is worth something not to pack them anew.
const MUCH: u64 = 256 << 10;
/// And one of so many bytes of the pack.
const SHARE: u64 = 20;
/// A plan of more pieces than this is costly if they are small.
const MANY_PIECES: usize = 4096;
/// The mean of small pieces, in bytes.
const SMALL_PIECES: u64 = 8 << 10;

/// Says whether sending a plan takes much more than copying as many bytes would.
pub fn is_costly(plan: &Plan) -> bool {
    let in_pieces = plan.segments.len() > MANY_PIECES
        && plan.known_len / (plan.segments.len() as u64).max(1) < SMALL_PIECES;
    in_pieces || is_anew(plan)
}

/// Says whether much of a plan is packed anew: it costs so much that clients wait for one that was made for all, and that better deltas are
/// searched for.
pub fn is_anew(plan: &Plan) -> bool {
    plan.anew_bytes > MUCH && plan.anew_bytes > plan.known_len / SHARE
}

/// A plan, and the answer that was made before from which it copies.
pub struct LaidOut {
    /// The plan.
    pub plan: Plan,
    /// The answer.
    pub answer: Option<Arc<Answer>>,
    /// The objects, where sending them costs much: what an answer that is kept would hold.
    pub costly: Option<Arc<RoaringBitmap>>,
}

/// The plan of a clone of depth 1 of HEAD; none if HEAD is no commit. Trees are read from
/// `source`.
pub fn of_head(
    snapshot: &Snapshot,
    source: &dyn Source,
    answers: &[Arc<Answer>],
    meter: &dyn Meter,
) -> Result<Option<LaidOut>, TreeError> {
    let stack = &*snapshot.stack;
    let head = snapshot.refs.head_oid().and_then(|oid| stack.lookup(&oid));
    let Some(head) = head.filter(|head| stack.kind(*head) == Kind::Commit) else { return Ok(None) };
    hold_sets(stack, meter)?;
    let boundary = match deepen(stack, &[head], &[], Deepen::Depth(1), |_| false, meter) {
        Ok(boundary) => boundary,
        Err(NoBoundary::Halt(halt)) => return Err(halt.into()),
        Err(_) => return Ok(None),
    };
    let wants = [head];
    let query = Query { wants: &wants, shallow: Some(&boundary), ..Query::default() };
    let mut selection = select(stack, source, &query, &SelectLimits::default(), meter)?;
    let options = PlanOptions { ofs_delta: true, thin: false };
    Ok(Some(laid_out(stack, &mut selection, answers, options, meter)?))
}

/// Lays out what is selected: as the stack has it, or with the help of an answer that was made before where that would cost much.
pub(super) fn laid_out(
    stack: &Stack,
    selection: &mut Selection<'_>,
    answers: &[Arc<Answer>],
    options: PlanOptions,
    meter: &dyn Meter,
) -> Result<LaidOut, Halt> {
    let best = best(answers, selection);
    // What holds nearly all is tried first: most often nothing else is needed.
    let mut helped = None;
    if let Some((answer, held)) = &best
        && held.saturating_mul(8) >= selection.objects.len().saturating_mul(7)
    {
        let plan = plan_with(stack, selection, Hint::Stored(&answer.stored), options, meter)?;
        if !is_costly(&plan) {
            return Ok(LaidOut { plan, answer: Some(Arc::clone(answer)), costly: None });
        }
        helped = Some(plan);
    }
    let (mut plan, mut used) = (plan(stack, selection, options, meter)?, None);
    if let Some((answer, _)) = best.filter(|_| is_costly(&plan)) {
        let helped = match helped {
            Some(helped) => helped,
            None => plan_with(stack, selection, Hint::Stored(&answer.stored), options, meter)?,
        };
        if helped.anew_bytes < plan.anew_bytes || helped.segments.len() < plan.segments.len() / 2 {
            (plan, used) = (helped, Some(answer));
        }
    }
    let costly = is_costly(&plan).then(|| Arc::new(selection.objects.clone()));
    Ok(LaidOut { plan, answer: used, costly })
}

/// The answer that differs least from what is selected, and how many objects of that it holds. One that holds much else may hold
/// these as deltas on what is not selected.
fn best(answers: &[Arc<Answer>], selection: &Selection<'_>) -> Option<(Arc<Answer>, u64)> {
    let counted = answers.iter().map(|answer| (answer, answer.stored.count(&selection.objects)));
    let best = counted
        .filter(|(_, held)| *held > 0)
        .min_by_key(|(answer, held)| answer.stored.objects() as i64 - 2 * *held as i64);
    best.map(|(answer, held)| (Arc::clone(answer), held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::HashKind;
    use crate::pack::plan::Segment;

    #[test]
    fn what_is_in_many_pieces_costs_much_and_nobody_waits_for_better() {
        let plan = |pieces: usize, known_len: u64, anew_bytes: u64| {
            let segments = vec![Segment::Literal { start: 0, len: 1 }; pieces];
            Plan { segments, known_len, anew_bytes, ..Plan::empty(HashKind::Sha1) }
        };
        let tells = |plan: &Plan| (is_costly(plan), is_anew(plan));
        assert_eq!(tells(&plan(5000, 5000 * 450, 1000)), (true, false), "many small pieces");
        assert_eq!(tells(&plan(5000, 1 << 30, 1000)), (false, false), "many large ones");
        assert_eq!(tells(&plan(10, 2 << 20, 1 << 20)), (true, true), "half of it anew");
        assert_eq!(tells(&plan(10, 1 << 30, 1 << 20)), (false, false), "little of it");
    }
}
