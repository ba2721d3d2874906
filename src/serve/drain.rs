//! The end of a node, in order: first it is seen to stop, then it takes nothing new, then it ends.
//!
//! From the first signal on `/readyz` says no and HTTP/1 answers say `Connection: close`, while everything is served as
//! usual: that is how load balancers and clients learn of it before anything is refused. After the delay the port is closed
//! and HTTP/2 connections are told to go. Requests in flight then have the drain timeout.
//! Elsewhere: connections (`listen`, `places`), which signal means what (`cli`).

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::serve::places::Places;

/// How a node is asked to end. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Begins the end.
    pub asked: CancellationToken,
    /// Ends the delay before new connections are refused, now or when it begins.
    pub hurry: CancellationToken,
}

/// How long the steps of the end may take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// From the signal to the closing of the port.
    pub delay: Duration,
    /// From there until what is in flight is cut.
    pub timeout: Duration,
}

impl Stop {
    /// Waits until the port is to be closed: `delay` after somebody asked, or when there is hurry.
    pub async fn delayed(&self, delay: Duration) {
        self.asked.cancelled().await;
        if !delay.is_zero() && !self.hurry.is_cancelled() {
            tracing::info!(
                ?delay,
                "asked to stop: not ready any more; requests are served until the delay is over"
            );
        }
        let _ = self.hurry.run_until_cancelled(tokio::time::sleep(delay)).await;
    }
}

/// Waits until `all` connections have ended, at most for `timeout`, then cuts what is left and tells how it went.
pub async fn drain(places: &Places, all: impl Future<Output = ()>, timeout: Duration) {
    let (begun, in_flight, before) = (Instant::now(), places.in_flight(), places.ended());
    tracing::info!(in_flight, connections = places.count(), "draining: no new connections any more");
    let whole = tokio::time::timeout(timeout, all).await.is_ok();
    let (cut, ended) = (places.in_flight(), places.ended() - before);
    places.cut_all();
    let took = begun.elapsed();
    if whole || cut == 0 {
        tracing::info!(ended, cut, ?took, "drained");
    } else {
        tracing::warn!(
            ended,
            cut,
            ?took,
            "drained: requests were still in flight at the end of drain_timeout and are cut"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_delay_begins_with_the_signal_and_ends_with_the_second() {
        let stop = Stop::default();
        stop.asked.cancel();
        let begun = Instant::now();
        stop.delayed(Duration::from_secs(5)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        let hurried = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            hurried.hurry.cancel();
        });
        let begun = Instant::now();
        stop.delayed(Duration::from_secs(5)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        stop.delayed(Duration::from_secs(5)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2), "once there is hurry nothing is waited for");
    }
}
