//! The stream of one `packfile` section, made piece by piece as its client takes them.
//!
//! A task per stream waits: for the client, for blocks of the bucket, for a place to work. A thread and a place are taken
//! only while one piece is filled. So a client that reads slowly holds two small pieces and nothing that others need, and
//! many that want much share the processor piece by piece, in turns (`fair`). While a stream has nothing to
//! send it sends keep-alive packets.
//!
//! Relies on: a plan, whose first bytes are at hand (`fetch`). Elsewhere: framing (`frame`), what one stream may hold
//! (`holding`).

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::answer::meter::JobMeter;
use crate::budget::{Budget, Room};
use crate::fair::{Fair, Flow};
use crate::local::Local;
use crate::mirror::answers::Answer;
use crate::mirror::blocks::Reader;
use crate::mirror::snapshot::Granted;
use crate::pack::layer::encode::{self, Effort};
use crate::pack::write::WriteError;
use crate::pack::write::send::Written;
use crate::pack::{DecodeError, Scratch, Sender, Source, Step};
use crate::serve::frame::{Frame, Framing};
use crate::serve::holding::Holding;
use crate::store::StoreError;
use crate::text::chain;

/// A stream that has been silent for so long says that it is alive (git's `uploadpack.keepAlive` has the same).
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// An empty packet on band 1: clients skip it (pack-protocol: keep-alive).
const EMPTY_BAND: &[u8] = b"0005\x01";
/// A client that takes nothing for so long is slow: what only makes the next piece quicker is given back.
const SLOW: Duration = Duration::from_secs(1);
/// An entry packed anew that is larger than this waits for its client in a file.
const ASIDE: usize = 128 << 10;
/// The most bytes of a stored pack that are read at once.
pub const CHUNK: u64 = 64 << 10;
/// How far a stream that has to wait for the bucket looks ahead, in bytes of stored packs.
const AHEAD: u64 = 16 << 20;
/// The same in pieces of the plan.
const MOST_AHEAD: usize = 4096;
/// The largest object that is packed anew in memory.
const LARGEST_OBJECT: u64 = 4 << 30;

/// A pack on its way out, between two pieces.
pub struct Outgoing {
    /// What has been laid out; begins with what stands before the pack.
    pub frame: Frame,
    sender: Sender,
    /// Bytes of the pack that did not fit into the last piece.
    rest: Bytes,
    granted: Granted,
    reader: Reader,
    scratch: Scratch,
    meter: JobMeter,
    aside: Aside,
}

/// Where large entries wait for their client.
struct Aside {
    local: Local,
    memory: Budget,
    /// Pays for one that the disk did not take.
    paid: Option<Room>,
}

/// Why a piece was handed back.
enum Filled {
    /// It is full.
    Piece,
    /// The pack is at its end.
    Done(Written),
    /// It cannot go on without this block.
    Absent((usize, u64)),
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// The client has left, or takes nothing any more.
    #[error("the client has gone")]
    Gone,
    /// The pack cannot be laid out.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It took longer than a stream may.
    #[error("it took longer than limits.transfer allows")]
    TooLong,
    /// What it sends was purged.
    #[error("it was purged")]
    Purged,
    /// A block cannot be read.
    #[error("cannot read a stored pack")]
    Store(#[from] StoreError),
    /// The job that filled a piece panicked.
    #[error("a job ended by itself")]
    Job(#[from] tokio::task::JoinError),
}

impl Outgoing {
    /// Begins to send, also out of an answer that was made before; `frame` holds what stands before the pack. Objects packed anew count on `meter`.
    pub fn new(
        frame: Frame,
        sender: Sender,
        granted: Granted,
        answer: Option<Arc<Answer>>,
        meter: JobMeter,
        local: Local,
        memory: Budget,
    ) -> Self {
        let reader = granted.source().with_answer(answer).streaming();
        let scratch = Scratch::new(0, LARGEST_OBJECT);
        Self {
            frame,
            sender,
            rest: Bytes::new(),
            granted,
            reader,
            scratch,
            meter,
            aside: Aside { local, memory, paid: None },
        }
    }

    /// Fills the piece up to about `most` bytes. For blocking threads; waits for nothing but this node's disk, and for
    /// memory if a large object is to be packed anew.
    fn fill(&mut self, most: usize) -> Result<Filled, WriteError> {
        loop {
            if !self.rest.is_empty() {
                let room = most.saturating_sub(self.frame.len()).max(1);
                let now = self.rest.split_to(self.rest.len().min(room));
                self.frame.pack(&now);
            }
            if self.frame.len() >= most {
                return Ok(Filled::Piece);
            }
            match self.sender.step()? {
                Step::Bytes(bytes) => {
                    self.reader.step_done();
                    self.rest = bytes;
                }
                Step::NeedRange { layer, range } => match self.reader.read(layer as usize, range) {
                    Ok(bytes) => self.sender.feed(bytes)?,
                    Err(error) => return self.absent().ok_or(WriteError::Read(error)),
                },
                Step::NeedAnew { gid, join } => match self.anew(gid, join) {
                    Ok(entry) => self.sender.feed(entry)?,
                    Err(error) => return self.absent().ok_or(WriteError::Decode(error)),
                },
                Step::Done(written) => return Ok(Filled::Done(written)),
            }
        }
    }

    /// What to wait for, if the last read failed for that reason. What comes behind it, in whatever pack, is fetched
    /// meanwhile: where one block is not here, its neighbours in the answer are often not here either.
    fn absent(&self) -> Option<Filled> {
        let absent = self.reader.absent()?;
        let stack = &self.granted.stack;
        let stored = |gid| {
            let entry = stack.entry(gid);
            (entry.layer as u32, entry.offset..entry.end)
        };
        self.reader.ahead(self.sender.upcoming(AHEAD, stored).take(MOST_AHEAD));
        Some(Filled::Absent(absent))
    }

    fn anew(&mut self, gid: u32, join: Option<u32>) -> Result<Bytes, DecodeError> {
        let plan = Arc::clone(self.sender.plan());
        let stack = &self.granted.stack;
        let (path, scratch) = (plan.path(join), &mut self.scratch);
        let entry = encode::anew(stack, &self.reader, gid, path, Effort::Awaited, scratch, &self.meter)?;
        if entry.len() <= ASIDE {
            return Ok(entry.into());
        }
        let aside = &mut self.aside;
        if let Ok(mapped) = aside.local.set_aside(&entry) {
            return Ok(mapped);
        }
        // A disk that takes nothing is no reason to fail while there is memory.
        aside.paid = Some(aside.memory.try_take(entry.len() as u64)?);
        Ok(entry.into())
    }

    /// Gives back what only makes the next piece quicker.
    fn idle(&mut self) {
        self.scratch = Scratch::new(0, LARGEST_OBJECT);
        self.reader.rest();
    }
}

/// Sends a pack to its end. `ended` is told how it went, unless the client left.
///
/// `places` are taken while a piece is filled, in turns of the `flow`s that want one; a client that takes nothing for `patience` is cut off, and so is one that takes
/// longer than `longest` for all; `stop` is cancelled when the client has left.
pub fn stream(
    out: Outgoing,
    held: Holding,
    (places, flow): (Arc<Fair>, Flow),
    (patience, longest): (Duration, Duration),
    stop: CancellationToken,
    ended: impl FnOnce(Result<Sent, &Cut>) + Send + 'static,
) -> Body {
    let framing = out.frame.framing();
    let (pieces, queue) = mpsc::channel(1);
    // Dropped with the body, which is dropped when the client leaves.
    let left = stop.drop_guard();
    let mut run = Run { pieces, held, places, flow, patience };
    // What is still on its way when the last piece is made is paid for until the client has it.
    let last = Arc::new(OnceLock::new());
    let paid = Arc::clone(&last);
    tokio::spawn(async move {
        let begun = Instant::now();
        let sent = match tokio::time::timeout(longest, run.all(Box::new(out))).await {
            Ok(sent) => sent,
            Err(_) => {
                tracing::warn!(?longest, "a stream took longer than limits.transfer allows and was cut off");
                let failed = io::Error::other("the stream took too long");
                let _ = run.pieces.send_timeout(Err(failed), patience).await;
                Err(Cut::TooLong)
            }
        };
        let _ = paid.set(run.held);
        match &sent {
            Ok(written) => ended(Ok(Sent { written: *written, took: begun.elapsed() })),
            Err(Cut::Gone) => {}
            Err(cut) => ended(Err(cut)),
        }
    });
    Body::from_stream(alive(queue, framing).inspect(move |_| _ = (&left, &last)))
}

/// A pack that was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// What was sent.
    pub written: Written,
    /// How long it took.
    pub took: Duration,
}

/// What a stream needs to run.
struct Run {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    held: Holding,
    places: Arc<Fair>,
    flow: Flow,
    patience: Duration,
}

impl Run {
    /// Sends everything, and tells the client if that fails.
    async fn all(&mut self, out: Box<Outgoing>) -> Result<Written, Cut> {
        let framing = out.frame.framing();
        let source = out.granted.source().clone();
        let sent = tokio::select! {
            // A stream whose last piece is out already has ended well.
            biased;
            sent = self.pack(out) => sent,
            () = source.until_revoked() => Err(Cut::Purged),
        };
        if let Err(cut @ (Cut::Write(_) | Cut::Store(_) | Cut::Job(_) | Cut::Purged)) = &sent {
            if matches!(cut, Cut::Purged) {
                tracing::info!("a pack that was purged is not sent to its end; the client was told");
            } else {
                tracing::error!(
                    error = chain(cut),
                    "a pack could not be sent to its end; the client was told"
                );
            }
            let mut frame = Frame::new(framing);
            frame.fatal("packmirror: the pack could not be read to its end; try again\n");
            if !frame.is_empty() {
                let _ = self.pieces.send_timeout(Ok(frame.take()), self.patience).await;
            }
            // The missing last chunk is what tells clients without a side band.
            let failed = io::Error::other("the pack is not whole");
            let _ = self.pieces.send_timeout(Err(failed), self.patience).await;
        }
        sent
    }

    async fn pack(&mut self, mut out: Box<Outgoing>) -> Result<Written, Cut> {
        // What stands before the pack goes at once: from then on the client can be told that its pack is being made.
        self.hand_over(&mut out).await?;
        loop {
            self.client(&mut out).await?;
            let filled;
            (out, filled) = self.fill(out).await?;
            let written = match filled? {
                Filled::Piece => None,
                Filled::Done(written) => Some(written),
                Filled::Absent(block) => {
                    self.unless_gone(out.reader.fetch(block)).await??;
                    continue;
                }
            };
            if written.is_some() {
                out.frame.end();
            }
            self.hand_over(&mut out).await?;
            if let Some(written) = written {
                return Ok(written);
            }
        }
    }

    /// Gives the client what is there.
    async fn hand_over(&self, out: &mut Outgoing) -> Result<(), Cut> {
        if out.frame.is_empty() {
            return Ok(());
        }
        self.pieces.send(Ok(out.frame.take())).await.map_err(|_| Cut::Gone)
    }

    /// Waits until the client has begun to take the last piece.
    async fn client(&mut self, out: &mut Outgoing) -> Result<(), Cut> {
        if tokio::time::timeout(SLOW, self.pieces.reserve()).await.map(|room| room.is_ok()) == Ok(true) {
            if let Some(cache) = self.held.quick() {
                out.scratch = Scratch::new(cache, LARGEST_OBJECT);
            }
            return Ok(());
        }
        out.idle();
        self.held.slow();
        let waited = tokio::time::timeout(self.patience.saturating_sub(SLOW), self.pieces.reserve()).await;
        // A client that takes nothing for so long has gone without saying so.
        waited.map_err(|_| Cut::Gone)?.map(drop).map_err(|_| Cut::Gone)
    }

    /// Fills a piece on a thread, in its turn.
    async fn fill(
        &mut self,
        mut out: Box<Outgoing>,
    ) -> Result<(Box<Outgoing>, Result<Filled, WriteError>), Cut> {
        let place = self.unless_gone(self.places.place(self.flow)).await?;
        let most = self.held.piece();
        // Made on the async threads, where it ends as well: each of the many threads for jobs would keep room for pieces.
        out.frame.reserve(most);
        let job = crate::threads::spawn_blocking(move || {
            let _place = place;
            let filled = out.fill(most);
            (out, filled)
        });
        Ok(job.await?)
    }

    /// Waits for `work`, or for the client to leave.
    async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Result<T, Cut> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.pieces.closed() => Err(Cut::Gone),
        }
    }
}

/// The pieces, with keep-alive packets where nothing came for a while.
fn alive(
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    framing: Framing,
) -> impl Stream<Item = io::Result<Bytes>> {
    futures::stream::unfold((pieces, false), move |(mut pieces, begun)| async move {
        loop {
            match tokio::time::timeout(KEEP_ALIVE, pieces.recv()).await {
                Ok(piece) => return piece.map(|piece| (piece, (pieces, true))),
                // Before the first piece no section is open yet, and a bare pack has no room for other bytes.
                Err(_) if begun && framing != Framing::Bare => {
                    return Some((Ok(Bytes::from_static(EMPTY_BAND)), (pieces, begun)));
                }
                Err(_) => {}
            }
        }
    })
}

/// A body that keeps its room until it is sent.
pub fn holding(bytes: Vec<u8>, room: Room) -> Body {
    let once = futures::stream::once(async move { Ok::<_, Infallible>(Bytes::from(bytes)) });
    Body::from_stream(once.inspect(move |_| _ = &room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_keep_alives() {
        let (queue, pieces) = mpsc::channel(1);
        queue.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        let mut stream = Box::pin(alive(pieces, Framing::Band(999)));
        assert_eq!(stream.next().await.unwrap().unwrap(), "x");
        assert_eq!(stream.next().await.unwrap().unwrap(), EMPTY_BAND);
        drop(queue);
        assert!(stream.next().await.is_none());
    }
}
