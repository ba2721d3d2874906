//! What an S3 server's refusal means, in one line for people: its code, its message, and what to do.
//!
//! `object_store` gives a chain of errors with the request and the whole XML answer in it; here that becomes a line.
//! Elsewhere: whether another try can help ([`super::error`]).

use std::error::Error as StdError;

use object_store::Error as Foreign;

use super::error::status_in;
use crate::text::chain;

/// The longest line of a store that is shown, in characters.
const LONGEST: usize = 400;

/// Why a store refuses, as far as somebody can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No credentials were found.
    NoCredentials,
    /// The store does not know the key, or the secret does not fit it.
    WrongCredentials,
    /// The credentials have run out.
    ExpiredCredentials,
    /// The credentials are not for this bucket or prefix.
    Denied,
    /// There is no such bucket.
    NoBucket,
    /// The bucket lies in another region than the one that is set.
    WrongRegion,
    /// The clocks differ too much for a signature to count.
    Clock,
    /// The directory does not exist, and this command does not make it.
    NoDirectory,
    /// The directory holds something else than a store.
    Foreign,
}

impl Cause {
    /// Says what to do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NoCredentials => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role"
            }
            Self::WrongCredentials => {
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that s3.endpoint is the server that knows them"
            }
            Self::ExpiredCredentials => "sign in again, or renew the keys and AWS_SESSION_TOKEN",
            Self::Denied => {
                "allow s3:GetObject, s3:PutObject and s3:DeleteObject under the prefix, and s3:ListBucket on the bucket"
            }
            Self::NoBucket => "make the bucket (packmirror does not), or correct its name or s3.endpoint",
            Self::WrongRegion => "set s3.region, or AWS_REGION, to the region of the bucket",
            Self::Clock => "set the clock of this machine",
            Self::NoDirectory => {
                "name the directory of a store with --store; `packmirror serve` and `sync` make one"
            }
            Self::Foreign => "name an empty or a new directory with --store",
        }
    }

    /// The cause that a code of S3 stands for.
    fn of(code: &str, message: &str) -> Option<Self> {
        Some(match code {
            "NoSuchBucket" | "InvalidBucketName" => Self::NoBucket,
            "AuthorizationHeaderMalformed" if !message.contains("region") => Self::WrongCredentials,
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "IllegalLocationConstraintException"
            | "AuthorizationQueryParametersError" => Self::WrongRegion,
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => Self::ExpiredCredentials,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "InvalidTokenId"
            | "InvalidSecurity"
            | "NotSignedUp"
            | "UnauthorizedAccess" => Self::WrongCredentials,
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => Self::Denied,
            "RequestTimeTooSkewed" | "RequestExpired" => Self::Clock,
            _ => return None,
        })
    }
}

/// What a store said, as one line with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}{}", .cause.map_or(String::new(), |cause| format!("; {}", cause.advice())))]
pub(super) struct Said {
    pub(super) words: String,
    pub(super) cause: Option<Cause>,
}

impl Said {
    /// Sorts an answer of the store.
    pub(super) fn of(error: &Foreign) -> Self {
        let first: &(dyn StdError + 'static) = error;
        if let Some(said) = std::iter::successors(Some(first), |error| (*error).source())
            .find_map(|e| e.downcast_ref::<Self>())
        {
            return said.clone();
        }
        let whole = chain(error);
        if let Some((code, message)) = xml(&whole) {
            let status = status_in(&whole).map_or(String::new(), |status| format!("{status} "));
            let words = one_line(&format!("{status}{code}: {}", message.trim_end_matches('.')));
            return Self { words, cause: Cause::of(code, message) };
        }
        // The library's words for a redirect, which S3 gives for a bucket of another region.
        if whole.contains("incorrectly configured region") {
            let words = "it sends the request to another region".to_owned();
            return Self { words, cause: Some(Cause::WrongRegion) };
        }
        let cause = match error {
            Foreign::PermissionDenied { .. } if status_in(&whole).is_some() => Some(Cause::Denied),
            Foreign::Unauthenticated { .. } => Some(Cause::WrongCredentials),
            _ => None,
        };
        Self { words: one_line(whole.split("<?xml").next().unwrap_or_default()), cause }
    }
}

/// The code and the message of S3's answer.
fn xml(text: &str) -> Option<(&str, &str)> {
    let (_, answer) = text.split_once("<Error>")?;
    let field = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0)
    };
    Some((field("Code")?, field("Message").unwrap_or_default()))
}

/// A text as one bounded line.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push('…');
    }
    line.trim_end_matches([':', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Foreign {
        Foreign::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn an_answer_becomes_one_line_with_what_to_do() {
        let answer = |code: &str, message: &str| {
            generic(&format!(
                "Error performing PUT http://s3/b/k in 2ms - Server returned non-2xx status code: 403 Forbidden: \
                 <?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>{message}.</Message><Key>k</Key></Error>"
            ))
        };
        for (code, message, cause) in [
            ("NoSuchBucket", "The specified bucket does not exist", Some(Cause::NoBucket)),
            ("AccessDenied", "Access Denied", Some(Cause::Denied)),
            ("InvalidAccessKeyId", "Unknown", Some(Cause::WrongCredentials)),
            ("SignatureDoesNotMatch", "No", Some(Cause::WrongCredentials)),
            ("ExpiredToken", "The provided token has expired", Some(Cause::ExpiredCredentials)),
            ("AuthorizationHeaderMalformed", "the region is wrong; expecting 'eu'", Some(Cause::WrongRegion)),
            ("RequestTimeTooSkewed", "The difference is too large", Some(Cause::Clock)),
            ("SlowDown", "Please", None),
        ] {
            let said = Said::of(&answer(code, message));
            assert_eq!(said.cause, cause, "{code}");
            let advice = cause.map_or(String::new(), |cause| format!("; {}", cause.advice()));
            assert_eq!(said.to_string(), format!("403 {code}: {message}{advice}"));
        }
        let redirect =
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region";
        assert_eq!(Said::of(&generic(redirect)).cause, Some(Cause::WrongRegion));
    }

    #[test]
    fn what_is_no_answer_of_s3_becomes_one_bounded_line() {
        let said = Said::of(&generic("a proxy says\r\n\u{1b}[2Jno"));
        assert_eq!(said.words, "Generic S3 error: a proxy says [2Jno");
        assert_eq!(Said::of(&generic(&"x".repeat(1000))).words.chars().count(), LONGEST + 1);
        assert_eq!(Said::of(&generic("403: <?xml something else")).words, "Generic S3 error: 403");
    }
}
