//! Where a broker is, as it was typed. A password may be in it, so that it is shown without one. Reads nothing of it; the broker
//! does.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use super::secret::Secret;
use super::setting::{Any, Given, Setting, string};

/// An address such as `redis://user:password@host:6379`, or nothing: an empty text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BrokerUrl(Secret);

impl BrokerUrl {
    /// The text itself, for whoever connects.
    #[must_use]
    pub const fn expose(&self) -> &Secret {
        &self.0
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_set(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether a password is in it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.parts().is_none_or(|(_, credentials, _)| credentials.is_some_and(|text| text.contains(':')))
    }

    /// What is before, in and behind the credentials. `None`: it does not look like an address and may be anything.
    fn parts(&self) -> Option<(&str, Option<&str>, &str)> {
        let text = self.0.expose();
        if text.is_empty() {
            return Some(("", None, ""));
        }
        let (scheme, rest) = text.split_once("://")?;
        Some(match rest.rsplit_once('@') {
            Some((credentials, rest)) => (scheme, Some(credentials), rest),
            None => (scheme, None, rest),
        })
    }
}

/// Without a password.
impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            _ if !self.is_set() => Ok(()),
            Some((scheme, None, rest)) => write!(f, "{scheme}://{rest}"),
            Some((scheme, Some(credentials), rest)) => match credentials.split_once(':') {
                Some((user, _)) => write!(f, "{scheme}://{user}:[hidden]@{rest}"),
                None => write!(f, "{scheme}://{credentials}@{rest}"),
            },
            None => f.write_str("[hidden]"),
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl FromStr for BrokerUrl {
    type Err = Infallible;

    /// Takes every text: one that was refused here would be repeated to whoever reads the message.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.into()))
    }
}

impl Setting for BrokerUrl {
    type Bounds = Any;

    fn take(given: Given<'_>, _: &Any) -> Option<Self> {
        given.text(|text| text.parse().ok())
    }

    fn expected(_: &Any, _: &str) -> String {
        "an address such as \"redis://127.0.0.1:6379\", or \"\" for none".to_owned()
    }

    fn holds_secret(&self) -> bool {
        self.has_password()
    }

    fn to_toml(&self) -> String {
        string(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_and_not_shown() {
        let rows = [
            ("", "", false),
            ("redis://127.0.0.1:6379/1", "redis://127.0.0.1:6379/1", false),
            ("nats://token@a,b", "nats://token@a,b", false),
            ("redis://:s3cret@h", "redis://:[hidden]@h", true),
            ("nats://u:s3cret@s3cret@h:1", "nats://u:[hidden]@h:1", true),
            ("s3cret", "[hidden]", true),
            ("u:s3cret@h", "[hidden]", true),
        ];
        for (text, shown, has) in rows {
            let url: BrokerUrl = text.parse().unwrap_or_else(|error: Infallible| match error {});
            assert_eq!((url.to_string().as_str(), url.has_password()), (shown, has), "{text}");
            assert_eq!(format!("{url:?}"), format!("{shown:?}"));
            assert_eq!(url.expose().expose(), text);
        }
    }
}
