//! Places for connections: how many there may be, who gives way, who is cut off.
//!
//! A new connection always gets in, since it may be the one that asks for health: where all places are taken, the
//! connection that has been quiet longest gives its own. Only if every client is being served, the new one gets one of a few
//! spare places, on which health is answered and everything else is told to come back.
//! Elsewhere: what quiet means (`connection`), accepting (`listen`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::serve::connection::{Connection, Load, Owes};

/// How long a connection may take from its opening, or from the end of its last answer, to the next whole head.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/2 client that was told to go has so long to do so.
const LEAVE: Duration = Duration::from_secs(5);
/// Who sends or reads slowly is not sent away before it has been quiet for so long.
const GRACE: Duration = Duration::from_secs(5);
/// Where only few are idle, one that has just come is not: its request is on the way.
const GLIMPSE: Duration = Duration::from_millis(100);
/// Places for health when all others are busy.
const SPARE: usize = 32;

/// When connections end because the node does.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// From here on each HTTP/1 answer is the last one of its connection.
    pub soon: CancellationToken,
    /// From here on no connection takes a further request.
    pub now: CancellationToken,
}

/// The connections of a node.
#[derive(Debug)]
pub struct Places {
    most: usize,
    patience: Duration,
    ends: Ends,
    load: Arc<Load>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    spare: usize,
    connections: HashMap<u64, Arc<Connection>>,
}

/// A connection's place; dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    /// The connection.
    pub connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open().remove(self.connection.number);
    }
}

impl Open {
    fn remove(&mut self, number: u64) -> Option<Arc<Connection>> {
        let gone = self.connections.remove(&number)?;
        self.spare -= usize::from(gone.spare);
        Some(gone)
    }

    /// Closes the connection that has been quiet longest; false: none is quiet.
    fn make_room(&mut self, spare: bool) -> bool {
        let now = Instant::now();
        let of_kind = self.connections.values().filter(|connection| connection.spare == spare);
        let quiet: Vec<_> =
            of_kind.filter_map(|connection| Some((connection.quiet()?, connection.number))).collect();
        let idle = quiet.iter().filter(|((owes, _), _)| *owes == Owes::Request).count();
        let glimpse = if idle * 4 > self.connections.len() { Duration::ZERO } else { GLIMPSE };
        let longest = quiet.into_iter().filter(|((owes, since), _)| {
            let grace = if *owes == Owes::Request { glimpse } else { GRACE };
            *since + grace <= now
        });
        let gone = longest.min_by_key(|((_, since), number)| (*since, *number));
        let Some(gone) = gone.and_then(|(_, number)| self.remove(number)) else { return false };
        gone.cut.cancel();
        true
    }
}

impl Places {
    /// Room for `most` connections and as many requests at the same time, whose clients have `patience` to send or to read.
    pub fn new(most: usize, patience: Duration, ends: Ends) -> Arc<Self> {
        let load = Arc::new(Load { now: AtomicUsize::new(0), ended: AtomicU64::new(0), most: most.max(1) });
        Arc::new(Self { most: most.max(1), patience, ends, load, open: Mutex::default() })
    }

    /// A place for a new connection.
    pub fn take(self: &Arc<Self>) -> Place {
        let mut open = self.open();
        let full = open.connections.len() - open.spare >= self.most;
        let spare = full && !open.make_room(false);
        if spare
            && open.spare >= SPARE
            && !open.make_room(true)
            && let Some(oldest) = open.connections.values().filter(|c| c.spare).map(|c| c.number).min()
            && let Some(gone) = open.remove(oldest)
        {
            gone.cut.cancel();
        }
        open.next += 1;
        let connection = Connection::new(open.next, spare, self.patience, Arc::clone(&self.load), &self.ends);
        let connection = Arc::new(connection);
        open.spare += usize::from(spare);
        open.connections.insert(connection.number, Arc::clone(&connection));
        Place { places: Arc::clone(self), connection }
    }

    /// Closes one connection that is quiet, because something of it is needed elsewhere.
    pub fn give_way(&self) -> bool {
        self.open().make_room(false)
    }

    /// How many connections are open.
    pub fn count(&self) -> usize {
        self.open().connections.len()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.load.now.load(Ordering::Relaxed)
    }

    /// How many requests have ended since the start.
    pub fn ended(&self) -> u64 {
        self.load.ended.load(Ordering::Relaxed)
    }

    /// Ends all connections at once.
    pub fn cut_all(&self) {
        self.open().connections.values().for_each(|connection| connection.cut.cancel());
    }

    /// Cuts off connections that are past a deadline, until the future is dropped.
    pub async fn watch(&self) {
        let pace = (self.patience / 4).clamp(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            tokio::time::sleep(pace).await;
            let all: Vec<_> = self.open().connections.values().cloned().collect();
            let now = Instant::now();
            all.iter().for_each(|connection| self.check(connection, now));
        }
    }

    fn check(&self, connection: &Connection, now: Instant) {
        match connection.quiet() {
            Some((Owes::Request, since)) if since + REQUEST_TIMEOUT <= now => {
                connection.leave.cancel();
                if !connection.is_http2() || since + REQUEST_TIMEOUT + LEAVE <= now {
                    connection.cut.cancel();
                }
            }
            Some((Owes::Reading, since)) if since + self.patience <= now => connection.cut.cancel(),
            // A body that does not come ends its request by itself.
            _ => {}
        }
        if connection.drop_stalled(now) {
            connection.cut.cancel();
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(most: usize) -> Arc<Places> {
        Places::new(most, Duration::from_secs(60), Ends::default())
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_quiet_longest_gives_way() {
        let places = places(2);
        let first = places.take();
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = places.take();
        tokio::time::advance(Duration::from_secs(1)).await;
        // The first one asks again: now the second is quiet longer.
        first.connection.blocked(false);
        let third = places.take();
        assert!(second.connection.cut.is_cancelled() && !first.connection.cut.is_cancelled());
        assert!(!third.connection.spare);
        drop(second);
        assert_eq!(places.count(), 2, "its place was given away before it was dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_served_a_few_spare_places_are_left() {
        let places = places(1);
        let busy = places.take();
        busy.connection.blocked(true);
        let spare = places.take();
        assert!(spare.connection.spare && !busy.connection.cut.is_cancelled());
        let more: Vec<_> = (0..2 * SPARE).map(|_| places.take()).collect();
        assert!(more.iter().all(|place| place.connection.spare));
        assert_eq!(places.count(), 1 + SPARE);
        tokio::time::advance(GRACE).await;
        assert!(!places.take().connection.spare, "a client that does not read is no longer served");
        assert!(busy.connection.cut.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_kept() {
        let places = places(8);
        let (silent, deaf, modern) = (places.take(), places.take(), places.take());
        deaf.connection.blocked(true);
        modern.connection.speaks_http2();
        let watching = Arc::clone(&places);
        let task = tokio::spawn(async move { watching.watch().await });
        let ends = async |place: &Place| {
            let begin = Instant::now();
            place.connection.cut.cancelled().await;
            begin.elapsed().as_secs()
        };
        let (silent, modern, deaf) = tokio::join!(ends(&silent), ends(&modern), ends(&deaf));
        assert_eq!((silent, modern / 2, deaf / 2), (30, 35 / 2, 60 / 2));
        task.abort();
    }
}
