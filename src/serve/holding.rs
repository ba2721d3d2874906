//! What one stream holds of the memory for readers: little while its client is slow, more where that makes it quicker.
//!
//! A piece is in work or waits in the stream, and hyper takes further ones while it holds less than
//! [`BUFFER`](super::listen::BUFFER): the room of a stream covers both.

use std::sync::Arc;

use crate::answer::turns::LONGEST_QUEUE;
use crate::budget::{Budget, Room};
use crate::fair::{Fair, Flow};
use crate::serve::error::Failure;

/// What is handed over at a time to a client that is slow.
const SLOW_PIECE: usize = 16 << 10;
/// A client that was slow has taken so many bytes without a pause before it is no longer: more than waits in its socket.
const RECOVERED: u64 = 1 << 20;
/// What is handed over at a time at first.
const SMALL_PIECE: usize = 64 << 10;
/// The same for a client that takes pieces as they come: four full side-band packets.
const PIECE: usize = 256 << 10;
/// A client has taken so many bytes before it counts as quick: what lies between it and us takes a few million at once.
const PROVEN: u64 = 8 << 20;
/// Room for a stream itself, what hyper holds, and two pieces for a client that is slow.
const SLOW: u64 = 112 << 10;
/// The same with small pieces.
const LEAST: u64 = 208 << 10;
/// The same with large ones.
const MOST: u64 = 640 << 10;
/// Decoded objects that a stream keeps, for what it packs anew, and how many eighths of the budget must be free for it. Only
/// the first few streams get much: the others' least must always fit beside it.
const CACHES: [(usize, u64); 2] = [(16 << 20, 6), (2 << 20, 5)];

/// The room of one stream.
#[derive(Debug)]
pub struct Holding {
    room: Room,
    readers: Budget,
    packs_anew: bool,
    cache: usize,
    piece: usize,
    /// Bytes taken since the client was slow last.
    taken: u64,
    /// So many pieces more may still be larger ones on their way to a client that became slow.
    draining: u8,
}

impl Holding {
    /// Waits for the least that a stream begins with, but not for ever. Those who wait pass through `door` one by one, in turns of
    /// their `flow`s.
    pub async fn begin(
        readers: &Budget,
        (door, flow): (&Arc<Fair>, Flow),
        packs_anew: bool,
    ) -> Result<Self, Failure> {
        let room = async {
            let _first = door.place(flow).await;
            readers.take(LEAST).await
        };
        let room = tokio::time::timeout(LONGEST_QUEUE, room).await.map_err(|_| Failure::Busy)??;
        Ok(Self {
            room,
            readers: readers.clone(),
            packs_anew,
            cache: 0,
            piece: SMALL_PIECE,
            taken: 0,
            draining: 0,
        })
    }

    /// How large the next piece is.
    pub fn piece(&mut self) -> usize {
        if self.draining > 0 {
            self.draining -= 1;
            if self.draining == 0 {
                self.room.shrink_to(SLOW + self.cache as u64);
            }
        }
        self.piece
    }

    /// Takes note that the client takes pieces as they come. Returns how large a cache of decoded objects the stream may
    /// have from now on, if that is news.
    pub fn quick(&mut self) -> Option<usize> {
        self.taken = self.taken.saturating_add(self.piece as u64);
        let (piece, room, from) = match self.piece {
            ..SMALL_PIECE => (SMALL_PIECE, LEAST, RECOVERED),
            _ => (PIECE, MOST, PROVEN),
        };
        if self.piece < piece && self.taken > from && self.room.grow_to(room + self.cache as u64).is_ok() {
            self.piece = piece;
            self.draining = 0;
        }
        if !self.packs_anew || self.cache > 0 {
            return None;
        }
        let (free, most) = (self.readers.free(), self.readers.most());
        let fits = |(_, eighths): &&(usize, u64)| free > most / 8 * eighths;
        let (cache, _) = *CACHES.iter().find(fits)?;
        self.room.grow_to(self.room.bytes() + cache as u64).ok()?;
        self.cache = cache;
        Some(cache)
    }

    /// Takes note that the client is slow: the cache is gone, and the next pieces are the smallest.
    pub fn slow(&mut self) {
        let pieces = self.room.bytes().saturating_sub(self.cache as u64);
        self.cache = 0;
        self.taken = 0;
        if self.piece > SLOW_PIECE {
            self.piece = SLOW_PIECE;
            self.draining = 3;
        }
        self.room.shrink_to(if self.draining > 0 { pieces } else { SLOW });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_client_holds_little_and_a_quick_one_more() {
        let readers = Budget::new(64 << 20, "limits.memory");
        let held = |budget: &Budget| budget.most() - budget.free();
        let door = (&Fair::new(1), Flow::default());
        let mut one = Holding::begin(&readers, door, true).await.unwrap();
        assert_eq!((held(&readers), one.piece()), (LEAST, SMALL_PIECE));
        assert_eq!(one.quick(), Some(16 << 20));
        assert_eq!(one.quick(), None);
        assert_eq!((held(&readers), one.piece()), (LEAST + (16 << 20), SMALL_PIECE));
        for _ in 0..=PROVEN / SMALL_PIECE as u64 {
            assert_eq!(one.quick(), None);
        }
        assert_eq!((held(&readers), one.piece()), (MOST + (16 << 20), PIECE));
        let mut two = Holding::begin(&readers, door, true).await.unwrap();
        assert_eq!(two.quick(), Some(2 << 20), "the first has much");
        drop(two);
        one.slow();
        assert_eq!(held(&readers), MOST, "large pieces are still on their way");
        for _ in 0..3 {
            assert_eq!(one.piece(), SLOW_PIECE);
        }
        assert_eq!(held(&readers), SLOW);
        one.slow();
        assert_eq!(held(&readers), SLOW);
        for _ in 0..=RECOVERED / SLOW_PIECE as u64 {
            one.quick();
        }
        assert_eq!(one.piece(), SMALL_PIECE);
        one.slow();
        assert!(held(&readers) >= LEAST, "small pieces are still on their way");
    }

    #[tokio::test]
    async fn every_connection_of_a_thousand_may_be_slow_beside_plans() {
        let readers = Budget::new((512 << 20) / 2 / 4 * 3, "limits.memory");
        let door = (&Fair::new(1), Flow::default());
        let mut slow = Vec::new();
        for _ in 0..1500 {
            let mut one = Holding::begin(&readers, door, false).await.unwrap();
            one.slow();
            (0..3).for_each(|_| _ = one.piece());
            slow.push(one);
        }
        assert!(readers.free() > 100 * LEAST, "{}", readers.free());
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_no_room_it_is_said_after_a_while() {
        let readers = Budget::new(LEAST, "limits.memory");
        let door = (&Fair::new(1), Flow::default());
        let mut one = Holding::begin(&readers, door, false).await.unwrap();
        one.quick();
        assert_eq!(one.piece(), SMALL_PIECE);
        assert!(matches!(Holding::begin(&readers, door, false).await, Err(Failure::Busy)));
    }
}
