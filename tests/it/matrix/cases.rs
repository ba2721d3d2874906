//! The table itself: what clients do, group by group.

use super::Case;
use super::Source::{Any, Bucket, BucketV2, Nowhere};

pub const CLONES: &[Case] = &[
    (Bucket, &["clone -q {url} ."]),
    (Bucket, &["clone -q --bare {url} ."]),
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q --single-branch {url} ."]),
    (Bucket, &["clone -q --single-branch -b release {url} ."]),
    (Bucket, &["clone -q --no-tags {url} ."]),
    (Bucket, &["clone -q -b v1 {url} ."]),
    (Bucket, &["clone -q -b nested --single-branch {url} ."]),
    (Nowhere, &["clone -q -b no-such-branch {url} ."]),
    (Bucket, &["init -q", "fetch -q {url} main"]),
    (Bucket, &["init -q", "fetch -q {url} +refs/*:refs/remotes/all/*"]),
    (Bucket, &["init -q", "fetch -q --tags {url} refs/heads/release"]),
    (Bucket, &["init -q", "fetch -q {url} refs/pull/1/head:refs/pull/1/head refs/tags/of-blob"]),
    (Nowhere, &["init -q", "fetch -q {url} refs/heads/nope"]),
];

pub const INCREMENTS: &[Case] = &[
    (Bucket, &["clone -q {past} .", "remote set-url origin {url}", "fetch -q origin"]),
    (Bucket, &["clone -q --mirror {past} .", "remote set-url origin {url}", "fetch -q --prune origin"]),
    (Bucket, &["clone -q {past} .", "fetch -q --no-tags {url} release:refs/heads/r"]),
    (
        Bucket,
        &["clone -q {past} .", "-c fetch.negotiationAlgorithm=skipping fetch -q {url} main:refs/heads/m"],
    ),
    (Bucket, &["clone -q {past} .", "-c fetch.negotiationAlgorithm=noop fetch -q {url} main:refs/heads/m"]),
    (Bucket, &["clone -q {past} .", "-c fetch.unpackLimit=1 fetch -q {url} +refs/heads/*:refs/remotes/o/*"]),
    (Bucket, &["clone -q {past} .", "fetch -q --negotiation-tip=HEAD~2 {url} main:refs/heads/m"]),
    (Bucket, &["clone -q {url} .", "fetch -q {url} refs/pull/1/merge:refs/heads/pr"]),
    (Bucket, &["clone -q {url} .", "fetch -q --refetch origin"]),
    (Bucket, &["clone -q --single-branch -b release {url} .", "fetch -q origin main:refs/heads/m"]),
];

pub const SHALLOW: &[Case] = &[
    (Bucket, &["clone -q --depth=1 {url} ."]),
    (Bucket, &["clone -q --depth=3 {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} ."]),
    (Bucket, &["clone -q --depth=2 --mirror --no-single-branch {url} ."]),
    (Bucket, &["clone -q --depth=1 -b v2 {url} ."]),
    (Bucket, &["clone -q --depth=1 -b nested {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-tags -b release {url} ."]),
    (Bucket, &["clone -q --depth=1000 {url} ."]),
    (Bucket, &["clone -q --shallow-since={date} {url} ."]),
    (Bucket, &["clone -q --shallow-since={date} --no-single-branch {url} ."]),
    (Bucket, &["clone -q --shallow-since=4000000000 {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=v1 {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=release {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=v1 --shallow-exclude=topic/1 --no-single-branch {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=no-such-ref {url} ."]),
    (Bucket, &["clone -q --shallow-exclude=main {url} ."]),
    (Bucket, &["init -q", "fetch -q --depth=1 {url} {mid}"]),
    (Bucket, &["init -q", "fetch -q --depth=2 {url} {old}:refs/heads/o {tip}:refs/heads/t"]),
    (Bucket, &["init -q", "fetch -q --depth=1 {url} +refs/*:refs/remotes/all/*"]),
];

pub const DEEPEN: &[Case] = &[
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --depth=3"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --deepen=2"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q --deepen=1", "fetch -q --deepen=3"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --depth=3 {url} .", "fetch -q --depth=1"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --shallow-since={date}"]),
    (Bucket, &["clone -q --depth=1 {url} .", "fetch -q --shallow-exclude=v1"]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} .", "fetch -q --deepen=1"]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} .", "fetch -q --unshallow --tags"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q origin release"]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q --tags origin"]),
    (
        Bucket,
        &["clone -q --depth=1 {url} .", "fetch -q --depth=1 origin +refs/heads/*:refs/remotes/origin/*"],
    ),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q"]),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q --depth=1"]),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --depth=2 {past} .", "remote set-url origin {url}", "fetch -q --deepen=1"]),
    (Bucket, &["clone -q {past} .", "remote set-url origin {url}", "fetch -q --depth=2"]),
    (Bucket, &["clone -q --shallow-since={date} {url} .", "fetch -q --unshallow"]),
];

pub const FILTERS: &[Case] = &[
    (Bucket, &["clone -q --no-checkout --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --bare --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --mirror --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=blob:limit=0 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=blob:limit=100 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=blob:limit=1k {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:0 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:1 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:2 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:4 {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=commit {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=tree {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=blob {url} ."]),
    (Bucket, &["clone -q --bare --filter=object:type=tag {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=combine:blob:none+tree:2 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=combine:blob:limit=500+tree:3 {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=sparse:oid=main:spec {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=sparse:oid=main:nope {url} ."]),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=tree:0 --no-tags {url} ."]),
    (Bucket, &["clone -q --no-checkout --single-branch -b release --filter=blob:limit=200 {url} ."]),
    (
        Bucket,
        &[
            "clone -q --no-checkout --filter=blob:none {past} .",
            "remote set-url origin {url}",
            "fetch -q origin",
        ],
    ),
    (
        Bucket,
        &[
            "clone -q --no-checkout --filter=tree:0 {past} .",
            "remote set-url origin {url}",
            "fetch -q origin",
        ],
    ),
    (Bucket, &["clone -q --no-checkout --filter=blob:none {url} .", "fetch -q --refetch origin"]),
    (
        Bucket,
        &["clone -q --no-checkout --filter=tree:0 {url} .", "fetch -q --refetch --filter=blob:none origin"],
    ),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=blob:none {url} .", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --no-checkout --depth=1 --filter=blob:none {url} .", "fetch -q --deepen=2"]),
];

pub const LAZY: &[Case] = &[
    (BucketV2, &["clone -q --filter=blob:none {url} ."]),
    (BucketV2, &["clone -q --filter=blob:none {url} .", "checkout -q release", "checkout -q v1"]),
    (BucketV2, &["clone -q --filter=tree:0 {url} ."]),
    (BucketV2, &["clone -q --depth=1 --filter=tree:0 {url} ."]),
    (BucketV2, &["clone -q --filter=blob:limit=300 {url} .", "checkout -q topic/1"]),
    (
        BucketV2,
        &[
            "clone -q --bare --filter=blob:none {url} .",
            "cat-file blob {blob}",
            "cat-file blob main~5:src/main.c",
        ],
    ),
    (BucketV2, &["clone -q --bare --filter=tree:0 {url} .", "ls-tree -r main", "ls-tree -r release"]),
    (BucketV2, &["clone -q --bare --filter=tree:0 {url} .", "log --format=%H --name-only -5 main"]),
    (BucketV2, &["clone -q --bare --filter=blob:none {url} .", "diff --stat main~5 main"]),
    (
        BucketV2,
        &[
            "clone -q --sparse --filter=blob:none {url} .",
            "sparse-checkout set src docs",
            "sparse-checkout disable",
        ],
    ),
    (
        BucketV2,
        &[
            "clone -q --no-checkout --filter=blob:none {url} .",
            "sparse-checkout set --no-cone /tests/",
            "checkout -q main",
        ],
    ),
    (
        BucketV2,
        &["clone -q --bare --filter=object:type=commit {url} .", "cat-file -t {tree}", "cat-file -t {blob}"],
    ),
    (Any, &["clone -q --bare --filter=blob:none {url} .", "cat-file -t {nowhere}"]),
    (
        BucketV2,
        &["clone -q --bare --filter=tree:0 --depth=1 {url} .", "archive --format=tar -o out.tar HEAD"],
    ),
];

pub const BY_ID: &[Case] = &[
    (Bucket, &["init -q", "fetch -q {url} {tip}"]),
    (Bucket, &["init -q", "fetch -q {url} {mid}"]),
    (Bucket, &["init -q", "fetch -q {url} {old}:refs/heads/x {mid}:refs/heads/y"]),
    (Bucket, &["init -q", "fetch -q {url} {tag}:refs/tags/t"]),
    (BucketV2, &["init -q", "fetch -q {url} {tree}"]),
    (BucketV2, &["init -q", "fetch -q {url} {blob}"]),
    (Any, &["init -q", "fetch -q {url} {unreachable}"]),
    (Any, &["init -q", "fetch -q {url} {nowhere}"]),
    (Any, &["init -q", "fetch -q {url} {tip} {nowhere}"]),
    (Any, &["init -q", "fetch -q --depth=1 {url} {nowhere}"]),
    (Any, &["init -q", "fetch -q --depth=1 {url} {unreachable}"]),
    (Any, &["clone -q {past} .", "fetch -q {url} {unreachable}"]),
    (Bucket, &["clone -q {past} .", "fetch -q {url} {tip}"]),
    (Bucket, &["init -q", "fetch -q --filter=blob:none {url} {mid}"]),
];

pub const LISTS: &[Case] = &[
    (Nowhere, &["ls-remote {url}"]),
    (Nowhere, &["ls-remote --heads {url}"]),
    (Nowhere, &["ls-remote --tags {url}"]),
    (Nowhere, &["ls-remote -h -t {url}"]),
    (Nowhere, &["ls-remote --refs {url}"]),
    (Nowhere, &["ls-remote --symref {url}"]),
    (Nowhere, &["ls-remote --symref {url} HEAD"]),
    (Nowhere, &["ls-remote {url} HEAD"]),
    (Nowhere, &["ls-remote {url} main v1"]),
    (Nowhere, &["ls-remote {url} refs/pull/*"]),
    (Nowhere, &["ls-remote --exit-code {url} no-such-ref"]),
    (Nowhere, &["ls-remote --sort=-refname {url}"]),
];
