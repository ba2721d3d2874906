//! Headers that a client's configuration has for the primary: `http.<primary>.extraheader`.
//!
//! CI systems put a job's token there, and git does not send it to another host. Here it becomes an answer that git can
//! send to the mirror.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bstr::ByteSlice;

use super::message::Message;

/// Turns the header lines of a configuration into a credential: the first `Authorization` counts.
///
/// What is not Basic takes a git that knows `authtype` (2.46 or newer), as `asked` tells; `Err` says what to do without.
pub fn credential(lines: &[Vec<u8>], asked: &Message) -> Result<Option<Message>, String> {
    let value = lines.iter().find_map(|line| {
        let (name, value) = line.split_once_str(":")?;
        name.trim().eq_ignore_ascii_case(b"authorization").then(|| value.trim())
    });
    let Some((scheme, secret)) = value.and_then(|value| value.split_once_str(" ")) else { return Ok(None) };
    let secret = secret.trim();
    let mut answer = Message::default();
    if scheme.eq_ignore_ascii_case(b"basic") {
        let pair = STANDARD.decode(secret).unwrap_or_default();
        let Some((user, password)) = pair.split_once_str(":").filter(|_| !pair.contains(&b'\n')) else {
            return Err(
                "the primary's http.extraheader has an Authorization that is not base64 of user:password"
                    .into(),
            );
        };
        if asked.get("username").is_some_and(|wanted| wanted != user) {
            return Ok(None);
        }
        answer.push("username", user);
        answer.push("password", password);
    } else if asked.can("authtype") {
        answer.push("capability[]", "authtype");
        answer.push("authtype", scheme);
        answer.push("credential", secret);
    } else {
        return Err(format!(
            "the primary's http.extraheader is of the kind {}, which a helper can pass on from git 2.46; \
             with this git set http.extraheader for the mirror's URL too",
            scheme.to_str_lossy().escape_debug()
        ));
    }
    answer.push("ephemeral", "1");
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(lines: &[&str], asked: &str) -> Result<Option<String>, String> {
        let lines: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        let answer = credential(&lines, &Message::read(asked.as_bytes()).unwrap())?;
        Ok(answer.map(|answer| String::from_utf8(answer.to_bytes()).unwrap().replace('\n', " ")))
    }

    #[test]
    fn a_jobs_header_becomes_a_user_and_a_password() {
        let header = "AUTHORIZATION: basic eC1hY2Nlc3MtdG9rZW46dDpvaw==";
        let want = "username=x-access-token password=t:ok ephemeral=1  ";
        assert_eq!(found(&["X-Other: 1", header], ""), Ok(Some(want.into())));
        assert_eq!(found(&[header], "username=x-access-token\n"), Ok(Some(want.into())));
        assert_eq!(found(&[header], "username=alice\n"), Ok(None));
        assert_eq!(found(&["X-Other: 1", "broken", "Authorization:"], ""), Ok(None));
        assert_eq!(found(&[], ""), Ok(None));
    }

    #[test]
    fn other_kinds_need_a_git_that_can_send_them() {
        let header = "Authorization: Bearer abc";
        assert_eq!(
            found(&[header], "capability[]=authtype\n"),
            Ok(Some("capability[]=authtype authtype=Bearer credential=abc ephemeral=1  ".into()))
        );
        let told = found(&[header], "").unwrap_err();
        assert!(told.contains("2.46") && !told.contains("abc"), "{told}");
        for broken in [
            "Authorization: Basic %%%secret",
            "Authorization: Basic c2VjcmV0",
            "Authorization: Basic YTpiCmhvc3Q9eA==",
        ] {
            let told = found(&[broken], "").unwrap_err();
            assert!(!told.contains("secret") && !told.contains("c2Vj"), "{told}");
        }
    }
}
