//! Tests against the `git` binary.
