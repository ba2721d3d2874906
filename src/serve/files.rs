//! Open files: as many as the system lets this process have.
//!
//! Every connection is one, and so is every block of the cache that is mapped, every process of git, every connection to
//! the primary and the store. Systems start processes with a low soft limit for the sake of old programs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files beside those of connections: the cache, the store, syncs.
const OTHERS: u64 = 512;

/// Raises the soft limit to the hard one and gives it; `None`: there is no limit.
pub fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // On failure the old limit stays, which is what is given.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current
}

/// How many of `connections` the limit has room for, with a warning where it is too low for all of them.
pub fn room_for(connections: usize) -> usize {
    let Some(limit) = raise() else { return connections };
    let (room, needed) = (room(limit), needed(connections));
    if room >= connections {
        return connections;
    }
    tracing::warn!(
        limit,
        "this process may have too few open files for limits.connections = {connections}; it takes {room}. Raise the hard limit (LimitNOFILE, ulimit -Hn) to {needed}, or lower the setting"
    );
    room
}

/// Each connection may need one file for its client and one for the primary.
fn needed(connections: usize) -> u64 {
    connections as u64 * 2 + OTHERS
}

/// Where hardly anything is allowed, the others get most of it.
fn room(limit: u64) -> usize {
    let room = (limit.saturating_sub(OTHERS) / 2).max(limit / 4).max(1);
    usize::try_from(room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise();
        assert_eq!(limit, getrlimit(Resource::Nofile).maximum);
    }

    #[test]
    fn connections_leave_files_for_others() {
        for (limit, want) in [(100, 25), (1024, 256), (4096, 1792), (1 << 20, (1 << 19) - 256)] {
            assert_eq!(room(limit), want);
            assert!(want < 256 || needed(want) <= limit);
        }
        assert_eq!(room_for(1), 1);
    }
}
