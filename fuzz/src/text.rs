//! Text from outside: request paths, filters, sparse patterns, ref names, numbers.
use crate::byte;
use crate::git::{Endpoint, Filter, RepoPath, line, path, refname};
use crate::pack::meter::Unlimited;
use crate::pack::sparse::{Patterns, Verdict};
use bstr::ByteSlice;
use bytes::Bytes;

/// One target: the first byte chooses what the rest is.
pub fn run(mut data: &[u8]) {
    match byte(&mut data).unwrap_or(0) & 3 {
        0 => a_path(data),
        1 => a_filter(data),
        2 => patterns(data),
        _ => names_and_numbers(data),
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
    assert!(text.split('/').all(|part| !matches!(part, "" | "." | "..")), "{text:?}");
    assert!(!text.chars().any(|c| c.is_control() || matches!(c, '\\' | '%')), "{text:?}");
    assert_eq!(RepoPath::parse(text).as_ref(), Ok(repo));
    let url = repo.to_url();
    assert!(url.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')), "{url:?}");
    assert_eq!(repo.key().len(), 64);
}

fn a_filter(spec: &[u8]) {
    let Ok(filter) = Filter::parse(spec) else { return };
    let written = filter.spec();
    assert_eq!(Filter::parse(&written).as_ref(), Ok(&filter), "what is written is read back");
    assert_eq!(filter.refusal(&|_| true, u64::MAX), None);
    assert!(filter.refusal(&|_| false, u64::MAX).is_some());
}

fn patterns(mut data: &[u8]) {
    let length = usize::from(byte(&mut data).unwrap_or(0)).min(data.len());
    let (path, file) = data.split_at(length);
    // Paths come from trees and hold no NUL; they have no slash in front.
    if path.contains(&0) || path.starts_with(b"/") {
        return;
    }
    let parse = |file: &[u8]| Patterns::parse(Bytes::copy_from_slice(file), &Unlimited).unwrap();
    let found = parse(file);
    for is_dir in [true, false] {
        let verdict = found.judge(path, is_dir, &Unlimited).unwrap();
        if verdict == Verdict::NotMatched {
            assert!(file.contains(&b'!'), "nothing else takes out again");
        }
        // The last match decides, and comments are none.
        let more = [file, b"\n#x\n"].concat();
        assert_eq!(parse(&more).judge(path, is_dir, &Unlimited), Ok(verdict));
    }
}

fn names_and_numbers(data: &[u8]) {
    let name = data.as_bstr();
    assert_eq!(refname::from_text(&refname::to_text(name)).as_ref().map(|n| n.as_bstr()), Some(name));
    if refname::is_well_formed(name) {
        assert!(!name.contains_str("..") && !name.contains(&b' ') && !name.contains(&b'\n'));
        assert!(name.len() <= refname::MAX_NAME && !name.ends_with(b".lock") && !name.starts_with(b"/"));
    }
    if let Some(back) = name.to_str().ok().and_then(refname::from_text) {
        assert_eq!(refname::from_text(&refname::to_text(back.as_bstr())), Some(back));
    }
    let number = line::number(data);
    assert!(data.ends_with(number.rest) && number.found == (number.rest.len() < data.len()));
    if let (Some(size), Ok(text)) = (line::size(data), name.to_str())
        && let Ok(plain) = text.parse::<u64>()
        && !text.starts_with('0')
    {
        assert_eq!(size, plain);
    }
    let _ = (line::int(data), line::timestamp(data));
}
