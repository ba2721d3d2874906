//! Bounds that a target holds its jobs to: bytes that are taken at a time, and steps on a meter.
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::pack::meter::{Halt, Meter};

/// The system's allocator, with a count of what is taken and the most there was.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// Safety: all is done by the system's allocator; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(taken, Relaxed);
        // Safety: the caller's layout, as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Relaxed);
        // Safety: the block came from `alloc` with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Runs `job`, which may take no more than `bytes` at any time.
pub fn within<T>(bytes: usize, job: impl FnOnce() -> T) -> T {
    let before = TAKEN.load(Relaxed);
    MOST.store(before, Relaxed);
    let result = job();
    let took = MOST.load(Relaxed) - before;
    assert!(took <= bytes, "{took} bytes were taken, and {bytes} are enough");
    result
}

/// So many steps and bytes, and no more. What is held must be given back.
pub struct Allowed {
    steps: AtomicU64,
    bytes: AtomicU64,
}

impl Allowed {
    pub fn new(steps: u64, bytes: u64) -> Self {
        Self { steps: steps.into(), bytes: bytes.into() }
    }

    /// Steps that are left.
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Bytes that are left.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Meter for Allowed {
    fn step(&self, n: u64) -> Result<(), Halt> {
        let left = self.steps.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(n));
        left.map(|_| ()).map_err(|_| Halt::TooLong { most: 0 })
    }

    fn hold(&self, bytes: u64) -> Result<(), Halt> {
        let left = self.bytes.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes));
        left.map(|_| ()).map_err(|most| Halt::TooMuch { bytes, most, setting: "none" })
    }

    fn release(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }
}
