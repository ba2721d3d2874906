//! Opening a bucket by its URL.
//!
//! `s3://bucket/prefix` for S3 and everything that speaks it, a directory (a path or `file:///…`) as the embedded
//! default, `memory:///` for tests. Static `AWS_*` keys come first, then the whole AWS chain ([`super::credentials`]).

use std::net::IpAddr;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use object_store::ClientOptions;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, RetryConfig};
use url::Url;

use super::aws::Asking;
use super::bucket::{Bucket, Parts, default_policy};
use super::cause::Cause;
use super::credentials::Chain;
use super::directory::Directory;
use super::error::StoreError;
use super::metered::Metered;
use crate::retry::Policy;

/// Longest time for one request with its body: a part of 16 MiB at 140 kB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest time without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time for a connection to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The region where none is set: own servers take it, and so do the oldest buckets of Amazon.
pub const ASSUMED_REGION: &str = "us-east-1";

/// How to reach a store, beside its URL. Everything has a default; environment variables that AWS tools know fill what
/// is not set here.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Address of the S3 server if it is not Amazon's (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT`).
    pub endpoint: Option<String>,
    /// Region of the bucket (`AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's, the instance's).
    pub region: Option<String>,
    /// Write the bucket into the path instead of the host name. Unset: yes with an own endpoint, no at Amazon.
    pub path_style: Option<bool>,
    /// Allow plain HTTP to a host that is not this one.
    pub allow_http: bool,
    /// Make the directory if it is missing. Without, and it is: an error.
    pub make: bool,
    /// How patiently requests are repeated.
    pub retry: Policy,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
            make: true,
            retry: default_policy(),
        }
    }
}

impl Bucket {
    /// Opens the store at `url`, a URL or the path of a directory. Reads the environment; asks nothing of the store yet.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        open(url, options, &|name| std::env::var(name).ok().filter(|value| !value.is_empty())).await
    }
}

type Env<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

async fn open(text: &str, options: &StoreOptions, env: Env<'_>) -> Result<Bucket, StoreError> {
    let bad = |why: &str| StoreError::refused(format!("open {text}"), why);
    if !text.contains("://") {
        return directory(FilePath::new(text), options);
    }
    let url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        // Without repeating it: it may hold a secret.
        return Err(StoreError::refused("open the store", "its URL must not hold credentials"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("a store's URL has no query and no fragment"));
    }
    match url.scheme() {
        "file" => {
            directory(&url.to_file_path().map_err(|()| bad("not the URL of a directory here"))?, options)
        }
        "memory" => {
            let prefix = prefix(&url).map_err(|error| bad(&error))?;
            let memory = Arc::new(InMemory::new());
            let (store, numbered) = (Metered::around(memory.clone()), Some(memory as _));
            let (uploads, name, policy) = (store.clone(), "memory".into(), options.retry.clone());
            Ok(Bucket::build(Parts {
                store,
                uploads,
                numbered,
                prefix,
                name,
                ordered: true,
                policy,
                region_is_assumed: false,
                renew: None,
            }))
        }
        "s3" => s3(&url, options, env).await,
        other => Err(bad(&format!("unknown scheme {other}: use s3://bucket/prefix or a directory"))),
    }
}

/// The path of a URL as a key prefix.
fn prefix(url: &Url) -> Result<Path, String> {
    Path::from_url_path(url.path()).map_err(|error| error.to_string())
}

/// A directory.
fn directory(path: &FilePath, options: &StoreOptions) -> Result<Bucket, StoreError> {
    if path.as_os_str().is_empty() {
        return Err(StoreError::refused("open the store", "no directory given"));
    }
    let store = Metered::around(Arc::new(Directory::open(path, options.make)?));
    let path = std::fs::canonicalize(path).map_err(|error| StoreError::local(path, error))?;
    Ok(Bucket::build(Parts {
        uploads: store.clone(),
        numbered: None,
        store,
        prefix: Path::default(),
        name: path.display().to_string(),
        ordered: false,
        policy: options.retry.clone(),
        region_is_assumed: false,
        renew: None,
    }))
}

async fn s3(url: &Url, options: &StoreOptions, env: Env<'_>) -> Result<Bucket, StoreError> {
    crate::tls::provide();
    let bad = |why: String| StoreError::refused(format!("open {url}"), why);
    let bucket =
        url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| bad("no bucket in the URL".into()))?;
    let prefix = prefix(url).map_err(bad)?;

    let first = |names: &[&str]| names.iter().find_map(|name| env(name));
    let endpoint = options
        .endpoint
        .clone()
        .or_else(|| first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]));
    let allow_http = options.allow_http || env("AWS_ALLOW_HTTP").is_some_and(|value| value == "true");
    if let Some(endpoint) = &endpoint {
        check_endpoint(endpoint, allow_http).map_err(bad)?;
    }
    let mut region = options.region.clone().or_else(|| first(&["AWS_REGION", "AWS_DEFAULT_REGION"]));

    let path_style = options.path_style.unwrap_or(endpoint.is_some());
    let client = ClientOptions::new()
        .with_allow_http(endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")))
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_virtual_hosted_style_request(!path_style);
    let mut renew: Option<Arc<dyn Fn() + Send + Sync>> = None;
    match (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
            if let Some(token) = env("AWS_SESSION_TOKEN") {
                builder = builder.with_token(token);
            }
        }
        (Some(_), None) | (None, Some(_)) => {
            let why = "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set";
            return Err(StoreError::refused_for(Cause::NoCredentials, format!("open {url}"), why));
        }
        (None, None) => {
            let asking = Asking::new().map_err(|error| bad(format!("cannot set up TLS: {error}")))?;
            let config = aws_config::defaults(BehaviorVersion::latest()).http_client(asking).load().await;
            region = region.or_else(|| config.region().map(|region| region.to_string()));
            let no_provider = || {
                StoreError::refused_for(
                    Cause::NoCredentials,
                    format!("open {url}"),
                    "no AWS credentials were found",
                )
            };
            let provider = config.credentials_provider().ok_or_else(no_provider)?;
            let chain = Arc::new(Chain::new(provider));
            builder = builder.with_credentials(chain.clone());
            renew = Some(Arc::new(move || chain.forget()));
        }
    }
    let name = match &endpoint {
        Some(endpoint) => format!("{url} at {endpoint}"),
        None => url.to_string(),
    };
    let at_amazon = endpoint.is_none();
    if let Some(endpoint) = endpoint {
        let endpoint = if path_style { endpoint } else { with_bucket(&endpoint, bucket).map_err(bad)? };
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    let region_is_assumed = region.is_none() && at_amazon;
    builder = builder.with_region(region.unwrap_or_else(|| ASSUMED_REGION.into()));
    let build = |retry| -> Result<Arc<AmazonS3>, StoreError> {
        let built = builder.clone().with_retry(retry).build();
        built.map(Arc::new).map_err(|error| bad(error.to_string()))
    };
    let policy = options.retry.clone();
    // Requests are repeated by our policy, which signs each one anew; only parts of uploads need the library's retries.
    let store = Metered::around(build(RetryConfig { max_retries: 0, ..RetryConfig::default() })?);
    let uploads = build(part_retries(&policy))?;
    Ok(Bucket::build(Parts {
        store,
        numbered: Some(uploads.clone()),
        uploads: Metered::around(uploads),
        prefix,
        name,
        ordered: true,
        policy,
        region_is_assumed,
        renew,
    }))
}

/// An own endpoint for addresses with the bucket in the host name.
fn with_bucket(endpoint: &str, bucket: &str) -> Result<String, String> {
    let bad = || format!("endpoint {endpoint}: the bucket cannot stand before this host; use path_style");
    let mut url = Url::parse(endpoint).map_err(|_| bad())?;
    let Some(url::Host::Domain(host)) = url.host() else { return Err(bad()) };
    let host = format!("{bucket}.{host}");
    url.set_host(Some(&host)).map_err(|_| bad())?;
    Ok(url.to_string())
}

/// Plain HTTP shows repositories and lets anybody on the way change them: only to this machine, or when told so.
fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), String> {
    let url = Url::parse(endpoint).map_err(|error| format!("endpoint {endpoint}: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the endpoint must not hold credentials".into());
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if allow_http || is_loopback(&url) => Ok(()),
        "http" => Err(format!(
            "endpoint {endpoint} is plain HTTP: use https, or allow it with the setting s3.allow_http if the network \
             between is yours"
        )),
        other => Err(format!("endpoint {endpoint}: {other} is not http or https")),
    }
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Retries of parts of an upload, at the policy's pace.
fn part_retries(policy: &Policy) -> RetryConfig {
    // object_store panics when it has to choose a wait from an empty range.
    let init_backoff = policy.bound(1).max(Duration::from_millis(1));
    let max_backoff = policy.bound(u32::MAX).max(init_backoff);
    RetryConfig { backoff: BackoffConfig { init_backoff, max_backoff, base: 2.0 }, ..RetryConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(name: &str) -> Option<String> {
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].contains(&name).then(|| "x".to_owned())
    }

    #[tokio::test]
    async fn a_directory_is_made_and_belongs_to_its_user() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let bucket = Bucket::open(path.to_str().unwrap(), &StoreOptions::default()).await.unwrap();
        bucket.probe().await.unwrap();
        bucket.ensure_format().await.unwrap();
        assert!(path.join("format").exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
        let url = Url::from_file_path(&path).unwrap();
        let again = Bucket::open(url.as_str(), &StoreOptions::default()).await.unwrap();
        again.ensure_format().await.unwrap();
        assert_eq!(again.name(), bucket.name());
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().join("sub");
        let error = Bucket::open(path.to_str().unwrap(), &StoreOptions::default()).await.unwrap_err();
        assert!(matches!(error, StoreError::Local { .. }), "{error}");
    }

    #[tokio::test]
    async fn urls_that_are_wrong_or_dangerous_are_refused() {
        for (url, word) in [
            ("ftp://x/y", "scheme"),
            ("s3://", ""),
            ("s3://user:secret@bucket/x", "credentials"),
            ("s3://bucket/x?y=z", "query"),
            ("", "directory"),
        ] {
            let error = open(url, &StoreOptions::default(), &keys).await.unwrap_err().chain();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("secret@"), "{error}");
        }
    }

    #[tokio::test]
    async fn plain_http_needs_loopback_or_leave() {
        for (endpoint, allow, fine) in [
            ("https://minio.example.com", false, true),
            ("http://minio.example.com", false, false),
            ("http://minio.example.com", true, true),
            ("http://localhost:9000", false, true),
            ("http://127.0.0.2:9000/", false, true),
            ("http://[::1]:9000", false, true),
            ("http://127.0.0.1.example.com", false, false),
            ("minio.example.com:9000", false, false),
            ("https://key:secret@minio.example.com", false, false),
        ] {
            let endpoint = Some(endpoint.to_owned());
            let options =
                StoreOptions { endpoint: endpoint.clone(), allow_http: allow, ..Default::default() };
            let opened = open("s3://bucket/prefix", &options, &keys).await;
            assert_eq!(opened.is_ok(), fine, "{endpoint:?} {allow}: {opened:?}");
        }
    }

    #[tokio::test]
    async fn a_region_that_nobody_set_is_known_to_be_assumed() {
        let (options, region) = (StoreOptions::default(), |name: &str| match name {
            "AWS_REGION" => Some("eu-central-1".to_owned()),
            name => keys(name),
        });
        let own = StoreOptions { endpoint: Some("https://minio.example.com".into()), ..options.clone() };
        for (options, env, assumed) in
            [(&options, &keys as Env<'_>, true), (&options, &region, false), (&own, &keys, false)]
        {
            let bucket = open("s3://bucket/x", options, env).await.unwrap();
            assert_eq!(bucket.region_is_assumed(), assumed);
        }
        let half = |name: &str| (name == "AWS_ACCESS_KEY_ID").then(|| "x".to_owned());
        let error = open("s3://bucket/x", &options, &half).await.unwrap_err();
        assert_eq!(error.cause(), Some(Cause::NoCredentials), "{error}");
    }

    #[test]
    fn the_bucket_can_stand_in_the_host_name() {
        assert_eq!(
            with_bucket("https://s3.example.com:8443", "b").unwrap(),
            "https://b.s3.example.com:8443/"
        );
        assert!(with_bucket("http://127.0.0.1:9000", "b").is_err());
    }

    #[tokio::test]
    async fn the_environment_fills_what_is_not_set() {
        let env = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://minio.example.com".to_owned()),
            name => keys(name),
        };
        assert!(
            open("s3://bucket", &StoreOptions::default(), &env).await.is_err(),
            "plain HTTP from the environment"
        );
        let env = |name: &str| match name {
            "AWS_ALLOW_HTTP" => Some("true".to_owned()),
            name => env(name),
        };
        let bucket = open("s3://bucket/a%20b/c", &StoreOptions::default(), &env).await.unwrap();
        assert_eq!(bucket.name(), "s3://bucket/a%20b/c at http://minio.example.com");
        assert_eq!(bucket.at(&"format".into()).to_string(), "a b/c/format");
    }
}
