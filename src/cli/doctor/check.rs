//! A check of the doctor: what was looked at, how it ended, and what to do; as text and as JSON.
//!
//! The codes and the form of the JSON are a contract with scripts: docs/doctor.md lists them, held equal by a test.

use serde::Serialize;

use crate::cli::table::safe;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, or could not be told, but someone should know.
    Warning,
    /// A node refuses to start with it, or passes requests through for ever because of it.
    Bad,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// What was found, in a word that never changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            /// All codes: the word, and what it means.
            pub const ALL: &[(&str, &str)] = &[$(($code, concat!($($doc),+)),)+];

            /// The word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }
        }
    };
}

codes! {
    /// The settings cannot be used.
    SettingsBad = "settings.bad",
    /// The store keeps its promises.
    StoreOk = "store.ok",
    /// The store is a directory that does not exist yet; `serve` makes it.
    StoreNew = "store.new",
    /// The store's address or the way to it is wrong.
    StoreAddress = "store.address",
    /// The directory holds something else than a store.
    StoreForeign = "store.foreign",
    /// The directory, or a file in it, cannot be read or written by this user.
    StoreUnwritable = "store.unwritable",
    /// No AWS credentials were found.
    StoreNoCredentials = "store.no-credentials",
    /// The store knows no such key, or the secret does not fit it.
    StoreWrongCredentials = "store.wrong-credentials",
    /// The AWS credentials have run out.
    StoreExpiredCredentials = "store.expired-credentials",
    /// The credentials are good, and not for this bucket or prefix.
    StoreDenied = "store.denied",
    /// There is no such bucket.
    StoreNoBucket = "store.no-bucket",
    /// No region is set.
    StoreNoRegion = "store.no-region",
    /// The bucket lies in another region.
    StoreWrongRegion = "store.wrong-region",
    /// The store does not answer.
    StoreUnreachable = "store.unreachable",
    /// The store answers, but breaks a promise that packmirror rests on.
    StorePromise = "store.promise",
    /// The store's layout is damaged, or a newer packmirror's.
    StoreFormat = "store.format",
    /// The store belongs to another primary.
    StoreOwner = "store.owner",
    /// The store's clock and this machine's differ.
    StoreClock = "store.clock",
    /// The primary answers.
    PrimaryOk = "primary.ok",
    /// No primary is set.
    PrimaryNone = "primary.none",
    /// The file of certificate authorities cannot be used.
    PrimaryCaFile = "primary.ca-file",
    /// The service credential cannot be read, or is none.
    PrimaryCredential = "primary.credential",
    /// Other users of this machine can read the file with the service credential.
    PrimaryCredentialOpen = "primary.credential-open",
    /// The primary does not answer.
    PrimaryUnreachable = "primary.unreachable",
    /// The primary's certificate is not trusted.
    PrimaryCertificate = "primary.certificate",
    /// The primary is in trouble, or sheds load.
    PrimaryTrouble = "primary.trouble",
    /// The directory of the primary is missing, or git is.
    PrimaryDirectory = "primary.directory",
    /// The directory of the primary holds no repository.
    PrimaryNoRepositories = "primary.no-repositories",
    /// What answers there is no Git host.
    PrimaryNotGit = "primary.not-git",
    /// The primary sends requests elsewhere.
    PrimaryMoved = "primary.moved",
    /// The primary's name leads to the mirror itself.
    PrimaryLoops = "primary.loops",
    /// Whether it is a Git host shows only with a repository.
    PrimaryUnknown = "primary.unknown",
    /// The primary's clock and this machine's differ.
    PrimaryClock = "primary.clock",
    /// The repository can be mirrored.
    RepositoryOk = "repository.ok",
    /// The repository is empty.
    RepositoryEmpty = "repository.empty",
    /// The name cannot be that of a repository.
    RepositoryName = "repository.name",
    /// The primary shows no such repository.
    RepositoryMissing = "repository.missing",
    /// The repository is a symbolic link that leads out of the primary's directory.
    RepositoryLink = "repository.link",
    /// The primary wants a credential, and none is set.
    RepositoryNeedsCredential = "repository.needs-credential",
    /// The primary refused the service credential.
    RepositoryRefused = "repository.refused",
    /// The setting `mirror` leaves the repository out.
    RepositoryNotSelected = "repository.not-selected",
    /// The repository is shallow at the primary.
    RepositoryShallow = "repository.shallow",
    /// The primary does not speak protocol v2.
    RepositoryNoV2 = "repository.no-v2",
    /// The primary offers its files only (dumb HTTP).
    RepositoryDumb = "repository.dumb",
    /// The primary redirects the repository.
    RepositoryMoved = "repository.moved",
    /// Refs of the repository are left out.
    RepositoryLeftOut = "repository.left-out",
    /// The repository cannot be mirrored for another reason.
    RepositoryUnfit = "repository.unfit",
    /// The cache directory can be used.
    CacheOk = "cache.ok",
    /// The cache directory does not exist yet; `serve` makes it.
    CacheNew = "cache.new",
    /// A process works in the cache directory.
    CacheInUse = "cache.in-use",
    /// The directory holds something else than a cache.
    CacheForeign = "cache.foreign",
    /// This user cannot write the cache directory.
    CacheUnwritable = "cache.unwritable",
    /// The disk has less room than the cache may take.
    CacheRoom = "cache.room",
    /// The address can be listened on.
    ListenOk = "listen.ok",
    /// Another process listens on the address.
    ListenInUse = "listen.in-use",
    /// The address cannot be listened on.
    ListenRefused = "listen.refused",
    /// The process may open enough files, and map enough of them.
    SystemOk = "system.ok",
    /// The process may open too few files.
    SystemFiles = "system.files",
    /// The process may map too few files.
    SystemMaps = "system.maps",
    /// Git on this machine is new enough.
    ClientGitOk = "client.git-ok",
    /// Git cannot be run on this machine.
    ClientGitMissing = "client.git-missing",
    /// Git on this machine does not use protocol v2 by itself.
    ClientGitOld = "client.git-old",
    /// Git takes the mirror for the address.
    ClientAddressOk = "client.address-ok",
    /// No rule leads git from the address to a mirror.
    ClientNoRule = "client.no-rule",
    /// A rule is there, and the address is spelled in another way.
    ClientSpelling = "client.spelling",
    /// The address leads to another host than the mirror.
    ClientOtherHost = "client.other-host",
    /// Git has a credential for the mirror.
    ClientCredentialOk = "client.credential-ok",
    /// Git has a credential for the primary and none for the mirror.
    ClientNoCredential = "client.no-credential",
    /// Git has two different credentials for the primary and for the mirror.
    ClientCredentialDiffers = "client.credential-differs",
    /// Git has no credential, for the mirror or for the primary.
    ClientAnonymous = "client.anonymous",
    /// Git goes to the mirror by a proxy.
    ClientProxy = "client.proxy",
    /// Git does not look at certificates.
    ClientUnverified = "client.unverified",
    /// Credentials travel to the mirror in the clear.
    ClientInTheClear = "client.in-the-clear",
    /// Git LFS has an address of its own.
    ClientLfs = "client.lfs",
    /// Git reaches the repository by the mirror.
    ClientAnswerOk = "client.answer-ok",
    /// Git does not trust the mirror's certificate.
    ClientCertificate = "client.certificate",
    /// The credential was refused, or is missing.
    ClientRefused = "client.refused",
    /// The mirror shows no such repository.
    ClientNoRepository = "client.no-repository",
    /// Git does not reach the mirror.
    ClientUnreachable = "client.unreachable",
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was found, for scripts.
    pub code: Code,
    /// How it ended.
    pub verdict: Verdict,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What to do about it, unless all is well.
    pub advice: Option<String>,
}

impl Check {
    /// All is well.
    pub fn good(code: Code, what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { code, verdict: Verdict::Good, what: what.into(), found: found.into(), advice: None }
    }

    /// Someone should know.
    pub fn warning(
        code: Code,
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Warning, advice: Some(advice.into()), ..Self::good(code, what, found) }
    }

    /// It does not work.
    pub fn bad(
        code: Code,
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Bad, ..Self::warning(code, what, found, advice) }
    }
}

fn count(checks: &[Check], verdict: Verdict) -> usize {
    checks.iter().filter(|check| check.verdict == verdict).count()
}

/// Says whether none of the checks is bad.
pub fn is_well(checks: &[Check]) -> bool {
    count(checks, Verdict::Bad) == 0
}

/// Writes the checks as text: a line each, advice indented below.
pub fn report(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Bad => "BAD ",
        };
        out.push_str(&format!("{mark}  {}: {}\n", safe(&check.what), safe(&check.found)));
        if let Some(advice) = &check.advice {
            out.push_str(&format!("      {} [{}]\n", safe(advice), check.code.word()));
        }
    }
    let plural =
        |n: usize, one: &str, many: &str| if n == 1 { one.to_owned() } else { format!("{n} {many}") };
    out.push_str(&match (count(checks, Verdict::Bad), count(checks, Verdict::Warning)) {
        (0, 0) => "Nothing is wrong.\n".to_owned(),
        (0, n) => {
            format!("Nothing is known to be wrong; look at {}.\n", plural(n, "the warning", "warnings"))
        }
        (n, _) => format!("{} failed.\n", plural(n, "1 check", "checks")),
    });
    out
}

/// Writes the checks as JSON, in the same order.
pub fn json(checks: &[Check]) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        checks: &'a [Check],
    }
    let text = serde_json::to_string_pretty(&Report { ok: is_well(checks), checks })?;
    Ok(crate::cli::table::escaped(&text) + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_is_bad_and_what_to_do() {
        let good = Check::good(Code::StoreOk, "store", "creates a key once only");
        let warning = Check::warning(Code::SystemFiles, "open files", "256", "ulimit -n 65536");
        let bad = Check::bad(Code::RepositoryRefused, "primary", "401 \u{1b}[2J", "set credential_file");
        assert_eq!(report(&[good.clone()]), "ok    store: creates a key once only\nNothing is wrong.\n");
        let text = report(&[good.clone(), warning.clone()]);
        assert!(text.ends_with("Nothing is known to be wrong; look at the warning.\n"), "{text}");
        let text = report(&[good.clone(), bad.clone()]);
        assert_eq!(
            text,
            "ok    store: creates a key once only\nBAD   primary: 401 \\u{1b}[2J\n      set credential_file \
             [repository.refused]\n1 check failed.\n"
        );
        let text = json(&[good, warning, bad]).unwrap();
        assert!(!text.contains('\u{1b}'), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!(value["checks"][0]["verdict"], "good");
        assert_eq!(value["checks"][1]["code"], "system.files");
        assert_eq!(value["checks"][2]["advice"], "set credential_file");
    }

    #[test]
    fn the_page_lists_every_code_and_no_other() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/doctor.md"));
        let listed: Vec<(&str, &str)> = page
            .lines()
            .filter_map(|line| {
                let (code, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
                Some((code, rest.split(" | ").next()?))
            })
            .collect();
        let known: Vec<_> = Code::ALL.iter().map(|(code, doc)| (*code, doc.trim())).collect();
        assert_eq!(listed, known, "docs/doctor.md and the codes differ");
        let mut unique: Vec<_> = known.iter().map(|(code, _)| *code).collect();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), known.len());
    }
}
