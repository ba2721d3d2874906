//! Single flight: however many ask for the same thing, it is fetched once.
//!
//! The first caller for a key gets a [`Lead`] and does the work, usually in a task of its own, so that a caller that goes
//! away does not stop it for the others. If a lead is dropped unfinished, those who wait are told to ask again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

type Slot<V> = watch::Receiver<Option<V>>;

/// What is being fetched right now.
pub(super) struct Flights<K, V> {
    running: Arc<Mutex<HashMap<K, Slot<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

/// Held by the caller that fetches for all. [`Lead::finish`] gives the others the value; dropping it tells them to ask again.
pub(super) struct Lead<K: Hash + Eq, V> {
    running: Arc<Mutex<HashMap<K, Slot<V>>>>,
    key: Option<K>,
    tell: watch::Sender<Option<V>>,
}

/// Waits for the value from the holder of the [`Lead`].
pub(super) struct Wait<V>(Slot<V>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl<K: Hash + Eq + Clone, V: Clone> Flights<K, V> {
    /// Joins the flight for `key`. The caller gets a lead if nobody else has it, and then has to fetch.
    pub(super) fn join(&self, key: &K) -> (Option<Lead<K, V>>, Wait<V>) {
        let mut running = lock(&self.running);
        if let Some(slot) = running.get(key) {
            return (None, Wait(slot.clone()));
        }
        let (tell, slot) = watch::channel(None);
        running.insert(key.clone(), slot.clone());
        (Some(Lead { running: self.running.clone(), key: Some(key.clone()), tell }), Wait(slot))
    }

    /// Takes the lead for `key`, unless another caller has it.
    pub(super) fn claim(&self, key: &K) -> Option<Lead<K, V>> {
        self.join(key).0
    }
}

impl<K: Hash + Eq, V> Lead<K, V> {
    /// Gives the value to all who wait. From now on `key` can be asked for anew.
    pub(super) fn finish(mut self, value: V) {
        self.land();
        self.tell.send_replace(Some(value));
    }

    fn land(&mut self) {
        if let Some(key) = self.key.take() {
            lock(&self.running).remove(&key);
        }
    }
}

impl<K: Hash + Eq, V> Drop for Lead<K, V> {
    fn drop(&mut self) {
        self.land();
    }
}

impl<V: Clone> Wait<V> {
    /// The value; none if the flight was given up.
    pub(super) async fn value(mut self) -> Option<V> {
        let told = self.0.wait_for(Option::is_some).await.ok()?;
        told.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_flies_and_all_are_told() {
        let flights = Flights::<u32, String>::default();
        let (lead, first) = flights.join(&1);
        let (none, second) = flights.join(&1);
        assert!(none.is_none());
        assert!(flights.join(&2).0.is_some(), "another key flies by itself");
        lead.unwrap().finish("landed".into());
        assert_eq!(first.value().await.as_deref(), Some("landed"));
        assert_eq!(second.value().await.as_deref(), Some("landed"));
        assert!(flights.claim(&1).is_some(), "then anew");
    }

    #[tokio::test]
    async fn a_flight_given_up_sends_the_waiting_back() {
        let flights = Flights::<u32, String>::default();
        let (lead, wait) = flights.join(&1);
        drop(lead);
        assert_eq!(wait.value().await, None);
        assert!(flights.claim(&1).is_some());
    }
}
