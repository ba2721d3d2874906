//! Walks over commits: what the wants reach and the haves do not.
//!
//! Relies on generation numbers (a commit's is greater than each of its parents'), so clock skew
//! cannot lead a walk astray, and a commit taken from the queue has its final colour: all of its
//! descendants came before it. Both stay true when edges are cut by shallow boundaries.
//!
//! Elsewhere: which objects a commit brings along (`plan::select`), where boundaries come from (`shallow`).
use std::collections::BinaryHeap;

use crate::pack::layer::stack::Place;
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::{GidMap, Gids};
use crate::pack::{Gid, Stack};

/// What a walk needs to know of commits; gids that are no commits have no parents.
pub trait History {
    /// The topological level: greater than that of every parent.
    fn generation(&self, commit: Gid) -> u32;
    /// Committer time in seconds.
    fn date(&self, commit: Gid) -> u64;
    /// Calls `each` with the parents, in their order.
    fn each_parent(&self, commit: Gid, each: impl FnMut(Gid));
    /// Where a commit lies along the trunk of its layer.
    fn place(&self, commit: Gid) -> Option<Place>;
    /// The commit that `gid` is or, through tags, leads to.
    fn to_commit(&self, gid: Gid) -> Option<Gid>;
}

/// What is known of the client's commits in one layer.
#[derive(Debug, Clone, Copy, Default)]
struct Had {
    /// How many of them wait in the queue.
    queued: usize,
    /// The highest [`Place::joins`].
    joins: Option<u32>,
    /// The highest [`Place::leaves`].
    leaves: u32,
}

impl History for Stack {
    fn generation(&self, commit: Gid) -> u32 {
        self.commit(commit).map_or(0, |commit| commit.generation())
    }
    fn date(&self, commit: Gid) -> u64 {
        self.commit(commit).map_or(0, |commit| commit.date())
    }
    fn each_parent(&self, commit: Gid, each: impl FnMut(Gid)) {
        if let Some(commit) = self.commit(commit) {
            commit.parents().for_each(each);
        }
    }
    fn place(&self, commit: Gid) -> Option<Place> {
        self.commit(commit)?.place()
    }
    fn to_commit(&self, gid: Gid) -> Option<Gid> {
        let target = self.peel(gid);
        self.commit(target).map(|_| target)
    }
}

/// Steps that a visit of a commit counts for.
pub const COMMIT: u64 = 4;
/// What a commit costs in the maps and queues of a walk, in bytes.
const COMMIT_BYTES: u64 = 48;
/// Memory is counted after so many commits.
const CHUNK: u64 = 4096;

const WANT: u8 = 1;
const HAVE: u8 = 2;
/// Taken from the queue: the colour is final.
const FINAL: u8 = 4;

/// The line between what the client wants and what it has, found by painting both downwards.
///
/// The first phase stops as soon as nothing but haves is left to look at; [`Boundary::client_has`]
/// takes the have side further down when somebody asks.
#[derive(Debug)]
pub struct Boundary<'h, H> {
    history: &'h H,
    /// Commits whose parents the wants do not pass on to.
    want_cut: Gids,
    /// Commits whose parents the client does not have.
    have_cut: Gids,
    colours: GidMap<u8>,
    queue: BinaryHeap<(u32, Gid)>,
    /// How many commits in the queue are wanted and not had.
    undecided: usize,
    missing: Vec<Gid>,
    /// By layer; not kept where the client's history is cut, since ancestors are then not all the client's.
    had: Vec<Had>,
    /// How many more commits questions may visit.
    steps: u32,
}

impl<'h, H: History> Boundary<'h, H> {
    /// Paints until the commits that only the wants reach are known.
    ///
    /// `wants` and `haves` are commits. `want_cut` and `have_cut` are taken as having no parents on
    /// the respective side. Later questions look no further until [`Self::allow`] lets them. Each commit visited is a
    /// step on `meter`.
    pub fn paint(
        history: &'h H,
        wants: &[Gid],
        haves: &[Gid],
        want_cut: Gids,
        have_cut: Gids,
        meter: &dyn Meter,
    ) -> Result<Self, Halt> {
        let mut boundary = Self {
            history,
            want_cut,
            have_cut,
            colours: GidMap::default(),
            queue: BinaryHeap::new(),
            undecided: 0,
            missing: Vec::new(),
            had: Vec::new(),
            steps: 0,
        };
        haves.iter().for_each(|&commit| boundary.mark(commit, HAVE));
        wants.iter().for_each(|&commit| boundary.mark(commit, WANT));
        let mut visited = 0;
        while boundary.undecided > 0 && boundary.step() {
            meter.step(COMMIT)?;
            visited += 1;
            if visited % CHUNK == 0 {
                meter.hold(CHUNK * COMMIT_BYTES)?;
            }
        }
        Ok(boundary)
    }

    /// Lets later questions visit `steps` more commits.
    pub fn allow(&mut self, steps: u32) {
        self.steps = self.steps.saturating_add(steps);
    }

    /// The commits to send: reached from the wants, not from the haves; descendants first.
    pub fn missing(&self) -> &[Gid] {
        &self.missing
    }

    /// Says whether `commit` is known to be the client's, without looking any further.
    pub fn is_had(&self, commit: Gid) -> bool {
        self.colours.get(&commit).is_some_and(|colour| colour & HAVE != 0)
    }

    /// Says whether the client surely has `commit`, looking further down within the steps left.
    pub fn client_has(&mut self, commit: Gid) -> bool {
        let generation = self.history.generation(commit);
        loop {
            // Until it is final, a commit that is only wanted may still turn out to be had.
            match self.colours.get(&commit) {
                Some(colour) if colour & HAVE != 0 => return true,
                Some(colour) if colour & FINAL != 0 => return false,
                _ => {}
            }
            if let Some(known) = self.by_place(commit) {
                return known;
            }
            match self.queue.peek() {
                Some(&(top, _)) if top > generation && self.steps > 0 => {
                    self.steps -= 1;
                    self.step();
                }
                _ => return false,
            }
        }
    }

    /// Says whether the client has `commit`, if the trunks tell.
    fn by_place(&self, commit: Gid) -> Option<bool> {
        if !self.have_cut.is_empty() {
            return None;
        }
        let place = self.history.place(commit)?;
        let had = self.had.get(place.layer).copied().unwrap_or_default();
        if place.joins < had.leaves {
            return Some(true);
        }
        // What has a commit among its ancestors joins the trunk no earlier. All that the client has in this layer hangs on
        // commits met already, unless some of those above were not followed yet.
        let above = self.had.iter().skip(place.layer + 1).any(|had| had.queued > 0);
        (!above && had.joins.is_none_or(|joins| joins < place.joins)).then_some(false)
    }

    /// Notes a commit in the queue as the client's.
    fn note_had(&mut self, commit: Gid) {
        let Some(place) = self.history.place(commit).filter(|_| self.have_cut.is_empty()) else { return };
        if self.had.len() <= place.layer {
            self.had.resize(place.layer + 1, Had::default());
        }
        if let Some(had) = self.had.get_mut(place.layer) {
            had.queued += 1;
            had.joins = had.joins.max(Some(place.joins));
            had.leaves = had.leaves.max(place.leaves);
        }
    }

    /// Takes one commit from the queue and passes its colour on; false when the queue is empty.
    fn step(&mut self) -> bool {
        let Some((_, commit)) = self.queue.pop() else { return false };
        let colour = self.colours.get_mut(&commit).map_or(0, |colour| {
            *colour |= FINAL;
            *colour
        });
        let cut = if colour & HAVE != 0 {
            let place = self.history.place(commit).filter(|_| self.have_cut.is_empty());
            if let Some(had) = place.and_then(|place| self.had.get_mut(place.layer)) {
                had.queued = had.queued.saturating_sub(1);
            }
            &self.have_cut
        } else {
            self.undecided = self.undecided.saturating_sub(1);
            self.missing.push(commit);
            &self.want_cut
        };
        if !cut.contains(&commit) {
            let pass_on = if colour & HAVE != 0 { HAVE } else { WANT };
            let history = self.history;
            history.each_parent(commit, |parent| self.mark(parent, pass_on));
        }
        true
    }

    fn mark(&mut self, commit: Gid, colour: u8) {
        let known = self.colours.entry(commit).or_default();
        if *known == 0 {
            self.queue.push((self.history.generation(commit), commit));
            self.undecided += usize::from(colour == WANT);
        } else if colour & HAVE != 0 && *known == WANT {
            // Still in the queue: a commit leaves it only after all its descendants.
            self.undecided = self.undecided.saturating_sub(1);
        }
        let news = colour & HAVE != 0 && *known & HAVE == 0;
        *known |= colour;
        if news {
            self.note_had(commit);
        }
    }
}

/// A history in memory, for tests of walks.
#[cfg(test)]
pub(crate) mod toy {
    use super::*;

    /// Commit `n` has the parents `parents[n]` (smaller numbers) and the date `dates[n]`.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Toy {
        pub parents: Vec<Vec<Gid>>,
        pub dates: Vec<u64>,
        generations: Vec<u32>,
        /// How many commits a layer has; the whole history is one where this is 0.
        pub layer: usize,
        places: std::cell::OnceCell<Vec<Place>>,
    }

    impl Toy {
        pub fn new(parents: &[&[Gid]]) -> Self {
            let mut toy = Self::default();
            for (n, list) in parents.iter().enumerate() {
                toy.add(list.to_vec(), n as u64 * 10);
            }
            toy
        }

        pub fn add(&mut self, parents: Vec<Gid>, date: u64) {
            let above = parents.iter().map(|&parent| self.generations[parent as usize]).max();
            self.generations.push(1 + above.unwrap_or(0));
            self.parents.push(parents);
            self.dates.push(date);
        }

        fn layer_of(&self, commit: Gid) -> usize {
            (commit as usize).checked_div(self.layer).unwrap_or(0)
        }

        /// The places of all commits, by trying out what reaches what.
        fn places(&self) -> Vec<Place> {
            let mut places = Vec::new();
            for layer in 0..=self.parents.len().checked_div(self.layer).unwrap_or(0) {
                let here: Vec<Gid> =
                    (0..self.parents.len() as Gid).filter(|&commit| self.layer_of(commit) == layer).collect();
                let mut trunk: Vec<Gid> = Vec::new();
                let mut next = here.iter().copied().max_by_key(|&commit| self.generations[commit as usize]);
                while let Some(link) = next {
                    trunk.push(link);
                    next =
                        self.parents[link as usize].first().copied().filter(|parent| here.contains(parent));
                }
                trunk.reverse();
                for commit in here {
                    let own = self.reach(&[commit], &[]);
                    let joins = trunk.iter().position(|&link| self.reach(&[link], &[]).contains(&commit));
                    let leaves = trunk.iter().rposition(|link| own.contains(link));
                    places.push(Place {
                        layer,
                        joins: joins.map_or(u32::MAX, |link| link as u32),
                        leaves: leaves.map_or(0, |link| link as u32 + 1),
                    });
                }
            }
            places
        }

        /// All commits reached from `tips`, not passing below `cut`.
        pub fn reach(&self, tips: &[Gid], cut: &[Gid]) -> std::collections::BTreeSet<Gid> {
            let (mut seen, mut todo) = (std::collections::BTreeSet::new(), tips.to_vec());
            while let Some(commit) = todo.pop() {
                if seen.insert(commit) && !cut.contains(&commit) {
                    todo.extend(&self.parents[commit as usize]);
                }
            }
            seen
        }
    }

    impl History for Toy {
        fn generation(&self, commit: Gid) -> u32 {
            self.generations[commit as usize]
        }
        fn date(&self, commit: Gid) -> u64 {
            self.dates[commit as usize]
        }
        fn each_parent(&self, commit: Gid, each: impl FnMut(Gid)) {
            self.parents[commit as usize].iter().copied().for_each(each);
        }
        fn place(&self, commit: Gid) -> Option<Place> {
            self.places.get_or_init(|| self.places()).get(commit as usize).copied()
        }
        fn to_commit(&self, gid: Gid) -> Option<Gid> {
            ((gid as usize) < self.parents.len()).then_some(gid)
        }
    }

    /// Random histories of up to `max` commits.
    pub(crate) fn histories(max: usize) -> impl proptest::strategy::Strategy<Value = Toy> {
        use proptest::prelude::*;
        prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..3), 0u64..100), 1..max)
            .prop_map(|list| {
                let mut toy = Toy::default();
                for (n, (picks, date)) in list.into_iter().enumerate() {
                    // Mostly recent parents, so that depth grows.
                    let mut parents: Vec<Gid> = Vec::new();
                    for pick in picks {
                        let parent = if n == 0 { continue } else { (n - 1 - pick.index(n.min(6))) as Gid };
                        if !parents.contains(&parent) {
                            parents.push(parent);
                        }
                    }
                    toy.add(parents, date);
                }
                toy
            })
    }
}

#[cfg(test)]
mod tests {
    use super::toy::{Toy, histories};
    use super::*;
    use crate::pack::meter::Unlimited;
    use proptest::prelude::*;

    fn gids(list: &[Gid]) -> Gids {
        list.iter().copied().collect()
    }

    fn picks(max: usize) -> impl Strategy<Value = Vec<prop::sample::Index>> {
        prop::collection::vec(any::<prop::sample::Index>(), 0..max)
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn finds_exactly_what_is_missing(
            toy in histories(24), layer in 0usize..12, wants in picks(4), haves in picks(4), want_cut in picks(4),
            have_cut in prop_oneof![Just(Vec::new()), picks(4)],
        ) {
            let mut toy = toy;
            toy.layer = layer;
            let pick = |list: &[prop::sample::Index]| -> Vec<Gid> {
                list.iter().map(|index| index.index(toy.parents.len()) as Gid).collect()
            };
            let (wants, haves, want_cut, have_cut) = (pick(&wants), pick(&haves), pick(&want_cut), pick(&have_cut));
            let had = toy.reach(&haves, &have_cut);
            // Wants stop at cuts and at what the client has.
            let stops: Vec<Gid> = want_cut.iter().copied().chain(had.iter().copied()).collect();
            let expected: Vec<Gid> = toy.reach(&wants, &stops).difference(&had).copied().collect();
            let mut boundary = Boundary::paint(&toy, &wants, &haves, gids(&want_cut), gids(&have_cut), &Unlimited).unwrap();
            boundary.allow(1000);
            let mut missing = boundary.missing().to_vec();
            missing.sort_unstable();
            prop_assert_eq!(missing, expected);
            // In any order: each question may look further down.
            for n in 0..toy.parents.len() {
                let commit = (n * 7 % toy.parents.len()) as Gid;
                prop_assert_eq!(boundary.client_has(commit), had.contains(&commit), "commit {}", commit);
            }
        }
    }

    #[test]
    fn stops_when_only_haves_are_left() {
        // A long line of commits; the client has all but the last.
        let mut toy = Toy::default();
        (0..200).for_each(|n: Gid| toy.add(n.checked_sub(1).into_iter().collect(), 0));
        let mut boundary =
            Boundary::paint(&toy, &[199], &[198], Gids::default(), Gids::default(), &Unlimited).unwrap();
        boundary.allow(10);
        assert_eq!(boundary.missing(), [199]);
        assert!(boundary.colours.len() <= 3, "looked at {} commits", boundary.colours.len());
        assert!(boundary.client_has(190) && boundary.client_has(10));
        assert!(boundary.colours.len() <= 3, "the trunk tells");
        let mut boundary =
            Boundary::paint(&toy, &[199], &[198], Gids::default(), gids(&[5]), &Unlimited).unwrap();
        boundary.allow(10);
        assert!(boundary.client_has(190));
        assert!(!boundary.client_has(10), "the steps are used up, so nothing is sure");
    }
}
