//! The file `.netrc`, which git's HTTP library reads by host: what it has for the primary holds for the mirror too.

use std::io::Read;
use std::path::Path;

/// The largest file that is read, in bytes.
const MOST: u64 = 1 << 20;

/// Gives login and password for `host` from the file at `path`; for `login` alone, where one is named.
pub fn lookup(path: &Path, host: &str, login: Option<&str>) -> Option<(String, String)> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    find(&text, host, login)
}

fn find(text: &str, host: &str, wanted: Option<&str>) -> Option<(String, String)> {
    let mut words = words(text).into_iter();
    let (mut ours, mut login, mut password) = (false, None, None);
    let complete = |ours: bool, login: &Option<String>, password: &Option<String>| {
        let (Some(login), Some(password)) = (login, password) else { return None };
        let fits = ours && wanted.is_none_or(|wanted| wanted == login);
        fits.then(|| (login.clone(), password.clone()))
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" | "default" => {
                if let Some(found) = complete(ours, &login, &password) {
                    return Some(found);
                }
                ours = word == "default" || words.next()?.eq_ignore_ascii_case(host);
                (login, password) = (None, None);
            }
            "login" => login = words.next(),
            "password" => password = words.next(),
            "account" => drop(words.next()),
            _ => {}
        }
    }
    complete(ours, &login, &password)
}

/// The words of the file: without comments and macros; a word in quotes may have spaces, and `\` before any letter.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        let line = line.trim();
        in_macro = (in_macro || line.starts_with("macdef")) && !line.is_empty();
        if in_macro || line.starts_with('#') {
            continue;
        }
        let mut letters = line.chars().peekable();
        while let Some(&first) = letters.peek() {
            if first.is_whitespace() {
                letters.next();
                continue;
            }
            let quoted = first == '"';
            if quoted {
                letters.next();
            }
            let mut word = String::new();
            while let Some(letter) = letters.next() {
                match letter {
                    '\\' if quoted => word.extend(letters.next()),
                    '"' if quoted => break,
                    letter if !quoted && letter.is_whitespace() => break,
                    letter => word.push(letter),
                }
            }
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_entry_that_curl_would_take() {
        let text = "# machine git.example.com login no password no\n\
            machine other.example.com login x password y\n\
            macdef init\nmachine git.example.com login macro password macro\n\n\
            machine git.example.com\n  login alice account a\n  password \"two words \\\"\"\n\
            machine GIT.example.com login bob password bobpw\n\
            default login anonymous password guest";
        let find = |host, login| find(text, host, login).map(|(l, p)| format!("{l}:{p}"));
        assert_eq!(find("git.example.com", None).as_deref(), Some("alice:two words \""));
        assert_eq!(find("git.example.com", Some("bob")).as_deref(), Some("bob:bobpw"));
        assert_eq!(find("git.example.com", Some("carol")), None);
        assert_eq!(find("else.example.com", None).as_deref(), Some("anonymous:guest"));
        assert_eq!(super::find("machine git.example.com login alice", "git.example.com", None), None);
        assert_eq!(super::find("machine", "git.example.com", None), None);
    }
}
