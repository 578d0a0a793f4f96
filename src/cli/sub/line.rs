//! The lines of `tidewire sub`, as text and as JSON. Pure.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};

use super::Escaped;
use crate::cli::terminal::{TimeOfDay, millis_between, push_json};
use crate::client::Arrived;
use crate::wire::Seq;
use crate::wire::control::Digits;
use crate::wire::proto::sample::Value;

/// Bytes of a value that a text line shows.
const SHOWN_BYTES_MAX: usize = 32;

/// Where a sample comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// Name of the channel.
    pub(super) channel: &'a str,
    /// The life of its sequence.
    pub(super) epoch: u32,
    /// It is of the past: what lies between its receipt and its arrival is no latency.
    pub(super) replayed: bool,
    /// When it came, nanoseconds since the Unix epoch.
    pub(super) arrival_ns: u64,
}

/// `02:14:51.123 robot.7.imu #17 1.25 (2.1 ms)`.
pub(super) fn push_sample_text(line: &mut String, from: Origin<'_>, sample: &Arrived<'_>) {
    let time = TimeOfDay(sample.source_ns.unwrap_or(sample.received_ns));
    // Writing to a String cannot fail.
    let _ = write!(line, "{time} {} #{} {} ", Escaped(from.channel), sample.seq, Shown(sample.value));
    let latency_ms = millis_between(sample.received_ns, from.arrival_ns);
    let _ = match from.replayed {
        true => writeln!(line, "(replayed)"),
        false => writeln!(line, "({latency_ms:.1} ms)"),
    };
}

/// The same as an object; the value under the name of its kind, as in the protocol's JSON codec.
pub(super) fn push_sample_json(line: &mut String, from: Origin<'_>, sample: &Arrived<'_>) {
    #[derive(Serialize)]
    struct Sample<'a> {
        r#type: &'static str,
        channel: &'a str,
        epoch: u32,
        seq: Seq,
        #[serde(skip_serializing_if = "Option::is_none")]
        source_ns: Option<Digits>,
        received_ns: Digits,
        arrival_ns: Digits,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        replayed: bool,
        #[serde(flatten)]
        value: Option<JsonValue<'a>>,
    }
    let sample = Sample {
        r#type: "sample",
        channel: from.channel,
        epoch: from.epoch,
        seq: sample.seq,
        source_ns: sample.source_ns.map(Digits),
        received_ns: Digits(sample.received_ns),
        arrival_ns: Digits(from.arrival_ns),
        replayed: from.replayed,
        value: sample.value.map(JsonValue::from),
    };
    // It holds nothing that JSON cannot: no maps, and numbers that are not finite are text.
    let _ = push_json(line, &sample);
}

/// What happens beside the samples.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Report<'a> {
    /// Samples that will not come.
    Gap {
        /// Name of the channel.
        channel: &'a str,
        /// First of the span.
        from: Seq,
        /// Last of the span.
        to: Seq,
        /// Lost ones in the span.
        count: u64,
        /// Why.
        reason: &'a str,
    },
    /// A subscription took effect.
    Subscribed {
        /// The pattern.
        subscription: &'a str,
        /// How many match now.
        channels: usize,
    },
    /// A new channel matched.
    Channel {
        /// Its name.
        channel: &'a str,
        /// The pattern.
        subscription: &'a str,
        /// The life of its sequence.
        epoch: u32,
        /// First sequence that will come.
        seq: Seq,
    },
    /// What comes of the past, by a subscription that asked for it.
    Past {
        /// The name or pattern.
        subscription: &'a str,
        /// Samples that come before the live ones.
        samples: u64,
        /// Channels of which all comes that was asked for.
        replayed: usize,
        /// Channels of which some is not kept any more.
        partial: usize,
        /// Channels that have no such past: what is kept comes.
        reset: usize,
    },
    /// Published between two connections, and not to be had.
    Missed {
        /// Name of the channel.
        channel: &'a str,
        /// First of them.
        from: Seq,
        /// Last of them.
        to: Seq,
    },
    /// The sequence started again between two connections.
    Restarted {
        /// Name of the channel.
        channel: &'a str,
        /// The life that was seen before.
        epoch_before: u32,
        /// The life now.
        epoch: u32,
        /// First sequence that will come.
        seq: Seq,
    },
    /// A channel is no more: it was another server's, which is gone.
    Ended {
        /// Name of the channel.
        channel: &'a str,
    },
    /// The server refused something.
    Error {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// Its name.
        code: &'a str,
        /// What and why.
        message: &'a str,
    },
    /// The server has taken a token on this connection.
    Authenticated {
        /// Whom it takes this for.
        user: &'a str,
        /// When the token ends, in seconds of Unix time.
        expires_s: u64,
    },
    /// The token ends soon, and the connection with it.
    TokenExpiring {
        /// When, in seconds of Unix time.
        expires_s: u64,
        /// What would help, in the form that is for people.
        #[serde(skip)]
        remedy: &'static str,
    },
    /// The next token cannot be had.
    NoToken {
        /// Why.
        why: &'a str,
    },
    /// The server is about to close the connection.
    Goodbye {
        /// Why.
        reason: &'a str,
    },
    /// The connection is lost; another attempt follows.
    Reconnecting {
        /// How long until then.
        #[serde(rename = "delay_ms", serialize_with = "whole_millis")]
        delay: Duration,
        /// Which attempt that is.
        attempt: u32,
        /// What happened.
        why: &'a str,
    },
    /// The connection is lost, and another attempt would end the same way.
    GivenUp {
        /// What happened.
        why: &'a str,
    },
}

impl Report<'_> {
    /// Appends a line of JSON.
    pub(super) fn push_json(&self, line: &mut String) {
        // As above: nothing in it that JSON cannot hold.
        let _ = push_json(line, self);
    }

    /// Appends a line of text among samples, with the time.
    pub(super) fn push_text(&self, line: &mut String, now_ns: u64) {
        // Writing to a String cannot fail.
        let _ = writeln!(line, "{} {self}", TimeOfDay(now_ns));
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Gap { channel, from, to, count, reason } => {
                write!(f, "{} gap #{from}-#{to}, {count} lost ({})", Escaped(channel), Escaped(reason))
            }
            Self::Subscribed { subscription, channels } => {
                let plural = if channels == 1 { "" } else { "s" };
                write!(f, "subscribed to {}: {channels} channel{plural}", Escaped(subscription))
            }
            Self::Channel { channel, subscription, epoch: _, seq } => {
                write!(f, "new channel {} from #{seq} ({})", Escaped(channel), Escaped(subscription))
            }
            Self::Past { subscription, samples, replayed, partial, reset } => {
                let plural = if samples == 1 { "" } else { "s" };
                write!(f, "replaying {samples} sample{plural} of {}", Escaped(subscription))?;
                let parts = [
                    (replayed, "complete"),
                    (partial, "partial: a gap tells what is not kept any more"),
                    (reset, "reset: not what was seen before, so all that is kept comes"),
                ];
                let mut before = "; ";
                for (channels, what) in parts.into_iter().filter(|(channels, _)| *channels > 0) {
                    let plural = if channels == 1 { "" } else { "s" };
                    write!(f, "{before}{channels} channel{plural} {what}")?;
                    before = ", ";
                }
                Ok(())
            }
            Self::Ended { channel } => {
                write!(f, "{} has ended: it came from another server, which is gone", Escaped(channel))
            }
            Self::Missed { channel, from, to } => {
                let count = u128::from(to) + 1 - u128::from(from.min(to));
                write!(f, "missed {count} of {} while disconnected: #{from}-#{to}", Escaped(channel))
            }
            Self::Restarted { channel, epoch_before, epoch, seq } => write!(
                f,
                "{} has started again from #{seq} (epoch {epoch_before} -> {epoch}); what was missed is not known",
                Escaped(channel)
            ),
            Self::Error { id: _, code, message } => {
                write!(f, "error: {}: {}", Escaped(code), Escaped(message))
            }
            Self::Authenticated { user, expires_s } => {
                write!(f, "the server takes the token of {} until {}", Escaped(user), time_of_day(expires_s))
            }
            Self::TokenExpiring { expires_s, remedy } => {
                write!(f, "the token ends at {}; {remedy}", time_of_day(expires_s))
            }
            Self::NoToken { why } => write!(f, "error: no other token: {}", Escaped(why)),
            Self::Goodbye { reason } => write!(f, "the server says goodbye: {}", Escaped(reason)),
            Self::Reconnecting { delay, attempt, why } => write!(
                f,
                "reconnecting in {:.1} s (attempt {attempt}): {}",
                delay.as_secs_f64(),
                Escaped(why)
            ),
            Self::GivenUp { why } => write!(f, "error: {}; not connecting again", Escaped(why)),
        }
    }
}

/// Of seconds of Unix time.
const fn time_of_day(unix_s: u64) -> TimeOfDay {
    TimeOfDay(unix_s.saturating_mul(1_000_000_000))
}

fn whole_millis<S: Serializer>(delay: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
}

/// A value as a person reads it.
struct Shown<'a>(Option<&'a Value>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Value::Number(number)) => ShownNumber(*number).fmt(f),
            Some(Value::Integer(integer)) => integer.fmt(f),
            Some(Value::Vector(vector)) => {
                f.write_char('[')?;
                for (index, &value) in vector.values.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", ShownNumber(value))?;
                }
                f.write_char(']')
            }
            // Quoted, so that the text 1.25 and the number 1.25 differ.
            Some(Value::Text(text)) => write!(f, "\"{}\"", text.escape_debug()),
            Some(Value::Bytes(bytes)) => {
                f.write_str("0x")?;
                for byte in bytes.iter().take(SHOWN_BYTES_MAX) {
                    write!(f, "{byte:02x}")?;
                }
                if bytes.len() > SHOWN_BYTES_MAX {
                    write!(f, "... ({} bytes)", bytes.len())?;
                }
                Ok(())
            }
            None => f.write_str("(a kind of value that this version does not know)"),
        }
    }
}

/// The shortest digits that read back as the same number, with an exponent where the zeros would be many.
struct ShownNumber(f64);

impl fmt::Display for ShownNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size == 0.0 || !size.is_finite() || (1e-5..1e16).contains(&size) {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{:e}", self.0)
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum JsonValue<'a> {
    Number(JsonNumber),
    Integer(String),
    Vector(Vec<JsonNumber>),
    Text(&'a str),
    Bytes(String),
}

impl<'a> From<&'a Value> for JsonValue<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Number(number) => Self::Number(JsonNumber(*number)),
            Value::Integer(integer) => Self::Integer(integer.to_string()),
            Value::Vector(vector) => Self::Vector(vector.values.iter().copied().map(JsonNumber).collect()),
            Value::Text(text) => Self::Text(text),
            Value::Bytes(bytes) => Self::Bytes(STANDARD.encode(bytes)),
        }
    }
}

/// A double; JSON has no name for those that are not finite.
struct JsonNumber(f64);

impl Serialize for JsonNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            number if number.is_finite() => serializer.serialize_f64(number),
            number if number.is_nan() => serializer.serialize_str("NaN"),
            number if number > 0.0 => serializer.serialize_str("Infinity"),
            _ => serializer.serialize_str("-Infinity"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::Vector;

    #[test]
    fn values_are_shown_and_are_json() {
        let vector = |values: &[f64]| Value::Vector(Vector { values: values.to_vec() });
        let rows = [
            (Value::Number(1.25), "1.25", r#""number":1.25"#),
            (Value::Number(1.0), "1", r#""number":1.0"#),
            (Value::Number(-0.0), "-0", r#""number":-0.0"#),
            (Value::Number(1e300), "1e300", r#""number":1e+300"#),
            (Value::Number(2.5e-7), "2.5e-7", r#""number":2.5e-7"#),
            (Value::Number(f64::NAN), "NaN", r#""number":"NaN""#),
            (Value::Number(f64::INFINITY), "inf", r#""number":"Infinity""#),
            (Value::Number(f64::NEG_INFINITY), "-inf", r#""number":"-Infinity""#),
            (Value::Integer(i64::MIN), "-9223372036854775808", r#""integer":"-9223372036854775808""#),
            (vector(&[]), "[]", r#""vector":[]"#),
            (vector(&[1.0, -2.5]), "[1, -2.5]", r#""vector":[1.0,-2.5]"#),
            (Value::Text("on".into()), "\"on\"", r#""text":"on""#),
            (
                Value::Text("\u{1b}[2J\n\"\u{9b}".into()),
                r#""\u{1b}[2J\n\"\u{9b}""#,
                r#""text":"\u001b[2J\n\"\u009b""#,
            ),
            (Value::Bytes(vec![0, 255]), "0x00ff", r#""bytes":"AP8=""#),
        ];
        for (value, shown, json) in rows {
            let sample =
                Arrived { seq: 17, source_ns: Some(1_000_000), received_ns: 2_000_000, value: Some(&value) };
            for (replayed, end, field) in [(false, "2.1 ms", ""), (true, "replayed", r#","replayed":true"#)] {
                let from = Origin { channel: "robot.7.imu", epoch: 5, replayed, arrival_ns: 4_100_000 };
                let mut line = String::new();
                push_sample_text(&mut line, from, &sample);
                assert_eq!(line, format!("00:00:00.001 robot.7.imu #17 {shown} ({end})\n"));
                let mut line = String::new();
                push_sample_json(&mut line, from, &sample);
                let head = r#"{"type":"sample","channel":"robot.7.imu","epoch":5,"seq":17"#;
                let times = r#""source_ns":"1000000","received_ns":"2000000","arrival_ns":"4100000""#;
                assert_eq!(line, format!("{head},{times}{field},{json}}}\n"));
            }
        }
    }

    #[test]
    fn without_a_source_time_the_servers_stands_in() {
        let sample = Arrived { seq: 1, source_ns: None, received_ns: 2_000_000, value: None };
        let from = Origin { channel: "a\u{1b}", epoch: 5, replayed: false, arrival_ns: 1_000_000 };
        let mut line = String::new();
        push_sample_text(&mut line, from, &sample);
        assert_eq!(
            line,
            "00:00:00.002 a\\u{1b} #1 (a kind of value that this version does not know) (-1.0 ms)\n"
        );
        let mut line = String::new();
        push_sample_json(&mut line, from, &sample);
        assert!(!line.contains("source_ns"), "{line}");
    }

    #[test]
    fn long_bytes_are_cut() {
        let value = Value::Bytes(vec![7; 33]);
        assert_eq!(Shown(Some(&value)).to_string(), format!("0x{}... (33 bytes)", "07".repeat(32)));
    }

    #[test]
    fn reports_are_shown_and_are_json() {
        let rows = [
            (
                Report::Gap { channel: "a", from: 10, to: 20, count: 11, reason: "slow" },
                "a gap #10-#20, 11 lost (slow)",
                r#"{"type":"gap","channel":"a","from":10,"to":20,"count":11,"reason":"slow"}"#,
            ),
            (
                Report::Channel { channel: "a.b", subscription: "a.*", epoch: 7, seq: 1 },
                "new channel a.b from #1 (a.*)",
                r#"{"type":"channel","channel":"a.b","subscription":"a.*","epoch":7,"seq":1}"#,
            ),
            (
                Report::Past { subscription: "a.*", samples: 104, replayed: 2, partial: 1, reset: 1 },
                "replaying 104 samples of a.*; 2 channels complete, 1 channel partial: a gap tells what is not kept any \
                 more, 1 channel reset: not what was seen before, so all that is kept comes",
                r#"{"type":"past","subscription":"a.*","samples":104,"replayed":2,"partial":1,"reset":1}"#,
            ),
            (
                Report::Past { subscription: "a", samples: 1, replayed: 1, partial: 0, reset: 0 },
                "replaying 1 sample of a; 1 channel complete",
                r#"{"type":"past","subscription":"a","samples":1,"replayed":1,"partial":0,"reset":0}"#,
            ),
            (
                Report::Ended { channel: "a\u{7}" },
                "a\\u{7} has ended: it came from another server, which is gone",
                r#"{"type":"ended","channel":"a\u0007"}"#,
            ),
            (
                Report::Missed { channel: "a", from: 1, to: u64::MAX },
                "missed 18446744073709551615 of a while disconnected: #1-#18446744073709551615",
                r#"{"type":"missed","channel":"a","from":1,"to":18446744073709551615}"#,
            ),
            (
                Report::Error { id: Some(1), code: "bad\u{7}", message: "no \"x\"\u{1b}" },
                "error: bad\\u{7}: no \"x\"\\u{1b}",
                r#"{"type":"error","id":1,"code":"bad\u0007","message":"no \"x\"\u001b"}"#,
            ),
            (
                Report::Authenticated { user: "a\u{1b}", expires_s: 1_763_864_091 },
                "the server takes the token of a\\u{1b} until 02:14:51.000",
                r#"{"type":"authenticated","user":"a\u001b","expires_s":1763864091}"#,
            ),
            (
                Report::TokenExpiring { expires_s: 1_763_864_091, remedy: "hurry" },
                "the token ends at 02:14:51.000; hurry",
                r#"{"type":"token_expiring","expires_s":1763864091}"#,
            ),
            (
                Report::NoToken { why: "it is empty" },
                "error: no other token: it is empty",
                r#"{"type":"no_token","why":"it is empty"}"#,
            ),
            (
                Report::Reconnecting {
                    delay: Duration::from_millis(1_310),
                    attempt: 2,
                    why: "connection refused",
                },
                "reconnecting in 1.3 s (attempt 2): connection refused",
                r#"{"type":"reconnecting","delay_ms":1310,"attempt":2,"why":"connection refused"}"#,
            ),
        ];
        for (report, shown, json) in rows {
            assert_eq!(report.to_string(), shown);
            let mut line = String::new();
            report.push_json(&mut line);
            assert_eq!(line, format!("{json}\n"));
        }
    }
}
