//! Places for work, given to many flows in turns.
//!
//! A flow is what one client does with one repository. While all places are taken, the next one goes to the flow whose
//! repository and client were both served longest ago. So neither many clients of one repository nor one client of many
//! repositories keep others waiting for more than a place or two, however many they are, and among equals it is the order of
//! asking. Elsewhere: how long a place is held (`answer::turns`, `serve::send`), bounds on memory ([`crate::budget`]).

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Repositories, and clients, are told apart by so many numbers. Two that share one share their turns.
const NUMBERS: usize = 1024;

/// Whom work is done for: a client and a repository. Cheap to copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    repo: usize,
    client: usize,
}

impl Flow {
    /// What the client at `address` does with `repo`. A client has a whole /64 of IPv6.
    pub fn of(repo: &impl Hash, address: IpAddr) -> Self {
        // Nobody outside can find a repository or an address that shares another one's number.
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let network = match address.to_canonical() {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits() >> 64 << 64,
        };
        let number = |hash: u64| (hash % NUMBERS as u64) as usize;
        Self { repo: number(KEY.hash_one(repo)), client: number(KEY.hash_one(network)) }
    }
}

/// A number of places for those who work at the same time.
#[derive(Debug)]
pub struct Fair {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// In the order of asking.
    waiting: Vec<Waiter>,
    asked: u64,
    /// How many places were given so far.
    given: u64,
    /// Which of them each repository had last, and each client.
    repos: [u64; NUMBERS],
    clients: [u64; NUMBERS],
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    flow: Flow,
    gets: oneshot::Sender<Place>,
}

/// A place that is held; dropping it gives it to the next one.
#[derive(Debug)]
pub struct Place(Option<Arc<Fair>>);

/// One who waits; dropping it leaves nothing behind.
struct Waits<'f> {
    fair: &'f Fair,
    number: u64,
    got: oneshot::Receiver<Place>,
}

impl Fair {
    /// Makes so many `places`, one at least.
    pub fn new(places: usize) -> Arc<Self> {
        let [repos, clients] = [[0; NUMBERS]; 2];
        let state = State { free: places.max(1), waiting: Vec::new(), asked: 0, given: 0, repos, clients };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Waits for a place.
    pub async fn place(self: &Arc<Self>, flow: Flow) -> Place {
        loop {
            let mut waits = match self.ask(flow) {
                Ok(place) => return place,
                Err(waits) => waits,
            };
            // Nobody drops the other end without sending.
            if let Ok(place) = (&mut waits.got).await {
                return place;
            }
        }
    }

    fn ask(self: &Arc<Self>, flow: Flow) -> Result<Place, Waits<'_>> {
        let mut state = self.state();
        if state.free > 0 {
            state.free -= 1;
            state.serve(flow);
            return Ok(Place(Some(Arc::clone(self))));
        }
        state.asked += 1;
        let (number, (gets, got)) = (state.asked, oneshot::channel());
        state.waiting.push(Waiter { number, flow, gets });
        Err(Waits { fair: self, number, got })
    }

    /// Gives a place to the next one who is still there.
    fn give(&self, mut place: Place) {
        loop {
            let next = {
                let mut state = self.state();
                let next = state.next();
                state.free += usize::from(next.is_none());
                next
            };
            let Some(next) = next else {
                place.0 = None;
                return;
            };
            match next.gets.send(place) {
                Ok(()) => return,
                Err(back) => place = back,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out who is served next.
    fn next(&mut self) -> Option<Waiter> {
        let last = |flow: Flow| {
            let (repo, client) = (self.repos[flow.repo], self.clients[flow.client]);
            (repo.max(client), repo.min(client))
        };
        // Of equals the first.
        let (at, _) = self.waiting.iter().enumerate().min_by_key(|(_, waiter)| last(waiter.flow))?;
        let next = self.waiting.remove(at);
        self.serve(next.flow);
        Some(next)
    }

    fn serve(&mut self, flow: Flow) {
        self.given += 1;
        self.repos[flow.repo] = self.given;
        self.clients[flow.client] = self.given;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(fair) = self.0.take() {
            let place = Self(Some(Arc::clone(&fair)));
            fair.give(place);
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        // A place that was sent and not seen goes on to the next one with the receiver.
        self.fair.state().waiting.retain(|waiter| waiter.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::stream::{FuturesUnordered, StreamExt};

    fn flow(repo: usize, client: usize) -> Flow {
        Flow { repo, client }
    }

    /// Has `flows` wait for the one place, which each gives on at once; the order in which they had it.
    async fn order(flows: &[Flow]) -> Vec<Flow> {
        let fair = Fair::new(1);
        let first = fair.place(flow(900, 900)).await;
        let mut all: FuturesUnordered<_> = flows
            .iter()
            .map(|&flow| {
                let fair = Arc::clone(&fair);
                async move {
                    drop(fair.place(flow).await);
                    flow
                }
            })
            .collect();
        assert!(all.next().now_or_never().is_none(), "the place is taken");
        drop(first);
        let mut order = Vec::new();
        while let Some(flow) = all.next().await {
            order.push(flow);
        }
        order
    }

    #[tokio::test]
    async fn a_crowd_of_one_repository_keeps_no_other_waiting() {
        let mut flows: Vec<Flow> = (0..50).map(|client| flow(1, client)).collect();
        flows.push(flow(2, 99));
        let order = order(&flows).await;
        let at = order.iter().position(|served| *served == flow(2, 99)).unwrap();
        assert!(at <= 1, "served after {at} of the crowd");
        let crowd: Vec<Flow> = order.into_iter().filter(|served| served.repo == 1).collect();
        assert_eq!(crowd, flows[..50], "among equals in the order of asking");
    }

    #[tokio::test]
    async fn one_client_of_many_repositories_keeps_no_other_waiting() {
        let mut flows: Vec<Flow> = (0..50).map(|repo| flow(repo, 1)).collect();
        flows.push(flow(99, 2));
        let order = order(&flows).await;
        let at = order.iter().position(|served| *served == flow(99, 2)).unwrap();
        assert!(at <= 1, "served after {at} of the crowd");
    }

    #[tokio::test]
    async fn clients_of_one_repository_take_turns() {
        let flows = [flow(1, 1), flow(1, 1), flow(1, 1), flow(1, 2)];
        assert_eq!(order(&flows).await, [flow(1, 1), flow(1, 2), flow(1, 1), flow(1, 1)]);
    }

    #[tokio::test]
    async fn who_stops_waiting_loses_no_place() {
        let fair = Fair::new(1);
        let first = fair.place(flow(1, 1)).await;
        // One stops before the place is sent, one after it.
        let mut before = Box::pin(fair.place(flow(2, 2)));
        assert!((&mut before).now_or_never().is_none());
        drop(before);
        assert!(fair.state().waiting.is_empty());
        let mut after = Box::pin(fair.place(flow(2, 2)));
        assert!((&mut after).now_or_never().is_none());
        drop(first);
        drop(after);
        assert_eq!(fair.state().free, 1);
        let _again = fair.place(flow(1, 1)).now_or_never().unwrap();
        assert_eq!(fair.state().free, 0);
    }

    #[test]
    fn a_client_is_a_network_of_ipv6() {
        let of = |address: &str| Flow::of(&"team/app.git", address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        let many = (0..100).map(|n| of(&format!("192.0.2.{n}")).client);
        assert!(many.collect::<std::collections::HashSet<_>>().len() > 50);
    }
}
