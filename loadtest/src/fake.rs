//! A server of a few lines, for tests of the generator: relays one publisher's messages at once, a frame for each, and
//! loses some of them as it is told. It keeps no time, has no queue, and knows just enough of the protocol, and of TLS.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use prost::Message as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};
use sha1::{Digest, Sha1};
use tidewire::wire::proto;

use crate::access::Access;
use crate::ws::Endpoint;

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
    /// Every connection of a subscriber ends at every twentieth sample, unless it is of the past.
    GoneAway,
    /// That of a publisher ends behind every twentieth sample, which is taken and not acknowledged.
    Unacknowledged,
    /// All connections end at the twentieth sample, which is taken, and none is accepted any more.
    Dies,
}

/// What servers know that serve the same channel.
#[derive(Debug, Default)]
pub(crate) struct State {
    seq: u64,
    /// What was advertised.
    name: String,
    /// Everything that was published: the first sequence, and the block.
    past: Vec<(u64, proto::Block)>,
    /// Each with the number of its server.
    subscribers: Vec<(usize, Far)>,
    /// The servers that have died.
    dead: Vec<usize>,
    /// Requests of these types that were answered, by the server's number.
    pub advertised: Vec<usize>,
    pub subscribed: Vec<usize>,
}

/// The server's end of a connection. Its clones are the same one, so that a publisher's thread can write to subscribers.
#[derive(Clone, Debug)]
pub(crate) struct Far {
    socket: Arc<TcpStream>,
    tls: Option<Arc<Mutex<ServerConnection>>>,
}

impl Read for Far {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&*self.socket).read(buffer) };
        loop {
            let ready = tls.lock().unwrap().reader().read(buffer);
            match ready {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                ready => return ready,
            }
            // Others may write meanwhile.
            let mut chunk = [0; 2048];
            let count = (&*self.socket).read(&mut chunk)?;
            if count == 0 {
                return Ok(0);
            }
            let (mut left, mut tls) = (&chunk[..count], tls.lock().unwrap());
            while !left.is_empty() {
                tls.read_tls(&mut left)?;
                tls.process_new_packets().map_err(io::Error::other)?;
            }
            send_tls(&self.socket, &mut tls)?;
        }
    }
}

impl Write for Far {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&*self.socket).write(bytes) };
        let mut tls = tls.lock().unwrap();
        let count = tls.writer().write(bytes)?;
        send_tls(&self.socket, &mut tls).map(|()| count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send_tls(mut socket: &TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}

/// Starts it; it lives as long as the test process. Returns its URL.
pub(crate) fn serve(fault: Fault) -> String {
    serve_with(&Arc::default(), 0, fault)
}

/// The same, as server number `number` of those that share what they know.
pub(crate) fn serve_with(state: &Arc<Mutex<State>>, number: usize, fault: Fault) -> String {
    let state = Arc::clone(state);
    format!("ws://{}/ws", listen(None, move |far| talk(&far, &state, (number, fault))))
}

/// The same with TLS, and a certificate that no other has.
pub(crate) fn serve_tls(fault: Fault) -> Endpoint {
    let state = Mutex::new(State::default());
    listen_tls(move |far| talk(&far, &state, (0, fault)))
}

/// Shakes hands with whoever comes, and leaves the rest to `talk`, on a thread for each.
pub(crate) fn listen_tls(talk: impl Fn(Far) + Send + Sync + 'static) -> Endpoint {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = ["127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let certificate = certificate.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let address = listen(Some(Arc::new(config)), talk);
    Endpoint::parse_with(&format!("wss://{address}/ws"), Access::trusting(certificate).unwrap()).unwrap()
}

fn listen(tls: Option<Arc<ServerConfig>>, talk: impl Fn(Far) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let talk = Arc::new(talk);
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let session = |config: &Arc<ServerConfig>| ServerConnection::new(Arc::clone(config)).unwrap();
            let tls = tls.as_ref().map(|config| Arc::new(Mutex::new(session(config))));
            let (far, talk) = (Far { socket: Arc::new(socket), tls }, Arc::clone(&talk));
            thread::spawn(move || talk(far));
        }
    });
    address
}

/// Ends, without a word, when the peer does: tests look at the generator's side.
fn talk(far: &Far, state: &Mutex<State>, (number, fault): (usize, Fault)) {
    let _ = converse(far, state, (number, fault));
    // Subscribers' sockets are kept with the state.
    let _ = far.socket.shutdown(Shutdown::Both);
}

fn converse(stream: &Far, state: &Mutex<State>, (number, fault): (usize, Fault)) -> Option<()> {
    stream.socket.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.clone());
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
    stream.clone().write_all(head.as_bytes()).ok()?;
    send(stream, 1, br#"{"type":"welcome","protocol":"tidewire.v1","connection":1}"#)?;
    loop {
        let (opcode, payload) = receive(&mut reader)?;
        let mut state = state.lock().unwrap();
        if state.dead.contains(&number) {
            return None;
        }
        let request: serde_json::Value = serde_json::from_slice(&payload).unwrap_or_default();
        let asked = request["channel"].as_str().unwrap_or_default();
        if request["type"] == "advertise" {
            asked.clone_into(&mut state.name);
        }
        let name = if state.name.is_empty() { asked } else { &state.name };
        let since = request["since"].as_str().or_else(|| request["since"][name].as_str());
        let since: Option<u64> = since.and_then(|cursor| cursor.strip_prefix("9:")?.parse().ok());
        let next = since.unwrap_or(state.seq) + 1;
        let replay = since.map_or("", |_| r#","replay":{"outcome":"replayed","samples":0}"#);
        let entry = format!(r#""channel":7,"name":"{name}","epoch":9,"seq":{next}{replay}"#);
        match opcode {
            1 if request["type"] == "advertise" => {
                state.advertised.push(number);
                send(stream, 1, format!(r#"{{"type":"advertised","id":1,{entry}}}"#).as_bytes())?;
            }
            1 => {
                let subscribed = format!(r#"{{"type":"subscribed","id":1,"channels":[{{{entry}}}]}}"#);
                send(stream, 1, subscribed.as_bytes())?;
                if since.is_some() {
                    for (seq, block) in state.past.iter().filter(|(seq, _)| *seq >= next) {
                        let fault = if fault == Fault::GoneAway { Fault::Sound } else { fault };
                        deliver(stream, fault, *seq, block)?;
                    }
                    send(
                        stream,
                        1,
                        format!(r#"{{"type":"live","channel":7,"seq":{}}}"#, state.seq + 1).as_bytes(),
                    )?;
                }
                state.subscribed.push(number);
                state.subscribers.push((number, stream.clone()));
            }
            2 => publish(stream, &mut state, (number, fault), proto::Publish::decode(&payload[..]).ok()?)?,
            _ => return None,
        }
    }
}

fn publish(
    publisher: &Far,
    state: &mut State,
    (number, fault): (usize, Fault),
    publish: proto::Publish,
) -> Option<()> {
    let block = publish.block?;
    let (seq, count) = (state.seq + 1, block.samples.len());
    state.seq += u64::try_from(count).ok()?;
    let dies = fault == Fault::Dies && seq >= 20;
    if dies {
        state.dead.push(number);
        for (_, subscriber) in state.subscribers.extract_if(.., |(at, _)| *at == number) {
            let _ = subscriber.socket.shutdown(Shutdown::Both);
        }
    }
    state.subscribers.retain(|(_, subscriber)| deliver(subscriber, fault, seq, &block).is_some());
    state.past.push((seq, block));
    if dies {
        return None;
    }
    if fault == Fault::Unacknowledged && seq.is_multiple_of(20) {
        return None;
    }
    if publish.ack != 0 {
        let id = publish.ack;
        let ack = format!(r#"{{"type":"ack","id":{id},"channel":7,"seq":{seq},"count":{count}}}"#);
        send(publisher, 1, ack.as_bytes())?;
    }
    Some(())
}

/// To a subscriber, with what goes wrong; `None` where it is gone.
fn deliver(subscriber: &Far, fault: Fault, seq: u64, block: &proto::Block) -> Option<()> {
    let lose = seq.is_multiple_of(3) && matches!(fault, Fault::Silent | Fault::Announced);
    let count = u32::try_from(block.samples.len()).ok()?;
    let blocks = vec![block.clone()];
    let frame = proto::Frame { channel: 7, epoch: 9, seq, count, blocks, ..proto::Frame::default() };
    let to = seq + u64::from(count) - 1;
    let gap =
        format!(r#"{{"type":"gap","channel":7,"from":{seq},"to":{to},"count":{count},"reason":"slow"}}"#);
    match fault {
        Fault::CutOff if seq == 10 => send(subscriber, 8, b"\x11\x3dtoo slow").and(None),
        Fault::GoneAway if seq.is_multiple_of(20) => send(subscriber, 8, b"\x03\xe9away").and(None),
        Fault::Announced if lose => send(subscriber, 1, gap.as_bytes()),
        _ if lose => Some(()),
        _ => send(subscriber, 2, &frame.encode_to_vec()),
    }
}

fn send(stream: &Far, opcode: u8, payload: &[u8]) -> Option<()> {
    let mut bytes = vec![0x80 | opcode, 126];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => bytes[1] = short,
        _ => bytes.extend(u16::try_from(payload.len()).ok()?.to_be_bytes()),
    }
    bytes.extend(payload);
    stream.clone().write_all(&bytes).ok()
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
