//! A text that nobody may see: what is a secret is one by its type, so that no line of code has to think of it.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use super::setting::{Given, Setting, string};

/// A key or a token. Its `Debug` form does not show it, and it has no other.
#[derive(Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(Box<str>);

impl Secret {
    /// The text itself, for whoever checks or sends it.
    #[must_use]
    pub const fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "no secret" } else { "[hidden]" })
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.into())
    }
}

/// The bytes that it has to have at least.
impl Setting for Secret {
    const SECRET: bool = true;
    type Bounds = usize;

    fn take(given: Given<'_>, least: &usize) -> Option<Self> {
        given.text(|text| (text.is_empty() || text.len() >= *least).then(|| text.into()))
    }

    fn expected(least: &usize, _: &str) -> String {
        format!("a text of at least {least} bytes, or \"\"")
    }

    /// Never itself: what is printed is read by others.
    fn to_toml(&self) -> String {
        string(&"")
    }
}
