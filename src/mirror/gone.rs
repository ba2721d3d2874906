//! Repositories that the primary does not have any more: what it takes to believe so, and the mark that all nodes see.
//!
//! A primary that has lost a volume, a token that has lost a right and a proxy that is set up wrong all say "not found". So it is
//! believed after several comparisons over a long time, while the primary answers other repositories as ever. Then the newest
//! generation is published once more with a mark: nodes learn of it as of any generation, and none serves it. What takes
//! the mark off is a generation without one.
//! Relies on: `store` for records. Elsewhere: who counts (`work::gone`), who takes it out in the end (`work::collect`).

use std::time::Duration;

use tokio::time::Instant;

use crate::boot::{time_of_day, unix_seconds};
use crate::mirror::Mirror;
use crate::mirror::newest::NotFound;
use crate::mirror::repo::Repo;
use crate::store::{Generation, Publish, nonce};

/// So many comparisons must find nothing.
const LOOKS: u32 = 4;
/// Over so long a time.
const FOR: Duration = Duration::from_secs(3600);

/// Comparisons in a row that found nothing.
#[derive(Debug, Clone, Copy)]
pub struct Missing {
    /// When the first one did.
    since: Instant,
    /// When the last one did that counts.
    last: Instant,
    looks: u32,
}

impl Missing {
    /// Takes note of one more. `pace` is that of comparisons; what is asked for more often does not count. Says whether it is
    /// believed.
    pub fn again(this: &mut Option<Self>, pace: Duration) -> bool {
        let now = Instant::now();
        let this = this.get_or_insert(Self { since: now, last: now, looks: 1 });
        if now.duration_since(this.last) >= pace / 2 {
            this.looks = this.looks.saturating_add(1);
            this.last = now;
        }
        this.looks >= LOOKS && now.duration_since(this.since) >= FOR
    }
}

impl Mirror {
    /// Says whether the primary answers other repositories as ever: no error of late, here or at other nodes, and at least one of
    /// those that are published found equal, if there are any.
    pub fn is_calm_beside(&self, repo: &Repo) -> bool {
        let lately = |then: Instant| then.elapsed() < self.compare_every.saturating_mul(3);
        let (mut others, mut well) = (0, 0);
        for other in self.repos().iter().filter(|other| other.path != repo.path) {
            let health = other.health();
            if health.primary_failed.is_some_and(lately) {
                return false;
            }
            let asked = health.asked;
            drop(health);
            if other.known().is_some_and(|known| known.gone.is_none()) {
                others += 1;
                well += u32::from(asked.is_some_and(|asked| lately(asked.instant)));
            }
        }
        !self.primary.is_down() && (others == 0 || well > 0)
    }

    /// Publishes the newest generation once more, with the mark that it is gone or without. `None`: nothing is published, or
    /// another node published first; what is the newest then is found in the next round.
    pub async fn mark_gone(&self, repo: &Repo, is_gone: bool) -> Result<Option<Generation>, NotFound> {
        let newest = self.newest_record(repo).await?.filter(|newest| !newest.removed);
        let Some(newest) = newest else { return Ok(None) };
        if newest.gone.is_some() == is_gone {
            repo.know(newest.clone());
            return Ok(Some(newest));
        }
        let now = unix_seconds(time_of_day());
        let mut next = Generation {
            number: newest.number + 1,
            parent: Some(newest.id()),
            writer: nonce(),
            created_at: now,
            gone: is_gone.then_some(now),
            stored: None,
            ..newest
        };
        if self.bucket.publish_next(&mut next).await? != Publish::Won {
            return Ok(None);
        }
        repo.know(next.clone());
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_takes_several_comparisons_over_an_hour() {
        let pace = Duration::from_secs(180);
        let mut many = None;
        for _ in 0..1000 {
            assert!(!Missing::again(&mut many, pace), "clients ask at once, and that is one comparison");
        }
        tokio::time::advance(FOR).await;
        assert!(!Missing::again(&mut many, pace), "it is the second one");

        let mut missing = None;
        for _ in 0..20 {
            assert!(!Missing::again(&mut missing, pace), "not within an hour");
            tokio::time::advance(pace).await;
        }
        assert!(Missing::again(&mut missing, pace));
    }
}
