//! Orders to forget, obeyed: what was purged is not served any more and leaves this node's disk.
//!
//! Nodes list the orders at the pace of their heartbeat, obey those that are new to them, and say in it up to which number they
//! did. A node that starts obeys all that are kept once more before it goes on with what it has cached; if one is missing
//! behind the last that it has obeyed, it was away for longer than orders are kept, and its whole cache goes.
//! Relies on: `store` for orders, `local` for removing and not keeping. Elsewhere: who gives orders (`work::purge`).

use std::sync::PoisonError;
use std::time::Duration;

use crate::mirror::Mirror;
use crate::mirror::repo::Repo;
use crate::store::{Order, StoreError};
use crate::telemetry::metrics as names;

/// The table of the index, and its one record: the highest number that was obeyed.
const ORDERS: &str = "orders";
const HIGHEST: &str = "obeyed";

/// How long an order waits until the newest generation is open; later a client or a comparison opens it.
const OPENING: Duration = Duration::from_secs(20);

/// Up to which order this process has obeyed; none before it has looked.
#[derive(Debug, Default)]
pub(super) struct Obeyed(Option<u64>);

impl Mirror {
    /// Up to which number all orders were obeyed.
    pub fn obeyed(&self) -> u64 {
        self.obeyed.lock().unwrap_or_else(PoisonError::into_inner).0.unwrap_or_default()
    }

    /// Obeys the orders that are new to this node. Returns how many those were. After an error it is not known whether all of
    /// them were obeyed, and the next call goes on.
    pub async fn obey(&self) -> Result<usize, StoreError> {
        let orders = self.bucket.orders().await?;
        let before = self.obeyed.lock().unwrap_or_else(PoisonError::into_inner).0;
        let last = orders.last().copied().unwrap_or_default();
        let done = match before {
            // A bucket that was emptied begins at 1 again.
            Some(done) if done <= last => done,
            Some(_) => 0,
            None => {
                self.clean_after_absence(&orders).await?;
                0
            }
        };
        let new: Vec<u64> = orders.into_iter().filter(|number| *number > done).collect();
        for number in &new {
            // One that is not kept any more was obeyed by clearing the cache, or there was no node to obey it.
            if let Some(order) = self.bucket.order(*number).await? {
                self.forget_purged(&order).await?;
                metrics::counter!(names::ORDERS_OBEYED).increment(1);
                tracing::info!(repo = %order.repo, order = number, blobs = order.blobs.len(), "forgot what was purged");
            }
        }
        if before != Some(last) {
            self.obeyed.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(last);
            self.local.index().put(ORDERS, HIGHEST, &last);
        }
        Ok(new.len())
    }

    /// Says whether an order closes generation `number` of a repository, also one that this node has not obeyed yet.
    pub async fn is_closed(&self, repo: &Repo, number: u64) -> Result<bool, StoreError> {
        let (mut floor, obeyed) = (repo.floor(), self.obeyed());
        for new in self.bucket.orders().await?.into_iter().filter(|order| *order > obeyed) {
            let order = self.bucket.order(new).await?.filter(|order| order.repo == repo.path);
            floor = floor.max(order.map_or(0, |order| order.generation));
        }
        Ok(number < floor)
    }

    /// Empties the cache if orders are not there any more that this node never obeyed.
    async fn clean_after_absence(&self, orders: &[u64]) -> Result<(), StoreError> {
        let obeyed = self.local.index().get::<u64>(ORDERS, HIGHEST).unwrap_or_default();
        let Some(missed) = orders.first().filter(|first| **first > obeyed + 1) else { return Ok(()) };
        let local = self.local.clone();
        let files = on_disk(move || local.purge_all()).await?;
        if files > 0 {
            let order = missed - 1;
            tracing::warn!(
                order,
                files,
                "this node was away for longer than orders of `packmirror purge` are kept: its cache is empty now"
            );
        }
        Ok(())
    }

    /// Closes what is older than the order's generation, and removes what is cached of its blobs.
    async fn forget_purged(&self, order: &Order) -> Result<(), StoreError> {
        // From here on a writer on this node looks whether they are being deleted before it names them.
        self.bucket.doubt_all(&order.blobs);
        let known = self.lock_repos().get(&order.repo).cloned();
        if let Some(repo) = known {
            self.go_on_from(&repo, order).await?;
        }
        let (local, blobs) = (self.local.clone(), order.blobs.clone());
        on_disk(move || local.purge(&blobs)).await?;
        Ok(())
    }

    /// Closes all generations before the order's, and goes on with the newest. What is reachable is carried over before the
    /// files that it is carried from are removed.
    async fn go_on_from(&self, repo: &Repo, order: &Order) -> Result<(), StoreError> {
        let older = repo.purge(order.generation);
        // By a listing: records between the one that is known and the newest may be deleted already.
        let Some(newest) = self.bucket.newest(&repo.path).await? else { return Ok(()) };
        let is_open = repo.snapshot().is_some_and(|open| open.generation.number >= newest.number);
        repo.know(newest.clone());
        if newest.removed || is_open || older.is_none() {
            return Ok(());
        }
        match tokio::time::timeout(OPENING, self.open_upon(repo, newest, older)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(repo = %repo.path, %error, "not open again yet"),
            Err(_) => tracing::info!(repo = %repo.path, "not open again yet: it takes longer"),
        }
        Ok(())
    }
}

/// Removes files off the async threads.
async fn on_disk(
    remove: impl FnOnce() -> std::io::Result<usize> + Send + 'static,
) -> Result<usize, StoreError> {
    let removed =
        crate::threads::spawn_blocking(remove).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    removed.map_err(|e| StoreError::Local { path: "cache".into(), source: std::sync::Arc::new(e) })
}
