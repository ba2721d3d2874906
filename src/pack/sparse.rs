//! Sparse patterns: which paths a `sparse:oid` filter keeps.
//!
//! A port of what git's `list-objects-filter.c` (`filter_sparse`) uses of `dir.c` (the patterns of a
//! `.gitignore` file, last match wins; never cone mode) and of `wildmatch.c`, case-sensitive.
//!
//! Elsewhere: walking trees with patterns (`trees`).
use bytes::Bytes;

use super::meter::{Halt, Held, Meter};

/// Files of patterns larger than this are refused (`PATTERN_MAX_FILE_SIZE` in git's `dir.c`).
pub const MAX_FILE: usize = 100 * 1024 * 1024;

/// What the patterns say of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The last pattern that matches selects it.
    Matched,
    /// The last pattern that matches starts with `!`.
    NotMatched,
    /// No pattern matches: as the directory it is in.
    Undecided,
}

/// The patterns of one file; what they take is held on a meter.
pub struct Patterns<'m> {
    list: Vec<Pattern>,
    _held: Held<'m>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    text: Vec<u8>,
    negative: bool,
    only_dirs: bool,
    /// Matches the last component alone.
    no_dir: bool,
    /// `*` and then nothing special: a suffix.
    ends_with: bool,
    /// Length of the part without wildcards.
    literal: usize,
}

impl<'m> Patterns<'m> {
    /// Reads a file of patterns (`add_patterns_from_buffer`); nothing in it can be wrong.
    pub fn parse(file: Bytes, meter: &'m dyn Meter) -> Result<Self, Halt> {
        let count = Self::count(&file);
        let held = Held::new(meter, (file.len() + count * size_of::<Pattern>()) as u64)?;
        let mut list = Vec::with_capacity(count);
        list.extend(lines(&file).filter_map(Pattern::parse));
        Ok(Self { list, _held: held })
    }

    /// Counts the patterns that a file has.
    pub fn count(file: &[u8]) -> usize {
        lines(file).count()
    }

    /// Judges `path` (no leading slash, empty for the root); `is_dir` if a tree is there.
    pub fn judge(&self, path: &[u8], is_dir: bool, meter: &dyn Meter) -> Result<Verdict, Halt> {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        for pattern in self.list.iter().rev() {
            meter.step(1)?;
            if pattern.matches(path, name, is_dir) {
                return Ok(if pattern.negative { Verdict::NotMatched } else { Verdict::Matched });
            }
        }
        Ok(Verdict::Undecided)
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    file.split(|&byte| byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#')
}

impl Pattern {
    /// `parse_path_pattern`, after the trimming of `add_patterns_from_buffer`.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // git's lines are C strings.
        let line = line.split(|&byte| byte == 0).next().unwrap_or_default();
        let line = trim_trailing_spaces(line);
        let (negative, rest) = match line.strip_prefix(b"!") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let literal = rest.iter().position(|&byte| is_special(byte)).unwrap_or(rest.len());
        let ends_with = rest.first() == Some(&b'*') && !rest[1..].iter().any(|&byte| is_special(byte));
        let (only_dirs, text) = match rest.strip_suffix(b"/") {
            Some(text) => (true, text),
            None => (false, rest),
        };
        let no_dir = !text.contains(&b'/');
        Some(Self {
            text: text.to_vec(),
            negative,
            only_dirs,
            no_dir,
            ends_with,
            literal: literal.min(text.len()),
        })
    }

    fn matches(&self, path: &[u8], name: &[u8], is_dir: bool) -> bool {
        if self.only_dirs && !is_dir {
            return false;
        }
        if self.no_dir { self.matches_name(name) } else { self.matches_path(path) }
    }

    /// `match_basename`.
    fn matches_name(&self, name: &[u8]) -> bool {
        if self.literal == self.text.len() {
            self.text == name
        } else if self.ends_with {
            name.ends_with(&self.text[1..])
        } else {
            wildmatch(&self.text, name, false)
        }
    }

    /// `match_pathname` with an empty base.
    fn matches_path(&self, path: &[u8]) -> bool {
        let (text, literal) = match self.text.strip_prefix(b"/") {
            Some(text) => (text, self.literal.saturating_sub(1)),
            None => (self.text.as_slice(), self.literal),
        };
        if path.is_empty() {
            return false;
        }
        let (Some(head), Some(start)) = (text.get(..literal), path.get(..literal)) else { return false };
        if head != start {
            return false;
        }
        let (text, path) = (&text[literal..], &path[literal..]);
        (literal > 0 && text.is_empty() && path.is_empty()) || wildmatch(text, path, true)
    }
}

/// `trim_trailing_spaces`: a backslash protects what follows it.
fn trim_trailing_spaces(line: &[u8]) -> &[u8] {
    let mut last_space = None;
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        match byte {
            b' ' => last_space = last_space.or(Some(at)),
            b'\\' => {
                at += 1;
                if at >= line.len() {
                    return line;
                }
                last_space = None;
            }
            _ => last_space = None,
        }
        at += 1;
    }
    &line[..last_space.unwrap_or(line.len())]
}

fn is_special(byte: u8) -> bool {
    matches!(byte, b'*' | b'?' | b'[' | b'\\')
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wild {
    Match,
    NoMatch,
    AbortAll,
    AbortToStarStar,
}

/// Steps one match may take: patterns come from outside and stars can be made to explode.
const MAX_STEPS: u32 = 100_000;

/// git's `wildmatch`; with `pathname` (WM_PATHNAME) only `**` crosses slashes.
fn wildmatch(pattern: &[u8], text: &[u8], pathname: bool) -> bool {
    wild(pattern, 0, text, 0, pathname, &mut MAX_STEPS.clone()) == Wild::Match
}

/// `dowild`: `start` is where this call's pattern begins, for the test of what stands before `**`.
fn wild(pattern: &[u8], start: usize, text: &[u8], mut t: usize, pathname: bool, steps: &mut u32) -> Wild {
    // Reading past the end gives NUL, as C strings do; neither side holds one.
    let pat = |at: usize| pattern.get(at).copied().unwrap_or(0);
    let txt = |at: usize| text.get(at).copied().unwrap_or(0);
    let mut p = start;
    while pat(p) != 0 {
        let Some(left) = steps.checked_sub(1) else { return Wild::AbortAll };
        *steps = left;
        let mut ch = txt(t);
        if ch == 0 && pat(p) != b'*' {
            return Wild::AbortAll;
        }
        match pat(p) {
            b'?' => {
                if pathname && ch == b'/' {
                    return Wild::NoMatch;
                }
            }
            b'*' => {
                p += 1;
                let crosses = if pat(p) == b'*' {
                    let before = p - 1;
                    while pat(p) == b'*' {
                        p += 1;
                    }
                    let alone = (before == start || pat(before - 1) == b'/')
                        && (pat(p) == 0 || pat(p) == b'/' || (pat(p) == b'\\' && pat(p + 1) == b'/'));
                    if pathname
                        && alone
                        && pat(p) == b'/'
                        && wild(pattern, p + 1, text, t, pathname, steps) == Wild::Match
                    {
                        return Wild::Match;
                    }
                    !pathname || alone
                } else {
                    !pathname
                };
                if pat(p) == 0 {
                    // A trailing `**` matches everything, a trailing `*` up to the next slash.
                    return if !crosses && text[t.min(text.len())..].contains(&b'/') {
                        Wild::AbortToStarStar
                    } else {
                        Wild::Match
                    };
                }
                if !crosses && pat(p) == b'/' {
                    // One star and a slash: the next directory.
                    match text[t.min(text.len())..].iter().position(|&byte| byte == b'/') {
                        Some(slash) => t += slash,
                        None => return Wild::AbortAll,
                    }
                } else {
                    loop {
                        if ch == 0 {
                            return Wild::AbortAll;
                        }
                        if !is_special(pat(p)) {
                            // What stands before the literal belongs to the star.
                            loop {
                                ch = txt(t);
                                if ch == 0 || (!crosses && ch == b'/') || ch == pat(p) {
                                    break;
                                }
                                t += 1;
                            }
                            if ch != pat(p) {
                                return if crosses { Wild::AbortAll } else { Wild::AbortToStarStar };
                            }
                        }
                        match wild(pattern, p, text, t, pathname, steps) {
                            Wild::NoMatch if !crosses && ch == b'/' => return Wild::AbortToStarStar,
                            Wild::NoMatch => {}
                            Wild::AbortToStarStar if crosses => {}
                            other => return other,
                        }
                        t += 1;
                        ch = txt(t);
                    }
                }
            }
            b'[' => match class(pattern, p, ch) {
                Some((matched, end)) if matched && !(pathname && ch == b'/') => p = end,
                Some(_) => return Wild::NoMatch,
                None => return Wild::AbortAll,
            },
            literal => {
                let literal = if literal == b'\\' {
                    p += 1;
                    pat(p)
                } else {
                    literal
                };
                if ch != literal {
                    return Wild::NoMatch;
                }
            }
        }
        p += 1;
        t += 1;
    }
    if t < text.len() { Wild::NoMatch } else { Wild::Match }
}

/// Tests `ch` against the class that starts at `at`; gives the place of its `]`, `None` if malformed.
fn class(pattern: &[u8], at: usize, ch: u8) -> Option<(bool, usize)> {
    let pat = |at: usize| pattern.get(at).copied().unwrap_or(0);
    let mut p = at + 1;
    let negated = matches!(pat(p), b'!' | b'^');
    p += usize::from(negated);
    let (mut before, mut matched) = (0u8, false);
    let mut c = pat(p);
    loop {
        match c {
            0 => return None,
            b'\\' => {
                p += 1;
                c = pat(p);
                if c == 0 {
                    return None;
                }
                matched |= ch == c;
            }
            b'-' if before != 0 && pat(p + 1) != 0 && pat(p + 1) != b']' => {
                p += 1;
                c = pat(p);
                if c == b'\\' {
                    p += 1;
                    c = pat(p);
                    if c == 0 {
                        return None;
                    }
                }
                matched |= before <= ch && ch <= c;
                c = 0;
            }
            b'[' if pat(p + 1) == b':' => {
                let name = p + 2;
                let end = name + pattern.get(name..)?.iter().position(|&byte| byte == b']')?;
                if end == name || pat(end - 1) != b':' {
                    // No `:]`: an ordinary member.
                    matched |= ch == b'[';
                } else {
                    matched |= is_in_class(pattern.get(name..end - 1)?, ch)?;
                    p = end;
                    c = 0;
                }
            }
            _ => matched |= ch == c,
        }
        before = c;
        p += 1;
        c = pat(p);
        if c == b']' {
            return Some((matched != negated, p));
        }
    }
}

fn is_in_class(name: &[u8], ch: u8) -> Option<bool> {
    Some(match name {
        b"alnum" => ch.is_ascii_alphanumeric(),
        b"alpha" => ch.is_ascii_alphabetic(),
        b"blank" => ch == b' ' || ch == b'\t',
        b"cntrl" => ch.is_ascii_control(),
        b"digit" => ch.is_ascii_digit(),
        b"graph" => ch.is_ascii_graphic(),
        b"lower" => ch.is_ascii_lowercase(),
        b"print" => ch.is_ascii_graphic() || ch == b' ',
        b"punct" => ch.is_ascii_punctuation(),
        b"space" => matches!(ch, b' ' | b'\t' | b'\n' | b'\r'),
        b"upper" => ch.is_ascii_uppercase(),
        b"xdigit" => ch.is_ascii_hexdigit(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::meter::Unlimited;
    use proptest::prelude::*;

    fn patterns(file: &[u8]) -> Patterns<'static> {
        Patterns::parse(Bytes::copy_from_slice(file), &Unlimited).unwrap()
    }

    /// Lines of git's own `t/t3070-wildmatch.sh`: text, pattern, with WM_PATHNAME, without.
    const CASES: &[(&str, &str, bool, bool)] = &[
        ("foo", "foo", true, true),
        ("foo", "bar", false, false),
        ("", "", true, true),
        ("foo", "???", true, true),
        ("foo", "??", false, false),
        ("foo", "*", true, true),
        ("foo", "f*", true, true),
        ("foo", "*f", false, false),
        ("foobar", "*ob*a*r*", true, true),
        ("aaaaaaabababab", "*ab", true, true),
        ("foo*", r"foo\*", true, true),
        ("foobar", r"foo\*bar", false, false),
        (r"f\oo", r"f\\oo", true, true),
        ("ball", "*[al]?", true, true),
        ("ten", "[ten]", false, false),
        ("ten", "t[a-g]n", true, true),
        ("ten", "t[!a-g]n", false, false),
        ("ton", "t[!a-g]n", true, true),
        ("ton", "t[^a-g]n", true, true),
        ("a]b", "a[]]b", true, true),
        ("a-b", "a[]-]b", true, true),
        ("aab", "a[]a-]b", true, true),
        ("]", "]", true, true),
        ("foo/baz/bar", "foo*bar", false, true),
        ("foo/baz/bar", "foo**bar", false, true),
        ("foobazbar", "foo**bar", true, true),
        ("foo/baz/bar", "foo/**/bar", true, true),
        ("foo/baz/bar", "foo/**/**/bar", true, false),
        ("foo/b/a/z/bar", "foo/**/bar", true, true),
        ("foo/bar", "foo/**/bar", true, false),
        ("foo/bar", "foo?bar", false, true),
        ("foo/bar", "foo[/]bar", false, true),
        ("foo/bar", "f[^eiu][^eiu][^eiu][^eiu][^eiu]r", false, true),
        ("foo-bar", "f[^eiu][^eiu][^eiu][^eiu][^eiu]r", true, true),
        ("foo", "**/foo", true, false),
        ("XXX/foo", "**/foo", true, true),
        ("bar/baz/foo", "**/foo", true, true),
        ("bar/baz/foo", "*/foo", false, true),
        ("foo/bar/baz", "**/bar*", false, true),
        ("deep/foo/bar/baz", "**/bar/*", true, true),
        ("deep/foo/bar/baz/", "**/bar/*", false, true),
        ("deep/foo/bar/baz/", "**/bar/**", true, true),
        ("deep/foo/bar", "**/bar/*", false, false),
        ("deep/foo/bar/", "**/bar/**", true, true),
        ("foo/bar/baz", "**/bar**", false, true),
        ("foo/bar/baz/x", "*/bar/**", true, true),
        ("deep/foo/bar/baz/x", "*/bar/**", false, true),
        ("deep/foo/bar/baz/x", "**/bar/*/*", true, true),
        ("acrt", "a[c-c]st", false, false),
        ("acrt", "a[c-c]rt", true, true),
        ("]", "[!]-]", false, false),
        ("a", "[!]-]", true, true),
        ("", r"\", false, false),
        (r"XXX/\", r"*/\", false, false),
        (r"XXX/\", r"*/\\", true, true),
        ("@foo", "@foo", true, true),
        ("[ab]", r"\[ab]", true, true),
        ("[ab]", "[[]ab]", true, true),
        ("[ab]", "[[:]ab]", true, true),
        ("[ab]", "[[::]ab]", false, false),
        ("[ab]", "[[:digit]ab]", true, true),
        ("a1B", "[[:alpha:]][[:digit:]][[:upper:]]", true, true),
        ("a", "[[:digit:][:upper:][:space:]]", false, false),
        ("a", "[[:digit:][:upper:][:spaci:]]", false, false),
        (" ", "[[:digit:][:upper:][:space:]]", true, true),
        (".", "[[:digit:][:punct:][:space:]]", true, true),
        ("5", "[[:xdigit:]]", true, true),
        (
            "_",
            "[[:alnum:][:alpha:][:blank:][:cntrl:][:digit:][:graph:][:lower:][:print:][:punct:][:space:][:upper:][:xdigit:]]",
            true,
            true,
        ),
        ("y", "[a-c[:digit:]x-z]", true, true),
        ("q", "[a-c[:digit:]x-z]", false, false),
        ("]", r"[\\-^]", true, true),
        ("[", r"[\\-^]", false, false),
        ("-", r"[\-_]", true, true),
        ("]", r"[\]]", true, true),
        ("a[]b", "a[]b", false, false),
        ("ab[", "ab[", false, false),
        ("ab", "[!", false, false),
        ("ab", "[-", false, false),
        ("-", "[-]", true, true),
        ("-", "[a-", false, false),
        ("-", "[!a-", false, false),
        ("-", "[--A]", true, true),
        ("5", "[--A]", true, true),
        (" ", "[ --]", true, true),
        ("$", "[ --]", true, true),
        ("-", "[ --]", true, true),
        ("0", "[ --]", false, false),
        ("-", "[---]", true, true),
        ("j", "[a-e-n]", false, false),
        ("-", "[a-e-n]", true, true),
        ("a", "[!------]", true, true),
        ("[", "[]-a]", false, false),
        ("^", "[]-a]", true, true),
        ("^", "[!]-a]", false, false),
        ("[", "[!]-a]", true, true),
        ("^", "[a^bc]", true, true),
        ("-b]", "[a-]b]", true, true),
        (r"\", r"[\]", false, false),
        (r"\", r"[\\]", true, true),
        (r"\", r"[!\\]", false, false),
        ("G", r"[A-\\]", true, true),
        ("aaabbb", "b*a", false, false),
        ("aabcaa", "*ba*", false, false),
        (",", "[,]", true, true),
        ("-", "[,-.]", true, true),
        (
            "-adobe-courier-bold-o-normal--12-120-75-75-m-70-iso8859-1",
            "-*-*-*-*-*-*-12-*-*-*-m-*-*-*",
            true,
            true,
        ),
        (
            "-adobe-courier-bold-o-normal--12-120-75-75-X-70-iso8859-1",
            "-*-*-*-*-*-*-12-*-*-*-m-*-*-*",
            false,
            false,
        ),
        (
            "XXX/adobe/courier/bold/o/normal//12/120/75/75/m/70/iso8859/1",
            "XXX/*/*/*/*/*/*/12/*/*/*/m/*/*/*",
            true,
            true,
        ),
        ("abcd/abcdefg/abcdefghijk/abcdefghijklmnop.txt", "**/*a*b*g*n*t", true, true),
        ("abcd/abcdefg/abcdefghijk/abcdefghijklmnop.txtz", "**/*a*b*g*n*t", false, false),
        ("foo", "*/*/*", false, false),
        ("foo/bb/aa/rr", "*/*/*", false, true),
        ("foo/bba/arr", "*/*/*", true, true),
        ("abcXdefXghi", "*X*i", true, true),
        ("ab/cXd/efXg/hi", "*X*i", false, true),
        ("ab/cXd/efXg/hi", "*/*X*/*/*i", true, true),
        ("ab/cXd/efXg/hi", "**/*X*/**/*i", true, true),
        ("foo", "fo", false, false),
        ("foo/bar", "foo/*", true, true),
        ("foo/bba/arr", "foo/*", false, true),
        ("foo/bba/arr", "foo/**", true, true),
        ("foo/bba/arr", "foo**", false, true),
        ("foo/bba/arr", "foo/*arr", false, true),
        ("foo/bba/arr", "foo/**arr", false, true),
        ("foo/bba/arr", "foo/*z", false, false),
        ("foo/bba/arr", "foo/**z", false, false),
    ];

    #[test]
    fn matches_as_gits_own_table() {
        for &(text, pattern, path, plain) in CASES {
            assert_eq!(
                wildmatch(pattern.as_bytes(), text.as_bytes(), true),
                path,
                "{pattern} on {text}, as a path"
            );
            assert_eq!(wildmatch(pattern.as_bytes(), text.as_bytes(), false), plain, "{pattern} on {text}");
        }
    }

    #[test]
    fn the_last_matching_pattern_decides() {
        use Verdict::*;
        let patterns =
            patterns(b"\xef\xbb\xbf# comment\n/*\n!/docs/\n*.md   \ndocs/api/\nspace\\ \r\n\n!dir/*/x\n");
        let cases: [(&str, bool, Verdict); 11] = [
            ("", true, Undecided),
            ("a", false, Matched),
            ("docs", true, NotMatched),
            ("docs", false, Matched),
            ("docs/a.txt", false, Undecided),
            ("docs/a.md", false, Matched),
            ("docs/api", true, Matched),
            ("deep/docs/api", true, Undecided),
            ("x/space ", false, Matched),
            ("dir/a/x", false, NotMatched),
            ("dir/a/b/x", false, Undecided),
        ];
        for (path, is_dir, want) in cases {
            assert_eq!(patterns.judge(path.as_bytes(), is_dir, &Unlimited), Ok(want), "{path}");
        }
        assert_eq!(
            super::tests::patterns(b"*").judge(b"", true, &Unlimited),
            Ok(Matched),
            "a bare star matches the root itself"
        );
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(file in prop::collection::vec(any::<u8>(), 0..40), path in "[a-c/\\*\\[\\]]{0,12}") {
            patterns(&file).judge(path.as_bytes(), false, &Unlimited).unwrap();
        }

        #[test]
        fn stars_do_not_explode(text in "[ab]{40}", pattern in "(\\*a){10,20}c") {
            prop_assert!(!wildmatch(pattern.as_bytes(), text.as_bytes(), true));
        }
    }
}
