//! Whole-system tests: a real primary, real `packmirror` processes, real git clients.
//!
//! git is the oracle: what a client ends up with through the mirror is compared with what the same command gives
//! against the primary itself. Nothing here looks inside the process; it is observed by its answers, its metrics,
//! its log, and the documented objects in the bucket.
//!
//! The harness: [`git`] runs git, [`world`] holds directories and waits, [`bucket`] looks into the store, [`node`]
//! runs packmirror, [`front`] what stands before it, [`primary`] is the Git host, [`shapes`] makes repositories, [`oracle`] compares, [`wire`] speaks
//! HTTP and pkt-lines by hand. The rest is tests, one file per promise.
//!
//! Environment: `PACKMIRROR_TEST_S3_URL` (with `AWS_*`) puts the stores on an S3 server; `PACKMIRROR_TEST_GITEA_ENV`
//! names a file that describes a Gitea; `PACKMIRROR_TEST_CLIENTS` names the folder of other clients;
//! `PACKMIRROR_TEST_H2SPEC` is the program h2spec; `PACKMIRROR_TEST_LFS` is the program git-lfs;
//! `PACKMIRROR_TEST_TOOLS` names the folder of programs that use git;
//! `PACKMIRROR_TEST_GIT` is the git that clients run, if not the one in the path; `PACKMIRROR_TEST_REQUIRE_PARTS=1` makes
//! a skipped test a failed one; `PACKMIRROR_TEST_SEED` and `PACKMIRROR_TEST_TIMES` are for long runs of what is random ([`seed`]);
//! `PACKMIRROR_TEST_HOSTILE=full` runs attacks at full size; `PACKMIRROR_TEST_PASSTHROUGH=1` puts the primary in the mirror's place, to test the tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panics")]

mod bucket;
mod front;
mod git;
mod node;
mod oracle;
mod primary;
#[path = "../seed/mod.rs"]
mod seed;
mod shapes;
mod wire;
mod world;

mod answers;
mod auth;
mod cli;
mod clients;
mod clone;
mod collect;
mod commands;
mod compact;
mod doctor;
mod faults;
mod fronts;
mod gitea;
mod gitea_web;
#[path = "../hostile/mod.rs"]
mod hostile;
mod increment;
mod killed;
mod matrix;
mod nodes;
mod other_paths;
mod own_name;
mod purge;
mod push;
mod recipes;
mod seen;
mod sharing;
mod slow;
mod trust;
mod unfit;
mod vet;
mod wave;
