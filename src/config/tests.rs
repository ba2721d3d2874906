//! Tests of loading as a whole: precedence, refusals, redaction.

use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::error::Origin;
use super::keys::{KEYS, Kind};
use super::load::{Inputs, Loaded, load};
use super::show::show;
use super::{ConfigError, Freshness, Settings};

const CANARY: &str = "canary-4f1d:s3cr3t-4f1d";

fn inputs() -> Inputs {
    Inputs {
        here: "/work-dir".into(),
        data_dir: Some("/home/me/data".into()),
        cache_dir: Some("/home/me/cache".into()),
        ..Inputs::default()
    }
}

fn env(inputs: Inputs, pairs: &[(&str, &str)]) -> Inputs {
    let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Inputs { env, ..inputs }
}

fn flags(inputs: Inputs, pairs: &[(&'static str, &str)]) -> Inputs {
    let flags = pairs.iter().map(|(name, value)| (*name, vec![(*value).to_owned()])).collect();
    Inputs { flags, ..inputs }
}

fn file(inputs: Inputs, dir: &Path, text: &str) -> Inputs {
    let path = dir.join("packmirror.toml");
    std::fs::write(&path, text).unwrap();
    Inputs { file: Some(path), ..inputs }
}

fn refusal(inputs: &Inputs) -> String {
    match load(inputs) {
        Ok(_) => panic!("these settings should be refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn nothing_set_gives_the_defaults_of_the_table() {
    let loaded = load(&inputs()).unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.store, "/home/me/data/packmirror/store");
    assert_eq!(settings.cache_dir, Path::new("/home/me/cache/packmirror"));
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(settings.cache_max, 20 << 30);
    assert_eq!(settings.compare_every, Duration::from_secs(180));
    assert_eq!(settings.freshness, Freshness::Strict);
    assert!(!settings.s3.path_style);
    assert!(settings.credential().is_none());
    assert!(matches!(settings.primary(), Err(ConfigError::NoPrimary)));
    assert!(loaded.origins.values().all(|origin| *origin == Origin::Default));
}

#[test]
fn every_field_is_in_the_table_and_every_key_is_a_field() {
    let dir = tempfile::tempdir().unwrap();
    let all = env(inputs(), &[("PACKMIRROR__CREDENTIAL", CANARY)]);
    let all = file(
        all,
        dir.path(),
        "primary = 'https://git.example.com'
primary_ca_file = '/ca'
primary_address = '192.0.2.1:443'
trusted_proxies = ['::1']
admin_listen = '127.0.0.1:9090'
[s3]
endpoint = 'https://x'
region = 'r'",
    );
    let loaded = load(&all).unwrap();
    // credential and credential_file exclude each other; the former is not serialised.
    for key in KEYS.iter().filter(|key| !key.name.starts_with("credential")) {
        let value = toml::Value::try_from(&loaded.settings).unwrap();
        let found = key.name.split('.').try_fold(value, |value, part| value.get(part).cloned());
        assert!(found.is_some(), "{} is no field", key.name);
        assert!(loaded.origins.contains_key(key.name), "{} has no origin", key.name);
    }
}

#[test]
fn later_places_win() {
    let dir = tempfile::tempdir().unwrap();
    let text = "max_age = '1s'\ngrant_ttl = '1s'\nsync_wait = '1s'\n[s3]\nregion = 'from-file'\n";
    let vars = [
        ("AWS_REGION", "from-aws"),
        ("AWS_ENDPOINT_URL", "https://s3.example.com"),
        ("RUST_LOG", "debug"),
        ("PACKMIRROR__GRANT_TTL", "2s"),
        ("PACKMIRROR__SYNC_WAIT", "2s"),
        ("PACKMIRROR__MAX_AGE", ""),
        ("PACKMIRROR__S3__ALLOW_HTTP", "yes"),
        ("PACKMIRROR_PORT", "tcp://10.0.0.1:80"),
    ];
    let loaded = load(&flags(file(env(inputs(), &vars), dir.path(), text), &[("sync_wait", "3s")])).unwrap();
    let Loaded { settings, origins, .. } = &loaded;
    assert_eq!(settings.max_age, Duration::from_secs(1));
    assert_eq!(settings.grant_ttl, Duration::from_secs(2));
    assert_eq!(settings.sync_wait, Duration::from_secs(3));
    assert_eq!(settings.s3.region.as_deref(), Some("from-file"));
    assert_eq!(settings.s3.endpoint.as_deref(), Some("https://s3.example.com"));
    assert!(settings.s3.path_style, "an endpoint of one's own is reached by path");
    assert!(settings.s3.allow_http);
    assert_eq!(settings.log_level, "debug");
    for (key, from) in [
        ("max_age", dir.path().join("packmirror.toml").display().to_string()),
        ("grant_ttl", "PACKMIRROR__GRANT_TTL".into()),
        ("sync_wait", "--sync-wait".into()),
        ("s3.endpoint", "AWS_ENDPOINT_URL".into()),
        ("s3.path_style", "default".into()),
        ("log_level", "RUST_LOG".into()),
    ] {
        assert_eq!(origins[key].to_string(), from, "{key}");
    }
}

#[test]
fn the_environment_can_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut given = file(inputs(), dir.path(), "max_syncs = 9");
    let path = given.file.take().unwrap();
    let loaded = load(&env(given, &[("PACKMIRROR__CONFIG", path.to_str().unwrap())])).unwrap();
    assert_eq!(loaded.settings.max_syncs, 9);
    assert_eq!(loaded.file, Some(path));
}

#[test]
fn unknown_keys_are_all_named_with_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let text = "cachedir = '/x'\n[s3]\nendpiont = 'x'\n[nonsense]\na = 1\n";
    let message = refusal(&file(inputs(), dir.path(), text));
    assert!(message.contains("unknown key \"cachedir\" in "), "{message}");
    assert!(message.contains("did you mean \"cache_dir\"?"), "{message}");
    assert!(message.contains("did you mean \"s3.endpoint\"?"), "{message}");
    assert!(message.contains("\"nonsense\""), "{message}");
    let message = refusal(&env(inputs(), &[("PACKMIRROR__MAXAGE", "3s")]));
    assert_eq!(message, "unknown setting PACKMIRROR__MAXAGE; did you mean PACKMIRROR__MAX_AGE?");
}

#[test]
fn a_bad_value_is_refused_with_its_place_and_what_to_write() {
    for (key, value, why, write) in [
        ("max_age", "30", "\"30\" is no duration: time unit needed", "a duration such as"),
        ("max_age", "0s", "shorter than a second", "\"1s\" or more"),
        ("grant_ttl", "1h", "revoked", "\"5m\" or less"),
        ("cache_max", "lots", "no number", "a size such as"),
        ("cache_max", "1KiB", "too few blocks", "\"64MiB\""),
        ("listen", ":8080", "\":8080\" does not fit", "0.0.0.0:80"),
        ("listen", "localhost", "\"localhost\" does not fit", "127.0.0.1:8080"),
        ("freshness", "fresh", "\"fresh\"", "\"strict\" or \"bounded\""),
        ("max_syncs", "many", "not a number", "a whole number"),
        ("max_syncs", "0", "nothing could ever run", "above zero"),
        ("max_syncs", "-1", "-1 does not fit", "a whole number"),
        ("insecure_primary", "maybe", "neither true nor false", "true or false"),
        ("mirror", "team/[a", "team/[a", "globs such as"),
        ("trusted_proxies", "10.0.0.0/8,proxy.example", "\"proxy.example\" is no address", "10.0.0.0/8"),
        ("primary_address", "git.example.com:443", "does not fit", "127.0.0.1:8080"),
        ("other_paths", "proxy", "\"proxy\"", "\"redirect\" or \"pass\""),
        ("log_level", "inof", "\"inof\"", "error, warn, info"),
        ("primary", "git.example.com", "no directory", "\"https://git.example.com\""),
        ("primary", "git@example.com:x", "SSH", "HTTPS URL"),
        ("primary", "https://u:p@example.com/x", "user or password", "https://"),
        ("primary", "ssh://example.com/x", "other schemes", "https://"),
        ("primary", "http://git.example.com", "plain http", "insecure_primary"),
        ("primary", "https://git.example.com/?a=b", "query", "https://"),
        ("store", "https://s3.example.com/bucket", "server's URL", "s3://BUCKET/PREFIX"),
        ("store", "gs://bucket", "gs:// is not supported", "s3://"),
        ("store", "s3:///prefix", "bucket name", "s3://BUCKET"),
        ("store", "s3:/bucket/x", "neither the URL", "\"s3://bucket/x\""),
        ("store", "s3:bucket", "neither the URL", "\"s3://bucket\""),
        ("store", "S3://bucket/x", "S3:// is not supported", "\"s3://bucket/x\""),
        ("store", "gs:/bucket", "neither the URL", "s3://BUCKET/PREFIX"),
        ("primary", "https:/git.example.com", "is no URL", "\"https://git.example.com\""),
        ("primary", "HTTPS:git.example.com", "is no URL", "\"https://git.example.com\""),
        ("primary", "git.example.com:8443", "no directory", "\"https://git.example.com:8443\""),
        ("store", "~/store", "not expanded", "full path"),
        ("cache_dir", "~/cache", "not expanded", "full path"),
    ] {
        let name = KEYS.iter().find(|known| known.name == key).unwrap().name;
        let message = refusal(&flags(inputs(), &[(name, value)]));
        let flag = format!("(--{})", key.replace(['.', '_'], "-"));
        for part in [key, &flag, why, write] {
            assert!(message.contains(part), "{key} = {value}: {part:?} is not in: {message}");
        }
    }
}

#[test]
fn plain_http_needs_a_word_or_this_machine() {
    let with = |pairs: &[(&'static str, &str)]| flags(inputs(), pairs);
    load(&with(&[("primary", "http://127.0.0.1:3000")])).unwrap();
    load(&with(&[("primary", "http://localhost:3000/git")])).unwrap();
    load(&with(&[("primary", "http://git.example.com"), ("insecure_primary", "true")])).unwrap();
    load(&with(&[("store", "s3://b/p"), ("s3.endpoint", "http://[::1]:9000")])).unwrap();
    load(&with(&[("store", "s3://b/p"), ("s3.endpoint", "http://minio:9000"), ("s3.allow_http", "true")]))
        .unwrap();
    let message = refusal(&with(&[("store", "s3://b/p"), ("s3.endpoint", "http://minio:9000")]));
    assert!(message.contains("s3.allow_http = true"), "{message}");
    // An endpoint for other programs does not matter while the bucket is a directory.
    load(&env(inputs(), &[("AWS_ENDPOINT_URL", "http://minio:9000")])).unwrap();
}

#[test]
fn another_address_needs_a_name_without_a_port() {
    let at = |primary| flags(inputs(), &[("primary", primary), ("primary_address", "192.0.2.1:8443")]);
    load(&at("https://git.example.com/scm")).unwrap();
    for primary in ["https://git.example.com:8443", "https://192.0.2.2", "https://[::1]", "/srv"] {
        let message = refusal(&at(primary));
        assert!(message.contains("--primary-address") && message.contains("beside"), "{primary}: {message}");
    }
}

#[test]
fn networks_are_read_in_all_their_forms() {
    let text = "10.0.0.0/8, 192.0.2.1, 2001:db8::/32, ::ffff:192.0.2.7";
    let loaded = load(&flags(inputs(), &[("trusted_proxies", text)])).unwrap();
    let nets: Vec<_> = loaded.settings.trusted_proxies().iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "192.0.2.7/32"]);
}

#[test]
fn wrong_types_in_the_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (text, part) in [
        ("max_age = 30", "30 does not fit; write a duration such as"),
        ("cache_max = '5 boxes'", "\"boxes\" is not a unit of size"),
        ("store = 2026-01-01", "2026-01-01 does not fit"),
        ("listen = 8080", "an address and a port"),
        ("mirror = 'team/*'", "a list of globs"),
        ("mirror = [1]", "a list of globs"),
        ("max_syncs = '9'", "a whole number"),
        ("cache_max = -5", "a size such as"),
        ("s3 = 3", "unknown key \"s3\""),
        ("insecure_primary = 'yes'", "true or false"),
    ] {
        let message = refusal(&file(inputs(), dir.path(), text));
        assert!(message.contains(part), "{text}: {message}");
        assert!(message.contains("packmirror.toml"), "{text}: {message}");
    }
    load(&file(inputs(), dir.path(), "cache_max = 1073741824")).unwrap();
}

#[test]
fn relative_paths_belong_to_the_place_they_stand_in() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("repositories")).unwrap();
    let text = "store = 'bucket'\nprimary = 'repositories'\n";
    let loaded = load(&flags(file(inputs(), dir.path(), text), &[("cache_dir", "cache")])).unwrap();
    assert_eq!(Path::new(&loaded.settings.store), dir.path().join("bucket"));
    assert_eq!(Path::new(loaded.settings.primary().unwrap()), dir.path().join("repositories"));
    assert_eq!(loaded.settings.cache_dir, Path::new("/work-dir/cache"));
}

#[test]
fn a_credential_comes_from_one_place() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "from:file\n").unwrap();
    let secret = secret.to_str().unwrap();
    let get = |settings: &Settings| settings.credential().map(|secret| secret.expose_secret().to_owned());
    let file_of = |settings: &Settings| settings.credential_file.clone();

    let text = format!("credential_file = '{secret}'");
    let loaded = load(&file(inputs(), dir.path(), &text)).unwrap();
    assert_eq!(get(&loaded.settings), None);
    assert_eq!(file_of(&loaded.settings).as_deref(), Some(Path::new(secret)));

    let vars = [("PACKMIRROR__CREDENTIAL", "12345")];
    let loaded = load(&env(file(inputs(), dir.path(), &text), &vars)).unwrap();
    assert_eq!(get(&loaded.settings).as_deref(), Some("12345"));
    assert_eq!(file_of(&loaded.settings), None);

    let loaded = load(&flags(env(inputs(), &vars), &[("credential_file", secret)])).unwrap();
    assert_eq!(get(&loaded.settings), None);
    assert_eq!(file_of(&loaded.settings).as_deref(), Some(Path::new(secret)));

    let message = refusal(&file(inputs(), dir.path(), &format!("credential = '{CANARY}'\n{text}")));
    assert!(message.contains("keep one of them"), "{message}");
}

#[test]
fn a_secret_appears_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(&file(inputs(), dir.path(), &format!("credential = '{CANARY}'"))).unwrap();
    assert_eq!(loaded.settings.credential().unwrap().expose_secret(), CANARY);
    let shown = show(&loaded).unwrap();
    let mut texts = vec![shown.clone(), format!("{loaded:?}"), format!("{:#?}", loaded.settings)];
    texts.push(serde_json::to_string(&loaded.settings).unwrap());
    assert!(shown.contains("# credential is set and not shown (from "), "{shown}");

    for text in [
        format!("credential = '{CANARY}"),
        format!("credential = ['{CANARY}']"),
        format!("credential = {{ password = '{CANARY}' }}"),
        format!("primary = 'https://{CANARY}@git.example.com'"),
        format!("store = 's3://{CANARY}@bucket/prefix'"),
    ] {
        texts.push(refusal(&file(inputs(), dir.path(), &text)));
    }
    texts.push(refusal(&env(inputs(), &[("PACKMIRROR__CREDENTIALS", CANARY)])));
    for text in texts {
        for part in ["4f1d", "s3cr3t"] {
            assert!(!text.contains(part), "the canary sings in: {text}");
        }
    }
}

#[test]
fn a_syntax_error_names_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let message = refusal(&file(inputs(), dir.path(), "max_age = '3s'\n\nlisten = = 3\n"));
    assert!(message.contains("line 3"), "{message}");
    let absent = Inputs { file: Some(dir.path().join("absent.toml")), ..inputs() };
    assert!(refusal(&absent).contains("cannot be read"));
}

#[test]
fn what_is_shown_loads_to_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let given = [
        ("primary", "https://git.example.com/\"q\""),
        ("mirror", "team/*"),
        ("s3.region", "eu-west-1"),
        ("cache_max", "1.5GiB"),
        ("compare_every", "1h 30m"),
    ];
    let first = load(&flags(inputs(), &given)).unwrap();
    let shown = show(&first).unwrap();
    assert!(shown.contains("# --compare-every"), "{shown}");
    let second = load(&file(inputs(), dir.path(), &shown)).unwrap();
    let plain = |loaded: &Loaded| toml::to_string(&loaded.settings).unwrap();
    assert_eq!(plain(&first), plain(&second));
    for key in KEYS {
        let member = key.name.rsplit('.').next().unwrap();
        assert!(shown.contains(member), "{} is not shown", key.name);
    }
}

#[test]
fn without_a_home_the_message_says_what_to_set() {
    let homeless = Inputs { here: "/".into(), ..Inputs::default() };
    assert!(refusal(&homeless).contains("--store"));
    load(&flags(homeless, &[("store", "/s"), ("cache_dir", "/c")])).unwrap();
}

#[test]
fn every_kind_says_what_to_write() {
    for key in KEYS {
        assert!(!key.kind.example().is_empty());
        assert!(!key.help.ends_with('.'), "{}", key.name);
        assert_eq!(key.kind == Kind::Secret, key.flag().is_none());
    }
}
