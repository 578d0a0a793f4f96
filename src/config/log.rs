//! What is logged, and how: the two settings of logging. Never logs; `cli.rs` installs the subscriber.

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::filter::Targets;

use super::setting::{Any, Given, Setting, string, text};

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl LogFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// Its name in the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Setting for LogFormat {
    type Bounds = Any;

    fn take(given: Given<'_>, _: &Any) -> Option<Self> {
        given.text(|text| Self::ALL.into_iter().find(|format| format.label() == text))
    }

    fn expected(_: &Any, _: &str) -> String {
        Self::ALL.map(|format| format!("{:?}", format.label())).join(" or ")
    }

    fn to_toml(&self) -> String {
        string(&self.label())
    }
}

/// Which events are logged: levels, and `target=level` for single modules, joined by commas.
#[derive(Clone, Debug, PartialEq)]
pub struct LogFilter {
    text: String,
    targets: Targets,
}

/// A filter that is not a list of levels and `target=level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a log filter is a level (off, error, warn, info, debug, trace) or target=level, joined by commas")]
pub struct LogFilterError;

impl LogFilter {
    /// The filter in the form that a subscriber takes.
    #[must_use]
    pub const fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Everything at `info` and above, but for what a library tells that the server tells in its own words.
    #[must_use]
    pub fn usual() -> Self {
        let targets =
            Targets::new().with_default(tracing::Level::INFO).with_target("async_nats", tracing::Level::WARN);
        Self { text: "info,async_nats=warn".to_owned(), targets }
    }
}

/// Stricter than [`Targets`], which takes any word for a target: a mistyped level, such as `wran`, must not silence the
/// log.
impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let sound = text.split(',').all(|directive| match directive.split_once('=') {
            None => is_level(directive),
            Some((target, level)) => is_target(target) && is_level(level),
        });
        let targets = text.parse().map_err(|_| LogFilterError)?;
        if sound { Ok(Self { text: text.to_owned(), targets }) } else { Err(LogFilterError) }
    }
}

fn is_level(text: &str) -> bool {
    ["off", "error", "warn", "info", "debug", "trace"].contains(&text)
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte))
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

text!(
    LogFilter,
    "off, error, warn, info, debug or trace, or target=level, joined by commas: \"info,tidewire::hub=debug\""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_targets() {
        for text in ["off", "info", "warn,tidewire::hub=debug", "a-b=trace,error"] {
            assert_eq!(text.parse::<LogFilter>().map(|filter| filter.to_string()).as_deref(), Ok(text));
        }
        for text in ["", ",", "info,", "wran", "=info", "tidewire=", "tidewire=loud", "a b=info", "a=b=info"]
        {
            assert_eq!(text.parse::<LogFilter>(), Err(LogFilterError), "{text:?}");
        }
        let usual = LogFilter::usual();
        assert_eq!(usual.to_string().parse().as_ref(), Ok(&usual));
        let targets = usual.targets();
        assert!(targets.would_enable("tidewire::broker", &tracing::Level::INFO));
        assert!(!targets.would_enable("async_nats::connector", &tracing::Level::INFO));
        assert!(targets.would_enable("async_nats::connector", &tracing::Level::WARN));
    }
}
