//! What a job may cost: steps of work, bytes held in memory, and whether anybody still waits for it.
//!
//! Every job here whose work grows with what a client, a repository or a bucket brings takes a [`Meter`] and ends with
//! [`Halt`] when it is told to. The pure code only counts; the caller, who made the meter, decides.
//! Elsewhere: the budgets behind it (`budget`), the meter of a fetch (`answer`), of a sync (`work`).

/// Counts what one job does and says when it has to end.
pub trait Meter: Sync {
    /// Counts `n` steps, each about what reading one entry of a tree costs.
    fn step(&self, n: u64) -> Result<(), Halt>;

    /// Asks for room for `bytes` more; they count until they are given back with [`Meter::release`] or the job ends.
    fn hold(&self, bytes: u64) -> Result<(), Halt>;

    /// Gives back room that [`Meter::hold`] gave.
    fn release(&self, bytes: u64);

    /// Hears now and then how much of a long job is done, and of how much.
    fn tell(&self, _done: u64, _total: u64) {}
}

/// Why a job has to end early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// Nobody waits for the result any more, or the node stops.
    #[error("stopped: nobody waits for it")]
    Stopped,
    /// More steps than one job may take; another try would end the same way.
    #[error("it takes more than {most} steps of work")]
    TooLong {
        /// Steps allowed.
        most: u64,
    },
    /// More memory than one job may hold; another try would end the same way.
    #[error("it needs {bytes} bytes of memory at once, and {most} are allowed ({setting})")]
    TooMuch {
        /// Bytes that would be held.
        bytes: u64,
        /// Bytes allowed.
        most: u64,
        /// The setting to raise.
        setting: &'static str,
    },
    /// Others hold the memory at the moment; a later try may succeed.
    #[error("no memory is free for it at the moment")]
    Busy,
}

/// Bytes held on a meter, given back when dropped.
pub struct Held<'m> {
    meter: &'m dyn Meter,
    bytes: u64,
}

impl<'m> Held<'m> {
    /// Takes room for `bytes`.
    pub fn new(meter: &'m dyn Meter, bytes: u64) -> Result<Self, Halt> {
        meter.hold(bytes)?;
        Ok(Self { meter, bytes })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.meter.release(self.bytes);
    }
}

/// Room that grows with a list, asked for in large pieces and given back when dropped.
pub struct Growing<'m> {
    held: Held<'m>,
    used: u64,
}

impl<'m> Growing<'m> {
    /// The least that is asked for at once.
    const PIECE: u64 = 64 * 1024;

    /// Takes room for `bytes` to begin with.
    pub fn new(meter: &'m dyn Meter, bytes: u64) -> Result<Self, Halt> {
        Ok(Self { held: Held::new(meter, bytes)?, used: bytes })
    }

    /// Takes room for `bytes` more.
    pub fn more(&mut self, bytes: u64) -> Result<(), Halt> {
        self.used = self.used.saturating_add(bytes);
        if self.used > self.held.bytes {
            // Lists double when they grow.
            let piece = (self.used - self.held.bytes).max(Self::PIECE).max(self.held.bytes / 8);
            self.held.meter.hold(piece)?;
            self.held.bytes += piece;
        }
        Ok(())
    }

    /// Says that `bytes` of it are not used any more; what follows uses them.
    pub fn less(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }
}

/// A meter that allows everything: for tests, benches and what is bounded by other means.
pub struct Unlimited;

impl Meter for Unlimited {
    fn step(&self, _: u64) -> Result<(), Halt> {
        Ok(())
    }

    fn hold(&self, _: u64) -> Result<(), Halt> {
        Ok(())
    }

    fn release(&self, _: u64) {}
}
