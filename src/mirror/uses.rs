//! When the kept answers of a repository were last used, here and on other nodes: what has lain idle longest makes room for new ones.
//!
//! Nodes tell it in their heartbeats (`health`, `farm`), and it ends with the process: an answer of which nothing is known counts as
//! idle for longest. Elsewhere: who makes room (`work::answers`).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::BlobId;

/// Of how many answers of a repository it is remembered.
const MOST: usize = 64;
/// What was used longer ago is not told.
const LATELY: Duration = Duration::from_secs(3600);

/// The last uses of the answers of one repository.
#[derive(Debug, Default)]
pub struct Uses(Mutex<Vec<(BlobId, Instant)>>);

impl Uses {
    fn list(&self) -> MutexGuard<'_, Vec<(BlobId, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a client is served from an answer.
    pub fn note(&self, id: BlobId) {
        self.used_at(id, Instant::now());
    }

    fn used_at(&self, id: BlobId, at: Instant) {
        let mut list = self.list();
        match list.iter_mut().find(|(known, _)| *known == id) {
            Some((_, last)) => *last = at.max(*last),
            None => list.push((id, at)),
        }
        if list.len() > MOST
            && let Some((oldest, _)) = list.iter().enumerate().min_by_key(|(_, (_, last))| *last)
        {
            list.swap_remove(oldest);
        }
    }

    /// Takes note of what another node told after `composed`: answers, and how many seconds ago each was used. A use is taken for older
    /// than it is, never for younger: nodes tell each other what they have heard, and would keep it young for ever.
    pub(super) fn hear(&self, told: &[(BlobId, u64)], composed: Instant) {
        for (id, ago) in told.iter().take(MOST) {
            if let Some(at) = composed.checked_sub(Duration::from_secs(*ago)) {
                self.used_at(*id, at);
            }
        }
    }

    /// What is told to other nodes: the answers used lately, by whomever, and how many seconds ago, rounded up.
    pub(super) fn told(&self) -> Vec<(BlobId, u64)> {
        let list = self.list();
        let lately = list.iter().map(|(id, last)| (*id, last.elapsed()));
        lately
            .filter(|(_, ago)| *ago < LATELY)
            .map(|(id, ago)| (id, ago.as_millis().div_ceil(1000) as u64))
            .collect()
    }

    /// When an answer was last used, as far as it is known.
    pub fn last(&self, id: BlobId) -> Option<Instant> {
        self.list().iter().find(|(known, _)| *known == id).map(|(_, last)| *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::health::RepoHealth;
    use crate::mirror::repo::Repo;
    use crate::store::generation_for_tests;

    #[tokio::test(start_paused = true)]
    async fn a_use_is_known_to_those_who_hear_of_it() {
        tokio::time::advance(LATELY * 2).await;
        let (here, there) = (Uses::default(), Uses::default());
        let [a, b] = [1, 2].map(|n| BlobId([n; 32]));
        here.note(a);
        tokio::time::advance(Duration::from_secs(60)).await;
        here.note(b);
        there.note(a);
        there.hear(&here.told(), Instant::now());
        assert_eq!(there.told(), [(a, 0), (b, 0)], "its own use is younger");
        here.hear(&there.told(), Instant::now());
        assert_eq!(here.last(a), here.last(b));
        tokio::time::advance(LATELY).await;
        assert_eq!((here.told(), here.last(a).is_some()), (vec![], true));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nodes_tell_each_other_again_and_again_grows_old() {
        tokio::time::advance(LATELY * 2).await;
        let (here, there) = (Uses::default(), Uses::default());
        let id = BlobId([1; 32]);
        here.note(id);
        let used = here.last(id).unwrap();
        // Each text is read half a beat after it was composed.
        for _ in 0..LATELY.as_secs() / 30 {
            let (composed, texts) = (Instant::now(), [here.told(), there.told()]);
            tokio::time::advance(Duration::from_millis(15_500)).await;
            there.hear(&texts[0], composed);
            here.hear(&texts[1], composed);
            tokio::time::advance(Duration::from_millis(14_600)).await;
        }
        assert!(there.last(id).is_some_and(|last| last <= used));
        assert_eq!((here.told(), there.told()), (vec![], vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_carries_it() {
        let (repo, there) = (Repo::new(generation_for_tests().repo), Uses::default());
        let text = |repo: &Repo| serde_json::to_string(&RepoHealth::of(repo)).unwrap();
        assert!(!text(&repo).contains("used"), "nothing is said where nothing is known");
        repo.uses.note(BlobId([7; 32]));
        let heard: RepoHealth = serde_json::from_str(&text(&repo)).unwrap();
        there.hear(&heard.used, Instant::now());
        assert_eq!(there.last(BlobId([7; 32])), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let uses = Uses::default();
        for n in 0..200 {
            uses.note(BlobId([n; 32]));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(uses.list().len(), MOST);
        assert!(uses.last(BlobId([199; 32])).is_some() && uses.last(BlobId([0; 32])).is_none());
    }
}
