//! The rules of one client's conversation: what a message asks for, whether it may, how often, and what a wrong one gets.
//! Pure: no socket, no hub, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;

use crate::bucket::Bucket;
use crate::clock::Now;
use crate::close::CloseReason;
use crate::config::{Config, Secret};
use crate::history::Past;
use crate::pattern::{self, Pattern, PatternError};
use crate::wire::codec::{self, ChannelRef};
use crate::wire::control::{
    ARRIVALS_MAX, Auth, Digits, ErrorCode, Policy, REQUEST_ID_MAX, Request, Since, Subscribe,
};
use crate::wire::cursor::Cursor;
use crate::wire::{ChannelId, Codec};

/// Delays that a subscription can have, in milliseconds, beside the server's flush window; what is asked for is rounded down,
/// so that subscribers share delivery classes and nobody waits longer than asked.
pub const DELAYS_MS: [u32; 11] = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000];

/// Rates that a subscription can have, in samples per second; rounded down likewise.
pub const RATES_HZ: [f64; 26] = [
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 75.0, 90.0, 100.0, 120.0,
    144.0, 200.0, 250.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
];

/// Longest time that a frame may wait in the outbox, in milliseconds.
pub const MAX_AGE_MS_MAX: u32 = 60_000;

/// Tokens that a connection may have checked in a second: it needs one for as long as it is good.
const AUTHS_PER_S_MAX: u64 = 2;

/// A peer above its rate is told this often.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// What a message asks for.
#[derive(Debug)]
pub enum Action {
    /// Watch a channel or pattern.
    Subscribe {
        /// Of the request.
        id: Option<u64>,
        /// What to watch.
        pattern: Pattern,
        /// How, as it takes effect.
        delivery: DeliveryOptions,
        /// With what of the past.
        past: Option<Past>,
    },
    /// Answer with what is kept of a channel.
    History {
        /// Of the request.
        id: Option<u64>,
        /// The channel, checked.
        name: String,
    },
    /// Stop watching.
    Unsubscribe {
        /// Of the request.
        id: Option<u64>,
        /// What was watched.
        pattern: Pattern,
    },
    /// Open a channel for publishing.
    Advertise {
        /// Of the request.
        id: Option<u64>,
        /// Its name, checked.
        name: String,
    },
    /// Answer with the clock.
    Ping {
        /// Of the request.
        id: Option<u64>,
        /// Of the request.
        client_ns: Option<Digits>,
    },
    /// Check a token.
    Auth {
        /// Of the request.
        id: Option<u64>,
        /// The token.
        token: Secret,
    },
    /// Answer with the ledgers.
    Stats {
        /// Of the request.
        id: Option<u64>,
        /// Latencies to record.
        arrival_ns: Vec<u64>,
    },
    /// Say who is on a channel.
    Presence {
        /// Of the request.
        id: Option<u64>,
        /// Its name, checked.
        name: String,
    },
    /// Samples, from a codec that is not protobuf, as the protobuf message that they are relayed as.
    Publish {
        /// The channel.
        channel: PublishTo,
        /// A protobuf `Publish`.
        message: Vec<u8>,
    },
}

/// The channel of a decoded publish.
#[derive(Debug, PartialEq, Eq)]
pub enum PublishTo {
    /// By number.
    Id(ChannelId),
    /// By name, checked.
    Name(String),
}

/// Delivery options of a subscription, as they take effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeliveryOptions {
    /// What overflow does.
    pub policy: Policy,
    /// One of [`DELAYS_MS`], or the flush window.
    pub max_delay_ms: u32,
    /// At most [`MAX_AGE_MS_MAX`].
    pub max_age_ms: u32,
    /// One of [`RATES_HZ`].
    pub max_rate_hz: Option<f64>,
}

/// What a message gets that is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An error; the connection lives.
    Error {
        /// Of the request, where it could be read.
        id: Option<u64>,
        /// Its name.
        code: ErrorCode,
        /// The field, the value and the remedy.
        message: String,
    },
    /// An error, and then the end.
    Last {
        /// Of the request, where it could be read.
        id: Option<u64>,
        /// Its name.
        code: ErrorCode,
        /// The field, the value and the remedy.
        message: String,
        /// Why it ends.
        reason: CloseReason,
    },
    /// Nothing: the peer was told of the same a moment ago.
    Silence,
    /// The end.
    Close(CloseReason),
}

impl Refusal {
    fn error(id: Option<u64>, code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Error { id, code, message: message.into() }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    codec: Codec,
    /// Nothing but an `auth` is served.
    waits: bool,
    messages: Bucket,
    bytes: Bucket,
    samples: Bucket,
    control: Bucket,
    auths: Bucket,
    over_since: Option<Instant>,
    refused_at: Option<Instant>,
    told_at: Option<Instant>,
    invalid_since: Option<Instant>,
    invalid: u32,
}

impl Session {
    /// The beginning of a conversation in `codec`. If it `waits`, the client has to say first who it is.
    #[must_use]
    pub fn new(config: Arc<Config>, codec: Codec, waits: bool, now: Now) -> Self {
        let limits = &config.inbound;
        Self {
            codec,
            waits,
            messages: Bucket::new(u64::from(limits.publish_messages_per_s_max), now.at),
            bytes: Bucket::new(limits.publish_bytes_per_s_max, now.at),
            samples: Bucket::new(limits.publish_samples_per_s_max, now.at),
            control: Bucket::new(u64::from(limits.control_messages_per_s_max), now.at),
            auths: Bucket::new(AUTHS_PER_S_MAX, now.at),
            config,
            over_since: None,
            refused_at: None,
            told_at: None,
            invalid_since: None,
            invalid: 0,
        }
    }

    /// Its codec.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// Whether the client still has to say who it is.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.waits
    }

    /// The client is known: everything is served from now on.
    pub const fn note_known(&mut self) {
        self.waits = false;
    }

    /// A text message: control, or a publish in the JSON codec.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn handle_text(&mut self, text: &str, now: Now) -> Result<Action, Refusal> {
        if self.waits {
            return self.handle_first(text, now);
        }
        if self.codec == Codec::Json && codec::is_publish(text) {
            self.check_publish_rate(text.len(), now)?;
            return self.decode_json(text);
        }
        self.check_control_rate(now)?;
        // The reader of requests would take a list of the fields' values for an object.
        if !text.trim_ascii_start().starts_with('{') {
            let message = "a control message is a JSON object, such as {\"type\":\"ping\",\"id\":1}";
            return Err(Refusal::error(None, ErrorCode::BadRequest, message));
        }
        let request: Request = serde_json::from_str(text)
            .map_err(|error| Refusal::error(readable_id(text), ErrorCode::BadRequest, invalid(&error)))?;
        self.handle_request(request, now)
    }

    /// A message of somebody who is not known yet: an `auth`, or the last one.
    fn handle_first(&mut self, text: &str, now: Now) -> Result<Action, Refusal> {
        match serde_json::from_str(text) {
            Ok(request @ Request::Auth(_)) if text.trim_ascii_start().starts_with('{') => {
                self.handle_request(request, now)
            }
            _ => Err(unauthorized(readable_id(text))),
        }
    }

    /// A binary message of a codec that is not protobuf: a publish in `MessagePack`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn handle_msgpack(&self, message: &[u8]) -> Result<Action, Refusal> {
        let samples_max = self.config.inbound.message_samples_max;
        let publish = codec::decode_publish_msgpack(message, samples_max)
            .map_err(|error| Refusal::error(None, ErrorCode::BadPayload, error.to_string()))?;
        let channel = PublishTo::Id(ChannelId(publish.channel));
        Ok(Action::Publish { channel, message: publish.encode_to_vec() })
    }

    /// Whether a publish of that many bytes is within the rate; call it once for each, before it is decoded.
    ///
    /// # Errors
    /// [`Refusal::Error`] once a second, [`Refusal::Silence`] in between, and the end after the time of grace, or at once
    /// where the client has not said yet who it is.
    pub fn check_publish_rate(&mut self, bytes: usize, now: Now) -> Result<(), Refusal> {
        if self.waits {
            return Err(unauthorized(None));
        }
        // Both are asked, so that a message over one limit does not use up the other.
        if self.messages.has(1, now.at) && self.bytes.has(bytes as u64, now.at) {
            self.messages.take(1);
            self.bytes.take(bytes as u64);
            if self.refused_at.is_some_and(|at| now.at.saturating_duration_since(at) >= TELL_INTERVAL) {
                self.over_since = None;
                self.refused_at = None;
            }
            return Ok(());
        }
        self.refuse_publish(now)
    }

    /// Whether a publish of that many samples is within the rate; call it once for each that was decoded and is sound.
    ///
    /// # Errors
    /// As [`Session::check_publish_rate`].
    pub fn check_samples_rate(&mut self, samples: usize, now: Now) -> Result<(), Refusal> {
        if self.samples.has(samples as u64, now.at) {
            self.samples.take(samples as u64);
            return Ok(());
        }
        self.refuse_publish(now)
    }

    fn refuse_publish(&mut self, now: Now) -> Result<(), Refusal> {
        self.refused_at = Some(now.at);
        let since = *self.over_since.get_or_insert(now.at);
        if now.at.saturating_duration_since(since) >= self.config.inbound.rate_grace {
            return Err(Refusal::Close(CloseReason::Rate));
        }
        let limits = &self.config.inbound;
        self.rate_limited(
            format!(
                "publishing: at most {} messages, {} bytes and {} samples a second, where 0 is no limit; put more samples into \
                 a message, or slow down",
                limits.publish_messages_per_s_max, limits.publish_bytes_per_s_max, limits.publish_samples_per_s_max
            ),
            now,
        )
    }

    /// Whether one more control message, ping or pong is within the rate.
    ///
    /// # Errors
    /// As [`Session::check_publish_rate`].
    pub fn check_control_rate(&mut self, now: Now) -> Result<(), Refusal> {
        if self.control.has(1, now.at) {
            self.control.take(1);
            return Ok(());
        }
        self.count_invalid(now)?;
        let most = self.config.inbound.control_messages_per_s_max;
        self.rate_limited(format!("control: at most {most} messages a second; slow down"), now)
    }

    /// Counts a message that was answered with an error.
    ///
    /// # Errors
    /// Too many within the interval: the end.
    pub fn count_invalid(&mut self, now: Now) -> Result<(), Refusal> {
        let limits = &self.config.inbound;
        let current = self
            .invalid_since
            .is_some_and(|since| now.at.saturating_duration_since(since) < limits.invalid_interval);
        if !current {
            self.invalid_since = Some(now.at);
            self.invalid = 0;
        }
        self.invalid += 1;
        if self.invalid > limits.invalid_messages_max {
            return Err(Refusal::Close(CloseReason::Abuse));
        }
        Ok(())
    }

    fn rate_limited(&mut self, message: String, now: Now) -> Result<(), Refusal> {
        if self.told_at.is_some_and(|at| now.at.saturating_duration_since(at) < TELL_INTERVAL) {
            return Err(Refusal::Silence);
        }
        self.told_at = Some(now.at);
        Err(Refusal::error(None, ErrorCode::RateLimited, message))
    }

    fn decode_json(&self, text: &str) -> Result<Action, Refusal> {
        let samples_max = self.config.inbound.message_samples_max;
        let decoded = codec::decode_publish_json(text, samples_max)
            .map_err(|error| Refusal::error(None, ErrorCode::BadPayload, error.to_string()))?;
        let channel = match decoded.channel {
            ChannelRef::Id(id) => PublishTo::Id(id),
            ChannelRef::Name(name) => {
                let checked = pattern::check_name(&name, self.config.channel.channel_name_bytes_max);
                checked.map_err(|error| bad_channel(None, &name, error))?;
                PublishTo::Name(name)
            }
        };
        Ok(Action::Publish { channel, message: decoded.publish.encode_to_vec() })
    }

    fn handle_request(&mut self, request: Request, now: Now) -> Result<Action, Refusal> {
        let id = request.id();
        if let Some(id) = id.filter(|id| *id > REQUEST_ID_MAX) {
            let message =
                format!("id {id} is above {REQUEST_ID_MAX}, the largest integer that all JSON clients hold");
            return Err(Refusal::error(None, ErrorCode::BadRequest, message));
        }
        match request {
            Request::Subscribe(subscribe) => self.handle_subscribe(subscribe),
            Request::Unsubscribe(request) => {
                Ok(Action::Unsubscribe { id, pattern: self.parse_pattern(id, &request.channel)? })
            }
            Request::Advertise(request) => {
                pattern::check_name(&request.channel, self.config.channel.channel_name_bytes_max)
                    .map_err(|error| bad_channel(id, &request.channel, error))?;
                Ok(Action::Advertise { id, name: request.channel })
            }
            Request::Ping(ping) => Ok(Action::Ping { id, client_ns: ping.client_ns }),
            Request::Stats(stats) => {
                if stats.arrival_ns.len() > ARRIVALS_MAX {
                    let message = format!(
                        "arrival_ns has {} latencies; at most {ARRIVALS_MAX}",
                        stats.arrival_ns.len()
                    );
                    return Err(Refusal::error(id, ErrorCode::LimitExceeded, message));
                }
                Ok(Action::Stats { id, arrival_ns: stats.arrival_ns })
            }
            Request::Auth(Auth { id, token }) => self.handle_auth(id, token, now),
            Request::Presence(request) => {
                pattern::check_name(&request.channel, self.config.channel.channel_name_bytes_max)
                    .map_err(|error| bad_channel(id, &request.channel, error))?;
                Ok(Action::Presence { id, name: request.channel })
            }
            Request::History(request) => {
                pattern::check_name(&request.channel, self.config.channel.channel_name_bytes_max)
                    .map_err(|error| bad_channel(id, &request.channel, error))?;
                Ok(Action::History { id, name: request.channel })
            }
        }
    }

    fn handle_auth(&mut self, id: Option<u64>, token: Secret, now: Now) -> Result<Action, Refusal> {
        if self.config.is_open() {
            let message = "auth: this server has no keys and lets everybody in; leave it out";
            return Err(Refusal::error(id, ErrorCode::Unsupported, message));
        }
        // To check a signature may take as long as a thousand other requests.
        if !self.auths.has(1, now.at) {
            let message =
                format!("auth: at most {AUTHS_PER_S_MAX} a second; a token is good until it expires");
            return Err(Refusal::error(id, ErrorCode::RateLimited, message));
        }
        self.auths.take(1);
        Ok(Action::Auth { id, token })
    }

    fn handle_subscribe(&self, request: Subscribe) -> Result<Action, Refusal> {
        let id = request.id;
        let pattern = self.parse_pattern(id, &request.channel)?;
        let past = self.parse_past(&pattern, request.since, request.last, request.last_ms);
        let past = past.map_err(|(code, message)| Refusal::error(id, code, message))?;
        let window_ms = millis(self.config.batch.window);
        let max_delay_ms = request.max_delay_ms.map_or(window_ms, |asked| effective_delay(asked, window_ms));
        let max_age_ms = request.max_age_ms.unwrap_or_else(|| millis(self.config.outbox.max_age));
        if !(1..=MAX_AGE_MS_MAX).contains(&max_age_ms) && request.max_age_ms.is_some() {
            let message = format!("max_age_ms {max_age_ms} is out of range; 1 to {MAX_AGE_MS_MAX}");
            return Err(Refusal::error(id, ErrorCode::BadRequest, message));
        }
        let max_rate_hz = match request.max_rate_hz {
            None => None,
            Some(asked) => Some(effective_rate(asked).ok_or_else(|| {
                let message = format!("max_rate_hz {asked} is out of range; {} or more", RATES_HZ[0]);
                Refusal::error(id, ErrorCode::BadRequest, message)
            })?),
        };
        let delivery = DeliveryOptions { policy: request.policy, max_delay_ms, max_age_ms, max_rate_hz };
        Ok(Action::Subscribe { id, pattern, delivery, past })
    }

    fn parse_past(
        &self,
        pattern: &Pattern,
        since: Option<Since>,
        last: Option<serde_json::Value>,
        last_ms: Option<serde_json::Value>,
    ) -> Result<Option<Past>, (ErrorCode, String)> {
        let bad = |message: String| (ErrorCode::BadRequest, message);
        let count = |field: &str, value: &serde_json::Value| {
            let remedy = "a whole number, 1 or more";
            value.as_u64().filter(|value| *value > 0).ok_or_else(|| {
                bad(format!("{field} {} is out of range; {remedy}", shortened(&value.to_string())))
            })
        };
        match (since, last, last_ms) {
            (None, None, None) => Ok(None),
            (None, Some(last), None) => Ok(Some(Past::Last(count("last", &last)?))),
            (None, None, Some(last_ms)) => Ok(Some(Past::LastMs(count("last_ms", &last_ms)?))),
            (Some(since), None, None) => self.parse_since(pattern, since).map(Some),
            _ => Err(bad("since, last and last_ms: at most one of them; leave out the others".into())),
        }
    }

    fn parse_since(&self, pattern: &Pattern, since: Since) -> Result<Past, (ErrorCode, String)> {
        let bad = |message: String| Err((ErrorCode::BadRequest, message));
        let named = match since {
            Since::Text(_) if !pattern.is_literal() => {
                return bad(format!(
                    "since: {:?} is a pattern; give an object with a cursor for each channel, such as \
                     {{\"NAME\":\"EPOCH:SEQ\"}}",
                    pattern.as_str()
                ));
            }
            Since::Text(text) => vec![(pattern.as_str().to_owned(), text.into())],
            Since::Named(named) => named,
            Since::Other(value) => {
                let value = shortened(&value.to_string());
                return bad(format!(
                    "since {value} is no cursor; give a string, or an object with a cursor for each channel"
                ));
            }
        };
        let channels_max = self.config.channel.channels_max;
        if named.len() > channels_max {
            let message = format!("since names {} channels; at most {channels_max}", named.len());
            return Err((ErrorCode::LimitExceeded, message));
        }
        let mut cursors = BTreeMap::new();
        for (name, value) in named {
            let shown = shortened(&name);
            let bytes_max = self.config.channel.channel_name_bytes_max;
            if pattern::check_name(&name, bytes_max).is_err() || !pattern.matches(&name) {
                return bad(format!(
                    "since: channel \"{shown}\" is none of {:?}; leave it out",
                    pattern.as_str()
                ));
            }
            let Some(text) = value.as_str() else {
                let value = shortened(&value.to_string());
                return bad(format!("since of channel \"{shown}\" is {value}; a cursor is a string"));
            };
            let cursor: Cursor = match text.parse() {
                Ok(cursor) => cursor,
                Err(error) => {
                    let text = shortened(text);
                    return bad(format!("since of channel \"{shown}\": \"{text}\" {error}"));
                }
            };
            if cursors.insert(name.into_boxed_str(), cursor).is_some() {
                return bad(format!("since names channel \"{shown}\" twice; keep one"));
            }
        }
        Ok(Past::Since(cursors))
    }

    fn parse_pattern(&self, id: Option<u64>, text: &str) -> Result<Pattern, Refusal> {
        Pattern::parse(text, self.config.channel.channel_name_bytes_max)
            .map_err(|error| bad_channel(id, text, error))
    }
}

/// The largest delay that a subscription can have and that is not above what was asked for.
fn effective_delay(asked_ms: u32, window_ms: u32) -> u32 {
    let step = DELAYS_MS.into_iter().rev().find(|step| *step <= asked_ms).unwrap_or(0);
    if window_ms <= asked_ms { step.max(window_ms) } else { step }
}

fn effective_rate(asked_hz: f64) -> Option<f64> {
    RATES_HZ.into_iter().rev().find(|step| *step <= asked_hz)
}

/// What anything gets that is said before who says it.
fn unauthorized(id: Option<u64>) -> Refusal {
    Refusal::Last {
        id,
        code: ErrorCode::Unauthorized,
        message: "send {\"type\":\"auth\",\"token\":TOKEN} before anything else, or bring the token in the handshake".into(),
        reason: CloseReason::Unauthenticated,
    }
}

/// The longest part of a peer's own text that an error repeats.
const QUOTED_CHARS_MAX: usize = 80;

fn bad_channel(id: Option<u64>, text: &str, error: PatternError) -> Refusal {
    let short: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    Refusal::error(id, ErrorCode::BadChannel, format!("channel \"{}\"{dots} {error}", escaped(&short)))
}

/// The beginning of a peer's text, for an error.
fn shortened(text: &str) -> String {
    let short: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    escaped(&short) + dots
}

/// A peer's text in an error: printable ASCII as it is, everything else escaped, of bounded length.
fn escaped(text: &str) -> String {
    text.chars()
        .take(4 * QUOTED_CHARS_MAX)
        .flat_map(char::escape_default)
        .collect::<String>()
        .replace("\\\"", "\"")
        .replace("\\'", "'")
}

/// What is wrong with a request, in the words of its author: serde's variants are values to a client.
fn invalid(error: &serde_json::Error) -> String {
    escaped(&error.to_string().replacen("unknown variant", "unknown value", 1))
}

/// The `id` of a request that could not be read as a whole.
fn readable_id(text: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Id {
        id: Option<u64>,
    }
    serde_json::from_str::<Id>(text).ok().and_then(|request| request.id).filter(|id| *id <= REQUEST_ID_MAX)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
