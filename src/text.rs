//! Text from elsewhere (repository names, error messages of other hosts) made safe to print, and errors as one line.

use std::error::Error;

/// Writes control characters as escapes, and with them the marks that reverse or hide text on a terminal.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// Makes one line of a text: line feeds and the spaces around them become one space.
pub fn line(text: &str) -> String {
    let lines = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// Says whether a terminal might obey a character, or show by it one text as another.
pub fn is_obeyed(c: char) -> bool {
    // Directional marks can disguise a name as another one.
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error with its causes in one line, each said once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    chain_of(error, str::to_owned)
}

/// The same, with what each cause says made plainer by `plain`.
pub fn chain_of(error: &(dyn Error + 'static), plain: impl Fn(&str) -> String) -> String {
    let mut words = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| (*cause).source()) {
        let next = plain(&cause.to_string());
        if !words.contains(&next) {
            words.push_str(": ");
            words.push_str(&next);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn each_cause_is_said_once() {
        let layer = |text, below| Layer(text, Some(Box::new(below)));
        let error = layer("cannot open: no such file", layer("no such file", Layer("disk is full", None)));
        assert_eq!(chain(&error), "cannot open: no such file: disk is full");
        assert_eq!(
            chain_of(&error, str::to_uppercase),
            "cannot open: no such file: NO SUCH FILE: DISK IS FULL"
        );
    }

    #[test]
    fn lines_become_one() {
        assert_eq!(line("the primary said:\r\n\n  500\n"), "the primary said: 500");
        assert_eq!(line("one"), "one");
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(safe("team/größe 1.git"), "team/größe 1.git");
        assert_eq!(safe("a\u{1b}[2Jb\r\n\u{202e}c"), "a\\u{1b}[2Jb\\u{d}\\u{a}\\u{202e}c");
    }
}
