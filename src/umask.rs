//! The process's mask for the permissions of new files: what packmirror keeps is nobody else's business.
//!
//! The cache and a directory store ask for 0700 and 0600 themselves; the mask covers what libraries make there. Files that
//! are made for the caller, by packmirror or by a git that works in the caller's repositories, get the caller's mask.

use std::sync::{Mutex, PoisonError};

use rustix::fs::Mode;
use rustix::process::umask;

/// The mask that the process was started with, once it was changed. Held while the caller's mask is in force.
static CALLERS: Mutex<Option<Mode>> = Mutex::new(None);

/// From now on new files belong to this user alone, unless they are made by [`as_caller`].
pub fn make_private() {
    let mut callers = CALLERS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = umask(Mode::RWXG | Mode::RWXO);
    callers.get_or_insert(before);
}

/// Runs something short with the mask that the caller of the program set.
pub fn as_caller<T>(work: impl FnOnce() -> T) -> T {
    let callers = CALLERS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mask) = *callers else { return work() };
    let ours = umask(mask);
    let done = work();
    umask(ours);
    done
}
