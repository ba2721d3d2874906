//! A pack to be read: the bytes of a plan as a stream, for whoever takes in packs.
//!
//! Elsewhere: the steps (`send`), the same into a file (`write`).
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::send::{Sender, Step};
use super::{CHUNK, WriteError};
use crate::pack::layer::encode::{self, Effort};
use crate::pack::meter::Meter;
use crate::pack::plan::Plan;
use crate::pack::{Scratch, Source, Stack};

/// The pack that a plan describes, made while it is read, to be stored.
pub struct PackReader<'a> {
    sender: Sender,
    stack: &'a Stack,
    source: &'a dyn Source,
    scratch: Scratch,
    meter: &'a dyn Meter,
    ready: Bytes,
    is_done: bool,
}

impl<'a> PackReader<'a> {
    /// Begins at the pack's first byte. What is packed anew, and each chunk that is read, counts on `meter`.
    pub fn new(
        plan: Arc<Plan>,
        stack: &'a Stack,
        source: &'a dyn Source,
        scratch: Scratch,
        meter: &'a dyn Meter,
    ) -> Self {
        let sender = Sender::new(plan, CHUNK);
        Self { sender, stack, source, scratch, meter, ready: Bytes::new(), is_done: false }
    }

    fn advance(&mut self) -> Result<(), WriteError> {
        self.meter.step(1).map_err(crate::pack::DecodeError::Halt)?;
        match self.sender.step()? {
            Step::Bytes(bytes) => self.ready = bytes,
            Step::NeedRange { layer, range } => {
                self.sender.feed(self.source.read(layer as usize, range).map_err(WriteError::Read)?)?;
            }
            Step::NeedAnew { gid, join } => {
                let plan = Arc::clone(self.sender.plan());
                let (path, scratch) = (plan.path(join), &mut self.scratch);
                let entry =
                    encode::anew(self.stack, self.source, gid, path, Effort::Stored, scratch, self.meter)?;
                self.sender.feed(entry.into())?;
            }
            Step::Done(_) => self.is_done = true,
        }
        Ok(())
    }
}

impl BufRead for PackReader<'_> {
    /// An error of the plan or the source is wrapped as it is: [`WriteError`].
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.ready.is_empty() && !self.is_done {
            self.advance().map_err(io::Error::other)?;
        }
        Ok(&self.ready)
    }

    fn consume(&mut self, n: usize) {
        self.ready.advance(n.min(self.ready.len()));
    }
}

impl Read for PackReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(into.len());
        into[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}
