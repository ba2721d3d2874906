//! Checks of whole settings: what types alone cannot say. Each refusal tells what to write instead.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::error::{ConfigError, Origin};
use super::{GRANT_TTL_MAX, Selection, Settings};
use crate::primary::{BadLocation, Location};
use crate::telemetry::log;
use crate::text::safe;

/// The smallest cache that still holds a few blocks of each pack in flight.
const CACHE_MIN: u64 = 64 << 20;

/// Refuses settings that cannot work or that would be unsafe.
pub fn check(settings: &Settings, origins: &BTreeMap<&'static str, Origin>) -> Result<(), ConfigError> {
    let bad = |key: &'static str, why: String, write: &str| {
        let origin = origins.get(key).cloned().unwrap_or(Origin::Default);
        Err(ConfigError::Bad { key, origin, why, write: write.to_owned() })
    };
    if let Some(primary) = &settings.primary
        && let Err((why, write)) = primary_fits(primary, settings.insecure_primary)
    {
        return bad("primary", why, &write);
    }
    if settings.primary_address.is_some()
        && let Some(primary) = &settings.primary
        && !Location::parse(primary, settings.insecure_primary).is_ok_and(|at| at.may_be_elsewhere())
    {
        return bad(
            "primary_address",
            "it stands for the address of a name, with the port that the name's URL leaves out".into(),
            "it only beside a primary such as \"https://git.example.com\"",
        );
    }
    if let Err((why, write)) = store_fits(&settings.store) {
        return bad("store", why, &write);
    }
    if settings.store.starts_with("s3://")
        && let Some(endpoint) = &settings.s3.endpoint
        && let Err((why, write)) = endpoint_fits(endpoint, settings.s3.allow_http)
    {
        return bad("s3.endpoint", why, &write);
    }
    for (key, path) in [
        ("cache_dir", Some(&settings.cache_dir)),
        ("credential_file", settings.credential_file.as_ref()),
        ("primary_ca_file", settings.primary_ca_file.as_ref()),
    ] {
        if path.is_some_and(|path| !path.is_absolute()) {
            return bad(
                key,
                "\"~\" is not expanded here, and a path must not be empty".into(),
                "the full path",
            );
        }
    }
    if settings.cache_max < CACHE_MIN {
        return bad(
            "cache_max",
            "the cache would hold too few blocks to serve from".into(),
            "\"64MiB\" or more",
        );
    }
    if let Err(why) = log::filter(&settings.log_level) {
        return bad(
            "log_level",
            why.to_string(),
            "error, warn, info, debug or trace, or a filter such as packmirror=debug,warn",
        );
    }
    if let Err(glob) = Selection::new(&settings.mirror) {
        return bad(
            "mirror",
            format!("\"{}\": {}", glob.glob, glob.why),
            "globs such as [\"team/*\", \"!team/secret\"]",
        );
    }
    if settings.admin_listen.is_some_and(|admin| admin == settings.listen && admin.port() != 0) {
        return bad(
            "admin_listen",
            "it is the same as `listen`".into(),
            "another port, such as \"127.0.0.1:9090\"",
        );
    }
    if settings.grant_ttl > GRANT_TTL_MAX {
        return bad(
            "grant_ttl",
            "a revoked credential would be served for too long".into(),
            "\"5m\" or less",
        );
    }
    for (key, pace) in [
        ("compare_every", settings.compare_every),
        ("max_age", settings.max_age),
        ("primary_connect_timeout", settings.primary_connect_timeout),
        ("primary_read_timeout", settings.primary_read_timeout),
        ("limits.client_timeout", settings.limits.client_timeout),
        ("limits.transfer", settings.limits.transfer),
    ] {
        if pace < Duration::from_secs(1) {
            return bad(key, "it is shorter than a second".into(), "\"1s\" or more");
        }
    }
    if settings.gc.grace < settings.limits.transfer {
        return bad(
            "gc.grace",
            format!(
                "data could be deleted under a stream that may last for {} (limits.transfer)",
                humantime::format_duration(settings.limits.transfer)
            ),
            "a duration that is not shorter than limits.transfer",
        );
    }
    if !settings.gc.every.is_zero() && settings.gc.every < Duration::from_secs(1) {
        return bad("gc.every", "it is shorter than a second".into(), "\"1s\" or more, or \"0s\" for never");
    }
    for (key, every) in
        [("vet.exists_every", settings.vet.exists_every), ("vet.hash_every", settings.vet.hash_every)]
    {
        if !every.is_zero() && every < Duration::from_secs(1) {
            return bad(key, "it is shorter than a second".into(), "\"1s\" or more, or \"0s\" for never");
        }
    }
    if settings.vet.rate < 64 << 10 {
        return bad("vet.rate", "what is stored would hardly ever be read".into(), "\"64KiB\" or more");
    }
    for (key, count) in [
        ("max_syncs", settings.max_syncs),
        ("max_new_per_minute", settings.max_new_per_minute),
        ("max_repositories", settings.max_repositories),
        ("limits.connections", settings.limits.connections),
    ] {
        if count == 0 {
            return bad(key, "nothing could ever run".into(), "a whole number above zero");
        }
    }
    for (key, bytes) in
        [("limits.request", settings.limits.request), ("limits.object", settings.limits.object)]
    {
        if bytes < 64 << 10 {
            return bad(key, "ordinary requests would be refused".into(), "\"64KiB\" or more");
        }
    }
    for (key, bytes) in
        [("limits.memory", settings.limits.memory), ("limits.sync_memory", settings.limits.sync_memory)]
    {
        if bytes < 16 << 20 {
            return bad(key, "hardly anything would fit".into(), "\"16MiB\" or more");
        }
    }
    Ok(())
}

type Wrong = (String, String);

fn wrong(why: &str, write: &str) -> Result<(), Wrong> {
    Err((why.to_owned(), write.to_owned()))
}

fn primary_fits(primary: &str, insecure: bool) -> Result<(), Wrong> {
    if primary.contains("://") || Path::new(primary).is_absolute() {
        // The room that talks to primaries knows which addresses it takes, and says so in its errors.
        let example = "for example \"https://git.example.com\" or \"/srv/git\"";
        return Location::parse(primary, insecure)
            .map(drop)
            .map_err(|bad| (bad.to_string(), example.to_owned()));
    }
    if let Some((scheme, rest)) = primary.split_once(':')
        && ["http", "https", "file"].contains(&scheme.to_ascii_lowercase().as_str())
    {
        return wrong(
            &format!("\"{}\" is no URL", safe(primary)),
            &format!("\"{}://{}\"", scheme.to_ascii_lowercase(), safe(rest.trim_start_matches('/'))),
        );
    }
    if primary.contains('@') {
        return wrong("SSH is not spoken to a primary", "its HTTPS URL, such as \"https://git.example.com\"");
    }
    let host = primary.split('/').next().unwrap_or_default();
    wrong(
        &format!("there is no directory \"{}\"", safe(primary)),
        &format!("\"https://{}\" for a host, or the full path of a directory", safe(host)),
    )
}

/// Whether a text begins like a URL: `s3:`, `https:`. A host with a port does too.
pub(super) fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
}

fn store_fits(store: &str) -> Result<(), Wrong> {
    let Some((scheme, rest)) = store.split_once("://") else {
        if has_scheme(store) {
            let (scheme, rest) = store.split_once(':').unwrap_or_default();
            return wrong(
                &format!(
                    "\"{}\" is neither the URL of a bucket nor the full path of a directory",
                    safe(store)
                ),
                &match scheme.to_ascii_lowercase().as_str() {
                    "s3" => format!(
                        "\"s3://{}\"; a directory of that name is \"./{}\"",
                        safe(rest.trim_matches('/')),
                        safe(store)
                    ),
                    _ => "s3://BUCKET/PREFIX or a directory".to_owned(),
                },
            );
        }
        return if Path::new(store).is_absolute() {
            Ok(())
        } else {
            wrong(
                "\"~\" is not expanded here, and a path must not be empty",
                "the full path, or s3://BUCKET/PREFIX",
            )
        };
    };
    match scheme {
        "s3" => {
            let bucket = rest.split('/').next().unwrap_or_default();
            if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) {
                return wrong(
                    "there is no plain bucket name in it",
                    "s3://BUCKET/PREFIX; credentials come from AWS_… or a profile",
                );
            }
            if rest.contains(['?', '#']) {
                return wrong(
                    "it has a query or a fragment",
                    "s3://BUCKET/PREFIX, and the rest as s3.… settings",
                );
            }
            Ok(())
        }
        "file" if rest.starts_with('/') => Ok(()),
        "file" => wrong("its path is not absolute", "file:///FULL/PATH, or just the path"),
        "memory" => Ok(()),
        "http" | "https" => wrong(
            "a bucket is not named by its server's URL",
            "s3://BUCKET/PREFIX, and the server as s3.endpoint",
        ),
        scheme if scheme.eq_ignore_ascii_case("s3") => {
            wrong(&format!("{}:// is not supported", safe(scheme)), &format!("\"s3://{}\"", safe(rest)))
        }
        scheme => wrong(
            &format!("{}:// is not supported", safe(scheme)),
            "s3://BUCKET/PREFIX (with s3.endpoint for a server that is not Amazon's) or a directory",
        ),
    }
}

fn endpoint_fits(endpoint: &str, allow_http: bool) -> Result<(), Wrong> {
    match Location::parse(endpoint, allow_http) {
        Ok(Location::Http(_)) => Ok(()),
        Err(BadLocation::PlainHttp) => wrong(
            "repositories would travel in the clear over plain HTTP",
            "https://…, or set s3.allow_http = true if that network is trusted",
        ),
        Err(BadLocation::Userinfo) => {
            wrong("it carries a credential", "the URL without it; credentials come from AWS_… or a profile")
        }
        Ok(Location::Directory(_)) | Err(_) => {
            wrong("it is not the URL of a server", "for example \"https://s3.example.com\"")
        }
    }
}
