//! Where a shallow history ends: the boundary that `deepen` and its kin ask for.
//!
//! A port of git's `shallow.c` (`get_shallow_commits`, `get_shallow_commits_by_rev_list`) and of
//! `upload-pack.c` (`deepen`, `send_shallow`, `send_unshallow`) for a repository that is not
//! shallow itself. A boundary commit is sent with its whole tree and without its parents.
//!
//! Elsewhere: what is sent for a boundary (`plan::select`), the lines on the wire (`git::response`).
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::walk::{Boundary, COMMIT, History};
use crate::pack::Gid;
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::{GidMap, Gids};

/// The depth that stands for "all of it" (`INFINITE_DEPTH` in git's `shallow.h`).
pub const INFINITE: u32 = 0x7fff_ffff;

/// After this many visits the walk by depth changes from git's own order to breadth first: the
/// same boundary, in bounded time. git's walk can revisit a commit once per unit of depth.
const DEPTH_FIRST_VISITS: usize = 1_000_000;

/// How the client wants its history cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deepen<'a> {
    /// `deepen <n>`: n commits from the wants; [`INFINITE`] lifts all boundaries.
    Depth(u32),
    /// `deepen <n>` with `deepen-relative`: n commits below the client's present boundary.
    Relative(u32),
    /// `deepen-since` and `deepen-not`.
    RevList {
        /// Only commits of this time or later, in seconds.
        since: Option<u64>,
        /// Only commits that none of these (commits or tags) reaches.
        not: &'a [Gid],
    },
}

/// The change of the client's boundary, as the lines that tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shallow {
    /// New boundary commits, in the order of git's `shallow` lines (repeats possible, as there).
    pub shallow: Vec<Gid>,
    /// The client's boundary commits that are none any more, in the order of `unshallow` lines.
    pub unshallow: Vec<Gid>,
}

/// There is no boundary to tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBoundary {
    /// Nothing is young enough, or outside of what `deepen-not` excludes; git dies with these words.
    #[error("no commits selected for shallow requests")]
    NothingSelected,
    /// The meter ended the search.
    #[error(transparent)]
    Halt(#[from] Halt),
}

/// Computes the new boundary.
///
/// `wants` as in the request (tags are followed); `client` the client's `shallow` lines that name
/// commits of this repository; `reachable` says whether one of those is reachable from a published ref. Each visit of a commit
/// counts on `meter`.
pub fn deepen<H: History>(
    history: &H,
    wants: &[Gid],
    client: &[Gid],
    how: Deepen<'_>,
    reachable: impl Fn(Gid) -> bool,
    meter: &dyn Meter,
) -> Result<Shallow, NoBoundary> {
    let marks = match how {
        Deepen::Depth(INFINITE) | Deepen::Relative(INFINITE) => {
            Marks { boundary: Vec::new(), inside: client.iter().copied().collect() }
        }
        Deepen::Depth(depth) => by_depth(history, wants, depth, DEPTH_FIRST_VISITS, meter)?,
        Deepen::Relative(depth) => {
            let heads: Vec<Gid> = client.iter().copied().filter(|&commit| reachable(commit)).collect();
            by_depth(history, &heads, depth.saturating_add(1), DEPTH_FIRST_VISITS, meter)?
        }
        Deepen::RevList { since, not } => by_rev_list(history, wants, since, not, meter)?,
    };
    let known: Gids = client.iter().copied().collect();
    let is_new = |commit: &Gid| !known.contains(commit) && !marks.inside.contains(commit);
    let mut seen = Gids::default();
    Ok(Shallow {
        shallow: marks.boundary.iter().copied().filter(is_new).collect(),
        unshallow: client.iter().copied().filter(|c| marks.inside.contains(c) && seen.insert(*c)).collect(),
    })
}

/// git's two flags: SHALLOW as a list (it may hold commits that turned out to be inside), NOT_SHALLOW.
struct Marks {
    boundary: Vec<Gid>,
    inside: Gids,
}

/// `get_shallow_commits`: the commits at distance `depth - 1` from the heads.
fn by_depth<H: History>(
    history: &H,
    heads: &[Gid],
    depth: u32,
    visits: usize,
    meter: &dyn Meter,
) -> Result<Marks, Halt> {
    match depth_first(history, heads, depth, visits, meter)? {
        Some(marks) => Ok(marks),
        None => breadth_first(history, heads, depth, meter),
    }
}

/// git's walk, statement by statement, so that the boundary comes in git's order.
/// `None` after too many visits.
fn depth_first<H: History>(
    history: &H,
    heads: &[Gid],
    depth: u32,
    mut visits: usize,
    meter: &dyn Meter,
) -> Result<Option<Marks>, Halt> {
    let mut marks = Marks { boundary: Vec::new(), inside: Gids::default() };
    let mut depths: GidMap<u32> = GidMap::default();
    let mut stack: Vec<Gid> = Vec::new();
    let mut heads = heads.iter();
    let mut current: Option<(Gid, u32)> = None;
    let mut parents: Vec<Gid> = Vec::new();
    loop {
        let (commit, above) = match current.take() {
            Some(next) => next,
            None => match heads.next() {
                Some(&head) => {
                    let Some(commit) = history.to_commit(head) else { continue };
                    depths.insert(commit, 0);
                    (commit, 0)
                }
                None => match stack.pop() {
                    Some(commit) => (commit, depths.get(&commit).copied().unwrap_or(0)),
                    None => break,
                },
            },
        };
        let Some(left) = visits.checked_sub(1) else { return Ok(None) };
        visits = left;
        meter.step(COMMIT)?;
        let here = above + 1;
        if here >= depth {
            marks.boundary.push(commit);
            continue;
        }
        marks.inside.insert(commit);
        parents.clear();
        history.each_parent(commit, |parent| parents.push(parent));
        for (index, &parent) in parents.iter().enumerate() {
            match depths.get(&parent) {
                Some(&known) if here >= known => continue,
                _ => depths.insert(parent, here),
            };
            if index + 1 < parents.len() {
                stack.push(parent);
            } else {
                current = Some((parent, here));
            }
        }
    }
    // git puts each boundary commit in front of its list.
    marks.boundary.reverse();
    Ok(Some(marks))
}

fn breadth_first<H: History>(
    history: &H,
    heads: &[Gid],
    depth: u32,
    meter: &dyn Meter,
) -> Result<Marks, Halt> {
    let mut marks = Marks { boundary: Vec::new(), inside: Gids::default() };
    let mut seen = Gids::default();
    let mut level: Vec<Gid> = heads.iter().filter_map(|&head| history.to_commit(head)).collect();
    level.retain(|&commit| seen.insert(commit));
    let mut here = 1;
    while !level.is_empty() && here < depth {
        let mut next = Vec::new();
        for commit in level {
            meter.step(COMMIT)?;
            marks.inside.insert(commit);
            history.each_parent(commit, |parent| {
                if seen.insert(parent) {
                    next.push(parent);
                }
            });
        }
        level = next;
        here += 1;
    }
    marks.boundary = level;
    Ok(marks)
}

/// `get_shallow_commits_by_rev_list` over `rev-list --max-age=<since> --not <not> --not <wants>`.
fn by_rev_list<H: History>(
    history: &H,
    wants: &[Gid],
    since: Option<u64>,
    not: &[Gid],
    meter: &dyn Meter,
) -> Result<Marks, NoBoundary> {
    let commits =
        |list: &[Gid]| -> Vec<Gid> { list.iter().filter_map(|&gid| history.to_commit(gid)).collect() };
    let (wants, not, since) = (commits(wants), commits(not), since.unwrap_or(0));
    let selected = if not.is_empty() {
        young(history, &wants, since, meter)?
    } else {
        outside(history, &wants, since, &not, meter)?
    };
    if selected.is_empty() {
        return Err(NoBoundary::NothingSelected);
    }
    let mut marks = Marks { boundary: Vec::new(), inside: Gids::default() };
    for commit in by_date(history, &wants, &selected, meter)? {
        let mut at_border = false;
        history.each_parent(commit, |parent| at_border |= !selected.contains(&parent));
        if at_border {
            marks.boundary.push(commit);
        } else {
            marks.inside.insert(commit);
        }
    }
    Ok(marks)
}

/// With no exclusions git lists as it walks: a commit that is too old is not shown and not passed.
fn young<H: History>(history: &H, wants: &[Gid], since: u64, meter: &dyn Meter) -> Result<Gids, Halt> {
    let mut selected = Gids::default();
    let mut todo = wants.to_vec();
    while let Some(commit) = todo.pop() {
        meter.step(COMMIT)?;
        if history.date(commit) >= since && selected.insert(commit) {
            history.each_parent(commit, |parent| todo.push(parent));
        }
    }
    Ok(selected)
}

/// With exclusions git first paints: the ancestors of a commit that is too old are excluded as well.
///
/// Differs from git where clocks are badly skewed: git's walk gives up early then, this one is exact.
fn outside<H: History>(
    history: &H,
    wants: &[Gid],
    since: u64,
    not: &[Gid],
    meter: &dyn Meter,
) -> Result<Gids, Halt> {
    let none = Gids::default;
    let candidates = Boundary::paint(history, wants, not, none(), none(), meter)?.missing().to_vec();
    let old = candidates.iter().copied().filter(|&commit| history.date(commit) < since);
    let out: Vec<Gid> = not.iter().copied().chain(old).collect();
    if out.len() == not.len() {
        return Ok(candidates.into_iter().collect());
    }
    Ok(Boundary::paint(history, wants, &out, none(), none(), meter)?.missing().iter().copied().collect())
}

/// `selected` in the order of `rev-list`: the newest commit whose child was listed comes next.
fn by_date<H: History>(
    history: &H,
    wants: &[Gid],
    selected: &Gids,
    meter: &dyn Meter,
) -> Result<Vec<Gid>, Halt> {
    let mut queue = BinaryHeap::new();
    let mut seen = Gids::default();
    let mut turn = 0u64;
    let mut order = Vec::with_capacity(selected.len());
    let mut add = |commit: Gid, queue: &mut BinaryHeap<(u64, Reverse<u64>, Gid)>| {
        if selected.contains(&commit) && seen.insert(commit) {
            turn += 1;
            queue.push((history.date(commit), Reverse(turn), commit));
        }
    };
    wants.iter().for_each(|&commit| add(commit, &mut queue));
    while let Some((_, _, commit)) = queue.pop() {
        meter.step(COMMIT)?;
        order.push(commit);
        history.each_parent(commit, |parent| add(parent, &mut queue));
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::super::walk::toy::{Toy, histories};
    use super::*;
    use crate::pack::meter::Unlimited;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// 0 - 1 - 2 - 3 - 5 (merge of 3 and 4), 4 on 1.
    fn diamond() -> Toy {
        Toy::new(&[&[], &[0], &[1], &[2], &[1], &[3, 4]])
    }

    fn run(toy: &Toy, wants: &[Gid], client: &[Gid], how: Deepen<'_>) -> Result<Shallow, NoBoundary> {
        deepen(toy, wants, client, how, |_| true, &Unlimited)
    }

    #[test]
    fn cuts_by_depth() {
        let toy = diamond();
        type Case<'a> = (u32, &'a [Gid], &'a [Gid], &'a [Gid]);
        let cases: [Case<'_>; 6] = [
            (1, &[], &[5], &[]),
            (2, &[], &[3, 4], &[]),
            (3, &[], &[2, 1], &[]),
            (3, &[5], &[2, 1], &[5]),
            (2, &[3, 4], &[], &[]),
            (INFINITE, &[3, 4], &[], &[3, 4]),
        ];
        for (depth, client, shallow, unshallow) in cases {
            let got = run(&toy, &[5], client, Deepen::Depth(depth)).unwrap();
            let sorted: BTreeSet<Gid> = got.shallow.iter().copied().collect();
            assert_eq!(sorted, shallow.iter().copied().collect(), "depth {depth} client {client:?}");
            assert_eq!(got.unshallow, unshallow, "depth {depth} client {client:?}");
        }
    }

    #[test]
    fn deepens_from_the_clients_boundary() {
        let toy = diamond();
        let got = run(&toy, &[5], &[3], Deepen::Relative(1)).unwrap();
        assert_eq!(got, Shallow { shallow: vec![2], unshallow: vec![3] });
        let nothing = deepen(&toy, &[5], &[3], Deepen::Relative(1), |_| false, &Unlimited).unwrap();
        assert_eq!(nothing, Shallow::default(), "a boundary that no ref reaches stays");
    }

    #[test]
    fn cuts_by_age_and_by_exclusion() {
        let toy = diamond();
        // Dates are 0, 10, … 50. Both 3 and 4 have parents that are too old.
        let got = run(&toy, &[5], &[4], Deepen::RevList { since: Some(30), not: &[] }).unwrap();
        assert_eq!(got, Shallow { shallow: vec![3], unshallow: vec![] });
        let got = run(&toy, &[5], &[5], Deepen::RevList { since: None, not: &[2] }).unwrap();
        assert_eq!(got, Shallow { shallow: vec![4, 3], unshallow: vec![5] }, "newest first, as rev-list");
        assert_eq!(
            run(&toy, &[5], &[], Deepen::RevList { since: Some(51), not: &[] }),
            Err(NoBoundary::NothingSelected)
        );
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn both_walks_by_depth_agree(toy in histories(24), heads in prop::collection::vec(any::<prop::sample::Index>(), 1..4), depth in 1u32..8) {
            let heads: Vec<Gid> = heads.iter().map(|index| index.index(toy.parents.len()) as Gid).collect();
            let (git, ours) = (depth_first(&toy, &heads, depth, 100_000, &Unlimited).unwrap().unwrap(), breadth_first(&toy, &heads, depth, &Unlimited).unwrap());
            prop_assert_eq!(&git.inside, &ours.inside);
            let boundary: BTreeSet<Gid> = git.boundary.into_iter().filter(|commit| !git.inside.contains(commit)).collect();
            prop_assert_eq!(boundary, ours.boundary.into_iter().collect::<BTreeSet<Gid>>());
        }

        #[test]
        fn age_and_exclusion_cut_everything_below(
            toy in histories(24), head in any::<prop::sample::Index>(), not in any::<prop::sample::Index>(), since in 0u64..100,
        ) {
            let pick = |index: prop::sample::Index| index.index(toy.parents.len()) as Gid;
            let (head, not) = (pick(head), pick(not));
            let mut out: Vec<Gid> = toy.reach(&[head], &[]).into_iter().collect();
            out.retain(|&commit| toy.dates[commit as usize] < since);
            // Alone, age stops the walk at each old commit, but what another way leads to stays.
            let young: BTreeSet<Gid> = toy.reach(&[head], &out).into_iter().filter(|commit| !out.contains(commit)).collect();
            out.push(not);
            let outside: BTreeSet<Gid> = toy.reach(&[head], &[]).difference(&toy.reach(&out, &[])).copied().collect();
            for (not, expected) in [(&[][..], young), (&[not][..], outside)] {
                match by_rev_list(&toy, &[head], Some(since), not, &Unlimited) {
                    Err(_) => prop_assert!(expected.is_empty()),
                    Ok(marks) => {
                        let all: BTreeSet<Gid> = marks.inside.iter().chain(&marks.boundary).copied().collect();
                        prop_assert_eq!(all, expected);
                    }
                }
            }
        }
    }
}
