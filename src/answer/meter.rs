//! The meter of one request's job: it ends the job when its client has left, when it takes too many steps, and when it
//! needs more memory than there is.
//!
//! Relies on: being asked from a blocking thread, since room and turns may have to be waited for.
//! Elsewhere: what counts (`pack`), turns (`turns`), how much there is (`budget`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::answer::turns::{Turn, Turns};
use crate::budget::{Budget, Room};
use crate::pack::layer::stack::Stack;
use crate::pack::meter::{Halt, Meter};

/// The most steps of one job: about a minute of one core, many times what a clone of a large repository takes.
const MOST_STEPS: u64 = 2_000_000_000;
/// A job looks up after so many steps, a fraction of a millisecond.
const LOOK_UP: u64 = 1 << 14;
/// How long a job waits for memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// Counts for one job. Memory that is still held when it is dropped is given back.
pub struct JobMeter {
    stop: CancellationToken,
    budget: Budget,
    turns: Option<(Arc<Turns>, Mutex<Turn>)>,
    runtime: Handle,
    steps: AtomicU64,
    held: Mutex<Option<Room>>,
}

impl JobMeter {
    /// Counts for a job that holds memory of `budget` and ends at `stop`. Must be called inside a runtime.
    pub fn new(stop: CancellationToken, budget: Budget) -> Self {
        let (steps, held) = (AtomicU64::new(0), Mutex::default());
        Self { stop, budget, turns: None, runtime: Handle::current(), steps, held }
    }

    /// Lets the job compute in the place that it has got, and take turns with others when it takes long.
    #[must_use]
    pub fn taking_turns(mut self, turns: Arc<Turns>, turn: Turn) -> Self {
        self.turns = Some((turns, Mutex::new(turn)));
        self
    }

    fn look_up(&self, steps: u64) -> Result<(), Halt> {
        if self.stop.is_cancelled() {
            return Err(Halt::Stopped);
        }
        if steps > MOST_STEPS {
            return Err(Halt::TooLong { most: MOST_STEPS });
        }
        let Some((turns, turn)) = &self.turns else { return Ok(()) };
        let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !turns.is_over(&turn) {
            return Ok(());
        }
        let waiting = self.stop.run_until_cancelled(turns.go_on(&mut turn));
        crate::threads::wait(&self.runtime, waiting).unwrap_or(Err(Halt::Stopped))
    }
}

impl Meter for JobMeter {
    fn step(&self, n: u64) -> Result<(), Halt> {
        // One thread counts, so nothing is lost between reading and writing.
        let before = self.steps.load(Ordering::Relaxed);
        let now = before.saturating_add(n);
        self.steps.store(now, Ordering::Relaxed);
        if before / LOOK_UP == now / LOOK_UP { Ok(()) } else { self.look_up(now) }
    }

    fn hold(&self, bytes: u64) -> Result<(), Halt> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.budget.fits(bytes.saturating_add(held.as_ref().map_or(0, Room::bytes)))?;
        let more = match self.budget.try_take(bytes) {
            Err(Halt::Busy) => {
                let waiting = tokio::time::timeout(PATIENCE, self.budget.take(bytes));
                let waiting = self.stop.run_until_cancelled(waiting);
                crate::threads::wait(&self.runtime, waiting).ok_or(Halt::Stopped)?.map_err(|_| Halt::Busy)?
            }
            at_once => at_once,
        }?;
        match &mut *held {
            Some(room) => room.join(more),
            None => *held = Some(more),
        }
        Ok(())
    }

    fn release(&self, bytes: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = &mut *held {
            room.give_back(bytes);
        }
    }
}

/// How many sets of a bit an object there are while an answer is prepared.
const SETS: u64 = 6;

/// Counts these sets for the objects of `stack`.
pub(super) fn hold_sets(stack: &Stack, meter: &dyn Meter) -> Result<(), Halt> {
    meter.hold(SETS * u64::from(stack.len()).div_ceil(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    async fn on_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(job).await.unwrap()
    }

    #[tokio::test]
    async fn memory_is_bounded_for_each_job_and_for_all() {
        let budget = Budget::new(10 * MIB, "limits.memory");
        let meter = |budget: &Budget| JobMeter::new(CancellationToken::new(), budget.clone());
        let (first, second) = (meter(&budget), meter(&budget));
        let first = on_thread(move || {
            first.hold(6 * MIB).unwrap();
            assert!(matches!(first.hold(5 * MIB), Err(Halt::TooMuch { .. })), "a job cannot wait for itself");
            first
        })
        .await;
        let waiting = tokio::spawn(on_thread(move || {
            second.hold(7 * MIB).map(|()| second.release(7 * MIB)).map(|()| second)
        }));
        tokio::task::yield_now().await;
        first.release(6 * MIB);
        assert!(waiting.await.unwrap().is_ok(), "there is room once the first has given it back");
        drop(first);
        assert_eq!(budget.free(), 10 * MIB);
    }

    #[tokio::test]
    async fn a_job_ends_when_its_client_leaves_and_when_it_takes_too_long() {
        let stop = CancellationToken::new();
        let meter = JobMeter::new(stop.clone(), Budget::new(MIB, "limits.memory"));
        assert_eq!(meter.step(LOOK_UP), Ok(()));
        assert!(matches!(meter.step(MOST_STEPS), Err(Halt::TooLong { .. })));
        stop.cancel();
        assert_eq!(meter.step(LOOK_UP), Err(Halt::Stopped));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_waits_for_memory_or_a_place_stops_waiting_when_its_client_leaves() {
        let (stop, budget) = (CancellationToken::new(), Budget::new(MIB, "limits.memory"));
        let _all = budget.try_take(MIB).unwrap();
        let meter = JobMeter::new(stop.clone(), budget);
        let waiting = tokio::spawn(on_thread(move || meter.hold(MIB)));
        stop.cancel();
        assert_eq!(waiting.await.unwrap(), Err(Halt::Stopped));
    }
}
