//! What one stream holds of the memory for readers: little while its client is slow, more where that makes it quicker.

use crate::answer::turns::LONGEST_QUEUE;
use crate::budget::{Budget, Room};
use crate::serve::error::Failure;

/// What is handed over at a time at first, and to a client that is slow.
const SMALL_PIECE: usize = 64 << 10;
/// The same for a client that takes pieces as they come: four full side-band packets.
const PIECE: usize = 256 << 10;
/// A client has taken so many bytes before it counts as quick: what lies between it and us takes a few million at once.
const PROVEN: u64 = 8 << 20;
/// Room for two small pieces, one waiting and one on its way, and for the stream itself.
const LEAST: u64 = 192 << 10;
/// Room for two pieces.
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
    /// So many pieces more may still be large ones on their way to a client that became slow.
    draining: u8,
}

impl Holding {
    /// Waits for the least that a stream needs, but not for ever.
    pub async fn begin(readers: &Budget, packs_anew: bool) -> Result<Self, Failure> {
        let room = tokio::time::timeout(LONGEST_QUEUE, readers.take(LEAST)).await;
        let room = room.map_err(|_| Failure::Busy)??;
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
                self.room.shrink_to(LEAST + self.cache as u64);
            }
        }
        self.piece
    }

    /// Takes note that the client takes pieces as they come. Returns how large a cache of decoded objects the stream may
    /// have from now on, if that is news.
    pub fn quick(&mut self) -> Option<usize> {
        self.taken = self.taken.saturating_add(self.piece as u64);
        if self.piece < PIECE && self.taken > PROVEN && self.room.grow_to(MOST + self.cache as u64).is_ok() {
            self.piece = PIECE;
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

    /// Takes note that the client is slow: the cache is gone, and the next pieces are small.
    pub fn slow(&mut self) {
        self.cache = 0;
        self.taken = 0;
        if self.piece > SMALL_PIECE {
            self.piece = SMALL_PIECE;
            self.draining = 3;
        }
        self.room.shrink_to(if self.draining > 0 { MOST } else { LEAST });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_client_holds_little_and_a_quick_one_more() {
        let readers = Budget::new(64 << 20, "limits.memory");
        let held = |budget: &Budget| budget.most() - budget.free();
        let mut one = Holding::begin(&readers, true).await.unwrap();
        assert_eq!((held(&readers), one.piece()), (LEAST, SMALL_PIECE));
        assert_eq!(one.quick(), Some(16 << 20));
        assert_eq!(one.quick(), None);
        assert_eq!((held(&readers), one.piece()), (LEAST + (16 << 20), SMALL_PIECE));
        for _ in 0..=PROVEN / SMALL_PIECE as u64 {
            assert_eq!(one.quick(), None);
        }
        assert_eq!((held(&readers), one.piece()), (MOST + (16 << 20), PIECE));
        let mut two = Holding::begin(&readers, true).await.unwrap();
        assert_eq!(two.quick(), Some(2 << 20), "the first has much");
        drop(two);
        one.slow();
        assert_eq!(held(&readers), MOST, "large pieces are still on their way");
        for _ in 0..3 {
            assert_eq!(one.piece(), SMALL_PIECE);
        }
        assert_eq!(held(&readers), LEAST);
        one.slow();
        assert_eq!(held(&readers), LEAST);
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_no_room_it_is_said_after_a_while() {
        let readers = Budget::new(LEAST, "limits.memory");
        let mut one = Holding::begin(&readers, false).await.unwrap();
        one.quick();
        assert_eq!(one.piece(), SMALL_PIECE);
        assert!(matches!(Holding::begin(&readers, false).await, Err(Failure::Busy)));
    }
}
