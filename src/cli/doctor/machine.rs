//! This machine: the cache directory and its disk, the address to listen on, what the system allows one process.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{Access, access, statvfs};
use rustix::process::{Resource, getrlimit};

use super::check::{Check, Code};
use crate::config::Settings;
use crate::local::{Local, LocalError};

/// Files that a node has open beside those of connections.
const FILES: u64 = 1024;
/// Linux' own bound of mappings; a smaller one was set by somebody.
const MAPS: u64 = 65_530;
/// Entries of the cache that are counted for its size.
const MOST_COUNTED: usize = 1_000_000;

/// Examines the cache directory and the disk it lies on.
pub fn cache(settings: &Settings) -> Vec<Check> {
    let dir = &settings.cache_dir;
    let what = format!("cache {}", dir.display());
    if !dir.exists() {
        return match can_be_made(dir) {
            Ok(()) => {
                let mut checks = vec![Check::good(
                    Code::CacheNew,
                    &what,
                    "it does not exist yet; `packmirror serve` makes it",
                )];
                checks.extend(room(settings, &what, 0));
                checks
            }
            Err(why) => vec![Check::bad(
                Code::CacheUnwritable,
                what,
                format!("it does not exist, and cannot be made: {why}"),
                "name a directory that this user may make with --cache-dir",
            )],
        };
    }
    let mut checks = vec![match Local::examine(dir) {
        Err(error @ LocalError::InUse { .. }) => Check::warning(
            Code::CacheInUse,
            &what,
            error.to_string(),
            "nothing to do if that is this very node; each further one needs a --cache-dir of its own",
        ),
        Err(error @ LocalError::Unusable { .. }) => {
            Check::bad(Code::CacheUnwritable, &what, error.to_string(), OWN)
        }
        Err(error) => Check::bad(
            Code::CacheForeign,
            &what,
            error.to_string(),
            "name an empty or a new directory with --cache-dir",
        ),
        Ok(()) => match tempfile::tempfile_in(dir) {
            Ok(_) => Check::good(Code::CacheOk, &what, "can be written"),
            Err(error) => Check::bad(Code::CacheUnwritable, &what, error.to_string(), OWN),
        },
    }];
    checks.extend(room(settings, &what, size(dir)));
    checks
}

const OWN: &str =
    "let the user that runs `packmirror serve` own the directory, or name another with --cache-dir";

/// The nearest folder above a path that exists.
fn above(path: &Path) -> PathBuf {
    path.ancestors().find(|folder| folder.exists()).map_or_else(|| "/".into(), Path::to_owned)
}

/// Says why a directory that does not exist cannot be made, if so.
pub fn can_be_made(path: &Path) -> Result<(), String> {
    let above = above(path);
    if !above.is_dir() {
        return Err(format!("{} is no directory", above.display()));
    }
    access(&above, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("{}: {error}", above.display()))
}

/// Bytes that the cache has on disk now.
fn size(dir: &Path) -> u64 {
    let folders = std::fs::read_dir(dir.join("cache")).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files
        .take(MOST_COUNTED)
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.len())
        .fold(0, u64::saturating_add)
}

fn room(settings: &Settings, what: &str, has: u64) -> Option<Check> {
    let disk = statvfs(above(&settings.cache_dir)).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let fits = free.saturating_add(has) >= settings.cache_max;
    (!fits).then(|| {
        Check::warning(
            Code::CacheRoom,
            what,
            format!(
                "its disk has room for {} more, and cache_max is {}",
                HumanBytes(free),
                HumanBytes(settings.cache_max)
            ),
            "set a cache_max that leaves room for syncs as well, or use a larger disk",
        )
    })
}

/// Tries the addresses that `serve` would listen on.
pub fn listen(settings: &Settings) -> impl Iterator<Item = Check> {
    let admin = settings.admin_listen.map(|address| ("--admin-listen", address));
    std::iter::once(("--listen", settings.listen)).chain(admin).map(|(flag, address)| taken(flag, address))
}

fn taken(flag: &str, address: std::net::SocketAddr) -> Check {
    let what = format!("listening on {address}");
    match std::net::TcpListener::bind(address) {
        Ok(_) => Check::good(Code::ListenOk, what, "it is free"),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Check::warning(
            Code::ListenInUse,
            what,
            "another process listens there",
            format!(
                "nothing to do if that is this very node; otherwise choose another address with {flag} ADDR:PORT"
            ),
        ),
        Err(error) => Check::bad(
            Code::ListenRefused,
            what,
            error.to_string(),
            format!(
                "choose an address of this machine, and a port that this user may take, with {flag} ADDR:PORT"
            ),
        ),
    }
}

/// The file with the service credential: others must not read it. That it can be read is the primary's check.
#[cfg(unix)]
pub fn credential(settings: &Settings) -> Option<Check> {
    use std::os::unix::fs::PermissionsExt;
    let path = settings.credential_file.as_ref()?;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| {
        Check::warning(
            Code::PrimaryCredentialOpen,
            format!("credential {}", path.display()),
            "everybody on this machine can read it",
            format!("chmod 600 {}", path.display()),
        )
    })
}

/// What the system allows one process.
pub fn system(settings: &Settings) -> Vec<Check> {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    let maps = text.trim().parse().unwrap_or(MAPS);
    limits(files, maps, settings.limits.connections as u64)
}

fn limits(files: u64, maps: u64, connections: u64) -> Vec<Check> {
    let (mut checks, what) = (Vec::new(), "what the system allows");
    let needed = connections.saturating_add(FILES);
    if files < needed {
        checks.push(Check::warning(
            Code::SystemFiles,
            what,
            format!(
                "a process may have {files} files open, and limits.connections = {connections} needs {needed}"
            ),
            format!("LimitNOFILE={needed} in the unit, or ulimit -n {needed}; or fewer limits.connections"),
        ));
    }
    if maps < MAPS {
        checks.push(Check::warning(
            Code::SystemMaps,
            what,
            format!("a process may map {maps} files; what does not fit is held in memory"),
            "sysctl -w vm.max_map_count=262144",
        ));
    }
    if checks.is_empty() {
        checks.push(Check::good(Code::SystemOk, what, format!("{files} open files, {maps} mapped ones")));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_a_node_would_meet_are_named() {
        let codes =
            |files, maps| limits(files, maps, 4096).iter().map(|check| check.code).collect::<Vec<_>>();
        assert_eq!(codes(65_536, 65_530), [Code::SystemOk]);
        assert_eq!(codes(1024, 65_530), [Code::SystemFiles]);
        assert_eq!(codes(5_000, 1_000), [Code::SystemFiles, Code::SystemMaps]);
    }
}
