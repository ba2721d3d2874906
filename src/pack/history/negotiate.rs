//! Which of the client's haves count, and whether they are enough to make a pack.
//!
//! The rules of git's `upload-pack.c`: `do_got_oid` (a have whose child was named before is known
//! already and adds nothing) and `ok_to_give_up`.
//! A have is any object of the stack, whether or not a published ref reaches it: the client names what it has.
//!
//! Elsewhere: acknowledgments on the wire (`git::response`), the objects of the answer (`plan::select`).
use super::walk::{COMMIT, History};
use crate::pack::Gid;
use crate::pack::meter::{Halt, Meter};
use crate::pack::set::{GidMap, Gids};

/// What is known of the client so far.
#[derive(Debug)]
pub struct Negotiation<'h, H> {
    history: &'h H,
    /// git's THEY_HAVE: haves and the parents of haves.
    known: Gids,
    common: Vec<Gid>,
    /// The date of the oldest have; 0 counts as none, as in git.
    oldest: u64,
    lowest: u32,
}

impl<'h, H: History> Negotiation<'h, H> {
    /// Starts with a client of which nothing is known.
    pub fn new(history: &'h H) -> Self {
        Self { history, known: Gids::default(), common: Vec::new(), oldest: 0, lowest: u32::MAX }
    }

    /// Takes a have that is an object of this repository; true if it was news.
    pub fn got(&mut self, have: Gid) -> bool {
        let mut news = true;
        if self.history.to_commit(have) == Some(have) {
            news = self.known.insert(have);
            let date = self.history.date(have);
            if self.oldest == 0 || date < self.oldest {
                self.oldest = date;
            }
            self.note_level(have);
            let mut parents = Vec::new();
            self.history.each_parent(have, |parent| parents.push(parent));
            for parent in parents {
                self.known.insert(parent);
                self.note_level(parent);
            }
        }
        if news {
            self.common.push(have);
        }
        news
    }

    fn note_level(&mut self, commit: Gid) {
        self.lowest = self.lowest.min(self.history.generation(commit));
    }

    /// The haves that were news, in the order they came: the answer builds on these.
    pub fn common(&self) -> &[Gid] {
        &self.common
    }

    /// Says whether each want leads down to something the client has (`ok_to_give_up`).
    ///
    /// As in git, the way down must not pass commits older than the oldest have, unless an earlier want has found that
    /// they lead to one, and wants that are no commits do not matter. Commits below all haves cannot lead to one and are
    /// not looked at. git with a commit-graph takes the wants by generation; here, as without one, in the client's order.
    /// Each commit looked at counts on `meter`.
    pub fn ready(&self, wants: &[Gid], meter: &dyn Meter) -> Result<bool, Halt> {
        if self.common.is_empty() {
            return Ok(false);
        }
        // What was visited, and whether it leads to a have: each commit is looked at once.
        let mut visited: GidMap<bool> = GidMap::default();
        for want in wants.iter().filter_map(|&want| self.history.to_commit(want)) {
            if !self.leads_to_have(want, &mut visited, meter)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `can_all_from_reach_with_flag` for one want: depth first, so that finding a have settles the whole way to it.
    fn leads_to_have(&self, want: Gid, visited: &mut GidMap<bool>, meter: &dyn Meter) -> Result<bool, Halt> {
        let oldest = self.oldest;
        let mut way = vec![want];
        visited.entry(want).or_insert(false);
        while let Some(&commit) = way.last() {
            meter.step(COMMIT)?;
            if self.known.contains(&commit) || visited.get(&commit) == Some(&true) {
                way.pop();
                if let Some(&below) = way.last() {
                    visited.insert(below, true);
                }
                continue;
            }
            let (mut found, mut next) = (false, None);
            self.history.each_parent(commit, |parent| {
                found |= self.known.contains(&parent) || visited.get(&parent) == Some(&true);
                if next.is_none() && !visited.contains_key(&parent) {
                    let ahead =
                        self.history.date(parent) >= oldest && self.history.generation(parent) > self.lowest;
                    visited.insert(parent, false);
                    next = ahead.then_some(parent);
                }
            });
            if found {
                visited.insert(commit, true);
            }
            // A parent that was marked as visited is followed in any case, as git does: another want may need it.
            match next {
                Some(parent) => way.push(parent),
                None if found => {}
                None => {
                    way.pop();
                }
            }
        }
        Ok(self.known.contains(&want) || visited.get(&want) == Some(&true))
    }
}

#[cfg(test)]
mod tests {
    use super::super::walk::toy::{Toy, histories};
    use super::*;
    use crate::pack::meter::Unlimited;
    use proptest::prelude::*;

    #[test]
    fn acknowledges_what_is_news_and_is_ready_when_all_wants_are_covered() {
        // 0 - 1 - 2 - 3, and 4 alone.
        let toy = Toy::new(&[&[], &[0], &[1], &[2], &[]]);
        let mut talk = Negotiation::new(&toy);
        assert!(!talk.ready(&[3], &Unlimited).unwrap(), "nothing is known yet");
        assert!(talk.got(1));
        assert!(!talk.got(0), "its child was named before");
        assert!(!talk.got(1));
        assert_eq!(talk.common(), [1]);
        assert!(talk.ready(&[3], &Unlimited).unwrap());
        assert!(!talk.ready(&[3, 4], &Unlimited).unwrap());
        assert!(talk.ready(&[], &Unlimited).unwrap(), "wants that are no commits do not matter");
    }

    #[test]
    fn a_want_behind_an_older_commit_is_not_found() {
        // As in git: 1 is older than the have 0, so the way from 2 is not followed past it,
        // though its parent is looked at.
        let mut toy = Toy::new(&[&[], &[0], &[1], &[2]]);
        toy.dates = vec![50, 10, 60, 70];
        let mut talk = Negotiation::new(&toy);
        talk.got(0);
        assert!(talk.ready(&[1], &Unlimited).unwrap());
        assert!(!talk.ready(&[3], &Unlimited).unwrap());
    }

    /// git's own steps, flag by flag (`do_got_oid`, `ok_to_give_up`, `can_all_from_reach_with_flag`).
    fn git_is_ready(toy: &Toy, wants: &[Gid], haves: &[Gid]) -> bool {
        const THEY_HAVE: u8 = 1;
        const ASSIGNED: u8 = 2;
        const RESULT: u8 = 4;
        let mut flags = vec![0u8; toy.parents.len()];
        let mut oldest = 0;
        for &have in haves {
            let date = toy.dates[have as usize];
            flags[have as usize] |= THEY_HAVE;
            if oldest == 0 || date < oldest {
                oldest = date;
            }
            toy.parents[have as usize].iter().for_each(|&parent| flags[parent as usize] |= THEY_HAVE);
        }
        for &want in wants {
            flags[want as usize] |= ASSIGNED;
            let mut stack = vec![want as usize];
            while let Some(&top) = stack.last() {
                if flags[top] & (THEY_HAVE | RESULT) != 0 {
                    stack.pop();
                    stack.last().iter().for_each(|&&below| flags[below] |= RESULT);
                    continue;
                }
                let mut pushed = false;
                for parent in toy.parents[top].iter().map(|&parent| parent as usize) {
                    if flags[parent] & (THEY_HAVE | RESULT) != 0 {
                        flags[top] |= RESULT;
                    }
                    if flags[parent] & ASSIGNED == 0 {
                        flags[parent] |= ASSIGNED;
                        if toy.dates[parent] >= oldest {
                            stack.push(parent);
                            pushed = true;
                            break;
                        }
                    }
                }
                if !pushed {
                    stack.pop();
                }
            }
            if flags[want as usize] & (THEY_HAVE | RESULT) == 0 {
                return false;
            }
        }
        !haves.is_empty()
    }

    fn is_ready(toy: &Toy, wants: &[Gid], haves: &[Gid]) -> bool {
        let mut talk = Negotiation::new(toy);
        haves.iter().for_each(|&have| _ = talk.got(have));
        talk.ready(wants, &Unlimited).unwrap()
    }

    /// Says whether `want` leads to a have or to a have's parent, on a way whose commits satisfy `may_pass`.
    fn leads(toy: &Toy, want: Gid, haves: &[Gid], may_pass: impl Fn(Gid) -> bool) -> bool {
        let is_known =
            |commit| haves.iter().any(|&have| have == commit || toy.parents[have as usize].contains(&commit));
        let (mut todo, mut seen) = (vec![want], std::collections::BTreeSet::new());
        while let Some(commit) = todo.pop() {
            if is_known(commit) || toy.parents[commit as usize].iter().any(|&parent| is_known(parent)) {
                return true;
            }
            if seen.insert(commit) {
                todo.extend(toy.parents[commit as usize].iter().filter(|&&parent| may_pass(parent)));
            }
        }
        false
    }

    #[test]
    fn one_want_settles_what_another_passes() {
        // 2 is older than the have 3, but as a want it was found to lead to 1, the parent of that have.
        let mut toy = Toy::new(&[&[], &[], &[1], &[1], &[2], &[], &[], &[]]);
        toy.dates = (0..8).collect();
        assert!(is_ready(&toy, &[2, 4], &[3]));
        assert!(!is_ready(&toy, &[4], &[3]), "alone it stops at 2");
        assert!(!is_ready(&toy, &[4, 2], &[3]), "and so it does before 2 was looked at");
    }

    #[test]
    fn a_parent_met_on_the_way_is_followed() {
        // A long run found this: what one want passes without need, another may need.
        let mut toy = Toy::new(&[&[], &[], &[0], &[], &[2, 0], &[], &[], &[2], &[7], &[], &[9], &[]]);
        toy.dates = vec![0; 12];
        assert!(is_ready(&toy, &[4, 7], &[0]) && git_is_ready(&toy, &[4, 7], &[0]));
    }

    fn picks() -> impl Strategy<Value = Vec<prop::sample::Index>> {
        prop::collection::vec(any::<prop::sample::Index>(), 1..4)
    }

    proptest! {
        #![proptest_config(crate::seed::cases(2000))]

        #[test]
        fn is_ready_when_git_is(toy in histories(20), clock in 0u64..4, wants in picks(), haves in picks()) {
            let mut toy = toy;
            // True clocks, few different dates, or any.
            match clock {
                0 => toy.dates = (0..toy.parents.len() as u64).collect(),
                1 => toy.dates.iter_mut().for_each(|date| *date %= 3),
                _ => {}
            }
            let pick = |list: &[prop::sample::Index]| -> Vec<Gid> {
                list.iter().map(|index| index.index(toy.parents.len()) as Gid).collect()
            };
            let (wants, haves) = (pick(&wants), pick(&haves));
            let ready = is_ready(&toy, &wants, &haves);
            prop_assert_eq!(ready, git_is_ready(&toy, &wants, &haves));
            // What that means: each want leads to a have, and a way past nothing older than the haves is always found.
            if ready {
                prop_assert!(wants.iter().all(|&want| leads(&toy, want, &haves, |_| true)));
            }
            let oldest = haves.iter().map(|&have| toy.dates[have as usize]).min().unwrap();
            if oldest > 0 && wants.iter().all(|&want| leads(&toy, want, &haves, |parent| toy.dates[parent as usize] >= oldest)) {
                prop_assert!(ready);
            }
        }
    }
}
