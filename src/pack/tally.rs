//! Many small things held on a meter, which is asked for them in large pieces.
//!
//! Elsewhere: the meter itself ([`super::meter`]).
use super::meter::{Halt, Held, Meter};

/// Bytes that are asked for at once.
const PIECE: u64 = 64 << 10;

/// Memory that grows in small steps and is given back all at once, when this is dropped.
pub struct Tally<'m> {
    meter: &'m dyn Meter,
    held: Vec<Held<'m>>,
    /// Not asked for yet.
    owed: u64,
}

impl<'m> Tally<'m> {
    /// Starts with nothing.
    pub fn new(meter: &'m dyn Meter) -> Self {
        Self { meter, held: Vec::new(), owed: 0 }
    }

    /// Counts `bytes` more.
    pub fn add(&mut self, bytes: u64) -> Result<(), Halt> {
        self.owed += bytes;
        if self.owed >= PIECE {
            self.held.push(Held::new(self.meter, std::mem::take(&mut self.owed))?);
        }
        Ok(())
    }
}
