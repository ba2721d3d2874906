//! What kind of host the primary is, as far as it matters for names: whether two spellings are one repository.
//!
//! A host counts as case-sensitive unless it is known for sure to ignore case: to take two repositories for one would show
//! the content of one to readers of the other. The answer to a question for one repository's own spelling is believed only where it
//! differs in case alone. Relies on: the names and interfaces of the hosts. Elsewhere: what follows from it (`mirror`).

use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use super::body::collect;
use super::client::too_late;
use super::{Auth, Body, Line, Location, Outgoing, Primary, PrimaryError};
use crate::git::path::{Endpoint, RepoPath};

/// Hosts whose names say what they are.
const KNOWN: [&str; 5] = ["github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "gitea.com"];
/// The most bytes of an answer about the host or a repository.
const MOST_ANSWER: usize = 256 * 1024;

/// How a host names repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Two spellings are two repositories, as far as we know.
    Exact,
    /// Case does not matter, and where to ask for the right one.
    AnyCase(Interface),
}

/// Which interface tells a repository's own spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// Gitea, Forgejo.
    Gitea,
    /// GitLab.
    GitLab,
    /// GitHub Enterprise Server.
    GitHub,
    /// None that could be asked on the same origin.
    None,
}

impl Primary {
    /// Finds out how the host names repositories, from its own name or from what its interfaces answer to nobody in
    /// particular.
    pub async fn naming(&self) -> Result<Naming, PrimaryError> {
        let Location::Http(url) = &self.settings().location else { return Ok(Naming::Exact) };
        if url.host_str().is_some_and(|host| KNOWN.contains(&host)) {
            let is_gitea = matches!(url.host_str(), Some("codeberg.org" | "gitea.com"));
            return Ok(Naming::AnyCase(match url.host_str() {
                _ if is_gitea => Interface::Gitea,
                Some("gitlab.com") => Interface::GitLab,
                _ => Interface::None,
            }));
        }
        let (status, _, found) = self.question("api/v1", "version", HeaderMap::new()).await?;
        if status == StatusCode::OK && found["version"].is_string() {
            return Ok(Naming::AnyCase(Interface::Gitea));
        }
        let (_, headers, _) = self.question("api/v4", "version", HeaderMap::new()).await?;
        if headers.contains_key("x-gitlab-meta") {
            return Ok(Naming::AnyCase(Interface::GitLab));
        }
        let (_, headers, _) = self.question("api/v3", "meta", HeaderMap::new()).await?;
        if headers.contains_key("x-github-enterprise-version") {
            return Ok(Naming::AnyCase(Interface::GitHub));
        }
        let (_, _, found) = self.question("rest/api/1.0", "application-properties", HeaderMap::new()).await?;
        if found["displayName"].as_str().is_some_and(|name| name.contains("Bitbucket")) {
            return Ok(Naming::AnyCase(Interface::None));
        }
        Ok(Naming::Exact)
    }

    /// The spelling that the host itself uses for a repository, where it tells; it differs in case at most.
    pub async fn own_spelling(&self, repo: &RepoPath, interface: Interface) -> Option<RepoPath> {
        let plain = repo.as_str().strip_suffix(".git").unwrap_or(repo.as_str());
        let suffix = &repo.as_str()[plain.len()..];
        let (prefix, rest, key) = match interface {
            Interface::Gitea => ("api/v1/repos", plain.to_owned(), "full_name"),
            Interface::GitHub => ("api/v3/repos", plain.to_owned(), "full_name"),
            Interface::GitLab => return self.gitlab_spelling(repo, plain, suffix).await,
            Interface::None => return None,
        };
        if plain.split('/').count() != 2 {
            return None;
        }
        let headers = self.headers(Auth::Service).await.ok()?;
        let (status, _, found) = self.question(prefix, &rest, headers).await.ok()?;
        accepted(repo, suffix, found[key].as_str().filter(|_| status == StatusCode::OK)?)
    }

    /// GitLab names projects in one escaped segment, and search by path is what needs no such escapes.
    async fn gitlab_spelling(&self, repo: &RepoPath, plain: &str, suffix: &str) -> Option<RepoPath> {
        let (_, name) = plain.rsplit_once('/')?;
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("search", name)
            .append_pair("simple", "true")
            .append_pair("per_page", "100")
            .finish();
        let headers = self.headers(Auth::Service).await.ok()?;
        let (_, _, found) = self.ask_with("api/v4", "projects", Some(query), headers).await.ok()?;
        let names = found.as_array()?.iter().filter_map(|project| project["path_with_namespace"].as_str());
        names.filter_map(|name| accepted(repo, suffix, name)).next()
    }

    async fn question(
        &self,
        prefix: &str,
        rest: &str,
        headers: HeaderMap,
    ) -> Result<(StatusCode, HeaderMap, Value), PrimaryError> {
        self.ask_with(prefix, rest, None, headers).await
    }

    /// Asks the host for something that is no repository's; an answer that is no JSON is nothing.
    async fn ask_with(
        &self,
        prefix: &str,
        rest: &str,
        query: Option<String>,
        mut headers: HeaderMap,
    ) -> Result<(StatusCode, HeaderMap, Value), PrimaryError> {
        let limit = self.settings().timeouts.question;
        super::client::common_headers(&mut headers);
        headers.remove("git-protocol");
        let bad = |error: crate::git::path::BadPath| PrimaryError::Protocol(error.to_string());
        let outgoing = Outgoing {
            line: Line::Own,
            method: Method::GET,
            repo: RepoPath::parse(prefix).map_err(bad)?,
            endpoint: Endpoint::Plain(rest.to_owned()),
            query,
            headers,
            body: Body::Empty,
        };
        let asked = timeout(limit, async {
            let response = self.exchange(outgoing).await?;
            if matches!(response.status.as_u16(), 408 | 429 | 500 | 502..=504 | 508) {
                // It may know better later.
                return Err(super::answer::sort(response.status, &response.headers));
            }
            let body = collect(response.body, MOST_ANSWER).await?.unwrap_or_default();
            let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            Ok((response.status, response.headers, value))
        });
        asked.await.unwrap_or_else(|_| Err(too_late(limit)))
    }
}

/// Takes a spelling that differs from `repo` in case alone. Anything else would be another repository, such as the one
/// that a renamed one leads to.
fn accepted(repo: &RepoPath, suffix: &str, name: &str) -> Option<RepoPath> {
    let own = RepoPath::parse(&format!("{name}{suffix}")).ok()?;
    own.as_str().eq_ignore_ascii_case(repo.as_str()).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_case_may_differ() {
        let repo = RepoPath::parse("alice/DEMO.git").unwrap();
        let taken = |name: &str| accepted(&repo, ".git", name).map(|own| own.to_string());
        assert_eq!(taken("Alice/Demo"), Some("Alice/Demo.git".into()));
        for other in ["alice/demo2", "bob/demo", "alice/demo.git", "../demo", ""] {
            assert_eq!(taken(other), None, "{other}");
        }
    }
}
