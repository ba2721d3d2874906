//! Text from outside: request paths, numbers.
use crate::byte;
use crate::git::{Endpoint, RepoPath, line, path};
use bstr::ByteSlice;
use percent_encoding::percent_decode_str;

/// One target: the first byte chooses what the rest is.
pub fn run(mut data: &[u8]) {
    match byte(&mut data).unwrap_or(0) & 3 {
        0 => a_path(data),
        _ => a_number(data),
    }
}

fn a_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (raw, query) = match text.split_once('?') {
        Some((raw, query)) => (raw, Some(query)),
        None => (text, None),
    };
    if let Ok(repo) = RepoPath::parse(text) {
        is_one_spelling(&repo);
    }
    let Ok((repo, endpoint)) = path::split(raw, query) else { return };
    is_one_spelling(&repo);
    let url = format!("/{}/{}", repo.to_url(), endpoint.to_url());
    let service = match &endpoint {
        Endpoint::InfoRefs(Some(service)) => Some(format!("service={}", service.name())),
        _ => None,
    };
    // A path that escaping makes too long cannot be passed on, which is said then and there.
    if url.len() <= path::MAX_PATH {
        assert_eq!(path::split(&url, service.as_deref()), Ok((repo, endpoint)), "{url}");
    }
}

/// Whoever reads the path, decoded or not, reads the same.
fn is_one_spelling(repo: &RepoPath) {
    let text = repo.as_str();
    let leads_nowhere_else =
        |text: &str| text.split(['/', '\\']).all(|part| !matches!(part, "" | "." | ".."));
    assert!(leads_nowhere_else(text) && !text.chars().any(char::is_control), "{text:?}");
    let again = percent_decode_str(text);
    assert!(leads_nowhere_else(&again.clone().decode_utf8_lossy()), "{text:?}");
    assert!(again.decode_utf8().is_err() || text == percent_decode_str(text).decode_utf8_lossy(), "{text:?}");
    assert_eq!(RepoPath::parse(text).as_ref(), Ok(repo));
    let url = repo.to_url();
    assert!(url.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')), "{url:?}");
    assert_eq!(repo.key().len(), 64);
}

fn a_number(data: &[u8]) {
    let number = line::number(data);
    assert!(data.ends_with(number.rest) && number.found == (number.rest.len() < data.len()));
    if let (Some(size), Ok(text)) = (line::size(data), data.to_str())
        && let Ok(plain) = text.parse::<u64>()
        && !text.trim_start_matches('+').starts_with('0')
    {
        assert_eq!(size, plain);
    }
    let _ = (line::int(data), line::timestamp(data));
}
