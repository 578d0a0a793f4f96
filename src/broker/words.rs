//! Words for people about what a broker or a library said. Whatever comes from outside is cut and escaped here, and nowhere
//! else.

use std::fmt::Display;

/// Characters of a foreign text that are passed on: a server's error is a line.
const CHARS_MAX: usize = 240;

/// A text of the broker's or of a library, fit for a log and a terminal.
pub(super) fn foreign(text: &(impl Display + ?Sized)) -> String {
    let text = text.to_string();
    let mut out: String = text.trim().chars().take(CHARS_MAX).flat_map(escaped).collect();
    if text.trim().chars().count() > CHARS_MAX {
        out.push_str("...");
    }
    out
}

/// Quotation marks may stay as they are.
fn escaped(character: char) -> Vec<char> {
    if matches!(character, '"' | '\'') { vec![character] } else { character.escape_debug().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_are_cut_and_escaped() {
        assert_eq!(foreign(" it's \"x\"\r\n\u{1b}[31m\u{202e}"), "it's \"x\"\\r\\n\\u{1b}[31m\\u{202e}");
        assert_eq!(foreign(&"x".repeat(1_000)).len(), CHARS_MAX + 3);
    }
}
