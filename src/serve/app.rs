//! What every request handler shares.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Semaphore;

use crate::answer::Answers;
use crate::budget::Budget;
use crate::mirror::Mirror;
use crate::primary::Grants;
use crate::telemetry::metrics::Recorder;

/// A node, as its handlers see it. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The repositories.
    pub mirror: Arc<Mirror>,
    /// Who may read, as the primary says.
    pub grants: Grants,
    /// False before the store was probed and while draining.
    pub ready: Arc<AtomicBool>,
    /// The metrics.
    pub recorder: Arc<Recorder>,
    /// What decides about fetches.
    pub answers: Answers,
    /// How much may be held for clients.
    pub memory: Memory,
    /// Where pieces of packs are filled.
    pub filling: Filling,
}

impl App {
    /// A node that is not ready yet.
    pub fn new(mirror: Arc<Mirror>, grants: Grants, recorder: Arc<Recorder>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let memory = Memory::new(mirror.settings.limits.memory);
        let answers = Answers::new(Arc::clone(&mirror), cores, memory.readers.clone(), memory.work.clone());
        Self {
            mirror,
            grants,
            recorder,
            answers,
            ready: Arc::default(),
            memory,
            filling: Filling::new(cores),
        }
    }
}

/// How many pieces of packs are filled at the same time. Who waits gets a place in the order of asking.
#[derive(Clone, Debug)]
pub struct Filling {
    /// For packs that are copied: they wait for nothing but the disk.
    pub copying: Arc<Semaphore>,
    /// For packs with objects packed anew, which may wait for memory.
    pub packing: Arc<Semaphore>,
}

impl Filling {
    /// Places for a machine with so many cores.
    pub fn new(cores: usize) -> Self {
        let places = |n: usize| Arc::new(Semaphore::new(n));
        Self { copying: places((2 * cores).max(4)), packing: places(cores.max(2)) }
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
}
