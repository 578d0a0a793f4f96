//! A server of a few lines, for tests of the generator: relays one publisher's messages at once, a frame for each, and
//! loses some of them as it is told. It keeps no time, has no queue, and knows just enough of the protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use prost::Message as _;
use sha1::{Digest, Sha1};
use tidewire::wire::proto;

/// What the server does wrong, or says that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Sound,
    /// Every third sample is lost without a word.
    Silent,
    /// Every third sample is lost and announced.
    Announced,
    /// Subscribers are cut off at the tenth sample.
    CutOff,
}

#[derive(Debug, Default)]
struct State {
    seq: u64,
    subscribers: Vec<TcpStream>,
}

/// Starts it; it lives as long as the test process. Returns its URL.
pub(crate) fn serve(fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let state = Arc::new(Mutex::new(State::default()));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let state = Arc::clone(&state);
            thread::spawn(move || converse(stream, &state, fault));
        }
    });
    url
}

/// Ends, without a word, when the peer does: tests look at the generator's side.
fn converse(stream: TcpStream, state: &Mutex<State>, fault: Fault) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut key = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.strip_prefix("Sec-WebSocket-Key: ") {
            value.trim().clone_into(&mut key);
        }
        if line == "\r\n" {
            break;
        }
    }
    let accept = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::engine::general_purpose::STANDARD.encode(accept);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: tidewire.v1\r\n\r\n"
    );
    (&stream).write_all(head.as_bytes()).ok()?;
    send(&stream, 1, br#"{"type":"welcome","protocol":"tidewire.v1","connection":1}"#)?;
    loop {
        let (opcode, payload) = receive(&mut reader)?;
        let mut state = state.lock().unwrap();
        let entry = format!(r#""channel":7,"name":"x","epoch":9,"seq":{}"#, state.seq + 1);
        match opcode {
            1 if payload.windows(9).any(|window| window == b"advertise") => {
                send(&stream, 1, format!(r#"{{"type":"advertised","id":1,{entry}}}"#).as_bytes())?;
            }
            1 => {
                let subscribed = format!(r#"{{"type":"subscribed","id":1,"channels":[{{{entry}}}]}}"#);
                send(&stream, 1, subscribed.as_bytes())?;
                state.subscribers.push(stream.try_clone().ok()?);
            }
            2 => publish(&stream, &mut state, fault, proto::Publish::decode(&payload[..]).ok()?)?,
            _ => return None,
        }
    }
}

fn publish(publisher: &TcpStream, state: &mut State, fault: Fault, publish: proto::Publish) -> Option<()> {
    let block = publish.block?;
    let (seq, count) = (state.seq + 1, block.samples.len());
    state.seq += u64::try_from(count).ok()?;
    let lose = seq.is_multiple_of(3) && matches!(fault, Fault::Silent | Fault::Announced);
    let count = u32::try_from(count).ok()?;
    let frame =
        proto::Frame { channel: 7, epoch: 9, seq, count, blocks: vec![block], ..proto::Frame::default() };
    let frame = frame.encode_to_vec();
    let gap =
        format!(r#"{{"type":"gap","channel":7,"from":{seq},"to":{seq},"count":{count},"reason":"slow"}}"#);
    state.subscribers.retain(|subscriber| {
        let sent = match fault {
            Fault::CutOff if seq == 10 => send(subscriber, 8, b"\x11\x3dtoo slow").and(None),
            Fault::Announced if lose => send(subscriber, 1, gap.as_bytes()),
            _ if lose => Some(()),
            _ => send(subscriber, 2, &frame),
        };
        sent.is_some()
    });
    if publish.ack != 0 {
        let ack = format!(r#"{{"type":"ack","id":1,"channel":7,"seq":{seq},"count":{count}}}"#);
        send(publisher, 1, ack.as_bytes())?;
    }
    Some(())
}

fn send(mut stream: &TcpStream, opcode: u8, payload: &[u8]) -> Option<()> {
    let mut bytes = vec![0x80 | opcode, 126];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => bytes[1] = short,
        _ => bytes.extend(u16::try_from(payload.len()).ok()?.to_be_bytes()),
    }
    bytes.extend(payload);
    stream.write_all(&bytes).ok()
}

fn receive(reader: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    reader.read_exact(&mut head).ok()?;
    let mut length = usize::from(head[1] & 0x7f);
    if length == 126 {
        let mut long = [0; 2];
        reader.read_exact(&mut long).ok()?;
        length = usize::from(u16::from_be_bytes(long));
    }
    let mut key = [0; 4];
    reader.read_exact(&mut key).ok()?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).ok()?;
    payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    Some((head[0] & 0x0f, payload))
}
