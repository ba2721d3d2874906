//! How git rewrites an address: its rules, the one that counts, and the spellings that a rule misses.
//!
//! Pure: takes what `git config` printed. What git itself makes of an address is asked of git (`client`); here is why.

use bstr::ByteSlice;
use url::Url;

/// A rule: addresses that begin with `value` begin with `base` instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What comes in.
    pub base: String,
    /// What goes out.
    pub value: String,
    /// The file that has it, as git names it.
    pub origin: String,
}

/// Reads the rules with `word` (`insteadof`, `pushinsteadof`) out of `git config -z --show-origin --get-regexp ^url`.
pub fn rules(printed: &[u8], word: &str) -> Vec<Rule> {
    let fields: Vec<&[u8]> = printed.split(|byte| *byte == 0).collect();
    let rule = |pair: &[&[u8]]| {
        let (origin, entry) = (pair.first()?.to_str_lossy(), pair.get(1)?.to_str_lossy());
        let (key, value) = entry.split_once('\n')?;
        let base = key.strip_prefix("url.")?.strip_suffix(word)?.strip_suffix('.')?;
        Some(Rule { base: base.to_owned(), value: value.to_owned(), origin: origin.into_owned() })
    };
    fields.chunks(2).filter_map(rule).collect()
}

/// Gives the rule that git follows for an address: the longest, the first of several.
pub fn rule_for<'a>(rules: &'a [Rule], address: &str) -> Option<&'a Rule> {
    let fitting = rules.iter().filter(|rule| address.starts_with(&rule.value));
    fitting.reduce(|best, rule| if rule.value.len() > best.value.len() { rule } else { best })
}

/// Gives the address as a web browser has it: HTTPS, no user, no port but an unusual one of HTTP(S), small letters in the host.
pub fn plain(address: &str) -> Option<String> {
    let Some((scheme, rest)) = address.split_once("://") else {
        let (host, path) = address.split_once(':')?;
        let host = host.rsplit('@').next()?;
        let remote = !host.is_empty() && !host.contains('/');
        return remote.then(|| format!("https://{}/{}", host.to_lowercase(), path.trim_start_matches('/')));
    };
    let web = matches!(scheme.to_lowercase().as_str(), "http" | "https");
    let scheme = if web { scheme } else { "https" };
    let mut url = Url::parse(&format!("{scheme}://{rest}")).ok()?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    if !web {
        url.set_port(None).ok()?;
    }
    Some(url.to_string())
}

/// Gives an address without its password, for people to see.
pub fn shown(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:…@{host}{path}")
        }
        _ => address.to_owned(),
    }
}

/// Says whether an address carries a password.
pub fn has_password(address: &str) -> bool {
    shown(address) != address
}

/// A rule that an address misses by its spelling, and the beginning by which a further rule would find it.
///
/// No beginning is given where it would have a password in it.
pub fn near_miss<'a>(rules: &'a [Rule], address: &str) -> Option<(&'a Rule, Option<String>)> {
    let plain = plain(address).filter(|plain| plain != address)?;
    // A primary on this machine may have no certificate.
    let spellings = [plain.clone(), plain.replacen("https://", "http://", 1)];
    spellings.iter().find_map(|plain| {
        let rule = rule_for(rules, plain)?;
        let rest = plain.strip_prefix(&rule.value)?;
        let beginning = address.strip_suffix(rest).filter(|_| !has_password(address));
        Some((rule, beginning.map(str::to_owned)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &[u8] =
        b"file:/etc/gitconfig\0url.https://mirror.example.com/.insteadof\nhttps://git.example.com/\0\
        file:.git/config\0url.https://other.example.com/.insteadof\nhttps://git.example.com/vip/\0\
        file:.git/config\0url.git@git.example.com:.pushinsteadof\nhttps://git.example.com/\0";

    #[test]
    fn the_longest_rule_counts() {
        let all = rules(PRINTED, "insteadof");
        assert_eq!(all.len(), 2);
        assert_eq!(rules(PRINTED, "pushinsteadof").len(), 1);
        let base = |address| rule_for(&all, address).map(|rule| rule.base.as_str());
        assert_eq!(base("https://git.example.com/team/app"), Some("https://mirror.example.com/"));
        assert_eq!(base("https://git.example.com/vip/app"), Some("https://other.example.com/"));
        assert_eq!(base("https://git.example.com.evil/"), None);
        assert_eq!(rules(b"file:x", "insteadof"), []);
    }

    #[test]
    fn a_spelling_that_a_rule_misses_is_told_with_the_one_that_would_do() {
        let all = rules(PRINTED, "insteadof");
        let missed = |address| near_miss(&all, address).map(|(_, beginning)| beginning);
        for (address, beginning) in [
            ("https://alice@git.example.com/team/app", "https://alice@git.example.com/"),
            ("https://git.example.com:443/team/app", "https://git.example.com:443/"),
            ("https://Git.Example.com/team/app", "https://Git.Example.com/"),
            ("git@git.example.com:team/app", "git@git.example.com:"),
            ("ssh://git@git.example.com:2222/team/app", "ssh://git@git.example.com:2222/"),
            ("git://git.example.com/team/app", "git://git.example.com/"),
        ] {
            assert_eq!(missed(address), Some(Some(beginning.to_owned())), "{address}");
        }
        assert_eq!(missed("https://ci:secret@git.example.com/team/app"), Some(None));
        assert_eq!(missed("https://git.example.com:8443/team/app"), None);
        assert_eq!(missed("https://else.example.com/team/app"), None);
        assert_eq!(missed("/srv/git/app.git"), None);
    }

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(shown("https://ci:s/e@c@git.example.com/a"), "https://ci:s/e@c@git.example.com/a");
        assert_eq!(shown("https://ci:secret@git.example.com/a"), "https://ci:…@git.example.com/a");
        assert_eq!(shown("https://ci@git.example.com"), "https://ci@git.example.com");
        assert_eq!(shown("git@git.example.com:a"), "git@git.example.com:a");
    }
}
