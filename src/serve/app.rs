//! What every request handler shares.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::Semaphore;

use crate::answer::Answers;
use crate::budget::Budget;
use crate::config::{Freshness, Limits, OnPrimaryDown, OtherPaths, Settings, Unselected};
use crate::fair::{Fair, Flow};
use crate::mirror::Mirror;
use crate::primary::Grants;
use crate::serve::drain::Stop;
use crate::telemetry::metrics::{self as names, Recorder};

/// So many requests at a time that found no place here may be passed to the primary. A crowd that is too large for a node with
/// everything at hand is no crowd for the primary.
const MOST_OVERFLOW: usize = 8;

/// A node, as its handlers see it. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// How clients are served.
    pub terms: Arc<Terms>,
    /// The repositories.
    pub mirror: Arc<Mirror>,
    /// Who may read, as the primary says.
    pub grants: Grants,
    /// False before the store was probed.
    pub ready: Arc<AtomicBool>,
    /// How the node is asked to end.
    pub stop: Stop,
    /// The metrics.
    pub recorder: Arc<Recorder>,
    /// What decides about fetches.
    pub answers: Answers,
    /// How much may be held for clients.
    pub memory: Memory,
    /// Where pieces of packs are filled.
    pub filling: Filling,
    /// For whom it works: requests of one client for one repository take turns with others.
    pub flow: Flow,
    /// For what this node has no place for: so much of it may be with the primary.
    pub overflow: Arc<Semaphore>,
    /// How much that is not Git may be under way: it may last as long as a client wants, and must leave room for Git.
    pub others: Arc<Semaphore>,
}

impl App {
    /// A node that is not ready yet.
    pub fn new(
        settings: &Settings,
        mirror: Arc<Mirror>,
        grants: Grants,
        recorder: Arc<Recorder>,
        stop: Stop,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let memory = Memory::new(settings.limits.memory);
        let (readers, work) = (memory.readers.clone(), memory.work.clone());
        let answers = Answers::new(Arc::clone(&mirror), settings, cores, readers, work);
        Self {
            terms: Arc::new(Terms::of(settings)),
            mirror,
            grants,
            recorder,
            answers,
            ready: Arc::default(),
            stop,
            memory,
            filling: Filling::new(cores),
            flow: Flow::default(),
            overflow: Arc::new(Semaphore::new(MOST_OVERFLOW)),
            others: Arc::new(Semaphore::new((settings.limits.connections / 2).max(1))),
        }
    }

    /// The same node for the requests of one client for one repository.
    #[must_use]
    pub fn in_turns_of(&self, flow: Flow) -> Self {
        Self { flow, answers: self.answers.in_turns_of(flow), ..self.clone() }
    }
}

/// How clients are served: what the settings say of it.
#[derive(Debug)]
pub struct Terms {
    /// Whether each answer asks the primary.
    pub freshness: Freshness,
    /// How old the last comparison may be in bounded mode.
    pub max_age: Duration,
    /// What happens while the primary does not answer.
    pub on_primary_down: OnPrimaryDown,
    /// What happens to a repository that is not selected.
    pub unselected: Unselected,
    /// What happens to what is not Git.
    pub other_paths: OtherPaths,
    /// Proxies in front whose word about clients counts.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether clients' listener answers `/metrics`: where no other one does.
    pub public_metrics: bool,
    /// Bounds of requests and connections.
    pub limits: Limits,
}

impl Terms {
    fn of(settings: &Settings) -> Self {
        Self {
            freshness: settings.freshness,
            max_age: settings.max_age,
            on_primary_down: settings.on_primary_down,
            unselected: settings.unselected,
            other_paths: settings.other_paths,
            trusted_proxies: settings.trusted_proxies(),
            public_metrics: settings.admin_listen.is_none(),
            limits: settings.limits.clone(),
        }
    }
}

/// How many pieces of packs are filled at the same time. Who waits gets a place by turns of clients and repositories.
#[derive(Clone, Debug)]
pub struct Filling {
    /// For packs that are copied: they wait for nothing but the disk.
    pub copying: Arc<Fair>,
    /// For packs with objects packed anew, which may wait for memory.
    pub packing: Arc<Fair>,
    /// For streams that begin: one at a time waits for memory.
    pub door: Arc<Fair>,
}

impl Filling {
    /// Places for a machine with so many cores.
    pub fn new(cores: usize) -> Self {
        Self { copying: Fair::new((2 * cores).max(4)), packing: Fair::new(cores.max(2)), door: Fair::new(1) }
    }
}

/// The memory for clients, in shares, so that none of them is taken by what belongs to another.
#[derive(Clone, Debug)]
pub struct Memory {
    /// For those whom the primary has not said yes to: the beginnings of their requests.
    pub strangers: Budget,
    /// For requests of those who may read, plans, and streams on their way: may be held as long as a client takes.
    pub readers: Budget,
    /// For jobs that compute: walks, and objects packed anew. Nothing of it is held while a client is waited for.
    pub work: Budget,
}

impl Memory {
    /// Divides `most` bytes.
    pub fn new(most: u64) -> Self {
        let share = |eighths| Budget::new(most / 8 * eighths, "limits.memory");
        Self { strangers: share(1), readers: share(4), work: share(3) }
    }

    /// Sets the gauges of what is held.
    pub fn measure(&self) {
        let shares = [("strangers", &self.strangers), ("readers", &self.readers), ("work", &self.work)];
        for (name, share) in shares {
            let held = share.most().saturating_sub(share.free());
            metrics::gauge!(names::MEMORY_HELD, "share" => name).set(held as f64);
        }
    }
}
