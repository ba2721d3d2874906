//! The store: can it be had, does it keep its promises, whose is it.

use std::path::Path;

use crate::cli::doctor::check::{Check, Code};
use crate::cli::doctor::machine::can_be_made;
use crate::config::Settings;
use crate::node;
use crate::store::{ASSUMED_REGION, Bucket, Cause, ProbeFailed, StoreError};

/// Seconds by which clocks may differ. S3 refuses from a quarter of an hour on.
const CLOCK: i64 = 60;

/// Examines the store. `primary` is the primary's name in records, where there is one.
pub async fn check(settings: &Settings, primary: Option<&str>) -> Vec<Check> {
    let what = format!("store {}", settings.store);
    let bucket = match node::existing_bucket(settings).await {
        Ok(bucket) => bucket,
        Err(error) if error.cause() == Some(Cause::NoDirectory) => return vec![new(settings, what)],
        Err(error) => return vec![refused(what, &error)],
    };
    let mut checks = Vec::new();
    if bucket.region_is_assumed() {
        checks.push(Check::warning(
            Code::StoreNoRegion,
            &what,
            format!("no region is set, so the bucket is looked for in {ASSUMED_REGION}"),
            Cause::WrongRegion.advice(),
        ));
    }
    let probe = match bucket.probe().await {
        Ok(probe) => probe,
        Err(failed) => {
            checks.push(unfit(what, &failed));
            return checks;
        }
    };
    leave_no_folder(settings);
    let slowest = probe.steps.iter().map(|(_, took)| *took).max().unwrap_or_default();
    let promises = format!("{} promises kept, slowest answer {slowest:.0?}", probe.steps.len());
    checks.push(Check::good(Code::StoreOk, &what, promises));
    if probe.clock_ahead.abs() > CLOCK {
        checks.push(clock(Code::StoreClock, &what, probe.clock_ahead));
    }
    checks.extend(owner(&bucket, &what, primary).await);
    checks
}

/// A clock that differs from ours.
pub fn clock(code: Code, what: &str, ahead: i64) -> Check {
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let found = format!("its clock is {} s {way} this machine's", ahead.unsigned_abs());
    Check::warning(
        code,
        what,
        found,
        "let a time service run on both; signatures, tokens and ages depend on it",
    )
}

/// A directory that is not there yet.
fn new(settings: &Settings, what: String) -> Check {
    match can_be_made(directory(settings)) {
        Ok(()) => Check::warning(
            Code::StoreNew,
            what,
            "it does not exist yet; `packmirror serve` makes it",
            "nothing to do for a new mirror; for one that exists already, correct --store",
        ),
        Err(why) => Check::bad(
            Code::StoreUnwritable,
            what,
            format!("it does not exist, and cannot be made: {why}"),
            "name a directory that this user may make with --store",
        ),
    }
}

/// A store that could not be opened, or that answered no.
fn refused(what: String, error: &StoreError) -> Check {
    let found = error.chain();
    let (code, advice) = match error.cause() {
        Some(cause) => (code(cause), cause.advice()),
        None => match error {
            StoreError::Local { .. } => {
                (Code::StoreUnwritable, "let the user that runs `packmirror serve` own the directory")
            }
            StoreError::Unavailable { .. } => (
                Code::StoreUnreachable,
                "check s3.endpoint, the network and the server; nodes try again, and pass all requests on meanwhile",
            ),
            StoreError::NotFound { .. } | StoreError::Damaged { .. } | StoreError::Newer { .. } => {
                (Code::StoreFormat, "use the packmirror that made it, or a prefix of its own for this one")
            }
            StoreError::OtherPrimary { .. } => (Code::StoreOwner, ADOPT),
            StoreError::Refused { .. } => (
                Code::StoreAddress,
                "write s3://BUCKET/PREFIX or the full path of a directory, and the server as s3.endpoint",
            ),
        },
    };
    // What the error says of it itself need not be said twice.
    let found = found.strip_suffix(&format!("; {advice}")).unwrap_or(&found);
    Check::bad(code, what, found, advice)
}

fn code(cause: Cause) -> Code {
    match cause {
        Cause::NoCredentials => Code::StoreNoCredentials,
        Cause::WrongCredentials => Code::StoreWrongCredentials,
        Cause::ExpiredCredentials => Code::StoreExpiredCredentials,
        Cause::Denied => Code::StoreDenied,
        Cause::NoBucket => Code::StoreNoBucket,
        Cause::WrongRegion => Code::StoreWrongRegion,
        Cause::Clock => Code::StoreClock,
        Cause::NoDirectory => Code::StoreNew,
        Cause::Foreign => Code::StoreForeign,
    }
}

/// A store that did not pass the probe.
fn unfit(what: String, failed: &ProbeFailed) -> Check {
    match &failed.source {
        Some(
            error @ (StoreError::Refused { .. } | StoreError::Unavailable { .. } | StoreError::Local { .. }),
        ) => {
            let mut check = refused(what.clone(), error);
            if check.code == Code::StoreAddress {
                // It is there, and said no without a reason that is known.
                check.code = Code::StoreDenied;
                check.advice = Some(Cause::Denied.advice().to_owned());
                if !what.contains("s3://") {
                    check.code = Code::StoreUnwritable;
                    check.advice = Some(
                        "let this user own the directory, on a local file system with hard links".to_owned(),
                    );
                }
            }
            check
        }
        _ => Check::bad(
            Code::StorePromise,
            what,
            format!("{}: {}", failed.step, failed.explanation),
            "nodes refuse such a store; nothing was left behind that matters",
        ),
    }
}

const ADOPT: &str = "give each primary a prefix of its own (--store …/PREFIX); if it is the same host under a new address: \
    `packmirror adopt --from OLD`";

/// Whose mirror it is, and whether this program knows its layout.
async fn owner(bucket: &Bucket, what: &str, primary: Option<&str>) -> Option<Check> {
    let known = match bucket.check_format().await {
        Ok(true) => bucket.owner().await,
        Ok(false) => return None,
        Err(error) => Err(error),
    };
    match (known, primary) {
        (Err(error), _) => Some(refused(what.to_owned(), &error)),
        (Ok(Some(owner)), Some(primary)) if owner.primary != primary => Some(Check::bad(
            Code::StoreOwner,
            what,
            format!("it is the mirror of {}, not of {primary}", owner.primary),
            ADOPT.replace("OLD", &owner.primary),
        )),
        _ => None,
    }
}

/// The path of a store that is a directory.
fn directory(settings: &Settings) -> &Path {
    Path::new(settings.store.strip_prefix("file://").unwrap_or(&settings.store))
}

/// The probe leaves an empty folder in a directory; one that was empty stays so.
fn leave_no_folder(settings: &Settings) {
    if !settings.store.starts_with("s3://") {
        // Fails where something is in it, or there is none.
        let _ = std::fs::remove_dir(directory(settings).join(".probe"));
    }
}
