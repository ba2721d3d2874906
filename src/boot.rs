//! A clock that goes on while the machine is suspended.
//!
//! What was promised to others for a time ("this mark is younger than five minutes") must not be believed longer because this
//! machine slept. `Instant` stands still meanwhile on Linux; this does not. The time of day, which may jump, is read here too, so that
//! a simulation can play it. Elsewhere: the store's clock ([`crate::store`]).

use std::time::{Duration, SystemTime};

/// A moment since the machine was started, for measuring durations on this machine alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot(Duration);

impl Boot {
    /// Reads the clock. Under test it is tokio's, which a test can stop and move.
    pub fn now() -> Self {
        #[cfg(not(test))]
        return Self(machine());
        #[cfg(test)]
        return Self(tests::played());
    }

    /// How long ago this was.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

/// Reads the time of day. In a simulation it goes with the clock of all.
pub fn time_of_day() -> SystemTime {
    #[cfg(test)]
    if let Some(time) = crate::sim::turns::time_of_day() {
        return time;
    }
    SystemTime::now()
}

/// Seconds since 1970, as records and notes have them for people; 0 for a time before.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The time since the machine was started, suspended or not, where the system tells it.
#[cfg_attr(test, allow(dead_code))]
fn machine() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default());
    seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    /// Far enough from zero that a test can look back.
    const LONG_UP: Duration = Duration::from_secs(1 << 30);

    pub(super) fn played() -> Duration {
        static FIRST: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let first = *FIRST.get_or_init(std::time::Instant::now);
        let now = Instant::now().into_std();
        // A clock that was stopped before the first reading is behind it.
        LONG_UP + now.saturating_duration_since(first) - first.saturating_duration_since(now)
    }

    #[test]
    fn the_machines_clock_goes_on_and_counts_suspension() {
        let (before, plain) = (machine(), rustix::time::clock_gettime(rustix::time::ClockId::Monotonic));
        assert!(before >= Duration::from_secs(plain.tv_sec as u64));
        assert!(machine() >= before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_test_can_move_it() {
        let begun = Boot::now();
        tokio::time::advance(Duration::from_secs(7200)).await;
        assert_eq!(begun.elapsed().as_secs(), 7200);
    }
}
