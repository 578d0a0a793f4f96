//! `tidewire sub`: prints live samples, a line each, and tells of everything that did not come.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use self::line::{Origin, Report, push_sample_json, push_sample_text};
use super::USAGE;
use super::bearer::{self, AUTH_ID, Bearer};
use super::terminal::{self, Escaped, Shell};
use crate::client::event::{ChannelEntry, Subscribed};
use crate::client::{
    Client, Closed, Cursors, Event, Message, Met, Reconnect, SendError, Trust, Url, samples,
};
use crate::clock::Clock;
use crate::close::{CloseReason, Retry};
use crate::config::Secret;
use crate::config::load::TOKEN_VARIABLE;
use crate::pattern::Pattern;
use crate::wire::cursor::Cursor;
use crate::wire::{Codec, proto};

mod line;

/// What begins the name of a user's inbox, which a connection is subscribed to from the start.
const INBOX: &str = "$user.";

/// Bytes of a `subscribe` beside its pattern and its cursors, at the most.
const SUBSCRIBE_BYTES: usize = 1 << 10;

/// Bytes of a channel's entry in `since` beside its name and its cursor: quotes, colon and comma.
const SINCE_BYTES: usize = 6;

/// Channels that a `since` names where the server has not said how many it takes.
const SINCE_CHANNELS_MAX: usize = 1024;

/// Print the live samples of channels, one line each.
///
/// A line is `TIME CHANNEL #SEQUENCE VALUE (LATENCY)`: the time of day (UTC) of the sample by its publisher's clock, or
/// when the server received it if the publisher has none; the latency from the server's receipt to the arrival here. The
/// latency compares two clocks, as they are: it can be negative where they disagree. Gaps have lines of their own;
/// everything else that happens goes to standard error. Text and names are escaped. After a lost connection it connects
/// again and goes on behind the last sample that it had, as far as the server keeps the past; it tells what it missed, and
/// prints no sample twice. Samples of the past have `(replayed)` in place of the latency.
#[derive(Debug, clap::Args)]
pub struct SubArgs {
    /// Channel names, or patterns: `*` stands for one token, `>` at the end for the rest.
    #[arg(required = true, value_name = "PATTERN", value_parser = parse_pattern)]
    pub patterns: Vec<String>,

    /// Address of the server.
    #[arg(long, default_value = "ws://127.0.0.1:9400/ws")]
    pub url: Url,

    /// Trust the certificates in FILE (PEM) and no others, with wss://: a CA's, or the server's own where it is
    /// self-signed [default: those that this machine trusts].
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Print one JSON object a line, for gaps and events too; 64-bit instants and integers are strings of digits.
    #[arg(long)]
    pub json: bool,

    /// What happens when this reader is too slow [default: the server's, drop_oldest].
    #[arg(long, value_parser = ["drop_oldest", "drop_newest", "latest", "disconnect"])]
    pub policy: Option<String>,

    /// Longest wait in a batch, in milliseconds; 0 sends each sample at once [default: the server's].
    #[arg(long, value_name = "N")]
    pub max_delay_ms: Option<u32>,

    /// What waited longer than this at the server, in milliseconds, becomes a gap [default: the server's].
    #[arg(long, value_name = "N")]
    pub max_age_ms: Option<u32>,

    /// Most samples per second of each channel; the newest are kept [default: no limit].
    #[arg(long, value_name = "F", value_parser = parse_rate)]
    pub max_rate_hz: Option<f64>,

    /// Begin with so many samples of the past of each channel.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["last_ms", "since"])]
    pub last: Option<u64>,

    /// Begin with what the server received in the last so many milliseconds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "since")]
    pub last_ms: Option<u64>,

    /// Begin behind this place: EPOCH:SEQ as --json shows them, several epochs joined by `,`. Where more than one channel is
    /// watched, NAME=CURSOR, once for each.
    #[arg(long, value_name = "CURSOR")]
    pub since: Vec<String>,

    /// Say who this is.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// End after this many samples.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Show the token in FILE, which its owner alone may read. It is read again for each connection and when the token ends:
    /// whoever replaces it in time keeps the connection [default: the token in TIDEWIRE_TOKEN, if there is one].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Runs the command. 0 after Ctrl-C, SIGTERM, `--count` or a closed output; 1 if the server refuses it for good.
#[must_use]
pub fn run(args: SubArgs) -> ExitCode {
    terminal::run(|shell| watch(args, shell))
}

pub(super) fn parse_pattern(text: &str) -> Result<String, String> {
    // The length is the server's to limit.
    Pattern::parse(text, usize::MAX).map(|_| text.to_owned()).map_err(|error| format!("it {error}"))
}

pub(super) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("a rate is a number above 0, in samples per second".to_owned()),
    }
}

/// `subscribe`, with the options that were given.
#[derive(Debug, Serialize)]
struct Subscribe<'a> {
    r#type: &'static str,
    id: usize,
    channel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_delay_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_rate_hz: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Since>,
}

/// `since` of a `subscribe`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Since {
    /// Of a name.
    One(String),
    /// Of a pattern: by name. What is not in it begins with all that is kept.
    Named(BTreeMap<String, String>),
}

/// What the places of `--since` are of.
fn places(args: &SubArgs) -> Result<Vec<(&str, Cursor)>, String> {
    let mut places = Vec::with_capacity(args.since.len());
    for text in &args.since {
        let (name, cursor) = match (text.rsplit_once('='), args.patterns.as_slice()) {
            (Some(parts), _) => parts,
            (None, [name]) if is_literal(name) => (name.as_str(), text.as_str()),
            (None, _) => {
                return Err(format!("--since {text:?}: say which channel it is of: --since NAME={text}"));
            }
        };
        if !args.patterns.iter().any(|pattern| matches(pattern, name)) {
            return Err(format!("--since {text:?}: {name:?} is none of the channels to watch; leave it out"));
        }
        let cursor = cursor.parse().map_err(|error| format!("--since {text:?}: {cursor:?} {error}"))?;
        places.push((name, cursor));
    }
    Ok(places)
}

/// Both were parsed as the arguments were read.
fn matches(pattern: &str, name: &str) -> bool {
    Pattern::parse(pattern, usize::MAX).is_ok_and(|pattern| pattern.matches(name))
}

fn is_literal(pattern: &str) -> bool {
    Pattern::parse(pattern, usize::MAX).is_ok_and(|pattern| pattern.is_literal())
}

/// Why a step did not lead to the next one.
#[derive(Debug)]
enum Ended {
    /// The connection is lost or was closed.
    Closed(Closed),
    /// Stopped, or as many samples as were asked for.
    Done,
    /// Nobody reads the output any more, or it cannot be written.
    Output(io::Error),
    /// The server refused a subscription; it has been reported.
    Refused,
}

async fn watch<O: AsyncWrite + Unpin>(args: SubArgs, mut shell: Shell<O>) -> ExitCode {
    let mut cursors = Cursors::default();
    match places(&args) {
        Ok(places) => places.iter().for_each(|(name, cursor)| cursors.begin_behind(name, cursor)),
        Err(why) => {
            shell.log(format_args!("error: {why}"));
            return ExitCode::from(USAGE);
        }
    }
    let url = match &args.user {
        Some(name) => args.url.clone().with_user(name),
        None => args.url.clone(),
    };
    let trust = match Trust::new(&url, args.ca.as_deref()) {
        Ok(trust) => trust,
        Err(error) => {
            shell.log(format_args!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let bearer = match Bearer::new(args.token_file.as_deref(), (shell.variable)(TOKEN_VARIABLE)) {
        Ok(bearer) => bearer,
        Err(reason) => {
            shell.log(format_args!("error: {reason}"));
            return ExitCode::FAILURE;
        }
    };
    let mut backoff = Reconnect::new();
    let mut view = View {
        remaining: args.count,
        answered: vec![!args.since.is_empty(); args.patterns.len()],
        inbox: None,
        args,
        shell,
        bearer,
        cursors,
        lines: String::new(),
    };
    let ended = loop {
        if let Err(ended) = view.connect_once(&url, &trust, &mut backoff).await {
            break ended;
        }
    };
    match ended {
        Ended::Done => ExitCode::SUCCESS,
        Ended::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Ended::Output(error) => {
            view.shell.log(format_args!("error: cannot write the output: {error}"));
            ExitCode::FAILURE
        }
        Ended::Closed(_) | Ended::Refused => ExitCode::FAILURE,
    }
}

struct View<O> {
    args: SubArgs,
    shell: Shell<O>,
    bearer: Bearer,
    cursors: Cursors,
    /// Of each pattern, whether a subscription has begun, which the next one goes on with.
    answered: Vec<bool>,
    /// The user's, if the server has given one that was not asked for.
    inbox: Option<String>,
    /// Samples that are still wanted.
    remaining: Option<u64>,
    /// Lines that wait to be written together.
    lines: String,
}

impl<O: AsyncWrite + Unpin> View<O> {
    /// One connection, from its attempt to the wait before the next one. `Err` if there is no next one.
    async fn connect_once(&mut self, url: &Url, trust: &Trust, backoff: &mut Reconnect) -> Result<(), Ended> {
        let connected = match self.bearer.show() {
            Ok(token) => tokio::select! {
                biased;
                () = self.shell.stop.wait() => return Err(Ended::Done),
                connected = Client::connect(url, Codec::Protobuf, trust, token) => Ok(connected),
            },
            // Somebody may be replacing it.
            Err(reason) => Err((reason, Retry::Backoff)),
        };
        let (why, retry) = match connected {
            Err(no_token) => no_token,
            Ok(Ok(mut client)) => {
                let began = Instant::now();
                let ended = self.receive(&mut client).await;
                let Ended::Closed(closed) = ended else {
                    client.close(CloseReason::PeerClosed.code(), "").await;
                    return Err(ended);
                };
                backoff.ended(began.elapsed());
                self.cursors.disconnected();
                self.bearer.lost(&closed)
            }
            Ok(Err(error)) => self.bearer.failed(&error),
        };
        let Some(delay) = backoff.delay(retry, (self.shell.random)()) else {
            self.report(&Report::GivenUp { why: &why }).await?;
            return Err(Ended::Refused);
        };
        self.report(&Report::Reconnecting { delay, attempt: backoff.attempt(), why: &why }).await?;
        tokio::select! {
            biased;
            () = self.shell.stop.wait() => Err(Ended::Done),
            () = sleep(delay) => Ok(()),
        }
    }

    /// Subscribes, and prints until something ends it.
    async fn receive(&mut self, client: &mut Client) -> Ended {
        let mut stop = self.shell.stop.clone();
        tokio::select! {
            biased;
            () = stop.wait() => Ended::Done,
            ended = self.receive_all(client) => match ended {
                Ok(never) => match never {},
                Err(ended) => ended,
            },
        }
    }

    async fn receive_all(&mut self, client: &mut Client) -> Result<std::convert::Infallible, Ended> {
        if client.welcome().auth_timeout_ms.is_some() {
            match self.bearer.demanded() {
                Ok(token) => self.show_token(client, Ok(token)).await?,
                Err(why) => {
                    self.report(&Report::GivenUp { why: &why }).await?;
                    return Err(Ended::Refused);
                }
            }
        }
        self.subscribe(client).await;
        loop {
            let message = tokio::select! {
                // Samples that always come must not keep the token from being renewed.
                biased;
                token = self.bearer.look() => {
                    self.show_token(client, token).await?;
                    continue;
                }
                message = client.recv() => message,
            };
            match message {
                Message::Frame(frame) => self.frame(&frame).await?,
                Message::Control(event) => self.event(event).await?,
                Message::Closed(closed) => return Err(Ended::Closed(closed)),
            }
        }
    }

    /// Subscribes to everything: as asked for the first time, and then behind what has come. What cannot be sent is left to
    /// what the server said last, which is more useful than the failed write.
    async fn subscribe(&mut self, client: &mut Client) {
        let patterns = self.args.patterns.iter().map(String::as_str);
        let inbox = self.inbox.as_deref().filter(|inbox| patterns.clone().all(|pattern| pattern != *inbox));
        for (index, pattern) in patterns.chain(inbox).enumerate() {
            let goes_on = self.answered.get(index).is_none_or(|answered| *answered);
            let since = if goes_on { Some(self.since(client, pattern)) } else { None };
            let (last, last_ms) = if goes_on { (None, None) } else { (self.args.last, self.args.last_ms) };
            let request = Subscribe {
                r#type: "subscribe",
                id: index + 1,
                channel: pattern,
                policy: self.args.policy.as_deref(),
                max_delay_ms: self.args.max_delay_ms,
                max_age_ms: self.args.max_age_ms,
                max_rate_hz: self.args.max_rate_hz,
                last,
                last_ms,
                since,
            };
            let has_past = goes_on || last.or(last_ms).is_some();
            if pattern.starts_with(INBOX) && is_literal(pattern) && has_past {
                // It may be subscribed from the start, and the past is for those who begin.
                let end = json!({"type": "unsubscribe", "id": self.end_id(), "channel": pattern});
                if client.send_control(&end).await.is_err() {
                    break;
                }
            }
            if client.send_control(&request).await.is_err() {
                break;
            }
        }
    }

    /// The `id` of an `unsubscribe` that may not be needed. Those of subscriptions, the inbox's too, are below it.
    const fn end_id(&self) -> u64 {
        self.args.patterns.len() as u64 + 2
    }

    /// Where a subscription goes on. Channels that are left out, since the server does not take more or nothing is known of
    /// them, begin with all that is kept; what of it has come before is known.
    fn since(&self, client: &Client, pattern: &str) -> Since {
        if is_literal(pattern) {
            return match self.cursors.cursor(pattern) {
                Some(cursor) => Since::One(cursor),
                None => Since::Named(BTreeMap::new()),
            };
        }
        let limits = &client.welcome().limits;
        let channels_max = match limits.channels_max {
            0 => SINCE_CHANNELS_MAX,
            channels_max => channels_max,
        };
        let mut room = limits.message_bytes_max.saturating_sub(SUBSCRIBE_BYTES + pattern.len());
        let mut named = BTreeMap::new();
        for name in self.cursors.names().filter(|name| matches(pattern, name)) {
            let Some(cursor) = self.cursors.cursor(name) else { continue };
            let bytes = name.len() + cursor.len() + SINCE_BYTES;
            if named.len() == channels_max || bytes > room {
                break;
            }
            room -= bytes;
            named.insert(name.to_owned(), cursor);
        }
        Since::Named(named)
    }

    /// Shows another token on the connection, or tells why there is none.
    async fn show_token(&mut self, client: &mut Client, token: Result<Secret, String>) -> Result<(), Ended> {
        let why = match token {
            Ok(token) => match bearer::send(client, &token).await {
                Err(error @ SendError::TooBig { .. }) => error.to_string(),
                // A lost connection says so itself.
                Ok(()) | Err(SendError::Lost(_)) => return Ok(()),
            },
            Err(why) => why,
        };
        self.report(&Report::NoToken { why: &why }).await
    }

    async fn frame(&mut self, frame: &proto::Frame) -> Result<(), Ended> {
        let arrival_ns = Clock::new().now().wall_ns;
        let name = self.cursors.name(frame.channel);
        let replayed = self.cursors.replays(frame.channel);
        let from = Origin { channel: &name, epoch: frame.epoch, replayed, arrival_ns };
        for sample in samples(frame) {
            if !self.cursors.take(frame.channel, sample.seq) {
                continue;
            }
            if self.args.json {
                push_sample_json(&mut self.lines, from, &sample);
            } else {
                push_sample_text(&mut self.lines, from, &sample);
            }
            if let Some(remaining) = &mut self.remaining {
                *remaining -= 1;
                if *remaining == 0 {
                    break;
                }
            }
        }
        self.write().await?;
        if self.remaining == Some(0) { Err(Ended::Done) } else { Ok(()) }
    }

    async fn event(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Subscribed(subscribed) => self.subscribed(&subscribed).await,
            Event::Channel(new) => self.channel(&new.channel, Some(&new.subscription)).await,
            Event::Live(live) => {
                self.cursors.live(live.channel);
                Ok(())
            }
            Event::Ended(ended) => {
                let channel = self.cursors.name(ended.channel);
                self.cursors.ended(ended.channel);
                self.report(&Report::Ended { channel: &channel }).await
            }
            Event::Gap(gap) => {
                let channel = self.cursors.name(gap.channel);
                self.cursors.gap(&gap);
                self.report(&Report::Gap {
                    channel: &channel,
                    from: gap.from,
                    to: gap.to,
                    count: gap.count,
                    reason: &gap.reason,
                })
                .await
            }
            Event::Error(error) if error.id == Some(self.end_id()) && error.code == "not_subscribed" => {
                Ok(())
            }
            Event::Error(error) => {
                self.report(&Report::Error { id: error.id, code: &error.code, message: &error.message })
                    .await?;
                match error.id {
                    // The token before it holds until it ends.
                    None | Some(AUTH_ID) => Ok(()),
                    // Nobody has asked for the inbox.
                    Some(id) if id > self.args.patterns.len() as u64 => Ok(()),
                    // A subscription that is refused would be missed silently.
                    Some(_) => Err(Ended::Refused),
                }
            }
            Event::Goodbye(goodbye) => self.report(&Report::Goodbye { reason: &goodbye.reason }).await,
            Event::Authenticated(now) => {
                self.bearer.settled();
                let (user, expires_s) = (&now.user, now.expires_s);
                self.report(&Report::Authenticated { user, expires_s }).await
            }
            Event::TokenExpiring(soon) => {
                let remedy = if self.bearer.expiring() {
                    "the next one is taken from its file as soon as it is there"
                } else {
                    "with --token-file the next one would be taken from a file"
                };
                self.report(&Report::TokenExpiring { expires_s: soon.expires_s, remedy }).await
            }
            // Nobody has asked for it: the new token gives no right to it, and the server has said so.
            Event::Unsubscribed(ended)
                if ended.id.is_none() && self.args.patterns.contains(&ended.subscription) =>
            {
                Err(Ended::Refused)
            }
            Event::Welcome(_)
            | Event::Unsubscribed(_)
            | Event::Advertised(_)
            | Event::Ack(_)
            | Event::Heartbeat(_)
            | Event::Pong(_)
            | Event::Stats(_)
            | Event::Presence(_)
            | Event::History(_)
            | Event::NotKnown => Ok(()),
        }
    }

    async fn subscribed(&mut self, subscribed: &Subscribed) -> Result<(), Ended> {
        let (subscription, channels) = (&subscribed.subscription, subscribed.channels.len());
        let Some(id) = subscribed.id else {
            // The inbox of a user, which the server gives to each connection.
            self.inbox = Some(subscription.clone()).filter(|inbox| inbox.starts_with(INBOX));
            subscribed.channels.iter().for_each(|entry| self.cursors.introduce(entry));
            return self.report(&Report::Subscribed { subscription, channels }).await;
        };
        let answered = usize::try_from(id).ok().and_then(|id| self.answered.get_mut(id.wrapping_sub(1)));
        if let Some(answered) = answered {
            *answered = true;
        }
        self.report(&Report::Subscribed { subscription, channels }).await?;
        self.past(subscription, &subscribed.channels).await?;
        for entry in &subscribed.channels {
            self.channel_met(entry, None).await?;
        }
        Ok(())
    }

    /// A channel that was found later.
    async fn channel(&mut self, entry: &ChannelEntry, subscription: Option<&str>) -> Result<(), Ended> {
        self.channel_met(entry, subscription).await?;
        self.past(&entry.name, std::slice::from_ref(entry)).await
    }

    /// Tells what of the past of these channels comes, if any was asked for.
    async fn past(&mut self, subscription: &str, channels: &[ChannelEntry]) -> Result<(), Ended> {
        let (mut samples, mut counts) = (0_u64, [0; 3]);
        for replay in channels.iter().filter_map(|entry| entry.replay.as_ref()) {
            samples = samples.saturating_add(replay.samples);
            let outcome = ["replayed", "partial", "reset"].into_iter().position(|it| it == replay.outcome);
            if let Some(outcome) = outcome {
                counts[outcome] += 1;
            }
        }
        let [replayed, partial, reset] = counts;
        match replayed + partial + reset {
            0 => Ok(()),
            _ => self.report(&Report::Past { subscription, samples, replayed, partial, reset }).await,
        }
    }

    /// A channel that will come: new, or known from the connection before.
    async fn channel_met(&mut self, entry: &ChannelEntry, subscription: Option<&str>) -> Result<(), Ended> {
        let (channel, epoch, seq) = (entry.name.as_str(), entry.epoch, entry.seq);
        match (self.cursors.meet(entry), subscription) {
            (Met::New, Some(subscription)) => {
                self.report(&Report::Channel { channel, subscription, epoch, seq }).await
            }
            (Met::New | Met::Same, _) => Ok(()),
            (Met::Missed { from, to }, _) => self.report(&Report::Missed { channel, from, to }).await,
            (Met::Restarted { epoch_before }, _) => {
                self.report(&Report::Restarted { channel, epoch_before, epoch, seq }).await
            }
        }
    }

    /// Gaps belong to the samples; the rest goes to standard error, and in JSON everything is one stream.
    async fn report(&mut self, report: &Report<'_>) -> Result<(), Ended> {
        if self.args.json {
            report.push_json(&mut self.lines);
        } else if let Report::Gap { .. } = report {
            report.push_text(&mut self.lines, Clock::new().now().wall_ns);
        } else {
            self.shell.log(report);
        }
        self.write().await
    }

    async fn write(&mut self) -> Result<(), Ended> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let written = async {
            self.shell.out.write_all(self.lines.as_bytes()).await?;
            self.shell.out.flush().await
        };
        // A stopped terminal must not keep Ctrl-C from ending the command.
        let written = tokio::select! {
            written = written => written,
            () = self.shell.stop.wait() => return Err(Ended::Done),
        };
        self.lines.clear();
        written.map_err(Ended::Output)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use proto::sample::Value;
    use serde_json::json;
    use tokio_tungstenite::tungstenite::Message as WsMessage;

    use super::*;
    use crate::cli::stage::{Stage, TokenFile, assert_exit, play};
    use crate::cli::terminal::Variable;
    use crate::client::scripted::Server;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SubArgs,
    }

    fn args(url: &str, rest: &[&str]) -> SubArgs {
        Line::try_parse_from(["sub", "--url", url].iter().chain(rest)).unwrap().args
    }

    fn frame(channel: u32, seq: u64, values: &[f64]) -> proto::Frame {
        let samples = values
            .iter()
            .map(|&value| proto::Sample { source_delta_ns: 0, value: Some(Value::Number(value)) })
            .collect();
        proto::Frame {
            channel,
            epoch: 7,
            seq,
            count: u32::try_from(values.len()).unwrap(),
            flushed_ns: 0,
            blocks: vec![proto::Block { source_ns: 1_000_000, received_ns: 2_000_000, samples }],
            seq_deltas: vec![],
        }
    }

    fn subscribed(name: &str, epoch: u32, seq: u64) -> serde_json::Value {
        json!({
            "type": "subscribed", "id": 1, "subscription": "robot.*", "policy": "latest", "max_delay_ms": 0,
            "max_age_ms": 1000, "max_rate_hz": null,
            "channels": [{"channel": 3, "name": name, "epoch": epoch, "seq": seq}],
        })
    }

    /// The lines without what depends on the clock: the time in front, the latency behind.
    fn lines(text: &str) -> Vec<&str> {
        let cut = |line| {
            let line: &str = line;
            let line = line.split_once(' ').map_or(line, |(_, rest)| rest);
            line.rsplit_once(" (").filter(|(_, end)| end.ends_with("ms)")).map_or(line, |(line, _)| line)
        };
        text.lines().map(cut).collect()
    }

    #[tokio::test]
    async fn options_are_asked_for_and_samples_are_printed() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let options = ["robot.*", "a", "--policy", "latest", "--max-delay-ms", "0", "--max-age-ms", "500"];
        let more = ["--max-rate-hz", "2.5", "--user", "a b", "--count", "3"];
        let command = watch(args(&server.url(), &[&options[..], &more].concat()), stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            assert_eq!(peer.target, "/ws?user=a%20b");
            let wanted = |id: u64, channel: &str| {
                json!({
                    "type": "subscribe", "id": id, "channel": channel, "policy": "latest", "max_delay_ms": 0,
                    "max_age_ms": 500, "max_rate_hz": 2.5,
                })
            };
            assert_eq!(peer.request().await, wanted(1, "robot.*"));
            assert_eq!(peer.request().await, wanted(2, "a"));
            peer.say(&subscribed("robot.\u{1b}[7m", 7, 17)).await;
            peer.say(&json!({"type": "weather", "wind": 3})).await;
            peer.frame(&frame(3, 17, &[1.25, -0.5])).await;
            peer.say(
                &json!({"type": "gap", "channel": 3, "from": 19, "to": 20, "count": 2, "reason": "slow"}),
            )
            .await;
            peer.say(&json!({"type": "channel", "subscription": "robot.*", "channel": 4, "name": "robot.8",
                "epoch": 9, "seq": 1}))
                .await;
            peer.frame(&frame(4, 1, &[8.0, 9.0])).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::SUCCESS);
        assert_eq!(
            lines(&stage.out.text()),
            [
                "robot.\\u{1b}[7m #17 1.25",
                "robot.\\u{1b}[7m #18 -0.5",
                "robot.\\u{1b}[7m gap #19-#20, 2 lost (slow)",
                "robot.8 #1 8",
            ]
        );
        assert!(stage.out.text().starts_with("00:00:00.001 "));
        assert_eq!(
            stage.log.text(),
            "subscribed to robot.*: 1 channel\nnew channel robot.8 from #1 (robot.*)\n"
        );
    }

    #[tokio::test]
    async fn a_lost_connection_is_made_again_and_what_was_missed_is_told() {
        // The epoch and first sequence after the loss, and what is said of it.
        let rows = [
            (7, 19, ""),
            (7, 30, "missed 11 of robot.7 while disconnected: #19-#29\n"),
            (8, 1, "robot.7 has started again from #1 (epoch 7 -> 8); what was missed is not known\n"),
        ];
        for (epoch, seq, told) in rows {
            let (server, stage) = (Server::bind().await, Stage::new());
            let command = watch(args(&server.url(), &["robot.*"]), stage.shell());
            let script = async {
                let mut peer = server.accept().await;
                peer.request().await;
                peer.say(&subscribed("robot.7", 7, 17)).await;
                peer.frame(&frame(3, 17, &[1.0, 2.0])).await;
                peer.close(1011).await;
                // An end without a close frame, before anything was said.
                drop(server.accept_silently().await);
                let mut peer = server.accept().await;
                let since = json!({"robot.7": "7:18"});
                let wanted = json!({"type": "subscribe", "id": 1, "channel": "robot.*", "since": since});
                assert_eq!(peer.request().await, wanted);
                peer.say(&subscribed("robot.7", epoch, seq)).await;
                peer.frame(&frame(3, seq, &[3.0])).await;
                peer.fence().await;
                stage.stop.send(true).unwrap();
                assert_eq!(peer.closed().await, Some(1000));
            };
            assert_exit(play(command, script).await, ExitCode::SUCCESS);
            assert_eq!(lines(&stage.out.text()).len(), 3);
            let log = stage.log.text();
            assert!(log.contains("reconnecting in 0.0 s (attempt 1): bye (1011)\n"), "{log}");
            assert!(log.contains("reconnecting in 0.0 s (attempt 2): "), "{log}");
            assert!(log.ends_with(&format!("subscribed to robot.*: 1 channel\n{told}")), "{log}");
        }
    }

    /// `subscribed` to `robot.7` with what comes of its past.
    fn resumed(epoch: u32, seq: u64, outcome: &str, samples: u64) -> serde_json::Value {
        let mut subscribed = subscribed("robot.7", epoch, seq);
        subscribed["channels"][0]["replay"] = json!({"outcome": outcome, "samples": samples});
        subscribed
    }

    #[tokio::test]
    async fn it_goes_on_behind_what_it_has_and_prints_no_sample_twice() {
        // What the server says, the first sample of three that come again, and what is printed and told.
        type Row = (u32, u64, &'static str, u64, &'static [&'static str], &'static str);
        let rows: [Row; 4] = [
            (7, 19, "replayed", 19, &["#19 1", "#20 2", "#21 3"], "1 channel complete"),
            (7, 19, "partial", 23, &["#23 1", "#24 2", "#25 3"], "1 channel partial: a gap tells"),
            // One that is behind has what has been seen.
            (7, 17, "reset", 17, &["#19 3"], "1 channel reset: not what was"),
            (8, 1, "reset", 1, &["#1 1", "#2 2", "#3 3"], "1 channel reset: not what was"),
        ];
        for (epoch, seq, outcome, first, printed, told) in rows {
            let (server, stage) = (Server::bind().await, Stage::new());
            let command = watch(args(&server.url(), &["robot.7", "--count", "9"]), stage.shell());
            let script = async {
                let mut peer = server.accept().await;
                assert_eq!(peer.request().await, json!({"type": "subscribe", "id": 1, "channel": "robot.7"}));
                peer.say(&subscribed("robot.7", 7, 17)).await;
                peer.frame(&frame(3, 17, &[1.0, 2.0])).await;
                // Ahead of the frames before it: no reason to pass over them.
                let gap = json!({"type": "gap", "channel": 3, "from": 30, "to": 31, "count": 2, "reason": "broker"});
                peer.say(&gap).await;
                peer.close(1011).await;
                let mut peer = server.accept().await;
                assert_eq!(peer.request().await["since"], "7:18");
                peer.say(&resumed(epoch, seq, outcome, 3)).await;
                peer.frame(&proto::Frame { epoch, ..frame(3, first, &[1.0, 2.0, 3.0]) }).await;
                peer.say(&json!({"type": "live", "channel": 3, "seq": first + 3})).await;
                peer.frame(&proto::Frame { epoch, ..frame(3, first + 3, &[4.0]) }).await;
                let ended = json!({"type": "ended", "channel": 3, "published": 4, "delivered": 4, "conflated": 0,
                    "dropped": 0, "queued": 0});
                peer.say(&ended).await;
                peer.fence().await;
                stage.stop.send(true).unwrap();
                assert_eq!(peer.closed().await, Some(1000));
            };
            assert_exit(play(command, script).await, ExitCode::SUCCESS);
            let text = stage.out.text();
            let replayed: Vec<&str> = text
                .lines()
                .filter_map(|line| line.split_once("robot.7 ")?.1.strip_suffix(" (replayed)"))
                .collect();
            assert_eq!(replayed, printed, "{text}");
            assert!(text.lines().last().unwrap().ends_with(" ms)"), "{text}");
            let log = stage.log.text();
            assert!(log.contains(&format!("replaying 3 samples of robot.*; {told}")), "{log}");
            assert!(
                log.ends_with("robot.7 has ended: it came from another server, which is gone\n"),
                "{log}"
            );
        }
    }

    #[tokio::test]
    async fn a_beginning_in_the_past_is_asked_for_once() {
        let place = json!({"robot.7": "7:5,8:9"});
        let rows: [(&[&str], serde_json::Value); 4] = [
            (&["robot.*", "--last", "5"], json!({"last": 5})),
            (&["robot.*", "--last-ms", "500"], json!({"last_ms": 500})),
            (&["robot.*", "--since", "robot.7=7:5,8:9"], json!({"since": place})),
            (&["robot.7", "--since", "7:5,8:9"], json!({"since": "7:5,8:9"})),
        ];
        for (rest, wanted) in rows {
            let (server, stage) = (Server::bind().await, Stage::new());
            let command = watch(args(&server.url(), rest), stage.shell());
            let script = async {
                for _ in 0..2 {
                    // What has not been answered is asked for again.
                    let mut peer = server.accept().await;
                    let mut request = peer.request().await;
                    let request = request.as_object_mut().unwrap();
                    request.retain(|key, _| !["type", "id", "channel"].contains(&key.as_str()));
                    assert_eq!(json!(request), wanted);
                    peer.close(1011).await;
                }
                let mut peer = server.accept().await;
                peer.request().await;
                peer.say(&resumed(7, 6, "replayed", 2)).await;
                peer.frame(&frame(3, 6, &[1.0, 2.0])).await;
                peer.close(1011).await;
                let mut peer = server.accept().await;
                let request = peer.request().await;
                let cursor = if wanted["since"].is_null() { "7:7" } else { "8:9,7:7" };
                let since = if rest[0] == "robot.7" { json!(cursor) } else { json!({"robot.7": cursor}) };
                assert_eq!(request["since"], since);
                assert!(request["last"].is_null() && request["last_ms"].is_null(), "{request}");
                stage.stop.send(true).unwrap();
                assert_eq!(peer.closed().await, Some(1000));
            };
            assert_exit(play(command, script).await, ExitCode::SUCCESS);
        }
    }

    #[tokio::test]
    async fn an_inbox_that_comes_by_itself_goes_on_too() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let command = watch(args(&server.url(), &["a", "--user", "bob"]), stage.shell());
        let script = async {
            let inbox = |id: Option<u64>, seq: u64| {
                json!({
                    "type": "subscribed", "id": id, "subscription": "$user.bob", "policy": "drop_oldest",
                    "max_delay_ms": 0, "max_age_ms": 1000, "max_rate_hz": null,
                    "channels": [{"channel": 3, "name": "$user.bob", "epoch": 7, "seq": seq}],
                })
            };
            let mut peer = server.accept().await;
            peer.request().await;
            peer.say(&inbox(None, 17)).await;
            peer.frame(&frame(3, 17, &[1.0])).await;
            peer.close(1011).await;
            let mut peer = server.accept().await;
            peer.say(&inbox(None, 20)).await;
            assert_eq!(peer.request().await["channel"], "a");
            let end = json!({"type": "unsubscribe", "id": 3, "channel": "$user.bob"});
            assert_eq!(peer.request().await, end);
            let again = json!({"type": "subscribe", "id": 2, "channel": "$user.bob", "since": "7:17"});
            assert_eq!(peer.request().await, again);
            peer.frame(&frame(3, 20, &[4.0])).await;
            peer.say(&json!({"type": "error", "id": 3, "code": "not_subscribed", "message": "no"})).await;
            let mut subscribed = inbox(Some(2), 18);
            subscribed["channels"][0]["replay"] = json!({"outcome": "replayed", "samples": 3});
            peer.say(&subscribed).await;
            peer.frame(&frame(3, 18, &[2.0, 3.0, 4.0])).await;
            peer.say(&json!({"type": "error", "id": 2, "code": "forbidden", "message": "no"})).await;
            peer.fence().await;
            stage.stop.send(true).unwrap();
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::SUCCESS);
        let text = stage.out.text();
        let printed: Vec<&str> =
            text.lines().map(|line| line.split_once('#').unwrap().1.split_once(' ').unwrap().0).collect();
        assert_eq!(printed, ["17", "20", "18", "19"]);
        assert!(!stage.log.text().contains("not_subscribed"), "{}", stage.log.text());
    }

    #[tokio::test]
    async fn a_since_is_as_long_as_the_server_takes() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let command = watch(args(&server.url(), &[">"]), stage.shell());
        let script = async {
            let limits = |bytes: usize, channels: usize| json!({"limits": {"message_bytes_max": bytes, "message_samples_max": 4, "channels_max": channels}});
            let mut peer = server.accept().await;
            peer.request().await;
            let channels: Vec<_> = (1..=300)
                .map(|n| json!({"channel": n, "name": format!("robot.{n}.{}", "x".repeat(200)), "epoch": 7, "seq": 1}))
                .collect();
            let mut answer = subscribed("a", 7, 1);
            answer["channels"] = channels.into();
            peer.say(&answer).await;
            peer.close(1011).await;
            for (bytes, channels, expected) in
                [(65_536, 0, 290..=300), (65_536, 17, 17..=17), (4_096, 1024, 12..=15)]
            {
                let mut peer = server.accept_with(&limits(bytes, channels)).await;
                let request = peer.request().await;
                assert!(request.to_string().len() <= bytes);
                let named = request["since"].as_object().unwrap().len();
                assert!(expected.contains(&named), "{bytes} {channels}: {named}");
                peer.close(1011).await;
            }
            let mut peer = server.accept().await;
            peer.request().await;
            stage.stop.send(true).unwrap();
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn a_place_that_is_none_is_told_before_anything_is_sent() {
        let rows: [(&[&str], &str); 5] = [
            (&["a", "--since", "x"], "--since \"x\": \"x\" is not a cursor: EPOCH:SEQ in decimal digits"),
            (&["a", "--since", "a=7:1,7:2"], "--since \"a=7:1,7:2\": \"7:1,7:2\" names epoch 7 twice"),
            (&["a.*", "--since", "7:1"], "--since \"7:1\": say which channel it is of: --since NAME=7:1"),
            (&["a", "b", "--since", "7:1"], "--since \"7:1\": say which channel it is of: --since NAME=7:1"),
            (
                &["a.*", "--since", "b=7:1"],
                "--since \"b=7:1\": \"b\" is none of the channels to watch; leave it out",
            ),
        ];
        for (rest, told) in rows {
            let stage = Stage::new();
            let code = watch(args("ws://127.0.0.1:1/ws", rest), stage.shell()).await;
            assert_exit(code, ExitCode::from(USAGE));
            assert!(stage.log.text().starts_with(&format!("error: {told}")), "{}", stage.log.text());
        }
    }

    #[tokio::test]
    async fn json_tells_everything_on_the_output() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let command = watch(args(&server.url(), &["robot.*", "--json"]), stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            peer.request().await;
            peer.say(&subscribed("robot.7", 7, 17)).await;
            peer.frame(&frame(3, 17, &[1.25])).await;
            peer.say(&json!({"type": "error", "id": 1, "code": "forbidden", "message": "no"})).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        let objects: Vec<serde_json::Value> =
            stage.out.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let types: Vec<_> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["subscribed", "sample", "error"]);
        assert_eq!(objects[1]["number"], 1.25);
        assert_eq!(stage.log.text(), "");
    }

    #[tokio::test]
    async fn advice_not_to_come_back_ends_it() {
        // A close code, or a message that no server should send, and the code that the client ends with.
        let rows: [(WsMessage, &str); 4] = [
            (
                WsMessage::Close(Some(closing(4403))),
                "error: denied (4403); the token was revoked; not connecting again\n",
            ),
            (WsMessage::text("{"), "(1003); not connecting again\n"),
            (WsMessage::binary(vec![0xFF]), "(1003); not connecting again\n"),
            (WsMessage::binary(vec![0; MESSAGE_TOO_BIG]), "(1009); not connecting again\n"),
        ];
        for (message, told) in rows {
            let (server, stage) = (Server::bind().await, Stage::new());
            let command = watch(args(&server.url(), &["a"]), stage.shell());
            let script = async {
                let mut peer = server.accept().await;
                peer.request().await;
                // The client may end the socket while a large message is still being written.
                peer.try_send(message).await;
                peer.gone().await;
            };
            assert_exit(play(command, script).await, ExitCode::FAILURE);
            assert!(stage.log.text().ends_with(told), "{}", stage.log.text());
        }
    }

    const MESSAGE_TOO_BIG: usize = crate::client::MESSAGE_BYTES_MAX + 1;

    fn closing(code: u16) -> tokio_tungstenite::tungstenite::protocol::CloseFrame {
        tokio_tungstenite::tungstenite::protocol::CloseFrame { code: code.into(), reason: "denied".into() }
    }

    #[tokio::test]
    async fn an_output_that_nobody_reads_ends_it_quietly() {
        let (server, mut stage) = (Server::bind().await, Stage::new());
        stage.out.broken = true;
        let command = watch(args(&server.url(), &["a"]), stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            peer.request().await;
            peer.frame(&frame(3, 1, &[1.0])).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::SUCCESS);
        assert_eq!(stage.log.text(), "");
    }

    #[tokio::test]
    async fn a_token_is_shown_and_the_next_one_on_the_same_connection() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let file = TokenFile::new("a.b.c\n");
        let options = ["a", "--token-file", file.path.to_str().unwrap()];
        // The file wins.
        let shell = Shell { variable: |_| Some("x.y.z".into()), ..stage.shell() };
        let command = watch(args(&server.url(), &options), shell);
        let script = async {
            let mut peer = server.accept().await;
            assert_eq!(peer.authorization.as_deref(), Some("Bearer a.b.c"));
            assert_eq!(peer.request().await["type"], "subscribe");
            file.write("d.e.f", 0o600);
            peer.say(&json!({"type": "token_expiring", "expires_s": 5})).await;
            assert_eq!(peer.request().await, json!({"type": "auth", "id": 0, "token": "d.e.f"}));
            // A token that is not taken is not the end: the one before it still holds, and a third may come.
            peer.say(&json!({"type": "error", "id": 0, "code": "unauthorized", "message": "no"})).await;
            peer.fence().await;
            file.write("g.h.i", 0o600);
            assert_eq!(peer.request().await, json!({"type": "auth", "id": 0, "token": "g.h.i"}));
            peer.say(&json!({"type": "authenticated", "id": 0, "user": "alice", "expires_s": 86_399})).await;
            peer.fence().await;
            // Too late for this connection, and in time for the next one.
            file.write("j.k.l", 0o600);
            peer.close(4401).await;
            let mut peer = server.accept().await;
            assert_eq!(peer.authorization.as_deref(), Some("Bearer j.k.l"));
            assert_eq!(peer.request().await["type"], "subscribe");
            peer.close(4401).await;
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        assert_eq!(
            stage.log.text(),
            "the token ends at 00:00:05.000; the next one is taken from its file as soon as it is there\n\
             error: unauthorized: no\n\
             the server takes the token of alice until 23:59:59.000\n\
             reconnecting in 0.0 s (attempt 1): bye (4401); the token file has another one by now\n\
             error: bye (4401); another token is needed; not connecting again\n"
        );
    }

    #[tokio::test]
    async fn a_server_that_wants_a_token_gets_it_or_is_told_apart() {
        let rows: [(Variable, &str); 2] = [
            (
                |_| None,
                "error: this server wants a token; set TIDEWIRE_TOKEN, or give --token-file FILE; not connecting again\n",
            ),
            (|name| (name == "TIDEWIRE_TOKEN").then(|| "a.b.c".into()), ""),
        ];
        for (variable, told) in rows {
            let (server, stage) = (Server::bind().await, Stage::new());
            let shell = Shell { variable, ..stage.shell() };
            let command = watch(args(&server.url(), &["a"]), shell);
            let script = async {
                // What is on the way may take the header out, as this one does.
                let mut peer = server.accept_with(&json!({"auth_timeout_ms": 10_000})).await;
                if variable("TIDEWIRE_TOKEN").is_some() {
                    assert_eq!(peer.request().await, json!({"type": "auth", "id": 0, "token": "a.b.c"}));
                    assert_eq!(peer.request().await["type"], "subscribe");
                    stage.stop.send(true).unwrap();
                }
                assert_eq!(peer.closed().await, Some(1000));
            };
            let expected = if told.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            assert_exit(play(command, script).await, expected);
            assert_eq!(stage.log.text(), told);
        }
    }

    #[tokio::test]
    async fn what_a_new_token_gives_no_right_to_is_missed_aloud() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let command = watch(args(&server.url(), &["a"]), stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            peer.request().await;
            let ended = |name: &str| json!({"type": "unsubscribed", "subscription": name, "channels": []});
            peer.say(&ended("$user.alice")).await;
            peer.fence().await;
            peer.say(&json!({"type": "error", "code": "forbidden", "message": "not a"})).await;
            peer.say(&ended("a")).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        assert_eq!(stage.log.text(), "error: forbidden: not a\n");
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_one_is_told_before_anything_is_sent() {
        let stage = Stage::new();
        let shell = Shell { variable: |_| Some("a b".into()), ..stage.shell() };
        let code = watch(args("ws://127.0.0.1:1/ws", &["a"]), shell).await;
        assert_exit(code, ExitCode::FAILURE);
        let words = "error: TIDEWIRE_TOKEN: it is not a token alone; `tidewire token mint` makes one\n";
        assert_eq!(stage.log.text(), words);
    }

    /// Nothing listens, so time can be paused: no answer is waited for.
    #[tokio::test(start_paused = true)]
    async fn refused_connections_back_off() {
        // Bound and not listening: the port stays ours and refuses.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("ws://{}/ws", socket.local_addr().unwrap());
        let stage = Stage::new();
        let shell = Shell { random: || 1.0, ..stage.shell() };
        let began = Instant::now();
        let script = async {
            // Between the fourth delay (2 s) and the fifth (4 s).
            sleep(Duration::from_secs(5)).await;
            stage.stop.send(true).unwrap();
        };
        assert_exit(play(watch(args(&url, &["a"]), shell), script).await, ExitCode::SUCCESS);
        assert_eq!(began.elapsed().as_secs(), 5);
        let log = stage.log.text();
        let heads: Vec<_> = log.lines().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(
            heads,
            [
                "reconnecting in 0.2 s (attempt 1)",
                "reconnecting in 0.5 s (attempt 2)",
                "reconnecting in 1.0 s (attempt 3)",
                "reconnecting in 2.0 s (attempt 4)",
                "reconnecting in 4.0 s (attempt 5)",
            ]
        );
        assert!(log.to_lowercase().contains("connection refused"), "{log}");
    }

    #[test]
    fn arguments_are_checked() {
        let rows: [(&[&str], bool); 17] = [
            (&["a.*", "b.>"], true),
            (&[], false),
            (&["a..b"], false),
            (&["a", "--url", "https://h/ws"], false),
            (&["a", "--policy", "newest"], false),
            (&["a", "--max-rate-hz", "0"], false),
            (&["a", "--max-rate-hz", "inf"], false),
            (&["a", "--count", "0"], false),
            (&["a", "--max-delay-ms", "-1"], false),
            (&["a", "--json", "--count", "5"], true),
            (&["a", "--last", "0"], false),
            (&["a", "--last", "5"], true),
            (&["a", "--last-ms", "0"], false),
            (&["a", "--last", "5", "--last-ms", "5"], false),
            (&["a", "--last", "5", "--since", "1:1"], false),
            (&["a", "--last-ms", "5", "--since", "1:1"], false),
            (&["a", "b", "--since", "a=1:1", "--since", "b=1:1"], true),
        ];
        for (rest, taken) in rows {
            assert_eq!(Line::try_parse_from([&["sub"], rest].concat()).is_ok(), taken, "{rest:?}");
        }
    }
}
