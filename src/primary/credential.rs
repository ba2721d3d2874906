//! The service credential: what sync shows the primary. It is never used for a client's request.
//!
//! It comes from a setting or from a file; a file is read again at each use, so that a rotated secret is
//! taken up without a restart, and while the file is being replaced the last good value goes on.
//! Relies on: nothing here prints a secret; `Debug` is redacted and header values are marked sensitive.
//! Elsewhere: clients' own credentials, which only travel inside [`super::ClientHeaders`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

/// The longest credential that is taken, in bytes: one header line must hold it.
const LONGEST: usize = 16 * 1024;

/// A credential for the primary: `user:password` (sent as `Basic`) or a bare token (sent as `Bearer`).
/// Clones share what a file last said.
#[derive(Clone)]
pub struct Credential(Arc<Origin>);

enum Origin {
    Fixed(SecretString),
    File { path: PathBuf, last: Mutex<Option<SecretString>> },
}

impl Credential {
    /// Takes the credential itself, from a setting or the environment; checked now.
    pub fn fixed(secret: SecretString) -> Result<Self, BadCredential> {
        header(&secret)
            .map_err(|wrong| BadCredential::Wrong { from: "the setting `credential`".into(), wrong })?;
        Ok(Self(Arc::new(Origin::Fixed(secret))))
    }

    /// Names the file that holds the credential; read now, so that a wrong path is found at start,
    /// and again at each use.
    pub async fn file(path: impl Into<PathBuf>) -> Result<Self, BadCredential> {
        let path = path.into();
        warn_if_others_can_read(&path).await;
        let credential = Self(Arc::new(Origin::File { path, last: Mutex::default() }));
        credential.authorization().await?;
        Ok(credential)
    }

    /// Gives the value of the `Authorization` header, marked sensitive; a file that cannot be read is an error.
    pub async fn authorization(&self) -> Result<HeaderValue, BadCredential> {
        let (path, last) = match &*self.0 {
            Origin::Fixed(secret) => {
                return header(secret).map_err(|wrong| BadCredential::Wrong {
                    from: "the setting `credential`".into(),
                    wrong,
                });
            }
            Origin::File { path, last } => (path, last),
        };
        let read = read(path).await.and_then(|secret| {
            let value = header(&secret)
                .map_err(|wrong| BadCredential::Wrong { from: path.display().to_string(), wrong })?;
            Ok((secret, value))
        });
        match read {
            Ok((secret, value)) => {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(secret);
                Ok(value)
            }
            Err(error) => {
                let last = last.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(Ok(value)) = last.as_ref().map(header) else { return Err(error) };
                tracing::warn!(%error, "the credential file is unusable; going on with what it said before");
                Ok(value)
            }
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Origin::Fixed(_) => f.write_str("Credential(redacted)"),
            Origin::File { path, .. } => write!(f, "Credential(redacted, from {})", path.display()),
        }
    }
}

/// A credential that cannot be used; the text says where it came from, never what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCredential {
    /// The file cannot be read. Check `credential_file` and the rights on it.
    #[error("cannot read the credential file {path}: {why}")]
    Unreadable {
        /// The file as configured.
        path: String,
        /// The operating system's reason.
        why: String,
    },
    /// There is something, but no credential.
    #[error("{from} holds no credential: {wrong}; write `user:password` or a token on one line")]
    Wrong {
        /// The file or the setting.
        from: String,
        /// What is wrong with it.
        wrong: &'static str,
    },
}

async fn read(path: &Path) -> Result<SecretString, BadCredential> {
    let unreadable = |why: String| BadCredential::Unreadable { path: path.display().to_string(), why };
    let size = tokio::fs::metadata(path).await.map_err(|error| unreadable(error.to_string()))?.len();
    if size > LONGEST as u64 {
        return Err(BadCredential::Wrong { from: path.display().to_string(), wrong: "it is too long" });
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| unreadable(error.to_string()))?;
    Ok(SecretString::from(text))
}

/// The header for a credential: RFC 7617 for `user:password`, RFC 6750 for a token.
fn header(secret: &SecretString) -> Result<HeaderValue, &'static str> {
    let text = secret.expose_secret().trim();
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > LONGEST {
        return Err("it is too long");
    }
    if text.chars().any(char::is_control) {
        return Err("it has more than one line or control characters in it");
    }
    let value = if text.contains(':') {
        format!("Basic {}", STANDARD.encode(text))
    } else if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        format!("Bearer {text}")
    } else {
        return Err("a token is made of visible ASCII characters");
    };
    let mut value = HeaderValue::try_from(value).map_err(|_| "it does not fit into a header")?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(unix)]
async fn warn_if_others_can_read(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Ok(meta) = tokio::fs::metadata(path).await
        && meta.permissions().mode() & 0o004 != 0
    {
        tracing::warn!(file = %path.display(), "everybody on this machine can read the credential file; chmod 600 it");
    }
}

#[cfg(not(unix))]
async fn warn_if_others_can_read(_path: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(credential: &Credential) -> String {
        credential.authorization().await.unwrap().to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_pair_is_basic_and_a_token_is_bearer() {
        let fixed = |text: &str| Credential::fixed(SecretString::from(text)).unwrap();
        assert_eq!(said(&fixed("alice:open:sesame")).await, "Basic YWxpY2U6b3BlbjpzZXNhbWU=");
        assert_eq!(said(&fixed("tok-123\n")).await, "Bearer tok-123");
        let value = fixed("tok-123").authorization().await.unwrap();
        assert!(value.is_sensitive() && !format!("{value:?}").contains("tok"));
    }

    #[test]
    fn what_is_no_credential_is_refused_without_being_shown() {
        for bad in ["", " \n", "two\nlines-canary", "tok canary", "tök-canary", "a:b\0canary"] {
            let error = Credential::fixed(SecretString::from(bad)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
        assert!(Credential::fixed(SecretString::from("x".repeat(LONGEST + 1))).is_err());
    }

    #[tokio::test]
    async fn a_file_is_followed_and_outlives_its_replacement() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credential");
        assert!(matches!(Credential::file(&path).await, Err(BadCredential::Unreadable { .. })));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Credential::file(&path).await, Err(BadCredential::Wrong { .. })));

        std::fs::write(&path, "first-canary\n").unwrap();
        let credential = Credential::file(&path).await.unwrap();
        assert_eq!(said(&credential).await, "Bearer first-canary");
        assert!(!format!("{credential:?}").contains("canary"));
        std::fs::write(&path, "u:second").unwrap();
        assert!(said(&credential).await.starts_with("Basic "));
        std::fs::remove_file(&path).unwrap();
        assert!(said(&credential).await.starts_with("Basic "), "the last good value goes on");
        std::fs::write(&path, "third").unwrap();
        assert_eq!(said(&credential).await, "Bearer third");
    }
}
