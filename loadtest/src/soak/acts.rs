//! What the crowd of a soak does: one row for each act, with what it may get for it. Data, and the bytes; it connects to nothing.
//!
//! An act to add is a row of [`ACTS`]. Its rate follows: all acts take turns.

use crate::ws::Endpoint;

/// One thing that a client does, from its connect to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act {
    /// What reports call it.
    pub name: &'static str,
    /// What it says first.
    pub opens: Opens,
    /// What it does then, in order.
    pub steps: &'static [Step],
    /// How it goes.
    pub ends: Ends,
    /// What may come of it. Anything else is a failure of the soak.
    pub expected: &'static [Got],
}

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opens {
    /// Nothing: a TCP connection.
    Nothing,
    /// It asks for the WebSocket, and goes on at once.
    WebSocket,
    /// The same with one header more.
    WithHeader(&'static str),
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Sends these bytes.
    Say(fn(&Place) -> Vec<u8>),
    /// Waits for a text message that has this in it.
    Hear(&'static str),
}

/// How a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It reads until the server has ended the connection.
    Listens,
    /// It reads nothing at all, and says its last step again and again until the server has ended the connection.
    Deaf,
    /// It resets the connection.
    Resets,
}

/// What a client got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Got {
    /// A close frame with this code; 1005 is none.
    Closed(u16),
    /// An HTTP response with this status, which was no upgrade.
    Refused(u16),
    /// The end of the stream without a close frame.
    CutOff,
    /// It went by itself.
    Left,
    /// Nothing within the time that it waits.
    Silence,
    /// What no server may send.
    Garbled,
    /// No connection.
    Unreachable,
}

impl Got {
    /// For people.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Closed(1005) => "closed without a code".to_owned(),
            Self::Closed(code) => format!("closed {code}"),
            Self::Refused(status) => format!("HTTP {status}"),
            Self::CutOff => "cut off".to_owned(),
            Self::Left => "left".to_owned(),
            Self::Silence => "NO ANSWER".to_owned(),
            Self::Garbled => "BROKEN PROTOCOL".to_owned(),
            Self::Unreachable => "NO CONNECTION".to_owned(),
        }
    }
}

/// Where acts take place.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The server.
    pub endpoint: Endpoint,
    /// What the good subscribers subscribe to.
    pub channel: String,
}

/// The server's default for the largest message.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;

/// More than the messages with an error that the server bears within 10 s, by default.
const NONSENSE: usize = 20;

/// Pairs of requests that are more than the server takes within a second, by default 1,000 messages.
const FLOOD: usize = 1_000;

use Ends::{Deaf, Listens, Resets};
use Got::{Closed, CutOff, Left, Refused};
use Opens::{Nothing, WebSocket, WithHeader};
use Step::{Hear, Say};

/// The acts in their turn: those first that the server lets wait the longest.
pub(crate) const ACTS: &[Act] = &[
    // Nothing is wrong with these: they come and go.
    act(
        "subscribes, says goodbye",
        WebSocket,
        &[Say(subscribe), Hear("\"subscribed\""), Say(goodbye)],
        Listens,
        &[Closed(1000)],
    ),
    act("subscribes, goes by RST", WebSocket, &[Say(subscribe), Hear("\"subscribed\"")], Resets, &[Left]),
    act(
        "advertises, says goodbye",
        WebSocket,
        &[Say(advertise), Hear("\"advertised\""), Say(goodbye)],
        Listens,
        &[Closed(1000)],
    ),
    act("RST before the upgrade's answer", WebSocket, &[], Resets, &[Left]),
    act("RST in the head", Nothing, &[Say(half_a_head)], Resets, &[Left]),
    // Who says too little.
    act("silent socket", Nothing, &[], Listens, &[CutOff, Refused(408)]),
    act("half a head", Nothing, &[Say(half_a_head)], Listens, &[CutOff, Refused(408)]),
    act("half a message", WebSocket, &[Say(half_a_frame)], Listens, &[Closed(1008)]),
    act("RST in a frame", WebSocket, &[Hear("\"welcome\""), Say(half_a_frame)], Resets, &[Left]),
    // HTTP that is none.
    act("garbage HTTP", Nothing, &[Say(garbage)], Listens, &[Refused(400), CutOff]),
    act("TLS hello", Nothing, &[Say(tls_hello)], Listens, &[Refused(400), CutOff]),
    act("POST /ws", Nothing, &[Say(post)], Listens, &[Refused(405)]),
    act("path that climbs", Nothing, &[Say(climb)], Listens, &[Refused(404)]),
    act("head of 64 KiB", Nothing, &[Say(long_head)], Listens, &[Refused(431), CutOff]),
    act("bad WebSocket key", Nothing, &[Say(bad_key)], Listens, &[Refused(400)]),
    // 401 where the server wants tokens, else nobody looks at it.
    act(
        "wrong token",
        WithHeader("Authorization: Bearer eyJhbGciOiJub25lIn0.e30.\r\n"),
        &[Hear("\"welcome\""), Say(goodbye)],
        Listens,
        &[Refused(401), Closed(1000)],
    ),
    act(
        "no token at all",
        WithHeader("Authorization: Bearer \r\n"),
        &[Hear("\"welcome\""), Say(goodbye)],
        Listens,
        &[Refused(401), Closed(1000)],
    ),
    // An open server has no use for a token, and says so; one that wants tokens ends it.
    act(
        "auth with a wrong token, then goodbye",
        WebSocket,
        &[Say(auth), Hear("\"unsupported\""), Say(goodbye)],
        Listens,
        &[Closed(1000), Closed(4401)],
    ),
    act("auth flood", WebSocket, &[Say(auths)], Listens, &[Closed(1008), Closed(4401)]),
    // Frames that RFC 6455 forbids.
    act("unmasked frame", WebSocket, &[Say(unmasked)], Listens, &[Closed(1002)]),
    act("reserved bit", WebSocket, &[Say(reserved_bit)], Listens, &[Closed(1002)]),
    act("unknown opcode", WebSocket, &[Say(unknown_opcode)], Listens, &[Closed(1002)]),
    act("fragmented ping", WebSocket, &[Say(fragmented_ping)], Listens, &[Closed(1002)]),
    act("orphan continuation", WebSocket, &[Say(orphan)], Listens, &[Closed(1002)]),
    act("close code 1005", WebSocket, &[Say(close_1005)], Listens, &[Closed(1002)]),
    act("text that is not UTF-8", WebSocket, &[Say(bad_text)], Listens, &[Closed(1007)]),
    act("one byte too many announced", WebSocket, &[Say(announce_one_too_many)], Listens, &[Closed(1009)]),
    act("2^63 bytes announced", WebSocket, &[Say(announce_2_63)], Listens, &[Closed(1002), Closed(1009)]),
    act("fragments without end", WebSocket, &[Say(fragments)], Listens, &[Closed(1008)]),
    // Messages that the protocol forbids, and too many of them.
    act("garbage JSON", WebSocket, &[Say(bad_json)], Listens, &[Closed(1008)]),
    act("garbage protobuf", WebSocket, &[Say(bad_protobuf)], Listens, &[Closed(1008)]),
    act("bad channel names", WebSocket, &[Say(bad_names)], Listens, &[Closed(1008)]),
    act(
        "one bad name, then goodbye",
        WebSocket,
        &[Say(bad_name), Hear("\"bad_channel\""), Say(goodbye)],
        Listens,
        &[Closed(1000)],
    ),
    act("publish without advertise", WebSocket, &[Say(not_advertised)], Listens, &[Closed(1008)]),
    act("subscribe and unsubscribe flood", WebSocket, &[Say(flood)], Listens, &[Closed(1008), CutOff]),
    act("ping flood, never reads", WebSocket, &[Say(pings)], Deaf, &[CutOff]),
];

const fn act(
    name: &'static str,
    opens: Opens,
    steps: &'static [Step],
    ends: Ends,
    expected: &'static [Got],
) -> Act {
    Act { name, opens, steps, ends, expected }
}

/// A client's frame: `first` is FIN, the reserved bits and the opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x5a, 0x0f, 0xc3, 0x96];
    let mut frame = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..126), _) => frame.push(0x80 | short),
        (_, Ok(medium)) => {
            frame.push(0x80 | 126);
            frame.extend(medium.to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(KEY);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn text(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes())
}

/// The head of a frame with as many bytes.
fn announce(length: u64) -> Vec<u8> {
    [&[0x82, 0xff][..], &length.to_be_bytes(), &[1, 2, 3, 4]].concat()
}

fn subscribe(place: &Place) -> Vec<u8> {
    text(&format!(r#"{{"type":"subscribe","id":1,"channel":"{}"}}"#, place.channel))
}

/// One name for all of them, or each would leave a channel behind for a minute.
fn advertise(_: &Place) -> Vec<u8> {
    text(r#"{"type":"advertise","id":1,"channel":"soak.visitor"}"#)
}

fn goodbye(_: &Place) -> Vec<u8> {
    frame(0x88, &1000u16.to_be_bytes())
}

fn half_a_head(place: &Place) -> Vec<u8> {
    let mut head = opening(place, "dGhlIHNhbXBsZSBub25jZQ==", "").into_bytes();
    head.truncate(head.len() / 2);
    head
}

fn half_a_frame(place: &Place) -> Vec<u8> {
    let mut frame = subscribe(place);
    frame.truncate(frame.len() / 2);
    frame
}

fn garbage(_: &Place) -> Vec<u8> {
    b"\x00\xff\x1b[31m GET everything\r\n\r\n".to_vec()
}

/// The beginning of a ClientHello (RFC 8446, section 4.1.2).
fn tls_hello(_: &Place) -> Vec<u8> {
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()
}

fn post(place: &Place) -> Vec<u8> {
    opening(place, "dGhlIHNhbXBsZSBub25jZQ==", "").replacen("GET", "POST", 1).into_bytes()
}

fn climb(_: &Place) -> Vec<u8> {
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()
}

fn long_head(place: &Place) -> Vec<u8> {
    opening(place, "dGhlIHNhbXBsZSBub25jZQ==", &format!("X-Long: {}\r\n", "x".repeat(64 << 10))).into_bytes()
}

fn bad_key(place: &Place) -> Vec<u8> {
    opening(place, "abc", "").into_bytes()
}

fn opening(place: &Place, key: &str, headers: &str) -> String {
    place.endpoint.opening(key, headers)
}

fn auth(_: &Place) -> Vec<u8> {
    text(r#"{"type":"auth","id":1,"token":"eyJhbGciOiJub25lIn0.e30."}"#)
}

fn auths(place: &Place) -> Vec<u8> {
    auth(place).repeat(NONSENSE)
}

fn unmasked(_: &Place) -> Vec<u8> {
    b"\x81\x02hi".to_vec()
}

fn reserved_bit(_: &Place) -> Vec<u8> {
    frame(0xc1, b"x")
}

fn unknown_opcode(_: &Place) -> Vec<u8> {
    frame(0x83, b"x")
}

fn fragmented_ping(_: &Place) -> Vec<u8> {
    frame(0x09, b"x")
}

fn orphan(_: &Place) -> Vec<u8> {
    frame(0x80, b"x")
}

fn close_1005(_: &Place) -> Vec<u8> {
    frame(0x88, &1005u16.to_be_bytes())
}

fn bad_text(_: &Place) -> Vec<u8> {
    frame(0x81, b"\xed\xa0\x80")
}

fn announce_one_too_many(_: &Place) -> Vec<u8> {
    announce(MESSAGE_BYTES_MAX + 1)
}

fn announce_2_63(_: &Place) -> Vec<u8> {
    announce(1 << 63)
}

/// Somewhat more than the 4,096 that a message may have.
fn fragments(_: &Place) -> Vec<u8> {
    let mut bytes = frame(0x02, b"");
    bytes.extend(frame(0x00, b"").repeat(5_000));
    bytes
}

fn bad_json(_: &Place) -> Vec<u8> {
    let deep = "[".repeat(10_000);
    let texts = ["{", "[]", "null", r#"{"type":"dance","id":{}}"#, r#"{"type":"ping","id":1e999}"#, &deep];
    texts.iter().cycle().take(NONSENSE).flat_map(|it| text(it)).collect()
}

fn bad_protobuf(_: &Place) -> Vec<u8> {
    frame(0x82, &[0xff; 100]).repeat(NONSENSE)
}

fn bad_name(_: &Place) -> Vec<u8> {
    text(r#"{"type":"subscribe","id":1,"channel":"a..b"}"#)
}

fn bad_names(_: &Place) -> Vec<u8> {
    let long = "x".repeat(10_000);
    let stars = "*".repeat(1_000);
    let names =
        ["", "a..b", "a b", r"\u001b[31m", r"\r\n", r"\u0000", "../../etc/passwd", "a*b", &long, &stars];
    let request = |name: &&str| text(&format!(r#"{{"type":"subscribe","id":1,"channel":"{name}"}}"#));
    names.iter().cycle().take(NONSENSE).flat_map(request).collect()
}

/// `Publish.channel` 4,000,000, and a block with one sample.
fn not_advertised(_: &Place) -> Vec<u8> {
    frame(0x82, &[&[0x08, 0x80, 0x92, 0xf4, 0x01, 0x12, 0x0b, 0x1a, 0x09, 0x11][..], &[0; 8]].concat())
        .repeat(NONSENSE)
}

fn flood(place: &Place) -> Vec<u8> {
    let unsubscribe = text(&format!(r#"{{"type":"unsubscribe","id":2,"channel":"{}"}}"#, place.channel));
    [subscribe(place), unsubscribe].concat().repeat(FLOOD)
}

/// A few at a time, since they are said again.
fn pings(_: &Place) -> Vec<u8> {
    frame(0x89, &[b'x'; 125]).repeat(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let endpoint = Endpoint::parse("ws://127.0.0.1:9/ws").unwrap();
        Place { endpoint, channel: "loadtest.x.soak.*".to_owned() }
    }

    #[test]
    fn every_act_can_end_as_expected() {
        for (index, act) in ACTS.iter().enumerate() {
            let name = act.name;
            assert!(!ACTS[..index].iter().any(|other| other.name == name), "{name} is there twice");
            assert!(!act.expected.is_empty(), "{name}");
            let fails = |got: &Got| matches!(got, Got::Silence | Got::Garbled | Got::Unreachable);
            assert!(!act.expected.iter().any(fails), "{name}: what is never right");
            assert_eq!(act.ends == Resets, act.expected == [Left], "{name}: who resets gets nothing");
            // Who never reads can hear nothing, and needs something to say again.
            let says = matches!(act.steps.last(), Some(Say(_)));
            let hears = act.steps.iter().any(|step| matches!(step, Hear(_)));
            assert!(act.ends != Deaf || (says && !hears), "{name}");
            assert!(act.opens != Nothing || !hears, "{name}: nothing is said before the upgrade");
        }
    }

    #[test]
    fn every_act_says_no_more_than_it_needs() {
        /// In one step. The rate is bounded by the crowd; this bounds what a turn costs.
        const BYTES_MAX: usize = 256 << 10;
        let place = place();
        for act in ACTS {
            for step in act.steps {
                if let Say(bytes) = step {
                    assert!((1..BYTES_MAX).contains(&bytes(&place).len()), "{}", act.name);
                }
            }
        }
    }

    #[test]
    fn bytes_are_what_their_names_say() {
        let place = place();
        assert_eq!(frame(0x81, b"")[..2], [0x81, 0x80]);
        assert_eq!(frame(0x82, &[0; 126])[..4], [0x82, 0x80 | 126, 0, 126]);
        assert_eq!(frame(0x82, &[0; 65_536])[..10], [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(announce_one_too_many(&place)[..10], [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1]);
        assert!(half_a_head(&place).starts_with(b"GET /ws HTTP/1.1\r\n"));
        assert!(!half_a_head(&place).ends_with(b"\r\n\r\n"));
        assert!(post(&place).starts_with(b"POST /ws HTTP/1.1\r\n"));
    }
}
