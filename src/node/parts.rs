//! The parts of a node, each out of the settings: commands that need only some of them use these too.

use std::path::Path;

use crate::config::Settings;
use crate::local::{Local, LocalOptions};
use crate::primary::{BadCredential, Credential, Location, Primary, PrimarySettings, farm_token};
use crate::store::{ASSUMED_REGION, Bucket, StoreError, StoreOptions};

/// Opens the bucket that the settings name; a directory is made if it is missing.
pub async fn bucket(settings: &Settings) -> Result<Bucket, StoreError> {
    let bucket = open(settings, true).await?;
    if bucket.region_is_assumed() {
        tracing::warn!(
            "no region is set, so the bucket is looked for in {ASSUMED_REGION}: set s3.region, or AWS_REGION"
        );
    }
    Ok(bucket)
}

/// Opens the bucket that the settings name, and makes nothing: for whoever reads only.
pub async fn existing_bucket(settings: &Settings) -> Result<Bucket, StoreError> {
    open(settings, false).await
}

async fn open(settings: &Settings, make: bool) -> Result<Bucket, StoreError> {
    let options = StoreOptions {
        make,
        endpoint: settings.s3.endpoint.clone(),
        region: settings.s3.region.clone(),
        path_style: settings.s3.path_style.then_some(true),
        allow_http: settings.s3.allow_http,
        ..StoreOptions::default()
    };
    Bucket::open(&settings.store, &options).await
}

/// Takes the service credential that the settings hold or name, if any; it is checked now.
pub async fn credential(settings: &Settings) -> Result<Option<Credential>, BadCredential> {
    match (settings.credential(), &settings.credential_file) {
        (Some(secret), _) => Credential::fixed(secret.clone()).map(Some),
        (None, Some(path)) => Credential::file(path).await.map(Some),
        (None, None) => Ok(None),
    }
}

/// Opens the primary that the settings name, with the service credential.
pub async fn primary(settings: &Settings) -> anyhow::Result<Primary> {
    let location = Location::parse(settings.primary()?, settings.insecure_primary)?;
    let mut to = PrimarySettings::new(location);
    to.credential = credential(settings).await?;
    to.ca_file = settings.primary_ca_file.clone();
    to.address = settings.primary_address;
    if settings.store.starts_with("s3://") {
        to.token = farm_token(&[
            &to.location.to_string(),
            settings.s3.endpoint.as_deref().unwrap_or_default(),
            settings.store.trim_end_matches('/'),
        ]);
    }
    to.allow_push = settings.allow_push;
    to.timeouts.connect = settings.primary_connect_timeout;
    to.timeouts.idle = settings.primary_read_timeout;
    Ok(Primary::open(to).await?)
}

/// Opens this node's cache in `dir`.
pub async fn local(settings: &Settings, dir: &Path, bucket: &Bucket) -> anyhow::Result<Local> {
    let options = LocalOptions { max_bytes: settings.cache_max, ..LocalOptions::default() };
    let (dir, bucket) = (dir.to_owned(), bucket.clone());
    // It lists the directory and may replay an index.
    Ok(crate::threads::spawn_blocking(move || Local::open(&dir, &options, bucket)).await??)
}
