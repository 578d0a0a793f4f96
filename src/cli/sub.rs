//! `tidewire sub`: prints live samples, a line each, and tells of everything that did not come.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use self::channels::{Channels, Since};
use self::line::{Report, push_sample_json, push_sample_text};
use super::bearer::{self, AUTH_ID, Bearer};
use super::terminal::{self, Escaped, Shell};
use crate::client::{Client, Closed, Event, Message, Reconnect, SendError, Trust, Url, samples};
use crate::clock::Clock;
use crate::close::{CloseReason, Retry};
use crate::config::Secret;
use crate::config::load::TOKEN_VARIABLE;
use crate::pattern::Pattern;
use crate::wire::{Codec, proto};

mod channels;
mod line;

/// Print the live samples of channels, one line each.
///
/// A line is `TIME CHANNEL #SEQUENCE VALUE (LATENCY)`: the time of day (UTC) of the sample by its publisher's clock, or
/// when the server received it if the publisher has none; the latency from the server's receipt to the arrival here. The
/// latency compares two clocks, as they are: it can be negative where they disagree. Gaps have lines of their own;
/// everything else that happens goes to standard error. Text and names are escaped. After a lost connection it connects
/// and subscribes again, and tells what it missed.
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
        args,
        shell,
        bearer,
        channels: Channels::default(),
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
    channels: Channels,
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
                self.channels.disconnected();
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
        for (index, pattern) in self.args.patterns.iter().enumerate() {
            let request = Subscribe {
                r#type: "subscribe",
                id: index + 1,
                channel: pattern,
                policy: self.args.policy.as_deref(),
                max_delay_ms: self.args.max_delay_ms,
                max_age_ms: self.args.max_age_ms,
                max_rate_hz: self.args.max_rate_hz,
            };
            if client.send_control(&request).await.is_err() {
                // What the server said last is more useful than the failed write.
                break;
            }
        }
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
        let name = self.channels.name(frame.channel);
        let mut last = 0;
        for sample in samples(frame) {
            last = sample.seq;
            if self.args.json {
                push_sample_json(&mut self.lines, &name, frame.epoch, &sample, arrival_ns);
            } else {
                push_sample_text(&mut self.lines, &name, &sample, arrival_ns);
            }
            if let Some(remaining) = &mut self.remaining {
                *remaining -= 1;
                if *remaining == 0 {
                    break;
                }
            }
        }
        self.channels.reached(frame.channel, last);
        self.write().await?;
        if self.remaining == Some(0) { Err(Ended::Done) } else { Ok(()) }
    }

    async fn event(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Subscribed(subscribed) => {
                let (subscription, channels) = (&subscribed.subscription, subscribed.channels.len());
                self.report(&Report::Subscribed { subscription, channels }).await?;
                for entry in subscribed.channels {
                    self.channel(entry, None).await?;
                }
                Ok(())
            }
            Event::Channel(new) => self.channel(new.channel, Some(&new.subscription)).await,
            Event::Gap(gap) => {
                let channel = self.channels.name(gap.channel);
                self.channels.reached(gap.channel, gap.to);
                self.report(&Report::Gap {
                    channel: &channel,
                    from: gap.from,
                    to: gap.to,
                    count: gap.count,
                    reason: &gap.reason,
                })
                .await
            }
            Event::Error(error) => {
                self.report(&Report::Error { id: error.id, code: &error.code, message: &error.message })
                    .await?;
                match error.id {
                    // The token before it holds until it ends.
                    None | Some(AUTH_ID) => Ok(()),
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
            Event::Unsubscribed(ended) if self.args.patterns.contains(&ended.subscription) => {
                Err(Ended::Refused)
            }
            Event::Welcome(_)
            | Event::Unsubscribed(_)
            | Event::Advertised(_)
            | Event::Ack(_)
            | Event::Heartbeat(_)
            | Event::Pong(_)
            | Event::Stats(_)
            | Event::NotKnown => Ok(()),
        }
    }

    /// A channel that will come: new, or known from the connection before.
    async fn channel(
        &mut self,
        entry: crate::client::event::ChannelEntry,
        subscription: Option<&str>,
    ) -> Result<(), Ended> {
        let name = entry.name.clone();
        let (epoch, next) = (entry.epoch, entry.seq);
        match self.channels.add(entry) {
            Since::New => match subscription {
                Some(subscription) => {
                    self.report(&Report::Channel { channel: &name, subscription, epoch, seq: next }).await
                }
                None => Ok(()),
            },
            Since::Same => Ok(()),
            Since::Missed { from, to } => self.report(&Report::Missed { channel: &name, from, to }).await,
            Since::Restarted { epoch_before } => {
                self.report(&Report::Restarted { channel: &name, epoch_before, epoch, seq: next }).await
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
                assert_eq!(peer.request().await, json!({"type": "subscribe", "id": 1, "channel": "robot.*"}));
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
        let rows: [(&[&str], bool); 10] = [
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
        ];
        for (rest, taken) in rows {
            assert_eq!(Line::try_parse_from([&["sub"], rest].concat()).is_ok(), taken, "{rest:?}");
        }
    }
}
