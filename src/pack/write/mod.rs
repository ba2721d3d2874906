//! Writing a pack: its bytes step by step ([`send`](mod@send)), the blocking loop around that, and the same to be read ([`reader`]).
//!
//! The loop is for files, and the reference for the async loop of the server.
//! Elsewhere: what the pack holds (`plan`).
pub mod reader;
pub mod send;

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::layer::encode::{self, Effort};
use super::meter::Meter;
use super::plan::Plan;
use super::{DecodeError, Scratch, Source, Stack};
use send::{SendError, Sender, Step, Written};

/// How much of a pack is read at once.
pub const CHUNK: u64 = 1 << 20;

/// A pack could not be written; what was written so far is no pack.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A stored pack could not be read; may work later, as the source says.
    #[error("cannot read a stored pack")]
    Read(#[source] io::Error),
    /// An object could not be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The receiver is gone or full.
    #[error("cannot write the pack")]
    Write(#[source] io::Error),
    /// A stored pack gave other bytes than it should.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// Writes the pack that `plan` describes to `out`; what is packed anew counts on `meter`.
pub fn write(
    plan: &Arc<Plan>,
    stack: &Stack,
    source: &dyn Source,
    scratch: &mut Scratch,
    meter: &dyn Meter,
    out: &mut dyn io::Write,
) -> Result<Written, WriteError> {
    let mut sender = Sender::new(plan.clone(), CHUNK);
    loop {
        match sender.step()? {
            Step::Bytes(bytes) => out.write_all(&bytes).map_err(WriteError::Write)?,
            Step::NeedRange { layer, range } => {
                sender.feed(source.read(layer as usize, range).map_err(WriteError::Read)?)?;
            }
            Step::NeedAnew { gid, join } => {
                let path = plan.path(join);
                sender.feed(Bytes::from(encode::anew(
                    stack,
                    source,
                    gid,
                    path,
                    Effort::Awaited,
                    scratch,
                    meter,
                )?))?;
            }
            Step::Done(written) => return Ok(written),
        }
    }
}
