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

/// Warns where the limit is too low for `connections`: each may need one file for its client and one for the primary.
pub fn check(connections: usize) {
    let needed = connections as u64 * 2 + OTHERS;
    if let Some(limit) = raise().filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "this process may have too few open files for limits.connections = {connections}: raise the hard limit (LimitNOFILE, ulimit -Hn) to {needed}, or lower limits.connections to {}",
            limit.saturating_sub(OTHERS) / 2
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise();
        assert_eq!(limit, getrlimit(Resource::Nofile).maximum);
    }
}
