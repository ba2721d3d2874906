//! `packmirror git-credential`: a Git credential helper that answers for the mirror with what the client has for the primary.
//!
//! Git looks credentials up by host, and a mirror has another host than its primary. Asked for the mirror, this helper gives
//! what git would have used for the primary: the header in its configuration, the entry in `.netrc`, or the answer of
//! `git credential fill`, which asks the primary's own helpers. What git says of the credential afterwards goes to them too.
//! Relies on: git in the path. Borders: one mirror, named by the caller, gets anything; secrets go through pipes alone.

mod header;
mod message;
pub mod netrc;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use url::Url;

use super::exit::Failure;
use super::flags::Flags;
pub use message::Message;

const EXAMPLES: &str = "\
Examples:
  git config --global credential.https://mirror.eu.example.com.helper \\
      '!packmirror git-credential --for https://mirror.eu.example.com --primary https://git.example.com'

Git adds get, store or erase, and speaks to the command through its input. See docs/clients.md.";

/// Set for the git that this helper asks: a helper that is asked by way of itself has nothing to say.
const ASKING: &str = "PACKMIRROR_GIT_CREDENTIAL";

/// Arguments of `git-credential`; the primary is the setting of that name.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The mirror's URL, as insteadOf names it; no other host is answered for
    #[arg(id = "for", long = "for", value_name = "URL")]
    pub mirror: Url,
    /// Allow plain HTTP to a mirror that is not on this machine; credentials then travel in the clear
    #[arg(long)]
    pub insecure_mirror: bool,
    /// get, store or erase, as git says it, and get where Cargo's own library says nothing; anything else is ignored
    #[arg(default_value = "get")]
    pub action: String,
}

/// Answers git's question, or passes on what git learned.
pub fn run(args: &Args, flags: &Flags) -> Result<(), Failure> {
    let primary = primary(args, flags)?;
    if std::env::var_os(ASKING).is_some() {
        return Ok(());
    }
    let asked = Message::read(std::io::stdin().lock())?;
    if !asked.is_for(&args.mirror) {
        return Ok(());
    }
    let asked = asked.moved(&args.mirror, &primary);
    let own = own(&primary, &asked);
    match args.action.as_str() {
        "get" => {
            let answer = own
                .map_or_else(|| git(&["credential", "fill"], &asked.to_bytes()), |own| Some(own.to_bytes()));
            let answer = Message::read(answer.unwrap_or_default().as_slice())?.without_place();
            Ok(std::io::stdout().lock().write_all(&answer.to_bytes())?)
        }
        // What came from a header or a file is not the helpers' to keep or to forget.
        "store" | "erase" if own.as_ref().is_some_and(|own| own.same_secret(&asked)) => Ok(()),
        "store" => tell("approve", &asked),
        "erase" => tell("reject", &asked),
        _ => Ok(()),
    }
}

/// Tells the primary's helpers what became of a credential. A helper that fails says so itself.
fn tell(what: &str, asked: &Message) -> Result<(), Failure> {
    git(&["credential", what], &asked.to_bytes());
    Ok(())
}

/// The primary's URL, if all that was said makes a safe helper.
fn primary(args: &Args, flags: &Flags) -> Result<Url, Failure> {
    let wrong = |what: &str| Err(Failure::usage(what.to_owned()));
    let Some(primary) = flags.get("primary") else {
        return wrong("--primary URL is missing: the Git host whose credentials the mirror may get");
    };
    let web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some();
    let Some(primary) = Url::parse(primary).ok().filter(web) else {
        return wrong("--primary is not an http(s) URL; a mirror of a directory needs no credentials");
    };
    if !web(&args.mirror) {
        return wrong("--for is not an http(s) URL");
    }
    if primary.origin() == args.mirror.origin() {
        return wrong(
            "--for and --primary name the same host: without insteadOf to another host there is nothing to do",
        );
    }
    if args.mirror.scheme() == "http" && !is_here(&args.mirror) && !args.insecure_mirror {
        return wrong(
            "the primary's credentials would go to the mirror in the clear: use https, or allow it with --insecure-mirror",
        );
    }
    Ok(primary)
}

fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What git would send to the primary without asking a helper.
fn own(primary: &Url, asked: &Message) -> Option<Message> {
    let path = asked.get("path").and_then(|path| std::str::from_utf8(path).ok()).unwrap_or_default();
    let place = format!("{}/{path}", primary.origin().ascii_serialization());
    match header::credential(&headers(primary, &place), asked) {
        Ok(None) => {}
        Ok(found) => return found,
        // stderr may be closed; git's own message follows.
        Err(why) => drop(writeln!(std::io::stderr(), "packmirror: {why}")),
    }
    let file = Path::new(&std::env::var_os("HOME")?).join(".netrc");
    let wanted = asked.get("username").and_then(|name| std::str::from_utf8(name).ok());
    let (login, password) = netrc::lookup(&file, primary.host_str()?, wanted)?;
    let mut answer = Message::default();
    answer.push("username", login);
    answer.push("password", password);
    Some(answer)
}

/// The header lines that git has for a URL: the one that fits best, then all for the host.
fn headers(primary: &Url, place: &str) -> Vec<Vec<u8>> {
    let host = format!("http.{}/.extraheader", primary.origin().ascii_serialization());
    let best = ["config", "-z", "--get-urlmatch", "http.extraheader", place];
    let all = ["config", "-z", "--get-all", &host];
    let said = [best.as_slice(), &all].into_iter().filter_map(|question| git(question, b""));
    said.flat_map(|text| text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect::<Vec<_>>()).collect()
}

/// Runs git with `input` and gives what it printed, if it succeeded. Its messages go to the user.
fn git(args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new("git");
    command.args(args).env(ASKING, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    // A git that does not read all has said why.
    let _ = child.stdin.take()?.write_all(input);
    let output = child.wait_with_output().ok()?;
    output.status.success().then_some(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(mirror: &str) -> Args {
        Args { mirror: Url::parse(mirror).unwrap(), insecure_mirror: false, action: "get".into() }
    }

    fn flags(primary: &str) -> Flags {
        Flags { config: None, given: vec![("primary", vec![primary.to_owned()])] }
    }

    #[test]
    fn a_helper_that_would_give_secrets_away_is_refused() {
        let mirror = "https://mirror.example.com";
        let git = "https://git.example.com";
        assert!(primary(&args(mirror), &flags(git)).is_ok());
        assert!(primary(&args("http://127.0.0.1:8080"), &flags(git)).is_ok());
        assert!(primary(&args(mirror), &Flags::default()).is_err());
        assert!(primary(&args(mirror), &flags("/srv/git")).is_err());
        assert!(primary(&args(mirror), &flags("https://mirror.example.com:443/x")).is_err());
        assert!(primary(&args("ssh://mirror.example.com"), &flags(git)).is_err());
        let clear = args("http://mirror.example.com");
        assert!(primary(&clear, &flags(git)).is_err());
        assert!(primary(&Args { insecure_mirror: true, ..clear }, &flags(git)).is_ok());
    }
}
