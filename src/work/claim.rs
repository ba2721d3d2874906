//! Claims: which node does what only one needs to do: makes stored data anew, where several met the same damage; merges
//! layers.
//!
//! The first node leaves a note in the bucket and renews it while it works; the others wait for its generation. A note that
//! is not renewed for a while is taken over: its node has died. Two nodes may still do the same at once, which costs work and
//! nothing else, since one of them publishes and the other one follows.
//! Relies on: `store` for notes. No node's clock is compared with another's: each one measures how long a note stays
//! the same.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::git::path::RepoPath;
use crate::store::{Bucket, Note, StoreError, nonce};

/// How often a note is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// A note that was not renewed for so long is void.
const ABANDONED: Duration = Duration::from_secs(45);
/// How often waiting nodes read the note.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The right to do what a note is about. Dropping it gives it up, so that other nodes can take it.
pub(super) struct Claim {
    renewing: JoinHandle<()>,
    bucket: Bucket,
    repo: RepoPath,
    note: Note,
    released: bool,
}

impl Claim {
    /// Gives it up, and waits until other nodes can see that.
    pub async fn release(mut self) {
        self.released = true;
        self.renewing.abort();
        // If this fails, the others wait until the note is void.
        let _ = self.bucket.remove_note(&self.repo, self.note).await;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.released {
            return;
        }
        let (bucket, repo, note) = (self.bucket.clone(), self.repo.clone(), self.note);
        tokio::spawn(async move { bucket.remove_note(&repo, note).await });
    }
}

/// Waits for the right to do what `note` is about, because of what `number`, the newest generation, names. `None`: a newer
/// one was published meanwhile, so the caller has to look again what is to be done.
pub(super) async fn claim(
    bucket: &Bucket,
    repo: &RepoPath,
    note: Note,
    number: u64,
) -> Result<Option<Claim>, StoreError> {
    let mut seen: Option<(Bytes, Instant)> = None;
    loop {
        let Some(other) = bucket.leave_note(repo, note, words()).await? else {
            return Ok(Some(held(bucket, repo, note)));
        };
        match &seen {
            Some((words, since)) if *words == other => {
                if since.elapsed() >= ABANDONED {
                    bucket.rewrite_note(repo, note, self::words()).await?;
                    return Ok(Some(held(bucket, repo, note)));
                }
            }
            _ => seen = Some((other, Instant::now())),
        }
        tokio::time::sleep(LOOK_EVERY).await;
        if bucket.after(repo, number).await?.is_some() {
            return Ok(None);
        }
    }
}

fn held(bucket: &Bucket, repo: &RepoPath, note: Note) -> Claim {
    let (renewed, name) = (bucket.clone(), repo.clone());
    let renewing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            // If this fails, other nodes may do the same work.
            let _ = renewed.rewrite_note(&name, note, words()).await;
        }
    });
    Claim { renewing, bucket: bucket.clone(), repo: repo.clone(), note, released: false }
}

/// Makes a text that no note has had before.
fn words() -> Bytes {
    nonce().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn one_repairs_at_a_time_and_the_dead_are_replaced() {
        let bucket = Bucket::over(Arc::new(InMemory::new()), "");
        let repo = RepoPath::parse("a").unwrap();
        let first = claim(&bucket, &repo, Note::Repair, 1).await.unwrap().unwrap();
        let longer = ABANDONED * 3;
        assert!(
            tokio::time::timeout(longer, claim(&bucket, &repo, Note::Repair, 1)).await.is_err(),
            "it is renewed"
        );
        first.release().await;
        let second = claim(&bucket, &repo, Note::Repair, 1).await.unwrap().unwrap();
        // Its node dies: nobody renews the note.
        second.renewing.abort();
        let begun = Instant::now();
        let third = claim(&bucket, &repo, Note::Repair, 1).await.unwrap();
        assert!(third.is_some() && begun.elapsed() >= ABANDONED);
    }
}
