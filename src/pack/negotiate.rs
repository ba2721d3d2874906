//! Which of the client's haves count, and whether they are enough to make a pack.
//!
//! The rules of git's `upload-pack.c`: `do_got_oid` (a have whose child was named before is known
//! already and not acknowledged again) and `ok_to_give_up`. Only objects that hang on published
//! refs may be given as haves here, so that an answer never leans on anything else.
//!
//! Elsewhere: acknowledgments on the wire (`git::response`), the walk that makes the answer (`walk`).
use super::Gid;
use super::meter::{Halt, Meter};
use super::set::{GidMap, Gids};
use super::walk::{COMMIT, History};

/// What is known of the client so far.
#[derive(Debug)]
pub struct Negotiation<'h, H> {
    history: &'h H,
    /// git's THEY_HAVE: haves and the parents of haves.
    known: Gids,
    common: Vec<Gid>,
    oldest: Option<u64>,
    lowest: u32,
}

impl<'h, H: History> Negotiation<'h, H> {
    /// Starts with a client of which nothing is known.
    pub fn new(history: &'h H) -> Self {
        Self { history, known: Gids::default(), common: Vec::new(), oldest: None, lowest: u32::MAX }
    }

    /// Takes a have that is an object of this repository; true if it was news.
    pub fn got(&mut self, have: Gid) -> bool {
        let mut news = true;
        if self.history.to_commit(have) == Some(have) {
            news = self.known.insert(have);
            let date = self.history.date(have);
            self.oldest = Some(self.oldest.map_or(date, |oldest| oldest.min(date)));
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

    /// The haves that count, in the order they came: these are acknowledged, and these the answer builds on.
    pub fn common(&self) -> &[Gid] {
        &self.common
    }

    /// Says whether each want leads down to something the client has (`ok_to_give_up`).
    ///
    /// As in git, the way down must not pass commits older than the oldest have, and wants that are
    /// no commits do not matter. Commits below all haves cannot lead to one and are not looked at. Each commit looked at
    /// counts on `meter`.
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
        let oldest = self.oldest.unwrap_or(0);
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
    use super::super::meter::Unlimited;
    use super::super::walk::toy::{Toy, histories};
    use super::*;
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

    proptest! {
        #[test]
        fn with_true_clocks_ready_means_reaching_a_have(toy in histories(20), wants in prop::collection::vec(any::<prop::sample::Index>(), 1..4), haves in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
            let mut toy = toy;
            toy.dates = (0..toy.parents.len() as u64).collect();
            let pick = |list: &[prop::sample::Index]| -> Vec<Gid> { list.iter().map(|index| index.index(toy.parents.len()) as Gid).collect() };
            let (wants, haves) = (pick(&wants), pick(&haves));
            let mut talk = Negotiation::new(&toy);
            haves.iter().for_each(|&have| { talk.got(have); });
            // A parent of a have counts as had, and dates fall with numbers here.
            let known: Vec<Gid> = haves.iter().flat_map(|&have| toy.parents[have as usize].iter().copied().chain([have])).collect();
            let oldest = haves.iter().copied().min().unwrap();
            let expected = wants.iter().all(|&want| {
                // Follow only commits that are not older than the oldest have.
                let (mut todo, mut seen) = (vec![want], std::collections::BTreeSet::new());
                let mut found = false;
                while let Some(commit) = todo.pop() {
                    found |= known.contains(&commit);
                    if !seen.insert(commit) { continue }
                    for &parent in &toy.parents[commit as usize] {
                        found |= known.contains(&parent);
                        if parent >= oldest { todo.push(parent) }
                    }
                }
                found
            });
            prop_assert_eq!(talk.ready(&wants, &Unlimited).unwrap(), expected);
        }
    }
}
