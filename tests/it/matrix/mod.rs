//! The differential table: client operations × protocol versions × shapes of repositories. Each case is done against
//! the primary and against the mirror, and everything the client ends up with must be the same: exit status, error
//! text, refs, shallow file, objects present and missing. [`town`] does and compares, [`cases`] and [`ci_tools`] are the table,
//! [`random`] makes histories and operations up.
//!
//! A case says where its answers must come from: `Bucket` for all that a mirrored repository has; `Any` where the primary
//! has a say, as in objects that no ref reaches. The requests that a decent client does not send, but others do, are the table in `wires`.

mod cases;
mod ci_tools;
mod random;
mod town;
mod wires;

use crate::oracle::mirrored;
use crate::shapes;
use cases::{BY_ID, CLONES, DEEPEN, FILTERS, INCREMENTS, LAZY, LISTS, SHALLOW};
use ci_tools::CI;
use town::Town;

/// Where the answers of a case must come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// From the bucket, all of them.
    Bucket,
    /// From the bucket in v2; in v0 and v1 a want that is no commit is the primary's to judge.
    BucketV2,
    /// From either.
    Any,
    /// No objects are asked for.
    Nowhere,
}
use Source::{Any, Bucket, BucketV2, Nowhere};

/// A client operation: git command lines, one after the other in a new directory. In them stand `{url}` for the
/// repository, `{past}` for a local repository with its older state, and ids by name, see [`Town::names`].
type Case = (Source, &'static [&'static str]);

macro_rules! matrix {
    ($make:ident; $($test:ident: $cases:ident $version:literal;)*) => {
        $(#[test]
        fn $test() {
            Town::$make(shapes::town, "sha1").all(stringify!($cases), $cases, $version);
        })*
    };
}

matrix! {
    new;
    clones_v2: CLONES 2;
    clones_v1: CLONES 1;
    clones_v0: CLONES 0;
    increments_v2: INCREMENTS 2;
    increments_v0: INCREMENTS 0;
    shallow_v2: SHALLOW 2;
    shallow_v0: SHALLOW 0;
    deepen_v2: DEEPEN 2;
    deepen_v0: DEEPEN 0;
    filters_v2: FILTERS 2;
    filters_v0: FILTERS 0;
    lazy_v2: LAZY 2;
    lazy_v0: LAZY 0;
    by_id_v2: BY_ID 2;
    by_id_v0: BY_ID 0;
    lists_v2: LISTS 2;
    lists_v1: LISTS 1;
    lists_v0: LISTS 0;
    ci_v2: CI 2;
    ci_v0: CI 0;
}

/// A selection of each group, for the other shapes.
const SAMPLE: &[Case] = &[
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q --single-branch {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} ."]),
    (Bucket, &["clone -q --depth=2 {url} .", "fetch -q --deepen=2", "fetch -q --unshallow"]),
    (Bucket, &["clone -q --shallow-since={date} {url} ."]),
    (Bucket, &["clone -q --mirror --filter=blob:none {url} ."]),
    (Bucket, &["clone -q --no-checkout --filter=tree:2 {url} ."]),
    (Bucket, &["clone -q --bare --filter=blob:limit=60 {url} ."]),
    (BucketV2, &["clone -q --filter=blob:none {url} ."]),
    (Bucket, &["init -q", "fetch -q --depth=1 {url} {mid}"]),
    (Nowhere, &["ls-remote --symref {url}"]),
];

/// What can be asked where HEAD points to no commit, or there is none at all.
const BARE: &[Case] = &[
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q {url} ."]),
    (Bucket, &["clone -q --depth=1 --no-single-branch {url} ."]),
    (BucketV2, &["clone -q --filter=blob:none {url} ."]),
    (Nowhere, &["ls-remote --symref {url}"]),
    (Bucket, &["init -q", "fetch -q {url} +refs/*:refs/remotes/all/*"]),
];

/// Where each case takes its time.
const FEW: &[Case] = &[
    (Bucket, &["clone -q --mirror {url} ."]),
    (Bucket, &["clone -q --depth=1 {url} ."]),
    (Nowhere, &["ls-remote --symref {url}"]),
];

macro_rules! other_shapes {
    ($make:ident; $($test:ident: $cases:ident $shape:ident $format:literal;)*) => {
        $(#[test]
        fn $test() {
            let town = Town::$make(shapes::$shape, $format);
            for version in [2, 0] {
                town.all(stringify!($shape), $cases, version);
            }
        })*
    };
}

other_shapes! {
    new;
    sample_merges: SAMPLE merges "sha1";
    sample_criss_cross: SAMPLE criss_cross "sha1";
    sample_octopus: SAMPLE octopus "sha1";
    sample_several_roots: SAMPLE several_roots "sha1";
    sample_renames: SAMPLE renames "sha1";
    sample_deltas: SAMPLE deltas "sha1";
    sample_tags: SAMPLE tags "sha1";
    sample_submodules: SAMPLE submodules "sha1";
    sample_hosted: SAMPLE hosted "sha1";
    sample_other_head: SAMPLE other_head "sha1";
    sample_sha256: SAMPLE town "sha256";
    bare_detached: BARE detached "sha1";
    bare_unborn: BARE unborn "sha1";
    bare_empty: BARE empty "sha1";
    bare_empty_trunk: BARE empty_trunk "sha1";
    bare_empty_sha256: BARE empty "sha256";
    bare_weird_refs: BARE weird_refs "sha1";
    few_many_refs: FEW many_refs "sha1";
}

mod in_layers {
    //! The same on repositories that were synced while they grew.
    use super::*;

    matrix! {
        in_layers;
        clones_v2: CLONES 2;
        increments_v2: INCREMENTS 2;
        increments_v0: INCREMENTS 0;
        shallow_v2: SHALLOW 2;
        deepen_v2: DEEPEN 2;
        deepen_v0: DEEPEN 0;
        filters_v2: FILTERS 2;
        lazy_v2: LAZY 2;
        by_id_v2: BY_ID 2;
        ci_v2: CI 2;
    }

    other_shapes! {
        in_layers;
        merges: SAMPLE merges "sha1";
        criss_cross: SAMPLE criss_cross "sha1";
        deltas: SAMPLE deltas "sha1";
        tags: SAMPLE tags "sha1";
        sha256: SAMPLE town "sha256";
    }
}

/// All groups once on a SHA-256 repository.
#[test]
fn sha256_in_full() {
    let town = Town::new(shapes::town, "sha256");
    for (what, cases) in
        [("clones", CLONES), ("increments", INCREMENTS), ("shallow", SHALLOW), ("filters", FILTERS)]
    {
        town.all(what, cases, 2);
    }
}

/// A primary that offers no filters: the mirror offers none either, and git says so.
#[test]
fn filters_that_the_primary_does_not_offer() {
    let town = Town::new(shapes::town, "sha1");
    town.repo.git().run("config uploadpack.allowFilter false");
    town.repo.commit("main", "new", "1");
    mirrored(&town.world, &town.node, &town.repo);
    for version in [2, 0] {
        town.all("no filters", &FILTERS[..2], version);
    }
}

/// Without `allow*SHA1InWant` v0 refuses ids that are not advertised, by the client's own judgement.
#[test]
fn ids_that_the_primary_does_not_allow() {
    let town = Town::new(shapes::town, "sha1");
    for key in ["allowTipSHA1InWant", "allowReachableSHA1InWant"] {
        town.repo.git().run(&format!("config uploadpack.{key} false"));
    }
    for version in [2, 0] {
        town.all("by id", &[(Any, BY_ID[1].1), (Any, BY_ID[6].1), (Any, BY_ID[7].1)], version);
    }
}
