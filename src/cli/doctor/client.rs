//! `packmirror doctor --client URL`: would git on this machine use the mirror for URL, with which credential, and what to change.
//!
//! Git is asked, not imitated: what it makes of the address, what its configuration has for it, what its helpers answer, and
//! in the end whether it reaches the repository. No secret is shown. Needs no settings of a node.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use url::Url;

use super::address::{has_password, near_miss, rule_for, rules, shown};
use super::{Check, Code};
use crate::cli::git_credential::{Message, netrc};

/// How long git may take for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at what git on this machine does with `address`; `via` is the mirror that it should use, where that is known.
pub async fn checks(address: &str, via: Option<&Url>) -> Vec<Check> {
    let mut all = vec![git_itself().await];
    if all.iter().any(|check| check.code == Code::ClientGitMissing) {
        return all;
    }
    let target = git(&["ls-remote", "--get-url", address], &[]).await.text();
    let target = if target.is_empty() { address.to_owned() } else { target };
    let path = way(address, &target, via).await;
    let bypassed = path.code != Code::ClientAddressOk;
    all.push(path);
    if bypassed {
        return all;
    }
    all.push(credential(address, &target).await);
    all.extend(surroundings(&target).await);
    all.push(answer(address, &target).await);
    all
}

async fn git_itself() -> Check {
    let what = "git";
    let version = git(&["version"], &[]).await.text();
    let Some(number) = version.strip_prefix("git version ") else {
        return Check::bad(Code::ClientGitMissing, what, "cannot be run", "install git, or add it to PATH");
    };
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let found = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if found < (2, 26) {
        let advice =
            "from 2.26 on git asks for the refs that it needs alone; in older ones set protocol.version to 2";
        return Check::warning(Code::ClientGitOld, what, number, advice);
    }
    Check::good(Code::ClientGitOk, what, number)
}

/// Where git goes, and by which rule.
async fn way(address: &str, target: &str, via: Option<&Url>) -> Check {
    let what = format!("address {}", shown(address));
    let printed = git(&["config", "-z", "--show-origin", "--get-regexp", "^url\\."], &[]).await.stdout;
    let all = rules(&printed, "insteadof");
    let mirror =
        via.map_or_else(|| "https://MIRROR".to_owned(), |via| via.as_str().trim_end_matches('/').to_owned());
    let is_there =
        |url: &str| Url::parse(url).is_ok_and(|url| via.is_some_and(|via| via.origin() == url.origin()));
    let Some(rule) = rule_for(&all, address) else {
        if is_there(target) {
            return Check::good(Code::ClientAddressOk, what, "is the mirror's own");
        }
        if let Some((rule, beginning)) = near_miss(&all, address) {
            let found = format!(
                "git goes there itself: the rule for {} ({}) does not fit, since addresses are compared letter by letter",
                rule.value, rule.origin
            );
            let advice = match beginning {
                Some(beginning) => {
                    format!("git config --global --add url.{}.insteadOf {beginning}", rule.base)
                }
                None => "leave user and password out of the address, and give them by a credential helper; \
                         a CI system that writes such addresses has a setting for them, see docs/clients.md"
                    .to_owned(),
            };
            return Check::bad(Code::ClientSpelling, what, found, advice);
        }
        let primary = super::address::plain(address).and_then(|url| Url::parse(&url).ok());
        let primary =
            primary.map_or_else(|| address.to_owned(), |url| url.origin().ascii_serialization() + "/");
        return Check::bad(
            Code::ClientNoRule,
            what,
            "git goes there itself: no rule leads it to a mirror",
            format!("git config --global --add url.{mirror}/.insteadOf {primary}"),
        );
    };
    let found = format!("git goes to {} by the rule for {} ({})", shown(target), rule.value, rule.origin);
    if via.is_some() && !is_there(target) {
        let advice = format!(
            "git config --global url.{mirror}/.insteadOf {}, or a longer beginning; the longest rule counts",
            rule.value
        );
        return Check::bad(Code::ClientOtherHost, what, found, advice);
    }
    let pushes = rules(&printed, "pushinsteadof");
    match rule_for(&pushes, address) {
        Some(push) => {
            let pushes = address.replacen(&push.value, &push.base, 1);
            Check::good(Code::ClientAddressOk, what, format!("{found}; pushes go to {}", shown(&pushes)))
        }
        None => Check::good(Code::ClientAddressOk, what, found),
    }
}

/// A credential that git has for an address, and where it is from.
struct Known {
    place: &'static str,
    secret: Message,
}

/// What git has for an address without asking anybody.
async fn known(address: &str) -> Option<Known> {
    let empty = Message::default;
    if has_password(address) {
        return Some(Known { place: "in the address", secret: empty() });
    }
    let header = git(&["config", "--get-urlmatch", "http.extraheader", address], &[]).await.text();
    if header.get(..14).is_some_and(|name| name.eq_ignore_ascii_case("authorization:")) {
        return Some(Known { place: "in http.extraheader", secret: empty() });
    }
    let url = Url::parse(address).ok()?;
    let login = Some(url.username()).filter(|name| !name.is_empty());
    let home = std::env::var_os("HOME").unwrap_or_default();
    if let Some((login, password)) = netrc::lookup(&Path::new(&home).join(".netrc"), url.host_str()?, login) {
        let mut secret = empty();
        secret.push("username", login);
        secret.push("password", password);
        return Some(Known { place: "in .netrc", secret });
    }
    let asked = format!("url={address}\n\n");
    let answer = git(&["credential", "fill"], asked.as_bytes()).await;
    let secret = Message::read(answer.stdout.as_slice()).ok()?;
    secret.get("password").or(secret.get("credential"))?;
    Some(Known { place: "from a credential helper", secret })
}

async fn credential(address: &str, target: &str) -> Check {
    let what = format!("credential for {}", shown(target));
    let (ours, theirs) = (known(target).await, known(address).await);
    let asks = std::env::var_os("GIT_ASKPASS").is_some_and(|program| !program.is_empty());
    match (ours, theirs) {
        (Some(ours), Some(theirs))
            if !ours.secret.same_secret(&theirs.secret) && ours.place == theirs.place =>
        {
            Check::warning(
                Code::ClientCredentialDiffers,
                what,
                format!("{}, and another one for {}", ours.place, shown(address)),
                "the primary judges it: it has to be one of the primary's; the helper of docs/clients.md keeps one for both",
            )
        }
        (Some(ours), _) => {
            let user =
                ours.secret.get("username").map(|user| format!(", for {}", String::from_utf8_lossy(user)));
            Check::good(Code::ClientCredentialOk, what, ours.place.to_owned() + &user.unwrap_or_default())
        }
        (None, _) if asks => Check::good(
            Code::ClientCredentialOk,
            what,
            "the program in GIT_ASKPASS is asked; it has to answer for the mirror's name",
        ),
        (None, Some(theirs)) => {
            let origin = |text: &str| Url::parse(text).map(|url| url.origin().ascii_serialization());
            let (mirror, primary) = (origin(target).unwrap_or_default(), origin(address).unwrap_or_default());
            Check::bad(
                Code::ClientNoCredential,
                what,
                format!("none; for {} there is one, {}", shown(address), theirs.place),
                format!(
                    "git config --global --add credential.{mirror}.helper \
                     '!packmirror git-credential --for {mirror} --primary {primary}'"
                ),
            )
        }
        (None, None) => Check::warning(
            Code::ClientAnonymous,
            what,
            "none, and none for the primary",
            "enough for public repositories; otherwise sign in to the primary first, then see docs/clients.md",
        ),
    }
}

/// What lies between git and the mirror, and beside it.
async fn surroundings(target: &str) -> Vec<Check> {
    let mut all = Vec::new();
    let set = async |key: &str| git(&["config", "--get-urlmatch", key, target], &[]).await.text();
    let proxy = set("http.proxy").await;
    if !proxy.is_empty() {
        let advice = "if the mirror is nearer than the proxy: set http.<mirror>.proxy to the empty text";
        all.push(Check::warning(
            Code::ClientProxy,
            "proxy",
            format!("git goes by {}", shown(&proxy)),
            advice,
        ));
    }
    if set("http.sslverify").await == "false" {
        let advice = "name the authority in http.<mirror>.sslCAInfo, and take http.sslVerify out";
        all.push(Check::warning(Code::ClientUnverified, "certificate", "is not looked at", advice));
    }
    let here = Url::parse(target).ok().and_then(|url| {
        let name = url.host_str()?.trim_matches(['[', ']']).to_owned();
        Some(
            name == "localhost"
                || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        )
    });
    if target.starts_with("http://") && here != Some(true) {
        let advice = "let TLS end in front of the mirror, and use https:// in the rule";
        all.push(Check::warning(
            Code::ClientInTheClear,
            "transport",
            "credentials travel in the clear",
            advice,
        ));
    }
    let lfs = git(&["config", "--get", "lfs.url"], &[]).await.text();
    if !lfs.is_empty() {
        let found = format!("lfs.url is {}", shown(&lfs));
        let advice = "that is where Git LFS goes, whatever the mirror is; without lfs.url its question passes through the mirror";
        all.push(Check::warning(Code::ClientLfs, "Git LFS", found, advice));
    }
    all
}

/// Lets git reach the repository.
async fn answer(address: &str, target: &str) -> Check {
    let what = format!("repository {}", shown(target));
    let said = git(&["ls-remote", address, "HEAD"], &[]).await;
    if said.ok {
        return Check::good(Code::ClientAnswerOk, what, "answers");
    }
    let has = |words: &[&str]| words.iter().any(|word| said.stderr.contains(word));
    let (code, advice) = if has(&["certificate", "SSL", "TLS"]) {
        let advice = "name a private authority in http.<mirror>.sslCAInfo; what is set for the primary does not hold for the mirror";
        (Code::ClientCertificate, advice)
    } else if has(&["could not read", "Authentication failed", "error: 401", "error: 403"]) {
        (
            Code::ClientRefused,
            "the primary refuses this credential, or wants one; sign in to the primary anew",
        )
    } else if has(&["not found", "error: 404"]) {
        (
            Code::ClientNoRepository,
            "compare the path with the primary's; a host may hide what a credential may not read",
        )
    } else {
        (Code::ClientUnreachable, "look at the mirror's name, its /readyz, and what lies between")
    };
    let line = said
        .stderr
        .lines()
        .find(|line| line.starts_with("fatal:"))
        .unwrap_or("git failed, or took over a minute");
    let line =
        line.split_whitespace().map(|word| shown(word.trim_matches('\''))).collect::<Vec<_>>().join(" ");
    Check::bad(code, what, line, advice)
}

/// What git said.
#[derive(Default)]
struct Said {
    ok: bool,
    stdout: Vec<u8>,
    stderr: String,
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

/// Runs git with `input`, without prompts, in English, for a minute at most.
async fn git(args: &[&str], input: &[u8]) -> Said {
    let run = async {
        let mut command = Command::new("git");
        command.args(args).envs([
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GCM_INTERACTIVE", "never"),
            ("LC_ALL", "C"),
        ]);
        if args.first() == Some(&"credential") {
            // A program that asks the user is no helper.
            command.env("GIT_ASKPASS", "");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().ok()?;
        // A git that does not read all has said why.
        let _ = child.stdin.take()?.write_all(input).await;
        let out = child.wait_with_output().await.ok()?;
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        Some(Said { ok: out.status.success(), stdout: out.stdout, stderr })
    };
    tokio::time::timeout(PATIENCE, run).await.ok().flatten().unwrap_or_default()
}
