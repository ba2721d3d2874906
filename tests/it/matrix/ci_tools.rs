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
    // The same tools where the workspace of an earlier job lies.
    (
        Bucket,
        &[
            "clone -q --no-checkout {past} .",
            "remote set-url origin {url}",
            "rev-parse --symbolic-full-name --verify --quiet HEAD",
            "rev-parse --symbolic-full-name --branches",
            "submodule status",
            "clean -ffdx",
            "reset --hard HEAD",
            "-c protocol.version=2 fetch --no-tags --prune --no-recurse-submodules --depth=1 origin +{merge}:refs/remotes/pull/1/merge",
            "checkout -q --force refs/remotes/pull/1/merge",
            "log -1 --format=%H",
        ],
    ),
    (
        Bucket,
        &[
            "clone -q --depth=2 {past} .",
            "remote set-url origin {url}",
            "-c http.userAgent=gitlab-runner fetch origin --no-recurse-submodules +{tip}:refs/pipelines/2 +refs/heads/main:refs/remotes/origin/main --depth 20 --prune --quiet",
            "-c filter.lfs.smudge= -c filter.lfs.required=false checkout -f -q {tip}",
            "clean -ffdx",
        ],
    ),
    (
        Bucket,
        &[
            "clone -q {past} .",
            "rev-parse --is-inside-work-tree",
            "config remote.origin.url {url}",
            "fetch --no-tags --force --progress --prune -- {url} +refs/heads/*:refs/remotes/origin/* +refs/pull/*:refs/remotes/origin/pr/*",
            "rev-parse refs/remotes/origin/main^{commit}",
            "checkout -q -f {tip}",
        ],
    ),
    // Buildkite's mirror of the repository on the agent's disk, and a checkout that borrows from it.
    (
        Bucket,
        &[
            "clone --mirror -q -- {past} mirror",
            "--git-dir mirror remote set-url origin {url}",
            "--git-dir mirror fetch --no-tags -q origin refs/pull/1/head",
            "--git-dir mirror fetch -q origin main",
            "clone -q --reference mirror -- {url} checkout",
            "-C checkout fetch -q --prune -- origin {mid}",
            "-C checkout checkout -q -f {mid}",
        ],
    ),
    // A pull request by its name, without the id.
    (
        Bucket,
        &[
            "init -q .",
            "fetch -q --no-tags --depth=50 {url} refs/pull/1/merge:refs/remotes/pull/1/merge",
            "checkout -q --force refs/remotes/pull/1/merge",
        ],
    ),
    (
        Nowhere,
        &[
            "ls-remote -h -- {url}",
            "ls-remote -h {url} main",
            "ls-remote -q --exit-code {url} refs/heads/main",
        ],
    ),
];
