//! Acts the table of acts out: clients that come one after the other at a fixed rate, and what each got. One thread for all;
//! it keeps no books and draws no conclusion.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::acts::{Act, Ends, Got, Opens, Place, Step};
use crate::poll::Poll;
use crate::ws::{self, Opcode};

/// Clients that come in a second, all acts in turn. It bounds what the generator costs itself: it shares its CPUs with the
/// good clients, whose latency is judged.
pub(crate) const ACTS_PER_S: u32 = 25;

/// Clients at once. Most are gone within milliseconds, some are let wait for 10 s: three acts of the table, so that some 25
/// are usual. More would be a leak of the generator's own.
pub(crate) const OPEN_MAX: usize = 256;

/// How long a client waits for what it gets: longer than any timeout of the server for a client, which is 10 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest sleep; also how often a client that never reads says what it says.
const TURN: Duration = Duration::from_millis(20);

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// `SO_RCVBUF` of a client that never reads: small, so that the server has to deal with what it is not rid of.
const DEAF_RECEIVE_BUFFER_BYTES: usize = 4 << 10;

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// When to act.
#[derive(Debug, Default)]
pub(crate) struct Cue {
    /// From now on.
    pub begin: AtomicBool,
    /// Not any more.
    pub end: AtomicBool,
}

/// What came of an act.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Clients that came for it.
    pub begun: u64,
    /// What they got. Those that were still there at the end are missing.
    pub got: BTreeMap<Got, u64>,
}

/// Acts from the one cue to the other: a tally for each act.
pub(crate) fn act(acts: &[Act], place: &Place, cue: &Cue) -> io::Result<Vec<Tally>> {
    let mut crowd = Crowd {
        acts,
        place,
        poll: Poll::new()?,
        guests: Vec::new(),
        tallies: vec![Tally::default(); acts.len()],
        buffer: vec![0; ws::READ_BUFFER_BYTES],
    };
    let mut begun: Option<Instant> = None;
    let mut count: u32 = 0;
    while !cue.end.load(Ordering::Relaxed) {
        let now = Instant::now();
        if begun.is_none() && cue.begin.load(Ordering::Relaxed) {
            begun = Some(now);
        }
        if let Some(begun) = begun
            && now >= begun + Duration::from_secs(1) * count / ACTS_PER_S
        {
            crowd.welcome(count as usize % acts.len(), now)?;
            count = count.wrapping_add(1);
        }
        crowd.turn(now)?;
    }
    Ok(crowd.tallies)
}

struct Crowd<'a> {
    acts: &'a [Act],
    place: &'a Place,
    poll: Poll,
    /// By token. Free places are reused.
    guests: Vec<Option<Guest>>,
    tallies: Vec<Tally>,
    buffer: Vec<u8>,
}

/// One client.
struct Guest {
    act: usize,
    stream: TcpStream,
    /// The next step.
    step: usize,
    /// What the socket did not take yet, from `written` on.
    outgoing: Vec<u8>,
    written: usize,
    /// What is no whole message yet.
    unread: Vec<u8>,
    /// Whether the head of the answer is behind.
    upgraded: bool,
    deadline: Instant,
    /// When a deaf one says it again.
    again: Instant,
}

impl Crowd<'_> {
    /// One more client, if there is room.
    fn welcome(&mut self, act: usize, now: Instant) -> io::Result<()> {
        let token = match self.guests.iter().position(Option::is_none) {
            Some(token) => token,
            None if self.guests.len() < OPEN_MAX => {
                self.guests.push(None);
                self.guests.len() - 1
            }
            None => return Ok(()),
        };
        self.tallies[act].begun += 1;
        match Guest::come(act, &self.acts[act], self.place, now) {
            Ok(guest) => {
                if self.acts[act].ends != Ends::Deaf {
                    self.poll.add(&guest.stream, token)?;
                }
                self.guests[token] = Some(guest);
            }
            Err(_) => self.count(act, Got::Unreachable),
        }
        Ok(())
    }

    fn count(&mut self, act: usize, got: Got) {
        *self.tallies[act].got.entry(got).or_default() += 1;
    }

    /// Lets everybody go on, and waits a little.
    fn turn(&mut self, now: Instant) -> io::Result<()> {
        for token in 0..self.guests.len() {
            self.with(token, |guest, act, place, _| guest.go_on(act, place, now));
        }
        for index in 0..self.poll.wait(TURN)? {
            let token = self.poll.token(index);
            self.with(token, |guest, act, place, buffer| guest.hear(act, place, now, buffer));
        }
        Ok(())
    }

    /// Does something with a guest, who may then have got what it gets.
    fn with(
        &mut self,
        token: usize,
        step: impl FnOnce(&mut Guest, &Act, &Place, &mut [u8]) -> Result<(), Got>,
    ) {
        let Some(guest) = self.guests.get_mut(token).and_then(Option::as_mut) else { return };
        let index = guest.act;
        if let Err(got) = step(guest, &self.acts[index], self.place, &mut self.buffer) {
            // Dropped, and with its socket its place in the poll.
            self.guests[token] = None;
            self.count(index, got);
        }
    }
}

impl Guest {
    fn come(index: usize, act: &Act, place: &Place, now: Instant) -> io::Result<Self> {
        /// The example of RFC 6455, section 1.3: nobody looks at the answer's.
        const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
        let address = place.endpoint.address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if act.ends == Ends::Deaf {
            socket.set_recv_buffer_size(DEAF_RECEIVE_BUFFER_BYTES)?;
        }
        socket.connect_timeout(&address.into(), CONNECT_TIMEOUT)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let header = match act.opens {
            Opens::Nothing => None,
            Opens::WebSocket => Some(""),
            Opens::WithHeader(header) => Some(header),
        };
        let outgoing = header.map(|it| place.endpoint.opening(KEY, it).into_bytes()).unwrap_or_default();
        Ok(Self {
            act: index,
            stream: socket.into(),
            step: 0,
            outgoing,
            written: 0,
            unread: Vec::new(),
            upgraded: false,
            deadline: now + PATIENCE,
            again: now,
        })
    }

    /// Does the steps that need not wait, and sends what the socket takes.
    fn go_on(&mut self, act: &Act, place: &Place, now: Instant) -> Result<(), Got> {
        if now >= self.deadline {
            return Err(Got::Silence);
        }
        while let Some(Step::Say(bytes)) = act.steps.get(self.step) {
            self.outgoing.extend(bytes(place));
            self.step += 1;
        }
        if act.ends == Ends::Deaf && self.written == self.outgoing.len() && now >= self.again {
            self.again = now + TURN;
            self.outgoing.clear();
            self.written = 0;
            if let Some(Step::Say(bytes)) = act.steps.last() {
                self.outgoing.extend(bytes(place));
            }
        }
        while self.written < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the server said before it ended the connection is still to be read.
                Err(_) if act.ends == Ends::Listens => return Ok(()),
                Err(_) => return Err(Got::CutOff),
            }
        }
        if act.ends == Ends::Resets && self.step == act.steps.len() {
            // If it fails, the connection ends in order, which the server bears as well.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
            return Err(Got::Left);
        }
        Ok(())
    }

    /// Reads once.
    fn hear(&mut self, act: &Act, place: &Place, now: Instant, buffer: &mut [u8]) -> Result<(), Got> {
        match self.stream.read(buffer) {
            Ok(0) => return Err(Got::CutOff),
            Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(_) => return Err(Got::CutOff),
        }
        let mut used = 0;
        if !self.upgraded {
            match head(&self.unread)? {
                None => return Ok(()),
                Some(end) => (self.upgraded, used) = (true, end),
            }
        }
        while let Some((message, length)) = ws::parse(&self.unread[used..]).map_err(|_| Got::Garbled)? {
            used += length;
            match message.opcode {
                Opcode::Close => return Err(Got::Closed(code(message.payload))),
                Opcode::Text => {
                    if let Some(Step::Hear(wanted)) = act.steps.get(self.step)
                        && has(message.payload, wanted.as_bytes())
                    {
                        self.step += 1;
                    }
                }
                Opcode::Binary | Opcode::Ping | Opcode::Pong => {}
            }
        }
        self.unread.drain(..used);
        self.go_on(act, place, now)
    }
}

/// The end of the answer's head, when it has come; what the client got if it is no upgrade.
fn head(bytes: &[u8]) -> Result<Option<usize>, Got> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX { Err(Got::Refused(0)) } else { Ok(None) };
    };
    let status = bytes.split(|byte| *byte == b' ').nth(1).and_then(|it| std::str::from_utf8(it).ok());
    match status.and_then(|it| it.parse().ok()).unwrap_or(0) {
        101 => Ok(Some(end + 4)),
        status => Err(Got::Refused(status)),
    }
}

/// Of a close frame; 1005 is none (RFC 6455, section 7.4.1).
fn code(payload: &[u8]) -> u16 {
    payload.first_chunk().map_or(1005, |&code| u16::from_be_bytes(code))
}

fn has(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fault, serve};
    use crate::soak::acts::Step::{Hear, Say};
    use crate::ws::Endpoint;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn heads_and_codes() {
        assert_eq!(head(b"HTTP/1.1 101 x\r\n\r\nrest"), Ok(Some(18)));
        assert_eq!(head(b"HTTP/1.1 431 x\r\n"), Ok(None));
        assert_eq!(head(b"HTTP/1.1 431 x\r\n\r\n"), Err(Got::Refused(431)));
        assert_eq!(head(b"SSH-2.0\r\n\r\n"), Err(Got::Refused(0)));
        assert_eq!(head(&[b'x'; HEAD_BYTES_MAX + 1]), Err(Got::Refused(0)));
        assert_eq!((code(b""), code(&[0x03, 0xf2, b'x'])), (1005, 1010));
    }

    fn play(act: Act, endpoint: Endpoint, until: impl Fn() -> bool) -> Tally {
        let cue = Arc::new(Cue::default());
        cue.begin.store(true, Ordering::Relaxed);
        let place = Place { endpoint, channel: "a".to_owned() };
        let crowd = {
            let cue = Arc::clone(&cue);
            thread::spawn(move || super::act(&[act], &place, &cue).unwrap().remove(0))
        };
        while !until() {
            thread::yield_now();
        }
        cue.end.store(true, Ordering::Relaxed);
        crowd.join().unwrap()
    }

    /// A server that answers each connection with these bytes, and counts them.
    fn answering(answer: &'static [u8]) -> (Endpoint, Arc<AtomicBool>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::parse(&format!("ws://{}/ws", listener.local_addr().unwrap())).unwrap();
        let seen = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&seen);
        thread::spawn(move || {
            for (index, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let mut stream = stream;
                let _ = stream.write_all(answer);
                // The first ones have been looked at by the time that the fifth comes.
                told.store(index >= 4, Ordering::Relaxed);
            }
        });
        (endpoint, seen)
    }

    #[test]
    fn what_a_client_gets_is_what_came() {
        let rows: [(&'static [u8], Got); 6] = [
            (b"HTTP/1.1 101 yes\r\n\r\n\xc1\x00", Got::Garbled),
            (b"HTTP/1.1 503 no\r\n\r\n", Got::Refused(503)),
            (b"", Got::CutOff),
            (b"HTTP/1.1 101 yes\r\n\r\n", Got::CutOff),
            (b"HTTP/1.1 101 yes\r\n\r\n\x81\x02{}\x88\x02\x03\xf0", Got::Closed(1008)),
            (b"HTTP/1.1 101 yes\r\n\r\n\x81\x09\"welcome\"\x88\x00", Got::Closed(1005)),
        ];
        for (answer, got) in rows {
            let (endpoint, seen) = answering(answer);
            let act =
                Act { name: "x", opens: Opens::Nothing, steps: &[], ends: Ends::Listens, expected: &[] };
            let tally = play(act, endpoint, || seen.load(Ordering::Relaxed));
            assert!(tally.begun >= 4, "{tally:?}");
            assert_eq!(tally.got.keys().collect::<Vec<_>>(), [&got], "{answer:?}");
        }
    }

    #[test]
    fn a_client_waits_for_what_it_is_to_hear_and_then_goes() {
        let endpoint = Endpoint::parse(&serve(Fault::Sound)).unwrap();
        let subscribe = Say(|_| {
            let mut frame = Vec::new();
            let text = r#"{"type":"subscribe","id":1,"channel":"a"}"#;
            ws::write_frame(&mut frame, Opcode::Text, text.len(), 7, |out| {
                out.copy_from_slice(text.as_bytes())
            });
            frame
        });
        let steps: &'static [Step] = Box::leak(Box::new([subscribe, Hear("\"subscribed\"")]));
        let act = Act { name: "x", opens: Opens::WebSocket, steps, ends: Ends::Resets, expected: &[] };
        let start = Instant::now();
        let tally = play(act, endpoint, || start.elapsed() > Duration::from_millis(500));
        assert_eq!(tally.got.keys().collect::<Vec<_>>(), [&Got::Left]);
        // The rate holds: no more than half a second's, and the one at the start.
        assert!((2..=u64::from(ACTS_PER_S)).contains(&tally.begun), "{tally:?}");
    }

    #[test]
    fn nobody_there_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::parse(&format!("ws://{}/ws", listener.local_addr().unwrap())).unwrap();
        drop(listener);
        let start = Instant::now();
        let act = Act { name: "x", opens: Opens::Nothing, steps: &[], ends: Ends::Listens, expected: &[] };
        let tally = play(act, endpoint, || start.elapsed() > Duration::from_millis(100));
        assert_eq!(tally.got.keys().collect::<Vec<_>>(), [&Got::Unreachable]);
    }
}
