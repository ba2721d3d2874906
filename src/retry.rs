//! Retrying: the one policy by which every remote operation is repeated.
//!
//! Waits grow exponentially under a cap with full jitter (each wait is drawn evenly between zero and the
//! bound), so that nodes which failed together do not come back together. A `Retry-After` of the other end
//! is a lower bound that jitter is added to. [`Policy::run`] repeats one operation.
//! Relies on: tokio's clock (monotonic, pausable in tests). Correctness never depends on it: clocks pace work.
//! Elsewhere: what is worth repeating is said by each error type through [`Retryable`].

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The longest `Retry-After` that is believed; a primary that asks for more is asked again after this.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Says of an error whether repeating the same call can help.
pub trait Retryable {
    /// True if the same call may succeed later without anybody changing anything.
    fn is_transient(&self) -> bool;

    /// How long the other end asked us to stay away, if it did.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// The randomness of jitter: seeded by the system, or by a test. Clones share one stream.
#[derive(Clone)]
pub struct Dice(Arc<Mutex<StdRng>>);

impl Dice {
    /// Seeds from the operating system.
    pub fn random() -> Self {
        #[cfg(test)]
        if let Some(planned) = planned() {
            return Self::seeded(planned);
        }
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// Draws bytes that nobody can guess.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        locked(&self.0).random()
    }

    /// Seeds with a number, for tests that must repeat.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Draws a duration evenly from zero to `bound`, both included.
    pub fn up_to(&self, bound: Duration) -> Duration {
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(locked(&self.0).random_range(0..=nanos))
    }
}

#[cfg(test)]
pub(crate) type Plan = Arc<Mutex<StdRng>>;

#[cfg(test)]
thread_local! {
    static PLAN: std::cell::RefCell<Option<Plan>> = const { std::cell::RefCell::new(None) };
}

/// From now on all dice of this thread that the system would seed are seeded out of `seed`: for simulations that must repeat.
#[cfg(test)]
pub(crate) fn plan(seed: u64) {
    go_by(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
}

/// The plan of this thread, for another one that belongs to the same simulation.
#[cfg(test)]
pub(crate) fn plan_here() -> Option<Plan> {
    PLAN.with_borrow(Clone::clone)
}

/// Makes this thread go by another one's plan.
#[cfg(test)]
pub(crate) fn go_by(plan: Plan) {
    PLAN.set(Some(plan));
}

#[cfg(test)]
fn planned() -> Option<u64> {
    plan_here().map(|plan| locked(&plan).random())
}

impl fmt::Debug for Dice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dice")
    }
}

/// How often and how patiently one kind of operation is repeated.
#[derive(Clone, Debug)]
pub struct Policy {
    base: Duration,
    cap: Duration,
    attempts: u32,
    budget: Option<Duration>,
    dice: Dice,
}

impl Policy {
    /// Waits up to `base` after the first failure, twice that after each further one, never more than `cap`;
    /// five attempts in all and no budget, unless told otherwise.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempts: 5, budget: None, dice: Dice::random() }
    }

    /// Limits the number of attempts, the first one included; 0 means no limit.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Limits the whole time from the first attempt to the start of the last one.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Replaces the randomness, for tests.
    pub fn dice(mut self, dice: Dice) -> Self {
        self.dice = dice;
        self
    }

    /// The upper bound of the wait after `failures` failures in a row (1 = the first).
    pub fn bound(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }

    /// Draws the wait after `failures` failures in a row. With a `retry_after` the wait is at least that
    /// (at most [`LONGEST_RETRY_AFTER`] of it is believed), plus jitter, since others were told the same.
    pub fn delay(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let jitter = self.dice.up_to(self.bound(failures));
        match retry_after {
            Some(asked) => asked.min(LONGEST_RETRY_AFTER).saturating_add(jitter),
            None => jitter,
        }
    }

    /// Draws the wait after `failures` failures in a row between half its bound and the bound, for what costs others much.
    pub fn at_least_half(&self, failures: u32) -> Duration {
        let half = self.bound(failures) / 2;
        half + self.dice.up_to(half)
    }

    /// Repeats `op` (given the attempt's number, from 1) until it succeeds, fails for good, or the policy's
    /// limits are reached. `stop` cuts waits short and prevents further attempts; it never cuts an attempt
    /// itself: a long `op` watches `stop` at its own safe points.
    pub async fn run<T, E, F, Fut>(&self, stop: &CancellationToken, mut op: F) -> Result<T, GaveUp<E>>
    where
        E: Retryable + fmt::Display,
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            if stop.is_cancelled() {
                return Err(GaveUp::Stopped);
            }
            attempt += 1;
            let error = match op(attempt).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let wait = self.delay(attempt, error.retry_after());
            let spent = self.attempts != 0 && attempt >= self.attempts;
            let late = self.budget.is_some_and(|budget| started.elapsed().saturating_add(wait) > budget);
            if spent || late || !error.is_transient() {
                return Err(GaveUp::Failed { error, attempts: attempt });
            }
            tracing::debug!(attempt, wait_ms = wait.as_millis(), %error, "trying again");
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return Err(GaveUp::Stopped);
            }
        }
    }
}

/// Why [`Policy::run`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum GaveUp<E> {
    /// We are shutting down; nothing is known about the operation's chances.
    #[error("stopped before it succeeded")]
    Stopped,
    /// The last attempt's error: permanent, or transient with the policy's limits reached.
    #[error("{error} (after {attempts} attempts)")]
    Failed {
        /// What the last attempt said.
        error: E,
        /// How many attempts were made.
        attempts: u32,
    },
}

impl<E> GaveUp<E> {
    /// The last attempt's error; `None` if we were stopped.
    pub fn into_error(self) -> Option<E> {
        match self {
            Self::Stopped => None,
            Self::Failed { error, .. } => Some(error),
        }
    }
}

/// Locks even after a panic of another holder: what is guarded here is consistent between statements.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Debug, Clone, PartialEq, thiserror::Error)]
    enum Trouble {
        #[error("busy")]
        Busy(Option<Duration>),
        #[error("wrong")]
        Wrong,
    }

    impl Retryable for Trouble {
        fn is_transient(&self) -> bool {
            matches!(self, Self::Busy(_))
        }
        fn retry_after(&self) -> Option<Duration> {
            match self {
                Self::Busy(after) => *after,
                Self::Wrong => None,
            }
        }
    }

    const MS: Duration = Duration::from_millis(1);

    fn policy() -> Policy {
        Policy::new(100 * MS, 1000 * MS).attempts(0).dice(Dice::seeded(7))
    }

    /// Runs `policy` over the given outcomes and tells when each attempt began, from the start.
    async fn attempts_at(
        policy: Policy,
        mut outcomes: Vec<Result<(), Trouble>>,
    ) -> (Vec<Duration>, Result<(), GaveUp<Trouble>>) {
        let start = Instant::now();
        let times = RefCell::new(Vec::new());
        outcomes.reverse();
        let outcomes = RefCell::new(outcomes);
        let result = policy
            .run(&CancellationToken::new(), |_| {
                times.borrow_mut().push(start.elapsed());
                let next = outcomes.borrow_mut().pop().unwrap();
                async move { next }
            })
            .await;
        (times.into_inner(), result)
    }

    #[test]
    fn bounds_double_up_to_the_cap() {
        let bounds: Vec<_> = (1..=6).map(|n| policy().bound(n).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(policy().bound(u32::MAX), 1000 * MS);
        assert_eq!(Policy::new(Duration::MAX, Duration::MAX).bound(40), Duration::MAX);
    }

    #[test]
    fn jitter_is_full_and_repeats_with_its_seed() {
        let draw = |seed| {
            let policy = policy().dice(Dice::seeded(seed));
            (0..1000).map(|_| policy.delay(3, None)).collect::<Vec<_>>()
        };
        let draws = draw(1);
        assert_eq!(draws, draw(1));
        assert_ne!(draws, draw(2));
        assert!(draws.iter().all(|d| *d <= 400 * MS));
        assert!(draws.iter().any(|d| *d < 40 * MS), "full jitter reaches down to zero");
        assert!(draws.iter().any(|d| *d > 360 * MS), "and up to the bound");
    }

    #[test]
    fn half_the_bound_is_waited_at_least() {
        for _ in 0..100 {
            let wait = policy().at_least_half(3);
            assert!((200 * MS..=400 * MS).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn retry_after_is_a_lower_bound_that_is_not_believed_forever() {
        for _ in 0..100 {
            let wait = policy().delay(1, Some(5000 * MS));
            assert!((5000 * MS..=5100 * MS).contains(&wait), "{wait:?}");
        }
        let wait = policy().delay(1, Some(Duration::MAX));
        assert!(wait <= LONGEST_RETRY_AFTER + 100 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_until_it_succeeds() {
        let busy = || Err(Trouble::Busy(None));
        let (times, result) = attempts_at(policy(), vec![busy(), busy(), busy(), Ok(())]).await;
        result.unwrap();
        assert_eq!(times.len(), 4);
        for (n, pair) in times.windows(2).enumerate() {
            // The paused clock moves in whole milliseconds.
            assert!(pair[1] - pair[0] <= policy().bound(n as u32 + 1) + MS, "{times:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_ends_it_at_once() {
        let (times, result) = attempts_at(policy(), vec![Err(Trouble::Wrong)]).await;
        assert_eq!(times, [Duration::ZERO]);
        assert!(matches!(result, Err(GaveUp::Failed { error: Trouble::Wrong, attempts: 1 })));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_and_budget_are_limits() {
        let busy = |n| vec![Err(Trouble::Busy(None)); n];
        let (times, result) = attempts_at(policy().attempts(3), busy(9)).await;
        assert_eq!(times.len(), 3);
        assert!(matches!(result, Err(GaveUp::Failed { error: Trouble::Busy(_), attempts: 3 })));

        let budget = 2000 * MS;
        let (times, result) = attempts_at(policy().budget(budget), busy(1000)).await;
        assert!(matches!(result, Err(GaveUp::Failed { error: Trouble::Busy(_), .. })));
        assert!(times.len() > 2 && times.iter().all(|at| *at <= budget + MS), "{times:?}");

        // A wait that the budget does not allow is not begun.
        let start = Instant::now();
        let long = vec![Err(Trouble::Busy(Some(Duration::from_secs(60))))];
        let (times, result) = attempts_at(policy().budget(budget), long).await;
        assert!(result.is_err() && times.len() == 1 && start.elapsed() < MS);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_as_long_as_the_other_end_asks() {
        let (times, result) =
            attempts_at(policy(), vec![Err(Trouble::Busy(Some(Duration::from_secs(30)))), Ok(())]).await;
        result.unwrap();
        assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&times[1]), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn stop_cuts_the_wait_and_not_the_attempt() {
        let stop = CancellationToken::new();
        let after = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            after.cancel();
        });
        let start = Instant::now();
        let result: Result<(), _> =
            policy().run(&stop, |_| async { Err(Trouble::Busy(Some(Duration::from_secs(600)))) }).await;
        assert!(matches!(result, Err(GaveUp::Stopped)));
        assert!(start.elapsed() < Duration::from_secs(6));

        let mut calls = 0;
        let result: Result<(), GaveUp<Trouble>> = policy()
            .run(&stop, |_| {
                calls += 1;
                async { Ok(()) }
            })
            .await;
        assert!(matches!(result, Err(GaveUp::Stopped)) && calls == 0, "nothing begins after the stop");
    }
}
