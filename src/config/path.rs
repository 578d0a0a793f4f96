//! A file that a setting names. Never opens it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::setting::{Any, Given, Setting, string, text};

/// The path of a file, or nothing: an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilePath(String);

/// The text is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a path has no control characters, and begins and ends without a space")]
pub struct FilePathError;

impl FilePath {
    /// The path, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<&Path> {
        self.is_set().then(|| Path::new(&self.0))
    }

    /// Whether there is one.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        !self.0.is_empty()
    }
}

impl FromStr for FilePath {
    type Err = FilePathError;

    /// Control characters would be read by a terminal, where the path is shown; spaces around it are a slip.
    fn from_str(text: &str) -> Result<Self, FilePathError> {
        let sound = text.trim() == text && !text.contains(char::is_control);
        if sound { Ok(Self(text.to_owned())) } else { Err(FilePathError) }
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text!(FilePath, "the path of a file, or an empty text for none");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_texts_that_can_be_shown() {
        for text in ["", "a", "/etc/a b/c.pem", "./\u{e9}.pem"] {
            let path: FilePath = text.parse().unwrap();
            assert_eq!(path.to_string(), text);
            assert_eq!(path.get(), (!text.is_empty()).then(|| Path::new(text)));
        }
        for text in [" ", " a", "a ", "a\nb", "a\0", "\u{1b}[31m"] {
            assert_eq!(text.parse::<FilePath>(), Err(FilePathError), "{text:?}");
        }
    }
}
