//! Replays conversations, written in the notation of `docs/PROTOCOL.md`, against a real server, and compares every byte:
//! the example of the document, and what the document says about overlapping subscriptions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tidewire::config::Config;
use tidewire::server::Server;
use tidewire::session::{DELAYS_MS, RATES_HZ};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

const DOCUMENT: &str = include_str!("../docs/PROTOCOL.md");

/// A server that says nothing for this long says nothing at all.
const SILENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_example_conversation_happens_as_documented() {
    let opening = "```conversation\n";
    let start = DOCUMENT.find(opening).expect("the document has an example") + opening.len();
    let end = start + DOCUMENT[start..].find("```").expect("the example ends");
    let lines_before = DOCUMENT[..start].lines().count();
    replay("docs/PROTOCOL.md", lines_before, &DOCUMENT[start..end]).await;
}

#[tokio::test]
async fn a_name_and_then_the_oldest_pattern_give_the_options() {
    let lines_before = line!();
    let script = r#"
C> connect /ws?user=ann tidewire.v1.json
S< {"type":"welcome","protocol":"tidewire.v1.json","connection":<connection>,"server_ns":"<server_ns>","user":"ann",
    "limits":{"message_bytes_max":65536,"message_samples_max":4096,"subscriptions_max":256,"channels_max":1024,
    "channel_name_bytes_max":255,"publish_messages_per_s_max":200000,"publish_bytes_per_s_max":268435456,
    "publish_samples_per_s_max":10000000,"control_messages_per_s_max":1000},
    "settings":{"max_delay_ms":10,"max_age_ms":1000,"heartbeat_ms":10000,"ping_ms":25000,"pong_timeout_ms":10000}}
S< {"type":"subscribed","subscription":"$user.ann","policy":"drop_oldest","max_delay_ms":0,"max_age_ms":1000,
    "max_rate_hz":null,"channels":[{"channel":<inbox>,"name":"$user.ann","epoch":<inbox_epoch>,"seq":1,"cursor":"<inbox_epoch>:0"}]}

C> {"type":"subscribe","channel":"first.>"}
S< {"type":"subscribed","subscription":"first.>","policy":"drop_oldest","max_delay_ms":10,"max_age_ms":1000,
    "max_rate_hz":null,"channels":[]}
C> {"type":"subscribe","channel":"a.>","max_delay_ms":0}
S< {"type":"subscribed","subscription":"a.>","policy":"drop_oldest","max_delay_ms":0,"max_age_ms":1000,
    "max_rate_hz":null,"channels":[]}
C> {"type":"unsubscribe","channel":"first.>"}
S< {"type":"unsubscribed","subscription":"first.>","channels":[]}
C> {"type":"subscribe","channel":"a.*","policy":"latest"}
S< {"type":"subscribed","subscription":"a.*","policy":"latest","max_delay_ms":10,"max_age_ms":1000,
    "max_rate_hz":null,"channels":[]}

C> {"type":"advertise","channel":"a.b"}
S< {"type":"channel","subscription":"a.>","channel":<channel>,"name":"a.b","epoch":<epoch>,"seq":1,"cursor":"<epoch>:0"}
S< {"type":"advertised","channel":<channel>,"name":"a.b","epoch":<epoch>,"seq":1}
C> {"type":"publish","channel":"a.b","block":{"samples":[{"integer":1},{"integer":2}]}}
S< {"type":"frame","channel":<channel>,"name":"a.b","epoch":<epoch>,"seq":1,"count":2,"flushed_ns":"<flushed1_ns>",
    "blocks":[{"source_ns":"0","received_ns":"<received1_ns>","samples":[{"source_delta_ns":"0","integer":"1"},
    {"source_delta_ns":"0","integer":"2"}]}]}

C> {"type":"subscribe","channel":"a.b","policy":"latest"}
S< {"type":"subscribed","subscription":"a.b","policy":"latest","max_delay_ms":10,"max_age_ms":1000,
    "max_rate_hz":null,"channels":[{"channel":<channel>,"name":"a.b","epoch":<epoch>,"seq":3,"cursor":"<epoch>:2"}]}
C> {"type":"publish","channel":"a.b","block":{"samples":[{"integer":3},{"integer":4}]}}
S< {"type":"gap","channel":<channel>,"from":3,"to":3,"count":1,"reason":"conflated"}
S< {"type":"frame","channel":<channel>,"name":"a.b","epoch":<epoch>,"seq":4,"count":1,"flushed_ns":"<flushed2_ns>",
    "blocks":[{"source_ns":"0","received_ns":"<received2_ns>","samples":[{"source_delta_ns":"0","integer":"4"}]}]}

C> {"type":"unsubscribe","channel":"a.b"}
S< {"type":"unsubscribed","subscription":"a.b","channels":[]}
C> {"type":"publish","channel":"a.b","block":{"samples":[{"integer":5},{"integer":6}]}}
S< {"type":"frame","channel":<channel>,"name":"a.b","epoch":<epoch>,"seq":5,"count":2,"flushed_ns":"<flushed3_ns>",
    "blocks":[{"source_ns":"0","received_ns":"<received3_ns>","samples":[{"source_delta_ns":"0","integer":"5"},
    {"source_delta_ns":"0","integer":"6"}]}]}

C> {"type":"subscribe","channel":"*.c"}
S< {"type":"subscribed","subscription":"*.c","policy":"drop_oldest","max_delay_ms":10,"max_age_ms":1000,
    "max_rate_hz":null,"channels":[]}
C> {"type":"subscribe","channel":">","max_rate_hz":0.1}
S< {"type":"subscribed","subscription":">","policy":"drop_oldest","max_delay_ms":10,"max_age_ms":1000,
    "max_rate_hz":0.1,"channels":[{"channel":<channel>,"name":"a.b","epoch":<epoch>,"seq":7,"cursor":"<epoch>:6"}]}
C> {"type":"advertise","channel":"b.c"}
S< {"type":"channel","subscription":"*.c","channel":<second>,"name":"b.c","epoch":<second_epoch>,"seq":1,"cursor":"<second_epoch>:0"}
S< {"type":"advertised","channel":<second>,"name":"b.c","epoch":<second_epoch>,"seq":1}
C> close 1000
S< close 1000
"#;
    replay(file!(), lines_before as usize, script).await;
}

#[test]
fn the_steps_of_the_options_are_documented() {
    let delays = DELAYS_MS.map(|step| step.to_string()).join(", ");
    let rates = RATES_HZ.map(|step| step.to_string()).join(", ");
    for line in [format!("- `max_delay_ms`: {delays}, "), format!("- `max_rate_hz`: {rates}. ")] {
        assert!(DOCUMENT.contains(&line), "docs/PROTOCOL.md has no {line:?}");
    }
}

/// Runs a script against a server of its own with one worker, so that numbers and order are always the same.
async fn replay(file: &str, lines_before: usize, script: &str) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { listen, workers: 1, host_telemetry: false, ..Config::default() };
    let server = Server::bind(config).expect("a free port");
    let address = server.local_addr().expect("a bound listener has an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let talk = async {
        let steps = parse(script);
        assert!(!steps.is_empty(), "{file}: no conversation");
        let mut player = Player { address, socket: None, values: BTreeMap::new() };
        for step in &steps {
            if let Err(difference) = player.play(step).await {
                panic!("\n{file}:{}: {difference}", lines_before + step.line);
            }
        }
        player.finish().await;
        drop(stop);
    };
    let serve = async { server.run(async { drop(stopped.await) }).await.expect("the server runs") };
    tokio::join!(talk, serve);
}

/// One message of a script.
#[derive(Debug)]
struct Step {
    /// Line of the script, from 1.
    line: usize,
    from_client: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    Connect { target: String, subprotocol: String },
    Text(Vec<Part>),
    Binary(Vec<Part>),
    Close(u16),
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Value(String),
}

fn parse(script: &str) -> Vec<Step> {
    let mut texts: Vec<(usize, bool, String)> = Vec::new();
    for (index, line) in script.lines().enumerate() {
        let from_client = match line.get(..2) {
            Some("C>") => true,
            Some("S<") => false,
            _ if line.trim().is_empty() => continue,
            _ => {
                let (_, _, text) = texts.last_mut().expect("a script begins with C> or S<");
                assert!(line.starts_with(' '), "line {}: neither a message nor indented", index + 1);
                text.push('\n');
                text.push_str(line);
                continue;
            }
        };
        texts.push((index + 1, from_client, line[2..].to_owned()));
    }
    texts
        .into_iter()
        .map(|(line, from_client, text)| Step { line, from_client, what: parse_message(text.trim()) })
        .collect()
}

fn parse_message(text: &str) -> What {
    if text.starts_with('{') {
        return What::Text(parse_text(&text.lines().map(str::trim).collect::<String>()));
    }
    if let Some(target) = text.strip_prefix("connect ") {
        let (target, subprotocol) = target.split_once(' ').expect("connect TARGET SUBPROTOCOL");
        return What::Connect { target: target.to_owned(), subprotocol: subprotocol.to_owned() };
    }
    if let Some(code) = text.strip_prefix("close ") {
        return What::Close(code.parse().expect("a close code"));
    }
    let without_remarks = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let words: Vec<&str> = without_remarks.flat_map(str::split_whitespace).collect();
    What::Binary(words.into_iter().map(parse_word).collect())
}

/// A text with `<name>` in it.
fn parse_text(mut text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    while let Some((before, rest)) = text.split_once('<') {
        let (name, after) = rest.split_once('>').expect("a `<` of a placeholder has its `>`");
        parts.push(Part::Bytes(before.into()));
        parts.push(Part::Value(name.to_owned()));
        text = after;
    }
    parts.push(Part::Bytes(text.into()));
    parts
}

/// Two hex digits, or `<name>`.
fn parse_word(word: &str) -> Part {
    match word.strip_prefix('<').and_then(|name| name.strip_suffix('>')) {
        Some(name) => Part::Value(name.to_owned()),
        None => {
            let byte = u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2);
            Part::Bytes(vec![byte.unwrap_or_else(|| panic!("{word:?} is not two hex digits"))])
        }
    }
}

/// How values and bytes are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Binary,
}

impl Form {
    fn write(self, name: &str, value: u64) -> Vec<u8> {
        match self {
            Self::Text => value.to_string().into_bytes(),
            Self::Binary => match width(name) {
                Some(bytes) => value.to_le_bytes()[..bytes].to_vec(),
                None => {
                    let mut bytes = Vec::new();
                    prost::encoding::encode_varint(value, &mut bytes);
                    bytes
                }
            },
        }
    }

    /// The value at the start of `bytes`, and how many bytes it takes.
    fn read(self, name: &str, bytes: &[u8]) -> Option<(u64, usize)> {
        match self {
            Self::Text => {
                let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let value = std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()?;
                Some((value, digits))
            }
            Self::Binary => match width(name) {
                Some(width) => {
                    let mut value = [0; 8];
                    value[..width].copy_from_slice(bytes.get(..width)?);
                    Some((u64::from_le_bytes(value), width))
                }
                None => {
                    let mut rest = bytes;
                    let value = prost::encoding::decode_varint(&mut rest).ok()?;
                    Some((value, bytes.len() - rest.len()))
                }
            },
        }
    }

    fn show(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
            Self::Binary => bytes.iter().map(|byte| format!("{byte:02x} ")).collect(),
        }
    }
}

/// Bytes of a value in a binary message; `None` is a varint.
fn width(name: &str) -> Option<usize> {
    match name {
        "channel" => None,
        "epoch" => Some(4),
        _ if name.ends_with("_ns") => Some(8),
        _ => panic!("<{name}> in a binary message: how many bytes?"),
    }
}

type Values = BTreeMap<String, u64>;

/// Compares a message with its template, and keeps the values that it shows for the first time.
fn compare(form: Form, template: &[Part], message: &[u8], values: &mut Values) -> Result<(), String> {
    let mut rest = message;
    let mut is_equal = true;
    for part in template {
        let expected = match part {
            Part::Bytes(bytes) => bytes.clone(),
            Part::Value(name) => {
                let Some(value) = values.get(name).copied().or_else(|| Some(form.read(name, rest)?.0)) else {
                    is_equal = false;
                    break;
                };
                values.insert(name.clone(), value);
                form.write(name, value)
            }
        };
        match rest.strip_prefix(expected.as_slice()) {
            Some(after) => rest = after,
            None => {
                is_equal = false;
                break;
            }
        }
    }
    if is_equal && rest.is_empty() {
        return Ok(());
    }
    let expected: String = template
        .iter()
        .map(|part| match part {
            Part::Bytes(bytes) => form.show(bytes),
            Part::Value(name) => match values.get(name) {
                Some(&value) => form.show(&form.write(name, value)),
                None => format!("<{name}>"),
            },
        })
        .collect();
    let got = form.show(message);
    let same = expected.chars().zip(got.chars()).take_while(|(a, b)| a == b).count();
    Err(format!(
        "the server says something else\nexpected: {expected}\n     got: {got}\n{:>1$}",
        '^',
        11 + same
    ))
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

/// The client of a script.
struct Player {
    address: SocketAddr,
    socket: Option<Socket>,
    values: Values,
}

impl Player {
    async fn play(&mut self, step: &Step) -> Result<(), String> {
        if let What::Connect { target, subprotocol } = &step.what {
            self.socket = Some(connect(self.address, target, subprotocol).await?);
            return Ok(());
        }
        let socket = self.socket.as_mut().ok_or("the first message is no connect")?;
        if step.from_client {
            let message = match &step.what {
                What::Text(parts) => {
                    let bytes = fill(Form::Text, parts, &self.values)?;
                    Message::text(String::from_utf8(bytes).map_err(|error| error.to_string())?)
                }
                What::Binary(parts) => Message::binary(fill(Form::Binary, parts, &self.values)?),
                What::Close(code) => {
                    Message::Close(Some(CloseFrame { code: (*code).into(), reason: "".into() }))
                }
                What::Connect { .. } => return Err("connects twice".into()),
            };
            return socket.send(message).await.map_err(|error| format!("cannot send: {error}"));
        }
        match (&step.what, receive(socket).await?) {
            (What::Text(parts), Message::Text(text)) => {
                compare(Form::Text, parts, text.as_bytes(), &mut self.values)
            }
            (What::Binary(parts), Message::Binary(bytes)) => {
                compare(Form::Binary, parts, &bytes, &mut self.values)
            }
            (What::Close(code), Message::Close(Some(frame))) if u16::from(frame.code) == *code => Ok(()),
            (_, got) => Err(format!("another kind of message came: {got:?}")),
        }
    }

    /// Nothing comes after the script.
    async fn finish(mut self) {
        let socket = self.socket.as_mut().expect("a script connects");
        let after = tokio::time::timeout(SILENCE, socket.next()).await.expect("the server closes the socket");
        assert!(after.is_none(), "the script is over, but there comes {after:?}");
    }
}

async fn connect(address: SocketAddr, target: &str, subprotocol: &str) -> Result<Socket, String> {
    let mut request =
        format!("ws://{address}{target}").into_client_request().map_err(|error| error.to_string())?;
    let offered = HeaderValue::from_str(subprotocol).map_err(|error| error.to_string())?;
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (socket, response) = client_async(request, stream).await.map_err(|error| error.to_string())?;
    let chosen = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
    match chosen {
        Some(chosen) if chosen == subprotocol => Ok(socket),
        _ => Err(format!("the server chose the subprotocol {chosen:?}")),
    }
}

/// The next message; pings come at random times and are answered by the library.
async fn receive(socket: &mut Socket) -> Result<Message, String> {
    loop {
        match tokio::time::timeout(SILENCE, socket.next()).await {
            Err(_) => return Err("the server says nothing".into()),
            Ok(None) => return Err("the server has closed the socket".into()),
            Ok(Some(Err(error))) => return Err(error.to_string()),
            Ok(Some(Ok(Message::Ping(_)))) => {}
            Ok(Some(Ok(message))) => return Ok(message),
        }
    }
}

/// A message of the client, with the values that the server has given.
fn fill(form: Form, template: &[Part], values: &Values) -> Result<Vec<u8>, String> {
    let mut message = Vec::new();
    for part in template {
        match part {
            Part::Bytes(bytes) => message.extend_from_slice(bytes),
            Part::Value(name) => {
                let value = values.get(name).ok_or_else(|| format!("<{name}> has no value yet"))?;
                message.extend(form.write(name, *value));
            }
        }
    }
    Ok(message)
}
