//! How much of which channel is kept: exceptions from the history's defaults, by pattern. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

use super::HistorySettings;
use super::setting::{Any, Given, Setting, string};
use crate::pattern::Pattern;

/// Exceptions that a configuration may list: each new channel is compared with all of them.
const EXCEPTIONS_MAX: usize = 256;

/// Longest pattern: that of the longest channel name that can be set.
const PATTERN_BYTES_MAX: usize = 512;

/// The most that can be kept of a channel.
const BYTES_MAX: u64 = 1 << 30;

/// The most samples that can be kept of a channel.
const SAMPLES_MAX: u64 = 1 << 30;

/// What is kept of a channel, at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of its frames.
    pub bytes_max: usize,
    /// Age of a frame.
    pub age_max: Duration,
    /// Samples.
    pub samples_max: u64,
}

/// Exceptions in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exceptions(Vec<Exception>);

/// One of them.
#[derive(Clone, Debug, PartialEq)]
struct Exception {
    pattern: Pattern,
    kept: Kept,
}

/// What differs from the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Nothing,
    Upto { bytes: Option<usize>, age_ms: Option<u64>, samples: Option<u64> },
}

/// The text is no exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an exception is a pattern and `off`, or a pattern and some of bytes=N, age_ms=N, samples=N")]
struct ExceptionError;

impl HistorySettings {
    /// What is kept of a channel; `None` if nothing is.
    #[must_use]
    pub fn bounds_of(&self, name: &str) -> Option<Bounds> {
        let default =
            Bounds { bytes_max: self.bytes_max, age_max: self.age_max, samples_max: self.samples_max };
        let bounds = match self.channels.0.iter().find(|exception| exception.pattern.matches(name)) {
            None => default,
            Some(Exception { kept: Kept::Nothing, .. }) => return None,
            Some(Exception { kept: Kept::Upto { bytes, age_ms, samples }, .. }) => Bounds {
                bytes_max: bytes.unwrap_or(default.bytes_max),
                age_max: age_ms.map_or(default.age_max, Duration::from_millis),
                samples_max: samples.unwrap_or(default.samples_max),
            },
        };
        (bounds.bytes_max > 0).then_some(bounds)
    }
}

impl FromStr for Exception {
    type Err = ExceptionError;

    fn from_str(text: &str) -> Result<Self, ExceptionError> {
        let mut words = text.split_ascii_whitespace();
        let pattern = words.next().and_then(|word| Pattern::parse(word, PATTERN_BYTES_MAX).ok());
        let pattern = pattern.ok_or(ExceptionError)?;
        let words: Vec<&str> = words.collect();
        if words == ["off"] {
            return Ok(Self { pattern, kept: Kept::Nothing });
        }
        let (mut bytes, mut age_ms, mut samples) = (None, None, None);
        for word in &words {
            let (name, value) = word.split_once('=').ok_or(ExceptionError)?;
            let (field, most) = match name {
                "bytes" => (&mut bytes, BYTES_MAX),
                "age_ms" => (&mut age_ms, super::WEEK),
                "samples" => (&mut samples, SAMPLES_MAX),
                _ => return Err(ExceptionError),
            };
            // `parse` would take a sign.
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            let value =
                digits.then(|| value.parse().ok()).flatten().filter(|value| (1..=most).contains(value));
            if field.replace(value.ok_or(ExceptionError)?).is_some() {
                return Err(ExceptionError);
            }
        }
        if words.is_empty() {
            return Err(ExceptionError);
        }
        let bytes = bytes.and_then(|bytes: u64| usize::try_from(bytes).ok());
        Ok(Self { pattern, kept: Kept::Upto { bytes, age_ms, samples } })
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pattern.as_str())?;
        match self.kept {
            Kept::Nothing => f.write_str(" off"),
            Kept::Upto { bytes, age_ms, samples } => {
                bytes.map_or(Ok(()), |bytes| write!(f, " bytes={bytes}"))?;
                age_ms.map_or(Ok(()), |age_ms| write!(f, " age_ms={age_ms}"))?;
                samples.map_or(Ok(()), |samples| write!(f, " samples={samples}"))
            }
        }
    }
}

impl Exceptions {
    fn of<'a>(items: impl Iterator<Item = Option<&'a str>>) -> Option<Self> {
        let exceptions: Vec<Exception> = items.map(|item| item?.parse().ok()).collect::<Option<_>>()?;
        (exceptions.len() <= EXCEPTIONS_MAX).then_some(Self(exceptions))
    }
}

/// A list in the file; as text, joined by commas.
impl Setting for Exceptions {
    type Bounds = Any;

    fn take(given: Given<'_>, _: &Any) -> Option<Self> {
        match given {
            Given::Toml(DeValue::Array(items)) => Self::of(items.iter().map(|item| item.get_ref().as_str())),
            Given::Toml(_) => None,
            Given::Text("") => Some(Self::default()),
            Given::Text(text) => Self::of(text.split(',').map(Some)),
        }
    }

    fn expected(_: &Any, _: &str) -> String {
        "a list such as [\"robot.*.imu bytes=1048576 age_ms=60000 samples=100000\", \"video.> off\"], its items joined by \
         commas where it is text; the first pattern that matches counts"
            .to_owned()
    }

    fn to_toml(&self) -> String {
        format!("[{}]", self.0.iter().map(string).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(channels: &str) -> HistorySettings {
        let channels = Exceptions::take(Given::Text(channels), &Any).expect(channels);
        HistorySettings { channels, ..HistorySettings::default() }
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let default = HistorySettings::default();
        let plain = Bounds {
            bytes_max: default.bytes_max,
            age_max: default.age_max,
            samples_max: default.samples_max,
        };
        let settings = settings("a.b bytes=7, a.* off,>  samples=9 age_ms=50 , c bytes=1");
        let rows = [
            ("a.b", Some(Bounds { bytes_max: 7, ..plain })),
            ("a.c", None),
            ("c", Some(Bounds { age_max: Duration::from_millis(50), samples_max: 9, ..plain })),
            ("$sys.uptime_s", Some(plain)),
        ];
        for (name, bounds) in rows {
            assert_eq!(settings.bounds_of(name), bounds, "{name}");
        }
        assert_eq!(HistorySettings { bytes_max: 0, ..default }.bounds_of("a"), None);
    }

    #[test]
    fn what_is_no_list_of_exceptions_is_refused() {
        let many = vec!["a off"; EXCEPTIONS_MAX + 1].join(",");
        let long = format!("{} off", "a".repeat(PATTERN_BYTES_MAX + 1));
        for text in [
            ",",
            "a",
            "a off,",
            "a off off",
            "a off bytes=1",
            "a bytes",
            "a bytes=",
            "a bytes=0",
            "a bytes=+1",
            "a bytes=1 bytes=2",
            "a bytes=1073741825",
            "a age=1",
            "a age_ms=18446744073709551616",
            "a..b off",
            "a b off",
            &long,
            &many,
        ] {
            assert_eq!(Exceptions::take(Given::Text(text), &Any), None, "{text:?}");
        }
        for toml in ["\"a off\"", "[1]", "[\"a\"]", "[\"a off, b off\"]", "7"] {
            let value = DeValue::parse(toml).expect("TOML");
            assert_eq!(Exceptions::take(Given::Toml(value.get_ref()), &Any), None, "{toml}");
        }
    }
}
