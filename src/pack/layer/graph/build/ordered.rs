//! Work that several threads do and one takes in order, so that what comes of it is the same however many there are.
//!
//! Threads make pieces, the caller takes them one after another and makes pieces itself while none is ready. At most
//! [`AHEAD`] pieces a thread wait to be taken, so what is made ahead is bounded.
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Pieces for each thread that may be made, or being made, before those before them are taken.
const AHEAD: usize = 4;

/// Makes the pieces `0..pieces` with `make` on `threads` threads, and gives them in this order to `take`, on this thread.
///
/// Each thread has what `begin` gives it. Ends with the first error in the order of pieces.
pub(super) fn ordered<L, T: Send, E: Send>(
    threads: usize,
    pieces: usize,
    begin: &(dyn Fn() -> L + Sync),
    make: &(dyn Fn(&mut L, usize) -> Result<T, E> + Sync),
    take: &mut dyn FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads.min(pieces);
    if threads < 2 {
        let mut own = begin();
        return (0..pieces).try_for_each(|piece| take(make(&mut own, piece)?));
    }
    let line = Line {
        state: Mutex::new(State { next: 0, taken: 0, made: VecDeque::new(), over: false }),
        changed: Condvar::new(),
        pieces,
        ahead: AHEAD * threads,
    };
    std::thread::scope(|scope| {
        let help = || {
            let _over = OverAtPanic(&line);
            let mut own = begin();
            while let Some(piece) = line.claim() {
                line.put(piece, make(&mut own, piece));
            }
        };
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(help)).collect();
        let outcome = {
            let _over = Over(&line);
            let mut own = begin();
            loop {
                match line.turn() {
                    Turn::Take(made) => {
                        if let Err(error) = made.and_then(&mut *take) {
                            break Err(error);
                        }
                    }
                    Turn::Make(piece) => line.put(piece, make(&mut own, piece)),
                    Turn::End => break Ok(()),
                }
            }
        };
        for helper in helpers {
            helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        outcome
    })
}

/// The pieces between being made and being taken.
struct Line<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
    pieces: usize,
    ahead: usize,
}

struct State<R> {
    /// The next piece that nobody makes yet.
    next: usize,
    taken: usize,
    /// From `taken` to `next`: what was made.
    made: VecDeque<Option<R>>,
    over: bool,
}

/// What the caller does next.
enum Turn<R> {
    Take(R),
    Make(usize),
    End,
}

impl<R> Line<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, state: &mut State<R>) -> Option<usize> {
        let piece = state.next;
        (piece < self.pieces && piece - state.taken < self.ahead).then(|| {
            state.next += 1;
            state.made.push_back(None);
            piece
        })
    }

    /// Waits for a piece to make; `None` if there will be none.
    fn claim(&self) -> Option<usize> {
        let mut state = self.state();
        loop {
            if state.over || state.next == self.pieces {
                return None;
            }
            if let Some(piece) = self.next(&mut state) {
                return Some(piece);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put(&self, piece: usize, made: R) {
        let mut state = self.state();
        let at = piece - state.taken;
        if let Some(slot) = state.made.get_mut(at) {
            *slot = Some(made);
        }
        self.changed.notify_all();
    }

    /// Waits for what the caller has to do.
    fn turn(&self) -> Turn<R> {
        let mut state = self.state();
        loop {
            if state.over || state.taken == self.pieces {
                return Turn::End;
            }
            if let Some(made) = state.made.front_mut().and_then(Option::take) {
                state.made.pop_front();
                state.taken += 1;
                self.changed.notify_all();
                return Turn::Take(made);
            }
            if let Some(piece) = self.next(&mut state) {
                return Turn::Make(piece);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }
}

/// Lets the helpers end, however the caller ends.
struct Over<'l, R>(&'l Line<R>);

impl<R> Drop for Over<'_, R> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Lets the caller end when a helper panics; its panic goes on in the caller.
struct OverAtPanic<'l, R>(&'l Line<R>);

impl<R> Drop for OverAtPanic<'_, R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn pieces_are_taken_in_order_and_few_are_made_ahead() {
        for threads in [0, 1, 2, 5] {
            let (taken, most_ahead) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let make = |own: &mut usize, piece: usize| {
                *own += 1;
                most_ahead.fetch_max(piece - taken.load(Ordering::Relaxed).min(piece), Ordering::Relaxed);
                Ok::<_, ()>(piece)
            };
            let mut next = 0;
            ordered(threads, 1000, &|| 0, &make, &mut |piece| {
                assert_eq!(piece, next);
                next += 1;
                taken.store(next, Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
            assert_eq!(next, 1000);
            assert!(most_ahead.load(Ordering::Relaxed) <= AHEAD * threads.max(1));
        }
    }

    #[test]
    fn the_first_error_in_order_ends_it_on_any_number_of_threads() {
        for threads in [1, 2, 4] {
            let mut taken = 0;
            let make = |(): &mut (), piece: usize| if piece % 100 == 50 { Err(piece) } else { Ok(()) };
            let ended = ordered(threads, 1000, &|| (), &make, &mut |()| {
                taken += 1;
                Ok(())
            });
            assert_eq!((ended, taken), (Err(50), 50));
            let refused = ordered(threads, 1000, &|| (), &|(), piece| Ok(piece), &mut |piece| {
                if piece == 7 { Err("no more") } else { Ok(()) }
            });
            assert_eq!(refused, Err("no more"));
        }
    }

    #[test]
    fn a_panic_of_any_thread_ends_all() {
        for who in 0..8 {
            let run = std::panic::catch_unwind(|| {
                ordered(
                    2,
                    100,
                    &|| (),
                    &|(), piece| if piece == who { panic!("piece {who}") } else { Ok::<_, ()>(()) },
                    &mut |()| Ok(()),
                )
            });
            assert!(run.is_err());
        }
    }
}
