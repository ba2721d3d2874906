//! What git says to a credential helper, and hears from it: lines of `key=value` up to an empty one.
//!
//! Values are bytes: a password need not be UTF-8. Everything is bounded before it is kept.

use std::io::{self, Read};

use bstr::ByteSlice;
use url::Url;

/// The longest message in bytes. Git itself sends some hundred, and a certificate chain at most.
const MOST: u64 = 64 << 10;

/// A message: keys and values in their order. `capability[]` and its like may come several times.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<(Vec<u8>, Vec<u8>)>);

impl Message {
    /// Reads a message up to its empty line or the end of the input.
    ///
    /// Fails where it is longer than 64 KiB, or a line has no `=`.
    pub fn read(input: impl Read) -> io::Result<Self> {
        let mut text = Vec::new();
        input.take(MOST + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MOST {
            return Err(io::Error::other("the credential's description is longer than 64 KiB"));
        }
        let mut message = Self::default();
        for line in text.lines().take_while(|line| !line.is_empty()) {
            let Some((key, value)) = line.split_once_str("=") else {
                return Err(io::Error::other("the credential's description has a line without ="));
            };
            message.push(key, value);
        }
        Ok(message)
    }

    /// Adds a line.
    pub fn push(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.0.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
    }

    /// Gives the last value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(name, _)| name == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Says whether git understands `capability`.
    pub fn can(&self, capability: &str) -> bool {
        self.0.iter().any(|(key, value)| key == b"capability[]" && value == capability.as_bytes())
    }

    /// Says whether the message is about `host`: same scheme, name and port.
    pub fn is_for(&self, host: &Url) -> bool {
        let text = |key| self.get(key).and_then(|value| std::str::from_utf8(value).ok());
        let (Some(protocol), Some(name)) = (text("protocol"), text("host")) else { return false };
        Url::parse(&format!("{protocol}://{name}/")).is_ok_and(|asked| asked.origin() == host.origin())
    }

    /// Gives the same question about another host: `from`'s path is taken off the front of the path, and `to`'s put there.
    pub fn moved(&self, from: &Url, to: &Url) -> Self {
        let mut moved = Self::default();
        for (key, value) in &self.0 {
            match key.as_slice() {
                b"protocol" => moved.push(key, to.scheme()),
                b"host" => moved.push(key, authority(to)),
                b"path" => {
                    let base = |url: &Url| url.path().trim_matches('/').to_owned();
                    let rest = value.strip_prefix(base(from).as_bytes()).unwrap_or(value);
                    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                    let front = if base(to).is_empty() { String::new() } else { base(to) + "/" };
                    moved.push(key, [front.as_bytes(), rest].concat());
                }
                // A URL in one piece would win over the parts.
                b"url" => {}
                _ => moved.push(key, value),
            }
        }
        moved
    }

    /// Gives what of an answer is true for another host too: all but the place it is for.
    pub fn without_place(mut self) -> Self {
        self.0.retain(|(key, _)| !matches!(key.as_slice(), b"protocol" | b"host" | b"path" | b"url"));
        self
    }

    /// Says whether both have the same secret for the same user.
    pub fn same_secret(&self, other: &Self) -> bool {
        ["username", "password", "authtype", "credential"].iter().all(|key| self.get(key) == other.get(key))
    }

    /// Writes the message as git reads it, with the empty line at its end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in &self.0 {
            out.extend_from_slice(&[key, b"=".as_slice(), value, b"\n"].concat());
        }
        out.push(b'\n');
        out
    }
}

/// Gives a URL's host with its port, where it is not the scheme's own, as git names it.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn a_message_is_for_one_origin_alone() {
        let mirror = url("https://mirror.example.com/");
        let about = |protocol: &str, host: &str| {
            Message::read(format!("protocol={protocol}\nhost={host}\n").as_bytes()).unwrap().is_for(&mirror)
        };
        assert!(about("https", "mirror.example.com"));
        assert!(about("https", "MIRROR.example.com:443"));
        for (protocol, host) in [
            ("http", "mirror.example.com"),
            ("https", "mirror.example.com:8443"),
            ("https", "mirror.example.com.evil.example"),
            ("https", "evil.example/mirror.example.com"),
            ("https", "mirror.example.com@evil.example"),
            ("https", ""),
            ("", "mirror.example.com"),
        ] {
            assert!(!about(protocol, host), "{protocol} {host}");
        }
        assert!(!Message::default().is_for(&mirror));
    }

    #[test]
    fn a_question_moves_to_the_primary_with_all_that_git_said() {
        let asked = b"capability[]=authtype\nprotocol=https\nhost=mirror.example.com\npath=team/app.git\nusername=u\nwwwauth[]=Basic realm=\"x\"\n\nrest";
        let moved = Message::read(asked.as_slice())
            .unwrap()
            .moved(&url("https://mirror.example.com/"), &url("http://git.example.com:3000/git/"));
        assert_eq!(
            moved.to_bytes().as_bstr(),
            b"capability[]=authtype\nprotocol=http\nhost=git.example.com:3000\npath=git/team/app.git\nusername=u\nwwwauth[]=Basic realm=\"x\"\n\n".as_bstr()
        );
        assert!(moved.can("authtype") && !moved.can("state"));
        assert_eq!(moved.clone().without_place().get("host"), None);
        assert_eq!(moved.without_place().get("username"), Some(b"u".as_slice()));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(Message::read(b"protocol\n\n".as_slice()).is_err());
        assert!(Message::read(vec![b'a'; 70 << 10].as_slice()).is_err());
        assert!(Message::read(b"".as_slice()).unwrap() == Message::default());
    }
}
