//! Wildcards, matched as git's `wildmatch.c` matches them, case-sensitive.
//!
//! git's own function calls itself for each star, as deep as the pattern has stars. Here the last star is tried again
//! further on, and that is enough: the earliest match of the text between two stars leaves the most for what follows.
//! (gix-glob, whose function calls itself as well, says "no match" beyond 64 stars, where git goes on.) The work is at
//! most the pattern's length times the text's, and counted.
//!
//! Elsewhere: what is matched with what (`sparse`).
use bstr::ByteSlice;

use crate::pack::meter::{Halt, Meter};

/// Comparisons that cost about what a step of a [`Meter`] stands for.
const COMPARISONS: u64 = 16;

/// Comparisons after which the meter is asked whether to go on.
const OFTEN: u64 = 1 << 16;

/// Counts comparisons for a meter.
pub struct Work<'m> {
    meter: &'m dyn Meter,
    comparisons: u64,
}

impl<'m> Work<'m> {
    /// Starts with nothing done.
    pub fn new(meter: &'m dyn Meter) -> Self {
        Self { meter, comparisons: 0 }
    }

    /// Counts a pattern that is tried: a step.
    pub fn tried(&mut self) -> Result<(), Halt> {
        self.compared(COMPARISONS as usize)
    }

    /// Counts comparisons made one by one.
    pub fn compared(&mut self, n: usize) -> Result<(), Halt> {
        self.comparisons += n as u64;
        if self.comparisons < OFTEN { Ok(()) } else { self.settle() }
    }

    /// Counts bytes that were searched or compared many at a time.
    pub fn passed(&mut self, bytes: usize) -> Result<(), Halt> {
        self.compared(bytes / 16 + 1)
    }

    /// Tells the meter of all that it does not know of yet.
    pub fn settle(&mut self) -> Result<(), Halt> {
        let steps = self.comparisons.div_ceil(COMPARISONS);
        self.comparisons = 0;
        self.meter.step(steps)
    }
}

/// A star that was passed, and where what follows it is tried next.
#[derive(Clone, Copy)]
struct Star {
    behind: usize,
    next: usize,
}

/// Says whether `pattern` matches all of `text`; with `pathname` (WM_PATHNAME) only `**` crosses slashes.
pub fn wildmatch(pattern: &[u8], text: &[u8], pathname: bool, work: &mut Work<'_>) -> Result<bool, Halt> {
    let (mut p, mut t) = (0, 0);
    // The last star that crosses slashes; and the last other one, if it is in this component of the path.
    let (mut wide, mut near): (Option<Star>, Option<Star>) = (None, None);
    loop {
        work.compared(1)?;
        let fits = match (pattern.get(p), text.get(t)) {
            (None, None) => return Ok(true),
            (None, Some(_)) => false,
            (Some(b'*'), _) => {
                let stars = pattern[p..].iter().take_while(|&&byte| byte == b'*').count();
                work.passed(stars)?;
                let behind = p + stars;
                let (before, rest) = (&pattern[..p], &pattern[behind..]);
                let alone = (before.is_empty() || before.ends_with(b"/"))
                    && (rest.is_empty() || rest.starts_with(b"/") || rest.starts_with(b"\\/"));
                let crosses = !pathname || (stars > 1 && alone);
                let star = Star { behind, next: t };
                if rest.is_empty() {
                    work.passed(text.len() - t)?;
                    if crosses || !text[t..].contains(&b'/') {
                        return Ok(true);
                    }
                    near = None;
                } else if !crosses {
                    near = Some(star);
                } else {
                    (wide, near) = (Some(star), None);
                    if pathname && rest.starts_with(b"/") {
                        // `**/` may stand for nothing at all.
                        p = behind + 1;
                        continue;
                    }
                }
                false
            }
            // The text ends before the pattern does; a match that begins further on has even less text.
            (Some(_), None) => return Ok(false),
            (Some(b'?'), Some(&byte)) => !(pathname && byte == b'/'),
            (Some(b'['), Some(&byte)) => match class(pattern, p, byte, work)? {
                Some((matched, end)) => {
                    p = if matched { end } else { p };
                    matched && !(pathname && byte == b'/')
                }
                // No text matches that.
                None => return Ok(false),
            },
            (Some(b'\\'), Some(&byte)) => match pattern.get(p + 1) {
                Some(&escaped) => {
                    p += usize::from(escaped == byte);
                    escaped == byte
                }
                None => return Ok(false),
            },
            (Some(&literal), Some(&byte)) => literal == byte,
        };
        if fits {
            if pathname && text[t] == b'/' {
                // A near star matches no slash, so none before this one can help any more.
                near = None;
            }
            (p, t) = (p + 1, t + 1);
            continue;
        }
        if let Some(star) = &mut near {
            if let Some(at) = next_place(pattern, text, star, true, work)? {
                (p, t) = (star.behind, at);
                continue;
            }
            near = None;
        }
        let Some(star) = &mut wide else { return Ok(false) };
        let Some(at) = next_place(pattern, text, star, false, work)? else { return Ok(false) };
        (p, t) = (star.behind, at);
    }
}

/// The next place where what follows a star may match, if there is one; a near star stops at a slash.
fn next_place(
    pattern: &[u8],
    text: &[u8],
    star: &mut Star,
    near: bool,
    work: &mut Work<'_>,
) -> Result<Option<usize>, Halt> {
    let Some(rest) = text.get(star.next..) else { return Ok(None) };
    let place = match pattern.get(star.behind) {
        // All before a literal belongs to the star.
        Some(&literal) if !is_special(literal) => {
            let found = if near { rest.find_byteset([literal, b'/']) } else { rest.find_byte(literal) };
            work.passed(found.unwrap_or(rest.len()))?;
            found.filter(|&at| rest[at] == literal)
        }
        _ => (!rest.is_empty()).then_some(0),
    };
    let at = place.map(|place| star.next + place);
    star.next = match at {
        // What begins at a slash leaves it to no near star after it.
        Some(at) if near && text[at] == b'/' => text.len() + 1,
        Some(at) => at + 1,
        None => text.len() + 1,
    };
    Ok(at)
}

/// Says whether a byte means more than itself in a pattern.
pub fn is_special(byte: u8) -> bool {
    matches!(byte, b'*' | b'?' | b'[' | b'\\')
}

/// Tests `ch` against the class that starts at `at`; gives the place of its `]`, `None` if malformed.
fn class(pattern: &[u8], at: usize, ch: u8, work: &mut Work<'_>) -> Result<Option<(bool, usize)>, Halt> {
    // Reading past the end gives NUL, as C strings do; no pattern holds one.
    let pat = |at: usize| pattern.get(at).copied().unwrap_or(0);
    let mut p = at + 1;
    let negated = matches!(pat(p), b'!' | b'^');
    p += usize::from(negated);
    let (mut before, mut matched) = (0u8, false);
    let mut c = pat(p);
    loop {
        work.compared(1)?;
        match c {
            0 => return Ok(None),
            b'\\' => {
                p += 1;
                c = pat(p);
                if c == 0 {
                    return Ok(None);
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
                        return Ok(None);
                    }
                }
                matched |= before <= ch && ch <= c;
                c = 0;
            }
            b'[' if pat(p + 1) == b':' => {
                let name = p + 2;
                let Some(length) = pattern[name..].find_byte(b']') else { return Ok(None) };
                work.passed(length)?;
                let end = name + length;
                if end == name || pat(end - 1) != b':' {
                    // No `:]`: an ordinary member.
                    matched |= ch == b'[';
                } else {
                    let Some(is_in) = is_in_class(&pattern[name..end - 1], ch) else { return Ok(None) };
                    matched |= is_in;
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
            return Ok(Some((matched != negated, p)));
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
    use crate::pack::testing::Allowed;
    use proptest::prelude::*;

    fn matches(pattern: &[u8], text: &[u8], pathname: bool) -> bool {
        wildmatch(pattern, text, pathname, &mut Work::new(&Unlimited)).unwrap()
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

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Wild {
        Match,
        NoMatch,
        AbortAll,
        AbortToStarStar,
    }

    /// git's own way, `dowild` of wildmatch.c, which calls itself for each star: `start` is where this call's pattern begins, for the test of what stands before `**`.
    fn wild(pattern: &[u8], start: usize, text: &[u8], mut t: usize, pathname: bool) -> Wild {
        // Reading past the end gives NUL, as C strings do; neither side holds one.
        let pat = |at: usize| pattern.get(at).copied().unwrap_or(0);
        let txt = |at: usize| text.get(at).copied().unwrap_or(0);
        let mut p = start;
        while pat(p) != 0 {
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
                            && wild(pattern, p + 1, text, t, pathname) == Wild::Match
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
                            match wild(pattern, p, text, t, pathname) {
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
                b'[' => match class(pattern, p, ch, &mut Work::new(&Unlimited)).unwrap() {
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

    #[test]
    fn matches_as_gits_own_table() {
        for &(text, pattern, path, plain) in CASES {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes(), true),
                path,
                "{pattern} on {text}, as a path"
            );
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes(), false), plain, "{pattern} on {text}");
        }
    }

    #[test]
    fn answers_as_git_where_stars_are_many_or_names_long() {
        // A stack as small as any thread's; git's own function would go as deep as there are stars.
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let all = || {
            let (stars, long) = (b"*a".repeat(40_000), vec![b'a'; 200_000]);
            assert!(matches(&stars, &long, false) && matches(&stars, &long, true));
            assert!(!matches(&[&stars[..], b"b"].concat(), &long, false));
            assert!(matches(&[&stars[..], b"b"].concat(), &[&long[..], b"b"].concat(), false));
            let (dirs, deep) = (b"**/".repeat(20_000), b"a/".repeat(20_000));
            assert!(matches(&[&dirs[..], b"b"].concat(), &[&deep[..], b"b"].concat(), true));
            assert!(!matches(&[&dirs[..], b"b"].concat(), &[&deep[..], b"c"].concat(), true));
            assert!(matches(&b"?".repeat(100_000), &long[..100_000], true));
            assert!(!matches(&b"*?".repeat(10_000), &long[..9_999], true));
            assert!(matches(&b"*[a-b]".repeat(10_000), &long[..10_000], true));
            assert!(matches(&b"a*/**/".repeat(5_000), &deep, true));
            assert!(!matches(&b"a*/**/".repeat(5_000), &[&deep[..], b"b"].concat(), true));
        };
        small.spawn(all).unwrap().join().unwrap();
    }

    #[test]
    fn work_is_the_product_of_the_lengths_at_most_and_is_counted() {
        let steps = |pattern: &[u8], text: &[u8], pathname: bool, most: u64| {
            let meter = Allowed::new(most, 0);
            let mut work = Work::new(&meter);
            wildmatch(pattern, text, pathname, &mut work).and_then(|_| work.settle()).is_ok()
        };
        // Stars that make git's older function explode, and a literal that nearly matches everywhere.
        let cases: [(Vec<u8>, Vec<u8>, bool); 5] = [
            (b"*a*a*a*a*a*a*a*a*a*a*a*a*b".to_vec(), vec![b'a'; 1000], false),
            (b"**/a*a*a/**/a*a*a/**/a*a*a/b".to_vec(), b"aaaa/".repeat(200), true),
            ([b"*", &[b'a'; 500][..], b"b"].concat(), vec![b'a'; 1000], false),
            (b"**/*[ab]?/**/*[ab]?/c".to_vec(), b"ab/".repeat(300), true),
            ([b"*", &b"[[:".repeat(300)[..], b"]"].concat(), vec![b'x'; 300], true),
        ];
        for (pattern, text, pathname) in cases {
            let all = (pattern.len() * text.len()) as u64 / COMPARISONS + 100;
            assert!(steps(&pattern, &text, pathname, all), "{}", pattern.as_bstr());
        }
        let (pattern, text) = ([b"*", &[b'a'; 5000][..], b"b"].concat(), vec![b'a'; 50_000]);
        assert!(!steps(&pattern, &text, false, 1_000_000), "a long match ends when its steps are used up");
    }

    fn pieces(most: usize) -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "a",
            "b",
            "/",
            "*",
            "**",
            "**/",
            "/**",
            "?",
            "[ab]",
            "[!a]",
            "[/]",
            "[",
            "\\",
            "\\*",
            "\\/",
            "]",
            "-",
            "[a-",
            "[[:alpha:]",
            "[[:alpha:]]",
            "*a",
            "*/",
            "/*",
            "a*b",
        ]);
        prop::collection::vec(piece, 0..most).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(crate::seed::cases(5000))]

        #[test]
        fn matches_as_gits_own_function(pattern in pieces(9), text in "[ab/*\\[-]{0,12}", pathname: bool) {
            let git = wild(&pattern, 0, text.as_bytes(), 0, pathname) == Wild::Match;
            prop_assert_eq!(matches(&pattern, text.as_bytes(), pathname), git);
        }
    }
}
