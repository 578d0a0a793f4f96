//! Mistakes in a configuration and how they read: one printable line each, with the place, the value and the remedy.
//! Pure; knows no layer.

use std::fmt;

use super::{KEYS, Key};

/// The most characters of a value that a message repeats.
const SHOWN_CHARS_MAX: usize = 64;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) place: Place,
    /// The key, variable or flag; empty where the whole place is wrong.
    pub(super) subject: String,
    /// What was given. `None` for what is unknown, since nothing tells that it is no secret.
    pub(super) value: Option<String>,
    /// What is wrong with it, and the remedy.
    pub(super) reason: String,
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A file as a whole.
    File(String),
    /// A line, from 1, of a file.
    Line(String, usize),
    /// A variable.
    Environment,
    /// The command line.
    Flags,
}

impl Place {
    pub(super) const fn line(&self) -> usize {
        match self {
            Self::Line(_, line) => *line,
            Self::File(_) | Self::Environment | Self::Flags => 0,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => f.write_str(name),
            Self::Line(name, line) => write!(f, "{name}:{line}"),
            Self::Environment => f.write_str("environment"),
            Self::Flags => f.write_str("flags"),
        }
    }
}

/// One line, without control characters.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        match &self.value {
            Some(value) => write!(f, "{} = {value}: ", self.subject)?,
            None if self.subject.is_empty() => {}
            None => write!(f, "{}: ", self.subject)?,
        }
        f.write_str(&self.reason)
    }
}

/// Every mistake of a configuration, at least one, in the order of the layers; a line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<Problem>);

impl Problems {
    /// Each mistake.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

pub(super) fn unknown(what: &str, nearest: Option<String>) -> String {
    nearest.map_or_else(
        || format!("unknown {what}; `tidewire config --print-default` lists what there is"),
        |nearest| format!("unknown {what}; the nearest is {nearest}"),
    )
}

/// The key that was probably meant: the one of that name in another section or without its unit, else a similar one.
pub(super) fn nearest_key(path: &str) -> Option<String> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let same = KEYS.iter().find(|key| key.field == name || key.name() == name).map(Key::path);
    same.or_else(|| nearest(path, KEYS.iter().map(Key::path)))
}

/// The candidate with the fewest letters changed, if they are few for its length.
pub(super) fn nearest(wanted: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    candidates
        .filter_map(|candidate| {
            let changes_max = candidate.len() / 3;
            // Spares the comparison, which takes the product of the lengths, where it cannot succeed.
            if wanted.len().abs_diff(candidate.len()) > changes_max {
                return None;
            }
            let changes = strsim::damerau_levenshtein(wanted, &candidate);
            (changes <= changes_max).then_some((changes, candidate))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// The text as a message repeats it: printable, and cut where it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", printable(&text[..end])),
        None => printable(text),
    }
}

/// The value of a variable or a flag as a message repeats it.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

/// The text with control and invisible characters escaped, and nothing else.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        match char {
            '"' | '\'' | '\\' => out.push(char),
            _ => out.extend(char.escape_debug()),
        }
        out
    })
}
