//! How the demo's clients and nodes show a primary of the user's who they are.
//!
//! The settings name a credential, or the primary takes everybody, or git's helpers have one for it. Clients show it to
//! the primary and to the demo's nodes, which git knows nothing of, as a header in git's settings: these
//! travel in the environment, never on a command line. Nodes get it for their syncs the same way.

use std::path::Path;

use secrecy::SecretString;
use url::Url;

use super::DemoError;
use super::git::Git;
use crate::config::Settings;
use crate::node;

/// A credential for the primary.
#[derive(Debug, Default)]
pub struct Access {
    /// The header line that clients send; none where the primary asks for nothing.
    pub header: Option<SecretString>,
    /// What nodes are to show, where their settings do not say it already.
    pub for_node: Option<SecretString>,
}

/// Finds out what the repository at `direct` asks for.
pub async fn access(
    git: &Git,
    settings: &Settings,
    direct: &str,
    scratch: &Path,
) -> Result<Access, DemoError> {
    if !direct.contains("://") {
        return Ok(Access::default());
    }
    if let Some(credential) = node::credential(settings).await? {
        let value = credential.authorization().await?;
        return Ok(Access { header: value.to_str().ok().map(line), for_node: None });
    }
    let quiet = ["-c", "credential.helper=", "-c", "core.askPass=true", "ls-remote", "-q", direct, "HEAD"];
    if git.run(scratch, &quiet).await.is_ok() {
        return Ok(Access::default());
    }
    let Some(found) = ask(git, direct, scratch).await else { return Ok(Access::default()) };
    let credential = crate::primary::Credential::fixed(found.clone())?;
    let value = credential.authorization().await?;
    Ok(Access { header: value.to_str().ok().map(line), for_node: Some(found) })
}

fn line(value: &str) -> SecretString {
    format!("Authorization: {value}").into()
}

/// Asks git's helpers, and the user if there is a terminal, as git itself would.
async fn ask(git: &Git, direct: &str, scratch: &Path) -> Option<SecretString> {
    let url = Url::parse(direct).ok()?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path = url.path().trim_start_matches('/');
    let question = format!("protocol={}\nhost={}{port}\npath={path}\n\n", url.scheme(), url.host_str()?);
    let answer = git.feed(scratch, &["credential", "fill"], question.into_bytes()).await.ok()?;
    let field = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Some(format!("{}:{}", field("username")?, field("password")?).into())
}
