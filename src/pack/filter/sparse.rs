//! Sparse patterns: which paths a `sparse:oid` filter keeps.
//!
//! A port of what git's `list-objects-filter.c` (`filter_sparse`) uses of `dir.c` (the patterns of a
//! `.gitignore` file, last match wins; never cone mode), case-sensitive.
//!
//! Elsewhere: wildcards (`wildmatch`), the patterns of one request (`rules`), walking trees with them (`paths`).
use bytes::Bytes;

use super::wildmatch::{Work, is_special, wildmatch};
use crate::pack::meter::{Halt, Held, Meter};

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
    file: Bytes,
    list: Vec<Pattern>,
    _held: Held<'m>,
}

/// One line of a file. Files can be all patterns of one byte, so a pattern is small.
struct Pattern {
    start: u32,
    len: u32,
    /// Length of the part without wildcards.
    literal: u32,
    negative: bool,
    only_dirs: bool,
    /// Matches the last component alone.
    no_dir: bool,
    /// `*` and then nothing special: a suffix.
    ends_with: bool,
}

impl<'m> Patterns<'m> {
    /// Reads a file of patterns (`add_patterns_from_buffer`); nothing in it can be wrong. Reads no further than
    /// [`MAX_FILE`].
    pub fn parse(file: Bytes, meter: &'m dyn Meter) -> Result<Self, Halt> {
        let file = file.slice(..file.len().min(MAX_FILE));
        let count = Self::count(&file);
        meter.step((count + file.len() / 64) as u64)?;
        let held = Held::new(meter, (file.len() + count * size_of::<Pattern>()) as u64)?;
        let mut list = Vec::with_capacity(count);
        list.extend(lines(&file).map(|(start, line)| Pattern::parse(start, line)));
        Ok(Self { file, list, _held: held })
    }

    /// Counts the patterns that a file has.
    pub fn count(file: &[u8]) -> usize {
        lines(file).count()
    }

    /// Judges `path` (no leading slash, empty for the root); `is_dir` if a tree is there.
    pub fn judge(&self, path: &[u8], is_dir: bool, meter: &dyn Meter) -> Result<Verdict, Halt> {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let mut work = Work::new(meter);
        let mut verdict = Verdict::Undecided;
        for pattern in self.list.iter().rev() {
            work.tried()?;
            if pattern.matches(&self.file, path, name, is_dir, &mut work)? {
                verdict = if pattern.negative { Verdict::NotMatched } else { Verdict::Matched };
                break;
            }
        }
        work.settle()?;
        Ok(verdict)
    }
}

/// The lines that are patterns, and where they start.
fn lines(file: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut start = if file.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let lines = file[start..].split(|&byte| byte == b'\n').map(move |line| {
        let at = start;
        start += line.len() + 1;
        (at, line)
    });
    lines.filter(|(_, line)| !line.is_empty() && line[0] != b'#')
}

impl Pattern {
    /// `parse_path_pattern`, after the trimming of `add_patterns_from_buffer`.
    fn parse(start: usize, line: &[u8]) -> Self {
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
        // A file is far smaller than 4 GiB.
        let small = |n: usize| n as u32;
        Self {
            start: small(start + usize::from(negative)),
            len: small(text.len()),
            literal: small(literal.min(text.len())),
            negative,
            only_dirs,
            no_dir,
            ends_with,
        }
    }

    fn matches(
        &self,
        file: &[u8],
        path: &[u8],
        name: &[u8],
        is_dir: bool,
        work: &mut Work<'_>,
    ) -> Result<bool, Halt> {
        if self.only_dirs && !is_dir {
            return Ok(false);
        }
        let text = &file[self.start as usize..][..self.len as usize];
        work.passed(text.len().min(path.len()) / 16)?;
        if self.no_dir { self.matches_name(text, name, work) } else { self.matches_path(text, path, work) }
    }

    /// `match_basename`.
    fn matches_name(&self, text: &[u8], name: &[u8], work: &mut Work<'_>) -> Result<bool, Halt> {
        if self.literal == self.len {
            Ok(text == name)
        } else if self.ends_with {
            Ok(name.ends_with(&text[1..]))
        } else {
            wildmatch(text, name, false, work)
        }
    }

    /// `match_pathname` with an empty base.
    fn matches_path(&self, text: &[u8], path: &[u8], work: &mut Work<'_>) -> Result<bool, Halt> {
        let literal = self.literal as usize;
        let (text, literal) = match text.strip_prefix(b"/") {
            Some(text) => (text, literal.saturating_sub(1)),
            None => (text, literal),
        };
        if path.is_empty() {
            return Ok(false);
        }
        let (Some(head), Some(start)) = (text.get(..literal), path.get(..literal)) else { return Ok(false) };
        if head != start {
            return Ok(false);
        }
        let (text, path) = (&text[literal..], &path[literal..]);
        Ok((literal > 0 && text.is_empty() && path.is_empty()) || wildmatch(text, path, true, work)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::meter::Unlimited;
    use proptest::prelude::*;

    fn patterns(file: &[u8]) -> Patterns<'static> {
        Patterns::parse(Bytes::copy_from_slice(file), &Unlimited).unwrap()
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
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn nothing_breaks_it(file in prop::collection::vec(any::<u8>(), 0..40), path in "[a-c/\\*\\[\\]]{0,12}") {
            patterns(&file).judge(path.as_bytes(), false, &Unlimited).unwrap();
        }
    }
}
