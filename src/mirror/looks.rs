//! Looks into the bucket that many clients share: a thousand that wait for the same push cost two.
//!
//! Elsewhere: what is looked for (`newest`).

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Looks at what is published of one repository, one at a time.
#[derive(Debug, Default)]
pub(super) struct Looks {
    begun: AtomicU64,
    /// The last one that ended.
    ended: Mutex<u64>,
}

impl Looks {
    /// Has a look taken, unless one has ended meanwhile that began after this was called.
    pub async fn share(&self, look: impl Future<Output = ()>) {
        let before = self.begun.load(Ordering::SeqCst);
        let mut ended = self.ended.lock().await;
        if *ended > before {
            return;
        }
        let this = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        look.await;
        // Not reached where the client is gone: who comes next takes a look of its own.
        *ended = this;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn many_share_the_look_that_begins_after_they_came() {
        let (looks, taken, go) =
            (Arc::<Looks>::default(), Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let client = || {
            let (looks, taken, go) = (looks.clone(), taken.clone(), go.clone());
            tokio::spawn(async move {
                let look = async {
                    taken.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                };
                looks.share(look).await;
            })
        };
        let first = client();
        tokio::task::yield_now().await;
        assert_eq!(taken.load(Ordering::SeqCst), 1);
        let others: Vec<_> = (0..100).map(|_| client()).collect();
        tokio::task::yield_now().await;
        go.notify_one();
        first.await.unwrap();
        go.notify_one();
        for other in others {
            other.await.unwrap();
        }
        assert_eq!(taken.load(Ordering::SeqCst), 2, "the first began too early for the others");
    }

    #[tokio::test]
    async fn a_look_that_is_given_up_counts_for_nobody() {
        let looks = Looks::default();
        let given_up =
            tokio::time::timeout(std::time::Duration::ZERO, looks.share(std::future::pending())).await;
        assert!(given_up.is_err());
        let mut is_taken = false;
        looks.share(async { is_taken = true }).await;
        assert!(is_taken);
    }
}
