//! Turns to compute: how many plans are made at the same time, and that long ones keep nobody waiting.
//!
//! A job begins in one of as many quick places as there are cores. One that takes longer than a second goes on in a long
//! place and leaves its quick one to others; long jobs take turns among themselves. Who waits gets a place by turns of clients
//! and repositories (`fair`). So whatever two requests ask for, a third
//! that asks for little is answered. Relies on: jobs that look in now and then (`meter`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::answer::Failed;
use crate::fair::{Fair, Flow, Place};
use crate::pack::meter::Halt;

/// How long a request waits for its turn before it is told to come back.
pub const LONGEST_QUEUE: Duration = Duration::from_secs(30);
/// How long a job may keep a quick place.
const QUICK: Duration = Duration::from_secs(1);
/// How long a job keeps a long place while others wait for it.
const SLICE: Duration = Duration::from_millis(250);
/// The most jobs that wait for a long place; each holds what it has made so far.
const MOST_WAITING: usize = 32;

/// Where a node computes.
#[derive(Debug)]
pub struct Turns {
    quick: Arc<Fair>,
    long: Arc<Fair>,
    waiting: AtomicUsize,
}

/// A place that a job has.
#[derive(Debug)]
pub struct Turn {
    place: Option<Place>,
    flow: Flow,
    is_long: bool,
    since: Instant,
}

impl Turns {
    /// Makes `quick` places, and half as many long ones.
    pub fn new(quick: usize) -> Self {
        Self { quick: Fair::new(quick), long: Fair::new(quick / 2), waiting: AtomicUsize::new(0) }
    }

    /// Waits for a quick place, but not for ever: a request that has waited too long is shed.
    pub async fn turn(&self, flow: Flow) -> Result<Turn, Failed> {
        let place = tokio::time::timeout(LONGEST_QUEUE, self.quick.place(flow)).await;
        let place = Some(place.map_err(|_| Failed::Busy)?);
        Ok(Turn { place, flow, is_long: false, since: Instant::now() })
    }

    /// Says whether a job has had its place for so long that it has to ask whether it may go on.
    pub fn is_over(&self, turn: &Turn) -> bool {
        match turn.is_long {
            false => turn.since.elapsed() > QUICK,
            true => self.waiting.load(Ordering::Relaxed) > 0 && turn.since.elapsed() > SLICE,
        }
    }

    /// Gives the place away and waits until the job may go on in a long one.
    pub async fn go_on(&self, turn: &mut Turn) -> Result<(), Halt> {
        turn.place = None;
        let waiting = Waiting::new(&self.waiting).ok_or(Halt::Busy)?;
        let place = Some(self.long.place(turn.flow).await);
        drop(waiting);
        *turn = Turn { place, flow: turn.flow, is_long: true, since: Instant::now() };
        Ok(())
    }
}

/// A job that waits for a long place.
struct Waiting<'p>(&'p AtomicUsize);

impl<'p> Waiting<'p> {
    fn new(count: &'p AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MOST_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_jobs_leave_the_quick_places_and_take_turns() {
        let turns = Turns::new(2);
        let (mut a, mut b) =
            (turns.turn(Flow::default()).await.unwrap(), turns.turn(Flow::default()).await.unwrap());
        assert!(!turns.is_over(&a));
        a.since -= 2 * QUICK;
        assert!(turns.is_over(&a));
        turns.go_on(&mut a).await.unwrap();
        drop(turns.turn(Flow::default()).await.unwrap());
        a.since -= 2 * SLICE;
        assert!(!turns.is_over(&a), "nobody waits");
        {
            let other = turns.go_on(&mut b);
            tokio::pin!(other);
            assert!(futures::poll!(&mut other).is_pending());
            assert!(turns.is_over(&a));
            let again = turns.go_on(&mut a);
            tokio::pin!(again);
            assert!(futures::poll!(&mut again).is_pending(), "the other one was there first");
            other.await.unwrap();
        }
        assert!(b.is_long);
        assert_eq!(turns.waiting.load(Ordering::Relaxed), 0, "who stops waiting is not counted");
    }

    #[tokio::test]
    async fn the_crowd_of_long_jobs_is_bounded() {
        let turns = Turns::new(1);
        let mut first = turns.turn(Flow::default()).await.unwrap();
        turns.go_on(&mut first).await.unwrap();
        let counted: Vec<_> = (0..MOST_WAITING).map(|_| Waiting::new(&turns.waiting).unwrap()).collect();
        let mut late = turns.turn(Flow::default()).await.unwrap();
        assert_eq!(turns.go_on(&mut late).await, Err(Halt::Busy));
        drop(counted);
    }
}
