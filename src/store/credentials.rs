//! Credentials for S3: the AWS chain (profiles, SSO, web identity, containers, instances) plugged into `object_store`.
//!
//! `object_store` asks for a credential at every request. The chain's answer is kept until five minutes before it
//! expires, then renewed by one caller; while renewing fails the old one is used as long as it is good.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use super::cause::{Cause, Said};

/// Time before the expiry at which a credential is renewed.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// Time between two tries to renew a credential that is still good.
const PAUSE: Duration = Duration::from_secs(15);

/// The AWS chain with a memory.
pub(super) struct Chain {
    provider: SharedCredentialsProvider,
    kept: Mutex<Option<Kept>>,
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Kept {
    credential: Arc<AwsCredential>,
    expiry: Option<SystemTime>,
    /// Not to be renewed before.
    pause: Option<Instant>,
}

impl Kept {
    fn is_fresh(&self, now: SystemTime) -> bool {
        let paused = self.pause.is_some_and(|until| Instant::now() < until);
        self.expiry.is_none_or(|expiry| now + MARGIN < expiry || (paused && now < expiry))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain")
    }
}

impl Chain {
    pub(super) fn new(provider: SharedCredentialsProvider) -> Self {
        Self { provider, kept: Mutex::default(), renewing: Default::default() }
    }

    /// Drops what is kept: the store said that it has run out.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn fresh(&self) -> Option<Arc<AwsCredential>> {
        let now = SystemTime::now();
        self.lock().as_ref().filter(|kept| kept.is_fresh(now)).map(|kept| kept.credential.clone())
    }
}

#[async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        if let Some(credential) = self.fresh() {
            return Ok(credential);
        }
        let _one = self.renewing.lock().await;
        if let Some(credential) = self.fresh() {
            return Ok(credential);
        }
        match self.provider.provide_credentials().await {
            Ok(found) => {
                let credential = Arc::new(AwsCredential {
                    key_id: found.access_key_id().to_owned(),
                    secret_key: found.secret_access_key().to_owned(),
                    token: found.session_token().map(str::to_owned),
                });
                // A chain that hands out what is about to expire anyway must not be asked at every request.
                let pause = Some(Instant::now() + PAUSE);
                *self.lock() = Some(Kept { credential: credential.clone(), expiry: found.expiry(), pause });
                Ok(credential)
            }
            Err(error) => {
                let now = SystemTime::now();
                if let Some(kept) =
                    self.lock().as_mut().filter(|kept| kept.expiry.is_none_or(|end| now < end))
                {
                    tracing::warn!(
                        error = innermost(&error),
                        "cannot renew the S3 credentials yet; the present ones are still good"
                    );
                    kept.pause = Some(Instant::now() + PAUSE);
                    return Ok(kept.credential.clone());
                }
                Err(sorted(&error))
            }
        }
    }
}

/// Sorts what the chain says when it gives nothing, as one line.
fn sorted(error: &CredentialsError) -> object_store::Error {
    let refused = |words: String, cause| object_store::Error::Unauthenticated {
        path: "AWS credentials".into(),
        source: Box::new(Said { words, cause: Some(cause) }),
    };
    let why = innermost(error);
    match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            refused("no AWS credentials were found".into(), Cause::NoCredentials)
        }
        CredentialsError::InvalidConfiguration(_) => {
            refused(format!("the AWS configuration gives no credentials ({why})"), Cause::NoCredentials)
        }
        // The last of the chain: a machine that forbids to be asked has no role for us.
        _ if why.contains("IMDS is disabled") => {
            refused("no AWS credentials were found".into(), Cause::NoCredentials)
        }
        _ if ["expired", "ExpiredToken", "InvalidGrant"].iter().any(|word| why.contains(word)) => {
            refused(format!("the AWS credentials have run out ({why})"), Cause::ExpiredCredentials)
        }
        // A service that gives credentials is down, or in the way: it may come back.
        _ => object_store::Error::Generic {
            store: "AWS credentials",
            source: Box::new(Said { words: format!("no AWS credentials yet ({why})"), cause: None }),
        },
    }
}

/// The last cause of an error: what those above it say names only who asked whom.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let last = std::iter::successors(Some(error), |error| (*error).source()).last();
    last.map_or_else(String::new, |error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::future;

    /// Gives one answer after the other, then says no.
    #[derive(Debug)]
    struct Script(Mutex<Vec<Credentials>>);

    impl ProvideCredentials for Script {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let mut left = self.0.lock().unwrap();
            let next = if left.is_empty() { None } else { Some(left.remove(0)) };
            future::ProvideCredentials::ready(next.ok_or_else(|| CredentialsError::provider_error("down")))
        }
    }

    fn chain(answers: &[(&str, Option<u64>)]) -> Chain {
        let answers = answers.iter().map(|(key, secs)| {
            let expiry = secs.map(|secs| SystemTime::now() + Duration::from_secs(secs));
            Credentials::new(*key, "secret", None, expiry, "test")
        });
        Chain::new(SharedCredentialsProvider::new(Script(Mutex::new(answers.collect()))))
    }

    async fn key(chain: &Chain) -> object_store::Result<String> {
        Ok(chain.get_credential().await?.key_id.clone())
    }

    #[tokio::test]
    async fn a_credential_is_kept_until_shortly_before_it_expires() {
        let chain = chain(&[("first", Some(3600)), ("second", None)]);
        assert_eq!(key(&chain).await.unwrap(), "first");
        assert_eq!(key(&chain).await.unwrap(), "first");
        chain.lock().as_mut().unwrap().expiry = Some(SystemTime::now() + Duration::from_secs(299));
        chain.lock().as_mut().unwrap().pause = None;
        assert_eq!(key(&chain).await.unwrap(), "second");
        assert_eq!(key(&chain).await.unwrap(), "second", "without an expiry it stays");
    }

    #[tokio::test]
    async fn a_good_credential_outlives_a_broken_chain_but_an_expired_one_does_not() {
        let chain = chain(&[("only", Some(3600))]);
        key(&chain).await.unwrap();
        chain.lock().as_mut().unwrap().expiry = Some(SystemTime::now() + Duration::from_secs(60));
        chain.lock().as_mut().unwrap().pause = None;
        assert_eq!(key(&chain).await.unwrap(), "only");
        chain.lock().as_mut().unwrap().expiry = Some(SystemTime::now() - Duration::from_secs(1));
        assert!(key(&chain).await.is_err());
    }

    #[tokio::test]
    async fn a_credential_that_the_store_turned_down_is_not_used_again() {
        let chain = chain(&[("first", Some(3600)), ("second", Some(3600))]);
        assert_eq!(key(&chain).await.unwrap(), "first");
        chain.forget();
        assert_eq!(key(&chain).await.unwrap(), "second");
    }
    #[tokio::test]
    async fn what_the_chain_does_not_have_is_said_in_one_line() {
        let cases = [
            (
                CredentialsError::not_loaded("no providers in chain provided credentials"),
                Some(Cause::NoCredentials),
            ),
            (
                CredentialsError::invalid_configuration("profile `x` was not defined"),
                Some(Cause::NoCredentials),
            ),
            (
                CredentialsError::provider_error("the SSO token has expired\nand more"),
                Some(Cause::ExpiredCredentials),
            ),
            (CredentialsError::provider_error("503"), None),
        ];
        for (error, cause) in cases {
            let said = crate::store::StoreError::from_store("list", &"repos".into(), sorted(&error));
            assert_eq!(said.cause(), cause, "{said}");
            assert_eq!(said.is_transient(), cause.is_none(), "{said}");
            let line = said.chain();
            assert!(!line.contains('\n') && !line.contains("CredentialsError"), "{line}");
        }
    }
}
