//! Text from elsewhere (repository names, error messages of other hosts) made safe to print.

/// Writes control characters as escapes, and with them the marks that reverse or hide text on a terminal.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// Says whether a terminal might obey a character, or show by it one text as another.
pub fn is_obeyed(c: char) -> bool {
    // Directional marks can disguise a name as another one.
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error with its causes in one line, each said once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !words.contains(&next) {
            words = format!("{words}: {next}");
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::safe;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(safe("team/größe 1.git"), "team/größe 1.git");
        assert_eq!(safe("a\u{1b}[2Jb\r\n\u{202e}c"), "a\\u{1b}[2Jb\\u{d}\\u{a}\\u{202e}c");
    }
}
