//! The primary: is it a Git host, and can a repository of it be mirrored with the service credential.

use super::check::{Check, Code};
use super::store::clock;
use crate::config::{ConfigError, Settings};
use crate::git::path::RepoPath;
use crate::node;
use crate::primary::{Answers, Auth, BadCredential, FetchSpec, Primary, PrimaryError, Seen};
use crate::text::chain;

/// Seconds by which clocks may differ.
const CLOCK: i64 = 60;

/// Opens the primary, or says why it cannot be.
pub async fn open(settings: &Settings) -> Result<Primary, Box<Check>> {
    let what = what(settings);
    let error = match node::primary(settings).await {
        Ok(primary) => return Ok(primary),
        Err(error) => error,
    };
    let found = format!("{error:#}");
    let (code, advice) = if error.is::<BadCredential>() {
        (
            Code::PrimaryCredential,
            "write `user:password` or a token on one line of credential_file, for this user to read",
        )
    } else if matches!(error.downcast_ref(), Some(PrimaryError::CaFile(_))) {
        (Code::PrimaryCaFile, "name a PEM file with the authority's certificate as primary_ca_file")
    } else if matches!(error.downcast_ref(), Some(ConfigError::NoPrimary)) {
        (Code::PrimaryNone, "name the URL of a Git host, or a directory, with --primary")
    } else {
        (
            Code::PrimaryDirectory,
            "name the full path of a directory of bare repositories with --primary, and install git",
        )
    };
    Err(Box::new(Check::bad(code, what, found, advice)))
}

fn what(settings: &Settings) -> String {
    settings.primary.as_ref().map_or_else(|| "primary".to_owned(), |primary| format!("primary {primary}"))
}

/// Examines what is at the primary's address. `named`: whether a repository is examined as well, which tells more.
pub async fn host(settings: &Settings, primary: &Primary, named: bool) -> Vec<Check> {
    let what = what(settings);
    let examined = match primary.examine().await {
        Ok(examined) => examined,
        Err(error) => return vec![silent(what, &error)],
    };
    let name_one = "name a repository of it: `packmirror doctor REPO`";
    let mut checks: Vec<Check> = Vec::new();
    checks.extend(match examined.answers {
        Answers::Git(how) => Some(Check::good(Code::PrimaryOk, &what, format!("a Git host: {how}"))),
        Answers::Repositories => Some(Check::good(Code::PrimaryOk, &what, "a directory with repositories")),
        Answers::NoRepositories => Some(Check::bad(
            Code::PrimaryNoRepositories,
            &what,
            "there is no repository in it",
            "name the directory above the repositories with --primary",
        )),
        // What a named repository answers is sure.
        Answers::NotGit(_) | Answers::Unknown(_) if named => None,
        Answers::NotGit(found) => Some(Check::bad(
            Code::PrimaryNotGit,
            &what,
            format!("no Git host: {found}"),
            format!("name what stands before team/app.git in a clone's URL with --primary; if it is right, {name_one}"),
        )),
        Answers::Moved(to) => Some(Check::bad(
            Code::PrimaryMoved,
            &what,
            format!("it sends requests to {to}, and redirects are not followed"),
            format!("name that address with --primary {to}"),
        )),
        Answers::Unknown(found) => Some(Check::warning(
            Code::PrimaryUnknown,
            &what,
            format!("{found}: whether it is a Git host cannot be told without a repository"),
            name_one,
        )),
    });
    if let Some(ahead) = examined.clock_ahead.filter(|ahead| ahead.abs() > CLOCK) {
        checks.push(clock(Code::PrimaryClock, &what, ahead));
    }
    checks
}

/// A primary that gave no answer.
fn silent(what: String, error: &PrimaryError) -> Check {
    let found = chain(error);
    match error {
        PrimaryError::ServerError { .. } => Check::bad(
            Code::PrimaryTrouble,
            what,
            found,
            "look at the Git host; nothing is served while it is in trouble",
        ),
        PrimaryError::Loops => Check::bad(
            Code::PrimaryLoops,
            what,
            found,
            "set primary_address to where the primary itself is: its name leads to the mirror here",
        ),
        _ if found.contains("certificate") => Check::bad(
            Code::PrimaryCertificate,
            what,
            found,
            "name the authority that signed it as primary_ca_file, or the name that stands in it as --primary",
        ),
        PrimaryError::Protocol(_) | PrimaryError::NotGit(_) => Check::bad(
            Code::PrimaryNotGit,
            what,
            found,
            "name what stands before team/app.git in a clone's URL with --primary",
        ),
        _ => Check::bad(
            Code::PrimaryUnreachable,
            what,
            found,
            "check the address, the name service, the network, and proxies on the way",
        ),
    }
}

/// Examines a repository as a sync would see it.
pub async fn repository(settings: &Settings, primary: &Primary, name: &str) -> Vec<Check> {
    let what = format!("repository {name}");
    let path = match RepoPath::parse(name.trim_matches('/')) {
        Ok(path) => path,
        Err(error) => {
            let advice = "write the path of its URL without the leading slash, such as team/app.git";
            return vec![Check::bad(Code::RepositoryName, what, error.to_string(), advice)];
        }
    };
    let mut checks = Vec::new();
    if settings.selection().is_ok_and(|selection| !selection.selects(path.as_str())) {
        let found = match settings.unselected {
            crate::config::Unselected::Pass => "the setting `mirror` leaves it out: it is passed through",
            crate::config::Unselected::Refuse => "the setting `mirror` leaves it out: it is refused",
        };
        checks.push(Check::bad(
            Code::RepositoryNotSelected,
            &what,
            found,
            "add a glob that matches it to `mirror`",
        ));
    }
    let looked = primary.seen(&path, Auth::Service).await;
    let whole = match looked {
        Ok(seen) => whole(primary, &path, &seen).await.map(|()| seen),
        Err(error) => Err(error),
    };
    match whole {
        Err(error) => checks.push(unfit(what, &error)),
        Ok(seen) => {
            let credential = if primary.settings().credential.is_some() {
                "with the service credential"
            } else {
                "for everybody"
            };
            checks.push(match seen.refs.refs.len() {
                0 => Check::good(Code::RepositoryEmpty, &what, format!("readable {credential}, and empty")),
                n => Check::good(
                    Code::RepositoryOk,
                    &what,
                    format!("readable {credential}, {n} refs, protocol v2"),
                ),
            });
            if let Some(first) = primary.note_left_out(&path, &seen.left_out) {
                let advice = "mend these refs at the primary; the others are mirrored";
                checks.push(Check::warning(Code::RepositoryLeftOut, &what, first, advice));
            }
        }
    }
    checks
}

/// Whether its history is whole: a shallow repository says so at the beginning of each fetch. This one asks for nothing
/// beyond what it says to have.
async fn whole(primary: &Primary, path: &RepoPath, seen: &Seen) -> Result<(), PrimaryError> {
    let Some(tip) = seen.refs.tips().into_iter().next() else { return Ok(()) };
    let spec = FetchSpec { wants: vec![tip], haves: vec![tip], hash: seen.refs.hash };
    primary.fetch(path, &spec, None).await.map(drop)
}

/// A repository that cannot be mirrored.
fn unfit(what: String, error: &PrimaryError) -> Check {
    let (code, advice) = match error {
        PrimaryError::NotFound => (
            Code::RepositoryMissing,
            "write the path of its URL, such as team/app.git; a host may also hide what the service credential may not read",
        ),
        PrimaryError::LeadsOut => (
            Code::RepositoryLink,
            "move it into the directory, or name a directory above both with --primary",
        ),
        PrimaryError::NeedsCredential { .. } => (
            Code::RepositoryNeedsCredential,
            "put `user:password` or a token that may read it into a file, and name that as credential_file",
        ),
        PrimaryError::Denied { .. } => (
            Code::RepositoryRefused,
            "renew the service credential, or give its account the right to read the repository",
        ),
        PrimaryError::Shallow => {
            (Code::RepositoryShallow, "run `git fetch --unshallow` in it, at the primary")
        }
        PrimaryError::NoV2 => (
            Code::RepositoryNoV2,
            "use a host that speaks protocol v2, and no proxy in between that drops the header Git-Protocol",
        ),
        PrimaryError::Dumb => (Code::RepositoryDumb, "serve it by git http-backend, or another smart server"),
        PrimaryError::Moved { .. } => {
            (Code::RepositoryMoved, "use the new name, or name the new address with --primary")
        }
        PrimaryError::NotGit(_) => {
            (Code::PrimaryNotGit, "name what stands before team/app.git in a clone's URL with --primary")
        }
        PrimaryError::Unreachable(_)
        | PrimaryError::Timeout(_)
        | PrimaryError::ServerError { .. }
        | PrimaryError::Loops => return silent(what, error),
        PrimaryError::Protocol(_)
        | PrimaryError::Remote(_)
        | PrimaryError::Costs(_)
        | PrimaryError::CaFile(_)
        | PrimaryError::Settings(_) => {
            (Code::RepositoryUnfit, "it is passed through until that is mended at the primary")
        }
    };
    Check::bad(code, what, chain(error), advice)
}
