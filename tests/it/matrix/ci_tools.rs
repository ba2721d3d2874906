//! What CI tools send.

use super::Case;
use super::Source::{Any, Bucket, Nowhere};

/// The lines that CI tools send, as their sources have them.
pub const CI: &[Case] = &[
    // actions/checkout
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --progress --depth=1 origin +{tip}:refs/remotes/origin/main",
            "checkout --progress --force -B main refs/remotes/origin/main",
        ],
    ),
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --depth=1 origin +{merge}:refs/remotes/pull/1/merge",
            "checkout -q --force refs/remotes/pull/1/merge",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --depth=1 origin +{tip}:refs/remotes/origin/main",
            "-c protocol.version=2 fetch --prune --no-recurse-submodules --unshallow origin +refs/heads/*:refs/remotes/origin/* +refs/tags/*:refs/tags/*",
        ],
    ),
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules origin +refs/heads/*:refs/remotes/origin/* +refs/tags/*:refs/tags/*",
            "checkout -q --force -B main refs/remotes/origin/main",
        ],
    ),
    (
        Bucket,
        &[
            "init -q .",
            "remote add origin {url}",
            "sparse-checkout set src",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --filter=blob:none --depth=1 origin +{tip}:refs/remotes/origin/main",
            "checkout -q --force -B main refs/remotes/origin/main",
        ],
    ),
    // GitLab Runner: a job, then one of the next commit in the same directory
    (
        Bucket,
        &[
            "init -q",
            "remote add origin {url}",
            "-c http.userAgent=gitlab-runner fetch origin --no-recurse-submodules +{mid}:refs/pipelines/1 +refs/heads/main:refs/remotes/origin/main --depth 20 --prune --quiet",
            "checkout -f -q {mid}",
            "-c http.userAgent=gitlab-runner fetch origin --no-recurse-submodules +{tip}:refs/pipelines/2 +refs/heads/main:refs/remotes/origin/main --depth 20 --prune --quiet",
            "checkout -f -q {tip}",
            "-c http.userAgent=gitlab-runner fetch origin --no-recurse-submodules +{tip}:refs/pipelines/3 --unshallow --quiet",
        ],
    ),
    (
        Bucket,
        &[
            "init -q",
            "fetch --quiet --no-recurse-submodules --depth 2 {url} +refs/pull/1/head:refs/pipelines/1 --prune",
            "fetch --quiet --no-recurse-submodules --depth 2 {url} +{tip}:refs/pipelines/2 --prune",
        ],
    ),
    // Jenkins
    (
        Bucket,
        &["init -q", "fetch --tags --force --progress --prune -- {url} +refs/heads/*:refs/remotes/origin/*"],
    ),
    (
        Bucket,
        &[
            "init -q",
            "fetch --no-tags --force --progress --depth=1 -- {url} +refs/heads/*:refs/remotes/origin/*",
            "fetch --tags --force --progress --prune -- {url} +refs/heads/*:refs/remotes/origin/*",
        ],
    ),
    (Nowhere, &["ls-remote -h -t -- {url}", "ls-remote --symref -- {url}"]),
    // Buildkite
    (Bucket, &["clone -v -- {url} .", "fetch -v --prune -- origin {mid}", "checkout -q -f {mid}"]),
    (Bucket, &["clone -v --depth=1 -- {url} .", "fetch -v --prune --depth=1 -- origin refs/pull/1/head"]),
    (Bucket, &["clone -v --filter=blob:none --no-checkout -- {url} .", "fetch -v --prune -- origin {tip}"]),
    (Any, &["clone --mirror -v -- {url} .", "fetch -v --prune -- origin {nowhere}"]),
    // goproxy, cargo, npm and friends
    (Bucket, &["init -q --bare", "ls-remote -q {url}", "fetch -f --depth=1 {url} refs/tags/v1:refs/tags/v1"]),
    (
        Bucket,
        &["init -q --bare", "fetch --no-tags --force --update-head-ok {url} +HEAD:refs/remotes/origin/HEAD"],
    ),
    (Bucket, &["clone --depth=1 -q -b v2 {url} .", "rev-parse HEAD"]),
];
