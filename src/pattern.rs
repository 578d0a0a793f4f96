//! Channel names and the patterns of subscriptions. Pure; never allocates while matching.
//!
//! A name is one or more tokens joined by `.`; a pattern may hold `*` for exactly one token and end in `>` for one or
//! more tokens, as in NATS, so that names map onto a broker's subjects unchanged. Names that begin with `$` belong to the
//! server; a pattern reaches them only if it spells out their first token.

use std::fmt;

pub mod index;

/// Tokens in a name or pattern, at the most. Deeper names are a mistake far more often than a need.
pub const TOKENS_MAX: usize = 16;

/// Why a name or pattern was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No characters.
    #[error("is empty; a channel is one or more tokens joined by '.', such as robot.7.imu")]
    Empty,
    /// Over the limit in bytes.
    #[error("has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// More than [`TOKENS_MAX`] tokens.
    #[error("has more than {TOKENS_MAX} tokens")]
    TooDeep,
    /// Two dots in a row, or one at an end.
    #[error("has an empty token at byte {at}; a single '.' stands between tokens, none at the ends")]
    EmptyToken {
        /// Offset of the empty token.
        at: usize,
    },
    /// A character that no token may hold.
    #[error(
        "has a character that is not allowed at byte {at}; tokens hold ASCII letters, digits and _ - : @ + = ~ %"
    )]
    BadCharacter {
        /// Offset of the character.
        at: usize,
    },
    /// `*` or `>` where only a name will do.
    #[error("has a wildcard at byte {at}; a channel to publish to is a name, not a pattern")]
    Wildcard {
        /// Offset of the wildcard.
        at: usize,
    },
    /// `*` beside other characters, or `>` that is not the last token.
    #[error("has a misplaced wildcard at byte {at}; '*' is a whole token, '>' the last token")]
    MisplacedWildcard {
        /// Offset of the wildcard.
        at: usize,
    },
}

/// A checked pattern; a name without wildcards is a pattern that matches itself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
    /// Bytes before the first wildcard: all names of the pattern begin with them.
    prefix: u16,
}

impl Pattern {
    /// Checks `text` against the grammar and `bytes_max`.
    ///
    /// # Errors
    /// Says what is wrong and at which byte.
    pub fn parse(text: &str, bytes_max: usize) -> Result<Self, PatternError> {
        let bytes_max = bytes_max.min(usize::from(u16::MAX));
        let wildcard = check(text, bytes_max)?;
        let prefix = u16::try_from(wildcard.unwrap_or(text.len())).unwrap_or(u16::MAX);
        Ok(Self { text: text.into(), prefix })
    }

    /// Whether it holds no wildcard.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        usize::from(self.prefix) == self.text.len()
    }

    /// The text as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `name`, a valid channel name, is one of the pattern's.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.text.as_bytes(), name.as_bytes());
        let prefix = usize::from(self.prefix);
        // Most of what is asked ends here.
        if name.len() < prefix || name[..prefix] != pattern[..prefix] {
            return false;
        }
        // A wildcard in the first place does not reach the server's own names.
        if prefix == 0 && name.first() == Some(&b'$') {
            return false;
        }
        // Wildcards are whole tokens, so the rest can be compared byte by byte.
        let (mut wanted, mut rest) = (&pattern[prefix..], &name[prefix..]);
        while let Some((first, behind)) = wanted.split_first() {
            rest = match (first, rest.first()) {
                (b'>', Some(_)) => return true,
                (b'*', Some(_)) => {
                    let end = rest.iter().position(|byte| *byte == b'.').unwrap_or(rest.len());
                    &rest[end..]
                }
                (byte, Some(found)) if byte == found => &rest[1..],
                _ => return false,
            };
            wanted = behind;
        }
        rest.is_empty()
    }

    /// Whether every name of `other` is one of this pattern's. A name is a pattern, too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut theirs = other.text.split('.').enumerate();
        for ours in self.text.split('.') {
            let Some((position, their)) = theirs.next() else { return false };
            let reserved = position == 0 && their.starts_with('$');
            match ours {
                ">" => return !reserved,
                "*" if their == ">" || reserved => return false,
                "*" => {}
                _ if ours == their => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }

    /// Whether a name can be both patterns'. Depths over [`TOKENS_MAX`] are not looked at: it may be `true` for two that only
    /// meet there.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let mut theirs = other.text.split('.').enumerate();
        for ours in self.text.split('.') {
            let Some((position, their)) = theirs.next() else { return false };
            let reserved = position == 0 && ours.starts_with('$') != their.starts_with('$');
            match (ours, their) {
                _ if reserved => return false,
                (">", _) | (_, ">") => return true,
                ("*", _) | (_, "*") => {}
                _ if ours == their => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Checks the name of a channel: a pattern without wildcards.
///
/// # Errors
/// Says what is wrong and at which byte.
pub fn check_name(name: &str, bytes_max: usize) -> Result<(), PatternError> {
    match check(name, bytes_max)? {
        None => Ok(()),
        Some(at) => Err(PatternError::Wildcard { at }),
    }
}

/// Whether the name belongs to the server (`$sys.*`, `$user.ID`).
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    name.starts_with('$')
}

/// The grammar; returns where the first wildcard stands.
fn check(text: &str, bytes_max: usize) -> Result<Option<usize>, PatternError> {
    if text.is_empty() {
        return Err(PatternError::Empty);
    }
    if text.len() > bytes_max {
        return Err(PatternError::TooLong { bytes: text.len(), bytes_max });
    }
    let mut wildcard = None;
    let mut at = 0;
    for (position, token) in text.split('.').enumerate() {
        if position == TOKENS_MAX {
            return Err(PatternError::TooDeep);
        }
        let end = at + token.len();
        match token.as_bytes() {
            [] => return Err(PatternError::EmptyToken { at }),
            b"*" => wildcard = wildcard.or(Some(at)),
            b">" if end == text.len() => wildcard = wildcard.or(Some(at)),
            bytes => {
                for (offset, &byte) in bytes.iter().enumerate() {
                    let at = at + offset;
                    match byte {
                        b'*' | b'>' => return Err(PatternError::MisplacedWildcard { at }),
                        b'$' if at == 0 && bytes.len() > 1 => {}
                        _ if is_token_byte(byte) => {}
                        _ => return Err(PatternError::BadCharacter { at }),
                    }
                }
            }
        }
        at = end + 1;
    }
    Ok(wildcard)
}

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':' | b'@' | b'+' | b'=' | b'~' | b'%')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_patterns_are_checked() {
        use PatternError as E;
        let rows: &[(&str, Result<Option<usize>, E>)] = &[
            ("a", Ok(None)),
            ("robot.7.imu", Ok(None)),
            ("$sys.latency", Ok(None)),
            ("$user.alice@home", Ok(None)),
            ("robot.*.imu", Ok(Some(6))),
            ("robot.>", Ok(Some(6))),
            (">", Ok(Some(0))),
            ("*.*", Ok(Some(0))),
            ("", Err(E::Empty)),
            (".", Err(E::EmptyToken { at: 0 })),
            ("a..b", Err(E::EmptyToken { at: 2 })),
            ("a.", Err(E::EmptyToken { at: 2 })),
            ("..", Err(E::EmptyToken { at: 0 })),
            ("$", Err(E::BadCharacter { at: 0 })),
            ("a.$b", Err(E::BadCharacter { at: 2 })),
            ("a b", Err(E::BadCharacter { at: 1 })),
            ("a//b", Err(E::BadCharacter { at: 1 })),
            ("a\r\nb", Err(E::BadCharacter { at: 1 })),
            ("a\0", Err(E::BadCharacter { at: 1 })),
            ("a\u{1b}[31m", Err(E::BadCharacter { at: 1 })),
            ("\u{202e}a", Err(E::BadCharacter { at: 0 })),
            ("a*", Err(E::MisplacedWildcard { at: 1 })),
            ("a.b*c", Err(E::MisplacedWildcard { at: 3 })),
            (">.a", Err(E::MisplacedWildcard { at: 0 })),
            ("a.>.b", Err(E::MisplacedWildcard { at: 2 })),
            ("a.#", Err(E::BadCharacter { at: 2 })),
            ("123456789012345678901", Err(E::TooLong { bytes: 21, bytes_max: 20 })),
            ("a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a", Err(E::TooLong { bytes: 33, bytes_max: 20 })),
        ];
        for (text, expected) in rows {
            assert_eq!(check(text, 20), *expected, "{text:?}");
        }
        let deep = vec!["a"; TOKENS_MAX].join(".");
        assert_eq!(check(&deep, 255), Ok(None));
        assert_eq!(check(&format!("{deep}.a"), 255), Err(E::TooDeep));
    }

    #[test]
    fn a_name_is_not_a_pattern() {
        assert_eq!(check_name("a.*", 20), Err(PatternError::Wildcard { at: 2 }));
        assert_eq!(check_name("a.b", 20), Ok(()));
    }

    #[test]
    fn patterns_match() {
        let rows = [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.*.c", "a.b.c", true),
            ("*.b.*", "a.b.c", true),
            ("*.b.*", "a.c.c", false),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c.d", true),
            ("a.>", "a", false),
            ("a.>", "ab.c", false),
            (">", "a.b.c", true),
            (">", "$sys.latency", false),
            ("*.latency", "$sys.latency", false),
            ("$sys.>", "$sys.latency", true),
            ("$sys.*", "$sys.latency", true),
        ];
        for (pattern, name, expected) in rows {
            let parsed = Pattern::parse(pattern, 255).expect("the row's pattern is valid");
            assert_eq!(parsed.matches(name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn patterns_cover_and_overlap() {
        // (one, other, whether the one covers the other, whether they overlap)
        let rows = [
            ("a.b", "a.b", true, true),
            ("a.b", "a.c", false, false),
            ("a.*", "a.b", true, true),
            ("a.b", "a.*", false, true),
            ("a.*", "a.>", false, true),
            ("a.>", "a.*", true, true),
            ("a.>", "a.*.c", true, true),
            ("a.*.c", "a.b.*", false, true),
            ("a.*.c", "a.b.d", false, false),
            ("a.>", "a", false, false),
            ("a.>", "a.>", true, true),
            (">", "a.*", true, true),
            (">", ">", true, true),
            (">", "$sys.a", false, false),
            ("*.a", "$sys.a", false, false),
            ("$sys.>", "$sys.a", true, true),
            ("$sys.a", ">", false, false),
            ("*", "*.*", false, false),
            ("*.>", "a", false, false),
        ];
        for (one, other, covers, overlaps) in rows {
            let [one, other] = [one, other].map(|text| Pattern::parse(text, 255).expect("valid"));
            assert_eq!(one.covers(&other), covers, "{one} covers {other}");
            assert_eq!(one.overlaps(&other), overlaps, "{one} overlaps {other}");
            assert_eq!(other.overlaps(&one), overlaps, "{other} overlaps {one}");
        }
    }

    /// Few tokens, so that what is drawn meets often.
    fn token() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "ab"])
    }

    fn joined(tokens: Vec<&str>, reserved: bool) -> String {
        format!("{}{}", if reserved { "$" } else { "" }, tokens.join("."))
    }

    fn any_name() -> impl Strategy<Value = String> {
        (prop::collection::vec(token(), 1..4), any::<bool>())
            .prop_map(|(tokens, reserved)| joined(tokens, reserved))
    }

    fn any_pattern() -> impl Strategy<Value = Pattern> {
        let tokens = prop::collection::vec(prop_oneof![3 => token(), 2 => Just("*")], 1..4);
        (tokens, any::<bool>(), any::<bool>()).prop_map(|(mut tokens, rest, reserved)| {
            if rest {
                tokens.push(">");
            }
            let reserved = reserved && tokens[0] != "*";
            Pattern::parse(&joined(tokens, reserved), 255).expect("made of valid tokens")
        })
    }

    proptest! {
        /// Against the definition, on every name of up to four tokens that could tell them apart.
        #[test]
        fn covering_and_overlapping_are_about_names(one in any_pattern(), other in any_pattern(), names in prop::collection::vec(any_name(), 200)) {
            let met = names.iter().filter(|name| other.matches(name));
            let both = met.clone().filter(|name| one.matches(name)).count();
            if one.covers(&other) {
                prop_assert_eq!(both, met.count());
                prop_assert!(one.overlaps(&other));
            }
            prop_assert!(both == 0 || one.overlaps(&other));
            let name = |pattern: &Pattern| pattern.as_str().replace(">", "a.b").replace('*', "a");
            // What a pattern looks like with its wildcards filled in is one of its names.
            if one.covers(&other) {
                prop_assert!(one.matches(&name(&other)), "{} {}", one, other);
            }
        }

        #[test]
        fn a_name_is_covered_where_it_matches(pattern in any_pattern(), name in any_name()) {
            let literal = Pattern::parse(&name, 255).expect("valid");
            prop_assert_eq!(pattern.matches(&name), pattern.covers(&literal));
            prop_assert_eq!(pattern.matches(&name), pattern.overlaps(&literal));
        }

        /// Not too little: what is not covered has a name that shows it, and what overlaps a name in both.
        #[test]
        fn what_is_not_covered_has_a_witness(one in any_pattern(), other in any_pattern()) {
            // Tokens that no pattern spells out stand for all others.
            let fills = ["a", "b", "ab", "zz"];
            let deep = ["a", "zz.zz", "a.b", "ab", "b.a.b.zz"];
            let mut names = vec![String::new()];
            for token in other.as_str().split('.') {
                let choices: Vec<&str> = match token { "*" => fills.to_vec(), ">" => [&fills[..], &deep[..]].concat(), _ => vec![token] };
                names = names.iter().flat_map(|name| choices.iter().map(move |choice| {
                    if name.is_empty() { (*choice).to_owned() } else { format!("{name}.{choice}") }
                })).collect();
            }
            let all = names.iter().all(|name| one.matches(name));
            let some = names.iter().any(|name| one.matches(name));
            prop_assert_eq!(one.covers(&other), all, "{} {}", one, other);
            // A longer name than was tried may be needed where the one is deeper than the other's `>` was filled.
            prop_assert!(one.overlaps(&other) || !some, "{} {}", one, other);
        }
    }
}
