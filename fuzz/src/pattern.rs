//! Channel names and patterns, against the grammar and the matching rules written down as plainly as possible.

use tidewire::pattern::{Pattern, TOKENS_MAX, check_name, is_reserved};

/// Longest pattern that is read.
const BYTES_MAX: usize = 200;

/// The first line is a pattern, the rest a name.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pattern, name) = text.split_once('\n').unwrap_or((text, text));
    let name_is_valid = check_name(name, BYTES_MAX).is_ok();
    assert_eq!(name_is_valid, is_name(name), "{name:?}");

    let parsed = Pattern::parse(pattern, BYTES_MAX);
    assert_eq!(parsed.is_ok(), is_pattern(pattern), "{pattern:?}");
    let Ok(parsed) = parsed else { return };
    assert_eq!(parsed.as_str(), pattern);
    assert_eq!(parsed.is_literal(), is_name(pattern), "{pattern:?}");
    if name_is_valid {
        let wanted: Vec<&str> = pattern.split('.').collect();
        let tokens: Vec<&str> = name.split('.').collect();
        let expected = matches(&wanted, &tokens) && (!is_reserved(name) || wanted[0] == tokens[0]);
        assert_eq!(parsed.matches(name), expected, "{pattern:?} {name:?}");
    }
}

fn matches(wanted: &[&str], tokens: &[&str]) -> bool {
    match (wanted, tokens) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        (["*", wanted @ ..], [_, tokens @ ..]) => matches(wanted, tokens),
        ([first, wanted @ ..], [token, tokens @ ..]) => first == token && matches(wanted, tokens),
        _ => false,
    }
}

fn is_name(text: &str) -> bool {
    let tokens: Vec<&str> = text.split('.').collect();
    let first_is_good = tokens[0].strip_prefix('$').map_or_else(|| is_token(tokens[0]), is_token);
    text.len() <= BYTES_MAX
        && tokens.len() <= TOKENS_MAX
        && first_is_good
        && tokens[1..].iter().all(|token| is_token(token))
}

/// A pattern is what becomes a name once its wildcards are tokens.
fn is_pattern(text: &str) -> bool {
    let mut tokens: Vec<&str> = text.split('.').collect();
    let last = tokens.len() - 1;
    for (position, token) in tokens.iter_mut().enumerate() {
        if *token == "*" || (*token == ">" && position == last) {
            *token = "x";
        }
    }
    is_name(&tokens.join("."))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-:@+=~%".contains(c))
}
