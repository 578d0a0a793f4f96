//! `tidewire pub`: publishes the lines of standard input.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use self::line::{BadLine, Splitter};
use self::pending::{InFlight, Pending, Read};
use super::bearer::{self, Bearer};
use super::terminal::{self, Escaped, Shell};
use crate::client::{Client, Closed, Event, Message, Reconnect, SendError, Trust, Url, event};
use crate::clock::Clock;
use crate::close::{CloseReason, Retry};
use crate::config::Secret;
use crate::config::load::TOKEN_VARIABLE;
use crate::pattern;
use crate::wire::Codec;

mod line;
mod pending;

pub use self::line::Kind;

/// Lines between the reader and the publisher; then reading stops.
const LINES_MAX: usize = 256;

/// Bytes of one read of the input.
const READ_BYTES: usize = 64 << 10;

/// `id` of the `advertise`; those of publishes follow.
const ADVERTISE_ID: u64 = 1;

/// Publish the lines of standard input on a channel, one sample each.
///
/// A sample's source time is when its line was read. Lines that do not fit `--type`, or are longer than 64 KiB, are
/// reported and skipped. While there is no connection the newest 10,000 lines are kept; what was sent without an answer
/// when a connection broke is reported and not sent twice. Ends at the end of input, when the server has acknowledged
/// everything. The exit code is 1 if a line was bad, dropped, refused or not acknowledged.
#[derive(Debug, clap::Args)]
pub struct PubArgs {
    /// Name of the channel, such as robot.7.imu.
    #[arg(value_parser = parse_name)]
    pub channel: String,

    /// Address of the server.
    #[arg(long, default_value = "ws://127.0.0.1:9400/ws")]
    pub url: Url,

    /// Trust the certificates in FILE (PEM) and no others, with wss://: a CA's, or the server's own where it is
    /// self-signed [default: those that this machine trusts].
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// How lines become values.
    #[arg(long = "type", value_enum, default_value_t, value_name = "TYPE")]
    pub kind: Kind,

    /// Publish at most this many lines per second, evenly; source times are when each line's turn came.
    #[arg(long, value_name = "HZ", value_parser = super::sub::parse_rate)]
    pub rate: Option<f64>,

    /// Print what the server acknowledges: the channel, the sequences and the time that the answer took.
    #[arg(long)]
    pub ack: bool,

    /// Show the token in FILE, which its owner alone may read. It is read again for each connection and when the token ends:
    /// whoever replaces it in time keeps the connection [default: the token in TIDEWIRE_TOKEN, if there is one].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Runs the command.
#[must_use]
pub fn run(args: PubArgs) -> ExitCode {
    terminal::run(|shell| publish(args, tokio::io::stdin(), shell))
}

fn parse_name(text: &str) -> Result<String, String> {
    // The length is the server's to limit.
    pattern::check_name(text, usize::MAX).map(|()| text.to_owned()).map_err(|error| format!("it {error}"))
}

/// What the reader of the input says.
#[derive(Debug)]
enum Input {
    Sample(Read),
    Bad { line: u64, why: BadLine },
    Failed(io::Error),
}

/// Reads lines until the input ends. It waits, and so stops reading, while the publisher cannot take more.
async fn read_lines(
    mut input: impl AsyncRead + Unpin,
    kind: Kind,
    rate: Option<f64>,
    lines: mpsc::Sender<Input>,
) {
    let mut buffer = vec![0; READ_BYTES];
    let mut splitter = Splitter::default();
    let mut pace = rate.map(Pace::new);
    loop {
        let (mut chunk, ended) = match input.read(&mut buffer).await {
            Ok(bytes) => (&buffer[..bytes], bytes == 0),
            Err(error) => {
                let _ = lines.send(Input::Failed(error)).await;
                return;
            }
        };
        let read_ns = Clock::new().now().wall_ns;
        loop {
            let parse = |line, text: Result<&[u8], BadLine>| match text.and_then(|text| kind.parse(text)) {
                Ok(value) => Input::Sample(Read { line, source_ns: read_ns, value }),
                Err(why) => Input::Bad { line, why },
            };
            let next = if ended { splitter.finish(parse) } else { splitter.next(&mut chunk, parse) };
            let Some(mut next) = next else { break };
            if let (Some(pace), Input::Sample(read)) = (&mut pace, &mut next) {
                pace.turn().await;
                read.source_ns = Clock::new().now().wall_ns;
            }
            if lines.send(next).await.is_err() {
                return;
            }
        }
        if ended {
            return;
        }
    }
}

/// Turns at an even rate. Late ones are not made up for in a burst.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate_hz: f64) -> Self {
        let interval = Duration::try_from_secs_f64(rate_hz.recip()).unwrap_or(Duration::MAX);
        Self { interval, next: Instant::now() }
    }

    async fn turn(&mut self) {
        sleep_until(self.next).await;
        let now = Instant::now();
        let due = self.next.checked_add(self.interval);
        self.next = due.filter(|&due| due > now).unwrap_or_else(|| now + self.interval.min(A_YEAR));
    }
}

/// Stands for "never" where adding to an instant must not overflow.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Why the publisher ends, or a connection does.
#[derive(Debug)]
enum Ended {
    /// The connection is lost or was closed.
    Closed(Closed),
    /// Everything was published.
    Complete,
    /// Ctrl-C or SIGTERM.
    Stopped,
    /// The server refused the channel, or another attempt would end the same way; it has been reported.
    Refused,
}

/// Thins out errors that come again and again, as `rate_limited` does: one of a kind in each [`REPEAT_INTERVAL`].
#[derive(Debug, Default)]
struct Repeats {
    last: Option<(String, Instant)>,
    hidden: u64,
}

/// Time between two errors of the same code that are shown.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

impl Repeats {
    /// Whether to show this one, and how many have not been shown before it.
    fn next(&mut self, code: &str, now: Instant) -> Option<u64> {
        if let Some((last, at)) = &self.last
            && last == code
            && now.saturating_duration_since(*at) < REPEAT_INTERVAL
        {
            self.hidden += 1;
            return None;
        }
        self.last = Some((code.to_owned(), now));
        Some(std::mem::take(&mut self.hidden))
    }
}

/// What became of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    acked: u64,
    bad: u64,
    dropped: u64,
    unanswered: u64,
    unreadable: u64,
}

async fn publish<I, O>(args: PubArgs, input: I, mut shell: Shell<O>) -> ExitCode
where
    I: AsyncRead + Unpin + Send + 'static,
    O: AsyncWrite + Unpin,
{
    let bearer = match Bearer::new(args.token_file.as_deref(), (shell.variable)(TOKEN_VARIABLE)) {
        Ok(bearer) => bearer,
        Err(reason) => {
            shell.log(format_args!("error: {reason}"));
            return ExitCode::FAILURE;
        }
    };
    let (sender, lines) = mpsc::channel(LINES_MAX);
    let mut reader = JoinSet::new();
    reader.spawn(read_lines(input, args.kind, args.rate, sender));
    let mut publisher = Publisher {
        args,
        shell,
        bearer,
        lines,
        input_ended: false,
        pending: Pending::default(),
        in_flight: InFlight::default(),
        last_id: ADVERTISE_ID,
        dropped_told: 0,
        repeats: Repeats::default(),
        tally: Tally::default(),
    };
    let trust = match Trust::new(&publisher.args.url, publisher.args.ca.as_deref()) {
        Ok(trust) => trust,
        Err(error) => {
            publisher.shell.log(format_args!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut backoff = Reconnect::new();
    let ended = loop {
        if let Err(ended) = publisher.connect_once(&trust, &mut backoff).await {
            break ended;
        }
    };
    publisher.conclude(&ended)
}

struct Publisher<O> {
    args: PubArgs,
    shell: Shell<O>,
    bearer: Bearer,
    lines: mpsc::Receiver<Input>,
    input_ended: bool,
    pending: Pending,
    in_flight: InFlight,
    last_id: u64,
    /// How many of the dropped lines have been reported.
    dropped_told: u64,
    repeats: Repeats,
    tally: Tally,
}

impl<O: AsyncWrite + Unpin> Publisher<O> {
    /// One connection, from its attempt to the wait before the next one. `Err` if there is no next one.
    async fn connect_once(&mut self, trust: &Trust, backoff: &mut Reconnect) -> Result<(), Ended> {
        let mut stop = self.shell.stop.clone();
        let url = self.args.url.clone();
        let connected = match self.bearer.show().map(Option::<&Secret>::cloned) {
            Ok(token) => tokio::select! {
                biased;
                () = stop.wait() => return Err(Ended::Stopped),
                connected = Client::connect(&url, Codec::Protobuf, trust, token.as_ref()) => Ok(connected),
                () = self.collect() => return Err(Ended::Complete),
            },
            // Somebody may be replacing it.
            Err(reason) => Err((reason, Retry::Backoff)),
        };
        let (why, retry) = match connected {
            Err(no_token) => no_token,
            Ok(Ok(mut client)) => {
                let began = Instant::now();
                let ended = tokio::select! {
                    biased;
                    () = stop.wait() => Ended::Stopped,
                    ended = self.serve(&mut client) => ended,
                };
                let Ended::Closed(closed) = ended else {
                    client.close(CloseReason::PeerClosed.code(), "").await;
                    return Err(ended);
                };
                backoff.ended(began.elapsed());
                let lost = self.in_flight.lost();
                if lost > 0 {
                    self.tally.unanswered += lost;
                    self.shell.log(format_args!(
                        "{lost} samples were sent and not acknowledged when the connection ended; they may be lost"
                    ));
                }
                self.bearer.lost(&closed)
            }
            Ok(Err(error)) => self.bearer.failed(&error),
        };
        let why = Escaped(&why);
        let Some(delay) = backoff.delay(retry, (self.shell.random)()) else {
            self.shell.log(format_args!("error: {why}; not connecting again"));
            return Err(Ended::Refused);
        };
        let (seconds, attempt) = (delay.as_secs_f64(), backoff.attempt());
        self.shell.log(format_args!("reconnecting in {seconds:.1} s (attempt {attempt}): {why}"));
        tokio::select! {
            biased;
            () = stop.wait() => Err(Ended::Stopped),
            () = sleep(delay) => Ok(()),
            () = self.collect() => Err(Ended::Complete),
        }
    }

    /// Takes lines while there is no connection. Returns when the input has ended and nothing is left to publish.
    async fn collect(&mut self) {
        while !self.input_ended {
            let next = self.lines.recv().await;
            self.take(next);
        }
        if !self.pending.is_empty() {
            std::future::pending::<()>().await;
        }
    }

    fn take(&mut self, next: Option<Input>) {
        match next {
            None => self.input_ended = true,
            Some(Input::Sample(read)) => self.tally.dropped += self.pending.push(read),
            Some(Input::Bad { line, why }) => {
                self.tally.bad += 1;
                self.shell.log(format_args!("line {line} {why}; skipped"));
            }
            Some(Input::Failed(error)) => {
                self.tally.unreadable += 1;
                self.shell.log(format_args!("error: cannot read the input: {error}"));
            }
        }
    }

    /// Advertises and publishes, until the connection or the input ends.
    async fn serve(&mut self, client: &mut Client) -> Ended {
        if client.welcome().auth_timeout_ms.is_some() {
            match self.bearer.demanded() {
                Ok(token) => self.show_token(client, Ok(token)).await,
                Err(why) => {
                    self.shell.log(format_args!("error: {why}; not connecting again"));
                    return Ended::Refused;
                }
            }
        }
        let channel = match self.advertise(client).await {
            Ok(channel) => channel,
            Err(ended) => return ended,
        };
        loop {
            if let Err(ended) = self.send_pending(client, channel).await {
                return ended;
            }
            if self.input_ended && self.pending.is_empty() && self.in_flight.is_empty() {
                return Ended::Complete;
            }
            let deadline = self.in_flight.deadline();
            let expiry = async move {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                token = self.bearer.look() => self.show_token(client, token).await,
                message = client.recv() => {
                    if let Err(ended) = self.message(message).await {
                        return ended;
                    }
                }
                next = self.lines.recv(), if !self.input_ended && self.pending.is_empty() => {
                    self.take(next);
                    self.take_waiting();
                }
                () = expiry => {
                    let samples = self.in_flight.expire(Instant::now());
                    self.tally.unanswered += samples;
                    self.shell.log(format_args!("no answer to {samples} samples"));
                }
            }
        }
    }

    /// Shows another token on the connection, or tells why there is none.
    async fn show_token(&mut self, client: &mut Client, token: Result<Secret, String>) {
        let why = match token {
            Ok(token) => match bearer::send(client, &token).await {
                Err(error @ SendError::TooBig { .. }) => error.to_string(),
                // A lost connection says so itself.
                Ok(()) | Err(SendError::Lost(_)) => return,
            },
            Err(why) => why,
        };
        self.shell.log(format_args!("error: no other token: {}", Escaped(&why)));
    }

    /// The lines that are there already, so that they share a publish; a lone line has not waited for them.
    fn take_waiting(&mut self) {
        while self.pending.len() < LINES_MAX
            && let Ok(next) = self.lines.try_recv()
        {
            self.take(Some(next));
        }
    }

    /// Opens the channel; lines that come meanwhile are kept.
    async fn advertise(&mut self, client: &mut Client) -> Result<u32, Ended> {
        let request = json!({"type": "advertise", "id": ADVERTISE_ID, "channel": self.args.channel});
        if let Err(error @ SendError::TooBig { .. }) = client.send_control(&request).await {
            self.shell.log(format_args!("error: {error}"));
            return Err(Ended::Refused);
        }
        loop {
            let message = tokio::select! {
                biased;
                message = client.recv() => message,
                next = self.lines.recv(), if !self.input_ended => {
                    self.take(next);
                    continue;
                }
            };
            if let Message::Control(Event::Advertised(advertised)) = &message
                && advertised.id == Some(ADVERTISE_ID)
            {
                let entry = &advertised.channel;
                self.shell.log(format_args!("publishing on {} from #{}", Escaped(&entry.name), entry.seq));
                let dropped = self.tally.dropped - self.dropped_told;
                if dropped > 0 {
                    self.dropped_told = self.tally.dropped;
                    self.shell.log(format_args!(
                        "dropped the oldest {dropped} lines while there was no connection ({} are kept)",
                        self.pending.len()
                    ));
                }
                return Ok(entry.channel);
            }
            self.message(message).await?;
        }
    }

    async fn send_pending(&mut self, client: &mut Client, channel: u32) -> Result<(), Ended> {
        while !self.in_flight.is_full()
            && let Some(block) = self.pending.block(&client.welcome().limits)
        {
            let block = match block {
                Ok(block) => block,
                Err(line) => {
                    self.tally.bad += 1;
                    let bytes_max = client.welcome().limits.message_bytes_max;
                    self.shell.log(format_args!(
                        "line {line} does not fit the server's limit of {bytes_max} bytes; skipped"
                    ));
                    continue;
                }
            };
            self.last_id += 1;
            self.in_flight.push(self.last_id, block.samples.len(), Instant::now());
            if client.publish(channel, block, self.last_id).await.is_err() {
                // The reason comes as the last message.
                break;
            }
        }
        Ok(())
    }

    async fn message(&mut self, message: Message) -> Result<(), Ended> {
        match message {
            Message::Closed(closed) => return Err(Ended::Closed(closed)),
            Message::Control(Event::Ack(ack)) => self.ack(&ack).await,
            Message::Control(Event::Error(error)) => {
                if let Some(hidden) = self.repeats.next(&error.code, Instant::now()) {
                    let (code, message) = (Escaped(&error.code), Escaped(&error.message));
                    let more =
                        if hidden > 0 { format!(" (and {hidden} more before)") } else { String::new() };
                    self.shell.log(format_args!("error: {code}: {message}{more}"));
                }
                match error.id {
                    Some(ADVERTISE_ID) => return Err(Ended::Refused),
                    Some(id) => self.tally.unanswered += self.in_flight.refused(id),
                    None => {}
                }
            }
            Message::Control(Event::Goodbye(goodbye)) => {
                self.shell.log(format_args!("the server says goodbye: {}", Escaped(&goodbye.reason)));
            }
            Message::Control(Event::Authenticated(_)) => self.bearer.settled(),
            Message::Control(Event::TokenExpiring(_)) => {
                if !self.bearer.expiring() {
                    let remedy = "with --token-file the next one would be taken from a file";
                    self.shell.log(format_args!("the token ends soon; {remedy}"));
                }
            }
            Message::Control(_) | Message::Frame(_) => {}
        }
        Ok(())
    }

    async fn ack(&mut self, ack: &event::Ack) {
        let Some((took, passed)) = self.in_flight.acked(ack, Instant::now()) else { return };
        self.tally.acked += u64::from(ack.count);
        self.tally.unanswered += passed;
        if !self.args.ack {
            return;
        }
        let last = ack.seq.saturating_add(u64::from(ack.count.max(1)) - 1);
        let (channel, first, ms) = (&self.args.channel, ack.seq, took.as_secs_f64() * 1e3);
        let line = format!("{channel} #{first}-#{last} ({ms:.1} ms)\n");
        let written = async {
            self.shell.out.write_all(line.as_bytes()).await?;
            self.shell.out.flush().await
        };
        // Nobody reads it any more: the samples still go out.
        if written.await.is_err() {
            self.args.ack = false;
        }
    }

    /// Tells what did not arrive, if anything, and with it the exit code.
    fn conclude(mut self, ended: &Ended) -> ExitCode {
        let unsent = self.pending.len();
        let Tally { acked, bad, dropped, unanswered, unreadable } = self.tally;
        let lost = bad + dropped + unanswered;
        if lost > 0 || unsent > 0 {
            self.shell.log(format_args!(
                "{acked} samples published; {bad} lines skipped, {dropped} dropped, {unsent} not sent, \
                 {unanswered} samples refused or not acknowledged"
            ));
        }
        let refused = matches!(ended, Ended::Refused);
        if refused || lost + unreadable > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value as Json;

    use super::*;
    use crate::cli::stage::{Stage, TokenFile, assert_exit, play};
    use crate::client::scripted::{Peer, Server};
    use crate::wire::proto::{Publish, sample::Value};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PubArgs,
    }

    fn args(url: &str, rest: &[&str]) -> PubArgs {
        Line::try_parse_from(["pub", "a.b", "--url", url].iter().chain(rest)).unwrap().args
    }

    fn advertised(channel: u32) -> Json {
        json!({"type": "advertised", "id": 1, "channel": channel, "name": "a.b", "epoch": 7, "seq": 17})
    }

    async fn advertise(peer: &mut Peer, channel: u32) {
        assert_eq!(peer.request().await, json!({"type": "advertise", "id": 1, "channel": "a.b"}));
        peer.say(&advertised(channel)).await;
    }

    fn ack(publish: &Publish, seq: u64) -> Json {
        let count = publish.block.as_ref().unwrap().samples.len();
        json!({"type": "ack", "id": publish.ack, "channel": publish.channel, "seq": seq, "count": count})
    }

    fn numbers(publish: &Publish) -> Vec<f64> {
        let samples = publish.block.as_ref().unwrap().samples.iter();
        samples
            .map(|sample| match sample.value {
                Some(Value::Number(number)) => number,
                ref other => panic!("not a number: {other:?}"),
            })
            .collect()
    }

    #[tokio::test]
    async fn lines_share_publishes_and_the_end_waits_for_the_acks() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let input = &b"1\n2\n3\n4\n5"[..];
        let before_ns = Clock::new().now().wall_ns;
        let command = publish(args(&server.url(), &["--ack"]), input, stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            advertise(&mut peer, 9).await;
            // The welcome allows four samples in a publish.
            let first = peer.publish().await;
            assert_eq!((first.channel, numbers(&first)), (9, vec![1.0, 2.0, 3.0, 4.0]));
            let block = first.block.as_ref().unwrap();
            assert!(block.source_ns >= before_ns && block.received_ns == 0);
            let second = peer.publish().await;
            assert_eq!(numbers(&second), [5.0]);
            assert!(first.ack != 0 && second.ack != 0 && first.ack != second.ack);
            peer.say(&ack(&first, 17)).await;
            // Not everything is acknowledged: it is still there.
            peer.fence().await;
            peer.say(&ack(&second, 21)).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::SUCCESS);
        let out = stage.out.text();
        let acked: Vec<_> = out.lines().map(|line| line.split(" (").next().unwrap()).collect();
        assert_eq!(acked, ["a.b #17-#20", "a.b #21-#21"]);
        assert_eq!(stage.log.text(), "publishing on a.b from #17\n");
    }

    #[tokio::test]
    async fn a_lone_line_goes_out_while_the_input_is_open() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let (mut keyboard, input) = tokio::io::duplex(64);
        let command = publish(args(&server.url(), &["--type", "text"]), input, stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            advertise(&mut peer, 9).await;
            for line in ["door open", "1.25"] {
                keyboard.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
                let publish = peer.publish().await;
                let sample = publish.block.as_ref().unwrap().samples.first().unwrap();
                assert_eq!(sample.value, Some(Value::Text(line.to_owned())));
                peer.say(&ack(&publish, 17)).await;
            }
            stage.stop.send(true).unwrap();
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::SUCCESS);
        assert_eq!(stage.out.text(), "");
    }

    #[tokio::test]
    async fn bad_lines_are_told_and_fail_the_command() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let too_long = "7".repeat(70_000);
        let input = io::Cursor::new(format!("1\nx\n{too_long}\n\n4\n").into_bytes());
        let command = publish(args(&server.url(), &["--type", "integer"]), input, stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            advertise(&mut peer, 9).await;
            let mut taken = vec![];
            while taken.len() < 2 {
                let publish = peer.publish().await;
                taken.extend(
                    publish.block.as_ref().unwrap().samples.iter().map(|sample| sample.value.clone()),
                );
                peer.say(&ack(&publish, 17)).await;
            }
            assert_eq!(taken, [Some(Value::Integer(1)), Some(Value::Integer(4))]);
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        let log = stage.log.text();
        for told in [
            "line 2 is not an integer from -2^63 to 2^63 - 1; skipped\n",
            "line 3 is longer than 65536 bytes; skipped\n",
            "line 4 is not an integer",
            "2 samples published; 3 lines skipped, 0 dropped, 0 not sent, 0 samples refused or not acknowledged\n",
        ] {
            assert!(log.contains(told), "{told:?} in {log}");
        }
    }

    #[tokio::test]
    async fn a_line_over_the_servers_limit_is_not_sent() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let input = io::Cursor::new(format!("{}\n2\n", "x".repeat(65_536)).into_bytes());
        let command = publish(args(&server.url(), &[]), input, stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            advertise(&mut peer, 9).await;
            let publish = peer.publish().await;
            assert_eq!(numbers(&publish), [2.0]);
            peer.say(&ack(&publish, 17)).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        assert!(
            stage.log.text().contains("line 1 does not fit the server's limit of 65536 bytes; skipped\n")
        );
    }

    #[tokio::test]
    async fn a_lost_connection_is_made_again_and_the_rest_is_published() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let (mut keyboard, input) = tokio::io::duplex(64);
        let command = publish(args(&server.url(), &[]), input, stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            advertise(&mut peer, 9).await;
            keyboard.write_all(b"1\n").await.unwrap();
            assert_eq!(numbers(&peer.publish().await), [1.0]);
            // Not acknowledged, and then gone.
            peer.close(1011).await;
            keyboard.write_all(b"2\n").await.unwrap();
            let mut peer = server.accept().await;
            assert_eq!(peer.request().await["type"], "advertise");
            keyboard.write_all(b"3\n").await.unwrap();
            drop(keyboard);
            peer.fence().await;
            // Another number for the same name.
            peer.say(&advertised(12)).await;
            let mut taken = vec![];
            while taken.len() < 2 {
                let publish = peer.publish().await;
                assert_eq!(publish.channel, 12);
                taken.extend(numbers(&publish));
                peer.say(&ack(&publish, 30)).await;
            }
            assert_eq!(taken, [2.0, 3.0]);
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        let log = stage.log.text();
        for told in [
            "1 samples were sent and not acknowledged when the connection ended; they may be lost\n",
            "reconnecting in 0.0 s (attempt 1): bye (1011)\n",
            "2 samples published; 0 lines skipped, 0 dropped, 0 not sent, 1 samples refused or not acknowledged\n",
        ] {
            assert!(log.contains(told), "{told:?} in {log}");
        }
    }

    #[tokio::test]
    async fn errors_are_told_and_escaped() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let command = publish(args(&server.url(), &[]), &b"1\n"[..], stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            advertise(&mut peer, 9).await;
            let publish = peer.publish().await;
            peer.say(&json!({
                "type": "error", "id": publish.ack, "code": "rate_limited", "message": "slower\u{1b}[1m",
            }))
            .await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        assert!(stage.log.text().contains("error: rate_limited: slower\\u{1b}[1m\n"), "{}", stage.log.text());
    }

    #[tokio::test]
    async fn a_refused_channel_ends_it() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let (_keyboard, input) = tokio::io::duplex(64);
        let command = publish(args(&server.url(), &[]), input, stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            peer.request().await;
            peer.say(&json!({"type": "error", "id": 1, "code": "forbidden", "message": "not yours"})).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        assert_eq!(stage.log.text(), "error: forbidden: not yours\n");
    }

    #[tokio::test]
    async fn a_token_is_shown_and_the_next_one_while_lines_come() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let file = TokenFile::new("a.b.c");
        let (mut keyboard, input) = tokio::io::duplex(64);
        let options = ["--token-file", file.path.to_str().unwrap()];
        let command = publish(args(&server.url(), &options), input, stage.shell());
        let script = async {
            let mut peer = server.accept().await;
            assert_eq!(peer.authorization.as_deref(), Some("Bearer a.b.c"));
            advertise(&mut peer, 9).await;
            file.write("d.e.f", 0o600);
            peer.say(&json!({"type": "token_expiring", "expires_s": 5})).await;
            assert_eq!(peer.request().await, json!({"type": "auth", "id": 0, "token": "d.e.f"}));
            peer.say(&json!({"type": "authenticated", "id": 0, "user": "a", "expires_s": 9})).await;
            keyboard.write_all(b"1\n").await.unwrap();
            let taken = peer.publish().await;
            peer.say(&ack(&taken, 17)).await;
            peer.fence().await;
            peer.close(4401).await;
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        assert_eq!(
            stage.log.text(),
            "publishing on a.b from #17\n\
             error: bye (4401); another token is needed; not connecting again\n"
        );
    }

    #[tokio::test]
    async fn a_server_that_wants_a_token_is_told_apart() {
        let (server, stage) = (Server::bind().await, Stage::new());
        let (_keyboard, input) = tokio::io::duplex(64);
        let command = publish(args(&server.url(), &[]), input, stage.shell());
        let script = async {
            let peer = server.accept_with(&json!({"auth_timeout_ms": 10_000})).await;
            assert_eq!(peer.authorization, None);
            assert_eq!(peer.closed().await, Some(1000));
        };
        assert_exit(play(command, script).await, ExitCode::FAILURE);
        let words = "error: this server wants a token; set TIDEWIRE_TOKEN, or give --token-file FILE; not connecting again\n";
        assert_eq!(stage.log.text(), words);
    }

    #[test]
    fn repeated_errors_are_thinned_out() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut repeats = Repeats::default();
        let rows = [
            ("rate_limited", 0, Some(0)),
            ("rate_limited", 10, None),
            ("rate_limited", 999, None),
            ("rate_limited", 1_000, Some(2)),
            ("bad_payload", 1_001, Some(0)),
            ("rate_limited", 1_002, Some(0)),
        ];
        for (code, ms, shown) in rows {
            assert_eq!(repeats.next(code, at(ms)), shown, "{code} at {ms}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_even_and_late_ones_are_not_a_burst() {
        let mut pace = Pace::new(10.0);
        let began = Instant::now();
        let mut turns = vec![];
        for turn in 0..6 {
            if turn == 3 {
                sleep(Duration::from_millis(450)).await;
            }
            pace.turn().await;
            turns.push(began.elapsed().as_millis());
        }
        assert_eq!(turns, [0, 100, 200, 650, 750, 850]);
    }

    #[test]
    fn arguments_are_checked() {
        let rows: [(&[&str], bool); 7] = [
            (&["a.b"], true),
            (&[], false),
            (&["a.*"], false),
            (&["a..b"], false),
            (&["a", "--type", "float"], false),
            (&["a", "--rate", "0"], false),
            (&["a", "--type", "vector", "--rate", "0.5", "--ack"], true),
        ];
        for (rest, taken) in rows {
            assert_eq!(Line::try_parse_from([&["pub"], rest].concat()).is_ok(), taken, "{rest:?}");
        }
    }
}
